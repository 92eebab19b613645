"""What anybody changed in the sets of grants, as the kernel tells: a grant deleted with nft(8) is gone for the proxy too.

nf_tables' notifications, over a plain netlink socket: one message for each element, one more when the
transaction is through (linux/netfilter/nf_tables.h).
"""

import asyncio
import ipaddress
import socket
import struct
from errno import ENOBUFS

from egress_policy.destination import Address
from egress_policy.element_messages import TABLE
from egress_policy.firewall import DEVELOPER_SANDBOX
from egress_policy.netlink import aligned, attributes

type Socket = tuple[Address, int]

_SETS = {DEVELOPER_SANDBOX: 4, f"{DEVELOPER_SANDBOX}-ipv6": 16}
"""The sets that are followed, with the bytes of their addresses."""
_NETLINK_NETFILTER = 12
_NFNLGRP_NFTABLES = 7
_SO_RCVBUFFORCE = 33
_RECEIVE_BUFFER = 4 * 1024 * 1024
_DATAGRAM = 64 * 1024
_DATAGRAMS = 64
_HEADER = struct.Struct("=IHHII")
_NFGENMSG_SIZE = 4
_SUBSYSTEM = 10 << 8
_DELETED_TABLE, _DELETED_SET = _SUBSYSTEM | 2, _SUBSYSTEM | 11
_NEW_ELEMENT, _DELETED_ELEMENT = _SUBSYSTEM | 12, _SUBSYSTEM | 14
_NEW_GENERATION = _SUBSYSTEM | 15


class Deletions:
    """What transactions deleted and did not add again.

    `is_unsure` says that something may be gone which no message named: the sets must be looked at.
    """

    def __init__(self) -> None:
        self.sockets: set[Socket] = set()
        self.is_unsure = False
        self._pending: set[Socket] = set()

    def read(self, data: bytes) -> None:
        """Read one datagram, up to the first message that makes no sense."""
        while len(data) >= _HEADER.size:
            length, kind, *_ = _HEADER.unpack_from(data)
            if not _HEADER.size <= length <= len(data):
                return
            self._take(kind, attributes(data[_HEADER.size + _NFGENMSG_SIZE : length]))
            data = data[aligned(length) :]

    def _take(self, kind: int, parts: dict[int, bytes]) -> None:
        if kind == _NEW_GENERATION:
            self.sockets |= self._pending
            self._pending.clear()
        elif _text(parts.get(1)) != TABLE:
            return
        elif kind == _DELETED_TABLE or (kind == _DELETED_SET and _text(parts.get(2)) in _SETS):
            self.is_unsure = True
        elif kind in (_NEW_ELEMENT, _DELETED_ELEMENT):
            found = _socket(_SETS.get(_text(parts.get(2)), 0), parts.get(3, b""))
            if found is not None:
                (self._pending.discard if kind == _NEW_ELEMENT else self._pending.add)(found)


class KernelChanges:
    """Hears of every change from when it is made on. Raises OSError."""

    def __init__(self) -> None:
        self._kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        self._kernel.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        self._kernel.bind((0, 1 << (_NFNLGRP_NFTABLES - 1)))
        self._kernel.setblocking(False)
        self._deletions = Deletions()

    async def next(self) -> tuple[set[Socket], bool]:
        """Wait for deletions: of these elements, and whether the sets must be looked at to know of all."""
        loop = asyncio.get_running_loop()
        deletions = self._deletions
        while not (deletions.sockets or deletions.is_unsure):
            is_ready = asyncio.Event()
            loop.add_reader(self._kernel, is_ready.set)
            try:
                await is_ready.wait()
            finally:
                loop.remove_reader(self._kernel)
            self._receive()
        found = deletions.sockets, deletions.is_unsure
        deletions.sockets, deletions.is_unsure = set(), False
        return found

    def _receive(self) -> None:
        for _ in range(_DATAGRAMS):
            try:
                self._deletions.read(self._kernel.recv(_DATAGRAM))
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != ENOBUFS:
                    raise
                self._deletions.is_unsure = True


def _socket(size: int, listed: bytes) -> Socket | None:
    """Read a key, address . port, each padded to four bytes; a notification is of one element."""
    key = attributes(attributes(attributes(listed).get(1, b"")).get(1, b"")).get(1, b"")
    if not size or len(key) != size + 4:
        return None
    return ipaddress.ip_address(key[:size]), int.from_bytes(key[size : size + 2])


def _text(value: bytes | None) -> str:
    return (value or b"").rstrip(b"\0").decode("ascii", "replace")
