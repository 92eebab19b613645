"""Serves the console on loopback: the page, and for whoever has signed in what the control socket offers.

The browser's user is asked of the kernel, as for agents. Nothing is sent by itself with a request (there is no
cookie), so a page of another origin has nothing to ride on; its requests are refused all the same.
"""

import asyncio
import logging
import re
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from errno import EADDRNOTAVAIL, EAFNOSUPPORT
from ipaddress import ip_address
from pathlib import Path
from typing import Any, override
from weakref import WeakKeyDictionary

from tornado import httputil, iostream, netutil, web

from egress_policy.audit import AuditLog, timestamp
from egress_policy.audit_files import AuditError
from egress_policy.audit_reading import read_records
from egress_policy.console.recent import SLOT, SLOTS, Recent
from egress_policy.console.sessions import SESSION, Sessions
from egress_policy.control import (
    ROUTES,
    ControlError,
    Handler,
    rights_of_uid,
    server_of,
    stream_of,
)
from egress_policy.operations import OperationError, Operations
from egress_policy.policy import Policy
from egress_policy.rights import Rights
from egress_policy.socket_owner import Protocol, SocketOwnerError, socket_owner
from egress_policy.status import Status

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
"""Of every answer: nothing from elsewhere, no script in a string, no frame around the page, no trace of its address."""

_LOOPBACK = ("127.0.0.1", "::1")
# A name that leads here by somebody's DNS is not ours. The port may be that of the near end of an SSH tunnel.
_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?")
_BEARER = re.compile(r"Bearer ([A-Za-z0-9_-]{1,100})")
_NOBODY = -1
_FILES = (
    ("/", "index.html", "text/html; charset=utf-8"),
    ("/console.css", "console.css", "text/css; charset=utf-8"),
    ("/console.js", "console.js", "text/javascript; charset=utf-8"),
    ("/icon.svg", "icon.svg", "image/svg+xml"),
)

_logger = logging.getLogger(__name__)


class Visitors:
    """Knows who is at the other end of a connection, and whether what it asks for comes from our own page."""

    def __init__(self, port: int, policy: Callable[[], Policy], sessions: Sessions) -> None:
        self._port = port
        self._policy = policy
        self._sessions = sessions
        self._uids: WeakKeyDictionary[iostream.IOStream, int] = WeakKeyDictionary()

    def uid(self, stream: iostream.IOStream) -> int:
        """Return the uid that owns the other end, or one that is nobody's. The kernel is asked once a connection."""
        found = self._uids.get(stream)
        if found is None:
            found = self._uids[stream] = self._ask(stream)
        return found

    def check(self, request: httputil.HTTPServerRequest) -> int:
        """Return the uid of a browser that may see the page. Raises OperationError."""
        if not _HOST.fullmatch(request.headers.get("Host", "")):
            raise OperationError(421, "the console is at a loopback address, and at no other name")
        uid = self.uid(stream_of(request))
        if uid == _NOBODY or rights_of_uid(self._policy(), uid).agent is not None:
            raise OperationError(403, "no console for you")
        return uid

    def check_api(self, request: httputil.HTTPServerRequest) -> tuple[int, str]:
        """Return the uid of a browser, and the token that our page sends. Raises OperationError."""
        uid = self.check(request)
        own = f"http://{request.headers['Host']}"
        site = request.headers.get("Sec-Fetch-Site", "same-origin")
        if request.headers.get("Origin", own) != own or site != "same-origin":
            raise OperationError(403, "this is for the console's own page")
        sent = _BEARER.fullmatch(request.headers.get("Authorization", ""))
        if sent is None:
            raise OperationError(401, "sign in: run `egress-policy console`")
        return uid, sent[1]

    def door(self, request: httputil.HTTPServerRequest) -> Rights:
        """Tell what whoever signed in may do, as the policy is now. Raises OperationError."""
        browser, token = self.check_api(request)
        uid = self._sessions.find(token, browser)
        if uid is None:
            raise OperationError(401, "sign in: run `egress-policy console`")
        rights = rights_of_uid(self._policy(), uid)
        if rights.agent is not None:
            raise OperationError(403, "no console for you")
        return rights

    def _ask(self, stream: iostream.IOStream) -> int:
        try:
            address, port, *_ = stream.socket.getpeername()
            owner = socket_owner((ip_address(address), port), self._port, Protocol.TCP)
        except (OSError, AttributeError):
            # It is closed already.
            return _NOBODY
        except SocketOwnerError as error:
            _logger.error("egress-policy: nobody gets the console: %s", error)
            return _NOBODY
        return _NOBODY if owner is None else owner


