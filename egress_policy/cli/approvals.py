"""`egress-policy approvals`, `approve` and `decline`: what waits for a person, and the person's answer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.table import Table

from egress_policy.cli.options import GrantId, control_option, json_option, policy_option
from egress_policy.cli.tables import console
from egress_policy.control_client import ControlRefusedError, ControlUnreachableError, call
from egress_policy.operations import DURATIONS

_COLUMNS = (
    ("ID", "id"),
    ("SCOPE", "scope"),
    ("AGENT", "agent"),
    ("DESTINATION", "host"),
    ("REASON", "reason"),
)


@click.command(epilog="Example: egress-policy approvals")
@policy_option
@control_option
@json_option
def approvals(policy: Path, control: Path, as_json: bool) -> None:
    """List the destinations that wait for a person's approval, and the decisions that hold."""
    del policy  # every command takes it
    found = _ask(control, "GET", "/v1/approvals")
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
        return
    if not found["pending"]:
        click.echo("Nothing waits for an approval.")
    else:
        _print(found["pending"])
    for one in found["decided"]:
        click.echo(
            f"{one['decision']} by {one['by']}: {one['agent']} {one['scope']} {one['host']}:{one['port']}"
        )


def _deciding(decision: str) -> Callable[[tuple[str, ...], str, Path, Path], None]:
    def decide(ids: tuple[str, ...], duration: str, policy: Path, control: Path) -> None:
        del policy  # every command takes it
        for approval_id in ids:
            body = {"decision": decision, "for": duration}
            one = _ask(control, "POST", f"/v1/approvals/{approval_id}", body)
            click.echo(f"{one['host']}:{one['port']} {one['decision']} for {one['scope']} ({duration}).")

    return decide


_id_argument = click.argument("ids", metavar="ID...", nargs=-1, required=True, type=GrantId())
_for_option = click.option(
    "--for",
    "duration",
    type=click.Choice(tuple(DURATIONS)),
    default="1h",
    show_default=True,
    help="How long.",
)
approve = click.command(
    "approve",
    help="Approve what waits: the agent's next try succeeds. ID is what `approvals` shows.",
    epilog="Example: egress-policy approve 1f0c2a9b --for once",
)(_id_argument(_for_option(policy_option(control_option(_deciding("approve"))))))
decline = click.command(
    "decline",
    help="Decline what waits: the agent is told so. ID is what `approvals` shows.",
    epilog="Example: egress-policy decline 1f0c2a9b --for 24h",
)(_id_argument(_for_option(policy_option(control_option(_deciding("decline"))))))


def _ask(control: Path, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401 - JSON
    try:
        return call(control, method, path, body)
    except (ControlUnreachableError, ControlRefusedError) as error:
        raise click.ClickException(str(error)) from None


def _print(pending: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for title, _ in _COLUMNS:
        table.add_column(title, no_wrap=title != "REASON", overflow="fold")
    for one in pending:
        cells = {
            **one,
            "id": one["id"][:8],
            "host": f"{one['host']}:{one['port']}",
            "reason": one["reason"] or "",
        }
        table.add_row(*(str(cells[name]) for _, name in _COLUMNS))
    console().print(table)
