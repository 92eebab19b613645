"""The policy file: what it means, and every error in its place."""

import ipaddress
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_policy.destination import HostPattern
from egress_policy.policy import CidrEntry, DomainEntry, Inspection, IntentRule
from egress_policy.policy_file import load, load_policy
from egress_policy.policy_source import PolicyFileError

EXAMPLE = """\
version: 1
proxy:
  user: egress-proxy
  port: 8080
  ports: [80, 443]
  dns_port: 8053
resolver:
  nameservers: [192.0.2.53, "[2001:db8::53]:5353"]
  timeout: 3s
agents:
  alice-claude:
    user: agent-alice
    scopes: [sandbox-alice]
    loopback: [1024-65535, 631]
  pool:
    user: 2001-2010
    scopes: [sandbox-alice]
  bob-container:
    interface: br-agents
    source: 10.88.0.11
    scopes: [sandbox-bob]
    default_scope: sandbox-bob
scopes:
  sandbox-alice:
    owner: alice@example.com
    owner_user: alice
    intents: [default, develop]
    max_ttl: 12h
    max_destinations: 50
  sandbox-bob: {owner: bob@example.com}
trust:
  known-good:
    - {cidr: 192.0.2.0/24}
    - {domain: api.model.example, ports: [443]}
    - {domain: tickets.example, inspection: full, comment: x, review: https://reviews.example/1}
  known-bad:
    - {domain: paste.example}
    - {domain: "*.paste.example"}
    - {cidr: 198.51.100.0/24}
    - {feed: feeds/malware.txt}
  vetted:
    - {domain: "*.Bücher.example"}
intents:
  default:
    vetted: {methods: [GET, HEAD], ttl: 8h}
    unknown: {methods: [GET, HEAD], max_body: 0, ttl: 90s}
  develop:
    unknown: {max_body: 64KiB, ttl: 7d}
"""

type Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a policy beside a feed."""
    (tmp_path / "feeds").mkdir()
    (tmp_path / "feeds/malware.txt").write_text("evil.example\n203.0.113.0/24\n")

    def write_policy(text: str) -> Path:
        path = tmp_path / "policy.yaml"
        path.write_text(text)
        return path

    return write_policy


def errors(path: Path) -> list[str]:
    """Return the errors as a person reads them, without the folder."""
    with pytest.raises(PolicyFileError) as raised:
        load_policy(path)
    return [str(error).replace(f"{path.parent}/", "") for error in raised.value.errors]


def test_the_example_means_what_it_says(write: Write) -> None:
    policy = load_policy(write(EXAMPLE))
    assert (policy.proxy.user, policy.proxy.port, policy.proxy.dns_port) == ("egress-proxy", 8080, 8053)
    assert policy.resolver.nameservers == (
        (ipaddress.ip_address("192.0.2.53"), 53),
        (ipaddress.ip_address("2001:db8::53"), 5353),
    )
    alice, pool, bob = policy.agents.values()
    assert (alice.user, alice.loopback) == ("agent-alice", ((1024, 65535), (631, 631)))
    assert (pool.user, pool.loopback) == ((2001, 2010), ((1024, 65535),))
    assert (bob.interface, bob.source, bob.default_scope) == (
        "br-agents",
        ipaddress.ip_network("10.88.0.11/32"),
        "sandbox-bob",
    )
    scope = policy.scopes["sandbox-alice"]
    assert (scope.owner, scope.owner_user, scope.max_ttl) == (
        "alice@example.com",
        "alice",
        timedelta(hours=12),
    )
    assert (scope.intents, scope.max_destinations) == (frozenset({"default", "develop"}), 50)
    assert policy.scopes["sandbox-bob"].intents is None
    assert policy.scopes["sandbox-bob"].max_ttl == timedelta(hours=24)
    assert policy.trust.domains == (
        DomainEntry(HostPattern("api.model.example"), "known-good", (443,), Inspection.NAME),
        DomainEntry(HostPattern("tickets.example"), "known-good", (80, 443), Inspection.FULL),
        DomainEntry(HostPattern("xn--bcher-kva.example", below=True), "vetted", (80, 443), Inspection.FULL),
    )
    assert policy.trust.cidrs == (
        CidrEntry(ipaddress.ip_network("192.0.2.0/24"), "known-good", (80, 443), Inspection.NONE),
    )
    assert policy.trust.known_bad.why_name("x.evil.example") == "evil.example in feeds/malware.txt"
    assert policy.intents["default"]["unknown"] == IntentRule(
        frozenset({"GET", "HEAD"}), 0, timedelta(seconds=90)
    )
    assert policy.intents["develop"]["unknown"] == IntentRule(None, 65536, timedelta(days=7))


def test_without_intents_any_request_without_one_is_granted_a_day(write: Write) -> None:
    policy = load_policy(write("version: 1\ntrust: {vetted: [{domain: a.example}]}\n"))
    assert policy.intents == {"default": {"vetted": IntentRule(), "unknown": IntentRule()}}
    assert policy.proxy.user == "egress-proxy"


def test_every_error_is_named_at_once_in_the_order_of_the_file(write: Write) -> None:
    text = (
        EXAMPLE.replace("port: 8080", "port: 80800")
        .replace("max_ttl: 12h", "max_ttl: 12x")
        .replace("    default_scope", "    defaultscope")
        .replace("{owner: bob@example.com}", "{}")
        .replace("ttl: 8h", "ttl: 0s")
    )
    assert errors(write(text)) == [
        "policy.yaml:4:9: proxy.port: 80800 is not a TCP port, 1 to 65535",
        "policy.yaml:22:5: agents.bob-container.defaultscope: unknown key; did you mean default_scope?",
        "policy.yaml:28:14: scopes.sandbox-alice.max_ttl: '12x' is not a duration such as 90s, 15m, 24h or 7d",
        "policy.yaml:30:16: scopes.sandbox-bob: the key `owner` is missing",
        "policy.yaml:45:41: intents.default.vetted.ttl: '0s' is not a duration such as 90s, 15m, 24h or 7d",
    ]


def test_what_a_part_says_is_checked_though_another_cannot_be_read(write: Write) -> None:
    """A wrong duration does not hide that a scope is missing, and is not itself said twice."""
    text = EXAMPLE.replace("max_ttl: 12h", "max_ttl: 12x").replace(
        "scopes: [sandbox-bob]", "scopes: [sandbox-eve]"
    )
    text = text.replace("user: agent-alice", "user: [x]")
    assert errors(write(text)) == [
        "policy.yaml:12:11: agents.alice-claude.user: must be a single value",
        "policy.yaml:21:14: agents.bob-container.scopes[0]: there is no scope sandbox-eve in this policy",
        "policy.yaml:22:20: agents.bob-container.default_scope: is not among the agent's scopes",
        "policy.yaml:28:14: scopes.sandbox-alice.max_ttl: '12x' is not a duration such as 90s, 15m, 24h or 7d",
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        pytest.param(
            "version: 1", "version: 2", "version: 2 is not 1, the version of this format", id="version"
        ),
        pytest.param("version: 1\n", "", "the key `version` is missing", id="no version"),
        pytest.param("port: 8080", "port: yes", "proxy.port: 'yes' is not a TCP port", id="port is a word"),
        pytest.param("port: 8080", "port: 0x50", "proxy.port: '0x50' is not a TCP port", id="port in hex"),
        pytest.param("port: 8080", "port:", "proxy.port: has no value", id="null"),
        pytest.param(
            "port: 8080", "port: [8080]", "proxy.port: must be a single value", id="list for a value"
        ),
        pytest.param("ports: [80, 443]", "ports: 443", "proxy.ports: must be a list", id="value for a list"),
        pytest.param(
            "ports: [80, 443]", "ports: [80, 8080]", "proxy.ports[1]: port 8080 is", id="redirects itself"
        ),
        pytest.param("dns_port: 8053", "dns_port: 8080", "proxy.dns_port: is the same", id="one port twice"),
        *(
            pytest.param(
                "dns_port: 8053",
                f"dns_port: 8053\n  console_port: {port}",
                "proxy.console_port: is another",
                id=f"console on {port}",
            )
            for port in (8080, 8053, 443, 53)
        ),
        pytest.param(
            "user: egress-proxy", "user: root", "proxy.user: the proxy must not run as root", id="root"
        ),
        pytest.param(
            "user: egress-proxy", "user: 1-5", "proxy.user: the proxy runs as one user", id="proxy range"
        ),
        pytest.param(
            "[192.0.2.53,", "[dns.example,", "nameservers[0]: 'dns.example' is not ADDRESS", id="nameserver"
        ),
        pytest.param("timeout: 3s", "timeout: 3", "resolver.timeout: '3' is not a duration", id="no unit"),
        pytest.param("user: agent-alice", "user: root", "user: root cannot be an agent", id="root as agent"),
        pytest.param(
            "user: 2001-2010", "user: 0-10", "pool.user: root cannot be an agent", id="root in a range"
        ),
        pytest.param("user: agent-alice", "user: egress-proxy", "user: is proxy.user", id="proxy as agent"),
        pytest.param(
            "user: agent-alice", "user: 2005", "pool.user: is also agent alice-claude's", id="uid twice"
        ),
        pytest.param("    user: agent-alice\n", "", "alice-claude: an agent has either `user`", id="nobody"),
        pytest.param(
            "interface: br-agents", "user: x", "bob-container: an agent has either", id="two identities"
        ),
        pytest.param(
            "    interface: br-agents\n", "", "`interface` and `source` go together", id="source alone"
        ),
        pytest.param(
            "    user: agent-alice\n",
            "    user: agent-alice\n    port: veth0\n",
            "alice-claude.port: is for an agent behind a bridge",
            id="port without interface",
        ),
        pytest.param(
            "interface: br-agents",
            "interface: br-agents\n    port: br-agents",
            "bob-container.port: is the interface itself",
            id="port is interface",
        ),
        pytest.param(
            "source: 10.88.0.11", "source: 10.88.0.11/24", "did you mean 10.88.0.0/24?", id="host bits"
        ),
        pytest.param(
            "scopes: [sandbox-bob]", "scopes: [sandbox-eve]", "there is no scope sandbox-eve", id="scope"
        ),
        pytest.param(
            "scopes: [sandbox-bob]", "scopes: [bob]", "is not a scope named sandbox-<developer>", id="name"
        ),
        pytest.param(
            "default_scope: sandbox-bob", "default_scope: sandbox-alice", "not among", id="default scope"
        ),
        pytest.param(
            "loopback: [1024-65535, 631]", "loopback: [9-1]", "is not a port or a range", id="loopback"
        ),
        pytest.param(
            "intents: [default, develop]", "intents: [deploy]", "there is no intent deploy", id="intent"
        ),
        pytest.param(
            "owner_user: alice", "owner_user: agent-alice", "owner_user: is an agent's user", id="owner"
        ),
        pytest.param(
            "owner_user: alice", "owner_user: 2003", "owner_user: is an agent's user", id="owner's uid"
        ),
        pytest.param(
            "version: 1",
            "version: 1\noperators: [agent-alice]",
            "operators[0]: is an agent's user",
            id="operator",
        ),
        pytest.param(
            "version: 1",
            "version: 1\noperators: [2003]",
            "operators[0]: is an agent's user",
            id="operator's uid",
        ),
        pytest.param(
            "version: 1",
            "version: 1\noperators: [3000-3001]",
            "is a range: name each operator",
            id="operators",
        ),
        pytest.param(
            "    loopback: [1024",
            "    approval: always\n    loopback: [1024",
            "'always' is not never",
            id="approval",
        ),
        pytest.param(
            "max_destinations: 50", "max_destinations: 0", "0 is not a number of live grants", id="none"
        ),
        pytest.param("{cidr: 192.0.2.0/24}", "{cidr: 192.0.2.1/24}", "did you mean 192.0.2.0/24?", id="cidr"),
        pytest.param(
            "{cidr: 192.0.2.0/24}", "{}", "has one of domain, cidr and feed; this has 0", id="empty entry"
        ),
        pytest.param("{cidr: 192.0.2.0/24}", "{feed: x.txt}", "only known-bad has feeds", id="trusted feed"),
        pytest.param("ports: [443]}", "ports: []}", "ports: is empty", id="no ports"),
        pytest.param("ports: [443]}", "inspection: some}", "one of none, name, full", id="inspection"),
        pytest.param("inspection: full", "inspection: none, domain: x", "is there twice", id="key twice"),
        pytest.param('"*.Bücher.example"', "a*.example", "a wildcard stands for whole labels", id="wildcard"),
        pytest.param('"*.Bücher.example"', "127.1", "would be read as an address", id="address as domain"),
        pytest.param(
            '{domain: "*.Bücher.example"}',
            "{domain: api.model.example}",
            "is already known-good, on line 34",
            id="taken",
        ),
        pytest.param(
            'e"}\nintents', 'e", inspection: none}\nintents', "none is for known-good", id="vetted none"
        ),
        pytest.param(
            "{domain: paste.example}", "{domain: a.example, ports: [80]}", "on any port", id="bad ports"
        ),
        pytest.param(
            "  vetted:\n    -", "  unknown:\n    -", "what every destination is", id="unknown as a level"
        ),
        pytest.param(
            "    vetted: {m", "    known-good: {m", "known-good needs no intent", id="intent on good"
        ),
        pytest.param("    vetted: {m", "    known-bad: {m", "known-bad is never reached", id="intent on bad"),
        pytest.param(
            "    vetted: {m", "    trusted: {m", "there is no level of trust trusted", id="no such level"
        ),
        pytest.param(
            "[GET, HEAD], ttl", "[get], ttl", "methods[0]: 'get' is not a method in capitals", id="method"
        ),
        pytest.param("max_body: 64KiB", "max_body: 64k", "'64k' is not a size such as", id="size"),
        pytest.param("max_body: 64KiB", "max_body: 64", "'64' is not a size such as", id="size without unit"),
        pytest.param("feeds/malware.txt", "feeds/none.txt", "cannot be read: No such file", id="no feed"),
        pytest.param("feeds/malware.txt", '"a\\0b"', "'a\\x00b' cannot be the name of a file", id="null"),
        pytest.param("feeds/malware.txt", r'"\ud800"', "feed: holds half of a surrogate pair", id="half"),
        pytest.param("comment: x", r'"\ud800": x', r"\ud800: unknown key", id="half a key"),
    ],
)
def test_what_cannot_be_meant_is_an_error(write: Write, old: str, new: str, expected: str) -> None:
    assert old in EXAMPLE
    found = errors(write(EXAMPLE.replace(old, new, 1)))
    assert any(expected in error for error in found), found


def test_a_wildcard_cannot_be_passed_by_the_kernel(write: Write) -> None:
    text = 'version: 1\ntrust: {known-good: [{domain: "*.a.example", inspection: none}]}\n'
    assert "a wildcard cannot be none" in errors(write(text))[0]


def test_a_container_has_no_loopback_of_this_host(write: Write) -> None:
    text = EXAMPLE.replace("    default_scope", "    loopback: [80]\n    default_scope")
    assert "loopback: is for an agent with `user`" in errors(write(text))[0]


def test_two_containers_cannot_have_one_address(write: Write) -> None:
    twin = "  twin: {interface: br-agents, source: 10.88.0.11, scopes: [sandbox-bob]}\nscopes:\n"
    assert (
        "twin.source: is that of agent bob-container"
        in errors(write(EXAMPLE.replace("scopes:\n  s", twin + "  s")))[0]
    )


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("interface: veth0, source: 10.0.0.0/24", "interface: veth1, source: 10.0.0.5", "source: overlaps that of agent a"),
        (
            "interface: br0, port: a0, source: 10.0.0.0/24",
            "interface: br0, port: b0, source: 10.0.0.5",
            "source: overlaps that of agent a elsewhere",
        ),
        ("interface: br0, source: 10.0.0.0/24", "interface: br0, port: b0, source: 10.0.0.5", "source: overlaps that of agent a"),
        ("interface: br0, port: a0, source: 10.0.0.1", "interface: br1, port: a0, source: 10.0.0.2", "port: is a port of br0"),
        ("interface: a0, source: 10.0.0.1", "interface: br0, port: a0, source: 10.0.0.2", "port: is the interface of agent a"),
        ("interface: br0, port: a0, source: 10.0.0.1", "interface: a0, source: 10.0.0.2", "interface: is a bridge's port to agent a"),
    ],
)  # fmt: skip
def test_no_address_is_two_agents_wherever_it_comes_from(
    write: Write, first: str, second: str, expected: str
) -> None:
    """The proxy knows a container by its address: the link, or the port, must have bound it to one agent."""
    (error,) = errors(write(_containers(a=first, b=second)))
    assert f"agents.b.{expected}" in error


@pytest.mark.parametrize(
    ("second", "warned"),
    [
        ("interface: br0, port: b0, source: 10.0.0.2", False),
        ("interface: br0, port: a0, source: fd00::1", False),
        ("interface: br0, port: a0, source: 10.0.0.2", True),
        ("interface: br0, source: 10.0.0.2", True),
    ],
)
def test_agents_bound_to_their_ports_may_share_a_bridge(write: Write, second: str, warned: bool) -> None:
    """Two agents behind one port, by IPv4 and by IPv6, are one container."""
    loaded = load(write(_containers(a="interface: br0, port: a0, source: 10.0.0.1", b=second)))
    assert loaded.policy.agents["a"].port == "a0"
    assert bool(loaded.warnings) == warned


def _containers(**agents: str) -> str:
    listed = "".join(f"  {name}: {{{one}, scopes: [sandbox-s]}}\n" for name, one in agents.items())
    return f"version: 1\nscopes: {{sandbox-s: {{owner: o@example.com}}}}\nagents:\n{listed}"


def test_a_bad_line_of_a_feed_is_named_in_the_feed(write: Write) -> None:
    path = write(EXAMPLE)
    (path.parent / "feeds/malware.txt").write_text("good.example\nnot a name!\n")
    assert errors(path)[0].startswith("feeds/malware.txt:2:1: ")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b"", "the file is empty", id="empty"),
        pytest.param(b"version: 1\n\tx: 2\n", "policy.yaml:2:1: not YAML", id="tab"),
        pytest.param(b"a: [1", "not YAML", id="unclosed"),
        pytest.param(b"\xff\xfe", "is not UTF-8", id="not UTF-8"),
        pytest.param(b"- 1\n", "must be a mapping", id="a list"),
        pytest.param(b"x" * 5_000_000, "larger than", id="huge"),
        pytest.param(b"[" * 5000, "not YAML", id="deep"),
        pytest.param(b"version: 1\nversion: 1\n", "policy.yaml:2:1: version: is there twice", id="twice"),
        pytest.param(b"a: &a [x]\nb: *c\n", "not YAML: found undefined alias", id="undefined alias"),
    ],
)
def test_a_file_that_is_no_policy_says_so(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(content)
    assert expected in errors(path)[0]


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    assert errors(tmp_path / "none.yaml") == ["none.yaml:1:1: cannot be read: No such file or directory"]
    assert errors(tmp_path)[0].endswith("cannot be read: Is a directory")


def test_a_small_file_cannot_stand_for_a_huge_one(write: Write) -> None:
    """An alias to a list of aliases to a list …"""
    levels = "".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]\n" for n in range(1, 9))
    text = f"version: 1\nx0: &x0 [{{domain: a.example}}]\n{levels}trust: {{vetted: *x8}}\n"
    assert errors(write(text))


def test_an_expired_entry_does_not_count_and_is_warned_of(write: Write) -> None:
    path = write("version: 1\ntrust: {vetted: [{domain: a.example, expires: 2026-01-31}]}\n")
    assert len(load(path, date(2026, 1, 31)).policy.trust.domains) == 1
    loaded = load(path, date(2026, 2, 1))
    assert loaded.policy.trust.domains == ()
    assert "expired on 2026-01-31" in str(loaded.warnings[0])


def test_what_a_shared_address_opens_is_warned_of(write: Write) -> None:
    loaded = load(write("version: 1\ntrust: {known-good: [{domain: a.example, inspection: none}]}\n"))
    assert "whatever else the addresses of a.example serve" in str(loaded.warnings[0])


@pytest.mark.parametrize(
    ("entry", "default", "scope", "warned"),
    [
        ("domain: a.example", "{vetted: {}}", ", default_scope: sandbox-s", None),
        ("domain: a.example", "{vetted: {}}", "", "no agent has a default_scope"),
        (
            "domain: a.example",
            "{vetted: {methods: [GET]}}",
            ", default_scope: sandbox-s",
            "limits methods or bodies",
        ),
        (
            "domain: a.example",
            "{vetted: {max_body: 4KiB}}",
            ", default_scope: sandbox-s",
            "limits methods or bodies",
        ),
        ("domain: a.example", "{unknown: {}}", ", default_scope: sandbox-s", "may not reach vetted"),
        ("cidr: 10.0.0.0/8", "{vetted: {}}", ", default_scope: sandbox-s", "an address has no name"),
    ],
)
def test_what_nobody_reaches_by_name_is_warned_of(
    write: Write, entry: str, default: str, scope: str, warned: str | None
) -> None:
    loaded = load(
        write(
            "version: 1\nscopes: {sandbox-s: {owner: o@example.com}}\n"
            f"agents: {{a: {{user: a, scopes: [sandbox-s]{scope}}}}}\n"
            f"trust: {{vetted: [{{{entry}, inspection: name}}]}}\nintents: {{default: {default}}}\n"
        )
    )
    assert len(loaded.warnings) == (warned is not None)
    for one in loaded.warnings:
        assert (one.path, one.line) == ("trust.vetted[0].inspection", 4)
        assert (warned or "?") in one.message


@pytest.mark.parametrize(
    ("entry", "warned"),
    [
        ("vetted: [{domain: a.example, ports: [443, 22]}]", None),
        ("reading: [{domain: a.example, ports: [443, 22]}]", "port 22 opens with no intent"),
        ("other: [{domain: a.example, ports: [443, 22]}]", "port 22 opens with no intent"),
        ("vetted: [{domain: a.example, ports: [443, 8080]}]", "port 8080 is the proxy's own or DNS's"),
        ("known-good: [{domain: a.example, ports: [443, 22]}]", "port 22 opens to an agent after a request"),
        ("known-good: [{cidr: 192.0.2.0/24, ports: [443, 22]}]", None),
        ("reading: [{cidr: 10.0.0.0/8, ports: [443, 22]}]", None),
    ],
)
def test_a_further_port_that_nobody_reaches_is_warned_of(
    write: Write, entry: str, warned: str | None
) -> None:
    level = entry.partition(":")[0]
    others = "".join(f", {one}: []" for one in ("vetted", "reading", "other") if one != level)
    intents = "{default: {vetted: {}, reading: {methods: [GET]}}, small: {reading: {max_body: 0}}}"
    loaded = load(write(f"version: 1\ntrust: {{{entry}{others}}}\nintents: {intents}\n"))
    assert len(loaded.warnings) == (warned is not None)
    for one in loaded.warnings:
        assert (one.path, one.line) == (f"trust.{level}[0].ports[1]", 2)
        assert (warned or "?") in one.message


def test_a_shared_link_is_warned_of(write: Write) -> None:
    """Two addresses on one link are no error, but no barrier either."""
    agents = "".join(
        f"  {name}: {{interface: {link}, source: 10.0.0.{number}, scopes: [sandbox-s]}}\n"
        for number, (name, link) in enumerate({"a": "br0", "b": "br0", "c": "veth1"}.items())
    )
    path = write(f"version: 1\nscopes: {{sandbox-s: {{owner: o@example.com}}}}\nagents:\n{agents}")
    (warning,) = load(path).warnings
    assert (warning.line, warning.path) == (5, "agents.b.interface")
    assert "is that of agent a too" in warning.message


@pytest.mark.parametrize(
    ("listed", "warned"),
    [
        ("127.0.0.0/8", ["127.0.0.1"]),
        ("::/0", ["::1"]),
        ("0.0.0.0/0", ["127.0.0.1", "192.0.2.53"]),
        ("192.0.2.53/32", ["192.0.2.53"]),
        ("192.0.3.0/24", []),
    ],
)
@pytest.mark.parametrize("kind", ["cidr", "feed"])
def test_known_bad_that_covers_what_agents_need_is_warned_of(
    write: Write, tmp_path: Path, kind: str, listed: str, warned: list[str]
) -> None:
    """Lists of bogons name loopback, and would cut every agent off without a word."""
    (tmp_path / "bogons.txt").write_text(f"{listed}\n")
    entry, where = {"cidr": (f'"{listed}"', listed), "feed": ("bogons.txt", f"{listed} in bogons.txt")}[kind]
    resolver = "resolver: {nameservers: [192.0.2.53]}"
    path = write(f"version: 1\n{resolver}\ntrust: {{known-bad: [{{{kind}: {entry}}}]}}\n")
    messages = [warning.message.rpartition(": ")[0] for warning in load(path).warnings]
    assert messages == [f"{where} covers {address}" for address in warned]


@given(st.text(max_size=200))
def test_no_text_ends_in_anything_but_a_policy_or_its_errors(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, errors="surrogatepass")
    try:
        load_policy(path)
    except PolicyFileError as error:
        assert error.errors


@given(st.integers(0, len(EXAMPLE) - 1), st.integers(0, 12), st.text(max_size=6))
def test_no_damage_to_a_policy_ends_in_anything_but_errors(
    tmp_path_factory: pytest.TempPathFactory, start: int, length: int, put: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.yaml"
    path.write_text(EXAMPLE[:start] + put + EXAMPLE[start + length :], errors="surrogatepass")
    try:
        load_policy(path)
    except PolicyFileError as error:
        assert error.errors
