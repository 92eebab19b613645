"""`egress-policy audit` on a log of a few records: each choice, and what is written while it looks on."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from egress_policy.audit import AuditLog, Record, timestamp
from egress_policy.cli.audit import audit

AUDIT = [sys.executable, "-m", "egress_policy", "audit"]


def record(host: str | None, minutes: int = 0, **fields: object) -> Record:
    """A permitted decision of Alice's agent, so many minutes ago, with other fields as given."""
    known: dict[str, object] = {
        "time": timestamp(datetime.now(UTC) - timedelta(minutes=minutes)),
        "event": "decision",
        "agent": "alice",
        "scope": "sandbox-alice",
        "host": host,
        "port": 443,
        "outcome": "permit",
    }
    return Record(**(known | fields))  # type: ignore[arg-type]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "audit.jsonl"
    written = AuditLog(str(path))
    for one in (
        record("old.example", 90),
        record("a.example"),
        record("b.example", agent="bob", scope="sandbox-bob"),
        record("sub.a.example", outcome="deny", code="method_not_allowed"),
        record("c.example", event="handshake", scope=None, outcome="fail", code="client_tls_failed", detail="why"),
        record("a.example", event="end", outcome=None, requests=2, sent=0, received=2048, duration=1.5, ending="cut"),
        record(None, event="drop", addresses=("192.0.2.7",), port=22, outcome="deny", scope=None),
    ):  # fmt: skip
        written.write(one)
    written.close()
    return path


def shown(log: Path, *options: str) -> str:
    done = CliRunner().invoke(audit, ["--audit", str(log), *options])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize(
    ("options", "hosts"),
    [
        ((), ["old.example", "a.example", "b.example", "sub.a.example", "c.example", "a.example", None]),
        (("--since", "1h"), ["a.example", "b.example", "sub.a.example", "c.example", "a.example", None]),
        (("--scope", "sandbox-bob"), ["b.example"]),
        (("--agent", "bob"), ["b.example"]),
        (("--host", "A.example."), ["a.example", "a.example"]),
        (("--host", "*.a.example"), ["sub.a.example"]),
        (("--host", "192.0.2.7"), [None]),
        (("--outcome", "deny"), ["sub.a.example", None]),
        (("--outcome", "fail"), ["c.example"]),
        (("--agent", "alice", "--outcome", "permit", "--since", "1h"), ["a.example"]),
    ],
    ids=str,
)
def test_each_choice(log: Path, options: tuple[str, ...], hosts: list[str | None]) -> None:
    lines = shown(log, "--json", *options).splitlines()
    assert [json.loads(line).get("host") for line in lines] == hosts


def test_the_table_counts_what_was_asked_for_and_not_how_it_went_on(log: Path) -> None:
    table = shown(log)
    assert max(map(len, table.splitlines())) <= 80
    rows = [line.split() for line in table.splitlines()[1:]]
    assert sorted(row[-1] for row in rows) == [
        "192.0.2.7",
        "a.example:443",
        "b.example:443",
        "c.example:443",
        "old.example:443",
        "sub.a.example:443",
    ]
    assert {row[0] for row in rows} == {"1"}
    assert "client_tls_failed" in table


def test_a_pipe_gets_names_whole(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    long = f"{'a' * 60}.{'b' * 60}.example"
    written = AuditLog(str(log))
    written.write(record(long))
    written.close()
    assert f"  {long}:443" in shown(log)


def test_a_terminal_of_80_columns_gets_all_of_it_folded(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = AuditLog(str(log))
    written.write(
        record("imposter.of.untrusting.example", event="handshake", outcome="fail", code="client_tls_failed")
    )
    written.close()
    monkeypatch.setenv("COLUMNS", "80")
    table = shown(log, "--outcome", "fail", "--scope", "sandbox-alice")
    assert max(map(len, table.splitlines())) <= 80
    destination = table.splitlines()[0].index("DESTINATION")
    folded = "".join(line[destination:].strip() for line in table.splitlines()[1:])
    assert folded == "imposter.of.untrusting.example:443"


def test_verify_as_json(log: Path) -> None:
    document = json.loads(shown(log, "--verify", "--journal", "/dev/null", "--json"))
    assert (document["whole"], document["records"], document["findings"]) == (True, 7, [])
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:2] + lines[3:]))
    done = CliRunner().invoke(audit, ["--audit", str(log), "--verify", "--journal", "/dev/null", "--json"])
    document = json.loads(done.stdout)
    assert (done.exit_code, document["whole"], document["breaks"]) == (1, False, 1)
    assert document["findings"][0]["line"] == 3


@pytest.mark.parametrize(
    "options", [("--verify", "--follow"), ("--verify", "--since", "1h"), ("--journal", "/dev/null")], ids=str
)
def test_verify_is_of_the_whole_log(log: Path, options: tuple[str, ...]) -> None:
    assert CliRunner().invoke(audit, ["--audit", str(log), *options]).exit_code == 2


def test_a_line_says_what_was_exchanged(log: Path) -> None:
    (line,) = [one for one in shown(log, "--lines").splitlines() if "  end  " in one]
    assert line.endswith(
        "cut  alice  sandbox-alice  a.example:443  2 requests, 0 B sent, 2.0 KiB received in 1.5 s"
    )


@contextmanager
def following(log: Path, *options: str) -> Iterator[Path]:
    """What `audit --follow` prints while something happens."""
    out = log.with_name("followed")
    with out.open("wb") as file:
        command = subprocess.Popen([*AUDIT, "--audit", log, "--follow", *options], stdout=file, stderr=file)
    try:
        yield out
    finally:
        command.kill()
        command.wait()


def until_in(out: Path, text: str) -> None:
    end = time.monotonic() + 20
    while text not in out.read_text():
        assert time.monotonic() < end, out.read_text()
        time.sleep(0.05)


def test_what_is_written_from_now_on_is_shown_and_a_rotation_loses_nothing(log: Path) -> None:
    with following(log, "--agent", "alice", "--json") as out:
        until_in(out, "sub.a.example")
        written = AuditLog(str(log))
        written.write(record("new.example"))
        written.write(record("bobs.example", agent="bob"))
        until_in(out, "new.example")
        written.write(record("last.example"))
        log.rename(log.with_name("audit.jsonl.1"))
        written.write(record("rotated.example"))
        until_in(out, "rotated.example")
        written.close()
    hosts = [json.loads(line).get("host") for line in out.read_text().splitlines()]
    assert hosts[-3:] == ["new.example", "last.example", "rotated.example"]
    assert "bobs.example" not in hosts


def test_a_half_line_is_shown_when_it_is_whole(log: Path) -> None:
    with following(log, "--json") as out, log.open("a") as half:
        until_in(out, "192.0.2.7")
        before = out.read_text()
        line = json.dumps({"time": timestamp(datetime.now(UTC)), "event": "decision", "host": "half.example"})
        half.write(line[:40])
        half.flush()
        time.sleep(1)
        assert out.read_text() == before
        half.write(line[40:] + "\n")
        half.flush()
        until_in(out, "half.example")


@pytest.mark.parametrize(
    "options",
    [("--since", "yesterday"), ("--outcome", "allowed"), ("--host", "no host"), ("--strange",)],
    ids=str,
)
def test_wrong_usage_is_one_line(log: Path, options: tuple[str, ...]) -> None:
    done = subprocess.run([*AUDIT, "--audit", log, *options], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
