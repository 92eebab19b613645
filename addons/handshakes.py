"""TLS handshakes with clients that came to nothing: most often the client does not trust the proxy's CA."""

import asyncio
import logging
import time
from collections.abc import Callable

from mitmproxy import connection

from connections import ClientConnection
from egress_policy.audit import Record
from egress_policy.audit_files import AuditError
from egress_policy.destination import InvalidHostError, parse_name
from egress_policy.records import handshake_record
from egress_policy.repeats import Repeats

_INTERVAL = 0.5
_LONGEST_REASON = 200

# What mitmproxy says (ClientTLSLayer.on_handshake_error), and what that means.
_MEANINGS = (
    (
        "The client does not trust the proxy's certificate",
        "the client does not trust the proxy's CA: `egress-policy env` prints what makes it do so",
    ),
    (
        "The client disconnected during the handshake",
        "the client left during the handshake, as one does that does not trust the proxy's CA",
    ),
    (
        "Client and mitmproxy cannot agree on a TLS version",
        "client and proxy have no version of TLS in common",
    ),
    # The rest of this message is whatever the client sent.
    ("Cannot parse ClientHello", "what the client sent first is no ClientHello"),
)

_logger = logging.getLogger(__name__)


class Handshakes:
    """Puts on record which clients' handshakes fail; what is the same once a second, with a count."""

    def __init__(self, write: Callable[[Record], None]) -> None:
        self._write_record = write
        self._repeats = Repeats()

    def failed(self, opened: ClientConnection, client: connection.Client) -> None:
        """Record that a client's handshake failed, for the reason that mitmproxy noted with it."""
        try:
            host = str(parse_name(client.sni or ""))
        except InvalidHostError:
            host = None
        caller, why = opened.caller, _meaning(client.error or "")
        self._write(
            self._repeats.take(
                (caller, host, opened.port, why),
                lambda: handshake_record(caller, host, opened.port, why),
                time.monotonic(),
            )
        )

    async def follow(self) -> None:
        """Record what was repeated. Runs until cancelled."""
        while True:
            await asyncio.sleep(_INTERVAL)
            for record in self._repeats.due(time.monotonic()):
                self._write(record)
            if self._repeats.uncounted:
                why = f"{self._repeats.uncounted} failed handshakes for ever other names are not on record one by one"
                self._repeats.uncounted = 0
                self._write(handshake_record(None, None, None, why))

    def _write(self, record: Record | None) -> None:
        if record is None:
            return
        try:
            self._write_record(record)
        except AuditError as error:
            # Nothing was let out. Requests find the log broken too, and are refused.
            _logger.error("a failed handshake is not on record: %s", error)


def _meaning(error: str) -> str:
    known = next((meaning for start, meaning in _MEANINGS if error.startswith(start)), None)
    return known or f"the handshake failed: {error[:_LONGEST_REASON]}"
