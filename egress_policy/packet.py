"""A packet as the kernel reports it: who sent it, and where it was to go. Read from bytes that anyone may have made."""

import ipaddress
from dataclasses import dataclass
from enum import IntEnum

from egress_policy.destination import Address

TCP, UDP, SCTP, UDP_LITE = 6, 17, 132, 136
PROTOCOLS = {1: "icmp", TCP: "tcp", UDP: "udp", 58: "icmpv6", SCTP: "sctp", UDP_LITE: "udplite"}
"""The protocols that have a name here, by number (IANA's registry)."""


# RFC 8200 section 4: the headers that may stand between an IPv6 header and the packet's own protocol.
class _Extension(IntEnum):
    HOP_BY_HOP = 0
    ROUTING = 43
    FRAGMENT = 44
    AUTHENTICATION = 51
    DESTINATION = 60
    MOBILITY = 135


_EXTENSIONS = frozenset(_Extension)
_WITH_PORTS = {TCP, UDP, SCTP, UDP_LITE}


@dataclass(frozen=True, slots=True)
class Packet:
    """`prefix` is the rule's; `uid` the owner of the packet's socket, if it had one; `in_link` where it came in.

    `in_port` is the port of the bridge `in_link` where the kernel tells it.
    The ports are None where the protocol has none, or the packet is too short to tell.
    """

    prefix: str
    uid: int | None
    in_link: str | None
    protocol: int
    source: Address
    source_port: int | None
    destination: Address
    destination_port: int | None
    in_port: str | None = None


def read_packet(
    prefix: str, uid: int | None, in_link: str | None, data: bytes, in_port: str | None = None
) -> Packet | None:
    """Read the first bytes of an IP packet; None where they hold no whole IP header."""
    version = data[0] >> 4 if data else 0
    if version == 4 and len(data) >= 20:
        source: Address = ipaddress.IPv4Address(data[12:16])
        destination: Address = ipaddress.IPv4Address(data[16:20])
        protocol, offset = data[9], (data[0] & 0xF) * 4
        is_first = not int.from_bytes(data[6:8]) & 0x1FFF
    elif version == 6 and len(data) >= 40:
        source = ipaddress.IPv6Address(data[8:24])
        destination = ipaddress.IPv6Address(data[24:40])
        protocol, offset, is_first = _skip_extensions(data)
    else:
        return None
    ports = data[offset : offset + 4] if is_first and protocol in _WITH_PORTS else b""
    source_port, destination_port = (
        (int.from_bytes(ports[:2]), int.from_bytes(ports[2:])) if len(ports) == 4 else (None, None)
    )
    return Packet(prefix, uid, in_link, protocol, source, source_port, destination, destination_port, in_port)


def _skip_extensions(data: bytes) -> tuple[int, int, bool]:
    """Find an IPv6 packet's own protocol, where it begins, and whether this is its first fragment."""
    protocol, offset, is_first = data[6], 40, True
    while protocol in _EXTENSIONS and len(data) >= offset + 8:
        header = data[offset : offset + 8]
        match protocol:
            case _Extension.FRAGMENT:
                length = 8
                is_first = not int.from_bytes(header[2:4]) >> 3
            case _Extension.AUTHENTICATION:
                length = (header[1] + 2) * 4
            case _:
                length = (header[1] + 1) * 8
        protocol, offset = header[0], offset + length
        if not is_first:
            break
    return protocol, offset, is_first
