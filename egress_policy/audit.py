"""The audit log: JSON Lines, one record a line, appended whole and before what it permits.

The file may be rotated away at any time (renamed, compressed, removed); writing goes on in a new one. Reading
takes the rotated files in too.
"""

import fcntl
import gzip
import io
import logging
import os
import re
import stat
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from errno import EACCES, EAGAIN, EDQUOT, EFBIG, EISDIR, ENOENT, ENOSPC, ENOTDIR, EPERM, EROFS
from pathlib import Path

import msgspec

from egress_policy.audit_chain import BEGINNING, digest, linked

STANDARD_OUTPUT = "-"

_MODE = 0o640
# O_NONBLOCK: to open a named pipe that nobody reads must fail, not hang.
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
_LONGEST = 1024
_TAIL = 16 * 1024
_PATIENCE = 0.5
"""Seconds to wait for the lock, which is held for the time of one write."""
_PAUSE = 0.001
_LONGEST_PATH = 2048
_LONGEST_REASON = 200
# What logrotate(8) adds to a name: `.1`, `.2.gz`, and with `dateext` `-20260131` or `-20260131-1700000000.gz`.
_ROTATED = r"[.-]\d[\d.-]*"

# What bytes raise that are no record; msgspec lets pass on what is not UTF-8.
_NO_RECORD = (msgspec.DecodeError, UnicodeDecodeError)
# What a file raises that is no whole gzip file; gzip.BadGzipFile is an OSError.
_UNREADABLE = (OSError, EOFError, zlib.error)

_logger = logging.getLogger(__name__)


class AuditError(Exception):
    """The log could not be written or read: the message says why and what to do."""


