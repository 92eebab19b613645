"""The origins of the demo's internet: every address and every name of it, on one set of sockets.

    python -m deploy.demo.origin ZONE LOG CERTIFICATES

HTTP/1.1 on port 80; HTTP/1.1 and HTTP/2 over TLS on 443 and 8443; an SSH banner, and then an echo, on 22; a UDP
echo on 443. What arrives is on record as it arrives: each TCP connection when it is accepted, before any TLS.

`CERTIFICATES` is a folder: the authority's certificate is written there as `ca.pem`, leaves are made on demand.
"""

import asyncio
import ipaddress
import socket
import ssl
import struct
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from weakref import WeakKeyDictionary

import h11
from h2.exceptions import H2Error

from deploy.demo.certificates import Authority
from deploy.demo.echo import Connection
from deploy.demo.http1 import serve_http1
from deploy.demo.http2 import serve_http2
from deploy.demo.json_lines import Log
from deploy.demo.zone import Zone

HTTP_PORT = 80
TLS_PORTS = (443, 8443)
SSH_PORT = 22
UDP_PORT = 443
SSH_BANNER = b"SSH-2.0-demo\r\n"

type _Serve = Callable[[Connection, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Certificates:
    """A TLS context for each name that a client asks for, with a certificate for it."""

    def __init__(self, folder: Path, zone: Zone) -> None:
        self._folder = folder
        self._zone = zone
        self._authority = Authority()
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._asked: WeakKeyDictionary[object, str] = WeakKeyDictionary()
        (folder / "ca.pem").write_bytes(self._authority.certificate_pem())

    def context(self, name: str) -> ssl.SSLContext:
        """Return the context for a host name or an address."""
        known = self._zone.find(name)
        shown = name if known is None or known.certificate is None else known.certificate
        if shown not in self._contexts:
            self._contexts[shown] = self._make(shown)
        return self._contexts[shown]

    def server_name(self, session: object) -> str | None:
        """Return the name that the client of a TLS session asked for."""
        return self._asked.get(session)

    def _make(self, name: str) -> ssl.SSLContext:
        leaf = self._folder / "leaf.pem"
        self._authority.write_leaf(name, leaf)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(leaf)
        context.set_alpn_protocols(["h2", "http/1.1"])
        context.sni_callback = self._choose
        return context

    def _choose(self, session: ssl.SSLObject, name: str | None, _first: ssl.SSLContext) -> None:
        if name is not None:
            self._asked[session] = name
            session.context = self.context(name.lower())


class Origin:
    """Listens on every address of its network namespace."""

    def __init__(self, log: Log, certificates: Certificates) -> None:
        self._log = log
        self._certificates = certificates
        self._numbers = count(1)
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until cancelled; says `ready` once it listens."""
        listeners = [
            self._accept(HTTP_PORT, serve_http1, tls=False),
            self._accept(SSH_PORT, _serve_banner, tls=False),
            *(self._accept(port, serve_http1, tls=True) for port in TLS_PORTS),
        ]
        self._echo_datagrams()
        async with asyncio.TaskGroup() as group:
            for listener in listeners:
                group.create_task(listener)
            print("ready", flush=True)

    async def _accept(self, port: int, serve: _Serve, *, tls: bool) -> None:
        loop = asyncio.get_running_loop()
        listener = socket.create_server(
            ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
        )
        listener.setblocking(False)
        while True:
            accepted, peer = await loop.sock_accept(listener)
            local = _socket_name(accepted.getsockname())
            connection = Connection(next(self._numbers), local, _socket_name(peer), self._log)
            self._log.write("connection", connection=connection.id, local=local, peer=connection.peer)
            task = asyncio.create_task(self._serve(connection, accepted, serve, tls=tls))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(
        self, connection: Connection, accepted: socket.socket, serve: _Serve, *, tls: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        context = self._certificates.context(_address(accepted.getsockname())) if tls else None
        try:
            transport, protocol = await loop.connect_accepted_socket(
                lambda: asyncio.StreamReaderProtocol(reader), accepted, ssl=context
            )
        except OSError as error:  # ssl.SSLError is one
            self._log.write("closed", connection=connection.id, why=f"TLS: {error}")
            return
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        why = "the end of the connection"
        try:
            session = transport.get_extra_info("ssl_object")
            if session is not None:
                connection = replace(connection, server_name=self._certificates.server_name(session))
                if session.selected_alpn_protocol() == "h2":
                    serve = serve_http2
            await serve(connection, reader, writer)
        except (OSError, h11.ProtocolError, H2Error) as error:
            why = repr(error)
        finally:
            self._log.write("closed", connection=connection.id, why=why)
            writer.close()

    def _echo_datagrams(self) -> None:
        echo = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        echo.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # The answer must come from the address that was asked, which a wildcard socket does not know by itself.
        echo.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        echo.setblocking(False)
        echo.bind(("::", UDP_PORT))
        asyncio.get_running_loop().add_reader(echo, self._echo_datagram, echo)

    def _echo_datagram(self, echo: socket.socket) -> None:
        data, control, _flags, peer = echo.recvmsg(65535, 256)
        asked = next(value[:16] for level, _kind, value in control if level == socket.IPPROTO_IPV6)
        local = _socket_name((socket.inet_ntop(socket.AF_INET6, asked), UDP_PORT))
        self._log.write("datagram", local=local, peer=_socket_name(peer), length=len(data))
        # struct in6_pktinfo (ipv6(7)): the address, and no interface.
        source = struct.pack("@16sI", asked, 0)
        echo.sendmsg([data], [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, source)], 0, peer)


async def _serve_banner(
    _connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    writer.write(SSH_BANNER)
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


def _address(name: tuple[str, int]) -> str:
    """Return an address without the disguise that IPv4 has on an IPv6 socket."""
    address = ipaddress.IPv6Address(name[0])
    return str(address.ipv4_mapped or address)


def _socket_name(name: tuple[str, int]) -> str:
    address = _address(name)
    return f"[{address}]:{name[1]}" if ":" in address else f"{address}:{name[1]}"


async def _main(zone: str, log: str, certificates: str) -> None:
    await Origin(Log(Path(log)), Certificates(Path(certificates), Zone(Path(zone)))).run()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
