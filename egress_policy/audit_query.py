"""What the audit log answers: which records are asked for, and groups of them with counts. No I/O."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from egress_policy.audit import Record, parse_timestamp
from egress_policy.destination import InvalidHostError, parse_pattern
from egress_policy.policy_document import parse_duration
from egress_policy.records import destination_of

MOST_GROUPS = 10_000
"""What is asked for in ever other ways is counted together beyond this."""

TRAFFIC = frozenset({"decision", "drop", "direct", "handshake"})
"""The events that say who wanted to reach what; the others are about grants and the policy."""


@dataclass(frozen=True, slots=True)
class Query:
    """Which records are meant: all that agree with everything that is set. `host` may be `*.name`."""

    since: datetime | None = None
    scope: str | None = None
    agent: str | None = None
    host: str | None = None
    outcome: str | None = None

    def matches(self, record: Record) -> bool:
        """Tell whether a record is meant."""
        return (
            self.scope in (None, record.scope)
            and self.agent in (None, record.agent)
            and self.outcome in (None, record.outcome)
            and (self.host is None or self._is_about(self.host, record))
        )

    @staticmethod
    def _is_about(host: str, record: Record) -> bool:
        if host.startswith("*."):
            return (record.host or "").endswith(host[1:])
        return record.host == host or host in record.addresses


@dataclass(slots=True)
class Group:
    """Records that differ in their time alone."""

    count: int
    first: str
    last: str


type Kind = tuple[str, str, str, str, str]
"""Agent, scope, destination, outcome, and the code of a refusal or the event."""

OTHERS: Kind = ("…", "…", "…", "…", "…")


def grouped(records: Iterable[Record]) -> dict[Kind, Group]:
    """Count who wanted to reach what, and what came of it."""
    groups: dict[Kind, Group] = {}
    for record in records:
        if record.event not in TRAFFIC:
            continue
        kind = (
            record.agent or _sender(record),
            record.scope or "",
            destination_of(record) or ", ".join(record.addresses),
            record.outcome or "",
            record.code or ("" if record.event == "decision" else record.event),
        )
        if kind not in groups and len(groups) >= MOST_GROUPS:
            kind = OTHERS
        known = groups.get(kind)
        if known is None:
            groups[kind] = Group(1, record.time, record.time)
        else:
            known.count += 1
            known.last = max(known.last, record.time)
            known.first = min(known.first, record.time)
    return groups


def read_since(text: str, now: datetime) -> datetime:
    """Read how far to look back: a duration such as 1h, or a time (RFC 3339; a date is its midnight, UTC). Raises ValueError."""
    if re.fullmatch(r"[0-9]+[smhd]", text):
        return now - parse_duration(text)
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def read_host(text: str) -> str:
    """Bring a host into the form that records have. Raises ValueError."""
    if re.fullmatch(r"[0-9.]+|[0-9a-fA-F:]*:[0-9a-fA-F:.]*", text):
        return text.lower()
    try:
        return str(parse_pattern(text))
    except InvalidHostError as error:
        raise ValueError(str(error)) from None


def one_line(record: Record) -> str:
    """Describe a record in one line for a person."""
    who = record.agent or _sender(record)
    where = destination_of(record) or " ".join(record.addresses)
    what = record.method or ("(by name)" if record.inspection else "")
    outcome = " ".join(filter(None, (record.outcome, record.code, record.ending)))
    time = parse_timestamp(record.time).astimezone(UTC)
    said = (time.strftime("%m-%d %H:%M:%S"), record.event, outcome, who, record.scope, what, where)
    rest = record.detail or record.reason or _exchanged(record)
    return "  ".join(filter(None, (*said, rest, f"by {record.by}" if record.by else "")))


def _exchanged(record: Record) -> str:
    """Say what an exchange came to, where a record is of one."""
    if record.sent is None or record.received is None:
        return ""
    requests = "1 request" if record.requests == 1 else f"{record.requests} requests"
    said = f"{requests}, {size(record.sent)} sent, {size(record.received)} received in {record.duration:g} s"
    return said if record.status is None else f"{said}, status {record.status}"


def size(number: int) -> str:
    """Write a number of bytes for a person."""
    amount, unit = float(number), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{number} B" if unit == "B" else f"{amount:.1f} {unit}"


def _sender(record: Record) -> str:
    if record.uid is not None:
        return f"uid {record.uid}"
    return record.source or ""
