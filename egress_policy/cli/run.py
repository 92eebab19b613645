"""`egress-policy run`: a command confined to the policy."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_NB, flock
from functools import partial
from pathlib import Path

import click

from egress_policy.accounts import AccountError
from egress_policy.cli.options import audit_option, control_option, policy_option
from egress_policy.confined.command import FAILED, Confinement
from egress_policy.confined.command import run as run_confined
from egress_policy.confined.errors import RunError
from egress_policy.confined.identity import identity_of, variables_of
from egress_policy.confined.link import link_of
from egress_policy.confined.standby import STATE, Places, places, proxy_in_force
from egress_policy.confined.weaknesses import weaknesses
from egress_policy.control_client import ControlRefusedError, ControlUnreachableError, call
from egress_policy.firewall import FirewallError, holds_link, holds_uid
from egress_policy.policy import Agent, Policy
from egress_policy.policy_file import load_policy
from egress_policy.policy_source import PolicyFileError
from egress_policy.scope import HEADER, ScopeError, parse_scope

_PROGRAMS = {"ip": "iproute2", "nft": "nftables", "mount": "mount", "setpriv": "util-linux"}


@click.command(
    context_settings={"allow_interspersed_args": False},
    epilog="Example: sudo egress-policy run --agent alice-laptop -- curl https://docs.example/",
)
@policy_option
@click.option("--agent", required=True, help="Who the command is: an agent's name in the policy.")
@click.option(
    "--scope", metavar="FIELD", help=f"The value of the {HEADER} field, for what takes it from a variable."
)
@click.option("--user", metavar="NAME", help="As whom the command runs.  [default: who called sudo]")
@audit_option
@control_option
@click.option(
    "--confdir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/var/lib/egress-policy/ca"),
    show_default=True,
    help="The proxy's CA; where there is none, one for this run.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    policy: Path,
    agent: str,
    scope: str | None,
    user: str | None,
    audit: str,
    control: Path,
    confdir: Path,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND with no way out but through the policy, as AGENT. Started as root, it runs as who called sudo.

    An agent with `interface` and `source` gets a network namespace of its own, joined to this host by a link of that
    name; one with `user` runs as that user. Where no proxy runs, ruleset and proxy are in force for as long as the
    command needs them. The exit status is the command's; 125 says that it was not run.
    """
    if os.geteuid() != 0:
        raise _NotRunError("a network namespace and the firewall need root: start it with sudo")
    try:
        sys.exit(
            _run(
                command,
                load_policy(policy),
                agent,
                scope,
                user,
                places(policy, Path(audit), control, confdir),
            )
        )
    except PolicyFileError as error:
        raise _NotRunError(f"the policy has errors:\n{error}") from None
    except (AccountError, FirewallError, RunError) as error:
        raise _NotRunError(str(error)) from None


class _NotRunError(click.ClickException):
    exit_code = FAILED


def _run(
    command: tuple[str, ...], policy: Policy, name: str, scope: str | None, user: str | None, where: Places
) -> int:
    agent = policy.agents.get(name)
    if agent is None:
        raise click.BadParameter(
            f"the policy has no agent {name!r}: it has {', '.join(sorted(policy.agents)) or 'none'}",
            param_hint="--agent",
        )
    _check_scope(agent, scope)
    missing = {package for program, package in _PROGRAMS.items() if shutil.which(program) is None}
    if missing:
        raise RunError(f"programs are missing: install the packages {', '.join(sorted(missing))}")
    identity = identity_of(policy, agent, user, os.environ)
    link = link_of(policy, agent)
    is_held = partial(_is_held, agent, identity.uid)
    for weakness in weaknesses(policy, link, identity.uid, where.policy):
        _say(weakness)
    with _turn_of(agent), proxy_in_force(policy, where, _say) as is_ours:
        if not is_held():
            raise RunError(f"the ruleset in the kernel does not name agent {name}: run `egress-policy apply`")
        _check_knows(where.control, name)
        confinement = Confinement(
            identity,
            link,
            Path.cwd(),
            variables_of(identity, os.environ),
            _authority(where.confdir / "mitmproxy-ca-cert.pem"),
            scope,
        )
        status = run_confined(command, confinement, is_held)
    if is_ours:
        _say(
            f"what it reached, and what was refused: egress-policy audit --agent {name} --audit {where.audit}"
        )
    return status


def _check_scope(agent: Agent, scope: str | None) -> None:
    """Refuse a field that every request would be denied for."""
    if scope is None:
        if agent.default_scope is None:
            _say(
                f"agent {agent.name} has no default_scope: what sends no {HEADER} is denied; --scope sets it for some"
            )
        return
    try:
        parsed = parse_scope([scope.encode()])
    except ScopeError as error:
        raise click.BadParameter(str(error), param_hint="--scope") from None
    if parsed.name not in agent.scopes:
        raise click.BadParameter(
            f"agent {agent.name} may not use {parsed.name}: it has {', '.join(agent.scopes)}",
            param_hint="--scope",
        )


@contextmanager
def _turn_of(agent: Agent) -> Iterator[None]:
    """Hold an agent's link for one command: two would have the same address. Raises RunError."""
    if agent.interface is None:
        yield
        return
    STATE.mkdir(mode=0o755, exist_ok=True)
    with (STATE / f"link-{agent.interface}").open("w") as held:
        try:
            flock(held, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"agent {agent.name} runs a command already: one at a time, or give the policy a second agent"
            ) from None
        yield


def _is_held(agent: Agent, uid: int) -> bool:
    try:
        return holds_uid(uid) if agent.interface is None else holds_link(agent.interface)
    except FirewallError:
        return False


def _check_knows(control: Path, agent: str) -> None:
    """See that a proxy that runs has this agent in its policy, where it can be asked. Raises RunError."""
    try:
        known = call(control, "GET", "/v1/policy")["agents"]
    except (ControlUnreachableError, ControlRefusedError):
        return
    if agent not in known:
        raise RunError(
            f"the proxy that runs has another policy, without agent {agent}: name its file with --policy"
        )


def _authority(certificate: Path) -> bytes:
    try:
        return certificate.read_bytes()
    except OSError as error:
        raise RunError(
            f"the CA of the proxy that runs cannot be read, {certificate}: {error.strerror}; name its folder with --confdir"
        ) from None


def _say(text: str) -> None:
    click.echo(f"egress-policy: {text}", err=True)
