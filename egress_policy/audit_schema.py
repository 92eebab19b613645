"""The JSON Schema of the audit log's records, for a SIEM: `make schema` writes it to audit.schema.json."""

import json
from collections.abc import Mapping

import msgspec

from egress_policy.audit import Record
from egress_policy.denial import DenyCode, FailureCode
from egress_policy.exchange import Ending
from egress_policy.policy import Inspection
from egress_policy.records import CLIENT_TLS_FAILED

_GRANT = ("id", "agent", "scope", "host", "port", "addresses", "ttl", "expires")
EVENTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "decision": ("a request was permitted or not", ("id", "outcome")),
    "grant": ("a grant began, or has other addresses or an earlier end", _GRANT),
    "expire": ("a grant's time was over", _GRANT),
    "revoke": ("a grant was taken back", _GRANT),
    "end": (
        "a client connection closed, or its grant ended: what it exchanged under that grant",
        ("agent", "scope", "host", "port", "grant", "requests", "sent", "received", "duration", "ending"),
    ),
    "handshake": ("a client's TLS handshake failed", ("outcome", "code", "detail")),
    "drop": ("the kernel refused packets", ("outcome", "detail")),
    "direct": ("a connection went straight through the kernel", ("outcome", "detail")),
    "approval": (
        "a person approved or declined",
        ("id", "agent", "scope", "host", "port", "outcome", "expires", "by"),
    ),
    "pause": ("a person paused an agent, a scope or everything", ("by",)),
    "resume": ("a person lifted a pause", ("by",)),
    "policy": ("another policy is in force, or could not be", ("detail",)),
}
"""Each event: what it says, and which keys it has besides `time`, `event` and `chain`, whatever else it has."""

_TIME = {"format": "date-time", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"}
_COUNT = {"minimum": 0}
_KEYS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "time": ("when it was written", _TIME),
    "event": ("; ".join(f"{name}: {what}" for name, (what, _) in EVENTS.items()), {"enum": [*EVENTS]}),
    "id": ("of the decision, the grant or the approval", {}),
    "agent": ("the agent's name in the policy", {}),
    "uid": ("of the process that sent it", _COUNT),
    "source": ("the sender's address, where it is no process of this host", {}),
    "scope": ("the scope that was claimed or granted; known-good where none was needed", {}),
    "intent": ("what the agent said it was doing", {}),
    "claimed_agent": ("what the scope field says of the tool", {}),
    "reason": ("what the scope field says it is for", {}),
    "method": ("of the request", {}),
    "host": ("name or address of the destination", {}),
    "port": ("of the destination", {"minimum": 0, "maximum": 65535}),
    "path": ("of the request, without its query", {}),
    "ports": ("further ports that the grant opens to its agent, for raw TCP", {}),
    "addresses": ("of the destination", {}),
    "trust": ("the destination's level of trust", {}),
    "inspection": ("how the destination was inspected, where not in full", {"enum": [*Inspection]}),
    "outcome": ("what came of it", {"enum": ["permit", "deny", "fail"]}),
    "code": ("why not", {"enum": [*DenyCode, *FailureCode, CLIENT_TLS_FAILED]}),
    "detail": ("the same for people", {}),
    "ttl": ("seconds that the grant was given; 0 where an approval is for one request", _COUNT),
    "expires": ("when the grant or the approval ends", _TIME),
    "grant": ("the id of the grant that a decision led to, or that an exchange went on under", {}),
    "requests": ("how many; a connection that was not decrypted counts as one", _COUNT),
    "sent": (
        "bytes from the agent: of bodies and WebSocket frames, or all of a connection that was not decrypted",
        _COUNT,
    ),
    "received": ("bytes to the agent, counted alike", _COUNT),
    "duration": ("seconds from the first request to the end", _COUNT),
    "status": ("HTTP status of the destination's last answer", {"minimum": 100, "maximum": 999}),
    "ending": ("complete, or what broke off last", {"enum": [*Ending]}),
    "by": ("who brought it about: a login name, or a uid", {}),
    "chain": ("SHA-256 of the line before", {"pattern": "^[0-9a-f]{64}$"}),
}


def json_schema() -> dict[str, object]:
    """Return the JSON Schema (draft 2020-12) of one line, from the type that is written. No key is ever null."""
    (definition,) = msgspec.json.schema(Record)["$defs"].values()
    properties = {
        name: {"description": what, **_without_null(definition["properties"][name]), **more}
        for name, (what, more) in _KEYS.items()
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "egress-policy audit record",
        "type": "object",
        "properties": properties,
        "required": ["time", "event", "chain"],
        "additionalProperties": False,
        "allOf": [
            {
                "if": {"properties": {"event": {"const": event}}},
                "then": {"required": list(keys)},
            }
            for event, (_, keys) in EVENTS.items()
        ],
    }


def _without_null(schema: Mapping[str, object]) -> dict[str, object]:
    branches = schema.get("anyOf")
    if isinstance(branches, list):
        (schema,) = (branch for branch in branches if branch != {"type": "null"})
    return {key: value for key, value in schema.items() if key != "default"}


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))  # noqa: T201 - what the program is for
