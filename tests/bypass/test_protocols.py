"""What is spoken on a redirected connection, and what is never a connection of the proxy's."""

import pytest

from tests.bypass.attempts import BOTH, PROXY, attempt
from tests.bypass.world import World


@attempt(
    6,
    "Speak SSH to port 443 or 80",
    outcome="the connection is closed; no packet to the destination",
    barriers=BOTH,
    works_without=True,
)
@pytest.mark.parametrize("port", [80, 443])
def test_ssh_on_a_web_port(world: World, port: int) -> None:
    host, marker = world.raw_name(tls=False), world.marker()
    replies = world.send(host, port, f"SSH-2.0-{marker}\r\n")
    world.nothing_reached(host, marker=marker)
    if PROXY in world.barriers:
        assert {(reply.answer, reply.end) for reply in replies} == {("", "closed")}
