"""What the ruleset logs, as the kernel hands it out: NFLOG, over a plain netlink socket. Needs CAP_NET_ADMIN.

A group has one listener on a host. Where several proxies run, one of them hears what all agents send, and another
takes over when it ends.
"""

import asyncio
import contextlib
import logging
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from errno import ENOBUFS, EPERM
from os import strerror
from typing import Self

from egress_policy.audit import Record
from egress_policy.audit_files import AuditError
from egress_policy.kernel_reports import Group, KernelReports
from egress_policy.netlink import aligned, attribute, attributes
from egress_policy.packet import Packet, read_packet

type LinkName = Callable[[int], str | None]
"""Tells a link's name by its number."""

_RETRY = 5.0
_FLUSH = 0.5
# One wake-up takes at most this many datagrams, of some twenty packets each, so that requests need not wait.
_DATAGRAMS = 8
_RECEIVE_BUFFER = 1024 * 1024
# asm-generic/socket.h; the socket module has no name for it.
_SO_RCVBUFFORCE = 33
_DATAGRAM = 64 * 1024
# Bytes of each packet: an IPv6 header, some extension headers, the ports.
_COPIED = 128
# The kernel collects packets for this long, in hundredths of a second.
_COLLECTING = 10
_ACK_PATIENCE = 1.0

# linux/netlink.h, linux/netfilter/nfnetlink.h
_NETLINK_NETFILTER = 12
_HEADER = struct.Struct("=IHHII")
_NFGENMSG = struct.Struct("!BBH")
_ERROR_NUMBER = struct.Struct("=i")
_ERROR = 2
_REQUEST_ACKNOWLEDGED = 0x1 | 0x4

# linux/netfilter/nfnetlink_log.h
_PACKET = 4 << 8 | 0
_CONFIG = 4 << 8 | 1
_BIND = 1
_COPY_PACKET = 2
_WITH_SEQUENCE = 1


class _Configure(IntEnum):
    COMMAND = 1
    MODE = 2
    TIMEOUT = 4
    FLAGS = 6


class _Attribute(IntEnum):
    IN_LINK = 4
    IN_PORT = 6
    PAYLOAD = 9
    PREFIX = 10
    UID = 11
    SEQUENCE = 12


class NflogError(Exception):
    """A group cannot be listened to: the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Logged:
    """One packet that a rule logged, with its number in the group's sequence; None is what cannot be read."""

    packet: Packet | None
    sequence: int | None


def read_datagram(data: bytes, link_name: LinkName) -> Iterator[Logged]:
    """Read what one datagram of the kernel's holds, up to the first message that makes no sense."""
    while len(data) >= _HEADER.size:
        length, kind, *_ = _HEADER.unpack_from(data)
        if not _HEADER.size <= length <= len(data):
            return
        if kind == _PACKET:
            yield _read_logged(data[_HEADER.size + _NFGENMSG.size : length], link_name)
        data = data[aligned(length) :]


