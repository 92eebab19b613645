"""What never ends, or ends too late."""

import json
import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from deploy.demo.lab import ALICE, NAMESERVERS
from tests.bypass.attempts import BOTH, KERNEL, PROXY, attempt
from tests.bypass.world import POLICY, World, until
from tests.end_to_end.test_streams import HTTP2, LIMIT, UPLOAD, Held, frame, head, hold, resident, upgrade

ENDLESS = 1_000_000
HEADS = attempt(
    57,
    "Send a header line, header lines or HTTP/2 CONTINUATION frames, or a ClientHello, without end",
    outcome="closed: over HTTP/1 within 256 KiB, over HTTP/2 within 64 frames; no packet to the destination",
    barriers=BOTH,
)
BODIES = attempt(
    67,
    "Open a WebSocket, or send a body without length, where the intent allows no body",
    outcome="denied: `body_too_large`; nothing is sent to the destination",
    barriers=BOTH,
    works_without=True,
)
LEAVES = attempt(
    59,
    "Close the connection while the request is being decided",
    outcome="nothing is sent to the destination, though the request was permitted",
    barriers=PROXY,
    works_without=True,
)
# Seconds for which a connection is held that should end long before.
HELD = 7.0
LATE = 5.0


def assert_ended(world: World, held: list[Held]) -> None:
    """Assert that connections ended early; by the kernel alone they fall silent, by the proxy they are closed."""
    for one in held:
        assert one.answer.startswith("HTTP/1.1 "), one
        assert (one.last < LATE) == bool(world.barriers), one
        if PROXY in world.barriers:
            assert one.end == "closed"
            assert one.seconds < LATE


@attempt(
    54,
    "Keep a stream of server-sent events beyond the end of its grant",
    outcome="cut on both sides when the grant ends",
    barriers=BOTH,
)
def test_a_stream_that_outlives_its_grant(world: World) -> None:
    host, marker = world.name(), world.marker()
    request = world.get(host, f"/slow-stream?{marker}", "sandbox-alice;ttl=2")
    if PROXY not in world.barriers:
        for address in world.lab.addresses(host):
            members = f"{{ {address} . 443 timeout 2s }}"
            world.nft(f"add element inet egress-policy {sandbox_set(address)} {members}")
    held = hold(world.lab, host, request, addresses=world.ways(host), port=443, seconds=HELD)
    assert_ended(world, held)
    assert until(lambda: are_closed(world, marker))


def sandbox_set(address: str) -> str:
    """Name the set that an address is in while a grant of it lives."""
    return "developer-sandbox-ipv6" if ":" in address else "developer-sandbox"


def are_closed(world: World, marker: str) -> bool:
    """Tell whether every connection on which a marker came to an origin is closed."""
    connections = {record["connection"] for record in world.arrivals(marker)}
    closed = {record["connection"] for record in world.lab.arrivals() if record["event"] == "closed"}
    return bool(connections) and connections <= closed


@attempt(
    55,
    "Go on with a WebSocket after its grant was revoked",
    outcome="the client is cut off when the grant is revoked",
    barriers=BOTH,
    works_without=True,
)
def test_a_websocket_that_outlives_its_grant(world: World) -> None:
    """Revoked with plain nft, as docs/operators.md says."""
    host, marker = world.raw_name(), world.marker()
    request = upgrade(host, "sandbox-alice;intent=free", f"/ws?{marker}")
    if PROXY not in world.barriers and KERNEL in world.barriers:
        world.open(host, 80)
    with ThreadPoolExecutor() as pool:
        held = pool.submit(
            hold, world.lab, host, request, frame(0x82, "m"), addresses=world.ways(host), seconds=HELD
        )
        assert until(lambda: world.received(marker).count("GET /ws") == len(world.ways(host)))
        if world.barriers:
            # The proxy deletes a grant's second address itself.
            for address in world.lab.addresses(host)[: 1 if PROXY in world.barriers else None]:
                world.nft(f"delete element inet egress-policy {sandbox_set(address)} {{ {address} . 80 }}")
    assert_ended(world, held.result())


