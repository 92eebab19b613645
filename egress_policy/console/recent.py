"""What agents asked for lately, counted over time: in memory, and bounded whatever they ask for. No I/O."""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from egress_policy.audit import Record, parse_timestamp, timestamp
from egress_policy.audit_query import TRAFFIC
from egress_policy.policy import Policy
from egress_policy.records import destination_of
from egress_policy.rights import Rights

SLOT = 1800
"""Seconds that are counted together."""
SLOTS = 48
MOST_KINDS = 200
"""Of one agent: it cannot push out what others did; what it asked for longest ago makes room."""
MOST_DESTINATIONS = 12
"""Of one scope, that are shown by name; the rest is shown as one."""
MOST_REFUSALS = 200

type _Kind = tuple[str | None, str, str]
"""The scope that was claimed, the destination, and the outcome or the code of a refusal."""


@dataclass(slots=True)
class _Asked:
    """Requests that differ in their time alone: the newest, and how many there were in each slot up to its own."""

    newest: Record
    slot: int
    counts: array[int] = field(default_factory=lambda: array("I", bytes(4 * SLOTS)))

    def add(self, slot: int, count: int, record: Record) -> None:
        if slot <= self.slot - SLOTS:
            return
        for passed in range(max(self.slot + 1, slot - SLOTS + 1), slot + 1):
            self.counts[passed % SLOTS] = 0
        self.slot = max(self.slot, slot)
        self.counts[slot % SLOTS] += count
        self.newest = max(self.newest, record, key=lambda one: one.time)

    def until(self, slot: int) -> list[int]:
        """Return the counts of the slots that end with this one, the oldest first."""
        return [
            self.counts[one % SLOTS] if self.slot - SLOTS < one <= self.slot else 0
            for one in range(slot - SLOTS + 1, slot + 1)
        ]


class Recent:
    """Counts records as they are written; nothing in it is older than a day."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._agents: defaultdict[str | None, dict[_Kind, _Asked]] = defaultdict(dict)
        for record in records:
            self.note(record)

    def note(self, record: Record) -> None:
        """Count a record, if it is about somebody who wanted to reach something."""
        destination = destination_of(record) or ", ".join(record.addresses)
        if record.event in TRAFFIC and destination:
            what = record.event if record.event != "decision" else record.code or record.outcome or ""
            self._add(record, (record.scope, destination, what), _slot(parse_timestamp(record.time)), 1)

    def add(self, other: "Recent") -> None:
        """Take over what another has counted."""
        for record, kind, slot, count in other.counted():
            self._add(record, kind, slot, count)

    def counted(self) -> Iterator[tuple[Record, _Kind, int, int]]:
        """Yield all counts: the newest record of a kind, the kind, and how many in which slot."""
        for kinds in self._agents.values():
            for kind, asked in kinds.items():
                for slot, count in enumerate(asked.until(asked.slot), asked.slot - SLOTS + 1):
                    if count:
                        yield asked.newest, kind, slot, count

    def refusals(self, policy: Policy, rights: Rights, now: datetime) -> list[dict[str, object]]:
        """List what was refused of what the peer may see, the newest first."""
        found = [
            (asked.newest, sum(counts), scope)
            for asked, counts, scope in self._seen(policy, rights, now)
            if asked.newest.outcome != "permit" and any(counts)
        ]
        found.sort(key=lambda one: one[0].time, reverse=True)
        return [
            {
                "agent": record.agent,
                "scope": scope,
                "destination": destination_of(record) or ", ".join(record.addresses),
                "method": record.method,
                "code": record.code or record.event,
                "detail": record.detail,
                "reason": record.reason,
                "count": count,
                "last": record.time,
            }
            for record, count, scope in found[:MOST_REFUSALS]
        ]

    def destinations(self, policy: Policy, rights: Rights, now: datetime) -> dict[str, object]:
        """Count by scope and destination what was permitted and refused in each slot, up to now."""
        scopes: dict[tuple[str | None, str | None], dict[str, tuple[list[int], list[int]]]] = {}
        for asked, counts, scope in self._seen(policy, rights, now):
            record = asked.newest
            # What needs no scope, or came without one, is shown by agent.
            group = scopes.setdefault((scope, None if scope else record.agent), {})
            name = destination_of(record) or ", ".join(record.addresses)
            rows = group.setdefault(name, ([0] * SLOTS, [0] * SLOTS))
            row = rows[0 if record.outcome == "permit" else 1]
            row[:] = map(int.__add__, row, counts)
        return {
            "until": timestamp(datetime.fromtimestamp((_slot(now) + 1) * SLOT, UTC)),
            "slot": SLOT,
            "scopes": [
                {"scope": scope, "agent": agent, "destinations": _shown(rows)}
                for (scope, agent), rows in sorted(
                    scopes.items(), key=lambda one: (one[0][0] is None, one[0][0] or one[0][1] or "")
                )
            ],
        }

    def _add(self, record: Record, kind: _Kind, slot: int, count: int) -> None:
        kinds = self._agents[record.agent]
        asked = kinds.pop(kind, None) or _Asked(record, slot)
        asked.add(slot, count, record)
        kinds[kind] = asked
        if len(kinds) > MOST_KINDS:
            del kinds[next(iter(kinds))]

    def _seen(
        self, policy: Policy, rights: Rights, now: datetime
    ) -> Iterator[tuple[_Asked, list[int], str | None]]:
        """Yield what a peer may see, with its counts, and its scope where the agent may use that one."""
        for agent, kinds in self._agents.items():
            known = policy.agents.get(agent or "")
            for (claimed, _, _), asked in kinds.items():
                # Whoever claims another's scope is refused, and does not show among what that scope did.
                scope = claimed if known is not None and claimed in known.scopes else None
                if rights.may_see(agent, scope):
                    counts = asked.until(_slot(now))
                    if any(counts):
                        yield asked, counts, scope


def _slot(moment: datetime) -> int:
    return int(moment.timestamp()) // SLOT


def _shown(rows: dict[str, tuple[list[int], list[int]]]) -> list[dict[str, object]]:
    """Describe a scope's destinations, those that were asked for most first, and the rest as one."""
    ranked = sorted(rows.items(), key=lambda one: (-sum(map(sum, one[1])), one[0]))
    shown: list[dict[str, object]] = [
        {"destination": name, "permitted": permitted, "refused": refused}
        for name, (permitted, refused) in ranked[:MOST_DESTINATIONS]
    ]
    rest = [rows for _, rows in ranked[MOST_DESTINATIONS:]]
    if rest:
        shown.append(
            {
                "others": len(rest),
                "permitted": [sum(slot) for slot in zip(*(one[0] for one in rest), strict=True)],
                "refused": [sum(slot) for slot in zip(*(one[1] for one in rest), strict=True)],
            }
        )
    return shown
