"""What a command does not get to see: the sockets of this host by which others would act for it, unconfined.

A process has its user's rights on every Unix socket that has a path: the user's systemd and D-Bus (`systemd-run
--user`), Docker, an ssh agent, tmux, a resolver. Network namespaces do not hold those (unix(7)); a mount namespace does.
What is mounted here cannot be unmounted in a user namespace of the command's own (mount_namespaces(7): locked).
"""

import os
import stat
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from egress_policy.confined.errors import RunError
from egress_policy.exposure import mount

OWN = Path("/run/egress-policy")
"""The folder, in the command's own /run, of what the command is given."""

_COVERED = {"/run": "0755", "/tmp": "1777", "/dev/shm": "1777"}  # noqa: S108 - empty ones, of the command's own
_RESOLV_CONF = Path("/etc/resolv.conf")
_SOCKETS = Path("/proc/net/unix")


def bound_sockets() -> list[Path]:
    """List the sockets with a path in the calling process's network namespace.

    Of one that was bound by a relative path the kernel does not say below which folder: it may be any that a process is in.
    """
    rows = (
        line.split(maxsplit=7)[7:] for line in _SOCKETS.read_text(errors="surrogateescape").splitlines()[1:]
    )
    paths = {Path(row[0]) for row in rows if row}
    folders = _working_folders()
    below = {folder / path for path in paths if not path.is_absolute() for folder in folders}
    return sorted(
        {path for path in paths if path.is_absolute()} | {path for path in below if _is_socket(path)}
    )


def _working_folders() -> set[Path]:
    folders = set()
    for process in Path("/proc").glob("[0-9]*"):
        # It has ended in the meantime.
        with suppress(OSError):
            folders.add((process / "cwd").readlink())
    return folders


def hide(nameserver: str, uid: int, gid: int, kept: Iterable[Path], sockets: Iterable[Path]) -> None:
    """Cover what leads around the policy, in a mount namespace of the calling process's own.

    /run, /tmp and /dev/shm are empty ones of the command's own, but for the folders `kept`; so is /proc, which shows
    the process's own pid namespace. Of `sockets` those elsewhere are covered one by one. Raises RunError.
    """
    mount("--make-rprivate", "/")
    with ExitStack() as opened:
        folders = {path: _open(path, opened) for path in kept if _is_covered(path)}
        for folder, mode in _COVERED.items():
            if Path(folder).is_dir():
                mount("-t", "tmpfs", "-o", f"mode={mode},nosuid,nodev", "egress-policy", folder)
        for path, descriptor in folders.items():
            path.mkdir(parents=True, exist_ok=True)
            mount("--rbind", f"/proc/self/fd/{descriptor}", str(path), descriptors=(descriptor,))
    mount("-t", "proc", "-o", "nosuid,nodev,noexec", "proc", "/proc")
    OWN.mkdir(mode=0o755)
    runtime = Path(f"/run/user/{uid}")
    runtime.mkdir(parents=True)
    os.chown(runtime, uid, gid)
    runtime.chmod(0o700)
    _give_name_server(nameserver)
    nothing = OWN / "nothing"
    nothing.touch(mode=0o000)
    for path in sockets:
        if _is_socket(path):
            mount("--bind", str(nothing), str(path))


def _give_name_server(nameserver: str) -> None:
    content = f"nameserver {nameserver}\n"
    try:
        place = _RESOLV_CONF.resolve()
        if _is_covered(place):
            # systemd's and resolvconf's are links into /run.
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(content)
            return
        own = OWN / "resolv.conf"
        own.write_text(content)
        own.chmod(0o644)
        mount("--bind", str(own), str(place.resolve(strict=True)))
    except OSError as error:
        raise RunError(f"{_RESOLV_CONF} cannot be replaced for the command: {error.strerror}") from None


def _is_covered(path: Path) -> bool:
    return any(str(parent) in _COVERED for parent in path.parents)


def _open(path: Path, opened: ExitStack) -> int:
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY)
    opened.callback(os.close, descriptor)
    return descriptor


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.lstat().st_mode)
    except OSError:
        return False
