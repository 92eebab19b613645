"""The only speaker of nftables: loads the ruleset, inserts, deletes and lists the elements of timed sets.

The static ruleset is `egress.nft`, a text. What the policy fills in is put around it, and nft(8) loads all of it
in one transaction. Elements that change while the proxy runs go over netlink, each transaction acknowledged.
"""

import asyncio
import errno
import ipaddress
import json
import os
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from socket import AF_INET, AF_INET6, inet_ntop
from typing import Any, Literal

from pyroute2 import AsyncNFTSocket
from pyroute2.netlink.exceptions import NetlinkError

from egress_policy.destination import Address, Network
from egress_policy.element_messages import (
    SETS_OF_WAYS,
    TABLE,
    Message,
    anew,
    gone,
    members_of,
    messages_of_way,
    transaction,
)
from egress_policy.grant import Way
from egress_policy.policy import Range

_FAMILIES = ("inet", "bridge")
"""The families that have a table of ours."""
DEVELOPER_SANDBOX = "developer-sandbox"
KNOWN_GOOD_DOMAINS = "known-good-domains"

MAX_TIMEOUT = 24 * 3600.0

_NAT_PRIORITY = -100
"""Of our chains that redirect."""
_LIST_RULES = ("--stateless", "--terse", "list", "table", "inet", TABLE)
_RULESET = Path(__file__).with_name("egress.nft")
_BRIDGES = "# --- Bridges:"
_LINK_LOCAL = ipaddress.IPv6Network("fe80::/10")
_PATIENCE = 3.0
# 3,000 elements in one batch make pyroute2 raise struct.error; 1,000 work.
_BATCH = 250

type Socket = tuple[Address, int]


class FirewallError(Exception):
    """The kernel or nft(8) did not do what was asked: the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What the policy fills into the static ruleset. Ranges include both ends.

    `loopback` pairs a range of uids with a range of local ports; `agent_links` the link that an agent's packets
    come from with its source, `bridge_ports` the port of a bridge that it is behind with its source; `known_good`
    is what the kernel passes by itself, on one port each.
    """

    proxy_uid: int
    proxy_port: int
    dns_port: int
    proxy_ports: tuple[int, ...]
    agent_uids: tuple[Range, ...] = ()
    agent_ports: tuple[Range, ...] = ()
    agent_links: tuple[tuple[str, Network], ...] = ()
    bridge_ports: tuple[tuple[str, Network], ...] = ()
    loopback: tuple[tuple[Range, Range], ...] = ()
    known_good: tuple[tuple[Network, int], ...] = ()
    known_bad: tuple[Network, ...] = ()
    nameservers: tuple[Socket, ...] = ()
    paused_uids: tuple[Range, ...] = ()
    paused_sources: tuple[Network, ...] = ()
    console_port: int | None = None


@dataclass(frozen=True, slots=True)
class Element:
    """An element of a timed set, with the seconds that it has left."""

    address: Address
    port: int
    comment: str
    remaining: float


def compose(ruleset: Ruleset) -> str:
    """Compose the text that nft(8) loads: definitions, the static ruleset, the static sets' elements.

    What is for bridges is left out where no agent is behind a port: a kernel may lack it.
    """
    ports = ", ".join(str(port) for port in ruleset.proxy_ports)
    definitions = (
        f"define proxy_uid = {ruleset.proxy_uid}\n"
        f"define proxy_port = {ruleset.proxy_port}\n"
        f"define dns_port = {ruleset.dns_port}\n"
        f"define proxy_ports = {{ {ports} }}\n"
    )
    static = _RULESET.read_text()
    if not ruleset.bridge_ports:
        static, _, _ = static.partition(_BRIDGES)
    elements = (*_elements(ruleset), *_bridge_elements(ruleset.bridge_ports))
    return definitions + static + "".join(elements)


def apply(ruleset: Ruleset) -> None:
    """Load the ruleset and the static sets in one transaction; timed elements stay. Raises FirewallError."""
    text = compose(ruleset)
    if not ruleset.bridge_ports and is_loaded("bridge"):
        text += f"delete table bridge {TABLE}\n"
    _nft(["-f", "-"], text)


