"""Further ports: to whom a grant opens them, to which address, and how long what several grants share stays open."""

import ipaddress
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from egress_policy.destination import Address, Destination, HostPattern
from egress_policy.firewall import Elements, FirewallError
from egress_policy.grant import Grant, Way
from egress_policy.ledger import Ledger, LiveGrant
from egress_policy.policy import DomainEntry, Inspection, Trust
from egress_policy.raw_tcp import RawTcp
from tests.policies import policy

ONE, TWO = ipaddress.ip_address("93.184.216.34"), ipaddress.ip_address("93.184.216.35")
SIX = ipaddress.ip_address("2606:2800::1")
ALICE, BOB = 61001, 61002
BOX = ipaddress.ip_address("10.88.0.2")
POLICY = policy()


class Kernel(Elements):
    """The kernel's maps and sets in memory, with the seconds that each element has. Refuses what the kernel would."""

    def __init__(self) -> None:
        super().__init__()
        self.leads: dict[tuple[int | Address, Address, int], tuple[Address, float]] = {}
        self.permitted: dict[Way, float] = {}
        self.closed: dict[tuple[Address, int, Address], float] = {}
        self.calls = 0
        self.refuse = False

    async def lead(
        self,
        way: Way,
        left: float | None,
        closed_left: float | None,
        comment: str,
        replaces: Address | None = None,
    ) -> None:
        self.calls += 1
        place = way.caller, way.dialled, way.port
        held = self.leads.get(place)
        if self.refuse or (replaces is not None and held is not None and held[0] != replaces):
            raise FirewallError("told to refuse, or another value is there")
        assert comment or left is closed_left is None
        if replaces is not None:
            self.leads.pop(place, None)
            if left is not None:
                self.leads[place] = way.address, left
        _set(self.permitted, way, left)
        if isinstance(way.caller, int):
            _set(self.closed, (way.dialled, way.port, way.address), closed_left)


def _set[Key](held: dict[Key, float], key: Key, left: float | None) -> None:
    held.pop(key, None)
    if left is not None:
        held[key] = left


