"""What a connection exchanged, and how it ended, on record; handshakes that came to nothing too."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from deploy.demo.lab import ALICE, BOB, Lab
from tests.end_to_end.conftest import ALICE_FIELD, NAMES, POLICY, until

FREE = {"X-Agent-Scope": "sandbox-alice;intent=free"}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(*NAMES) as lab:
        lab.write_policy(POLICY)
        lab.apply()
        yield lab


@pytest.fixture(scope="module", autouse=True)
def proxy(lab: Lab) -> subprocess.Popen[bytes]:
    return lab.start_proxy()


def ends(lab: Lab, host: str) -> list[dict[str, Any]]:
    return [one for one in lab.ends() if one["host"] == host]


def new_name(lab: Lab, name: str, **records: Any) -> str:
    """A destination of the test's own."""
    lab.add_name(name, **records)
    return name


def streaming(lab: Lab, host: str) -> subprocess.Popen[bytes]:
    """A download that goes on, of which something has come."""
    command = ["curl", "-sS", "-N", "-H", "X-Agent-Scope: sandbox-alice", f"https://{host}/slow-stream"]
    download = lab.start(command, uid=ALICE, log=f"{host}.out")
    assert until(lambda: bool(lab.output(f"{host}.out")), 10)
    return download


def the_end(lab: Lab, host: str) -> dict[str, Any]:
    """The one end on record of what was exchanged with a host."""
    assert until(lambda: bool(ends(lab, host)), 10)
    (end,) = ends(lab, host)
    return end


def test_all_requests_of_a_connection_end_in_one_record(lab: Lab) -> None:
    host = new_name(lab, "twice.example")
    assert lab.curl(f"https://{host}/bytes/[1000-1001]", uid=ALICE, headers=ALICE_FIELD).status == 200
    end = the_end(lab, host)
    assert (end["requests"], end["sent"], end["received"]) == (2, 0, 2001)
    assert (end["status"], end["ending"], "outcome" in end) == (200, "complete", False)
    assert (end["agent"], end["uid"], end["scope"], end["intent"]) == (
        "alice",
        ALICE,
        "sandbox-alice",
        "default",
    )
    assert 0 < end["duration"] < 60
    (grant,) = [one for one in lab.audit() if one["event"] == "grant" and one["host"] == host]
    decisions = [one for one in lab.audit() if one["event"] == "decision" and one.get("host") == host]
    assert [one["grant"] for one in decisions] == [grant["id"]] * 2
    assert end["grant"] == grant["id"]


def test_each_grant_of_a_connection_has_its_own_end(lab: Lab) -> None:
    host = new_name(lab, "shared.example")
    url = f"http://{host}/bytes/100"
    second = ("--next", "-sS", "-H", "X-Agent-Scope: sandbox-alice;intent=develop")
    lab.curl(url, url, *second, uid=ALICE, headers=ALICE_FIELD)
    assert until(lambda: len(ends(lab, host)) == 2)
    assert {(end["intent"], end["requests"]) for end in ends(lab, host)} == {("default", 1), ("develop", 1)}


def test_what_is_sent_counts_by_its_body(lab: Lab) -> None:
    host = new_name(lab, "upload.example")
    body = lab.folder / "body"
    body.write_bytes(b"x" * 300_000)
    body.chmod(0o644)
    lab.curl(f"https://{host}/", "--data-binary", f"@{body}", uid=ALICE, headers=FREE)
    assert the_end(lab, host)["sent"] == 300_000


def test_what_grows_too_long_is_cut(lab: Lab) -> None:
    host = new_name(lab, "long.example")
    body = lab.folder / "long"
    body.write_bytes(b"x" * 200_000)
    body.chmod(0o644)
    field = {"X-Agent-Scope": "sandbox-alice;intent=develop", "Transfer-Encoding": "chunked"}
    lab.curl(f"http://{host}/", "--data-binary", f"@{body}", uid=ALICE, headers=field)
    end = the_end(lab, host)
    assert end["ending"] == "cut"
    assert end["sent"] <= 64 * 1024


def test_a_client_that_leaves(lab: Lab) -> None:
    host = new_name(lab, "left.example")
    download = streaming(lab, host)
    download.kill()
    download.wait(10)
    end = the_end(lab, host)
    assert (end["ending"], end["status"]) == ("client_left", 200)
    assert end["received"] > 0


def test_a_revoked_grant_cuts(lab: Lab) -> None:
    host = new_name(lab, "cut.example")
    download = streaming(lab, host)
    assert not ends(lab, host)
    assert lab.egress_policy("revoke", "--host", host, "--control", lab.control_socket).returncode == 0
    download.wait(10)
    end = the_end(lab, host)
    assert (end["ending"], end["status"]) == ("cut", 200)
    assert end["received"] > 0


def test_what_is_idle_when_its_grant_ends_is_over_with_it(lab: Lab) -> None:
    """The client keeps its connection to the proxy, for which another grant may come."""
    host = new_name(lab, "idle.example")
    keep = """
import http.client, sys, time
one = http.client.HTTPConnection(sys.argv[1], timeout=20)
one.request("GET", "/bytes/10", headers={"X-Agent-Scope": "sandbox-alice"})
one.getresponse().read()
print("read", flush=True)
time.sleep(60)
"""
    client = lab.start([sys.executable, "-c", keep, host], uid=ALICE, log="idle.out")
    assert until(lambda: "read" in lab.output("idle.out"), 10)
    assert lab.egress_policy("revoke", "--host", host, "--control", lab.control_socket).returncode == 0
    assert (the_end(lab, host)["ending"], client.poll()) == ("complete", None)
    client.kill()
    client.wait(10)
    lab.curl(f"http://{host}/", uid=ALICE, headers=ALICE_FIELD)
    assert until(lambda: len(ends(lab, host)) == 2), "one for the new connection, and no other"


