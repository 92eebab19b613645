"""Requests with two readings: what the proxy would check is not what an origin would understand."""

import json

import pytest

from deploy.demo.lab import ALICE
from tests.bypass.attempts import BOTH, PROXY, attempt
from tests.bypass.world import SCOPE, World
from tests.end_to_end.test_streams import HTTP2

FIELD = f"X-Agent-Scope: {SCOPE['X-Agent-Scope']}\r\n"
type Fields = list[tuple[str, str]]


def denied(world: World, host: str, data: str, *, tls: bool = True, codes: frozenset[str]) -> None:
    """Send a request that must be answered with one of these codes ("": closed, or mitmproxy's own 400)."""
    marker = world.marker()
    data = data.replace("HOST", host).replace("/M", f"/{marker}").replace("SCOPE\r\n", f"{FIELD}\r\n")
    replies = world.send(host, 443 if tls else 80, data, tls=host if tls else None, patience=2.0)
    world.nothing_reached(host, marker=marker)
    if PROXY in world.barriers:
        assert {reply.code for reply in replies} <= codes
        assert all(reply.status in (0, 400, 403) for reply in replies)


def http2(world: World, host: str, *requests: dict[str, object]) -> list[int]:
    """Make requests over one HTTP/2 connection; return the statuses, 0 where no answer came."""
    done = world.lab.python(
        HTTP2, host, world.lab.addresses(host)[0], json.dumps(requests), uid=ALICE, timeout=30
    )
    if done.returncode and PROXY not in world.barriers:
        # mitmproxy, as it is, ends the handshake where it cannot reach the upstream.
        return [0] * len(requests)
    assert done.returncode == 0, done.stderr
    return [answer["status"] for answer in json.loads(done.stdout)]


def head(host: str, target: str, /, *more: tuple[str, str], **pseudo: str) -> Fields:
    """Return the fields of an HTTP/2 request; `pseudo` changes its pseudo-header fields."""
    fields = {"method": "GET", "scheme": "https", "authority": host, "path": target} | pseudo
    named = [(f":{name}", value) for name, value in fields.items()]
    return [*named, ("x-agent-scope", SCOPE["X-Agent-Scope"]), *more]


def denied_http2(world: World, *more: tuple[str, str], **pseudo: str) -> None:
    """Make an HTTP/2 request that must not reach anybody."""
    host, marker = world.raw_name(), world.marker()
    changed = {
        name: value.replace("/M", f"/{marker}").replace("HOST", host) for name, value in pseudo.items()
    }
    (status,) = http2(world, host, {"headers": head(host, f"/{marker}", *more, **changed)})
    assert status in (0, 400, 403, 502)
    world.nothing_reached(host, marker=marker)


MALFORMED = frozenset({"request_malformed", ""})


@attempt(
    10,
    "Ask for a tunnel with CONNECT inside the redirected stream",
    outcome="denied: `request_malformed`",
    barriers=BOTH,
)
@pytest.mark.parametrize("tls", [False, True])
def test_connect(world: World, tls: bool) -> None:
    data = "CONNECT other.example:443 HTTP/1.1\r\nHost: other.example\r\nSCOPE\r\n/M"
    denied(world, world.raw_name(), data, tls=tls, codes=MALFORMED)


@attempt(
    11,
    "Speak HTTP/2 with prior knowledge to port 80",
    outcome="the connection is closed; no packet to the destination",
    barriers=BOTH,
)
def test_http2_without_tls(world: World) -> None:
    denied(world, world.raw_name(), "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n/M", tls=False, codes=frozenset({""}))


@attempt(
    12,
    "Upgrade to HTTP/2 without TLS (`Upgrade: H2C`), in any case",
    outcome="the request is passed on without the upgrade",
    barriers=PROXY,
)
@pytest.mark.parametrize("token", ["h2c", "H2C", "h2C, websocket"])
def test_h2c(world: World, token: str) -> None:
    host, marker = world.raw_name(), world.marker()
    upgrade = f"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {token}\r\nHTTP2-Settings: AAMAAABk\r\n"
    world.send(host, 80, f"GET /{marker} HTTP/1.1\r\nHost: {host}\r\n{FIELD}{upgrade}\r\n")
    got = world.received(marker).lower()
    assert marker in got
    assert "upgrade" not in got
    assert "http2-settings" not in got


@attempt(
    13,
    "Have the upstream switch to a protocol that is not WebSocket (101)",
    outcome="both connections are closed; nothing is passed on",
    barriers=PROXY,
)
def test_switching_to_a_raw_protocol(world: World) -> None:
    host, marker = world.raw_name(), world.marker()
    asked = f"GET /raw HTTP/1.1\r\nHost: {host}\r\n{FIELD}Connection: Upgrade\r\nUpgrade: websocket\r\n"
    for upgrade in (
        f"{asked}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n\r\n",
        f"GET /raw HTTP/1.1\r\nHost: {host}\r\n{FIELD}\r\n",
    ):
        replies = world.send(host, 80, upgrade + marker, patience=1.0)
        assert not any(marker in reply.answer for reply in replies)
    world.nothing_reached(marker=marker)


