"""What a redirected connection may speak: TLS, HTTP/1 and, inside TLS, HTTP/2. All else is closed at once.

mitmproxy's own choice falls back to raw forwarding, or to waiting for ever, for what it does not recognise.
"""

import re
from collections.abc import Callable

from mitmproxy.proxy import commands, events, layer, layers
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HTTPMode
from mitmproxy.proxy.layers.tls import HTTP1_ALPNS, ClientTLSLayer, ServerTLSLayer

from bounds import BoundedClientTls, BoundedServer
from gate import Gate
from streams import Stream

# RFC 9112 section 3. HTTP/2's preface (RFC 9113 section 3.4) looks like a request line of version 2.0.
_REQUEST_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32} [^\r\n ]+ HTTP/1\.[01]\r?\n")
_LONGEST_REQUEST_LINE = 64 * 1024
_TLS_HANDSHAKE = b"\x16\x03"


class Http(layers.HttpLayer):
    """HTTP with our streams, and with limits."""

    def __init__(self, context: Context, gate: Gate) -> None:
        super().__init__(context, HTTPMode.transparent)
        self._gate = gate
        if context.client.alpn != b"h2":
            self.connections[context.client] = BoundedServer(context.fork())

    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        self.streams[stream_id] = Stream(self.context.fork(), stream_id, self._gate)
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
    context: Context, data: bytes, gate: Gate, on_refused: Callable[[str], None]
) -> layer.Layer | None:
    """Choose the layer for what a client has sent so far; None where more is needed."""
    inside_tls = isinstance(context.layers[-1], ClientTLSLayer)
    if not inside_tls:
        if len(data) < len(_TLS_HANDSHAKE):
            return None
        if data.startswith(_TLS_HANDSHAKE):
            server = ServerTLSLayer(context)
            server.child_layer = BoundedClientTls(context)
            return server
    elif context.client.alpn == b"h2":
        return Http(context, gate)
    elif context.client.alpn and context.client.alpn not in HTTP1_ALPNS:
        on_refused("the TLS handshake agreed on a protocol that is not HTTP")
        return Closed(context)
    if _REQUEST_LINE.match(data):
        return Http(context, gate)
    if b"\n" not in data and len(data) < _LONGEST_REQUEST_LINE and _could_be_http(data):
        return None
    on_refused("the connection speaks neither TLS nor HTTP")
    return Closed(context)


def _could_be_http(data: bytes) -> bool:
    return re.match(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}( |$)", data[:34]) is not None and not data.startswith(
        b"SSH-"
    )
