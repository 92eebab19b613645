"""Who has signed in: by whom, for how long, and how many."""

from itertools import count

from egress_policy.console.sessions import INVITATION, MOST, SESSION, Sessions

OWNER, BROWSER, OTHER = 61010, 61020, 61030


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def opened(sessions: Sessions, uid: int = OWNER) -> str:
    session = sessions.open(sessions.invite(uid), BROWSER)
    assert session is not None
    return session


def test_an_invitation_opens_one_session_with_the_rights_of_who_was_invited() -> None:
    sessions = Sessions()
    invitation = sessions.invite(OWNER)
    session = sessions.open(invitation, BROWSER)
    assert session is not None
    assert sessions.find(session, BROWSER) == OWNER
    assert sessions.find(session, OTHER) is None
    assert sessions.open(invitation, BROWSER) is None


def test_neither_token_is_good_for_the_other() -> None:
    sessions = Sessions()
    assert sessions.find(sessions.invite(OWNER), BROWSER) is None
    assert sessions.open(opened(sessions), BROWSER) is None


def test_an_invitation_that_is_too_old_opens_nothing() -> None:
    clock = Clock()
    sessions = Sessions(clock)
    in_time, late = sessions.invite(OWNER), sessions.invite(OWNER)
    clock.now = INVITATION - 1
    assert sessions.open(in_time, BROWSER) is not None
    clock.now = INVITATION
    assert sessions.open(late, BROWSER) is None


def test_a_session_ends_however_it_is_used() -> None:
    clock = Clock()
    sessions = Sessions(clock)
    session = opened(sessions)
    for clock.now in (SESSION / 2, SESSION - 1):
        assert sessions.find(session, BROWSER) == OWNER
    clock.now = SESSION
    assert sessions.find(session, BROWSER) is None


def test_a_session_that_was_closed_is_over() -> None:
    sessions = Sessions()
    session, other = opened(sessions), opened(sessions)
    sessions.close(session)
    sessions.close("never given")
    assert sessions.find(session, BROWSER) is None
    assert sessions.find(other, BROWSER) == OWNER


def test_a_user_s_newest_sessions_push_out_nobody_else_s() -> None:
    sessions = Sessions()
    theirs = opened(sessions, OTHER)
    mine = [opened(sessions) for _ in range(MOST + 1)]
    assert [sessions.find(one, BROWSER) for one in mine] == [None] + [OWNER] * MOST
    assert sessions.find(theirs, BROWSER) == OTHER


def test_what_is_over_is_forgotten() -> None:
    clock = Clock()
    sessions = Sessions(clock)
    for uid, clock.now in zip(range(1000), count(0, SESSION), strict=False):
        opened(sessions, uid)
    assert len(sessions._open) + len(sessions._invited) == 1
