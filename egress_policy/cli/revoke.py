"""`egress-policy revoke`: take grants back."""

import getpass
import os
from pathlib import Path

import click

from egress_policy.audit_files import AuditError
from egress_policy.cli.options import GrantId, Host, audit_option, control_option, policy_option
from egress_policy.control_client import ControlRefusedError, ControlUnreachableError, call
from egress_policy.firewall import FirewallError
from egress_policy.kernel_revocation import live_in_kernel, revoke_in_kernel
from egress_policy.operations import Selection


@click.command(epilog="Example: egress-policy revoke --host docs.example")
@click.argument("ids", metavar="ID...", nargs=-1, type=GrantId())
@click.option("--scope", help="All grants of a scope.")
@click.option("--agent", help="All grants of an agent.")
@click.option("--host", type=Host(), help="All grants for a host.")
@click.option("--all", "everything", is_flag=True, help="Every grant there is.")
@policy_option
@audit_option
@control_option
def revoke(
    ids: tuple[str, ...],
    scope: str | None,
    agent: str | None,
    host: str | None,
    everything: bool,
    policy: Path,
    audit: str,
    control: Path,
) -> None:
    """Take grants back; live connections are cut. ID is what `grants` shows, or the whole id.

    Several of --scope, --agent and --host mean the grants that agree with all of them. Where no proxy answers,
    root revokes in the kernel, and the proxy follows when it is back.
    """
    del policy  # every command takes it; whose grants are whose, the proxy and the log know
    chosen = scope or agent or host
    if sum(map(bool, (ids, chosen, everything))) != 1:
        raise click.UsageError("say which grants: IDs, or --scope, --agent, --host, or --all")
    selections = [Selection(id=one) for one in ids] or [Selection(None, scope, agent, host)]
    try:
        revoked = [grant for selection in selections for grant in _over_socket(control, selection)]
    except ControlUnreachableError as error:
        if os.geteuid() != 0:
            raise click.ClickException(f"{error}; root can revoke without it") from None
        revoked = _in_kernel(audit, selections)
    except ControlRefusedError as error:
        raise click.ClickException(str(error)) from None
    if not revoked and ids:
        raise click.ClickException(f"there is no live grant {' or '.join(ids)}")
    click.echo(f"Revoked {len(revoked)} grant{'' if len(revoked) == 1 else 's'}{':' if revoked else '.'}")
    for grant_id in revoked:
        click.echo(f"  {grant_id}")


def _over_socket(control: Path, selection: Selection) -> list[str]:
    if selection.id is not None:
        return list(call(control, "DELETE", f"/v1/grants/{selection.id}")["revoked"])
    query = {
        name: value for name in ("scope", "agent", "host") if (value := getattr(selection, name)) is not None
    }
    return list(call(control, "DELETE", "/v1/grants", query=query or {"all": "true"})["revoked"])


def _in_kernel(audit: str, selections: list[Selection]) -> list[str]:
    try:
        live = live_in_kernel(audit)
        for one in selections:
            if one.id is not None and sum(grant in one for grant in live) > 1:
                raise click.ClickException(f"there is more than one live grant {one.id}")
        revoked = revoke_in_kernel(
            audit, lambda grant: any(grant in one for one in selections), "revoked", getpass.getuser()
        )
    except (FirewallError, AuditError) as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{audit}: {error.strerror}") from None
    return [grant.id for grant in revoked]
