"""`egress-policy env`: the variables that make common runtimes trust the CA."""

import json
import shlex
import sys
from pathlib import Path

import click

from egress_policy.cli.options import json_option, policy_option, trust_option
from egress_policy.scope import ScopeError, parse_scope
from egress_policy.trust_files import TrustError, read_authority, read_certificates, write_trust_files
from egress_policy.trust_kit import TrustFiles, import_command, variables


@click.command(epilog="Example: eval \"$(egress-policy env --scope 'sandbox-alice;intent=develop')\"")
@click.option(
    "--scope",
    metavar="FIELD",
    help="An X-Agent-Scope value for tools that take header fields from a variable.",
)
@click.option("--write", is_flag=True, help="First write the files that the variables name; as root.")
@trust_option
@click.option(
    "--ca",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("/var/lib/egress-policy/ca/mitmproxy-ca-cert.pem"),
    show_default=True,
    help="With --write: the proxy's CA certificate.",
)
@click.option(
    "--roots",
    type=click.Path(path_type=Path, dir_okay=False),
    help="With --write: the roots to trust beside it.  [default: the operating system's]",
)
@policy_option
@json_option
def env(
    scope: str | None,
    write: bool,
    trust: Path,
    ca: Path,
    roots: Path | None,
    policy: Path,
    as_json: bool,
) -> None:
    """Print the variables by which curl, wget, git, Python, Node, Java and others trust the proxy's CA.

    They are for a shell: eval "$(egress-policy env)". The files that they name hold certificates alone, and root
    writes them once with --write: the operating system's roots and the CA.
    """
    del policy  # every command takes it; whom to trust does not depend on it
    if scope is not None:
        try:
            parse_scope([scope.encode()])
        except ScopeError as error:
            raise click.BadParameter(str(error), param_hint="--scope") from None
    try:
        folder = trust.absolute()
        files = write_trust_files(ca, folder, roots) if write else _written(folder)
    except TrustError as error:
        raise click.ClickException(str(error)) from None
    settings = variables(files, scope)
    if as_json:
        json.dump(settings, sys.stdout, indent=2)
        click.echo()
        return
    for name, value in settings.items():
        click.echo(f"export {name}={shlex.quote(value)}")
    click.echo(f"# Chromium keeps its own: {import_command(files)}")


def _written(directory: Path) -> TrustFiles:
    trust = TrustFiles(directory)
    try:
        read_authority(trust.authority)
        read_certificates(trust.bundle)
    except TrustError as error:
        raise TrustError(f"{error}: write the files with `egress-policy env --write`, as root") from None
    return trust