def test_a_connection_that_is_not_decrypted_counts_whole(lab: Lab) -> None:
    before = len(ends(lab, "named.example"))
    assert lab.curl("https://named.example/bytes/5000", uid=BOB).status == 200
    assert until(lambda: len(ends(lab, "named.example")) > before)
    end = ends(lab, "named.example")[-1]
    assert (end["agent"], end["scope"], end["ending"]) == ("bob", "known-good", "complete")
    assert end["received"] > 5000
    assert end["sent"] > 300
    assert "status" not in end


def test_what_was_denied_or_went_straight_through_has_no_end(lab: Lab) -> None:
    assert lab.curl("https://direct.example/", uid=ALICE).status == 200
    host = new_name(lab, "denied.example")
    assert lab.curl(f"https://{host}/", uid=ALICE).status == 403
    marker = new_name(lab, "marker.example")
    lab.curl(f"https://{marker}/", uid=ALICE, headers=ALICE_FIELD)
    the_end(lab, marker)
    assert not ends(lab, host)
    assert not ends(lab, "direct.example")


def test_an_origin_s_tls_that_fails_is_named(lab: Lab) -> None:
    host = new_name(lab, "imposter.example", certificate="other.example")
    assert lab.curl(f"https://{host}/", uid=ALICE, headers=ALICE_FIELD).json()["code"] == "upstream_failed"
    (failed,) = [one for one in lab.audit() if one.get("host") == host and one.get("outcome") == "fail"]
    assert (failed["code"], failed["agent"]) == ("upstream_failed", "alice")
    assert "certificate" in failed["detail"].lower()
    assert "hostname mismatch" in failed["detail"].lower()
    end = the_end(lab, host)
    assert (end["ending"], end["received"], "status" in end) == ("upstream_failed", 0, False)


def test_a_client_that_does_not_trust_the_proxy_is_told_of(lab: Lab) -> None:
    """Whoever runs the agent would otherwise see its own message alone."""
    host = new_name(lab, "untrusting.example")

    def handshakes() -> list[dict[str, Any]]:
        return [one for one in lab.audit() if one["event"] == "handshake" and one["host"] == host]

    tries = [("--cacert", str(lab.internet_ca), "--retry", "0")] * 3
    for options in tries:
        assert lab.curl(f"https://{host}/", *options, uid=ALICE, headers=ALICE_FIELD).exit == 60
    assert until(lambda: bool(handshakes()))
    first = handshakes()[0]
    assert (first["agent"], first["uid"], first["host"], first["port"]) == ("alice", ALICE, host, 443)
    assert (first["outcome"], first["code"]) == ("fail", "client_tls_failed")
    assert "does not trust the proxy's CA" in first["detail"]
    command = [
        sys.executable,
        "-m",
        "egress_policy",
        "audit",
        "--audit",
        str(lab.audit_file),
        "--outcome",
        "fail",
    ]
    shown = lab.run(["env", "COLUMNS=80", *command])
    assert "client_tls_failed" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80


def test_a_flood_of_failed_handshakes_is_counted_and_not_written_out(lab: Lab) -> None:
    host = new_name(lab, "flood.example")
    code = """
import socket, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[2])
for _ in range(40):
    try:
        context.wrap_socket(socket.create_connection((sys.argv[1], 443)), server_hostname=sys.argv[1])
    except ssl.SSLError:
        pass
"""
    done = lab.python(code, host, str(lab.internet_ca), uid=ALICE)
    assert done.returncode == 0, done.stderr

    def counted() -> tuple[int, int]:
        """Records, and the handshakes that they speak of."""
        mine = [
            one["detail"] for one in lab.audit() if one.get("host") == host and one["event"] == "handshake"
        ]
        again = [
            detail.rpartition(", ")[2].split()[0] for detail in mine if detail.endswith(("times", "more"))
        ]
        return len(mine), len(mine) - len(again) + sum(1 if one == "once" else int(one) for one in again)

    assert until(lambda: counted()[1] == 40, 10)
    assert counted()[0] < 40


def test_the_lines_for_people_say_how_much_and_how_it_ended(lab: Lab) -> None:
    host = new_name(lab, "shown.example")
    lab.curl(f"https://{host}/bytes/2048", uid=ALICE, headers=ALICE_FIELD)
    the_end(lab, host)
    shown = lab.egress_policy("audit", "--audit", lab.audit_file, "--lines", "--host", host).stdout
    (line,) = [one for one in shown.splitlines() if "  end  " in one]
    assert "complete" in line
    assert "1 request, 0 B sent, 2.0 KiB received" in line


def test_a_proxy_that_ends_tells_of_what_it_cuts_short(lab: Lab, proxy: subprocess.Popen[bytes]) -> None:
    """The last test: the proxy is gone after it."""
    host = new_name(lab, "open.example")
    streaming(lab, host)
    proxy.terminate()
    proxy.wait(20)
    assert the_end(lab, host)["ending"] == "cut"
    assert json.loads(lab.audit_file.read_text().splitlines()[-1])["event"]
    verified = lab.egress_policy("audit", "--audit", lab.audit_file, "--verify", "--journal", "/dev/null")
    assert verified.returncode == 0, verified.stderr
