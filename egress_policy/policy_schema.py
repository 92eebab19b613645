"""The JSON Schema of the policy file, for editors: `make schema` writes it to policy.schema.json."""

import json

import msgspec

from egress_policy.policy_document import LEAVES, PolicyDocument


def json_schema() -> dict[str, object]:
    """Return the JSON Schema (draft 2020-12) of the policy file, from the types that read it."""

    def describe(leaf: type) -> dict[str, object]:
        found = LEAVES[leaf]
        return {"type": "string", "description": found.expected, **found.schema}

    schema = msgspec.json.schema(PolicyDocument, schema_hook=describe)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "egress-policy", **schema}


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))  # noqa: T201 - what the program is for
