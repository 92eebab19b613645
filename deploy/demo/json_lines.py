"""Records of what a server of the demo's internet saw, one JSON object a line."""

import json
import os
import time
from pathlib import Path
from typing import Any


class Log:
    """Appends each record in one write, so that a reader sees it whole and at once."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, event: str, **fields: object) -> None:
        """Append one record, with the time in seconds since the epoch."""
        record = {"time": time.time(), "event": event, **fields}
        os.write(self._file, json.dumps(record).encode() + b"\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the records so far; a line that is still being written is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
