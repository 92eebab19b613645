"""The X-Agent-Scope field: one line, one RFC 9651 item, known parameters of the right type."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_policy.scope import EXAMPLE, Scope, ScopeError, parse_scope

FIELDLIKE = st.one_of(
    st.binary(max_size=60),
    st.from_regex(rb"sandbox-[a-z0-9._-]{1,5}(; ?[a-z]{1,6}(=[0-9a-z\".:?@%-]{0,8})?){0,3}", fullmatch=True),
    st.text(alphabet='sandbox-;=tl reon"\\%:?@0123456789.,()*\t', max_size=60).map(str.encode),
)


@pytest.mark.parametrize(
    ("field", "scope"),
    [
        pytest.param("sandbox-alice", Scope("sandbox-alice"), id="token"),
        pytest.param("  sandbox-alice  ", Scope("sandbox-alice"), id="spaces-around"),
        pytest.param("sandbox-a", Scope("sandbox-a"), id="one-letter"),
        pytest.param("sandbox-0", Scope("sandbox-0"), id="one-digit"),
        pytest.param("sandbox-a.b_c-d", Scope("sandbox-a.b_c-d"), id="punctuation"),
        pytest.param("sandbox-" + "a" * 63, Scope("sandbox-" + "a" * 63), id="longest"),
        pytest.param("sandbox-a;intent=develop", Scope("sandbox-a", intent="develop"), id="intent"),
        pytest.param(
            "sandbox-a; intent=develop", Scope("sandbox-a", intent="develop"), id="space-behind-semicolon"
        ),
        pytest.param("sandbox-a;ttl=1", Scope("sandbox-a", ttl=timedelta(seconds=1)), id="shortest-ttl"),
        pytest.param(
            "sandbox-a;ttl=999999999999999",
            Scope("sandbox-a", ttl=timedelta(seconds=10**9)),
            id="longest-ttl-that-rfc-9651-has",
        ),
        pytest.param('sandbox-a;reason=""', Scope("sandbox-a", reason=""), id="empty-reason"),
        pytest.param(
            r'sandbox-a;reason="a \"quoted\" \\ word"',
            Scope("sandbox-a", reason=r'a "quoted" \ word'),
            id="escapes",
        ),
        pytest.param(
            f'sandbox-a;reason="{"r" * 200}"', Scope("sandbox-a", reason="r" * 200), id="longest-reason"
        ),
        pytest.param("sandbox-a;agent=claude-code", Scope("sandbox-a", agent="claude-code"), id="agent"),
        pytest.param(
            "sandbox-a;ttl=60;ttl=30", Scope("sandbox-a", ttl=timedelta(seconds=30)), id="last-counts"
        ),
        pytest.param(
            "sandbox-a;ttl=x;ttl=30", Scope("sandbox-a", ttl=timedelta(seconds=30)), id="only-last-counts"
        ),
        pytest.param(
            EXAMPLE.partition(": ")[2],
            Scope("sandbox-alice", "develop", timedelta(hours=1), "read the API reference"),
            id="our-own-example",
        ),
    ],
)
def test_what_a_field_says(field: str, scope: Scope) -> None:
    assert parse_scope([field.encode()]) == scope


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        pytest.param([], "expected one X-Agent-Scope field line, found 0", id="none"),
        pytest.param(
            [b"sandbox-a", b"sandbox-a"], "expected one X-Agent-Scope field line, found 2", id="two"
        ),
        pytest.param([b""], "not an RFC 9651 item", id="empty"),
        pytest.param([b" "], "not an RFC 9651 item", id="blank"),
        pytest.param([b"sandbox-a, sandbox-b"], "not an RFC 9651 item", id="list"),
        pytest.param([b"(sandbox-a)"], "not an RFC 9651 item", id="inner-list"),
        pytest.param([b"sandbox-a;"], "not an RFC 9651 item", id="parameter-missing"),
        pytest.param([b"sandbox-a;Intent=x"], "not an RFC 9651 item", id="upper-case-parameter"),
        pytest.param([b'sandbox-a;reason="x'], "not an RFC 9651 item", id="string-without-end"),
        pytest.param([b"sandbox-a x"], "not an RFC 9651 item", id="something-behind"),
        pytest.param([b"sandbox-a\r\n b"], "control or non-ASCII", id="folded"),
        pytest.param([b"sandbox-a\t"], "control or non-ASCII", id="tab"),
        pytest.param([b"sandbox-a\0"], "control or non-ASCII", id="nul"),
        pytest.param([b"sandbox-a\x1f"], "control or non-ASCII", id="last-control"),
        pytest.param([b"sandbox-a\x7f"], "control or non-ASCII", id="delete"),
        pytest.param(["sandbox-\u00e4".encode()], "control or non-ASCII", id="non-ascii"),
        pytest.param([b'sandbox-a;reason="\xff"'], "control or non-ASCII", id="non-ascii-reason"),
        pytest.param([b'"sandbox-a"'], "must be a token without quotes", id="string"),
        pytest.param([b"1"], "must be a token without quotes", id="integer"),
        pytest.param([b"?1"], "must be a token without quotes", id="boolean"),
        pytest.param([b":c2FuZGJveC1h:"], "must be a token without quotes", id="byte-sequence"),
        pytest.param([b'%"sandbox-a"'], "must be a token without quotes", id="display-string"),
        pytest.param([b"alice"], "is not 'sandbox-<developer>'", id="no-sandbox"),
        pytest.param([b"sandbox-"], "is not 'sandbox-<developer>'", id="no-developer"),
        pytest.param([b"sandbox-Alice"], "is not 'sandbox-<developer>'", id="upper-case"),
        pytest.param([b"Sandbox-alice"], "is not 'sandbox-<developer>'", id="upper-case-sandbox"),
        pytest.param([b"sandbox-.a"], "is not 'sandbox-<developer>'", id="dot-in-front"),
        pytest.param([b"sandbox-a/b"], "is not 'sandbox-<developer>'", id="slash"),
        pytest.param([b"sandbox-a:b"], "is not 'sandbox-<developer>'", id="colon"),
        pytest.param([b"xsandbox-a"], "is not 'sandbox-<developer>'", id="letter-in-front"),
        pytest.param([b"known-good"], "is not 'sandbox-<developer>'", id="known-good-is-no-scope"),
        pytest.param([b"sandbox-" + b"a" * 64], "is not 'sandbox-<developer>'", id="too-long"),
        pytest.param([b"sandbox-a;admin"], "unknown parameter 'admin'", id="unknown-parameter"),
        pytest.param([b"sandbox-a;zz;bb"], "unknown parameter 'bb'", id="unknown-parameters-sorted"),
        pytest.param([b'sandbox-a;intent="x"'], "intent must be a token", id="intent-string"),
        pytest.param([b"sandbox-a;intent"], "intent must be a token", id="intent-boolean"),
        pytest.param([b"sandbox-a;intent=1"], "intent must be a token", id="intent-integer"),
        pytest.param([b'sandbox-a;agent="x"'], "agent must be a token", id="agent-string"),
        pytest.param([b"sandbox-a;ttl=0"], "ttl must be a whole number", id="ttl-zero"),
        pytest.param([b"sandbox-a;ttl=-1"], "ttl must be a whole number", id="ttl-negative"),
        pytest.param([b"sandbox-a;ttl=60.0"], "ttl must be a whole number", id="ttl-decimal"),
        pytest.param([b"sandbox-a;ttl"], "ttl must be a whole number", id="ttl-boolean"),
        pytest.param([b"sandbox-a;ttl=1h"], "not an RFC 9651 item", id="ttl-with-a-unit"),
        pytest.param([b'sandbox-a;ttl="60"'], "ttl must be a whole number", id="ttl-string"),
        pytest.param([b"sandbox-a;ttl=@60"], "ttl must be a whole number", id="ttl-date"),
        pytest.param([b"sandbox-a;ttl=1000000000000000"], "not an RFC 9651 item", id="ttl-of-16-digits"),
        pytest.param([b"sandbox-a;ttl=30;ttl=x"], "ttl must be a whole number", id="last-ttl-counts"),
        pytest.param([b"sandbox-a;reason=docs"], "reason must be a string", id="reason-token"),
        pytest.param([b"sandbox-a;reason"], "reason must be a string", id="reason-boolean"),
        pytest.param([b'sandbox-a;reason=%"docs"'], "reason must be a string", id="reason-display-string"),
        pytest.param([b"sandbox-a;reason=:YQ==:"], "reason must be a string", id="reason-byte-sequence"),
        pytest.param([b'sandbox-a;reason="' + b"r" * 201 + b'"'], "longer than 200", id="reason-too-long"),
        pytest.param([b"sandbox-a" + b" " * 2040], "longer than 2048 bytes", id="field-too-long"),
    ],
)
def test_what_is_denied(lines: list[bytes], why: str) -> None:
    """The message says what is wrong, in words that a developer can act on."""
    with pytest.raises(ScopeError, match=why):
        parse_scope(lines)


def test_a_field_of_2048_bytes_is_read() -> None:
    assert parse_scope([b"sandbox-a" + b" " * 2039]) == Scope("sandbox-a")


@given(st.lists(FIELDLIKE, max_size=2))
def test_any_bytes_give_a_scope_or_a_scope_error(lines: list[bytes]) -> None:
    """A scope that was read holds only what its types say."""
    try:
        scope = parse_scope(lines)
    except ScopeError:
        return
    assert len(lines) == 1
    assert scope.name.startswith("sandbox-")
    assert scope.ttl is None or scope.ttl >= timedelta(seconds=1)
    assert scope.reason is None or len(scope.reason) <= 200
    assert all(
        type(part) in {str, type(None)} for part in (scope.name, scope.intent, scope.agent, scope.reason)
    )
