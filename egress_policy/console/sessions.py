"""Who has signed in to the console: invitations and sessions, in memory alone.

A session is sent by the page in a header of its own and is no cookie: a browser sends a host's cookies to every
port of it, and on this host agents may serve pages too.
"""

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

INVITATION = 120.0
"""Seconds for which an invitation is good, once."""
SESSION = 8 * 3600.0
"""Seconds that a session lasts."""
MOST = 8
"""Invitations, and sessions, of one user at once: the oldest makes room."""


@dataclass(frozen=True, slots=True)
class _Held:
    """Whose rights a token gives, until when, and for a session the uid of the browser that it was given to."""

    uid: int
    until: float
    browser: int | None = None


class Sessions:
    """Gives out tokens and knows them again; the tokens themselves are not kept, only their hashes.

    So the time that it takes to look one up tells nothing about another. They have 256 bits: nobody guesses.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._invited: dict[bytes, _Held] = {}
        self._open: dict[bytes, _Held] = {}

    def invite(self, uid: int) -> str:
        """Return a token that opens one session with this user's rights."""
        return self._give(self._invited, _Held(uid, self._clock() + INVITATION))

    def open(self, invitation: str, browser: int) -> str | None:
        """Use an invitation up: return a session's token, good only for this browser's uid."""
        invited = self._invited.pop(_hash(invitation), None)
        if invited is None or invited.until <= self._clock():
            return None
        return self._give(self._open, _Held(invited.uid, self._clock() + SESSION, browser))

    def find(self, session: str, browser: int) -> int | None:
        """Return the uid whose rights a session has."""
        held = self._open.get(_hash(session))
        return None if held is None or held.until <= self._clock() or held.browser != browser else held.uid

    def close(self, session: str) -> None:
        """End a session."""
        self._open.pop(_hash(session), None)

    def _give(self, tokens: dict[bytes, _Held], held: _Held) -> str:
        now = self._clock()
        for key in [key for key, one in tokens.items() if one.until <= now]:
            del tokens[key]
        same = [key for key, one in tokens.items() if one.uid == held.uid]
        if len(same) >= MOST:
            del tokens[same[0]]
        token = secrets.token_urlsafe()
        tokens[_hash(token)] = held
        return token


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()
