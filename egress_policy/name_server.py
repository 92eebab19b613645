"""What an agent's DNS query is answered: a decision on names, made without asking anyone.

A name that nobody approved is never looked up, so labels carry no data off the host (RFC 1035 names hold up to
253 characters, a well-known way out). The agent gets a synthetic address instead; the proxy works by name.
"""

import ipaddress
from collections import OrderedDict
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


class Reply(Enum):
    """The ways to answer a query."""

    RESOLVE = auto()
    """Known-good: look it up and answer truly."""
    SYNTHETIC = auto()
    """Not decided yet: an address of our own."""
    REFUSE = auto()
    """Known-bad, or no name that a request could be for."""
    NO_DATA = auto()
    """A record type that leaks or misleads (HTTPS with ECH, TXT, NULL, ANY …): an empty answer."""


@dataclass(frozen=True, slots=True)
class Question:
    """A query's canonical name, and whether an address of either family was asked for."""

    name: str
    wants_address: bool


def reply_to(policy: Policy, question: Question) -> tuple[Reply, str]:
    """Decide how a query is answered, and say why."""
    try:
        name = parse_name(question.name)
    except InvalidHostError as error:
        return Reply.REFUSE, str(error)
    why_bad = policy.trust.known_bad.why_name(name)
    if why_bad is not None:
        return Reply.REFUSE, f"{name} is known-bad: {why_bad}"
    if not question.wants_address:
        return Reply.NO_DATA, "only addresses are answered"
    if any(entry.level == KNOWN_GOOD for entry in policy.trust.entries_for_name(name).values()):
        return Reply.RESOLVE, "known-good"
    return Reply.SYNTHETIC, "the look-up waits for a permitted request"


def direct_ports(policy: Policy, name: str) -> list[int]:
    """List the ports on which the kernel itself passes a name's addresses: known-good without inspection."""
    return [
        port
        for port, entry in policy.trust.entries_for_name(name).items()
        if entry.level == KNOWN_GOOD and entry.inspection is Inspection.NONE
    ]


class SyntheticAddresses:
    """Synthetic addresses, allocated one a name in turn and never hashed.

    At 430 names a hash into the range has an even chance that two collide, and one would be taken for another.
    When the range is used up, the name that was asked for least recently gives its number back.
    """

    def __init__(self) -> None:
        self._number: OrderedDict[str, int] = OrderedDict()
        self._name: dict[int, str] = {}

    def allocate(self, name: str) -> tuple[ipaddress.IPv4Address, ipaddress.IPv6Address]:
        """Return a name's two addresses, the same for as long as it is remembered."""
        number = self._number.get(name)
        if number is None:
            number = self._next_number()
            self._number[name] = number
            self._name[number] = name
        self._number.move_to_end(name)
        return SYNTHETIC_IPV4[number], SYNTHETIC_IPV6[number]

    def name_of(self, address: Address) -> str | None:
        """Return the name that a synthetic address stands for."""
        if address in SYNTHETIC_IPV4:
            return self._name.get(int(address) - int(SYNTHETIC_IPV4.network_address))
        if address in SYNTHETIC_IPV6:
            return self._name.get(int(address) - int(SYNTHETIC_IPV6.network_address))
        return None

    def _next_number(self) -> int:
        if len(self._number) < _CAPACITY:
            return len(self._number) + 1
        _, number = self._number.popitem(last=False)
        return number
