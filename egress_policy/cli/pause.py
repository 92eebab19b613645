"""`egress-policy pause` and `resume`: the kill switch."""

import getpass
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from egress_policy.accounts import AccountError
from egress_policy.audit import AuditError, AuditLog, timestamp
from egress_policy.cli.options import audit_option, control_option, policy_option
from egress_policy.control_client import ControlRefusedError, ControlUnreachableError, call
from egress_policy.firewall import FirewallError
from egress_policy.kernel_policy import pause_in_kernel
from egress_policy.kernel_revocation import revoke_in_kernel
from egress_policy.pauses import Pause, PausesError, pauses_file, read_pauses, write_pauses
from egress_policy.policy_file import load_policy
from egress_policy.policy_source import PolicyFileError
from egress_policy.records import pause_record

type _Target = tuple[str, str | None]


def _target_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        control_option,
        audit_option,
        policy_option,
        click.option("--all", "everything", is_flag=True, help="Every agent."),
        click.option("--agent", help="One agent: known-good destinations are closed to it too."),
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
    click.echo(f"Paused {_named(target)}; {revoked} grant{'' if revoked == 1 else 's'} taken back.")
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
    click.echo(f"Resumed {_named(target)}.")
    _warn(warning)


def _target(scope: str | None, agent: str | None, everything: bool) -> _Target:
    given: list[_Target] = [("scope", scope)] if scope else []
    given += [("agent", agent)] if agent else []
    given += [("all", None)] if everything else []
    if len(given) != 1:
        raise click.UsageError("say one of --scope, --agent and --all")
    return given[0]


def _named(target: _Target) -> str:
    kind, name = target
    return "everything" if name is None else f"{kind} {name}"


def _over_socket(control: Path, method: str, body: object, query: dict[str, str] | None) -> Any:  # noqa: ANN401 - JSON
    try:
        return call(control, method, "/v1/pauses", body, query)
    except ControlRefusedError as error:
        raise click.ClickException(str(error)) from None


def _without_proxy(
    error: ControlUnreachableError, target: _Target, policy: Path, audit: str, *, is_paused: bool
) -> int:
    """Do in the kernel, on disk and on record what the proxy would have done; it reads the file when it starts."""
    if os.geteuid() != 0:
        raise click.ClickException(f"{error}; root can do without it")
    kind, name = target
    by = getpass.getuser()
    try:
        loaded = load_policy(policy)
        known: dict[str, set[str | None]] = {
            "all": {None},
            "scope": {*loaded.scopes},
            "agent": {*loaded.agents},
        }
        if name not in known[kind]:
            raise click.ClickException(f"the policy has no {kind} {name}")
        path = pauses_file(audit)
        before = read_pauses(path)
        if not is_paused and before.find(kind, name) is None:
            raise click.ClickException(f"{_named(target)} is not paused")
        pauses = before.changed(kind, name, Pause(by, timestamp(datetime.now(UTC))) if is_paused else None)
        log = AuditLog(audit)
        log.write(pause_record("pause" if is_paused else "resume", kind, name, by))
        log.close()
        write_pauses(path, pauses)
        pause_in_kernel(loaded, pauses)
        revoked = revoke_in_kernel(audit, lambda grant: pauses.covers(grant.agent, grant.scope), "paused", by)
    except PolicyFileError as found:
        raise click.ClickException(f"the policy has errors:\n{found}") from None
    except (AccountError, AuditError, FirewallError, PausesError) as found:
        raise click.ClickException(str(found)) from None
    return len(revoked)


def _warn(warning: str | None) -> None:
    if warning is not None:
        click.echo(f"egress-policy: in force, but: {warning}", err=True)
