"""Keeps the audit log short where the same comes again and again: once a second, with a count."""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

from egress_policy.audit import Record
from egress_policy.records import repeated

_INTERVAL = 1.0
"""Seconds in which what is the same is recorded once."""
_MAX_KINDS = 4096


@dataclass(slots=True)
class _Recorded:
    """What was put on record, the moment, and how often the same came since."""

    record: Record
    at: float
    repeated: int = 0


class Repeats:
    """What was recorded within the last second. `uncounted` is how many of ever other kinds were not."""

    def __init__(self) -> None:
        self.uncounted = 0
        self._recorded: dict[Hashable, _Recorded] = {}

    def take(self, kind: Hashable, describe: Callable[[], Record], now: float) -> Record | None:
        """Return the record of something, or None where the same is on record already; `now` in seconds."""
        known = self._recorded.get(kind)
        if known is not None:
            known.repeated += 1
            return None
        if len(self._recorded) >= _MAX_KINDS:
            self.uncounted += 1
            return None
        record = describe()
        self._recorded[kind] = _Recorded(record, now)
        return record

    def due(self, now: float) -> Iterator[Record]:
        """Yield a record for each that was repeated in the second that has passed, and forget the others."""
        for kind, known in tuple(self._recorded.items()):
            if now - known.at < _INTERVAL:
                continue
            if not known.repeated:
                del self._recorded[kind]
                continue
            yield repeated(known.record, known.repeated)
            known.at, known.repeated = now, 0
