"""The resolver against a real name server on loopback that answers well, badly or not at all."""

import asyncio
import ipaddress
import random
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from egress_policy.destination import Address
from egress_policy.grant import Resolution
from egress_policy.resolver import Nameserver, ResolutionFailedError, Resolver, system_nameservers

LOOPBACK = ipaddress.ip_address("127.0.0.1")
HOST = "host.example"

type Answer = Callable[[dns.message.Message, bool], bytes | None]
"""Makes the bytes that answer a query, given whether it came over TCP; None is silence."""


class NameServer(asyncio.DatagramProtocol):
    """Answers over UDP and TCP, on one port, and keeps the names and types that it was asked for."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.asked: list[tuple[str, str]] = []

    def reply(self, data: bytes, *, tcp: bool) -> bytes | None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        self.asked.append((question.name.to_text(), dns.rdatatype.to_text(question.rdtype)))
        return self._answer(query, tcp)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.DatagramTransport)
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        reply = self.reply(data, tcp=False)
        if reply is not None:
            self._transport.sendto(reply, addr)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (length,) = struct.unpack("!H", await reader.readexactly(2))
        reply = self.reply(await reader.readexactly(length), tcp=True)
        if reply is not None:
            writer.write(struct.pack("!H", len(reply)) + reply)
        writer.close()


@asynccontextmanager
async def name_server(answer: Answer) -> AsyncIterator[tuple[NameServer, Nameserver]]:
    server = NameServer(answer)
    tcp = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = tcp.sockets[0].getsockname()[1]
    udp, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: server, ("127.0.0.1", port))
    try:
        yield server, (LOOPBACK, port)
    finally:
        udp.close()
        tcp.close()


def zone(*records: str) -> Answer:
    """Answer with the records of the type that is asked for, and with every alias."""

    def answer(query: dns.message.Message, _tcp: bool) -> bytes:
        asked = dns.rdatatype.to_text(query.question[0].rdtype)
        response = dns.message.make_response(query)
        for record in records:
            name, ttl, kind, value = record.split()
            if kind in (asked, "CNAME"):
                response.answer.append(dns.rrset.from_text(name, int(ttl), "IN", kind, value))
        return response.to_wire()

    return answer


def rcode(code: dns.rcode.Rcode) -> Answer:
    def answer(query: dns.message.Message, _tcp: bool) -> bytes:
        response = dns.message.make_response(query)
        response.set_rcode(code)
        return response.to_wire()

    return answer


def silence(_query: dns.message.Message, _tcp: bool) -> None:
    """Say nothing."""


def by_type(a: Answer, aaaa: Answer) -> Answer:
    return lambda query, tcp: (a if query.question[0].rdtype == dns.rdatatype.A else aaaa)(query, tcp)


def resolve(answer: Answer, host: str = HOST, timeout: float = 1.0) -> Resolution:
    async def once() -> Resolution:
        async with name_server(answer) as (_, address):
            return await Resolver([address], timeout).resolve(host)

    return asyncio.run(once())


def addresses(*texts: str) -> tuple[Address, ...]:
    return tuple(ipaddress.ip_address(text) for text in texts)


def test_both_families_are_asked_and_the_smallest_ttl_counts() -> None:
    answer = zone(
        "host.example. 300 A 192.0.2.1",
        "host.example. 60 AAAA 2001:db8::1",
    )
    assert resolve(answer) == Resolution(addresses("192.0.2.1", "2001:db8::1"), (), 60)


@pytest.mark.parametrize(
    ("record", "address"),
    [("host.example. 300 A 192.0.2.1", "192.0.2.1"), ("host.example. 300 AAAA 2001:db8::1", "2001:db8::1")],
)
def test_one_family_is_enough(record: str, address: str) -> None:
    assert resolve(zone(record)).addresses == addresses(address)


def test_the_aliases_on_the_way_are_told_in_canonical_form_and_their_ttl_counts() -> None:
    answer = zone(
        "host.example. 300 CNAME WWW.Example.",
        "www.example. 20 CNAME cdn.example.",
        "cdn.example. 100 A 192.0.2.1",
        "cdn.example. 100 AAAA 2001:db8::1",
    )
    resolution = resolve(answer)
    assert resolution.cnames == ("www.example", "cdn.example")
    assert resolution.ttl == 20


def test_records_of_another_name_are_not_the_answer() -> None:
    with pytest.raises(ResolutionFailedError, match="has no address"):
        resolve(zone("other.example. 300 A 192.0.2.1"))


def test_at_most_sixteen_addresses_of_both_families_each_once() -> None:
    answer = zone(
        *(f"host.example. 300 A 192.0.2.{number}" for number in range(1, 41)),
        *(f"host.example. 300 AAAA 2001:db8::{number:x}" for number in range(1, 41)),
    )
    found = resolve(answer).addresses
    assert len(set(found)) == len(found) == 16
    assert {address.version for address in found} == {4, 6}


def test_the_same_address_twice_counts_once() -> None:
    answer = zone("host.example. 300 AAAA ::ffff:192.0.2.1", "host.example. 300 A 192.0.2.1")
    assert resolve(answer).addresses == addresses("192.0.2.1", "::ffff:192.0.2.1")


def test_the_name_is_absolute() -> None:
    async def asked() -> list[tuple[str, str]]:
        async with name_server(rcode(dns.rcode.NXDOMAIN)) as (server, address):
            with pytest.raises(ResolutionFailedError):
                await Resolver([address], 1.0).resolve("host")
            return server.asked

    assert sorted(asyncio.run(asked())) == [("host.", "A"), ("host.", "AAAA")]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (rcode(dns.rcode.NXDOMAIN), r"host.example does not exist \(NXDOMAIN\)"),
        (zone(), "host.example has no address"),
        (zone("host.example. 300 CNAME www.example."), "host.example has no address"),
        (rcode(dns.rcode.SERVFAIL), "no name server could say where host.example is: SERVFAIL"),
        (rcode(dns.rcode.REFUSED), "REFUSED"),
        (rcode(dns.rcode.YXDOMAIN), "no name server could say"),
        (silence, r"no name server said within 1 s where host.example is"),
        (by_type(silence, zone()), "no name server said within"),
        (by_type(rcode(dns.rcode.SERVFAIL), silence), "SERVFAIL"),
        (
            zone("host.example. 300 CNAME www.example.", "www.example. 300 CNAME host.example."),
            "no name server could say",
        ),
        (zone("host.example. 300 CNAME host.example."), "no name server could say"),
        (
            zone(*(f"{'a' * n}host.example. 300 CNAME {'a' * (n + 1)}host.example." for n in range(30))),
            "no name server could say",
        ),
    ],
)
def test_a_failure_says_what_happened(answer: Answer, reason: str) -> None:
    with pytest.raises(ResolutionFailedError, match=reason):
        resolve(answer, timeout=1)


@pytest.mark.parametrize("failing", [rcode(dns.rcode.SERVFAIL), rcode(dns.rcode.NXDOMAIN), silence])
def test_when_one_family_fails_the_other_counts(failing: Answer) -> None:
    found = zone("host.example. 300 A 192.0.2.1", "host.example. 300 AAAA 2001:db8::1")
    assert resolve(by_type(found, failing), timeout=1).addresses == addresses("192.0.2.1")
    assert resolve(by_type(failing, found), timeout=1).addresses == addresses("2001:db8::1")


def test_a_look_up_ends_with_its_timeout() -> None:
    began = time.monotonic()
    with pytest.raises(ResolutionFailedError):
        resolve(silence, timeout=0.3)
    assert 0.2 < time.monotonic() - began < 3


@pytest.mark.parametrize("first", [silence, rcode(dns.rcode.SERVFAIL)])
def test_the_next_name_server_is_asked_when_one_cannot_tell(first: Answer) -> None:
    async def steps() -> None:
        async with (
            name_server(first) as (_, bad),
            name_server(zone("host.example. 9 A 192.0.2.1")) as (_, good),
        ):
            resolution = await Resolver([bad, good], 0.6).resolve(HOST)
            assert resolution.addresses == addresses("192.0.2.1")

    asyncio.run(steps())


def test_a_lost_packet_is_asked_for_again() -> None:
    lost: list[dns.message.Message] = []

    def answer(query: dns.message.Message, tcp: bool) -> bytes | None:
        if len(lost) < 2:
            lost.append(query)
            return None
        return zone("host.example. 9 A 192.0.2.1")(query, tcp)

    assert resolve(answer).addresses == addresses("192.0.2.1")


def test_nobody_at_the_name_servers_port_is_a_failure() -> None:
    async def steps() -> None:
        async with name_server(silence) as (_, address):
            pass
        with pytest.raises(ResolutionFailedError, match="no name server"):
            await Resolver([address], 0.3).resolve(HOST)

    asyncio.run(steps())


def test_a_truncated_answer_is_asked_for_again_over_tcp() -> None:
    def answer(query: dns.message.Message, tcp: bool) -> bytes | None:
        if tcp:
            return zone("host.example. 300 A 192.0.2.1")(query, tcp)
        response = dns.message.make_response(query)
        response.flags |= dns.flags.TC
        return response.to_wire()

    assert resolve(answer).addresses == addresses("192.0.2.1")


def test_truncation_without_an_answer_over_tcp_is_a_failure() -> None:
    def answer(query: dns.message.Message, tcp: bool) -> bytes | None:
        response = dns.message.make_response(query)
        response.flags |= dns.flags.TC
        return None if tcp else response.to_wire()

    with pytest.raises(ResolutionFailedError, match="no name server"):
        resolve(answer, timeout=0.3)


def with_wrong_id(query: dns.message.Message, tcp: bool) -> bytes:
    right = zone("host.example. 300 A 192.0.2.66")(query, tcp)
    assert right is not None
    return bytes([right[0] ^ 0xFF]) + right[1:]


def for_another_question(query: dns.message.Message, _tcp: bool) -> bytes:
    other = dns.message.make_query("other.example.", query.question[0].rdtype)
    other.id = query.id
    response = dns.message.make_response(other)
    response.answer.append(dns.rrset.from_text("host.example.", 300, "IN", "A", "192.0.2.66"))
    return response.to_wire()


@pytest.mark.parametrize(
    "forged",
    [
        with_wrong_id,
        for_another_question,
        lambda _query, _tcp: b"",
        lambda _query, _tcp: b"\xff" * 40,
        lambda query, _tcp: query.to_wire(),
    ],
    ids=["wrong id", "another question", "empty", "garbage", "the query itself"],
)
def test_an_answer_that_is_not_one_is_ignored(forged: Answer) -> None:
    with pytest.raises(ResolutionFailedError):
        resolve(forged, timeout=0.2)


def test_no_mangled_answer_raises_anything_else() -> None:
    chance = random.Random(1)
    good = zone(
        "host.example. 300 CNAME www.example.",
        "www.example. 300 A 192.0.2.1",
        "www.example. 300 AAAA 2001:db8::1",
    )

    def mangled(query: dns.message.Message, tcp: bool) -> bytes:
        data = bytearray(good(query, tcp) or b"")
        # The id stays right, so that the rest is read.
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(2, len(data))] = chance.randrange(256)
        return bytes(data[: chance.randint(2, len(data))] if chance.random() < 0.2 else data)

    async def one(address: Nameserver) -> None:
        try:
            resolution = await Resolver([address], 0.5).resolve(HOST)
        except ResolutionFailedError:
            return
        assert all(isinstance(name, str) for name in resolution.cnames)

    async def steps() -> None:
        async with name_server(mangled) as (_, address):
            await asyncio.gather(*(one(address) for _ in range(400)))

    asyncio.run(steps())


@pytest.mark.parametrize("host", ["", "a..b", "x" * 64 + ".example", ".".join(["x" * 60] * 5), "ü.example\0"])
def test_what_is_no_name_is_a_failure_too(host: str) -> None:
    with pytest.raises(ResolutionFailedError):
        resolve(zone(), host, timeout=0.2)


def test_the_cache_lives_as_long_as_the_ttl_says() -> None:
    now = 1000.0

    async def steps() -> None:
        nonlocal now
        async with name_server(zone("host.example. 30 A 192.0.2.1")) as (server, address):
            resolver = Resolver([address], 1.0, lambda: now)
            fresh = await resolver.resolve(HOST)
            assert (fresh.ttl, len(server.asked)) == (30, 2)
            now += 12.5
            assert await resolver.resolve(HOST) == Resolution(fresh.addresses, (), 17)
            assert len(server.asked) == 2
            now += 17.5
            assert (await resolver.resolve(HOST)).ttl == 30
            assert len(server.asked) == 4

    asyncio.run(steps())


def test_a_ttl_of_zero_is_asked_for_each_time() -> None:
    async def steps() -> None:
        async with name_server(zone("host.example. 0 A 192.0.2.1")) as (server, address):
            resolver = Resolver([address], 1.0)
            for queries in (2, 4):
                assert (await resolver.resolve(HOST)).ttl == 0
                assert len(server.asked) == queries

    asyncio.run(steps())


def test_nothing_is_believed_for_longer_than_a_day() -> None:
    assert resolve(zone("host.example. 2147483647 A 192.0.2.1")).ttl == 24 * 3600


@pytest.mark.parametrize("failing", [rcode(dns.rcode.SERVFAIL), silence])
def test_half_an_answer_is_not_remembered(failing: Answer) -> None:
    async def steps() -> None:
        half = by_type(zone("host.example. 30 A 192.0.2.1"), failing)
        async with name_server(half) as (server, address):
            resolver = Resolver([address], 0.2)
            await resolver.resolve(HOST)
            before = len(server.asked)
            await resolver.resolve(HOST)
            assert len(server.asked) > before

    asyncio.run(steps())


def test_the_cache_is_bounded() -> None:
    async def steps() -> None:
        def answer(query: dns.message.Message, tcp: bool) -> bytes | None:
            response = dns.message.make_response(query)
            if query.question[0].rdtype == dns.rdatatype.A:
                response.answer.append(
                    dns.rrset.from_text(query.question[0].name, 30, "IN", "A", "192.0.2.1")
                )
            return response.to_wire()

        async with name_server(answer) as (server, address):
            resolver = Resolver([address], 2.0, max_cached=2)
            for host in ("a.example", "b.example", "a.example", "c.example"):
                await resolver.resolve(host)
            assert len(server.asked) == 6
            await resolver.resolve("a.example")
            assert len(server.asked) == 6, "the one that was used last stays"
            await resolver.resolve("b.example")
            assert len(server.asked) == 8

    asyncio.run(steps())


def test_a_cancelled_look_up_leaves_nothing_behind() -> None:
    async def steps() -> None:
        async with name_server(silence) as (_, address):
            look_up = asyncio.create_task(Resolver([address], 5.0).resolve(HOST))
            await asyncio.sleep(0.05)
            look_up.cancel()
            with pytest.raises(asyncio.CancelledError):
                await look_up
            await asyncio.sleep(0.05)
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(steps())


def test_the_hosts_own_name_servers(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("search example\nnameserver 192.0.2.53\nnameserver 2001:db8::53\noptions ndots:5\n")
    assert system_nameservers(str(path)) == tuple(
        (address, 53) for address in addresses("192.0.2.53", "2001:db8::53")
    )


@pytest.mark.parametrize("content", [None, "", "nameserver not-an-address\n", "nameserver\n", "\xff\xfe"])
def test_no_name_server_at_all_says_what_to_do(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "resolv.conf"
    if content is not None:
        path.write_text(content, encoding="latin-1")
    with pytest.raises(ResolutionFailedError, match=r"resolver\.nameservers in the policy"):
        system_nameservers(str(path))


def test_the_policys_name_servers_take_the_place_of_the_hosts() -> None:
    assert Resolver([(LOOPBACK, 5300)], 1.0).nameservers == ((LOOPBACK, 5300),)
    assert Resolver(None, 1.0).nameservers == system_nameservers()
