"""A refusal is told as RFC 9457 has it, or as a page, and says what to do next."""

import json
from html.parser import HTMLParser

import pytest

from egress_policy.audit import Record
from egress_policy.denial import DenyCode, FailureCode
from egress_policy.problem import GUIDANCE, Problem, problem_of, render

CODES = [*DenyCode, *FailureCode]
PROBLEM = Problem(
    code="destination_denied",
    status=403,
    detail="x.paste.example is known-bad: *.paste.example",
    id="3f0c5b1e-8f5e-4c53-9a43-0d5f0a1b2c3d",
    agent="alice-claude",
    scope="sandbox-alice",
    intent="develop",
    destination="x.paste.example:443",
)
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


def test_the_members_are_the_contracts() -> None:
    status, headers, body = render(PROBLEM, None)
    assert status == 403
    assert dict(headers) == {
        "Content-Type": "application/problem+json",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    members = json.loads(body)
    assert list(members.items()) == [
        ("type", "urn:egress-policy:destination_denied"),
        ("title", "The destination is known-bad"),
        ("status", 403),
        ("detail", "x.paste.example is known-bad: *.paste.example"),
        ("instance", "urn:uuid:3f0c5b1e-8f5e-4c53-9a43-0d5f0a1b2c3d"),
        ("code", "destination_denied"),
        ("agent", "alice-claude"),
        ("scope", "sandbox-alice"),
        ("intent", "develop"),
        ("destination", "x.paste.example:443"),
        ("next_steps", list(GUIDANCE["destination_denied"].next_steps)),
    ]


def test_what_is_not_known_is_absent() -> None:
    _, _, body = render(Problem("caller_unknown", 403, "…", "1"), None)
    assert not json.loads(body).keys() & {"agent", "scope", "intent", "destination"}


def test_every_code_has_guidance_and_no_other_has() -> None:
    assert set(GUIDANCE) == {str(code) for code in CODES}


@pytest.mark.parametrize("code", CODES)
def test_the_guidance_is_a_title_and_steps_that_stay_within_the_policy(code: DenyCode | FailureCode) -> None:
    guidance = GUIDANCE[code]
    assert guidance.title
    assert not guidance.title.endswith(".")
    assert guidance.next_steps
    for step in guidance.next_steps:
        assert step.endswith(".")
        assert step.count("`") % 2 == 0
        for way_around in (
            "bypass",
            "disable",
            "another proxy",
            "sudo",
            "root",
            "tunnel",
            "--noproxy",
            "vpn",
        ):
            assert way_around not in step.lower()


@pytest.mark.parametrize("code", CODES)
def test_a_records_problem_has_its_codes_status(code: DenyCode | FailureCode) -> None:
    record = Record(
        time="2026-03-01T12:00:00.000Z",
        event="decision",
        id="1",
        agent="alice-claude",
        scope="sandbox-alice",
        intent="develop",
        host="2001:db8::1",
        port=443,
        code=code.value,
        detail="why",
    )
    assert problem_of(record) == Problem(
        code.value, code.status, "why", "1", "alice-claude", "sandbox-alice", "develop", "[2001:db8::1]:443"
    )
    status, _, body = render(problem_of(record), None)
    assert status == json.loads(body)["status"] == code.status.value


def test_a_refusal_without_a_code_is_our_fault() -> None:
    record = Record(time="2026-03-01T12:00:00.000Z", event="decision")
    assert problem_of(record) == Problem("internal_error", 500, "", "")


@pytest.mark.parametrize(
    ("accept", "is_html"),
    [
        (None, False),
        ("", False),
        ("*/*", False),
        (BROWSER, True),
        ("text/html", True),
        ("TEXT/HTML", True),
        ("text/*", True),
        ("text/html;level=1", True),
        ("text/html, */*;q=0.1", True),
        ("text/html, */*", False),
        ("text/html, application/json", False),
        ("text/html, application/json;q=0.9", True),
        ("text/html;q=0.9, application/json", False),
        ("text/html;q=0.8, application/problem+json;q=0.9", False),
        ("text/html;q=0.8, application/*;q=0.7", True),
        ("text/html;q=0", False),
        ("text/html; q=0, text/*", False),
        ("text/html;q=x", False),
        ("text/html;q=1e9, */*;q=0.5", False),
        ("text/html;q=nan", False),
        ("application/json", False),
        ("image/png", False),
        (",;,=;q=,,", False),
    ],
)
def test_html_is_for_those_who_prefer_it(accept: str | None, is_html: bool) -> None:
    status, headers, body = render(PROBLEM, accept)
    assert status == 403
    assert dict(headers)["Content-Type"] == (
        "text/html; charset=utf-8" if is_html else "application/problem+json"
    )
    assert body.startswith(b"<!DOCTYPE html>" if is_html else b"{")


class Page(HTMLParser):
    """Collects a page's text, and all that could load or run something."""

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self.text = ""
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(body.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_says_what_why_and_what_to_do() -> None:
    _, headers, body = render(PROBLEM, BROWSER)
    page = Page(body)
    for expected in (
        "The destination is known-bad",
        PROBLEM.detail,
        "x.paste.example:443",
        "alice-claude",
        "403 destination_denied",
        PROBLEM.id,
        *(step.replace("`", "") for step in GUIDANCE["destination_denied"].next_steps),
    ):
        assert expected in page.text
    assert dict(headers)["Content-Security-Policy"] == "default-src 'none'; style-src 'unsafe-inline'"
    assert dict(headers)["Cache-Control"] == "no-store"
    assert dict(headers)["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("code", CODES)
def test_the_page_loads_and_runs_nothing(code: DenyCode | FailureCode) -> None:
    _, _, body = render(Problem(code, code.status, "…", "1"), BROWSER)
    page = Page(body)
    assert not page.elements & {"script", "link", "img", "iframe", "a", "form"}
    assert page.attributes <= {"lang", "charset", "name", "content"}


def test_hostile_text_is_shown_and_not_obeyed() -> None:
    hostile = "<script>alert(1)</script>\"'&{title}\ud800\n"
    shown = "<script>alert(1)</script>\"'&{title}\\ud800\n"
    problem = Problem("destination_invalid", 403, hostile, "1", hostile, hostile, hostile, hostile)
    _, _, body = render(problem, BROWSER)
    page = Page(body)
    assert "script" not in page.elements
    assert page.text.count(shown) == 5
    _, _, body = render(problem, None)
    assert json.loads(body)["detail"] == json.loads(body)["destination"] == shown
