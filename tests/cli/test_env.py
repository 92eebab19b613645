"""`egress-policy env`: what it prints is for a shell, and it writes only where that was asked for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mitmproxy.certs import CertStore

FIELD = """sandbox-alice;reason="it's for $HOME" """.strip()


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ca")
    CertStore.create_store(folder, "mitmproxy", 2048)
    return folder / "mitmproxy-ca-cert.pem"


def env(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "egress_policy", "env", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_shell_takes_what_it_prints(ca: Path, tmp_path: Path) -> None:
    printed = env("--write", "--ca", ca, "--roots", ca, "--trust", tmp_path, "--scope", FIELD)
    assert (printed.returncode, printed.stderr) == (0, "")
    asked = subprocess.run(
        ["sh", "-c", 'eval "$1"; env -0', "sh", printed.stdout],
        env={"PATH": os.defpath}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    taken = dict(one.split("=", 1) for one in asked.stdout.split("\0") if one)
    settings = json.loads(env("--trust", tmp_path, "--scope", FIELD, "--json").stdout)
    assert {name: taken.get(name) for name in settings} == settings
    assert settings["CURL_CA_BUNDLE"] == f"{tmp_path}/bundle.pem"
    assert settings["GIT_CONFIG_VALUE_0"] == f"X-Agent-Scope: {FIELD}"
    assert f"-n egress-policy -i {tmp_path}/ca.pem" in printed.stdout


def test_a_relative_folder_is_printed_whole(ca: Path, tmp_path: Path) -> None:
    """The programs run elsewhere."""
    relative = os.path.relpath(tmp_path)
    settings = json.loads(env("--write", "--ca", ca, "--roots", ca, "--trust", relative, "--json").stdout)
    assert settings["SSL_CERT_FILE"] == str(Path.cwd() / relative / "bundle.pem")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--trust", "/nowhere"], 1, "/nowhere/ca.pem is missing: write the files with `egress-policy env --write`"),
        (["--write", "--ca", "/nowhere.pem"], 1, "/nowhere.pem is missing"),
        (["--scope", "alice"], 2, "the scope 'alice' is not 'sandbox-<developer>'"),
        (["--scope", "sandbox-älice"], 2, "control or non-ASCII"),
    ],
)  # fmt: skip
def test_what_it_cannot_do_is_one_line(arguments: list[str], status: int, message: str) -> None:
    failed = env(*arguments)
    assert (failed.returncode, failed.stdout) == (status, "")
    assert message in failed.stderr
    assert failed.stderr.count("\n") == 1
