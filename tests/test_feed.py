"""Feeds: every form of line is read or refused by its number, and a look-up finds what a slow one would."""

import ipaddress
from collections.abc import Set as AbstractSet

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from egress_policy.destination import Address, InvalidHostError, Network, parse_name, to_ascii
from egress_policy.feed import Feed, FeedError, _canonical_names, parse_feed

LABEL = st.from_regex(r"[abx](?:[a-c0-1-]{0,4}[a-c0-1])?", fullmatch=True)
NAME = st.lists(LABEL, min_size=1, max_size=4).map(".".join)


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """Networks in a narrow space, so that they often lie inside each other."""
    if draw(st.booleans()):
        number = (192 << 24) + draw(st.integers(0, 255))
        return ipaddress.IPv4Network((number, draw(st.integers(22, 32))), strict=False)
    number = (0x20010DB8 << 96) + draw(st.integers(0, 255))
    return ipaddress.IPv6Network((number, draw(st.integers(118, 128))), strict=False)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        pytest.param("paste.example", {"paste.example"}, id="name"),
        pytest.param("example", {"example"}, id="one-label"),
        pytest.param("Paste.EXAMPLE", {"paste.example"}, id="upper-case"),
        pytest.param("paste.example.", {"paste.example"}, id="trailing-dot"),
        pytest.param("*.paste.example", {"paste.example"}, id="wildcard-means-the-name-too"),
        pytest.param("*.Paste.example", {"paste.example"}, id="wildcard-upper-case"),
        pytest.param("*.my_bucket.example", {"my_bucket.example"}, id="wildcard-the-long-way"),
        pytest.param("*.bücher.example", {"xn--bcher-kva.example"}, id="wildcard-unicode"),
        pytest.param(".paste.example", {"paste.example"}, id="leading-dot-means-the-name-too"),
        pytest.param(".my_bucket.example", {"my_bucket.example"}, id="leading-dot-the-long-way"),
        pytest.param("||paste.example^", {"paste.example"}, id="adblock"),
        pytest.param("||my_bucket.example^", {"my_bucket.example"}, id="adblock-the-long-way"),
        pytest.param(
            "||bücher.example^ # since 2024", {"xn--bcher-kva.example"}, id="adblock-unicode-comment"
        ),
        pytest.param("  paste.example \t", {"paste.example"}, id="spaces-around"),
        pytest.param("paste.example\r\n", {"paste.example"}, id="crlf"),
        pytest.param("paste.example # since 2024", {"paste.example"}, id="comment-behind"),
        pytest.param("paste.example ; since 2024", {"paste.example"}, id="semicolon-comment-behind"),
        pytest.param("my_bucket.example", {"my_bucket.example"}, id="underscore"),
        pytest.param("r3---sn-x.example", {"r3---sn-x.example"}, id="three-hyphens"),
        pytest.param("a.b.c.d2", {"a.b.c.d2"}, id="last-label-ends-in-a-digit"),
        pytest.param("1.2.b.d2", {"1.2.b.d2"}, id="begins-and-ends-like-an-address"),
        pytest.param("\ufeffpaste.example", {"paste.example"}, id="byte-order-mark"),
        pytest.param("\ufeff0.0.0.0 paste.example", {"paste.example"}, id="hosts-byte-order-mark"),
        pytest.param("bücher.example", {"xn--bcher-kva.example"}, id="unicode"),
        pytest.param("BÜCHER.example", {"xn--bcher-kva.example"}, id="unicode-upper-case"),
        pytest.param("bücher。example", {"xn--bcher-kva.example"}, id="ideographic-full-stop"),
        pytest.param("xn--bcher-kva.example", {"xn--bcher-kva.example"}, id="a-label"),
        pytest.param("XN--BCHER-KVA.example", {"xn--bcher-kva.example"}, id="a-label-upper-case"),
        pytest.param("a" * 63 + ".example", {"a" * 63 + ".example"}, id="longest-label"),
        pytest.param("0.0.0.0 paste.example", {"paste.example"}, id="hosts"),
        pytest.param("0.0.0.0 Paste.example\r\n", {"paste.example"}, id="hosts-crlf"),
        pytest.param("127.0.0.1\tpaste.example", {"paste.example"}, id="hosts-loopback-tab"),
        pytest.param("::1 paste.example", {"paste.example"}, id="hosts-ipv6"),
        pytest.param(":: paste.example", {"paste.example"}, id="hosts-ipv6-unspecified"),
        pytest.param("127.0.0.53 paste.example", {"paste.example"}, id="hosts-other-loopback"),
        pytest.param("0.0.0.0 bücher.example", {"xn--bcher-kva.example"}, id="hosts-unicode"),
        pytest.param("0.0.0.0 a.example b.example # two", {"a.example", "b.example"}, id="hosts-several"),
        pytest.param("127.0.0.1 LocalHost a.example", {"a.example"}, id="hosts-own-beside-another"),
        pytest.param("localhost", {"localhost"}, id="own-name-listed-by-itself-is-meant"),
        pytest.param("ip6-localhost", {"ip6-localhost"}, id="own-plain-name-listed-by-itself"),
        pytest.param("", set(), id="empty"),
        pytest.param(" \t\r\n", set(), id="blank"),
        pytest.param("# comment", set(), id="comment"),
        pytest.param("   # comment", set(), id="comment-indented"),
        pytest.param("! comment of several words", set(), id="exclamation-comment"),
        pytest.param("\ufeff# comment", set(), id="comment-byte-order-mark"),
        pytest.param("; Spamhaus DROP List 2026/01/01", set(), id="semicolon-comment"),
    ],
)
def test_names(line: str, names: set[str]) -> None:
    """A line of names becomes canonical names, and nothing else."""
    feed = parse_feed([line])
    assert feed.names == names
    assert not list(feed.networks())


