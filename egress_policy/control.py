"""The control plane's API: HTTP and JSON on a Unix socket. control.openapi.json describes it.

The kernel says who the peer is (SO_PEERCRED, unix(7)). Errors are problem details (RFC 9457).
"""

import contextlib
import logging
import os
import pwd
import socket
import stat
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, override

import msgspec
from tornado import httpserver, httputil, iostream, netutil, web

from egress_policy.accounts import AccountError, resolve_agents
from egress_policy.metrics import CONTENT_TYPE
from egress_policy.operations import OperationError, Operations, Selection
from egress_policy.pauses import Target, target_of
from egress_policy.policy import Policy
from egress_policy.rights import Rights, rights_of
from egress_policy.status import Question, Status

OPENAPI = Path(__file__).with_name("control.openapi.json")

_MAX_BODY = 16 * 1024
_MAX_HEADER = 16 * 1024
_PATIENCE = 10.0
"""Seconds that a peer may take over a request, and keep a connection without one."""
_PEER = struct.Struct("3i")

MOST_CONNECTIONS = 16
"""Of one user, at once."""

type Door = Callable[[httputil.HTTPServerRequest], Rights]
"""Tells what whoever sent a request may do. Raises OperationError."""

_logger = logging.getLogger(__name__)


class ControlError(Exception):
    """The control socket cannot be served: the message says why, and what to do."""


