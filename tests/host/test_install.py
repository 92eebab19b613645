"""A host's life with the product: installed, started, hurt, upgraded, uninstalled; under a real systemd."""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from deploy.demo.lab import ALICE, Lab
from tests.host.conftest import policy
from tests.host.machine import CLONE, PYTHON, Machine, wait

INSTALL = f"{CLONE}/deploy/install.sh"
UNITS = "/usr/local/lib/systemd/system"
SERVICES = ("egress-policy.service", "egress-policy-ruleset.service", "egress-policy-logrotate.service")
MOST_EXPOSED = 2.5
CAP_NET_ADMIN = 1 << 12
REFUSED = 7
"""curl's status: it could not connect."""


@pytest.fixture(scope="module")
def running(installed: Machine, lab: Lab) -> Iterator[Machine]:
    """The units started; `reach` trusts the CA that install.sh made."""
    installed.must("systemctl", "enable", "--now", "egress-policy")
    certificate = installed.must("cat", "/var/lib/egress-policy/ca/mitmproxy-ca-cert.pem")
    (lab.folder / "host-ca.pem").write_text(certificate)
    yield installed
    installed.cut_power()


def of(host: Machine, unit: str, name: str) -> str:
    return host.must("systemctl", "show", "--value", f"--property={name}", unit).strip()


def reach(lab: Lab) -> int:
    """Ask for what the policy permits, over TLS; the status, or 0 where nobody answered."""
    return lab.curl("https://docs.example/", "--cacert", str(lab.folder / "host-ca.pem"), uid=ALICE).status


@contextmanager
def nothing_leaves(lab: Lab) -> Iterator[None]:
    """See that an agent that tries all the time reaches nobody directly, whatever happens meanwhile."""
    address = lab.addresses("docs.example")[0]
    # A port that the proxy has nothing to do with: there the kernel alone stands in the way.
    tries = "import socket, sys\nwhile True:\n    with socket.socket() as one:\n        one.settimeout(1)\n        one.connect_ex((sys.argv[1], 22))\n"
    before = lab.packets_to(address, 22)
    process = lab.start([sys.executable, "-c", tries, address], uid=ALICE)
    try:
        yield
    finally:
        still_tries = process.poll() is None
        process.kill()
        process.wait()
    assert still_tries
    assert lab.packets_to(address, 22) == before


def test_without_a_python_that_others_reach_nothing_is_changed(machine: Machine) -> None:
    machine.must(
        "sh",
        "-c",
        "mkdir -m 700 -p /closed && mkdir /closed/python && mount --bind /opt/python /closed/python",
    )
    closed = PYTHON.replace("/opt/", "/closed/")
    # Not that of the packages which are at hand.
    done = machine.run(INSTALL, env=[f"PYTHON={closed}"])
    assert done.returncode == 1
    assert f"{closed} is below /closed, where the proxy's user cannot reach it" in done.stderr
    assert "UV_PYTHON_INSTALL_DIR=/opt/python uv python install" in done.stderr
    assert machine.run("ls", "/etc/egress-policy", "/usr/local/bin/egress-policy", UNITS).stdout == ""


def test_what_is_where_and_whose(installed: Machine) -> None:
    stat = ("stat", "--format=%n %U:%G %a")
    places = {
        "/opt/egress-policy-a": "root:root 755",
        "/opt/egress-policy/addons/scope.py": "root:root 644",
        "/opt/egress-policy/deploy/install.sh": "root:root 755",
        "/etc/egress-policy": "root:root 755",
        "/etc/egress-policy/policy.yaml": "root:root 644",
        "/etc/logrotate.d/egress-policy": "root:root 644",
        "/var/lib/egress-policy": "root:root 755",
        "/var/lib/egress-policy/ca": "root:egress-proxy 750",
        "/var/lib/egress-policy/ca/mitmproxy-ca.pem": "root:egress-proxy 640",
        "/var/log/egress-policy": "egress-proxy:egress-proxy 750",
        f"{UNITS}/egress-policy.service": "root:root 644",
    }
    shown = installed.must(*stat, *places).splitlines()
    assert shown == [f"{place} {rights}" for place, rights in places.items()]
    not_roots = (
        "find",
        "/opt/egress-policy-a",
        "!",
        "-user",
        "root",
        "-o",
        "-perm",
        "/022",
        "!",
        "-type",
        "l",
    )
    assert installed.must(*not_roots) == ""
    assert (
        installed.must("readlink", "-f", "/usr/local/bin/egress-policy")
        == "/opt/egress-policy-a/.venv/bin/egress-policy\n"
    )
    assert (
        installed.must("getent", "passwd", "egress-proxy").strip().endswith(":/nonexistent:/usr/sbin/nologin")
    )


def test_the_policy_that_comes_with_it_is_valid(machine: Machine, installed: Machine) -> None:
    assert "is valid" in installed.must(
        "egress-policy", "check", "--policy", "/opt/egress-policy/deploy/policy.yaml"
    )


