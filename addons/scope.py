"""The policy enforcement point: mitmproxy's flows to our values and back.

Run as `mitmdump -s addons/scope.py`. A hook that raises lets the flow go on in mitmproxy, so every hook that
could let something out sets the refusal in its first line and clears it in its last.
"""

import asyncio
import contextlib
import io
import logging
import signal
import sys
from functools import partial

from mitmproxy import addonmanager, connection, ctx, dns, http, tls
from mitmproxy.net.dns import response_codes
from mitmproxy.proxy import layer, mode_specs, server_hooks

import bounds
import connections
import dns_listener
import dns_replies
import doors
import exits
import flows
import listening
import protocols
import reload
import safe_options
import start_up
import streams
from egress_policy import service_manager
from egress_policy.authorizer import Verdict
from egress_policy.denial import Deny, DenyCode, Failure, FailureCode, Refusal
from egress_policy.destination import Destination, InvalidHostError, parse_name
from egress_policy.exchange import Ending, Exchange
from egress_policy.firewall import FirewallError
from egress_policy.grant import HTTP_PORT
from egress_policy.http_request import AccessRequest, is_websocket, read_request
from egress_policy.journal import keep_telling
from egress_policy.kernel_reports import Group, KernelReports, senders_of
from egress_policy.ledger import LiveGrant
from egress_policy.nflog import KernelLog
from egress_policy.operations import Operations
from egress_policy.pauses import pauses_file
from egress_policy.records import Asked
from egress_policy.status import Status
from handshakes import Handshakes

# RFC 9849: the extension that hides the real server name inside an encrypted ClientHello.
_ENCRYPTED_CLIENT_HELLO = 0xFE0D
_SERVER_NAME = 0
# The answer that stands until the decision is made: if a hook raises, it is what the client gets.
_UNDECIDED = http.Response.make(
    500,
    b'{"type": "urn:egress-policy:internal_error", "title": "The request could not be decided", "status": 500}',
    {"content-type": "application/problem+json"},
)

_PAUSE = 1.0
"""Seconds between two tries to read the kernel's set of grants, which is not there while the ruleset is not."""

_logger = logging.getLogger(__name__)


