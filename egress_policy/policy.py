"""The policy as values: agents, scopes, levels of trust, intents. Read from a file by policy_file.py."""

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum

from egress_policy.destination import Address, Destination, HostPattern, Network
from egress_policy.feed import Feed

KNOWN_GOOD = "known-good"
KNOWN_BAD = "known-bad"
UNKNOWN = "unknown"
DEFAULT_INTENT = "default"

MAX_TTL = timedelta(hours=24)
WEB_PORTS = (80, 443)
DNS_PORT = 53

type Range = tuple[int, int]
"""Of uids or ports, both ends included."""


class Inspection(StrEnum):
    """How much of a destination's traffic the proxy sees."""

    NONE = "none"
    NAME = "name"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Proxy:
    """Where mitmdump listens, and as whom it runs (a login name or a uid); without a `console_port`, no console."""

    user: str | int
    port: int = 8080
    ports: tuple[int, ...] = WEB_PORTS
    dns_port: int = 8053
    console_port: int | None = None


@dataclass(frozen=True, slots=True)
class Resolver:
    """Name servers to ask, None for the host's own; the timeout bounds one whole look-up."""

    nameservers: tuple[tuple[Address, int], ...] | None = None
    timeout: timedelta = timedelta(seconds=3)


@dataclass(frozen=True, slots=True)
class Agent:
    """Who is subject to the policy: a user of this host (name or uids), or a source address behind a link.

    Where the link is a bridge, `port` is the one of its ports that the agent is behind, if it has a name beforehand.
    `may_ask` is false for an agent that nobody watches: what needs approval is denied to it, and nobody is asked.
    """

    name: str
    scopes: tuple[str, ...]
    user: str | Range | None = None
    interface: str | None = None
    port: str | None = None
    source: Network | None = None
    default_scope: str | None = None
    loopback: tuple[Range, ...] = ((1024, 65535),)
    may_ask: bool = True


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A developer's scope: `intents` None means every intent."""

    name: str
    owner: str
    owner_user: str | None = None
    intents: frozenset[str] | None = None
    max_ttl: timedelta = MAX_TTL
    max_destinations: int = 100


@dataclass(frozen=True, slots=True)
class DomainEntry:
    """A name, or all below it, at a level of trust."""

    pattern: HostPattern
    level: str
    ports: tuple[int, ...] = WEB_PORTS
    inspection: Inspection = Inspection.FULL


@dataclass(frozen=True, slots=True)
class CidrEntry:
    """A network at a level of trust."""

    network: Network
    level: str
    ports: tuple[int, ...] = WEB_PORTS
    inspection: Inspection = Inspection.FULL


type Entry = DomainEntry | CidrEntry


@dataclass(frozen=True, slots=True)
class IntentRule:
    """What an intent may do at one level of trust: `methods` None is any, `max_body` (bytes) None is no limit.

    With `needs_approval` a person decides on each new destination first.
    """

    methods: frozenset[str] | None = None
    max_body: int | None = None
    ttl: timedelta = MAX_TTL
    needs_approval: bool = False

    @property
    def is_limited(self) -> bool:
        """Tell whether it limits what is sent, which must be seen then."""
        return self.methods is not None or self.max_body is not None


@dataclass(frozen=True, slots=True)
class KnownBad:
    """What is never reached: entries of the policy itself, and feeds (name of the feed, its content)."""

    patterns: frozenset[HostPattern] = frozenset()
    networks: tuple[Network, ...] = ()
    feeds: tuple[tuple[str, Feed], ...] = ()

    def why_name(self, name: str) -> str | None:
        """Say which entry denies a canonical name, or None."""
        for candidate in _covering_patterns(name):
            if candidate in self.patterns:
                return str(candidate)
        for path, feed in self.feeds:
            listed = feed.find_name(name)
            if listed is not None:
                return f"{listed} in {path}"
        return None

    def why_address(self, address: Address) -> str | None:
        """Say which entry denies an address, or None."""
        for network in self.networks:
            if address in network:
                return str(network)
        for path, feed in self.feeds:
            listed = feed.find_address(address)
            if listed is not None:
                return f"{listed} in {path}"
        return None

    def all_networks(self) -> Iterable[Network]:
        """Yield every network and address that the kernel must deny."""
        yield from self.networks
        for _, feed in self.feeds:
            yield from feed.networks()


