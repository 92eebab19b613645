"""A request has exactly one reading, or it is denied: each row is a message that two programs read differently."""

import ipaddress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_policy.denial import Deny, DenyCode
from egress_policy.destination import Destination, parse_host
from egress_policy.http_request import AccessRequest, RequestHead, is_websocket, read_request

HOST = (b"Host", b"api.example")
HTTPS = RequestHead(
    method=b"GET",
    target=b"/v1/items?q=secret",
    authority=b"",
    fields=(HOST, (b"Accept", b"*/*")),
    http2=False,
    version=b"HTTP/1.1",
    port=443,
    tls=True,
    server_name="api.example",
)
HTTP = replace(HTTPS, port=80, tls=False, server_name=None)
HTTP2 = replace(
    HTTPS, http2=True, version=b"HTTP/2.0", authority=b"api.example", fields=((b"accept", b"*/*"),)
)

MALFORMED = DenyCode.REQUEST_MALFORMED
INVALID = DenyCode.DESTINATION_INVALID
MISMATCH = DenyCode.DESTINATION_MISMATCH


def hosted(head: RequestHead, host: bytes) -> RequestHead:
    """The same request to another host, the TLS server name aside."""
    return replace(head, authority=host) if head.http2 else replace(head, fields=((b"Host", host),))


def with_fields(head: RequestHead, *fields: tuple[bytes, bytes]) -> RequestHead:
    return replace(head, fields=(*head.fields, *fields))


@pytest.mark.parametrize(
    "head", [pytest.param(HTTPS, id="https"), pytest.param(HTTP, id="http"), pytest.param(HTTP2, id="http2")]
)
def test_what_is_read(head: RequestHead) -> None:
    """Who, where, with which claim, to do what; the query stays out of it."""
    read = read_request(with_fields(head, (b"x-AGENT-scope", b"sandbox-a")), "alice-claude")
    assert read == AccessRequest(
        agent="alice-claude",
        destination=Destination("api.example", head.port),
        scope_fields=(b"sandbox-a",),
        method="GET",
        path="/v1/items",
        body=0,
        tls=head.tls,
    )


def test_every_scope_field_line_is_kept() -> None:
    """Whether one is enough is for the scope to say, so two are told apart from one."""
    read = read_request(with_fields(HTTP, (b"X-Agent-Scope", b"a"), (b"x-agent-scope", b"b")), None)
    assert isinstance(read, AccessRequest)
    assert read.scope_fields == (b"a", b"b")


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(replace(HTTP, method=b"PURGE"), id="any-method"),
        pytest.param(replace(HTTP, method=b"M-SEARCH"), id="method-with-a-hyphen"),
        pytest.param(replace(HTTP, version=b"HTTP/1.0"), id="http-1.0"),
        pytest.param(replace(HTTP, target=b"/"), id="root"),
        pytest.param(replace(HTTP, target=b"//evil.example/"), id="path-that-looks-like-a-host"),
        pytest.param(replace(HTTP, target=b"/http://evil.example/"), id="path-that-looks-absolute"),
        pytest.param(replace(HTTP, method=b"OPTIONS", target=b"*"), id="options-for-the-server"),
        pytest.param(with_fields(HTTP, (b"X", b"caf\xe9 \x80")), id="obs-text-in-a-field"),
        pytest.param(with_fields(HTTP, (b"X", b"")), id="empty-field"),
        pytest.param(hosted(HTTP, b"API.example."), id="host-not-canonical"),
        pytest.param(hosted(HTTP, b"api.example:80"), id="host-with-default-port"),
        pytest.param(hosted(HTTPS, b"api.example:443"), id="host-with-default-port-of-tls"),
        pytest.param(hosted(HTTP2, b"api.example:443"), id="authority-with-default-port"),
        pytest.param(replace(HTTPS, server_name="API.example."), id="server-name-not-canonical"),
        pytest.param(with_fields(HTTP2, (b"host", b"api.example")), id="http2-host-that-agrees"),
        pytest.param(replace(hosted(HTTP, b"api.example:8080"), port=8080), id="plain-on-a-port-of-its-own"),
        pytest.param(replace(hosted(HTTPS, b"api.example:8443"), port=8443), id="tls-on-a-port-of-its-own"),
    ],
)
def test_well_formed(head: RequestHead) -> None:
    """What HTTP allows and has one reading goes to the decision."""
    read = read_request(head, None)
    assert isinstance(read, AccessRequest)
    assert read.destination == Destination("api.example", head.port)
    assert read.method == head.method.decode()