@attempt(
    14,
    "Connect to one address and name another site in Host",
    outcome="sent to the named site's own checked address",
    barriers=BOTH,
)
def test_host_of_another_address(world: World) -> None:
    good, evil, marker = world.raw_name(), world.raw_name(), world.marker()
    replies = world.send(evil, 80, world.get(good, f"/{marker}"))
    world.nothing_reached(evil)
    if PROXY in world.barriers:
        assert {reply.status for reply in replies} == {200}
        assert f"Host: {good}" in world.received(marker)


@attempt(
    15,
    "Name another host in an absolute-form request target",
    outcome="denied: `request_malformed`",
    barriers=BOTH,
)
@pytest.mark.parametrize("target", ["https://other.example/M", "https://HOST/M", "//other.example/M@"])
def test_absolute_form(world: World, target: str) -> None:
    if target.startswith("//"):
        target = target.replace("//", "http://x//")
    denied(world, world.raw_name(), f"GET {target} HTTP/1.1\r\nHost: HOST\r\nSCOPE\r\n", codes=MALFORMED)


@attempt(
    16,
    "Claim HTTP/2.0, or another version, on an HTTP/1 request line",
    outcome="denied or closed",
    barriers=BOTH,
)
@pytest.mark.parametrize("version", ["HTTP/2.0", "HTTP/3", "HTTP/0.9", "HTTP/1.2", "http/1.1"])
def test_version(world: World, version: str) -> None:
    denied(world, world.raw_name(), f"GET /M {version}\r\nHost: HOST\r\nSCOPE\r\n", codes=MALFORMED)


@attempt(
    17,
    "Send two Host fields, in either order and any case",
    outcome="denied: `request_malformed`",
    barriers=BOTH,
)
@pytest.mark.parametrize(
    "hosts", ["Host: HOST\r\nHost: b.example", "Host: b.example\r\nhost: HOST", "Host: HOST\r\nhOST: HOST"]
)
def test_two_hosts(world: World, hosts: str) -> None:
    denied(world, world.raw_name(), f"GET /M HTTP/1.1\r\n{hosts}\r\nSCOPE\r\n", codes=MALFORMED)


@attempt(
    18,
    "Send `host` beside an `:authority` that disagrees, over HTTP/2",
    outcome="denied: `request_malformed`",
    barriers=BOTH,
)
@pytest.mark.parametrize("host", ["b.example", "user@b.example", ""])
def test_host_beside_authority(world: World, host: str) -> None:
    denied_http2(world, ("host", host))


@attempt(19, "Send an HTTP/2 `:path` in absolute form", outcome="denied: `request_malformed`", barriers=BOTH)
@pytest.mark.parametrize("path", ["https://b.example/M", "M", "*"])
def test_absolute_path(world: World, path: str) -> None:
    denied_http2(world, path=path)


@attempt(
    20,
    "Put spaces or a whole request line into `:method` or `:path`",
    outcome="denied: `request_malformed`",
    barriers=BOTH,
)
@pytest.mark.parametrize(
    "pseudo",
    [
        {"method": "GET /M HTTP/1.1\r\nHost: b.example\r\n\r\nGET"},
        {"method": "GET /M"},
        {"path": "/M HTTP/1.1\r\nHost: b.example\r\n\r\nGET /"},
        {"path": "/M HTTP/1.1"},
        {"path": "/M\tx"},
        {"authority": "HOST b.example"},
    ],
    ids=str,
)
def test_spaces_in_pseudo_headers(world: World, pseudo: dict[str, str]) -> None:
    denied_http2(world, **pseudo)


@attempt(
    21,
    "Hide a second request in an HTTP/2 body without content-length, for an HTTP/1 upstream",
    outcome="exactly one request reaches the upstream, its body framed",
    barriers=PROXY,
)
def test_body_that_is_a_request(world: World) -> None:
    host, marker = world.raw_name(), world.marker()
    hidden = f"GET /hidden-{marker} HTTP/1.1\r\nHost: {host}\r\n\r\n"
    (status,) = http2(world, host, {"headers": head(host, f"/{marker}", method="POST"), "body": [hidden]})
    assert status == 200
    got = world.received(marker)
    assert "transfer-encoding: chunked\r\n" in got
    assert got.endswith(f"\r\n\r\n{len(hidden):x}\r\n{hidden}\r\n0\r\n\r\n")


@attempt(22, "Put CR, LF or NUL into an HTTP/2 field", outcome="refused", barriers=BOTH)
@pytest.mark.parametrize(
    "field", [("x", "a\r\nhost: b.example"), ("x", "a\nb"), ("x", "a\0b"), ("x\r\ny", "a"), ("x: y", "a")]
)
def test_control_characters_in_http2(world: World, field: tuple[str, str]) -> None:
    denied_http2(world, field)


