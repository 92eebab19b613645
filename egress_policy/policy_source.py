"""One file of a policy as YAML whose nodes know their places, decoded by the types of policy_document.py.

Every error is noted, with the line and column of the value, and reading goes on: an author sees all at once.
"""

import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml

from egress_policy.policy import Inspection
from egress_policy.policy_document import LEAVES, PolicyDocument, TeamDocument

_MAX_SIZE = 4 * 1024 * 1024
_MAX_NODES = 200_000

type Place = tuple[str | int, ...]
"""A path into the file: keys, and indexes of lists."""


@dataclass(frozen=True, slots=True)
class PolicyError:
    """One error: `line` and `column` count from 1 and are those of the value."""

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}: "
        return f"{place}{self.path}: {self.message}" if self.path else place + self.message


class PolicyFileError(Exception):
    """The policy file has errors; all of them, in the order of the file."""

    def __init__(self, errors: Sequence[PolicyError]) -> None:
        self.errors = tuple(sorted(errors, key=lambda error: (error.file, error.line, error.column)))
        super().__init__("\n".join(str(error) for error in self.errors))


class Source:
    """The file as YAML nodes, which know their places, and the errors found in it."""

    def __init__(self, path: Path, data: bytes | None = None) -> None:
        """With `data` that is what counts, and not what the file holds."""
        self.path = path
        self.data = data
        self.errors: list[PolicyError] = []
        self.warnings: list[PolicyError] = []
        self._marks: dict[Place, tuple[int, int]] = {}
        self._nodes = 0
        self._broken: list[Place] = []

    def error(self, path: Place, message: str) -> None:
        """Note an error in what could be decoded; where a part of it could not, that was said already."""
        if not any(_contains(path, broken) or _contains(broken, path) for broken in self._broken):
            self.errors.append(self.at(path, message))

    def warning(self, path: Place, message: str) -> None:
        self.warnings.append(self.at(path, message))

    def line(self, path: Place) -> int:
        return self._mark(path)[0]

    def decode[Document: msgspec.Struct](self, kind: type[Document]) -> Document | None:
        """Read the file as one of policy_document's types; None where it cannot be one. Errors are noted."""
        try:
            data = self.data = self.path.read_bytes() if self.data is None else self.data
            if len(data) > _MAX_SIZE:
                self._undecodable(
                    (), f"the file is larger than {_MAX_SIZE} bytes: long lists belong into feeds"
                )
                return None
            node = yaml.compose(data.decode(), Loader=yaml.SafeLoader)
        except OSError as error:
            self._undecodable((), f"cannot be read: {error.strerror}")
            return None
        except UnicodeDecodeError as error:
            self._undecodable((), f"is not UTF-8 (byte {error.start})")
            return None
        except (yaml.YAMLError, RecursionError) as error:
            self._yaml_error(error)
            return None
        if node is None:
            self._undecodable((), "the file is empty: a policy starts with `version: 1`")
            return None
        value = self._struct(kind, node, ())
        return value if isinstance(value, kind) else None

    def _yaml_error(self, error: Exception) -> None:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        if mark is not None:
            self._marks[()] = (mark.line + 1, mark.column + 1)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "nested too deeply"
        self._undecodable((), f"not YAML: {problem}")

    def _undecodable(self, path: Place, message: str) -> None:
        self._broken.append(path)
        self.errors.append(self.at(path, message))

    def _mark(self, path: Place) -> tuple[int, int]:
        while path and path not in self._marks:
            path = path[:-1]
        return self._marks.get(path, (1, 1))

    def at(self, path: Place, message: str) -> PolicyError:
        """Return an error without noting it."""
        return PolicyError(str(self.path), *self._mark(path), _shown(path), message)

    def _value(self, kind: Any, node: yaml.Node, path: Place) -> Any:  # noqa: ANN401 - typing's own forms
        """Decode a node as a type of policy_document; None after an error, which is noted."""
        self._marks[path] = (node.start_mark.line + 1, node.start_mark.column + 1)
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            # An alias can name a list of aliases, and so on: a small file may stand for a huge one.
            raise PolicyFileError([self.at(path, "the file holds too much: long lists belong into feeds")])
        origin = typing.get_origin(kind)
        if origin in (types.UnionType, typing.Union):
            return self._value(
                next(one for one in typing.get_args(kind) if one is not type(None)), node, path
            )
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return self._struct(kind, node, path)
        if origin is dict:
            key_kind, value_kind = typing.get_args(kind)
            return self._mapping(key_kind, value_kind, node, path)
        if origin is list:
            return self._list(typing.get_args(kind)[0], node, path)
        return self._leaf(kind, node, path)

    def _pairs(self, node: yaml.Node, path: Place) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            self._undecodable(path, "must be a mapping, `key: value`")
            return
        seen: set[str] = set()
        for key, value in node.value:
            name = _shown_whole(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            self._marks[(*path, name)] = (key.start_mark.line + 1, key.start_mark.column + 1)
            if name in seen:
                self._undecodable((*path, name), "is there twice")
                continue
            seen.add(name)
            yield name, key, value

    def _struct(self, kind: type[msgspec.Struct], node: yaml.Node, path: Place) -> Any:  # noqa: ANN401
        self._marks.setdefault(path, (node.start_mark.line + 1, node.start_mark.column + 1))
        hints = typing.get_type_hints(kind, include_extras=True)
        # What cannot be decoded takes its default, or nothing: the rest is checked all the same.
        values: dict[str, object] = {}
        for name, _, value in self._pairs(node, path):
            if name not in hints:
                self._undecodable((*path, name), _why_unknown(kind, name, hints))
                continue
            decoded = self._value(hints[name], value, (*path, name))
            if decoded is not None:
                values[name] = decoded
        for field in msgspec.structs.fields(kind):
            if field.required and field.name not in values:
                values[field.name] = [] if typing.get_origin(field.type) is list else None
                if (*path, field.name) not in self._marks and isinstance(node, yaml.MappingNode):
                    self._undecodable(path, f"the key `{field.name}` is missing")
        return kind(**values)

    def _mapping(self, key_kind: Any, kind: Any, node: yaml.Node, path: Place) -> dict[str, Any]:  # noqa: ANN401
        values: dict[str, Any] = {}
        for name, _, value in self._pairs(node, path):
            if self._converted(key_kind, name, (*path, name)) is not None:
                values[name] = self._value(kind, value, (*path, name))
        return values

    def _list(self, kind: Any, node: yaml.Node, path: Place) -> list[Any]:  # noqa: ANN401
        if not isinstance(node, yaml.SequenceNode):
            self._undecodable(path, "must be a list")
            return []
        return [self._value(kind, item, (*path, index)) for index, item in enumerate(node.value)]

    def _leaf(self, kind: Any, node: yaml.Node, path: Place) -> Any:  # noqa: ANN401
        if not isinstance(node, yaml.ScalarNode):
            self._undecodable(path, "must be a single value")
            return None
        if _shown_whole(node.value) != node.value:
            self._undecodable(path, "holds half of a surrogate pair, which is no character")
            return None
        text: object = node.value
        if node.tag == "tag:yaml.org,2002:int" and not (isinstance(kind, type) and kind in LEAVES):
            text = int(node.value) if node.value.isdecimal() else node.value
        elif node.tag == "tag:yaml.org,2002:null":
            self._undecodable(path, "has no value")
            return None
        return self._converted(kind, text, path)

    def _converted(self, kind: Any, value: object, path: Place) -> Any:  # noqa: ANN401
        leaf = LEAVES.get(kind) if isinstance(kind, type) else None
        try:
            if leaf is not None:
                return leaf.parse(str(value))
            return msgspec.convert(value, kind)
        except (ValueError, msgspec.ValidationError) as error:
            said = str(error) if leaf is not None else ""
            expected = leaf.expected if leaf is not None else _expected(kind, error)
            because = (
                f" ({said})" if said and not said.startswith(("Invalid isoformat", "month", "day")) else ""
            )
            self._undecodable(path, f"{_quoted(value)} is not {expected}{because}")
            return None


def _shown_whole(text: str) -> str:
    """Escape the halves of surrogate pairs: YAML can write them, and nothing else can."""
    return text.encode("utf-8", "backslashreplace").decode()


def _contains(path: Place, inner: Place) -> bool:
    return inner[: len(path)] == path


def _shown(path: Place) -> str:
    shown = ""
    for part in path:
        shown += f"[{part}]" if isinstance(part, int) else f".{part}" if shown else part
    return shown


def _why_unknown(kind: type[msgspec.Struct], name: str, known: Iterable[str]) -> str:
    if kind is TeamDocument and name in PolicyDocument.__struct_fields__:
        return "belongs into the policy file, and not into one that it includes"
    close = difflib.get_close_matches(name, known, 1)
    return f"unknown key; did you mean {close[0]}?" if close else f"unknown key; known are {', '.join(known)}"


def _quoted(value: object) -> str:
    return repr(value) if len(str(value)) <= 80 else repr(str(value)[:77] + "...")


def _expected(kind: Any, error: Exception) -> str:  # noqa: ANN401
    for meta in getattr(kind, "__metadata__", ()):
        if isinstance(meta, msgspec.Meta) and meta.description:
            return meta.description
    if kind is str:
        return "a text: put it in quotes"
    if isinstance(kind, type) and issubclass(kind, Inspection):
        return f"one of {', '.join(Inspection)}"
    return str(error)
