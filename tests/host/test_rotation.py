"""The audit log under logrotate(8), as installed, while the proxy writes: nothing is lost, and it stays whole."""

import json
import threading
import time
from collections.abc import Iterator

import pytest

from deploy.demo.lab import ALICE, Lab
from tests.host.machine import Machine, wait

LOG = "/var/log/egress-policy"
# One connection after another: denied at once, each with a record of its own.
REQUESTS = """\
import http.client, itertools, os, sys
for number in itertools.count():
    if os.path.exists(sys.argv[1]):
        break
    connection = http.client.HTTPConnection("docs.example", 80, timeout=30)
    connection.request("DELETE", f"/{number}")
    assert connection.getresponse().status == 403
    connection.close()
print(number)
"""


@pytest.fixture(scope="module")
def host(installed: Machine) -> Iterator[Machine]:
    installed.must("systemctl", "enable", "--now", "egress-policy")
    yield installed
    installed.cut_power()


def logs(host: Machine) -> list[str]:
    """List the files of the log's folder."""
    return host.must("ls", LOG).split()


def rotated(host: Machine) -> list[str]:
    return [name for name in logs(host) if name.startswith("audit.jsonl-")]


def rotate(host: Machine) -> bool:
    return host.run("logrotate", "--force", "/etc/logrotate.d/egress-policy").returncode == 0


def test_nothing_is_lost_by_rotation_under_load(host: Machine, lab: Lab) -> None:
    stop = lab.folder / "stop"
    sent: list[str] = []

    def send() -> None:
        done = lab.python(REQUESTS, str(stop), uid=ALICE, timeout=180)
        sent.append(done.stdout or done.stderr)

    sending = threading.Thread(target=send)
    sending.start()
    try:
        # Names are of the second: the second rotation in one is left for the next time.
        wait(lambda: rotate(host) and len(rotated(host)) >= 4)
    finally:
        stop.touch()
        sending.join()
    records = [json.loads(line) for line in host.must("egress-policy", "audit", "--json").splitlines()]
    paths = [one["path"] for one in records if one["event"] == "decision"]
    assert sorted(paths) == sorted(f"/{number}" for number in range(int(sent[0])))
    assert len(paths) > 50
    assert any(name.endswith(".gz") for name in rotated(host)), "the older ones are compressed"
    assert set(logs(host)) - set(rotated(host)) <= {"audit.jsonl"}
    verified = host.run("egress-policy", "audit", "--verify")
    assert (verified.returncode, verified.stdout[:6]) == (0, "Whole:")
    # Journal and log agree too: the proxy has told it of its newest record.
    assert "the journal has no hash" not in verified.stderr


def test_the_timer_is_on_and_rotates_by_size(host: Machine, lab: Lab) -> None:
    """Before the day is over."""
    assert host.must("systemctl", "is-active", "egress-policy-logrotate.timer") == "active\n"
    assert host.must("systemctl", "is-enabled", "egress-policy-logrotate.timer") == "enabled\n"
    before = rotated(host)
    lab.curl("http://docs.example/again", "-X", "DELETE", uid=ALICE)
    host.must("systemctl", "start", "egress-policy-logrotate.service")
    assert rotated(host) == before
    # Names are of the second: logrotate would skip a second one in the same.
    time.sleep(1.1)
    host.must("sed", "-i", "s/maxsize .*/maxsize 10/", "/etc/logrotate.d/egress-policy")
    host.must("systemctl", "start", "egress-policy-logrotate.service")
    assert len(rotated(host)) == len(before) + 1
    owner = host.must("stat", "--format=%U:%G %a", *(f"{LOG}/{name}" for name in rotated(host)))
    assert set(owner.splitlines()) == {"egress-proxy:egress-proxy 640"}


def test_a_log_that_was_just_rotated_can_be_read(host: Machine, lab: Lab) -> None:
    """The next record makes the file; until then there is none."""
    lab.curl("http://docs.example/last", "-X", "DELETE", uid=ALICE)
    wait(lambda: rotate(host) and "audit.jsonl" not in logs(host))
    assert '"/last"' in host.must("egress-policy", "audit", "--json", "--host", "docs.example")
    lab.curl("http://docs.example/next", "-X", "DELETE", uid=ALICE)
    assert '"/next"' in host.must("egress-policy", "audit", "--json", "--host", "docs.example")
    assert host.must("stat", "--format=%U:%G %a", f"{LOG}/audit.jsonl") == "egress-proxy:egress-proxy 640\n"