def pause(uids: Sequence[Range], sources: Sequence[Network]) -> None:
    """Let the kernel refuse all that these send, and nobody else's for a pause's sake. Raises FirewallError."""
    names = ("paused-uids", "paused-sources", "paused-sources-ipv6")
    flushed = (f"flush set inet {TABLE} {name}\n" for name in names)
    _nft(["-f", "-"], "".join([*flushed, *_paused(uids, sources)]))


def delete_now(name: str, sockets: Sequence[Socket]) -> None:
    """Delete elements of a timed set, from where no event loop runs; one that is gone is not missed.

    Raises FirewallError.
    """
    for set_name, members in (family for batch in _batches(name, sockets) for family in batch):
        listed = ", ".join(f"{address} . {port}" for address, port in members)
        # Added first: deleting what has just expired would fail.
        verbs = (f"{verb} element inet {TABLE} {set_name} {{ {listed} }}\n" for verb in ("add", "delete"))
        _nft(["-f", "-"], "".join(verbs))


def delete_ways_now(unwanted: Callable[[str], bool]) -> None:
    """Delete what leads to raw TCP, from where no event loop runs: what has an unwanted comment. Raises FirewallError."""
    for name, kind in SETS_OF_WAYS.items():
        listed = json.loads(_nft(["--json", "list", kind, "inet", TABLE, name]))
        found = [one for entry in listed["nftables"] for one in entry.get(kind, {}).get("elem", ())]
        # Added first, as in delete_now().
        text = "".join(
            f"{verb} element inet {TABLE} {name} {{ {_written(one)} }}\n"
            for one in found
            if unwanted(_key_of(one).get("comment", ""))
            for verb in ("add", "delete")
        )
        if text:
            _nft(["-f", "-"], text)


def is_loaded(family: Literal["inet", "bridge"] = "inet") -> bool:
    """Tell whether the ruleset's table of a family is in the kernel. Raises FirewallError where nobody can tell."""
    listed = json.loads(_nft(["--json", "list", "tables", family]))
    return any(one.get("table", {}).get("name") == TABLE for one in listed["nftables"])


def list_rules() -> str:
    """List our table as nft(8) writes it, without elements and counters. Raises FirewallError."""
    return _nft([*_LIST_RULES])


def rules_of(ruleset: Ruleset) -> str:
    """Say what list_rules() lists once a ruleset is loaded, by loading it into a network namespace of its own.

    Needs root. Raises FirewallError: the kernel lacks something that the ruleset needs.
    """
    script = 'nft=$1; shift; "$nft" -f - && exec "$nft" "$@"'
    command = ["unshare", "--net", "sh", "-c", script, "sh", _nft_program(), *_LIST_RULES]
    done = subprocess.run(command, input=compose(ruleset), capture_output=True, text=True, check=False)
    if done.returncode:
        raise FirewallError(done.stderr.strip()[:500] or "nft(8) failed")
    return done.stdout


def nat_chains_before_ours() -> list[str]:
    """List the chains of other tables that translate packets before ours do. Raises FirewallError."""
    chains = [
        one["chain"] for one in json.loads(_nft(["--json", "list", "chains"]))["nftables"] if "chain" in one
    ]
    return [
        f"chain {chain['family']} {chain['table']} {chain['name']}"
        for chain in chains
        if chain["table"] != TABLE
        and chain.get("type") == "nat"
        and chain["hook"] in {"output", "prerouting"}
        if chain["prio"] < _NAT_PRIORITY
    ]


def remove_tables() -> list[str]:
    """Take our tables out of the kernel, and return what they were. Raises FirewallError."""
    listed = json.loads(_nft(["--json", "list", "tables"]))["nftables"]
    there = {(one["table"]["family"], one["table"]["name"]) for one in listed if "table" in one}
    found = [f"table {family} {TABLE}" for family in _FAMILIES if (family, TABLE) in there]
    _nft(["-f", "-"], "".join(f"delete {table}\n" for table in found))
    return found


