"""The template of the policy repository: what its workflow says of a pull request, and what stops one."""

import re
from pathlib import Path

import pytest
import yaml

from egress_policy.policy_file import load
from tests.policy_repository import TEMPLATE, WORKFLOW, PolicyRepository


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> PolicyRepository:
    made = PolicyRepository(tmp_path_factory.mktemp("policy-repository"))
    made.create({})
    return made


def edit(repository: PolicyRepository, branch: str, file: str, old: str, new: str) -> None:
    """Propose a change on a branch of its own."""
    repository.branch(branch)
    path = repository.work / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    repository.commit(f"Change {file}")


def test_the_template_is_in_order() -> None:
    loaded = load(TEMPLATE / "policy.yaml")
    assert loaded.failures == ()
    assert [file.name for file in loaded.files] == ["policy.yaml", "data.yaml", "web.yaml"]


def test_a_new_destination_is_said_to_the_reviewer(repository: PolicyRepository) -> None:
    entry = "    - {domain: packages.example}"
    edit(repository, "vet", "teams/web.yaml", entry, f'{entry}\n    - {{domain: "*.tools.example"}}')
    run = repository.workflow("vet")
    assert run.failed is None, run.output
    assert "policy.yaml is valid." in run.output
    assert run.comment.startswith(
        "## What this changes for the agents\n\n### Changed\n\n- `*.tools.example port 80`, `*.tools.example port 443`: "
    )
    assert (
        "unknown: GET, HEAD, 0 bytes of body, for 3600 s → vetted: GET, HEAD, any body, for 28800 s"
        in run.comment
    )
    assert "agent bob-batch, scope sandbox-bob, intent default" in run.comment


def test_a_change_without_an_effect_says_so(repository: PolicyRepository) -> None:
    edit(repository, "comment", "teams/web.yaml", "# The web team", "# The Web team")
    run = repository.workflow("comment")
    assert (run.failed, run.comment.splitlines()[-1]) == (None, "The same destinations, for everybody.")


def test_who_would_no_longer_be_held_is_said(repository: PolicyRepository) -> None:
    repository.branch("leave")
    (repository.work / "teams/data.yaml").unlink()
    text = (repository.work / "policy.yaml").read_text()
    (repository.work / "policy.yaml").write_text(re.sub(r".*sandbox-bob.*\n", "", text))
    repository.commit("Remove the data team")
    run = repository.workflow("leave")
    assert run.failed is None, run.output
    assert "### No longer held to any policy\n\n- agent bob-batch (agent-bob)" in run.comment


@pytest.mark.parametrize(
    ("branch", "old", "new", "said"),
    [
        (
            "test",
            "    - {domain: packages.example}",
            "    - {domain: packages.example}\n  known-good:\n    - {domain: unheard-of.example}",
            "tests[3]: method_not_allowed was expected, and it is permit",
        ),
        ("key", "scopes:\n", "proxy: {user: root}\nscopes:\n", "teams/web.yaml:7:1: proxy: belongs into"),
        ("scope", "scopes: [sandbox-alice]", "scopes: [sandbox-bob]", "sandbox-bob is data.yaml's"),
    ],
)
def test_what_is_not_in_order_is_red(
    repository: PolicyRepository, branch: str, old: str, new: str, said: str
) -> None:
    edit(repository, branch, "teams/web.yaml", old, new)
    run = repository.workflow(branch)
    assert run.failed == "Check the policy and run its tests"
    assert said in run.output
    assert run.comment == ""


def test_a_long_comment_points_to_the_summary(repository: PolicyRepository) -> None:
    entry = "    - {domain: packages.example}    #"
    many = "".join(f"    - {{domain: n{number}.many.example}}\n" for number in range(700))
    edit(repository, "many", "teams/web.yaml", entry, many + entry)
    run = repository.workflow("many")
    assert run.failed is None, run.output
    assert run.comment.endswith("[the summary](https://git.example/example/policy/actions/runs/1) has it.\n")
    assert "n699.many.example" in (repository.folder / "runner-many/summary.md").read_text()


def test_nothing_that_a_pull_request_says_is_run() -> None:
    """What others write reaches a script by its environment; actions are pinned to commits."""
    workflow = yaml.safe_load(WORKFLOW.read_text())
    steps = workflow["jobs"]["policy"]["steps"]
    assert not [step for step in steps if "${{" in step.get("run", "")]
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"]) for step in steps if "uses" in step)
    # YAML 1.1 reads the key `on` as true. `pull_request_target` would run with the base's rights.
    assert list(workflow[True]) == ["pull_request"]
    assert workflow["permissions"] == {"contents": "read", "pull-requests": "write"}


def test_the_security_team_owns_what_nobody_else_does() -> None:
    lines = [line for line in (TEMPLATE / ".github/CODEOWNERS").read_text().splitlines() if line[:1] != "#"]
    assert [line.split() for line in lines if line] == [["*", "@example/security"]]


def test_every_file_of_the_template_is_explained() -> None:
    readme = (TEMPLATE / "README.md").read_text()
    files = [path.relative_to(TEMPLATE) for path in TEMPLATE.rglob("*") if path.is_file()]
    assert files
    assert not [str(path) for path in files if path != Path("README.md") and str(path) not in readme]
