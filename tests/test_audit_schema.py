"""The JSON Schema of audit records: that of the type which is written, and it takes nothing else."""

import ipaddress
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from egress_policy.audit import AuditLog, Record
from egress_policy.audit_schema import json_schema
from egress_policy.caller import Caller
from egress_policy.destination import Destination
from egress_policy.exchange import Ending, Exchange
from egress_policy.grant import Grant
from egress_policy.records import (
    approval_record,
    end_record,
    grant_record,
    handshake_record,
    kernel_record,
    pause_record,
    policy_record,
    repeated,
)
from tests.test_authorizer import World

NOW = datetime.now(UTC)
ADDRESS = ipaddress.ip_address("93.184.216.34")
GRANT = Grant(
    "g", "alice", "sandbox-alice", "default", Destination("a.example", 443), (ADDRESS,), NOW, NOW + timedelta(hours=1)
)  # fmt: skip
CALLER = Caller("alice", uid=61001)
KEY = ("alice", "sandbox-alice", "default", GRANT.destination)
RECORDS = {
    "a grant": grant_record("grant", GRANT),
    "its end": grant_record("revoke", GRANT, "revoked", "root"),
    "an exchange": end_record(Exchange(GRANT, CALLER, 1.0, 2, 3, 4, 200, Ending.CUT), 2.5),
    "an exchange without an answer": end_record(Exchange(GRANT, CALLER, 1.0), 1.0),
    "a container's handshake": handshake_record(Caller("bob", source=ADDRESS), None, 443, "why"),
    "handshakes that nobody counts one by one": handshake_record(None, None, None, "why"),
    "a handshake that came again": repeated(handshake_record(CALLER, "a.example", 443, "why"), 3),
    "an approval": approval_record("a", KEY, is_approved=True, by="root", expires=NOW, duration="once"),
    "a pause of everything": pause_record("pause", ("all", None), "root"),
    "the end of a pause": pause_record("resume", ("scope", "sandbox-alice"), "root"),
    "a policy": policy_record("in force"),
    "packets that were lost": kernel_record("drop", "fail", "12 packets"),
}


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def line(record: Record) -> dict[str, Any]:
    """A record as the log has it."""
    encoded: dict[str, Any] = json.loads(msgspec.json.encode(record))
    return encoded | {"chain": "0" * 64}


def test_the_shipped_schema_is_current() -> None:
    """`make schema` writes it anew."""
    shipped = Path(__file__).parents[1] / "egress_policy/audit.schema.json"
    assert json.loads(shipped.read_text()) == json_schema()


def test_it_has_every_key_of_a_record_in_its_order() -> None:
    properties = json_schema()["properties"]
    assert isinstance(properties, dict)
    assert list(properties) == list(Record.__struct_fields__)
    assert all(described["description"] for described in properties.values())


@pytest.mark.parametrize("name", RECORDS)
def test_what_is_written_is_valid(validator: jsonschema.Draft202012Validator, name: str) -> None:
    validator.validate(line(RECORDS[name]))


async def test_what_a_request_leaves_in_the_log_is_valid(
    validator: jsonschema.Draft202012Validator, tmp_path: Path
) -> None:
    world = World(tmp_path / "audit.jsonl")
    for field in (b"sandbox-alice;intent=default", b"sandbox-bob", b"no scope!", b""):
        await world.ask(field=field)
    await world.ask("silent.example")
    lines = world.path.read_text().splitlines()
    assert {json.loads(one)["event"] for one in lines} == {"decision", "grant"}
    for one in lines:
        validator.validate(json.loads(one))


@pytest.mark.parametrize(
    "change",
    [
        {"event": "nonsense"},
        {"nonsense": 1},
        {"outcome": "allowed"},
        {"code": "nonsense"},
        {"ending": "nonsense"},
        {"time": "yesterday"},
        {"time": "2026-01-31T09:00:00.000+01:00"},
        {"chain": "0" * 63},
        {"sent": -1},
        {"uid": "61001"},
        {"agent": None},
    ],
    ids=str,
)
def test_what_nobody_writes_is_not(
    validator: jsonschema.Draft202012Validator, change: dict[str, object]
) -> None:
    exchanged = line(RECORDS["an exchange"])
    validator.validate(exchanged)
    assert not validator.is_valid(exchanged | change)


@pytest.mark.parametrize(
    "key", ["time", "event", "chain", "agent", "grant", "sent", "received", "duration", "ending"]
)
def test_what_must_be_there_must(validator: jsonschema.Draft202012Validator, key: str) -> None:
    exchanged = line(RECORDS["an exchange"])
    del exchanged[key]
    assert not validator.is_valid(exchanged)


def test_a_line_of_the_log_is_valid_as_it_is(
    validator: jsonschema.Draft202012Validator, tmp_path: Path
) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(str(path))
    for record in RECORDS.values():
        log.write(record)
    log.close()
    for one in path.read_text().splitlines():
        validator.validate(json.loads(one))
