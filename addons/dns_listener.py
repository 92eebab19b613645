"""Where agents' DNS queries arrive: over TCP in a layer of mitmproxy's, over UDP on sockets of our own.

Mitmproxy's layer keeps every query of a connection, and asks an upstream if nobody has answered: this one never asks.
Its UDP server keeps a task for every client's port and a queue without a bound, so that a flood fills the memory, and
answers from whatever address the route names: the kernel takes an answer to a redirected query only from where it went.
"""

import asyncio
import socket
import struct

from mitmproxy import connection, ctx, dns
from mitmproxy.net.dns import response_codes
from mitmproxy.proxy import commands, context, events, layer, mode_servers
from mitmproxy.proxy.layers.dns import DNSLayer, DnsRequestHook

from dns_messages import pack, unpack

_LENGTH = struct.Struct("!H")
_MAX_WAITING = 16
"""Pieces of at most 64 KiB that a client may send ahead while a query of its is answered."""
# Queries are short; what is cut here is malformed, and answered so.
_LONGEST_DATAGRAM = 4096
# As many in one turn, so that requests need not wait. What does not fit into the socket's buffer is dropped.
_DATAGRAMS = 32
# ip(7), ipv6(7): which of our addresses a datagram reached. Python has no name for the first.
_IP_PKTINFO = 8
_ANCILLARY = socket.CMSG_SPACE(64)
_MAX_STREAMS = 500


class AgentDns(DNSLayer):
    """A client's TCP connection. The addon answers each query; what it leaves unanswered fails."""

    def handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Take what a client sends, up to a bound while it is to wait."""
        if isinstance(event, events.DataReceived) and len(self._paused_event_queue) >= _MAX_WAITING:
            yield commands.CloseConnection(self.context.client)
            return
        yield from super().handle_event(event)

    def unpack_message(self, data: bytes, from_client: bool) -> list[dns.DNSMessage]:  # noqa: ARG002 - always True
        """Read the queries that are complete now. Raises struct.error, which ends the connection."""
        self.req_buf.extend(data)
        messages = []
        while len(self.req_buf) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self.req_buf)
            if len(self.req_buf) < _LENGTH.size + length:
                break
            messages.append(unpack(bytes(self.req_buf[_LENGTH.size : _LENGTH.size + length])))
            del self.req_buf[: _LENGTH.size + length]
        return messages

    def handle_request(self, flow: dns.DNSFlow, msg: dns.DNSMessage) -> layer.CommandGenerator[None]:
        """Answer one query, and forget it. To answer an answer could go on for ever."""
        if msg.query:
            flow.request = msg
            yield DnsRequestHook(flow)
            answer = _answer_of(flow)
            yield commands.SendData(self.context.client, _LENGTH.pack(len(answer)) + answer)
        self.flows.pop(msg.id, None)


class Datagrams:
    """One UDP address, or every one of a family: whichever a query reached is the one that it is answered from.

    So links may come and go. What is `close`d, and has `sockets`, is a server to mitmproxy. Raises OSError.
    """

    def __init__(self, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._answering: set[asyncio.Task[None]] = set()
        self.sockets = (self._socket,)
        try:
            self._socket.setblocking(False)
            if family == socket.AF_INET6:
                self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            else:
                self._socket.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            self._socket.bind((host, port))
        except OSError:
            self._socket.close()
            raise
        self._loop.add_reader(self._socket, self._receive)

    def close(self) -> None:
        """Stop listening; what is not answered yet is not answered any more."""
        self._loop.remove_reader(self._socket)
        for task in self._answering:
            task.cancel()
        self._socket.close()

    def _receive(self) -> None:
        for _ in range(_DATAGRAMS):
            try:
                data, reached, _, peer = self._socket.recvmsg(_LONGEST_DATAGRAM, _ANCILLARY)
            except BlockingIOError:
                return
            except OSError:
                # The error of an answer that nobody took.
                continue
            task = self._loop.create_task(self._answer(data, reached, peer))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

    async def _answer(
        self, data: bytes, reached: list[tuple[int, int, bytes]], peer: tuple[str, int]
    ) -> None:
        try:
            query = unpack(data)
        except struct.error:
            return
        if not query.query:
            return
        client = connection.Client(
            peername=peer[:2], sockname=self._socket.getsockname()[:2], transport_protocol="udp"
        )
        flow = dns.DNSFlow(client, connection.Server(address=None), live=True)
        flow.request = query
        await ctx.master.addons.trigger_event(DnsRequestHook(flow))
        try:
            self._socket.sendmsg([_answer_of(flow)], reached, 0, peer)
        except OSError:
            # The client is gone, or its queue full: it may ask again.
            return


class _Streams:
    """The TCP connections that are open: of too many the oldest is closed (RFC 7766 section 6.2.3)."""

    def __init__(self) -> None:
        self._open: dict[asyncio.StreamWriter, None] = {}

    async def handle(
        self, server: mode_servers.DnsInstance, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if len(self._open) >= _MAX_STREAMS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.close()
        self._open[writer] = None
        try:
            await mode_servers.AsyncioServerInstance.handle_stream(server, reader, writer)
        finally:
            self._open.pop(writer, None)


def install() -> None:
    """Have mitmproxy's `dns` mode listen with what stands above."""
    streams = _Streams()

    async def stream(
        server: mode_servers.DnsInstance, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await streams.handle(server, reader, writer)

    def top_layer(_server: mode_servers.DnsInstance, context: context.Context) -> layer.Layer:
        return AgentDns(context)

    async def datagrams(_server: mode_servers.DnsInstance, host: str, port: int) -> Datagrams:
        return Datagrams(host, port)

    mode_servers.DnsInstance.make_top_layer = top_layer  # type: ignore[assignment,method-assign]
    mode_servers.DnsInstance.handle_stream = stream  # type: ignore[assignment,method-assign]
    mode_servers.DnsInstance.start_udp_based_server = datagrams  # type: ignore[assignment,method-assign]


def _answer_of(flow: dns.DNSFlow) -> bytes:
    return pack(flow.response or flow.request.fail(response_codes.SERVFAIL))