def holds_link(link: str) -> bool:
    """Tell whether what comes from a link is held to the ruleset in the kernel. Raises FirewallError."""
    return link in _members("agent-links")


def holds_uid(uid: int) -> bool:
    """Tell whether a user of this host is held to the ruleset in the kernel. Raises FirewallError."""
    members = (one["range"] if isinstance(one, dict) else (one, one) for one in _members("agent-uids"))
    return any(low <= uid <= high for low, high in members)


def list_elements(name: str) -> list[Element]:
    """List a timed set's elements, of both families. Raises FirewallError."""
    return [*_list_one(name), *_list_one(f"{name}-ipv6")]


class Elements:
    """Inserts and deletes elements of timed sets; each call is one transaction, acknowledged before it returns.

    A set's name is that of its IPv4 half; an IPv6 address goes into the set of the same name with `-ipv6`.
    """

    def __init__(self) -> None:
        self._socket: AsyncNFTSocket | None = None
        self._turn = asyncio.Lock()

    async def insert(
        self,
        name: str,
        sockets: Sequence[Socket],
        timeout: float,  # noqa: ASYNC109 - an element's, in nftables' own word; not this call's
        comment: str,
    ) -> None:
        """Insert elements with a timeout (seconds, at most 24 h), or give them anew to elements already there.

        Adding an element again with the same timeout would not refresh it; add, delete and add in one
        transaction does, and no packet sees it missing. Raises FirewallError, and ValueError for the timeout.
        """
        if not 0 < timeout <= MAX_TIMEOUT:
            raise ValueError(f"a timeout of {timeout} seconds is not between 0 and 24 hours")
        for batch in _batches(name, sockets):
            await self._transact(
                [one for part in batch for one in anew(*members_of(*part), timeout, comment)]
            )

    async def delete(self, name: str, sockets: Sequence[Socket]) -> None:
        """Delete elements; one that is not there is not missed. Raises FirewallError."""
        for batch in _batches(name, sockets):
            await self._transact([one for part in batch for one in gone(*members_of(*part))])

    async def lead(
        self,
        way: Way,
        left: float | None,
        closed_left: float | None,
        comment: str,
        replaces: Address | None = None,
    ) -> None:
        """Open a way for so many seconds (at most 24 h), or close it with None, in one transaction.

        `closed_left` is for the sockets of anybody on the same way that were closed. New connections are led to its
        address in place of `replaces`, which may be the same; without that, only those that it has may go on.
        Raises FirewallError.
        """
        await self._transact(messages_of_way(way, left, closed_left, comment, replaces))

    async def _transact(self, messages: Sequence[Message]) -> None:
        # Whoever waits may be cancelled (his client left); the transaction goes on to its end. pyroute2 does not
        # bear being cancelled: interrupted while it opens its socket it opens another, and fails in closing both.
        await asyncio.shield(asyncio.ensure_future(self._in_turn(messages)))

    async def _in_turn(self, messages: Sequence[Message]) -> None:
        async with self._turn:
            try:
                # Without CAP_NET_ADMIN pyroute2 waits for ever for an answer that it does not recognise.
                async with asyncio.timeout(_PATIENCE):
                    await self._send(messages)
            except (OSError, NetlinkError) as error:
                self._close()
                raise FirewallError(_why(error)) from error

    async def _send(self, messages: Sequence[Message]) -> None:
        if self._socket is None:
            self._socket = AsyncNFTSocket()
            await self._socket.setup_endpoint()
        async for _ in self._socket.nlm_request_batch(transaction(messages)):
            pass

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None


def _batches(name: str, sockets: Sequence[Socket]) -> Iterator[list[tuple[str, list[Socket]]]]:
    """Split into transactions, each with its set for IPv4 and that for IPv6."""
    for start in range(0, len(sockets), _BATCH):
        families: dict[str, list[Socket]] = defaultdict(list)
        for address, port in sockets[start : start + _BATCH]:
            families[name if address.version == 4 else f"{name}-ipv6"].append((address, port))
        yield list(families.items())


