"""The kill switch: what a person has paused, and when; kept in a file, so that it outlives a restart.

The file is beside the audit log, the one folder that the proxy must be able to write to.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from egress_policy.audit_files import STANDARD_OUTPUT
from egress_policy.policy import Policy

type Target = tuple[str, str | None]
"""What is paused: its kind (`all`, `scope`, `agent`) and, of the last two, its name."""


class PausesError(Exception):
    """The file of pauses cannot be read or written: the message says why, and what to do."""


class Pause(msgspec.Struct, frozen=True):
    """Who paused, and when (RFC 3339, UTC)."""

    by: str
    since: str


class Pauses(msgspec.Struct, frozen=True):
    """What is paused: single scopes and agents, or with `all` every agent."""

    all: Pause | None = None
    scopes: dict[str, Pause] = {}
    agents: dict[str, Pause] = {}

    def of_agent(self, agent: str) -> Pause | None:
        """Return the pause that keeps an agent from everything."""
        return self.all or self.agents.get(agent)

    def of_scope(self, scope: str) -> Pause | None:
        """Return the pause that keeps a scope from new grants."""
        return self.all or self.scopes.get(scope)

    def covers(self, agent: str, scope: str) -> bool:
        """Tell whether a grant of this agent and scope must be taken back."""
        return (self.of_agent(agent) or self.of_scope(scope)) is not None

    def __iter__(self) -> Iterator[tuple[Target, Pause]]:
        """Yield each pause and what it is of."""
        if self.all is not None:
            yield ("all", None), self.all
        yield from ((("scope", name), pause) for name, pause in sorted(self.scopes.items()))
        yield from ((("agent", name), pause) for name, pause in sorted(self.agents.items()))

    def find(self, target: Target) -> Pause | None:
        """Return the pause of exactly this scope, this agent, or all."""
        return dict(self).get(target)

    def changed(self, target: Target, pause: Pause | None) -> "Pauses":
        """Return these pauses with one set, or with None lifted."""
        kind, name = target
        if kind == "all":
            return msgspec.structs.replace(self, all=pause)
        field = f"{kind}s"
        rest = {other: kept for other, kept in getattr(self, field).items() if other != name}
        if pause is not None and name is not None:
            rest[name] = pause
        return msgspec.structs.replace(self, **{field: rest})


NOTHING = Pauses()


def target_of(scope: str | None, agent: str | None, everything: bool) -> Target:
    """Say which of the three is meant. Raises ValueError where it is not exactly one."""
    given: list[Target] = [("scope", scope)] if scope else []
    given += [("agent", agent)] if agent else []
    given += [("all", None)] if everything else []
    if len(given) != 1:
        raise ValueError("not exactly one of scope, agent and all")
    return given[0]


def is_of(policy: Policy, target: Target) -> bool:
    """Tell whether a policy has what is to be paused."""
    kind, name = target
    return kind == "all" or name in (policy.scopes if kind == "scope" else policy.agents)


def named(target: Target) -> str:
    """Name what is paused, for people."""
    kind, name = target
    return "everything" if name is None else f"{kind} {name}"


def pauses_file(audit: str) -> Path | None:
    """Name the file that belongs to an audit log; there is none beside standard output."""
    return None if audit == STANDARD_OUTPUT else Path(audit).with_name("paused.json")


def read_pauses(path: Path | None) -> Pauses:
    """Read what is paused. Raises PausesError: what is paused must not be forgotten because a file is bad."""
    if path is None:
        return NOTHING
    try:
        return msgspec.json.decode(path.read_bytes(), type=Pauses)
    except FileNotFoundError:
        return NOTHING
    except OSError as error:
        raise PausesError(f"{path} cannot be read, and says what is paused: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PausesError(f"{path} says what is paused, and cannot be understood: {error}") from None


def write_pauses(path: Path | None, pauses: Pauses) -> None:
    """Keep what is paused, through a crash too. Raises PausesError."""
    if path is None:
        raise PausesError("it is not kept: with the audit log on standard output there is no file for it")
    try:
        # Made anew, under a name that nobody could foresee: the folder is the proxy's, and root writes here too.
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        new = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(pauses)) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise PausesError(f"{path} cannot be written: {error.strerror}") from None
