"""What a well-formed request is: exactly one reading, or a denial.

Everything here looks at the bytes as they came. A proxy and an origin that read one message differently is how
a filter is got around (request smuggling, a forged Host), so what is ambiguous is denied rather than repaired.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from egress_policy.denial import Deny, DenyCode
from egress_policy.destination import Destination, Host, InvalidHostError, parse_host
from egress_policy.scope import HEADER

# RFC 9110 section 5.6.2: a token, which methods and field names are.
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# RFC 3986: printable ASCII; what is outside it must be percent-encoded.
_ORIGIN_FORM = re.compile(rb"/[\x21-\x7e]*")
_DIGITS = re.compile(rb"[0-9]{1,18}")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_AUTHORITY = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]*)(?::(?P<port>[0-9]{1,5}))?")
_SCHEME_OF_PORT = {80: "http", 443: "https"}

type Fields = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request's head as it was received, and the connection that it came on.

    `authority` is what stood in the request target (absolute-form) or in `:authority`. `port` is the TCP port
    that the client connected to; `server_name` the TLS server name, None without TLS or without a name.
    """

    method: bytes
    target: bytes
    authority: bytes
    fields: Fields
    http2: bool
    version: bytes
    port: int
    tls: bool
    server_name: str | None


@dataclass(frozen=True, slots=True)
class AccessRequest:
    """What the decision weighs.

    `agent` is who really sent it, by the channel and not by a claim; None if nobody that the policy names.
    `body` is its length in bytes, None where it is not known beforehand (chunked, WebSocket).
    `path` is without the query. `tls` says whether it came inside TLS.
    """

    agent: str | None
    destination: Destination
    scope_fields: tuple[bytes, ...]
    method: str
    path: str
    body: int | None
    tls: bool = False


def read_request(head: RequestHead, agent: str | None) -> AccessRequest | Deny:
    """Read a request head in the one way it can be meant, or deny it (step 1 of the decision)."""
    malformed = _why_malformed(head)
    if malformed is not None:
        return Deny(DenyCode.REQUEST_MALFORMED, malformed)
    authority = head.authority if head.http2 else _values(head.fields, b"host")[0]
    try:
        host, port = _split_authority(authority)
    except InvalidHostError as error:
        return Deny(DenyCode.DESTINATION_INVALID, str(error))
    mismatch = _why_mismatch(head, host, port)
    if mismatch is not None:
        return Deny(DenyCode.DESTINATION_MISMATCH, mismatch)
    return AccessRequest(
        agent=agent,
        destination=Destination(host, head.port),
        scope_fields=tuple(_values(head.fields, HEADER.lower().encode())),
        method=head.method.decode("ascii"),
        path=head.target.partition(b"?")[0].decode("ascii"),
        body=_body_length(head),
        tls=head.tls,
    )


def is_websocket(fields: Fields) -> bool:
    """Tell whether a request asks to become a WebSocket (RFC 6455 section 4.1)."""
    return [value.strip().lower() for value in _values(fields, b"upgrade")] == [b"websocket"]


def _why_malformed(head: RequestHead) -> str | None:
    if not _TOKEN.fullmatch(head.method):
        return "the method is not a token"
    if head.method == b"CONNECT":
        return "CONNECT is for forward proxies: this one is transparent, connect to the destination itself"
    if head.http2 != (head.version == b"HTTP/2.0") or (
        not head.http2 and head.version not in (b"HTTP/1.0", b"HTTP/1.1")
    ):
        return "the protocol version does not agree with the connection"
    if not _ORIGIN_FORM.fullmatch(head.target) and not (head.method == b"OPTIONS" and head.target == b"*"):
        return "the request target must be a path that starts with '/', in printable ASCII"
    return _why_fields_malformed(head.fields) or _why_host_malformed(head) or _why_framing_ambiguous(head)


def _why_fields_malformed(fields: Fields) -> str | None:
    for name, value in fields:
        if not _TOKEN.fullmatch(name):
            return "a field name is not a token"
        if _CONTROL.search(value):
            return f"the field {name.decode()!r} holds a control character or is folded"
    return None


def _why_host_malformed(head: RequestHead) -> str | None:
    hosts = _values(head.fields, b"host")
    if head.http2:
        if not head.authority:
            return "HTTP/2 needs :authority"
        if hosts and hosts != [head.authority]:
            return "host and :authority do not agree"
        return None
    if head.authority:
        return "the request target names a host: send a path, and the host in the Host field"
    if len(hosts) != 1:
        return f"exactly one Host field is needed, found {len(hosts)}"
    return None


def _why_framing_ambiguous(head: RequestHead) -> str | None:
    lengths = _values(head.fields, b"content-length")
    codings = _values(head.fields, b"transfer-encoding")
    if len(lengths) > 1 or any(not _DIGITS.fullmatch(length) for length in lengths):
        return "content-length must be one number"
    if codings and (head.http2 or lengths or codings != [b"chunked"] or head.version == b"HTTP/1.0"):
        return "transfer-encoding must be 'chunked', alone, in HTTP/1.1, without content-length"
    return None


def _split_authority(authority: bytes) -> tuple[Host, int | None]:
    parts = _AUTHORITY.fullmatch(authority.decode("latin-1"))
    if parts is None:
        raise InvalidHostError("the host is not of the form 'name' or 'name:port'")
    port = parts["port"]
    return parse_host(parts["host"]), None if port is None else int(port)


def _why_mismatch(head: RequestHead, host: Host, port: int | None) -> str | None:
    scheme = "https" if head.tls else "http"
    if _SCHEME_OF_PORT.get(head.port, scheme) != scheme:
        return f"port {head.port} is for {_SCHEME_OF_PORT[head.port]}, the connection speaks {scheme}"
    default_port = 443 if head.tls else 80
    if (default_port if port is None else port) != head.port:
        return f"the host's port is not that of the connection, {head.port}"
    if not head.tls:
        return None
    if head.server_name is None:
        return None if not isinstance(host, str) else "the TLS handshake named no server"
    try:
        server_name = parse_host(head.server_name)
    except InvalidHostError as error:
        return f"the TLS server name: {error}"
    return None if server_name == host else f"the host differs from the TLS server name {server_name}"


def _body_length(head: RequestHead) -> int | None:
    if is_websocket(head.fields) or _values(head.fields, b"transfer-encoding"):
        return None
    lengths = _values(head.fields, b"content-length")
    # HTTP/2 may leave the length out; the body is then counted when it has arrived, before it is sent on.
    return int(lengths[0]) if lengths else 0


def _values(fields: Fields, name: bytes) -> list[bytes]:
    return [value for field, value in fields if field.lower() == name]
