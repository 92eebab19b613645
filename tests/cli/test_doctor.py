"""What doctor finds on a host: one where all is well, and one where much is not.

Each is this one with accounts, links and sysctls of its own, in mount and network namespaces that end with it.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from egress_policy.cli.permissions import Holder, tamper_proof

PROJECT = Path(__file__).parents[2]
PROXY, ALICE, POOL = 61000, 61001, 62000
POLICY = f"""\
version: 1
include: [teams/*.yaml]
proxy: {{user: egress-proxy}}
resolver: {{nameservers: [192.0.2.53]}}
agents:
  alice: {{user: agent-alice, scopes: [sandbox-alice]}}
  pool: {{user: {POOL}-{POOL + 99}, scopes: [sandbox-alice]}}
  box: {{interface: LINK, source: 10.88.0.11, scopes: [sandbox-alice]}}
trust: {{known-bad: [{{feed: feed.txt}}]}}
"""
PASSWD = f"root:x:0:0::/:/bin/sh\negress-proxy:x:{PROXY}:{PROXY}::/:/bin/false\nagent-alice:x:{ALICE}:{ALICE}::/:/bin/sh\n"
GROUP = f"root:x:0:\negress-proxy:x:{PROXY}:\nagent-alice:x:{ALICE}:\ndocker:x:900:MEMBERS\n"


@dataclass(frozen=True, slots=True)
class Host:
    """Files that stand in for the host's, and commands that set it up."""

    folder: Path
    members: str
    subuid: str
    link: str
    commands: str

    def findings(self) -> list[dict[str, str]]:
        """Run doctor there."""
        for name, text in (
            ("etc/passwd", PASSWD),
            ("etc/group", GROUP.replace("MEMBERS", self.members)),
            ("etc/subuid", self.subuid),
            ("policy.yaml", POLICY.replace("LINK", self.link)),
        ):
            (self.folder / name).write_text(text)
        options = f"--json --policy {self.folder}/policy.yaml --confdir {self.folder}/ca"
        script = (
            f"set -e\nmount -t sysfs sysfs /sys\nmount -t tmpfs tmpfs /run\nmount --bind {self.folder}/etc /etc\n{self.commands}\n"
            f"exec {sys.executable} -m egress_policy doctor {options}\n"
        )
        done = subprocess.run(
            ["unshare", "-m", "-n", "sh", "-c", script],
            capture_output=True, text=True, timeout=60, check=False, cwd=PROJECT,
        )  # fmt: skip
        found: list[dict[str, str]] = json.loads(done.stdout or "null")
        assert found, done.stderr
        return found


@pytest.fixture(scope="module")
def files() -> Iterator[Path]:
    """Make the policy's folder with a CA; others may search it, unlike those that pytest makes."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    (folder / "feed.txt").write_text("evil.example\n")
    (folder / "teams").mkdir()
    (folder / "teams/alice.yaml").write_text("scopes: {sandbox-alice: {owner: alice@example.com}}\n")
    (folder / "etc").mkdir()
    shutil.copy("/etc/ld.so.cache", folder / "etc")
    (folder / "ca").mkdir(mode=0o750)
    os.chown(folder / "ca", 0, PROXY)
    for name in ("mitmproxy-ca.pem", "mitmproxy-ca-cert.pem"):
        (folder / "ca" / name).touch(0o640)
        os.chown(folder / "ca" / name, 0, PROXY)
    yield folder
    shutil.rmtree(folder)


SOUND = "ip link add br-agents type bridge"
UNSOUND = """\
mkdir -p /run/systemd/resolve
touch /run/systemd/resolve/io.systemd.Resolve
echo 2 > /proc/sys/net/ipv4/tcp_syncookies
echo 3 > /proc/sys/net/ipv4/tcp_fastopen
ip link add br-agents type bridge
ip link add vethport type veth peer name inner
ip link set vethport master br-agents"""


@pytest.fixture(scope="module")
def sound(files: Path) -> list[dict[str, str]]:
    """A host where nothing of this is amiss; the subordinate uids are those of an agent."""
    subuid = f"agent-alice:{POOL}:100\nbystander:100000:65536\n"
    return Host(files, "", subuid, "br-agents", SOUND).findings()


@pytest.fixture(scope="module")
def unsound(files: Path) -> list[dict[str, str]]:
    """A host where all of it is."""
    subuid = f"agent-alice:{POOL + 50}:100\n{POOL + 1}:300000:10\n"
    commands = f"""{UNSOUND}
chown {PROXY} {files}/feed.txt {files}/teams/alice.yaml
chown {ALICE} {files}/ca
chmod 755 {files}/ca
chmod 644 {files}/ca/mitmproxy-ca.pem"""
    found = Host(files, "agent-alice", subuid, "vethport", commands).findings()
    (files / "feed.txt").chmod(0o644)
    for place, group in ((files / "feed.txt", 0), (files / "teams/alice.yaml", 0), (files / "ca", PROXY)):
        os.chown(place, 0, group)
    (files / "ca/mitmproxy-ca.pem").chmod(0o640)
    (files / "ca").chmod(0o750)
    return found


def of(findings: list[dict[str, str]], check: str) -> list[tuple[str, str]]:
    """List the results and words of one check."""
    return [(one["result"], one["finding"]) for one in findings if one["check"] == check]


def test_a_sound_host_is_told_nothing_to_do(sound: list[dict[str, str]]) -> None:
    """Beside starting it: there is no ruleset, no proxy and no log here."""
    assert {one["check"] for one in sound if one["remedy"]} == {"ruleset", "proxy", "audit"}


@pytest.mark.parametrize(
    ("check", "result", "words"),
    [
        ("SYN cookies", "failed", "tcp_syncookies is 2"),
        ("TCP Fast Open", "warning", "an agent that listens could answer a peer outside"),
        ("name service", "warning", "agents can have systemd-resolved look up any name"),
        ("link vethport", "failed", "a port of the bridge br-agents"),
        ("agent alice", "warning", "agent-alice is in the group docker"),
        ("agent alice", "warning", "lets agent-alice be uids 62050-62149"),
        ("agent pool", "warning", "lets 62001 be uids 300000-300009"),
        ("the feed feed.txt", "warning", "the proxy may write to "),
        ("the policy's teams/alice.yaml", "warning", "the proxy may write to "),
        ("the CA", "warning", "agent alice may write to "),
        ("CA", "failed", "agent pool may read "),
    ],
)
def test_an_unsound_host_is_told_what_to_do(
    unsound: list[dict[str, str]], sound: list[dict[str, str]], check: str, result: str, words: str
) -> None:
    found = of(unsound, check)
    assert any(one[0] == result and words in one[1] for one in found), found
    assert all(one["remedy"] for one in unsound if one["result"] != "ok")
    assert not any(words in finding for _, finding in of(sound, check))


def test_whoever_may_turn_the_link_to_a_policy_may_write_it(files: Path) -> None:
    folder = files / "open"
    folder.mkdir()
    (folder / "current").symlink_to("..")
    holder = Holder("agent alice", ALICE, ALICE, frozenset())
    things = {"the policy": folder / "current/feed.txt"}
    assert [one.result for one in tamper_proof([holder], things)] == ["ok"]
    os.chown(folder, ALICE, ALICE)
    (finding,) = tamper_proof([holder], things)
    assert finding.finding == f"agent alice may write to {folder}"


BRIDGED = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")


@pytest.mark.parametrize("setting", ["0", "1"] if BRIDGED.exists() else [None])
def test_two_containers_on_one_bridge(files: Path, setting: str | None) -> None:
    """What passes between them is bridged, and no rule sees that unless the kernel is told to ask."""
    ports = "".join(f"ip link add port{n} type veth; ip link set port{n} master br-agents\n" for n in (1, 2))
    asked = "" if setting is None else f"echo {setting} > {BRIDGED}"
    found = Host(files, "", "", "br-agents", f"{SOUND}\n{ports}{asked}").findings()
    ((result, finding),) = of(found, "link br-agents")
    if setting == "1":
        assert result == "ok"
    else:
        assert (result, finding.split(" reach")[0]) == ("warning", "port1, port2")


def test_a_link_that_is_not_there(files: Path) -> None:
    found = Host(files, "", "", "veth9", ":").findings()
    assert of(found, "link veth9") == [("warning", "there is no such link now")]


def test_a_policys_warnings_are_doctors_too(files: Path) -> None:
    found = Host(files, "", "", "br-agents", f"{SOUND}; echo 127.0.0.0/8 > {files}/feed.txt").findings()
    (files / "feed.txt").write_text("evil.example\n")
    policy = of(found, "policy")
    assert [result for result, _ in policy] == ["ok", "warning"]
    assert "127.0.0.0/8 in feed.txt covers 127.0.0.1" in policy[1][1]
