"""What doctor finds on a host: one where all is well, and one where much is not.

Each is this one with accounts, links and sysctls of its own, in mount and network namespaces that end with it.
"""

import contextlib
import json
import os
import pwd
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from mitmproxy.certs import CertStore

from deploy.demo.certificates import Authority
from egress_policy.cli import other_firewalls
from egress_policy.cli.client_trials import try_clients
from egress_policy.cli.finding import Finding
from egress_policy.cli.permissions import Holder, tamper_proof
from egress_policy.cli.trust_probes import browsers, trust_kit, validity
from egress_policy.policy import Agent, Policy, Proxy
from egress_policy.trust_files import Authority as Certificate
from egress_policy.trust_files import read_authority, write_trust_files
from egress_policy.trust_kit import TrustFiles, import_command

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
PASSWD = f"root:x:0:0::/:/bin/sh\negress-proxy:x:{PROXY}:{PROXY}::/:/bin/false\nagent-alice:x:{ALICE}:{ALICE}::HOME:/bin/sh\n"
GROUP = f"root:x:0:\negress-proxy:x:{PROXY}:\nagent-alice:x:{ALICE}:\ndocker:x:900:MEMBERS\n"


@dataclass(frozen=True, slots=True)
class Host:
    """Files that stand in for the host's, and commands that set it up."""

    folder: Path
    members: str
    subuid: str
    link: str
    commands: str

    def findings(self, trust: str = "nowhere", loopback: str = "") -> list[dict[str, str]]:
        """Run doctor there; clients are tried where `trust` is there. `loopback` is for the pool's entry."""
        policy = POLICY.replace("LINK", self.link).replace("pool: {", f"pool: {{{loopback}")
        for name, text in (
            ("etc/passwd", PASSWD.replace("HOME", f"{self.folder}/home")),
            ("etc/group", GROUP.replace("MEMBERS", self.members)),
            ("etc/subuid", self.subuid),
            ("policy.yaml", policy),
        ):
            (self.folder / name).write_text(text)
        places = {"policy": "policy.yaml", "confdir": "ca", "trust": trust}
        options = " ".join(f"--{name} {self.folder}/{place}" for name, place in places.items()) + " --json"
        script = (
            f"set -e\nmount -t sysfs sysfs /sys\nmount -t tmpfs tmpfs /run\nmount --bind {self.folder}/etc /etc\n{self.commands}\n"
            f"exec {sys.executable} -m egress_policy doctor {options}\n"
        )
        done = subprocess.run(
            ["unshare", "-m", "-n", "sh", "-c", script],
            capture_output=True, text=True, timeout=180, check=False, cwd=PROJECT,
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
    CertStore.create_store(folder / "ca", "mitmproxy", 2048)
    for path in (folder / "ca", *(folder / "ca").iterdir()):
        os.chown(path, 0, PROXY)
    for name in ("mitmproxy-ca.pem", "mitmproxy-ca-cert.pem"):
        (folder / "ca" / name).chmod(0o640)
    (folder / "roots.crt").write_bytes(Authority().certificate_pem())
    trust = write_trust_files(folder / "ca/mitmproxy-ca-cert.pem", folder / "trust", folder / "roots.crt")
    (folder / "home").mkdir()
    settings = {"PATH": "/usr/bin:/bin", "HOME": str(folder / "home")}
    subprocess.run(["sh", "-c", import_command(trust)], env=settings, check=True)
    yield folder
    shutil.rmtree(folder)


# This machine's own programs are not what is tried: on a mount without setuid they are nobody's helpers.
SOUND = """\
ip link set lo up
ip link add br-agents type bridge
echo 0 > /run/none
mount --bind /run/none /proc/sys/user/max_user_namespaces
for place in / /usr; do mount -o remount,bind,nosuid $place || true; done 2>/dev/null"""
# As setcap(8) does, which is not on every machine: linux/capability.h, VFS_CAP_REVISION_2, effective.
SETCAP = """\
import os, struct, sys
permitted = sum(1 << int(number) for number in sys.argv[2:])
os.setxattr(sys.argv[1], "security.capability", struct.pack("<5I", 0x02000001, permitted, 0, 0, 0))
"""
UNSOUND = """\
mkdir -p /run/systemd/resolve
touch /run/systemd/resolve/io.systemd.Resolve
echo 2 > /proc/sys/net/ipv4/tcp_syncookies
echo 3 > /proc/sys/net/ipv4/tcp_fastopen
ip link add br-agents type bridge
ip link add vethport type veth peer name inner
ip link set vethport master br-agents
mount -t tmpfs tmpfs /usr/local/sbin
cp /bin/true /usr/local/sbin/sender
chmod 4755 /usr/local/sbin/sender
cp /bin/true /usr/local/sbin/sniffer
SETCAP /usr/local/sbin/sniffer 12 13
cp /bin/true /usr/local/sbin/ping
SETCAP /usr/local/sbin/ping 13
touch /run/docker.sock
chown 0:900 /run/docker.sock
chmod 660 /run/docker.sock
mkdir -p /etc/ufw
echo ENABLED=yes > /etc/ufw/ufw.conf
printf '#!/usr/sbin/nft -f\nflush ruleset\n' > /etc/nftables.conf
nft 'add table ip early; add chain ip early first { type nat hook output priority -150; }'
nft 'add chain ip early later { type nat hook output priority -90; }'""".replace(
    "SETCAP", f"{sys.executable} -c '{SETCAP}'"
)


@pytest.fixture(scope="module")
def sound(files: Path) -> list[dict[str, str]]:
    """A host where nothing of this is amiss; the subordinate uids are those of an agent."""
    subuid = f"agent-alice:{POOL}:100\nbystander:100000:65536\n"
    return Host(files, "", subuid, "br-agents", SOUND).findings("trust")


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
    shutil.rmtree(files / "etc/ufw")
    (files / "etc/nftables.conf").unlink()
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
        ("helpers", "warning", "/usr/local/sbin/sender is setuid"),
        ("helpers", "warning", "/usr/local/sbin/sniffer has the capabilities net_admin, net_raw"),
        ("helpers", "warning", "agent alice may ask /run/docker.sock"),
        ("helpers", "warning", "agents may make user namespaces"),
        ("other firewalls", "warning", "ufw manages this host's firewall too"),
        ("other firewalls", "warning", "/etc/nftables.conf has `flush ruleset`"),
        ("other firewalls", "warning", "chain ip early first translates before ours"),
    ],
)
def test_an_unsound_host_is_told_what_to_do(
    unsound: list[dict[str, str]], sound: list[dict[str, str]], check: str, result: str, words: str
) -> None:
    found = of(unsound, check)
    assert any(one[0] == result and words in one[1] for one in found), found
    assert all(one["remedy"] for one in unsound if one["result"] != "ok")
    assert not any(words in finding for _, finding in of(sound, check))


