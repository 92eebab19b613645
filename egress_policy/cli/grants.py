"""`egress-policy grants`: what is open now, for whom and for how long."""

import json
import os
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
from rich.live import Live
from rich.table import Table

from egress_policy.audit import timestamp
from egress_policy.audit_files import AuditError
from egress_policy.audit_reading import read_records
from egress_policy.cli.options import audit_option, control_option, json_option, policy_option
from egress_policy.cli.tables import console, has_room
from egress_policy.control_client import ControlRefusedError, ControlUnreachableError, call
from egress_policy.firewall import DEVELOPER_SANDBOX, Element, FirewallError, list_elements
from egress_policy.live_grants import HeldGrant, match

_INTERVAL = 1.0


@dataclass(frozen=True, slots=True)
class _Row:
    """One line of the table; `agent` is unknown where the log does not explain an element, `ports` are further ones."""

    id: str
    scope: str
    agent: str | None
    host: str
    addresses: list[str]
    port: int
    expires: str
    remaining: int
    ports: list[int]


@click.command(epilog="Example: egress-policy grants --json | jq '.[].host'")
@click.option("--follow", is_flag=True, help="A live view; Ctrl-C ends it.")
@audit_option
@policy_option
@control_option
@json_option
def grants(audit: str, policy: Path, control: Path, follow: bool, as_json: bool) -> None:
    """List the live grants: what the kernel holds open, and whose it is.

    Root reads the kernel's set, which is what counts, whether the proxy runs or not. Others ask the proxy, and see
    their own.
    """
    del policy  # every command takes it; what is live is the kernel's to say
    if follow and as_json:
        raise click.UsageError("--follow is for people, --json for programs: use one of them")
    if follow:
        with Live(console=console(), auto_refresh=False, screen=sys.stdout.isatty()) as live:
            while True:
                live.update(_table(_rows(audit, control)), refresh=True)
                time.sleep(_INTERVAL)
    rows = _rows(audit, control)
    if as_json:
        json.dump([_as_dict(row) for row in rows], sys.stdout, indent=2)
        click.echo()
    elif rows:
        console().print(_table(rows))
    else:
        click.echo("No live grants.")


def _rows(audit: str, control: Path) -> list[_Row]:
    rows = _of_kernel(audit) if os.geteuid() == 0 else _of_proxy(control)
    return sorted(rows, key=lambda row: row.remaining)


def _of_proxy(control: Path) -> list[_Row]:
    try:
        listed = call(control, "GET", "/v1/grants")
    except (ControlRefusedError, ControlUnreachableError) as error:
        raise click.ClickException(str(error)) from None
    return [_Row(**{name: one.get(name, []) for name in _Row.__slots__}) for one in listed]


def _of_kernel(audit: str) -> list[_Row]:
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
    return [*(_of_grant(one) for one in live), *(_of_element(element, now) for element in unexplained)]


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
        ports=list(grant.ports),
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
        ports=[],
    )


def _as_dict(row: _Row) -> dict[str, object]:
    shown = {name: getattr(row, name) for name in _Row.__slots__}
    return shown if row.ports else {name: value for name, value in shown.items() if name != "ports"}


def _table(rows: list[_Row]) -> Table:
    """Lay the grants out; on a narrow terminal without their addresses, which would be folded to shreds."""
    whole = _laid_out(rows, ("LEFT", "SCOPE", "AGENT", "HOST", "PORT", "ADDRESSES", "ID"))
    return whole if has_room(whole) else _laid_out(rows, ("LEFT", "SCOPE", "AGENT", "HOST", "PORT", "ID"))


def _laid_out(rows: list[_Row], titles: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, no_wrap=title != "HOST", overflow="fold")
    for row in rows:
        cells = {
            "LEFT": str(timedelta(seconds=row.remaining)),
            "SCOPE": row.scope,
            "AGENT": row.agent or "?",
            "HOST": row.host,
            "PORT": " ".join(map(str, (row.port, *row.ports))),
            "ADDRESSES": " ".join(row.addresses),
            "ID": row.id[:8],
        }
        table.add_row(*(cells[title] for title in titles))
    return table
