"""Kubernetes objects held to the vendored schemas (see schemas/README.md)."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft7Validator

FOLDER = Path(__file__).parent / "schemas"


def errors(manifest: dict[str, Any]) -> list[str]:
    """What is wrong with an object, by the schema of its kind. Raises KeyError for a kind that none is for."""
    return [error.message for error in _validator(manifest["kind"]).iter_errors(manifest)]


@cache
def _validator(kind: str) -> Draft7Validator:
    if kind == "CiliumNetworkPolicy":
        return Draft7Validator(json.loads((FOLDER / "cilium.json").read_text()))
    for name in ("kubernetes.json", "istio.json"):
        schema = json.loads((FOLDER / name).read_text())
        if kind in schema["kinds"]:
            return Draft7Validator({**schema, "$ref": f"#/definitions/{schema['kinds'][kind]}"})
    raise KeyError(kind)
