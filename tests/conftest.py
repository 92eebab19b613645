"""What holds for the whole suite: the kernel's tests run, as root, or the run is red. None is ever skipped."""

import os
from collections.abc import Sequence

import pytest
from hypothesis import settings

# How long an example takes says how busy the machine is.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

ON_THE_KERNEL = (
    "tests/kernel/",
    "tests/end_to_end/",
    "tests/bypass/",
    "tests/clients/",
    "tests/compose/",
    "tests/host/",
    "tests/console/",
    "tests/kubernetes/",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the switch that `make test` sets."""
    parser.addoption(
        "--all-must-run",
        action="store_true",
        help="fail when a test was skipped or deselected, or none ran on the kernel",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Watch the run, where that was asked for."""
    if config.getoption("--all-must-run"):
        config.pluginmanager.register(_AllMustRun())


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Refuse to begin what cannot be carried out."""
    if os.geteuid() != 0 and any(item.nodeid.startswith(ON_THE_KERNEL) for item in items):
        raise pytest.UsageError("tests on the kernel make network namespaces and firewalls: run them as root")


class _AllMustRun:
    """Turns a run red in which a test was left out."""

    def __init__(self) -> None:
        self.left_out: list[str] = []
        self.missing = set(ON_THE_KERNEL)

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self.left_out += [item.nodeid for item in items]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.left_out.append(report.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            self.left_out.append(report.nodeid)
        elif report.when == "call":
            self.missing -= {folder for folder in self.missing if report.nodeid.startswith(folder)}

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if (self.left_out or self.missing) and session.exitstatus in (
            pytest.ExitCode.OK,
            pytest.ExitCode.NO_TESTS_COLLECTED,
        ):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for test in self.left_out:
            terminalreporter.write_line(f"NOT RUN {test}", red=True)
        for folder in sorted(self.missing):
            terminalreporter.write_line(f"NOT RUN any test of {folder}", red=True)
