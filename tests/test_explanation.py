"""explain takes the proxy's own decision: it cannot disagree with decide()."""

import asyncio
import ipaddress
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_policy.caller import Caller
from egress_policy.decision import Permit, Standing, decide
from egress_policy.denial import Deny
from egress_policy.explanation import Explanation, explain_request
from egress_policy.grant import Resolution
from egress_policy.http_request import RequestHead, read_request
from egress_policy.resolver import ResolutionFailedError, Resolver
from tests.policies import NAMESERVER, policy

PUBLIC = Resolution((ipaddress.ip_address("93.184.216.34"),), ttl=60)


class FakeResolver(Resolver):
    """Says of every name what it was told to."""

    def __init__(self, answer: Resolution | ResolutionFailedError) -> None:
        super().__init__([NAMESERVER], 1.0)
        self.answer = answer
        self.asked: list[str] = []

    async def resolve(self, host: str) -> Resolution:
        self.asked.append(host)
        if isinstance(self.answer, ResolutionFailedError):
            raise self.answer
        return self.answer


def head(host: str, scope: str | None = None, method: str = "GET", body: int = 0) -> RequestHead:
    fields = [(b"Host", host.encode())]
    if scope is not None:
        fields.append((b"X-Agent-Scope", scope.encode()))
    if body:
        fields.append((b"Content-Length", str(body).encode()))
    return RequestHead(method.encode(), b"/", b"", fields, False, b"HTTP/1.1", 443, True, host)


def explain(
    request: RequestHead,
    agent: str = "alice",
    answer: Resolution | ResolutionFailedError = PUBLIC,
) -> tuple[Explanation, FakeResolver]:
    resolver = FakeResolver(answer)
    now = datetime.now(UTC)
    return asyncio.run(explain_request(policy(), request, Caller(agent), resolver, now, "1")), resolver


HOSTS = st.sampled_from(
    [
        "a.example",
        "bad.example",
        "x.bad.example",
        "direct.example",
        "named.example",
        "A.example.",
        "10.1.0.1",
        "127.1",
        "8.8.8.8",
    ]
)
SCOPES = st.none() | st.sampled_from(
    [
        "sandbox-alice",
        "sandbox-bob",
        "sandbox-alice;intent=develop",
        "sandbox-alice;intent=nope",
        "nonsense",
        "sandbox-alice;x=1",
    ]
)


@given(
    HOSTS,
    SCOPES,
    st.sampled_from(["GET", "POST", "CONNECT", "G T"]),
    st.sampled_from([0, 1, 65536, 65537]),
    st.sampled_from(["alice", "bob", "eve"]),
)
def test_explain_and_decide_agree(host: str, scope: str | None, method: str, body: int, agent: str) -> None:
    request = head(host, scope, method, body)
    explanation, resolver = explain(request, agent)
    read = read_request(request, agent)
    decided = read if isinstance(read, Deny) else decide(policy(), read)
    if isinstance(decided, Permit):
        assert explanation.record.outcome == "permit"
        assert explanation.record.ttl == decided.ttl.total_seconds()
    else:
        assert (explanation.record.outcome, explanation.record.code) == ("deny", decided.code)
        assert resolver.asked == []


@pytest.mark.parametrize(
    ("request_head", "agent", "code", "step"),
    [
        pytest.param(head("a.example", method="G T"), "alice", "request_malformed", 1, id="malformed"),
        pytest.param(head("8.8.8.8"), "alice", "destination_invalid", 1, id="an address"),
        pytest.param(head("a.example"), "eve", "caller_unknown", 2, id="caller"),
        pytest.param(head("bad.example"), "alice", "destination_denied", 3, id="known-bad"),
        pytest.param(head("a.example"), "alice", "scope_missing", 5, id="no scope"),
        pytest.param(head("a.example", "x y"), "alice", "scope_malformed", 5, id="scope"),
        pytest.param(head("a.example", "sandbox-bob"), "alice", "scope_not_allowed", 6, id="other's scope"),
        pytest.param(head("a.example", "sandbox-alice;intent=x"), "alice", "intent_unknown", 7, id="intent"),
        pytest.param(
            head("a.example", "sandbox-alice", "POST"), "alice", "method_not_allowed", 7, id="method"
        ),
    ],
)
def test_a_denial_stands_at_its_step_and_none_is_reached_after_it(
    request_head: RequestHead, agent: str, code: str, step: int
) -> None:
    explanation, _ = explain(request_head, agent)
    assert explanation.record.code == code
    results = {one.step: one.result for one in explanation.steps}
    assert results[step] == "denied"
    assert {results[number] for number in range(1, step)} <= {"passed"}
    assert {results[number] for number in range(step + 1, 12)} <= {"not reached"}


@pytest.mark.parametrize(("paused", "step"), [(None, 2), ("sandbox-alice", 6)], ids=["agent", "scope"])
def test_a_pause_stands_at_the_step_of_what_is_paused(paused: str | None, step: int) -> None:
    standing = Standing(paused=lambda _agent, scope: "root" if scope == paused else None)
    request = head("a.example", "sandbox-alice")
    explanation = asyncio.run(
        explain_request(policy(), request, Caller("alice"), None, datetime.now(UTC), "1", standing=standing)
    )
    assert explanation.record.code == "paused"
    results = [one.result for one in explanation.steps]
    assert results == ["passed"] * (step - 1) + ["denied"] + ["not reached"] * (11 - step)


def test_a_permit_passes_every_step_but_the_last_which_explain_does_not_take() -> None:
    explanation, resolver = explain(head("a.example", "sandbox-alice"))
    assert [step.result for step in explanation.steps] == ["passed"] * 10 + ["unchecked"]
    assert resolver.asked == ["a.example"]


def test_a_private_address_is_denied_at_step_ten() -> None:
    explanation, _ = explain(
        head("a.example", "sandbox-alice"), answer=Resolution((ipaddress.ip_address("10.0.0.1"),), ttl=60)
    )
    assert explanation.record.code == "address_denied"
    assert explanation.steps[9].result == "denied"


def test_a_name_that_does_not_exist_fails_at_step_nine() -> None:
    explanation, _ = explain(
        head("a.example", "sandbox-alice"), answer=ResolutionFailedError("NXDOMAIN", answered=True)
    )
    assert (explanation.record.outcome, explanation.record.code) == ("fail", "resolution_failed")
    assert explanation.steps[8].result == "failed"


def test_where_nobody_can_be_asked_the_policy_s_answer_stands_and_says_what_is_open() -> None:
    explanation, _ = explain(
        head("a.example", "sandbox-alice"), answer=ResolutionFailedError("nobody answers")
    )
    assert explanation.record.outcome == "permit"
    assert [step.result for step in explanation.steps[8:]] == ["unchecked"] * 3
