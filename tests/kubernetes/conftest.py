"""The pod of the sidecar form, container by container, in the order of its manifest."""

import subprocess
from collections.abc import Iterator

import pytest

from deploy.demo.lab import DNS_PORT, PROXY_PORT, Lab
from tests.containers import shown
from tests.end_to_end.conftest import until
from tests.kubernetes.pod import MANIFESTS, Pod

KNOWN_GOOD, UNKNOWN, KNOWN_BAD = "api.model.example", "docs.example", "paste.example"
POLICY = (MANIFESTS / "sidecar" / "policy.yaml").read_text()


@pytest.fixture(scope="module")
def pod() -> Iterator[Pod]:
    """The pod before its first container."""
    with Lab(KNOWN_GOOD, UNKNOWN, KNOWN_BAD) as lab:
        pod = Pod(lab)
        pod.write_policy(POLICY)
        yield pod


@pytest.fixture(scope="module")
def ruleset(pod: Pod) -> Pod:
    """The first init container has ended."""
    done = pod.run("ruleset")
    assert done.returncode == 0, shown(done)
    return pod


@pytest.fixture(scope="module")
def proxy(ruleset: Pod) -> subprocess.Popen[bytes]:
    """The proxy's startup probe has succeeded. The lab's origins are of a CA that no image knows."""
    lab = ruleset.lab
    process = ruleset.start("proxy", "--set", f"ssl_verify_upstream_trusted_ca={lab.internet_ca}")
    lab.wait(process, "proxy", lambda: lab.listens(process, PROXY_PORT, DNS_PORT))
    probe = ruleset.container("proxy")["startupProbe"]["exec"]["command"]
    assert until(lambda: ruleset.run("proxy", probe).returncode == 0, 30), shown(ruleset.run("proxy", probe))
    return process


@pytest.fixture(scope="module")
def running(ruleset: Pod, proxy: subprocess.Popen[bytes]) -> Pod:
    """Every init container has done its part: the agent's container may start."""
    done = ruleset.run("trust")
    assert done.returncode == 0, shown(done)
    return ruleset
