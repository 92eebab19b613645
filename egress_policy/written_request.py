"""A request as people write it, a method and a URL, as the head that the proxy would receive of it."""

from urllib.parse import urlsplit

from egress_policy.http_request import RequestHead
from egress_policy.scope import HEADER


def head_of(method: str, url: str, scope: str | None = None, body: int = 0) -> RequestHead:
    """Imagine a request's head: `scope` is the value of the scope field, `body` its length. Raises ValueError."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError as error:
        raise ValueError(f"{url!r} is not a URL: {error}") from None
    if port is None or not parts.netloc:
        raise ValueError(f"{url!r} is not a URL such as https://docs.example/")
    authority = parts.netloc.encode("utf-8", "surrogateescape")
    fields = [(b"Host", authority)]
    if scope is not None:
        fields.append((HEADER.encode(), scope.encode("utf-8", "surrogateescape")))
    if body:
        fields.append((b"Content-Length", str(body).encode()))
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    name = None if parts.hostname is None or _is_address(parts.hostname) else parts.hostname
    return RequestHead(
        method=method.encode("utf-8", "surrogateescape"),
        target=target.encode("utf-8", "surrogateescape"),
        authority=b"",
        fields=fields,
        http2=False,
        version=b"HTTP/1.1",
        port=port,
        tls=parts.scheme == "https",
        server_name=name,
    )


def _is_address(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()
