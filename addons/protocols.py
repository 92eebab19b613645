"""What a redirected connection may speak: TLS, HTTP/1 and, inside TLS, HTTP/2. All else is closed at once.

mitmproxy's own choice falls back to raw forwarding, or to waiting for ever, for what it does not recognise.
"""

import re
from collections.abc import Callable

from mitmproxy import connection
from mitmproxy.proxy import commands, events, layer, layers
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HTTPMode, HttpStream
from mitmproxy.proxy.layers.http._events import RequestData, RequestEndOfMessage, RequestHeaders
from mitmproxy.proxy.layers.tls import HTTP1_ALPNS, ClientTLSLayer, ServerTLSLayer

# RFC 9112 section 3. HTTP/2's preface (RFC 9113 section 3.4) looks like a request line of version 2.0.
_REQUEST_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32} [^\r\n ]+ HTTP/1\.[01]\r?\n")
_LONGEST_REQUEST_LINE = 64 * 1024
_TLS_HANDSHAKE = b"\x16\x03"


MAX_BODY = "egress-policy max-body"
"""The key of a flow's metadata for the bytes of body that its intent allows, None where it sets no limit."""

IS_CUT = "egress-policy is cut"
"""The key of a flow's metadata that is set when its body has outgrown the limit: no more of it is sent on."""


class _Stream(HttpStream):
    """Keeps of a request's body only what may be sent on: a denial is answered before the body has come.

    mitmproxy would keep a denied upload whole in memory, and answer when it is complete.
    """

    def state_wait_for_request_headers(self, event: RequestHeaders) -> layer.CommandGenerator[None]:
        yield from super().state_wait_for_request_headers(event)
        if self.client_state == self.state_consume_request_body and self.flow.response is not None:
            # With this the stream is over; HttpLayer drops what the client still sends.
            self.client_state = self.state_done
            yield from self.send_response()

    def state_stream_request_body(
        self, event: RequestData | RequestEndOfMessage
    ) -> layer.CommandGenerator[None]:
        # What had arrived before the connection was cut still comes here. The end of a shortened body would have
        # the origin act on it.
        if IS_CUT not in self.flow.metadata:
            yield from super().state_stream_request_body(event)

    def state_consume_request_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        yield from super().state_consume_request_body(event)
        limit = self.flow.metadata.get(MAX_BODY)
        if isinstance(event, RequestData) and limit is not None and len(self.request_body_buf) > limit:
            # The `request` hook denies a body that is too long; this one will not become shorter.
            yield from super().state_consume_request_body(RequestEndOfMessage(self.stream_id))


class _Http(layers.HttpLayer):
    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        self.streams[stream_id] = _Stream(self.context.fork(), stream_id)
        yield from self.event_to_child(self.streams[stream_id], events.Start())


class Closed(layer.Layer):
    """Closes the client's connection without a byte to anyone."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        # Every layer enters itself in the context; this one must not look as if it were inside of anything.
        context.layers.remove(self)

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.Start):
            yield commands.CloseConnection(self.context.client)

    def __repr__(self) -> str:
        return "Closed()"


def choose(
    context: Context, data: bytes, on_refused: Callable[[connection.Client, str], None]
) -> layer.Layer | None:
    """Choose the layer for what a client has sent so far; None where more is needed."""
    inside_tls = isinstance(context.layers[-1], ClientTLSLayer)
    if not inside_tls:
        if len(data) < len(_TLS_HANDSHAKE):
            return None
        if data.startswith(_TLS_HANDSHAKE):
            server = ServerTLSLayer(context)
            server.child_layer = ClientTLSLayer(context)
            return server
    elif context.client.alpn == b"h2":
        return _Http(context, HTTPMode.transparent)
    elif context.client.alpn and context.client.alpn not in HTTP1_ALPNS:
        on_refused(context.client, "the TLS handshake agreed on a protocol that is not HTTP")
        return Closed(context)
    if _REQUEST_LINE.match(data):
        return _Http(context, HTTPMode.transparent)
    if b"\n" not in data and len(data) < _LONGEST_REQUEST_LINE and _could_be_http(data):
        return None
    on_refused(context.client, "the connection speaks neither TLS nor HTTP")
    return Closed(context)


def _could_be_http(data: bytes) -> bool:
    return re.match(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}( |$)", data[:34]) is not None and not data.startswith(
        b"SSH-"
    )
