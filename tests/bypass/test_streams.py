"""What never ends, or ends too late."""

import pytest

from tests.bypass.attempts import BOTH, PROXY, attempt
from tests.bypass.world import World

ENDLESS = 1_000_000


@attempt(
    57,
    "Send a header line, or header lines, without end",
    outcome="closed within 256 KiB; no packet to the destination",
    barriers=BOTH,
)
@pytest.mark.parametrize(
    "data",
    [
        "GET / HTTP/1.1\r\nHost: HOST\r\nX: " + "a" * ENDLESS,
        "GET / HTTP/1.1\r\n" + "X: a\r\n" * (ENDLESS // 6),
    ],
    ids=["a line", "lines"],
)
def test_endless_heads(world: World, data: str) -> None:
    host = world.raw_name()
    replies = world.send(host, 80, data.replace("HOST", host), patience=3.0)
    world.nothing_reached(host)
    if PROXY in world.barriers:
        assert {reply.answer for reply in replies} == {""}
        assert "silence" not in {reply.end for reply in replies}
