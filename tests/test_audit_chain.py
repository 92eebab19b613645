"""The chain of audit records: whatever is done to a line afterwards, a neighbour gives it away."""

import fcntl
import gzip
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_policy.audit import AuditLog, Record
from egress_policy.audit_chain import BEGINNING, Finding, Verification, Witness, digest
from egress_policy.audit_files import AuditError
from egress_policy.audit_reading import read_lines


def record(name: str) -> Record:
    return Record(time="2026-03-01T12:00:00.000Z", event="decision", id=name)


def write(path: Path, *names: str) -> AuditLog:
    log = AuditLog(str(path))
    for name in names:
        log.write(record(name))
    return log


NOW, BEFORE = "2026-03-01T12:00:30.000Z", "2026-03-01T11:00:00.000Z"


def findings(path: Path, *witnesses: Witness) -> tuple[list[Finding], Verification]:
    verification = Verification(witnesses)
    return list(verification.follow(read_lines(str(path)))), verification


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def test_each_record_has_the_hash_of_the_one_before(path: Path) -> None:
    write(path, "1", "2", "3").close()
    lines = path.read_bytes().splitlines()
    chains = [re.search(rb'"chain":"([0-9a-f]{64})"}$', line)[1].decode() for line in lines]  # type: ignore[index]
    assert chains == [BEGINNING, digest(lines[0]), digest(lines[1])]
    assert findings(path)[0] == []
    assert findings(path)[1].newest == digest(lines[2])


TAMPERING: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "removed": lambda lines: lines[:2] + lines[3:],
    "changed": lambda lines: [*lines[:2], lines[2].replace(b'"3"', b'"x"'), *lines[3:]],
    "reordered": lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
    "repeated": lambda lines: [*lines[:2], lines[1], *lines[2:]],
    "added": lambda lines: [
        *lines[:2],
        b'{"time":"2026-03-01T12:00:00.000Z","event":"decision"}',
        *lines[2:],
    ],
    "made unreadable": lambda lines: [*lines[:2], lines[2][:-1], *lines[3:]],
}


@pytest.mark.parametrize("what", TAMPERING)
def test_tampering_is_found_where_it_was(path: Path, what: str) -> None:
    write(path, *"123456").close()
    path.write_bytes(b"\n".join(TAMPERING[what](path.read_bytes().splitlines())) + b"\n")
    found = [one for one in findings(path)[0] if one.is_break]
    assert found
    assert 2 < found[0].line <= 4 or (what == "reordered" and found[0].line == 2)
    assert found[0].file == str(path)


@given(place=st.integers(0, 5), byte=st.integers(0, 255), at=st.integers(0, 50))
def test_no_byte_of_a_line_can_be_changed_but_in_the_last(
    tmp_path_factory: pytest.TempPathFactory, place: int, byte: int, at: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "audit.jsonl"
    write(path, *"1234567").close()
    lines = path.read_bytes().splitlines()
    changed = bytearray(lines[place])
    changed[at] = byte
    if bytes(changed) == lines[place]:
        return
    lines[place] = bytes(changed)
    path.write_bytes(b"\n".join(lines) + b"\n")
    assert any(one.is_break for one in findings(path)[0])


def test_a_cut_off_end_and_a_new_log_are_found_by_what_the_journal_was_told(path: Path) -> None:
    log = write(path, *"123")
    witness = Witness(log.newest, NOW)
    log.close()
    assert findings(path, witness)[1].missing == []
    whole = path.read_bytes()
    path.write_bytes(b"\n".join(whole.splitlines()[:2]) + b"\n")
    found, verification = findings(path, witness)
    assert (found, verification.missing) == ([], [witness])
    path.unlink()
    write(path, *"456").close()
    assert findings(path, witness)[1].missing == [witness]


def test_what_was_told_of_files_that_are_gone_is_not_missed(path: Path) -> None:
    """Where the first record of all is there, nothing may be gone."""
    log = write(path, "1")
    old, unknown = Witness(log.newest, BEFORE), Witness("f" * 64, NOW)
    log.close()
    path.unlink()
    write(path, "2", "3").close()
    assert findings(path, old, unknown)[1].missing == [old, unknown]
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[1])
    assert findings(path, old, unknown)[1].missing == [unknown]


@pytest.mark.parametrize("compressed", [False, True])
def test_a_rotated_log_is_one_chain(path: Path, compressed: bool) -> None:
    """While the writer runs, and where another begins."""
    log = write(path, "1", "2")
    path.rename(path.with_name("audit.jsonl.2"))
    log.write(record("3"))
    log.close()
    rotated = path.with_name("audit.jsonl.1")
    path.rename(rotated)
    if compressed:
        packed = path.with_name("audit.jsonl.1.gz")
        packed.write_bytes(gzip.compress(rotated.read_bytes()))
        # As gzip(1) does.
        os.utime(packed, ns=(0, rotated.stat().st_mtime_ns))
        rotated.unlink()
    write(path, "4", "5").close()
    found, verification = findings(path)
    assert (found, verification.records) == ([], 5)


def test_a_removed_file_in_the_middle_is_found_and_at_the_old_end_said(path: Path) -> None:
    for number in (3, 2, 1):
        write(path, f"{number}a", f"{number}b").close()
        path.rename(path.with_name(f"audit.jsonl.{number}"))
    write(path, "0").close()
    path.with_name("audit.jsonl.3").unlink()
    (said,), _ = findings(path)
    assert not said.is_break
    path.with_name("audit.jsonl.1").unlink()
    assert [one.is_break for one in findings(path)[0]] == [False, True]


def test_a_restart_goes_on_with_the_chain(path: Path) -> None:
    write(path, "1").close()
    write(path, "2").close()
    assert findings(path)[0] == []


def test_a_line_that_was_cut_short_is_said_and_breaks_nothing(path: Path) -> None:
    log = write(path, "1")
    with path.open("ab") as file:
        file.write(b'{"time": "2026-')
    log.write(record("2"))
    log.write(record("3"))
    (said,), verification = findings(path)
    assert (said.is_break, said.line, verification.records) == (False, 2, 3)


def test_several_writers_make_one_chain(path: Path) -> None:
    """Two proxies and the command line may write at the same time."""
    program = (
        "import sys; from egress_policy.audit import *\n"
        "log = AuditLog(sys.argv[1])\n"
        "for number in range(300): log.write(Record(time='2026-03-01T12:00:00.000Z', event='decision', id=str(number)))\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(path)]) for _ in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    found, verification = findings(path)
    assert (found, verification.records) == ([], 900)


def test_a_very_long_line_is_followed_too(path: Path) -> None:
    long = Record(time="2026-03-01T12:00:00.000Z", event="decision", addresses=("2001:db8::1",) * 5000)
    log = AuditLog(str(path))
    log.write(long)
    log.close()
    assert path.stat().st_size > 50_000
    write(path, "2").close()
    assert findings(path)[0] == []


def test_what_another_wrote_just_before_a_rotation_is_in_the_chain(path: Path) -> None:
    log = write(path, "1")
    write(path, "2").close()
    path.rename(path.with_name("audit.jsonl.1"))
    log.write(record("3"))
    found, verification = findings(path)
    assert (found, verification.records) == ([], 3)


def test_whoever_keeps_the_file_locked_stops_no_more_than_the_record(path: Path) -> None:
    """Who may read the log may lock it."""
    log = write(path, "1")
    with path.open() as reader:
        fcntl.flock(reader, fcntl.LOCK_EX)
        with pytest.raises(AuditError, match="keeps it locked"):
            log.write(record("2"))
    log.write(record("3"))
    assert findings(path)[1].records == 2
