"""What is done inside a namespace, and what comes of it, as one word."""

import ctypes
import errno
import ipaddress
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import ExitStack, suppress
from typing import Any

SILENCE = 0.3
"""Seconds after which a packet is taken to be lost; where one is refused, nobody waits."""

_IPV6_FREEBIND = 78
_NETLINK_NETFILTER = 12
_SO_RCVBUFFORCE = 33
_NFULNL = 4 << 8
_NFULA_PREFIX = 10
_NFULA_PAYLOAD = 9


def connect(address: str, port: int, source: str = "") -> str:
    """Connect by TCP, and return the name of who answers, or how it fails."""
    with _socket(address, socket.SOCK_STREAM) as client:
        try:
            if source:
                client.bind((source, 0))
            client.connect(_place(address, port))
            client.send(b"?")
            return client.recv(64).decode() or "closed"
        except OSError as error:
            return _failure(error)


def connect_from_anywhere(address: str, port: int, source: str) -> str:
    """Connect by TCP from an address that need not be this host's."""
    with _socket(address, socket.SOCK_STREAM) as client:
        try:
            client.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
            client.bind((source, 0))
            client.connect(_place(address, port))
        except OSError as error:
            return _failure(error)
        return "connected"


def shake_hands(address: str, port: int) -> str:
    """Connect by TCP, and say whether that was answered."""
    with _socket(address, socket.SOCK_STREAM) as client:
        try:
            client.connect(_place(address, port))
        except OSError as error:
            return _failure(error)
        return "connected"


def listen_with_a_full_queue(address: str, port: int) -> Generator[str]:
    """Listen, and have so many half-open connections that the kernel answers the next with a SYN cookie."""
    with ExitStack() as closing:
        server = closing.enter_context(_socket(address, socket.SOCK_STREAM))
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Who connects and says nothing stays half open.
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)
        server.bind(_place(address, port))
        server.listen(1)
        for _ in range(2):
            client = closing.enter_context(_socket(address, socket.SOCK_STREAM))
            client.setblocking(False)
            client.connect_ex(_place(address, port))
        yield "full"


def ask(address: str, port: int, source: str = "") -> str:
    """Send a UDP datagram, and return the name of who answers, or how it fails."""
    with _socket(address, socket.SOCK_DGRAM) as client:
        try:
            if source:
                client.bind((source, 0))
            client.connect(_place(address, port))
            client.send(b"?")
            return client.recv(64).decode()
        except OSError as error:
            return _failure(error)


def ask_from(own_port: int, address: str, port: int) -> str:
    """Ask by UDP from a port that was chosen."""
    with _socket(address, socket.SOCK_DGRAM) as client:
        try:
            client.bind(("", own_port))
            client.connect(_place(address, port))
            client.send(b"?")
            return client.recv(64).decode()
        except OSError as error:
            return _failure(error)


def converse(address: str, port: int) -> Generator[str]:
    """Connect, and ask again over the same connection each time. Raises OSError where the first fails."""
    with _socket(address, socket.SOCK_STREAM) as client:
        client.connect(_place(address, port))
        yield "connected"
        try:
            while True:
                client.send(b"?")
                yield client.recv(64).decode() or "closed"
        except OSError as error:
            yield _failure(error)


def send_and_close(address: str, port: int) -> Generator[str]:
    """Send as much as the kernel takes from a peer that reads nothing, and close the socket; end only when told."""
    with _socket(address, socket.SOCK_STREAM) as client:
        client.connect(_place(address, port))
        client.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                client.send(bytes(1 << 16))
    yield "closed"


def take_late(address: str, port: int) -> Generator[str]:
    """Accept a connection, and read nothing before the next step; then say how the stream ends, asking if it stops."""
    with _socket(address, socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        server.bind(_place(address, port))
        server.listen(1)
        yield "ready"
        peer, _ = server.accept()
        with peer:
            peer.settimeout(SILENCE)
            # Ended by a reset: what is left of the connection would show up in later tests' logs.
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            try:
                with suppress(TimeoutError):
                    while peer.recv(1 << 16):
                        pass
                    yield "the end"
                peer.send(b"?")
                yield peer.recv(1).decode()
            except OSError as error:
                yield _failure(error)


def serve(name: str, places: Sequence[tuple[str, int]]) -> Generator[str]:
    """Answer every message with the server's name, by TCP and UDP."""
    waiting = select.epoll()
    sockets: dict[int, socket.socket] = {}
    listeners = set()
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        for place in places:
            server = socket.socket(socket.AF_INET6 if ":" in place[0] else socket.AF_INET, kind)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if server.family == socket.AF_INET6:
                server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            server.bind(place)
            if kind == socket.SOCK_STREAM:
                server.listen(512)
                listeners.add(server.fileno())
            sockets[server.fileno()] = server
            waiting.register(server, select.EPOLLIN)
    yield "ready"
    while True:
        for number, _ in waiting.poll():
            _answer(number, name.encode(), sockets, listeners, waiting)


def _answer(
    number: int, name: bytes, sockets: dict[int, socket.socket], listeners: set[int], waiting: select.epoll
) -> None:
    one = sockets[number]
    if number in listeners:
        peer, _ = one.accept()
        sockets[peer.fileno()] = peer
        waiting.register(peer, select.EPOLLIN)
        return
    with suppress(OSError):
        received, sender = one.recvfrom(2048)
        if one.type == socket.SOCK_DGRAM:
            one.sendto(name, sender)
            return
        if received:
            one.send(name)
            return
    if one.type == socket.SOCK_STREAM:
        waiting.unregister(number)
        sockets.pop(number).close()


def receive(protocol: int, address: str) -> Generator[str]:
    """Wait for packets of a protocol, whatever they hold; then say whether one came."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_RAW, protocol) as server:
        server.bind((address, 0))
        server.settimeout(SILENCE)
        yield "ready"
        try:
            server.recv(2048)
        except TimeoutError:
            yield "nothing"
        else:
            yield "received"


def overhear(link: str, destination: str) -> Generator[str]:
    """Wait for an IP packet to an address that is another's; then say whether one came."""
    address = ipaddress.ip_address(destination)
    kind, place = (0x0800, slice(16, 20)) if address.version == 4 else (0x86DD, slice(24, 40))
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(kind)) as listener:
        listener.bind((link, kind))
        yield "ready"
        end = time.monotonic() + SILENCE
        while (left := end - time.monotonic()) > 0:
            listener.settimeout(left)
            with suppress(TimeoutError):
                if listener.recv(2048)[place] == address.packed:
                    yield "received"
                    return
        yield "nothing"


