"""Deny feeds: large lists of names, addresses and networks, found in microseconds whatever their size.

A name in a feed stands for itself and every name below it. Lookups walk up the labels through one set of
strings, and through one set of integers for each prefix length: at a million names that is faster and smaller
than a trie.
"""

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from egress_policy.destination import Address, InvalidHostError, Network, parse_name, to_ascii

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


class FeedError(ValueError):
    """A line that cannot be read: its number (from 1) and what is wrong."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line
        self.message = message


@dataclass(frozen=True, slots=True)
class Feed:
    """Names, and networks as a set of network numbers for each (version, prefix length)."""

    names: frozenset[str] = frozenset()
    prefixes: dict[tuple[int, int], frozenset[int]] = field(default_factory=dict)

    def find_name(self, name: str) -> str | None:
        """Return the listed name that covers a canonical name, or None."""
        while name:
            if name in self.names:
                return name
            name = name.partition(".")[2]
        return None

    def find_address(self, address: Address) -> Network | None:
        """Return a listed network that covers an address, or None."""
        number = int(address)
        for (version, length), numbers in self.prefixes.items():
            if version == address.version and number >> (address.max_prefixlen - length) in numbers:
                return ipaddress.ip_network((address, length), strict=False)
        return None

    def networks(self) -> Iterator[Network]:
        """Yield every network."""
        for (version, length), numbers in self.prefixes.items():
            network = ipaddress.IPv4Network if version == 4 else ipaddress.IPv6Network
            bits = 32 if version == 4 else 128
            for number in numbers:
                yield network((number << (bits - length), length))

    def __len__(self) -> int:
        return len(self.names) + sum(len(numbers) for numbers in self.prefixes.values())


def parse_feed(lines: Iterable[str]) -> Feed:
    """Read a feed: a domain, address or CIDR a line, or hosts-file lines; `#` and `!` start a comment.

    Raises FeedError for the first line that is none of these.
    """
    names: set[str] = set()
    prefixes: dict[tuple[int, int], set[int]] = {}
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words or words[0].startswith("!"):
            continue
        try:
            if len(words) > 1:
                names.update(_hosts_file_names(words))
                continue
            network = _network(words[0])
            if network is None:
                names.add(_name(words[0]))
            else:
                _add(prefixes, network)
        except ValueError as error:
            raise FeedError(number, str(error)) from None
    return Feed(frozenset(names), {key: frozenset(numbers) for key, numbers in prefixes.items()})


def _hosts_file_names(words: list[str]) -> Iterator[str]:
    try:
        ipaddress.ip_address(words[0])
    except ValueError:
        raise ValueError(f"{words[0]!a}: a line of several words must be a hosts-file line") from None
    for word in words[1:]:
        if word.lower() not in _HOSTS_FILE_OWN:
            yield _name(word)


def _name(word: str) -> str:
    bare = word.removeprefix("*.")
    # Nine of ten lines are plain already; the whole check costs ten times as much as this.
    if bare.isascii() and bare.replace("-", "").replace(".", "").isalnum() and bare.islower():
        if "." in bare and ".." not in bare and bare[0] != "." and bare[-1] != "." and bare[-1].isalpha():
            if "xn--" not in bare and "-." not in bare and ".-" not in bare and bare[0] != "-":
                return bare
    try:
        return parse_name(to_ascii(bare))
    except InvalidHostError as error:
        raise ValueError(str(error)) from None


def _network(word: str) -> Network | None:
    # A name never starts its last label with a digit only; the cheap test keeps a million names out of ipaddress.
    if not (word[0].isdigit() or ":" in word) or (word[-1].isalpha() and ":" not in word):
        return None
    try:
        return ipaddress.ip_network(word, strict=False)
    except ValueError:
        if ":" in word or "/" in word:
            raise
        return None


def _add(prefixes: dict[tuple[int, int], set[int]], network: Network) -> None:
    number = int(network.network_address) >> (network.max_prefixlen - network.prefixlen)
    prefixes.setdefault((network.version, network.prefixlen), set()).add(number)
