"""Clients that trust their own origin's certificate and no other: passed on by name, at any level of trust."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from deploy.demo.lab import ALICE, BOB, NAMESERVERS, Answer, Lab
from tests.end_to_end.conftest import ALICE_FIELD, until
from tests.end_to_end.test_tls import ENCRYPTED_CLIENT_HELLO, SEND, client_hello

POLICY = f"""\
version: 1
proxy: {{user: 61000}}
resolver: {{nameservers: [{NAMESERVERS[0]}], timeout: 1s}}
agents:
  alice: {{user: {ALICE}, scopes: [sandbox-alice]}}
  bob: {{user: {BOB}, scopes: [sandbox-bob], default_scope: sandbox-bob}}
scopes:
  sandbox-alice: {{owner: alice@example.com}}
  sandbox-bob: {{owner: bob@example.com}}
trust:
  vetted:
    - {{domain: pinned.example, inspection: name}}
  brief:
    - {{domain: brief.example, inspection: name}}
  reading:
    - {{domain: reading.example, inspection: name}}
  known-bad:
    - {{domain: bad.example}}
intents:
  default:
    vetted: {{ttl: 1h}}
    brief: {{ttl: 5s}}
    reading: {{methods: [GET, HEAD]}}
    unknown: {{methods: [GET, HEAD], max_body: 0}}
  free:
    reading: {{}}
    vetted: {{}}
"""
UNTRUSTED = 60
"""What curl exits with where it does not trust a certificate."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("pinned.example", "brief.example", "reading.example") as lab:
        shared = lab.addresses("pinned.example")
        for name in ("other.example", "bad.example"):
            lab.add_name(name, *shared)
        lab.write_policy(POLICY)
        lab.apply()
        lab.start_proxy()
        yield lab


def where(lab: Lab) -> tuple[str, ...]:
    return "--audit", str(lab.audit_file), "--control", str(lab.control_socket)


def fetch(
    lab: Lab, url: str, *options: str, uid: int = BOB, headers: Mapping[str, str] | None = None
) -> Answer:
    """Fetch as a client that trusts the origin's own authority alone."""
    return lab.curl(url, "--cacert", str(lab.internet_ca), *options, uid=uid, headers=headers)


def decisions(lab: Lab, **fields: object) -> list[dict[str, Any]]:
    return [one for one in lab.audit() if one["event"] == "decision" and fields.items() <= one.items()]


def packets(lab: Lab, host: str) -> int:
    return sum(lab.packets_to(address) for address in lab.addresses(host))


def requests(lab: Lab, path: str) -> int:
    return sum(one["event"] == "request" and one["path"] == path for one in lab.arrivals())


@pytest.mark.parametrize("http", ["--http1.1", "--http2"])
def test_a_pinned_client_speaks_with_its_origin(lab: Lab, http: str) -> None:
    answer = fetch(lab, "https://pinned.example/any", http, "-X", "DELETE")
    assert (answer.status, answer.json()["method"]) == (200, "DELETE")
    assert answer.json()["server_name"] == "pinned.example"
    assert answer.http == http.removeprefix("--http").removesuffix(".0")


def test_it_has_a_grant_and_the_log_says_that_nothing_but_the_name_was_seen(lab: Lab) -> None:
    assert fetch(lab, "https://pinned.example/secret").status == 200
    decision = decisions(lab, host="pinned.example", outcome="permit")[-1]
    expected = {
        "agent": "bob",
        "scope": "sandbox-bob",
        "intent": "default",
        "trust": "vetted",
        "inspection": "name",
    }
    assert expected.items() <= decision.items()
    assert not {"method", "path"} & decision.keys()
    shown = lab.egress_policy("audit", *where(lab)[:2], "--host", "pinned.example", "--lines").stdout
    assert "(by name)" in shown
    grants = json.loads(lab.egress_policy("grants", *where(lab), "--json").stdout)
    (grant,) = [one for one in grants if (one["host"], one["agent"]) == ("pinned.example", "bob")]
    assert (grant["scope"], grant["port"]) == ("sandbox-bob", 443)
    assert 0 < grant["remaining"] <= 3600


