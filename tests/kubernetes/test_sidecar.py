"""The sidecar form, tried as its manifest says: what holds in the pod from the first moment on."""

import re
import subprocess
from pathlib import Path

import pytest

from deploy.demo.lab import PROXY
from egress_policy.trust_kit import TrustFiles
from tests.containers import IMAGE, shown
from tests.kubernetes.conftest import KNOWN_BAD, KNOWN_GOOD, UNKNOWN
from tests.kubernetes.pod import Pod, fetch

NET_ADMIN = 1 << 12


def status(process: subprocess.Popen[bytes]) -> dict[str, str]:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_before_the_proxy_serves_the_agent_reaches_nothing(ruleset: Pod) -> None:
    """The ruleset is there first: what follows can only open it."""
    assert fetch(ruleset, f"https://{KNOWN_GOOD}/") in {"exit 6", "exit 7"}
    assert fetch(ruleset, f"http://{ruleset.lab.addresses(UNKNOWN)[0]}/") == "exit 7"
    assert not ruleset.lab.arrivals()


def test_the_proxy_runs_as_its_own_uid_with_one_capability(proxy: subprocess.Popen[bytes]) -> None:
    """Root, and what it takes to become another user, are gone for good."""
    held = status(proxy)
    assert set(held["Uid"].split()) == {str(PROXY)}
    assert {int(held[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")} == {NET_ADMIN}
    assert held["NoNewPrivs"] == "1"


def test_the_agent_gets_what_the_policy_permits(running: Pod) -> None:
    """Through the redirect, with the variables and the bundle of the manifest."""
    assert fetch(running, f"https://{UNKNOWN}/") == "200"
    assert fetch(running, f"https://{UNKNOWN}/", "--data", "secret") == "403"
    assert fetch(running, f"https://{KNOWN_BAD}/") == "exit 6"  # no address: not even its name is asked for
    # Not decrypted: the origin's own certificate.
    assert fetch(running, f"https://{KNOWN_GOOD}/", "--cacert", str(running.lab.internet_ca)) == "200"


def test_whoever_else_is_in_the_pod_is_an_agent_too(running: Pod) -> None:
    """A container that somebody adds, of any uid."""
    assert fetch(running, f"https://{UNKNOWN}/", "--data", "secret", user=3000) == "403"
    assert fetch(running, f"http://{running.lab.addresses(UNKNOWN)[0]}:8443/", user=3000) == "exit 7"


def test_the_agent_has_no_capability(running: Pod) -> None:
    """So it changes no rule and becomes nobody else."""
    done = running.run("agent", ["cat", "/proc/self/status"])
    found = dict(re.findall(r"^(Cap\w+|NoNewPrivs|Uid):\s+(\S+)", done.stdout, re.MULTILINE))
    assert {name: int(value) for name, value in found.items() if name in ("NoNewPrivs", "Uid")} == {
        "NoNewPrivs": 1,
        "Uid": 1000,
    }
    assert {int(value, 16) for name, value in found.items() if name.startswith("Cap")} == {0}
    assert running.run("agent", ["nft", "list", "ruleset"]).returncode != 0


def test_the_agent_sees_the_public_certificate_only(running: Pod) -> None:
    """Not the folder with the key, not the audit log, not the control socket."""
    (trust,) = running.container("agent")["volumeMounts"]
    done = running.run(
        "agent", ["ls", f"{trust['mountPath']}/kit", "/var/lib/egress-policy", "/var/log/egress-policy"]
    )
    written = TrustFiles(running.volume("trust") / "kit")
    files = {written.authority, written.bundle, written.java, written.wget, written.apt}
    assert done.stdout.split() == [f"{trust['mountPath']}/kit:", *sorted(file.name for file in files)]
    assert not any(b"PRIVATE KEY" in file.read_bytes() for file in files)
    assert running.run("agent", ["touch", f"{trust['mountPath']}/kit/ca.pem"]).returncode != 0
    assert "PRIVATE KEY" in (running.volume("ca") / "mitmproxy-ca.pem").read_text()


@pytest.mark.parametrize("name", ["ruleset", "proxy", "trust"])
def test_the_root_folder_is_read_only(running: Pod, name: str) -> None:
    """The containers above wrote to their volumes only, as there was nothing else to write to."""
    for folder in ("/etc", "/opt/egress-policy", "/var/lib", "/run", "/usr"):
        done = running.run(name, ["touch", f"{folder}/written"], user=0)
        assert "Read-only file system" in done.stderr, shown(done)


def test_the_audit_log_is_kept(running: Pod) -> None:
    """And `kubectl exec` in the proxy's container has the command line at hand."""
    assert fetch(running, f"https://{UNKNOWN}/") == "200"
    grants = running.run("proxy", [f"{IMAGE}/.venv/bin/egress-policy", "grants"])
    assert UNKNOWN in grants.stdout, shown(grants)
    assert '"sandbox-alice"' in (running.volume("audit") / "audit.jsonl").read_text()


def test_a_dead_proxy_fails_its_probe_and_opens_nothing(running: Pod, proxy: subprocess.Popen[bytes]) -> None:
    """Last, as it ends the proxy. The kubelet starts it again; until then the agent is refused."""
    proxy.kill()
    proxy.wait(10)
    probe = running.container("proxy")["livenessProbe"]["exec"]["command"]
    assert running.run("proxy", probe).returncode == 1
    assert fetch(running, f"https://{UNKNOWN}/") in {"exit 6", "exit 7"}
