"""What an agent's DNS query is answered, without asking anyone."""

import ipaddress

import pytest

from egress_policy.name_server import (
    SYNTHETIC_IPV4,
    SYNTHETIC_IPV6,
    Question,
    Reply,
    SyntheticAddresses,
    direct_ports,
    reply_to,
)
from tests.policies import policy


@pytest.mark.parametrize(
    ("name", "wants_address", "reply"),
    [
        pytest.param("direct.example", True, Reply.RESOLVE, id="known-good without inspection"),
        pytest.param("named.example", True, Reply.RESOLVE, id="known-good by name"),
        pytest.param("NAMED.example.", True, Reply.RESOLVE, id="case and trailing dot"),
        pytest.param("other.example", True, Reply.SYNTHETIC, id="unknown"),
        pytest.param("secret.of.attacker.example", True, Reply.SYNTHETIC, id="data in labels"),
        pytest.param("bad.example", True, Reply.REFUSE, id="known-bad"),
        pytest.param("x.bad.example", False, Reply.REFUSE, id="below known-bad, whatever the type"),
        pytest.param("direct.example", False, Reply.NO_DATA, id="known-good, but TXT"),
        pytest.param("other.example", False, Reply.NO_DATA, id="unknown, HTTPS record"),
        pytest.param("a b.example", True, Reply.REFUSE, id="no name"),
        pytest.param("127.1", True, Reply.REFUSE, id="an address in disguise"),
        pytest.param("", True, Reply.REFUSE, id="the root"),
    ],
)
def test_the_reply_to_a_query(name: str, wants_address: bool, reply: Reply) -> None:
    """Only known-good names are looked up; known-bad ones are refused; the rest gets an address of ours."""
    assert reply_to(policy(), Question(name, wants_address))[0] is reply


def test_only_ports_without_inspection_go_straight_through_the_kernel() -> None:
    assert direct_ports(policy(), "direct.example") == [443, 8443]
    assert direct_ports(policy(), "named.example") == []
    assert direct_ports(policy(), "other.example") == []


def test_a_name_keeps_its_synthetic_addresses_and_they_lead_back_to_it() -> None:
    addresses = SyntheticAddresses()
    one, two = addresses.allocate("one.example"), addresses.allocate("two.example")
    assert addresses.allocate("one.example") == one
    assert set(one).isdisjoint(two)
    assert one[0] in SYNTHETIC_IPV4
    assert one[1] in SYNTHETIC_IPV6
    assert [addresses.name_of(address) for address in (*one, *two)] == ["one.example"] * 2 + [
        "two.example"
    ] * 2
    assert addresses.name_of(ipaddress.ip_address("93.184.216.34")) is None


def test_ten_thousand_names_share_no_synthetic_address() -> None:
    """Allocated, not hashed: of 430 hashed names two would collide with an even chance."""
    addresses = SyntheticAddresses()
    assert len({addresses.allocate(f"{number}.example") for number in range(10_000)}) == 10_000


def test_when_the_range_is_used_up_the_name_asked_for_least_recently_gives_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("egress_policy.name_server._CAPACITY", 2)
    addresses = SyntheticAddresses()
    first, second = addresses.allocate("first.example"), addresses.allocate("second.example")
    addresses.allocate("first.example")
    assert addresses.allocate("third.example") == second
    assert addresses.name_of(second[0]) == "third.example"
    assert addresses.name_of(first[0]) == "first.example"
