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
from datetime import UTC, datetime
from pathlib import Path

from egress_policy.audit import timestamp
from egress_policy.audit_chain import Witness

SOCKET = Path("/run/systemd/journal/socket")
_HASH, _LOG = "EGRESS_POLICY_CHAIN", "EGRESS_POLICY_LOG"
_INTERVAL = 60.0
"""Seconds between two messages, where something was written in between."""

_logger = logging.getLogger(__name__)


class JournalError(Exception):
    """The journal cannot be read: the message says why."""


def tell(newest: str, log: str, journal: Path = SOCKET) -> None:
    """Put the newest hash of a log into the journal. Raises OSError."""
    fields = {
        "MESSAGE": f"the audit log's newest record has the hash {newest}",
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "egress-policy",
        _HASH: newest,
        _LOG: str(Path(log).absolute()),
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)
        sender.sendto("".join(f"{name}={value}\n" for name, value in fields.items()).encode(), str(journal))


async def keep_telling(
    newest: Callable[[], str], log: str, journal: Path = SOCKET, interval: float = _INTERVAL
) -> None:
    """Tell the journal of the newest hash, now and whenever it changed. Runs until cancelled.

    A host without a journal is said once, in the program's log.
    """
    told, was_heard = "", True
    while True:
        current = newest()
        if current != told:
            try:
                tell(current, log, journal)
                told, was_heard = current, True
            except OSError as error:
                if was_heard:
                    _logger.warning("egress-policy: the journal does not hear of the audit log: %s", error)
                was_heard = False
        await asyncio.sleep(interval)


def told(uids: Iterable[int], log: str, copy: Path | None = None) -> list[Witness]:
    """List what the journal was told of a log by these users. Raises JournalError.

    `copy` is a file of what `journalctl -o json` printed, for another machine, where the log may have another name.
    The journal itself says who told it (`_UID`): a message of anybody else counts for nothing.
    """
    try:
        text = copy.read_text() if copy is not None else _journalctl(log)
        entries = [json.loads(line) for line in text.splitlines() if line]
    except OSError as error:
        raise JournalError(f"{copy or 'journalctl'} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise JournalError(
            f"{copy or 'journalctl'} is not what `journalctl -o json` prints: {error}"
        ) from None
    trusted = {str(uid) for uid in uids}
    return [
        Witness(entry[_HASH], _time(entry.get("__REALTIME_TIMESTAMP")))
        for entry in entries
        if isinstance(entry, dict) and entry.get("_UID") in trusted and isinstance(entry.get(_HASH), str)
    ]


def _time(microseconds: object) -> str:
    """Read an entry's time; one without is of no time that could be left out."""
    if not isinstance(microseconds, str) or not microseconds.isdecimal():
        return timestamp(datetime.max.replace(tzinfo=UTC))
    return timestamp(datetime.fromtimestamp(int(microseconds) / 1e6, UTC))


def _journalctl(log: str) -> str:
    command = ["journalctl", "--output=json", "--quiet", f"{_LOG}={Path(log).absolute()}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise JournalError(f"journalctl: {done.stderr.strip() or 'it failed'}")
    return done.stdout
