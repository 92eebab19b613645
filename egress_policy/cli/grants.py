"""`egress-policy grants`: what is open now, for whom and for how long."""

import json
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from egress_policy.audit import AuditError, read_records, timestamp
from egress_policy.cli.options import audit_option, json_option, policy_option
from egress_policy.firewall import DEVELOPER_SANDBOX, Element, FirewallError, list_elements
from egress_policy.live_grants import HeldGrant, match


@dataclass(frozen=True, slots=True)
class _Row:
    """One line of the table; `agent` is unknown where the log does not explain an element."""

    id: str
    scope: str
    agent: str | None
    host: str
    addresses: list[str]
    port: int
    expires: str
    remaining: int


@click.command(epilog="Example: egress-policy grants --json | jq '.[].host'")
@audit_option
@policy_option
@json_option
def grants(audit: str, policy: Path, as_json: bool) -> None:
    """List the live grants: what the kernel holds open, and whose it is.

    The kernel's set is what counts. The audit log adds the agent; where it cannot be read, the element's own
    comment still names the grant, the scope and the host.
    """
    del policy  # every command takes it; what is live is the kernel's to say
    now = datetime.now(UTC)
    try:
        held = list_elements(DEVELOPER_SANDBOX)
    except FirewallError as error:
        raise click.ClickException(str(error)) from None
    try:
        live, unexplained = match(read_records(audit), held, now)
    except AuditError as error:
        click.echo(f"egress-policy: {error}; agents are not shown", err=True)
        live, unexplained = [], held
    rows = [*(_of_grant(one) for one in live), *(_of_element(element, now) for element in unexplained)]
    rows.sort(key=lambda row: row.remaining)
    if as_json:
        json.dump([_as_dict(row) for row in rows], sys.stdout, indent=2)
        click.echo()
    else:
        _print(rows)


def _of_grant(held: HeldGrant) -> _Row:
    grant = held.grant
    return _Row(
        id=grant.id,
        scope=grant.scope,
        agent=grant.agent,
        host=str(grant.destination.host),
        addresses=[str(address) for address in grant.addresses],
        port=grant.destination.port,
        expires=timestamp(grant.expires),
        remaining=int(held.remaining),
    )


def _of_element(element: Element, now: datetime) -> _Row:
    grant_id, scope, host = (*(element.comment or "").split(" ", 2), "", "", "")[:3]
    return _Row(
        id=grant_id,
        scope=scope,
        agent=None,
        host=host,
        addresses=[str(element.address)],
        port=element.port,
        expires=timestamp(now + timedelta(seconds=element.remaining)),
        remaining=int(element.remaining),
    )


def _as_dict(row: _Row) -> dict[str, object]:
    return {name: getattr(row, name) for name in _Row.__slots__}


def _print(rows: list[_Row]) -> None:
    if not rows:
        click.echo("No live grants.")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("LEFT", "SCOPE", "AGENT", "HOST", "PORT", "ADDRESSES", "ID"):
        table.add_column(
            title, no_wrap=title != "ADDRESSES", overflow="ellipsis" if title == "ID" else "fold"
        )
    for row in rows:
        left = str(timedelta(seconds=row.remaining))
        addresses = " ".join(row.addresses)
        table.add_row(left, row.scope, row.agent or "?", row.host, str(row.port), addresses, row.id[:8])
    Console(soft_wrap=False).print(table)
