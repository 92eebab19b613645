"""The audit log: whole lines or an error, whatever becomes of the file; and what can be read back from it."""

import gzip
import json
import logging
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from egress_policy.audit import AuditLog, Record, parse_timestamp, timestamp
from egress_policy.audit_chain import BEGINNING
from egress_policy.audit_files import AuditError
from egress_policy.audit_reading import read_records

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LATER = timestamp(NOW + timedelta(hours=1))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def record(name: str, **fields: object) -> Record:
    return Record(**({"time": timestamp(NOW), "event": "decision", "id": name} | fields))  # type: ignore[arg-type]


def write(path: Path, *records: Record) -> None:
    log = AuditLog(str(path))
    for one in records:
        log.write(one)
    log.close()


def ids(path: Path, since: datetime | None = None) -> list[str | None]:
    return [one.id for one in read_records(str(path), since)]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond a size in bytes: a write that would is cut there, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_record_is_one_line_of_json_in_the_contracts_order(path: Path) -> None:
    write(
        path,
        Record(
            time=timestamp(NOW),
            event="decision",
            id="1",
            agent="alice-claude",
            uid=2001,
            source="10.88.0.11",
            scope="sandbox-alice",
            intent="develop",
            claimed_agent="claude-code",
            reason="read the docs",
            method="GET",
            host="docs.example",
            port=443,
            path="/",
            addresses=("192.0.2.1",),
            trust="vetted",
            outcome="permit",
            code="destination_denied",
            detail="…",
            ttl=3600,
            expires=LATER,
        ),
    )
    text = path.read_text()
    assert text.endswith("\n")
    assert text.count("\n") == 1
    in_order = (
        "time, event, id, agent, uid, source, scope, intent, claimed_agent, reason, method, host, port, path, "
        "addresses, trust, outcome, code, detail, ttl, expires, chain"
    )
    assert ", ".join(json.loads(text)) == in_order


def test_a_field_that_does_not_apply_is_absent(path: Path) -> None:
    write(path, record("1"))
    assert json.loads(path.read_text()) == {
        "time": "2026-03-01T12:00:00.000Z",
        "event": "decision",
        "id": "1",
        "chain": BEGINNING,
    }


def test_times_are_utc_with_milliseconds() -> None:
    elsewhere = datetime(2026, 3, 1, 14, 0, 0, 123999, tzinfo=timezone(timedelta(hours=2)))
    assert timestamp(elsewhere) == "2026-03-01T12:00:00.123Z"
    assert parse_timestamp(timestamp(NOW)) == NOW


@pytest.mark.parametrize(
    ("field", "longest"),
    [("path", 2048), ("reason", 200), ("host", 1024), ("detail", 1024), ("method", 1024)],
)
def test_text_is_cut_to_its_bound(path: Path, field: str, longest: int) -> None:
    write(path, record("1", **{field: "x" * longest}), record("2", **{field: "x" * 1_000_000}))
    for line in path.read_text().splitlines():
        assert json.loads(line)[field] == "x" * longest


def test_a_reason_is_cut_in_a_short_record_too(path: Path) -> None:
    write(path, record("1", reason="x" * 201))
    assert json.loads(path.read_text())["reason"] == "x" * 200


@pytest.mark.parametrize(
    ("hostile", "kept"),
    [
        ("a\nb\r\t\0\x1b[2J", "a\nb\r\t\0\x1b[2J"),
        ("\x7f\x9b2J", "\\x7f\\x9b2J"),
        ("\u202egnp.exe\u2028", "\\u202egnp.exe\\u2028"),
        ("\ud800", "\\ud800"),
        ("naïve", "naïve"),
    ],
)
def test_hostile_text_stays_on_its_line_and_moves_no_terminal(path: Path, hostile: str, kept: str) -> None:
    write(path, record("1", detail=hostile))
    text = path.read_bytes().decode()
    assert text.removesuffix("\n").isprintable()
    assert json.loads(text)["detail"] == kept


def test_the_file_is_not_for_everybody(path: Path) -> None:
    write(path, record("1"))
    assert path.stat().st_mode & 0o777 == 0o640 & ~current_umask()
    assert path.stat().st_mode & 0o007 == 0


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_a_restart_appends(path: Path) -> None:
    write(path, record("1"))
    write(path, record("2"))
    assert ids(path) == ["1", "2"]