@pytest.mark.parametrize(
    ("head", "why"),
    [
        pytest.param(replace(HTTP, method=b""), "method is not a token", id="method-empty"),
        pytest.param(
            replace(HTTP, method=b"GET /x HTTP/1.1"), "method is not a token", id="method-with-spaces"
        ),
        pytest.param(replace(HTTP, method=b"GET\r\n"), "method is not a token", id="method-with-line-end"),
        pytest.param(replace(HTTP, method=b"\r\nGET"), "method is not a token", id="crlf-before-the-method"),
        pytest.param(
            replace(HTTP, method=b"\x0cGET"), "method is not a token", id="form-feed-before-the-method"
        ),
        pytest.param(replace(HTTP, method=b"G\xc9T"), "method is not a token", id="method-not-ascii"),
        pytest.param(
            replace(HTTP2, method=b"GET /x HTTP/1.1\r\nX:"),
            "method is not a token",
            id="http2-method-smuggles",
        ),
        pytest.param(replace(HTTP, method=b"CONNECT"), "CONNECT is for forward proxies", id="connect"),
        pytest.param(replace(HTTP2, method=b"CONNECT"), "CONNECT is for forward proxies", id="http2-connect"),
        pytest.param(replace(HTTP, version=b"HTTP/2.0"), "version does not agree", id="http1-claims-2"),
        pytest.param(replace(HTTP, version=b"HTTP/0.9"), "version does not agree", id="http-0.9"),
        pytest.param(replace(HTTP, version=b"HTTP/1.2"), "version does not agree", id="http-1.2"),
        pytest.param(replace(HTTP, version=b""), "version does not agree", id="version-missing"),
        pytest.param(replace(HTTP, version=b"http/1.1"), "version does not agree", id="version-lower-case"),
        pytest.param(replace(HTTP2, version=b"HTTP/1.1"), "version does not agree", id="http2-claims-1"),
        pytest.param(replace(HTTP2, http2=False), "version does not agree", id="http2-without-alpn"),
        pytest.param(replace(HTTP, target=b""), "must be a path", id="target-empty"),
        pytest.param(replace(HTTP, target=b"index.html"), "must be a path", id="target-relative"),
        pytest.param(replace(HTTP, target=b"http://api.example/"), "must be a path", id="target-absolute"),
        pytest.param(
            replace(HTTP2, target=b"https://api.example/"), "must be a path", id="http2-path-absolute"
        ),
        pytest.param(replace(HTTP, target=b"api.example:443"), "must be a path", id="target-authority"),
        pytest.param(replace(HTTP, target=b"*"), "must be a path", id="asterisk-without-options"),
        pytest.param(
            replace(HTTP, method=b"OPTIONS", target=b"http://api.example/"),
            "must be a path",
            id="options-absolute",
        ),
        pytest.param(replace(HTTP, target=b"/a b"), "must be a path", id="target-with-space"),
        pytest.param(
            replace(HTTP2, target=b"/ HTTP/1.1\r\nHost: evil.example"),
            "must be a path",
            id="http2-path-smuggles",
        ),
        pytest.param(replace(HTTP, target=b"/a\tb"), "must be a path", id="target-with-tab"),
        pytest.param(replace(HTTP, target=b"/a\0"), "must be a path", id="target-with-nul"),
        pytest.param(replace(HTTP, target=b"/a\n"), "must be a path", id="target-with-line-end"),
        pytest.param(replace(HTTP, target=b"/a\x7f"), "must be a path", id="target-with-delete"),
        pytest.param(replace(HTTP, target="/ü".encode()), "must be a path", id="target-not-ascii"),
        pytest.param(replace(HTTP, authority=b"api.example"), "names a host", id="absolute-form-that-agrees"),
        pytest.param(
            replace(HTTP, authority=b"evil.example"), "names a host", id="absolute-form-that-disagrees"
        ),
        pytest.param(with_fields(HTTP, (b"", b"x")), "name is not a token", id="field-name-empty"),
        pytest.param(
            with_fields(HTTP, (b"Host ", b"evil.example")), "name is not a token", id="space-before-colon"
        ),
        pytest.param(
            with_fields(HTTP, (b" Host", b"evil.example")), "name is not a token", id="space-before-name"
        ),
        pytest.param(
            with_fields(HTTP2, (b":protocol", b"websocket")),
            "name is not a token",
            id="http2-extended-connect",
        ),
        pytest.param(
            with_fields(HTTP2, (b"x\r\nhost", b"y")), "name is not a token", id="http2-name-with-line-end"
        ),
        pytest.param(with_fields(HTTP, (b"X\xe9", b"y")), "name is not a token", id="field-name-not-ascii"),
        pytest.param(with_fields(HTTP, (b"X", b"a\r\n b")), "'X' holds a control", id="field-folded"),
        pytest.param(with_fields(HTTP, (b"X", b"a\rb")), "'X' holds a control", id="field-bare-cr"),
        pytest.param(with_fields(HTTP2, (b"x", b"a\nb")), "'x' holds a control", id="field-bare-lf"),
        pytest.param(with_fields(HTTP, (b"X", b"a\0b")), "'X' holds a control", id="field-nul"),
        pytest.param(with_fields(HTTP, (b"X", b"a\tb")), "'X' holds a control", id="field-tab"),
        pytest.param(with_fields(HTTP, (b"X", b"a\x7f")), "'X' holds a control", id="field-delete"),
        pytest.param(
            replace(HTTP, fields=()), "exactly one Host field is needed, found 0", id="host-missing"
        ),
        pytest.param(with_fields(HTTP, HOST), "exactly one Host field is needed, found 2", id="host-twice"),
        pytest.param(with_fields(HTTP, (b"hOsT", b"evil.example")), "found 2", id="host-twice-mixed-case"),
        pytest.param(
            replace(HTTP, fields=((b"host", b"evil.example"), HOST)), "found 2", id="host-twice-other-order"
        ),
        pytest.param(replace(HTTP2, authority=b""), "needs :authority", id="http2-authority-missing"),
        pytest.param(
            replace(HTTP2, authority=b"", fields=(HOST,)),
            "needs :authority",
            id="http2-host-instead-of-authority",
        ),
        pytest.param(
            with_fields(HTTP2, (b"host", b"evil.example")), "do not agree", id="http2-host-disagrees"
        ),
        pytest.param(
            with_fields(HTTP2, (b"host", b"API.example")), "do not agree", id="http2-host-in-another-case"
        ),
        pytest.param(
            with_fields(HTTP2, (b"host", b"api.example"), (b"host", b"api.example")),
            "do not agree",
            id="http2-host-twice",
        ),
        pytest.param(with_fields(HTTP, (b"Content-Length", b"")), "one number", id="length-empty"),
        pytest.param(with_fields(HTTP, (b"Content-Length", b"-1")), "one number", id="length-negative"),
        pytest.param(with_fields(HTTP, (b"Content-Length", b"+1")), "one number", id="length-with-plus"),
        pytest.param(
            with_fields(HTTP, (b"Content-Length", b"1_0")), "one number", id="length-with-underscore"
        ),
        pytest.param(with_fields(HTTP, (b"Content-Length", b"0x10")), "one number", id="length-hexadecimal"),
        pytest.param(with_fields(HTTP, (b"Content-Length", b" 5")), "one number", id="length-with-space"),
        pytest.param(with_fields(HTTP, (b"Content-Length", b"5, 5")), "one number", id="length-list"),
        pytest.param(
            with_fields(HTTP, (b"Content-Length", b"9" * 19)), "one number", id="length-of-19-digits"
        ),
        pytest.param(
            with_fields(HTTP, (b"Content-Length", "٣".encode())), "one number", id="length-in-other-digits"
        ),
        pytest.param(
            with_fields(HTTP, (b"Content-Length", b"5"), (b"content-length", b"5")),
            "one number",
            id="length-twice",
        ),
        pytest.param(
            with_fields(HTTP2, (b"content-length", b"x")), "one number", id="http2-length-no-number"
        ),
        pytest.param(
            with_fields(HTTP, (b"Content-Length", b"5"), (b"Transfer-Encoding", b"chunked")),
            "transfer-encoding must be",
            id="length-and-chunked",
        ),
        pytest.param(
            with_fields(HTTP, (b"Transfer-Encoding", b"gzip")), "transfer-encoding must be", id="gzip"
        ),
        pytest.param(
            with_fields(HTTP, (b"Transfer-Encoding", b"identity")), "transfer-encoding must be", id="identity"
        ),
        pytest.param(
            with_fields(HTTP, (b"Transfer-Encoding", b"")), "transfer-encoding must be", id="coding-empty"
        ),
        pytest.param(
            with_fields(HTTP, (b"Transfer-Encoding", b"gzip, chunked")),
            "transfer-encoding must be",
            id="two-codings",
        ),
        pytest.param(
            with_fields(HTTP, (b"Transfer-Encoding", b"xchunked")), "transfer-encoding must be", id="xchunked"
        ),
        pytest.param(
            with_fields(HTTP, (b"Transfer-Encoding", b" chunked")),
            "transfer-encoding must be",
            id="space-chunked",
        ),
        pytest.param(
            with_fields(HTTP, (b"Transfer-Encoding", b"\x0bchunked")),
            "holds a control",
            id="vertical-tab-chunked",
        ),
        pytest.param(
            with_fields(HTTP, (b"Transfer-Encoding", b"chunked"), (b"transfer-encoding", b"chunked")),
            "transfer-encoding must be",
            id="chunked-twice",
        ),
        pytest.param(
            with_fields(replace(HTTP, version=b"HTTP/1.0"), (b"Transfer-Encoding", b"chunked")),
            "transfer-encoding must be",
            id="chunked-in-http-1.0",
        ),
        pytest.param(
            with_fields(HTTP2, (b"transfer-encoding", b"chunked")),
            "transfer-encoding must be",
            id="chunked-in-http2",
        ),
    ],
)
def test_malformed(head: RequestHead, why: str) -> None:
    """Nothing is repaired: what another program might read differently is denied, and the message says why."""
    denied = read_request(head, "alice-claude")
    assert isinstance(denied, Deny)
    assert denied.code is MALFORMED
    assert why in denied.detail


