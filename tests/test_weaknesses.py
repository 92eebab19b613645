"""What `run` warns of before it starts: what root uses and the command's user may change."""

import sys
from pathlib import Path

import pytest

from egress_policy.confined.weaknesses import weaknesses
from tests.policies import policy

NOBODY = 65534


def warnings(policy_file: Path) -> list[str]:
    return [one for one in weaknesses(policy(), None, NOBODY, policy_file) if "what root uses" in one]


def test_what_is_root_s_own_is_no_weakness(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.touch(0o644)
    assert not any(str(path) in one for one in warnings(path))


def test_all_that_the_user_may_change_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, python = tmp_path / "policy.yaml", tmp_path / "venv"
    path.touch()
    python.mkdir()
    for place in (path, python):
        place.chmod(0o777)
    monkeypatch.setattr(sys, "prefix", str(python))
    (said,) = warnings(path)
    assert str(python) in said
    assert str(path) in said
