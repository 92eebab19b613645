"""One form for every host, and nothing that two programs could read differently."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_policy.destination import (
    Destination,
    HostPattern,
    InvalidHostError,
    parse_host,
    parse_name,
    parse_pattern,
    to_ascii,
)

LONGEST_LABEL = "a" * 63
LONGEST_NAME = ".".join([LONGEST_LABEL] * 3 + ["a" * 61])

HOSTLIKE = st.one_of(
    st.text(max_size=30),
    st.text(alphabet="abxn0179.-_[]:%*@ \u0130\u212a\uff0e", max_size=30),
    st.from_regex(r"[0-9a-fA-FxX]{1,10}(\.[0-9a-fA-FxX]{0,4}){0,4}\.?", fullmatch=True),
    st.ip_addresses().map(str),
    st.ip_addresses(v=6).map("[{}]".format),
    st.from_regex(r"xn--[a-z0-9-]{1,20}(\.example)?", fullmatch=True),
)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        pytest.param("api.example", "api.example", id="name"),
        pytest.param("API.Example", "api.example", id="upper-case"),
        pytest.param("api.example.", "api.example", id="trailing-dot"),
        pytest.param("API.EXAMPLE.", "api.example", id="upper-case-and-trailing-dot"),
        pytest.param("localhost", "localhost", id="one-label"),
        pytest.param("a", "a", id="one-letter"),
        pytest.param("1.example", "1.example", id="number-in-front"),
        pytest.param("example.1a", "example.1a", id="last-label-only-begins-with-a-digit"),
        pytest.param("example.0xg", "example.0xg", id="last-label-almost-hexadecimal"),
        pytest.param("_dmarc.example", "_dmarc.example", id="underscore-in-front"),
        pytest.param("my_bucket_.example", "my_bucket_.example", id="underscore-behind"),
        pytest.param("r3---sn-x.example", "r3---sn-x.example", id="hyphens-that-are-no-a-label"),
        pytest.param("xn--bcher-kva.example", "xn--bcher-kva.example", id="a-label"),
        pytest.param("XN--BCHER-KVA.example", "xn--bcher-kva.example", id="a-label-upper-case"),
        pytest.param(LONGEST_LABEL + ".example", LONGEST_LABEL + ".example", id="label-of-63"),
        pytest.param(LONGEST_NAME, LONGEST_NAME, id="name-of-253"),
        pytest.param(LONGEST_NAME + ".", LONGEST_NAME, id="name-of-253-and-a-dot"),
    ],
)
def test_a_name_has_one_form(text: str, host: str) -> None:
    """Case and one trailing dot are the client's; what is compared is lower case without it."""
    assert parse_host(text) == host


