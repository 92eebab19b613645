"""One request through all the steps, in order: decide, resolve, grant, open, record.

Knows nothing of mitmproxy. What the caller gets is either a live grant that the kernel has acknowledged and the
audit log has on record, or the reason why not; there is no third outcome and no exception for an expected one.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from weakref import WeakValueDictionary

from egress_policy import metrics
from egress_policy.approvals import Approvals
from egress_policy.audit import AuditLog, Record
from egress_policy.audit_files import AuditError
from egress_policy.caller import Caller
from egress_policy.decision import Key, Permit, Standing, decide
from egress_policy.denial import Deny, DenyCode, Failure, FailureCode, Refusal
from egress_policy.destination import Address, Destination
from egress_policy.exchange import Exchange
from egress_policy.firewall import DEVELOPER_SANDBOX, Elements, FirewallError, list_elements
from egress_policy.grant import MAX_ADDRESSES, Grant, Resolution, Way, issue_grant, why_not_given
from egress_policy.ledger import Ledger, LiveGrant
from egress_policy.name_server import SyntheticAddresses
from egress_policy.pauses import NOTHING
from egress_policy.policy import KNOWN_GOOD, MAX_TTL, Policy
from egress_policy.raw_tcp import RawTcp
from egress_policy.records import Asked, decision_record, element_comment, end_record, grant_record
from egress_policy.resolver import ResolutionFailedError, Resolver
from egress_policy.upstream import first_reachable

_logger = logging.getLogger(__name__)

_NEARLY_OVER = 2.0
"""Seconds: an element that goes so shortly before its end has ended by itself."""
_LONGEST_PAUSE = 0.5
"""Seconds: a grant that is issued during the pause may end before the one that it was set for."""
_MOST_KNOWN_GOOD = 1000
"""Of one agent, at once."""
_MOST_FORMER = 240
"""Addresses beside a grant's own that stay open to transfers which began before its name moved."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome, with its record: `live` is set if, and only if, the request may go on."""

    record: Record
    permit: Permit | None
    live: LiveGrant | None


