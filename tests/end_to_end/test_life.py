"""Start, restart and end of the proxy: nothing is let out on the way."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.demo.lab import ALICE, DNS_PORT, OTHER, PROXY, PROXY_PORT, Lab
from tests.end_to_end.conftest import ALICE_FIELD, NAMES, POLICY, until


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The policy in force; each test starts the proxy itself."""
    with Lab(*NAMES) as lab:
        lab.write_policy(POLICY)
        lab.apply()
        yield lab


def command_with(lab: Lab, **settings: str | Path) -> list[str]:
    """The proxy's command line with other settings in the place of the laboratory's."""
    command = lab.proxy_command()
    for name, value in settings.items():
        (place,) = [index for index, word in enumerate(command) if word.startswith(f"{name}=")]
        command[place] = f"{name}={value}"
    return command


def refused_to_start(
    lab: Lab, command: list[str], uid: int = PROXY, caps: tuple[str, ...] = ("net_admin",)
) -> str:
    """Start the proxy, expect it to end by itself, and return what it said."""
    done = lab.run(command, uid=uid, caps=caps, timeout=20)
    assert done.returncode not in (0, None)
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert not lab.run(["ss", "-Hltn", "sport = :8080"]).stdout
    return said


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("scope_policy", "/none.yaml", "/none.yaml:1:1: cannot be read"),
        ("scope_audit", "/none/audit.jsonl", "cannot open the audit log /none/audit.jsonl"),
    ],
)
def test_what_cannot_be_read_or_written_is_said(lab: Lab, name: str, value: str, expected: str) -> None:
    assert expected in refused_to_start(lab, command_with(lab, **{name: value}))


def test_a_policy_with_errors_is_said_with_every_place(lab: Lab) -> None:
    policy = lab.folder / "broken.yaml"
    policy.write_text(POLICY.replace("ttl: 1h", "ttl: 1x").replace("ttl: 4h", "ttl: 4x"))
    policy.chmod(0o644)
    said = refused_to_start(lab, command_with(lab, scope_policy=policy))
    assert said.count("broken.yaml:") == 2


def test_as_another_user_it_does_not_start(lab: Lab) -> None:
    """The kernel holds the policy's proxy.user to the sets, and nobody else."""
    confdir = lab.folder / "others-ca"
    shutil.copytree(lab.confdir, confdir)
    for path in (confdir, *confdir.iterdir()):
        os.chown(path, OTHER, OTHER)
    assert f"running as uid {OTHER}" in refused_to_start(lab, command_with(lab, confdir=confdir), uid=OTHER)


def test_without_cap_net_admin_it_does_not_start(lab: Lab) -> None:
    assert "CAP_NET_ADMIN" in refused_to_start(lab, lab.proxy_command(), caps=())


def test_without_the_ruleset_it_does_not_start(lab: Lab) -> None:
    lab.run(["nft", "delete", "table", "inet", "egress-policy"])
    try:
        assert "run `egress-policy apply` first" in refused_to_start(lab, lab.proxy_command())
    finally:
        lab.apply()


def test_on_a_taken_port_it_does_not_start(lab: Lab) -> None:
    squatter = lab.start(["python3", "-m", "http.server", "8080"], uid=OTHER)
    try:
        assert until(lambda: bool(lab.run(["ss", "-Hltn", "sport = :8080"]).stdout))
        done = lab.run(lab.proxy_command(), uid=PROXY, caps=("net_admin",), timeout=20)
        assert done.returncode != 0
        assert "8080" in done.stdout + done.stderr
        # And what the squatter would answer reaches no agent.
        direct = ("--resolve", f"a.example:80:{lab.addresses('a.example')[0]}", "--max-time", "1")
        assert lab.curl("http://a.example/", *direct, uid=ALICE).status == 0
    finally:
        squatter.kill()
        squatter.wait()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_restarted_proxy_knows_its_grants_and_closes_what_none_explains(
    lab: Lab, end: signal.Signals
) -> None:
    proxy = lab.start_proxy()
    assert lab.curl("https://a.example/", uid=ALICE, headers=ALICE_FIELD).status == 200
    (grant,) = [
        record for record in lab.audit() if record["event"] == "grant" and record["host"] == "a.example"
    ][-1:]
    proxy.send_signal(end)
    proxy.wait(10)
    stray = '{ 45.90.99.99 . 443 timeout 1h comment "x sandbox-alice stray.example" }'
    lab.run(["nft", "add", "element", "inet", "egress-policy", "developer-sandbox", stray])

    address = lab.addresses("a.example")[0]
    direct = ("--resolve", f"a.example:443:{address}")
    assert lab.curl("https://a.example/", *direct, uid=ALICE, headers=ALICE_FIELD).exit == 7
    assert lab.curl("https://a.example/", uid=OTHER).status == 200

    proxy = lab.start_proxy()
    try:
        held = lab.run(["nft", "list", "set", "inet", "egress-policy", "developer-sandbox"]).stdout
        assert grant["id"] in held
        assert "stray.example" not in held
        assert lab.curl("https://a.example/", uid=ALICE, headers=ALICE_FIELD).status == 200
        assert [record["event"] for record in lab.audit() if record.get("id") == grant["id"]] == ["grant"]
    finally:
        proxy.terminate()
        proxy.wait(10)


def test_a_reload_of_the_ruleset_keeps_grants_and_serves_on(lab: Lab) -> None:
    proxy = lab.start_proxy()
    try:
        assert lab.curl("https://b.example/", uid=ALICE, headers=ALICE_FIELD).status == 200
        for _ in range(3):
            lab.apply()
        assert (
            "b.example"
            in lab.run(["nft", "list", "set", "inet", "egress-policy", "developer-sandbox"]).stdout
        )
        before = len(lab.queries())
        assert lab.curl("https://b.example/", uid=ALICE, headers=ALICE_FIELD).status == 200
        assert len(lab.queries()) == before
    finally:
        proxy.terminate()
        proxy.wait(10)


def test_what_cannot_be_put_on_record_is_denied_and_nothing_is_sent(lab: Lab) -> None:
    """A full disk."""
    small = lab.folder / "small"
    small.mkdir()
    lab.run(["mount", "-t", "tmpfs", "-o", "size=4k,mode=777", "none", small])
    command = command_with(lab, scope_audit=small / "audit.jsonl")
    proxy = lab.start(command, uid=PROXY, caps=("net_admin",), log="full")
    lab.wait(proxy, "full", lambda: lab.listens(proxy, PROXY_PORT, DNS_PORT))
    try:
        lab.add_name("full-disk.example")
        packets = lab.packets_to(lab.addresses("full-disk.example")[0])
        answer = lab.curl("https://a.example/", uid=ALICE)
        for _ in range(40):
            if answer.status == 503:
                break
            answer = lab.curl("https://a.example/", uid=ALICE)
        assert (answer.status, answer.json()["code"]) == (503, "audit_failed")
        assert (
            lab.curl("https://full-disk.example/", uid=ALICE, headers=ALICE_FIELD).json()["code"]
            == "audit_failed"
        )
        assert lab.packets_to(lab.addresses("full-disk.example")[0]) == packets
    finally:
        proxy.kill()
        proxy.wait(10)
