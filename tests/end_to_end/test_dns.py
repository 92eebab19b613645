"""DNS on the real kernel: what is answered, and that no name leaves the host that nobody approved."""

import ipaddress
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import pytest

from deploy.demo.lab import ALICE, CONTAINER_LINK, DNS_PORT, HOST_ADDRESSES, NAMESERVERS, Lab
from deploy.demo.zone import Behaviour
from egress_policy.destination import Network
from egress_policy.name_server import SYNTHETIC_IPV4, SYNTHETIC_IPV6
from tests.end_to_end.conftest import ALICE_FIELD, NAMES, POLICY

CONTAINER = "10.88.0.11"
BOX_POLICY = POLICY.replace(
    "scopes:\n  sandbox-alice:",
    f"  box: {{interface: {CONTAINER_LINK}, source: {CONTAINER}, scopes: [sandbox-bob]}}\nscopes:\n  sandbox-alice:",
).replace(
    "    - {domain: named.example}\n",
    "    - {domain: named.example}\n    - {domain: moved.example, inspection: none}\n    - {domain: lost.example}\n",
)
ASK = """
import dns.exception, dns.message, dns.query, json, sys
server, transport, *wires = sys.argv[1:]
ask = dns.query.tcp if transport == "tcp" else dns.query.udp
answers = []
for wire in wires:
    query = dns.message.from_wire(bytes.fromhex(wire))
    try:
        # A datagram may be lost on a busy machine: ask again, as resolvers do.
        for patience in (3, 10):
            try:
                answers.append(ask(query, server, timeout=patience).to_wire().hex())
                break
            except dns.exception.Timeout:
                pass
        else:
            answers.append("timeout")
    except OSError as error:
        answers.append(type(error).__name__)
print(json.dumps(answers))
"""
_NETWORKS: dict[str, Network] = {"A": SYNTHETIC_IPV4, "AAAA": SYNTHETIC_IPV6}
TRANSPORTS = [(server, transport) for server in NAMESERVERS for transport in ("udp", "tcp")]
IDS = [f"{transport}{'6' if ':' in server else '4'}" for server, transport in TRANSPORTS]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The policy of the other tests with two more known-good names, and a container."""
    with Lab(*NAMES, "moved.example", "lost.example") as lab:
        lab.add_name("moved.example", ttl=0)
        lab.add_container(CONTAINER)
        lab.write_policy(BOX_POLICY)
        lab.apply()
        lab.start_proxy()
        yield lab


@dataclass(frozen=True, slots=True)
class Way:
    """How a query is sent: to which server, over which transport, by whom."""

    server: str = NAMESERVERS[0]
    transport: str = "udp"
    uid: int = ALICE
    ns: str = "host"


def ask(lab: Lab, way: Way, *questions: tuple[str, str]) -> list[dns.message.Message]:
    """Ask for names and types, one after the other."""
    wires = [dns.message.make_query(name, kind, use_edns=0).to_wire().hex() for name, kind in questions]
    done = lab.run([sys.executable, "-c", ASK, way.server, way.transport, *wires], uid=way.uid, ns=way.ns)
    assert done.returncode == 0, done.stderr
    return [dns.message.from_wire(bytes.fromhex(answer)) for answer in json.loads(done.stdout)]


def addresses(answer: dns.message.Message) -> set[str]:
    return {record.to_text() for rrset in answer.answer for record in rrset}


def asked(lab: Lab, marker: str) -> list[dict[str, Any]]:
    """The queries with this in their name that left the host."""
    return [query for query in lab.queries() if marker in query["name"].lower()]


@pytest.mark.parametrize(("server", "transport"), TRANSPORTS, ids=IDS)
def test_no_query_leaves_for_a_name_that_nobody_approved(lab: Lab, server: str, transport: str) -> None:
    marker = f"secret-{transport}-{'6' if ':' in server else '4'}"
    kinds = ("A", "AAAA", "TXT", "HTTPS", "ANY", "MX", "NULL")
    names = (f"{marker}.unknown.example", f"{marker}.bad.example", f"{marker}.direct.example")
    questions = [(name, kind) for name in names for kind in kinds]
    answers = ask(lab, Way(server, transport), *questions)
    assert asked(lab, marker) == []
    for (name, kind), answer in zip(questions, answers, strict=True):
        if "bad" in name:
            assert answer.rcode() == dns.rcode.REFUSED
        else:
            assert answer.rcode() == dns.rcode.NOERROR
            network = _NETWORKS.get(kind)
            found = [ipaddress.ip_address(one) for one in addresses(answer)]
            assert [address in network for address in found] == [True] if network else found == []


@pytest.mark.parametrize(("server", "transport"), TRANSPORTS, ids=IDS)
def test_a_known_good_name_is_answered_truly(lab: Lab, server: str, transport: str) -> None:
    way = Way(server, transport)
    ipv4, ipv6 = ask(lab, way, ("direct.example", "A"), ("direct.example", "AAAA"))
    assert addresses(ipv4) | addresses(ipv6) == set(lab.addresses("direct.example"))


def test_the_addresses_of_a_direct_name_are_open_before_the_agent_knows_them(lab: Lab) -> None:
    """A name that moves at once: whatever address is answered, the agent gets through to it."""
    for _ in range(4):
        (address,) = _fresh(lab)
        lab.add_name("moved.example", address, ttl=0)
        assert lab.curl("https://moved.example/", uid=ALICE).status == 200
        assert lab.packets_to(address, 443)


_numbers = iter(range(1, 250))


def _fresh(lab: Lab) -> tuple[str, ...]:
    address = f"45.90.77.{next(_numbers)}"
    lab.add_name(f"at-{address}.example", address)
    return (address,)


def test_an_answer_is_good_for_as_long_as_dns_says(lab: Lab) -> None:
    lab.add_name("moved.example", *_fresh(lab), ttl=17)

    (answer,) = ask(lab, Way(), ("moved.example", "A"))
    assert addresses(answer) == set(lab.addresses("moved.example"))
    assert 0 < answer.answer[0].ttl <= 17


def test_a_known_good_name_that_nobody_can_resolve_fails_with_a_reason(lab: Lab) -> None:
    lab.add_name("lost.example", behaviour=Behaviour.SERVFAIL)
    (answer,) = ask(lab, Way(), ("lost.example", "A"))
    assert answer.rcode() == dns.rcode.SERVFAIL
    assert int(answer.options[0].otype) == 15
    lab.remove_name("lost.example")
    (answer,) = ask(lab, Way(), ("lost.example", "A"))
    assert (answer.rcode(), answer.answer) == (dns.rcode.NOERROR, [])


@pytest.mark.parametrize(
    ("way", "who"),
    [
        (Way(), {"agent": "alice", "uid": ALICE}),
        (Way(NAMESERVERS[1], "tcp"), {"agent": "alice", "uid": ALICE}),
        (Way(ns="container1"), {"agent": "box", "source": CONTAINER}),
    ],
    ids=["UDP", "TCP over IPv6", "a container"],
)
def test_a_known_bad_name_is_on_record_with_its_agent(lab: Lab, way: Way, who: dict[str, Any]) -> None:
    name = f"{way.transport}-{way.ns}.bad.example"
    ask(lab, way, (name, "A"))
    (record,) = (one for one in lab.audit() if one.get("host") == name)
    assert record.items() >= {"event": "decision", "outcome": "deny", "code": "destination_denied"}.items()
    assert record.items() >= who.items()
    assert record["detail"] == "the name is known-bad: *.bad.example"
    assert "method" not in record


@pytest.mark.parametrize("way", [Way(), Way(ns="container1")], ids=["a user", "a container"])
@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_another_server_is_ours_all_the_same(lab: Lab, way: Way, transport: str) -> None:
    """Nobody is at that address: who answers is the proxy."""
    (answer,) = ask(lab, Way("9.9.9.9", transport, ns=way.ns), ("other-server.example", "A"))
    (address,) = addresses(answer)
    assert ipaddress.ip_address(address) in SYNTHETIC_IPV4
    assert lab.packets_to("9.9.9.9") == 0


DIAL = """
import socket, sys
server, kind, port = sys.argv[1:]
with socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, getattr(socket, kind)) as dialled:
    dialled.settimeout(3)
    try:
        dialled.connect((server, int(port)))
        dialled.send(b"hello")
        dialled.recv(1)
    except OSError as error:
        print(type(error).__name__)
