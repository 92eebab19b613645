"""What the kernel refused or let straight through is on record, with the agent and the name it asked for."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from deploy.demo.lab import ALICE, CONTAINER_LINK, OTHER, PROXY, Lab
from tests.end_to_end.conftest import ALICE_FIELD, NAMES, POLICY, until

CONTAINER = ("10.88.0.11", "fd88::11")
BOX_POLICY = POLICY.replace(
    "scopes:\n  sandbox-alice:",
    f"""\
  box4: {{interface: {CONTAINER_LINK}, source: {CONTAINER[0]}, scopes: [sandbox-bob]}}
  box6: {{interface: {CONTAINER_LINK}, source: "{CONTAINER[1]}", scopes: [sandbox-bob]}}
scopes:
  sandbox-alice:""",
)
DIAL = """
import socket, sys
family = socket.AF_INET if sys.argv[1] == "4" else socket.AF_INET6
kind = socket.SOCK_STREAM if sys.argv[2] == "tcp" else socket.SOCK_DGRAM
found = socket.getaddrinfo(sys.argv[3], int(sys.argv[4]), family, kind)[0]
for _ in range(int(sys.argv[5]) if len(sys.argv) > 5 else 1):
    with socket.socket(family, kind) as dialled:
        dialled.settimeout(3)
        try:
            dialled.connect(found[4])
            dialled.send(b"hello")
        except OSError as error:
            print(type(error).__name__)
print(found[4][0])
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The policy of the other tests, with a container that is two agents: one by IPv4, one by IPv6."""
    with Lab(*NAMES) as lab:
        lab.add_container(*CONTAINER)
        lab.write_policy(BOX_POLICY)
        lab.apply()
        lab.start_proxy()
        yield lab


def dial(lab: Lab, *arguments: str, uid: int = ALICE, ns: str = "host") -> str:
    """Connect, and return the address that the name led to."""
    done = lab.python(DIAL, *arguments, uid=uid, ns=ns)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def record(lab: Lab, **fields: object) -> dict[str, Any]:
    """Wait for the first record that has these fields."""
    found: list[dict[str, Any]] = []

    def there() -> bool:
        found[:] = [one for one in lab.audit() if fields.items() <= one.items()]
        return bool(found)

    assert until(there, 10), f"no {fields} in {lab.audit()}"
    return found[0]


@pytest.mark.parametrize("version", ["4", "6"])
def test_a_refused_attempt_is_on_record_with_its_agent_and_the_name(lab: Lab, version: str) -> None:
    """Port 22, as ssh would: the name was answered with an address of ours, which tells it."""
    address = dial(lab, version, "tcp", f"host{version}.example", "22")
    found = record(lab, event="drop", host=f"host{version}.example")
    assert found.items() >= {"agent": "alice", "uid": ALICE, "port": 22, "outcome": "deny"}.items()
    assert found["addresses"] == [address]
    assert found["detail"] == f"tcp to {address} port 22 was refused by the kernel"
    assert "source" not in found


@pytest.mark.parametrize("version", ["4", "6"])
def test_a_containers_refused_attempt_is_on_record_with_its_source(lab: Lab, version: str) -> None:
    address = dial(lab, version, "tcp", f"box{version}.example", "22", ns="container1")
    found = record(lab, event="drop", host=f"box{version}.example")
    source = CONTAINER[version == "6"]
    assert found.items() >= {"agent": f"box{version}", "source": source, "port": 22}.items()
    assert found["addresses"] == [address]
    assert "uid" not in found


def test_a_refused_datagram_is_on_record(lab: Lab) -> None:
    dial(lab, "4", "udp", "quic.example", "443")
    assert record(lab, event="drop", host="quic.example")["detail"].startswith("udp to 198.18.")


def test_a_client_that_tries_again_is_a_record_with_a_count(lab: Lab) -> None:
    dial(lab, "4", "tcp", "again.example", "22", "40")

    def all_counted() -> bool:
        return sum(map(_times, (one for one in lab.audit() if one.get("host") == "again.example"))) == 40

    assert until(all_counted, 10)
    assert len([one for one in lab.audit() if one.get("host") == "again.example"]) < 20


def _times(record: dict[str, Any]) -> int:
    *_, last = record["detail"].split(", ")
    if last == "once more":
        return 1
    return int(last.split()[0]) if last.endswith("more times") else 1


@pytest.mark.parametrize("version", ["4", "6"])
def test_a_connection_straight_through_the_kernel_is_on_record(lab: Lab, version: str) -> None:
    """Known-good without inspection: the proxy never sees it."""
    address = dial(lab, version, "tcp", "direct.example", "443")
    assert address in lab.addresses("direct.example")
    found = record(lab, event="direct", addresses=[address])
    expected = {"agent": "alice", "uid": ALICE, "host": "direct.example", "port": 443, "outcome": "permit"}
    assert found.items() >= expected.items()


def test_what_the_kernel_refuses_the_proxy_is_on_record_and_is_no_agents(lab: Lab) -> None:
    address = lab.addresses("a.example")[0]
    dial(lab, "4", "tcp", address, "444", uid=PROXY)
    found = record(lab, event="drop", uid=PROXY, port=444)
    assert "agent" not in found
    assert "the proxy itself" in found["detail"]


def test_who_is_no_agent_is_not_on_record(lab: Lab) -> None:
    address = lab.addresses("b.example")[0]
    dial(lab, "4", "tcp", address, "4444", uid=OTHER)
    dial(lab, "4", "tcp", address, "4445")
    record(lab, event="drop", port=4445)
    assert not [one for one in lab.audit() if one.get("port") == 4444]


LISTEN = """
import sys, time
from egress_policy.kernel_reports import Group
from egress_policy.nflog import Listener
with Listener(Group.REFUSED) as first, Listener(Group.DIRECT) as second:
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_proxy_that_is_not_the_only_listener_goes_on_and_takes_over_when_the_other_ends() -> None:
    with Lab("a.example") as lab:
        lab.write_policy(POLICY)
        lab.apply()
        other = lab.start([sys.executable, "-c", LISTEN], log="other")
        lab.wait(other, "other", _says_ready(lab))
        proxy = lab.start_proxy()
        assert "another program listens" in record(lab, event="drop", outcome="fail")["detail"]
        record(lab, event="direct", outcome="fail")
        assert lab.curl("https://a.example/", uid=ALICE, headers=ALICE_FIELD).status == 200
        other.terminate()
        other.wait(10)

        def heard() -> bool:
            dial(lab, "4", "tcp", "later.example", "22")
            return any(one.get("host") == "later.example" and one["event"] == "drop" for one in lab.audit())

        assert until(heard, 20)
        assert len([one for one in lab.audit() if one.get("outcome") == "fail"]) == 2
        proxy.terminate()
        proxy.wait(10)
        assert lab.output("proxy").count("NFLOG group 1") == 1


def _says_ready(lab: Lab) -> Callable[[], bool]:
    return lambda: "ready" in lab.output("other")
