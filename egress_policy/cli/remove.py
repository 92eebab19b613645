"""`egress-policy remove`: open the firewall again."""

import getpass
import os
import sys
from pathlib import Path

import click

from egress_policy.accounts import as_owner_of
from egress_policy.audit import AuditLog
from egress_policy.audit_files import AuditError
from egress_policy.cli.options import audit_option, policy_option
from egress_policy.firewall import FirewallError, remove_tables
from egress_policy.records import removal_record


@click.command(epilog="Example: egress-policy remove --yes")
@click.option("--yes", is_flag=True, help="Do not ask.")
@policy_option
@audit_option
def remove(yes: bool, policy: Path, audit: str) -> None:
    """Take the ruleset out of the kernel: agents then reach whatever this host reaches.

    Nothing else does that: a proxy that stops leaves them refused. Live grants end with the ruleset. `apply` holds the agents
    again, and so does the next start of egress-policy-ruleset.service, at boot or by hand.
    """
    del policy  # every command takes it; the tables are the same under each policy
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("nobody can be asked here: say --yes")
    if os.geteuid() != 0:
        raise click.ClickException("only root may open the firewall: run it with sudo")
    if not yes:
        click.confirm("Agents will reach whatever this host reaches. Take the ruleset out?", abort=True)
    try:
        removed = remove_tables()
    except FirewallError as error:
        raise click.ClickException(str(error)) from None
    if not removed:
        click.echo("There was no ruleset in the kernel: agents were not held.")
        return
    click.echo(
        f"Removed {' and '.join(removed)}. Agents are NOT held to the policy any more, until `egress-policy apply`."
    )
    _record(audit, getpass.getuser())


def _record(audit: str, by: str) -> None:
    try:
        with as_owner_of(Path(audit).parent):
            log = AuditLog(audit)
            log.write(removal_record(by))
            log.close()
    except (AuditError, OSError) as error:
        click.echo(f"egress-policy: removed, but not on record: {error}", err=True)
