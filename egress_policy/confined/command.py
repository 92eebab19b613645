"""Runs one command in namespaces of its own, and ends with it.

The first process of a pid namespace is its init: it sets everything up, starts the command, takes in orphans, and its
end is that of all the others. It dies with us, however we end, and with it go its namespaces and the link.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from egress_policy.confined.errors import RunError
from egress_policy.confined.hiding import OWN, bound_sockets, hide
from egress_policy.confined.identity import Identity
from egress_policy.confined.link import Link, configure, join, probe, remove, wait_until_gone
from egress_policy.trust_files import TrustError, write_trust_files
from egress_policy.trust_kit import variables

FAILED = 125
"""The exit status that says that the command was not run, as of env(1), timeout(1) and others."""

_PASSED_ON = {
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM),
}
_WAITED_FOR = _PASSED_ON | {signal.SIGCHLD}
_INTERVAL = 1.0
# prctl(2)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Confinement:
    """What holds for the command; `link` None leaves it in the host's network, where its user is the agent.

    `authority` is the content of the CA's certificate, `scope` the value of a header field or None.
    """

    identity: Identity
    link: Link | None
    folder: Path
    environment: Mapping[str, str]
    authority: bytes
    scope: str | None


def run(argv: Sequence[str], confinement: Confinement, is_held: Callable[[], bool]) -> int:
    """Run a command to its end; return its exit status, or 128 and the number of the signal that ended it.

    Once `is_held`, asked every second, says that the kernel does not hold the agent any more, the command is killed.
    Raises RunError.
    """
    link = confinement.link
    sockets = bound_sockets()
    if link is not None:
        wait_until_gone(link)
    former = signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
    ready, says_ready = os.pipe()
    go, says_go = os.pipe()
    ours = os.open("/proc/self/ns/pid", os.O_RDONLY)
    os.unshare(os.CLONE_NEWPID)
    init = os.fork()
    if init == 0:
        os.close(ready)
        os.close(says_go)
        _be_init(argv, confinement, sockets, former, says_ready, go)
    # Our other children are not the command's.
    os.setns(ours, os.CLONE_NEWPID)
    for descriptor in (ours, says_ready, go):
        os.close(descriptor)
    try:
        if os.read(ready, 1) and link is not None:
            join(link, init)
        os.write(says_go, b"g")
        return _wait_for(init, is_held)
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(init, signal.SIGKILL)
            os.waitpid(init, 0)
        if link is not None:
            remove(link)
        _take_terminal_back()
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
        os.close(ready)
        os.close(says_go)


def _wait_for(init: int, is_held: Callable[[], bool]) -> int:
    while True:
        caught = signal.sigtimedwait(_WAITED_FOR, _INTERVAL)
        if caught is None:
            if not is_held():
                raise RunError(
                    "the kernel does not hold the agent to the policy any more: the command was killed"
                )
        elif caught.si_signo == signal.SIGCHLD:
            pid, status = os.waitpid(init, os.WNOHANG)
            if pid:
                return _exit_status(status)
        elif _is_sent(caught):
            os.kill(init, caught.si_signo)


def _is_sent(caught: signal.struct_siginfo) -> bool:
    """Tell whether a process sent the signal: what the terminal sends (SI_KERNEL) the command gets by itself."""
    return caught.si_code <= 0


def _exit_status(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _take_terminal_back() -> None:
    """Be in the terminal's foreground again: a shell that was the command made itself so."""
    if not sys.stdin.isatty():
        return
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    with contextlib.suppress(OSError):
        os.tcsetpgrp(sys.stdin.fileno(), os.getpgrp())
    signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _be_init(
    argv: Sequence[str],
    confinement: Confinement,
    sockets: Sequence[Path],
    former: set[int | signal.Signals],
    says_ready: int,
    go: int,
) -> NoReturn:
    status = FAILED
    try:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        network = 0 if confinement.link is None else os.CLONE_NEWNET
        os.unshare(os.CLONE_NEWNS | os.CLONE_NEWIPC | network)
        os.write(says_ready, b"r")
        # Nothing to read: who started us is gone, before we asked to die with it.
        if os.read(go, 1):
            status = _run_inside(argv, confinement, sockets, former)
    except (RunError, TrustError) as error:
        print(f"egress-policy: {error}", file=sys.stderr)  # noqa: T201 - what click.echo would do
    except subprocess.CalledProcessError as error:
        print(f"egress-policy: `{' '.join(error.cmd)}` failed", file=sys.stderr)  # noqa: T201 - the same
    except BaseException as error:  # noqa: BLE001 - a copy of the caller's stack must not go on in two processes
        print(f"egress-policy: the command could not be confined: {error}", file=sys.stderr)  # noqa: T201 - the same
    finally:
        os._exit(status)


def _run_inside(
    argv: Sequence[str], confinement: Confinement, sockets: Sequence[Path], former: set[int | signal.Signals]
) -> int:
    identity, link = confinement.identity, confinement.link
    umask = os.umask(0o022)
    if link is not None:
        configure(link)
        probe(link)
    nameserver = "127.0.0.1" if link is None else str(link.gateway)
    hide(nameserver, identity.uid, identity.gid, {confinement.folder, identity.home}, sockets)
    authority = OWN / "ca.pem"
    authority.write_bytes(confinement.authority)
    trust = write_trust_files(authority, OWN / "trust")
    os.chdir(confinement.folder)
    os.umask(umask)
    environment = {**confinement.environment, **variables(trust, confinement.scope)}
    command = os.posix_spawnp(
        "setpriv",
        [*_become(identity), *argv],
        environment,
        setsigmask=former,
        # Python ignores these, and what is ignored stays so in another program.
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
    )
    return _reap(command)


def _become(identity: Identity) -> list[str]:
    groups = ",".join(str(gid) for gid in identity.groups)
    return [
        "setpriv",
        f"--reuid={identity.uid}",
        f"--regid={identity.gid}",
        f"--groups={groups}" if groups else "--clear-groups",
        "--no-new-privs",
        "--inh-caps=-all",
        "--ambient-caps=-all",
        "--bounding-set=-all",
        "--",
    ]


def _reap(command: int) -> int:
    """Wait for the command's end, as the first process of a pid namespace, and pass signals on to it."""
    while True:
        caught = signal.sigwaitinfo(_WAITED_FOR)
        if caught.si_signo != signal.SIGCHLD:
            if _is_sent(caught):
                os.kill(command, caught.si_signo)
            continue
        # One signal may stand for several that ended.
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == command:
                return _exit_status(status)
            if pid == 0:
                break
