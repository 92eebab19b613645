"""Further ports of names with a live grant: raw TCP, which the kernel leads to the checked address by itself.

The caller alone may use them, by the address that it was told for the name, and no longer than the grant lives.
"""

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet

from egress_policy.destination import Address
from egress_policy.firewall import Elements, FirewallError
from egress_policy.grant import Way
from egress_policy.ledger import Ledger, LiveGrant
from egress_policy.name_server import SyntheticAddresses, is_told_truly
from egress_policy.policy import Policy
from egress_policy.records import element_comment

_MOST_WAYS = 1024
"""Of one grant: an agent may be a range of 65,536 uids, each of which could ask."""

type _Place = tuple[int | Address, Address, int]
"""Who dials which address on which port: what the kernel leads to one address."""


class RawTcp:
    """Opens ways in the kernel, and keeps them no longer than a grant needs them. `clock` in seconds."""

    def __init__(self, elements: Elements, ledger: Ledger, clock: Callable[[], float]) -> None:
        self.synthetic = SyntheticAddresses(clock)
        self._elements = elements
        self._ledger = ledger
        self._clock = clock
        self._leads: dict[_Place, Address] = {}

    async def open(self, policy: Policy, live: LiveGrant, caller: int | Address) -> None:
        """Open a live grant's further ports to a caller. Raises FirewallError; what was not opened stays closed."""
        for way in self._ways(policy, live, caller):
            if self.is_open(live, way) or len(live.ways) >= _MOST_WAYS:
                continue
            live.ways.add(way)
            try:
                await self._put(way, leads=True)
            except (FirewallError, ValueError) as error:
                live.ways.discard(way)
                raise FirewallError(f"port {way.port} of {live.grant.destination.host}: {error}") from error

    def is_open(self, live: LiveGrant, way: Way) -> bool:
        """Tell whether a grant has a way, and new connections take it."""
        return way in live.ways and self._leads.get(_place(way)) == way.address

    def are_open(self, policy: Policy, live: LiveGrant, caller: int | Address) -> bool:
        """Tell whether a caller has every way that a grant opens to it."""
        return all(self.is_open(live, way) for way in self._ways(policy, live, caller))

    async def close_or_keep(self, ways: AbstractSet[Way]) -> None:
        """Give ways the time of the last grant that has them, or close them. Raises FirewallError, having tried all."""
        failed: FirewallError | None = None
        for way in ways:
            try:
                await self._put(way, leads=self._leads.get(_place(way)) == way.address)
            except (FirewallError, ValueError) as error:
                failed = FirewallError(f"port {way.port} of {way.address}: {error}")
        self.forget(ways)
        if failed is not None:
            raise failed

    def forget(self, ways: Iterable[Way]) -> None:
        """Forget what no grant leads anybody to any more; the kernel's own timeouts have closed it."""
        for way in ways:
            if self._leads.get(_place(way)) == way.address and not any(self._holders(way)):
                del self._leads[_place(way)]

    def name_of(self, address: Address, port: int | None) -> str | None:
        """Return the one name whose port somebody is led to at a real address."""
        names = {
            str(live.grant.destination.host)
            for live in self._ledger
            if any((way.address, way.port) == (address, port) for way in live.ways)
        }
        return names.pop() if len(names) == 1 else None

    def _ways(self, policy: Policy, live: LiveGrant, caller: int | Address) -> Iterator[Way]:
        host = live.grant.destination.host
        if not live.grant.ports or not isinstance(host, str):
            return
        for dialled, address in self._translations(policy, live, host):
            if isinstance(caller, int) or caller.version == dialled.version:
                yield from (Way(caller, dialled, port, address) for port in live.grant.ports)

    def _translations(self, policy: Policy, live: LiveGrant, host: str) -> Iterator[tuple[Address, Address]]:
        """Say to which address each leads that agents are told for a name."""
        addresses = live.current or live.grant.addresses
        if is_told_truly(policy, host):
            yield from ((address, address) for address in addresses)
            return
        # The number stays the name's for as long as the kernel leads from it.
        self.synthetic.hold(host, live.deadline - self._clock())
        for dialled in self.synthetic.allocate(host):
            for address in (live.pin, *addresses):
                if address.version == dialled.version:
                    yield dialled, address
                    break

    async def _put(self, way: Way, *, leads: bool) -> None:
        last = max(self._holders(way), key=_deadline, default=None)
        closed = max(self._holders_of_any(way), key=_deadline, default=None)
        named = last or closed
        await self._elements.lead(
            way,
            self._left(last),
            self._left(closed),
            "" if named is None else element_comment(named.grant),
            self._leads.get(_place(way), way.address) if leads else None,
        )
        if leads and last is not None:
            self._leads[_place(way)] = way.address

    def _left(self, live: LiveGrant | None) -> float | None:
        return None if live is None else live.deadline - self._clock()

    def _holders(self, way: Way) -> Iterator[LiveGrant]:
        return (live for live in self._ledger if way in live.ways)

    def _holders_of_any(self, way: Way) -> Iterator[LiveGrant]:
        """Find the grants that have this way for whichever uid."""
        place = way.dialled, way.port, way.address
        return (
            live
            for live in self._ledger
            if any(
                isinstance(one.caller, int) and (one.dialled, one.port, one.address) == place
                for one in live.ways
            )
        )


def _place(way: Way) -> _Place:
    return way.caller, way.dialled, way.port


def _deadline(live: LiveGrant) -> float:
    return live.deadline
