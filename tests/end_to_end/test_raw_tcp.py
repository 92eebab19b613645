"""Further ports of a name with a live grant: SSH under the same grant, for its agent alone, with the same end."""

import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from deploy.demo.lab import ALICE, BOB, CONTAINER_LINK, NAMESERVERS, Lab
from tests.end_to_end.conftest import ALICE_FIELD, until

CONTAINER = ("10.88.0.11", "fd88::11")
BOB_FIELD = {"X-Agent-Scope": "sandbox-bob"}
POLICY = f"""\
version: 1
proxy: {{user: 61000}}
resolver: {{nameservers: [{NAMESERVERS[0]}], timeout: 1s}}
agents:
  alice: {{user: {ALICE}, scopes: [sandbox-alice]}}
  bob: {{user: {BOB}, scopes: [sandbox-bob]}}
  box4: {{interface: {CONTAINER_LINK}, source: {CONTAINER[0]}, scopes: [sandbox-bob]}}
  box6: {{interface: {CONTAINER_LINK}, source: "{CONTAINER[1]}", scopes: [sandbox-bob]}}
scopes:
  sandbox-alice: {{owner: alice@example.com}}
  sandbox-bob: {{owner: bob@example.com}}
trust:
  known-good:
    - {{domain: good.example, ports: [443, 22], inspection: full}}
  vetted:
    - {{domain: git.example, ports: [443, 22]}}
    - {{domain: moving.example, ports: [443, 22]}}
  brief:
    - {{domain: brief.example, ports: [443, 22]}}
  reading:
    - {{domain: reading.example, ports: [443, 22]}}
intents:
  default:
    vetted: {{ttl: 1h}}
    brief: {{ttl: 4s}}
    reading: {{methods: [GET, HEAD]}}
  free:
    reading: {{}}
"""
# Connects to a name or an address, and prints what greets it. To `stay` it tries until it may, and then sends for as
# long as it is answered.
DIAL = """
import socket, sys, time
family = {"4": socket.AF_INET, "6": socket.AF_INET6}[sys.argv[1]]
try:
    found = socket.getaddrinfo(sys.argv[2], int(sys.argv[3]), family, socket.SOCK_STREAM)[0]
    while True:
        client = socket.socket(family, socket.SOCK_STREAM)
        client.settimeout(20)
        try:
            client.connect(found[4])
            break
        except ConnectionRefusedError:
            if sys.argv[4] != "stay":
                raise
            time.sleep(0.1)
    print(client.recv(100).decode().strip(), found[4][0], flush=True)
    while sys.argv[4] == "stay":
        client.send(b"?")
        print("alive" if client.recv(100) else "closed", flush=True)
        time.sleep(0.1)
except OSError as error:
    print(type(error).__name__, flush=True)
"""
GREETED = "SSH-2.0-demo"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    names = ("git.example", "brief.example", "reading.example", "good.example", "moving.example")
    with Lab(*names) as lab:
        lab.add_container(*CONTAINER)
        lab.write_policy(POLICY)
        lab.apply()
        yield lab


@pytest.fixture(scope="module", autouse=True)
def running(lab: Lab) -> list[subprocess.Popen[bytes]]:
    """The proxy that runs, the last of them."""
    return [lab.start_proxy(log="first")]


def where(lab: Lab) -> tuple[str, ...]:
    return "--audit", str(lab.audit_file), "--control", str(lab.control_socket)


def request(
    lab: Lab, host: str, uid: int = ALICE, ns: str = "host", scope: str = "", family: str = "4"
) -> None:
    """Have a grant for a name."""
    field = {"X-Agent-Scope": scope} if scope else ALICE_FIELD if uid == ALICE else BOB_FIELD
    answer = lab.curl(f"https://{host}/", f"-{family}", uid=uid, ns=ns, headers=field)
    assert answer.status == 200, answer


def dial(lab: Lab, host: str, port: int = 22, family: str = "4", uid: int = ALICE, ns: str = "host") -> str:
    """Connect, and return what greets there, or how it fails."""
    done = lab.python(DIAL, family, host, str(port), "leave", uid=uid, ns=ns)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[0]


def stay(lab: Lab, host: str, log: str) -> subprocess.Popen[bytes]:
    """Have a grant, and use a connection as alice until it ends. The grant may be brief: who dials is there before."""
    running = lab.start(["python3", "-c", DIAL, "4", host, "22", "stay"], uid=ALICE, log=log)
    request(lab, host)
    assert until(lambda: "alive" in lab.output(log), 30), lab.output(log)
    return running


