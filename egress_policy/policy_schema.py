"""The JSON Schemas of the policy file and of what it includes, for editors: `make schema` writes both files."""

import json
import sys

import msgspec

from egress_policy.policy_document import LEAVES, PolicyDocument, TeamDocument

DOCUMENTS: dict[str, type[msgspec.Struct]] = {"policy": PolicyDocument, "team": TeamDocument}


def json_schema(kind: str) -> dict[str, object]:
    """Return the JSON Schema (draft 2020-12) of one of DOCUMENTS, from the types that read it."""

    def describe(leaf: type) -> dict[str, object]:
        found = LEAVES[leaf]
        return {"type": "string", "description": found.expected, **found.schema}

    schema = msgspec.json.schema(DOCUMENTS[kind], schema_hook=describe)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "egress-policy", **schema}


if __name__ == "__main__":
    print(json.dumps(json_schema(sys.argv[1]), indent=2, ensure_ascii=False))  # noqa: T201 - what the program is for
