"""A client that asks for one page again and again: `load.py HOST SECONDS CONNECTIONS keep-alive|new CA [HEADER]`.

Prints the number of answers with status 200, and of those that did not come, as JSON.
"""

import asyncio
import json
import ssl
import sys
import time

_PATIENCE = 3.0
"""Seconds after which an answer counts as lost."""


async def main(host: str, seconds: float, connections: int, reuse: bool, authority: str, header: str) -> None:
    """Keep so many connections busy for so many seconds."""
    context = ssl.create_default_context(cafile=authority)
    request = (
        f"GET / HTTP/1.1\r\nHost: {host}\r\n{header}{'' if reuse else 'Connection: close\r\n'}\r\n".encode()
    )
    until = time.monotonic() + seconds
    counts = await asyncio.gather(*(_ask(host, context, request, reuse, until) for _ in range(connections)))
    answered, refused = (sum(column) for column in zip(*counts, strict=True))
    print(json.dumps({"answered": answered, "other": refused}))


async def _ask(
    host: str, context: ssl.SSLContext, request: bytes, reuse: bool, until: float
) -> tuple[int, int]:
    answered = other = 0
    streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    while time.monotonic() < until:
        try:
            async with asyncio.timeout(_PATIENCE):
                if streams is None:
                    streams = await asyncio.open_connection(host, 443, ssl=context)
                reader, writer = streams
                writer.write(request)
                answered += await _status(reader) == 200
        except (OSError, asyncio.IncompleteReadError):
            other += 1
            streams = None
        else:
            if not reuse:
                writer.close()
                streams = None
    if streams is not None:
        streams[1].close()
    return answered, other


async def _status(reader: asyncio.StreamReader) -> int:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.partition(b":")[2])
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length:")
    )
    await reader.readexactly(length)
    return int(head.split(b" ", 2)[1])


if __name__ == "__main__":
    host, seconds, connections, kind, authority, *header = sys.argv[1:]
    field = f"{header[0]}\r\n" if header else ""
    asyncio.run(main(host, float(seconds), int(connections), kind == "keep-alive", authority, field))
