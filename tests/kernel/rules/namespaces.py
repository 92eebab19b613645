"""Network namespaces without names, and calls inside them under any uid.

One process, started before any thread and without pytest, holds the namespaces and forks one child for every
call. The namespaces, and every child, are gone with it, however the tests end. Children run the interpreter that
is already loaded: an agent's uid may not be able to execute the one in a virtual environment.
"""

import ctypes
import importlib
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from pathlib import Path
from types import GeneratorType
from typing import Any, Self

_PROJECT = Path(__file__).parents[3]
_PATIENCE = 30.0
_PR_SET_PDEATHSIG = 1


class Running:
    """A generator that runs in a namespace: each `next` is its next value."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._file = end.makefile("rb")
        self.pid: int = pickle.load(self._file)

    def next(self) -> Any:
        """Let it run to its next value, or to the end: what it returned. Raises what it raised."""
        self.resume()
        return self.result()

    def resume(self) -> None:
        """Let it run on, and do not wait for the next value: there may be none."""
        self._end.sendall(b".")

    def result(self) -> Any:
        """Return the value under way."""
        failed, value = pickle.load(self._file)
        if failed:
            raise value
        return value

    def close(self) -> None:
        """Kill it."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._file.read()
        self._file.close()
        self._end.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Namespaces:
    """The process that holds them. Each is known by its name, and nowhere else."""

    def __init__(self, *names: str, preload: str) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kernel.rules.namespaces", str(theirs.fileno()), preload, *names],
            cwd=_PROJECT,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self.pid = self._process.pid
        self.descriptors: dict[str, int] = pickle.loads(self._control.recv(1 << 16))

    def begin(self, name: str, uid: int, function: Callable[..., object], *arguments: object) -> Running:
        """Call a function in a namespace, as a uid; a generator runs to its first value. Does not wait."""
        ours, theirs = socket.socketpair()
        ours.settimeout(_PATIENCE)
        with theirs:
            socket.send_fds(self._control, [b"."], [theirs.fileno()])
        ours.sendall(pickle.dumps((name, uid, function, arguments)))
        return Running(ours)

    def call(self, name: str, uid: int, function: Callable[..., object], *arguments: object) -> Any:
        """Call a function in a namespace, as a uid, and return what it returns. Raises what it raises."""
        with self.begin(name, uid, function, *arguments) as running:
            return running.result()

    def close(self) -> None:
        """End every process and every namespace."""
        self._control.close()
        self._process.wait(_PATIENCE)


def enter(namespace: int, uid: int) -> None:
    """Move this process into a namespace and give up root."""
    os.setns(namespace, os.CLONE_NEWNET)
    if uid:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)


def run(*command: str, stdin: str | None = None) -> str:
    """Run a command where the caller is, and return what it prints. Raises RuntimeError with its complaint."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _child(end: socket.socket, namespaces: Mapping[str, int]) -> None:
    def answer(failed: bool, value: object) -> None:
        end.sendall(pickle.dumps((failed, value)))

    end.sendall(pickle.dumps(os.getpid()))
    with end.makefile("rb", buffering=0) as requests:
        name, uid, function, arguments = pickle.load(requests)
    try:
        enter(namespaces[name], uid)
        _die_with_parent()
        result = function(*arguments)
        if isinstance(result, GeneratorType):
            result = _step(result, end, answer)
        answer(False, result)
    except Exception as error:  # noqa: BLE001 - whatever it is, the test gets to see it
        answer(True, RuntimeError(f"{type(error).__name__}: {error}"))


def _step(
    generator: Generator[object, None, object], end: socket.socket, answer: Callable[[bool, object], None]
) -> object:
    try:
        while True:
            answer(False, next(generator))
            if not end.recv(1):
                os._exit(0)
    except StopIteration as stop:
        return stop.value


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _serve(control: socket.socket, names: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    descriptors = {}
    for name in names:
        os.unshare(os.CLONE_NEWNET)
        descriptors[name] = os.open("/proc/self/ns/net", os.O_RDONLY)
        os.setns(own, os.CLONE_NEWNET)
    control.send(pickle.dumps(descriptors))
    while True:
        request, ends, _, _ = socket.recv_fds(control, 1, 1)
        if not request:
            return
        if os.fork() == 0:
            control.close()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _child(socket.socket(fileno=ends[0]), descriptors)
            os._exit(0)
        os.close(ends[0])


if __name__ == "__main__":
    # Here once, instead of in every child.
    importlib.import_module(sys.argv[2])
    _serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[3:])
