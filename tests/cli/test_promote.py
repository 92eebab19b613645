"""From an experiment to an entry: what is added, what stays, and what is refused."""

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from egress_policy.audit import AuditLog, Record
from egress_policy.cli.diff import diff
from egress_policy.cli.promote import promote
from egress_policy.policy_file import load_policy

POLICY = """\
# The head.
version: 1
agents:
  alice: {user: 61001, scopes: [sandbox-alice]}   # who
scopes: {sandbox-alice: {owner: alice@example.com}}
trust:
  known-good:
    - {domain: api.example}   # the model
    - domain: two.example
      ports: [443]

  # Never.
  known-bad:
    - {domain: bad.example}
"""


def used(host: str, outcome: str = "permit", port: int = 443, reason: str | None = None) -> Record:
    return Record(
        time="2099-03-01T11:00:00.000Z",
        event="decision",
        agent="alice",
        scope="sandbox-alice",
        host=host,
        port=port,
        outcome=outcome,
        method="GET",
        reason=reason,
    )


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    policy, audit = tmp_path / "policy.yaml", tmp_path / "audit.jsonl"
    policy.write_text(POLICY)
    log = AuditLog(str(audit))
    for one in (
        *(used("new.example", reason="@everyone [x](http://evil.example)") for _ in range(3)),
        used("new.example", port=8443),
        used("refused.example", "deny"),
        used("bad.example", "deny"),
        used("api.example"),
        used("api.example", port=80),
    ):
        log.write(one)
    log.close()
    return policy, audit


def run(files: tuple[Path, Path], *arguments: str) -> Result:
    policy, audit = files
    done = CliRunner().invoke(promote, [*arguments, "--policy", str(policy), "--audit", str(audit)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def test_a_further_port_that_was_used_is_covered_too(files: tuple[Path, Path]) -> None:
    """Git over SSH would end with the promotion otherwise."""
    log = AuditLog(str(files[1]))
    log.write(msgspec.structs.replace(used("new.example", port=22), event="direct", method=None, scope=None))
    log.write(msgspec.structs.replace(used("new.example", "deny", port=23), event="drop", method=None))
    log.close()
    done = run(files, "new.example")
    assert "ports: [22, 443, 8443]" in files[0].read_text()
    assert "`(raw TCP)` (1)" in done.output


def test_one_line_is_added_and_no_other_touched(files: tuple[Path, Path]) -> None:
    done = run(files, "New.example.")
    assert done.exit_code == 0, done.output
    before, after = POLICY.splitlines(), files[0].read_text().splitlines()
    (added,) = [line for line in after if line not in before]
    assert [line for line in after if line != added] == before
    assert added.startswith("    - {domain: new.example, ports: [443, 8443], comment:")
    assert after.index(added) == before.index("      ports: [443]") + 1
    assert load_policy(files[0]).trust.entries_for_name("new.example")[8443].level == "known-good"


def test_the_text_has_the_evidence_and_no_markup_of_an_agents(files: tuple[Path, Path]) -> None:
    text = run(files, "new.example", "--dry-run").output
    assert files[0].read_text() == POLICY
    assert "| alice | sandbox-alice | 4 |" in text
    assert "`443` (3), `8443` (1)" in text
    assert "- `@everyone [x](http://evil.example)` (3)" in text


def test_another_level_is_made_where_it_is_not_there(files: tuple[Path, Path]) -> None:
    assert run(files, "new.example", "--level", "vetted").exit_code == 0
    assert load_policy(files[0]).trust.entries_for_name("new.example")[443].level == "vetted"


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("bad.example", "known-bad"),
        ("refused.example", "no agent has reached"),
        ("never.example", "no agent has reached"),
        ("api.example", "known-good already"),
        ("not a host", "is no host name"),
        ("192.0.2.1", "is no host name"),
    ],
)
def test_what_cannot_be_promoted_changes_nothing(files: tuple[Path, Path], host: str, said: str) -> None:
    done = run(files, host)
    assert (done.exit_code, said in done.output) == (1, True), done.output
    assert files[0].read_text() == POLICY
    assert [path.name for path in files[0].parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    "trust",
    ["", "trust:\n  vetted:\n    - {domain: v.example}\n", "trust:\n  known-good:\n  - domain: k.example"],
)
def test_files_of_other_forms(files: tuple[Path, Path], trust: str) -> None:
    files[0].write_text(POLICY[: POLICY.index("trust:")] + trust)
    assert run(files, "new.example").exit_code == 0
    assert load_policy(files[0]).trust.entries_for_name("new.example")[443].level == "known-good"


@pytest.mark.parametrize("trust", ["trust: {known-good: [{domain: k.example}]}", "trust:\n  known-good: []"])
def test_a_form_that_an_entry_cannot_be_added_to_is_said(files: tuple[Path, Path], trust: str) -> None:
    text = POLICY[: POLICY.index("trust:")] + trust
    files[0].write_text(text)
    assert run(files, "new.example").exit_code == 1
    assert files[0].read_text() == text