def transmit(link: str, frame: bytes) -> None:
    """Send an Ethernet frame."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((link, 0))
        sender.send(frame)


def send(protocol: int, destination: str, uid: int) -> str:
    """Send a packet of any protocol from a raw socket, as a process of that uid that was given CAP_NET_RAW."""
    ctypes.CDLL(None).setfsuid(uid)
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    with socket.socket(family, socket.SOCK_RAW, protocol) as client:
        try:
            client.sendto(bytes(16), (destination, 0))
        except OSError as error:
            return _failure(error)
    return "sent"


def hammer(never: Sequence[tuple[str, int]], always: Sequence[tuple[str, int]]) -> Generator[Any]:
    """Send to what is denied and connect to what is permitted, until the next step; then count what came of it."""
    stop = threading.Event()
    counts: Counter[tuple[str, str]] = Counter()

    def work() -> None:
        # Short of all the processor's time: others have work to do meanwhile.
        while not stop.wait(0.002):
            for address, port in never:
                counts["udp", ask(address, port)] += 1
                counts["tcp", connect(address, port)] += 1
            for address, port in always:
                counts["permitted", connect(address, port)] += 1

    worker = threading.Thread(target=work)
    worker.start()
    yield "under way"
    stop.set()
    worker.join()
    yield counts


def log(*groups: int) -> Generator[Any]:
    """Read what netfilter logs: each time all records since, as (group, prefix, IP packet)."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as listener:
        listener.bind((0, 0))
        # Nobody reads before the next step.
        listener.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 23)
        for group in groups:
            # NFULNL_MSG_CONFIG: bind the group; then copy the packets' first 64 bytes; each at once.
            bind = struct.pack("=HHBxxx", 5, 1, 1)
            mode = struct.pack("=HH", 10, 2) + struct.pack(">IBx", 64, 2) + bytes(2)
            threshold = struct.pack("=HH", 8, 5) + struct.pack(">I", 1)
            _configure(listener, group, bind + mode + threshold)
        listener.settimeout(SILENCE)
        records: list[tuple[int, str, bytes]] = []
        yield "ready"
        while True:
            try:
                records += _records(listener.recv(1 << 16))
                # Whatever else is under way comes soon after the first.
                listener.settimeout(0.05)
            except TimeoutError:
                listener.settimeout(SILENCE)
                yield records
                records = []


def _configure(listener: socket.socket, group: int, attributes: bytes) -> None:
    payload = struct.pack("=BB", 0, 0) + struct.pack(">H", group) + attributes
    request_and_acknowledge = 5
    header = struct.pack("=IHHII", 16 + len(payload), _NFULNL | 1, request_and_acknowledge, 0, 0)
    listener.send(header + payload)
    answer = listener.recv(1 << 16)
    code = struct.unpack_from("=i", answer, 16)[0]
    if code:
        raise OSError(-code, "the kernel does not log to us")


def _records(message: bytes) -> list[tuple[int, str, bytes]]:
    records = []
    while len(message) >= 20:
        (length, kind) = struct.unpack_from("=IH", message)
        if kind == _NFULNL:
            (group,) = struct.unpack_from(">H", message, 18)
            attributes = _attributes(message[20:length])
            prefix = attributes.get(_NFULA_PREFIX, b"").rstrip(b"\0").decode()
            records.append((group, prefix, attributes.get(_NFULA_PAYLOAD, b"")))
        message = message[(length + 3) & ~3 :]
    return records


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        found[kind & 0x3FFF] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


def _socket(address: str, kind: socket.SocketKind) -> socket.socket:
    one = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    one.settimeout(SILENCE)
    return one


def _place(address: str, port: int) -> tuple[Any, ...]:
    """Return what a socket takes; a link-local address's zone is a number there."""
    # Text would be encoded as a name, by a module that an agent may not be able to read.
    return socket.getaddrinfo(address.encode(), port, flags=socket.AI_NUMERICHOST)[0][4]


def _failure(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "silence"
    return errno.errorcode.get(error.errno or 0, str(error))
