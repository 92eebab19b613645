"""The name server of the demo's internet: UDP and TCP, every query on record.

python -m deploy.demo.name_server ZONE LOG ADDRESS…
"""

import asyncio
import struct
import sys
from pathlib import Path

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from deploy.demo.json_lines import Log
from deploy.demo.zone import Behaviour, Zone

_LONGEST_CHAIN = 16


class NameServer:
    """Answers from the zone; names that it does not hold do not exist."""

    def __init__(self, zone: Zone, log: Log) -> None:
        self._zone = zone
        self._log = log

    def reply(self, wire: bytes, transport: str, peer: str) -> dns.message.Message | None:
        """Return the reply to a query, or None for silence."""
        try:
            query = dns.message.from_wire(wire)
        except dns.exception.DNSException:
            return None
        if not query.question:
            return None
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True)
        self._log.write(
            "query",
            name=name,
            type=dns.rdatatype.to_text(question.rdtype),
            transport=transport,
            peer=peer,
        )
        reply = dns.message.make_response(query)
        reply.flags |= dns.flags.RA
        known = self._zone.find(name.lower())
        if known is None:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        elif known.behaviour is Behaviour.SILENT:
            return None
        elif known.behaviour is Behaviour.SERVFAIL:
            reply.set_rcode(dns.rcode.SERVFAIL)
        else:
            reply.answer.extend(self._records(name, question.rdtype))
        return reply

    def _records(self, name: str, kind: dns.rdatatype.RdataType) -> list[dns.rrset.RRset]:
        records = []
        for _ in range(_LONGEST_CHAIN):
            known = self._zone.find(name.lower())
            if known is None:
                break
            if known.cname is None:
                found = [address for address in known.addresses if _type_of(address) == kind]
                if found:
                    records.append(dns.rrset.from_text(f"{name}.", known.ttl, "IN", kind, *found))
                break
            records.append(dns.rrset.from_text(f"{name}.", known.ttl, "IN", "CNAME", f"{known.cname}."))
            name = known.cname
        return records


def _type_of(address: str) -> dns.rdatatype.RdataType:
    return dns.rdatatype.AAAA if ":" in address else dns.rdatatype.A


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: NameServer) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.DatagramTransport):
            self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        reply = self._server.reply(data, "udp", addr[0])
        if reply is None or self._transport is None:
            return
        # RFC 1035 §4.2.1 and RFC 6891: 512 bytes, or what the client says it can take.
        try:
            wire = reply.to_wire(max_size=max(reply.request_payload, 512))
        except dns.exception.TooBig:
            reply.answer.clear()
            reply.flags |= dns.flags.TC
            wire = reply.to_wire()
        self._transport.sendto(wire, addr)


async def _serve_stream(
    server: NameServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    try:
        while True:
            (length,) = struct.unpack("!H", await reader.readexactly(2))
            query = await reader.readexactly(length)
            reply = server.reply(query, "tcp", writer.get_extra_info("peername")[0])
            if reply is not None:
                wire = reply.to_wire()
                writer.write(struct.pack("!H", len(wire)) + wire)
                await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def _main(zone: str, log: str, *addresses: str) -> None:
    server = NameServer(Zone(Path(zone)), Log(Path(log)))
    loop = asyncio.get_running_loop()
    for address in addresses:
        await loop.create_datagram_endpoint(lambda: _Datagrams(server), local_addr=(address, 53))
        await asyncio.start_server(lambda r, w: _serve_stream(server, r, w), address, 53)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
