"""By what an agent could have another user act for it: programs with more rights than their caller, engines, namespaces.

The rules know an agent by its uid. `no_new_privs` (`egress-policy run`, NoNewPrivileges=) takes the programs' rights away.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from stat import S_IFMT, S_IFREG, S_ISUID, S_IXGRP, S_IXOTH

from egress_policy.cli.finding import Finding, Result
from egress_policy.cli.permissions import Holder

_FOLDERS = tuple(
    Path(folder) for folder in ("/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/bin", "/sbin")
)
_LIBRARIES = (Path("/usr/lib"), Path("/usr/libexec"))
# Known to do one thing of their own, without the network, or only for who has a password: groups, subordinate uids and
# passwords are looked at elsewhere, or are the host's.
_KNOWN = {
    *(
        "chage",
        "chfn",
        "chsh",
        "expiry",
        "gpasswd",
        "newgrp",
        "passwd",
        "sg",
        "su",
        "sudo",
        "sudoedit",
        "doas",
        "pkexec",
    ),
    *(
        "mount",
        "umount",
        "fusermount",
        "fusermount3",
        "ntfs-3g",
        "newuidmap",
        "newgidmap",
        "unix_chkpwd",
        "at",
        "crontab",
    ),
    *("dbus-daemon-launch-helper", "polkit-agent-helper-1", "ssh-keysign", "Xorg.wrap", "chrome-sandbox"),
}
# By a capability they send ICMP or ARP from a socket that is the agent's own: the rules see whose it is.
_OWN_SOCKETS = {"arping", "clockdiff", "fping", "mtr-packet", "ping", "ping6", "tracepath", "traceroute"}
# linux/capability.h: numbers of those with which packets are another's, or pass netfilter by (AF_PACKET).
_CAPABILITIES = {
    1: "dac_override", 2: "dac_read_search", 3: "fowner", 7: "setuid", 8: "setpcap", 12: "net_admin", 13: "net_raw",
    16: "sys_module", 17: "sys_rawio", 19: "sys_ptrace", 21: "sys_admin", 31: "setfcap", 39: "bpf",
}  # fmt: skip
_FILE_CAPABILITIES = struct.Struct("<III")
_ENGINES = tuple(
    Path(socket)
    for socket in (
        *(
            "/run/docker.sock",
            "/run/podman/podman.sock",
            "/run/containerd/containerd.sock",
            "/run/crio/crio.sock",
        ),
        *("/run/libvirt/libvirt-sock", "/run/incus/unix.socket", "/var/lib/incus/unix.socket"),
        "/var/snap/lxd/common/lxd/unix.socket",
    )
)
_USER_NAMESPACES = Path("/proc/sys/user/max_user_namespaces")
_RESTRICTIONS = {
    Path("/proc/sys/kernel/unprivileged_userns_clone"): "0",
    Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"): "1",
}


def helpers(agents: Sequence[Holder]) -> Iterator[Finding]:
    """Check all of it for these agents."""
    found = [*_programs(agents), *_engines(agents), *_namespaces()]
    yield from found or [
        Finding("helpers", Result.OK, "no program or service acts as another user for agents")
    ]


def _programs(agents: Sequence[Holder]) -> Iterator[Finding]:
    groups = {group for agent in agents for group in agent.groups}
    for program in _all_programs():
        status = program.stat()
        if not (status.st_mode & S_IXOTH or (status.st_mode & S_IXGRP and status.st_gid in groups)):
            continue
        if os.statvfs(program).f_flag & os.ST_NOSUID:
            continue
        if status.st_mode & S_ISUID and program.name not in _KNOWN:
            yield Finding(
                "helpers",
                Result.WARNING,
                f"{program} is setuid: what it sends is its owner's, not the agent's, and is not held",
                f"chmod u-s {program}, or give agents no_new_privs",
            )
        powers = sorted(_capabilities(program) - ({"net_raw"} if program.name in _OWN_SOCKETS else set()))
        if powers:
            yield Finding(
                "helpers",
                Result.WARNING,
                f"{program} has the capabilities {', '.join(powers)}: with them packets pass the rules by",
                f"setcap -r {program}, or give agents no_new_privs",
            )


def _all_programs() -> Iterator[Path]:
    seen = set()
    # Helpers lie a folder deep: /usr/lib/openssh/ssh-keysign.
    folders = (*_FOLDERS, *(folder for place in _LIBRARIES for folder in (place, *place.glob("*/"))))
    for folder in folders:
        try:
            entries = list(folder.resolve().iterdir())
        except OSError:
            continue
        for entry in entries:
            try:
                status = entry.lstat()
            except FileNotFoundError:
                continue
            if (
                S_IFMT(status.st_mode) == S_IFREG
                and status.st_mode & (S_IXOTH | S_IXGRP)
                and entry not in seen
            ):
                seen.add(entry)
                yield entry


def _capabilities(program: Path) -> set[str]:
    """Read what a file gives its process (capabilities(7), `struct vfs_cap_data`)."""
    try:
        value = os.getxattr(program, "security.capability")
    except OSError:
        return set()
    _, low, _ = _FILE_CAPABILITIES.unpack_from(value)
    high = int.from_bytes(value[12:16], "little")
    permitted = high << 32 | low
    return {name for number, name in _CAPABILITIES.items() if permitted >> number & 1}


def _engines(agents: Sequence[Holder]) -> Iterator[Finding]:
    for socket in _ENGINES:
        try:
            status = socket.stat()
        except OSError:
            continue
        for agent in agents:
            if agent.may_write(status):
                yield Finding(
                    "helpers",
                    Result.WARNING,
                    f"{agent.name} may ask {socket}: it would run anything as root, on this host's network",
                    f"chown root:root {socket}, or take the agent out of its group",
                )


def _namespaces() -> Iterator[Finding]:
    if _setting(_USER_NAMESPACES) in {"", "0"} or any(
        _setting(path) == value for path, value in _RESTRICTIONS.items()
    ):
        return
    yield Finding(
        "helpers",
        Result.WARNING,
        "agents may make user namespaces: what they send there stays held, but they reach kernel code as root of one",
        "sysctl -w user.max_user_namespaces=0, where nothing else needs them",
    )


def _setting(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
