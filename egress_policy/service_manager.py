"""What the service manager is told: that the proxy is ready, that it lives, that it ends.

systemd's protocol (sd_notify(3)): one datagram of `NAME=value` to the socket that the environment names. Without one,
nobody is told.
"""

import asyncio
import math
import os
import socket
from collections.abc import Mapping


async def keep_telling(environment: Mapping[str, str] = os.environ) -> None:
    """Say that we are ready, then that we live for as long as this event loop turns, and in the end that we end.

    Lives are told twice in each of the watchdog's intervals, where one watches this process. Runs until cancelled. Raises
    OSError, where there is a manager that cannot be told.
    """
    interval = _watchdog_interval(environment)
    _tell("READY=1", environment)
    try:
        while True:
            await asyncio.sleep(interval / 2)
            _tell("WATCHDOG=1", environment)
    finally:
        _tell("STOPPING=1", environment)


def _watchdog_interval(environment: Mapping[str, str]) -> float:
    """Return the seconds within which a watchdog must hear of us; infinity where there is none for us."""
    interval = environment.get("WATCHDOG_USEC", "")
    if not interval.isdecimal() or environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return math.inf
    return int(interval) / 1e6


def _tell(state: str, environment: Mapping[str, str]) -> None:
    address = environment.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        # unix(7): an abstract name begins with a zero byte.
        address = f"\0{address[1:]}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect(address)
        sender.send(state.encode())
