"""What systemd hears of the proxy."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from egress_policy.service_manager import keep_telling


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(10)
        yield listening


@asynccontextmanager
async def told(environment: dict[str, str]) -> AsyncIterator[None]:
    task = asyncio.create_task(keep_telling(environment))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def heard(manager: socket.socket) -> bytes:
    """In a thread, so that the loop can turn."""
    return await asyncio.to_thread(manager.recv, 100)


async def test_beginning_and_end(manager: socket.socket) -> None:
    async with told({"NOTIFY_SOCKET": manager.getsockname()}):
        assert await heard(manager) == b"READY=1"
    assert await heard(manager) == b"STOPPING=1"


async def test_an_abstract_name() -> None:
    name = f"egress-policy-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as abstract:
        abstract.bind(f"\0{name}")
        abstract.settimeout(10)
        async with told({"NOTIFY_SOCKET": f"@{name}"}):
            assert await heard(abstract) == b"READY=1"


async def test_without_a_manager_nobody_is_told() -> None:
    async with told({}):
        await asyncio.sleep(0)


async def test_a_manager_that_cannot_be_told_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await keep_telling({"NOTIFY_SOCKET": str(tmp_path / "none")})


async def test_the_watchdog_hears_of_a_loop_that_turns_and_of_no_other(manager: socket.socket) -> None:
    async with told({"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "20000"}):
        assert [await heard(manager) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
        manager.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                manager.recv(100)
        # Nothing turns the loop here, for however long.
        manager.settimeout(0.2)
        with pytest.raises(TimeoutError):
            manager.recv(100)


@pytest.mark.parametrize(
    "watchdog", [{}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "x"}]
)
async def test_no_watchdog_or_another_processes(manager: socket.socket, watchdog: dict[str, str]) -> None:
    async with told({"NOTIFY_SOCKET": manager.getsockname(), **watchdog}):
        assert await heard(manager) == b"READY=1"
        await asyncio.sleep(0.05)
    assert await heard(manager) == b"STOPPING=1"
