"""Asks the running proxy over its control socket."""

import http.client
import socket
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, override
from urllib.parse import urlencode

import msgspec

_PATIENCE = 30.0


class ControlRefusedError(Exception):
    """The proxy answered no: the message says why."""


class ControlUnreachableError(Exception):
    """No proxy answers at the socket: the message says why, and what to do."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_PATIENCE)
        self._path = path

    @override
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def call(
    control: Path, method: str, path: str, body: object = None, query: Mapping[str, str] | None = None
) -> Any:  # noqa: ANN401 - whatever JSON the answer is
    """Ask, and return the answer's JSON. Raises ControlUnreachableError and ControlRefusedError."""
    return _decoded(control, fetch(control, method, path, body, query))


def fetch(
    control: Path, method: str, path: str, body: object = None, query: Mapping[str, str] | None = None
) -> bytes:
    """Ask, and return the answer as it is. Raises ControlUnreachableError and ControlRefusedError."""
    connection = _Connection(control)
    target = f"{path}?{urlencode(query)}" if query else path
    try:
        connection.request(method, target, None if body is None else msgspec.json.encode(body))
        response = connection.getresponse()
        answer = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(control, error) from None
    finally:
        connection.close()
    if response.status >= HTTPStatus.BAD_REQUEST:
        problem = _decoded(control, answer)
        raise ControlRefusedError(problem.get("detail") or problem.get("title", "refused"))
    return answer


def _decoded(control: Path, answer: bytes) -> Any:  # noqa: ANN401 - whatever JSON the answer is
    try:
        return msgspec.json.decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _unreachable(control, error) from None


def _unreachable(control: Path, error: Exception) -> ControlUnreachableError:
    why = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return ControlUnreachableError(f"no proxy answers at {control}: {why}")
