"""An origin that keeps every byte that reaches it, and answers as origins should not.

    python -m tests.end_to_end.raw_origin LOG LEAF

HTTP/1.1 on port 9080, and over TLS without HTTP/2 on port 9443. `/ws` becomes a WebSocket and `/raw` something
that is neither HTTP nor a WebSocket, asked for or not; both send back what they get. `/early` is answered before its
body has come. Everything else is answered when its body is complete.
"""

import asyncio
import base64
import hashlib
import re
import ssl
import sys
from functools import partial
from itertools import count
from pathlib import Path

from deploy.demo.json_lines import Log

HTTP_PORT = 9080
TLS_PORT = 9443

_ANSWER = b'HTTP/1.1 200 OK\r\nAlt-Svc: h3=":443"\r\nContent-Length: 3\r\n\r\nok\n'
# RFC 6455 section 1.3.
_WEBSOCKET = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_numbers = count(1)


class _Peer:
    """One connection, with every byte of it on record."""

    def __init__(self, log: Log, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._log = log
        self._number = next(_numbers)
        self._reader = reader
        self._writer = writer
        self.unread = b""

    async def receive(self) -> None:
        """Wait for more bytes. Raises EOFError at the end."""
        data = await self._reader.read(65536)
        if not data:
            raise EOFError
        self._log.write("data", connection=self._number, data=data.decode("latin-1"))
        self.unread += data

    async def take(self, length: int) -> bytes:
        while len(self.unread) < length:
            await self.receive()
        taken, self.unread = self.unread[:length], self.unread[length:]
        return taken

    async def take_until(self, mark: bytes) -> bytes:
        while mark not in self.unread:
            await self.receive()
        return await self.take(self.unread.index(mark) + len(mark))

    def send(self, data: bytes) -> None:
        self._writer.write(data)


async def _serve(log: Log, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    peer = _Peer(log, reader, writer)
    try:
        while True:
            head = await peer.take_until(b"\r\n\r\n")
            path = head.split(b" ", 2)[1].partition(b"?")[0]
            if path == b"/ws":
                await _websocket(peer, head)
            elif path == b"/raw":
                peer.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: raw\r\nConnection: Upgrade\r\n\r\n")
                while True:
                    await peer.receive()
                    peer.send(await peer.take(len(peer.unread)))
            elif path == b"/early":
                peer.send(_ANSWER)
                while True:
                    await peer.receive()
            elif re.search(rb"\r\ntransfer-encoding: *chunked\r\n", head, re.IGNORECASE):
                while size := int((await peer.take_until(b"\r\n")).strip(), 16):
                    await peer.take(size + 2)
                await peer.take(2)
            elif length := re.search(rb"\r\ncontent-length: *(\d+)\r\n", head, re.IGNORECASE):
                await peer.take(int(length[1]))
            peer.send(_ANSWER)
    except (EOFError, OSError):
        pass
    finally:
        writer.close()


async def _websocket(peer: _Peer, head: bytes) -> None:
    key = re.search(rb"\r\nsec-websocket-key: *(\S+)\r\n", head, re.IGNORECASE)
    accept = base64.b64encode(hashlib.sha1((key[1] if key else b"") + _WEBSOCKET).digest())
    peer.send(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %s\r\n\r\n" % accept
    )
    while True:
        # RFC 6455 section 5.2; a client's frames are masked.
        kind, length = await peer.take(2)
        size = length & 0x7F
        if size == 126:
            size = int.from_bytes(await peer.take(2))
        mask = await peer.take(4)
        payload = bytes(byte ^ mask[place % 4] for place, byte in enumerate(await peer.take(size)))
        shown = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2)
        peer.send(bytes([kind]) + shown + payload)


async def _main(log: str, leaf: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf)
    context.set_alpn_protocols(["http/1.1"])
    serve = partial(_serve, Log(Path(log)))
    await asyncio.start_server(serve, ["::", "0.0.0.0"], HTTP_PORT)
    await asyncio.start_server(serve, ["::", "0.0.0.0"], TLS_PORT, ssl=context)
    print("ready", flush=True)  # noqa: T201 - whoever started it waits for this
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
