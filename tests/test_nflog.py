"""What the kernel logs: its messages, whatever is in them, and a real group of a namespace of the test's own."""

import ipaddress
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from egress_policy.netlink import attribute, attributes
from egress_policy.nflog import Logged, read_datagram
from egress_policy.packet import Packet, read_packet

V4 = ("10.0.0.2", "198.18.0.5")
V6 = ("fd00::2", "2001:2:0:ffff::5")
PORTS = struct.pack("!HH", 40000, 22)


def ipv4(protocol: int, rest: bytes, *, options: bytes = b"", fragment: int = 0) -> bytes:
    """An IPv4 packet."""
    source, destination = (ipaddress.IPv4Address(address).packed for address in V4)
    words = 5 + len(options) // 4
    head = struct.pack("!BBHHHBBH", 0x40 | words, 0, 20 + len(rest), 1, fragment, 64, protocol, 0)
    return head + source + destination + options + rest


def ipv6(protocol: int, rest: bytes) -> bytes:
    """An IPv6 packet; `rest` begins with the extension headers, if there are any."""
    source, destination = (ipaddress.IPv6Address(address).packed for address in V6)
    return struct.pack("!IHBB", 6 << 28, len(rest), protocol, 64) + source + destination + rest


def message(
    payload: bytes,
    *,
    uid: int | None = 61001,
    link: int | None = None,
    port: int | None = None,
    sequence: int = 7,
) -> bytes:
    """What the kernel sends for one logged packet (linux/netfilter/nfnetlink_log.h)."""
    parts = attribute(1, struct.pack("!HBx", 0x0800, 3)) + attribute(10, b"Agent Egress Blocked: \0")
    if link is not None:
        parts += attribute(4, struct.pack("!I", link))
    if port is not None:
        parts += attribute(6, struct.pack("!I", port))
    if uid is not None:
        parts += attribute(11, struct.pack("!I", uid))
    parts += attribute(12, struct.pack("!I", sequence)) + attribute(9, payload)
    return struct.pack("=IHHII", 20 + len(parts), 4 << 8, 0, 0, 0) + struct.pack("!BBH", 2, 0, 1) + parts


def link_name(number: int) -> str | None:
    return {3: "br-agents", 4: "veth0"}.get(number)


@pytest.mark.parametrize(
    ("data", "protocol", "port"),
    [
        pytest.param(ipv4(6, PORTS), 6, 22, id="TCP"),
        pytest.param(ipv4(17, PORTS), 17, 22, id="UDP"),
        pytest.param(ipv4(132, PORTS), 132, 22, id="SCTP"),
        pytest.param(ipv4(136, PORTS), 136, 22, id="UDP-Lite"),
        pytest.param(ipv4(1, b"\x08\x00\x00\x00"), 1, None, id="ICMP"),
        pytest.param(ipv4(6, PORTS, options=b"\x94\x04\x00\x00"), 6, 22, id="IPv4 options"),
        pytest.param(ipv4(6, PORTS, fragment=0x2000), 6, 22, id="first fragment"),
        pytest.param(ipv4(6, PORTS, fragment=1), 6, None, id="later fragment: its bytes are no ports"),
        pytest.param(ipv4(6, PORTS[:3]), 6, None, id="cut within the ports"),
        pytest.param(ipv6(6, PORTS), 6, 22, id="TCP over IPv6"),
        pytest.param(ipv6(58, b"\x80\x00\x00\x00"), 58, None, id="ICMPv6"),
        pytest.param(ipv6(0, b"\x06\x00" + bytes(6) + PORTS), 6, 22, id="hop-by-hop options"),
        pytest.param(ipv6(60, b"\x2b\x01" + bytes(14) + b"\x11\x00" + bytes(6) + PORTS), 17, 22, id="two headers"),
        pytest.param(ipv6(51, b"\x06\x04" + bytes(22) + PORTS), 6, 22, id="authentication header"),
        pytest.param(ipv6(44, b"\x06\x00\x00\x01" + bytes(4) + PORTS), 6, 22, id="first fragment, IPv6"),
        pytest.param(ipv6(44, b"\x06\x00\x00\x08" + bytes(4) + PORTS), 6, None, id="later fragment, IPv6"),
        pytest.param(ipv6(0, b"\x06"), 0, None, id="cut within an extension header"),
    ],
)  # fmt: skip
def test_where_a_packet_was_to_go(data: bytes, protocol: int, port: int | None) -> None:
    packet = read_packet("prefix", None, None, data)
    assert packet is not None
    assert packet.protocol == protocol
    assert packet.destination_port == port
    assert packet.source_port == (None if port is None else 40000)
    assert (str(packet.source), str(packet.destination)) == (V4 if data[0] >> 4 == 4 else V6)


