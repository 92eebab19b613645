"""Requests that a compromised agent can make: raw bytes under its uid, and what then reaches the origin."""

import json

import pytest

from deploy.demo.lab import ALICE, Lab
from tests.end_to_end.conftest import ALICE_FIELD, until

SCOPE = "X-Agent-Scope: sandbox-alice;intent=free"
# Sends bytes over TCP or TLS and prints what came back within two seconds, as JSON.
RAW = """
import json, socket, ssl, sys
address, port, name, alpn, data = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4], bytes.fromhex(sys.argv[5])
sock = socket.create_connection((address, port), timeout=2)
answer = b""
try:
    if name:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if alpn:
            context.set_alpn_protocols([alpn])
        sock = context.wrap_socket(sock, server_hostname=name)
    sock.sendall(data)
    while chunk := sock.recv(65536):
        answer += chunk
        if b"\\r\\n\\r\\n" in answer and b"HTTP/1.1 1" not in answer[:10]:
            sock.settimeout(0.3)
except OSError:
    pass
print(json.dumps(answer.decode("latin-1")))
"""


def send(lab: Lab, data: str, host: str = "a.example", *, tls: bool = True, name: str | None = None) -> str:
    """Send bytes as the agent to a host's web port; return what came back."""
    port = "443" if tls else "80"
    server_name = (name or host) if tls else ""
    address = lab.addresses(host)[0]
    done = lab.python(RAW, address, port, server_name, "", data.encode("latin-1").hex(), uid=ALICE)
    answer: str = json.loads(done.stdout or '""')
    return answer


def requests(lab: Lab, path: str) -> list[dict[str, object]]:
    return [record for record in lab.arrivals() if path in json.dumps(record)]


HEAD = f"Host: a.example\r\n{SCOPE}\r\n"
HOSTILE = [
    pytest.param(f"GET /M HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n{SCOPE}\r\n\r\n", id="two hosts"),
    pytest.param(
        f"GET /M HTTP/1.1\r\nHost: a.example\r\nhOST: a.example\r\n{SCOPE}\r\n\r\n", id="a host twice"
    ),
    pytest.param(f"GET /M HTTP/1.1\r\n{SCOPE}\r\n\r\n", id="no host"),
    pytest.param(f"GET /M HTTP/1.1\r\nHost:\r\n{SCOPE}\r\n\r\n", id="an empty host"),
    pytest.param(
        f"GET /M HTTP/1.1\r\nHost: b.example\r\n{SCOPE}\r\n\r\n", id="a host that is not the server name"
    ),
    pytest.param(f"GET https://b.example/M HTTP/1.1\r\n{HEAD}\r\n", id="absolute-form, another host"),
    pytest.param(f"GET https://a.example/M HTTP/1.1\r\n{HEAD}\r\n", id="absolute-form"),
    pytest.param(f"GET /M HTTP/2.0\r\n{HEAD}\r\n", id="claims HTTP/2"),
    pytest.param(f"GET /M HTTP/0.9\r\n{HEAD}\r\n", id="claims HTTP/0.9"),
    pytest.param(f"CONNECT b.example:443 HTTP/1.1\r\nHost: b.example\r\n{SCOPE}\r\n\r\n/M", id="CONNECT"),
    pytest.param(f"GET /M HTTP/1.1\r\nHost: user@a.example\r\n{SCOPE}\r\n\r\n", id="userinfo"),
    pytest.param(f"GET /M HTTP/1.1\r\nHost: a.example:8443\r\n{SCOPE}\r\n\r\n", id="another port"),
    pytest.param(f"GET /M HTTP/1.1\r\nHost: 127.1\r\n{SCOPE}\r\n\r\n", id="an address in disguise"),
    pytest.param(f"GET /M HTTP/1.1\r\n{HEAD}X: a\r\n b\r\n\r\n", id="a folded line"),
    pytest.param(f"GET /M HTTP/1.1\r\n{HEAD}X: a\x00b\r\n\r\n", id="NUL"),
    pytest.param(f"GET /M HTTP/1.1\r\n{HEAD}X: a\rb\r\n\r\n", id="bare CR"),
    pytest.param(f"GET /M HTTP/1.1\r\n{HEAD}X: a\tb\r\n\r\n", id="TAB"),
    pytest.param(f"\x0cGET /M HTTP/1.1\r\n{HEAD}\r\n", id="form feed before the request"),
    pytest.param(
        f"POST /M HTTP/1.1\r\n{HEAD}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", id="two lengths"
    ),
    pytest.param(
        f"POST /M HTTP/1.1\r\n{HEAD}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        id="length and chunked",
    ),
    pytest.param(f"POST /M HTTP/1.1\r\n{HEAD}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", id="odd coding"),
    pytest.param(
        f"POST /M HTTP/1.1\r\n{HEAD}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", id="space before the colon"
    ),
    pytest.param(f"POST /M HTTP/1.1\r\n{HEAD}Content-Length: +5\r\n\r\nhello", id="signed length"),
]


