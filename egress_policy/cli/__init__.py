"""The command line: one module a command."""

import contextlib
import os
import sys
from pathlib import Path

import click

from egress_policy.cli.apply import apply
from egress_policy.cli.approvals import approvals, approve, decline
from egress_policy.cli.audit import audit
from egress_policy.cli.check import check
from egress_policy.cli.console import console
from egress_policy.cli.diff import diff
from egress_policy.cli.doctor import doctor
from egress_policy.cli.env import env
from egress_policy.cli.explain import explain
from egress_policy.cli.export import export
from egress_policy.cli.grants import grants
from egress_policy.cli.metrics import metrics
from egress_policy.cli.pause import pause, resume
from egress_policy.cli.promote import promote
from egress_policy.cli.remove import remove
from egress_policy.cli.revoke import revoke
from egress_policy.cli.run import run


@click.group(
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: egress-policy explain --agent alice-claude GET https://docs.example/",
)
@click.version_option(package_name="egress-policy")
def commands() -> None:
    """Lets AI agents out to the destinations that a policy permits."""


for _command in (
    check,
    apply,
    explain,
    grants,
    revoke,
    run,
    pause,
    resume,
    audit,
    approvals,
    approve,
    decline,
    console,
    diff,
    promote,
    env,
    doctor,
    metrics,
    remove,
    export,
):
    commands.add_command(_command)


def main() -> None:
    """Run a command; wrong usage is one line on standard error and exit status 2."""
    if sys.stdout is None:
        # Closed by whoever started us (`>&-`): then nobody reads, which is no error.
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as the process runs
    try:
        status = commands.main(prog_name="egress-policy", standalone_mode=False)
    except click.UsageError as error:
        place = error.ctx.command_path if error.ctx is not None else "egress-policy"
        # Click lists a missing argument's choices one a line.
        message = " ".join(error.format_message().split())
        _end(f"{message.rstrip('.')} (see `{place} --help`)", 2)
    except click.ClickException as error:
        _end(error.format_message(), error.exit_code)
    except click.exceptions.Abort:
        _end("interrupted", 130)
    except OSError as error:
        # A full disk, most often. A reader who has seen enough (`| head`) is click's to notice.
        _forget_output()
        _end(f"{error.filename or 'standard output'}: {error.strerror or error}", 1)
    else:
        sys.exit(status if isinstance(status, int) else 0)


def _forget_output() -> None:
    """Leave the interpreter nothing to write at its end, which would fail again, with a traceback."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end(message: str, status: int) -> None:
    click.echo(f"egress-policy: {message}", err=True)
    sys.exit(status)