@pytest.mark.parametrize("data", [b"", b"\x45", ipv4(6, b"")[:19], ipv6(6, b"")[:39], b"\x50" + bytes(60)])
def test_what_holds_no_ip_header_is_no_packet(data: bytes) -> None:
    assert read_packet("", None, None, data) is None


def test_a_message_says_who_sent_the_packet_and_where_it_came_in() -> None:
    packet = Packet(
        "Agent Egress Blocked: ", 61001, None, 6, *_endpoint(V4[0], 40000), *_endpoint(V4[1], 22)
    )  # fmt: skip
    assert list(read_datagram(message(ipv4(6, PORTS)), link_name)) == [Logged(packet, 7)]
    (logged,) = read_datagram(message(ipv6(6, PORTS), uid=None, link=3), link_name)
    assert logged.packet is not None
    assert (logged.packet.uid, logged.packet.in_link, logged.packet.in_port) == (None, "br-agents", None)


def test_a_message_says_by_which_port_of_a_bridge() -> None:
    """And not by whose uid: a container has its own."""
    (logged,) = read_datagram(message(ipv4(6, PORTS), uid=0, link=3, port=4), link_name)
    assert logged.packet is not None
    assert (logged.packet.uid, logged.packet.in_link, logged.packet.in_port) == (None, "br-agents", "veth0")


def _endpoint(address: str, port: int) -> tuple[ipaddress.IPv4Address, int]:
    return ipaddress.IPv4Address(address), port


def test_one_datagram_holds_several_messages() -> None:
    data = b"".join(message(ipv4(6, PORTS), sequence=number) for number in range(3))
    assert [logged.sequence for logged in read_datagram(data, link_name)] == [0, 1, 2]


def test_a_packet_that_cannot_be_read_still_counts_in_the_sequence() -> None:
    assert list(read_datagram(message(b""), link_name)) == [Logged(None, 7)]


def test_what_makes_no_sense_ends_the_reading() -> None:
    """A length of nothing, or of more than is there, must neither be believed nor gone over for ever."""
    good = message(ipv4(6, PORTS))
    for length in (0, 15, 10_000):
        assert list(read_datagram(struct.pack("=I", length) + good[4:], link_name)) == []
        assert list(read_datagram(good + struct.pack("=I", length) + good[4:], link_name)) != []
    for length in (0, 3, 10_000):
        assert attributes(attribute(1, b"one") + struct.pack("=HH", length, 9) + bytes(100)) == {1: b"one"}


def test_a_number_of_another_size_is_none() -> None:
    parts = attribute(11, bytes(8)) + attribute(9, ipv4(6, PORTS))
    data = struct.pack("=IHHII", 20 + len(parts), 4 << 8, 0, 0, 0) + bytes(4) + parts
    (logged,) = read_datagram(data, link_name)
    assert logged.packet is not None
    assert (logged.packet.uid, logged.sequence) == (None, None)


def test_other_messages_are_passed_over() -> None:
    good = message(ipv4(6, PORTS))
    other = good[:4] + struct.pack("=H", 3) + good[6:]
    assert [logged.sequence for logged in read_datagram(other + good, link_name)] == [7]


@given(st.binary(max_size=200))
@example(message(ipv4(6, PORTS))[:-1])
@example(message(ipv4(6, PORTS)).replace(b"\x05\x00", b"\x00\x00"))
def test_reading_survives_any_bytes(data: bytes) -> None:
    list(read_datagram(data, link_name))
    list(read_datagram(message(data), link_name))
    read_packet("", None, None, data)


@given(st.binary(max_size=60), st.integers(0, 255))
def test_reading_survives_any_headers(rest: bytes, protocol: int) -> None:
    assert read_packet("", None, None, ipv4(protocol, rest)) is not None
    assert read_packet("", None, None, ipv6(protocol, rest)) is not None
