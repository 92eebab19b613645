"""What an agent's DNS query is answered, without asking anyone."""

import ipaddress

import pytest

from egress_policy.name_server import (
    SYNTHETIC_IPV4,
    SYNTHETIC_IPV6,
    SYNTHETIC_TTL,
    Question,
    Reply,
    SyntheticAddresses,
    TrueAddresses,
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
        pytest.param("bad.example", True, Reply.DENY, id="known-bad"),
        pytest.param("x.bad.example", False, Reply.DENY, id="below known-bad, whatever the type"),
        pytest.param("direct.example", False, Reply.NO_DATA, id="known-good, but TXT"),
        pytest.param("other.example", False, Reply.NO_DATA, id="unknown, HTTPS record"),
        pytest.param("a b.example", True, Reply.PROHIBIT, id="no name"),
        pytest.param("127.1", True, Reply.PROHIBIT, id="an address in disguise"),
        pytest.param("", True, Reply.PROHIBIT, id="the root"),
    ],
)
def test_the_reply_to_a_query(name: str, wants_address: bool, reply: Reply) -> None:
    """Only known-good names are looked up; known-bad ones are refused; the rest gets an address of ours."""
    assert reply_to(policy(), Question(name, wants_address)).reply is reply


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


class Clock:
    """Set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_when_the_range_is_used_up_the_name_asked_for_least_recently_gives_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("egress_policy.name_server._CAPACITY", 2)
    clock = Clock()
    addresses = SyntheticAddresses(clock)
    first, second = addresses.allocate("first.example"), addresses.allocate("second.example")
    addresses.allocate("first.example")
    assert addresses.allocate("third.example") == second
    clock.now += SYNTHETIC_TTL
    assert addresses.name_of(second[0]) == "third.example"
    assert addresses.name_of(first[0]) == "first.example"


def test_a_number_that_changed_hands_is_nobodys_while_an_agent_may_still_mean_the_former_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("egress_policy.name_server._CAPACITY", 1)
    clock = Clock()
    addresses = SyntheticAddresses(clock)
    (address, _) = addresses.allocate("first.example")
    clock.now += SYNTHETIC_TTL - 1
    assert addresses.name_of(address) == "first.example"
    addresses.allocate("first.example")
    clock.now += SYNTHETIC_TTL - 1
    assert addresses.allocate("second.example")[0] == address
    assert addresses.name_of(address) is None
    clock.now += 1
    assert addresses.name_of(address) == "second.example"


def test_a_flood_of_names_takes_bounded_memory_and_spares_who_asked_since() -> None:
    addresses = SyntheticAddresses()
    capacity = SYNTHETIC_IPV4.num_addresses - 2
    held = addresses.allocate("held.example")
    for number in range(capacity + 10):
        if number == capacity - 100:
            addresses.allocate("held.example")
        addresses.allocate(f"{number}.flood.example")
    assert addresses.allocate("held.example") == held
    assert addresses.name_of(held[0]) == "held.example"
    assert len(addresses._by_name) == len(addresses._by_number) == capacity
    assert max(addresses._by_number) == capacity


ONE, TWO = ipaddress.ip_address("93.184.216.34"), ipaddress.ip_address("2606:2800::1")


def test_a_true_address_is_its_names_for_as_long_as_the_answer_says() -> None:
    clock = Clock()
    told = TrueAddresses(clock)
    told.note("direct.example", (ONE, TWO), 30)
    assert told.name_of(ONE) == told.name_of(TWO) == "direct.example"
    clock.now += 30 + SYNTHETIC_TTL
    assert told.name_of(ONE) is None


def test_an_address_that_two_names_share_is_neithers_until_one_answer_is_over() -> None:
    clock = Clock()
    told = TrueAddresses(clock)
    told.note("direct.example", (ONE, TWO), 30)
    told.note("named.example", (ONE,), 30)
    assert (told.name_of(ONE), told.name_of(TWO)) == (None, "direct.example")
    clock.now += 30 + SYNTHETIC_TTL
    told.note("named.example", (ONE,), 30)
    assert told.name_of(ONE) == "named.example"


def test_true_addresses_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("egress_policy.name_server._MAX_TRUE", 2)
    told = TrueAddresses()
    addresses = [ipaddress.ip_address(f"93.184.216.{last}") for last in range(4)]
    for address in addresses:
        told.note("direct.example", (address,), 30)
    assert [told.name_of(address) for address in addresses] == [None, None, *["direct.example"] * 2]