@pytest.mark.parametrize(
    ("host", "uid", "code"),
    [("pinned.example", ALICE, "scope_missing"), ("reading.example", BOB, "method_not_allowed")],
)
def test_what_it_may_not_is_told_to_who_reads_it_and_reaches_nobody(
    lab: Lab, host: str, uid: int, code: str
) -> None:
    """The header is not seen before the decision, and cannot change it afterwards. `explain` says the same."""
    before = packets(lab, host)
    field = f"sandbox-{'alice' if uid == ALICE else 'bob'};intent=free"
    headers = {"X-Agent-Scope": field}
    assert fetch(lab, f"https://{host}/", uid=uid, headers=headers).exit == UNTRUSTED
    answer = lab.curl(f"https://{host}/", uid=uid, headers=headers)
    assert (answer.status, answer.json()["code"]) == (403, code)
    assert packets(lab, host) == before
    agent = "alice" if uid == ALICE else "bob"
    asked = ("--agent", agent, "--scope", field, "--json", "GET", f"https://{host}/")
    explained = lab.egress_policy("explain", *asked)
    assert explained.returncode == 1
    told = json.loads(explained.stdout)
    assert (told["code"], told["detail"]) == (code, answer.json()["detail"])
    assert told["inspection"] == "name"


def test_explain_permits_what_the_proxy_passes_on(lab: Lab) -> None:
    explained = lab.egress_policy("explain", "--agent", "bob", "--json", "POST", "https://pinned.example/")
    assert explained.returncode == 0
    assert json.loads(explained.stdout)["inspection"] == "name"


def test_without_tls_the_intent_s_limits_hold(lab: Lab) -> None:
    assert fetch(lab, "http://reading.example/").status == 200
    assert fetch(lab, "http://reading.example/", "-d", "x").json()["code"] == "method_not_allowed"
    assert fetch(lab, "http://pinned.example/", uid=ALICE, headers=ALICE_FIELD).status == 200


def test_an_encrypted_client_hello_is_denied(lab: Lab) -> None:
    before, known = packets(lab, "pinned.example"), len(decisions(lab, code="destination_mismatch"))
    hello = client_hello("pinned.example", (ENCRYPTED_CLIENT_HELLO, bytes(32)))
    lab.python(SEND, lab.addresses("pinned.example")[0], hello.hex(), uid=BOB)
    assert until(lambda: len(decisions(lab, code="destination_mismatch")) > known, 10)
    assert packets(lab, "pinned.example") == before


def test_another_name_at_the_same_address_is_decided_by_itself(lab: Lab) -> None:
    """It is no more passed on undecrypted than it was; what is known-bad stays so."""
    assert fetch(lab, "https://pinned.example/").status == 200
    address = lab.addresses("pinned.example")[0]
    for name, code in (("other.example", "method_not_allowed"), ("bad.example", "destination_denied")):
        to = ("--resolve", f"{name}:443:{address}")
        assert fetch(lab, f"https://{name}/elsewhere", *to).exit == UNTRUSTED
        answer = lab.curl(f"https://{name}/elsewhere", *to, "-X", "DELETE", uid=BOB)
        assert answer.json()["code"] == code
    assert requests(lab, "/elsewhere") == 0


@pytest.mark.parametrize("end", ["expiry", "revocation", "pause", "another policy"])
def test_what_is_passed_on_is_cut_when_its_grant_ends(lab: Lab, end: str) -> None:
    host = "brief.example" if end == "expiry" else "pinned.example"
    streaming = hold(lab, host, f"/slow-stream?{end[0]}")
    try:
        match end:
            case "revocation":
                assert lab.egress_policy("revoke", *where(lab), "--host", host).returncode == 0
            case "pause":
                assert lab.egress_policy("pause", *where(lab), "--agent", "bob").returncode == 0
            case "another policy":
                lab.write_policy(POLICY.replace("pinned.example, inspection: name", "pinned.example"))
        # 18 is curl's "partial file", 56 a reset.
        assert streaming.wait(20) in {18, 56}
    finally:
        streaming.kill()
        lab.egress_policy("resume", *where(lab), "--agent", "bob")
        if end == "another policy":
            lab.write_policy(POLICY)
    ended = [one for one in lab.audit() if one["event"] in {"expire", "revoke"} and one["host"] == host]
    assert ended
    if end == "another policy":
        assert "inspected by name" in ended[-1]["detail"]
        assert until(lambda: fetch(lab, "https://pinned.example/").status == 200, 30), "it is by name again"


def hold(lab: Lab, host: str, path: str) -> subprocess.Popen[bytes]:
    """Begin to read a stream that has no end."""
    command = ["curl", "-sS", "-N", "--http1.1", "--cacert", str(lab.internet_ca), f"https://{host}{path}"]
    log = path.replace("/", "-")
    streaming = lab.start(command, uid=BOB, log=log)
    assert until(lambda: "line 2" in lab.output(log), 30), lab.output(log)
    return streaming
