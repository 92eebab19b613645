"""Limits to what one peer can have the proxy keep in memory, and to how it may write; mitmproxy has none for these.

They hold for both sides: an origin may be as hostile as an agent.
"""

from typing import Any, override

import h11
from h11._readers import ChunkedReader
from h11._receivebuffer import ReceiveBuffer
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import http
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._http1 import Http1Client, Http1Connection, Http1Server
from mitmproxy.proxy.layers.tls import ClientTLSLayer

from egress_policy.exchange import Exchange

MAX_BUFFERED = 256 * 1024
"""Bytes of an HTTP/1 peer that make no sense yet: an unfinished head or chunk line, or requests sent ahead."""
MAX_CLIENT_HELLO = 64 * 1024
"""Bytes; mitmproxy reads an unfinished ClientHello, which may claim 16 MiB, anew with every packet."""


class _BoundedHttp1(Http1Connection):
    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        yield from super()._handle_event(event)
        if len(self.buf) > MAX_BUFFERED:
            self.buf = ReceiveBuffer()
            self.state = self.done
            yield commands.CloseConnection(self.conn)
            if self.stream_id is not None:
                why = f"more than {MAX_BUFFERED} bytes came without a complete head"
                yield ReceiveHttp(
                    self.ReceiveProtocolError(self.stream_id, why, self.ReceiveProtocolError.code)
                )

    def read_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        if type(self.body_reader) is ChunkedReader:
            self.body_reader = _ChunksWithoutTrailers()
        yield from super().read_body(event)


class _Lines(ReceiveBuffer):
    """Keeps control characters of a head where read_request() sees them.

    mitmproxy strips values as Python does, vertical tabs and form feeds included: an origin that does not would read
    `Transfer-Encoding: <VT>chunked` otherwise.
    """

    _CONTROL = bytes(0 if byte < 0x20 or byte == 0x7F else byte for byte in range(256))

    @override
    def maybe_extract_lines(self) -> list[bytearray] | None:
        lines = super().maybe_extract_lines()
        return lines and [line.translate(self._CONTROL) for line in lines]


class BoundedServer(_BoundedHttp1, Http1Server):
    """The client's side of HTTP/1."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.buf = _Lines()


class BoundedClient(_BoundedHttp1, Http1Client):
    """The origin's side of HTTP/1."""


class BoundedClientTls(ClientTLSLayer):
    """The client's side of TLS. `passed` is what counts the bytes of a connection that is not decrypted."""

    passed: Exchange | None = None

    def receive_handshake_data(self, data: bytes) -> layer.CommandGenerator[tuple[bool, str | None]]:
        """Take more of the handshake, up to the limit for a ClientHello."""
        if not self.client_hello_parsed and len(self.recv_buffer) + len(data) > MAX_CLIENT_HELLO:
            return False, f"the ClientHello is longer than {MAX_CLIENT_HELLO} bytes"
        return (yield from super().receive_handshake_data(data))

    def event_to_child(self, event: events.Event) -> layer.CommandGenerator[None]:
        if self.passed is not None and isinstance(event, events.DataReceived):
            if event.connection is self.context.client:
                self.passed.sent += len(event.data)
            else:
                self.passed.received += len(event.data)
        yield from super().event_to_child(event)


def count_passed(context: Context, exchange: Exchange) -> None:
    """Have what is passed on without decrypting it count as part of an exchange."""
    for one in context.layers:
        if isinstance(one, BoundedClientTls):
            one.passed = exchange


class _ChunksWithoutTrailers(ChunkedReader):
    """RFC 9112 section 7.1.2: a recipient may discard trailers. mitmproxy's layer falls over them."""

    def __call__(self, buf: ReceiveBuffer) -> Any:  # noqa: ANN401 - h11's own types are not public
        event = super().__call__(buf)
        return h11.EndOfMessage() if isinstance(event, h11.EndOfMessage) else event


def bound_origins() -> None:
    """Have mitmproxy use BoundedClient: it offers no seam for this, but looks the class up by name."""
    http.Http1Client = BoundedClient  # type: ignore[attr-defined]
