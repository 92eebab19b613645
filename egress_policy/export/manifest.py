"""Kubernetes objects as YAML, with what they do not say at the top."""

import textwrap

import yaml

from egress_policy.export.compiled import Compiled

_WIDTH = 100


class _Dumper(yaml.SafeDumper):
    """Writes what stands in two places twice: anchors are for machines."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - the parameter's name is PyYAML's
        return True


def write(compiled: Compiled, title: str) -> str:
    """Write one YAML stream: comments first, then a document for each object."""
    lines = [f"# {title}", "#"]
    if compiled.losses:
        lines += ["# What the policy says, and these objects do not:", *_items(compiled.losses), "#"]
    else:
        lines += ["# These objects say all that the policy says.", "#"]
    lines += ["# What they rest on:", *_items(compiled.notes), ""]
    return "\n".join(lines) + yaml.dump_all(
        compiled.objects,
        Dumper=_Dumper,
        explicit_start=True,
        sort_keys=False,
        width=_WIDTH,
        allow_unicode=True,
    )


def _items(items: tuple[str, ...]) -> list[str]:
    return [
        line
        for item in items
        for line in textwrap.wrap(
            item,
            _WIDTH,
            initial_indent="# - ",
            subsequent_indent="#   ",
            break_on_hyphens=False,
            break_long_words=False,
        )
    ]
