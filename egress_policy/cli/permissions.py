"""Who may change what the proxy runs and obeys, and who may read its key: by owners and modes, without ACLs."""

import pwd
from collections.abc import Iterator
from dataclasses import dataclass
from os import getgrouplist, stat_result
from pathlib import Path
from stat import S_IRGRP, S_IROTH, S_IRUSR, S_ISVTX, S_IWGRP, S_IWOTH, S_IXGRP, S_IXOTH, S_IXUSR
from typing import Self

from egress_policy.cli.finding import Finding, Result

_READ = (S_IRUSR, S_IRGRP, S_IROTH)
_SEARCH = (S_IXUSR, S_IXGRP, S_IXOTH)


@dataclass(frozen=True, slots=True)
class Holder:
    """A user, or a range of them that need not have accounts, with the groups of those that do."""

    name: str
    low: int
    high: int
    groups: frozenset[int]

    @classmethod
    def of(cls, name: str, low: int, high: int) -> Self:
        """Look up the groups."""
        accounts = [entry for entry in pwd.getpwall() if low <= entry.pw_uid <= high]
        groups = {gid for entry in accounts for gid in getgrouplist(entry.pw_name, entry.pw_gid)}
        return cls(name, low, high, frozenset(groups))

    def may_write(self, status: stat_result) -> bool:
        """Whoever owns a file may give himself any permission."""
        return bool(
            self._owns(status)
            or (status.st_mode & S_IWGRP and status.st_gid in self.groups)
            or status.st_mode & S_IWOTH
        )

    def may_replace_in(self, status: stat_result) -> bool:
        """Tell whether entries of others in a folder may be removed; a sticky one protects them."""
        return self._owns(status) or (not status.st_mode & S_ISVTX and self.may_write(status))

    def may_read(self, path: Path) -> bool:
        """Tell whether a file, in its folder, may be read."""
        return self._may(_READ, path.stat()) and all(
            self._may(_SEARCH, folder.stat()) for folder in path.absolute().parents
        )

    def _owns(self, status: stat_result) -> bool:
        return self.low <= status.st_uid <= self.high

    def _may(self, bits: tuple[int, int, int], status: stat_result) -> bool:
        user, group, other = bits
        return bool(
            (self._owns(status) and status.st_mode & user)
            or (status.st_gid in self.groups and status.st_mode & group)
            or status.st_mode & other
        )


def tamper_proof(holders: list[Holder], things: dict[str, Path]) -> Iterator[Finding]:
    """Check that neither the proxy nor an agent may write to any of these files and folders."""
    found = False
    for what, path in things.items():
        for holder in holders:
            place = _first_writable(holder, path)
            if place is not None:
                found = True
                yield Finding(
                    what,
                    Result.WARNING,
                    f"{holder.name} may write to {place}",
                    f"chown -R root {place} && chmod -R g=rX,o-w {place}",
                )
    if not found:
        yield Finding("permissions", Result.OK, f"root alone may write to {', '.join(things)}")


def _first_writable(holder: Holder, path: Path) -> Path | None:
    # The folder of a link too: whoever may write there turns it to another file.
    given, path = path.absolute(), path.resolve()
    for folder in (*reversed(given.parents), *reversed(path.parents)):
        if holder.may_replace_in(folder.stat()):
            return folder
    for place in (path, *sorted(path.rglob("*"))):
        if holder.may_write(place.lstat()) and not place.is_symlink():
            return place
    return None


def secret(agents: list[Holder], key: Path) -> Iterator[Finding]:
    """Check that no agent may read the CA's key: with it, it could be any server to any other agent."""
    for agent in agents:
        if agent.may_read(key):
            yield Finding(
                "CA",
                Result.FAILED,
                f"{agent.name} may read {key}",
                f"chmod 640 {key}, and its group the proxy's",
            )
