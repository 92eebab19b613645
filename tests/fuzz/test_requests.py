"""Mutated requests to the real proxy: what reaches the origin is what was decided, read by another parser."""

import json
import os
import random
import re
import sys
from collections.abc import Iterator

import h11
import pytest

from deploy.demo.certificates import Authority
from deploy.demo.json_lines import read_log
from deploy.demo.lab import ALICE, Lab
from tests.end_to_end import raw_origin
from tests.end_to_end.conftest import POLICY
from tests.end_to_end.test_streams import TO_RAW_ORIGIN
from tests.fuzz.conftest import seeds

HOST = "fuzz.example"
INPUTS = int(os.environ.get("FUZZ", "400"))
AT_ONCE = 50
SPICES = (
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b"\t",
    b" ",
    b"\x0b",
    b"\xff",
    b":",
    b",",
    b"chunked",
    b"0\r\n\r\n",
    b"Host: a.b\r\n",
)
# Sends each input on a connection of its own, and reads for a moment: what is half a request gets no answer.
SEND = """
import json, selectors, socket, sys, time
address, inputs = sys.argv[1], json.load(sys.stdin)
waiting, until = selectors.DefaultSelector(), time.monotonic() + 1.5
for data in inputs:
    one = socket.create_connection((address, 80), timeout=5)
    one.sendall(bytes.fromhex(data))
    waiting.register(one, selectors.EVENT_READ)
while waiting.get_map() and time.monotonic() < until:
    for key, _ in waiting.select(0.1):
        try:
            data = key.fileobj.recv(65536)
        except OSError:
            data = b""
        if not data:
            waiting.unregister(key.fileobj)
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The proxy, and an origin that keeps every byte."""
    with Lab(HOST, "other.example") as lab:
        lab.write_policy(POLICY)
        lab.apply()
        leaf = lab.folder / "internet" / "raw.pem"
        Authority().write_leaf(HOST, leaf)
        ipv4 = lab.addresses(HOST)[0]
        lab.add_name(HOST, ipv4)
        redirected = TO_RAW_ORIGIN.format(ipv4=ipv4, http=raw_origin.HTTP_PORT, tls=raw_origin.TLS_PORT)
        assert lab.run(["nft", "-f", "-"], ns="net", stdin=redirected).returncode == 0
        log = lab.folder / "internet" / "raw.jsonl"
        server = lab.start(
            [sys.executable, "-m", "tests.end_to_end.raw_origin", log, leaf], ns="net", log="raw-origin"
        )
        lab.wait(server, "raw-origin", lambda: "ready" in lab.output("raw-origin"))
        lab.start_proxy()
        yield lab


def mutated(chance: random.Random) -> bytes:
    data = chance.choice(seeds("request"))
    for _ in range(chance.randint(1, 3)):
        start = chance.randrange(len(data))
        end = start + chance.choice([0, 0, 1, 4])
        flipped = bytes([data[start] ^ 1 << chance.randrange(8)])
        line = data.find(b"\r\n", start)
        doubled = data[start : line + 2] if line > 0 else b""
        data = data[:start] + chance.choice([*SPICES, flipped, doubled, doubled]) + data[end:]
    return data


def test_what_reaches_the_origin_was_decided(lab: Lab) -> None:
    chance = random.Random(None if "FUZZ" in os.environ else 1)
    given = [*seeds("request"), *(mutated(chance) for _ in range(INPUTS))]
    for start in range(0, len(given), AT_ONCE):
        some = json.dumps([data.hex() for data in given[start : start + AT_ONCE]])
        sent = lab.run(
            [sys.executable, "-c", SEND, lab.addresses(HOST)[0]], uid=ALICE, stdin=some, timeout=60
        )
        assert sent.returncode == 0, sent.stderr

    connections: dict[int, bytes] = {}
    for record in read_log(lab.folder / "internet" / "raw.jsonl"):
        number = record["connection"]
        connections[number] = connections.get(number, b"") + record["data"].encode("latin-1")
    paths = [path for data in connections.values() for path in requests_in(data)]
    permits = [
        record["path"]
        for record in lab.audit()
        if (record["event"], record.get("outcome"), record.get("host")) == ("decision", "permit", HOST)
    ]
    assert paths, "some mutations are harmless"
    assert {path.partition("?")[0] for path in paths} <= set(permits)
    assert len(paths) <= len(permits)
    assert not re.search("Traceback|Addon error|crashed", lab.output("proxy"))


def requests_in(data: bytes) -> Iterator[str]:
    """Read what came on one connection, as an origin would; yield the path of each request."""
    peer = h11.Connection(h11.SERVER)
    peer.receive_data(data)
    while True:
        event = peer.next_event()
        match event:
            case h11.Request():
                fields = [name for name, _ in event.headers]
                hosts = [value for name, value in event.headers if name == b"host"]
                assert hosts[0].lower().removesuffix(b".") == HOST.encode()
                assert len(hosts) == 1
                assert b"x-agent-scope" not in fields
                assert not event.target.startswith(b"http")
                yield event.target.decode()
            case h11.EndOfMessage():
                peer.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                peer.send(h11.EndOfMessage())
                if peer.our_state is h11.MUST_CLOSE or peer.our_state is h11.SWITCHED_PROTOCOL:
                    return
                peer.start_next_cycle()
            case h11.NEED_DATA | h11.PAUSED | h11.ConnectionClosed():
                return
