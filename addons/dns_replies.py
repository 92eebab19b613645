"""A DNS query of an agent, from mitmproxy's message to our answer and back."""

import ipaddress
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from mitmproxy import connection, dns
from mitmproxy.net.dns import classes, op_codes, response_codes, types

import dns_messages
from egress_policy.authorizer import Authorizer
from egress_policy.caller import Caller, Callers
from egress_policy.denial import Deny, DenyCode
from egress_policy.destination import Address
from egress_policy.firewall import FirewallError
from egress_policy.known_good import KnownGoodNames
from egress_policy.name_server import (
    SYNTHETIC_TTL,
    Question,
    Reply,
    Ruling,
    TrueAddresses,
    reply_to,
)
from egress_policy.records import Asked
from egress_policy.resolver import ResolutionFailedError
from egress_policy.socket_owner import Protocol, SocketOwnerError

_VERSION = {types.A: 4, types.AAAA: 6}
# RFC 1035 section 4.2.1, and what no link in between has to fragment (RFC 9715).
_SMALLEST_DATAGRAM, _LARGEST_DATAGRAM = 512, 1232
_LARGEST_STREAM = 65535
# RFC 6891 sections 6.1.3 and 9: of BADVERS, 16, the header holds the lower four bits.
_BAD_VERSION = 16
_DNSSEC_OK = 0x8000
_EXTENDED_ERROR = 15
_LONGEST_TEXT = 200
"""Bytes: the longest name with the longest text still fits into 512."""
_RECORD_INTERVAL = 1.0
# To find out who asked costs 2 ms where an agent has opened ten thousand sockets.
_MAX_RECORDED = 100
_MAX_LOOK_UPS = 500


