"""What systemd hears of the proxy."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from egress_policy.service_manager import READY, keep_alive, notify


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(10)
        yield listening


def test_a_path_and_an_abstract_name_are_told(manager: socket.socket) -> None:
    notify(READY, {"NOTIFY_SOCKET": manager.getsockname()})
    assert manager.recv(100) == b"READY=1"
    name = f"egress-policy-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as abstract:
        abstract.bind(f"\0{name}")
        abstract.settimeout(10)
        notify(READY, {"NOTIFY_SOCKET": f"@{name}"})
        assert abstract.recv(100) == b"READY=1"


def test_without_a_manager_nobody_is_told() -> None:
    notify(READY, {})


def test_a_manager_that_cannot_be_told_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        notify(READY, {"NOTIFY_SOCKET": str(tmp_path / "none")})


async def test_the_watchdog_hears_of_a_loop_that_turns_and_of_no_other(manager: socket.socket) -> None:
    environment = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "20000"}
    task = asyncio.create_task(keep_alive(environment))
    # In a thread, so that the loop can turn.
    assert [await asyncio.to_thread(manager.recv, 100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
    manager.setblocking(False)
    while True:
        try:
            manager.recv(100)
        except BlockingIOError:
            break
    # Nothing turns the loop here, for however long.
    manager.settimeout(0.2)
    with pytest.raises(TimeoutError):
        manager.recv(100)
    task.cancel()


@pytest.mark.parametrize(
    "environment", [{}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "x"}]
)
async def test_no_watchdog_or_another_processes(manager: socket.socket, environment: dict[str, str]) -> None:
    await keep_alive({"NOTIFY_SOCKET": manager.getsockname(), **environment})
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(100)
