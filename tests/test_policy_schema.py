"""The JSON Schemas that ship with the project are those of the types that read the files."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from egress_policy.policy_schema import DOCUMENTS, json_schema

TEAM_KEYS = {"version", "agents", "scopes", "trust", "tests"}
KEYS = {
    "policy": TEAM_KEYS | {"include", "proxy", "resolver", "intents", "operators"},
    "team": TEAM_KEYS,
}
TEMPLATE = Path(__file__).parents[1] / "deploy/policy-repo"


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_the_shipped_schema_is_current(kind: str) -> None:
    """`make schema` writes it anew."""
    shipped = Path(__file__).parents[1] / f"egress_policy/{kind}.schema.json"
    assert json.loads(shipped.read_text()) == json_schema(kind)


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_the_schema_names_every_key_and_no_other(kind: str) -> None:
    definitions = json_schema(kind)["$defs"]
    assert isinstance(definitions, dict)
    assert set(definitions[DOCUMENTS[kind].__name__]["properties"]) == KEYS[kind]
    assert all(
        definition["additionalProperties"] is False
        for definition in definitions.values()
        if "properties" in definition
    )


@pytest.mark.parametrize(
    ("kind", "file"),
    [("policy", TEMPLATE / "policy.yaml"), *(("team", file) for file in (TEMPLATE / "teams").glob("*.yaml"))],
    ids=lambda value: getattr(value, "name", value),
)
def test_an_editor_finds_the_template_right(kind: str, file: Path) -> None:
    jsonschema.validate(yaml.safe_load(file.read_text()), json_schema(kind))