@attempt(
    23,
    "Let content-length and transfer-encoding contradict each other, in all known spellings",
    outcome="denied: `request_malformed`",
    barriers=BOTH,
)
@pytest.mark.parametrize(
    "framing",
    [
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5, 6",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding : chunked",
        " Transfer-Encoding: chunked",
        "X: y\r\n Transfer-Encoding: chunked",
        "Transfer-Encoding: \vchunked",
        "Transfer-Encoding: chunked\f",
        "Transfer-Encoding:\tchunked",
        "Transfer-Encoding: chunked\r",
        "Content-Length: \v5",
        "Content-Length: 5\0",
        "Content-Length: +5",
        "Content-Length: 0x5",
        "Content-Length: -1",
        "Content-Length: 5 5",
        "Content-Length:",
    ],
)
def test_framing(world: World, framing: str) -> None:
    data = f"POST /M HTTP/1.1\r\nHost: HOST\r\n{FIELD}{framing}\r\n\r\n0\r\n\r\n"
    denied(world, world.raw_name(), data, codes=MALFORMED)


@attempt(
    24,
    "Put bare CR, NUL, TAB or folded lines into field values",
    outcome="denied: `request_malformed`",
    barriers=BOTH,
)
@pytest.mark.parametrize(
    "value", ["a\rb", "a\0b", "a\tb", "a\r\n b", "a\r\n\tb", "a\x7fb", "a\nb", "a\r", "\ta", "\va"]
)
def test_field_values(world: World, value: str) -> None:
    denied(
        world, world.raw_name(), f"GET /M HTTP/1.1\r\nHost: HOST\r\nX: {value}\r\nSCOPE\r\n", codes=MALFORMED
    )


@attempt(
    25,
    "Disguise an address as a host: short, octal, hexadecimal, decimal, with a zone, in wide digits",
    outcome="denied: `destination_invalid` or `destination_mismatch`",
    barriers=BOTH,
)
@pytest.mark.parametrize(
    "host",
    [
        "127.1",
        "0x7f.1",
        "2130706433",
        "0177.0.0.1",
        "127.0.0.1.",
        "[fe80::1%25lo]",
        "[::ffff:127.0.0.1]",
        "\uff11\uff12\uff17.0.0.1",
        "0x7f000001",
        "[::1]",
        "10.66.0.2",
    ],
)
@pytest.mark.parametrize("tls", [False, True])
def test_address_in_disguise(world: World, host: str, tls: bool) -> None:
    name = world.raw_name()
    data = f"GET /M HTTP/1.1\r\nHost: {host}\r\nSCOPE\r\n".encode().decode("latin-1")
    codes = frozenset({"destination_invalid", "destination_mismatch", "request_malformed"})
    denied(world, name, data, tls=tls, codes=codes)


@attempt(26, "Put userinfo, another port, or nothing into Host", outcome="denied", barriers=BOTH)
@pytest.mark.parametrize(
    "host",
    [
        "user@HOST",
        "HOST@b.example",
        "HOST:8443",
        "HOST:",
        "HOST:443:443",
        "",
        " ",
        "HOST, b.example",
        "HOST/x",
    ],
)
def test_host_field(world: World, host: str) -> None:
    codes = frozenset({"destination_invalid", "destination_mismatch", "request_malformed", ""})
    denied(world, world.raw_name(), f"GET /M HTTP/1.1\r\nHost: {host}\r\nSCOPE\r\n", codes=codes)


@attempt(
    27,
    "Write a denied name in upper case, with a trailing dot, in punycode or in Unicode",
    outcome="denied: `destination_denied`, or invalid",
    barriers=BOTH,
)
@pytest.mark.parametrize(
    "written",
    [
        "bad.example",
        "BAD.example",
        "bad.example.",
        "x.Bad.Example.",
        "bäd.example",
        "\uff42ad.example",
        "bad.example..",
    ],
)
def test_spelling_of_a_denied_name(world: World, written: str) -> None:
    name, marker = world.raw_name(), world.marker()
    data = f"GET /{marker} HTTP/1.1\r\nHost: {written}\r\n{FIELD}\r\n".encode().decode("latin-1")
    replies = world.send(name, 80, data)
    world.nothing_reached(name, marker=marker)
    if PROXY in world.barriers:
        assert {reply.code for reply in replies} <= {"destination_denied", "destination_invalid"}


@attempt(
    28,
    "Name another host than the TLS server name on a connection that was kept alive",
    outcome="denied: `destination_mismatch`",
    barriers=BOTH,
)
def test_another_host_on_a_kept_connection(world: World) -> None:
    first, other, marker = world.raw_name(), world.raw_name(), world.marker()
    data = world.get(first, "/first") + world.get(other, f"/{marker}")
    replies = world.send(first, 443, data, tls=first, answers=2, patience=2.0)
    world.nothing_reached(other, marker=marker)
    if PROXY in world.barriers:
        assert all("destination_mismatch" in reply.answer for reply in replies)


@attempt(
    29,
    "Name another host than the TLS server name on one stream of an HTTP/2 connection",
    outcome="denied: `destination_mismatch`",
    barriers=BOTH,
)
def test_another_host_on_a_stream(world: World) -> None:
    first, other, marker = world.raw_name(), world.raw_name(), world.marker()
    statuses = http2(world, first, {"headers": head(first, "/first")}, {"headers": head(other, f"/{marker}")})
    world.nothing_reached(other, marker=marker)
    if PROXY in world.barriers:
        assert statuses == [200, 403]