@pytest.mark.parametrize("data", HOSTILE)
def test_what_has_two_readings_or_no_right_reaches_nobody(
    lab: Lab, data: str, request: pytest.FixtureRequest
) -> None:
    marker = request.node.callspec.id.replace(" ", "-").replace(",", "")
    answer = send(lab, data.replace("/M", f"/{marker}-marker"))
    assert " 200 " not in answer.split("\r\n", 1)[0]
    assert requests(lab, f"{marker}-marker") == []


def body_of(lab: Lab, path: str) -> int:
    """Count the bytes of body that reached an origin for a path."""
    return sum(int(str(record.get("bytes", record.get("length", 0)))) for record in requests(lab, path))


def test_a_body_within_the_limit_passes_and_one_beyond_it_is_denied(lab: Lab) -> None:
    develop = {"X-Agent-Scope": "sandbox-alice;intent=develop"}
    assert lab.curl("https://a.example/within", "-d", "x" * 1000, uid=ALICE, headers=develop).status == 200
    assert lab.curl("https://a.example/beyond", "-d", "x" * 70000, uid=ALICE, headers=develop).status == 413
    assert requests(lab, "/within")
    assert requests(lab, "/beyond") == []
    assert (
        lab.curl("https://a.example/none", "-d", "x", uid=ALICE, headers=ALICE_FIELD).json()["code"]
        == "method_not_allowed"
    )


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_a_body_of_unknown_length_never_outgrows_the_limit(lab: Lab, version: str) -> None:
    big = lab.folder / "big"
    big.write_bytes(b"x" * 200_000)
    big.chmod(0o644)
    path = f"/unknown{version}"
    answer = lab.curl(
        f"https://a.example{path}",
        *(version, "-X", "POST", "-T", str(big), "-H", "Transfer-Encoding: chunked", "-H", "Expect:"),
        uid=ALICE,
        headers={"X-Agent-Scope": "sandbox-alice;intent=develop"},
    )
    assert answer.status != 200
    assert until(lambda: lab.audit()[-1].get("code") == "body_too_large")
    assert body_of(lab, path) <= 65536


def test_a_websocket_counts_as_a_body(lab: Lab) -> None:
    upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n"
    head = "Host: a.example\r\nX-Agent-Scope: sandbox-alice\r\n"
    assert "body_too_large" in send(lab, f"GET /ws HTTP/1.1\r\n{head}{upgrade}\r\n")
    assert requests(lab, "/ws") == []


def test_an_upgrade_to_anything_else_is_not_passed_on(lab: Lab) -> None:
    send(
        lab,
        f"GET /h2c HTTP/1.1\r\n{HEAD}Connection: Upgrade, HTTP2-Settings\r\nUpgrade: H2C\r\nHTTP2-Settings: x\r\n\r\n",
        tls=True,
    )
    assert requests(lab, "/h2c")
    assert "h2c" not in json.dumps(
        [record.get("headers") for record in requests(lab, "/h2c")]
    ).lower().replace("/h2c", "")
