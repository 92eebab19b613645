"""From an experiment to a rule: promote, check, tests, diff, review, merge, and a host that takes it without a restart."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from deploy.demo.lab import ALICE, BOB, NAMESERVERS, PROXY, Lab
from deploy.demo.namespaces import ROOT
from tests.end_to_end.conftest import ALICE_FIELD
from tests.end_to_end.conftest import until as wait_until
from tests.policy_repository import PolicyRepository

PULL = ROOT / "deploy/pull/egress-policy-pull"
COMMAND = Path(sys.executable).parent / "egress-policy"
# The template's accounts and name servers are those of a real host.
CHANGES = {
    "proxy: {user: egress-proxy}": f"proxy: {{user: {PROXY}}}\nresolver: {{nameservers: [{NAMESERVERS[0]}], timeout: 1s}}",
    "user: agent-alice": f"user: {ALICE}",
    "user: agent-bob": f"user: {BOB}",
}


class Host:
    """A laboratory whose policy is what it pulled from the repository."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.folder = lab.policy_file.parent
        work = lab.folder / "git"
        work.mkdir()
        self.repository = PolicyRepository(work)
        self.repository.create(CHANGES)
        self.clone = lab.folder / "policy.git"
        cloned = lab.run(["git", "clone", "--quiet", "--bare", self.repository.origin, self.clone])
        assert not cloned.returncode, cloned.stderr

    @property
    def current(self) -> str:
        """The commit that is in force."""
        return (self.folder / "current").readlink().name

    def pull(self) -> subprocess.CompletedProcess[str]:
        """Do what the timer does."""
        return self.lab.run([PULL, self.clone, self.folder], env={"EGRESS_POLICY": str(COMMAND)})

    def status(self, host: str, headers: Mapping[str, str], uid: int = ALICE) -> int:
        return self.lab.curl(f"https://{host}/", uid=uid, headers=headers).status


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Lab("tool.example", "other.example") as lab:
        made = Host(lab)
        pulled = made.pull()
        assert pulled.returncode == 0, pulled.stderr
        lab.start_proxy()
        yield made


def until(ready: Callable[[], bool]) -> bool:
    return wait_until(ready, 30.0)