class Record(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One line of the log; a field that does not apply is absent.

    `time` and `expires` are RFC 3339 in UTC, as timestamp() writes them; `ttl` is in seconds, `path` without
    the query, `claimed_agent` what the scope field says of itself, `by` the person who brought it about, `chain`
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
    addresses: tuple[str, ...] = ()
    trust: str | None = None
    outcome: str | None = None
    code: str | None = None
    detail: str | None = None
    ttl: int | None = None
    expires: str | None = None
    by: str | None = None
    chain: str | None = None


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)
_LIMITS = {"path": _LONGEST_PATH, "reason": _LONGEST_REASON}
_TEXT_LIMITS = tuple(
    (name, _LIMITS.get(name, _LONGEST))
    for name in Record.__struct_fields__
    if name not in {"uid", "port", "addresses", "ttl"}
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
    """Appends records to a file, or with `-` to standard output. Raises AuditError if it cannot be opened."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.newest = BEGINNING
        self._end = 0
        self._file = os.dup(1) if path == STANDARD_OUTPUT else self._open()
        if path != STANDARD_OUTPUT:
            self._begin()

    def write(self, record: Record) -> None:
        """Append one record as one line. Raises AuditError; the record then does not count as written.

        It is one write(2), under a lock: several processes may share the file, and the chain is one.
        """
        encoded = _encoder.encode(_bounded(record))
        try:
            if self.path == STANDARD_OUTPUT:
                line, written, wanted = self._print(encoded)
            else:
                line, written, wanted = self._append(encoded)
        except OSError as error:
            raise AuditError(f"cannot write the audit log {self.path}: {_reason(error)}") from error
        if written < wanted:
            self._end = -1
            raise AuditError(f"cannot write the audit log {self.path}: the disk took half a line; make room")
        self.newest = digest(line)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _open(self) -> int:
        try:
            return os.open(self.path, _FLAGS, _MODE)
        except OSError as error:
            raise AuditError(f"cannot open the audit log {self.path}: {_reason(error)}") from error

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


def read_records(path: str, since: datetime | None = None) -> Iterator[Record]:
    """Yield the records of a log and of its rotated files (plain or gzip), oldest file first.

    With `since` only the records from then on; of files that were not written to since then nothing is read.
    A line that is no record, such as one cut short by a full disk, is skipped, and a warning in the program's
    log names it. Standard output has nothing to read. Raises AuditError if a file cannot be read.
    """
    if path == STANDARD_OUTPUT:
        return
    earliest = "" if since is None else timestamp(since)
    with ExitStack() as stack:
        for file in sorted(_open_all(Path(path), since, stack), key=_order):
            yield from (record for record in _read(file) if record.time >= earliest)


def read_lines(path: str) -> Iterator[tuple[str, int, bytes]]:
    """Yield every line of a log and its rotated files as file, number (from 1) and bytes, oldest file first.

    Raises AuditError if a file cannot be read.
    """
    with ExitStack() as stack:
        for file in sorted(_open_all(Path(path), None, stack), key=_order):
            file.lines.seek(0)
            try:
                for number, line in enumerate(file.lines, start=1):
                    yield str(file.path), number, line.rstrip(b"\n")
            except _UNREADABLE as error:
                raise AuditError(f"{file.path} cannot be read to its end: {error}") from None


def rotated_in_order(path: Path) -> list[Path]:
    """List the rotated files of a log, by the time of their last change. Raises AuditError."""
    return sorted(_rotated(path), key=_changed)


def newest_line(path: Path) -> bytes | None:
    """Return the last line of a rotated file, without its end; None where it has none, or cannot be read."""
    try:
        if path.suffix != ".gz":
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                return last_line(file.fileno(), size).removesuffix(b"\n") if size else None
        last = None
        with gzip.open(path) as file:
            for line in file:
                last = line
    except _UNREADABLE:
        return None
    return None if last is None else last.removesuffix(b"\n")


def last_line(file: int, size: int) -> bytes:
    """Return the last line of an open file of so many bytes (more than none), with its end where it has one."""
    tail = b""
    while size and b"\n" not in tail[:-1]:
        start = max(0, size - _TAIL)
        tail = os.pread(file, size - start, start) + tail
        size = start
    return tail[tail.rfind(b"\n", 0, -1) + 1 :]


def live_grants(records: Iterable[Record], now: datetime) -> dict[str, Record]:
    """Return the latest `grant` record of each grant, by id, that has neither ended nor been revoked."""
    granted: dict[str, Record] = {}
    ended: set[str] = set()
    for record in records:
        if record.id is None:
            continue
        if record.event == "grant":
            granted[record.id] = record
        elif record.event in {"expire", "revoke"}:
            ended.add(record.id)
    return {
        grant_id: record
        for grant_id, record in granted.items()
        if grant_id not in ended and _ends_after(record, now)
    }


@dataclass(frozen=True, slots=True)
class _LogFile:
    """An open file of the log; `begins` is the time of its first record, `changed` that of its last change (ns)."""

    path: Path
    lines: io.BufferedIOBase
    begins: str
    changed: int


def _order(file: _LogFile) -> tuple[str, int]:
    return file.begins, file.changed


def _open_all(path: Path, since: datetime | None, stack: ExitStack) -> Iterator[_LogFile]:
    seen: set[tuple[int, int]] = set()
    for candidate in (path, *_rotated(path)):
        try:
            raw = stack.enter_context(candidate.open("rb"))
        except FileNotFoundError:
            # Rotated on since the folder was listed.
            continue
        except OSError as error:
            raise AuditError(f"cannot read the audit log {candidate}: {_reason(error)}") from error
        status = os.fstat(raw.fileno())
        inode = status.st_dev, status.st_ino
        if inode in seen or (since is not None and status.st_mtime < since.timestamp()):
            continue
        seen.add(inode)
        lines = stack.enter_context(gzip.GzipFile(fileobj=raw)) if candidate.suffix == ".gz" else raw
        written = timestamp(datetime.fromtimestamp(status.st_mtime, UTC))
        yield _LogFile(candidate, lines, _first_time(lines) or written, status.st_mtime_ns)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _rotated(path: Path) -> list[Path]:
    """List the rotated files of a log, also of the form that logrotate's `extension` makes (`audit-2026.jsonl`)."""
    name = re.compile(
        rf"{re.escape(path.name)}{_ROTATED}(\.gz)?|{re.escape(path.stem)}{_ROTATED}{re.escape(path.suffix)}(\.gz)?"
    )
    try:
        return [entry for entry in path.parent.iterdir() if name.fullmatch(entry.name)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise AuditError(f"cannot look for rotated files in {path.parent}: {_reason(error)}") from error


def _first_time(lines: io.BufferedIOBase) -> str | None:
    try:
        first = _decoder.decode(lines.readline())
        lines.seek(0)
    except (*_NO_RECORD, *_UNREADABLE):
        return None
    return first.time


def _read(file: _LogFile) -> Iterator[Record]:
    number = 0
    try:
        file.lines.seek(0)
        for number, line in enumerate(file.lines, start=1):
            if line == b"\n":
                continue
            try:
                yield _decoder.decode(line)
            except _NO_RECORD as error:
                _logger.warning("%s:%d: skipped, not an audit record: %s", file.path, number, error)
    except _UNREADABLE as error:
        _logger.warning("%s:%d: the rest cannot be read: %s", file.path, number + 1, error)


def _ends_after(record: Record, now: datetime) -> bool:
    if record.expires is None:
        return False
    try:
        return parse_timestamp(record.expires) > now
    except ValueError:
        return False


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


def _reason(error: OSError) -> str:
    match error.errno:
        case code if code in {ENOSPC, EDQUOT, EFBIG}:
            remedy = "make room on its disk"
        case code if code in {EACCES, EPERM, EROFS}:
            remedy = "give the user that this runs as the right to it"
        case code if code in {ENOENT, ENOTDIR}:
            remedy = "make its folder"
        case code if code == EAGAIN:
            remedy = "another process keeps it locked: lslocks(8) shows which"
        case code if code == EISDIR:
            remedy = "name a file, not a folder"
        case _:
            remedy = "check the disk and the kernel's log"
    return f"{error.strerror or error}; {remedy}"
