"""`egress-policy apply`: put the policy in force in the kernel."""

import os
from pathlib import Path

import click

from egress_policy.accounts import AccountError
from egress_policy.cli.options import audit_option, policy_option
from egress_policy.confined.standby import keep_ruleset, listens
from egress_policy.firewall import FirewallError, Ruleset, delete_ways_now
from egress_policy.kernel_policy import keep_for_boot, put_in_force
from egress_policy.pauses import PausesError, pauses_file, read_pauses
from egress_policy.policy_file import load_policy
from egress_policy.policy_source import PolicyFileError
from egress_policy.resolver import ResolutionFailedError, system_nameservers


@click.command(epilog="Example: egress-policy apply --policy /etc/egress-policy/policy.yaml")
@policy_option
@audit_option
@click.option(
    "--boot",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("/var/lib/egress-policy/boot.nft"),
    show_default=True,
    help="Where to keep who the agents are, if its folder is there: at boot they are refused until the policy is in force.",
)
def apply(policy: Path, audit: str, boot: Path) -> None:
    """Load the ruleset and the policy's sets into the kernel, in one transaction.

    Grants survive, and so does what is paused: it is kept beside the audit log. A policy with errors changes nothing. From the first time on, agents are held to the policy,
    whether the proxy runs or not.
    """
    try:
        loaded = load_policy(policy)
        nameservers = loaded.resolver.nameservers or system_nameservers()
        ruleset, closed = put_in_force(loaded, nameservers, read_pauses(pauses_file(audit)))
        keep_ruleset()
        if not listens(loaded):
            # They lead past the proxy. One that runs takes back those that the policy does not give any more.
            delete_ways_now(lambda _comment: True)
    except PolicyFileError as error:
        raise click.ClickException(f"nothing was changed, the policy has errors:\n{error}") from None
    except (AccountError, PausesError, ResolutionFailedError) as error:
        raise click.ClickException(f"nothing was changed: {error}") from None
    except FirewallError as error:
        raise click.ClickException(str(error)) from None
    _keep(ruleset, boot)
    click.echo(
        f"In force: {len(loaded.agents)} agents, {len(ruleset.known_good)} known-good and "
        f"{len(ruleset.known_bad)} known-bad networks in the kernel, grants kept."
    )
    if closed:
        click.echo(f"Closed: {', '.join(closed)}, no longer known-good without inspection.")


def _keep(ruleset: Ruleset, boot: Path) -> None:
    if not os.access(boot.parent, os.W_OK):
        return
    try:
        keep_for_boot(ruleset, boot)
    except OSError as error:
        click.echo(f"egress-policy: in force, but {boot} cannot be written: {error.strerror}", err=True)