def test_an_experiment_becomes_a_rule(host: Host) -> None:
    repository = host.repository
    # An agent tries a destination, under its sandbox's rules.
    assert host.status("tool.example", {}) == 403
    assert host.status("tool.example", ALICE_FIELD) == 200
    assert host.status("tool.example", ALICE_FIELD) == 200

    # Whoever proposes it has a clone, and the log's evidence.
    repository.branch("tool")
    promoted = subprocess.run(
        [COMMAND, "promote", "tool.example", "--review", "https://git.example/policy/7", "--json",
         "--policy", repository.work / "policy.yaml", "--audit", host.lab.audit_file],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert promoted.returncode == 0, promoted.stderr
    proposal = json.loads(promoted.stdout)
    team = repository.work / "teams/web.yaml"
    assert proposal["policy"] == str(team)
    assert "reached 2 times" in proposal["body"]
    assert "| alice-claude | sandbox-alice | 2 |" in proposal["body"]
    added = [
        line[1:] for line in repository.git("diff", "--unified=0").splitlines() if line[:2] in {"+ ", "- "}
    ]
    assert added == ["  known-good:", f"    - {proposal['entry']}"]
    expected = "  - {agent: alice-claude, request: POST https://tool.example/, expect: permit}\n"
    team.write_text(team.read_text() + expected)
    repository.commit(f"{proposal['title']}\n\n{proposal['body']}")

    # The reviewer is told that it is in order, and what it changes.
    run = repository.workflow("tool")
    assert run.failed is None, run.output
    assert "policy.yaml is valid." in run.output
    assert "### Newly permitted\n\n- `tool.example port 443`: known-good, inspection name\n" in run.comment
    assert "agent bob-batch, without a scope" in run.comment
    assert host.status("tool.example", {}) == 403, "nothing changes before the merge"

    # The merge is in force on the host, without a restart.
    before = host.current
    repository.merge("tool")
    pulled = host.pull()
    assert pulled.returncode == 0, pulled.stderr
    assert host.current == repository.git("rev-parse", "main").strip() != before
    assert until(lambda: host.status("tool.example", {}) == 200)
    assert host.status("other.example", {}) == 403
    assert host.pull().stdout == "", "there is nothing new"

    # And it is taken back the same way.
    repository.git("revert", "--no-edit", "--mainline", "1", "HEAD")
    repository.git("push", "--quiet", "origin", "main")
    assert host.pull().returncode == 0
    assert until(lambda: host.status("tool.example", {}) == 403)


def test_what_is_read_goes_through_one_link(host: Host) -> None:
    """So that it all changes in one step, and nothing of the proxy or the commands need know of it."""
    assert host.lab.policy_file == host.folder / "policy.yaml"
    for name in ("policy.yaml", "teams", "feeds"):
        assert (host.folder / name).readlink() == Path("current", name)
    summary = json.loads(host.lab.egress_policy("check", "--json").stdout)["summary"]
    assert (summary["files"], summary["feeds"]) == (3, {"feeds/malware.txt": 1})


def broken(host: Host) -> None:
    (host.repository.work / "teams/web.yaml").write_text("agents: [\n")


def failing(host: Host) -> None:
    path = host.repository.work / "policy.yaml"
    path.write_text(path.read_text().replace("expect: destination_denied", "expect: permit"))


def in_the_way(host: Host) -> None:
    (host.repository.work / "audit").write_text("The host has a file of that name.\n")
    (host.folder / "audit").touch()


def linked(host: Host) -> None:
    (host.repository.work / "teams/host.yaml").symlink_to("/etc/hosts")


def rewritten(host: Host) -> None:
    root = host.repository.git("commit-tree", "-m", "Begin otherwise", "HEAD^{tree}").strip()
    host.repository.git("reset", "--quiet", "--hard", root)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (broken, "teams/web.yaml:2:1: not YAML"),
        (failing, "tests[1]: permit was expected, and it is destination_denied"),
        (linked, "holds a link, which could lead anywhere"),
        (in_the_way, "/audit is in the way of the repository's: move it elsewhere"),
        (rewritten, "refs/heads/main could not be fetched"),
    ],
)
def test_what_is_not_in_order_changes_nothing(host: Host, spoil: Callable[[Host], None], said: str) -> None:
    repository, before = host.repository, host.current
    repository.git("checkout", "--quiet", "main")
    good = repository.git("rev-parse", "main").strip()
    spoil(host)
    if repository.git("status", "--porcelain"):
        repository.commit("Spoil it")
    repository.git("push", "--quiet", "--force", "origin", "main")
    refused = host.pull()
    assert (refused.returncode, said in refused.stderr) == (1, True), refused.stderr
    assert host.current == before
    assert not list((host.folder / "releases").glob(".new*"))
    assert host.status("other.example", ALICE_FIELD) == 200
    # As it was, for the next.
    if spoil is rewritten:
        repository.git("reset", "--quiet", "--hard", good)
    else:
        repository.git("revert", "--no-edit", "HEAD")
    repository.git("push", "--quiet", "--force", "origin", "main")


def test_the_next_good_commit_is_taken_whole(host: Host) -> None:
    """A team whose file was left out on the hosts alone would be free there."""
    repository = host.repository
    repository.git("checkout", "--quiet", "main")
    (repository.work / ".gitattributes").write_text("teams/data.yaml export-ignore\n")
    repository.commit("Leave a team out of archives")
    repository.git("push", "--quiet", "origin", "main")
    before = host.current
    for year in range(4):
        old = host.folder / f"releases/old{year}"
        old.mkdir()
        os.utime(old, (year * 1e6, year * 1e6))
    pulled = host.pull()
    assert pulled.returncode == 0, pulled.stderr
    assert host.current == repository.git("rev-parse", "main").strip()
    assert (host.folder / "teams/data.yaml").exists()
    # The newest three stay.
    kept = {path.name for path in (host.folder / "releases").iterdir()}
    assert len(kept) == 3
    assert {host.current, before} < kept
    assert "old0" not in kept


def test_a_host_without_a_clone_is_told_how_to_make_one(host: Host) -> None:
    done = host.lab.run([PULL, host.lab.folder / "none", host.folder])
    assert (done.returncode, "git clone --bare" in done.stderr) == (1, True)
