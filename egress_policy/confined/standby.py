"""Has ruleset and proxy in force for as long as a confined command needs them, where nobody else saw to it.

    python -m egress_policy.confined.standby POLICY AUDIT CONTROL CONFDIR

is a process beside the commands. Each command holds a shared lock on a file; when the last one has ended, however it
ended, the exclusive lock is to be had, and what was put in force is taken away again.
"""

import fcntl
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from egress_policy.accounts import AccountError, proxy_uid
from egress_policy.confined.errors import RunError
from egress_policy.exposure import expose, mount
from egress_policy.firewall import FirewallError, is_loaded, remove_tables
from egress_policy.kernel_policy import put_in_force
from egress_policy.pauses import PausesError, pauses_file, read_pauses
from egress_policy.policy import Policy
from egress_policy.policy_file import load_policy
from egress_policy.policy_source import PolicyFileError
from egress_policy.resolver import ResolutionFailedError, system_nameservers

STATE = Path("/run/egress-policy-run")
"""Root's own folder: the locks, and what a proxy of ours needs while it runs."""

_ROOT = Path(__file__).resolve().parents[2]
_ADDON = _ROOT / "addons/scope.py"
_USERS, _TURN, _KEEPER, _LOADED = STATE / "users", STATE / "turn", STATE / "keeper", STATE / "loaded"
_LOG = STATE / "proxy.log"
_START_PATIENCE = 60.0
_STOP_PATIENCE = 10.0
_INTERVAL = 0.1
_LISTEN = "0A"
_READY = "ready"
_IN_FORCE = "egress-policy: in force"


@dataclass(frozen=True, slots=True)
class Places:
    """The files that proxy and commands share."""

    policy: Path
    audit: Path
    control: Path
    confdir: Path


def places(policy: Path, audit: Path, control: Path, confdir: Path) -> Places:
    """Return the places, with a CA of our own where none is installed: it goes with the last command."""
    own = STATE / "ca"
    return Places(
        policy.absolute(), audit.absolute(), control.absolute(), confdir if confdir.is_dir() else own
    )


@contextmanager
def proxy_in_force(policy: Policy, where: Places, say: Callable[[str], None]) -> Iterator[bool]:
    """Keep ruleset and proxy in force; yields whether it took to start a proxy. Raises RunError and AccountError.

    At the end, unless others go on, what was started is gone.
    """
    STATE.mkdir(mode=0o755, exist_ok=True)
    with _USERS.open("w") as users, _TURN.open("w") as turn:
        # Waits while what a former command needed is taken away.
        fcntl.flock(users, fcntl.LOCK_SH)
        fcntl.flock(turn, fcntl.LOCK_EX)
        is_ours = not listens(policy)
        if is_ours:
            say("no proxy runs: starting one")
            _start(where)
        fcntl.flock(turn, fcntl.LOCK_UN)
        try:
            yield is_ours
        finally:
            fcntl.flock(users, fcntl.LOCK_UN)
            _wait_until_gone(users)


def keep_ruleset() -> None:
    """Have the ruleset stay when the last command ends: somebody else has put it in force."""
    _LOADED.unlink(missing_ok=True)


def _wait_until_gone(users: TextIO) -> None:
    """Wait while the last command's ruleset and proxy are taken away; not while others need them."""
    until = time.monotonic() + 2 * _STOP_PATIENCE
    while time.monotonic() < until and _has_keeper() and not _is_shared(users):
        time.sleep(_INTERVAL / 4)


def _has_keeper() -> bool:
    with _KEEPER.open("a") as keeper:
        return not _take(keeper, fcntl.LOCK_EX)


def _is_shared(users: TextIO) -> bool:
    """Tell whether others hold the lock as we did: not to be had alone, and to be had together."""
    is_shared = not _take(users, fcntl.LOCK_EX) and _take(users, fcntl.LOCK_SH)
    fcntl.flock(users, fcntl.LOCK_UN)
    return is_shared


