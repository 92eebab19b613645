"""The chain that audit records form: each carries the hash of the line before it, whichever file that is in.

What is removed, changed or put elsewhere no longer fits its neighbour. Only a cut-off end, or a log that was
written anew as a whole, still fits; for these the newest hash is told to the system's journal (journal.py).
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

BEGINNING = "0" * 64
"""What stands in the first record of all."""


class _Link(msgspec.Struct):
    time: str
    event: str
    chain: str | None = None


_decoder = msgspec.json.Decoder(_Link)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about one line. One that is no `is_break` is said, and is no sign of tampering by itself."""

    file: str
    line: int
    message: str
    is_break: bool = True

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


def digest(line: bytes) -> str:
    """Hash a line, without its end: SHA-256, in hexadecimal."""
    return hashlib.sha256(line).hexdigest()


def linked(record: bytes, chain: str) -> bytes:
    """Add the hash of the line before to an encoded record, as its last member."""
    return b'%s,"chain":"%s"}' % (record[:-1], chain.encode())


@dataclass(frozen=True, slots=True)
class Witness:
    """A hash that was told to somebody else, and when (RFC 3339, as records have it)."""

    hash: str
    time: str


class Verification:
    """What came of following the chain: the number of records, the newest hash, and `begins`, the first one's time.

    `begins` is empty where the first record of all is there.
    """

    def __init__(self, witnesses: Iterable[Witness] = ()) -> None:
        self.records = 0
        self.newest = BEGINNING
        self.begins = ""
        self._unseen = {one.hash: one for one in witnesses}

    @property
    def missing(self) -> list[Witness]:
        """What a witness was told and no line has: of the time that the log is about."""
        return [one for one in self._unseen.values() if one.time >= self.begins]

    def follow(self, lines: Iterable[tuple[str, int, bytes]]) -> Iterator[Finding]:
        """Yield what is wrong with lines (file, number from 1, bytes), in the order in which they were written."""
        before: str | None = None
        for file, number, line in lines:
            if not line:
                continue
            link = _decode(line)
            if link is None:
                yield Finding(
                    file, number, "is no record: a line that was cut short, or was tampered with", False
                )
            elif link.chain is None:
                yield Finding(file, number, "has no hash of the line before it")
            elif before is None and link.chain != BEGINNING:
                yield Finding(
                    file,
                    number,
                    f"is not the first record of all: what was before {link.time} is gone",
                    False,
                )
                self.begins = link.time
                self._unseen.pop(link.chain, None)
            elif before is not None and link.chain != before:
                yield Finding(
                    file, number, "does not follow the line before it: one was removed, changed or moved"
                )
            self.records += link is not None
            before = self.newest = digest(line)
            self._unseen.pop(before, None)


def _decode(line: bytes) -> _Link | None:
    try:
        return _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
