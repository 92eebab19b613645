"""What one policy permits and another does not: by effect, not by text. No I/O.

Every name, network and port that either policy speaks of is tried for every agent, scope and intent, and one name
that neither knows; between these points both policies decide alike. What feeds list is compared as sets.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

from egress_policy.destination import Destination, Host, HostPattern, Network
from egress_policy.feed import Feed
from egress_policy.grant import TLS_PORT
from egress_policy.policy import (
    DEFAULT_INTENT,
    KNOWN_BAD,
    KNOWN_GOOD,
    MAX_TTL,
    UNKNOWN,
    Agent,
    Inspection,
    Policy,
)

ANYTHING_ELSE = "any other name"
_PROBE = "egress-policy-probe"
"""A label, and a name, that no policy has."""


@dataclass(frozen=True, slots=True)
class Access:
    """What may be done: `methods` None is any, `max_body` (bytes) None is no limit."""

    level: str
    methods: frozenset[str] | None = None
    max_body: int | None = None
    ttl: timedelta = MAX_TTL
    needs_approval: bool = False
    inspection: Inspection = Inspection.FULL


type Actor = tuple[str, str, str | None]
"""Agent, scope and intent; `known-good` and None for a request without a scope."""


@dataclass(frozen=True, slots=True)
class Change:
    """What actors could do at a destination before, and can do after; None is nothing."""

    destination: str
    actors: tuple[Actor, ...]
    before: Access | None
    after: Access | None


@dataclass(frozen=True, slots=True)
class FeedChange:
    """How many names and networks a feed gained and lost, with a few of the names."""

    feed: str
    added: int
    removed: int
    examples: tuple[str, ...]


def access(policy: Policy, actor: Actor, destination: Destination) -> Access | None:
    """Tell what a policy lets an actor do at a destination; None where it denies everything."""
    agent, scope, intent = actor
    level = policy.level_of(destination)
    entry = policy.trust.entry_for(destination)
    if agent not in policy.agents or level is None or level == KNOWN_BAD:
        return None
    if not isinstance(destination.host, str) and not policy.trust.names_address(
        destination.host, destination.port
    ):
        return None
    inspection = Inspection.FULL if entry is None else entry.inspection
    is_direct = level == KNOWN_GOOD and inspection is Inspection.NONE
    is_further = destination.port not in policy.proxy.ports and not is_direct
    if is_further and not _has_a_grant(policy, actor, destination):
        return None
    if level == KNOWN_GOOD:
        # With a scope or without.
        return Access(level, inspection=inspection)
    sandbox = policy.scopes.get(scope)
    if sandbox is None or scope not in policy.agents[agent].scopes:
        return None
    if sandbox.intents is not None and intent not in sandbox.intents:
        return None
    rule = policy.intents.get(intent or "", {}).get(level)
    if rule is None:
        return None
    if policy.is_inspected_by_name(destination) and destination.port == TLS_PORT:
        # Neither a field nor what is sent is seen.
        is_default = (scope, intent) == (policy.agents[agent].default_scope, DEFAULT_INTENT)
        if not is_default or rule.is_limited:
            return None
    if is_further:
        if rule.is_limited:
            return None
        inspection = Inspection.NONE
    ttl = min(rule.ttl, sandbox.max_ttl)
    return Access(level, rule.methods, rule.max_body, ttl, rule.needs_approval, inspection)


def _has_a_grant(policy: Policy, actor: Actor, destination: Destination) -> bool:
    """Tell whether a further port of a destination can be had: with a grant for its name, on a port of the proxy's."""
    return (
        isinstance(destination.host, str)
        and destination.port not in policy.own_ports
        and any(access(policy, actor, Destination(destination.host, port)) for port in policy.proxy.ports)
    )


