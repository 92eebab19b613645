"""Reads the audit log back: its records, or its lines as they are, from the rotated files on."""

import gzip
import io
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from egress_policy.audit import Record, timestamp
from egress_policy.audit_files import STANDARD_OUTPUT, UNREADABLE, AuditError, reason_of, rotated

# What bytes raise that are no record; msgspec lets pass on what is not UTF-8.
_NO_RECORD = (msgspec.DecodeError, UnicodeDecodeError)

_decoder = msgspec.json.Decoder(Record)
_logger = logging.getLogger(__name__)


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
            except UNREADABLE as error:
                raise AuditError(f"{file.path} cannot be read to its end: {error}") from None


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
    for candidate in (path, *rotated(path)):
        try:
            raw = stack.enter_context(candidate.open("rb"))
        except FileNotFoundError:
            # Rotated on since the folder was listed.
            continue
        except OSError as error:
            raise AuditError(f"cannot read the audit log {candidate}: {reason_of(error)}") from error
        status = os.fstat(raw.fileno())
        inode = status.st_dev, status.st_ino
        if inode in seen or (since is not None and status.st_mtime < since.timestamp()):
            continue
        seen.add(inode)
        lines = stack.enter_context(gzip.GzipFile(fileobj=raw)) if candidate.suffix == ".gz" else raw
        written = timestamp(datetime.fromtimestamp(status.st_mtime, UTC))
        yield _LogFile(candidate, lines, _first_time(lines) or written, status.st_mtime_ns)


def _first_time(lines: io.BufferedIOBase) -> str | None:
    try:
        first = _decoder.decode(lines.readline())
        lines.seek(0)
    except (*_NO_RECORD, *UNREADABLE):
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
    except UNREADABLE as error:
        _logger.warning("%s:%d: the rest cannot be read: %s", file.path, number + 1, error)
