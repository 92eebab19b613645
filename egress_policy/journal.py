"""The system's journal as a witness: the audit log's newest hash is told to it, and read back from it.

Who may write to the audit log's folder cannot change what the journal has. Protocol: systemd's native journal
protocol, one datagram of `NAME=value` lines.
"""

import asyncio
import json
import logging
import socket
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

SOCKET = Path("/run/systemd/journal/socket")
_FIELD = "EGRESS_POLICY_CHAIN"
_INTERVAL = 60.0
"""Seconds between two messages, where something was written in between."""

_logger = logging.getLogger(__name__)


class JournalError(Exception):
    """The journal cannot be read: the message says why."""


def tell(newest: str, journal: Path = SOCKET) -> None:
    """Put a hash into the journal. Raises OSError."""
    fields = {
        "MESSAGE": f"the audit log's newest record has the hash {newest}",
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "egress-policy",
        _FIELD: newest,
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)
        sender.sendto("".join(f"{name}={value}\n" for name, value in fields.items()).encode(), str(journal))


async def keep_telling(
    newest: Callable[[], str], journal: Path = SOCKET, interval: float = _INTERVAL
) -> None:
    """Tell the journal of the newest hash, now and whenever it changed. Runs until cancelled.

    A host without a journal is said once, in the program's log.
    """
    told, was_heard = "", True
    while True:
        current = newest()
        if current != told:
            try:
                tell(current, journal)
                told, was_heard = current, True
            except OSError as error:
                if was_heard:
                    _logger.warning("egress-policy: the journal does not hear of the audit log: %s", error)
                was_heard = False
        await asyncio.sleep(interval)


def told(uids: Iterable[int], copy: Path | None = None) -> list[str]:
    """List the hashes that the journal was told by these users. Raises JournalError.

    `copy` is a file of what `journalctl -o json` printed, for another machine. The journal itself says who told
    it (`_UID`): a message of anybody else counts for nothing.
    """
    try:
        text = copy.read_text() if copy is not None else _journalctl()
        entries = [json.loads(line) for line in text.splitlines() if line]
    except OSError as error:
        raise JournalError(f"{copy or 'journalctl'} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise JournalError(
            f"{copy or 'journalctl'} is not what `journalctl -o json` prints: {error}"
        ) from None
    trusted = {str(uid) for uid in uids}
    return [
        entry[_FIELD]
        for entry in entries
        if isinstance(entry, dict) and entry.get("_UID") in trusted and isinstance(entry.get(_FIELD), str)
    ]


def _journalctl() -> str:
    command = ["journalctl", "--output=json", "--quiet", "--identifier=egress-policy"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise JournalError(f"journalctl: {done.stderr.strip() or 'it failed'}")
    return done.stdout