def _take(file: TextIO, how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def listens(policy: Policy) -> bool:
    """Tell whether the proxy's user listens on the proxy's ports of this network namespace. Raises AccountError.

    On both: mitmproxy opens its default port for a moment before it has loaded the addon.
    """
    uid = proxy_uid(policy)
    return {policy.proxy.port, policy.proxy.dns_port} <= {
        port for table in ("tcp", "tcp6") for port, owner in _listening(table) if owner == uid
    }


def _listening(table: str) -> Iterator[tuple[int, int]]:
    """Yield the ports that are listened on, each with its owner's uid (proc_net_tcp in the kernel's documentation)."""
    try:
        lines = Path("/proc/self/net", table).read_text().splitlines()[1:]
    except FileNotFoundError:
        return
    for line in lines:
        _, local, _, state, _, _, _, owner, *_ = line.split()
        if state == _LISTEN:
            yield int(local.rpartition(":")[2], 16), int(owner)


def _start(where: Places) -> None:
    if not _ADDON.exists():
        raise RunError(
            f"no proxy runs, and {_ADDON} is not there to start one: run this from a clone of the project"
        )
    with _LOG.open("w") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-m", __name__, where.policy, where.audit, where.control, where.confdir],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd="/",
            start_new_session=True,  # Ctrl-C is for the command
        )
    assert keeper.stdout is not None  # noqa: S101 - a pipe was asked for
    with keeper.stdout as told:
        said = told.readline().strip()
        if said != _READY:
            why = "\n".join(filter(None, (said, told.read().strip()))) or _LOG.read_text().strip()
            raise RunError(f"the proxy could not be started: {why}")


def _keep(where: Places) -> None:
    """Put ruleset and proxy in force, say so on standard output, and take them away when nobody needs them."""
    policy = load_policy(where.policy)
    uid = proxy_uid(policy)
    with _KEEPER.open("a") as keeper, _USERS.open() as users, ExitStack() as closing:
        fcntl.flock(keeper, fcntl.LOCK_EX)
        if _LOADED.exists() or not is_loaded():
            # It may be there from a process like this one that was killed.
            _LOADED.touch()
            closing.callback(_remove_ruleset)
            nameservers = policy.resolver.nameservers or system_nameservers()
            put_in_force(policy, nameservers, read_pauses(pauses_file(str(where.audit))))
        _make_folder(where.audit.parent, uid, 0o750)
        if _make_folder(where.control.parent, uid, 0o755):
            closing.callback(shutil.rmtree, where.control.parent)
        if where.confdir == STATE / "ca":
            _make_folder(where.confdir, uid, 0o700)
            closing.callback(shutil.rmtree, where.confdir)
        proxy = _start_proxy(where, uid)
        closing.callback(_stop, proxy)
        until = time.monotonic() + _START_PATIENCE
        # Not before: some of its ports may be open, and another taken.
        while _IN_FORCE not in _LOG.read_text():
            if proxy.poll() is not None or time.monotonic() > until:
                raise RunError(_LOG.read_text().strip() or "it said nothing")
            time.sleep(_INTERVAL)
        _say(_READY)
        # Blocks until the last command has let go. That the proxy ended sooner opens nothing.
        fcntl.flock(users, fcntl.LOCK_EX)
        closing.close()


def _remove_ruleset() -> None:
    if _LOADED.exists():
        remove_tables()
        _LOADED.unlink()


def _start_proxy(where: Places, uid: int) -> subprocess.Popen[bytes]:
    """Start mitmdump as the proxy's user, who may not reach a clone or an interpreter below somebody's home."""
    os.unshare(os.CLONE_NEWNS)
    mount("--make-rprivate", "/")
    needed = {_ROOT, Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parent.parent}
    expose(needed | {path.resolve() for path in needed})
    settings = {
        "confdir": where.confdir,
        "scope_policy": where.policy,
        "scope_audit": where.audit,
        "scope_control": where.control,
    }
    sets = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    held = "-all,+net_admin"
    return subprocess.Popen(
        [
            "setpriv",
            f"--reuid={uid}",
            f"--regid={_group_of(uid)}",
            "--clear-groups",
            "--no-new-privs",
            f"--inh-caps={held}",
            f"--ambient-caps={held}",
            f"--bounding-set={held}",
            "--pdeathsig=KILL",
            "--",
            *(sys.executable, str(Path(sys.prefix, "bin", "mitmdump")), "-s", str(_ADDON), *sets),
        ],
        env={
            "HOME": "/",
            "LANG": "C.UTF-8",
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": str(_ROOT),
        },
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        umask=0o022,
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _make_folder(path: Path, uid: int, mode: int) -> bool:
    """Make a folder for the proxy, unless it is there."""
    if path.exists():
        return False
    path.mkdir(mode=mode, parents=True)
    os.chown(path, uid, _group_of(uid))
    return True


def _group_of(uid: int) -> int:
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return uid


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
    # Whoever started us reads no further, and our end must not depend on it.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


def main() -> None:
    """Keep them in force, for the commands that hold the lock."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(1))
    try:
        _keep(Places(*map(Path, sys.argv[1:])))
    except PolicyFileError as error:
        _fail(f"the policy has errors:\n{error}")
    except (AccountError, FirewallError, PausesError, ResolutionFailedError, RunError) as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'the system'}: {error.strerror}")


def _fail(why: str) -> None:
    _say(why)
    sys.exit(1)


if __name__ == "__main__":
    main()