def test_what_does_no_harm_is_not_reported(unsound: list[dict[str, str]]) -> None:
    said = " ".join(one["finding"] for one in unsound)
    assert "ping" not in said
    assert "chain ip early later" not in said


APPLY = f"{sys.executable} -m egress_policy apply --policy FILES/policy.yaml --audit FILES/none/audit.jsonl --boot FILES/none/b >/dev/null"


@pytest.mark.parametrize(
    ("commands", "result", "words"),
    [
        (":", "ok", "those of this version, for IPv4 and IPv6"),
        (
            "nft flush chain inet egress-policy forward",
            "failed",
            "2 are missing and 0 are not of this version",
        ),
        ("nft flush chain inet egress-policy agent-permitted", "failed", "IPv6 is not held as IPv4 is"),
        ("nft insert rule inet egress-policy agent-egress accept", "failed", "0 are missing and 1 are not"),
    ],
)
def test_rules_that_somebody_changed(files: Path, commands: str, result: str, words: str) -> None:
    script = f"{SOUND}\n{APPLY.replace('FILES', str(files))}\n{commands}"
    ((found, finding),) = of(Host(files, "", "", "br-agents", script).findings(), "rules")
    assert found == result, finding
    assert words in finding


def test_a_kernel_that_cannot_hold_the_ruleset(files: Path) -> None:
    """Stood in for by an nft(8) that says what such a kernel does."""
    script = f"""{SOUND}
mount -t tmpfs tmpfs /usr/local/sbin
printf '#!/bin/sh\\ncase "$*" in "-f -") cat >/dev/null; echo "Could not process rule: No such file" >&2; exit 1;; esac\\nexec /usr/sbin/nft "$@"\\n' > /usr/local/sbin/nft
chmod 755 /usr/local/sbin/nft
export PATH=/usr/local/sbin:$PATH"""
    ((result, finding),) = of(Host(files, "", "", "br-agents", script).findings(), "kernel")
    assert result == "failed"
    assert "cannot hold the ruleset: Could not process rule" in finding


