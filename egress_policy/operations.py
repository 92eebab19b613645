"""What can be asked of a running proxy: grants, pauses, approvals. Rights are checked here, whoever asks."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from egress_policy.accounts import AccountError
from egress_policy.approvals import Decided, Pending
from egress_policy.audit import AuditLog, Record, timestamp
from egress_policy.audit_files import AuditError
from egress_policy.authorizer import Authorizer
from egress_policy.feed_files import Signature, signature
from egress_policy.firewall import FirewallError
from egress_policy.grant import Grant
from egress_policy.kernel_policy import pause_in_kernel
from egress_policy.ledger import LiveGrant
from egress_policy.pauses import (
    Pause,
    Pauses,
    PausesError,
    Target,
    is_of,
    named,
    read_pauses,
    write_pauses,
)
from egress_policy.records import approval_record, pause_record
from egress_policy.rights import Rights

DURATIONS = {"once": 24 * 3600, "15m": 900, "1h": 3600, "24h": 24 * 3600}
"""What an approval may be given for, in seconds; `once` is for one request in that time."""
_INTERVAL = 0.5
"""Seconds between two looks at the file of pauses."""

_logger = logging.getLogger(__name__)


class OperationError(Exception):
    """What was asked cannot be done: the HTTP status (RFC 9110) and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True, slots=True)
class Selection:
    """Which grants are meant: all that agree with everything that is set."""

    id: str | None = None
    scope: str | None = None
    agent: str | None = None
    host: str | None = None

    def __contains__(self, grant: Grant) -> bool:
        return (
            (self.id is None or grant.id.startswith(self.id))
            and self.scope in (None, grant.scope)
            and self.agent in (None, grant.agent)
            and self.host in (None, str(grant.destination.host))
        )


