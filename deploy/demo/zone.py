"""What the demo's internet knows of each name: a JSON file that the lab writes and its servers read."""

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path


class Behaviour(StrEnum):
    """How the name server treats a query."""

    ANSWER = "answer"
    SILENT = "silent"
    SERVFAIL = "servfail"


@dataclass(frozen=True, slots=True)
class Name:
    """One name's records. `ttl` in seconds; `certificate` is the name that its origin shows a certificate for."""

    addresses: tuple[str, ...] = ()
    cname: str | None = None
    ttl: int = 60
    behaviour: Behaviour = Behaviour.ANSWER
    certificate: str | None = None


class Zone:
    """Reads the file again whenever it was replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_at: tuple[int, int] | None = None
        self._names: dict[str, Name] = {}

    def find(self, name: str) -> Name | None:
        """Return what is known of a name (lower case, no trailing dot)."""
        status = self._path.stat()
        version = status.st_ino, status.st_mtime_ns
        if version != self._read_at:
            held = json.loads(self._path.read_text())
            self._names = {
                key: Name(
                    **{**one, "addresses": tuple(one["addresses"]), "behaviour": Behaviour(one["behaviour"])}
                )
                for key, one in held.items()
            }
            self._read_at = version
        return self._names.get(name)


def write_zone(path: Path, names: dict[str, Name]) -> None:
    """Replace the file at once."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps({name: asdict(one) for name, one in names.items()}))
    new.replace(path)
