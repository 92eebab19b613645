"""What is live now, by what it is for and in the order of its end."""

import ipaddress
from datetime import UTC, datetime, timedelta

from egress_policy.destination import Destination
from egress_policy.grant import Grant
from egress_policy.ledger import Ledger, LiveGrant

ADDRESS = ipaddress.ip_address("93.184.216.34")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def live(
    grant_id: str, host: str, deadline: float, *, agent: str = "alice", scope: str = "sandbox-alice"
) -> LiveGrant:
    grant = Grant(
        grant_id, agent, scope, "default", Destination(host, 443), (ADDRESS,), NOW, NOW + timedelta(hours=1)
    )
    return LiveGrant(grant, deadline, deadline, ADDRESS)


def test_a_grant_is_found_until_its_end_and_not_at_it() -> None:
    ledger = Ledger()
    one = live("1", "a.example", 10.0)
    ledger.add(one)
    assert ledger.find(one.key, 9.999) is one
    assert ledger.find(one.key, 10.0) is None


def test_ended_grants_are_taken_out_in_order_and_once() -> None:
    ledger = Ledger()
    for grant_id, deadline in (("3", 30.0), ("1", 10.0), ("2", 20.0)):
        ledger.add(live(grant_id, f"{grant_id}.example", deadline))
    assert [ended.grant.id for ended in ledger.take_ended(20.0)] == ["1", "2"]
    assert ledger.take_ended(20.0) == []
    assert ledger.next_end() == 30.0


def test_a_scope_s_destination_stays_open_until_its_last_grant_ends() -> None:
    ledger = Ledger()
    ledger.add(live("1", "a.example", 10.0))
    ledger.add(live("2", "a.example", 20.0, agent="bob"))
    ledger.take_ended(10.0)
    assert ledger.destinations["sandbox-alice"] == {Destination("a.example", 443)}
    ledger.take_ended(20.0)
    assert ledger.destinations["sandbox-alice"] == set()


def test_a_grant_takes_the_place_of_an_earlier_one_for_the_same_key() -> None:
    ledger = Ledger()
    ledger.add(live("1", "a.example", 10.0))
    ledger.add(live("2", "a.example", 20.0))
    assert len(ledger) == 1
    assert ledger.take_ended(10.0) == []
    assert [ended.grant.id for ended in ledger.take_ended(20.0)] == ["2"]


def test_the_last_holder_of_an_element_is_the_one_that_ends_last() -> None:
    ledger = Ledger()
    ledger.add(live("1", "a.example", 10.0))
    ledger.add(live("2", "b.example", 30.0))
    ledger.add(live("3", "c.example", 20.0))
    holder = ledger.last_holder(ADDRESS, 443)
    assert holder is not None
    assert holder.grant.id == "2"
    assert ledger.last_holder(ADDRESS, 80) is None
    assert ledger.last_holder(ipaddress.ip_address("1.1.1.1"), 443) is None