def record(lab: Lab, **fields: object) -> dict[str, Any]:
    """Wait for the last record that has these fields."""
    found: list[dict[str, Any]] = []

    def there() -> bool:
        found[:] = [one for one in lab.audit() if fields.items() <= one.items()]
        return bool(found)

    assert until(there, 10), f"no {fields} in {lab.audit()}"
    return found[-1]


def stop(running: list[subprocess.Popen[bytes]]) -> None:
    running[-1].kill()
    running[-1].wait(10)


def packets(lab: Lab, host: str) -> int:
    return sum(lab.packets_to(address, 22) for address in lab.addresses(host))


def test_a_further_port_is_open_to_who_has_a_grant_for_the_name(lab: Lab) -> None:
    for family in ("4", "6"):
        assert dial(lab, "git.example", family=family) == "ConnectionRefusedError"
    assert packets(lab, "git.example") == 0
    assert record(lab, event="drop", host="git.example", port=22)["agent"] == "alice"
    request(lab, "git.example")
    for family in ("4", "6"):
        assert dial(lab, "git.example", family=family) == GREETED
    assert record(lab, event="grant", host="git.example", agent="alice")["ports"] == [22]
    for address in lab.addresses("git.example"):
        direct = record(lab, event="direct", host="git.example", agent="alice", addresses=[address])
        assert (direct["port"], direct["uid"], direct["outcome"]) == (22, ALICE, "permit")
    listed = json.loads(lab.egress_policy("grants", *where(lab), "--json").stdout)
    (grant,) = [one for one in listed if one["host"] == "git.example"]
    assert (grant["port"], grant["ports"]) == (443, [22])
    assert "443 22" in lab.egress_policy("grants", *where(lab)).stdout


def test_nothing_else_opens(lab: Lab) -> None:
    """Not to another agent, on no other port, and not by the real address."""
    request(lab, "git.example")
    assert dial(lab, "git.example") == GREETED
    before = packets(lab, "git.example")
    for family, address in zip(("4", "6"), lab.addresses("git.example"), strict=True):
        assert dial(lab, "git.example", family=family, uid=BOB) == "ConnectionRefusedError"
        assert dial(lab, address, family=family) == "ConnectionRefusedError"
        for name in ("git.example", address):
            assert dial(lab, name, 8443, family) == "ConnectionRefusedError"
        assert lab.packets_to(address, 8443) == 0
    assert packets(lab, "git.example") == before
    request(lab, "git.example", BOB)
    assert dial(lab, "git.example", uid=BOB) == GREETED


@pytest.mark.parametrize("family", ["4", "6"])
def test_a_container_has_its_own(lab: Lab, family: str) -> None:
    ns = "container1"
    assert dial(lab, "git.example", family=family, uid=0, ns=ns) == "ConnectionRefusedError"
    request(lab, "git.example", uid=0, ns=ns, family=family)
    assert dial(lab, "git.example", family=family, uid=0, ns=ns) == GREETED
    other = "6" if family == "4" else "4"
    if family == "4":
        assert dial(lab, "git.example", family=other, uid=0, ns=ns) == "ConnectionRefusedError"
    assert record(lab, event="direct", host="git.example", agent=f"box{family}")["source"] in CONTAINER


def test_an_intent_that_limits_what_is_not_seen_opens_none(lab: Lab) -> None:
    request(lab, "reading.example")
    assert dial(lab, "reading.example") == "ConnectionRefusedError"
    request(lab, "reading.example", scope="sandbox-alice;intent=free")
    assert dial(lab, "reading.example") == GREETED
    told = lab.egress_policy(
        "explain",
        "--agent",
        "alice",
        "--scope",
        "sandbox-alice;intent=free",
        "GET",
        "https://reading.example/",
    )
    assert "it would open port 22 too" in told.stdout


def test_a_known_good_name_is_led_to_by_its_own_address(lab: Lab) -> None:
    assert dial(lab, "good.example") == "ConnectionRefusedError"
    assert lab.curl("https://good.example/", uid=ALICE).status == 200
    assert dial(lab, "good.example") == GREETED
    assert dial(lab, "good.example", uid=BOB) == "ConnectionRefusedError"


