"""A run from which a test was left out is red: the guard that `make test` switches on."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ON_THE_KERNEL

PASSES = "def test_passes(): pass\n"
SKIPS = "import pytest\n@pytest.mark.skip\ndef test_skips(): pass\n"
SKIPPED_MODULE = "import pytest\npytest.importorskip('no_such_module')\n"
COMPLETE = {f"{folder}test_{Path(folder).name}.py".removeprefix("tests/"): PASSES for folder in ON_THE_KERNEL}


def run(folder: Path, tests: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    """Run pytest with our conftest on tests of its own."""
    (folder / "tests").mkdir()
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider --import-mode=importlib\n")
    shutil.copy(Path(__file__).parent / "conftest.py", folder / "tests")
    for name, text in tests.items():
        path = folder / "tests" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, "tests"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_complete_run_is_green(tmp_path: Path) -> None:
    """Every folder of kernel tests ran, and nothing was left out."""
    done = run(tmp_path, COMPLETE, "--all-must-run")
    assert done.returncode == 0, done.stdout
    assert "NOT RUN" not in done.stdout


@pytest.mark.parametrize(
    ("tests", "options", "named"),
    [
        ({"test_c.py": PASSES}, [], "any test of tests/kernel/"),
        ({"kernel/test_a.py": PASSES}, [], "any test of tests/end_to_end/"),
        ({"kernel/test_a.py": PASSES, "end_to_end/test_b.py": PASSES}, [], "any test of tests/bypass/"),
        ({**COMPLETE, "test_c.py": SKIPS}, [], "tests/test_c.py::test_skips"),
        ({**COMPLETE, "test_c.py": SKIPPED_MODULE}, [], "tests/test_c.py"),
        (
            {**COMPLETE, "test_c.py": PASSES.replace("passes", "other")},
            ["-k", "passes"],
            "test_c.py::test_other",
        ),
        ({}, [], "any test of tests/kernel/"),
    ],
    ids=[
        "no kernel test",
        "no end-to-end test",
        "no way around",
        "skipped",
        "module skipped",
        "deselected",
        "none at all",
    ],
)
def test_a_run_with_a_gap_is_red(
    tmp_path: Path, tests: dict[str, str], options: list[str], named: str
) -> None:
    """And says what is missing."""
    done = run(tmp_path, tests, "--all-must-run", *options)
    assert done.returncode == 1, done.stdout
    assert any(line.startswith("NOT RUN ") and line.endswith(named) for line in done.stdout.splitlines())


def test_a_part_may_be_run_by_itself(tmp_path: Path) -> None:
    """Without the switch, as while working on one thing."""
    assert run(tmp_path, {"test_c.py": PASSES}).returncode == 0
