"""Adds an entry to a policy file's text; every other line stays as it is, byte for byte."""

import yaml


class EditError(Exception):
    """The file is not of a form that an entry can be added to: the message says why."""


def add_entry(text: str, level: str, entry: str) -> str:
    """Add an entry (YAML in flow style) to a level of trust, which is made where it is not there. Raises EditError."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        raise EditError("the policy is not a mapping with a key on each line")
    trust = _find(root, "trust")
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    if trust is None:
        return "".join([*lines, f"trust:\n  {level}:\n    - {entry}\n"])
    if not isinstance(trust, yaml.MappingNode) or trust.flow_style:
        raise EditError("`trust` is not a mapping with a level on each line")
    entries = _find(trust, level)
    if entries is None:
        indent = " " * trust.start_mark.column
        added, after = [f"{indent}{level}:\n", f"{indent}  - {entry}\n"], _last_line(trust)
    elif isinstance(entries, yaml.SequenceNode) and entries.value and not entries.flow_style:
        added, after = [f"{' ' * entries.start_mark.column}- {entry}\n"], _last_line(entries)
    else:
        raise EditError(f"`trust.{level}` is not a list with an entry on each line")
    return "".join([*lines[: after + 1], *added, *lines[after + 1 :]])


def _find(mapping: yaml.MappingNode, name: str) -> yaml.Node | None:
    return next((value for key, value in mapping.value if key.value == name), None)


def _last_line(node: yaml.Node) -> int:
    """Find the line (from 0) that a node ends on: the end mark of one in block style is where the next token is."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _last_line(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.line)
