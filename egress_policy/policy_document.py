"""The policy file's shape: which keys there are, of which type. The reader and the JSON Schema both follow it.

Leaves that are more than a string or number have a type of their own here, with the function that reads one and
the words that describe it to whoever wrote something else.
"""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Annotated, Literal

import msgspec

from egress_policy.destination import Address, HostPattern, InvalidHostError, Network, parse_pattern
from egress_policy.policy import Inspection, Range
from egress_policy.policy_tests import OUTCOMES
from egress_policy.written_request import head_of

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES = {"": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}


class Duration(str):
    """`90s`, `15m`, `24h`, `7d`."""

    __slots__ = ()


class Size(str):
    """`0`, `4KiB`, `10MiB`."""

    __slots__ = ()


class User(str):
    """A login name, a uid, or a range of uids."""

    __slots__ = ()


class Ports(str):
    """A port or a range of ports."""

    __slots__ = ()


class Nameserver(str):
    """`ADDRESS` or `ADDRESS:PORT`."""

    __slots__ = ()


class Cidr(str):
    """An address or network."""

    __slots__ = ()


class Domain(str):
    """A name, or `*.name`."""

    __slots__ = ()


class Method(str):
    """An HTTP method."""

    __slots__ = ()


class Day(str):
    """A date."""

    __slots__ = ()


class Files(str):
    """Files below the policy file's folder: `teams/*.yaml`."""

    __slots__ = ()


class Request(str):
    """A method and a URL."""

    __slots__ = ()


class Outcome(str):
    """What the decision comes to."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Leaf:
    """How one type of leaf is read (from YAML's string or integer), and described."""

    parse: Callable[[str], object]
    expected: str
    schema: dict[str, object]


def parse_duration(text: str) -> timedelta:
    """Read a duration. Raises ValueError."""
    found = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if found is None or not int(found[1]):
        raise ValueError
    return timedelta(seconds=int(found[1]) * _SECONDS[found[2]])


def parse_size(text: str) -> int:
    """Read a size in bytes. Raises ValueError."""
    found = re.fullmatch(r"([0-9]{1,12})(KiB|MiB|GiB)?", text)
    if found is None or (found[2] is None and found[1] != "0"):
        raise ValueError
    return int(found[1]) * _BYTES[found[2] or ""]


def parse_user(text: str) -> str | Range:
    """Read a user: a login name, or a range of uids (one uid is a range of itself). Raises ValueError."""
    if found := re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", text):
        low, high = int(found[1]), int(found[2] or found[1])
        if low > high or high >= 2**32 - 1:
            raise ValueError
        return low, high
    # useradd(8)'s CAVEATS, and the upper case that some directories have.
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?", text):
        raise ValueError
    return text


def parse_ports(text: str) -> Range:
    """Read a port or a range of ports. Raises ValueError."""
    found = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", text)
    if found is None:
        raise ValueError
    low, high = int(found[1]), int(found[2] or found[1])
    if not 0 < low <= high < 65536:
        raise ValueError
    return low, high


def parse_nameserver(text: str) -> tuple[Address, int]:
    """Read a name server's address, with port 53 where none is given. Raises ValueError."""
    found = re.fullmatch(
        r"\[(?P<six>[^\]]+)\]:(?P<port6>[0-9]{1,5})|(?P<four>[0-9.]+):(?P<port4>[0-9]{1,5})", text
    )
    if found is None:
        return ipaddress.ip_address(text), 53
    port = int(found["port6"] or found["port4"])
    if not 0 < port < 65536:
        raise ValueError
    return ipaddress.ip_address(found["six"] or found["four"]), port


def parse_cidr(text: str) -> Network:
    """Read an address or network. Raises ValueError, also for bits set beyond the prefix."""
    network = ipaddress.ip_network(text, strict=False)
    if "/" in text and ipaddress.ip_address(text.partition("/")[0]) != network.network_address:
        raise ValueError(f"{text} has bits set beyond its prefix: did you mean {network}?")
    return network


def parse_domain(text: str) -> HostPattern:
    """Read a name or `*.name`, in Unicode or ASCII. Raises ValueError."""
    try:
        return parse_pattern(text)
    except InvalidHostError as error:
        raise ValueError(str(error)) from None


def parse_method(text: str) -> str:
    """Read a method. Raises ValueError."""
    if not re.fullmatch(r"[A-Z]{1,20}", text):
        raise ValueError
    return text


def parse_files(text: str) -> str:
    """Read a file's path, or a pattern with a wildcard in the file's name. Raises ValueError."""
    folders, _, name = text.rpartition("/")
    parts = text.split("/")
    if not name or "" in parts or "." in parts or ".." in parts or re.search(r"[*?\[\]\x00]", folders):
        raise ValueError
    return text


def parse_request(text: str) -> tuple[str, str]:
    """Read a method and a URL. Raises ValueError."""
    method, _, url = text.partition(" ")
    head_of(parse_method(method), url)
    return method, url


def parse_outcome(text: str) -> str:
    """Read `permit` or the code of a denial that a policy alone can come to. Raises ValueError."""
    if text not in OUTCOMES:
        raise ValueError
    return text


LEAVES: dict[type, Leaf] = {
    Duration: Leaf(
        parse_duration, "a duration such as 90s, 15m, 24h or 7d", {"pattern": "^[0-9]{1,6}[smhd]$"}
    ),
    Size: Leaf(
        parse_size,
        "a size such as 0, 4KiB or 10MiB",
        {"type": ["string", "integer"], "pattern": "^([0-9]+[KMG]iB|0)$"},
    ),
    User: Leaf(
        parse_user,
        "a login name, a uid, or a range of uids such as 2001-2010",
        {"type": ["string", "integer"]},
    ),
    Ports: Leaf(
        parse_ports,
        "a port or a range of ports such as 1024-65535",
        {"type": ["string", "integer"], "pattern": "^[0-9]+(-[0-9]+)?$"},
    ),
    Nameserver: Leaf(
        parse_nameserver, "ADDRESS or ADDRESS:PORT, such as 192.0.2.53 or [2001:db8::53]:53", {}
    ),
    Cidr: Leaf(parse_cidr, "an address or network such as 192.0.2.0/24", {}),
    Domain: Leaf(parse_domain, "a name such as docs.example, or *.docs.example for all below it", {}),
    Method: Leaf(parse_method, "a method in capitals, such as GET", {"pattern": "^[A-Z]{1,20}$"}),
    Day: Leaf(date.fromisoformat, "a date such as 2026-12-31", {"format": "date"}),
    Files: Leaf(
        parse_files,
        "files below the policy's folder, such as teams/*.yaml",
        {"pattern": r"^([^/*?\[\]]+/)*[^/]+$"},
    ),
    Request: Leaf(
        parse_request,
        "a method and a URL, such as GET https://docs.example/",
        {"pattern": "^[A-Z]{1,20} https?://"},
    ),
    Outcome: Leaf(parse_outcome, f"one of {', '.join(OUTCOMES)}", {"enum": list(OUTCOMES)}),
}

Port = Annotated[int, msgspec.Meta(ge=1, le=65535, description="a TCP port, 1 to 65535")]
Name = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$",
        description="a name of lower-case letters, digits, '.', '_', '-'",
    ),
]
ScopeName = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^sandbox-[a-z0-9][a-z0-9._-]{0,62}$", description="a scope named sandbox-<developer>"
    ),
]