class Handler(web.RequestHandler):
    """What all have in common: who asks, JSON in and out, problems."""

    def initialize(self, operations: Operations, status: Status, door: Door) -> None:
        self.operations = operations
        self.status = status
        self.door = door
        self.rights = Rights("nobody")

    @override
    def set_default_headers(self) -> None:
        self.clear_header("Server")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")
        for name, value in self.settings.get("headers", {}).items():
            self.set_header(name, value)

    @override
    def prepare(self) -> None:
        self.rights = self.door(self.request)
        if self.rights.role == "nobody":
            raise OperationError(403, f"{self.rights.name} is no operator, owns no scope and is no agent")

    def body[T](self, kind: type[T]) -> T:
        """Read the request's body. Raises OperationError."""
        try:
            return msgspec.json.decode(self.request.body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise OperationError(400, f"the body is not as it should be: {error}") from None

    def selection(self) -> Selection:
        """Read which grants are meant from the query. Raises OperationError for an unknown parameter."""
        values = self.only("scope", "agent", "host", "all")
        values.pop("all", None)
        return Selection(**values)

    def only(self, *names: str) -> dict[str, str]:
        """Read the query's parameters. Raises OperationError for one that is unknown or repeated."""
        found = {name: self.get_query_arguments(name) for name in self.request.query_arguments}
        for name, values in found.items():
            if name not in names or len(values) != 1:
                raise OperationError(
                    400, f"the parameter {name} is unknown or repeated; known are {', '.join(names)}"
                )
        return {name: values[0] for name, values in found.items()}

    def answer(self, document: object) -> None:
        self.set_header("Content-Type", "application/json")
        self.finish(msgspec.json.encode(document) + b"\n")

    @override
    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        detail = str(error) if isinstance(error, OperationError) else None
        status = error.status if isinstance(error, OperationError) else status_code
        self.set_status(status)
        self.set_header("Content-Type", "application/problem+json")
        if status == 401:
            self.set_header("WWW-Authenticate", "Bearer")
        title = self._reason
        problem = {"type": "about:blank", "title": title, "status": status} | (
            {"detail": detail} if detail else {}
        )
        self.finish(msgspec.json.encode(problem) + b"\n")

    @override
    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if not isinstance(value, OperationError | web.HTTPError):
            super().log_exception(typ, value, tb)


class NotFound(Handler):
    @override
    def prepare(self) -> None:
        super().prepare()
        raise OperationError(404, "there is nothing here: see /v1/openapi.json")


class Whoami(Handler):
    def get(self) -> None:
        rights = self.rights
        self.answer(
            {"name": rights.name, "role": rights.role, "scopes": sorted(rights.scopes), "agent": rights.agent}
        )


class Grants(Handler):
    def get(self) -> None:
        self.answer(self.operations.grants(self.rights, self.selection()))

    async def delete(self) -> None:
        if not self.request.query_arguments:
            raise OperationError(400, "which grants? say scope, agent, host, or all=true")
        self.answer({"revoked": await self.operations.revoke(self.rights, self.selection())})


class Remaining(msgspec.Struct, forbid_unknown_fields=True):
    """What may be changed of a grant."""

    remaining: float


class Grant(Handler):
    def get(self, grant_id: str) -> None:
        self.answer(self.operations.grant(self.rights, grant_id))

    async def delete(self, grant_id: str) -> None:
        self.answer({"revoked": await self.operations.revoke(self.rights, Selection(id=grant_id))})

    async def patch(self, grant_id: str) -> None:
        remaining = self.body(Remaining).remaining
        self.answer(await self.operations.shorten(self.rights, grant_id, remaining))


class Paused(msgspec.Struct, forbid_unknown_fields=True):
    """What to pause: one of these."""

    scope: str | None = None
    agent: str | None = None
    all: bool = False

    def target(self) -> Target:
        """Return which of the three it is. Raises OperationError."""
        try:
            return target_of(self.scope, self.agent, self.all)
        except ValueError as error:
            raise OperationError(400, str(error)) from None


class PausesHandler(Handler):
    def get(self) -> None:
        self.answer(self.operations.pauses(self.rights))

    async def post(self) -> None:
        self.answer(await self.operations.pause(self.rights, self.body(Paused).target()))

    async def delete(self) -> None:
        asked = self.only("scope", "agent", "all")
        what = Paused(asked.get("scope"), asked.get("agent"), asked.get("all") == "true")
        self.answer(await self.operations.resume(self.rights, what.target()))


class ApprovalsHandler(Handler):
    def get(self) -> None:
        self.answer(self.operations.approvals(self.rights))


class Decision(msgspec.Struct, forbid_unknown_fields=True, rename={"duration": "for"}):
    """What a person decided, and for how long."""

    decision: str
    duration: str = "1h"


class Approval(Handler):
    def post(self, approval_id: str) -> None:
        decided = self.body(Decision)
        if decided.decision not in ("approve", "decline"):
            raise OperationError(400, "decision is approve or decline")
        is_approved = decided.decision == "approve"
        self.answer(self.operations.decide(self.rights, approval_id, is_approved, decided.duration))


class PolicyHandler(Handler):
    def get(self) -> None:
        self.answer(self.status.policy(self.rights))


class Metrics(Handler):
    def get(self) -> None:
        exposition = self.status.metrics(self.rights)
        self.set_header("Content-Type", CONTENT_TYPE)
        self.finish(exposition)


class Imagined(msgspec.Struct, forbid_unknown_fields=True):
    """A request to be explained; an agent may leave out who it is."""

    method: str
    url: str
    agent: str | None = None
    scope: str | None = None
    body: Annotated[int, msgspec.Meta(ge=0)] = 0


class Explain(Handler):
    async def post(self) -> None:
        asked = self.body(Imagined)
        agent = asked.agent or self.rights.agent
        if agent is None:
            raise OperationError(400, "which agent? say agent")
        question = Question(agent, asked.method, asked.url, asked.scope, asked.body)
        self.answer(await self.status.explain(self.rights, question))


class Reload(Handler):
    def post(self) -> None:
        if not self.rights.is_operator:
            raise OperationError(403, "only an operator has the policy reloaded")
        self.operations.ask_for_reload()
        self.set_status(202)
        self.answer({"asked": True})


class SignIn(Handler):
    @override
    def initialize(self, sign_in: Callable[[int], str] | None, **others: Any) -> None:  # type: ignore[override]  # as the route names them
        super().initialize(**others)
        self.sign_in = sign_in

    def post(self) -> None:
        if self.rights.agent is not None:
            raise OperationError(403, "an agent gets no console")
        if self.sign_in is None:
            raise OperationError(
                409,
                "no console is served: set proxy.console_port in the policy, `egress-policy apply`, and start the "
                "proxy anew; its log says it where that port cannot be used",
            )
        self.answer({"url": self.sign_in(peer_uid(stream_of(self.request)))})


class OpenApi(Handler):
    def get(self) -> None:
        self.set_header("Content-Type", "application/json")
        self.finish(OPENAPI.read_bytes())


ROUTES: tuple[tuple[str, type[Handler]], ...] = (
    (r"/v1/openapi\.json", OpenApi),
    (r"/v1/whoami", Whoami),
    (r"/v1/grants", Grants),
    (r"/v1/grants/([0-9a-f-]{4,36})", Grant),
    (r"/v1/pauses", PausesHandler),
    (r"/v1/approvals", ApprovalsHandler),
    (r"/v1/approvals/([0-9a-f-]{4,36})", Approval),
    (r"/v1/policy", PolicyHandler),
    (r"/v1/policy/reload", Reload),
    (r"/v1/explain", Explain),
    (r"/v1/metrics", Metrics),
)
SIGN_IN: tuple[str, type[Handler]] = (r"/v1/console", SignIn)
"""The socket's alone: whoever is signed in to the console gets no other session from it."""


class _Server(httpserver.HTTPServer):
    """Gives no user more than a few connections: whoever may connect could use up the proxy's file descriptors."""

    uid_of: Callable[[iostream.IOStream], int]

    @override
    def handle_stream(self, stream: iostream.IOStream, address: tuple[str, int]) -> None:
        uid = self.uid_of(stream)
        if sum(self.uid_of(one.stream) == uid for one in self._connections) >= MOST_CONNECTIONS:
            stream.close()
            return
        super().handle_stream(stream, address)


def server_of(
    routes: Sequence[tuple[str, type[web.RequestHandler], dict[str, Any]]],
    uid_of: Callable[[iostream.IOStream], int],
    not_found: dict[str, Any],
    headers: Mapping[str, str] | None = None,
) -> httpserver.HTTPServer:
    """Make a server that bears with hostile peers; `uid_of` tells who connected, `headers` are for every answer."""
    application = web.Application(
        list(routes),
        default_handler_class=NotFound,
        default_handler_args=not_found,
        log_function=lambda _handler: None,
        headers=headers or {},
    )
    server = _Server(
        application,
        max_body_size=_MAX_BODY,
        max_header_size=_MAX_HEADER,
        idle_connection_timeout=_PATIENCE,
        body_timeout=_PATIENCE,
    )
    server.uid_of = uid_of
    return server


def stream_of(request: httputil.HTTPServerRequest) -> iostream.IOStream:
    """Return the connection that a request came by."""
    stream: iostream.IOStream = request.connection.stream  # type: ignore[union-attr]
    return stream


def rights_of_uid(policy: Policy, uid: int) -> Rights:
    """Tell what a user of this host may do. Raises OperationError."""
    login = None
    with contextlib.suppress(KeyError):
        login = pwd.getpwuid(uid).pw_name
    try:
        return rights_of(policy, resolve_agents(policy), uid, login)
    except AccountError as error:
        raise OperationError(503, str(error)) from None


def peer_uid(stream: iostream.IOStream) -> int:
    """Return the uid of whoever connected; one that is closed has nobody's."""
    connected: socket.socket | None = stream.socket
    if connected is None:
        return -1
    _, uid, _ = _PEER.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return int(uid)


def serve(
    path: Path,
    operations: Operations,
    policy: Callable[[], Policy],
    status: Status,
    sign_in: Callable[[int], str] | None = None,
) -> httpserver.HTTPServer:
    """Serve the API on a socket at `path` until the process ends. Raises ControlError.

    Everybody may connect: what a peer may do, its uid tells. `sign_in` makes the address that opens the console
    with a user's rights.
    """

    def door(request: httputil.HTTPServerRequest) -> Rights:
        # A browser cannot open a Unix socket; what comes through one all the same names where it is from.
        if "Origin" in request.headers:
            raise OperationError(403, "this is no place for a web page")
        return rights_of_uid(policy(), peer_uid(stream_of(request)))

    arguments: dict[str, Any] = {"operations": operations, "status": status, "door": door}
    routes: list[tuple[str, type[web.RequestHandler], dict[str, Any]]] = [
        *((pattern, handler, arguments) for pattern, handler in ROUTES),
        (*SIGN_IN, arguments | {"sign_in": sign_in}),
    ]
    server = server_of(routes, peer_uid, arguments)
    try:
        if path.exists() and not stat.S_ISSOCK(path.lstat().st_mode):
            raise ControlError(f"{path} is there, and is no socket: remove it, or set scope_control")
        server.add_socket(netutil.bind_unix_socket(str(path), mode=0o666))
    except OSError as error:
        raise ControlError(
            f"the control socket {path} cannot be served: {error.strerror}; "
            f"`install -d -o {os.getuid()} {path.parent}`, or set scope_control"
        ) from None
    return server
