"""One request through every step, with what each step found: the proxy's own functions, and nothing opened."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime

from msgspec import structs

from egress_policy import decision
from egress_policy.audit import Record
from egress_policy.caller import Caller
from egress_policy.decision import NOTHING_DECIDED, Permit, Standing, decide
from egress_policy.denial import Deny, DenyCode, Failure, FailureCode, Refusal
from egress_policy.destination import Destination
from egress_policy.grant import Grant, Resolution, issue_grant
from egress_policy.http_request import RequestHead, read_request
from egress_policy.policy import Policy
from egress_policy.records import Asked, decision_record
from egress_policy.resolver import ResolutionFailedError, Resolver

_NAMES = {
    decision.Step.REQUEST: "request well formed",
    decision.Step.CALLER: "caller is an agent",
    decision.Step.KNOWN_BAD: "destination not known-bad",
    decision.Step.KNOWN_GOOD: "known-good",
    decision.Step.SCOPE: "scope",
    decision.Step.SCOPE_ALLOWED: "scope is the caller's",
    decision.Step.INTENT: "intent",
    decision.Step.QUOTA: "room in the scope",
    decision.Step.RESOLUTION: "name resolves",
    decision.Step.ADDRESSES: "addresses allowed",
    decision.Step.GRANT: "kernel acknowledges",
}
_STEP_OF_CODE = {
    DenyCode.REQUEST_MALFORMED: decision.Step.REQUEST,
    DenyCode.DESTINATION_INVALID: decision.Step.REQUEST,
    DenyCode.DESTINATION_MISMATCH: decision.Step.REQUEST,
    DenyCode.CALLER_UNKNOWN: decision.Step.CALLER,
    DenyCode.PAUSED: decision.Step.CALLER,
    DenyCode.DESTINATION_DENIED: decision.Step.KNOWN_BAD,
    DenyCode.SCOPE_MISSING: decision.Step.SCOPE,
    DenyCode.SCOPE_MALFORMED: decision.Step.SCOPE,
    DenyCode.SCOPE_NOT_ALLOWED: decision.Step.SCOPE_ALLOWED,
    DenyCode.INTENT_UNKNOWN: decision.Step.INTENT,
    DenyCode.INTENT_NOT_ALLOWED: decision.Step.INTENT,
    DenyCode.TRUST_NOT_ALLOWED: decision.Step.INTENT,
    DenyCode.METHOD_NOT_ALLOWED: decision.Step.INTENT,
    DenyCode.BODY_TOO_LARGE: decision.Step.INTENT,
    DenyCode.APPROVAL_REQUIRED: decision.Step.INTENT,
    DenyCode.PENDING_APPROVAL: decision.Step.INTENT,
    DenyCode.APPROVAL_DECLINED: decision.Step.INTENT,
    DenyCode.QUOTA_EXCEEDED: decision.Step.QUOTA,
    DenyCode.ADDRESS_DENIED: decision.Step.ADDRESSES,
}


@dataclass(frozen=True, slots=True)
class Step:
    """What one step found; `result` is passed, denied, failed, unchecked or not reached."""

    step: int
    name: str
    result: str
    finding: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The decision as the audit log would have it, and the steps on the way."""

    record: Record
    steps: tuple[Step, ...]


async def explain_request(
    policy: Policy,
    head: RequestHead,
    caller: Caller,
    resolver: Resolver | None,
    now: datetime,
    explanation_id: str,
    live: Mapping[str, AbstractSet[Destination]] | None = None,
    standing: Standing = NOTHING_DECIDED,
) -> Explanation:
    """Decide on a request as the proxy would; without `live` and `standing`, if nothing else were open or decided.

    Where the name servers cannot be asked from here, or must not be (None), the steps that need them are unchecked.
    """
    findings: dict[decision.Step, tuple[str, str]] = {}
    request = read_request(head, caller.agent)
    refusal: Refusal | None = request if isinstance(request, Deny) else None
    permit: Permit | None = None
    grant: Grant | None = None
    if not isinstance(request, Deny):
        decided = decide(
            policy,
            request,
            live,
            passed=lambda step, finding: findings.update({step: ("passed", finding)}),
            standing=standing,
        )
        if isinstance(decided, Permit):
            permit = decided
            opened = await _resolve(policy, permit, resolver, now, explanation_id, findings)
            grant, refusal = (opened, None) if isinstance(opened, Grant) else (None, opened)
        else:
            refusal = decided
    if isinstance(refusal, Deny):
        step = _STEP_OF_CODE[refusal.code]
        if refusal.code is DenyCode.PAUSED and step in findings:
            # The agent passed: it is the scope that is paused.
            step = decision.Step.SCOPE_ALLOWED
        findings[step] = ("denied", refusal.detail)
    elif isinstance(refusal, Failure):
        findings[decision.Step.RESOLUTION] = ("failed", refusal.detail)
    else:
        findings[decision.Step.GRANT] = ("unchecked", _unopened(grant))
    asked = Asked(
        caller,
        request,
        method=head.method.decode("utf-8", "replace"),
        host=dict(head.fields)[b"Host"].decode("utf-8", "replace"),
        port=head.port,
    )
    record = decision_record(policy, explanation_id, asked, permit, grant, refusal)
    return Explanation(
        structs.replace(record, grant=None),
        tuple(
            Step(step.value, name, *findings.get(step, ("not reached", ""))) for step, name in _NAMES.items()
        ),
    )


def _unopened(grant: Grant | None) -> str:
    ports = () if grant is None else grant.ports
    further = f"; it would open port {', '.join(map(str, ports))} too" if ports else ""
    return f"explain opens nothing{further}"


async def _resolve(
    policy: Policy,
    permit: Permit,
    resolver: Resolver | None,
    now: datetime,
    grant_id: str,
    findings: dict[decision.Step, tuple[str, str]],
) -> Grant | Refusal | None:
    host = permit.request.destination.host
    try:
        if not isinstance(host, str):
            resolution = Resolution((host,))
        elif resolver is not None:
            resolution = await resolver.resolve(host)
        else:
            for step in (decision.Step.RESOLUTION, decision.Step.ADDRESSES):
                findings[step] = ("unchecked", "no name is looked up for one who only asks")
            return None
    except ResolutionFailedError as error:
        if error.answered:
            return Failure(FailureCode.RESOLUTION_FAILED, str(error))
        findings[decision.Step.RESOLUTION] = ("unchecked", f"{error}: the proxy may be able to ask")
        findings[decision.Step.ADDRESSES] = ("unchecked", "")
        return None
    addresses = ", ".join(str(address) for address in resolution.addresses)
    findings[decision.Step.RESOLUTION] = ("passed", addresses)
    issued = issue_grant(policy, permit, resolution, grant_id, now)
    if isinstance(issued, Grant):
        findings[decision.Step.ADDRESSES] = ("passed", "all of them")
    return issued
