"""The command line: what is printed, and the exit status."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

POLICY = """\
version: 1
proxy: {user: 61000}
resolver: {nameservers: ["127.0.0.1:1"], timeout: 1s}
agents: {alice: {user: 61001, scopes: [sandbox-alice]}}
scopes: {sandbox-alice: {owner: alice@example.com}}
trust: {known-bad: [{domain: "*.paste.example"}]}
intents: {default: {unknown: {methods: [GET], ttl: 1h}}}
"""
COMMANDS = ("check", "apply", "explain", "grants", "doctor", "remove")


def run(*arguments: str | Path, ns: str | None = None) -> subprocess.CompletedProcess[str]:
    inside = [] if ns is None else ["ip", "netns", "exec", ns]
    return subprocess.run(
        [*inside, sys.executable, "-m", "egress_policy", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parents[2],
    )


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    assert f"Example: egress-policy {command}" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("check", "--nonsense"),
        ("explain", "GET"),
        ("explain", "--agent", "a", "GET", "no-url"),
    ],
    ids=lambda arguments: " ".join(arguments) or "none",
)
def test_wrong_usage_is_one_line_and_status_2(arguments: tuple[str, ...], policy: Path) -> None:
    with_policy = ("--policy", policy) if "no-url" in arguments else ()
    done = run(*arguments, *with_policy)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("egress-policy: ")
    assert done.stderr.count("\n") == 1


def test_check_of_a_valid_policy(policy: Path) -> None:
    done = run("check", "--policy", policy)
    assert done.returncode == 0
    assert "is valid" in done.stdout
    document = json.loads(run("check", "--json", "--policy", policy).stdout)
    assert (document["ok"], document["errors"]) == (True, [])
    assert document["summary"]["agents"] == 1


def test_check_of_a_policy_with_errors(policy: Path) -> None:
    policy.write_text(POLICY.replace("61000", "root").replace("ttl: 1h", "ttl: 1x"))
    done = run("check", "--policy", policy)
    assert done.returncode == 1
    assert f"{policy}:2:15: proxy.user: " in done.stderr
    assert f"{policy}:7:52: intents.default.unknown.ttl: " in done.stderr
    document = json.loads(run("check", "--json", "--policy", policy).stdout)
    assert document["ok"] is False
    assert document["errors"][1] == {
        "file": str(policy),
        "line": 7,
        "column": 52,
        "path": "intents.default.unknown.ttl",
        "message": "'1x' is not a duration such as 90s, 15m, 24h or 7d",
    }


def test_check_runs_the_policys_own_tests(policy: Path) -> None:
    test = "{agent: alice, scope: sandbox-alice, request: GET https://a.example/, expect: permit}"
    policy.write_text(f"{POLICY}tests:\n  - {test}\n")
    assert "tests: 1" in run("check", "--policy", policy).stdout
    policy.write_text(f"{POLICY}tests:\n  - {test}\n  - {test.replace('permit', 'scope_missing')}\n")
    line = policy.read_text().count("\n")
    done = run("check", "--policy", policy)
    assert (done.returncode, done.stdout) == (1, "")
    said = "scope_missing was expected, and it is permit"
    assert done.stderr == f"{policy}:{line}:5: tests[1]: {said}\n1 failed test\n"
    document = json.loads(run("check", "--json", "--policy", policy).stdout)
    assert (document["ok"], document["summary"]["tests"]) == (False, 2)
    assert document["errors"] == [
        {"file": str(policy), "line": line, "column": 5, "path": "tests[1]", "message": said}
    ]


def test_check_warns_of_users_that_this_host_does_not_have(policy: Path) -> None:
    policy.write_text(POLICY.replace("user: 61001", "user: no-such-user"))
    done = run("check", "--policy", policy)
    assert done.returncode == 0
    assert "this host has no user no-such-user" in done.stdout


@pytest.mark.parametrize(
    ("scope", "url", "status", "verdict"),
    [
        ("sandbox-alice", "https://a.example/", 0, "PERMIT for 3600 seconds"),
        ("sandbox-alice", "https://x.paste.example/", 1, "DENY destination_denied"),
        ("sandbox-bob", "https://a.example/", 1, "DENY scope_not_allowed"),
        ("sandbox-alice", "https://a.example:8443/", 1, "DENY trust_not_allowed"),
        ("sandbox-alice", "https://127.1/", 1, "DENY destination_invalid"),
    ],
)
def test_explain(policy: Path, scope: str, url: str, status: int, verdict: str) -> None:
    done = run("explain", "--policy", policy, "--agent", "alice", "--scope", scope, "GET", url)
    assert (done.returncode, done.stderr) == (status, "")
    assert done.stdout.startswith(verdict)


def test_explain_as_json_has_the_audit_fields_and_the_steps(policy: Path) -> None:
    done = run(
        "explain",
        "--json",
        "--policy",
        policy,
        "--agent",
        "alice",
        "--scope",
        "sandbox-alice",
        "GET",
        "https://a.example/x?q",
    )
    document = json.loads(done.stdout)
    assert {
        key: document[key]
        for key in ("agent", "scope", "intent", "method", "host", "port", "path", "outcome", "trust", "ttl")
    } == {
        "agent": "alice",
        "scope": "sandbox-alice",
        "intent": "default",
        "method": "GET",
        "host": "a.example",
        "port": 443,
        "path": "/x",
        "outcome": "permit",
        "trust": "unknown",
        "ttl": 3600,
    }
    assert [step["step"] for step in document["steps"]] == list(range(1, 12))


@pytest.mark.parametrize("command", ["check", "apply", "explain", "doctor"])
def test_a_missing_policy_is_said_without_a_traceback(command: str, tmp_path: Path) -> None:
    request = ("--agent", "a", "GET", "https://a.example/") if command == "explain" else ()
    done = run(command, *request, "--policy", tmp_path / "none.yaml")
    assert done.returncode == 1
    assert "none.yaml" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["check", "explain", "--help"])
def test_output_that_cannot_be_written_is_said_without_a_traceback(command: str, policy: Path) -> None:
    rest = ["--agent", "alice", "POST", "https://a.example/"] if command == "explain" else []
    arguments = [command] if command == "--help" else [command, "--policy", str(policy), *rest]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "egress_policy", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
            cwd=Path(__file__).parents[2],
        )
    assert done.returncode == 1
    assert done.stderr == "egress-policy: standard output: No space left on device\n"


def test_an_interrupt_while_modules_are_imported_leaves_no_traceback(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    log.touch()
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "egress_policy",
        "audit",
        "--follow",
        "--audit",
        str(log),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("egress_policy." in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert "Traceback" not in rest
    assert process.returncode in {-signal.SIGINT, 130}


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["table", "json"])
def test_a_closed_standard_output_is_no_error(options: tuple[str, ...], tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    log.write_text(
        '{"time":"2026-01-31T09:00:00.000Z","event":"decision","host":"a.example","outcome":"permit"}\n'
    )
    command = [sys.executable, "-m", "egress_policy", "audit", "--audit", str(log), *options]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command], capture_output=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_remove_asks_somebody() -> None:
    done = run("remove")
    assert done.returncode == 2
    assert (
        done.stderr
        == "egress-policy: nobody can be asked here: say --yes (see `egress-policy remove --help`)\n"
    )
