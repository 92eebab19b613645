"""What the service manager is told: that the proxy is ready, that it lives, that it ends.

systemd's protocol (sd_notify(3)): one datagram of `NAME=value` lines to the socket that the environment names. Without
one, nobody is told.
"""

import asyncio
import os
import socket
from collections.abc import Mapping

READY = "READY=1"
STOPPING = "STOPPING=1"
_ALIVE = "WATCHDOG=1"


def notify(state: str, environment: Mapping[str, str] = os.environ) -> None:
    """Tell the service manager. Raises OSError, where there is one that cannot be told."""
    address = environment.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        # unix(7): an abstract name begins with a zero byte.
        address = f"\0{address[1:]}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect(address)
        sender.send(state.encode())


async def keep_alive(environment: Mapping[str, str] = os.environ) -> None:
    """Say that we live, twice in each of the watchdog's intervals, for as long as this event loop turns.

    Runs until cancelled; ends at once where no watchdog watches this process. Raises OSError.
    """
    interval = environment.get("WATCHDOG_USEC", "")
    if not interval.isdecimal() or environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return
    while True:
        notify(_ALIVE, environment)
        await asyncio.sleep(int(interval) / 2e6)