"""


@pytest.mark.parametrize("server", NAMESERVERS)
@pytest.mark.parametrize(("kind", "port"), [("SOCK_STREAM", 853), ("SOCK_DGRAM", 853), ("SOCK_STREAM", 5353)])
def test_dns_over_tls_and_other_ports_are_refused(lab: Lab, server: str, kind: str, port: int) -> None:
    done = lab.python(DIAL, server, kind, str(port), uid=ALICE)
    assert done.stdout.strip() in {"ConnectionRefusedError", "PermissionError"}
    assert lab.packets_to(server, port) == 0


def test_only_the_agents_queries_are_answered(lab: Lab) -> None:
    """The proxy's port, asked directly, is refused: no other user may learn or use up its addresses."""
    done = lab.python(DIAL, HOST_ADDRESSES[0], "SOCK_STREAM", str(DNS_PORT), uid=ALICE)
    assert done.stdout.strip() == "ConnectionRefusedError"


MANY = """
import dns.message, json, socket, struct, sys
queries = b""
for number in range(2000):
    wire = dns.message.make_query(f"{number}.pipelined.example", "A").to_wire()
    queries += struct.pack("!H", len(wire)) + wire
with socket.create_connection((sys.argv[1], 53), timeout=30) as stream:
    stream.sendall(queries[:20000])
    answered, buffer = 0, b""
    expected = queries[:20000].count(b"pipelined")
    while answered < expected:
        buffer += stream.recv(65536)
        while len(buffer) >= 2 and len(buffer) >= 2 + (length := struct.unpack("!H", buffer[:2])[0]):
            answered += dns.message.from_wire(buffer[2 : 2 + length]).rcode() == 0
            buffer = buffer[2 + length :]
    print(answered == expected)
    # Part of a query, and then the end.
    stream.sendall(b"\\x00\\xffabc")
"""


