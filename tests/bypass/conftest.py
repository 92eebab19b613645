r"""Ways around the policy, made for real: raw bytes under an agent's uid, against a real mitmdump and kernel.

A row of the table in docs/security.md is a test:

    @attempt(6, "SSH spoken to port 443", outcome="closed without a packet", barriers=BOTH, works_without=True)
    def test_ssh(world: World) -> None:
        host, marker = world.raw_name(), world.marker()
        replies = world.send(host, 443, f"SSH-2.0-{marker}\r\n")
        world.nothing_reached(host, marker=marker)
        if PROXY in world.barriers:
            assert {(reply.answer, reply.end) for reply in replies} == {("", "closed")}

It runs in a world where both barriers stand. One that each stops alone (`barriers=BOTH`) also runs in the two worlds
where the other is gone: there it must be stopped too, though the answer may be another. With `works_without=True` it
runs where neither stands, and must succeed: in that world `nothing_reached` asserts that all of it arrived.

Use names of the test's own (`world.name`, `world.raw_name`), which nothing else has touched. `world.send` dials every
address of a name by IPv4, by IPv6 and by IPv4 mapped into IPv6 at once. Add variants by `parametrize`; where a row
needs several tests, give the mark a name and use it for each. Then `python -m tests.bypass.table` writes the table.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache

import pytest

from tests.bypass.attempts import BOTH, KERNEL, NEITHER, PROXY, Barrier
from tests.bypass.world import World, open_world

_WORLDS = {BOTH: "both", PROXY: "proxy alone", KERNEL: "kernel alone", NEITHER: "neither"}


def pytest_configure(config: pytest.Config) -> None:
    """Declare the mark."""
    config.addinivalue_line("markers", "attempt: a way around the policy; use tests.bypass.attempts.attempt")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make each attempt in the worlds that it asks for."""
    mark = metafunc.definition.get_closest_marker("attempt")
    if mark is not None:
        worlds = [pytest.param(barriers, id=_WORLDS[barriers]) for barriers in mark.args[0].worlds()]
        metafunc.parametrize("world", worlds, indirect=True)


@pytest.fixture(scope="session")
def worlds() -> Iterator[Callable[[Barrier], World]]:
    """The worlds, each built when it is first asked for."""
    with ExitStack() as closing:
        yield cache(lambda barriers: closing.enter_context(open_world(barriers)))


@pytest.fixture
def world(request: pytest.FixtureRequest, worlds: Callable[[Barrier], World]) -> World:
    """A world with its proxy running."""
    world = worlds(request.param)
    world.ensure_proxy()
    return world
