"""Deny feeds: large lists of names, addresses and networks, found within a microsecond whatever their size.

A name in a feed stands for itself and every name below it. A look-up walks up the labels through one set of
strings: at a million names that is faster and smaller than a trie. Networks stand sorted and apart from each
other, so that one binary search finds the only one that can cover an address.
"""

import ipaddress
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import batched

from egress_policy.destination import Address, Network, parse_name, to_ascii

# What hosts files list for the host itself, beside what they deny.
_HOSTS_FILE_OWN = frozenset(
    {
        "localhost",
        "localhost.localdomain",
        "local",
        "broadcasthost",
        "ip6-localhost",
        "ip6-loopback",
        "ip6-localnet",
        "ip6-mcastprefix",
        "ip6-allnodes",
        "ip6-allrouters",
        "ip6-allhosts",
        "0.0.0.0",  # noqa: S104 - a host's name in hosts files, nothing is bound to it
    }
)

# Nearly every line of a large feed is a name that is canonical as it stands; read one by one, with every check, a
# million of them take seven seconds, and half a second this way. It matches less than parse_name(): labels of ASCII
# letters, digits and single hyphens (so no A-labels), the last one ending in letters (so no number).
_BATCH = 256
_CANONICAL_LINES = re.compile(r"[\r\n]++(?:(?:0\.0\.0\.0 )?+(?:[a-z0-9]++[.-])++[a-z]++[\r\n]++)++")
_MAX_LABEL = 63


class FeedError(ValueError):
    """A line that cannot be read: its number (from 1) and what is wrong."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line
        self.message = message


@dataclass(frozen=True, slots=True)
class NetworkList:
    """Networks of one address family that do not overlap: their first addresses, ascending, and prefix lengths."""

    starts: tuple[int, ...] = ()
    lengths: bytes = b""

    def find(self, address: Address) -> int | None:
        """Return the place of the network that covers an address, or None."""
        number = int(address)
        place = bisect_right(self.starts, number) - 1
        if place < 0:
            return None
        host_bits = address.max_prefixlen - self.lengths[place]
        return place if number >> host_bits == self.starts[place] >> host_bits else None

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True, slots=True)
class Feed:
    """The names and networks of one feed."""

    names: frozenset[str] = frozenset()
    ipv4: NetworkList = NetworkList()
    ipv6: NetworkList = NetworkList()

    def find_name(self, name: str) -> str | None:
        """Return the listed name that covers a canonical name, or None."""
        while name:
            if name in self.names:
                return name
            name = name.partition(".")[2]
        return None

    def find_address(self, address: Address) -> Network | None:
        """Return the listed network that covers an address (the widest of several), or None."""
        listed = self.ipv4 if address.version == 4 else self.ipv6
        place = listed.find(address)
        return None if place is None else ipaddress.ip_network((address, listed.lengths[place]), strict=False)

    def networks(self) -> Iterator[Network]:
        """Yield every network, without those that lie inside another."""
        yield from map(ipaddress.IPv4Network, zip(self.ipv4.starts, self.ipv4.lengths, strict=True))
        yield from map(ipaddress.IPv6Network, zip(self.ipv6.starts, self.ipv6.lengths, strict=True))

    def __len__(self) -> int:
        return len(self.names) + len(self.ipv4) + len(self.ipv6)


type _Listed = tuple[int, int]
"""A network's first address, as a number, and its prefix length."""


def parse_feed(lines: Iterable[str]) -> Feed:
    """Read a feed: a domain, address or CIDR a line, or hosts-file lines; `#` and `!` start a comment.

    `*.name` means the same as `name`. Raises FeedError for the first line that is none of these.
    """
    # A list, not a set: making a frozenset of a set would hold both tables at once.
    names: list[str] = []
    networks: dict[int, set[_Listed]] = {4: set(), 6: set()}
    first = 1
    for batch in batched(lines, _BATCH):
        canonical = _canonical_names(batch)
        if canonical is None:
            for number, line in enumerate(batch, start=first):
                _read_line(number, line, names, networks)
        else:
            names += canonical
        first += len(batch)
    return Feed(frozenset(names), _apart(networks[4], 32), _apart(networks[6], 128))


def _canonical_names(lines: Iterable[str]) -> list[str] | None:
    """Return the names on lines of which each holds a canonical one and no more, or None for any other lines."""
    text = ("\n" + "\n".join(lines) + "\n").lower()
    if not _CANONICAL_LINES.fullmatch(text):
        return None
    names = text.replace("\n0.0.0.0 ", "\n").split()
    return names if max(map(len, names)) <= _MAX_LABEL and _HOSTS_FILE_OWN.isdisjoint(names) else None


def _read_line(number: int, line: str, names: list[str], networks: dict[int, set[_Listed]]) -> None:
    words = line.partition("#")[0].split()
    if not words or words[0].startswith("!"):
        return
    try:
        if len(words) > 1:
            names.extend(_hosts_file_names(words))
        elif ":" in words[0] or "/" in words[0] or not words[0].strip("0123456789."):
            network = _network(words[0])
            networks[network.version].add((int(network.network_address), network.prefixlen))
        else:
            names.append(_name(words[0]))
    except ValueError as error:
        raise FeedError(number, str(error)) from None


def _hosts_file_names(words: list[str]) -> Iterator[str]:
    try:
        ipaddress.ip_address(words[0])
    except ValueError:
        raise ValueError(f"{words[0]!a}: a line of several words must be a hosts-file line") from None
    for word in words[1:]:
        if word.lower() not in _HOSTS_FILE_OWN:
            yield _name(word)


def _name(word: str) -> str:
    return parse_name(to_ascii(word.removeprefix("*.")))


def _network(word: str) -> Network:
    """Read an address or CIDR. Raises ValueError."""
    network = ipaddress.ip_network(word, strict=False)
    if "%" in word or (isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped):
        raise ValueError(f"{word!a} has a zone or is an IPv4 address in disguise: no packet would match it")
    return network


def _apart(networks: Iterable[_Listed], bits: int) -> NetworkList:
    """Sort networks and leave out those that lie inside another: networks never overlap in any other way."""
    starts: list[int] = []
    lengths = bytearray()
    end = -1
    for start, length in sorted(networks):
        if start > end:
            starts.append(start)
            lengths.append(length)
            end = start + (1 << (bits - length)) - 1
    return NetworkList(tuple(starts), bytes(lengths))