class Operations:
    """Does what a peer asks for, if it may."""

    def __init__(
        self,
        authorizer: Authorizer,
        audit: AuditLog,
        pauses_file: Path | None,
        reload: Callable[[], None],
    ) -> None:
        self._authorizer = authorizer
        self._audit = audit
        self._pauses_file = pauses_file
        self._seen: Signature | None = None
        self._turn = asyncio.Lock()
        self.ask_for_reload = reload

    async def take_back_paused(self) -> None:
        """Take back what is paused and was taken over from the proxy before."""
        for _, pause in self._authorizer.pauses:
            await self._authorizer.take_back_paused(pause.by)

    async def follow_pauses(self) -> None:
        """Do as the file says when another writes it: root without us, or another proxy. Runs until cancelled.

        A file that is gone, or bad, lifts no pause.
        """
        self._seen = None if self._pauses_file is None else signature(self._pauses_file)
        while self._pauses_file is not None:
            await asyncio.sleep(_INTERVAL)
            async with self._turn:
                now = signature(self._pauses_file)
                if now in (self._seen, None):
                    continue
                self._seen = now
                try:
                    await self._adopt(read_pauses(self._pauses_file))
                except (PausesError, AccountError, FirewallError) as error:
                    _logger.error("egress-policy: what is paused may not be: %s", error)

    async def _adopt(self, pauses: Pauses) -> None:
        authorizer = self._authorizer
        if pauses != authorizer.pauses:
            authorizer.pauses = pauses
            await asyncio.to_thread(pause_in_kernel, authorizer.policy, pauses)
            await self.take_back_paused()

    def grants(self, rights: Rights, selection: Selection) -> list[dict[str, object]]:
        """List the live grants that the peer may see, the first to end first."""
        authorizer = self._authorizer
        seen = [
            live
            for live in authorizer.ledger
            if live.grant in selection and rights.may_see(live.grant.agent, live.grant.scope)
        ]
        return [_shown(live, authorizer.left(live)) for live in sorted(seen, key=lambda live: live.deadline)]

    def grant(self, rights: Rights, grant_id: str) -> dict[str, object]:
        """Show one grant, by its id or the beginning of it."""
        found = self.grants(rights, Selection(id=grant_id))
        if len(found) != 1:
            raise OperationError(
                404, f"there is {'no' if not found else 'more than one'} live grant {grant_id}"
            )
        return found[0]

    async def revoke(self, rights: Rights, selection: Selection) -> list[str]:
        """Take grants back, of those that the peer may see; return their ids."""
        if selection.id is not None:
            # The beginning of an id stands for one grant, or for none.
            selection = Selection(id=str(self.grant(rights, selection.id)["id"]))
        revoked = await self._authorizer.revoke(
            lambda grant: grant in selection and rights.may_see(grant.agent, grant.scope),
            "revoked",
            rights.name,
        )
        return [grant.id for grant in revoked]

    async def shorten(self, rights: Rights, grant_id: str, remaining: float) -> dict[str, object]:
        """Let a grant end in so many seconds; later than it would by itself is not possible."""
        shown = self.grant(rights, grant_id)
        if not rights.may_decide(str(shown["scope"])):
            raise OperationError(403, "only an operator or the scope's owner shortens a grant")
        authorizer = self._authorizer
        try:
            live = await authorizer.shorten(str(shown["id"]), remaining, rights.name)
        except (FirewallError, AuditError) as error:
            raise OperationError(503, str(error)) from None
        if live is None:
            raise OperationError(409, "a grant is only ever shortened: it would end before that by itself")
        return _shown(live, authorizer.left(live))

    def pauses(self, rights: Rights) -> list[dict[str, object]]:
        """List what is paused, as far as the peer may see it."""
        return [
            {"kind": kind, "name": name, "by": pause.by, "since": pause.since}
            for (kind, name), pause in self._authorizer.pauses
            if kind == "all"
            or rights.may_see(name if kind == "agent" else None, name if kind == "scope" else None)
        ]

    async def pause(self, rights: Rights, target: Target) -> dict[str, object]:
        """Pause: nothing new, and every live grant taken back. What cannot be kept, or put on record, is paused too."""
        self._check_may_pause(rights, target)
        async with self._turn:
            authorizer = self._authorizer
            paused = authorizer.pauses.find(target)
            if paused is None or rights.is_operator:
                # An owner does not take over what an operator paused, to lift it then.
                mine = Pause(rights.name, timestamp(datetime.now(UTC)))
                authorizer.pauses = authorizer.pauses.changed(target, mine)
            warnings = [await self._in_kernel()]
            revoked = await authorizer.take_back_paused(rights.name)
            warnings += [await self._on_disk(), self._on_record(pause_record("pause", target, rights.name))]
        return {"revoked": [grant.id for grant in revoked], "warning": _joined(warnings)}

    async def resume(self, rights: Rights, target: Target) -> dict[str, object]:
        """Lift a pause, once that is on record. What an operator paused, only an operator resumes."""
        self._check_may_pause(rights, target)
        async with self._turn:
            authorizer = self._authorizer
            paused = authorizer.pauses.find(target)
            if paused is None:
                raise OperationError(404, f"{named(target)} is not paused")
            if not rights.is_operator and paused.by != rights.name:
                raise OperationError(403, f"{paused.by} paused it: only an operator resumes it")
            not_on_record = self._on_record(pause_record("resume", target, rights.name))
            if not_on_record is not None:
                raise OperationError(503, not_on_record)
            authorizer.pauses = authorizer.pauses.changed(target, None)
            warnings = [await self._on_disk(), await self._in_kernel()]
        return {"warning": _joined(warnings)}

    def approvals(self, rights: Rights) -> dict[str, list[dict[str, object]]]:
        """List what waits for a decision, and the decisions that hold."""
        held = self._authorizer.approvals
        return {
            "pending": [_asked(one) for one in held.pending() if rights.may_see(one.key[0], one.key[1])],
            "decided": [_answered(one) for one in held.decided() if rights.may_see(one.key[0], one.key[1])],
        }

    def decide(self, rights: Rights, approval_id: str, is_approved: bool, duration: str) -> dict[str, object]:
        """Approve or decline what waits. Who decided is on record before it counts."""
        if duration not in DURATIONS:
            raise OperationError(400, f"`for` is one of {', '.join(DURATIONS)}")
        authorizer = self._authorizer
        found = [
            one
            for one in authorizer.approvals.pending()
            if one.id.startswith(approval_id) and rights.may_see(one.key[0], one.key[1])
        ]
        if len(found) != 1:
            raise OperationError(
                404, f"{'nothing' if not found else 'more than one request'} waits as {approval_id}"
            )
        (waiting,) = found
        if not rights.may_decide(waiting.key[1]):
            raise OperationError(403, "an agent never approves: an operator or the scope's owner does")
        seconds = DURATIONS[duration]
        expires = datetime.now(UTC) + timedelta(seconds=seconds)
        record = approval_record(waiting.id, waiting.key, is_approved, rights.name, expires, duration)
        not_on_record = self._on_record(record)
        if not_on_record is not None:
            raise OperationError(503, not_on_record)
        once = is_approved and duration == "once"
        decided = Decided(
            waiting.id, waiting.key, is_approved, once, rights.name, authorizer.in_seconds(seconds)
        )
        authorizer.approvals.decide(waiting, decided)
        return _answered(decided)

    def _check_may_pause(self, rights: Rights, target: Target) -> None:
        kind, name = target
        if not rights.may_decide(name if kind == "scope" else None):
            raise OperationError(403, "only an operator pauses and resumes, or an owner the own scope")
        if not is_of(self._authorizer.policy, target):
            raise OperationError(404, f"the policy has no {named(target)}")

    async def _in_kernel(self) -> str | None:
        """Have the kernel refuse what is paused; say why it could not."""
        try:
            await asyncio.to_thread(pause_in_kernel, self._authorizer.policy, self._authorizer.pauses)
        except (AccountError, FirewallError) as error:
            return str(error)
        return None

    async def _on_disk(self) -> str | None:
        try:
            await asyncio.to_thread(write_pauses, self._pauses_file, self._authorizer.pauses)
        except PausesError as error:
            return str(error)
        if self._pauses_file is not None:
            # What we wrote ourselves is no news: a pause that came after it, and could not be kept, would be lifted.
            self._seen = signature(self._pauses_file)
        return None

    def _on_record(self, record: Record) -> str | None:
        try:
            self._audit.write(record)
        except AuditError as error:
            return str(error)
        return None


