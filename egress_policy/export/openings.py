"""What is open to every agent without a scope, cut down to what a rule without exceptions can say."""

from collections.abc import Iterable
from dataclasses import dataclass

from egress_policy.destination import HostPattern, Network
from egress_policy.policy import (
    KNOWN_GOOD,
    CidrEntry,
    DomainEntry,
    Inspection,
    Policy,
    Trust,
    is_inside,
)

MAX_EXCEPTIONS = 500
"""Known-bad networks in one rule: an object must stay below etcd's 1.5 MiB, and be read by a person."""

_NO_EXCEPTIONS = "a rule for all names below one cannot leave any out"


@dataclass(frozen=True, slots=True)
class NameOpening:
    """A known-good name, or all below it, on some ports."""

    pattern: HostPattern
    ports: tuple[int, ...]
    inspection: Inspection


@dataclass(frozen=True, slots=True)
class NetworkOpening:
    """A known-good network on some ports, but for the networks inside it that are not known-good."""

    network: Network
    ports: tuple[int, ...]
    inspection: Inspection
    exceptions: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class Openings:
    """What every target starts from. `losses` says what had to be left out to permit nothing else with it."""

    names: tuple[NameOpening, ...]
    networks: tuple[NetworkOpening, ...]
    known_bad: tuple[Network, ...]
    losses: tuple[str, ...]


def openings_of(policy: Policy) -> Openings:
    """Find what is known-good. Where a name or network below an entry is not, the entry gives way."""
    trust = policy.trust
    losses: list[str] = []
    bad = sorted(trust.known_bad.all_networks(), key=_order)
    names = [one for entry in _sorted(trust.domains) for one in _name(trust, entry, losses)]
    networks = [one for entry in _sorted_cidrs(trust.cidrs) for one in _networks(trust, entry, bad, losses)]
    return Openings(tuple(names), tuple(networks), tuple(bad), tuple(losses))


def _sorted(entries: Iterable[DomainEntry]) -> list[DomainEntry]:
    known_good = [entry for entry in entries if entry.level == KNOWN_GOOD]
    return sorted(
        known_good, key=lambda entry: (entry.pattern.name, entry.pattern.below, entry.ports, entry.inspection)
    )


def _sorted_cidrs(entries: Iterable[CidrEntry]) -> list[CidrEntry]:
    known_good = [entry for entry in entries if entry.level == KNOWN_GOOD]
    return sorted(known_good, key=lambda entry: (_order(entry.network), entry.ports, entry.inspection))


def _order(network: Network) -> tuple[int, int, int]:
    return network.version, int(network.network_address), network.prefixlen


def _name(trust: Trust, entry: DomainEntry, losses: list[str]) -> list[NameOpening]:
    why = _why_denied(trust, entry.pattern)
    if why is not None:
        losses.append(f"{entry.pattern} is left out: {why}")
        return []
    others = {
        port: other.pattern
        for other in trust.domains
        if other.level != KNOWN_GOOD and _is_below(other.pattern, entry.pattern)
        for port in other.ports
    }
    losses += [
        f"{entry.pattern}:{port} is left out: {others[port]} below it is not known-good, and {_NO_EXCEPTIONS}"
        for port in entry.ports
        if port in others
    ]
    ports = tuple(sorted(port for port in entry.ports if port not in others))
    return [NameOpening(entry.pattern, ports, entry.inspection)] if ports else []


def _why_denied(trust: Trust, pattern: HostPattern) -> str | None:
    """Say which known-bad entry covers a name, or some name below it; None if none does."""
    known_bad = trust.known_bad
    # Any name below stands for all of them where an entry covers them all.
    covered = known_bad.why_name(f"any.{pattern.name}" if pattern.below else pattern.name)
    if covered is not None:
        return f"{covered} is known-bad"
    if not pattern.below:
        return None
    below = sorted(str(bad) for bad in known_bad.patterns if _is_below(bad, pattern))
    for path, feed in known_bad.feeds:
        below += sorted(f"{name} in {path}" for name in feed.names if pattern.matches(name))[:1]
    if not below:
        return None
    return f"{below[0]} below it is known-bad, and {_NO_EXCEPTIONS}"


def _is_below(inner: HostPattern, outer: HostPattern) -> bool:
    """Tell whether a pattern names something that another, of all names below one, covers too."""
    return (
        outer.below
        and inner != outer
        and (outer.matches(inner.name) or (inner.below and inner.name == outer.name))
    )


def _networks(
    trust: Trust, entry: CidrEntry, bad: Iterable[Network], losses: list[str]
) -> list[NetworkOpening]:
    """Give one opening for each set of exceptions: another entry may hold on some of the ports only."""
    inside = [network for network in bad if is_inside(network, entry.network)]
    covering = next((network for network in bad if is_inside(entry.network, network)), None)
    if covering is not None:
        losses.append(f"{entry.network} is left out: {covering} is known-bad")
        return []
    if len(inside) > MAX_EXCEPTIONS:
        losses.append(
            f"{entry.network} is left out: {len(inside)} known-bad networks lie inside it, more than one rule "
            f"may except ({MAX_EXCEPTIONS})"
        )
        return []
    by_exceptions: dict[tuple[Network, ...], list[int]] = {}
    for port in sorted(entry.ports):
        others = [
            other.network
            for other in trust.cidrs
            if other.level != KNOWN_GOOD and port in other.ports and is_inside(other.network, entry.network)
        ]
        by_exceptions.setdefault(outermost([*inside, *others]), []).append(port)
    return [
        NetworkOpening(entry.network, tuple(ports), entry.inspection, exceptions)
        for exceptions, ports in by_exceptions.items()
    ]


def outermost(networks: Iterable[Network]) -> tuple[Network, ...]:
    """Leave out what lies inside another, and order the rest."""
    kept: list[Network] = []
    for network in sorted(set(networks), key=_order):
        if not kept or not is_inside(network, kept[-1]):
            kept.append(network)
    return tuple(kept)
