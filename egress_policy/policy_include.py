"""One policy of several files: what the policy file includes is merged into it, and every part knows its own file.

A policy with a part missing would be worse than none: agents whose file is gone would not be held to anything any
more. So what `include` names must be there, and nothing is said twice.
"""

import glob
import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePath

from egress_policy.feed_files import FeedFiles
from egress_policy.policy_document import PolicyDocument, TeamDocument
from egress_policy.policy_source import Place, PolicyError, Source


class Sources:
    """The policy file and those that it includes, and the errors found in them.

    Places are those in the merged document; what is said of one is said of the file that it comes from.
    """

    def __init__(self, path: Path, feeds: FeedFiles, instead: Mapping[Path, bytes]) -> None:
        """`feeds` is told which files count; what `instead` has for one counts instead of what that holds."""
        self._feeds = feeds
        self._instead = instead
        self._main = self._open(path)
        self._included: list[Source] = []
        self._further: list[PolicyError] = []
        self._moved: dict[Place, tuple[Source, Place]] = {}

    @property
    def path(self) -> Path:
        """The policy file."""
        return self._main.path

    @property
    def files(self) -> tuple[Path, ...]:
        """The policy file, and those that it includes in the order in which they count."""
        return tuple(source.path for source in (self._main, *self._included))

    @property
    def version(self) -> str:
        """The SHA-256 of the files that were read, one after the other, in hexadecimal."""
        return hashlib.sha256(b"".join(one.data or b"" for one in (self._main, *self._included))).hexdigest()

    @property
    def errors(self) -> list[PolicyError]:
        """All errors so far."""
        return [*self._further, *(error for one in (self._main, *self._included) for error in one.errors)]

    @property
    def warnings(self) -> list[PolicyError]:
        """All warnings so far."""
        return [warning for one in (self._main, *self._included) for warning in one.warnings]

    def error(self, place: Place, message: str) -> None:
        """Note an error in what could be decoded; where a part of it could not, that was said already."""
        source, own = self._origin(place)
        source.error(own, message)

    def error_elsewhere(self, error: PolicyError) -> None:
        """Note an error in a file that is none of these."""
        self._further.append(error)

    def warning(self, place: Place, message: str) -> None:
        source, own = self._origin(place)
        source.warning(own, message)

    def at(self, place: Place, message: str) -> PolicyError:
        """Return an error at a place without noting it."""
        source, own = self._origin(place)
        return source.at(own, message)

    def line(self, place: Place, seen_from: Place) -> str:
        """Say where a place is: its line, and its file where that is another than that of `seen_from`."""
        source, own = self._origin(place)
        elsewhere = source is not self._origin(seen_from)[0]
        return f"on line {source.line(own)}" + (f" of {self._shown(source)}" if elsewhere else "")

    def file_of(self, place: Place) -> Path:
        """Name the file that a place is in."""
        return self._origin(place)[0].path

    def is_of_another_team(self, place: Place, seen_from: Place) -> bool:
        """Tell whether a place is in an included file, and `seen_from` in another one."""
        source, asking = self._origin(place)[0], self._origin(seen_from)[0]
        return self._main not in (source, asking) and source is not asking

    def relative(self, place: Place, name: str) -> str:
        """Return a path that stands at a place, as it is from the policy file's folder."""
        return str(PurePath(self._shown(self._origin(place)[0])).parent / name)

    def decode(self) -> PolicyDocument | None:
        """Read and merge the files; None where one of them cannot be read. Errors are noted."""
        document = self._main.decode(PolicyDocument)
        if document is None:
            return None
        is_whole = True
        for index, pattern in enumerate(document.include):
            # One that could not be read is None; that was said.
            found = self._matches(pattern, ("include", index)) if pattern else None
            for path in found or ():
                source = self._open(path)
                self._included.append(source)
                team = source.decode(TeamDocument)
                if team is not None:
                    self._merge(document, team, source)
                is_whole = is_whole and team is not None
            is_whole = is_whole and found is not None
        return document if is_whole else None

    def _open(self, path: Path) -> Source:
        self._feeds.look_at(path)
        return Source(path, self._instead.get(path))

    def _matches(self, pattern: str, place: Place) -> list[Path] | None:
        folder = self.path.parent
        if glob.has_magic(pattern):
            # A file that is added or removed changes its folder.
            self._feeds.look_at(folder / PurePath(pattern).parent)
        # pathlib's own would find hidden files too, which editors leave behind.
        found = [folder / name for name in sorted(glob.glob(pattern, root_dir=folder))]  # noqa: PTH207
        wrong = [why for path in found if (why := self._why_not(path)) is not None]
        if not found:
            wrong = [
                f"there is no file {pattern} in {folder}; agents that it names would not be held any more"
            ]
        for why in wrong:
            self._main.error(place, why)
        return None if wrong else [path for path in found if path not in self.files]

    def _why_not(self, path: Path) -> str | None:
        if not path.is_file():
            return f"{path} is not a file"
        if path.resolve() == self.path.resolve():
            return f"{path} is the policy file itself"
        if not path.resolve().is_relative_to(self.path.parent.resolve()):
            return f"{path} is a link that leads out of the policy's folder"
        return None

    def _merge(self, document: PolicyDocument, team: TeamDocument, source: Source) -> None:
        self._merge_named("agents", document.agents, team.agents, source)
        self._merge_named("scopes", document.scopes, team.scopes, source)
        for level, entries in team.trust.items():
            merged = document.trust.setdefault(level, [])
            for index, entry in enumerate(entries):
                self._moved["trust", level, len(merged)] = (source, ("trust", level, index))
                merged.append(entry)
        for index, test in enumerate(team.tests):
            self._moved["tests", len(document.tests)] = (source, ("tests", index))
            document.tests.append(test)

    def _merge_named[T](self, key: str, merged: dict[str, T], added: dict[str, T], source: Source) -> None:
        for name, value in added.items():
            place = (key, name)
            if name in merged:
                origin, own = self._origin(place)
                source.error(place, f"is there already, on line {origin.line(own)} of {self._shown(origin)}")
                continue
            self._moved[place] = (source, place)
            merged[name] = value

    def _origin(self, place: Place) -> tuple[Source, Place]:
        for length in (3, 2):
            moved = self._moved.get(place[:length])
            if moved is not None:
                return moved[0], (*moved[1], *place[length:])
        return self._main, place

    def _shown(self, source: Source) -> str:
        return str(source.path.relative_to(self.path.parent))
