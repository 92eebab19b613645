"""What the proxy tells of itself over its socket: the policy in force, metrics, how it would decide; and to whom."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from deploy.demo.lab import ALICE, BOB, OTHER, Lab
from tests.end_to_end.conftest import NAMES, until
from tests.end_to_end.test_control import CONTROLLED, OPERATOR, OWNER, ask, schema_of, visit
from tests.test_metrics import value

# Begins a request, or a body, and never ends it; prints how long the proxy bore with it, and what it said.
SLOW = """
import socket, sys, time
began = time.monotonic()
with socket.socket(socket.AF_UNIX) as one:
    one.connect(sys.argv[1])
    one.settimeout(60)
    one.sendall(sys.argv[2].encode())
    answer = one.recv(4096)
print(f"{time.monotonic() - began:.0f} {answer[:12]!r}")
"""
HALF = {
    "head": "GET /v1/grants HTTP/1.1\r\nHost: localhost\r\n",
    "body": "POST /v1/pauses HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
    "nothing": "",
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(*NAMES) as lab:
        lab.write_policy(CONTROLLED)
        lab.apply()
        lab.start_proxy()
        yield lab


@pytest.fixture(scope="module", autouse=True)
def slow(lab: Lab) -> dict[str, subprocess.Popen[bytes]]:
    """Peers that take their time, while the other tests run."""
    return {
        name: lab.start(
            [sys.executable, "-c", SLOW, str(lab.control_socket), sent], uid=OTHER, log=f"slow-{name}"
        )
        for name, sent in HALF.items()
    }


def explained(lab: Lab, uid: int = 0, status: int = 200, **question: object) -> dict[str, Any]:
    asked = {"method": "GET", "url": "https://a.example/"} | question
    answer = ask(lab, "POST", "/v1/explain", asked, uid)
    assert answer.status == status, answer.body
    document: dict[str, Any] = answer.json()
    schema = schema_of("post", "/v1/explain", "200" if status == 200 else "default")
    jsonschema.validate(document, schema)
    return document


def test_what_agents_did_is_counted(lab: Lab) -> None:
    visit(lab)
    visit(lab, "x.bad.example")
    text = ask(lab, "GET", "/v1/metrics", uid=OPERATOR).body.encode()
    assert (value(text, "requests_total", outcome="permit", code="") or 0) >= 1
    assert (value(text, "requests_total", outcome="deny", code="destination_denied") or 0) >= 1
    assert value(text, "grants", scope="sandbox-alice") == 1
    assert (value(text, "decision_seconds_sum") or 0) > (value(text, "dns_seconds_sum") or 0) > 0
    assert (value(text, "netlink_seconds_sum") or 0) > 0
    assert value(text, "policy_info", version=hashlib.sha256(CONTROLLED.encode()).hexdigest()) == 1
    assert (value(text, "process_resident_memory_bytes") or 0) > 1e7


def test_refused_packets_are_counted(lab: Lab) -> None:
    connect = "import socket; socket.create_connection(('45.90.0.10', 22), 2)"
    assert lab.python(connect, uid=ALICE).returncode

    def refused() -> float:
        text = ask(lab, "GET", "/v1/metrics").body.encode()
        return value(text, "packets_total", verdict="refused") or 0

    assert until(lambda: refused() >= 1)


@pytest.mark.parametrize("uid", [OWNER, ALICE, OTHER], ids=["owner", "agent", "nobody"])
def test_only_operators_see_the_metrics(lab: Lab, uid: int) -> None:
    answer = ask(lab, "GET", "/v1/metrics", uid=uid)
    assert (answer.status, "egress_policy_" in answer.body) == (403, False)


def test_the_command_prints_the_metrics(lab: Lab) -> None:
    shown = lab.egress_policy("metrics", "--control", lab.control_socket)
    assert shown.returncode == 0, shown.stderr
    assert value(shown.stdout.encode(), "pauses") == 0
    nobody = lab.egress_policy("metrics", "--control", lab.folder / "nobody.sock")
    assert (nobody.returncode, nobody.stderr.count("\n")) == (1, 1)


def test_an_explanation_is_what_the_proxy_then_does(lab: Lab) -> None:
    permitted = explained(lab, agent="alice", scope="sandbox-alice", url="https://b.example/x?secret")
    assert (permitted["outcome"], permitted["addresses"]) == ("permit", list(lab.addresses("b.example")))
    assert "secret" not in json.dumps(permitted)
    assert visit(lab, "b.example") == "permit"
    denied = explained(lab, agent="alice", scope="sandbox-bob")
    assert denied["code"] == visit(lab, field={"X-Agent-Scope": "sandbox-bob"}) == "scope_not_allowed"
    careful = explained(lab, agent="alice", scope="sandbox-alice;intent=careful")
    assert careful["code"] == "pending_approval"
    assert not ask(lab, "GET", "/v1/approvals").json()["pending"], "it only asked"


def test_an_explanation_knows_what_people_decided(lab: Lab) -> None:
    ask(lab, "POST", "/v1/pauses", {"agent": "bob"})
    try:
        assert explained(lab, agent="bob")["code"] == "paused"
    finally:
        ask(lab, "DELETE", "/v1/pauses?agent=bob")


def test_an_agent_asks_for_itself_and_has_nothing_looked_up(lab: Lab) -> None:
    """A query would tell the name's own server something, and be on no record."""
    lab.add_name("asked.example")
    own = explained(lab, ALICE, scope="sandbox-alice", url="https://asked.example/")
    assert own["outcome"] == "permit"
    assert [step["result"] for step in own["steps"]][8:] == ["unchecked"] * 3
    assert not [query for query in lab.queries() if "asked.example" in json.dumps(query)]
    assert "asked.example" not in json.dumps(lab.audit())