@pytest.mark.parametrize(
    "entries",
    [
        "    - domain: two.example\n      comment: |\n        Two\n        lines.\n",
        "    - domain: two.example\n      comment: >-\n        Two\n        lines.\n\n",
        "    - domain: two.example\n      comment: 'Two\n        lines.'\n",
        "    - {domain: two.example,\n       ports: [443]}  # why\n",
        "    - domain: two.example\n      ports:\n      - 80\n      - 443\n",
    ],
)
def test_the_last_entry_may_have_any_form(files: tuple[Path, Path], entries: str) -> None:
    """An entry that slipped below the next key would be known-bad."""
    text = POLICY[: POLICY.index("    - {domain: api")] + entries + POLICY[POLICY.index("\n  # Never") :]
    files[0].write_text(text)
    assert run(files, "new.example").exit_code == 0
    after = files[0].read_text().splitlines()
    (added,) = [line for line in after if "new.example" in line]
    assert [line for line in after if line != added] == text.splitlines()
    assert load_policy(files[0]).trust.entries_for_name("new.example")[443].level == "known-good"


def test_an_alias_is_no_entry_to_add_after(files: tuple[Path, Path]) -> None:
    """Its place in the file is another."""
    bad = "  known-bad:\n    - &shared {domain: s.example}\n    - {domain: bad.example}\n"
    text = POLICY[: POLICY.index("  known-good")] + bad + "  vetted:\n    - *shared\n"
    files[0].write_text(text)
    done = run(files, "new.example", "--level", "vetted")
    assert (done.exit_code, "not of a form that a line can be added after" in done.output) == (1, True)
    assert files[0].read_text() == text


def test_lines_end_as_they_did(files: tuple[Path, Path]) -> None:
    text = POLICY.replace("\n", "\r\n").replace("# who", "# wér").encode()
    files[0].write_bytes(text)
    assert run(files, "new.example").exit_code == 0
    before, after = text.splitlines(keepends=True), files[0].read_bytes().splitlines(keepends=True)
    (added,) = [line for line in after if line not in before]
    assert [line for line in after if line != added] == before
    assert added.endswith(b"}\r\n")


TEAM = """\
# The team's.
scopes: {sandbox-alice: {owner: alice@example.com}}
"""


@pytest.fixture
def team(files: tuple[Path, Path]) -> Path:
    """The scope that used everything is defined in a file of its own."""
    text = POLICY.replace("version: 1\n", "version: 1\ninclude: [teams/*.yaml]\n")
    files[0].write_text(text.replace("scopes: {sandbox-alice: {owner: alice@example.com}}\n", ""))
    (files[0].parent / "teams").mkdir()
    (files[0].parent / "teams/other.yaml").write_text("# Nothing yet.\nversion: 1\n")
    team = files[0].parent / "teams/alice.yaml"
    team.write_text(TEAM)
    return team


def test_the_entry_goes_into_the_file_of_the_team_that_used_it(files: tuple[Path, Path], team: Path) -> None:
    before = files[0].read_bytes()
    done = run(files, "new.example", "--level", "vetted")
    assert done.output.startswith(f"Added to {team}, trust.vetted:\n")
    assert team.read_text().startswith(
        f"{TEAM}trust:\n  vetted:\n    - {{domain: new.example, ports: [443, 8443]"
    )
    assert files[0].read_bytes() == before
    assert load_policy(files[0]).trust.entries_for_name("new.example")[443].level == "vetted"


def test_what_several_teams_used_goes_into_the_policy_file(files: tuple[Path, Path], team: Path) -> None:
    (team.parent / "other.yaml").write_text("scopes: {sandbox-bob: {owner: bob@example.com}}\n")
    log = AuditLog(str(files[1]))
    log.write(msgspec.structs.replace(used("new.example"), scope="sandbox-bob"))
    log.close()
    assert run(files, "new.example").output.startswith(f"Added to {files[0]}, ")
    assert team.read_text() == TEAM


def test_another_file_can_be_named(files: tuple[Path, Path], team: Path) -> None:
    other = team.parent / "other.yaml"
    assert run(files, "new.example", "--into", str(other)).exit_code == 0
    assert "domain: new.example" in other.read_text()
    done = run(files, "api.example", "--level", "vetted", "--into", str(files[1]))
    assert (done.exit_code, "is no file of this policy" in done.output) == (2, True)


def test_an_entry_that_contradicts_another_file_changes_nothing(files: tuple[Path, Path], team: Path) -> None:
    (team.parent / "other.yaml").write_text("trust: {vetted: [{domain: new.example, ports: [8443]}]}\n")
    done = run(files, "new.example")
    assert done.exit_code == 1
    assert "new.example port 8443 is already known-good, on line 5 of teams/alice.yaml" in done.output
    assert team.read_text() == TEAM


def test_the_difference_is_what_was_promoted(files: tuple[Path, Path], tmp_path: Path) -> None:
    old = tmp_path / "old.yaml"
    old.write_text(POLICY)
    run(files, "new.example")
    shown = CliRunner().invoke(diff, [str(old), str(files[0])])
    assert shown.exit_code == 0, shown.output
    assert "### Newly permitted" in shown.output
    assert "new.example port 443" in shown.output
    document = json.loads(CliRunner().invoke(diff, [str(old), str(files[0]), "--json"]).output)
    # Port 8443 was nobody's before; on 443 it needed a scope.
    assert {one["destination"] for one in document["changes"]} == {
        "new.example port 443",
        "new.example port 8443",
    }
    assert CliRunner().invoke(diff, [str(old), str(old)]).output == "The same destinations, for everybody.\n"
