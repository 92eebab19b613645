"""Two containers on networks of their own, wired as compose.yaml says, with the real proxy between them and the world."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.demo.json_lines import read_log
from deploy.demo.lab import DNS_PORT, PROXY, PROXY_PORT
from tests.compose.conftest import KNOWN_BAD, KNOWN_GOOD, UNKNOWN
from tests.compose.project import Project
from tests.containers import IMAGE, shown
from tests.end_to_end.conftest import until

NET_ADMIN = 1 << 12
AGENTS = ("alice", "bob")
ADDRESS = {"alice": "10.213.1.3", "bob": "10.213.2.3"}
SCOPE = "X-Agent-Scope: sandbox-{}"


def test_before_the_proxy_runs_nothing_gets_out(project: Project) -> None:
    """No ruleset is there yet, and the gateway's address is nobody's: what would forward is never asked to."""
    address = project.lab.addresses(UNKNOWN)[0]
    assert project.fetch("alice", f"http://{address}:8443/", "--max-time", "1") in {"exit 7", "exit 28"}
    assert project.lab.packets_to(address) == 0


def test_the_proxy_runs_as_its_own_uid_with_one_capability(proxy: subprocess.Popen[bytes]) -> None:
    lines = Path(f"/proc/{proxy.pid}/status").read_text().splitlines()
    held = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert set(held["Uid"].split()) == {str(PROXY)}
    assert {int(held[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")} == {NET_ADMIN}
    assert held["NoNewPrivs"] == "1"


@pytest.mark.parametrize(("agent", "other"), [AGENTS, AGENTS[::-1]])
def test_each_agent_has_its_own_scope_and_no_other(running: Project, agent: str, other: str) -> None:
    """Told by link and address, whatever it claims; by default the own one."""
    url = f"https://{UNKNOWN}/{agent}"
    assert running.fetch(agent, url) == "200"
    assert running.fetch(agent, url, "--header", SCOPE.format(agent)) == "200"
    assert running.fetch(agent, url, "--header", SCOPE.format(other)) == "403"
    decided = [one for one in _decisions(running) if one["agent"] == agent]
    assert {(one["scope"], one["outcome"]) for one in decided} == {
        (f"sandbox-{agent}", "permit"),
        (f"sandbox-{other}", "deny"),
    }


def test_the_agent_gets_what_the_policy_permits(running: Project) -> None:
    """Through the redirect, with the variables and the bundle of the file."""
    assert running.fetch("alice", f"https://{UNKNOWN}/", "--data", "secret") == "403"
    assert (
        running.fetch("alice", f"https://{KNOWN_BAD}/") == "exit 6"
    )  # no address: not even its name is asked for
    # Not decrypted: the origin's own certificate.
    own = ("--cacert", str(running.lab.internet_ca))
    assert running.fetch("alice", f"https://{KNOWN_GOOD}/", *own) == "200"


@pytest.fixture(params=["10.213.2.3/32", "10.213.1.4/29", "45.90.199.9/32", "10.66.0.2/32"])
def taken(request: pytest.FixtureRequest, running: Project) -> Iterator[str]:
    """An address that alice's container has beside its own: bob's, nobody's, a public one, the proxy's."""
    address: str = request.param
    running.lab.ip("alice", f"address add {address} dev eth0")
    yield address.partition("/")[0]
    running.lab.ip("alice", f"address del {address} dev eth0")


def test_a_spoofed_source_address_is_refused(running: Project, taken: str) -> None:
    """By a container that was given what it takes: root, and NET_ADMIN in its namespace."""
    address = running.lab.addresses(UNKNOWN)[0]
    decided = len(_decisions(running))
    for url in (f"http://{address}/", f"https://{address}/", f"http://{address}:8443/"):
        curl = ["curl", "-sSk", "--max-time", "0.5", "--interface", taken, "-H", SCOPE.format("bob"), url]
        assert running.lab.run(curl, ns="alice").returncode in {7, 28}
    # What came before is on record by now, and so would these be.
    assert running.fetch("bob", f"https://{UNKNOWN}/{taken}") == "200"
    (fence,) = _decisions(running)[decided:]
    assert (fence["agent"], fence["outcome"]) == ("bob", "permit")
    assert running.lab.packets_to(address, 8443) == 0


def test_the_agents_do_not_reach_each_other(running: Project) -> None:
    """Nor does an agent reach the proxy's own ports, whatever address it dials."""
    for place in (f"{ADDRESS['bob']}:9000", "10.213.2.2:8080", "10.213.1.1:8080", "10.213.1.2:22"):
        curl = ["curl", "-sS", "--max-time", "5", f"http://{place}/"]
        assert running.lab.run(curl, ns="alice", uid=1000).returncode == 7, place
    # Port 80 is redirected like all web traffic, and decided: no entry covers the address.
    assert running.fetch("alice", f"http://{ADDRESS['bob']}/") == "403"


