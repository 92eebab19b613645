"""Connections that are opened and left idle, with fewer file descriptors than there are connections."""

import json
import sys
from collections.abc import Iterator

import pytest

from deploy.demo.lab import ALICE, BOB, DNS_PORT, PROXY, PROXY_PORT, Lab
from tests.end_to_end.conftest import NAMES, POLICY, until

DESCRIPTORS = 1024
IDLE = 1500
# Opens connections that say nothing, or begin a TLS handshake or a request, and holds those that it is left with
# until it is told to end; says how many they are whenever that has not changed for a second.
HOLD = """
import json, resource, selectors, socket, sys, time
address, count = sys.argv[1], int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (count + 100, count + 100))
selector, held = selectors.DefaultSelector(), set()
for number in range(count):
    try:
        sock = socket.create_connection((address, (443, 443, 80)[number % 3]), timeout=10)
        sock.sendall((b"", b"\\x16\\x03\\x01\\x02", b"GET / HTTP/1.1\\r\\nHost: ")[number % 3])
    except OSError:
        continue
    held.add(sock)
    selector.register(sock, selectors.EVENT_READ)
while True:
    ready = selector.select(1)
    if not ready:
        print(json.dumps(len(held)), flush=True)
        time.sleep(1)
    for key, _ in ready:
        selector.unregister(key.fileobj)
        held.discard(key.fileobj)
        key.fileobj.close()
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    """The policy in force, and the proxy running with few file descriptors."""
    with Lab(*NAMES) as lab:
        lab.write_policy(POLICY)
        lab.apply()
        command = ["prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}", *lab.proxy_command()]
        proxy = lab.start(command, uid=PROXY, caps=("net_admin",), log="proxy")
        lab.wait(proxy, "proxy", lambda: lab.listens(proxy, PROXY_PORT, DNS_PORT))
        yield lab


def test_an_agents_idle_connections_keep_no_other_agent_from_being_served(lab: Lab) -> None:
    """Nor can it hold more than a quarter of the proxy's file descriptors."""
    idler = lab.start(
        [sys.executable, "-c", HOLD, lab.addresses("a.example")[0], str(IDLE)], uid=ALICE, log="idler"
    )
    assert until(lambda: "\n" in lab.output("idler"), 60)
    for _ in range(3):
        answer = lab.curl("https://b.example/", uid=BOB)
        assert answer.status == 200, answer
    assert 0 < json.loads(lab.output("idler").splitlines()[0]) <= DESCRIPTORS // 4
    assert idler.poll() is None