class ProxyDocument(msgspec.Struct, forbid_unknown_fields=True):
    """Where the proxy listens, and as whom it runs."""

    user: User | None = None
    port: Port = 8080
    ports: list[Port] = msgspec.field(default_factory=lambda: [80, 443])
    dns_port: Port = 8053
    console_port: Port | None = None


class ResolverDocument(msgspec.Struct, forbid_unknown_fields=True):
    """Which name servers the proxy asks; without any, the host's own."""

    nameservers: list[Nameserver] | None = None
    timeout: Duration | None = None


class AgentDocument(msgspec.Struct, forbid_unknown_fields=True):
    """Who is subject to the policy: a user of this host, or a source address behind a link."""

    scopes: list[ScopeName]
    user: User | None = None
    interface: (
        Annotated[str, msgspec.Meta(min_length=1, max_length=15, description="a link's name")] | None
    ) = None
    port: (
        Annotated[
            str,
            msgspec.Meta(
                min_length=1, max_length=15, description="where the link is a bridge: its port's name"
            ),
        ]
        | None
    ) = None
    source: Cidr | None = None
    default_scope: ScopeName | None = None
    loopback: list[Ports] | None = None
    approval: (
        Annotated[Literal["never"], msgspec.Meta(description="never, for an agent that nobody watches")]
        | None
    ) = None


class ScopeDocument(msgspec.Struct, forbid_unknown_fields=True):
    """A developer's sandbox."""

    owner: str
    owner_user: User | None = None
    intents: list[Name] | None = None
    max_ttl: Duration | None = None
    max_destinations: Annotated[int, msgspec.Meta(ge=1, description="a number of live grants, 1 or more")] = (
        100
    )


class EntryDocument(msgspec.Struct, forbid_unknown_fields=True):
    """One of `domain`, `cidr` and (known-bad alone) `feed`, at a level of trust."""

    domain: Domain | None = None
    cidr: Cidr | None = None
    feed: str | None = None
    ports: list[Port] | None = None
    inspection: Inspection | None = None
    comment: str | None = None
    review: str | None = None
    expires: Day | None = None


class RuleDocument(msgspec.Struct, forbid_unknown_fields=True):
    """What an intent may do at one level of trust."""

    methods: list[Method] | None = None
    max_body: Size | None = None
    ttl: Duration | None = None
    approval: (
        Annotated[Literal["required"], msgspec.Meta(description="required, where a person decides")] | None
    ) = None


class TestDocument(msgspec.Struct, forbid_unknown_fields=True):
    """An agent, a request and what must come of it: `check` sees to that."""

    agent: Name
    request: Request
    expect: Outcome
    scope: str | None = None
    body: Size | None = None


Version = Annotated[int, msgspec.Meta(ge=1, le=1, description="1, the version of this format")]


class TeamDocument(msgspec.Struct, forbid_unknown_fields=True):
    """A file that the policy file includes: what a team may say."""

    version: Version = 1
    agents: dict[Name, AgentDocument] = {}
    scopes: dict[ScopeName, ScopeDocument] = {}
    trust: dict[Name, list[EntryDocument]] = {}
    tests: list[TestDocument] = []


class PolicyDocument(msgspec.Struct, forbid_unknown_fields=True):
    """The policy file, version 1."""

    version: Version
    include: list[Files] = []
    proxy: ProxyDocument = msgspec.field(default_factory=ProxyDocument)
    resolver: ResolverDocument = msgspec.field(default_factory=ResolverDocument)
    agents: dict[Name, AgentDocument] = {}
    scopes: dict[ScopeName, ScopeDocument] = {}
    trust: dict[Name, list[EntryDocument]] = {}
    intents: dict[Name, dict[Name, RuleDocument]] | None = None
    operators: list[User] = []
    tests: list[TestDocument] = []