@pytest.mark.parametrize(
    "line",
    [
        "127.0.0.1 localhost localhost.localdomain local",
        "255.255.255.255 broadcasthost",
        "::1 localhost ip6-localhost ip6-loopback",
        "fe80::1%lo0 localhost",
        "ff00::0 ip6-localnet",
        "ff00::0 ip6-mcastprefix",
        "ff02::1 ip6-allnodes",
        "ff02::2 ip6-allrouters",
        "ff02::3 ip6-allhosts",
        "0.0.0.0 0.0.0.0",
        "0.0.0.0 localhost.localdomain",
    ],
)
def test_what_hosts_files_say_of_their_own_host_is_not_denied(line: str) -> None:
    assert len(parse_feed([line])) == 0


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        pytest.param(["a.example\n", "b.example\n"], {"a.example", "b.example"}, id="plain"),
        pytest.param(["A.example\r\n"], {"a.example"}, id="upper-case-crlf"),
        pytest.param(["0.0.0.0 a.example\n", "b.example"], {"a.example", "b.example"}, id="hosts"),
        pytest.param(["127.0.0.1\ta.example\n"], {"a.example"}, id="hosts-loopback-tab"),
        pytest.param(["||a.example^\n", "||b.example^"], {"a.example", "b.example"}, id="adblock"),
        pytest.param(["*.a.example\r\n", ".b.example"], {"a.example", "b.example"}, id="wildcards"),
        pytest.param(["\n", "a.example\n", "\n"], {"a.example"}, id="blank-lines"),
        pytest.param(["a" * 61 + ".b"], {"a" * 61 + ".b"}, id="no-label-can-be-too-long"),
        pytest.param(["a" * 62 + ".b"], None, id="a-label-could-be-too-long"),
        pytest.param(["a.example", "# note"], None, id="comment"),
        pytest.param(["0.0.0.0 ip6-localhost"], None, id="hosts-own"),
        pytest.param(["||a.example"], None, id="adblock-not-closed"),
        pytest.param(["a.example^"], None, id="adblock-not-opened"),
        pytest.param(["..a.example"], None, id="two-dots"),
        pytest.param([".a.example\r.b.example"], None, id="lone-carriage-return"),
    ],
)
def test_where_the_short_cut_is_taken(lines: list[str], names: set[str] | None) -> None:
    """A million lines in half a second, or in seven: that is what the short cut is for."""
    assert _canonical_names(lines) == names


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        pytest.param(["192.0.2.0/31", "192.0.2.1"], ["192.0.2.0/31"], id="the-last-address-is-inside"),
        pytest.param(["192.0.2.0", "192.0.2.1"], ["192.0.2.0/32", "192.0.2.1/32"], id="neighbours"),
        pytest.param(["192.0.2.0/24", "192.0.2.0/25"], ["192.0.2.0/24"], id="same-start"),
        pytest.param(["0.0.0.0", "0.0.0.0/0"], ["0.0.0.0/0"], id="everything"),
        pytest.param(["::/0", "192.0.2.1"], ["192.0.2.1/32", "::/0"], id="versions-apart"),
        pytest.param(
            ["2001:db8::", "2001:db8::1"], ["2001:db8::/128", "2001:db8::1/128"], id="ipv6-neighbours"
        ),
    ],
)
def test_a_network_inside_another_is_left_out(lines: list[str], kept: list[str]) -> None:
    assert list(map(str, parse_feed(lines).networks())) == kept


