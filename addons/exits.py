"""The end of the process: where mitmproxy would go on without what makes it safe."""

import asyncio
import os
import sys
from collections.abc import Coroutine
from typing import Any, NoReturn


def exit_now(message: str) -> NoReturn:
    """End the process at once. Raising would only be logged, and the proxy would run on without us."""
    print(f"egress-policy: {message}", file=sys.stderr, flush=True)  # noqa: T201 - the log may not be set up yet
    os._exit(1)


async def or_exit(work: Coroutine[Any, Any, None]) -> None:
    """Run background work without which we would not be safe: its end is the proxy's."""
    try:
        await work
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # noqa: BLE001 - whatever it is, nobody would end the grants any more
        exit_now(f"stopped: {error!r}")
