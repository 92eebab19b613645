"""What no rule of the policy can hold, and only this host's settings and accounts can."""

import grp
import os
import pwd
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from egress_policy.accounts import PRIVILEGED_GROUPS
from egress_policy.cli.finding import Finding, Result
from egress_policy.policy import Policy

type AgentUids = Sequence[tuple[int, int, str]]
"""Ranges of uids, each with its agent's name."""

_SETTINGS = Path("/proc/sys/net")
_LINKS = Path("/sys/class/net")
_SUBUID = Path("/etc/subuid")
_NAME_SERVICES = {
    "systemd-resolved": Path("/run/systemd/resolve/io.systemd.Resolve"),
    "nscd": Path("/run/nscd/socket"),
    "avahi-daemon": Path("/run/avahi-daemon/socket"),
}
_TCP_FASTOPEN_SERVER = 0x2
_ALWAYS = 2


def syn_cookies() -> Finding:
    """The ruleset refuses what the kernel answers with a SYN cookie in an agent's stead, and in the proxy's."""
    check = "SYN cookies"
    if _setting(_SETTINGS / "ipv4/tcp_syncookies") == _ALWAYS:
        return Finding(
            check,
            Result.FAILED,
            "net.ipv4.tcp_syncookies is 2: every answer is one without a socket, and agents cannot reach the proxy",
            "sysctl -w net.ipv4.tcp_syncookies=1",
        )
    return Finding(check, Result.OK, "none, unless a queue is full")


def fast_open() -> Finding:
    """A server's answer to TCP Fast Open (RFC 7413) leaves before anybody owns the connection."""
    check = "TCP Fast Open"
    value = _setting(_SETTINGS / "ipv4/tcp_fastopen")
    if value & _TCP_FASTOPEN_SERVER:
        return Finding(
            check,
            Result.WARNING,
            "it is on for servers: an agent that listens could answer a peer outside",
            f"sysctl -w net.ipv4.tcp_fastopen={value & 1}",
        )
    return Finding(check, Result.OK, "off for servers")


def links(policy: Policy) -> Iterator[Finding]:
    """Check the links that containers are known by."""
    for link in sorted({agent.interface for agent in policy.agents.values() if agent.interface}):
        named = {agent.port for agent in policy.agents.values() if agent.interface == link and agent.port}
        yield _link(link, named)
        for port in sorted(named):
            yield _port(port, link)


def _port(port: str, bridge: str) -> Finding:
    check = f"port {port}"
    if (_LINKS / bridge / "brif" / port).exists():
        return Finding(check, Result.OK, f"a port of {bridge}")
    return Finding(
        check,
        Result.WARNING,
        f"it is no port of {bridge} now: what comes from it is refused",
        f"ip link set {port} master {bridge}",
    )


def _link(link: str, named: AbstractSet[str]) -> Finding:
    check, place = f"link {link}", _LINKS / link
    bridge = place / "master/bridge"
    if not place.exists():
        return Finding(
            check,
            Result.WARNING,
            "there is no such link now",
            "it comes with its container, or with `egress-policy run`",
        )
    if bridge.exists():
        name = (place / "master").resolve().name
        return Finding(
            check,
            Result.FAILED,
            f"it is a port of the bridge {name}: its packets show {name}, and the agent is not held",
            f"give the agent `interface: {name}` and `port: {link}`, or take {link} out of the bridge",
        )
    ports = sorted(port.name for port in place.glob("brif/*") if port.name not in named)
    if len(ports) > 1 and not _setting(_SETTINGS / "bridge/bridge-nf-call-iptables"):
        return Finding(
            check,
            Result.WARNING,
            f"{', '.join(ports)} reach each other on this bridge: no rule sees what it passes between them",
            "give each container a link of its own, or name its `port`, or: modprobe br_netfilter; "
            "sysctl -w net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1",
        )
    return Finding(check, Result.OK, "its packets show it")


def privileged_groups(agents: AgentUids) -> Iterator[Finding]:
    """Find agents' users that a group makes as good as root."""
    for low, high, agent in agents:
        for account in (entry for entry in pwd.getpwall() if low <= entry.pw_uid <= high):
            groups = set(_groups_of(account))
            for group in sorted(groups & PRIVILEGED_GROUPS):
                yield Finding(
                    f"agent {agent}",
                    Result.WARNING,
                    f"{account.pw_name} is in the group {group}: it could act as another user, past the policy",
                    f"gpasswd -d {account.pw_name} {group}",
                )


def _groups_of(account: pwd.struct_passwd) -> Iterator[str]:
    for gid in os.getgrouplist(account.pw_name, account.pw_gid):
        try:
            yield grp.getgrgid(gid).gr_name
        except KeyError:
            continue


def subordinate_uids(agents: AgentUids) -> Iterator[Finding]:
    """Find uids that an agent may take (newuidmap(1), subuid(5)), and that the policy does not name as agents."""
    try:
        lines = _SUBUID.read_text().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        owner, _, given = line.partition(":")
        start, _, count = given.partition(":")
        agent = _agent_of(owner, agents)
        if agent is None or not (start.isdecimal() and count.isdecimal()):
            continue
        low, high = int(start), int(start) + int(count) - 1
        if not _covered(low, high, agents):
            yield Finding(
                f"agent {agent}",
                Result.WARNING,
                f"{_SUBUID} lets {owner} be uids {low}-{high}, which the policy does not name: they are not held",
                f"take the line out of {_SUBUID}, or add an agent with `user: {low}-{high}`",
            )


def _agent_of(owner: str, agents: AgentUids) -> str | None:
    try:
        uid = int(owner) if owner.isdecimal() else pwd.getpwnam(owner).pw_uid
    except KeyError:
        return None
    return next((agent for low, high, agent in agents if low <= uid <= high), None)


def _covered(low: int, high: int, agents: AgentUids) -> bool:
    for first, last, _ in sorted(agents):
        if first <= low <= last:
            low = last + 1
    return low > high


def name_services() -> Iterator[Finding]:
    """Find who would look names up for an agent, asked over a Unix socket: no rule for port 53 sees that."""
    services = [name for name, place in _NAME_SERVICES.items() if place.exists()]
    for name in services:
        yield Finding(
            "name service",
            Result.WARNING,
            f"agents can have {name} look up any name, past the policy's DNS ({_NAME_SERVICES[name]})",
            f"systemctl disable --now {name}, and name the servers in /etc/resolv.conf",
        )
    if not services:
        yield Finding("name service", Result.OK, "agents' look-ups go over port 53")


def _setting(path: Path) -> int:
    """Read a sysctl; one that this kernel does not have is 0."""
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return 0