def _why(error: Exception) -> str:
    code = error.code if isinstance(error, NetlinkError) else getattr(error, "errno", None)
    match code:
        case errno.EPERM:
            return "the kernel refused to change the nftables set: this process needs CAP_NET_ADMIN"
        case errno.ENOENT:
            return "the nftables set is not in the kernel: run `egress-policy apply`"
        case errno.ENFILE | errno.ENOSPC:
            return "the nftables set is full"
    if isinstance(error, TimeoutError):
        return f"the kernel did not acknowledge the change within {_PATIENCE:.0f} seconds: is CAP_NET_ADMIN missing?"
    return f"the kernel did not take the change: {error}"


def _nft(arguments: Sequence[str], text: str | None = None) -> str:
    done = subprocess.run(
        [_nft_program(), *arguments], input=text, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return done.stdout
    complaint = done.stderr.strip()
    if "Operation not permitted" in complaint or "must be root" in complaint:
        raise FirewallError("nft(8) may not change the firewall: run as root, or with CAP_NET_ADMIN")
    if "Protocol not supported" in complaint or "cache initialization failed" in complaint:
        raise FirewallError(
            f"the kernel has no nftables: load the module nf_tables ({complaint.splitlines()[0]})"
        )
    if "No such file or directory" in complaint:
        raise FirewallError("the ruleset is not in the kernel: run `egress-policy apply`")
    raise FirewallError(f"nft(8) did not take the ruleset; nothing was changed:\n{complaint[:2000]}")


def _nft_program() -> str:
    program = shutil.which("nft", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise FirewallError("nft(8) is not installed: install the package `nftables`")
    return program


def _members(name: str) -> list[Any]:
    listed = json.loads(_nft(["--json", "list", "set", "inet", TABLE, name]))
    return [member for entry in listed["nftables"] for member in entry.get("set", {}).get("elem", ())]


def _list_one(name: str) -> Iterator[Element]:
    listed = json.loads(_nft(["--json", "list", "set", "inet", TABLE, name]))
    for entry in listed["nftables"]:
        for one in entry.get("set", {}).get("elem", ()):
            # One that an administrator added by hand, without timeout and comment, is listed as its bare key.
            element = one.get("elem", {"val": one})
            address, port = element["val"]["concat"]
            yield Element(
                ipaddress.ip_address(address),
                int(port),
                element.get("comment", ""),
                float(element.get("expires", 0)),
            )


def _key_of(listed: Any) -> dict[str, Any]:  # noqa: ANN401 - nft's JSON
    """Find an element's own part in what nft lists: a map's is listed with its value."""
    key = listed[0] if isinstance(listed, list) else listed
    found: dict[str, Any] = key.get("elem", {"val": key})
    return found


def _written(listed: Any) -> str:  # noqa: ANN401 - nft's JSON
    key = " . ".join(map(str, _key_of(listed)["val"]["concat"]))
    return f"{key} : {listed[1]}" if isinstance(listed, list) else key


def _elements(ruleset: Ruleset) -> Iterator[str]:
    # nft(8) refuses entries that overlap, in these sets as in those of addresses.
    yield from _add("agent-uids", (_range(uids) for uids in _merged(ruleset.agent_uids)))
    yield from _paused(ruleset.paused_uids, ruleset.paused_sources)
    yield from _add("console-ports", () if ruleset.console_port is None else (str(ruleset.console_port),))
    ports_of: dict[Range, list[Range]] = defaultdict(list)
    for uids, ports in ruleset.loopback:
        ports_of[uids].append(ports)
    yield from _add(
        "agent-loopback",
        (f"{_range(uids)} . {_range(one)}" for uids, ports in ports_of.items() for one in _merged(ports)),
    )
    yield from _add("agent-ports", (_range(ports) for ports in _merged(ruleset.agent_ports)))
    # A port too: what is not in its bridge yet, or no more, is refused, and not let through.
    links = {link for link, _ in (*ruleset.agent_links, *ruleset.bridge_ports)}
    yield from _add("agent-links", (f'"{link}"' for link in sorted(links)))
    yield from _sources("inet", ruleset.agent_links)
    for suffix, version in (("", 4), ("-ipv6", 6)):
        nameservers = [one for one in ruleset.nameservers if one[0].version == version]
        yield from _add(f"nameservers{suffix}", (f"{address} . {port}" for address, port in nameservers))
    for suffix, version in (("-ipv4", 4), ("-ipv6", 6)):
        good: dict[int, list[Network]] = defaultdict(list)
        for network, port in ruleset.known_good:
            if network.version == version:
                good[port].append(network)
        yield from _add(
            f"known-good{suffix}",
            (f"{span} . {port}" for port, networks in good.items() for span in _spans(networks)),
        )
        bad = (network for network in ruleset.known_bad if network.version == version)
        yield from _add(f"known-bad{suffix}", _spans(bad))


def _bridge_elements(ports: Sequence[tuple[str, Network]]) -> Iterator[str]:
    spans: dict[str, list[Range]] = {port: [_span(_LINK_LOCAL)] for port, _ in ports}
    yield from _add("agent-links", (f'"{port}"' for port in sorted(spans)), "bridge")
    yield from _sources("bridge", ports)
    for port, network in ports:
        if network.version == 6:
            spans[port].append(_span(network))
    # Of a key that is raw bytes nft(8) takes numbers alone.
    yield from _add(
        "agent-link-targets",
        (f'"{port}" . {low:#x}-{high:#x}' for port, ends in spans.items() for low, high in _merged(ends)),
        "bridge",
    )


def _sources(family: str, links: Sequence[tuple[str, Network]]) -> Iterator[str]:
    for suffix, version in (("", 4), ("-ipv6", 6)):
        sources: dict[str, list[Network]] = defaultdict(list)
        for link, network in links:
            if network.version == version:
                sources[link].append(network)
        every = _spans(one for networks in sources.values() for one in networks)
        yield from _add(f"agent-sources{suffix}", every, family)
        pairs = (f'"{link}" . {span}' for link, networks in sources.items() for span in _spans(networks))
        yield from _add(f"agent-link-sources{suffix}", pairs, family)


def _paused(uids: Sequence[Range], sources: Sequence[Network]) -> Iterator[str]:
    yield from _add("paused-uids", (_range(one) for one in _merged(uids)))
    for suffix, version in (("", 4), ("-ipv6", 6)):
        yield from _add(f"paused-sources{suffix}", _spans(one for one in sources if one.version == version))


def _add(name: str, elements: Iterable[str], family: str = "inet") -> Iterator[str]:
    listed = ",\n".join(elements)
    if listed:
        yield f"add element {family} {TABLE} {name} {{\n{listed}\n}}\n"


def _spans(networks: Iterable[Network]) -> Iterator[str]:
    """Write networks of one family as spans of addresses.

    ipaddress.collapse_addresses() would take three seconds for a feed of 100,000; this takes a third of one.
    """
    ends: list[Range] = []
    family = AF_INET
    for network in networks:
        ends.append(_span(network))
        family = AF_INET if network.version == 4 else AF_INET6
    length = 4 if family == AF_INET else 16
    for low, high in _merged(ends):
        first_text = inet_ntop(family, low.to_bytes(length))
        yield first_text if low == high else f"{first_text}-{inet_ntop(family, high.to_bytes(length))}"


def _span(network: Network) -> Range:
    first = int(network.network_address)
    return first, first | ((1 << network.max_prefixlen - network.prefixlen) - 1)


def _merged(ranges: Iterable[Range]) -> Iterator[Range]:
    """Merge ranges that overlap or touch."""
    low, high = 0, -2
    for start, end in sorted(ranges):
        if start <= high + 1:
            high = max(high, end)
            continue
        if high >= low:
            yield low, high
        low, high = start, end
    if high >= low:
        yield low, high


def _range(ends: Range) -> str:
    low, high = ends
    return str(low) if low == high else f"{low}-{high}"
