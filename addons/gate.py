"""Back-pressure on a client: while somebody holds its gate closed, no more of what it sends is read."""

import asyncio


class Gate:
    """Open unless somebody holds it closed; holders are known by number."""

    def __init__(self) -> None:
        self._holders: set[int] = set()
        self._is_open = asyncio.Event()
        self._is_open.set()

    def close(self, holder: int) -> None:
        """Hold it closed."""
        self._holders.add(holder)
        self._is_open.clear()

    def open(self, holder: int) -> None:
        """Hold it no longer."""
        if self._holders:
            self._holders.discard(holder)
            if not self._holders:
                self._is_open.set()

    async def passed(self) -> None:
        """Wait until it is open."""
        await self._is_open.wait()


class GatedReader:
    """A stream's reader behind a gate."""

    def __init__(self, reader: asyncio.StreamReader, gate: Gate) -> None:
        self._reader = reader
        self._gate = gate

    async def read(self, limit: int) -> bytes:
        """Read at most so many bytes; b"" at the end."""
        await self._gate.passed()
        return await self._reader.read(limit)