class World:
    """Grants for a name, the kernel, and a clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.kernel, self.ledger = Kernel(), Ledger()
        self.raw = RawTcp(self.kernel, self.ledger, lambda: self.now)
        self.four, self.six = self.raw.synthetic.allocate("git.example")

    def grant(
        self,
        agent: str = "alice",
        seconds: float = 60,
        addresses: tuple[Address, ...] = (ONE, SIX),
        host: str = "git.example",
        intent: str = "default",
    ) -> LiveGrant:
        now = datetime.now(UTC)
        grant = Grant(
            f"{agent}-{intent}-{host}", agent, f"sandbox-{agent}", intent, Destination(host, 443), addresses,
            now, now + timedelta(seconds=seconds), (22,),
        )  # fmt: skip
        live = LiveGrant(grant, self.now + seconds, 0.0, addresses[0], current=addresses)
        self.ledger.add(live)
        return live

    async def end(self, live: LiveGrant) -> None:
        self.ledger.remove(live)
        await self.raw.close_or_keep(live.ways)

    def led(self, caller: int | Address = ALICE) -> set[Address]:
        return {address for (who, _, _), (address, _) in self.kernel.leads.items() if who == caller}

    def permitted(self, caller: int | Address = ALICE) -> set[Address]:
        return {way.address for way in self.kernel.permitted if way.caller == caller}


@pytest.fixture
def world() -> World:
    return World()


async def test_a_grant_opens_its_ports_to_who_asks(world: World) -> None:
    live = world.grant()
    await world.raw.open(POLICY, live, ALICE)
    assert world.kernel.leads == {
        (ALICE, world.four, 22): (ONE, 60.0),
        (ALICE, world.six, 22): (SIX, 60.0),
    }
    assert world.permitted() == {ONE, SIX}
    assert set(world.kernel.closed) == {(world.four, 22, ONE), (world.six, 22, SIX)}
    assert (world.led(BOB), world.permitted(BOB)) == (set(), set())


async def test_it_asks_the_kernel_once(world: World) -> None:
    live = world.grant()
    assert not world.raw.are_open(POLICY, live, ALICE)
    await world.raw.open(POLICY, live, ALICE)
    calls = world.kernel.calls
    assert world.raw.are_open(POLICY, live, ALICE)
    assert not world.raw.are_open(POLICY, live, BOB)
    await world.raw.open(POLICY, live, ALICE)
    assert world.kernel.calls == calls


async def test_a_container_is_led_by_addresses_of_its_own_family(world: World) -> None:
    await world.raw.open(POLICY, world.grant(), BOX)
    assert (world.led(BOX), world.permitted(BOX), world.kernel.closed) == ({ONE}, {ONE}, {})


async def test_without_further_ports_or_a_name_there_is_nothing_to_open(world: World) -> None:
    live = world.grant()
    await world.raw.open(POLICY, replace(live, grant=replace(live.grant, ports=())), ALICE)
    by_address = replace(live.grant, destination=Destination(ONE, 443))
    await world.raw.open(POLICY, replace(live, grant=by_address), ALICE)
    assert world.kernel.calls == 0


async def test_a_known_good_name_is_dialled_by_its_real_addresses(world: World) -> None:
    good = DomainEntry(HostPattern("git.example"), "known-good", (443, 22), Inspection.FULL)
    await world.raw.open(replace(POLICY, trust=Trust((good,))), world.grant(), ALICE)
    assert {place: led[0] for place, led in world.kernel.leads.items()} == {
        (ALICE, ONE, 22): ONE,
        (ALICE, SIX, 22): SIX,
    }


async def test_the_address_that_answered_is_taken(world: World) -> None:
    live = world.grant(addresses=(ONE, TWO))
    live.pin = TWO
    await world.raw.open(POLICY, live, ALICE)
    assert world.led() == {TWO}


async def test_a_name_that_moved_leads_to_its_new_address_and_keeps_the_old_connections(world: World) -> None:
    live = world.grant(addresses=(ONE,))
    await world.raw.open(POLICY, live, ALICE)
    live.pin, live.current = TWO, (TWO,)
    assert not world.raw.are_open(POLICY, live, ALICE)
    await world.raw.open(POLICY, live, ALICE)
    assert world.led() == {TWO}
    assert world.permitted() == {ONE, TWO}
    await world.end(live)
    assert (world.led(), world.permitted(), world.kernel.closed) == (set(), set(), {})


@pytest.mark.parametrize("ended", [0, 1])
async def test_what_two_grants_of_an_agent_share_stays_for_the_last(world: World, ended: int) -> None:
    both = (world.grant(seconds=60), world.grant(seconds=90, intent="develop"))
    for live in both:
        await world.raw.open(POLICY, live, ALICE)
    assert world.kernel.leads[ALICE, world.four, 22] == (ONE, 90.0)
    await world.end(both[ended])
    assert world.kernel.leads[ALICE, world.four, 22] == (ONE, 60.0 if ended else 90.0)
    await world.end(both[1 - ended])
    assert (world.led(), world.permitted(), world.kernel.closed) == (set(), set(), {})


async def test_another_agent_s_way_keeps_open_nothing_but_closed_sockets(world: World) -> None:
    mine, others = world.grant(), world.grant("bob", 90)
    await world.raw.open(POLICY, mine, ALICE)
    await world.raw.open(POLICY, others, BOB)
    await world.end(mine)
    assert (world.led(), world.permitted()) == (set(), set())
    assert (world.led(BOB), world.permitted(BOB)) == ({ONE, SIX}, {ONE, SIX})
    assert world.kernel.closed[world.four, 22, ONE] == 90.0
    await world.end(others)
    assert world.kernel.closed == {}


async def test_what_the_kernel_does_not_take_is_not_open_and_is_tried_again(world: World) -> None:
    live = world.grant()
    world.kernel.refuse = True
    with pytest.raises(FirewallError, match=r"port 22 of git\.example"):
        await world.raw.open(POLICY, live, ALICE)
    assert not live.ways
    world.kernel.refuse = False
    await world.raw.open(POLICY, live, ALICE)
    assert world.led() == {ONE, SIX}


async def test_a_failure_to_close_one_way_does_not_keep_the_others(world: World) -> None:
    live = world.grant()
    await world.raw.open(POLICY, live, ALICE)
    calls = world.kernel.calls
    world.kernel.refuse = True
    world.ledger.remove(live)
    with pytest.raises(FirewallError):
        await world.raw.close_or_keep(live.ways)
    assert world.kernel.calls == calls + 2


async def test_an_expired_way_is_forgotten_and_can_lead_elsewhere_later(world: World) -> None:
    live = world.grant(addresses=(ONE,))
    await world.raw.open(POLICY, live, ALICE)
    world.ledger.remove(live)
    world.raw.forget(live.ways)
    world.kernel.leads.clear()  # its timeout
    await world.raw.open(POLICY, world.grant(addresses=(TWO,)), ALICE)
    assert world.led() == {TWO}


async def test_one_grant_has_a_bounded_number_of_ways(world: World) -> None:
    """An agent that is a range of uids could ask under each of them."""
    live = world.grant()
    for uid in range(100_000, 101_000):
        await world.raw.open(POLICY, live, uid)
    assert len(live.ways) == len(world.kernel.permitted) == 1024


async def test_a_name_that_is_led_from_keeps_its_number(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever floods us with names: else somebody would be led where another name leads."""
    monkeypatch.setattr("egress_policy.name_server._CAPACITY", 3)
    await world.raw.open(POLICY, world.grant(), ALICE)

    def flood(names: Iterable[str]) -> None:
        for name in names:
            world.raw.synthetic.allocate(name)

    flood(f"{number}.flood.example" for number in range(10))
    assert world.raw.synthetic.allocate("git.example") == (world.four, world.six)
    world.now += 61
    flood(f"{number}.flood.example" for number in range(10))
    assert world.raw.synthetic.name_of(world.four) != "git.example"


async def test_a_real_address_is_told_by_the_one_name_that_leads_there(world: World) -> None:
    await world.raw.open(POLICY, world.grant(), ALICE)
    assert world.raw.name_of(ONE, 22) == "git.example"
    assert world.raw.name_of(ONE, 443) is None
    await world.raw.open(POLICY, world.grant(host="other.example"), ALICE)
    assert world.raw.name_of(ONE, 22) is None
