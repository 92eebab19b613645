"""The product's whole job, on the real kernel: from the header to a timed element, and to its end."""

import json
import re
import time

import pytest

from deploy.demo.lab import ALICE, BOB, OTHER, Lab
from tests.end_to_end.conftest import ALICE_FIELD, until

VERSIONS = [
    pytest.param("http", ("--http1.1",), id="HTTP/1.1 over TCP"),
    pytest.param("https", ("--http1.1",), id="HTTP/1.1 over TLS"),
    pytest.param("https", ("--http2",), id="HTTP/2 over TLS"),
]
FAMILIES = [
    pytest.param("-4", 0, "developer-sandbox", id="IPv4"),
    pytest.param("-6", 1, "developer-sandbox-ipv6", id="IPv6"),
]


def elements(lab: Lab, name: str) -> str:
    return lab.run(["nft", "list", "set", "inet", "egress-policy", name]).stdout


@pytest.mark.parametrize(("scheme", "version"), VERSIONS)
@pytest.mark.parametrize(("family", "number", "set_name"), FAMILIES)
def test_the_header_opens_the_checked_address_and_nothing_less_does(
    lab: Lab, scheme: str, version: tuple[str, ...], family: str, number: int, set_name: str
) -> None:
    """Denied without a packet; permitted with a grant in the kernel; the origin never sees the header."""
    name = f"{scheme}{version[0].strip('-').replace('.', '')}{number}.example"
    lab.add_name(name)
    lab.add_name(name, lab.addresses(name)[number])
    address = lab.addresses(name)[0]
    url, port = f"{scheme}://{name}/x?q=1", 443 if scheme == "https" else 80

    denied = lab.curl(url, family, *version, uid=ALICE)
    assert (denied.status, denied.headers["content-type"]) == (403, "application/problem+json")
    problem = denied.json()
    assert set(problem) >= {"title", "detail"}
    assert {key: problem[key] for key in ("type", "status", "code", "agent", "destination")} == {
        "type": "urn:egress-policy:scope_missing",
        "status": 403,
        "code": "scope_missing",
        "agent": "alice",
        "destination": f"{name}:{port}",
    }
    assert problem["next_steps"]
    assert problem["instance"] == "urn:uuid:" + lab.audit()[-1]["id"]
    assert lab.packets_to(address) == 0
    assert not [query for query in lab.queries() if name in str(query)]

    permitted = lab.curl(url, family, *version, uid=ALICE, headers=ALICE_FIELD)
    assert (permitted.status, denied.http, permitted.http) == (200, *[version[0].removeprefix("--http")] * 2)
    assert permitted.json()["local"].startswith(address if ":" not in address else f"[{address}]")
    assert "x-agent-scope" not in permitted.body.lower()
    assert lab.packets_to(address) > 0
    grant, decision = lab.audit()[-2:]
    assert (grant["event"], decision["event"], decision["outcome"]) == ("grant", "decision", "permit")
    assert decision["path"] == "/x"
    assert (grant["addresses"], grant["host"], grant["port"]) == ([address], name, port)
    assert re.search(
        rf"{re.escape(address)} \. {port} timeout .* expires .* comment \"{grant['id']} sandbox-alice {name}\"",
        elements(lab, set_name),
    )


def test_within_the_ttl_the_second_request_asks_neither_dns_nor_the_kernel(lab: Lab) -> None:
    lab.add_name("again.example", ttl=60)
    lab.curl("https://again.example/", uid=ALICE, headers=ALICE_FIELD)
    before, held = (
        len(lab.queries()),
        re.findall(r"timeout (\S+) .*again.example", elements(lab, "developer-sandbox")),
    )
    assert lab.curl("https://again.example/", uid=ALICE, headers=ALICE_FIELD).status == 200
    assert len(lab.queries()) == before
    assert re.findall(r"timeout (\S+) .*again.example", elements(lab, "developer-sandbox")) == held
    assert [record["event"] for record in lab.audit()[-2:]] == ["decision", "decision"]


def test_another_developer_s_scope_is_denied(lab: Lab) -> None:
    answer = lab.curl("https://a.example/", uid=ALICE, headers={"X-Agent-Scope": "sandbox-bob"})
    assert answer.json()["code"] == "scope_not_allowed"


def test_an_agent_s_default_scope_needs_no_header(lab: Lab) -> None:
    assert lab.curl("https://a.example/", uid=BOB).status == 200
    assert lab.audit()[-1]["scope"] == "sandbox-bob"


def test_a_user_who_is_no_agent_is_not_touched(lab: Lab) -> None:
    before = len(lab.audit())
    assert lab.curl("https://x.bad.example/", uid=OTHER).status == 200
    assert len(lab.audit()) == before


def test_a_known_bad_name_is_not_resolved_and_denied_whatever_address_is_tried(lab: Lab) -> None:
    address = lab.addresses("x.bad.example")[0]
    packets = lab.packets_to(address)
    assert lab.curl("https://x.bad.example/", uid=ALICE, headers=ALICE_FIELD).exit == 6
    forced = lab.curl(
        "https://x.bad.example/", "--resolve", f"x.bad.example:443:{address}", uid=ALICE, headers=ALICE_FIELD
    )
    assert forced.json()["code"] == "destination_denied"
    assert lab.curl("http://66.1.2.3/", uid=ALICE, headers=ALICE_FIELD).json()["code"] == "destination_denied"
    assert lab.packets_to(address) == packets


def issuer(lab: Lab, host: str) -> str:
    shown = lab.run(["curl", "-sv", "--max-time", "5", f"https://{host}/"], uid=ALICE).stderr
    found = re.search(r"issuer: (.*)", shown)
    return found[1] if found else shown


