"""`egress-policy grants` as a table: into a pipe, and where there is little room."""

import ipaddress
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from egress_policy.cli.grants import grants
from egress_policy.firewall import Element

HELD = Element(
    address=ipaddress.ip_address("2001:db8::10"),
    port=443,
    comment="718505d1-5bdd-44c1-8183-3386a05987e2 sandbox-alice docs.team.vendor.example",
    remaining=3598.0,
)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys.modules["egress_policy.cli.grants"], "list_elements", lambda _: [HELD])
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.delenv("COLUMNS", raising=False)
    path = tmp_path / "audit.jsonl"
    path.touch()
    return path


def row(log: Path) -> list[str]:
    done = CliRunner().invoke(grants, ["--audit", str(log)])
    assert done.exit_code == 0, done.output
    _, line = done.output.splitlines()
    return line.split()


WHOLE = ["0:59:58", "sandbox-alice", "?", "docs.team.vendor.example", "443", "2001:db8::10", "718505d1"]


def test_a_pipe_gets_each_grant_whole(log: Path) -> None:
    assert row(log) == WHOLE


def test_where_there_is_little_room_the_addresses_are_left_out(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "78")
    assert row(log) == [cell for cell in WHOLE if cell != "2001:db8::10"]
