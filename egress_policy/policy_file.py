"""YAML to Policy: every error at once, each with its file, line, column and path.

The types of policy_document.py say which keys there are; what only the whole file can tell (that a scope named
by an agent exists, that no two entries contradict each other) is checked here.
"""

import ipaddress
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from egress_policy.destination import HostPattern, Network
from egress_policy.feed import Feed, FeedError
from egress_policy.feed_files import FeedFiles
from egress_policy.policy import (
    DEFAULT_INTENT,
    KNOWN_BAD,
    KNOWN_GOOD,
    MAX_TTL,
    UNKNOWN,
    Agent,
    CidrEntry,
    DomainEntry,
    Inspection,
    IntentRule,
    KnownBad,
    Policy,
    Proxy,
    Resolver,
    Sandbox,
    Trust,
)
from egress_policy.policy_containers import conflicts, shared_links
from egress_policy.policy_document import AgentDocument, EntryDocument, PolicyDocument, RuleDocument
from egress_policy.policy_include import Sources
from egress_policy.policy_source import Place, PolicyError, PolicyFileError
from egress_policy.policy_tests import why_unexpected
from egress_policy.unreached_entries import warn_of_unreached
from egress_policy.written_request import head_of

_LOOPBACK = (ipaddress.IPv4Address("127.0.0.1"), ipaddress.IPv6Address("::1"))


@dataclass(frozen=True, slots=True)
class Loaded:
    """A valid policy, and what in it deserves a second look.

    `version` tells it from others: the SHA-256 of the files one after the other, in hexadecimal; of one file, as
    sha256sum(1) prints it.
    `files` are the policy file and those that it includes, `scope_files` says which of them defines a scope.
    `tests` is how many tests of its own it has, `failures` which of them come out otherwise.
    """

    policy: Policy
    version: str
    warnings: tuple[PolicyError, ...]
    files: tuple[Path, ...]
    scope_files: Mapping[str, Path]
    tests: int
    failures: tuple[PolicyError, ...]


def load_policy(path: Path) -> Policy:
    """Read a policy file with what it includes and its feeds. Raises PolicyFileError."""
    return load(path).policy


def load(
    path: Path,
    today: date | None = None,
    feeds: FeedFiles | None = None,
    instead: Mapping[Path, bytes] | None = None,
) -> Loaded:
    """Read a policy file with what it includes and its feeds, and collect warnings. Raises PolicyFileError.

    With `feeds` one that cannot be read any more does not fail it: the last good version counts. With `instead` a
    file counts as if it held that.
    """
    while True:
        # A link that leads to the whole policy may be turned to another one meanwhile: never a half of each.
        before = _real(path)
        try:
            loaded = _read(path, today or datetime.now(UTC).date(), feeds or FeedFiles(), instead or {})
        except PolicyFileError:
            if _real(path) == before:
                raise
        else:
            if _real(path) == before:
                return loaded


def _real(path: Path) -> str:
    # Path.resolve() raises RuntimeError for links in a circle until Python 3.13.
    return os.path.realpath(path)


def _read(path: Path, today: date, feeds: FeedFiles, instead: Mapping[Path, bytes]) -> Loaded:
    sources = Sources(path, feeds, instead)
    document = sources.decode()
    if document is None:
        raise PolicyFileError(sources.errors)
    policy = _Builder(sources, document, today, feeds).build()
    if sources.errors:
        raise PolicyFileError(sources.errors)
    for agent, other in shared_links(tuple(policy.agents.values())):
        sources.warning(
            ("agents", agent.name, "interface"),
            f"is that of agent {other.name} too, and either could take the other's address: "
            "give each a link of its own, or name the bridge's `port` that each is behind",
        )
    _check_needed(sources, policy)
    warn_of_unreached(sources, document, policy)
    return Loaded(
        policy=policy,
        version=sources.version,
        warnings=tuple(sources.warnings),
        files=sources.files,
        scope_files={name: sources.file_of(("scopes", name)) for name in policy.scopes},
        tests=len(document.tests),
        failures=tuple(_failures(sources, document, policy)),
    )


def _failures(source: Sources, document: PolicyDocument, policy: Policy) -> Iterator[PolicyError]:
    for index, test in enumerate(document.tests):
        request: Any = test.request
        body: Any = test.body
        method, url = request
        head = head_of(method, url, test.scope, body or 0)
        why = why_unexpected(policy, test.agent, head, test.expect)
        if why is not None:
            yield source.at(("tests", index), why)