def test_a_known_good_name_passes_undecrypted_and_needs_no_header(lab: Lab) -> None:
    assert "Demo Internet CA" in issuer(lab, "named.example")
    assert lab.audit()[-1]["trust"] == "known-good"


def test_a_known_good_name_is_decrypted_where_the_policy_says_so(lab: Lab) -> None:
    assert "mitmproxy" in issuer(lab, "full.example")


def test_a_known_good_name_without_inspection_goes_past_the_proxy(lab: Lab) -> None:
    records = len(lab.audit())
    assert "Demo Internet CA" in issuer(lab, "direct.example")
    assert len(lab.audit()) == records
    assert "known-good direct.example" in elements(lab, "known-good-domains")


def test_the_proxy_pins_the_checked_address_wherever_the_agent_connects(lab: Lab) -> None:
    """The agent dials an address of its own with a permitted name: the name's own address gets the request."""
    evil, own = lab.addresses("b.example")[0], lab.addresses("a.example")[0]
    packets = lab.packets_to(evil)
    answer = lab.curl(
        "https://a.example/pinned", "--resolve", f"a.example:443:{evil}", uid=ALICE, headers=ALICE_FIELD
    )
    assert (answer.status, lab.packets_to(evil)) == (200, packets)
    assert own in answer.body


def test_a_grant_s_end_cuts_a_running_transfer_and_is_on_record(lab: Lab) -> None:
    lab.add_name("slow.example")
    started = time.monotonic()
    cut = lab.curl(
        "https://slow.example/slow-stream", uid=ALICE, headers={"X-Agent-Scope": "sandbox-alice;ttl=2"}
    )
    assert cut.exit != 0
    assert 1.5 < time.monotonic() - started < 8
    grant = next(
        record for record in lab.audit() if record["event"] == "grant" and record["host"] == "slow.example"
    )
    assert until(
        lambda: any(record["event"] == "expire" and record["id"] == grant["id"] for record in lab.audit())
    )
    assert "slow.example" not in elements(lab, "developer-sandbox")
    assert lab.curl("https://slow.example/", uid=ALICE, headers=ALICE_FIELD).status == 200


def test_the_kernel_s_element_alone_ends_a_transfer_too(lab: Lab) -> None:
    """The second barrier: deleted with plain nft, while the proxy believes in its grant."""
    lab.add_name("kernel.example")
    lab.add_name("kernel.example", lab.addresses("kernel.example")[0])
    slow = lab.start(
        [
            "curl",
            "-sSN",
            "--max-time",
            "8",
            "-H",
            "X-Agent-Scope: sandbox-alice",
            "https://kernel.example/slow-stream",
        ],
        uid=ALICE,
    )
    address = lab.addresses("kernel.example")[0]
    assert until(lambda: address in elements(lab, "developer-sandbox"))
    time.sleep(0.5)
    lab.run(
        ["nft", "delete", "element", "inet", "egress-policy", "developer-sandbox", f"{{ {address} . 443 }}"]
    )
    assert slow.wait(5) != 0


def test_two_agents_share_an_address_and_each_grant_has_its_own_end(lab: Lab) -> None:
    lab.add_name("shared.example")
    lab.curl("https://shared.example/", uid=ALICE, headers={"X-Agent-Scope": "sandbox-alice;ttl=1"})
    lab.curl("https://shared.example/", uid=BOB)
    assert until(lambda: lab.audit()[-1]["event"] == "expire" and lab.audit()[-1]["agent"] == "alice")
    assert "sandbox-bob shared.example" in elements(lab, "developer-sandbox")
    before = len(lab.queries())
    assert lab.curl("https://shared.example/", uid=BOB).status == 200
    assert len(lab.queries()) == before


def test_a_browser_gets_a_page(lab: Lab) -> None:
    answer = lab.curl("https://a.example/", uid=ALICE, headers={"Accept": "text/html"})
    assert answer.headers["content-type"].startswith("text/html")
    assert "scope_missing" in answer.body


@pytest.mark.parametrize(
    ("target", "port"),
    [
        pytest.param("a.example", "22", id="SSH by name"),
        pytest.param("127.0.0.1", "80", id="a low port of this host"),
    ],
)
def test_what_is_not_for_agents_is_refused_at_once(lab: Lab, target: str, port: str) -> None:
    shown = lab.run(["python3", "-c", PROBE, target, port], uid=ALICE).stdout.split()
    assert shown[0] == "refused"
    assert float(shown[1]) < 0.9


PROBE = """
import socket, sys, time
start = time.monotonic()
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3)
    print("connected", end=" ")
except ConnectionError:
    print("refused", end=" ")
except OSError as error:
    print(type(error).__name__, end=" ")
print(time.monotonic() - start)
"""


def test_grants_and_doctor_see_what_the_proxy_did(lab: Lab) -> None:
    lab.curl("https://a.example/", uid=ALICE, headers=ALICE_FIELD)
    shown = json.loads(lab.egress_policy("grants", "--json", "--audit", lab.audit_file).stdout)
    (one,) = [row for row in shown if (row["host"], row["agent"], row["port"]) == ("a.example", "alice", 443)]
    assert set(one) == {"id", "scope", "agent", "host", "addresses", "port", "expires", "remaining"}
    assert 0 < one["remaining"] <= 3600
    doctor = lab.egress_policy("doctor", "--audit", lab.audit_file, "--confdir", lab.confdir)
    assert (doctor.returncode, "FAILED" in doctor.stdout) == (0, False), doctor.stdout
