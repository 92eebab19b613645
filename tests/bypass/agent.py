"""What a compromised agent does: opens connections and sends bytes that no client would.

Reads a JSON array of sends on standard input, makes them all at once, and prints what came of each.
"""

import errno
import json
import re
import socket
import ssl
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def send(wanted: dict[str, Any]) -> dict[str, str]:
    """Connect, send, and read until the end, the last answer's end, or silence."""
    answer = b""
    try:
        place = (wanted["address"], wanted["port"])
        with socket.create_connection(place, timeout=wanted["patience"]) as plain:
            stream = plain if wanted["tls"] is None else _tls(plain, wanted["tls"], wanted["alpn"])
            stream.sendall(wanted["data"].encode("latin-1"))
            while not _is_complete(answer, wanted["answers"]):
                received = stream.recv(65536)
                if not received:
                    return _result(answer, "closed")
                answer += received
    except TimeoutError:
        return _result(answer, "silence")
    except ssl.SSLError as error:
        return _result(answer, f"TLS: {error.reason}")
    except OSError as error:
        return _result(answer, errno.errorcode.get(error.errno or 0, str(error)))
    return _result(answer, "answered")


def _tls(plain: socket.socket, name: str, alpn: list[str]) -> socket.socket:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(alpn)
    return context.wrap_socket(plain, server_hostname=name or None)


def _is_complete(answer: bytes, answers: int) -> bool:
    """Whether as many HTTP/1 answers have come; only those that say their length can be told."""
    for _ in range(answers):
        head, end, rest = answer.partition(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
        if not end or length is None or len(rest) < int(length[1]):
            return False
        answer = rest[int(length[1]) :]
    return True


def _result(answer: bytes, end: str) -> dict[str, str]:
    return {"answer": answer.decode("latin-1"), "end": end}


if __name__ == "__main__":
    sends = json.load(sys.stdin)
    with ThreadPoolExecutor(len(sends)) as pool:
        print(json.dumps(list(pool.map(send, sends))))  # noqa: T201 - whoever started it reads this