def test_several_processes_may_share_the_file(path: Path) -> None:
    program = (
        "import sys; from egress_policy.audit import *\n"
        "log = AuditLog(sys.argv[1])\n"
        "for n in range(500): log.write(Record(time='', event='decision', id=sys.argv[2], detail='x' * n))"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(path), str(n)]) for n in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert sorted(ids(path), key=str) == ["0"] * 500 + ["1"] * 500 + ["2"] * 500


def test_a_dash_is_standard_output() -> None:
    program = (
        "from egress_policy.audit import *; AuditLog('-').write(Record(time='', event='decision', id='1'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"time": "", "event": "decision", "id": "1", "chain": BEGINNING}
    assert list(read_records("-")) == []


def test_a_full_disk_is_an_error() -> None:
    log = AuditLog("/dev/full")
    with pytest.raises(AuditError, match="No space left on device; make room"):
        log.write(record("1"))


def test_a_line_cut_short_is_an_error_and_spoils_no_other(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = AuditLog(str(path))
    log.write(record("1"))
    with largest_file(path.stat().st_size + 20), pytest.raises(AuditError, match="make room"):
        log.write(record("lost"))
    assert not path.read_bytes().endswith(b"\n")
    log.write(record("2"))
    log.write(record("3"))
    with caplog.at_level(logging.WARNING):
        assert ids(path) == ["1", "2", "3"]
    assert f"{path}:2: skipped, not an audit record" in caplog.text


def test_a_line_that_another_process_left_cut_short_is_closed_off(path: Path) -> None:
    log = AuditLog(str(path))
    path.write_bytes(b'{"time": "2026-')
    log.write(record("1"))
    assert ids(path) == ["1"]
    path.write_bytes(b'{"time": "2026-')
    write(path, record("2"))
    assert ids(path) == ["2"]


def test_a_line_cut_short_on_standard_output_is_closed_off(tmp_path: Path) -> None:
    program = (
        "import os, resource; from egress_policy.audit import *\n"
        "log = AuditLog('-')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, -1))\n"
        "try: log.write(Record(time='', event='lost'))\n"
        "except AuditError: resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))\n"
        "log.write(Record(time='', event='decision'))\n"
    )
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", program], stdout=out, check=True)
    assert json.loads((tmp_path / "out").read_text().splitlines()[1])["event"] == "decision"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Path.mkdir, "name a file, not a folder"),
        (lambda path: path.symlink_to(path.parent / "missing" / "log"), "make its folder"),
    ],
)
def test_a_log_that_cannot_be_opened_says_what_to_do(
    path: Path, make: Callable[[Path], None], reason: str
) -> None:
    make(path)
    with pytest.raises(AuditError, match=f"cannot open the audit log {path}: .*{reason}"):
        AuditLog(str(path))


def test_a_pipe_that_nobody_reads_is_an_error_and_no_hang(path: Path) -> None:
    os.mkfifo(path)
    log = AuditLog(str(path))

    def until_it_is_full() -> None:
        for _ in range(100_000):
            log.write(record("1"))

    with pytest.raises(AuditError, match="cannot write the audit log"):
        until_it_is_full()


