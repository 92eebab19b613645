"""The audit log: JSON Lines, one record a line, appended whole and before what it permits.

The file may be rotated away at any time (renamed, compressed, removed); writing goes on in a new one. Reading
takes the rotated files in too.
"""

import gzip
import io
import logging
import os
import re
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from errno import EACCES, EDQUOT, EFBIG, EISDIR, ENOENT, ENOSPC, ENOTDIR, EPERM, EROFS
from pathlib import Path

import msgspec

STANDARD_OUTPUT = "-"

_MODE = 0o640
# O_NONBLOCK: to open a named pipe that nobody reads must fail, not hang.
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
_LONGEST = 1024
_LONGEST_PATH = 2048
_LONGEST_REASON = 200
# What logrotate(8) adds to a name: `.1`, `.2.gz`, and with `dateext` `-20260131` or `-20260131-1700000000.gz`.
_ROTATED = r"[.-]\d[\d.-]*"

# What a file raises that is no whole gzip file; gzip.BadGzipFile is an OSError.
_UNREADABLE = (OSError, EOFError, zlib.error)

_logger = logging.getLogger(__name__)


class AuditError(Exception):
    """The log could not be written or read: the message says why and what to do."""


class Record(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One line of the log; a field that does not apply is absent.

    `time` and `expires` are RFC 3339 in UTC, as timestamp() writes them; `ttl` is in seconds, `path` without
    the query, `claimed_agent` what the scope field says of itself.
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
        self._torn = False
        self._file = os.dup(1) if path == STANDARD_OUTPUT else self._open()

    def write(self, record: Record) -> None:
        """Append one record as one line. Raises AuditError; the record then does not count as written.

        It is one write(2) on a file opened with O_APPEND, so several processes may share the file.
        """
        line = _encoder.encode(_bounded(record)) + b"\n"
        try:
            # What is left of a line that was cut short is closed off, so that this one stands on its own.
            if self._follow_rotation() or self._torn:
                line = b"\n" + line
            written = os.write(self._file, line)
        except OSError as error:
            raise AuditError(f"cannot write the audit log {self.path}: {_reason(error)}") from error
        self._torn = written < len(line)
        if self._torn:
            raise AuditError(f"cannot write the audit log {self.path}: the disk took half a line; make room")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _open(self) -> int:
        try:
            return os.open(self.path, _FLAGS, _MODE)
        except OSError as error:
            raise AuditError(f"cannot open the audit log {self.path}: {_reason(error)}") from error

    def _follow_rotation(self) -> bool:
        """Make sure that the open file is the one at the path, and tell whether it ends amid a line."""
        if self.path == STANDARD_OUTPUT:
            return False
        ours = os.fstat(self._file)
        if not _is_at(self.path, ours):
            reopened = self._open()
            os.close(self._file)
            self._file, self._torn = reopened, False
            ours = os.fstat(reopened)
        if not stat.S_ISREG(ours.st_mode) or not ours.st_size:
            return False
        return os.pread(self._file, 1, ours.st_size - 1) != b"\n"


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
        for file in sorted(_open_all(Path(path), since, stack), key=lambda file: file.begins):
            yield from (record for record in _read(file) if record.time >= earliest)


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
    """An open file of the log; `begins` is the time of its first record."""

    path: Path
    lines: io.BufferedIOBase
    begins: str


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
        yield _LogFile(candidate, lines, _first_time(lines) or written)


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
    except (msgspec.DecodeError, *_UNREADABLE):
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
            except msgspec.DecodeError as error:
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
        there = Path(path).stat()
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
        case code if code == EISDIR:
            remedy = "name a file, not a folder"
        case _:
            remedy = "check the disk and the kernel's log"
    return f"{error.strerror or error}; {remedy}"
