"""A policy's own tests: this agent, this request, this outcome. No I/O.

They are decided like any request, as if nothing were open, paused or approved. Names are not looked up.
"""

from egress_policy.decision import decide
from egress_policy.denial import Deny, DenyCode
from egress_policy.http_request import RequestHead, read_request
from egress_policy.policy import Policy

PERMIT = "permit"
# What only the world can bring about: people, what is open, and DNS.
_OF_THE_WORLD = {
    DenyCode.PAUSED,
    DenyCode.APPROVAL_DECLINED,
    DenyCode.QUOTA_EXCEEDED,
    DenyCode.ADDRESS_DENIED,
}
OUTCOMES = (PERMIT, *(code.value for code in DenyCode if code not in _OF_THE_WORLD))
"""What may be expected of a test."""


def why_unexpected(policy: Policy, agent: str, head: RequestHead, expected: str) -> str | None:
    """Say how the decision on an agent's request differs from what was expected, None where it does not."""
    request = read_request(head, agent)
    decided = request if isinstance(request, Deny) else decide(policy, request)
    found, detail = (decided.code, decided.detail) if isinstance(decided, Deny) else (PERMIT, "")
    if found == expected:
        return None
    because = f" ({detail})" if detail else ""
    return f"{expected} was expected, and it is {found}{because}"
