"""What a compiler takes besides the policy, and what it gives."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

type Manifest = dict[str, Any]
"""A Kubernetes object, as its YAML says it."""

_MAX_LABEL = 63
LABEL = "egress-policy/agent"
"""The label that the pods of an agent bear, where no other is named."""


@dataclass(frozen=True, slots=True)
class Pods:
    """One agent's pods: where they are, and the labels that they are known by."""

    agent: str
    namespace: str
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def selector(self) -> dict[str, str]:
        """The labels that select them."""
        return dict(self.labels) or {LABEL: label(self.agent)}


@dataclass(frozen=True, slots=True)
class Compiled:
    """Kubernetes objects; what the policy says and they do not; and what they rest on."""

    objects: tuple[Manifest, ...]
    losses: tuple[str, ...]
    notes: tuple[str, ...]


def label(name: str, prefix: str = "") -> str:
    """Turn a name into an RFC 1123 label: 63 characters at most. One that had to change gets a mark of its own."""
    changed = re.sub(r"[^a-z0-9-]", "-", name.lower()).strip("-")
    if changed == name and len(prefix + name) <= _MAX_LABEL:
        return prefix + name
    mark = hashlib.sha256(name.encode()).hexdigest()[:8]
    kept = changed[: _MAX_LABEL - len(prefix) - len(mark) - 1].strip("-")
    return prefix + (f"{kept}-{mark}" if kept else mark)


def object_name(name: str) -> str:
    """Name an object of ours after an agent or a destination."""
    return label(name, "egress-policy-")
