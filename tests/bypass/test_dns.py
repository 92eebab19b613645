"""DNS as a way out: names that nobody approved, servers that are not ours."""

import struct

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from deploy.demo.lab import NAMESERVERS
from tests.bypass.agent import Send
from tests.bypass.attempts import KERNEL, PROXY, attempt
from tests.bypass.world import World

TYPES = ("A", "AAAA", "TXT", "MX", "NULL", "HTTPS", "CNAME", "SRV", "PTR", "ANY", "AXFR", "TYPE65280")


def query(name: str, kind: str, to: str, *, tcp: bool = False, rdclass: str = "IN") -> Send:
    """Ask a server for a name."""
    asked = dns.message.make_query(name, kind, rdclass)
    asked.flags |= dns.flags.RD
    wire = asked.to_wire()
    if tcp:
        wire = struct.pack("!H", len(wire)) + wire
    return Send(to, 53, wire.decode("latin-1"), kind="tcp" if tcp else "udp", patience=0.5 if tcp else 3)


@attempt(
    61,
    "Send data in the labels of names that nobody approved",
    outcome="answered by the proxy itself; no such query leaves the host",
    barriers=PROXY,
    works_without=True,
)
@pytest.mark.parametrize("tcp", [False, True], ids=["UDP", "TCP"])
def test_data_in_names(world: World, tcp: bool) -> None:
    marker = world.marker()
    names = [f"{marker}.{'a' * 60}.bad.example", f"x.{marker}.direct.example", f"{marker}.example"]
    # A bare mitmdump's DNS does not know what is odd; what it forwards is enough to see that the way is open.
    kinds = TYPES if world.barriers else ("A", "TXT")
    sends = [query(name, kind, server, tcp=tcp) for name in names for kind in kinds for server in NAMESERVERS]
    sends += [query(names[0], "A", NAMESERVERS[0], tcp=tcp, rdclass=rdclass) for rdclass in ("CH", "ANY")]
    replies = dict(zip(sends, world.make(sends), strict=True))
    arrived = [one for one in world.lab.queries() if marker in str(one)]
    assert bool(arrived) == (not world.barriers)
    if PROXY in world.barriers:
        # Of many datagrams at once one may be lost: clients ask again.
        lost = [one for one, reply in replies.items() if not reply.answer]
        if lost:
            replies |= zip(lost, world.make(lost), strict=True)
        for reply in replies.values():
            wire = reply.answer.encode("latin-1")[2 if tcp else 0 :]
            answer = dns.message.from_wire(wire, ignore_trailing=True)
            assert answer.rcode() in {dns.rcode.NOERROR, dns.rcode.REFUSED, dns.rcode.NOTIMP}
            assert all(record.rdtype in {dns.rdatatype.A, dns.rdatatype.AAAA} for record in answer.answer)


@attempt(
    62,
    "Ask another name server: by UDP or TCP, by DNS over TLS or QUIC, by DNS over HTTPS",
    outcome="plain DNS gets the proxy's answer; DNS over TLS or QUIC is refused; DNS over HTTPS is decided like any other request",
    barriers=KERNEL,
    works_without=True,
)
@pytest.mark.parametrize("how", ["udp", "tcp", "dot", "doq", "doh"])
def test_another_name_server(world: World, how: str) -> None:
    server, marker = world.name(), world.marker()
    asked = query(f"{marker}.example", "TXT", "0.0.0.0").data
    match how:
        case "udp" | "tcp":
            sends = [
                query(f"{marker}.example", "A", to, tcp=how == "tcp") for to in world.lab.addresses(server)
            ]
            replies = world.make(sends)
        case "dot":
            replies = world.send(server, 853, asked, tls=server)
        case "doq":
            replies = world.send(server, 853, asked, kind="udp") + world.send(server, 443, asked, kind="udp")
        case _:
            post = (
                f"POST /{marker} HTTP/1.1\r\nHost: {server}\r\nContent-Type: application/dns-message\r\n"
                f"Content-Length: {len(asked)}\r\n\r\n{asked}"
            )
            replies = world.send(server, 443, post, tls=server)
    if not world.barriers and how in {"udp", "tcp"}:
        # Redirected here too, but then forwarded.
        assert marker in str(world.lab.queries())
        return
    world.nothing_reached(server)
    if not world.barriers:
        return
    assert marker not in str(world.lab.queries())
    match how:
        case "udp" | "tcp":
            assert all(reply.answer for reply in replies)
        case "doh":
            assert {reply.code for reply in replies} == {"scope_missing"}
        case _:
            assert {reply.end for reply in replies} <= {"ECONNREFUSED", "EPERM", "EACCES", "EHOSTUNREACH"}
