"""Says how one attempt to get out ends, and how soon.

python -m deploy.demo.probe tcp|udp HOST PORT
"""

import socket
import sys
import time

PATIENCE = 3.0
"""Seconds after which an attempt counts as left hanging."""


def probe(protocol: str, host: str, port: int) -> str:
    """Connect, or for UDP wait for an answer; the result is one line."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    begun = time.monotonic()
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=kind)[0]
        with socket.socket(family, kind) as attempt:
            attempt.settimeout(PATIENCE)
            begun = time.monotonic()
            attempt.connect(address)
            outcome = "connected"
            if protocol == "udp":
                attempt.send(b"hello")
                outcome = f"answered {attempt.recv(1024)!r}"
    except TimeoutError:
        outcome = "hangs"
    except OSError as error:
        outcome = f"refused ({error.strerror})"
    return f"{outcome} after {(time.monotonic() - begun) * 1000:.1f} ms"


if __name__ == "__main__":
    print(probe(sys.argv[1], sys.argv[2], int(sys.argv[3])))