@pytest.mark.parametrize("agent", AGENTS)
def test_the_agent_has_no_capability_and_sees_the_public_certificates_only(
    running: Project, agent: str
) -> None:
    done = running.run(agent, ["cat", "/proc/self/status"])
    found = dict(re.findall(r"^(Cap\w+|NoNewPrivs|Uid):\s+(\S+)", done.stdout, re.MULTILINE))
    assert (found.pop("NoNewPrivs"), found.pop("Uid")) == ("1", "1000")
    assert {int(value, 16) for value in found.values()} == {0}
    done = running.run(
        agent, ["ls", "/var/lib/egress-policy", "/var/log/egress-policy", "/run/egress-policy"]
    )
    assert done.stdout.split() == ["/var/lib/egress-policy:", "trust"], shown(done)
    names = {path.name for path in running.volume("trust").iterdir()}
    assert {"bundle.pem", "truststore.p12"} <= names
    assert not any(b"PRIVATE KEY" in path.read_bytes() for path in running.volume("trust").iterdir())
    assert running.run(agent, ["touch", "/var/lib/egress-policy/trust/bundle.pem"]).returncode != 0


@pytest.mark.parametrize("service", ["proxy", "alice"])
def test_the_root_folder_is_read_only(running: Project, service: str) -> None:
    folders = ("/etc", "/opt/egress-policy", "/var/lib", "/run", "/usr")
    done = running.run(service, ["touch", *(f"{folder}/written" for folder in folders)], user=0)
    assert done.stderr.count("Read-only file system") == len(folders), shown(done)


def test_the_command_line_is_at_hand_in_the_proxys_container(running: Project) -> None:
    """As `docker compose exec proxy egress-policy grants`."""
    assert running.fetch("bob", f"https://{UNKNOWN}/") == "200"
    grants = running.run("proxy", [f"{IMAGE}/.venv/bin/egress-policy", "grants"])
    assert UNKNOWN in grants.stdout, shown(grants)


def test_a_dead_proxy_is_unhealthy_and_opens_nothing(
    running: Project, proxy: subprocess.Popen[bytes]
) -> None:
    """Docker starts it again; until then agents are refused."""
    address = running.lab.addresses(UNKNOWN)[0]
    proxy.kill()
    proxy.wait(10)
    _, *test = running.services["proxy"]["healthcheck"]["test"]
    assert running.run("proxy", test).returncode == 1
    before = running.lab.packets_to(address)
    for port in (443, 8443):
        curl = ["curl", "-sSk", "--max-time", "5", f"https://{address}:{port}/"]
        assert running.lab.run(curl, ns="alice", uid=1000).returncode == 7
    assert running.lab.packets_to(address) == before


def test_it_starts_again_by_itself(running: Project) -> None:
    """In a new network namespace: of the ruleset and the gateways' addresses nothing is left, and each start makes both."""
    lab = running.lab
    lab.ip("host", "address del 10.213.1.1/29 dev alice", "address del 10.213.2.1/29 dev bob")
    assert lab.run(["nft", "delete", "table", "inet", "egress-policy"]).returncode == 0
    again = running.start_proxy()
    lab.wait(again, "proxy", lambda: lab.listens(again, PROXY_PORT, DNS_PORT))
    assert until(lambda: running.fetch("alice", f"https://{UNKNOWN}/again") == "200", 30), lab.output("proxy")


def _decisions(running: Project) -> list[dict[str, Any]]:
    return [one for one in read_log(running.volume("audit") / "audit.jsonl") if one["event"] == "decision"]
