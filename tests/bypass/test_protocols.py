"""What is spoken on a redirected connection, and what must not be spoken to anybody."""

import pytest

from tests.bypass.agent import Reply
from tests.bypass.attempts import BOTH, KERNEL, PROXY, attempt
from tests.bypass.world import World

CLOSED = Reply("", "closed")


@attempt(
    6,
    "Speak SSH to port 443 or 80",
    outcome="the connection is closed; no packet to the destination",
    barriers=BOTH,
    works_without=True,
)
@pytest.mark.parametrize("port", [80, 443])
def test_ssh_on_a_web_port(world: World, port: int) -> None:
    host, marker = world.raw_name(tls=False), world.marker()
    before = len(world.lab.audit())
    replies = world.send(host, port, f"SSH-2.0-{marker}\r\n")
    world.nothing_reached(host, marker=marker)
    if PROXY in world.barriers:
        assert set(replies) == {CLOSED}
        codes = [record.get("code") for record in world.lab.audit()[before:]]
        assert codes.count("request_malformed") == len(replies)


@attempt(
    7,
    "Send bytes of no known protocol to port 80 or 443",
    outcome="the connection is closed; no packet to the destination",
    barriers=BOTH,
    works_without=True,
)
@pytest.mark.parametrize("port", [80, 443])
@pytest.mark.parametrize("start", ["\x00\x01\x02\xff", "\x16\x02", "* OK ", "220 \n"])
def test_binary_on_a_web_port(world: World, port: int, start: str) -> None:
    host, marker = world.raw_name(tls=False), world.marker()
    replies = world.send(host, port, f"{start}{marker}\r\n")
    world.nothing_reached(host, marker=marker)
    if PROXY in world.barriers:
        assert set(replies) == {CLOSED}


@attempt(
    8,
    "Speak something other than HTTP inside TLS",
    outcome="the connection is closed; no packet to the destination",
    barriers=BOTH,
    works_without=True,
)
@pytest.mark.parametrize("alpn", [(), ("imap",)])
def test_no_http_inside_tls(world: World, alpn: tuple[str, ...]) -> None:
    host, marker = world.raw_name(), world.marker()
    replies = world.send(host, 443, f"* OK {marker}\r\n", tls=host, alpn=alpn)
    world.nothing_reached(host, marker=marker)
    if PROXY in world.barriers:
        assert {reply.answer for reply in replies} == {""}
        assert {reply.end for reply in replies} <= {"closed", "TLS: TLSV1_ALERT_NO_APPLICATION_PROTOCOL"}


@attempt(
    9,
    "Put a line break or a form feed in front of the request line",
    outcome="the connection is closed; no packet to the destination",
    barriers=BOTH,
    works_without=True,
)
@pytest.mark.parametrize("before", ["\r\n", "\n", "\x0c", " ", "\x00"])
@pytest.mark.parametrize("tls", [False, True])
def test_something_before_the_request_line(world: World, before: str, tls: bool) -> None:
    host, marker = world.raw_name(), world.marker()
    data = before + world.get(host, f"/{marker}")
    replies = world.send(host, 443 if tls else 80, data, tls=host if tls else None)
    world.nothing_reached(host, marker=marker)
    if PROXY in world.barriers:
        assert set(replies) == {CLOSED}


CROSSED = attempt(
    34,
    "Speak TLS to port 80, or HTTP without TLS to port 443",
    outcome="denied: `destination_mismatch`",
    barriers=BOTH,
    works_without=True,
)


@CROSSED
@pytest.mark.parametrize("port", [80, 443])
def test_tls_on_port_80_and_none_on_443(world: World, port: int) -> None:
    host, marker = world.raw_name(tls=False), world.marker()
    replies = world.send(host, port, world.get(host, f"/{marker}"), tls=host if port == 80 else None)
    # Where no barrier stands the origin on port 80 gets a ClientHello; it has no TLS to answer it with.
    world.nothing_reached(host, marker=marker if port == 443 or world.barriers else "")
    if PROXY in world.barriers:
        assert {reply.code for reply in replies} == {"destination_mismatch"}


@CROSSED
def test_tls_on_port_80_of_a_name_that_is_inspected_by_name(world: World) -> None:
    host = "crossed.named.example"
    world.lab.add_name(host)
    replies = world.send(host, 80, world.get(host, "/"), tls=host)
    world.nothing_reached(host)
    if PROXY in world.barriers:
        assert {reply.code for reply in replies} == {"destination_mismatch"}


@attempt(
    37,
    "Open a connection and stay silent, at once or in the middle of a request",
    outcome="no packet to the destination",
    barriers=BOTH,
    works_without=True,
)
@pytest.mark.parametrize("begun", ["", "GET /", "\x16\x03\x01\x02\x00\x01"])
@pytest.mark.parametrize("tls", [False, True])
def test_silence(world: World, tls: bool, begun: str) -> None:
    host = world.raw_name()
    world.send(host, 443 if tls else 80, begun, tls=host if tls else None, patience=0.3)
    world.nothing_reached(host)


@attempt(
    60,
    "Ask for `mitm.it`, mitmproxy's own web site",
    outcome="decided like any other name; the site is not served",
    barriers=PROXY,
    works_without=True,
)
@pytest.mark.parametrize("tls", [False, True])
def test_the_proxys_own_web_site(world: World, tls: bool) -> None:
    host = world.raw_name()
    data = world.get("mitm.it", "/")
    replies = world.send(host, 443 if tls else 80, data, tls="mitm.it" if tls else None)
    if PROXY in world.barriers:
        assert {reply.code for reply in replies} == {"resolution_failed"}
        world.nothing_reached(host)
    else:
        assert all("Install mitmproxy's Certificate Authority" in reply.answer for reply in replies)


@attempt(
    50,
    "Connect by TCP Fast Open or by multipath TCP",
    outcome="redirected and decided like any other TCP",
    barriers=BOTH,
    works_without=True,
)
@pytest.mark.parametrize("kind", ["fast open", "mptcp"])
def test_other_ways_to_open_tcp(world: World, kind: str) -> None:
    # 5: a client may send data with its first packet to a server that never gave it a cookie.
    world.lab.run(["sh", "-c", "echo 5 > /proc/sys/net/ipv4/tcp_fastopen"])
    host, marker = world.raw_name(), world.marker()
    request = world.get(host, f"/{marker}", scope="sandbox-bob")
    replies = world.send(host, 80, request, kind=kind)
    world.nothing_reached(host, marker=marker)
    if PROXY in world.barriers:
        assert {reply.code for reply in replies} == {"scope_not_allowed"}


@attempt(
    52,
    "Send ICMP, SCTP, UDP-Lite, or raw packets of any protocol",
    outcome="refused, even to a process that was given raw sockets",
    barriers=KERNEL,
    works_without=True,
)
@pytest.mark.parametrize(
    "kind", ["ping", "udp-lite", "raw icmp", "raw 6", "raw 17", "raw 47", "raw 132", "raw 136"]
)
def test_other_protocols_than_tcp(world: World, kind: str) -> None:
    world.lab.run(["sh", "-c", "echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range"])
    host = world.name()
    for address in world.lab.addresses(host):
        number = {"raw icmp": "raw 58" if ":" in address else "raw 1"}.get(kind, kind)
        (reply,) = world.send([address], 443, "x", kind=number, caps=("net_raw",), patience=0.2)
        if world.barriers:
            # A ping by IPv6 is refused without a word.
            assert reply.end in {"EPERM", "EHOSTUNREACH", "EACCES", "sent" if kind == "ping" else ""}
    world.nothing_reached(host)
