"""Which uid owns the socket at the other end of a redirected connection, as the kernel knows it.

Two questions to the kernel, over netlink: conntrack says what the connection was before redirection, and
sock_diag (sock_diag(7)) says who owns the socket that made it. Needs CAP_NET_ADMIN, for conntrack.
"""

import ipaddress
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from errno import ENOENT
from os import strerror

from egress_policy.destination import Address

type Endpoint = tuple[Address, int]
"""An address and a port of TCP or UDP."""

_LOOPBACK: dict[int, Address] = {
    4: ipaddress.IPv4Address("127.0.0.1"),
    6: ipaddress.IPv6Address("::1"),
}
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}

# The kernel answers from memory, in microseconds; this only keeps a fault from stopping the proxy.
_TIMEOUT = 1.0
# The kernel fills at most 32 KiB with one part of a dump.
_BUFFER = 64 * 1024

# linux/netlink.h
_HEADER = struct.Struct("=IHHII")
_ERROR_NUMBER = struct.Struct("=i")
_ERROR = 2
_DONE = 3
_REQUEST = 0x1
_DUMP = 0x300
# The top bits of an attribute's type are flags: nested, network byte order.
_TYPE_MASK = 0x3FFF
_NESTED = 0x8000

# linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h
_NETLINK_NETFILTER = 12
_CONNTRACK_GET = 1 << 8 | 1
_NFGENMSG = struct.Struct("=BBH")
_TUPLE_ORIG, _TUPLE_REPLY = 1, 2
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_SRC = {4: 1, 6: 3}
_IP_DST = {4: 2, 6: 4}
_PROTO_NUM, _PROTO_SRC_PORT, _PROTO_DST_PORT = 1, 2, 3

# linux/sock_diag.h and inet_diag.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_DIAG_PORTS = struct.Struct("!HH")
_DIAG_REQUEST = struct.Struct("=BBBxI4s16s16sI8s")
_DIAG_ANSWER = struct.Struct("=BBBB4s16s16sI8sIIIII")
_ALL_STATES = 0xFFFFFFFF
_NO_COOKIE = b"\xff" * 8


class Protocol(IntEnum):
    """The transport protocols that are redirected, by their IP protocol number."""

    TCP = socket.IPPROTO_TCP
    UDP = socket.IPPROTO_UDP


class SocketOwnerError(Exception):
    """The kernel could not be asked: the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class _Tuple:
    """One direction of a connection, as conntrack sees it."""

    source: Endpoint
    destination: Endpoint


@dataclass(frozen=True, slots=True)
class _Socket:
    """A socket as sock_diag reports it. The inode is 0 when no process holds it any more."""

    local_port: int
    remote: Endpoint
    uid: int
    inode: int


def plain_address(address: Address) -> Address:
    """Give an IPv4-mapped address as the IPv4 address that it is, and an IPv6 address without its zone."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    return address.ipv4_mapped or ipaddress.IPv6Address(address.packed)


def socket_owner(client: Endpoint, redirected_to: int, protocol: Protocol) -> int | None:
    """Return the uid of the local socket whose redirected traffic reached our port `redirected_to`.

    None where that cannot be told for certain: the socket is gone, another host's, or not the only candidate.
    Raises SocketOwnerError.
    """
    address = plain_address(client[0])
    # Local packets are redirected to the loopback address (nf_nat_redirect_ipv4() and _ipv6() in the kernel).
    reply = _Tuple((_LOOPBACK[address.version], redirected_to), (address, client[1]))
    # The port that we see is not always the client's: redirection gives a port that is in use at our end
    # another number, and somebody else's socket may have that very number. So conntrack is asked first, and
    # always.
    original = _original_direction(reply, protocol)
    if original is None:
        return None
    if protocol is Protocol.TCP:
        return _tcp_owner(original)
    return _udp_owner(original)


def _tcp_owner(original: _Tuple) -> int | None:
    request = _diag_request(
        Protocol.TCP, _FAMILY[original.source[0].version], original.source, original.destination
    )
    for found in _diag(request, dump=False):
        # Without a connected socket the kernel offers one that listens on the port, which may be anybody's.
        is_the_one = found.local_port == original.source[1] and found.remote == original.destination
        return found.uid if is_the_one and found.inode else None
    return None


def _udp_owner(original: _Tuple) -> int | None:
    """Find who owns the UDP port that a datagram came from.

    Most clients' sockets are not connected, and any socket may claim another local address of the host
    (IP_PKTINFO in ip(7)) and send to others than its peer, so only the port counts: if the sockets on it belong
    to several users, nobody can say whose the datagram was.
    """
    # An IPv6 socket may send IPv4 as well.
    families = (socket.AF_INET, socket.AF_INET6) if original.source[0].version == 4 else (socket.AF_INET6,)
    any_address: Address = ipaddress.IPv4Address(0)
    uids = {
        found.uid
        for family in families
        for found in _diag(
            _diag_request(Protocol.UDP, family, (any_address, original.source[1]), (any_address, 0)),
            dump=True,
        )
    }
    return uids.pop() if len(uids) == 1 else None


