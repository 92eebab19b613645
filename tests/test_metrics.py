"""What Prometheus is told, and that the dashboard shows all of it and nothing else."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from egress_policy.audit import AuditLog
from egress_policy.audit_files import AuditError
from egress_policy.metrics import REQUESTS, Snapshot, exposition
from egress_policy.operations import OperationError
from egress_policy.records import policy_record
from egress_policy.rights import Rights
from egress_policy.status import PolicyStatus, Status
from tests.test_authorizer import World

DASHBOARD = Path(__file__).parents[1] / "deploy/grafana/egress-policy.json"
SNAPSHOT = Snapshot(
    grants={"sandbox-alice": 2, "known-good": 0},
    feeds={"feeds/malware.txt": 3},
    version="ab" * 32,
    loaded=1.8e9,
    reload_failed=True,
    pending=4,
    pauses=5,
    connections=6,
    audit_failures=7,
)


def values(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample, by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(text: bytes, name: str, **labels: str) -> float | None:
    return values(text).get((f"egress_policy_{name}", frozenset(labels.items())))


def test_what_is_seen_now_is_told() -> None:
    text = exposition(SNAPSHOT)
    told = {
        ("grants", "scope", "sandbox-alice"): 2,
        ("grants", "scope", "known-good"): 0,
        ("feed_entries", "feed", "feeds/malware.txt"): 3,
        ("policy_info", "version", "ab" * 32): 1,
    }
    for (name, label, named), expected in told.items():
        assert value(text, name, **{label: named}) == expected
    for name, number in {
        "policy_loaded_timestamp_seconds": 1.8e9,
        "policy_reload_failed": 1,
        "approvals_pending": 4,
        "pauses": 5,
        "connections": 6,
        "audit_failures_total": 7,
    }.items():
        assert value(text, name) == number


def test_a_name_that_would_break_the_format_does_not() -> None:
    """A feed's path is whatever the policy says."""
    hostile = 'a"b\\c\nd'
    assert value(exposition(replace(SNAPSHOT, feeds={hostile: 1})), "feed_entries", feed=hostile) == 1


async def test_a_request_counts_by_outcome_and_code_and_takes_its_time(tmp_path: Path) -> None:
    world = World(tmp_path / "audit.jsonl")
    names = ("decision_seconds_count", "dns_seconds_count", "netlink_seconds_count")

    def seen() -> list[float]:
        text = exposition(SNAPSHOT)
        requests = [
            value(text, "requests_total", outcome=outcome, code=code) or 0
            for outcome, code in (("permit", ""), ("deny", "scope_missing"))
        ]
        return [*requests, *(value(text, name) or 0 for name in names)]

    before = seen()
    for field in (b"sandbox-alice", b"sandbox-alice", b""):
        await world.ask(field=field)
    assert [now - then for now, then in zip(seen(), before, strict=True)] == [2, 1, 3, 1, 1]


async def test_no_label_grows_with_what_agents_ask_for(tmp_path: Path) -> None:
    world = World(tmp_path / "audit.jsonl", max_destinations=1)
    await world.ask("a.example")
    await world.ask("over.quota.example")
    before = values(exposition(SNAPSHOT)).keys()
    for number in range(20):
        await world.ask(f"host{number}.example")
    assert values(exposition(SNAPSHOT)).keys() == before


def test_a_log_that_cannot_be_written_shows() -> None:
    log = AuditLog("/dev/full")
    with pytest.raises(AuditError):
        log.write(policy_record("what the disk does not take"))
    assert log.failures == 1
    log.close()


@pytest.mark.parametrize(
    "rights",
    [Rights("owner", scopes=frozenset({"sandbox-alice"})), Rights("agent", is_operator=True, agent="alice")],
    ids=["owner", "agent"],
)
async def test_only_operators_see_them(tmp_path: Path, rights: Rights) -> None:
    world = World(tmp_path / "audit.jsonl")
    status = Status(world.authorizer, world.audit, PolicyStatus(tmp_path, "v"), lambda: 0)
    with pytest.raises(OperationError, match="only an operator"):
        status.metrics(rights)
    assert value(status.metrics(Rights("root", is_operator=True)), "policy_info", version="v") == 1


def expressions() -> Iterator[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (one["query"] for one in dashboard["templating"]["list"])


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    """A histogram by its buckets."""
    REQUESTS.labels("permit", "")
    told = {
        sample.name
        for family in text_string_to_metric_families(exposition(SNAPSHOT).decode())
        for sample in family.samples
        if not (family.type == "histogram" and sample.name != f"{family.name}_bucket")
    }
    shown = {name for one in expressions() for name in re.findall(r"\begress_policy_\w+", one)}
    assert shown == told


def test_the_dashboard_groups_by_labels_that_there_are() -> None:
    REQUESTS.labels("permit", "")
    labels = {"instance", "le"} | {label for _, pairs in values(exposition(SNAPSHOT)) for label, _ in pairs}
    grouped = {
        name.strip()
        for one in expressions()
        for by in re.findall(r"by \(([^)]*)\)", one)
        for name in by.split(",")
    }
    assert grouped <= labels
    assert {"outcome", "code", "scope", "verdict", "direction", "feed", "le"} == grouped
