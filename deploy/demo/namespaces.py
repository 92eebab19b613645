"""Network namespaces, a mount namespace, and processes in them: built, used, and all gone at the end."""

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""

_NAMES = Path("/run/netns")
_OURS = re.compile(r"ep(\d+)(?:\.\d+)?-")
_PATIENCE = 10.0
# What one process of the lab writes for another must not depend on the umask of whoever started it.
_UMASK = 0o022
_numbers = itertools.count(1)


class LabError(Exception):
    """The lab cannot be built, or a process did not do what it should: the message says which, and why."""


class Namespaces:
    """Named `ep<pid>-<name>`, or `ep<pid>.<n>-<name>` for the n-th set of one process.

    `folder` is a temporary folder that every user of the lab can read; commands run in it.
    """

    def __init__(self, closing: ExitStack) -> None:
        if os.geteuid() != 0:
            raise LabError("network namespaces need root: run this as root, for instance with sudo")
        missing = [
            tool for tool in ("ip", "nft", "nsenter", "setpriv", "unshare", "curl") if not shutil.which(tool)
        ]
        if missing:
            raise LabError(
                f"{', '.join(missing)} not found: install the packages iproute2, nftables, util-linux and curl"
            )
        remove_leftovers()
        number = next(_numbers)
        self._prefix = f"ep{os.getpid()}" if number == 1 else f"ep{os.getpid()}.{number}"
        self._mounts: int | None = None
        self._processes: list[subprocess.Popen[bytes]] = []
        self._closing = closing
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self._prefix}-"))
        closing.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.folder.chmod(0o755)
        (self.folder / "log").mkdir()
        closing.callback(self._reap)
        self.environment: dict[str, str] = {
            "HOME": "/tmp",
            "LANG": "C.UTF-8",
            "PATH": f"{sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": str(ROOT),
        }

    def name(self, short: str) -> str:
        """Return a namespace's name as ip(8) knows it."""
        return f"{self._prefix}-{short}"

    def add(self, short: str) -> None:
        """Make a network namespace. Everything in it is killed, and it goes, when the lab closes."""
        command(["ip", "netns", "add", self.name(short)])
        self._closing.callback(_remove, self.name(short), self._processes)
        # Duplicate address detection would keep an IPv6 address unusable for a second.
        for which in ("all", "default"):
            self.sysctl(short, f"net/ipv6/conf/{which}/accept_dad", "0")
        self.ip(short, "link set lo up")

    def sysctl(self, short: str, path: str, value: str) -> None:
        """Set a sysctl of one namespace (/proc/sys/net is that of whoever opens it)."""
        write = ["sh", "-c", 'echo "$1" > "$2"', "sh", value, f"/proc/sys/{path}"]
        command(["nsenter", f"--net={_NAMES / self.name(short)}", *write])

    def ip(self, short: str, *lines: str) -> None:
        """Run ip commands in a namespace, written as `ip -batch` reads them."""
        batch = "".join(f"{line}\n" for line in lines)
        command(["ip", "-n", self.name(short), "-batch", "-"], stdin=batch)

    def mount(self, needed: Sequence[Path], covers: Mapping[str, str]) -> None:
        """Make the mount namespace: `needed` is reachable in it for all users, `covers` are files' new contents."""
        arguments = [str(path) for path in (*needed, self.folder)]
        for target, content in covers.items():
            source = self.folder / Path(target).name
            source.write_text(content)
            source.chmod(0o644)
            arguments += ["--over", target, str(source)]
        maker = subprocess.Popen(
            [
                "unshare",
                "--mount",
                "--propagation",
                "private",
                sys.executable,
                "-m",
                "deploy.demo.mounts",
                *arguments,
            ],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            umask=_UMASK,
        )
        with maker:
            if maker.stdout is None or maker.stdout.readline() != b"ready\n":
                _, errors = maker.communicate()
                raise LabError(f"the mount namespace cannot be made:\n{errors.decode().strip()}")
            # The open descriptor keeps the namespace when the process that made it is gone.
            self._mounts = os.open(f"/proc/{maker.pid}/ns/mnt", os.O_RDONLY)
            self._closing.callback(os.close, self._mounts)
            maker.communicate()

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        uid: int = 0,
        ns: str = "host",
        caps: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        stdin: str = "",
        timeout: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; `timeout` in seconds. `caps` are as in `start`.

        Raises subprocess.TimeoutExpired; a command that fails is returned like any other.
        """
        return subprocess.run(
            self._command(argv, uid, ns, caps),
            env=self.environment | dict(env or {}),
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            check=False,
            start_new_session=True,
            umask=_UMASK,
        )

    def start(
        self,
        argv: Sequence[str | Path],
        *,
        log: str,
        uid: int = 0,
        ns: str = "host",
        caps: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a process; what it prints goes to `log`. It is killed when the lab closes, if it still runs.

        A uid other than 0 has the capabilities in `caps` (as setpriv(1) names them) and no other, and gains none.
        The process's pid is that of the command itself.
        """
        with (self.folder / "log" / log).open("wb") as output:
            process = subprocess.Popen(
                self._command(argv, uid, ns, caps),
                env=self.environment | dict(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us; we end the others
                umask=_UMASK,
            )
        self._processes.append(process)
        return process

    def output(self, log: str) -> str:
        """Return what a started process has printed so far."""
        return (self.folder / "log" / log).read_text(errors="replace")

    def has_entered(self, process: subprocess.Popen[bytes], ns: str) -> bool:
        """Tell whether a started process is in its network namespace yet."""
        try:
            inside = Path(f"/proc/{process.pid}/ns/net").stat().st_ino
        except FileNotFoundError:
            return False
        return inside == (_NAMES / self.name(ns)).stat().st_ino

    def _reap(self) -> None:
        """Wait for the processes that were killed with their namespaces."""
        for process in self._processes:
            process.wait(_PATIENCE)

    def _command(self, argv: Sequence[str | Path], uid: int, ns: str, caps: Sequence[str]) -> list[str]:
        enter = ["nsenter", f"--net={_NAMES / self.name(ns)}"]
        if self._mounts is not None:
            enter.append(f"--mount=/proc/{os.getpid()}/fd/{self._mounts}")
        become: list[str] = []
        if uid or caps:
            held = ",".join(("-all", *(f"+{cap}" for cap in caps)))
            become = [
                "setpriv",
                f"--reuid={uid}",
                f"--regid={uid}",
                "--clear-groups",
                "--no-new-privs",
                f"--inh-caps={held}",
                f"--ambient-caps={held}",
                f"--bounding-set={held}",
            ]
        # Entering a mount namespace leads to its root folder.
        return [*enter, "--", *become, "env", f"--chdir={self.folder}", *map(str, argv)]


def command(argv: Sequence[str], stdin: str = "") -> str:
    """Run a command of the set-up and return what it printed. Raises LabError."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"`{' '.join(argv)}` failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def remove_leftovers() -> None:
    """Remove what labs left behind whose process was killed and is gone."""
    for found in _NAMES.glob("ep*-*"):
        if _is_leftover(found.name):
            _remove(found.name, [])
    for folder in Path(tempfile.gettempdir()).glob("ep*-*"):
        if _is_leftover(folder.name) and folder.stat(follow_symlinks=False).st_uid == 0:
            shutil.rmtree(folder, ignore_errors=True)


def _is_leftover(name: str) -> bool:
    ours = _OURS.match(name)
    return ours is not None and not Path("/proc", ours[1]).exists()


def _remove(namespace: str, started: Sequence[subprocess.Popen[bytes]]) -> None:
    """Kill whatever runs in a namespace of ours, then remove it."""
    until = time.monotonic() + _PATIENCE
    while pids := command(["ip", "netns", "pids", namespace]).split():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        for process in started:
            process.poll()  # those of ours must be waited for, or they stay as zombies
        if time.monotonic() > until:
            raise LabError(f"processes {', '.join(pids)} in the namespace {namespace} cannot be killed")
        time.sleep(0.02)
    command(["ip", "netns", "delete", namespace])
