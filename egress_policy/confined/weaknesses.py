"""What a confined command could do that no namespace keeps it from: said before it starts."""

import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from egress_policy.confined.link import Link
from egress_policy.policy import Policy

_CODE = Path(__file__).resolve().parents[2]
_TIOCSTI = Path("/proc/sys/dev/tty/legacy_tiocsti")
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


def weaknesses(policy: Policy, link: Link | None, uid: int, policy_file: Path) -> Iterator[str]:
    """Say, one sentence each, what is weak on this host or will not work."""
    used = (_CODE, Path(sys.prefix), Path(sys.base_prefix), policy_file)
    culprits = dict.fromkeys(filter(None, (_writable(path.resolve(), uid) for path in used)))
    if culprits:
        yield (
            f"the command's user may change what root uses ({', '.join(map(str, culprits))}): "
            "keep clone, Python and policy root's own, in /opt and /etc"
        )
    if sys.stdin.isatty() and _read(_TIOCSTI) != "0":
        yield (
            "the command can type into this terminal, for the shell to read when it has ended (TIOCSTI): "
            "sysctl -w dev.tty.legacy_tiocsti=0, on Linux 6.2 or newer, or give it a terminal of its own"
        )
    if link is not None and _has_direct(policy) and _read(_FORWARDING) != "1":
        yield (
            "what is known-good with `inspection: none` will not be reached: this host forwards nothing; "
            "say `inspection: name`, or have it forward and masquerade"
        )


def _has_direct(policy: Policy) -> bool:
    return bool(policy.trust.direct_names() or policy.trust.direct_networks())


def _writable(path: Path, uid: int) -> Path | None:
    """Return the file or the folder above it by which a user may exchange a file: the owner, or who may write."""
    for place in (path, *path.parents):
        try:
            status = place.stat()
        except OSError:
            continue
        if status.st_uid == uid or (status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX):
            return place
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
