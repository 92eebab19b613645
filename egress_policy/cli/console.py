"""`egress-policy console`: the address that opens the console in a browser."""

from pathlib import Path
from urllib.parse import urlsplit

import click
import msgspec

from egress_policy.cli.options import control_option, json_option, policy_option
from egress_policy.control_client import ControlRefusedError, ControlUnreachableError, call


@click.command(epilog="Example: egress-policy console")
@policy_option
@control_option
@json_option
def console(policy: Path, control: Path, as_json: bool) -> None:
    """Print the address that opens the console, with your rights, in a browser on this host."""
    del policy  # every command takes it
    try:
        opened = call(control, "POST", "/v1/console")
    except (ControlUnreachableError, ControlRefusedError) as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(msgspec.json.encode(opened))
        return
    port = urlsplit(opened["url"]).port
    click.echo(opened["url"])
    click.echo(
        "Open it within two minutes; it works once. From another machine, first: "
        f"ssh -L {port}:127.0.0.1:{port} THIS-HOST",
        err=True,
    )