@pytest.mark.parametrize(
    ("line", "network"),
    [
        pytest.param("192.0.2.1", "192.0.2.1/32", id="ipv4"),
        pytest.param("0.0.0.0 ", "0.0.0.0/32", id="hosts-prefix-without-a-name"),
        pytest.param("192.0.2.0/24", "192.0.2.0/24", id="ipv4-cidr"),
        pytest.param("\ufeff192.0.2.1", "192.0.2.1/32", id="byte-order-mark"),
        pytest.param("192.0.2.77/24", "192.0.2.0/24", id="host-bits-set"),
        pytest.param("192.0.2.0/24 # bad", "192.0.2.0/24", id="comment-behind"),
        pytest.param("192.0.2.0/24 ; SBL1", "192.0.2.0/24", id="semicolon-comment-behind"),
        pytest.param("192.0.2.0/255.255.255.0", "192.0.2.0/24", id="netmask"),
        pytest.param("192.0.2.1\r\n", "192.0.2.1/32", id="crlf"),
        pytest.param("2001:DB8::1", "2001:db8::1/128", id="ipv6"),
        pytest.param("2001:db8::/32", "2001:db8::/32", id="ipv6-cidr"),
        pytest.param("::1", "::1/128", id="ipv6-begins-with-a-colon"),
        pytest.param("fd00:ec2::a", "fd00:ec2::a/128", id="ipv6-begins-and-ends-with-a-letter"),
        pytest.param("2001:db8::192.0.2.1", "2001:db8::c000:201/128", id="ipv6-dotted"),
    ],
)
def test_networks(line: str, network: str) -> None:
    """An address or CIDR becomes a network, and no name."""
    feed = parse_feed([line])
    assert list(feed.networks()) == [ipaddress.ip_network(network)]
    assert not feed.names
    assert len(feed) == 1


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("@@||paste.example^", id="adblock-exception"),
        pytest.param("||paste.example", id="adblock-without-its-end"),
        pytest.param("|paste.example^", id="adblock-other-anchor"),
        pytest.param("||paste.example^$third-party", id="adblock-option"),
        pytest.param("||*.paste.example^", id="adblock-wildcard"),
        pytest.param("||.paste.example^", id="adblock-leading-dot"),
        pytest.param("||192.0.2.1^", id="adblock-address"),
        pytest.param("||^", id="adblock-of-nothing"),
        pytest.param("paste.example##.banner", id="adblock-cosmetic"),
        pytest.param("address=/paste.example/", id="dnsmasq"),
        pytest.param("http://paste.example/", id="url"),
        pytest.param("paste.example/path", id="path"),
        pytest.param("paste.example:443", id="port"),
        pytest.param("*", id="bare-star"),
        pytest.param("*.", id="wildcard-of-nothing"),
        pytest.param("*.*.example", id="two-stars"),
        pytest.param("a.*.example", id="star-inside"),
        pytest.param("paste..example", id="empty-label"),
        pytest.param("..paste.example", id="two-leading-dots"),
        pytest.param("*..paste.example", id="wildcard-and-dot"),
        pytest.param(".", id="bare-dot"),
        pytest.param("-a.example", id="leading-hyphen"),
        pytest.param("a-.example", id="trailing-hyphen"),
        pytest.param("a" * 64 + ".example", id="label-too-long"),
        pytest.param(".".join(["a" * 63] * 4), id="name-too-long"),
        pytest.param("xn--a.example", id="no-a-label"),
        pytest.param("bü cher.example", id="unicode-space"),
        pytest.param("b\u00fc\u2044.example", id="no-unicode-name"),
        pytest.param("1.2.3", id="short-address"),
        pytest.param("1.2.3.4.5", id="long-address"),
        pytest.param("192.0.2.01", id="octal-part"),
        pytest.param("2130706433", id="one-number"),
        pytest.param("0x7f.1", id="hexadecimal"),
        pytest.param("x.0xf", id="hexadecimal-last-label"),
        pytest.param("192.0.2.0/33", id="prefix-too-long"),
        pytest.param("192.0.2.0/", id="prefix-missing"),
        pytest.param("::ffff:192.0.2.1", id="ipv4-mapped"),
        pytest.param("::ffff:192.0.2.0/120", id="ipv4-mapped-network"),
        pytest.param("fe80::1%eth0", id="zone"),
        pytest.param("a.example b.example", id="two-names"),
        pytest.param("203.0.113.9 paste.example", id="hosts-that-leads-somewhere"),
        pytest.param("0.0.0.0 *.paste.example", id="hosts-wildcard"),
        pytest.param("0.0.0.0 ||paste.example^", id="hosts-adblock"),
        pytest.param("0.0.0.0 192.0.2.1", id="hosts-address-as-name"),
        pytest.param("0.0.0.0 -a.example", id="hosts-bad-name"),
    ],
)
@pytest.mark.parametrize("before", [0, 255, 256, 300])
def test_refused_with_the_line_number(line: str, before: int) -> None:
    """What cannot be read in exactly one way is refused, wherever it stands, and the line is named."""
    with pytest.raises(FeedError) as caught:
        parse_feed([*["fine.example\n"] * before, line + "\n", "fine.example\n"])
    assert caught.value.line == before + 1
    assert str(caught.value) == f"line {before + 1}: {caught.value.message}"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        pytest.param("https://paste.example/x", "'https://paste.example/x' is neither a name nor", id="url"),
        pytest.param("paste.example/x", "'paste.example/x' is neither a name nor an address", id="path"),
        pytest.param(
            "a.example b.example", "'a.example' is no address, and a line of several", id="two-names"
        ),
        pytest.param(
            "203.0.113.9 a.example", "203.0.113.9 leads somewhere: a denied name stands", id="hosts"
        ),
        pytest.param("192.0.2.0/33", "'192.0.2.0/33' is neither a name nor", id="prefix-length"),
        pytest.param("fe80::1%eth0", "'fe80::1%eth0' has a zone", id="zone"),
        pytest.param("a..example", "'a..example' is not a host name", id="name"),
        pytest.param("x/" + "\u001b" * 999, "'x/" + r"\x1b" * 78 + "' is neither", id="long-and-hostile"),
    ],
)
def test_an_error_says_what_is_wrong_and_what_a_line_may_be(line: str, what: str) -> None:
    with pytest.raises(FeedError) as caught:
        parse_feed([line])
    assert caught.value.message.startswith(what)
    assert "a line may be a name, '*.name', '.name', '||name^', an address, a network" in caught.value.message
    assert "URLs and other filter rules are not supported" in caught.value.message


