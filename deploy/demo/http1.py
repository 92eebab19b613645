"""HTTP/1.1 for the demo's origins, by h11."""

import asyncio
from collections.abc import Iterable

import h11

from deploy.demo.echo import Connection, Request, answer

type _Event = h11.Event | type[h11.NEED_DATA | h11.PAUSED]


async def serve_http1(
    connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Serve one connection until it closes or breaks the protocol."""
    state = h11.Connection(h11.SERVER)
    while True:
        event = await _next_event(state, reader, writer)
        if not isinstance(event, h11.Request):
            return
        request = Request(
            connection,
            event.http_version.decode(),
            event.method.decode(),
            event.target.decode("latin-1"),
            _text(event.headers),
        )
        request.begun()
        while isinstance(event := await _next_event(state, reader, writer), h11.Data):
            request.body_length += len(event.data)
        if not isinstance(event, h11.EndOfMessage):
            return
        request.trailers = _text(event.headers)
        request.ended()
        await _respond(state, request, writer)
        if state.our_state is not h11.DONE or state.their_state is not h11.DONE:
            return
        state.start_next_cycle()


async def _next_event(
    state: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> _Event:
    while True:
        event = state.next_event()
        if event is not h11.NEED_DATA:
            return event
        if state.they_are_waiting_for_100_continue:
            go_on = h11.InformationalResponse(status_code=100, headers=[])
            writer.write(state.send(go_on) or b"")
        state.receive_data(await reader.read(65536))


async def _respond(state: h11.Connection, request: Request, writer: asyncio.StreamWriter) -> None:
    reply = answer(request)
    writer.write(state.send(h11.Response(status_code=200, headers=reply.headers())) or b"")
    if request.method != "HEAD":
        async for chunk in reply.body:
            writer.write(state.send(h11.Data(data=chunk)) or b"")
            await writer.drain()
    writer.write(state.send(h11.EndOfMessage()) or b"")
    await writer.drain()


def _text(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
