"""What each client connection may do: whose it is, which upstream addresses it was cleared for, and its end."""

import ipaddress
from dataclasses import dataclass, field

from mitmproxy import connection
from mitmproxy.addons.proxyserver import Proxyserver

from egress_policy.caller import Caller
from egress_policy.denial import Deny
from egress_policy.destination import Address
from egress_policy.ledger import Key, LiveGrant

type Socket = tuple[str, int]


@dataclass(slots=True)
class ClientConnection:
    """One client's connection to the proxy.

    `port` is the TCP port it was made to before it was redirected. `cleared` holds the upstream addresses that
    its permitted requests were pinned to; `active` the flows under way, each with the grant that it runs under.
    """

    client: connection.Client
    caller: Caller
    port: int
    cleared: dict[Socket, Key] = field(default_factory=dict)
    active: dict[str, Key] = field(default_factory=dict)
    refusal: Deny | None = None

    def clear(self, flow_id: str, live: LiveGrant, upstream: Socket) -> None:
        """Let a flow go to an upstream address for as long as its grant lives."""
        self.cleared[upstream] = live.key
        self.active[flow_id] = live.key


class Connections:
    """The client connections that are open now."""

    def __init__(self, proxyserver: Proxyserver) -> None:
        self._proxyserver = proxyserver
        self._open: dict[str, ClientConnection] = {}

    def add(self, opened: ClientConnection) -> ClientConnection:
        """Enter a new connection."""
        self._open[opened.client.id] = opened
        return opened

    def get(self, client: connection.Client) -> ClientConnection | None:
        """Return what is known of a client's connection."""
        return self._open.get(client.id)

    def remove(self, client: connection.Client) -> None:
        """Forget a connection that was closed."""
        self._open.pop(client.id, None)

    def cut(self, client: connection.Client) -> None:
        """Close a client's connection at once, and with it every upstream connection made for it.

        flow.kill() has no effect in mid-stream; ending the task that reads the client's socket has.
        """
        handler = self._proxyserver.connections.get(client.id)
        transport = None if handler is None else handler.transports.get(client)
        if transport is not None and transport.handler is not None:
            transport.handler.cancel("grant ended")

    def end(self, key: Key) -> None:
        """Cut what still flows under a grant that has ended; an idle client keeps its connection to the proxy."""
        for opened in tuple(self._open.values()):
            if key in opened.active.values():
                self.cut(opened.client)
                continue
            ended = {upstream for upstream, cleared_by in opened.cleared.items() if cleared_by == key}
            if ended:
                self._close_upstreams(opened, ended)

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