def test_lines_without_ends_do_not_run_together() -> None:
    assert parse_feed(["a.example", "b.example"]).names == {"a.example", "b.example"}


def test_lines_of_every_kind_together() -> None:
    """One line that is not plain changes nothing for the plain ones around it."""
    plain = [f"n{letter}.example\n" for letter in "abcdefghij"] * 60
    mixed = [*plain, "# note\n", "0.0.0.0 h.example\n", "192.0.2.0/24\n", "Ünder.example\n", *plain]
    feed = parse_feed(mixed)
    assert feed.names == {line.strip() for line in plain} | {"h.example", "xn--nder-zra.example"}
    assert list(feed.networks()) == [ipaddress.ip_network("192.0.2.0/24")]
    assert len(feed) == 13


@given(
    st.lists(
        st.one_of(
            st.text(max_size=12),
            NAME,
            NAME.map(str.upper),
            NAME.map("0.0.0.0 {}".format),
            NAME.map("127.0.0.1\t{}".format),
            NAME.map("||{}^".format),
            NAME.map("*.{}".format),
            NAME.map(".{}".format),
            st.text(".*|^ab\r\n ", max_size=8),
            st.sampled_from(["\u212a.example", "0.0.0.0 ", "a.b\rc.d", "a.b\n\nc.d", "0.0.0.0 a.b\n0.0.0.0"]),
        ),
        max_size=5,
    )
)
@example(["\u212a.example"])
def test_the_short_cut_reads_what_the_long_way_reads(lines: list[str]) -> None:
    """A batch of plain lines is read as each of them beside a line that is not plain."""
    lines = [part for line in lines for part in line.splitlines()]
    try:
        slow: AbstractSet[str] | int = set().union(
            *(parse_feed([line, "# not plain"]).names for line in lines)
        )
    except FeedError:
        slow = next(number for number, line in enumerate(lines, start=1) if not _readable(line))
    try:
        fast: AbstractSet[str] | int = parse_feed(lines).names
    except FeedError as error:
        fast = error.line
    assert fast == slow


