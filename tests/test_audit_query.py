"""What the audit log answers, from records alone."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from egress_policy.audit import AuditLog, Record
from egress_policy.audit_query import MOST_GROUPS, OTHERS, Query, grouped, read_since
from egress_policy.cli.audit import audit

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def decision(host: str, outcome: str = "permit", code: str | None = None, **fields: object) -> Record:
    values: dict[str, Any] = {
        "agent": "alice",
        "scope": "sandbox-alice",
        "port": 443,
        "method": "GET",
    } | fields
    return Record(
        time="2026-03-01T11:00:00.000Z", event="decision", host=host, outcome=outcome, code=code, **values
    )


DROP = Record(
    time="2026-03-01T11:30:00.000Z",
    event="drop",
    agent="bob",
    outcome="deny",
    addresses=("45.90.0.9",),
    port=22,
)
RECORDS = (
    decision("a.example"),
    decision("a.example"),
    decision("x.docs.example", "deny", "trust_not_allowed"),
    decision("a.example", agent="bob", scope="sandbox-bob"),
    DROP,
    Record(
        time="2026-03-01T11:00:00.000Z", event="grant", agent="alice", scope="sandbox-alice", host="a.example"
    ),
)


@pytest.fixture
def log(tmp_path: Path) -> str:
    path = str(tmp_path / "audit.jsonl")
    log = AuditLog(path)
    for one in RECORDS:
        log.write(one)
    log.close()
    return path


@pytest.mark.parametrize(
    ("query", "count"),
    [
        (Query(), 6),
        (Query(host="a.example"), 4),
        (Query(host="*.docs.example"), 1),
        (Query(host="docs.example"), 0),
        (Query(host="45.90.0.9"), 1),
        (Query(scope="sandbox-bob"), 1),
        (Query(agent="bob"), 2),
        (Query(outcome="deny"), 2),
        (Query(agent="bob", outcome="deny"), 1),
    ],
)
def test_a_query_means_what_agrees_with_all_of_it(query: Query, count: int) -> None:
    assert sum(map(query.matches, RECORDS)) == count


def test_groups_count_traffic_and_nothing_else() -> None:
    groups = grouped(RECORDS)
    assert {kind: group.count for kind, group in groups.items()} == {
        ("alice", "sandbox-alice", "a.example:443", "permit", ""): 2,
        ("alice", "sandbox-alice", "x.docs.example:443", "deny", "trust_not_allowed"): 1,
        ("bob", "sandbox-bob", "a.example:443", "permit", ""): 1,
        ("bob", "", "45.90.0.9", "deny", "drop"): 1,
    }


def test_a_flood_of_destinations_fills_no_memory() -> None:
    groups = grouped(decision(f"{number}.example") for number in range(MOST_GROUPS + 500))
    assert len(groups) == MOST_GROUPS + 1
    assert groups[OTHERS].count == 500


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("1h", NOW - timedelta(hours=1)),
        ("7d", NOW - timedelta(days=7)),
        ("2026-02-28", datetime(2026, 2, 28, tzinfo=UTC)),
        ("2026-03-01T11:00:00+02:00", datetime(2026, 3, 1, 9, tzinfo=UTC)),
    ],
)
def test_since_is_a_duration_or_a_time(text: str, moment: datetime) -> None:
    assert read_since(text, NOW) == moment


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(audit, arguments)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def test_json_is_one_record_a_line(log: str) -> None:
    status, output = run("--audit", log, "--json", "--agent", "bob")
    assert (status, output.count("\n")) == (0, 2)


def test_the_table_fits_into_80_columns(log: str) -> None:
    status, output = run("--audit", log)
    assert status == 0
    assert output.splitlines()[0].split() == ["COUNT", "LAST", "OUTCOME", "AGENT", "SCOPE", "DESTINATION"]
    assert max(map(len, output.splitlines())) <= 80
    assert "trust_not_allowed" in output


def test_lines_are_in_the_log_s_order(log: str) -> None:
    _, output = run("--audit", log, "--lines", "--host", "a.example")
    assert [line.split()[2] for line in output.splitlines()] == ["decision", "decision", "decision", "grant"]


@pytest.mark.parametrize(
    "arguments", [("--since", "soon"), ("--since", "99999999d"), ("--host", "a b"), ("--outcome", "maybe")]
)
def test_wrong_usage_is_said(log: str, arguments: tuple[str, ...]) -> None:
    assert run("--audit", log, *arguments)[0] == 2


def test_a_log_that_is_not_there_is_said(tmp_path: Path) -> None:
    status, output = run("--audit", str(tmp_path / "none"))
    assert status == 1
    assert "there is no audit log" in output


def test_verify_says_whether_the_log_is_whole(log: str, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    newest = run("--audit", log, "--verify", "--journal", "/dev/null")[1].split()[-1].rstrip(".")
    journal.write_text(f'{{"_UID": "0", "EGRESS_POLICY_CHAIN": "{newest}"}}\n')
    assert run("--audit", log, "--verify", "--journal", str(journal))[0] == 0
    lines = Path(log).read_bytes().splitlines(keepends=True)
    Path(log).write_bytes(b"".join(lines[:-1]))
    status, output = run("--audit", log, "--verify", "--journal", str(journal))
    assert status == 1
    assert "cut or rewritten" in output
    # What anybody but the proxy or root told the journal counts for nothing.
    journal.write_text(f'{{"_UID": "1234", "EGRESS_POLICY_CHAIN": "{newest}"}}\n')
    assert run("--audit", log, "--verify", "--journal", str(journal))[0] == 0
    Path(log).write_bytes(b"".join(lines[1:2] + lines[:1]))
    assert run("--audit", log, "--verify", "--journal", str(journal))[0] == 1