class _Error(IntEnum):
    """Extended errors: RFC 8914 section 4."""

    OTHER = 0
    BLOCKED = 15
    PROHIBITED = 18
    NOT_SUPPORTED = 21
    NO_REACHABLE_AUTHORITY = 22


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a query comes to; `why` is what an extended error says."""

    code: int = response_codes.NOERROR
    addresses: tuple[Address, ...] = ()
    ttl: int = 0
    error: _Error | None = None
    why: str = ""


class NameServer:
    """Answers agents; what is neither known-good nor refused gets a synthetic address without a look-up.

    `callers` and `known_good` give those of the policy in force.
    """

    def __init__(
        self,
        authorizer: Authorizer,
        callers: Callable[[], Callers],
        known_good: Callable[[], KnownGoodNames],
    ) -> None:
        self._authorizer = authorizer
        self._callers = callers
        self._known_good = known_good
        self._synthetic = authorizer.synthetic
        self._true = TrueAddresses()
        self._recorded: dict[str, float] = {}
        self._looking_up = 0

    def name_of(self, address: Address, port: int | None = None) -> str | None:
        """Return the name for which agents were told an address, or are led to it on a port."""
        return (
            self._authorizer.name_of(address, port)
            or self._synthetic.name_of(address)
            or self._true.name_of(address)
        )

    async def answer(self, query: dns.DNSMessage, client: connection.Client) -> dns.DNSMessage:
        """Answer a query in what its transport and its sender can take."""
        return _reply(query, await self._answer(query, client), client.transport_protocol == "tcp")

    async def _answer(self, query: dns.DNSMessage, client: connection.Client) -> _Answer:
        if query.op_code != op_codes.QUERY:
            return _Answer(response_codes.NOTIMP, error=_Error.NOT_SUPPORTED, why="only queries are answered")
        # RFC 9619: one question. RFC 6891 section 6.1.1: one OPT record.
        if len(query.questions) != 1 or len(query.additionals) > 1:
            return _Answer(response_codes.FORMERR)
        if query.additionals and query.additionals[0].ttl >> 16 & 0xFF:
            return _Answer(_BAD_VERSION)
        question = query.questions[0]
        if question.class_ != classes.IN:
            return _Answer(
                response_codes.REFUSED, error=_Error.NOT_SUPPORTED, why="only class IN is answered"
            )
        ruling = reply_to(self._authorizer.policy, Question(question.name, question.type in _VERSION))
        match ruling.reply:
            case Reply.DENY:
                self._record(ruling, client)
                return _Answer(response_codes.REFUSED, error=_Error.BLOCKED, why=ruling.why)
            case Reply.PROHIBIT:
                return _Answer(response_codes.REFUSED, error=_Error.PROHIBITED, why=ruling.why)
            case Reply.NO_DATA:
                return _Answer()
            case Reply.SYNTHETIC:
                return _Answer(addresses=self._synthetic.allocate(ruling.name), ttl=SYNTHETIC_TTL)
            case Reply.RESOLVE:
                return await self._true_answer(ruling.name)

    async def _true_answer(self, name: str) -> _Answer:
        # Who asks for what nobody answers must not use up the memory: each waits until its time is over.
        if self._looking_up >= _MAX_LOOK_UPS:
            return _Answer(
                response_codes.SERVFAIL, error=_Error.OTHER, why="too many names are being looked up"
            )
        self._looking_up += 1
        try:
            return await self._look_up(name)
        finally:
            self._looking_up -= 1

    async def _look_up(self, name: str) -> _Answer:
        try:
            resolution = await self._known_good().resolve(name)
        except ResolutionFailedError as error:
            if error.answered:
                return _Answer()
            return _Answer(response_codes.SERVFAIL, error=_Error.NO_REACHABLE_AUTHORITY, why=str(error))
        except FirewallError as error:
            return _Answer(response_codes.SERVFAIL, error=_Error.OTHER, why=str(error))
        if isinstance(resolution, Deny):
            return _Answer(response_codes.REFUSED, error=_Error.BLOCKED, why=resolution.detail)
        self._true.note(name, resolution.addresses, resolution.ttl)
        return _Answer(addresses=resolution.addresses, ttl=resolution.ttl)

    def _record(self, ruling: Ruling, client: connection.Client) -> None:
        """Put a denied name on record, at most once a second."""
        now = time.monotonic()
        if now - self._recorded.get(ruling.name, -_RECORD_INTERVAL) < _RECORD_INTERVAL:
            return
        if len(self._recorded) >= _MAX_RECORDED:
            self._recorded = {name: at for name, at in self._recorded.items() if now - at < _RECORD_INTERVAL}
            if len(self._recorded) >= _MAX_RECORDED:
                return
        self._recorded[ruling.name] = now
        deny = Deny(DenyCode.DESTINATION_DENIED, ruling.why)
        self._authorizer.put_on_record(Asked(self._caller(client), deny, host=ruling.name), None, None, deny)

    def _caller(self, client: connection.Client) -> Caller:
        protocol = Protocol.TCP if client.transport_protocol == "tcp" else Protocol.UDP
        try:
            return self._callers().identify(
                (ipaddress.ip_address(client.peername[0]), client.peername[1]),
                self._authorizer.policy.proxy.dns_port,
                protocol,
            )
        except SocketOwnerError:
            return Caller(None)


def _reply(query: dns.DNSMessage, answer: _Answer, is_stream: bool) -> dns.DNSMessage:
    reply = query.succeed([])
    reply.response_code = answer.code & 0xF
    if len(query.additionals) == 1:
        reply.additionals = [_opt(query.additionals[0], answer)]
    question = reply.questions[0] if len(reply.questions) == 1 else None
    if question is not None:
        reply.answers = [
            dns.ResourceRecord(question.name, question.type, classes.IN, answer.ttl, address.packed)
            for address in answer.addresses
            if address.version == _VERSION[question.type]
        ]
    if len(dns_messages.pack(reply)) > _largest(query, is_stream):
        reply.answers, reply.truncation = [], True
    return reply


def _opt(asked: dns.ResourceRecord, answer: _Answer) -> dns.ResourceRecord:
    """Say what we can take (RFC 6891), keep the sender's DO bit (RFC 3225), and give the reason (RFC 8914)."""
    data = b""
    if answer.error is not None:
        text = answer.error.to_bytes(2) + answer.why.encode("ascii", "replace")[:_LONGEST_TEXT]
        data = _EXTENDED_ERROR.to_bytes(2) + len(text).to_bytes(2) + text
    flags = answer.code >> 4 << 24 | asked.ttl & _DNSSEC_OK
    return dns.ResourceRecord("", types.OPT, _LARGEST_DATAGRAM, flags, data)


def _largest(query: dns.DNSMessage, is_stream: bool) -> int:
    if is_stream:
        return _LARGEST_STREAM
    accepted = query.additionals[0].class_ if len(query.additionals) == 1 else 0
    return min(max(accepted, _SMALLEST_DATAGRAM), _LARGEST_DATAGRAM)