@attempt(
    56,
    "Upload 300 MB where that is denied",
    outcome="answered at once; what still comes is dropped, and the proxy's memory does not grow",
    barriers=PROXY,
)
@pytest.mark.parametrize("framing", ["Content-Length: 300000000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize(
    ("scope", "status"),
    [("sandbox-alice", "403"), ("sandbox-bob", "403"), ("sandbox-alice;intent=develop", "413")],
)
def test_a_large_upload_that_is_denied(world: World, framing: str, scope: str, status: str) -> None:
    host = world.raw_name()
    path = f"/{world.marker()}"
    sent = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nX-Agent-Scope: {scope}\r\n{framing}\r\n\r\n"
    before = resident(world.lab)
    for address in world.ways(host):
        done = world.lab.python(UPLOAD, address, sent, uid=ALICE)
        taken, answer = json.loads(done.stdout)
        assert answer.startswith(f"HTTP/1.1 {status} ")
        assert taken == 300
    assert len(world.received(path)) <= 3 * (LIMIT + 1000)
    assert resident(world.lab) - before < 40


@HEADS
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize(
    "data",
    [
        "GET / HTTP/1.1\r\nHost: HOST\r\nX: " + "a" * ENDLESS,
        "GET / HTTP/1.1\r\n" + "X: a\r\n" * (ENDLESS // 6),
        "GET /" + "a" * ENDLESS,
    ],
    ids=["a line", "lines", "a target"],
)
def test_endless_heads(world: World, data: str, *, tls: bool) -> None:
    host = world.raw_name()
    port, name = (443, host) if tls else (80, None)
    replies = world.send(host, port, data.replace("HOST", host), tls=name, patience=3.0)
    world.nothing_reached(host)
    if PROXY in world.barriers:
        assert {reply.answer for reply in replies} == {""}
        assert "silence" not in {reply.end for reply in replies}


def http2_frame(kind: int, payload: str, stream: int = 1) -> str:
    """Write a frame without flags (RFC 9113 section 4.1)."""
    return (len(payload).to_bytes(3) + bytes([kind, 0]) + stream.to_bytes(4)).decode("latin-1") + payload


@HEADS
def test_an_endless_http2_head(world: World) -> None:
    """HEADERS, and then CONTINUATION for ever: a literal field whose value of 16 MiB never ends."""
    host = world.raw_name()
    settings = http2_frame(4, "", stream=0)
    literal = "\x00\x01x\x7f" + "\x81\xff\xff\x07"
    parts = http2_frame(1, literal) + http2_frame(9, "a" * 16_000) * (2 * ENDLESS // 16_000)
    data = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + parts
    replies = world.send(host, 443, data, tls=host, alpn=["h2"], patience=3.0)
    world.nothing_reached(host)
    if PROXY in world.barriers:
        assert "silence" not in {reply.end for reply in replies}, replies


@HEADS
def test_an_endless_client_hello(world: World) -> None:
    """A handshake message of 16 MiB, in records of 16 KiB."""
    host = world.raw_name()
    record = "\x16\x03\x01\x40\x00"
    data = record + "\x01\xff\xff\xff\x03\x03".ljust(0x4000, "a") + (record + "a" * 0x4000) * 64
    replies = world.send(host, 443, data, patience=3.0)
    world.nothing_reached(host)
    if PROXY in world.barriers:
        assert {reply.answer for reply in replies} == {""}
        assert "silence" not in {reply.end for reply in replies}


@attempt(
    58,
    "Have the upstream offer HTTP/3 (`Alt-Svc`)",
    outcome="the field is removed",
    barriers=PROXY,
    works_without=True,
)
def test_an_alternative_service(world: World) -> None:
    host = world.raw_name()
    for port, tls in (80, None), (443, host):
        for reply in world.send(host, port, world.get(host, "/"), tls=tls):
            assert reply.status == 200
            assert ("alt-svc" in reply.answer.lower()) == (PROXY not in world.barriers)


@pytest.fixture
def patient_world(world: World) -> Iterator[World]:
    """A world in which the proxy waits longer for a name server than a test takes."""
    world.stop_proxy()
    world.lab.write_policy(POLICY.replace("timeout: 1s", "timeout: 20s"))
    world.ensure_proxy()
    yield world
    world.stop_proxy()
    world.lab.write_policy(POLICY)


@contextmanager
def stopped_name_server(world: World) -> Iterator[None]:
    """Have the internet's name server answer nothing now, and everything at the end."""
    shown = world.lab.run(["ss", "-Hlunp", f"src {NAMESERVERS[0]}:53"], ns="net").stdout
    found = re.search(r"pid=(\d+)", shown)
    assert found is not None, shown
    pid = int(found[1])
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@LEAVES
@pytest.mark.parametrize("port", [80, 443])
def test_a_client_that_leaves(patient_world: World, port: int) -> None:
    world = patient_world
    host, marker = world.raw_name(), world.marker()
    with stopped_name_server(world):
        tls = host if port == 443 else None
        replies = world.send(host, port, world.get(host, f"/{marker}"), tls=tls, patience=0.5)
        if PROXY in world.barriers:
            assert {(reply.answer, reply.end) for reply in replies} == {("", "silence")}
    if PROXY in world.barriers:
        assert until(lambda: decisions(world, marker) == ["permit"] * len(replies)), decisions(world, marker)
    world.nothing_reached(marker=marker)


def decisions(world: World, marker: str) -> list[str]:
    return [
        record["outcome"]
        for record in world.lab.audit()
        if record["event"] == "decision" and marker in str(record.get("path"))
    ]


@BODIES
@pytest.mark.parametrize("port", [80, 443])
@pytest.mark.parametrize("is_websocket", [True, False], ids=["WebSocket", "chunked"])
def test_what_has_no_length(world: World, port: int, *, is_websocket: bool) -> None:
    host, scope = world.raw_name(), "sandbox-alice"
    chunked = world.get(host, "/", scope).replace(
        "\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
    )
    data = upgrade(host, scope) if is_websocket else chunked
    replies = world.send(host, port, data, tls=host if port == 443 else None)
    world.nothing_reached(host)
    if PROXY in world.barriers:
        assert {(reply.status, reply.code) for reply in replies} == {(413, "body_too_large")}
    elif not world.barriers:
        assert {reply.status for reply in replies} == {101 if is_websocket else 200}


@BODIES
def test_what_has_no_length_over_http2(world: World) -> None:
    """The proxy learns that there is a body when the grant is made, and has found an address that answers."""
    host, marker = world.name(), world.marker()
    request = {"headers": head(f"/{marker}", host=host, intent="default"), "body": ["x"]}
    for address in world.ways(host):
        done = world.lab.python(HTTP2, host, address, json.dumps([request]), uid=ALICE)
        if PROXY in world.barriers:
            assert json.loads(done.stdout)[0]["status"] == 413
    world.nothing_reached(marker=marker)
