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
    connection = _Connection(control)
    target = f"{path}?{urlencode(query)}" if query else path
    try:
        connection.request(method, target, None if body is None else msgspec.json.encode(body))
        response = connection.getresponse()
        text = response.read()
        answer = msgspec.json.decode(text)
    except (OSError, http.client.HTTPException, msgspec.DecodeError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ControlUnreachableError(f"no proxy answers at {control}: {why}") from None
    finally:
        connection.close()
    if response.status >= HTTPStatus.BAD_REQUEST:
        raise ControlRefusedError(answer.get("detail") or answer.get("title", "refused"))
    return answer
