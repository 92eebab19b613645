"""Adds an entry to a policy file's text; every other line stays as it is, byte for byte."""

import yaml


class EditError(Exception):
    """The file is not of a form that an entry can be added to: the message says why."""


def add_entry(text: str, level: str, entry: str) -> str:
    """Add an entry (YAML in flow style) to a level of trust, which is made where it is not there. Raises EditError."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        raise EditError("the file is not a mapping with a key on each line")
    newline = "\r\n" if "\r\n" in text else "\n"
    lines = text.splitlines(keepends=True)
    if not lines[-1].endswith(("\n", "\r")):
        lines[-1] += newline
    trust = _find(root, "trust")
    if trust is None:
        added, after = ["trust:", f"  {level}:", f"    - {entry}"], len(lines) - 1
    elif not isinstance(trust, yaml.MappingNode) or trust.flow_style:
        raise EditError("`trust` is not a mapping with a level on each line")
    elif (entries := _find(trust, level)) is None:
        indent = " " * trust.start_mark.column
        added, after = [f"{indent}{level}:", f"{indent}  - {entry}"], _last_line(trust)
    elif isinstance(entries, yaml.SequenceNode) and entries.value and not entries.flow_style:
        added, after = [f"{' ' * entries.start_mark.column}- {entry}"], _last_line(entries)
    else:
        raise EditError(f"`trust.{level}` is not a list with an entry on each line")
    changed = "".join([*lines[: after + 1], *(line + newline for line in added), *lines[after + 1 :]])
    _check_added(text, changed, level, entry)
    return changed


def _check_added(before: str, after: str, level: str, entry: str) -> None:
    """See that the entry was added where it was meant to be, and that nothing else means anything else."""
    try:
        wanted, found = yaml.safe_load(before), yaml.safe_load(after)
        wanted.setdefault("trust", {}).setdefault(level, []).append(yaml.safe_load(entry))
    except (yaml.YAMLError, ValueError):
        # ValueError: what looks like a date, and is none.
        wanted, found = None, ...
    if wanted != found:
        raise EditError(f"the last entry of `trust.{level}` is not of a form that a line can be added after")


def _find(mapping: yaml.MappingNode, name: str) -> yaml.Node | None:
    return next((value for key, value in mapping.value if key.value == name), None)


def _last_line(node: yaml.Node) -> int:
    """Find the line (from 0) that a node ends on: the end mark of one in block style is where the next token is."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _last_line(last[1] if isinstance(last, tuple) else last)
    # A block scalar's end mark stands before the next token, at the beginning of a line.
    is_block = isinstance(node, yaml.ScalarNode) and node.style in ("|", ">")
    return int(node.end_mark.line) - (1 if is_block and not node.end_mark.column else 0)