@pytest.mark.parametrize(
    ("host", "why"),
    [
        pytest.param(b":443", "the host is empty", id="port-only"),
        pytest.param(b"user@api.example", "not a host name", id="userinfo"),
        pytest.param(b"user:secret@api.example", "not of the form", id="userinfo-with-password"),
        pytest.param(b"api.example:", "not of the form", id="port-empty"),
        pytest.param(b"api.example:x", "not of the form", id="port-no-number"),
        pytest.param(b"api.example:+443", "not of the form", id="port-with-plus"),
        pytest.param(b"api.example:443:443", "not of the form", id="two-ports"),
        pytest.param(b"api.example:100443", "not of the form", id="port-of-six-digits"),
        pytest.param(b"api.example, evil.example", "not a host name", id="list"),
        pytest.param(b"api.example ", "not a host name", id="space-behind"),
        pytest.param(b"api.example/", "not a host name", id="path"),
        pytest.param(b"127.1", "address in disguise", id="short-address"),
        pytest.param(b"0x7f.1", "address in disguise", id="hexadecimal"),
        pytest.param(b"2130706433", "address in disguise", id="one-number"),
        pytest.param(b"0177.0.0.1", "address in disguise", id="octal"),
        pytest.param(b"127.1:443", "address in disguise", id="short-address-with-port"),
        pytest.param(b"[fe80::1%25eth0]", "without a zone", id="zone"),
        pytest.param(b"[::ffff:127.0.0.1]", "IPv4 address in disguise", id="ipv4-mapped"),
        pytest.param(b"[2001:db8::1", "not of the form", id="bracket-open"),
        pytest.param(b"2001:db8::1", "not of the form", id="ipv6-bare"),
        pytest.param(b"[2001:db8::1]x", "not of the form", id="behind-the-bracket"),
        pytest.param(b"[]", "not an IPv6 address", id="brackets-empty"),
        pytest.param(b"b\xfccher.example", "not ASCII", id="latin-1"),
        pytest.param("bücher.example".encode(), "not ASCII", id="utf-8"),
    ],
)
@pytest.mark.parametrize(
    "head", [pytest.param(HTTPS, id="https"), pytest.param(HTTP, id="http"), pytest.param(HTTP2, id="http2")]
)
def test_invalid_destination(head: RequestHead, host: bytes, why: str) -> None:
    denied = read_request(hosted(head, host), None)
    assert isinstance(denied, Deny)
    assert denied.code is INVALID
    assert why in denied.detail


