"""What was asked for lately: counted in time, bounded, and shown to whom it concerns."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from egress_policy.audit import Record, timestamp
from egress_policy.console.recent import MOST_DESTINATIONS, MOST_KINDS, MOST_REFUSALS, SLOT, SLOTS, Recent
from egress_policy.policy import Agent, Policy
from egress_policy.rights import Rights
from tests.policies import policy

NOW = datetime(2026, 3, 1, 12, 10, tzinfo=UTC)
OPERATOR = Rights("root", is_operator=True)
OWNER = Rights("alice", scopes=frozenset({"sandbox-alice"}))
POLICY = replace(
    policy(), agents={name: Agent(name, (f"sandbox-{name}",), user=name) for name in ("alice", "bob")}
)


def record(host: str | None = "a.example", before: float = 0.0, **fields: Any) -> Record:
    """A permitted request of alice's, so many seconds ago."""
    usual: dict[str, Any] = {
        "agent": "alice",
        "scope": "sandbox-alice",
        "host": host,
        "port": 443,
        "outcome": "permit",
    }
    return Record(
        **{"time": timestamp(NOW - timedelta(seconds=before)), "event": "decision"} | usual | fields
    )


def refused(host: str = "a.example", before: float = 0.0, **fields: Any) -> Record:
    return record(host, before, **{"outcome": "deny", "code": "destination_denied"} | fields)


def shown(recent: Recent, rights: Rights = OPERATOR, now: datetime = NOW, by: Policy = POLICY) -> list[Any]:
    found: Any = recent.destinations(by, rights, now)["scopes"]
    return list(found)


def counts(recent: Recent, now: datetime = NOW) -> list[int]:
    """What was permitted of the one destination there is, as slots that are not empty: how long ago, in slots."""
    (scope,) = shown(recent, now=now)
    (destination,) = scope["destinations"]
    return [SLOTS - 1 - at for at, number in enumerate(destination["permitted"]) for _ in range(number)]


def test_requests_are_counted_by_half_hours_that_end_now() -> None:
    recent = Recent(record(before=seconds) for seconds in (SLOT * 47, SLOT * 2, 1200, 60, 0))
    assert counts(recent) == [47, 2, 1, 0, 0]
    assert recent.destinations(POLICY, OPERATOR, NOW)["until"] == "2026-03-01T12:30:00.000Z"


def test_what_is_a_day_old_is_over() -> None:
    recent = Recent([record(before=SLOT * 48), record()])
    assert counts(recent) == [0]
    assert counts(recent, NOW + timedelta(seconds=SLOT * 47)) == [47]
    assert shown(recent, now=NOW + timedelta(seconds=SLOT * 48)) == []
    assert counts(Recent([record(before=SLOT * 100), record(before=SLOT * 40), record()])) == [40, 0]


def test_records_may_come_in_any_order() -> None:
    times = [0, SLOT, SLOT * 30, SLOT * 3, SLOT * 47, 5]
    expected = counts(Recent(record(before=one) for one in sorted(times, reverse=True)))
    assert counts(Recent(record(before=one) for one in times)) == expected
    newest = Recent([refused(detail="new"), refused(before=60, detail="old")]).refusals(POLICY, OPERATOR, NOW)
    assert [one["detail"] for one in newest] == ["new"]


def test_the_past_is_added_to_what_was_counted_meanwhile() -> None:
    recent = Recent([record(), refused("b.example")])
    recent.add(Recent([record(before=SLOT), refused("c.example", before=SLOT * 2), refused("b.example", 60)]))
    whole = Recent(
        [
            record(before=SLOT),
            refused("c.example", SLOT * 2),
            refused("b.example", 60),
            record(),
            refused("b.example"),
        ]
    )
    assert shown(recent) == shown(whole)
    assert recent.refusals(POLICY, OPERATOR, NOW) == whole.refusals(POLICY, OPERATOR, NOW)


def test_refusals_are_counted_by_their_code_the_newest_first() -> None:
    recent = Recent(
        [
            refused(before=90, detail="known-bad", reason="to try it", method="GET"),
            refused(before=30, detail="known-bad", reason="again", method="GET"),
            refused(before=60, code="method_not_allowed"),
            record(),
            record("10.0.0.1", port=22, scope=None, event="drop", outcome="deny", detail="a packet"),
        ]
    )
    found = recent.refusals(POLICY, OPERATOR, NOW)
    assert [(one["destination"], one["code"], one["count"]) for one in found] == [
        ("10.0.0.1:22", "drop", 1),
        ("a.example:443", "destination_denied", 2),
        ("a.example:443", "method_not_allowed", 1),
    ]
    assert found[1] | {"last": None} == {
        "agent": "alice",
        "scope": "sandbox-alice",
        "destination": "a.example:443",
        "method": "GET",
        "code": "destination_denied",
        "detail": "known-bad",
        "reason": "again",
        "count": 2,
        "last": None,
    }


def test_what_is_no_traffic_is_not_counted() -> None:
    recent = Recent([record(event="grant"), record(event="policy", host=None), record(host=None, port=None)])
    assert shown(recent) == []
    assert recent.refusals(POLICY, OPERATOR, NOW) == []


def test_each_sees_what_is_theirs() -> None:
    theirs: dict[str, Any] = {"agent": "bob", "scope": "sandbox-bob"}
    recent = Recent(
        [record(), refused(), record(**theirs), refused(**theirs), record("good.example", scope=None)]
    )
    assert [(one["scope"], one["agent"]) for one in shown(recent)] == [
        ("sandbox-alice", None),
        ("sandbox-bob", None),
        (None, "alice"),
    ]
    assert [one["scope"] for one in shown(recent, OWNER)] == ["sandbox-alice"]
    assert [one["agent"] for one in recent.refusals(POLICY, OWNER, NOW)] == ["alice"]


@pytest.mark.parametrize("agent", ["bob", "stranger", None])
def test_whoever_claims_another_s_scope_does_not_show_in_it(agent: str | None) -> None:
    """An agent could otherwise paint its owner's picture."""
    recent = Recent([refused(agent=agent, code="scope_not_allowed")])
    assert shown(recent, OWNER) == []
    assert recent.refusals(POLICY, OWNER, NOW) == []
    assert [(one["scope"], one["agent"]) for one in shown(recent)] == [(None, agent)]


def test_an_agent_that_asks_for_ever_more_pushes_out_nobody_else() -> None:
    recent = Recent([record(agent="bob", scope="sandbox-bob")])
    for number in range(10_000):
        recent.note(refused(f"{number}.example", code="trust_not_allowed"))
    assert len(list(recent.counted())) == MOST_KINDS + 1
    found = recent.refusals(POLICY, OPERATOR, NOW)
    assert len(found) == MOST_REFUSALS
    alice, bob = shown(recent)
    assert bob["destinations"][0]["destination"] == "a.example:443"
    assert len(alice["destinations"]) == MOST_DESTINATIONS + 1
    rest = alice["destinations"][-1]
    assert rest["others"] == MOST_KINDS - MOST_DESTINATIONS
    assert sum(rest["refused"]) == rest["others"]


def test_what_is_asked_for_again_is_kept() -> None:
    recent = Recent()
    for number in range(MOST_KINDS * 2):
        recent.note(record())
        recent.note(refused(f"{number}.example"))
    (alice,) = shown(recent)
    first = alice["destinations"][0]
    assert (first["destination"], sum(first["permitted"])) == ("a.example:443", MOST_KINDS * 2)
