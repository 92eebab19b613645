"""`egress-policy apply`: put the policy in force in the kernel."""

from pathlib import Path

import click

from egress_policy import firewall
from egress_policy.accounts import AccountError
from egress_policy.cli.options import policy_option
from egress_policy.kernel_policy import ruleset_of
from egress_policy.policy import Policy
from egress_policy.policy_file import load_policy
from egress_policy.policy_source import PolicyFileError
from egress_policy.resolver import ResolutionFailedError, system_nameservers


@click.command(epilog="Example: egress-policy apply --policy /etc/egress-policy/policy.yaml")
@policy_option
def apply(policy: Path) -> None:
    """Load the ruleset and the policy's sets into the kernel, in one transaction.

    Grants survive. A policy with errors changes nothing. From the first time on, agents are held to the policy,
    whether the proxy runs or not.
    """
    try:
        loaded = load_policy(policy)
        nameservers = loaded.resolver.nameservers or system_nameservers()
        ruleset = ruleset_of(loaded, nameservers)
        firewall.apply(ruleset)
        closed = _close_former_known_good(loaded)
    except PolicyFileError as error:
        raise click.ClickException(f"nothing was changed, the policy has errors:\n{error}") from None
    except (AccountError, ResolutionFailedError) as error:
        raise click.ClickException(f"nothing was changed: {error}") from None
    except firewall.FirewallError as error:
        raise click.ClickException(str(error)) from None
    click.echo(
        f"In force: {len(loaded.agents)} agents, {len(ruleset.known_good)} known-good and "
        f"{len(ruleset.known_bad)} known-bad networks in the kernel, grants kept."
    )
    if closed:
        click.echo(f"Closed: {', '.join(closed)}, no longer known-good without inspection.")


def _close_former_known_good(policy: Policy) -> list[str]:
    """Take out of the kernel what an earlier policy had DNS open there."""
    direct = set(policy.trust.direct_names())
    former = [
        element
        for element in firewall.list_elements(firewall.KNOWN_GOOD_DOMAINS)
        if (element.comment.rpartition(" ")[2], element.port) not in direct
    ]
    firewall.delete_now(firewall.KNOWN_GOOD_DOMAINS, [(one.address, one.port) for one in former])
    return sorted({element.comment.rpartition(" ")[2] for element in former})