def _joined(warnings: list[str | None]) -> str | None:
    return "; ".join(filter(None, warnings)) or None


def _shown(live: LiveGrant, left: float) -> dict[str, object]:
    grant = live.grant
    return {
        "id": grant.id,
        "scope": grant.scope,
        "agent": grant.agent,
        "intent": grant.intent,
        "host": str(grant.destination.host),
        "addresses": [str(address) for address in grant.addresses],
        "port": grant.destination.port,
        "issued": timestamp(grant.issued),
        "expires": timestamp(grant.expires),
        "remaining": int(left),
        **({"ports": list(grant.ports)} if grant.ports else {}),
    }


def _asked(waiting: Pending) -> dict[str, object]:
    record = waiting.record
    return {
        "id": waiting.id,
        "agent": record.agent,
        "scope": record.scope,
        "intent": record.intent,
        "host": record.host,
        "port": record.port,
        "method": record.method,
        "reason": record.reason,
        "claimed_agent": record.claimed_agent,
        "asked": record.time,
        "count": waiting.count,
    }


def _answered(decided: Decided) -> dict[str, object]:
    agent, scope, intent, destination = decided.key
    return {
        "id": decided.id,
        "agent": agent,
        "scope": scope,
        "intent": intent,
        "host": str(destination.host),
        "port": destination.port,
        "decision": "approved" if decided.is_approved else "declined",
        "once": decided.once,
        "by": decided.by,
    }
