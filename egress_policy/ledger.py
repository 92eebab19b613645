"""The proxy's view of the grants that are live now, so that a second request asks neither DNS nor the kernel.

The kernel's sets are what is open; this only remembers whose it is and when it ends. Times are seconds of a
monotonic clock, given by the caller: a grant's end does not move when somebody sets the wall clock.
"""

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from egress_policy.decision import Key
from egress_policy.destination import Address, Destination
from egress_policy.grant import Grant, Way


@dataclass(slots=True)
class LiveGrant:
    """A grant with its end (`deadline`) and the time until which its addresses are what DNS said (`fresh_until`).

    `pin` is the address that the upstream connection goes to, `cnames` the names on the way to it, `current` what
    DNS said last. `former` are addresses that it led to before those of the grant, and that running transfers may still
    use. `ways` are those to further ports.
    """

    grant: Grant
    deadline: float
    fresh_until: float
    pin: Address
    cnames: tuple[str, ...] = ()
    current: tuple[Address, ...] = ()
    former: tuple[Address, ...] = ()
    ways: set[Way] = field(default_factory=set)

    @property
    def key(self) -> Key:
        """What the grant is for."""
        grant = self.grant
        return grant.agent, grant.scope, grant.intent, grant.destination

    @property
    def opened(self) -> tuple[Address, ...]:
        """All addresses that the kernel holds open for it."""
        return (*self.grant.addresses, *self.former)


class Ledger:
    """Live grants by what they are for, and in the order of their end."""

    def __init__(self) -> None:
        self._live: dict[Key, LiveGrant] = {}
        self._ends: list[tuple[float, str, Key]] = []
        self._count: dict[str, Counter[Destination]] = {}
        self._open: dict[str, set[Destination]] = {}

    @property
    def destinations(self) -> Mapping[str, AbstractSet[Destination]]:
        """The destinations that each scope has open now."""
        return self._open

    def __iter__(self) -> Iterator[LiveGrant]:
        return iter(tuple(self._live.values()))

    def __len__(self) -> int:
        return len(self._live)

    def find(self, key: Key, now: float) -> LiveGrant | None:
        """Return the live grant for this key, if its end has not come."""
        live = self._live.get(key)
        return live if live is not None and live.deadline > now else None

    def add(self, live: LiveGrant) -> None:
        """Enter a grant; it takes the place of an earlier one for the same key."""
        self.remove(live)
        self._live[live.key] = live
        heapq.heappush(self._ends, (live.deadline, live.grant.id, live.key))
        _, scope, _, destination = live.key
        self._count.setdefault(scope, Counter())[destination] += 1
        self._open.setdefault(scope, set()).add(destination)

    def remove(self, live: LiveGrant) -> bool:
        """Take a grant out; tell whether one for its key was there."""
        if self._live.pop(live.key, None) is None:
            return False
        _, scope, _, destination = live.key
        self._count[scope][destination] -= 1
        if not self._count[scope][destination]:
            del self._count[scope][destination]
            self._open[scope].discard(destination)
        return True

    def take_ended(self, now: float) -> list[LiveGrant]:
        """Take out and return the grants whose end has come."""
        ended: list[LiveGrant] = []
        while self._ends and self._ends[0][0] <= now:
            _, grant_id, key = heapq.heappop(self._ends)
            live = self._live.get(key)
            # An entry may be stale: the grant was removed, or another took its place.
            if live is not None and live.grant.id == grant_id and live.deadline <= now:
                self.remove(live)
                ended.append(live)
        return ended

    def next_end(self) -> float | None:
        """Return when the next grant may end, None if none is live."""
        return self._ends[0][0] if self._ends else None

    def last_holder(self, address: Address, port: int) -> LiveGrant | None:
        """Return the live grant that holds an element open the longest."""
        holders = (
            live
            for live in self._live.values()
            if live.grant.destination.port == port
            and (address in live.grant.addresses or address in live.former)
        )
        return max(holders, key=lambda live: live.deadline, default=None)