def test_an_empty_host_field_is_an_invalid_destination() -> None:
    """RFC 9112 section 3.2 allows it; here it names nobody."""
    assert read_request(hosted(HTTP, b""), None) == Deny(INVALID, "the host is empty")


@pytest.mark.parametrize(
    ("head", "why"),
    [
        pytest.param(replace(HTTPS, port=80), "port 80 is for http", id="tls-on-80"),
        pytest.param(replace(HTTP, port=443), "port 443 is for https", id="plain-on-443"),
        pytest.param(hosted(HTTP, b"api.example:443"), "is not that of the connection", id="http-port-443"),
        pytest.param(
            hosted(HTTP, b"api.example:8080"), "is not that of the connection", id="http-another-port"
        ),
        pytest.param(hosted(HTTP, b"api.example:0"), "is not that of the connection", id="port-zero"),
        pytest.param(hosted(HTTPS, b"api.example:80"), "is not that of the connection", id="https-port-80"),
        pytest.param(
            hosted(HTTP2, b"api.example:8443"), "is not that of the connection", id="http2-another-port"
        ),
        pytest.param(replace(HTTP, port=8080), "is not that of the connection", id="port-left-out-on-8080"),
        pytest.param(replace(HTTPS, port=8443), "is not that of the connection", id="port-left-out-on-8443"),
        pytest.param(replace(HTTPS, server_name=None), "named no server", id="no-server-name"),
        pytest.param(replace(HTTP2, server_name=None), "named no server", id="http2-no-server-name"),
        pytest.param(hosted(HTTPS, b"evil.example"), "differs from the TLS server name", id="another-host"),
        pytest.param(
            hosted(HTTP2, b"evil.example"), "differs from the TLS server name", id="http2-another-host"
        ),
        pytest.param(hosted(HTTPS, b"www.api.example"), "differs from the TLS server name", id="host-below"),
        pytest.param(
            replace(HTTPS, server_name="192.0.2.1"), "differs from the TLS", id="server-name-an-address"
        ),
        pytest.param(
            hosted(HTTPS, b"192.0.2.1"), "differs from the TLS server name", id="address-under-a-name"
        ),
        pytest.param(
            replace(HTTPS, server_name=""), "the TLS server name: the host is empty", id="server-name-empty"
        ),
        pytest.param(
            replace(HTTPS, server_name="127.1"),
            "the TLS server name: '127.1' is an address",
            id="server-name-disguised",
        ),
        pytest.param(
            replace(HTTPS, server_name="api.example\0"), "the TLS server name:", id="server-name-nul"
        ),
    ],
)
def test_mismatch(head: RequestHead, why: str) -> None:
    """Port, scheme, host and TLS server name say the same, or nothing goes on."""
    denied = read_request(head, None)
    assert isinstance(denied, Deny)
    assert denied.code is MISMATCH
    assert why in denied.detail


