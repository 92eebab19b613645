"""A policy repository made from the template, and the steps of its workflow, run as a runner would run them."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

TEMPLATE = Path(__file__).parents[1] / "deploy/policy-repo"
WORKFLOW = TEMPLATE / ".github/workflows/policy.yaml"
_IDENTITY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "alice"), ("EMAIL", "alice@example.com"))
}
# What the workflow asks GitHub for.
_CONTEXT = {
    "github.token": "token",
    "github.repository": "example/policy",
    "github.server_url": "https://git.example",
    "github.event.pull_request.number": "7",
    "github.run_id": "1",
}
# Stands in for GitHub: takes one comment on one pull request, and nothing else.
_GH = """\
#!/bin/sh
test "$*" = "pr comment 7 --edit-last --create-if-none --body-file $RUNNER_TEMP/change.md" || exit 64
test "$GH_TOKEN $GH_REPO" = "token example/policy" || exit 65
cp "$RUNNER_TEMP/change.md" "$COMMENT"
"""


@dataclass(frozen=True, slots=True)
class Run:
    """What a run of the workflow came to: the name of the step that failed, what was printed, and the comment."""

    failed: str | None
    output: str
    comment: str


@dataclass(slots=True)
class PolicyRepository:
    """`origin` is the bare repository that hosts pull from, `work` a developer's clone."""

    folder: Path
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.environment = {
            **os.environ,
            **_IDENTITY,
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_NOSYSTEM": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    @property
    def origin(self) -> Path:
        return self.folder / "origin.git"

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def create(self, changes: Mapping[str, str]) -> None:
        """Make both from the template, with words of it replaced."""
        self._run(["git", "init", "--quiet", "--bare", "--initial-branch=main", self.origin], self.folder)
        self._run(["git", "clone", "--quiet", self.origin, self.work], self.folder)
        shutil.copytree(TEMPLATE, self.work, dirs_exist_ok=True)
        for path in (self.work / "policy.yaml", *(self.work / "teams").iterdir()):
            text = path.read_text()
            for old, new in changes.items():
                text = text.replace(old, new)
            path.write_text(text)
        self.git("checkout", "--quiet", "-B", "main")
        self.commit("Begin with the template")
        self.git("push", "--quiet", "origin", "main")

    def git(self, *arguments: str | Path) -> str:
        """Run git in the clone."""
        return self._run(["git", *arguments], self.work)

    def commit(self, message: str) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)

    def branch(self, name: str) -> None:
        """Begin a branch where main is."""
        self.git("checkout", "--quiet", "-b", name, "main")

    def merge(self, branch: str) -> None:
        """Merge a pull request, as its reviewer does."""
        self.git("checkout", "--quiet", "main")
        self.git("merge", "--quiet", "--no-ff", "--message", f"Merge {branch}", branch)
        self.git("push", "--quiet", "origin", "main")

    def workflow(self, branch: str) -> Run:
        """Run the workflow on the pull request of a branch: on its merge into main, in a clone of its own."""
        runner = self.folder / f"runner-{branch}"
        (runner / "bin").mkdir(parents=True)
        (runner / "temp").mkdir()
        (runner / "bin/gh").write_text(_GH)
        (runner / "bin/gh").chmod(0o755)
        self.git("checkout", "--quiet", "--detach", "main")
        self.git("merge", "--quiet", "--no-ff", "--message", f"Merge {branch} into main", branch)
        # `fetch-depth: 2` of the merge, as actions/checkout takes it.
        self.git("push", "--quiet", "--force", "origin", "HEAD:refs/pull/7/merge")
        self._run(["git", "init", "--quiet", runner / "checkout"], runner)
        fetch = ["fetch", "--quiet", "--depth=2", f"file://{self.origin}", "refs/pull/7/merge"]
        self._run(["git", *fetch], runner / "checkout")
        self._run(["git", "checkout", "--quiet", "--detach", "FETCH_HEAD"], runner / "checkout")
        self.git("checkout", "--quiet", branch)
        environment = {
            **self.environment,
            "PATH": f"{runner}/bin:{self.environment['PATH']}",
            "RUNNER_TEMP": f"{runner}/temp",
            "GITHUB_STEP_SUMMARY": f"{runner}/summary.md",
            "COMMENT": f"{runner}/comment.md",
        }
        output, failed = "", None
        for step in steps():
            done = subprocess.run(
                # What `shell: bash` means to a runner.
                ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
                cwd=runner / "checkout",
                env={**environment, **{key: _evaluated(value) for key, value in step.get("env", {}).items()}},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=120,
            )
            output += done.stdout
            if done.returncode:
                failed = step["name"]
                break
        comment = runner / "comment.md"
        return Run(failed, output, comment.read_text() if comment.exists() else "")

    def _run(self, command: list[str | Path], folder: Path) -> str:
        done = subprocess.run(
            command, cwd=folder, env=self.environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert not done.returncode, f"{command}: {done.stderr}"
        return done.stdout


def steps() -> list[dict[str, Any]]:
    """The workflow's own steps, without the one that installs egress-policy: it is installed."""
    workflow = yaml.safe_load(WORKFLOW.read_text())
    found = [step for step in workflow["jobs"]["policy"]["steps"] if "run" in step]
    assert [step["name"] for step in found] == [
        "Install egress-policy",
        "Check the policy and run its tests",
        "Say what would change",
        "Comment",
    ]
    return found[1:]


def _evaluated(value: str) -> str:
    return re.sub(r"\$\{\{ (\S+) \}\}", lambda found: _CONTEXT[found[1]], value)
