"""Which grants are live, told from what the kernel holds and what the audit log says of it.

The kernel's set is the only store of what is open; the log explains whose it is. `grants` shows this, and a
proxy that starts takes it over, so that a restart loses nothing and leaves nothing open that nobody can explain.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from egress_policy.audit import Record, parse_timestamp
from egress_policy.destination import Destination, parse_host
from egress_policy.firewall import Element
from egress_policy.grant import Grant


@dataclass(frozen=True, slots=True)
class HeldGrant:
    """A grant that the kernel holds open for `remaining` more seconds."""

    grant: Grant
    remaining: float


def match(
    records: Iterable[Record], held: Iterable[Element], now: datetime
) -> tuple[list[HeldGrant], list[Element]]:
    """Join the grants on record with the elements that the kernel holds; also list the elements without a grant.

    A grant whose elements are all gone is gone: somebody deleted them, or the host was restarted.
    """
    elements = {(element.address, element.port): element for element in held}
    unexplained = dict(elements)
    grants: list[HeldGrant] = []
    for record in _unended(records, now):
        grant = _grant_of(record)
        port = grant.destination.port
        kept = [elements[address, port] for address in grant.addresses if (address, port) in elements]
        if not kept:
            continue
        for element in kept:
            unexplained.pop((element.address, element.port), None)
        # Whichever clock was set since, neither the record nor the kernel is outlived.
        remaining = min((grant.expires - now).total_seconds(), max(element.remaining for element in kept))
        grants.append(HeldGrant(grant, remaining))
    return grants, list(unexplained.values())


def _unended(records: Iterable[Record], now: datetime) -> list[Record]:
    """Keep the last `grant` record of each grant that has neither ended nor been revoked."""
    live: dict[str, Record] = {}
    for record in records:
        if record.id is None:
            continue
        if record.event == "grant":
            live[record.id] = record
        elif record.event in ("expire", "revoke"):
            live.pop(record.id, None)
    return [record for record in live.values() if _time(record.expires) > now]


def _grant_of(record: Record) -> Grant:
    expires = _time(record.expires)
    return Grant(
        id=record.id or "",
        agent=record.agent or "",
        scope=record.scope or "",
        intent=record.intent,
        destination=Destination(parse_host(_bracketed(record.host or "")), record.port or 0),
        addresses=tuple(ipaddress.ip_address(address) for address in record.addresses or ()),
        issued=expires - timedelta(seconds=record.ttl or 0),
        expires=expires,
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _time(text: str | None) -> datetime:
    return parse_timestamp(text) if text else datetime.min.replace(tzinfo=UTC)
