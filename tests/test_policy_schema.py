"""The JSON Schema that ships with the project is that of the types that read the file."""

import json
from pathlib import Path

from egress_policy.policy_schema import json_schema


def test_the_shipped_schema_is_current() -> None:
    """`make schema` writes it anew."""
    shipped = Path(__file__).parents[1] / "egress_policy/policy.schema.json"
    assert json.loads(shipped.read_text()) == json_schema()


def test_the_schema_names_every_key_and_no_other() -> None:
    definitions = json_schema()["$defs"]
    assert isinstance(definitions, dict)
    policy = definitions["PolicyDocument"]
    assert set(policy["properties"]) == {
        "version",
        "proxy",
        "resolver",
        "agents",
        "scopes",
        "trust",
        "intents",
        "operators",
    }
    assert all(
        definition["additionalProperties"] is False
        for definition in definitions.values()
        if "properties" in definition
    )
