"""The audit log: JSON Lines, one record a line, appended whole and before what it permits.

The file may be rotated away at any time (renamed, compressed, removed); writing goes on in a new one.
audit_reading.py reads it back.
"""

import fcntl
import os
import stat
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from egress_policy.audit_chain import BEGINNING, digest, linked
from egress_policy.audit_files import (
    STANDARD_OUTPUT,
    AuditError,
    last_line,
    newest_line,
    reason_of,
    rotated_in_order,
)

_MODE = 0o640
# O_NONBLOCK: to open a named pipe that nobody reads must fail, not hang.
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
_LONGEST = 1024
_PATIENCE = 0.5
"""Seconds to wait for the lock, which is held for the time of one write."""
_PAUSE = 0.001
_LONGEST_PATH = 2048
_LONGEST_REASON = 200


class Record(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One line of the log; a field that does not apply is absent.

    `time` and `expires` are RFC 3339 in UTC, as timestamp() writes them; `ttl` is in seconds, `path` without
    the query, `ports` a grant's further ones, `inspection` `name` where the decision rests on the TLS server's name alone, `claimed_agent` what the scope field says of itself, `by` the person who brought it about, `chain`
    the hash of the line before (audit_chain.py), which the log adds.
    """

    time: str
    event: str
    id: str | None = None
    agent: str | None = None
    uid: int | None = None
    source: str | None = None
    scope: str | None = None
    intent: str | None = None
    claimed_agent: str | None = None
    reason: str | None = None
    method: str | None = None
    host: str | None = None
    port: int | None = None
    path: str | None = None
    ports: tuple[int, ...] = ()
    addresses: tuple[str, ...] = ()
    trust: str | None = None
    inspection: str | None = None
    outcome: str | None = None
    code: str | None = None
    detail: str | None = None
    ttl: int | None = None
    expires: str | None = None
    grant: str | None = None
    requests: int | None = None
    sent: int | None = None
    received: int | None = None
    duration: float | None = None
    status: int | None = None
    ending: str | None = None
    by: str | None = None
    chain: str | None = None


_encoder = msgspec.json.Encoder()
_LIMITS = {"path": _LONGEST_PATH, "reason": _LONGEST_REASON}
_TEXT_LIMITS = tuple(
    (name, _LIMITS.get(name, _LONGEST))
    for name in Record.__struct_fields__
    if name
    not in {"uid", "port", "ports", "addresses", "ttl", "requests", "sent", "received", "duration", "status"}
)


def timestamp(moment: datetime) -> str:
    """Write an aware time as RFC 3339, in UTC, with milliseconds."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_timestamp(text: str) -> datetime:
    """Read what timestamp() wrote. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return moment


class AuditLog:
    """Appends records to a file, or with `-` to standard output. Raises AuditError if it cannot be opened.

    `newest` is the last line's hash, `failures` counts the records that could not be written.
    `listeners` are told of each record that was written; they must not raise.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.newest = BEGINNING
        self.failures = 0
        self.listeners: list[Callable[[Record], None]] = []
        self._end = 0
        self._file = os.dup(1) if path == STANDARD_OUTPUT else self._open()
        if path != STANDARD_OUTPUT:
            self._begin()

    def write(self, record: Record) -> None:
        """Append one record as one line. Raises AuditError; the record then does not count as written.

        It is one write(2), under a lock: several processes may share the file, and the chain is one.
        """
        record = _bounded(record)
        encoded = _encoder.encode(record)
        try:
            if self.path == STANDARD_OUTPUT:
                line, written, wanted = self._print(encoded)
            else:
                line, written, wanted = self._append(encoded)
        except OSError as error:
            self.failures += 1
            raise AuditError(f"cannot write the audit log {self.path}: {reason_of(error)}") from error
        if written < wanted:
            self._end = -1
            self.failures += 1
            raise AuditError(f"cannot write the audit log {self.path}: the disk took half a line; make room")
        self.newest = digest(line)
        for listener in self.listeners:
            listener(record)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _open(self) -> int:
        try:
            return os.open(self.path, _FLAGS, _MODE)
        except OSError as error:
            raise AuditError(f"cannot open the audit log {self.path}: {reason_of(error)}") from error

    def _print(self, encoded: bytes) -> tuple[bytes, int, int]:
        closing = b"\n" if self._end < 0 else b""
        line = linked(encoded, self.newest)
        wanted = len(closing) + len(line) + 1
        written = os.write(self._file, b"%s%s\n" % (closing, line))
        self._end = 0
        if written < wanted:
            self.newest = digest(line[: written - len(closing)])
        return line, written, wanted

    def _append(self, encoded: bytes) -> tuple[bytes, int, int]:
        ours = self._lock()
        try:
            # What is left of a line that was cut short is closed off, so that this one stands on its own.
            closing = b""
            if ours.st_size != self._end and stat.S_ISREG(ours.st_mode):
                closing = self._catch_up(ours.st_size)
            line = linked(encoded, self.newest)
            wanted = len(closing) + len(line) + 1
            written = os.write(self._file, b"%s%s\n" % (closing, line))
            self._end = ours.st_size + written
            return line, written, wanted
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _lock(self) -> os.stat_result:
        """Lock the file that is at the path now: it may have been rotated away, even while the lock was waited for."""
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # Whoever may read the file may lock it: that must not stop everything.
                if time.monotonic() > until:
                    raise
                time.sleep(_PAUSE)
                continue
            ours = os.fstat(self._file)
            if _is_at(self.path, ours):
                return ours
            # Another may have written to the file between our last record and its rotation.
            if stat.S_ISREG(ours.st_mode) and ours.st_size != self._end:
                self._catch_up(ours.st_size)
            reopened = self._open()
            os.close(self._file)
            self._file, self._end = reopened, 0

    def _catch_up(self, size: int) -> bytes:
        """Find the last line, which somebody else wrote, and return what closes it off."""
        if not size:
            return b""
        last = last_line(self._file, size)
        self.newest = digest(last.removesuffix(b"\n"))
        return b"" if last.endswith(b"\n") else b"\n"

    def _begin(self) -> None:
        """Continue the chain of the newest rotated file, where ours is empty."""
        if os.fstat(self._file).st_size:
            self._end = -1
            return
        for file in reversed(rotated_in_order(Path(self.path))):
            line = newest_line(file)
            if line is not None:
                self.newest = digest(line)
                return


def _bounded(record: Record) -> Record:
    """Keep hostile text short and safe to print; msgspec escapes the ASCII control characters itself."""
    changed = {}
    for name, limit in _TEXT_LIMITS:
        text = getattr(record, name)
        if text is not None and (len(text) > limit or not text.isprintable()):
            changed[name] = _printable(text[:limit])[:limit]
    return msgspec.structs.replace(record, **changed) if changed else record


def _printable(text: str) -> str:
    """Escape what a terminal may act upon (C1 controls, changes of direction) and what UTF-8 cannot hold."""
    return "".join(
        character
        if character.isprintable() or character < " "
        else character.encode("unicode_escape").decode()
        for character in text
    )


def _is_at(path: str, status: os.stat_result) -> bool:
    try:
        there = os.stat(path)  # noqa: PTH116 - a third of the time, for every record
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (status.st_dev, status.st_ino)
