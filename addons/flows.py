"""mitmproxy's flows as the values that are decided on, and what is decided as an answer of a flow."""

from mitmproxy import http
from mitmproxy.net.http.http1.read import get_header_tokens

import connections
from egress_policy.authorizer import Verdict
from egress_policy.denial import Deny
from egress_policy.http_request import AccessRequest, RequestHead, is_websocket
from egress_policy.ledger import LiveGrant
from egress_policy.problem import problem_of, render
from egress_policy.records import Asked
from egress_policy.scope import HEADER

_UPGRADE_FIELDS = ("upgrade", "http2-settings")


def head(opened: connections.ClientConnection, flow: http.HTTPFlow) -> RequestHead:
    """Return a request's head as it was received."""
    data = flow.request.data
    return RequestHead(
        method=data.method,
        target=data.path,
        authority=data.authority,
        fields=data.headers.fields,
        http2=flow.client_conn.alpn == b"h2",
        version=data.http_version,
        port=opened.port,
        tls=flow.client_conn.tls,
        server_name=flow.client_conn.sni,
    )


def asked(opened: connections.ClientConnection, flow: http.HTTPFlow, request: AccessRequest | Deny) -> Asked:
    """Return what is known of a request whether or not it could be read."""
    data = flow.request.data
    hosts = flow.request.headers.get_all("host")
    authority = data.authority.decode("latin-1") or (hosts[0] if hosts else None)
    return Asked(
        opened.caller,
        request,
        method=data.method.decode("latin-1"),
        host=authority,
        port=opened.port,
        path=data.path.partition(b"?")[0].decode("latin-1"),
    )


def leads_to(live: LiveGrant, upstream: connections.Socket) -> bool:
    """Tell whether an upstream address is one of a grant."""
    return any(
        connections.upstream_socket(address, live.grant.destination.port) == upstream
        for address in live.grant.addresses
    )


def clean(request: http.Request) -> None:
    """Take away what must not be sent on: the claim, and upgrades other than to a WebSocket."""
    request.headers.pop(HEADER, None)
    if is_websocket(request.headers.fields):
        return
    for name in _UPGRADE_FIELDS:
        request.headers.pop(name, None)
    # RFC 9110 section 7.6.1: what is taken away is not announced either.
    named = get_header_tokens(request.headers, "connection")
    kept = [option for option in named if option.lower() not in _UPGRADE_FIELDS]
    if kept != named:
        request.headers.pop("connection")
        if kept:
            request.headers["connection"] = ", ".join(kept)


def refusal(flow: http.HTTPFlow, verdict: Verdict) -> http.Response:
    """Make the answer that tells the client why not, in the form that it prefers."""
    status, headers, body = render(problem_of(verdict.record), flow.request.headers.get("accept"))
    return http.Response.make(status, body, [(name.encode(), value.encode()) for name, value in headers])