@dataclass(frozen=True, slots=True)
class Trust:
    """Levels of trust in destinations. The most specific entry wins, and known-bad wins over all."""

    domains: tuple[DomainEntry, ...] = ()
    cidrs: tuple[CidrEntry, ...] = ()
    known_bad: KnownBad = KnownBad()
    _by_pattern: Mapping[HostPattern, tuple[DomainEntry, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        index: dict[HostPattern, tuple[DomainEntry, ...]] = {}
        for entry in self.domains:
            index[entry.pattern] = (*index.get(entry.pattern, ()), entry)
        object.__setattr__(self, "_by_pattern", index)

    def why_bad(self, destination: Destination) -> str | None:
        """Say which known-bad entry denies a destination, or None."""
        if isinstance(destination.host, str):
            return self.known_bad.why_name(destination.host)
        return self.known_bad.why_address(destination.host)

    def entry_for(self, destination: Destination) -> Entry | None:
        """Find the most specific entry that covers host and port; None means `unknown`."""
        if isinstance(destination.host, str):
            return self.entries_for_name(destination.host).get(destination.port)
        return self.cidr_for(destination.host, destination.port)

    def entries_for_name(self, name: str) -> dict[int, DomainEntry]:
        """Find the most specific entry for each port of a name that has one."""
        entries: dict[int, DomainEntry] = {}
        for pattern in _covering_patterns(name):
            for entry in self._by_pattern.get(pattern, ()):
                for port in entry.ports:
                    entries.setdefault(port, entry)
        return entries

    def cidr_for(self, address: Address, port: int) -> CidrEntry | None:
        """Find the longest prefix with that port which covers an address."""
        covering = [entry for entry in self.cidrs if port in entry.ports and address in entry.network]
        return max(covering, key=lambda entry: entry.network.prefixlen, default=None)

    def names_address(self, address: Address, port: int) -> bool:
        """Tell whether any cidr entry, known-bad ones included, is about this address on this port."""
        return self.known_bad.why_address(address) is not None or self.cidr_for(address, port) is not None

    def direct_networks(self) -> list[tuple[Network, int]]:
        """List the network and port pairs that the kernel passes by itself: known-good without inspection.

        An entry of another kind for the same network or one inside it is cut out.
        """
        others = [entry for entry in self.cidrs if not _is_direct(entry)]
        direct: list[tuple[Network, int]] = []
        for entry in filter(_is_direct, self.cidrs):
            for port in entry.ports:
                inner = (
                    other.network
                    for other in others
                    if port in other.ports and is_inside(other.network, entry.network)
                )
                direct.extend((network, port) for network in without(entry.network, inner))
        return direct

    def direct_names(self) -> list[tuple[str, int]]:
        """List the known-good names without inspection, and their ports; the addon keeps their addresses."""
        return [
            (entry.pattern.name, port) for entry in self.domains if _is_direct(entry) for port in entry.ports
        ]


@dataclass(frozen=True, slots=True)
class Policy:
    """The whole policy. `intents` maps an intent to its rule at each level of trust; a level not named is denied.

    `operators` are those who see and do all, by login name or uid; root is one without being named.
    """

    proxy: Proxy
    agents: Mapping[str, Agent]
    scopes: Mapping[str, Sandbox]
    intents: Mapping[str, Mapping[str, IntentRule]]
    trust: Trust = Trust()
    resolver: Resolver = Resolver()
    operators: tuple[str, ...] = ()

    @property
    def own_ports(self) -> frozenset[int]:
        """The ports that agents are redirected from, or that are the proxy's own: no agent reaches them by itself."""
        proxy = self.proxy
        console = () if proxy.console_port is None else (proxy.console_port,)
        return frozenset((*proxy.ports, proxy.port, proxy.dns_port, DNS_PORT, *console))

    def level_of(self, destination: Destination) -> str | None:
        """Name a destination's level of trust; None where no entry covers it and its port is not the proxy's."""
        if self.trust.why_bad(destination) is not None:
            return KNOWN_BAD
        entry = self.trust.entry_for(destination)
        if entry is not None:
            return entry.level
        return UNKNOWN if destination.port in self.proxy.ports else None

    def is_inspected_by_name(self, destination: Destination) -> bool:
        """Tell whether TLS to a destination is passed on undecrypted by its server name; an address has none."""
        entry = self.trust.entry_for(destination)
        return (
            isinstance(destination.host, str)
            and entry is not None
            and entry.inspection is not Inspection.FULL
        )


def _covering_patterns(name: str) -> Iterable[HostPattern]:
    """Yield the patterns that match a name, the most specific first: itself, then `*.parent` upwards."""
    yield HostPattern(name)
    parent = name
    while "." in parent:
        parent = parent.partition(".")[2]
        yield HostPattern(parent, below=True)


def _is_direct(entry: Entry) -> bool:
    return entry.level == KNOWN_GOOD and entry.inspection is Inspection.NONE


def is_inside(inner: Network, outer: Network) -> bool:
    """Tell whether a network is part of another, or all of it."""
    if isinstance(inner, ipaddress.IPv4Network) and isinstance(outer, ipaddress.IPv4Network):
        return inner.subnet_of(outer)
    if isinstance(inner, ipaddress.IPv6Network) and isinstance(outer, ipaddress.IPv6Network):
        return inner.subnet_of(outer)
    return False


def without(network: Network, holes: Iterable[Network]) -> list[Network]:
    """Cut networks that lie inside out of one."""
    rest: list[Network] = [network]
    for hole in holes:
        remaining: list[Network] = []
        for part in rest:
            if is_inside(hole, part):
                remaining.extend(part.address_exclude(hole))  # type: ignore[arg-type]  # same version: is_inside
            elif not is_inside(part, hole):
                remaining.append(part)
        rest = remaining
    return rest
