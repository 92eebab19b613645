"""A way around the policy that somebody may try: what it is, what must come of it, and what stops it."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Flag, auto
from importlib import import_module
from pathlib import Path

import pytest


class Barrier(Flag):
    """What may stand between an agent and the internet; also names a world, by the barriers that stand in it."""

    PROXY = auto()
    KERNEL = auto()


PROXY = Barrier.PROXY
KERNEL = Barrier.KERNEL
BOTH = PROXY | KERNEL
NEITHER = Barrier(0)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One row of the table in docs/security.md.

    `barriers` are those that stop it, each alone where it is both. `works_without` says that the attempt succeeds
    where neither stands, and is shown to.
    """

    number: int
    text: str
    outcome: str
    barriers: Barrier
    works_without: bool

    def worlds(self) -> tuple[Barrier, ...]:
        """List the worlds to make it in."""
        alone = (PROXY, KERNEL) if self.barriers == BOTH else ()
        return (BOTH, *alone, *((NEITHER,) if self.works_without else ()))


def attempt(
    number: int, text: str, *, outcome: str, barriers: Barrier, works_without: bool = False
) -> pytest.MarkDecorator:
    """Mark a test that makes an attempt; where several tests make it, give the mark a name and use it for each."""
    return pytest.mark.attempt(Attempt(number, text, outcome, barriers, works_without))


def attempts() -> list[Attempt]:
    """Collect the attempts of all test files of this folder, by number."""
    return sorted(set(_marked()), key=lambda one: one.number)


def _marked() -> Iterator[Attempt]:
    for path in Path(__file__).parent.glob("test_*.py"):
        for _, function in inspect.getmembers(
            import_module(f"{__package__}.{path.stem}"), inspect.isfunction
        ):
            for mark in getattr(function, "pytestmark", ()):
                if mark.name == "attempt":
                    yield mark.args[0]