@pytest.mark.parametrize(
    ("text", "address"),
    [
        pytest.param("192.0.2.1", "192.0.2.1", id="ipv4"),
        pytest.param("0.0.0.0", "0.0.0.0", id="lowest"),
        pytest.param("255.255.255.255", "255.255.255.255", id="highest"),
        pytest.param("[2001:db8::1]", "2001:db8::1", id="ipv6"),
        pytest.param("[2001:DB8:0:0::1]", "2001:db8::1", id="ipv6-long-and-upper-case"),
        pytest.param("[::1]", "::1", id="ipv6-loopback"),
        pytest.param("[::fffe:192.0.2.1]", "::fffe:c000:201", id="just-outside-ipv4-mapped"),
    ],
)
def test_an_address_is_an_address(text: str, address: str) -> None:
    """Four decimal numbers, or IPv6 in brackets."""
    assert parse_host(text) == ipaddress.ip_address(address)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param("", "the host is empty", id="empty"),
        pytest.param(".", "not a host name", id="dot"),
        pytest.param("..", "not a host name", id="dots"),
        pytest.param("a..example", "not a host name", id="empty-label"),
        pytest.param(".example", "not a host name", id="leading-dot"),
        pytest.param("a.example..", "not a host name", id="two-trailing-dots"),
        pytest.param("-a.example", "not a host name", id="leading-hyphen"),
        pytest.param("a-.example", "not a host name", id="trailing-hyphen"),
        pytest.param(LONGEST_LABEL + "a.example", "not a host name", id="label-of-64"),
        pytest.param(LONGEST_NAME + "a", "longer than 253", id="name-of-254"),
        pytest.param("a b.example", "not a host name", id="space"),
        pytest.param(" a.example", "not a host name", id="leading-space"),
        pytest.param("a.example\n", "not a host name", id="line-end"),
        pytest.param("a.example\r\n", "not a host name", id="crlf"),
        pytest.param("a\0.example", "not a host name", id="nul"),
        pytest.param("a\t.example", "not a host name", id="tab"),
        pytest.param("user@a.example", "not a host name", id="userinfo"),
        pytest.param("a.example/path", "not a host name", id="path"),
        pytest.param("a%2eexample", "not a host name", id="percent-encoded"),
        pytest.param("*.example", "not a host name", id="wildcard"),
        pytest.param("a,b.example", "not a host name", id="comma"),
        pytest.param("bücher.example", "not ASCII", id="unicode"),
        pytest.param("\uff41.example", "not ASCII", id="full-width-letter"),
        pytest.param("a\u3002example", "not ASCII", id="ideographic-full-stop"),
        pytest.param("\u212a.example", "not ASCII", id="kelvin-sign-that-lower-cases-to-k"),
        pytest.param("\uff11\uff12\uff17.0.0.1", "address in disguise", id="full-width-digits"),
        pytest.param("xn--a.example", "not a valid internationalised label", id="no-a-label"),
        pytest.param("xn--abc-.example", "not a host name", id="a-label-ending-in-a-hyphen"),
        pytest.param("xn--bcher-kv.example", "not a valid internationalised label", id="a-label-cut"),
        pytest.param("www.xn--abc.example", "internationalised label", id="plain-ascii-as-a-label"),
        pytest.param("127.1", "address in disguise", id="two-parts"),
        pytest.param("127.0.1", "address in disguise", id="three-parts"),
        pytest.param("1.2.3.4.5", "address in disguise", id="five-parts"),
        pytest.param("2130706433", "address in disguise", id="one-number"),
        pytest.param("0x7f.1", "address in disguise", id="hexadecimal-part"),
        pytest.param("127.0.0.0x1", "address in disguise", id="hexadecimal-last-part"),
        pytest.param("0X7F000001", "address in disguise", id="hexadecimal-number"),
        pytest.param("a.0x", "address in disguise", id="hexadecimal-without-digits"),
        pytest.param("017700000001", "address in disguise", id="octal-number"),
        pytest.param("0177.0.0.1", "address in disguise", id="octal-part"),
        pytest.param("192.0.2.01", "address in disguise", id="leading-zero"),
        pytest.param("192.0.2.256", "address in disguise", id="part-beyond-255"),
        pytest.param("192.0.2.1.", "address in disguise", id="address-with-trailing-dot"),
        pytest.param("api.example.1", "address in disguise", id="name-that-ends-in-a-number"),
        pytest.param("api.example.1.", "address in disguise", id="the-same-with-a-dot"),
        pytest.param("2001:db8::1", "must stand in brackets", id="ipv6-bare"),
        pytest.param("::1", "must stand in brackets", id="ipv6-loopback-bare"),
        pytest.param("a.example:443", "must stand in brackets", id="port"),
        pytest.param("[fe80::1%eth0]", "without a zone", id="zone"),
        pytest.param("[fe80::1%25eth0]", "without a zone", id="zone-percent-encoded"),
        pytest.param("[2001:db8::1", "in brackets", id="bracket-open"),
        pytest.param("[2001:db8::1]x", "in brackets", id="behind-the-bracket"),
        pytest.param("[]", "not an IPv6 address", id="brackets-empty"),
        pytest.param("[192.0.2.1]", "not an IPv6 address", id="ipv4-in-brackets"),
        pytest.param("[v1.fe80]", "not an IPv6 address", id="ip-future"),
        pytest.param("[a.example]", "not an IPv6 address", id="name-in-brackets"),
        pytest.param("[::ffff:192.0.2.1]", "IPv4 address in disguise", id="ipv4-mapped"),
        pytest.param("[::ffff:c000:201]", "IPv4 address in disguise", id="ipv4-mapped-hexadecimal"),
    ],
)
def test_what_could_be_read_in_two_ways_is_invalid(text: str, why: str) -> None:
    """The message says why, and is safe to print."""
    with pytest.raises(InvalidHostError, match=why) as caught:
        parse_host(text)
    assert str(caught.value).replace("…", "").isascii()
    assert str(caught.value).isprintable()


def test_a_long_host_is_shown_short() -> None:
    """A hostile host does not fill the log."""
    with pytest.raises(InvalidHostError) as caught:
        parse_host("x" * 80 + "!" * 100_000 + ".1")
    assert len(str(caught.value)) < 200
    assert "x" * 77 + "..." in str(caught.value)


def test_eighty_characters_are_shown_whole() -> None:
    text = "x" * 78 + ".1"
    with pytest.raises(InvalidHostError, match=f"'{text}'"):
        parse_host(text)
    with pytest.raises(InvalidHostError, match=f"'{text[:75]}xx[.]{{3}}'"):
        parse_host("x" + text)


@pytest.mark.parametrize("text", ["192.0.2.1", "127.1", "0x7f000001", "2130706433", "example.7"])
def test_a_name_is_never_an_address(text: str) -> None:
    """What inet_aton() would take is no name, where only a name will do."""
    with pytest.raises(InvalidHostError, match="would be read as an address"):
        parse_name(text)


