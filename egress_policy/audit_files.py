"""The files of the audit log: the one that is written, and those that were rotated away (renamed, compressed)."""

import gzip
import os
import re
import zlib
from errno import EACCES, EAGAIN, EDQUOT, EFBIG, EISDIR, ENOENT, ENOSPC, ENOTDIR, EPERM, EROFS
from pathlib import Path

STANDARD_OUTPUT = "-"

UNREADABLE = (OSError, EOFError, zlib.error)
"""What a file raises that is no whole gzip file; gzip.BadGzipFile is an OSError."""

_TAIL = 16 * 1024
# What logrotate(8) adds to a name: `.1`, `.2.gz`, and with `dateext` `-20260131` or `-20260131-1700000000.gz`.
_ROTATED = r"[.-]\d[\d.-]*"


class AuditError(Exception):
    """The log could not be written or read: the message says why and what to do."""


def rotated(path: Path) -> list[Path]:
    """List the rotated files of a log, also of the form that logrotate's `extension` makes (`audit-2026.jsonl`).

    Raises AuditError.
    """
    name = re.compile(
        rf"{re.escape(path.name)}{_ROTATED}(\.gz)?|{re.escape(path.stem)}{_ROTATED}{re.escape(path.suffix)}(\.gz)?"
    )
    try:
        return [entry for entry in path.parent.iterdir() if name.fullmatch(entry.name)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise AuditError(f"cannot look for rotated files in {path.parent}: {reason_of(error)}") from error


def rotated_in_order(path: Path) -> list[Path]:
    """List the rotated files of a log, by the time of their last change. Raises AuditError."""
    return sorted(rotated(path), key=_changed)


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
    except UNREADABLE:
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


def reason_of(error: OSError) -> str:
    """Say why a file could not be written or read, and what to do."""
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


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