def test_units_are_sound(installed: Machine) -> None:
    """`systemd-analyze verify` finds nothing, and little is left that a service could do."""
    verified = installed.run(
        "systemd-analyze",
        "verify",
        *(f"{UNITS}/{one}" for one in SERVICES),
        f"{UNITS}/egress-policy-logrotate.timer",
    )
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    for service in SERVICES:
        shown = installed.must("systemd-analyze", "security", "--offline=yes", f"{UNITS}/{service}")
        exposure = re.search(r"exposure level for \S+: ([\d.]+)", shown)
        assert exposure is not None
        assert float(exposure[1]) <= MOST_EXPOSED, service


def test_the_proxy_can_do_one_thing_more_than_any_user(running: Machine) -> None:
    pid = of(running, "egress-policy", "MainPID")
    status = dict(line.split(":\t", 1) for line in running.must("cat", f"/proc/{pid}/status").splitlines())
    for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == CAP_NET_ADMIN, name
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert set(status["Uid"].split()) == {running.must("id", "-u", "egress-proxy").strip()}
    # As asked for: this machine may itself be given less.
    assert of(running, "egress-policy", "LimitNOFILE") == "65536"
    assert of(running, "egress-policy", "MemoryMax") == str(2 << 30)
    # As it sees them: read-only, but for its log and its socket.
    inside = ["nsenter", f"--target={pid}", "--mount"]
    for place in (
        "/etc/egress-policy",
        "/var/lib/egress-policy/ca",
        "/opt/egress-policy",
        "/usr",
        "/var/tmp/..",
    ):
        assert running.run(*inside, "touch", f"{place}/written").returncode != 0, place
    for place in ("/var/log/egress-policy", "/run/egress-policy"):
        running.must(*inside, "rm", "-f", f"{place}/none")
        running.must(*inside, "touch", f"{place}/written")
        running.must("rm", f"{place}/written")


def test_doctor_finds_nothing_that_fails(running: Machine) -> None:
    done = running.run("egress-policy", "doctor", "--json")
    assert [one for one in json.loads(done.stdout) if one["result"] == "failed"] == []
    assert done.returncode == 0


def test_an_agent_gets_what_the_policy_permits(running: Machine, lab: Lab) -> None:
    """With the CA that install.sh made, on a curve that costs less than RSA."""
    assert reach(lab) == 200
    shown = running.must(
        "openssl", "x509", "-in", "/var/lib/egress-policy/ca/mitmproxy-ca-cert.pem", "-noout", "-text"
    )
    assert "prime256v1" in shown


def test_a_changed_policy_is_in_force_after_reload(running: Machine, lab: Lab) -> None:
    pid = of(running, "egress-policy", "MainPID")
    denied = policy(lab).replace("methods: [GET]", "methods: [HEAD]")
    running.write("/etc/egress-policy/policy.yaml", denied)
    running.must("systemctl", "reload", "egress-policy")
    wait(lambda: reach(lab) == 403)
    running.write("/etc/egress-policy/policy.yaml", policy(lab))
    running.must("systemctl", "reload", "egress-policy")
    wait(lambda: reach(lab) == 200)
    assert of(running, "egress-policy", "MainPID") == pid
    running.write("/etc/egress-policy/policy.yaml", "nonsense")
    assert running.run("systemctl", "reload", "egress-policy").returncode != 0
    assert reach(lab) == 200
    running.write("/etc/egress-policy/policy.yaml", policy(lab))


def test_a_proxy_that_crashes_comes_back_and_nothing_leaves_meanwhile(running: Machine, lab: Lab) -> None:
    pid = of(running, "egress-policy", "MainPID")
    assert reach(lab) == 200
    grants = running.must("egress-policy", "grants", "--json")
    assert len(json.loads(grants)) == 1
    with nothing_leaves(lab):
        running.must("systemctl", "kill", "--signal=KILL", "egress-policy")
        wait(lambda: of(running, "egress-policy", "MainPID") not in {pid, "0"})
        wait(lambda: of(running, "egress-policy", "ActiveState") == "active")
    assert reach(lab) == 200
    taken_over = json.loads(running.must("egress-policy", "grants", "--json"))
    assert [one["id"] for one in taken_over] == [one["id"] for one in json.loads(grants)]


def test_a_proxy_that_hangs_is_started_anew(running: Machine) -> None:
    running.write(
        "/run/systemd/system/egress-policy.service.d/soon.conf",
        "[Service]\nWatchdogSec=3\nTimeoutAbortSec=1\n",
    )
    running.must("systemctl", "daemon-reload")
    running.must("systemctl", "restart", "egress-policy")
    pid = of(running, "egress-policy", "MainPID")
    running.must("kill", "-STOP", pid)
    wait(lambda: of(running, "egress-policy", "MainPID") not in {pid, "0"})
    assert "watchdog" in running.must("journalctl", "--unit=egress-policy", "--no-pager").lower()
    running.must("rm", "-r", "/run/systemd/system/egress-policy.service.d")
    running.must("systemctl", "daemon-reload")
    wait(lambda: of(running, "egress-policy", "ActiveState") == "active")


