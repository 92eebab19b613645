"""`egress-policy metrics`: what the running proxy counts and measures."""

from pathlib import Path

import click

from egress_policy.cli.options import control_option, policy_option
from egress_policy.control_client import ControlRefusedError, ControlUnreachableError, fetch


@click.command(
    epilog="Example: egress-policy metrics > egress.prom.new && mv egress.prom.new /var/lib/node_exporter/egress.prom"
)
@policy_option
@control_option
def metrics(policy: Path, control: Path) -> None:
    """Print the proxy's metrics in Prometheus' text format, for root and the policy's operators.

    node_exporter's textfile collector takes what a timer writes to its folder.
    """
    del policy  # every command takes it; who may ask is the running proxy's to say
    try:
        click.echo(fetch(control, "GET", "/v1/metrics"), nl=False)
    except (ControlRefusedError, ControlUnreachableError) as error:
        raise click.ClickException(str(error)) from None
