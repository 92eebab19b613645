"""Options that several commands share."""

import re
from pathlib import Path
from typing import override

import click

from egress_policy.audit_files import STANDARD_OUTPUT, AuditError, rotated
from egress_policy.audit_query import read_host
from egress_policy.trust_kit import DIRECTORY


class Host(click.ParamType[str]):
    """A host in the form that records and grants have."""

    name = "HOST"

    @override
    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return read_host(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class GrantId(click.ParamType[str]):
    """The id of a grant or of what waits, or the beginning of one."""

    name = "ID"

    @override
    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(r"[0-9a-f-]{4,36}", value):
            self.fail(f"{value!r} is no id: give what the list shows, four characters or more", param, ctx)
        return value


def check_log(audit: str) -> None:
    """See that there is an audit log to read. Raises ClickException."""
    try:
        # Rotated, it is made anew by the next record.
        is_there = audit != STANDARD_OUTPUT and (Path(audit).exists() or bool(rotated(Path(audit))))
    except AuditError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{audit} cannot be read: {error.strerror}") from None
    if not is_there:
        raise click.ClickException(f"there is no audit log {audit}: name it with --audit")


policy_option = click.option(
    "--policy",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("/etc/egress-policy/policy.yaml"),
    show_default=True,
    help="The policy file.",
)
audit_option = click.option(
    "--audit",
    default="/var/log/egress-policy/audit.jsonl",
    show_default=True,
    help="The audit log.",
)
control_option = click.option(
    "--control",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("/run/egress-policy/control.sock"),
    show_default=True,
    help="The running proxy's control socket.",
)
trust_option = click.option(
    "--trust",
    type=click.Path(path_type=Path, file_okay=False),
    default=DIRECTORY,
    show_default=True,
    help="The folder of the files that runtimes are told to trust.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
