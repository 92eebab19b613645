"""What waits for a person's approval, and what a person decided. Times are seconds of a monotonic clock."""

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from egress_policy.audit import Record, parse_timestamp
from egress_policy.decision import Answer, Key
from egress_policy.destination import Destination, parse_host

MAX_PENDING = 100
"""Of one scope: an agent cannot bury its owner in questions; the oldest makes room."""
_ONCE = timedelta(minutes=15)
"""How long at most the grant lasts that an approval for one request gives."""
_PATIENCE = 24 * 3600.0
"""Seconds: a question that nobody answered for so long is forgotten."""


@dataclass(slots=True)
class Pending:
    """A first request that waits, as the audit log has it; `count` says how often it was tried until now."""

    id: str
    key: Key
    record: Record
    asked: float
    count: int = 1


@dataclass(frozen=True, slots=True)
class Decided:
    """What a person decided, and until when it holds."""

    id: str
    key: Key
    is_approved: bool
    once: bool
    by: str
    until: float


def still_valid(records: Iterable[Record], now: datetime) -> list[tuple[Decided, float]]:
    """Find the decisions on record that still hold, and for how many seconds.

    Whether an approval for one request was used up the log does not say for sure: it does not come back. `until` of
    what is returned is not set.
    """
    found: dict[Key, tuple[Decided, float]] = {}
    for record in records:
        if record.event not in {"approval", "revoke"}:
            continue
        key = _key(record)
        if key is None:
            continue
        if record.event == "revoke":
            # A person who takes a grant back takes the approval too; the end of a time does not.
            if record.by is not None:
                found.pop(key, None)
            continue
        is_approved = record.outcome == "permit"
        left = _left(record, now)
        if left > 0 and not (is_approved and record.ttl == 0):
            found[key] = (
                Decided(record.id or "", key, is_approved, once=False, by=record.by or "", until=0.0),
                left,
            )
    return list(found.values())


def _key(record: Record) -> Key | None:
    """Read what a record is about; None where it cannot be read."""
    host = record.host or ""
    if record.port is None:
        return None
    try:
        destination = Destination(parse_host(f"[{host}]" if ":" in host else host), record.port)
    except ValueError:
        return None
    return record.agent or "", record.scope or "", record.intent, destination


def _left(record: Record, now: datetime) -> float:
    try:
        return (parse_timestamp(record.expires or "") - now).total_seconds()
    except ValueError:
        return 0.0


class Approvals:
    """The questions that are open, and the answers that hold now."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._pending: dict[Key, Pending] = {}
        self._decided: dict[Key, Decided] = {}

    def pending(self) -> list[Pending]:
        """List what waits, the oldest first."""
        now = self._clock()
        self._pending = {key: one for key, one in self._pending.items() if now - one.asked < _PATIENCE}
        return list(self._pending.values())

    def decided(self) -> list[Decided]:
        """List the answers that hold."""
        now = self._clock()
        self._decided = {key: one for key, one in self._decided.items() if one.until > now}
        return list(self._decided.values())

    def answer(self, key: Key) -> Answer | None:
        """Return what was decided on this key, if it still holds."""
        one = self._decided.get(key)
        left = 0.0 if one is None else one.until - self._clock()
        if one is None or left <= 0:
            return None
        return Answer(
            one.is_approved,
            min(timedelta(seconds=left), _ONCE) if one.once else timedelta(seconds=left),
            one.by,
            one.once,
        )

    def ask(self, key: Key, record: Record) -> None:
        """Note that a request waits; one that waits already is counted."""
        known = self._pending.get(key)
        if known is not None:
            known.count += 1
            return
        same = [one for one in self.pending() if one.key[1] == key[1]]
        if len(same) >= MAX_PENDING:
            del self._pending[same[0].key]
        self._pending[key] = Pending(record.id or str(uuid.uuid4()), key, record, self._clock())

    def decide(self, pending: Pending, decided: Decided) -> None:
        """Enter a person's decision on what waited."""
        self._pending.pop(pending.key, None)
        self._decided[pending.key] = decided

    def restore(self, decided: Decided, left: float | None = None) -> None:
        """Enter a decision again; with `left` it holds for so many seconds from now on."""
        until = decided.until if left is None else self._clock() + left
        self._decided[decided.key] = replace(decided, until=until)

    def take(self, key: Key) -> Decided | None:
        """Use up an approval that holds for one request, before another request finds it."""
        one = self._decided.get(key)
        return self._decided.pop(key) if one is not None and one.once else None

    def forget(self, key: Key) -> None:
        """Drop the decision on a key: the next request asks anew."""
        self._decided.pop(key, None)
