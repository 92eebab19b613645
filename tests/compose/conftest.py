"""The project of compose.yaml, service by service, in the order in which they wait for each other."""

import subprocess
from collections.abc import Iterator

import pytest

from deploy.demo.lab import DNS_PORT, NAMESERVERS, PROXY_PORT, Lab
from tests.compose.project import FOLDER, Project
from tests.containers import shown
from tests.end_to_end.conftest import until

KNOWN_GOOD, UNKNOWN, KNOWN_BAD = "api.model.example", "docs.example", "paste.example"
POLICY = (FOLDER / "policy" / "policy.yaml").read_text()


@pytest.fixture(scope="module")
def project() -> Iterator[Project]:
    """The networks, and a policy with the lab's name server in place of the public ones."""
    with Lab(KNOWN_GOOD, UNKNOWN, KNOWN_BAD) as lab:
        project = Project(lab)
        before, rest = POLICY.split("nameservers: [", 1)
        project.write_policy(f"{before}nameservers: [{NAMESERVERS[0]}{rest[rest.index(']') :]}")
        yield project


@pytest.fixture(scope="module")
def proxy(project: Project) -> subprocess.Popen[bytes]:
    """The proxy is healthy."""
    lab = project.lab
    process = project.start_proxy()
    lab.wait(process, "proxy", lambda: lab.listens(process, PROXY_PORT, DNS_PORT))
    kind, *test = project.services["proxy"]["healthcheck"]["test"]
    assert kind == "CMD"
    assert until(lambda: project.run("proxy", test).returncode == 0, 30), shown(project.run("proxy", test))
    return process


@pytest.fixture(scope="module")
def running(project: Project, proxy: subprocess.Popen[bytes]) -> Project:
    """All that the agents wait for has done its part."""
    done = project.run("trust")
    assert done.returncode == 0, shown(done)
    return project