class Listener:
    """The one listener to a group. Raises NflogError."""

    def __init__(self, group: Group, link_name: LinkName | None = None) -> None:
        self.lost = 0
        self._group = group
        self._link_name = link_name or _link_name
        self._expected: int | None = None
        try:
            self._kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        except OSError as error:
            raise NflogError(_remedy(group, error)) from error
        try:
            self._configure()
        except OSError as error:
            self._kernel.close()
            raise NflogError(_remedy(group, error)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._kernel.close()

    def fileno(self) -> int:
        """Return the socket's file descriptor."""
        return self._kernel.fileno()

    def receive(self) -> Iterator[Packet]:
        """Yield what is there now, up to a bound; `lost` counts what the kernel could not hand over. Raises OSError."""
        for _ in range(_DATAGRAMS):
            try:
                data = self._kernel.recv(_DATAGRAM)
            except BlockingIOError:
                return
            except OSError as error:
                # Too much came at once. How much is missing is told by the next number of the sequence.
                if error.errno == ENOBUFS:
                    continue
                raise
            for logged in read_datagram(data, self._link_name):
                self._count(logged.sequence)
                if logged.packet is not None:
                    yield logged.packet

    def _count(self, sequence: int | None) -> None:
        if sequence is None:
            return
        if self._expected is not None:
            self.lost += (sequence - self._expected) & 0xFFFFFFFF
        self._expected = (sequence + 1) & 0xFFFFFFFF

    def _configure(self) -> None:
        # To be allowed more than the host's limit takes CAP_NET_ADMIN, which we have; else the limit must do.
        with contextlib.suppress(OSError):
            self._kernel.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        self._kernel.settimeout(_ACK_PATIENCE)
        # Connected to the kernel (port 0), it takes messages from nobody else.
        self._kernel.connect((0, 0))
        self._ask(attribute(_Configure.COMMAND, bytes([_BIND])))
        self._ask(
            attribute(_Configure.MODE, struct.pack("!IBx", _COPIED, _COPY_PACKET))
            + attribute(_Configure.TIMEOUT, struct.pack("!I", _COLLECTING))
            + attribute(_Configure.FLAGS, struct.pack("!H", _WITH_SEQUENCE))
        )
        self._kernel.setblocking(False)

    def _ask(self, configuration: bytes) -> None:
        payload = _NFGENMSG.pack(socket.AF_UNSPEC, 0, self._group) + configuration
        header = _HEADER.pack(_HEADER.size + len(payload), _CONFIG, _REQUEST_ACKNOWLEDGED, 0, 0)
        self._kernel.send(header + payload)
        while True:
            # Packets may come before the answer to what was asked after the group was bound.
            data = self._kernel.recv(_DATAGRAM)
            _, kind, *_ = _HEADER.unpack_from(data)
            if kind == _ERROR:
                (error,) = _ERROR_NUMBER.unpack_from(data, _HEADER.size)
                if error:
                    raise OSError(-error, strerror(-error))
                return


class KernelLog:
    """Puts on record what the ruleset logs: `write` is the audit log's."""

    def __init__(self, reports: KernelReports, write: Callable[[Record], None]) -> None:
        self.reports = reports
        self._write_record = write
        self._writes = True

    async def follow(self, group: Group) -> None:
        """Listen to one group. Runs until cancelled; where the group is another's, tries again from time to time."""
        has_said = False
        while True:
            try:
                with Listener(group) as listener:
                    has_said = False
                    await self._record(group, listener)
            except (NflogError, OSError) as error:
                if not has_said:
                    _logger.warning("%s", error)
                    self._write(self.reports.unheard(group, str(error)))
                has_said = True
            await asyncio.sleep(_RETRY)

    async def _record(self, group: Group, listener: Listener) -> None:
        loop = asyncio.get_running_loop()
        broken: asyncio.Future[None] = loop.create_future()

        def receive() -> None:
            try:
                for packet in listener.receive():
                    self._write(self.reports.take(group, packet, time.monotonic()))
            except BaseException as error:  # noqa: BLE001 - the loop would only log it, and call again at once
                loop.remove_reader(listener.fileno())
                if not broken.done():
                    broken.set_exception(error)

        loop.add_reader(listener.fileno(), receive)
        try:
            while True:
                await asyncio.wait([broken], timeout=_FLUSH)
                if broken.done():
                    broken.result()
                for record in self.reports.due(time.monotonic()):
                    self._write(record)
                if listener.lost:
                    self._write(self.reports.lost(group, listener.lost))
                    listener.lost = 0
        finally:
            loop.remove_reader(listener.fileno())

    def _write(self, record: Record | None) -> None:
        if record is None:
            return
        try:
            self._write_record(record)
        except AuditError as error:
            # What it tells of has happened. Requests find the log broken too, and are refused.
            if self._writes:
                _logger.error("what the kernel logs is not on record: %s", error)
            self._writes = False
        else:
            self._writes = True


_logger = logging.getLogger(__name__)


def _read_logged(data: bytes, link_name: LinkName) -> Logged:
    parts = attributes(data)
    link = _number(parts.get(_Attribute.IN_LINK))
    port = _number(parts.get(_Attribute.IN_PORT))
    packet = read_packet(
        parts.get(_Attribute.PREFIX, b"").rstrip(b"\0").decode("ascii", "replace"),
        # Over a veth pair a packet keeps its sender's socket: on a bridge it would still show the container's own uid.
        _number(parts.get(_Attribute.UID)) if link is None else None,
        None if link is None else link_name(link),
        parts.get(_Attribute.PAYLOAD, b""),
        None if port is None else link_name(port),
    )
    return Logged(packet, _number(parts.get(_Attribute.SEQUENCE)))


def _number(value: bytes | None) -> int | None:
    return int.from_bytes(value) if value is not None and len(value) == 4 else None


def _link_name(number: int) -> str | None:
    try:
        return socket.if_indextoname(number)
    except OSError:
        return None


def _remedy(group: Group, error: OSError) -> str:
    unheard = f"what the kernel logs to NFLOG group {group} is not recorded here"
    if error.errno == EPERM:
        return f"{unheard}: another program listens to it (another proxy?), or CAP_NET_ADMIN is missing"
    return f"{unheard} ({error}): it needs the kernel's module nfnetlink_log"