@pytest.mark.parametrize(
    ("host", "server_name"),
    [
        pytest.param("192.0.2.1", None, id="ipv4-without-server-name"),
        pytest.param("192.0.2.1", "192.0.2.1", id="ipv4-as-server-name"),
        pytest.param("[2001:db8::1]", None, id="ipv6-without-server-name"),
    ],
)
def test_an_address_needs_no_server_name(host: str, server_name: str | None) -> None:
    """TLS has no server names for addresses (RFC 6066 section 3); whether it is covered, the decision says."""
    read = read_request(replace(hosted(HTTPS, host.encode()), server_name=server_name), None)
    assert isinstance(read, AccessRequest)
    assert read.destination == Destination(ipaddress.ip_address(host.strip("[]")), 443)


@pytest.mark.parametrize(
    ("head", "code"),
    [
        pytest.param(replace(hosted(HTTPS, b"127.1:80"), method=b"CONNECT"), MALFORMED, id="malformed-first"),
        pytest.param(hosted(HTTPS, b"127.1:80"), INVALID, id="then-invalid"),
        pytest.param(hosted(HTTPS, b"192.0.2.1:80"), MISMATCH, id="then-mismatch"),
    ],
)
def test_the_order(head: RequestHead, code: DenyCode) -> None:
    """A request that is wrong in several ways is told the first."""
    denied = read_request(head, None)
    assert isinstance(denied, Deny)
    assert denied.code is code


