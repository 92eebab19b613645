"""Deny feeds: large lists of names, addresses and networks, found in about a microsecond whatever their size.

A name in a feed stands for itself and every name below it. A look-up walks up the labels through one set of
strings: at a million names that is faster and smaller than a trie. Networks stand sorted and apart from each
other, so that one binary search finds the only one that can cover an address.

Feeds are read in a thread while the proxy serves, so no single step holds the interpreter for long: names go into
the set a batch at a time, and networks are plain numbers, which the garbage collector does not visit.
"""

import ipaddress
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import batched, takewhile

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
_BATCH, _SMALLEST_BATCH = 32, 4
_CANONICAL = r"(?:[a-z0-9]++[.-])++[a-z]++"
_CANONICAL_LINES = re.compile(
    rf"""\r?+\n++
    (?:
        (?:{_CANONICAL} | (?:0\.0\.0\.0|127\.0\.0\.1)[ \t]++{_CANONICAL} | \*?+\.{_CANONICAL} | \|\|{_CANONICAL}\^)
        \r?+\n++
    )++""",
    re.VERBOSE,
)
_CANONICAL_SINKS = frozenset({"0.0.0.0", "127.0.0.1"})  # noqa: S104 - text, nothing is bound to it
_MAX_LABEL = 63
_DRESSES = (("||", "^"), ("*.", ""), (".", ""))
"""What stands around a name, before and behind, and means the name and all below it, as the bare name does."""
_DECIMALS = {str(number): number for number in range(256)}
_FORMS = (
    "a line may be a name, '*.name', '.name', '||name^', an address, a network in CIDR, a line of a hosts file, or a "
    "comment after '#', ';' or '!'; URLs and other filter rules are not supported"
)


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

    names: AbstractSet[str] = frozenset()
    ipv4: NetworkList = NetworkList()
    ipv6: NetworkList = NetworkList()

    def find_name(self, name: str) -> str | None:
        """Return the listed name that covers a canonical name, or None."""
        names = self.names
        while name not in names:
            name = name.partition(".")[2]
            if not name:
                return None
        return name

    def find_address(self, address: Address) -> Network | None:
        """Return the listed network that covers an address (the widest of several), or None.

        Three microseconds where there is one, most of them for the answer; half of one where there is none.
        """
        listed = self.ipv4 if address.version == 4 else self.ipv6
        place = listed.find(address)
        if place is None:
            return None
        kind = ipaddress.IPv4Network if address.version == 4 else ipaddress.IPv6Network
        return kind((listed.starts[place], listed.lengths[place]))

    def networks(self) -> Iterator[Network]:
        """Yield every network, without those that lie inside another."""
        yield from map(ipaddress.IPv4Network, zip(self.ipv4.starts, self.ipv4.lengths, strict=True))
        yield from map(ipaddress.IPv6Network, zip(self.ipv6.starts, self.ipv6.lengths, strict=True))

    def __len__(self) -> int:
        return len(self.names) + len(self.ipv4) + len(self.ipv6)


type _Listed = dict[int, set[int]]
"""Networks by the bits of their addresses (32, 128), each as one number: its first address << 8 | prefix length."""


def parse_feed(lines: Iterable[str]) -> Feed:
    """Read a feed: a name, address or network in CIDR a line, or lines of a hosts file that lead names nowhere.

    A byte order mark in front of a line says nothing. `*.name`, `.name` and `||name^` mean the same as `name`. A word that begins with `#` or `;` starts a comment, and
    so does `!` in front of a line. Raises FeedError for the first line that is none of these.
    """
    names: set[str] = set()
    networks: _Listed = {32: set(), 128: set()}
    first = 1
    for batch in batched(lines, _BATCH):
        _read(first, batch, names, networks)
        first += len(batch)
    return Feed(names, _apart(networks[32], 32), _apart(networks[128], 128))