def _check_needed(source: Sources, policy: Policy) -> None:
    """Warn where known-bad covers what agents cannot do without; lists of bogons do."""
    needed = [
        *((one, "agents are redirected to it, and would be refused everything") for one in _LOOPBACK),
        *((one, "a name server of this policy") for one, _ in policy.resolver.nameservers or ()),
    ]
    for address, what in needed:
        why = policy.trust.known_bad.why_address(address)
        if why is not None:
            source.warning(("trust", KNOWN_BAD), f"{why} covers {address}: {what}")


class _Builder:
    """Turns a decoded document into a Policy, and notes what its parts say of each other that cannot be."""

    def __init__(self, source: Sources, document: PolicyDocument, today: date, feeds: FeedFiles) -> None:
        self._source = source
        self._feeds = feeds
        self._document = document
        self._today = today
        self._levels = [level for level in document.trust if level not in (KNOWN_GOOD, KNOWN_BAD)]

    def build(self) -> Policy:
        proxy = self._proxy()
        return Policy(
            proxy=proxy,
            agents=self._agents(proxy),
            scopes=self._scopes(),
            intents=self._intents(),
            trust=self._trust(),
            resolver=self._resolver(),
            operators=tuple(self._operators()),
        )

    def _proxy(self) -> Proxy:
        document = self._document.proxy
        user: Any = document.user or "egress-proxy"
        if isinstance(user, tuple) and user[0] != user[1]:
            self._source.error(("proxy", "user"), "the proxy runs as one user, not a range")
        if user in ("root", (0, 0)):
            self._source.error(
                ("proxy", "user"), "the proxy must not run as root: the kernel could not hold it"
            )
        if document.port == document.dns_port:
            self._source.error(("proxy", "dns_port"), "is the same as proxy.port")
        if document.console_port in (document.port, document.dns_port, 53, *document.ports):
            self._source.error(("proxy", "console_port"), "is another of the proxy's ports, or DNS's")
        for index, port in enumerate(document.ports):
            if port in (document.port, document.dns_port, 53):
                self._source.error(("proxy", "ports", index), f"port {port} is the proxy's own or DNS's")
        return Proxy(
            user=user if isinstance(user, str) else user[0],
            port=document.port,
            ports=tuple(dict.fromkeys(document.ports)),
            dns_port=document.dns_port,
            console_port=document.console_port,
        )

    def _resolver(self) -> Resolver:
        document = self._document.resolver
        servers: Any = document.nameservers
        if servers == []:
            self._source.error(("resolver", "nameservers"), "is empty: leave it out for the host's own")
        timeout: Any = document.timeout
        return Resolver(
            None if servers is None else tuple(servers), Resolver().timeout if timeout is None else timeout
        )

    def _agents(self, proxy: Proxy) -> dict[str, Agent]:
        agents: dict[str, Agent] = {}
        for name, document in self._document.agents.items():
            path = ("agents", name)
            self._check_identity(document, path, proxy, agents)
            for index, scope in enumerate(document.scopes):
                place = (*path, "scopes", index)
                if scope not in self._document.scopes:
                    self._source.error(place, f"there is no scope {scope} in this policy")
                elif self._source.is_of_another_team(("scopes", scope), path):
                    owner = self._source.file_of(("scopes", scope)).name
                    self._source.error(
                        place,
                        f"{scope} is {owner}'s: an agent uses scopes of its own file, or of the policy file",
                    )
            if document.default_scope is not None and document.default_scope not in document.scopes:
                self._source.error((*path, "default_scope"), "is not among the agent's scopes")
            user: Any = document.user
            source: Any = document.source
            loopback: Any = document.loopback
            agent = Agent(
                name=name,
                scopes=tuple(document.scopes),
                user=user,
                interface=document.interface,
                port=document.port,
                source=source,
                default_scope=document.default_scope,
                loopback=Agent(name, ()).loopback if loopback is None else tuple(loopback),
                may_ask=document.approval is None,
            )
            for key, why in conflicts(agent, agents.values()):
                self._source.error((*path, key), why)
            agents[name] = agent
        return agents

    def _check_identity(
        self, document: AgentDocument, path: Place, proxy: Proxy, others: Mapping[str, Agent]
    ) -> None:
        if (document.user is None) == (document.source is None and document.interface is None):
            self._source.error(path, "an agent has either `user`, or `interface` and `source`")
            return
        if document.user is not None and document.port is not None:
            self._source.error(
                (*path, "port"), "is for an agent behind a bridge, with `interface` and `source`"
            )
        if document.user is None:
            if document.source is None or document.interface is None:
                self._source.error(
                    path, "`interface` and `source` go together: an address alone could be borrowed"
                )
            if document.loopback is not None:
                self._source.error(
                    (*path, "loopback"), "is for an agent with `user`; a container has a host of its own"
                )
            return
        user: Any = document.user
        if user == "root" or _holds(user, 0):
            self._source.error((*path, "user"), "root cannot be an agent: nothing holds it to a policy")
        if user == proxy.user or (isinstance(proxy.user, int) and _holds(user, proxy.user)):
            self._source.error((*path, "user"), "is proxy.user, which may open what an agent may not")
        for other in others.values():
            if user == other.user or _overlap(user, other.user):
                self._source.error((*path, "user"), f"is also agent {other.name}'s")

    def _scopes(self) -> dict[str, Sandbox]:
        scopes: dict[str, Sandbox] = {}
        users: dict[Any, str] = {
            agent.user: name for name, agent in self._document.agents.items() if agent.user
        }
        for name, document in self._document.scopes.items():
            path = ("scopes", name)
            for index, intent in enumerate(document.intents or ()):
                if intent not in (self._document.intents or {DEFAULT_INTENT: {}}):
                    self._source.error(
                        (*path, "intents", index), f"there is no intent {intent} in this policy"
                    )
            owner: Any = document.owner_user
            max_ttl: Any = document.max_ttl
            if owner is not None and (owner in users or any(_overlap(owner, user) for user in users)):
                self._source.error(
                    (*path, "owner_user"), "is an agent's user: an agent must not approve its own requests"
                )
            scopes[name] = Sandbox(
                name=name,
                owner=document.owner,
                owner_user=None if owner is None else owner if isinstance(owner, str) else str(owner[0]),
                intents=None if document.intents is None else frozenset(document.intents),
                max_ttl=max_ttl or MAX_TTL,
                max_destinations=document.max_destinations,
            )
        return scopes

    def _operators(self) -> Iterator[str]:
        users: list[Any] = [agent.user for agent in self._document.agents.values() if agent.user]
        for index, operator in enumerate(self._document.operators):
            user: Any = operator
            if isinstance(user, tuple) and user[0] != user[1]:
                self._source.error(("operators", index), "is a range: name each operator")
            if user in users or any(_overlap(user, other) for other in users):
                self._source.error(("operators", index), "is an agent's user: an agent must not watch itself")
            yield user if isinstance(user, str) else str(user[0])

    def _intents(self) -> dict[str, dict[str, IntentRule]]:
        if self._document.intents is None:
            return {DEFAULT_INTENT: {level: IntentRule() for level in (*self._levels, UNKNOWN)}}
        return {
            intent: {level: self._rule(rule, ("intents", intent, level)) for level, rule in rules.items()}
            for intent, rules in self._document.intents.items()
        }

    def _rule(self, document: RuleDocument, path: Place) -> IntentRule:
        level = path[-1]
        if level == KNOWN_GOOD:
            self._source.error(path, "known-good needs no intent: leave it out")
        elif level == KNOWN_BAD:
            self._source.error(path, "known-bad is never reached, whatever the intent")
        elif level != UNKNOWN and level not in self._levels:
            known = ", ".join([*self._levels, UNKNOWN])
            self._source.error(path, f"there is no level of trust {level}; there are {known}")
        body: Any = document.max_body
        ttl: Any = document.ttl
        methods = None if document.methods is None else frozenset(document.methods)
        return IntentRule(
            methods=methods, max_body=body, ttl=ttl or MAX_TTL, needs_approval=document.approval is not None
        )

    def _trust(self) -> Trust:
        domains: list[DomainEntry] = []
        cidrs: list[CidrEntry] = []
        bad_patterns: list[HostPattern] = []
        bad_networks: list[Network] = []
        feeds: list[tuple[str, Feed]] = []
        taken: dict[tuple[object, int], Place] = {}
        if UNKNOWN in self._document.trust:
            self._source.error(("trust", UNKNOWN), "is what every destination is that no entry names")
        for level, entries in self._document.trust.items():
            for index, entry in enumerate(entries):
                path = ("trust", level, index)
                if not self._is_whole(entry, path, level) or self._has_expired(entry, path):
                    continue
                domain: Any = entry.domain
                cidr: Any = entry.cidr
                if level == KNOWN_BAD:
                    if domain is not None:
                        bad_patterns.append(domain)
                    elif cidr is not None:
                        bad_networks.append(cidr)
                    elif entry.feed is not None:
                        name = self._source.relative(path, entry.feed)
                        feeds.append((name, self._feed(name, path)))
                    continue
                ports = tuple(dict.fromkeys(entry.ports or (80, 443)))
                self._check_taken(taken, domain or cidr, ports, path)
                if domain is not None:
                    inspection = entry.inspection or (
                        Inspection.NAME if level == KNOWN_GOOD else Inspection.FULL
                    )
                    self._check_domain(domain, inspection, path)
                    domains.append(DomainEntry(domain, level, ports, inspection))
                else:
                    inspection = entry.inspection or (
                        Inspection.NONE if level == KNOWN_GOOD else Inspection.FULL
                    )
                    cidrs.append(CidrEntry(cidr, level, ports, inspection))
        known_bad = KnownBad(frozenset(bad_patterns), tuple(bad_networks), tuple(feeds))
        return Trust(tuple(domains), tuple(cidrs), known_bad)

    def _is_whole(self, entry: EntryDocument, path: Place, level: str) -> bool:
        kinds = [name for name in ("domain", "cidr", "feed") if getattr(entry, name) is not None]
        if len(kinds) != 1:
            self._source.error(path, f"an entry has one of domain, cidr and feed; this has {len(kinds)}")
            return False
        if kinds == ["feed"] and level != KNOWN_BAD:
            self._source.error(
                (*path, "feed"), "only known-bad has feeds: trust is given to one destination at a time"
            )
            return False
        for key in ("ports", "inspection") if level == KNOWN_BAD else ():
            if getattr(entry, key) is not None:
                self._source.error((*path, key), "known-bad is never reached, on any port: leave it out")
        if entry.inspection is Inspection.NONE and level != KNOWN_GOOD:
            self._source.error(
                (*path, "inspection"), "none is for known-good: all else passes through the proxy"
            )
        if entry.ports == []:
            self._source.error((*path, "ports"), "is empty: leave it out for 80 and 443")
        return True

    def _has_expired(self, entry: EntryDocument, path: Place) -> bool:
        expires: Any = entry.expires
        if expires is None or expires >= self._today:
            return False
        self._source.warning(
            (*path, "expires"), f"the entry expired on {expires} and does not count any more"
        )
        return True

    def _check_taken(
        self, taken: dict[tuple[object, int], Place], what: object, ports: tuple[int, ...], path: Place
    ) -> None:
        for port in ports:
            other = taken.setdefault((what, port), path)
            if other != path:
                self._source.error(
                    path, f"{what} port {port} is already {other[1]}, {self._source.line(other, path)}"
                )
                return

    def _check_domain(self, pattern: HostPattern, inspection: Inspection, path: Place) -> None:
        if inspection is not Inspection.NONE:
            return
        if pattern.below:
            self._source.error(
                (*path, "inspection"), "a wildcard cannot be none: its addresses are not known beforehand"
            )
        else:
            self._source.warning(
                path,
                f"whatever else the addresses of {pattern} serve is reachable too; `inspection: name` opens it alone",
            )

    def _feed(self, name: str, path: Place) -> Feed:
        file = self._source.path.parent / name
        try:
            return self._feeds.load(file)
        except FeedError as error:
            self._source.error_elsewhere(PolicyError(str(file), error.line, 1, "", error.message))
        except OSError as error:
            self._source.error((*path, "feed"), f"{file} cannot be read: {error.strerror}")
        except UnicodeDecodeError:
            self._source.error((*path, "feed"), f"{file} is not UTF-8")
        except ValueError:
            self._source.error((*path, "feed"), f"{name!r} cannot be the name of a file")
        return Feed()


def _holds(user: object, uid: int) -> bool:
    return isinstance(user, tuple) and user[0] <= uid <= user[1]


def _overlap(one: object, other: object) -> bool:
    return isinstance(one, tuple) and isinstance(other, tuple) and one[0] <= other[1] and other[0] <= one[1]
