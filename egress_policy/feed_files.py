"""Deny feeds on disk: read anew when they change, and the last good one kept where the new one cannot be read."""

from dataclasses import dataclass
from pathlib import Path

from egress_policy.feed import Feed, FeedError, parse_feed

# Bytes. A text file lets go of the interpreter's lock at every 8 KiB, and has it back before the event loop wakes:
# requests would wait for half a second while a large feed is read in a thread.
_BUFFER = 1 << 20

type Signature = tuple[int, int, int]
"""Of a file: inode, size in bytes, time of the last change in nanoseconds."""


def signature(path: Path) -> Signature | None:
    """Return what tells one version of a file from another, None where there is none to be had."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        # ValueError: a name with a null character.
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


@dataclass(frozen=True, slots=True)
class _Read:
    feed: Feed
    signature: Signature | None


class FeedFiles:
    """The feeds as they were last read whole. `kept` tells for which an older one stays in force, and why.

    `seen` tells which version of each file was last looked at, the policy's own files among them.
    """

    def __init__(self) -> None:
        self.seen: dict[Path, Signature | None] = {}
        self.kept: dict[Path, str] = {}
        self._read: dict[Path, _Read] = {}

    def look_at(self, path: Path) -> Signature | None:
        """Note which version of a file, or folder, is about to be read; a later one will be seen."""
        now = self.seen[path] = signature(path)
        return now

    def load(self, path: Path) -> Feed:
        """Return a feed; one that has not changed is not read again.

        Raises OSError, UnicodeDecodeError and FeedError where it cannot be read and never could.
        """
        known = self._read.get(path)
        now = self.look_at(path)
        if known is not None and known.signature == now and path not in self.kept:
            return known.feed
        try:
            with path.open("rb", buffering=_BUFFER) as lines:
                feed = parse_feed(map(bytes.decode, lines))
        except (OSError, UnicodeDecodeError, FeedError) as error:
            if known is None:
                raise
            return self._keep(path, known, str(error))
        if known is not None and len(known.feed) and not len(feed):
            return self._keep(path, known, "it is empty now")
        self.kept.pop(path, None)
        self._read[path] = _Read(feed, now)
        return feed

    def _keep(self, path: Path, known: _Read, why: str) -> Feed:
        self.kept[path] = f"{why}; the last good version, of {len(known.feed)} entries, stays in force"
        return known.feed