def test_a_name_that_moved_leads_elsewhere_from_the_next_request_on(lab: Lab) -> None:
    lab.add_name("moving.example", *lab.addresses("moving.example"), ttl=1)
    staying = stay(lab, "moving.example", "moving")
    try:
        old = lab.addresses("moving.example")
        lab.add_name("moving.example", *lab.addresses("brief.example"), ttl=1)
        new = lab.addresses("moving.example")[0]
        before = lab.packets_to(new, 22)

        def has_moved() -> bool:
            request(lab, "moving.example")
            assert dial(lab, "moving.example") == GREETED
            return lab.packets_to(new, 22) > before

        assert until(has_moved, 20)
        seen = lab.packets_to(old[0], 22)
        assert until(lambda: lab.packets_to(old[0], 22) > seen), "the old connection goes on"
        assert staying.poll() is None
    finally:
        staying.kill()


@pytest.mark.parametrize("end", ["expiry", "revocation", "pause", "another policy"])
def test_what_is_open_ends_with_its_grant(lab: Lab, end: str) -> None:
    host = "brief.example" if end == "expiry" else "git.example"
    staying = stay(lab, host, f"stay-{end}")
    try:
        match end:
            case "revocation":
                assert lab.egress_policy("revoke", *where(lab), "--host", host).returncode == 0
            case "pause":
                assert lab.egress_policy("pause", *where(lab), "--agent", "alice").returncode == 0
            case "another policy":
                lab.write_policy(POLICY.replace("git.example, ports: [443, 22]", "git.example"))
        assert staying.wait(20) == 0
        assert lab.output(f"stay-{end}").split()[-1] in {"ConnectionResetError", "ConnectionRefusedError"}
        assert dial(lab, host) == "ConnectionRefusedError"
        if end == "another policy":
            revoked = record(lab, event="revoke", host=host, agent="alice")
            assert revoked["detail"] == "the policy changed: it would not open port 22"
            request(lab, host)
            assert dial(lab, host) == "ConnectionRefusedError"
    finally:
        staying.kill()
        lab.egress_policy("resume", *where(lab), "--agent", "alice")
        if end == "another policy":
            lab.write_policy(POLICY)

    def is_back() -> bool:
        """A grant that was given without the port does not get it."""
        lab.egress_policy("revoke", *where(lab), "--host", host)
        request(lab, host)
        return dial(lab, host) == GREETED

    assert until(is_back, 30)


def test_what_is_open_is_not_the_next_agent_s_under_the_same_uid(lab: Lab) -> None:
    exchanged = {f"user: {ALICE}": f"user: {BOB}", f"user: {BOB}": f"user: {ALICE}"}
    staying = stay(lab, "git.example", "stay-exchanged")
    try:
        lab.write_policy(re.sub("|".join(exchanged), lambda found: exchanged[found[0]], POLICY))
        assert staying.wait(20) == 0
        why = "the policy changed: its agent is known by another user or source"
        assert record(lab, event="revoke", host="git.example", agent="alice", detail=why)
        assert dial(lab, "git.example") == "ConnectionRefusedError"
    finally:
        staying.kill()
        lab.write_policy(POLICY)

    def is_back() -> bool:
        return lab.curl("https://git.example/", uid=ALICE, headers=ALICE_FIELD).status == 200

    assert until(is_back, 30)


def test_it_ends_without_a_proxy_and_is_opened_anew_after_a_restart(
    lab: Lab, running: list[subprocess.Popen[bytes]]
) -> None:
    """A proxy that starts does not know which address it had told for which name: the next request tells."""
    lab.egress_policy("revoke", *where(lab), "--all")
    staying = stay(lab, "git.example", "stay-alone")
    stop(running)
    assert staying.poll() is None
    running.append(lab.start_proxy(log="second"))
    assert staying.wait(20) == 0, "the ways are not taken over"
    request(lab, "git.example")
    assert dial(lab, "git.example") == GREETED
    staying = stay(lab, "git.example", "stay-again")
    stop(running)
    revoked = lab.egress_policy("revoke", *where(lab), "--agent", "alice")
    assert revoked.returncode == 0, revoked.stderr
    assert staying.wait(20) == 0
    assert lab.output("stay-again").split()[-1] in {"ConnectionResetError", "ConnectionRefusedError"}
    for name in ("raw-tcp", "raw-tcp-ipv6"):
        listed = lab.run(["nft", "list", "map", "inet", "egress-policy", name]).stdout
        assert str(ALICE) not in listed


def test_another_apply_closes_it_while_no_proxy_follows_the_policy(
    lab: Lab, running: list[subprocess.Popen[bytes]]
) -> None:
    running.append(lab.start_proxy(log="third"))
    staying = stay(lab, "git.example", "stay-unfollowed")
    stop(running)
    assert staying.poll() is None
    lab.apply()
    assert staying.wait(20) == 0
    assert lab.output("stay-unfollowed").split()[-1] in {"ConnectionResetError", "ConnectionRefusedError"}