def _read(first: int, lines: Sequence[str], names: set[str], networks: _Listed) -> None:
    """Read lines, by halves where only some of them are canonical names. Raises FeedError."""
    canonical = _canonical_names(lines)
    if canonical is not None:
        names |= canonical
    elif len(lines) > _SMALLEST_BATCH:
        middle = len(lines) // 2
        _read(first, lines[:middle], names, networks)
        _read(first + middle, lines[middle:], names, networks)
    else:
        for number, line in enumerate(lines, start=first):
            try:
                _read_line(line, names, networks)
            except ValueError as error:
                raise FeedError(number, f"{error}; {_FORMS}") from None


def _canonical_names(lines: Iterable[str]) -> set[str] | None:
    """Return the names on lines of which each holds a canonical one and no more, or None for any other lines."""
    text = ("\n" + "\n".join(lines) + "\n").lower()
    if not _CANONICAL_LINES.fullmatch(text):
        return None
    bare = text.replace("*", "").replace("\n.", "\n").replace("|", "").replace("^", "")
    names = set(bare.split()) - _CANONICAL_SINKS
    return names if max(map(len, names)) <= _MAX_LABEL and _HOSTS_FILE_OWN.isdisjoint(names) else None


def _read_line(line: str, names: set[str], networks: _Listed) -> None:
    # Not within a word: an ad blocker's `name##.banner` is about a part of a page.
    words = list(takewhile(lambda word: word[0] not in "#;", line.removeprefix("\ufeff").split()))
    if not words or words[0].startswith("!"):
        return
    if len(words) > 1:
        names.update(_hosts_file_names(words))
    elif ":" in words[0] or "/" in words[0] or not words[0].strip("0123456789."):
        bits, network = _network(words[0])
        networks[bits].add(network)
    else:
        names.add(_name(words[0]))


def _hosts_file_names(words: list[str]) -> list[str]:
    try:
        address = ipaddress.ip_address(words[0])
    except ValueError:
        raise ValueError(
            f"{_shown(words[0])} is no address, and a line of several words must begin with one"
        ) from None
    names = [word for word in words[1:] if word.lower() not in _HOSTS_FILE_OWN]
    if names and not (address.is_unspecified or address.is_loopback):
        raise ValueError(
            f"{address} leads somewhere: a denied name stands behind 0.0.0.0, 127.0.0.1, :: or ::1"
        )
    return [parse_name(to_ascii(name)) for name in names]


def _name(word: str) -> str:
    for before, behind in _DRESSES:
        if word.startswith(before) and word.endswith(behind):
            word = word[len(before) : len(word) - len(behind)]
            break
    return parse_name(to_ascii(word))


def _network(word: str) -> tuple[int, int]:
    """Read an address or network as ip_network() does, several times as fast: the bits of its addresses, and the number of _Listed."""
    text, slash, behind = word.partition("/")
    try:
        number, bits = (int(ipaddress.IPv6Address(text)), 128) if ":" in text else (_ipv4(text), 32)
        length = _DECIMALS.get(behind, 256) if slash else bits
        if length > bits:
            length = ipaddress.ip_network(word, strict=False).prefixlen  # a netmask, or nothing
    except ValueError:
        raise ValueError(f"{_shown(word)} is neither a name nor an address or network") from None
    start = number >> bits - length << bits - length
    if "%" in word or (bits == 128 and start >> 32 == 0xFFFF):
        raise ValueError(
            f"{_shown(word)} has a zone or is an IPv4 address in disguise: no packet would match it"
        )
    return bits, start << 8 | length


def _ipv4(text: str) -> int:
    try:
        first, second, third, fourth = map(_DECIMALS.__getitem__, text.split("."))
    except KeyError as error:
        raise ValueError(text) from error
    return first << 24 | second << 16 | third << 8 | fourth


def _apart(networks: Iterable[int], bits: int) -> NetworkList:
    """Sort networks and leave out those that lie inside another: networks never overlap in any other way."""
    starts: list[int] = []
    lengths = bytearray()
    end = -1
    for network in sorted(networks):
        start, length = network >> 8, network & 0xFF
        if start > end:
            starts.append(start)
            lengths.append(length)
            end = start + (1 << bits - length) - 1
    return NetworkList(tuple(starts), bytes(lengths))


def _shown(word: str) -> str:
    return ascii(word[:80])