def test_a_log_that_may_not_be_written_says_so(path: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    path.touch(0o600)
    os.seteuid(65534)
    try:
        with pytest.raises(AuditError, match="the right to it"):
            AuditLog(str(path))
    finally:
        os.seteuid(0)


def test_writing_goes_on_in_a_new_file_after_rotation(path: Path) -> None:
    log = AuditLog(str(path))
    log.write(record("1"))
    path.rename(path.with_name("audit.jsonl.1"))
    log.write(record("2"))
    log.write(record("3"))
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["2", "3"]
    path.rename(path.with_name("audit.jsonl.0"))
    path.touch()
    log.write(record("4"))
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["4"]


def test_a_line_cut_short_before_rotation_leaves_the_new_file_clean(path: Path) -> None:
    log = AuditLog(str(path))
    with largest_file(20), pytest.raises(AuditError):
        log.write(record("lost"))
    path.unlink()
    log.write(record("1"))
    assert not path.read_bytes().startswith(b"\n")


def test_a_new_file_that_cannot_be_made_is_an_error(path: Path) -> None:
    log = AuditLog(str(path))
    path.unlink()
    path.mkdir()
    with pytest.raises(AuditError, match="name a file"):
        log.write(record("1"))
    path.rmdir()
    log.write(record("2"))
    assert ids(path) == ["2"]


def test_rotation_while_writing_loses_nothing(path: Path) -> None:
    log = AuditLog(str(path))
    for number in range(60):
        log.write(record(str(number), time=timestamp(NOW + timedelta(seconds=number))))
        if number % 20 == 19:
            path.rename(path.with_name(f"audit.jsonl.{3 - number // 20}"))
    assert ids(path) == [str(number) for number in range(60)]


def rotated(path: Path, name: str, one: Record) -> None:
    write(path, one)
    content = path.read_bytes()
    path.unlink()
    path.with_name(name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("audit.jsonl.10.gz", "audit.jsonl.2"),
        ("audit.jsonl-20260131.gz", "audit.jsonl-20260201"),
        ("audit-20260131.jsonl.gz", "audit-20260201.jsonl"),
        ("audit.jsonl-20260131-1769817600", "audit.jsonl-20260131-1769821200.gz"),
    ],
)
def test_rotated_files_are_read_too_oldest_first(path: Path, older: str, newer: str) -> None:
    rotated(path, newer, record("2", time=timestamp(NOW - timedelta(hours=1))))
    rotated(path, older, record("1", time=timestamp(NOW - timedelta(hours=2))))
    rotated(path, "audit.jsonl.bak", record("not the log's"))
    rotated(path, "other.jsonl.1", record("another log's"))
    write(path, record("3"))
    assert ids(path) == ["1", "2", "3"]


def test_no_log_yet_is_an_empty_one(path: Path) -> None:
    assert ids(path) == []
    assert ids(path / "missing" / "audit.jsonl") == []


def test_a_log_that_cannot_be_read_is_an_error(path: Path) -> None:
    path.mkdir()
    with pytest.raises(AuditError, match="cannot read the audit log"):
        ids(path)


def test_a_file_that_is_in_two_places_is_read_once(path: Path) -> None:
    write(path, record("1"))
    path.with_name("audit.jsonl.1").hardlink_to(path)
    assert ids(path) == ["1"]


def test_a_broken_archive_is_skipped_visibly(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rotated(path, "audit.jsonl.2.gz", record("1"))
    whole = path.with_name("audit.jsonl.2.gz").read_bytes()
    path.with_name("audit.jsonl.2.gz").write_bytes(whole[:-9])
    path.with_name("audit.jsonl.3.gz").write_bytes(b"no gzip file")
    write(path, record("2"))
    with caplog.at_level(logging.WARNING):
        assert sorted(ids(path), key=str) == ["1", "2"]
    assert "audit.jsonl.2.gz" in caplog.text
    assert "audit.jsonl.3.gz" in caplog.text


@pytest.mark.parametrize(
    "line",
    [
        b'{"time": "2026-03',
        b"[]",
        b"7",
        b"\xff\xfe",
        b'{"event": "grant"}',
        b'{"time": "", "event": "x", "uid": "0"}',
    ],
)
def test_a_line_that_is_no_record_is_skipped_visibly(
    path: Path, caplog: pytest.LogCaptureFixture, line: bytes
) -> None:
    path.write_bytes(line + b"\n")
    write(path, record("1"))
    with caplog.at_level(logging.WARNING):
        assert ids(path) == ["1"]
    assert f"{path}:1:" in caplog.text


def test_a_field_of_a_later_version_does_no_harm(path: Path) -> None:
    path.write_text('{"time": "2026-03-01T12:00:00.000Z", "event": "grant", "id": "1", "hash": "ab"}\n')
    assert ids(path) == ["1"]


def test_only_what_is_recent_is_read(path: Path) -> None:
    rotated(path, "audit.jsonl.1", record("1"))
    long_ago = time.time() - 100_000
    os.utime(path.with_name("audit.jsonl.1"), (long_ago, long_ago))
    now = datetime.now(UTC)
    write(path, record("2", time=timestamp(now - timedelta(days=2))), record("3", time=timestamp(now)))
    assert ids(path) == ["1", "2", "3"]
    assert ids(path, now - timedelta(days=1)) == ["3"]
