"""Which grants are live: what the kernel holds, joined with what the log says of it."""

import ipaddress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from msgspec import structs

from egress_policy.approvals import still_valid
from egress_policy.audit import Record, timestamp
from egress_policy.destination import Destination
from egress_policy.firewall import Element
from egress_policy.grant import Grant
from egress_policy.live_grants import match, unended
from egress_policy.records import element_comment, grant_record

NOW = datetime(2026, 1, 1, tzinfo=UTC)
IPV4, IPV6 = ipaddress.ip_address("93.184.216.34"), ipaddress.ip_address("2a00:1450::1")
GRANT = Grant(
    "1",
    "alice",
    "sandbox-alice",
    "default",
    Destination("a.example", 443),
    (IPV4, IPV6),
    NOW,
    NOW + timedelta(hours=1),
)


def element(
    grant: Grant, address: ipaddress.IPv4Address | ipaddress.IPv6Address, remaining: float = 1800.0
) -> Element:
    return Element(address, grant.destination.port, element_comment(grant), remaining)


def test_a_grant_on_record_that_the_kernel_holds_is_live_with_all_that_is_known_of_it() -> None:
    live, unexplained = match(
        [grant_record("grant", GRANT)], [element(GRANT, IPV4), element(GRANT, IPV6)], NOW
    )
    assert [held.grant for held in live] == [GRANT]
    assert unexplained == []


def test_a_grant_s_further_ports_are_on_record() -> None:
    grant = replace(GRANT, ports=(22, 2222))
    ((held,), _) = match([grant_record("grant", grant)], [element(grant, IPV4)], NOW)
    assert held.grant.ports == (22, 2222)


def test_neither_the_record_nor_the_kernel_is_outlived() -> None:
    record = grant_record("grant", GRANT)
    (by_kernel,), _ = match([record], [element(GRANT, IPV4, 60.0)], NOW)
    (by_record,), _ = match([record], [element(GRANT, IPV4, 7200.0)], NOW + timedelta(minutes=50))
    assert (by_kernel.remaining, by_record.remaining) == (60.0, 600.0)


def test_a_grant_that_ended_or_was_revoked_is_not_live_and_its_element_unexplained() -> None:
    held = element(GRANT, IPV4)
    for event in ("expire", "revoke"):
        live, unexplained = match([grant_record("grant", GRANT), grant_record(event, GRANT)], [held], NOW)
        assert (live, unexplained) == ([], [held])
    live, unexplained = match([grant_record("grant", GRANT)], [held], NOW + timedelta(hours=1))
    assert (live, unexplained) == ([], [held])


def test_a_grant_whose_elements_are_gone_is_gone() -> None:
    assert match([grant_record("grant", GRANT)], [], NOW) == ([], [])


def test_an_element_on_another_port_is_unexplained() -> None:
    other = replace(element(GRANT, IPV4), port=80)
    live, unexplained = match([grant_record("grant", GRANT)], [other], NOW)
    assert (live, unexplained) == ([], [other])


def test_two_grants_may_share_an_element() -> None:
    """The comment names one of them only; the log explains both."""
    other = replace(GRANT, id="2", agent="bob", scope="sandbox-bob")
    live, unexplained = match(
        [grant_record("grant", GRANT), grant_record("grant", other)], [element(GRANT, IPV4)], NOW
    )
    assert [held.grant.id for held in live] == ["1", "2"]
    assert unexplained == []


def test_the_last_record_of_a_grant_counts() -> None:
    """When a name moves, the grant is recorded again, with the same id and end."""
    moved = replace(GRANT, addresses=(IPV6,))
    live, unexplained = match(
        [grant_record("grant", GRANT), grant_record("grant", moved)],
        [element(GRANT, IPV4), element(GRANT, IPV6)],
        NOW,
    )
    assert [held.grant.addresses for held in live] == [(IPV6,)]
    assert [one.address for one in unexplained] == [IPV4]


def test_an_address_as_host_survives() -> None:
    grant = replace(GRANT, destination=Destination(IPV6, 443), addresses=(IPV6,))
    (held,), _ = match([grant_record("grant", grant)], [element(grant, IPV6)], NOW)
    assert held.grant.destination == Destination(IPV6, 443)


LATER = timestamp(NOW + timedelta(hours=1))


def record(name: str, **fields: object) -> Record:
    return Record(**({"time": timestamp(NOW), "event": "decision", "id": name} | fields))  # type: ignore[arg-type]


def grant(name: str, **fields: object) -> Record:
    return record(name, **({"event": "grant", "expires": LATER} | fields))


@pytest.mark.parametrize(
    ("records", "live"),
    [
        ([grant("1")], ["1"]),
        ([grant("1"), record("1", event="expire")], []),
        ([grant("1"), record("1", event="revoke")], []),
        ([record("1", event="revoke"), grant("1")], []),
        ([grant("1"), record("2", event="revoke"), grant("3")], ["1", "3"]),
        ([grant("1"), record("1", event="decision")], ["1"]),
        ([grant("1", expires=timestamp(NOW))], []),
        ([grant("1", expires=timestamp(NOW + timedelta(milliseconds=1)))], ["1"]),
        ([grant("1", expires=None)], []),
        ([grant("1", expires="soon")], []),
        ([grant("1", expires="2999-01-01T00:00:00")], []),
        ([grant("1", id=None)], []),
        ([record("1", expires=LATER)], []),
    ],
)
def test_a_grant_is_live_until_it_ended_or_was_revoked(records: list[Record], live: list[str]) -> None:
    assert list(unended(records, NOW)) == live


def test_the_latest_record_of_a_grant_counts() -> None:
    moved = grant("1", addresses=("192.0.2.1", "192.0.2.2"))
    assert unended([grant("1", addresses=("192.0.2.1",)), moved], NOW) == {"1": moved}


DAMAGED: dict[str, object] = {"host": "a b", "expires": "soon", "addresses": ("x",), "port": None}


@pytest.mark.parametrize("field", DAMAGED)
def test_a_damaged_record_explains_nothing_and_stops_nothing(field: str) -> None:
    """Whoever damages the log closes something; he keeps no proxy from starting."""
    whole = grant_record("grant", GRANT)
    damaged = structs.replace(whole, **{field: DAMAGED[field]})
    held = [element(GRANT, IPV4)]
    assert len(match([whole], held, NOW)[0]) == 1
    assert match([damaged], held, NOW) == ([], held)
    approval = record(
        "1", event="approval", outcome="permit", agent="alice", host="a.example", port=443, expires=LATER
    )
    assert len(still_valid([approval], NOW)) == 1
    assert len(still_valid([structs.replace(approval, **{field: DAMAGED[field]})], NOW)) == (
        field == "addresses"
    )