def test_stopped_it_leaves_the_firewall_closed(running: Machine, lab: Lab) -> None:
    with nothing_leaves(lab):
        running.must("systemctl", "stop", "egress-policy", "egress-policy-ruleset")
        assert lab.curl(f"http://{lab.addresses('docs.example')[0]}/", uid=ALICE).exit == REFUSED
        running.must("systemctl", "start", "egress-policy")
    assert reach(lab) == 200


def test_another_firewall_that_is_loaded_anew_does_not_open_ours(running: Machine, lab: Lab) -> None:
    """Debian's configuration of nftables begins with `flush ruleset`."""
    for verb in ("start", "reload", "restart", "stop"):
        running.must("systemctl", verb, "nftables")
        assert "egress-policy" in running.must("nft", "list", "tables"), verb
        wait(lambda: reach(lab) == 200)


def test_an_upgrade_leaves_no_moment_open(running: Machine, lab: Lab) -> None:
    pid = of(running, "egress-policy", "MainPID")
    running.prepare_packages("/opt/egress-policy-b")
    # Another version: what runs is told from what is new by this.
    running.must(
        "sh",
        "-c",
        "cp -a /opt/clone /opt/newer && rm -rf /opt/newer/.venv && echo '# newer' >> /opt/newer/addons/scope.py",
    )
    with nothing_leaves(lab):
        said = running.must("/opt/newer/deploy/install.sh", env=[f"PYTHON={PYTHON}"])
        assert "done, and running" in said
    assert running.must("readlink", "/opt/egress-policy") == "/opt/egress-policy-b\n"
    assert running.must("tail", "-1", "/opt/egress-policy/addons/scope.py") == "# newer\n"
    assert of(running, "egress-policy", "MainPID") != pid
    assert reach(lab) == 200
    assert policy(lab) == running.must("cat", "/etc/egress-policy/policy.yaml")


def test_an_upgrade_that_does_not_take_the_policy_changes_nothing(running: Machine, lab: Lab) -> None:
    pid = of(running, "egress-policy", "MainPID")
    running.must("sh", "-c", "echo surprise: 1 >> /etc/egress-policy/policy.yaml")
    done = running.run(INSTALL, env=[f"PYTHON={PYTHON}"])
    running.write("/etc/egress-policy/policy.yaml", policy(lab))
    assert done.returncode == 1
    assert "Nothing that runs was changed" in done.stderr
    assert running.must("readlink", "/opt/egress-policy") == "/opt/egress-policy-b\n"
    assert of(running, "egress-policy", "MainPID") == pid
    assert reach(lab) == 200


def test_remove_opens_the_firewall_and_says_so(running: Machine, lab: Lab) -> None:
    running.must("systemctl", "stop", "egress-policy")
    running.must("nft", "add", "table", "bridge", "egress-policy")
    running.must("nft", "add", "table", "inet", "bystander")
    asked = running.run("script", "-qec", "egress-policy remove", "/dev/null", stdin="n\n")
    assert "Take the ruleset out? [y/N]" in asked.stdout
    address = lab.addresses("docs.example")[0]
    assert lab.curl(f"http://{address}:22/", uid=ALICE).exit == REFUSED
    before = lab.packets_to(address, 22)
    said = running.must("egress-policy", "remove", "--yes")
    assert said.startswith(
        "Removed table inet egress-policy and table bridge egress-policy. Agents are NOT held"
    )
    assert "bystander" in running.must("nft", "list", "tables")
    assert "egress-policy" not in running.must("nft", "list", "tables")
    lab.curl(f"http://{address}:22/", uid=ALICE)
    assert lab.packets_to(address, 22) > before
    record = json.loads(running.must("egress-policy", "audit", "--json").splitlines()[-1])
    assert (record["event"], record["by"]) == ("policy", "root")
    assert "agents are not held" in record["detail"]
    assert running.must("egress-policy", "remove", "--yes").startswith("There was no ruleset")
    running.must("systemctl", "start", "egress-policy")


def test_uninstalled_it_is_gone(running: Machine) -> None:
    declined = running.run(f"{CLONE}/deploy/uninstall.sh", stdin="n\n")
    assert declined.returncode == 1
    assert "nothing was changed" in declined.stdout
    assert of(running, "egress-policy", "ActiveState") == "active"
    said = running.must(f"{CLONE}/deploy/uninstall.sh", env=["YES=1"])
    assert "Agents are not held to any policy" in said
    assert "egress-policy" not in running.must("nft", "list", "tables")
    left = running.must(
        "sh",
        "-c",
        f"ls -d /opt/egress-policy* {UNITS}/egress* /usr/local/bin/egress* /etc/logrotate.d/egress* 2>/dev/null || true",
    )
    assert left == ""
    assert running.run("systemctl", "cat", "egress-policy-ruleset").returncode != 0
    running.must(
        "ls",
        "/etc/egress-policy/policy.yaml",
        "/var/lib/egress-policy/ca/mitmproxy-ca.pem",
        "/var/log/egress-policy",
    )