@pytest.mark.parametrize(
    ("head", "body"),
    [
        pytest.param(HTTP, 0, id="http1-without-length-has-none"),
        pytest.param(HTTP2, 0, id="http2-without-length-is-counted-later"),
        pytest.param(with_fields(HTTP, (b"Content-Length", b"0")), 0, id="zero"),
        pytest.param(with_fields(HTTP, (b"CONTENT-length", b"5")), 5, id="length"),
        pytest.param(with_fields(HTTP, (b"Content-Length", b"005")), 5, id="length-with-zeros"),
        pytest.param(with_fields(HTTP, (b"Content-Length", b"9" * 18)), 10**18 - 1, id="longest"),
        pytest.param(with_fields(HTTP2, (b"content-length", b"5")), 5, id="http2-length"),
        pytest.param(with_fields(HTTP, (b"Transfer-Encoding", b"chunked")), None, id="chunked"),
        pytest.param(with_fields(HTTP, (b"Upgrade", b"websocket")), None, id="websocket"),
        pytest.param(
            with_fields(HTTP, (b"Upgrade", b"WebSocket "), (b"Content-Length", b"0")),
            None,
            id="websocket-odd-case",
        ),
        pytest.param(with_fields(HTTP, (b"Upgrade", b"h2c")), 0, id="another-upgrade"),
    ],
)
def test_body(head: RequestHead, body: int | None) -> None:
    """None is a length that is not known beforehand, which the decision takes for a body."""
    read = read_request(head, None)
    assert isinstance(read, AccessRequest)
    assert read.body == body


@pytest.mark.parametrize(
    ("upgrade", "websocket"),
    [
        pytest.param([b"websocket"], True, id="websocket"),
        pytest.param([b" WEBSOCKET "], True, id="upper-case"),
        pytest.param([], False, id="none"),
        pytest.param([b"h2c"], False, id="h2c"),
        pytest.param([b"websocket, h2c"], False, id="list"),
        pytest.param([b"websocket", b"h2c"], False, id="two-fields"),
        pytest.param([b"websocket", b"websocket"], False, id="the-same-twice"),
        pytest.param([b"websocket/13"], False, id="with-a-version"),
    ],
)
def test_is_websocket(upgrade: list[bytes], websocket: bool) -> None:
    """Only what can switch to nothing but a WebSocket is one."""
    assert is_websocket([(b"upGRADE", value) for value in upgrade]) is websocket


BYTES = st.one_of(
    st.binary(max_size=12),
    st.sampled_from(
        [
            b"GET",
            b"/",
            b"*",
            b"CONNECT",
            b"OPTIONS",
            b"api.example",
            b"API.example.:443",
            b"127.1",
            b"5",
            b"chunked",
        ]
    ),
)
NAMES = st.one_of(
    st.sampled_from([b"Host", b"content-length", b"Transfer-Encoding", b"upgrade", b"X-Agent-Scope"]),
    st.binary(max_size=5),
)


@given(
    st.builds(
        RequestHead,
        method=BYTES,
        target=BYTES,
        authority=st.one_of(st.just(b""), BYTES),
        fields=st.lists(st.tuples(NAMES, BYTES), max_size=4),
        http2=st.booleans(),
        version=st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"x"]),
        port=st.sampled_from([80, 443, 8080]),
        tls=st.booleans(),
        server_name=st.one_of(st.none(), st.text(max_size=12), st.just("api.example")),
    )
)
def test_any_bytes_give_a_request_or_a_denial(head: RequestHead) -> None:
    """Nothing raises, and what is read is canonical."""
    read = read_request(head, None)
    if isinstance(read, Deny):
        assert read.code in {MALFORMED, INVALID, MISMATCH}
        assert read.detail
        return
    assert_canonical(read, head.port)


@given(
    host=st.one_of(st.binary(max_size=12), st.from_regex(rb"[a-zA-Z0-9.:\[\]-]{1,15}", fullmatch=True)),
    http2=st.booleans(),
)
def test_any_host_gives_a_canonical_one_or_a_denial(host: bytes, http2: bool) -> None:
    read = read_request(hosted(replace(HTTP2, tls=False, port=80) if http2 else HTTP, host), None)
    if isinstance(read, AccessRequest):
        assert_canonical(read, 80)


def assert_canonical(read: AccessRequest, port: int) -> None:
    host = read.destination.host
    assert parse_host(f"[{host}]" if isinstance(host, ipaddress.IPv6Address) else str(host)) == host
    assert read.destination.port == port
    assert read.body is None or read.body >= 0
    assert "?" not in read.path
