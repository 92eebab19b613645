"""`explain` and the proxy answer alike: both ask the same functions, here against the same kernel and name server."""

import json

import pytest

from deploy.demo.lab import ALICE, BOB, Lab

REQUESTS = [
    pytest.param("alice", "sandbox-alice", "GET", "https://a.example/", id="permitted"),
    pytest.param("alice", "sandbox-alice", "GET", "http://a.example/", id="permitted, without TLS"),
    pytest.param("bob", None, "GET", "https://a.example/", id="a default scope"),
    pytest.param("alice", None, "GET", "https://a.example/", id="scope_missing"),
    pytest.param("alice", "sandbox-bob", "GET", "https://a.example/", id="scope_not_allowed"),
    pytest.param("alice", "sandbox-alice;ttl=0", "GET", "https://a.example/", id="scope_malformed"),
    pytest.param("alice", "sandbox-alice;intent=dig", "GET", "https://a.example/", id="intent_unknown"),
    pytest.param("alice", "sandbox-alice", "DELETE", "https://a.example/", id="method_not_allowed"),
    pytest.param("alice", "sandbox-alice", "GET", "https://x.bad.example/", id="destination_denied"),
    pytest.param("alice", "sandbox-alice", "GET", "http://66.1.2.3/", id="a known-bad address"),
    pytest.param("alice", "sandbox-alice", "GET", "http://8.8.4.4/", id="an address that nothing covers"),
    pytest.param("alice", "sandbox-alice", "GET", "https://private.example/", id="address_denied"),
    pytest.param("alice", "sandbox-alice", "GET", "https://missing.example/", id="resolution_failed"),
    pytest.param("alice", None, "GET", "https://full.example/", id="known-good"),
]


@pytest.mark.parametrize(("agent", "scope", "method", "url"), REQUESTS)
def test_explain_says_what_the_proxy_does(
    lab: Lab, agent: str, scope: str | None, method: str, url: str
) -> None:
    lab.add_name("private.example", "10.0.0.1")
    field = [] if scope is None else ["--scope", scope]
    explained = lab.egress_policy("explain", "--json", "--agent", agent, *field, method, url)
    foreseen = json.loads(explained.stdout)

    # Dialled at an address of the proxy's choosing: a known-bad name is not resolved.
    host, port = url.split("/")[2], 443 if url.startswith("https") else 80
    answer = lab.curl(
        url,
        *("-X", method, "--connect-to", f"{host}:{port}:{lab.addresses('a.example')[0]}:{port}"),
        uid={"alice": ALICE, "bob": BOB}[agent],
        headers={} if scope is None else {"X-Agent-Scope": scope},
    )
    record = next(one for one in reversed(lab.audit()) if one["event"] == "decision")
    compared = (
        "agent",
        "scope",
        "intent",
        "method",
        "host",
        "port",
        "path",
        "addresses",
        "trust",
        "outcome",
        "code",
    )
    assert {key: foreseen.get(key) for key in compared} == {key: record.get(key) for key in compared}
    assert explained.returncode == (0 if answer.status == 200 else 1)
    assert answer.json().get("code") == foreseen.get("code")
    last = [step["result"] for step in foreseen["steps"] if step["result"] != "not reached"][-1]
    assert (last in ("denied", "failed")) == (answer.status != 200)
