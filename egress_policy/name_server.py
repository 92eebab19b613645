"""What an agent's DNS query is answered: a decision on names, made without asking anyone.

A name that nobody approved is never looked up, so labels carry no data off the host (RFC 1035 names hold up to
253 characters, a well-known way out). The agent gets a synthetic address instead; the proxy works by name.
"""

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto

from egress_policy.destination import Address, InvalidHostError, parse_name
from egress_policy.policy import KNOWN_GOOD, Inspection, Policy

# RFC 2544's benchmarking range, and a /64 of RFC 5180's for IPv6: no real destination has such an address.
SYNTHETIC_IPV4 = ipaddress.IPv4Network("198.18.0.0/15")
SYNTHETIC_IPV6 = ipaddress.IPv6Network("2001:2:0:ffff::/64")
SYNTHETIC_TTL = 60
"""Seconds that an agent may keep a synthetic address."""

_CAPACITY = SYNTHETIC_IPV4.num_addresses - 2
_MAX_TRUE = 4096


class Reply(Enum):
    """The ways to answer a query."""

    RESOLVE = auto()
    """Known-good: look it up and answer truly."""
    SYNTHETIC = auto()
    """Not decided yet: an address of our own."""
    DENY = auto()
    """Known-bad."""
    PROHIBIT = auto()
    """No name that a request could be for."""
    NO_DATA = auto()
    """A record type that leaks or misleads (HTTPS with ECH, TXT, NULL, ANY …): an empty answer."""


@dataclass(frozen=True, slots=True)
class Question:
    """A query's canonical name, and whether an address of either family was asked for."""

    name: str
    wants_address: bool


@dataclass(frozen=True, slots=True)
class Ruling:
    """How a query is answered, for which name in its one form, and why (a sentence's part)."""

    reply: Reply
    name: str
    why: str


def reply_to(policy: Policy, question: Question) -> Ruling:
    """Decide how a query is answered."""
    try:
        name = parse_name(question.name)
    except InvalidHostError as error:
        return Ruling(Reply.PROHIBIT, "", str(error))
    why_bad = policy.trust.known_bad.why_name(name)
    if why_bad is not None:
        return Ruling(Reply.DENY, name, f"the name is known-bad: {why_bad}")
    if not question.wants_address:
        return Ruling(Reply.NO_DATA, name, "only addresses are answered")
    if is_told_truly(policy, name):
        return Ruling(Reply.RESOLVE, name, "known-good")
    return Ruling(Reply.SYNTHETIC, name, "the look-up waits for a permitted request")


def is_told_truly(policy: Policy, name: str) -> bool:
    """Tell whether agents are told a name's real addresses: it is known-good on some port."""
    return any(entry.level == KNOWN_GOOD for entry in policy.trust.entries_for_name(name).values())


def direct_ports(policy: Policy, name: str) -> list[int]:
    """List the ports on which the kernel itself passes a name's addresses: known-good without inspection."""
    return [
        port
        for port, entry in policy.trust.entries_for_name(name).items()
        if entry.level == KNOWN_GOOD and entry.inspection is Inspection.NONE
    ]


@dataclass(slots=True)
class _Holder:
    """Who has a synthetic number: `given` when it was last told to an agent, `sole` from when on nobody else is meant.

    Until `held` it is nobody else's: the kernel leads from it to the name's own address.
    """

    name: str
    number: int
    given: float
    sole: float
    held: float = 0.0


class SyntheticAddresses:
    """Synthetic addresses, allocated one a name in turn and never hashed.

    At 430 names a hash into the range has an even chance that two collide, and one would be taken for another.
    When the range is used up, the name that was asked for least recently gives its number back. Who floods us with
    names takes away those that nobody has asked for since, and of these only what a record calls them: the proxy
    works by name. `clock` in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._by_name: OrderedDict[str, _Holder] = OrderedDict()
        self._by_number: dict[int, _Holder] = {}

    def allocate(self, name: str) -> tuple[ipaddress.IPv4Address, ipaddress.IPv6Address]:
        """Return a name's two addresses, the same for as long as it is remembered."""
        now = self._clock()
        holder = self._by_name.get(name)
        if holder is None:
            holder = self._new_holder(name, now)
            self._by_name[name] = self._by_number[holder.number] = holder
        holder.given = now
        self._by_name.move_to_end(name)
        return SYNTHETIC_IPV4[holder.number], SYNTHETIC_IPV6[holder.number]

    def hold(self, name: str, seconds: float) -> None:
        """Let a name keep its addresses for so long, whoever floods us with others."""
        self.allocate(name)
        holder = self._by_name[name]
        holder.held = max(holder.held, self._clock() + seconds)

    def name_of(self, address: Address) -> str | None:
        """Return the name that a synthetic address stands for; None also where an agent may still mean another."""
        network = SYNTHETIC_IPV4 if address.version == 4 else SYNTHETIC_IPV6
        holder = self._by_number.get(int(address) - int(network.network_address))
        return holder.name if holder is not None and self._clock() >= holder.sole else None

    def _new_holder(self, name: str, now: float) -> _Holder:
        if len(self._by_name) < _CAPACITY:
            return _Holder(name, len(self._by_name) + 1, now, sole=now)
        oldest = next(holder.name for holder in self._by_name.values() if holder.held <= now)
        former = self._by_name.pop(oldest)
        return _Holder(name, former.number, now, sole=former.given + SYNTHETIC_TTL)


class TrueAddresses:
    """The real addresses that agents were told lately, with their names. `clock` in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: OrderedDict[Address, tuple[str | None, float]] = OrderedDict()

    def note(self, name: str, addresses: Iterable[Address], ttl: int) -> None:
        """Remember an answer for its TTL (seconds), and a while longer: clients connect late."""
        now = self._clock()
        for address in addresses:
            other, until = self._told.get(address, (name, now))
            # Two names share the address: nobody can tell which is meant.
            sole = name if other == name or until <= now else None
            self._told[address] = sole, max(until, now + ttl + SYNTHETIC_TTL)
            self._told.move_to_end(address)
        while len(self._told) > _MAX_TRUE:
            self._told.popitem(last=False)

    def name_of(self, address: Address) -> str | None:
        """Return the one name that was answered with an address, if it is known."""
        name, until = self._told.get(address, (None, 0.0))
        return name if self._clock() < until else None