def _readable(line: str) -> bool:
    try:
        parse_feed([line, "# not plain"])
    except FeedError:
        return False
    return True


@given(st.text(max_size=40))
def test_only_feed_errors_and_only_canonical_names(line: str) -> None:
    """Whatever stands in a file ends in a FeedError or in names as a request would have them."""
    try:
        feed = parse_feed([line])
    except FeedError:
        return
    assert all(parse_name(name) == name for name in feed.names)


@given(NAME)
def test_names_are_normalised_as_the_policy_does(name: str) -> None:
    try:
        expected = parse_name(to_ascii(name))
    except InvalidHostError:
        with pytest.raises(FeedError):
            parse_feed([name])
    else:
        assert parse_feed([name]).names == {expected}


NUMBER = st.one_of(st.integers(0, 300).map(str), st.sampled_from(["", "01", "00", "+1", " 1", "1_0", "٣"]))
IPV4 = st.lists(NUMBER, min_size=3, max_size=5).map(".".join)
GROUP = st.one_of(st.from_regex(r"[0-9a-fA-F]{0,5}", fullmatch=True), st.just("ffff"), st.just("0"))
IPV6 = st.tuples(st.lists(st.one_of(GROUP, st.just("")), max_size=9).map(":".join), st.just("") | IPV4).map(
    ":".join
)
PREFIX = st.one_of(NUMBER, IPV4, st.integers(0, 130).map(str))


@given(st.one_of(IPV4, IPV6, st.ip_addresses().map(str)), st.none() | PREFIX)
@example("192.0.2.1", "")
@example("192.0.2.77", "255.255.255.0")
@example("192.0.2.77", "0.0.0.255")
@example("192.0.2.0", "024")
@example("192.0.2.0", "33")
@example("2001:db8::", "129")
@example("2001:db8::", "200")
@example("::ffff:0:0", "95")
@example("::1", "٣")
def test_networks_are_read_as_ipaddress_reads_them(address: str, prefix: str | None) -> None:
    """What is read by hand, for speed, is read with the same outcome."""
    word = address if prefix is None else f"{address}/{prefix}"
    if word != word.strip() or " " in word or (not {":", "/"} & set(word) and word.strip("0123456789.")):
        return  # no word, or read as a name
    try:
        expected = ipaddress.ip_network(word, strict=False)
    except ValueError:
        with pytest.raises(FeedError):
            parse_feed([word])
        return
    if isinstance(expected, ipaddress.IPv6Network) and expected.network_address.ipv4_mapped is not None:
        with pytest.raises(FeedError, match="disguise"):
            parse_feed([word])
    else:
        assert list(parse_feed([word]).networks()) == [expected]