class Page(Handler):
    """The page's files, which hold nothing that is not in the public source."""

    @override
    def initialize(self, visitors: Visitors, name: str, kind: str) -> None:  # type: ignore[override]
        self._visitors = visitors
        self._name = name
        self._kind = kind

    @override
    def prepare(self) -> None:
        self._visitors.check(self.request)

    def get(self) -> None:
        self.set_header("Content-Type", self._kind)
        self.finish(Path(__file__).with_name(self._name).read_bytes())


class Session(Handler):
    """Signing in, with an invitation in the place of a session's token, and out."""

    @override
    def initialize(self, visitors: Visitors, sessions: Sessions) -> None:  # type: ignore[override]
        self._visitors = visitors
        self._sessions = sessions

    @override
    def prepare(self) -> None:
        self._browser, self._token = self._visitors.check_api(self.request)

    def post(self) -> None:
        opened = self._sessions.open(self._token, self._browser)
        if opened is None:
            raise OperationError(
                401, "this address was used before, or is too old: run `egress-policy console`"
            )
        self.answer({"session": opened, "seconds": SESSION})

    def delete(self) -> None:
        self._sessions.close(self._token)
        self.set_status(204)
        self.finish()


class RecentHandler(Handler):
    """What was asked for lately."""

    @override
    def initialize(self, recent: Recent, policy: Callable[[], Policy], **others: Any) -> None:  # type: ignore[override]
        super().initialize(**others)
        self._recent = recent
        self._policy = policy

    def get(self) -> None:
        policy, now = self._policy(), datetime.now(UTC)
        self.answer(
            {
                "refusals": self._recent.refusals(policy, self.rights, now),
                "destinations": self._recent.destinations(policy, self.rights, now),
            }
        )


class Console:
    """Serves the console until the process ends. Raises ControlError where the port cannot be used."""

    def __init__(
        self,
        port: int,
        operations: Operations,
        policy: Callable[[], Policy],
        status: Status,
        audit: AuditLog,
    ) -> None:
        self._port = port
        self._path = audit.path
        self._sessions = Sessions()
        self._recent = Recent()
        visitors = Visitors(port, policy, self._sessions)
        arguments = {"operations": operations, "status": status, "door": visitors.door}
        routes: list[tuple[str, type[web.RequestHandler], dict[str, Any]]] = [
            *(
                (path, Page, {"visitors": visitors, "name": name, "kind": kind})
                for path, name, kind in _FILES
            ),
            (r"/v1/session", Session, {"visitors": visitors, "sessions": self._sessions}),
            (r"/v1/recent", RecentHandler, {"recent": self._recent, "policy": policy, **arguments}),
            *((pattern, handler, arguments) for pattern, handler in ROUTES),
        ]
        server = server_of(routes, visitors.uid, arguments, HEADERS)
        server.add_sockets([one for address in _LOOPBACK for one in _listening(address, port)])
        self._began = datetime.now(UTC)
        audit.listeners.append(self._recent.note)

    def sign_in(self, uid: int) -> str:
        """Return the address that opens the console with a user's rights, once."""
        return f"http://{_LOOPBACK[0]}:{self._port}/#{self._sessions.invite(uid)}"

    async def remember(self) -> None:
        """Count what the log holds of the day before we began to listen."""
        since, until = self._began - timedelta(seconds=SLOT * SLOTS), timestamp(self._began)
        try:
            past = await asyncio.to_thread(
                lambda: Recent(one for one in read_records(self._path, since) if one.time < until)
            )
        except AuditError as error:
            _logger.error("egress-policy: the console begins without the past: %s", error)
            return
        self._recent.add(past)


def _listening(address: str, port: int) -> list[socket.socket]:
    """Listen on both loopback addresses: an agent must not be what a person finds at the other."""
    try:
        return netutil.bind_sockets(port, address)
    except OSError as error:
        if address != _LOOPBACK[0] and error.errno in (EADDRNOTAVAIL, EAFNOSUPPORT):
            return []
        raise ControlError(
            f"the console cannot be served on port {port} ({error.strerror}): `ss -tlnp` shows who has it, or set "
            "another proxy.console_port"
        ) from None
