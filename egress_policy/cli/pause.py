"""`egress-policy pause` and `resume`: the kill switch."""

import getpass
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from egress_policy.accounts import AccountError, as_owner_of
from egress_policy.audit import AuditLog, Record, timestamp
from egress_policy.audit_files import AuditError
from egress_policy.cli.options import audit_option, control_option, policy_option
from egress_policy.control_client import ControlRefusedError, ControlUnreachableError, call
from egress_policy.firewall import FirewallError
from egress_policy.kernel_policy import pause_in_kernel
from egress_policy.kernel_revocation import revoke_in_kernel
from egress_policy.pauses import (
    Pause,
    PausesError,
    Target,
    is_of,
    named,
    pauses_file,
    read_pauses,
    target_of,
    write_pauses,
)
from egress_policy.policy_file import load_policy
from egress_policy.policy_source import PolicyFileError
from egress_policy.records import pause_record


def _target_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        control_option,
        audit_option,
        policy_option,
        click.option("--all", "everything", is_flag=True, help="Every agent."),
        click.option("--agent", help="One agent, with its known-good destinations."),
        click.option("--scope", help="One scope."),
    ):
        command = option(command)
    return command


@click.command(epilog="Example: egress-policy pause --agent alice-claude")
@_target_options
def pause(
    scope: str | None, agent: str | None, everything: bool, policy: Path, audit: str, control: Path
) -> None:
    """Let nothing new out, and take back every live grant, until `resume`; it outlives a restart."""
    kind, name = target = _target(scope, agent, everything)
    body = {"all": True} if kind == "all" else {kind: name}
    try:
        answer = _over_socket(control, "POST", body, None)
        revoked, warning = len(answer["revoked"]), answer["warning"]
    except ControlUnreachableError as error:
        revoked, warning = _without_proxy(error, target, policy, audit, is_paused=True), None
    click.echo(f"Paused {named(target)}; {revoked} grant{'' if revoked == 1 else 's'} taken back.")
    _warn(warning)


@click.command(epilog="Example: egress-policy resume --agent alice-claude")
@_target_options
def resume(
    scope: str | None, agent: str | None, everything: bool, policy: Path, audit: str, control: Path
) -> None:
    """Lift a pause. Grants that it took back do not return: the next request is decided afresh."""
    kind, name = target = _target(scope, agent, everything)
    query = {"all": "true"} if name is None else {kind: name}
    try:
        warning = _over_socket(control, "DELETE", None, query)["warning"]
    except ControlUnreachableError as error:
        _without_proxy(error, target, policy, audit, is_paused=False)
        warning = None
    click.echo(f"Resumed {named(target)}.")
    _warn(warning)


def _target(scope: str | None, agent: str | None, everything: bool) -> Target:
    try:
        return target_of(scope, agent, everything)
    except ValueError:
        raise click.UsageError("say one of --scope, --agent and --all") from None


def _over_socket(control: Path, method: str, body: object, query: dict[str, str] | None) -> Any:  # noqa: ANN401 - JSON
    try:
        return call(control, method, "/v1/pauses", body, query)
    except ControlRefusedError as error:
        raise click.ClickException(str(error)) from None


def _without_proxy(
    error: ControlUnreachableError, target: Target, policy: Path, audit: str, *, is_paused: bool
) -> int:
    """Do in the kernel, on disk and on record what the proxy would have done; one that runs follows the file."""
    if os.geteuid() != 0:
        raise click.ClickException(f"{error}; root can do without it")
    by = getpass.getuser()
    try:
        loaded = load_policy(policy)
        if not is_of(loaded, target):
            raise click.ClickException(f"the policy has no {named(target)}")
        path = pauses_file(audit)
        before = read_pauses(path)
        if not is_paused and before.find(target) is None:
            raise click.ClickException(f"{named(target)} is not paused")
        pause = Pause(by, timestamp(datetime.now(UTC))) if is_paused else None
        pauses = before.changed(target, pause)
        record = pause_record("pause" if is_paused else "resume", target, by)
        with as_owner_of(Path(audit).parent):
            if not is_paused:
                _write(audit, record)
            write_pauses(path, pauses)
        pause_in_kernel(loaded, pauses)
        revoked = revoke_in_kernel(audit, lambda grant: pauses.covers(grant.agent, grant.scope), "paused", by)
        if is_paused:
            with as_owner_of(Path(audit).parent):
                _write(audit, record)
    except PolicyFileError as found:
        raise click.ClickException(f"the policy has errors:\n{found}") from None
    except OSError as found:
        raise click.ClickException(f"{audit}: {found.strerror}") from None
    except (AccountError, AuditError, FirewallError, PausesError) as found:
        raise click.ClickException(str(found)) from None
    return len(revoked)


def _write(audit: str, record: Record) -> None:
    log = AuditLog(audit)
    log.write(record)
    log.close()


def _warn(warning: str | None) -> None:
    if warning is not None:
        click.echo(f"egress-policy: in force, but: {warning}", err=True)