def test_iptables_of_before_and_firewalld(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Their kernel modules and their programs are not on every machine: from what /proc says of them."""
    (tmp_path / "names").write_text("nat\nfilter\n")
    (tmp_path / "4711").mkdir()
    (tmp_path / "4711/comm").write_text("firewalld\n")
    monkeypatch.setattr(other_firewalls, "_LEGACY", (tmp_path / "names", tmp_path / "none"))
    monkeypatch.setattr(other_firewalls, "_PROCESSES", tmp_path)
    said = [one.finding for one in other_firewalls.other_firewalls()]
    assert any("iptables-legacy has the tables filter, nat" in one for one in said)
    assert any("firewalld manages this host's firewall too" in one for one in said)


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


def clients(found: list[dict[str, str]], agent: str = "alice") -> dict[str, str]:
    """What an agent's clients came to: those that trust the CA, and of each other one why not."""
    tried: dict[str, str] = {}
    for result, finding in of(found, f"clients of agent {agent}"):
        names, _, reason = finding.partition(
            " trust the" if result == "ok" else " does not trust the proxy's CA: "
        )
        tried |= dict.fromkeys(names.split(", "), "" if result == "ok" else reason)
    return tried


@pytest.fixture(scope="module")
def undermined(files: Path) -> list[dict[str, str]]:
    """A host where alice's own settings name other certificates, and the pool may not reach loopback."""
    home = files / "home"
    (home / ".curlrc").write_text('cacert = "/etc/ssl/\x1bmine.pem"\n')
    (home / ".wgetrc").write_text(f"ca_certificate = {files}/roots.crt\n")
    (home / ".pki").rename(home / "away")
    found = Host(files, "", "", "br-agents", SOUND).findings("trust", "loopback: [1-2], ")
    (home / "away").rename(home / ".pki")
    for name in (".curlrc", ".wgetrc"):
        (home / name).unlink()
    return found


def test_the_clients_that_are_here_trust_the_ca(sound: list[dict[str, str]]) -> None:
    """All that were installed for the tests; wherever an agent has a user, or only a number."""
    for agent in ("alice", "pool"):
        tried = clients(sound, agent)
        assert {"curl", "wget", "git", "Node", "npm"} <= tried.keys()
        assert not any(tried.values())


def test_a_client_with_settings_of_its_own_is_named_with_what_it_said(
    undermined: list[dict[str, str]],
) -> None:
    failed = {name: reason for name, reason in clients(undermined).items() if reason}
    assert failed.keys() == {"curl", "wget"}
    assert "/etc/ssl/?mine.pem" in failed["curl"]
    assert "127.0.0.1" in failed["wget"]


def test_an_agent_that_may_not_reach_loopback_is_not_tried(undermined: list[dict[str, str]]) -> None:
    assert not of(undermined, "clients of agent pool")


def test_a_browser_whose_database_is_without_the_ca(
    undermined: list[dict[str, str]], sound: list[dict[str, str]]
) -> None:
    """The database is the agent's; nothing else would tell until a page is opened."""
    words = "Chromium would refuse the proxy: agent-alice's certificate database is without its CA"
    assert ("warning", words) in of(undermined, "agent alice")
    assert ("warning", words) not in of(sound, "agent alice")


@pytest.mark.parametrize("kind", ["a pipe", "a view without an end", "nothing", "a folder"])
def test_an_agent_s_certificate_database_cannot_hold_up_root(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    database = tmp_path / ".pki/nssdb/cert9.db"
    database.parent.mkdir(parents=True)
    match kind:
        case "a pipe":
            os.mkfifo(database)
        case "a view without an end":
            with contextlib.closing(sqlite3.connect(database)) as made:
                made.execute(
                    "CREATE VIEW nssPublic AS WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) "
                    "SELECT x AS a11 FROM n"
                )
        case "nothing":
            database.touch()
        case "a folder":
            database.mkdir()
    account = pwd.struct_passwd(("agent-alice", "x", ALICE, ALICE, "", str(tmp_path), "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwall", lambda: [account])
    monkeypatch.setattr(shutil, "which", lambda _name: "/usr/bin/chromium")
    authority, found = read_authority(files / "ca/mitmproxy-ca-cert.pem"), list[Finding]()
    looking = threading.Thread(
        target=lambda: found.extend(
            browsers(authority, TrustFiles(files / "trust"), [(ALICE, ALICE, "alice")])
        ),
        daemon=True,
    )
    looking.start()
    looking.join(30)
    assert [one.result for one in found] == ["warning"]


def test_what_an_agent_s_settings_have_a_client_say_does_not_fill_root_s_memory(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = '[core]\n sshCommand = yes >&2; true\n[url "ssh://host/"]\n insteadOf = https://\n'
    monkeypatch.setattr("egress_policy.cli.client_trials._PATIENCE", 2.0)
    monkeypatch.setattr("egress_policy.cli.client_trials._CLIENTS", {"git": ("git", "ls-remote", "URL")})
    authority, trust = files / "ca/mitmproxy-ca.pem", TrustFiles(files / "trust")
    policy = Policy(Proxy("egress-proxy"), {"alice": Agent("alice", ())}, scopes={}, intents={})
    with tempfile.TemporaryDirectory() as home:
        Path(home).chmod(0o755)
        Path(home, ".gitconfig").write_text(settings)
        account = pwd.struct_passwd(("agent-alice", "x", ALICE, ALICE, "", home, "/bin/sh"))
        monkeypatch.setattr(pwd, "getpwall", lambda: [account])
        tracemalloc.start()
        found = list(try_clients(authority, trust, policy, [(ALICE, ALICE, "alice")]))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert [one.result for one in found if one.finding.startswith("git does not trust")] == ["warning"]
    assert most < 64 * 1024 * 1024


def test_without_a_trust_kit_no_client_is_tried(files: Path) -> None:
    found = Host(files, "", "", "br-agents", SOUND).findings("nowhere")
    assert len(of(found, "trust")) == 4
    assert not clients(found)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bundle.pem", None, "OpenSSL, Go, uv, .*curl.*git.*wget and apt would refuse the proxy: .*bundle.pem is missing"),
        ("bundle.pem", Authority().certificate_pem(), "curl.* refuse the proxy: .*bundle.pem does not hold the proxy's CA"),
        ("truststore.p12", b"nothing", "Java would refuse the proxy: .*truststore.p12 is no PKCS #12 store"),
        ("wgetrc", b"", "wget would refuse the proxy: .*wgetrc does not name the bundle"),
        ("apt.conf", None, "apt would refuse the proxy: .*apt.conf is missing"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_serve_and_who_would_fail(
    files: Path, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    certificate = files / "ca/mitmproxy-ca-cert.pem"
    trust = write_trust_files(certificate, tmp_path, files / "roots.crt")
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    (found,) = trust_kit(read_authority(certificate), trust, [])
    assert found.result == "warning"
    assert re.search(message, found.finding)
    assert found.remedy == "egress-policy env --write"


def test_files_that_an_agent_may_not_read_or_that_are_older_than_the_roots(files: Path) -> None:
    authority, trust = read_authority(files / "ca/mitmproxy-ca-cert.pem"), TrustFiles(files / "trust")
    (whole,) = trust_kit(authority, trust, [Holder("agent alice", ALICE, ALICE, frozenset())])
    assert whole.result == "ok"
    trust.directory.chmod(0o700)
    os.utime(trust.bundle, (0, 0))
    found = list(trust_kit(authority, trust, [Holder("agent alice", ALICE, ALICE, frozenset())]))
    trust.directory.chmod(0o755)
    os.utime(trust.bundle)
    assert [one.result for one in found] == ["warning", "warning", "ok"]
    assert found[0].finding == f"agent alice may not read {trust.bundle}"
    assert "the system's roots were changed after" in found[1].finding


@pytest.mark.parametrize(
    ("begins", "ends", "result", "words"),
    [
        (-9, -1, "failed", "nobody trusts it"),
        (1, 9, "failed", "nobody trusts it"),
        (-9, 9, "warning", "its certificate ends on"),
        (-9, 99, "ok", "its certificate counts until"),
    ],
)
def test_the_ca_s_time(begins: int, ends: int, result: str, words: str) -> None:
    """In days from now."""
    now = datetime.now(UTC)
    found = validity(Certificate(b"", now + timedelta(days=begins), now + timedelta(days=ends)))
    assert (found.result, words in found.finding) == (result, True)
    assert bool(found.remedy) == (result != "ok")


def test_a_ca_that_is_none(files: Path) -> None:
    certificate = files / "ca/mitmproxy-ca-cert.pem"
    kept = certificate.read_bytes()
    certificate.write_text("nothing")
    found = Host(files, "", "", "br-agents", SOUND).findings()
    certificate.write_bytes(kept)
    assert of(found, "CA") == [("failed", f"{certificate} holds no certificate in PEM")]


def test_agents_bound_to_their_ports(files: Path) -> None:
    """What the ruleset keeps apart needs no warning; a port elsewhere does."""
    ports = "".join(f"ip link add port{n} type veth; ip link set port{n} master br-agents\n" for n in (1, 2))
    asked = f"echo 0 > {BRIDGED}" if BRIDGED.exists() else ""
    found = Host(files, "", "", "br-agents, port: port1", f"{SOUND}\n{ports}{asked}").findings()
    assert of(found, "link br-agents") == [("ok", "its packets show it")]
    assert of(found, "port port1") == [("ok", "a port of br-agents")]
    assert [result for result, what in of(found, "ruleset") if "table bridge" in what] == ["failed"]
    found = Host(files, "", "", "br-agents, port: port3", f"{SOUND}\n{ports}").findings()
    assert of(found, "port port3") == [
        ("warning", "it is no port of br-agents now: what comes from it is refused")
    ]
    loaded = "nft add table bridge egress-policy"
    found = Host(files, "", "", "br-agents, port: port1", f"{SOUND}\n{ports}{loaded}").findings()
    assert ("ok", "table bridge egress-policy is in the kernel") in of(found, "ruleset")


def test_a_link_that_is_not_there(files: Path) -> None:
    found = Host(files, "", "", "veth9", ":").findings()
    assert of(found, "link veth9") == [("warning", "there is no such link now")]


def test_a_policys_warnings_are_doctors_too(files: Path) -> None:
    found = Host(files, "", "", "br-agents", f"{SOUND}; echo 127.0.0.0/8 > {files}/feed.txt").findings()
    (files / "feed.txt").write_text("evil.example\n")
    policy = of(found, "policy")
    assert [result for result, _ in policy] == ["ok", "warning"]
    assert "127.0.0.0/8 in feed.txt covers 127.0.0.1" in policy[1][1]