@given(st.sets(NAME, max_size=8), NAME)
def test_find_name_equals_a_slow_one(listed: set[str], asked: str) -> None:
    """A name is found exactly if it, or a name above it by whole labels, is listed; the nearest is told."""
    covering = {name for name in listed if asked == name or asked.endswith("." + name)}
    assert Feed(frozenset(listed)).find_name(asked) == max(covering, key=len, default=None)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        pytest.param("paste.example", "paste.example", id="itself"),
        pytest.param("x.paste.example", "paste.example", id="below"),
        pytest.param("a.b.c.paste.example", "paste.example", id="far-below"),
        pytest.param("notpaste.example", None, id="not-by-letters"),
        pytest.param("example", None, id="above"),
        pytest.param("paste.example.net", None, id="to-the-left"),
    ],
)
def test_find_name(asked: str, found: str | None) -> None:
    assert parse_feed(["paste.example"]).find_name(asked) == found


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        pytest.param("192.0.1.255", None, id="one-before"),
        pytest.param("192.0.2.0", "192.0.2.0/24", id="first"),
        pytest.param("192.0.2.255", "192.0.2.0/24", id="last"),
        pytest.param("192.0.3.0", None, id="one-behind"),
        pytest.param("203.0.113.9", "203.0.113.9/32", id="single"),
        pytest.param("203.0.113.10", None, id="beside-single"),
        pytest.param("2001:db8::", "2001:db8::/32", id="ipv6-first"),
        pytest.param("2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", None, id="ipv6-one-before"),
        pytest.param("2001:db9::", None, id="ipv6-one-behind"),
        pytest.param("::c000:200", None, id="ipv6-of-the-same-number"),
        pytest.param("0.0.0.0", None, id="lowest"),
    ],
)
def test_find_address(asked: str, found: str | None) -> None:
    """An address is found in a listed network of its own version, both ends included."""
    feed = parse_feed(["192.0.2.0/24", "203.0.113.9", "2001:db8::/32"])
    network = feed.find_address(ipaddress.ip_address(asked))
    assert (None if network is None else str(network)) == found


@given(st.lists(networks(), max_size=8), networks())
def test_find_address_equals_a_slow_one(listed: list[Network], near: Network) -> None:
    """An address is found exactly if a listed network covers it, and the widest such network is told."""
    feed = parse_feed(map(str, listed))
    for address in (near.network_address, near.broadcast_address):
        covering = [one for one in listed if one.version == address.version and address in one]
        widest = min(covering, key=lambda one: one.prefixlen, default=None)
        assert feed.find_address(address) == widest


@given(st.lists(networks(), max_size=8))
def test_networks_cover_what_was_listed_and_do_not_overlap(listed: list[Network]) -> None:
    """The kernel's interval sets take them as they are: no overlap, nothing lost, nothing added."""
    kept = list(parse_feed(map(str, listed)).networks())
    assert set(kept) <= set(listed)
    assert len(kept) == len(set(kept))
    for one in listed:
        ends: list[Address] = [one.network_address, one.broadcast_address]
        for address in ends:
            assert sum(network.version == address.version and address in network for network in kept) == 1


def test_an_empty_feed_finds_nothing() -> None:
    feed = Feed()
    assert feed.find_name("paste.example") is None
    assert feed.find_address(ipaddress.ip_address("192.0.2.1")) is None
    assert len(feed) == 0