def _original_direction(reply: _Tuple, protocol: Protocol) -> _Tuple | None:
    """Ask conntrack what a connection looked like before it was redirected."""
    version = reply.source[0].version
    payload = _NFGENMSG.pack(_FAMILY[version], 0, 0) + _nested(
        _TUPLE_REPLY,
        _nested(
            _TUPLE_IP,
            _attribute(_IP_SRC[version], reply.source[0].packed),
            _attribute(_IP_DST[version], reply.destination[0].packed),
        ),
        _nested(
            _TUPLE_PROTO,
            _attribute(_PROTO_NUM, bytes([protocol])),
            _attribute(_PROTO_SRC_PORT, reply.source[1].to_bytes(2)),
            _attribute(_PROTO_DST_PORT, reply.destination[1].to_bytes(2)),
        ),
    )
    for answer in _ask(_NETLINK_NETFILTER, _CONNTRACK_GET, payload, dump=False):
        parts = _attributes(answer[_NFGENMSG.size :])
        # conntrack finds a tuple in either direction; one that starts at our port is not a client's.
        if _read_tuple(parts[_TUPLE_REPLY], version) == reply:
            return _read_tuple(parts[_TUPLE_ORIG], version)
    return None


def _read_tuple(data: bytes, version: int) -> _Tuple:
    parts = _attributes(data)
    addresses = _attributes(parts[_TUPLE_IP])
    ports = _attributes(parts[_TUPLE_PROTO])
    return _Tuple(
        (ipaddress.ip_address(addresses[_IP_SRC[version]]), int.from_bytes(ports[_PROTO_SRC_PORT])),
        (ipaddress.ip_address(addresses[_IP_DST[version]]), int.from_bytes(ports[_PROTO_DST_PORT])),
    )


def _diag_request(protocol: Protocol, family: int, local: Endpoint, remote: Endpoint) -> bytes:
    ports = _DIAG_PORTS.pack(local[1], remote[1])
    return _DIAG_REQUEST.pack(
        family, protocol, 0, _ALL_STATES, ports, local[0].packed, remote[0].packed, 0, _NO_COOKIE
    )


def _diag(request: bytes, *, dump: bool) -> Iterator[_Socket]:
    for answer in _ask(_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, request, dump=dump):
        fields = _DIAG_ANSWER.unpack_from(answer)
        family, ports, remote, uid, inode = fields[0], fields[4], fields[6], fields[-2], fields[-1]
        local_port, remote_port = _DIAG_PORTS.unpack(ports)
        yield _Socket(local_port, (_read_address(family, remote), remote_port), uid, inode)


def _read_address(family: int, data: bytes) -> Address:
    return (
        ipaddress.IPv4Address(data[:4])
        if family == socket.AF_INET
        else plain_address(ipaddress.IPv6Address(data))
    )


def _ask(family: int, message_type: int, payload: bytes, *, dump: bool) -> list[bytes]:
    """Send the kernel one request and return the payloads of its answer; none if it knows of nothing like it."""
    flags = _REQUEST | _DUMP if dump else _REQUEST
    message = _HEADER.pack(_HEADER.size + len(payload), message_type, flags, 0, 0) + payload
    try:
        # One socket for one question: no answer to an earlier one can be left in it. Connected to the kernel
        # (port 0), it takes messages from nobody else.
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, family) as kernel:
            kernel.settimeout(_TIMEOUT)
            kernel.connect((0, 0))
            kernel.send(message)
            return _receive(kernel, dump=dump)
    except OSError as error:
        raise SocketOwnerError(_remedy(error)) from error


def _receive(kernel: socket.socket, *, dump: bool) -> list[bytes]:
    answers: list[bytes] = []
    while True:
        data = kernel.recv(_BUFFER)
        while data:
            length, message_type, *_ = _HEADER.unpack_from(data)
            payload = data[_HEADER.size : length]
            data = data[_aligned(length) :]
            if message_type == _DONE:
                return answers
            if message_type == _ERROR:
                (error,) = _ERROR_NUMBER.unpack_from(payload)
                if -error == ENOENT:
                    return answers
                raise OSError(-error, strerror(-error))
            answers.append(payload)
        if not dump:
            return answers


def _remedy(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "the kernel does not say who connects: the proxy needs CAP_NET_ADMIN"
    if isinstance(error, TimeoutError):
        return f"the kernel did not say within {_TIMEOUT:g} s who connects"
    return f"the kernel does not say who connects ({error}); it needs nf_conntrack_netlink, tcp_diag and udp_diag"


def _attribute(kind: int, value: bytes) -> bytes:
    length = 4 + len(value)
    return struct.pack("=HH", length, kind) + value + bytes(_aligned(length) - length)


def _nested(kind: int, *attributes: bytes) -> bytes:
    return _attribute(kind | _NESTED, b"".join(attributes))


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        found[kind & _TYPE_MASK] = data[4:length]
        data = data[_aligned(length) :]
    return found


def _aligned(length: int) -> int:
    return (length + 3) & ~3
