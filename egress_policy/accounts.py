"""Login names to uids: what the policy names, the kernel knows by number."""

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from egress_policy.policy import Agent, Policy

PRIVILEGED_GROUPS = {
    *("root", "sudo", "wheel", "admin", "docker", "lxd", "incus-admin", "libvirt", "disk", "kmem", "shadow"),
    "netdev",
}
"""Groups whose members can act as another user, past any policy."""


class AccountError(Exception):
    """An account that the policy names cannot be used: the message says why, and what to do."""


def proxy_uid(policy: Policy) -> int:
    """Return the uid that the proxy runs as. Raises AccountError."""
    return _uid_of(policy.proxy.user, "proxy.user")


def resolve_agents(policy: Policy) -> list[tuple[int, int, str]]:
    """Return the ranges of uids of all agents of this host, with the agent's name. Raises AccountError.

    No two may overlap, and neither root nor the proxy may be among them, under whatever login name.
    """
    forbidden = {0: "root", proxy_uid(policy): "the proxy's own user"}
    ranges: list[tuple[int, int, str]] = []
    for agent in policy.agents.values():
        if agent.user is None:
            continue
        low, high = _range_of(agent)
        for uid, whose in forbidden.items():
            if low <= uid <= high:
                raise AccountError(
                    f"agents.{agent.name}.user: uid {uid} is {whose}, which cannot be an agent"
                )
        for other_low, other_high, other in ranges:
            if low <= other_high and other_low <= high:
                raise AccountError(
                    f"agents.{agent.name}.user: uid {max(low, other_low)} is agent {other}'s already"
                )
        ranges.append((low, high, agent.name))
    return ranges


def missing_accounts(policy: Policy) -> list[str]:
    """List the login names of the policy that this host does not have."""
    named = [policy.proxy.user, *(agent.user for agent in policy.agents.values())]
    return sorted({name for name in named if isinstance(name, str) and not _exists(name)})


@contextmanager
def as_owner_of(folder: Path) -> Iterator[None]:
    """Act, where we are root, with the rights of a folder's owner. Raises OSError.

    The audit log's folder is the proxy's: a link that it put there must not lead root's writing elsewhere, and what
    root makes there must be the proxy's.
    """
    owner = folder.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def _range_of(agent: Agent) -> tuple[int, int]:
    if isinstance(agent.user, tuple):
        return agent.user
    uid = _uid_of(agent.user or "", f"agents.{agent.name}.user")
    return uid, uid


def _uid_of(user: str | int, where: str) -> int:
    if isinstance(user, int):
        return user
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise AccountError(
            f"{where}: this host has no user {user}: make it with `useradd --system {user}`"
        ) from None


def _exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
