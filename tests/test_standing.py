"""What people decided beside the policy: who is paused, and what was approved."""

import ipaddress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from egress_policy.decision import Answer, Permit, Standing, decide
from egress_policy.denial import Deny, DenyCode
from egress_policy.grant import Resolution, why_addresses_denied
from egress_policy.pauses import NOTHING, Pause, Pauses, PausesError, read_pauses, target_of, write_pauses
from egress_policy.policy import IntentRule
from tests.policies import policy as policy_of_all
from tests.test_decision import POLICY, request

CAREFUL = replace(
    POLICY,
    intents={
        **POLICY.intents,
        "careful": {"unknown": IntentRule(ttl=timedelta(hours=2), needs_approval=True)},
    },
)
ASKED = request("other.test:443", "sandbox-alice;intent=careful")
HALF_AN_HOUR = timedelta(minutes=30)


def answered(*, is_approved: bool) -> Standing:
    return Standing(answer=lambda _key: Answer(is_approved, HALF_AN_HOUR, "alice"))


def test_an_approval_bounds_the_time_that_it_gives() -> None:
    decided = decide(CAREFUL, ASKED, standing=answered(is_approved=True))
    assert isinstance(decided, Permit)
    assert decided.ttl == HALF_AN_HOUR


@pytest.mark.parametrize(
    ("standing", "may_ask", "code"),
    [
        (Standing(), True, DenyCode.PENDING_APPROVAL),
        (Standing(), False, DenyCode.APPROVAL_REQUIRED),
        (answered(is_approved=False), True, DenyCode.APPROVAL_DECLINED),
    ],
)
def test_without_an_approval_it_is_denied(standing: Standing, may_ask: bool, code: DenyCode) -> None:
    agents = {name: replace(agent, may_ask=may_ask) for name, agent in CAREFUL.agents.items()}
    denied = decide(replace(CAREFUL, agents=agents), ASKED, standing=standing)
    assert isinstance(denied, Deny)
    assert denied.code is code


def test_an_approval_opens_nothing_that_the_policy_closes() -> None:
    denied = decide(
        CAREFUL,
        request("other.test:443", "sandbox-alice;intent=default", method="POST"),
        standing=answered(is_approved=True),
    )
    assert isinstance(denied, Deny)


@pytest.mark.parametrize(
    ("paused", "destination"),
    [("agent", "other.test:443"), ("scope", "other.test:443"), ("agent", "good.test:443")],
)
def test_what_is_paused_is_denied_before_all_else(paused: str, destination: str) -> None:
    standing = Standing(
        paused=lambda _agent, scope: "root" if (scope is None) == (paused == "agent") else None
    )
    denied = decide(POLICY, request(destination, "sandbox-alice"), standing=standing)
    assert isinstance(denied, Deny)
    assert denied.code is DenyCode.PAUSED


def test_an_address_of_a_level_that_needs_approval_is_not_opened_by_a_name_of_another() -> None:
    """The name was not asked about: the intent may reach its level, and nobody approved the address's."""
    intents = {"default": {"unknown": IntentRule(), "internal": IntentRule(needs_approval=True)}}
    policy = replace(policy_of_all(), intents=intents)
    permit = decide(policy, replace(ASKED, agent="alice", scope_fields=(b"sandbox-alice",)))
    assert isinstance(permit, Permit)
    inside = Resolution((ipaddress.ip_address("10.1.0.1"),))
    denied = why_addresses_denied(policy, inside, 443, permit)
    assert denied is not None
    assert "needs a person's approval" in denied.detail
    approved = replace(permit, answer=Answer(is_approved=True, left=HALF_AN_HOUR, by="alice"))
    assert why_addresses_denied(policy, inside, 443, approved) is None


PAUSE = Pause("root", "2026-03-01T12:00:00.000Z")


def test_pauses_are_kept_as_they_are(tmp_path: Path) -> None:
    pauses = (
        NOTHING.changed(("scope", "a"), PAUSE).changed(("agent", "b"), PAUSE).changed(("all", None), PAUSE)
    )
    write_pauses(tmp_path / "paused.json", pauses)
    assert read_pauses(tmp_path / "paused.json") == pauses
    assert [path.name for path in tmp_path.iterdir()] == ["paused.json"]
    assert [target for target, _ in pauses] == [("all", None), ("scope", "a"), ("agent", "b")]
    for target, _ in pauses:
        pauses = pauses.changed(target, None)
    assert pauses == NOTHING == read_pauses(tmp_path / "missing.json")


@pytest.mark.parametrize("text", ["", "{", '{"scopes": {"a": 1}}', "\udcff"])
def test_what_is_paused_is_not_forgotten_because_a_file_is_bad(tmp_path: Path, text: str) -> None:
    path = tmp_path / "paused.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(PausesError, match="says what is paused"):
        read_pauses(path)


def test_without_a_file_a_pause_is_said_not_to_be_kept() -> None:
    with pytest.raises(PausesError, match="not kept"):
        write_pauses(None, Pauses(all=PAUSE))


@pytest.mark.parametrize("given", [(None, None, False), ("a", "b", False), ("a", None, True)])
def test_a_target_is_one_of_three(given: tuple[str | None, str | None, bool]) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        target_of(*given)
