"""The journal as a witness: what it is told, and whose word counts."""

import asyncio
import json
import logging
import socket
from pathlib import Path

import pytest

from egress_policy.audit_chain import Witness
from egress_policy.journal import JournalError, keep_telling, tell, told

HASH = "a" * 64


def test_the_journal_is_told_in_its_own_protocol(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "journal"))
        tell(HASH, "/var/log/audit.jsonl", tmp_path / "journal")
        fields = dict(line.split("=", 1) for line in journal.recv(4096).decode().splitlines())
    assert fields["EGRESS_POLICY_CHAIN"] == HASH
    assert fields["EGRESS_POLICY_LOG"] == "/var/log/audit.jsonl"
    assert fields["MESSAGE"]


async def test_it_is_told_when_there_is_news_and_not_otherwise(tmp_path: Path) -> None:
    newest = ["1"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "journal"))
        journal.setblocking(False)
        task = asyncio.create_task(keep_telling(lambda: newest[0], "x", tmp_path / "journal", interval=0.01))
        heard = []
        for one in ("1", "2"):
            newest[0] = one
            heard.append(await asyncio.wait_for(asyncio.get_running_loop().sock_recv(journal, 4096), 5))
        await asyncio.sleep(0.05)
        with pytest.raises(BlockingIOError):
            journal.recv(4096)
        task.cancel()
    assert [b"CHAIN=1\n" in heard[0], b"CHAIN=2\n" in heard[1]] == [True, True]


async def test_a_host_without_a_journal_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        task = asyncio.create_task(keep_telling(lambda: "1", "x", tmp_path / "none", interval=0.01))
        await asyncio.sleep(0.1)
        task.cancel()
    assert len(caplog.records) == 1


def entry(**fields: str) -> str:
    return json.dumps(
        {"_UID": "61000", "EGRESS_POLICY_CHAIN": HASH, "__REALTIME_TIMESTAMP": "1772366400000000"} | fields
    )


def test_only_the_word_of_the_proxy_and_of_root_counts(tmp_path: Path) -> None:
    copy = tmp_path / "journal"
    copy.write_text("\n".join([entry(), entry(_UID="61001"), entry(_UID="0"), '{"_UID": "0"}', "[]"]))
    assert told({0, 61000}, "x", copy) == [Witness(HASH, "2026-03-01T12:00:00.000Z")] * 2


@pytest.mark.parametrize("content", [None, "no json"])
def test_a_copy_that_cannot_be_read_is_said(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "journal").write_text(content)
    with pytest.raises(JournalError):
        told({0}, "x", tmp_path / "journal")