@pytest.mark.parametrize(
    ("uid", "agent", "scope", "status"),
    [
        pytest.param(ALICE, "bob", "sandbox-bob", 403, id="an agent for another"),
        pytest.param(BOB, "alice", "sandbox-bob", 403, id="an agent for another, with the own scope"),
        pytest.param(OWNER, "alice", "sandbox-alice", 200, id="an owner in the own scope"),
        pytest.param(OWNER, "bob", "sandbox-bob", 403, id="an owner in another's scope"),
        pytest.param(OWNER, "bob", None, 403, id="an owner, an agent's default scope"),
        pytest.param(OWNER, "alice", "no scope!", 403, id="an owner in no scope"),
        pytest.param(OPERATOR, "bob", None, 200, id="an operator"),
        pytest.param(OPERATOR, "mallory", None, 404, id="an unknown agent"),
        pytest.param(OTHER, "alice", "sandbox-alice", 403, id="nobody"),
    ],
)
def test_who_may_ask_how_it_would_decide(
    lab: Lab, uid: int, agent: str, scope: str | None, status: int
) -> None:
    explained(lab, uid, status, agent=agent, **({} if scope is None else {"scope": scope}))


@pytest.mark.parametrize(
    "question",
    [
        {"url": "nonsense"},
        {"url": "https://[::1/"},
        {"body": -1},
        {"agent": None},
        {"method": 7},
        {"strange": 1},
    ],
    ids=str,
)
def test_a_question_that_is_none_is_refused_in_words(lab: Lab, question: dict[str, object]) -> None:
    explained(lab, 0, 400, **({"agent": "alice", "scope": "sandbox-alice"} | question))
    assert "Traceback" not in lab.output("proxy")


def test_the_policy_in_force_and_why_a_newer_one_is_not(lab: Lab) -> None:
    def policy(uid: int = 0) -> dict[str, Any]:
        answer = ask(lab, "GET", "/v1/policy", uid=uid)
        jsonschema.validate(answer.json(), schema_of("get", "/v1/policy"))
        document: dict[str, Any] = answer.json()
        return document

    before = policy()
    assert before["version"] == hashlib.sha256(CONTROLLED.encode()).hexdigest()
    assert before["error"] is None
    lab.write_policy(CONTROLLED + "nonsense: 1\n")
    try:
        assert ask(lab, "POST", "/v1/policy/reload", uid=OPERATOR).status == 202
        assert until(lambda: policy()["error"] is not None)
        assert "nonsense" in policy()["error"]
        assert (policy()["version"], policy()["loaded"]) == (before["version"], before["loaded"])
        assert policy(ALICE)["error"] is None
        assert value(ask(lab, "GET", "/v1/metrics").body.encode(), "policy_reload_failed") == 1
    finally:
        lab.write_policy(CONTROLLED)
    ask(lab, "POST", "/v1/policy/reload")
    assert until(lambda: policy()["error"] is None)
    assert policy()["loaded"] > before["loaded"]


@pytest.mark.parametrize("uid", [OWNER, ALICE, OTHER], ids=["owner", "agent", "nobody"])
def test_only_operators_reload(lab: Lab, uid: int) -> None:
    assert ask(lab, "POST", "/v1/policy/reload", uid=uid).status == 403


def test_an_endless_head_is_refused(lab: Lab) -> None:
    flood = "import sys, socket\none = socket.socket(socket.AF_UNIX); one.connect(sys.argv[1]); one.settimeout(9)\n"
    flood += "try:\n one.sendall(b'GET / HTTP/1.1\\r\\nX: ' + b'x' * 10**7)\n print(one.recv(99)[:12])\n"
    flood += "except ConnectionError:\n print(b'')\n"
    done = lab.python(flood, str(lab.control_socket), uid=OTHER)
    assert done.stdout.strip() in {"b''", "b'HTTP/1.1 400'", "b'HTTP/1.1 431'"}, done.stderr
    assert ask(lab, "GET", "/v1/whoami").status == 200


@pytest.mark.parametrize("name", HALF)
def test_a_slow_peer_is_let_go_of(lab: Lab, slow: dict[str, subprocess.Popen[bytes]], name: str) -> None:
    assert slow[name].wait(50) == 0, lab.output(f"slow-{name}")
    seconds, answer = lab.output(f"slow-{name}").split(maxsplit=1)
    assert 5 <= int(seconds) <= 45
    assert answer.strip() in {"b''", "b'HTTP/1.1 400'"}