def test_queries_sent_ahead_on_one_connection_are_all_answered(lab: Lab) -> None:
    done = lab.python(MANY, NAMESERVERS[0], uid=ALICE)
    assert done.stdout.strip() == "True", done.stderr


def test_what_is_no_message_ends_nothing_but_its_own_connection(lab: Lab) -> None:
    for kind in ("SOCK_DGRAM", "SOCK_STREAM"):
        assert lab.python(DIAL, NAMESERVERS[0], kind, "53", uid=ALICE).returncode == 0
    (answer,) = ask(lab, Way(), ("still.example", "A"))
    assert addresses(answer)


ANSWER = """
import dns.flags, dns.message, socket, sys
query = dns.message.make_query("answer.example", "A", id=1)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
    one.settimeout(10)
    one.connect((sys.argv[1], 53))
    query.flags |= dns.flags.QR
    one.send(query.to_wire())
    one.send(b"short")
    one.send(dns.message.make_query("answer.example", "A", id=2).to_wire())
    print(dns.message.from_wire(one.recv(512)).id)
"""


def test_an_answer_is_not_answered(lab: Lab) -> None:
    """Two name servers could keep each other busy for ever."""
    assert lab.python(ANSWER, NAMESERVERS[0], uid=ALICE).stdout.strip() == "2"


def test_the_synthetic_address_is_never_contacted(lab: Lab) -> None:
    assert lab.curl("https://a.example/", uid=ALICE, headers=ALICE_FIELD).status == 200
    assert lab.packets_to(str(SYNTHETIC_IPV4)) == 0
    assert lab.packets_to(str(SYNTHETIC_IPV6)) == 0


def test_a_query_that_cannot_be_decided_fails_and_none_leaves_the_host() -> None:
    """Mitmproxy's own DNS would ask the host's name server when a hook raises."""
    with Lab(*NAMES) as lab:
        lab.write_policy(POLICY)
        lab.apply()
        script = lab.folder / "raising.py"
        script.write_text(
            "import sys\n"
            f"sys.path.insert(0, {str(Path(__file__).parents[2] / 'addons')!r})\n"
            "import dns_replies\n"
            "def answer(*_):\n    raise RuntimeError('on purpose')\n"
            "dns_replies.NameServer.answer = answer\n"
            "from scope import addons\n"
        )
        script.chmod(0o644)
        lab.start_proxy(script=script)
        before = len(lab.queries())
        for transport in ("udp", "tcp"):
            for answer in ask(lab, Way(transport=transport), ("named.example", "A"), ("x.example", "AAAA")):
                assert answer.rcode() == dns.rcode.SERVFAIL
        assert {query["name"] for query in lab.queries()[before:]} <= {"direct.example"}


FLOOD = """
import dns.message, socket, sys, time
wires = [dns.message.make_query(f"{number}.flood.example", "A").to_wire() for number in range(100)]
end = time.monotonic() + 4
while time.monotonic() < end:
    for wire in wires:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            try:
                one.sendto(wire, (sys.argv[1], 53))
            except OSError:
                pass
"""


def test_a_flood_from_ever_other_ports_fills_no_memory_and_is_over_when_it_ends() -> None:
    """Mitmproxy's own UDP server took 200 MiB in 8 s, and 10 s to answer the next query after it."""
    with Lab(*NAMES) as lab:
        lab.write_policy(POLICY)
        lab.apply()
        proxy = lab.start_proxy()
        ask(lab, Way(), ("before.example", "A"))
        before = _resident(proxy.pid)
        assert lab.python(FLOOD, NAMESERVERS[0], uid=ALICE).returncode == 0
        (answer,) = ask(lab, Way(), ("after.example", "A"))
        assert addresses(answer)
        assert _resident(proxy.pid) - before < 40


IDLE = """
import dns.message, socket, struct, sys
wire = dns.message.make_query("idle.example", "A").to_wire()
query = struct.pack("!H", len(wire)) + wire
streams = []
for _ in range(700):
    stream = socket.create_connection((sys.argv[1], 53), timeout=10)
    stream.sendall(query)
    assert stream.recv(512)
    streams.append(stream)
open_ones = 0
for stream in streams:
    stream.settimeout(0.02)
    try:
        open_ones += stream.recv(1) != b""
    except TimeoutError:
        open_ones += 1
    except ConnectionResetError:
        pass
print(open_ones)
"""


def test_of_too_many_idle_connections_the_oldest_are_closed(lab: Lab) -> None:
    done = lab.python(IDLE, NAMESERVERS[0], uid=ALICE)
    assert 0 < int(done.stdout) <= 500, done.stderr
    (answer,) = ask(lab, Way(transport="tcp"), ("not-idle.example", "A"))
    assert addresses(answer)


def _resident(pid: int) -> float:
    """The memory of a process, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) / 1024