def changes(old: Policy, new: Policy) -> list[Change]:
    """List what changes, in the order of destinations; actors for whom it is the same are together."""
    found: list[Change] = []
    actors = sorted({*_actors(old), *_actors(new)}, key=lambda actor: (*actor[:2], actor[2] or ""))
    for shown, destination in _destinations(old, new):
        by_effect: dict[tuple[Access | None, Access | None], list[Actor]] = {}
        for actor in actors:
            before, after = access(old, actor, destination), access(new, actor, destination)
            if before != after:
                by_effect.setdefault((before, after), []).append(actor)
        found.extend(Change(shown, tuple(same), before, after) for (before, after), same in by_effect.items())
    return found


def no_longer_held(old: Policy, new: Policy) -> list[tuple[str, str]]:
    """List whom only the old policy holds: the agent's name, and its user, or link and source.

    Nothing denies them anything any more, which no change of a destination shows.
    """
    held = {(agent.user, agent.interface, agent.source) for agent in new.agents.values()}
    return [
        (agent.name, _identity(agent))
        for agent in old.agents.values()
        if (agent.user, agent.interface, agent.source) not in held
    ]


def _identity(agent: Agent) -> str:
    if agent.user is None:
        return f"{agent.source} on {agent.interface}"
    return agent.user if isinstance(agent.user, str) else "-".join(map(str, dict.fromkeys(agent.user)))


def feed_changes(old: Policy, new: Policy) -> list[FeedChange]:
    """List the feeds that gained or lost names or networks."""
    before, after = dict(old.trust.known_bad.feeds), dict(new.trust.known_bad.feeds)
    found = []
    for name in sorted({*before, *after}):
        was = _listed(before, name)
        now = _listed(after, name)
        if was != now:
            examples = tuple(sorted(map(str, was ^ now))[:3])
            found.append(FeedChange(name, len(now - was), len(was - now), examples))
    return found


def _listed(feeds: Mapping[str, Feed], name: str) -> set[object]:
    feed = feeds.get(name)
    return set() if feed is None else {*feed.names, *feed.networks()}


def _actors(policy: Policy) -> Iterator[Actor]:
    for agent in policy.agents.values():
        yield agent.name, KNOWN_GOOD, None
        yield from ((agent.name, scope, intent) for scope in agent.scopes for intent in policy.intents)


def _destinations(old: Policy, new: Policy) -> Iterator[tuple[str, Destination]]:
    patterns: set[HostPattern] = set()
    networks: set[Network] = set()
    ports: set[int] = set()
    for policy in (old, new):
        trust = policy.trust
        patterns |= {entry.pattern for entry in trust.domains} | trust.known_bad.patterns
        networks |= {entry.network for entry in trust.cidrs} | {*trust.known_bad.networks}
        ports |= {port for entry in trust.domains for port in entry.ports}
        ports |= {port for entry in trust.cidrs for port in entry.ports}
        ports |= {*policy.proxy.ports}
    hosts: list[tuple[str, Host]] = [
        (str(pattern), f"{_PROBE}.{pattern.name}" if pattern.below else pattern.name)
        for pattern in sorted(patterns, key=str)
    ]
    hosts += [(str(network), host) for network in _sorted(networks) for host in _inside(network, networks)]
    hosts.append((ANYTHING_ELSE, f"{_PROBE}.{UNKNOWN}"))
    for shown, host in hosts:
        yield from ((f"{shown} port {port}", Destination(host, port)) for port in sorted(ports))


def _sorted(networks: Iterable[Network]) -> list[Network]:
    return sorted(networks, key=lambda one: (one.version, int(one.network_address), one.prefixlen))


def _inside(network: Network, others: Iterable[Network]) -> Iterator[Host]:
    """Yield an address of a network that no smaller one of the others covers, if there is one."""
    smaller = [
        one
        for one in others
        if one.version == network.version
        and one.prefixlen > network.prefixlen
        and one.network_address in network
    ]
    candidates = [network.network_address, network.broadcast_address]
    candidates += [
        one.broadcast_address + 1 for one in smaller if one.broadcast_address != network.broadcast_address
    ]
    yield from [one for one in candidates if not any(one in other for other in smaller)][:1]
