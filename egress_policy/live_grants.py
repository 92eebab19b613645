"""Which grants are live, told from what the kernel holds and what the audit log says of it.

The kernel's set is the only store of what is open; the log explains whose it is. `grants` shows this, and a
proxy that starts takes it over, so that a restart loses nothing and leaves nothing open that nobody can explain.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

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
    for record in unended(records, now).values():
        grant = _grant_of(record)
        if grant is None:
            continue
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


def unended(records: Iterable[Record], now: datetime) -> dict[str, Record]:
    """Return the latest `grant` record of each grant, by id, that has neither ended nor been revoked."""
    granted: dict[str, Record] = {}
    ended: set[str] = set()
    for record in records:
        if record.id is None:
            continue
        if record.event == "grant":
            granted[record.id] = record
        elif record.event in {"expire", "revoke"}:
            ended.add(record.id)
    return {
        grant_id: record
        for grant_id, record in granted.items()
        if grant_id not in ended and _ends_after(record, now)
    }


def _ends_after(record: Record, now: datetime) -> bool:
    if record.expires is None:
        return False
    try:
        return parse_timestamp(record.expires) > now
    except ValueError:
        return False


def _grant_of(record: Record) -> Grant | None:
    """Read a grant; None for a record that cannot be one, and so explains no element."""
    try:
        return _read(record)
    except ValueError:
        return None


def _read(record: Record) -> Grant:
    expires = parse_timestamp(record.expires or "")
    return Grant(
        id=record.id or "",
        agent=record.agent or "",
        scope=record.scope or "",
        intent=record.intent,
        destination=Destination(parse_host(_bracketed(record.host or "")), record.port or 0),
        addresses=tuple(ipaddress.ip_address(address) for address in record.addresses or ()),
        ports=record.ports,
        issued=expires - timedelta(seconds=record.ttl or 0),
        expires=expires,
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
