"""HTTP/2 for the demo's origins, by h2."""

import asyncio

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RequestReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)

from deploy.demo.echo import Connection, Request, answer


async def serve_http2(
    connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Serve one connection until it closes or breaks the protocol."""
    await _Streams(connection, reader, writer).serve()


class _Streams:
    def __init__(
        self, connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._connection = connection
        self._reader = reader
        self._writer = writer
        self._state = H2Connection(H2Configuration(client_side=False, header_encoding="latin-1"))
        self._requests: dict[int, Request] = {}
        self._responses: dict[int, asyncio.Task[None]] = {}
        self._more_window = asyncio.Event()

    async def serve(self) -> None:
        self._state.initiate_connection()
        self._flush()
        try:
            while data := await self._reader.read(65536):
                for event in self._state.receive_data(data):
                    if isinstance(event, ConnectionTerminated):
                        return
                    self._react(event)
                self._flush()
                # Window updates and settings both may let waiting streams go on.
                self._more_window.set()
        finally:
            for response in self._responses.values():
                response.cancel()

    def _react(self, event: Event) -> None:
        match event:
            case RequestReceived(stream_id=stream, headers=headers):
                self._requests[stream] = self._begin(_text(headers))
            case DataReceived(stream_id=stream, data=data, flow_controlled_length=length):
                self._requests[stream].body_length += len(data)
                self._state.acknowledge_received_data(length, stream)
            case TrailersReceived(stream_id=stream, headers=headers):
                self._requests[stream].trailers = _text(headers)
            case StreamEnded(stream_id=stream):
                request = self._requests.pop(stream)
                request.ended()
                self._responses[stream] = asyncio.create_task(self._respond(stream, request))
            case StreamReset(stream_id=stream):
                self._requests.pop(stream, None)
                if stream in self._responses:
                    self._responses[stream].cancel()
            case _:
                pass

    def _begin(self, headers: list[tuple[str, str]]) -> Request:
        pseudo = dict(headers)
        request = Request(self._connection, "2", pseudo[":method"], pseudo[":path"], headers)
        request.begun()
        return request

    async def _respond(self, stream: int, request: Request) -> None:
        try:
            reply = answer(request)
            self._state.send_headers(stream, [(":status", "200"), *reply.headers()])
            if request.method != "HEAD":
                async for chunk in reply.body:
                    await self._send(stream, chunk)
            self._state.end_stream(stream)
            self._flush()
        finally:
            del self._responses[stream]

    async def _send(self, stream: int, data: bytes) -> None:
        while data:
            room = min(self._state.local_flow_control_window(stream), self._state.max_outbound_frame_size)
            if room <= 0:
                self._more_window.clear()
                await self._more_window.wait()
                continue
            self._state.send_data(stream, data[:room])
            data = data[room:]
            self._flush()
            await self._writer.drain()

    def _flush(self) -> None:
        self._writer.write(self._state.data_to_send())


def _text(headers: object) -> list[tuple[str, str]]:
    if not isinstance(headers, list):
        raise TypeError("h2 gives a list of header fields")
    return [(str(name), str(value)) for name, value in headers]
