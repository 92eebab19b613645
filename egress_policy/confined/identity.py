"""As whom a command runs, and with which variables."""

import grp
import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from egress_policy.accounts import PRIVILEGED_GROUPS, proxy_uid, resolve_agents
from egress_policy.confined.errors import RunError
from egress_policy.policy import Agent, Policy

# They name sockets that are out of sight, or a way out that is not the policy's.
_LEFT_OUT = {
    *("DBUS_SESSION_BUS_ADDRESS", "DBUS_SYSTEM_BUS_ADDRESS", "DISPLAY", "DOCKER_HOST", "GPG_AGENT_INFO"),
    *("SSH_AGENT_PID", "SSH_AUTH_SOCK", "STY", "TMUX", "WAYLAND_DISPLAY", "XAUTHORITY"),
    # With it curl and OpenSSL would not look at SSL_CERT_FILE alone.
    "SSL_CERT_DIR",
    *("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"),
    *("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "ALL_PROXY", "NO_PROXY"),
}


@dataclass(frozen=True, slots=True)
class Identity:
    """A user of this host, with the groups that do not lead to root."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str
    home: Path
    shell: str


def identity_of(policy: Policy, agent: Agent, user: str | None, environment: Mapping[str, str]) -> Identity:
    """Find out as whom an agent's command runs: its own user, else `user`, else who called sudo(8).

    Raises RunError and AccountError.
    """
    agents = resolve_agents(policy)
    if agent.user is not None:
        low, high = next((low, high) for low, high, name in agents if name == agent.name)
        identity = _look_up(user or str(low))
        if not low <= identity.uid <= high:
            raise RunError(f"agent {agent.name} is the policy's user {agent.user}: leave --user out")
        return identity
    caller = user or environment.get("SUDO_UID")
    if caller is None:
        raise RunError("as whom? Start it with sudo, or say --user NAME")
    identity = _look_up(caller)
    if identity.uid == 0:
        raise RunError(
            "the command must not be root: start it with sudo from your own login, or say --user NAME"
        )
    if identity.uid == proxy_uid(policy):
        raise RunError("the command must not run as the proxy's user: say --user NAME")
    return identity


def variables_of(identity: Identity, given: Mapping[str, str]) -> dict[str, str]:
    """Return the command's variables: those given but for what leads around the policy, and its user's own."""
    kept = {
        name: value for name, value in given.items() if name not in _LEFT_OUT and not name.startswith("SUDO_")
    }
    own = {
        "HOME": str(identity.home),
        "USER": identity.name,
        "LOGNAME": identity.name,
        "SHELL": identity.shell,
        "XDG_RUNTIME_DIR": f"/run/user/{identity.uid}",
    }
    return kept | own


def _look_up(user: str) -> Identity:
    try:
        account = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except (KeyError, OverflowError):
        if not user.isdecimal() or int(user) >= 2**32 - 1:
            raise RunError(f"this host has no user {user}") from None
        # The kernel knows uids, whether or not somebody gave them a name.
        return Identity(int(user), int(user), (), user, Path("/"), "/bin/sh")
    if account.pw_uid != 0 and _is_privileged(account.pw_gid):
        # Files of the user's own are of this group: it cannot be left out as others are.
        raise RunError(
            f"the primary group of {account.pw_name} leads to root: give the user another (usermod -g)"
        )
    groups = os.getgrouplist(account.pw_name, account.pw_gid)
    return Identity(
        account.pw_uid,
        account.pw_gid,
        tuple(gid for gid in groups if not _is_privileged(gid)),
        account.pw_name,
        Path(account.pw_dir),
        account.pw_shell or "/bin/sh",
    )


def _is_privileged(gid: int) -> bool:
    try:
        return grp.getgrgid(gid).gr_name in PRIVILEGED_GROUPS
    except KeyError:
        return False