@given(HOSTLIKE)
def test_any_text_gives_a_host_or_an_invalid_host_error(text: str) -> None:
    """And a host that was read is read as itself again."""
    try:
        host = parse_host(text)
    except InvalidHostError as error:
        assert str(error).replace("…", "").isascii()
        return
    again = f"[{host}]" if isinstance(host, ipaddress.IPv6Address) else str(host)
    assert parse_host(again) == host


@given(HOSTLIKE)
def test_a_name_is_canonical(text: str) -> None:
    """Lower-case ASCII, no trailing dot, and the same for every spelling in upper case or with a dot."""
    try:
        name = parse_name(text)
    except InvalidHostError:
        return
    assert name.isascii()
    assert name == name.lower() == name.strip(".")
    assert len(name) <= 253
    assert parse_name(name.upper()) == parse_name(name + ".") == parse_host(name) == name


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        pytest.param("api.example", HostPattern("api.example"), id="name"),
        pytest.param("API.Example.", HostPattern("api.example"), id="normalised"),
        pytest.param("*.example", HostPattern("example", below=True), id="wildcard"),
        pytest.param("*.Bücher.example", HostPattern("xn--bcher-kva.example", below=True), id="unicode"),
        pytest.param("faß.example", HostPattern("xn--fa-hia.example"), id="sharp-s-is-kept"),
    ],
)
def test_patterns(text: str, pattern: HostPattern) -> None:
    """A policy's domain may be Unicode, and names one host or all below one."""
    assert parse_pattern(text) == pattern


def test_patterns_as_text() -> None:
    """As the policy writes them."""
    assert [str(parse_pattern(text)) for text in ("API.example", "*.example")] == ["api.example", "*.example"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param("*", "a wildcard stands for whole labels", id="star"),
        pytest.param("*.", "the host is empty", id="star-dot"),
        pytest.param("*.*.example", "a wildcard stands for whole labels", id="two-stars"),
        pytest.param("a*.example", "a wildcard stands for whole labels", id="part-of-a-label"),
        pytest.param("a.*.example", "a wildcard stands for whole labels", id="in-the-middle"),
        pytest.param("*example", "a wildcard stands for whole labels", id="without-a-dot"),
        pytest.param("", "the host is empty", id="empty"),
        pytest.param("192.0.2.1", "would be read as an address", id="address"),
        pytest.param("*.2.1", "would be read as an address", id="wildcard-over-numbers"),
        pytest.param("b\u00fc\u2044.example", "not a valid internationalised name", id="no-idna"),
        pytest.param("ü" * 80 + ".example", "not a valid internationalised name", id="too-long-in-a-labels"),
    ],
)
def test_bad_patterns(text: str, why: str) -> None:
    with pytest.raises(InvalidHostError, match=why):
        parse_pattern(text)


@given(st.text(max_size=30))
def test_any_text_gives_a_pattern_or_an_invalid_host_error(text: str) -> None:
    """A pattern that was read is read as itself again from its text."""
    try:
        pattern = parse_pattern(text)
    except InvalidHostError:
        return
    assert parse_pattern(str(pattern)) == pattern


def test_ascii_stays_as_it_is() -> None:
    """A name with an underscore is no IDNA name, and is none of IDNA's business."""
    assert to_ascii("_Dmarc.example") == "_Dmarc.example"


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        pytest.param("api.example", "api.example", True, id="exact"),
        pytest.param("api.example", "x.api.example", False, id="exact-not-below"),
        pytest.param("api.example", "example", False, id="exact-not-above"),
        pytest.param("*.example", "api.example", True, id="below"),
        pytest.param("*.example", "a.b.example", True, id="far-below"),
        pytest.param("*.example", "example", False, id="not-the-name-itself"),
        pytest.param("*.example", "badexample", False, id="by-labels-not-letters"),
        pytest.param("*.example", "example.net", False, id="not-to-the-left"),
    ],
)
def test_what_a_pattern_matches(pattern: str, name: str, matches: bool) -> None:
    assert parse_pattern(pattern).matches(name) is matches


@pytest.mark.parametrize(
    ("destination", "text"),
    [
        pytest.param(Destination("api.example", 443), "api.example:443", id="name"),
        pytest.param(Destination(ipaddress.IPv4Address("192.0.2.1"), 80), "192.0.2.1:80", id="ipv4"),
        pytest.param(Destination(ipaddress.IPv6Address("2001:db8::1"), 443), "[2001:db8::1]:443", id="ipv6"),
    ],
)
def test_destinations_as_text(destination: Destination, text: str) -> None:
    """As RFC 3986 section 3.2.2 writes an authority."""
    assert str(destination) == text
