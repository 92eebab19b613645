"""What a compromised agent does: opens sockets of any kind and sends bytes that no client would.

Reads a JSON array of sends on standard input, makes them all at once, and prints what came of each.
"""

import errno
import json
import re
import socket
import ssl
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

IPPROTO_MPTCP = 262


@dataclass(frozen=True, slots=True)
class Send:
    """Bytes (`data`, as Latin-1) to an address.

    `tls` is the server name of a handshake before them, "" for none. Reading ends with so many complete answers,
    with the connection, or after `patience` seconds of silence. `kind` is one of the table below, or `raw` and a
    protocol's number.
    """

    address: str
    port: int
    data: str
    tls: str | None = None
    alpn: tuple[str, ...] = ()
    answers: int = 1
    patience: float = 5.0
    kind: str = "tcp"


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back; `end` is `answered`, `closed`, `silence`, `sent`, `TLS: …` or an errno's name."""

    answer: str
    end: str

    @property
    def status(self) -> int:
        """Return the status of an HTTP/1 answer; 0 where none came."""
        words = self.answer.split(" ", 2)
        return int(words[1]) if words[0].startswith("HTTP/1.") else 0

    @property
    def code(self) -> str:
        """Return the code of a denial; empty where the answer is none."""
        _, _, body = self.answer.partition("\r\n\r\n")
        return str(json.loads(body)["code"]) if "application/problem+json" in self.answer else ""


# Type and protocol; ping's protocol is that of the family.
_KINDS = {
    "tcp": (socket.SOCK_STREAM, 0),
    "mptcp": (socket.SOCK_STREAM, IPPROTO_MPTCP),
    "fast open": (socket.SOCK_STREAM, 0),
    "udp": (socket.SOCK_DGRAM, 0),
    "udp-lite": (socket.SOCK_DGRAM, socket.IPPROTO_UDPLITE),
    "ping": (socket.SOCK_DGRAM, None),
}
_PING = {socket.AF_INET: (socket.IPPROTO_ICMP, b"\x08"), socket.AF_INET6: (socket.IPPROTO_ICMPV6, b"\x80")}


def make(wanted: Send) -> Reply:
    """Make one send, and say what came of it."""
    answer, end = b"", "answered"
    try:
        with _socket(wanted) as plain:
            plain.settimeout(wanted.patience)
            stream = _speak(wanted, plain)
            if stream is None:
                return Reply("", "sent")
            while not _is_complete(wanted, answer):
                received = stream.recv(65536)
                if not received:
                    end = "closed"
                    break
                answer += received
    except TimeoutError:
        end = "silence"
    except ssl.SSLError as error:
        end = f"TLS: {error.reason}"
    except OSError as error:
        end = errno.errorcode.get(error.errno or 0, str(error))
    return Reply(answer.decode("latin-1"), end)


def _socket(wanted: Send) -> socket.socket:
    family = socket.AF_INET6 if ":" in wanted.address else socket.AF_INET
    if wanted.kind.startswith("raw "):
        return socket.socket(family, socket.SOCK_RAW, int(wanted.kind.removeprefix("raw ")))
    kind, protocol = _KINDS[wanted.kind]
    return socket.socket(family, kind, _PING[family][0] if protocol is None else protocol)


def _speak(wanted: Send, plain: socket.socket) -> socket.socket | None:
    """Send what is to be sent; return what to read from, if there can be an answer that says something."""
    place, data = (wanted.address, wanted.port), wanted.data.encode("latin-1")
    if wanted.kind == "ping" or wanted.kind.startswith("raw "):
        request = _PING[plain.family][1] if wanted.kind == "ping" else b""
        plain.sendto(request.ljust(16, b"\0"), (wanted.address, 0))
        return None
    if wanted.kind == "fast open":
        plain.sendto(data, socket.MSG_FASTOPEN, place)
        return plain
    plain.connect(place)
    stream = plain if wanted.tls is None else _tls(plain, wanted.tls, wanted.alpn)
    stream.sendall(data)
    return stream


def _tls(plain: socket.socket, name: str, alpn: tuple[str, ...]) -> socket.socket:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context.wrap_socket(plain, server_hostname=name or None)


def _is_complete(wanted: Send, answer: bytes) -> bool:
    """Whether as many answers have come; of HTTP/1's, only those that say their length can be told."""
    if _KINDS[wanted.kind][0] == socket.SOCK_DGRAM:
        return bool(answer)
    for _ in range(wanted.answers):
        head, end, rest = answer.partition(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
        if not end or length is None or len(rest) < int(length[1]):
            return False
        answer = rest[int(length[1]) :]
    return True


if __name__ == "__main__":
    sends = [Send(**one) for one in json.load(sys.stdin)]
    with ThreadPoolExecutor(len(sends)) as pool:
        replies = [{"answer": one.answer, "end": one.end} for one in pool.map(make, sends)]
    print(json.dumps(replies))  # noqa: T201 - whoever started it reads this