class Scope:
    """Asks the authorizer about every request, and lets through what it permits."""

    def __init__(self) -> None:
        self.has_begun = False
        self._started: start_up.Started
        self._connections: connections.Connections
        self._tasks: list[asyncio.Task[None]] = []
        self._keeping: list[asyncio.Task[None]] = []
        self._reload_asked = asyncio.Event()
        self._name_server: dns_replies.NameServer
        self._kernel_log: KernelLog
        self._operations: Operations
        self._status: Status
        self._handshakes: Handshakes

    # Life

    def load(self, loader: addonmanager.Loader) -> None:
        """Declare our options: as strings, since a value of another type would end the script loader silently."""
        for name, default, help_text in start_up.OPTIONS:
            loader.add_option(name, str, default, help_text)

    def configure(self, _updated: set[str]) -> None:
        """Start, once: check options, user, policy, ruleset and audit log before anything listens."""
        if self.has_begun:
            return
        self.has_begun = True
        try:
            not_allowed = safe_options.refused(ctx.options)
            if not_allowed:
                exits.exit_now("; ".join(not_allowed))
            if not ctx.options.has_changed("confdir"):
                ctx.options.update(confdir=start_up.DEFAULT_CONFDIR)
            bounds.bound_origins()
            self._connections = connections.Connections(
                ctx.master.addons.get("proxyserver"),
                connections.most_connections(),
                self._exchange_over,
            )
            self._started = start_up.start(ctx.options, self._connections.end)
            self._name_server = dns_replies.NameServer(
                self._started.authorizer, lambda: self._started.callers, lambda: self._started.known_good
            )
            dns_listener.install()
            senders = senders_of(self._started.authorizer.policy)
            reports = KernelReports(senders, self._name_server.name_of)
            self._kernel_log = KernelLog(reports, self._started.audit.write)
            self._operations = Operations(
                self._started.authorizer,
                self._started.audit,
                pauses_file(ctx.options.scope_audit),
                self._reload_asked.set,
            )
            self._status = Status(
                self._started.authorizer,
                self._started.audit,
                self._started.policy_status,
                self._connections.__len__,
            )
            self._handshakes = Handshakes(self._started.audit.write)
            ctx.options.update(**safe_options.SAFE)
        except start_up.StartError as error:
            exits.exit_now(str(error))
        except BaseException as error:  # noqa: BLE001 - mitmproxy would run on without us
            exits.exit_now(f"could not start: {error!r}")

    async def running(self) -> None:
        """Listen where the policy says, and begin the work that goes on beside requests."""
        started = self._started
        if isinstance(sys.stdout, io.TextIOWrapper):
            # What is logged must not wait in a buffer where a journal or a file takes it.
            sys.stdout.reconfigure(line_buffering=True)
        # Before anybody can tell that we run: who waits for the port asks at once, and an unexpected signal ends us.
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload_asked.set)
        await self._operations.take_back_paused()
        console = doors.open_doors(ctx.options, started, self._operations, self._status)
        await listening.listen(ctx.master, started.modes)
        _logger.info("egress-policy: in force, %d grants taken over", len(started.authorizer.ledger))
        if not ctx.options.has_changed("termlog_verbosity"):
            # Every connection and every streamed answer is a line otherwise; the audit log has what matters.
            ctx.options.update(termlog_verbosity="warn")
            # mitmproxy makes a record of each all the same, for whoever may listen.
            logging.getLogger("mitmproxy.proxy").setLevel(logging.WARNING)
        self._keep_known_good()
        self._tasks = [
            asyncio.create_task(exits.or_exit(work))
            for work in (
                started.authorizer.end_in_time(),
                self._operations.follow_pauses(),
                self._handshakes.follow(),
                keep_telling(lambda: started.audit.newest, started.audit.path),
                safe_options.remove_needless_addons(ctx.master),
                self._follow_kernel(),
                self._follow_policy(),
                *(() if console is None else (console.remember(),)),
                *(self._kernel_log.follow(group) for group in Group),
                # Last: all the others have begun when it says that we are ready.
                service_manager.keep_telling(),
            )
        ]

    def done(self) -> None:
        """End the process when the script was changed or removed: mitmproxy would go on and forward everything."""
        if not ctx.master.should_exit.is_set():
            exits.exit_now("the addon was unloaded while the proxy ran")
        self._connections.leave()
        for task in (*self._tasks, *self._keeping):
            task.cancel()

    def _keep_known_good(self) -> None:
        started = self._started
        self._keeping = [
            asyncio.create_task(exits.or_exit(started.known_good.keep(name)))
            for name in sorted({name for name, _ in started.authorizer.policy.trust.direct_names()})
        ]

    async def _follow_kernel(self) -> None:
        """End the grants whose elements somebody else deletes. Runs until cancelled."""
        authorizer = self._started.authorizer
        while True:
            deleted, is_unsure = await self._started.changes.next()
            await authorizer.forget(deleted)
            while is_unsure:
                try:
                    await authorizer.compare()
                    is_unsure = False
                except FirewallError as error:
                    _logger.error("egress-policy: the kernel's set of grants cannot be read: %s", error)
                    await asyncio.sleep(_PAUSE)

    async def _follow_policy(self) -> None:
        """Put the policy in force anew when its files change, or SIGHUP asks for it. Runs until cancelled."""
        while True:
            await reload.asked(self._reload_asked, self._started.feeds.seen)
            for task in self._keeping:
                # What was known-good and is no more must not be opened again behind the new policy's back.
                task.cancel()
            self._started = await reload.reload(self._started, ctx.options)
            self._kernel_log.reports.senders = senders_of(self._started.authorizer.policy)
            self._keep_known_good()

    # Connections

    def _exchange_over(self, exchange: Exchange) -> None:
        self._started.authorizer.over(exchange)

    def client_connected(self, client: connection.Client) -> None:
        """Find out who connected; an agent with too many connections gets no more."""
        if not isinstance(client.proxy_mode, mode_specs.TransparentMode):
            return
        client.error = "the sender is not known yet"
        caller = self._started.callers.identify(connections.peer(client), self._started.port)
        # In transparent mode the socket's name is where the client wanted to go.
        opened = connections.ClientConnection(client, caller, port=client.sockname[1])
        client.error = None if self._connections.add(opened) else "too many connections"

    def next_layer(self, nextlayer: layer.NextLayer) -> None:
        """Let a connection speak TLS or HTTP and nothing else."""
        nextlayer.layer = protocols.Closed(nextlayer.context)
        opened = self._connections.get(nextlayer.context.client)
        if opened is None:
            return

        def refused(why: str) -> None:
            deny = Deny(DenyCode.REQUEST_MALFORMED, why)
            self._refuse(Asked(opened.caller, deny, port=opened.port), deny)

        nextlayer.layer = protocols.choose(nextlayer.context, nextlayer.data_client(), opened.gate, refused)

    def client_disconnected(self, client: connection.Client) -> None:
        """Forget a closed connection."""
        self._connections.remove(client)

    async def tls_clienthello(self, data: tls.ClientHelloData) -> None:
        """Pass on undecrypted what is inspected by name; all else is decrypted, and decided request by request.

        What is denied here is decrypted too: a client that does not pin certificates then reads why.
        """
        opened = self._connections.opened(data.context.client)
        try:
            name = parse_name(data.client_hello.sni or "")
        except InvalidHostError:
            return
        destination = Destination(name, opened.port)
        # TLS on port 80 is denied like any other; what is inspected by name is no exception.
        if opened.port == HTTP_PORT or not self._started.authorizer.policy.is_inspected_by_name(destination):
            return
        request: AccessRequest | Deny = AccessRequest(
            opened.caller.agent, destination, (), "", "", None, tls=True
        )
        extensions = [kind for kind, _ in data.client_hello.extensions]
        hidden = None
        if _ENCRYPTED_CLIENT_HELLO in extensions:
            hidden = "an encrypted ClientHello hides the server's name, by which it is inspected"
        elif extensions.count(_SERVER_NAME) > 1:
            # RFC 8446 section 4.2 forbids it; which of them a server reads that does not look, nobody knows.
            hidden = "the ClientHello names its server twice"
        if hidden is not None:
            request = opened.refusal = Deny(DenyCode.DESTINATION_MISMATCH, hidden)
        asked = Asked(opened.caller, request, host=name, port=opened.port)
        verdict = await self._started.authorizer.authorize(asked)
        if verdict.live is not None:
            upstream = connections.upstream_socket(verdict.live.pin, opened.port)
            exchange = opened.clear(opened.client.id, verdict.live, upstream, self._started.authorizer)
            bounds.count_passed(data.context, exchange)
            data.context.server.address = upstream
            data.ignore_connection = True

    def tls_failed_client(self, data: tls.TlsData) -> None:
        """Put on record that a client's handshake failed; what we refused or closed is on record already."""
        opened = self._connections.get(data.context.client)
        if opened is not None and opened.refusal is None and data.conn.error != "connection closed early":
            self._handshakes.failed(opened, data.context.client)

    def server_connect(self, data: server_hooks.ServerConnectionHookData) -> None:
        """Connect only to what this client's permitted requests were pinned to, and only while the grant lives."""
        data.server.error = "no live grant for this address"
        opened = self._connections.get(data.client)
        if opened is None or data.server.address is None:
            return
        keys = opened.cleared.get(data.server.address[:2], ())
        if any(self._started.authorizer.is_live(key) for key in keys):
            data.server.error = None

    def server_connect_error(self, data: server_hooks.ServerConnectionHookData) -> None:
        """Have the next request look for another address of the grant."""
        opened = self._connections.get(data.client)
        if opened is not None and data.server.address is not None:
            for key in opened.cleared.get(data.server.address[:2], ()):
                self._started.authorizer.unreachable(key)
            passed = opened.active.get(opened.client.id)
            if passed is not None:
                passed.broke_off(Ending.UPSTREAM_FAILED)

    # Requests

    def http_connect(self, flow: http.HTTPFlow) -> None:
        """Deny CONNECT: in a transparent proxy nobody needs it."""
        flow.response = _UNDECIDED
        opened = self._connections.opened(flow.client_conn)
        deny = Deny(
            DenyCode.REQUEST_MALFORMED, "CONNECT is for forward proxies: connect to the destination itself"
        )
        flow.response = flows.refusal(flow, self._refuse(flows.asked(opened, flow, deny), deny))

    async def requestheaders(self, flow: http.HTTPFlow) -> None:
        """Decide on a request before any of it is sent on."""
        flow.response = _UNDECIDED
        opened = self._connections.opened(flow.client_conn)
        asked = flows.asked(
            opened, flow, opened.refusal or read_request(flows.head(opened, flow), opened.caller.agent)
        )
        verdict = await self._started.authorizer.authorize(asked)
        live = verdict.live
        if live is None or verdict.permit is None:
            flow.response = flows.refusal(flow, verdict)
            return
        if not flow.client_conn.connected or not self._started.authorizer.is_live(live.key):
            return
        exchange = self._pin(opened, flow, live)
        flows.clean(flow.request)
        flow.metadata[streams.TERMS] = streams.Terms(
            verdict.permit.max_body,
            exchange,
            too_long=partial(self._too_long, flow, asked, verdict.permit.max_body),
            failed=partial(self._failed, flow, asked),
        )
        # Where no body is allowed, one of unknown length must not have its head sent on before it is denied.
        flow.request.stream = verdict.permit.max_body != 0 and not is_websocket(flow.request.headers.fields)
        flow.response = None

    def _pin(self, opened: connections.ClientConnection, flow: http.HTTPFlow, live: LiveGrant) -> Exchange:
        # Two requests of one HTTP/2 connection share the upstream address that the first was pinned to: the
        # server name of a new upstream connection is the client's only while both are the same.
        upstream = flow.server_conn.address
        if upstream is None or upstream not in opened.cleared or not flows.leads_to(live, upstream):
            upstream = connections.upstream_socket(live.pin, opened.port)
        exchange = opened.clear(flow.id, live, upstream, self._started.authorizer)
        # Setting request.host would rewrite the Host field; this leaves name, server name and verification alone.
        flow.server_conn.address = upstream
        flow.request.data.host, flow.request.data.port = upstream
        return exchange

    def request(self, flow: http.HTTPFlow) -> None:
        """Deny a body where none is allowed, and take trailers away: the scope may be in them too."""
        if flow.response is not None or flow.request.stream:
            flow.request.trailers = None
            if flow.response is not None and flow.response.timestamp_end is not None:
                # The origin had answered before the body was complete.
                self._flow_over(flow)
            return
        flow.response = _UNDECIDED
        flow.request.trailers = None
        flow.response = flow.metadata[streams.TERMS].too_long() if flow.request.raw_content else None

    def _too_long(self, flow: http.HTTPFlow, asked: Asked, limit: int | None) -> http.Response:
        deny = Deny(DenyCode.BODY_TOO_LARGE, f"the body grew beyond the {limit} bytes that the intent allows")
        return flows.refusal(flow, self._refuse(asked, deny))

    def _failed(self, flow: http.HTTPFlow, asked: Asked, why: str) -> http.Response:
        failure = Failure(FailureCode.UPSTREAM_FAILED, f"the destination did not answer: {why}")
        return flows.refusal(flow, self._refuse(asked, failure))

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        """Pass the answer on as it comes, unless it would turn the connection into something unchecked."""
        if flow.response is None or streams.TERMS not in flow.metadata:
            return
        flow.metadata[streams.TERMS].exchange.status = flow.response.status_code
        if flow.response.status_code == 101:
            if not (flow.websocket or is_websocket(flow.request.headers.fields)):
                flow.kill()
            return
        # RFC 7838: an alternative service would move the client to a protocol that we refuse.
        flow.response.headers.pop("alt-svc", None)
        flow.response.stream = True

    def response(self, flow: http.HTTPFlow) -> None:
        """Note that a flow is over, unless its request is still being sent."""
        if flow.request.timestamp_end is not None:
            self._flow_over(flow)

    def error(self, flow: http.HTTPFlow) -> None:
        """Note that a flow is over."""
        self._flow_over(flow)

    def websocket_message(self, flow: http.HTTPFlow) -> None:
        """Forget what has passed; mitmproxy keeps a WebSocket's messages for ever."""
        if flow.websocket is not None:
            del flow.websocket.messages[:-1]

    def websocket_end(self, flow: http.HTTPFlow) -> None:
        """Note that a flow is over; 1006 is a close that nobody announced (RFC 6455 section 7.1.5)."""
        opened = self._connections.get(flow.client_conn)
        exchange = None if opened is None else opened.active.pop(flow.id, None)
        if exchange is not None and flow.websocket is not None and flow.websocket.close_code == 1006:
            exchange.broke_off(
                Ending.CLIENT_LEFT if flow.websocket.closed_by_client else Ending.UPSTREAM_FAILED
            )

    # DNS

    async def dns_request(self, flow: dns.DNSFlow) -> None:
        """Answer an agent's query; one that cannot be decided is refused, and never forwarded."""
        flow.response = flow.request.fail(response_codes.SERVFAIL)
        flow.response = await self._name_server.answer(flow.request, flow.client_conn)

    def _refuse(self, asked: Asked, refusal: Refusal) -> Verdict:
        """Put a refusal on record that was found outside the decision."""
        return self._started.authorizer.put_on_record(asked, None, None, refusal)

    def _flow_over(self, flow: http.HTTPFlow) -> None:
        opened = self._connections.get(flow.client_conn)
        if opened is not None and flow.websocket is None:
            opened.active.pop(flow.id, None)


def _exit_unless_started(scope: Scope) -> None:
    """End the process where mitmproxy could not register us: it would only log that, and forward everything.

    An option of ours that is given twice does that.
    """
    if not scope.has_begun:
        exits.exit_now(
            "mitmproxy did not take the addon: see its message above, or is an option given twice?"
        )


addons = [Scope()]
with contextlib.suppress(RuntimeError):  # no loop: somebody only imports this
    asyncio.get_running_loop().call_soon(_exit_unless_started, addons[0])