class Authorizer:
    """Holds what one proxy needs to decide: policy, live grants, resolver, kernel and audit log.

    `on_end` is told of each grant whose time is over, so that what still flows under it can be cut.
    """

    def __init__(
        self,
        policy: Policy,
        resolver: Resolver,
        elements: Elements,
        audit: AuditLog,
        on_end: Callable[[LiveGrant], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policy = policy
        self.ledger = Ledger()
        self.pauses = NOTHING
        self.approvals = Approvals(clock)
        self.resolver = resolver
        self._elements = elements
        self._audit = audit
        self._on_end = on_end
        self._clock = clock
        self._opening: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        self._kernel = asyncio.Lock()
        self._raw_tcp = RawTcp(elements, self.ledger, clock)

    @property
    def standing(self) -> Standing:
        """What people have decided beside the policy, as it is now."""
        return Standing(self._paused_by, self.approvals.answer)

    async def authorize(self, asked: Asked) -> Verdict:
        """Take one request through every step of the decision, and put the outcome on record."""
        with metrics.DECISION.time():
            return await self._authorize(asked)

    async def _authorize(self, asked: Asked) -> Verdict:
        permit: Permit | None = None
        live: LiveGrant | None = None
        refusal: Refusal | None = None
        if isinstance(asked.request, Deny):
            refusal = asked.request
        else:
            decided = decide(self.policy, asked.request, self.ledger.destinations, standing=self.standing)
            if isinstance(decided, Deny):
                refusal = decided
            else:
                permit = decided
                opened = await self._open_approved(permit)
                live, refusal = (opened, None) if isinstance(opened, LiveGrant) else (None, opened)
        verdict = self.put_on_record(asked, permit, live, refusal)
        if verdict.live is not None and verdict.live.grant.ports:
            await self._open_further(verdict.live, asked.caller)
        if isinstance(refusal, Deny) and refusal.code is DenyCode.PENDING_APPROVAL:
            self._ask(asked, verdict.record)
        return verdict

    def put_on_record(
        self, asked: Asked, permit: Permit | None, live: LiveGrant | None, refusal: Refusal | None
    ) -> Verdict:
        """Write the decision down; what cannot be written down is not permitted."""
        decision_id = str(uuid.uuid4())
        grant = None if live is None else live.grant
        record = decision_record(self.policy, decision_id, asked, permit, grant, refusal)
        try:
            self._audit.write(record)
        except AuditError as error:
            failure = Failure(FailureCode.AUDIT_FAILED, str(error))
            record = decision_record(self.policy, decision_id, asked, permit, None, failure)
            live = None
        metrics.REQUESTS.labels(record.outcome or "", record.code or "").inc()
        return Verdict(record, permit, live)

    @property
    def synthetic(self) -> SyntheticAddresses:
        """The addresses that agents are told in place of real ones."""
        return self._raw_tcp.synthetic

    def name_of(self, address: Address, port: int | None) -> str | None:
        """Return the name whose further port a grant leads agents to at a real address."""
        return self._raw_tcp.name_of(address, port)

    def is_live(self, key: Key) -> bool:
        """Tell whether a grant for this key is open."""
        return self.ledger.find(key, self._clock()) is not None

    def unreachable(self, key: Key) -> None:
        """Note that a grant's pinned address cannot be reached: the next request looks for another."""
        live = self.ledger.find(key, self._clock())
        if live is not None:
            live.fresh_until = 0.0

    def begin(self, live: LiveGrant, caller: Caller) -> Exchange:
        """Begin what a client connection exchanges under a grant."""
        return Exchange(live.grant, caller, self._clock())

    def over(self, exchange: Exchange) -> None:
        """Put on record what went over a connection."""
        metrics.BYTES.labels("sent").inc(exchange.sent)
        metrics.BYTES.labels("received").inc(exchange.received)
        try:
            self._audit.write(end_record(exchange, self._clock()))
        except AuditError as error:
            _logger.error(
                "the end of an exchange under grant %s is not on record: %s", exchange.grant.id, error
            )

    def end_due(self) -> None:
        """End the grants whose time is over."""
        for live in self.ledger.take_ended(self._clock()):
            self._record_end("expire", live.grant)
            self._on_end(live)
            self._raw_tcp.forget(live.ways)

    async def end_in_time(self) -> None:
        """End each grant when its time is over. Runs until cancelled."""
        while True:
            self.end_due()
            next_end = self.ledger.next_end()
            pause = _LONGEST_PAUSE if next_end is None else next_end - self._clock()
            await asyncio.sleep(min(max(pause, 0.0), _LONGEST_PAUSE))

    def take_over(self, grant: Grant, remaining: float) -> None:
        """Enter a grant that the kernel still holds from before this proxy started (remaining: seconds)."""
        now = self._clock()
        self.ledger.add(LiveGrant(grant, now + remaining, now, grant.addresses[0]))

    async def revoke(self, unwanted: Callable[[Grant], bool], why: str, by: str) -> list[Grant]:
        """Take back the grants that are not wanted, and the approvals that they rest on; return them."""
        async with self._kernel:
            ended = [live for live in self.ledger if unwanted(live.grant)]
            for live in ended:
                self.approvals.forget(live.key)
            await self._revoke([(live, why) for live in ended], by)
        return [live.grant for live in ended]

    async def shorten(self, grant_id: str, remaining: float, by: str) -> LiveGrant | None:
        """Let a grant end in `remaining` seconds; None where it is not live, or would end earlier by itself.

        Raises FirewallError and AuditError; the grant then stays as it was, or ends in the proxy alone.
        """
        async with self._kernel:
            now = self._clock()
            known = next((live for live in self.ledger if live.grant.id == grant_id), None)
            if known is None or not 0 < remaining < known.deadline - now:
                return None
            grant = replace(known.grant, expires=datetime.now(UTC) + timedelta(seconds=remaining))
            live = replace(known, grant=grant, deadline=now + remaining)
            self._audit.write(grant_record("grant", grant, "shortened", by))
            self.ledger.add(live)
            await self._close_or_keep(_sockets(live))
            await self._raw_tcp.close_or_keep(live.ways)
            return live

    async def take_back_paused(self, by: str) -> list[Grant]:
        """Revoke every grant that what is paused covers."""
        return await self.revoke(lambda grant: self.pauses.covers(grant.agent, grant.scope), "paused", by)

    def left(self, live: LiveGrant) -> float:
        """Return the seconds that a grant has left."""
        return live.deadline - self._clock()

    def in_seconds(self, seconds: float) -> float:
        """Return the moment so many seconds from now, on the clock that approvals end by."""
        return self._clock() + seconds

    def _paused_by(self, agent: str, scope: str | None) -> str | None:
        pause = self.pauses.of_agent(agent) if scope is None else self.pauses.of_scope(scope)
        return None if pause is None else pause.by

    def _ask(self, asked: Asked, record: Record) -> None:
        if not isinstance(asked.request, Deny) and record.agent and record.scope:
            key = (record.agent, record.scope, record.intent, asked.request.destination)
            self.approvals.ask(key, record)

    async def adopt(self, policy: Policy, resolver: Resolver) -> int:
        """Decide by another policy from now on; revoke the grants that it would not give, and return their number."""
        async with self._kernel:
            former, self.policy, self.resolver = self.policy, policy, resolver
            counted: dict[str, set[Destination]] = {}
            refused: list[tuple[LiveGrant, str]] = []
            for live in sorted(self.ledger, key=lambda live: live.grant.issued):
                why = why_not_given(policy, live.grant, live.cnames, counted, self.standing)
                destination = live.grant.destination
                if former.is_inspected_by_name(destination) and not policy.is_inspected_by_name(destination):
                    # What was passed on undecrypted runs under it, perhaps for hours.
                    why = why or "it is not inspected by name any more"
                if _is_known_otherwise(live.grant.agent, former, policy):
                    # What it opened to a uid or an address by itself would be another agent's now.
                    why = why or "its agent is known by another user or source"
                if why is None:
                    counted.setdefault(live.grant.scope, set()).add(live.grant.destination)
                else:
                    refused.append((live, f"the policy changed: {why}"))
            await self._revoke(refused)
        return len(refused)

    async def forget(self, sockets: AbstractSet[tuple[Address, int]]) -> None:
        """End the grants of which the kernel no longer holds an element: somebody deleted it."""
        async with self._kernel:
            await self._revoke_deleted(sockets)

    async def compare(self) -> None:
        """Look which elements the kernel holds, and end the grants of which one is missing. Raises FirewallError."""
        async with self._kernel:
            elements = await asyncio.to_thread(list_elements, DEVELOPER_SANDBOX)
            held = {(element.address, element.port) for element in elements}
            await self._revoke_deleted({one for live in self.ledger for one in _sockets(live)} - held)

    async def _revoke_deleted(self, sockets: AbstractSet[tuple[Address, int]]) -> None:
        now = self._clock()
        await self._revoke(
            [
                (live, "its element was deleted from the kernel's set")
                for live in self.ledger
                if live.deadline - now > _NEARLY_OVER and not sockets.isdisjoint(_sockets(live))
            ]
        )

    async def _revoke(self, refused: Iterable[tuple[LiveGrant, str]], by: str | None = None) -> None:
        closed: set[tuple[Address, int]] = set()
        ways: set[Way] = set()
        for live, why in refused:
            self.ledger.remove(live)
            self._record_end("revoke", live.grant, why, by)
            self._on_end(live)
            closed.update(_sockets(live))
            ways.update(live.ways)
        for close in (self._close_or_keep(closed), self._raw_tcp.close_or_keep(ways)):
            try:
                await close
            except FirewallError as error:
                _logger.error("it stays open in the kernel until its time is over: %s", error)

    async def _close_or_keep(self, sockets: AbstractSet[tuple[Address, int]]) -> None:
        """Give elements the time of the last grant that needs them, or delete them. Raises FirewallError."""
        failed: FirewallError | None = None
        for address, port in sockets:
            other = self.ledger.last_holder(address, port)
            try:
                if other is None:
                    await self._elements.delete(DEVELOPER_SANDBOX, [(address, port)])
                else:
                    await self._elements.insert(
                        DEVELOPER_SANDBOX,
                        [(address, port)],
                        other.deadline - self._clock(),
                        element_comment(other.grant),
                    )
            except (FirewallError, ValueError) as error:
                failed = FirewallError(f"{address} port {port}: {error}")
        if failed is not None:
            raise failed

    async def _open_approved(self, permit: Permit) -> LiveGrant | Refusal:
        # An approval for one request is used up before another request can find it.
        taken = None if permit.answer is None else self.approvals.take(_key(permit))
        opened = await self._open(permit)
        if taken is not None and not isinstance(opened, LiveGrant):
            self.approvals.restore(taken)
        return opened

    async def _open(self, permit: Permit) -> LiveGrant | Refusal:
        key = _key(permit)
        live = self._fresh(key)
        if live is not None:
            return live
        # Requests for one destination that come together share one look-up and one grant.
        lock = self._opening.get(key)
        if lock is None:
            lock = self._opening[key] = asyncio.Lock()
        async with lock:
            live = self._fresh(key)
            return live if live is not None else await self._resolve_and_open(permit)

    def _fresh(self, key: Key) -> LiveGrant | None:
        now = self._clock()
        live = self.ledger.find(key, now)
        return live if live is not None and live.fresh_until > now else None

    async def _resolve_and_open(self, permit: Permit) -> LiveGrant | Refusal:
        destination = permit.request.destination
        if isinstance(destination.host, str):
            try:
                with metrics.DNS.time():
                    resolution = await self.resolver.resolve(destination.host)
            except ResolutionFailedError as error:
                return Failure(FailureCode.RESOLUTION_FAILED, str(error))
        else:
            resolution = Resolution((destination.host,), ttl=int(MAX_TTL.total_seconds()))
        async with self._kernel:
            opened = await self._open_resolved(permit, resolution)
        if isinstance(opened, LiveGrant):
            current = [address for address in opened.grant.addresses if address in resolution.addresses]
            opened.pin = await first_reachable(current, destination.port)
            opened.cnames, opened.current = resolution.cnames, tuple(current)
            opened.fresh_until = self._clock() + resolution.ttl
        return opened

    async def _open_resolved(self, permit: Permit, resolution: Resolution) -> LiveGrant | Refusal:
        self.end_due()
        # Other requests went on while DNS was asked: the scope may be full by now, or the policy another.
        standing = Standing(self._paused_by, lambda _key: permit.answer)
        decided = decide(self.policy, permit.request, self.ledger.destinations, standing=standing)
        if isinstance(decided, Deny):
            return decided
        issued = issue_grant(self.policy, decided, resolution, str(uuid.uuid4()), datetime.now(UTC))
        if isinstance(issued, Deny):
            return issued
        now = self._clock()
        known = self.ledger.find(_key(decided), now)
        if known is None:
            if decided.scope is None:
                await self._make_room(decided.agent)
            live = LiveGrant(issued, now + decided.ttl.total_seconds(), 0.0, issued.addresses[0])
            return await self._put_in_kernel(live, issued.addresses)
        added = tuple(address for address in issued.addresses if address not in known.grant.addresses)
        if not added:
            return known
        # The name moved. What it led to before stays open to running transfers; the end stays where it was.
        addresses = (*added, *known.grant.addresses)
        former = (*addresses[MAX_ADDRESSES:], *(one for one in known.former if one not in added))
        ports = tuple(port for port in known.grant.ports if port in issued.ports)
        grant = replace(known.grant, addresses=addresses[:MAX_ADDRESSES], ports=ports)
        live = LiveGrant(grant, known.deadline, 0.0, known.pin, former=former[:_MOST_FORMER], ways=known.ways)
        opened = await self._put_in_kernel(live, added)
        if opened is live and len(former) > _MOST_FORMER:
            await self._close_former(live, former[_MOST_FORMER:])
        return opened

    async def _make_room(self, agent: str) -> None:
        """Take back what an agent asked for longest ago, where it has very many known-good names open.

        No quota holds for these, and behind a wildcard there is a name for every request.
        """
        held = [live for live in self.ledger if (live.grant.agent, live.grant.scope) == (agent, KNOWN_GOOD)]
        if len(held) >= _MOST_KNOWN_GOOD:
            # A grant that is used is looked up anew when its answer's time has passed; one that has none yet is new.
            idle = min(held, key=lambda live: live.fresh_until or live.deadline)
            why = f"it made room: agent {agent} has {_MOST_KNOWN_GOOD} known-good names open"
            await self._revoke([(idle, why)])

    async def _close_former(self, live: LiveGrant, addresses: Iterable[Address]) -> None:
        """Close what a name led to long ago: whoever runs it could fill the kernel's memory with ever other answers."""
        port = live.grant.destination.port
        try:
            await self._close_or_keep({(address, port) for address in addresses})
        except FirewallError as error:
            _logger.error("it stays open in the kernel until its time is over: %s", error)

    async def _open_further(self, live: LiveGrant, caller: Caller) -> None:
        """Open a grant's further ports to who has just made a request under it; the request goes on without them too."""
        who = caller.source if caller.uid is None else caller.uid
        if who is None or self._raw_tcp.are_open(self.policy, live, who):
            return
        async with self._kernel:
            if self.ledger.find(live.key, self._clock()) is not live:
                return
            try:
                await self._raw_tcp.open(self.policy, live, who)
            except FirewallError as error:
                _logger.error("egress-policy: a further port is not open: %s", error)

    async def _put_in_kernel(self, live: LiveGrant, addresses: Sequence[Address]) -> LiveGrant | Refusal:
        try:
            self._audit.write(grant_record("grant", live.grant))
        except AuditError as error:
            return Failure(FailureCode.AUDIT_FAILED, str(error))
        port = live.grant.destination.port
        # An element that several grants share lives until the last of them ends.
        lasting: dict[Key, tuple[LiveGrant, list[tuple[Address, int]]]] = {}
        for address in addresses:
            other = self.ledger.last_holder(address, port)
            last = live if other is None or other.deadline < live.deadline else other
            lasting.setdefault(last.key, (last, []))[1].append((address, port))
        try:
            for last, elements in lasting.values():
                timeout = last.deadline - self._clock()
                with metrics.NETLINK.time():
                    await self._elements.insert(
                        DEVELOPER_SANDBOX, elements, timeout, element_comment(last.grant)
                    )
        except FirewallError as error:
            if self.ledger.find(live.key, self._clock()) is None:
                self._record_end("revoke", live.grant, f"the kernel did not take it: {error}")
            return Failure(FailureCode.GRANT_FAILED, str(error))
        self.ledger.add(live)
        return live

    def _record_end(self, event: str, grant: Grant, detail: str | None = None, by: str | None = None) -> None:
        try:
            self._audit.write(grant_record(event, grant, detail, by))
        except AuditError as error:
            # The grant is over all the same; only what is let out must be on record first.
            _logger.error("the end of grant %s is not on record: %s", grant.id, error)


def _is_known_otherwise(agent: str, former: Policy, policy: Policy) -> bool:
    before, now = former.agents.get(agent), policy.agents.get(agent)
    return (
        before is not None
        and now is not None
        and (before.user, before.interface, before.source) != (now.user, now.interface, now.source)
    )


def _sockets(live: LiveGrant) -> set[tuple[Address, int]]:
    return {(address, live.grant.destination.port) for address in live.opened}


def _key(permit: Permit) -> Key:
    return permit.agent, permit.grant_scope, permit.intent, permit.request.destination
