"""What each client connection may do: whose it is, which upstream addresses it was cleared for, and its end."""

import asyncio
import ipaddress
import resource
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from mitmproxy import connection
from mitmproxy.addons.proxyserver import Proxyserver

from egress_policy.authorizer import Authorizer
from egress_policy.caller import Caller
from egress_policy.decision import Key
from egress_policy.denial import Deny
from egress_policy.destination import Address
from egress_policy.exchange import Ending, Exchange
from egress_policy.ledger import LiveGrant
from gate import Gate, GatedReader

type Socket = tuple[str, int]


@dataclass(slots=True)
class ClientConnection:
    """One client's connection to the proxy.

    `port` is the TCP port it was made to before it was redirected. `cleared` holds the upstream addresses that
    its permitted requests were pinned to, with their grants; `exchanges` what went over it, by the grant's id, and
    `active` the flows under way, each with the exchange that it is part of. `refusal` is what was found wrong with
    the connection before its first request.
    """

    client: connection.Client
    caller: Caller
    port: int
    gate: Gate = field(default_factory=Gate)
    cleared: dict[Socket, set[Key]] = field(default_factory=dict)
    exchanges: dict[str, Exchange] = field(default_factory=dict)
    active: dict[str, Exchange] = field(default_factory=dict)
    refusal: Deny | None = None

    def clear(self, flow_id: str, live: LiveGrant, upstream: Socket, authorizer: Authorizer) -> Exchange:
        """Let a flow go to an upstream address for as long as its grant lives; return what it is part of."""
        self.cleared.setdefault(upstream, set()).add(live.key)
        exchange = self.exchanges.get(live.grant.id)
        if exchange is None:
            exchange = self.exchanges[live.grant.id] = authorizer.begin(live, self.caller)
        exchange.requests += 1
        self.active[flow_id] = exchange
        return exchange


class Connections:
    """The client connections that are open now. One agent may have `limit` of them.

    `on_over` is told of each exchange that is over: its connection is closed, or its grant ended.
    """

    def __init__(self, proxyserver: Proxyserver, limit: int, on_over: Callable[[Exchange], None]) -> None:
        self._proxyserver = proxyserver
        self._limit = limit
        self._on_over = on_over
        self._open: dict[str, ClientConnection] = {}
        self._count: Counter[str | None] = Counter()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, opened: ClientConnection) -> bool:
        """Enter a new connection, unless its agent has too many; tell whether it may go on."""
        agent = opened.caller.agent
        transports = self._proxyserver.connections[opened.client.id].transports
        reader = transports[opened.client].reader
        if self._count[agent] >= self._limit or not isinstance(reader, asyncio.StreamReader):
            return False
        transports[opened.client].reader = GatedReader(reader, opened.gate)  # type: ignore[assignment]
        self._open[opened.client.id] = opened
        self._count[agent] += 1
        return True

    def get(self, client: connection.Client) -> ClientConnection | None:
        """Return what is known of a client's connection."""
        return self._open.get(client.id)

    def opened(self, client: connection.Client) -> ClientConnection:
        """Return what is known of a connection that may speak. Raises KeyError for any other."""
        return self._open[client.id]

    def remove(self, client: connection.Client) -> None:
        """Forget a connection that was closed, and see that it is.

        Where the task that reads a socket is cancelled while it waits for the lock on its layers, mitmproxy leaves
        the socket open (ConnectionHandler.handle_connection catches this around its other waits only).
        """
        handler = self._proxyserver.connections.get(client.id)
        transport = None if handler is None else handler.transports.get(client)
        if transport is not None and transport.writer is not None:
            transport.writer.close()
        opened = self._open.pop(client.id, None)
        if opened is not None:
            self._count[opened.caller.agent] -= 1
            self._all_over(opened)

    def cut(self, client: connection.Client) -> None:
        """Close a client's connection at once, and with it every upstream connection made for it.

        flow.kill() has no effect in mid-stream; ending the task that reads the client's socket has.
        """
        handler = self._proxyserver.connections.get(client.id)
        transport = None if handler is None else handler.transports.get(client)
        if transport is not None and transport.handler is not None:
            transport.handler.cancel("grant ended")

    def end(self, live: LiveGrant) -> None:
        """Cut what still flows under a grant that has ended; an idle client keeps its connection to the proxy."""
        key = live.key
        for opened in tuple(self._open.values()):
            if any(exchange.key == key for exchange in opened.active.values()):
                for exchange in opened.active.values():
                    exchange.broke_off(Ending.CUT)
                self.cut(opened.client)
                continue
            idle = opened.exchanges.pop(live.grant.id, None)
            if idle is not None:
                self._on_over(idle)
            for keys in opened.cleared.values():
                keys.discard(key)
            ended = {upstream for upstream, keys in opened.cleared.items() if not keys}
            if ended:
                self._close_upstreams(opened, ended)

    def leave(self) -> None:
        """Tell of every exchange that the proxy's end cuts short."""
        for opened in self._open.values():
            for exchange in opened.active.values():
                exchange.broke_off(Ending.CUT)
            self._all_over(opened)

    def _all_over(self, opened: ClientConnection) -> None:
        for exchange in opened.exchanges.values():
            self._on_over(exchange)
        opened.exchanges.clear()

    def _close_upstreams(self, opened: ClientConnection, upstreams: set[Socket]) -> None:
        for upstream in upstreams:
            del opened.cleared[upstream]
        handler = self._proxyserver.connections.get(opened.client.id)
        for peer, transport in () if handler is None else tuple(handler.transports.items()):
            if (
                isinstance(peer, connection.Server)
                and peer.address in upstreams
                and transport.handler is not None
            ):
                transport.handler.cancel("grant ended")


def most_connections() -> int:
    """Use all the file descriptors that the process may have, and leave no agent more than a quarter of them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return max(16, hard // 4)


def upstream_socket(address: Address, port: int) -> Socket:
    """Give an address and port in the form that mitmproxy connects to."""
    return str(address), port


def peer(client: connection.Client) -> tuple[Address, int]:
    """Return a client's own address and port; IPv4 that arrived on an IPv6 socket is IPv4."""
    return parse_socket(client.peername)


def parse_socket(socket: tuple[str, int] | tuple[str, int, int, int]) -> tuple[Address, int]:
    """Return the address and port of a socket name. Raises ValueError."""
    address = ipaddress.ip_address(socket[0].partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address, socket[1]
