"""A request's body on its way to the origin: sent on as it comes, counted, and never more than was permitted.

mitmproxy keeps a denied upload whole before it answers, knows no limit for what arrives while a hook is waited
for, and sends an HTTP/2 body of unknown length to an HTTP/1 origin without framing.
"""

from collections.abc import Callable
from dataclasses import dataclass

from mitmproxy import flow, http
from mitmproxy.proxy import events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import DropStream, HttpStream, SendHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._hooks import HttpErrorHook
from mitmproxy.proxy.layers.websocket import WebsocketLayer

from egress_policy.exchange import Ending, Exchange
from gate import Gate

MAX_WAITING = 256 * 1024
"""Bytes of a body that may arrive before its request is decided and its origin connected."""
MAX_MESSAGE = 16 * 1024 * 1024
"""Bytes of a WebSocket message, which is kept until it is complete."""

TERMS = "egress-policy terms"
"""The key of a flow's metadata for its Terms; a flow that was denied has none."""


@dataclass(slots=True)
class Terms:
    """What a permitted request may send: `limit` in bytes, None where the intent sets no limit; and what it did.

    `too_long` puts on record that more came and makes the answer; `failed` does so for an origin that cannot be
    reached, or breaks off before it has answered.
    """

    limit: int | None
    exchange: Exchange
    too_long: Callable[[], http.Response]
    failed: Callable[[str], http.Response]
    sent: int = 0
    received: int = 0

    def may_send(self, data: bytes) -> bool:
        """Count what is about to be sent on; tell whether it may be."""
        self.sent += len(data)
        is_allowed = self.limit is None or self.sent <= self.limit
        if is_allowed:
            self.exchange.sent += len(data)
        return is_allowed

    def has_come(self, data: bytes) -> None:
        """Count what came of the answer's body."""
        self.received += len(data)
        self.exchange.received += len(data)

    def is_answered(self, response: http.Response | None) -> bool:
        """Tell whether all of a body came whose length was announced: the client may leave before it is told."""
        return response is not None and response.headers.get("content-length") == str(self.received)


class Stream(HttpStream):
    """One request and its answer."""

    def __init__(self, context: Context, stream_id: int, gate: Gate) -> None:
        super().__init__(context, stream_id)
        self._gate = gate
        self._waiting = 0

    def handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Handle an event; while something is waited for, do not let the client send without end."""
        if isinstance(event, ResponseData):
            self._terms().has_come(event.data)
        yield from super().handle_event(event)
        if not self._paused:
            self._waiting = 0
            self._gate.open(self.stream_id)
        elif isinstance(event, RequestData):
            self._waiting += len(event.data)
            if self._waiting > MAX_WAITING:
                self._gate.close(self.stream_id)

    def state_wait_for_request_headers(self, event: RequestHeaders) -> layer.CommandGenerator[None]:
        yield from super().state_wait_for_request_headers(event)
        if self.client_state == self.state_consume_request_body and self.flow.response is not None:
            # A denial is answered before the body has come. With this the stream is over; HttpLayer drops what
            # the client still sends.
            self.client_state = self.state_done
            yield from self.send_response()

    def make_server_connection(self) -> layer.CommandGenerator[bool]:
        made = yield from super().make_server_connection()
        headers = self.flow.request.headers
        if (
            made
            and self.client_state == self.state_wait_for_request_headers
            and self.context.server.alpn != b"h2"
            and "content-length" not in headers
        ):
            # An HTTP/1 origin would read what comes without framing as a second request, which nobody decided.
            headers["transfer-encoding"] = "chunked"
        return made

    def state_stream_request_body(
        self, event: RequestData | RequestEndOfMessage
    ) -> layer.CommandGenerator[None]:
        terms = self._terms()
        if isinstance(event, RequestData) and not terms.may_send(event.data):
            # Not the end of the message: the origin would act on a body cut short.
            cancel = RequestProtocolError(self.stream_id, "the body is too long", ErrorCode.CANCEL)
            yield SendHttp(cancel, self.context.server)
            terms.exchange.broke_off(Ending.CUT)
            yield from self._answer_instead(terms.too_long())
            return
        yield from super().state_stream_request_body(event)

    def state_consume_request_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        yield from super().state_consume_request_body(event)
        if isinstance(event, RequestData) and self.flow.response is None:
            # Only where no body is allowed is it not sent on as it comes. The `request` hook denies it.
            yield from super().state_consume_request_body(RequestEndOfMessage(self.stream_id))

    def state_done(self, _event: events.Event) -> layer.CommandGenerator[None]:
        """Drop what the client still sends of a body that was answered early."""
        yield from ()

    def passthrough(self, event: events.Event) -> layer.CommandGenerator[None]:
        terms = self._terms()
        # Whatever the client sends counts: a ping and the reason of a close carry data too.
        if isinstance(event, RequestData) and not terms.may_send(event.data):
            cancel = RequestProtocolError(self.stream_id, "the body is too long", ErrorCode.CANCEL)
            yield SendHttp(cancel, self.context.server)
            terms.exchange.broke_off(Ending.CUT)
            yield from self._answer_instead(terms.too_long())
            return
        yield from super().passthrough(event)
        socket = self.child_layer
        if isinstance(socket, WebsocketLayer) and any(
            sum(map(len, side.frame_buf)) > MAX_MESSAGE for side in (socket.client_ws, socket.server_ws)
        ):
            terms.exchange.broke_off(Ending.CUT)
            yield from self._answer_instead(terms.failed(f"a message is longer than {MAX_MESSAGE} bytes"))

    def handle_protocol_error(
        self, event: RequestProtocolError | ResponseProtocolError
    ) -> layer.CommandGenerator[None]:
        terms: Terms | None = self.flow.metadata.get(TERMS) if hasattr(self, "flow") else None
        if terms is not None and not terms.is_answered(self.flow.response):
            by_client = isinstance(event, RequestProtocolError)
            terms.exchange.broke_off(Ending.CLIENT_LEFT if by_client else Ending.UPSTREAM_FAILED)
        if (
            terms is None
            or isinstance(event, RequestProtocolError)
            or self.flow.response is not None
            or self.client_state == self.state_errored
        ):
            yield from super().handle_protocol_error(event)
        else:
            yield from self._answer_instead(terms.failed(event.message))

    def _terms(self) -> Terms:
        terms: Terms = self.flow.metadata[TERMS]
        return terms

    def _answer_instead(self, response: http.Response) -> layer.CommandGenerator[None]:
        """Answer for the origin, or break the connection off where its answer has begun; the flow is over."""
        has_begun = self.flow.response is not None
        self.flow.error = flow.Error("ended by the policy")
        yield HttpErrorHook(self.flow)
        self.client_state = self.server_state = self._handle_event = self.state_errored
        self.flow.live = False
        if has_begun:
            broken = ResponseProtocolError(self.stream_id, "ended by the policy", ErrorCode.CANCEL)
            yield SendHttp(broken, self.context.client)
        else:
            self.flow.response = response
            yield SendHttp(ResponseHeaders(self.stream_id, response), self.context.client)
            yield SendHttp(ResponseData(self.stream_id, response.raw_content or b""), self.context.client)
            yield SendHttp(ResponseEndOfMessage(self.stream_id), self.context.client)
        yield DropStream(self.stream_id)
