"""A laboratory whose agent host boots a systemd of its own, with this project installed by its own script."""

from collections.abc import Iterator

import pytest

from deploy.demo.lab import ALICE, NAMESERVERS, Lab
from tests.host.machine import CLONE, PYTHON, Machine

POLICY = f"""\
version: 1
proxy: {{user: egress-proxy}}
resolver: {{nameservers: [{NAMESERVERS[0]}], timeout: 1s}}
agents:
  alice: {{user: agent-alice, scopes: [sandbox-alice], default_scope: sandbox-alice}}
scopes: {{sandbox-alice: {{owner: alice@example.com}}}}
trust:
  known-good: [{{cidr: DIRECT/32, ports: [443]}}]
intents: {{default: {{unknown: {{methods: [GET], ttl: 1h}}}}}}
"""
# As an operator would name a CA of his own.
TRUST = """\
[Service]
ExecStart=
ExecStart=/opt/egress-policy/.venv/bin/mitmdump -s /opt/egress-policy/addons/scope.py \
    --set ssl_verify_upstream_trusted_ca=/etc/egress-policy/internet.pem
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("docs.example", "direct.example") as lab:
        yield lab


@pytest.fixture(scope="module")
def machine(lab: Lab) -> Iterator[Machine]:
    """Booted; packages are at hand, nothing is installed."""
    with Machine(lab) as machine:
        machine.boot()
        machine.prepare_packages("/opt/egress-policy-a")
        yield machine


@pytest.fixture(scope="module")
def installed(machine: Machine, lab: Lab) -> Machine:
    """Installed, with a policy and an agent; not enabled."""
    machine.must(f"{CLONE}/deploy/install.sh", env=[f"PYTHON={PYTHON}"])
    machine.must("useradd", "--uid", str(ALICE), "--create-home", "agent-alice")
    machine.write("/etc/egress-policy/policy.yaml", policy(lab))
    machine.write("/etc/egress-policy/internet.pem", lab.internet_ca.read_text())
    machine.write("/etc/systemd/system/egress-policy.service.d/trust.conf", TRUST)
    machine.must("systemctl", "daemon-reload")
    return machine


def policy(lab: Lab) -> str:
    return POLICY.replace("DIRECT", lab.addresses("direct.example")[0])
