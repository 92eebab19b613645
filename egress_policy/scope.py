"""The `X-Agent-Scope` field: an RFC 9651 Item, a token with parameters. It is a claim; the channel binds it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

import http_sf
from http_sf.types import Token

HEADER = "X-Agent-Scope"
EXAMPLE = 'X-Agent-Scope: sandbox-alice;intent=develop;ttl=3600;reason="read the API reference"'

SCOPE_NAME = re.compile(r"sandbox-[a-z0-9][a-z0-9._-]{0,62}")
_MAX_REASON = 200
# No real field comes near it; a library should not be handed megabytes.
_MAX_FIELD = 2048


class ScopeError(ValueError):
    """The field cannot be read: the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What the caller claims."""

    name: str
    intent: str | None = None
    ttl: timedelta | None = None
    reason: str | None = None
    agent: str | None = None


def parse_scope(field_lines: Sequence[bytes]) -> Scope:
    """Read the values of all `X-Agent-Scope` field lines of a request; exactly one is allowed.

    Of repeated parameters the last counts (RFC 9651 section 3.1.2). Raises ScopeError.
    """
    if len(field_lines) != 1:
        raise ScopeError(f"expected one {HEADER} field line, found {len(field_lines)}")
    value = field_lines[0]
    if len(value) > _MAX_FIELD:
        raise ScopeError(f"the field is longer than {_MAX_FIELD} bytes")
    if not value.isascii() or any(byte < 0x20 or byte == 0x7F for byte in value):
        raise ScopeError("the field holds a control or non-ASCII character")
    try:
        # The library's type covers lists and dictionaries too; an item is a value and its parameters.
        item, parameters = cast("tuple[object, dict[str, object]]", http_sf.parse(value, tltype="item"))
    except ValueError as error:
        raise ScopeError(f"not an RFC 9651 item: {error}") from None
    if not isinstance(item, Token):
        raise ScopeError("the scope must be a token without quotes, such as sandbox-alice")
    if not SCOPE_NAME.fullmatch(str(item)):
        raise ScopeError(
            f"the scope {str(item)!r} is not 'sandbox-<developer>' (lower-case letters, digits, '.', '_', '-')"
        )
    return _with_parameters(str(item), parameters)


def _with_parameters(name: str, parameters: Mapping[str, object]) -> Scope:
    unknown = parameters.keys() - {"intent", "ttl", "reason", "agent"}
    if unknown:
        raise ScopeError(f"unknown parameter {min(unknown)!r}; known are intent, ttl, reason and agent")
    intent = _token(parameters, "intent")
    agent = _token(parameters, "agent")
    ttl = parameters.get("ttl")
    # In Python True is an int: RFC 9651's Boolean must not pass for an Integer (`;ttl` alone means ?1).
    if ttl is not None and (not isinstance(ttl, int) or isinstance(ttl, bool) or ttl < 1):
        raise ScopeError("ttl must be a whole number of seconds, 1 or more, such as ttl=3600")
    reason = parameters.get("reason")
    if reason is not None and not isinstance(reason, str):
        raise ScopeError('reason must be a string in quotes, such as reason="read the docs"')
    if reason is not None and len(reason) > _MAX_REASON:
        raise ScopeError(f"reason is longer than {_MAX_REASON} characters")
    return Scope(name, intent, None if ttl is None else _seconds(ttl), reason, agent)


def _token(parameters: Mapping[str, object], key: str) -> str | None:
    value = parameters.get(key)
    if value is None:
        return None
    if not isinstance(value, Token):
        raise ScopeError(f"{key} must be a token without quotes, such as {key}=develop")
    return str(value)


def _seconds(ttl: int) -> timedelta:
    # RFC 9651 integers have up to 15 digits, more than a timedelta holds; a claim only ever shortens.
    return timedelta(seconds=min(ttl, 10**9))
