"""Levels of trust: the most specific entry wins, known-bad wins over all, and the kernel passes no more than that."""

import ipaddress
from collections.abc import Sequence
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_policy.destination import Address, Destination, HostPattern, Network, parse_host, parse_pattern
from egress_policy.feed import parse_feed
from egress_policy.policy import (
    KNOWN_BAD,
    KNOWN_GOOD,
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

NONE, NAME, FULL = Inspection.NONE, Inspection.NAME, Inspection.FULL


def domain(
    pattern: str, level: str, ports: tuple[int, ...] = (80, 443), inspection: Inspection = FULL
) -> DomainEntry:
    return DomainEntry(parse_pattern(pattern), level, ports, inspection)


def cidr(
    network: str, level: str, ports: tuple[int, ...] = (80, 443), inspection: Inspection = FULL
) -> CidrEntry:
    return CidrEntry(ipaddress.ip_network(network), level, ports, inspection)


def to(text: str) -> Destination:
    host, _, port = text.rpartition(":")
    return Destination(parse_host(host), int(port))


def policy(trust: Trust, ports: tuple[int, ...] = (80, 443)) -> Policy:
    return Policy(Proxy("egress-proxy", ports=ports), agents={}, scopes={}, intents={}, trust=trust)


TRUST = Trust(
    domains=(
        domain("*.example", "wide"),
        domain("*.docs.example", "vetted"),
        domain("docs.example", "exact"),
        domain("api.docs.example", KNOWN_GOOD, (443,)),
        domain("*.api.docs.example", "deep", (443, 8443)),
    ),
    cidrs=(
        cidr("192.0.2.0/24", "wide"),
        cidr("192.0.2.128/25", KNOWN_GOOD, (443, 22), NONE),
        cidr("192.0.2.200/32", "vetted", (443,)),
        cidr("2001:db8::/32", "wide"),
        cidr("2001:db8::/48", "vetted"),
    ),
    known_bad=KnownBad(
        patterns=frozenset(map(parse_pattern, ["paste.example", "*.bad.example"])),
        networks=(ipaddress.ip_network("192.0.2.66/32"), ipaddress.ip_network("2001:db8:bad::/48")),
        feeds=(
            ("feeds/empty.txt", parse_feed([])),
            ("feeds/malware.txt", parse_feed(["malware.example", "198.51.100.0/24"])),
        ),
    ),
)


@pytest.mark.parametrize(
    ("destination", "level"),
    [
        pytest.param("other.test:443", UNKNOWN, id="no-entry"),
        pytest.param("example:443", UNKNOWN, id="wildcard-is-not-the-name-itself"),
        pytest.param("x.example:443", "wide", id="wildcard"),
        pytest.param("docs.example:443", "exact", id="exact-over-wildcard"),
        pytest.param("x.docs.example:443", "vetted", id="longer-wildcard-over-shorter"),
        pytest.param("api.docs.example:443", KNOWN_GOOD, id="exact-over-two-wildcards"),
        pytest.param("api.docs.example:80", "vetted", id="an-entry-counts-for-its-ports"),
        pytest.param("x.api.docs.example:443", "deep", id="below-an-exact-name"),
        pytest.param("x.api.docs.example:8443", "deep", id="a-port-of-the-entry"),
        pytest.param("x.api.docs.example:80", "vetted", id="a-port-of-a-wider-entry"),
        pytest.param("x.docs.example:8443", None, id="a-port-of-nobody"),
        pytest.param("other.test:8443", None, id="unknown-on-a-port-of-nobody"),
        pytest.param("192.0.2.1:443", "wide", id="network"),
        pytest.param("192.0.2.128:443", KNOWN_GOOD, id="longer-prefix-first-address"),
        pytest.param("192.0.2.127:443", "wide", id="one-before-longer-prefix"),
        pytest.param("192.0.2.200:443", "vetted", id="longest-prefix"),
        pytest.param("192.0.2.200:22", KNOWN_GOOD, id="prefix-counts-for-its-ports"),
        pytest.param("192.0.2.200:80", "wide", id="port-of-the-widest"),
        pytest.param("192.0.3.0:443", UNKNOWN, id="outside-of-networks"),
        pytest.param("192.0.2.1:22", None, id="network-on-a-port-of-nobody"),
        pytest.param("[2001:db8::1]:443", "vetted", id="ipv6-longer-prefix"),
        pytest.param("[2001:db8:1::]:443", "wide", id="ipv6-one-behind"),
        pytest.param("paste.example:443", KNOWN_BAD, id="known-bad-over-a-wildcard"),
        pytest.param("x.paste.example:443", "wide", id="known-bad-exact-is-not-below"),
        pytest.param("bad.example:443", "wide", id="known-bad-wildcard-is-not-the-name-itself"),
        pytest.param("a.b.bad.example:443", KNOWN_BAD, id="known-bad-wildcard"),
        pytest.param("malware.example:443", KNOWN_BAD, id="feed-name"),
        pytest.param("x.malware.example:8443", KNOWN_BAD, id="feed-name-below-on-any-port"),
        pytest.param("192.0.2.66:443", KNOWN_BAD, id="known-bad-address"),
        pytest.param("192.0.2.67:443", "wide", id="beside-known-bad-address"),
        pytest.param("[2001:db8:bad::1]:443", KNOWN_BAD, id="known-bad-ipv6"),
        pytest.param("198.51.100.255:443", KNOWN_BAD, id="feed-network"),
        pytest.param("198.51.101.0:443", UNKNOWN, id="beside-feed-network"),
    ],
)
def test_level(destination: str, level: str | None) -> None:
    """The most specific entry that has the port decides; without one it is unknown, on the proxy's ports only."""
    assert policy(TRUST).level_of(to(destination)) == level


def test_unknown_has_the_ports_of_the_proxy() -> None:
    assert policy(TRUST, ports=(8443,)).level_of(to("other.test:8443")) == UNKNOWN
    assert policy(TRUST, ports=(8443,)).level_of(to("other.test:443")) is None


@pytest.mark.parametrize(
    ("destination", "why"),
    [
        pytest.param("paste.example:443", "paste.example", id="name"),
        pytest.param("x.bad.example:443", "*.bad.example", id="wildcard"),
        pytest.param("x.malware.example:443", "malware.example in feeds/malware.txt", id="feed-name"),
        pytest.param("192.0.2.66:443", "192.0.2.66/32", id="network"),
        pytest.param("198.51.100.7:443", "198.51.100.0/24 in feeds/malware.txt", id="feed-network"),
        pytest.param("x.example:443", None, id="not-bad"),
        pytest.param("192.0.2.1:443", None, id="address-not-bad"),
        pytest.param("[::c000:242]:443", None, id="ipv6-of-the-same-number"),
    ],
)
def test_why_bad(destination: str, why: str | None) -> None:
    """The entry is told, and the feed that it stands in."""
    assert TRUST.why_bad(to(destination)) == why


@pytest.mark.parametrize(
    ("address", "named"),
    [
        pytest.param("192.0.2.1", True, id="cidr"),
        pytest.param("192.0.3.1", False, id="beside"),
        pytest.param("198.51.100.1", True, id="known-bad-in-a-feed"),
        pytest.param("2001:db8:bad::1", True, id="ipv6"),
        pytest.param("::c000:201", False, id="ipv6-of-the-same-number"),
    ],
)
def test_names_address(address: str, named: bool) -> None:
    assert TRUST.names_address(ipaddress.ip_address(address), 443) is named


def test_all_networks_are_those_of_entries_and_feeds() -> None:
    """What the kernel denies is what the decision denies."""
    assert set(map(str, TRUST.known_bad.all_networks())) == {
        "192.0.2.66/32",
        "2001:db8:bad::/48",
        "198.51.100.0/24",
    }


@pytest.mark.parametrize(
    ("cidrs", "direct"),
    [
        pytest.param([cidr("10.0.0.0/8", KNOWN_GOOD, (443,), NONE)], ["10.0.0.0/8 443"], id="whole"),
        pytest.param(
            [cidr("10.0.0.0/8", KNOWN_GOOD, (22, 443), NONE)],
            ["10.0.0.0/8 22", "10.0.0.0/8 443"],
            id="each-port",
        ),
        pytest.param([cidr("10.0.0.0/8", KNOWN_GOOD, (443,), NAME)], [], id="name-goes-through-the-proxy"),
        pytest.param([cidr("10.0.0.0/8", KNOWN_GOOD, (443,), FULL)], [], id="full-goes-through-the-proxy"),
        pytest.param([cidr("10.0.0.0/8", "vetted", (443,), NONE)], [], id="another-level"),
        pytest.param(
            [cidr("10.0.0.0/30", KNOWN_GOOD, (443,), NONE), cidr("10.0.0.1/32", "vetted", (443,))],
            ["10.0.0.0/32 443", "10.0.0.2/31 443"],
            id="another-level-is-cut-out",
        ),
        pytest.param(
            [cidr("10.0.0.0/31", KNOWN_GOOD, (443,), NONE), cidr("10.0.0.1/32", KNOWN_GOOD, (443,), FULL)],
            ["10.0.0.0/32 443"],
            id="another-inspection-is-cut-out",
        ),
        pytest.param(
            [cidr("10.0.0.0/31", KNOWN_GOOD, (22, 443), NONE), cidr("10.0.0.1/32", "vetted", (443,))],
            ["10.0.0.0/31 22", "10.0.0.0/32 443"],
            id="only-on-its-ports",
        ),
        pytest.param(
            [cidr("10.0.0.0/31", KNOWN_GOOD, (443,), NONE), cidr("10.0.0.0/8", "vetted", (443,))],
            ["10.0.0.0/31 443"],
            id="a-wider-one-cuts-nothing",
        ),
        pytest.param(
            [cidr("10.0.0.0/8", KNOWN_GOOD, (443,), NONE), cidr("10.0.0.0/8", "vetted", (443,))],
            [],
            id="the-same-network-twice-is-not-passed",
        ),
        pytest.param(
            [
                cidr("10.0.0.0/30", KNOWN_GOOD, (443,), NONE),
                cidr("10.0.0.0/31", "vetted", (443,)),
                cidr("10.0.0.0/32", KNOWN_GOOD, (443,), NONE),
            ],
            ["10.0.0.0/32 443", "10.0.0.2/31 443"],
            id="known-good-inside-what-was-cut-out",
        ),
        pytest.param(
            [
                cidr("10.0.0.0/29", KNOWN_GOOD, (443,), NONE),
                cidr("10.0.0.0/30", "vetted", (443,)),
                cidr("10.0.0.1/32", "other", (443,)),
            ],
            ["10.0.0.4/30 443"],
            id="two-cut-out-one-inside-the-other",
        ),
        pytest.param(
            [
                cidr("10.0.0.0/29", KNOWN_GOOD, (443,), NONE),
                cidr("10.0.0.1/32", "other", (443,)),
                cidr("10.0.0.0/30", "vetted", (443,)),
            ],
            ["10.0.0.4/30 443"],
            id="the-same-the-smaller-first",
        ),
        pytest.param(
            [cidr("10.0.0.0/31", KNOWN_GOOD, (443,), NONE), cidr("10.0.0.1/32", "vetted", (443,), NONE)],
            ["10.0.0.0/32 443"],
            id="another-level-without-inspection-is-cut-out",
        ),
        pytest.param(
            [cidr("0.0.0.0/0", KNOWN_GOOD, (443,), NONE), cidr("::/8", "vetted", (443,))],
            ["0.0.0.0/0 443"],
            id="ipv6-cuts-nothing-out-of-ipv4",
        ),
        pytest.param(
            [cidr("2001:db8::/126", KNOWN_GOOD, (443,), NONE), cidr("2001:db8::2/127", "vetted", (443,))],
            ["2001:db8::/127 443"],
            id="ipv6",
        ),
        pytest.param(
            [cidr("::/0", KNOWN_GOOD, (443,), NONE), cidr("10.0.0.0/8", "vetted", (443,))],
            ["::/0 443"],
            id="another-version-cuts-nothing",
        ),
    ],
)
def test_direct_networks(cidrs: Sequence[CidrEntry], direct: list[str]) -> None:
    """The kernel passes by itself only what is known-good without inspection."""
    found = Trust(cidrs=tuple(cidrs)).direct_networks()
    assert sorted(f"{network} {port}" for network, port in found) == sorted(direct)


def test_what_is_left_out_means() -> None:
    """The defaults of the policy's file."""
    proxy = Proxy("egress-proxy")
    assert (proxy.port, proxy.ports, proxy.dns_port) == (8080, (80, 443), 8053)
    assert Resolver() == Resolver(None, timedelta(seconds=3))
    assert Agent("a", ()).loopback == ((1024, 65535),)
    sandbox = Sandbox("sandbox-alice", "alice@example.com")
    assert (sandbox.intents, sandbox.max_ttl, sandbox.max_destinations) == (None, timedelta(hours=24), 100)
    assert IntentRule() == IntentRule(methods=None, max_body=None, ttl=timedelta(hours=24))
    assert DomainEntry(parse_pattern("a.example"), "vetted").ports == (80, 443)


def test_direct_names() -> None:
    """The addon keeps addresses only for names that are known-good without inspection."""
    trust = Trust(
        domains=(
            domain("bulk.example", KNOWN_GOOD, (80, 443), NONE),
            domain("named.example", KNOWN_GOOD, (443,), NAME),
            domain("full.example", KNOWN_GOOD, (443,), FULL),
            domain("vetted.example", "vetted", (443,), NONE),
        )
    )
    assert trust.direct_names() == [("bulk.example", 80), ("bulk.example", 443)]


LEVELS = st.sampled_from([KNOWN_GOOD, "vetted", "other"])
PORTS = st.sampled_from([(443,), (80,), (22,)])
PATTERNS = st.tuples(st.booleans(), st.lists(st.sampled_from("ab"), min_size=1, max_size=4)).map(
    lambda drawn: parse_pattern(("*." if drawn[0] else "") + ".".join(drawn[1]))
)
NUMBERS = st.one_of(st.integers(0, 15), st.just(200))


@st.composite
def networks(draw: st.DrawFn) -> Network:
    if draw(st.booleans()):
        return ipaddress.IPv4Network(((10 << 24) + draw(NUMBERS), draw(st.integers(24, 32))), strict=False)
    return ipaddress.IPv6Network(
        ((0x20010DB8 << 96) + draw(NUMBERS), draw(st.integers(120, 128))), strict=False
    )


@st.composite
def addresses(draw: st.DrawFn) -> Address:
    network = draw(networks())
    return draw(st.sampled_from([network.network_address, network.broadcast_address]))


# The policy's file holds one entry for each pattern or network and port.
DOMAINS = st.lists(
    st.builds(DomainEntry, PATTERNS, LEVELS, PORTS),
    max_size=6,
    unique_by=lambda entry: (entry.pattern, entry.ports),
)
CIDRS = st.lists(
    st.builds(CidrEntry, networks(), LEVELS, PORTS, st.sampled_from(Inspection)),
    max_size=6,
    unique_by=lambda entry: (entry.network, entry.ports),
)


@given(
    DOMAINS,
    st.lists(st.sampled_from("ab"), min_size=1, max_size=5).map(".".join),
    st.sampled_from([443, 80, 22]),
)
def test_the_level_of_a_name_follows_specificity(entries: list[DomainEntry], name: str, port: int) -> None:
    """An exact name before wildcards, a longer wildcard before a shorter one, whatever their order in the file."""
    covering = [entry for entry in entries if port in entry.ports and entry.pattern.matches(name)]
    best = max(covering, key=lambda entry: (not entry.pattern.below, len(entry.pattern.name)), default=None)
    assert Trust(domains=tuple(entries)).entry_for(Destination(name, port)) == best
    assert Trust(domains=tuple(reversed(entries))).entry_for(Destination(name, port)) == best


@given(CIDRS, addresses(), st.sampled_from([443, 80, 22]))
def test_the_level_of_an_address_follows_specificity(
    entries: list[CidrEntry], address: Address, port: int
) -> None:
    """The longest prefix with the port, whatever the order in the file."""
    covering = [
        entry
        for entry in entries
        if port in entry.ports and address.version == entry.network.version and address in entry.network
    ]
    best = max(covering, key=lambda entry: entry.network.prefixlen, default=None)
    assert Trust(cidrs=tuple(entries)).entry_for(Destination(address, port)) == best
    assert Trust(cidrs=tuple(reversed(entries))).entry_for(Destination(address, port)) == best


@given(CIDRS, addresses(), st.sampled_from([443, 80, 22]))
def test_the_kernel_passes_what_is_known_good_without_inspection_and_no_more(
    entries: list[CidrEntry], address: Address, port: int
) -> None:
    trust = Trust(cidrs=tuple(entries))
    entry = trust.entry_for(Destination(address, port))
    passes = any(
        port == direct_port and address.version == network.version and address in network
        for network, direct_port in trust.direct_networks()
    )
    assert passes == (entry is not None and entry.level == KNOWN_GOOD and entry.inspection is NONE)


@given(
    DOMAINS,
    st.sets(PATTERNS, max_size=3),
    st.lists(st.sampled_from("ab"), min_size=1, max_size=5).map(".".join),
)
def test_known_bad_wins(entries: list[DomainEntry], bad: set[HostPattern], name: str) -> None:
    """No entry, however specific, takes a name out of known-bad."""
    trust = Trust(domains=tuple(entries), known_bad=KnownBad(patterns=frozenset(bad)))
    is_bad = any(pattern.matches(name) for pattern in bad)
    assert (policy(trust).level_of(Destination(name, 443)) == KNOWN_BAD) is is_bad
