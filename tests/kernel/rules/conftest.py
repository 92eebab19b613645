"""One world for all tests of the ruleset; each gets it with the ruleset as it should be."""

from collections.abc import Iterator

import pytest

from tests.kernel.rules.world import World


@pytest.fixture(scope="session")
def built_world() -> Iterator[World]:
    """Make the namespaces, once."""
    built = World.build()
    yield built
    built.close()


@pytest.fixture
def world(built_world: World) -> World:
    """Load the ruleset and the timed elements anew."""
    built_world.load()
    return built_world
