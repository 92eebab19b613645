"""The policy's own tests: what they may say, and where a failing one stands."""

from pathlib import Path

import pytest

from egress_policy.policy_file import load
from egress_policy.policy_source import PolicyFileError
from egress_policy.policy_tests import OUTCOMES

POLICY = """\
version: 1
agents:
  alice: {user: 2001, scopes: [sandbox-alice]}
  bob: {user: 2002, scopes: [sandbox-bob], default_scope: sandbox-bob, approval: never}
scopes:
  sandbox-alice: {owner: alice@example.com}
  sandbox-bob: {owner: bob@example.com, intents: [default]}
trust:
  known-good:
    - {domain: api.example}
  known-bad:
    - {domain: bad.example}
  internal:
    - {cidr: 10.1.0.0/16}
intents:
  default:
    unknown: {methods: [GET], max_body: 0, approval: required}
  develop:
    internal: {max_body: 1KiB}
tests:
"""


def run(tmp_path: Path, tests: str) -> list[str]:
    """Return what the failing tests say."""
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY + tests)
    return [str(failure).removeprefix(f"{tmp_path}/") for failure in load(path).failures]


# One for each outcome that a policy by itself can come to.
@pytest.mark.parametrize(
    "test",
    [
        "{agent: alice, request: GET https://api.example/, expect: permit}",
        "{agent: alice, request: GET https://b.example/, expect: scope_missing}",
        "{agent: alice, scope: sandbox-bob, request: GET https://b.example/, expect: scope_not_allowed}",
        "{agent: alice, scope: alice, request: GET https://b.example/, expect: scope_malformed}",
        "{agent: alice, scope: sandbox-alice, request: GET https://b.example/, expect: pending_approval}",
        "{agent: bob, request: GET https://b.example/, expect: approval_required}",
        "{agent: bob, request: POST https://b.example/, expect: method_not_allowed}",
        "{agent: bob, request: GET https://b.example/, body: 1KiB, expect: body_too_large}",
        "{agent: bob, request: GET https://x.bad.example:8443/, expect: trust_not_allowed}",
        "{agent: bob, request: GET https://bad.example/, expect: destination_denied}",
        "{agent: bob, request: GET http://10.1.2.3/, expect: trust_not_allowed}",
        "{agent: bob, request: GET http://127.1/, expect: destination_invalid}",
        "{agent: bob, scope: sandbox-bob;intent=develop, request: GET http://10.1.2.3/, expect: intent_not_allowed}",
        "{agent: alice, scope: sandbox-alice;intent=develop, request: PUT http://10.1.2.3/, body: 1KiB, expect: permit}",
        "{agent: alice, scope: sandbox-alice;intent=x, request: GET http://10.1.2.3/, expect: intent_unknown}",
        "{agent: eve, request: GET https://api.example/, expect: caller_unknown}",
    ],
)  # fmt: skip
def test_what_comes_as_expected(tmp_path: Path, test: str) -> None:
    assert run(tmp_path, f"  - {test}\n") == []
    expected = test.rpartition(" ")[2].rstrip("}")
    other = "permit" if expected != "permit" else "caller_unknown"
    (failure,) = run(tmp_path, f"  - {test.replace(f'expect: {expected}', f'expect: {other}')}\n")
    assert failure.startswith(f"policy.yaml:21:5: tests[0]: {other} was expected, and it is {expected}")


def test_a_failing_test_says_why(tmp_path: Path) -> None:
    (failure,) = run(
        tmp_path,
        "  - {agent: alice, request: GET https://api.example/, expect: permit}\n"
        "  - {agent: alice, scope: sandbox-alice, request: POST https://b.example/, expect: permit}\n",
    )
    assert failure == (
        "policy.yaml:22:5: tests[1]: permit was expected, and it is method_not_allowed "
        "(intent default may use GET with unknown destinations, not POST)"
    )


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ("{agent: alice, request: GET https://b.example/}", "the key `expect` is missing"),
        ("{agent: alice, request: GET, expect: permit}", "is not a method and a URL"),
        ("{agent: alice, request: get https://b.example/, expect: permit}", "is not a method and a URL"),
        ("{agent: alice, request: GET b.example, expect: permit}", "is not a method and a URL"),
        ("{agent: alice, request: GET https://b.example:x/, expect: permit}", "is not a method and a URL"),
        ("{agent: alice, request: GET https://b.example/, expect: deny}", "'deny' is not one of permit, "),
        ("{agent: alice, request: GET https://b.example/, expect: quota_exceeded}", "is not one of permit, "),
        ("{agent: alice, request: GET https://b.example/, expect: permit, body: 3}", "is not a size"),
    ],
)
def test_what_is_no_test_is_an_error_of_the_policy(tmp_path: Path, test: str, said: str) -> None:
    with pytest.raises(PolicyFileError) as raised:
        run(tmp_path, f"  - {test}\n")
    assert any(said in str(error) for error in raised.value.errors), str(raised.value)


def test_what_only_the_world_can_bring_about_cannot_be_expected() -> None:
    assert {"permit", "trust_not_allowed", "pending_approval"} < {*OUTCOMES}
    assert not {"paused", "approval_declined", "quota_exceeded", "address_denied", "grant_failed"} & {
        *OUTCOMES
    }
