"""What the demo's origins answer, whatever the version of HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from deploy.demo.json_lines import Log

TICK = 0.1
"""Seconds between the lines of `/slow-stream`."""

_CHUNK = b"x" * 65536


@dataclass(frozen=True, slots=True)
class Connection:
    """One TCP connection, as accepted. `local` and `peer` are `address:port`, IPv6 in brackets."""

    id: int
    local: str
    peer: str
    log: Log
    server_name: str | None = None


@dataclass(slots=True)
class Request:
    """One request; the length of its body and its trailers grow as they arrive."""

    connection: Connection
    version: str
    method: str
    path: str
    headers: list[tuple[str, str]]
    body_length: int = 0
    trailers: list[tuple[str, str]] = field(default_factory=list)

    def begun(self) -> None:
        """Put the head on record."""
        self.connection.log.write(
            "request",
            connection=self.connection.id,
            local=self.connection.local,
            server_name=self.connection.server_name,
            http=self.version,
            method=self.method,
            path=self.path,
            headers=self.headers,
        )

    def ended(self) -> None:
        """Put what followed the head on record."""
        self.connection.log.write(
            "body",
            connection=self.connection.id,
            path=self.path,
            length=self.body_length,
            trailers=self.trailers,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to a request; `length` in bytes is None where the body never ends."""

    content_type: str
    length: int | None
    body: AsyncIterator[bytes]

    def headers(self) -> list[tuple[str, str]]:
        """List the header fields, in lower case."""
        length = [] if self.length is None else [("content-length", str(self.length))]
        return [("content-type", self.content_type), *length]


def answer(request: Request) -> Answer:
    """Echo the request as JSON; `/slow-stream` sends a line a tick for ever, `/bytes/N` sends N bytes."""
    path = request.path.partition("?")[0]
    if path == "/slow-stream":
        return Answer("text/plain", None, _ticks())
    wanted = path.removeprefix("/bytes/")
    if wanted != path and wanted.isdecimal():
        return Answer("application/octet-stream", int(wanted), _bytes(int(wanted)))
    echo = {
        "method": request.method,
        "path": request.path,
        "http": request.version,
        "server_name": request.connection.server_name,
        "local": request.connection.local,
        "headers": request.headers,
        "body_length": request.body_length,
        "trailers": request.trailers,
    }
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in echo.items())
    body = f"{{\n{lines}\n}}\n".encode()
    return Answer("application/json", len(body), _once(body))


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def _bytes(length: int) -> AsyncIterator[bytes]:
    for start in range(0, length, len(_CHUNK)):
        yield _CHUNK[: length - start]


async def _ticks() -> AsyncIterator[bytes]:
    number = 0
    while True:
        number += 1
        yield f"line {number}\n".encode()
        await asyncio.sleep(TICK)
