"""A day's work of three agents, and what the log alone tells of it afterwards."""

import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from deploy.demo.lab import ALICE, BOB, Lab
from egress_policy.audit_schema import json_schema
from tests.end_to_end.conftest import NAMES, POLICY, until

CAROL = 61004
DAY = POLICY.replace(
    "scopes:\n",
    f"  carol: {{user: {CAROL}, scopes: [sandbox-carol]}}\nscopes:\n  sandbox-carol: {{owner: carol@example.com}}\n",
    1,
)
VISITS = (
    (ALICE, "a.example", "sandbox-alice", "alice", "permit"),
    (ALICE, "b.example", "sandbox-alice", "alice", "permit"),
    (ALICE, "b.example", "sandbox-bob", "alice", "scope_not_allowed"),
    (BOB, "a.example", "sandbox-bob", "bob", "permit"),
    (BOB, "a.example", "sandbox-alice", "bob", "scope_not_allowed"),
    (CAROL, "b.example", "sandbox-carol", "carol", "permit"),
    (CAROL, "b.example", "sandbox-carol;intent=nonsense", "carol", "intent_unknown"),
)
ATTEMPTS = """
import socket
def tried(kind, where):
    with socket.socket(socket.AF_INET, kind) as one:
        one.settimeout(2)
        try:
            one.connect(where)
            one.send(b"x")
            one.recv(9)
        except OSError:
            pass
synthetic = socket.gethostbyname("a.example")
tried(socket.SOCK_STREAM, (synthetic, 22))
tried(socket.SOCK_DGRAM, ("45.90.0.10", 443))
tried(socket.SOCK_STREAM, ("45.90.0.10", 853))
"""


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lab, Counter[tuple[str, str, str]]]]:
    """A hundred requests in some order, and each agent's tries beside the proxy; then the proxy is gone."""
    done: Counter[tuple[str, str, str]] = Counter()
    with Lab(*NAMES) as lab:
        lab.write_policy(DAY)
        lab.apply()
        proxy = lab.start_proxy()
        order = random.Random(1)
        for _ in range(100):
            uid, host, field, agent, outcome = order.choice(VISITS)
            lab.curl(f"https://{host}/", uid=uid, headers={"X-Agent-Scope": field})
            done[agent, host, outcome] += 1
        for uid in (ALICE, BOB, CAROL):
            lab.python(ATTEMPTS, uid=uid)
        assert until(lambda: sum(one["event"] == "drop" for one in lab.audit()) >= 9)
        proxy.terminate()
        proxy.wait(10)
        yield lab, done


def asked(lab: Lab, *arguments: str) -> list[dict[str, Any]]:
    shown = lab.egress_policy("audit", "--audit", lab.audit_file, "--json", *arguments)
    assert shown.returncode == 0, shown.stderr
    return [json.loads(line) for line in shown.stdout.splitlines()]


def test_who_reached_a_host(day: tuple[Lab, Counter[tuple[str, str, str]]]) -> None:
    lab, done = day
    found = Counter(
        (one["agent"], one.get("code", "permit"))
        for one in asked(lab, "--host", "a.example")
        if one["event"] == "decision"
    )
    assert found == Counter(
        {(agent, out): n for (agent, host, out), n in done.items() if host == "a.example"}
    )


def test_what_a_scope_did(day: tuple[Lab, Counter[tuple[str, str, str]]]) -> None:
    lab, done = day
    found = Counter(
        one["host"]
        for one in asked(lab, "--scope", "sandbox-carol", "--since", "24h")
        if one["event"] == "decision"
    )
    assert found == Counter({"b.example": sum(n for (agent, _, _), n in done.items() if agent == "carol")})


def test_what_was_refused_and_why(day: tuple[Lab, Counter[tuple[str, str, str]]]) -> None:
    """By the proxy and by the kernel: the SSH attempt with the name that it was for."""
    lab, done = day
    refused = asked(lab, "--outcome", "deny")
    found = Counter((one["agent"], one["code"]) for one in refused if one["event"] == "decision")
    expected: Counter[tuple[str, str]] = Counter()
    for (agent, _, outcome), number in done.items():
        if outcome != "permit":
            expected[agent, outcome] += number
    assert found == expected
    drops = {(one["agent"], one.get("host"), one["port"]) for one in refused if one["event"] == "drop"}
    for agent in ("alice", "bob", "carol"):
        assert {(agent, "a.example", 22), (agent, None, 443), (agent, None, 853)} <= drops


def test_the_table_answers_in_80_columns(day: tuple[Lab, Counter[tuple[str, str, str]]]) -> None:
    lab, done = day
    command = [
        sys.executable,
        "-m",
        "egress_policy",
        "audit",
        "--audit",
        str(lab.audit_file),
        "--outcome",
        "deny",
    ]
    shown = lab.run(["env", "COLUMNS=80", *command]).stdout
    assert max(map(len, shown.splitlines())) <= 80
    count = done["carol", "b.example", "intent_unknown"]
    assert any(line.split()[:1] == [str(count)] and "intent_unknown" in line for line in shown.splitlines())


def test_every_record_is_as_the_schema_says(day: tuple[Lab, Counter[tuple[str, str, str]]]) -> None:
    lab, _ = day
    records = [json.loads(line) for line in lab.audit_file.read_text().splitlines()]
    assert {"decision", "grant", "end", "drop", "policy"} <= {record["event"] for record in records}
    validator = jsonschema.Draft202012Validator(json_schema())
    for record in records:
        validator.validate(record)


def test_the_day_s_traffic_is_on_record(day: tuple[Lab, Counter[tuple[str, str, str]]]) -> None:
    """Each permitted request is part of one exchange, under a grant that is on record."""
    lab, done = day
    ends = asked(lab, "--host", "a.example")
    exchanged = Counter(dict.fromkeys(("alice", "bob"), 0))
    for one in ends:
        if one["event"] == "end":
            exchanged[one["agent"]] += one["requests"]
    assert exchanged == Counter({agent: done[agent, "a.example", "permit"] for agent in ("alice", "bob")})
    grants = {one["id"] for one in ends if one["event"] == "grant"}
    assert {one["grant"] for one in ends if "grant" in one} == grants


def test_the_log_is_whole_and_a_tampered_copy_is_not(
    day: tuple[Lab, Counter[tuple[str, str, str]]], tmp_path: Path
) -> None:
    lab, _ = day
    lines = lab.audit_file.read_bytes().splitlines(keepends=True)
    copy = tmp_path / "audit.jsonl"

    def verify() -> int:
        return lab.egress_policy("audit", "--audit", copy, "--verify", "--journal", "/dev/null").returncode

    copy.write_bytes(b"".join(lines))
    assert verify() == 0
    for tampered in (
        lines[:20] + lines[21:],
        [
            *lines[:20],
            lines[20].replace(b'"permit"', b'"deny"').replace(b'"event"', b'"event" '),
            *lines[21:],
        ],
        [*lines[:20], lines[21], lines[20], *lines[22:]],
    ):
        copy.write_bytes(b"".join(tampered))
        assert verify() == 1
