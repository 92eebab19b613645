"""Whoever should not have the console is refused, and learns nothing from it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from deploy.demo.lab import ALICE, BOB, OTHER, Answer, Lab
from egress_policy.console.server import HEADERS
from egress_policy.control import MOST_CONNECTIONS
from tests.console.browser import CONSOLE, CONSOLE_PORT, ELSEWHERE, address, sign_in
from tests.end_to_end.conftest import until
from tests.end_to_end.test_control import OWNER, ask, grants, visit

NO_TOKEN = "A" * 43
ELSEWHERE_PORT = 9000
# An agent's own web server, to which a person goes. Prints what it is sent.
AGENT_SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print(self.headers, flush=True)
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(sys.argv[1].encode())
    def log_message(self, *arguments):
        pass
print("ready", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""


def session(lab: Lab, uid: int = 0, browser: int = 0) -> str:
    """Sign in as a user whose browser runs under another uid, it may be."""
    invitation = address(lab, uid).rpartition("#")[2]
    return str(call(lab, "POST", "/v1/session", invitation, uid=browser).json()["session"])


def call(lab: Lab, method: str, path: str, token: str | None = None, *options: str, uid: int = 0) -> Answer:
    """Send the console a request, as the page would."""
    sent = [] if token is None else ["-H", f"Authorization: Bearer {token}"]
    return lab.curl(f"{CONSOLE}{path}", "-X", method, *sent, *options, uid=uid)


@pytest.fixture(scope="module")
def token(lab: Lab) -> str:
    return session(lab)


def test_whoever_signed_in_gets_an_answer(lab: Lab, token: str) -> None:
    """What is refused below is not refused for another reason."""
    assert call(lab, "GET", "/v1/whoami", token).json()["role"] == "operator"
    assert call(lab, "GET", "/v1/whoami", token, "-H", f"Origin: {CONSOLE}").status == 200
    six = lab.curl(f"http://[::1]:{CONSOLE_PORT}/v1/whoami", "-H", f"Authorization: Bearer {token}", uid=0)
    assert six.status == 200


@pytest.mark.parametrize("path", ["/", "/console.js", "/v1/whoami", "/v1/nothing"])
def test_every_answer_forbids_what_is_from_elsewhere(lab: Lab, token: str, path: str) -> None:
    answer = call(lab, "GET", path, token)
    assert {name: answer.headers[name.lower()] for name in HEADERS} == HEADERS
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "server" not in answer.headers
    assert "set-cookie" not in answer.headers
    for directive in ("default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"):
        assert directive in HEADERS["Content-Security-Policy"]


@pytest.mark.parametrize("sent", [None, NO_TOKEN, "x", f"{NO_TOKEN} {NO_TOKEN}", "A" * 5000])
def test_a_wrong_token_learns_nothing(lab: Lab, sent: str | None) -> None:
    """Not even what there is: every path answers alike."""
    answers = {
        (answer.status, answer.body)
        for path in ("/v1/grants", "/v1/grants/00000000", "/v1/recent", "/v1/metrics", "/v1/nothing")
        for answer in [call(lab, "GET", path, sent)]
    }
    ((status, body),) = answers
    assert status == 401
    assert json.loads(body)["detail"] == "sign in: run `egress-policy console`"


def test_an_invitation_is_good_once_and_is_no_session(lab: Lab) -> None:
    invitation = address(lab).rpartition("#")[2]
    assert call(lab, "GET", "/v1/whoami", invitation).status == 401
    assert call(lab, "POST", "/v1/session", invitation).status == 200
    assert call(lab, "POST", "/v1/session", invitation).status == 401


def test_a_session_is_no_invitation(lab: Lab, token: str) -> None:
    """So it cannot outlast its time; and the socket's way to one is not here."""
    assert call(lab, "POST", "/v1/session", token).status == 401
    assert call(lab, "POST", "/v1/console", token).status == 404


def test_a_stolen_session_is_of_no_use_to_another_user(lab: Lab) -> None:
    """It holds for the uid of the browser that it was given to, whosever rights it has."""
    mine = session(lab, uid=0, browser=OTHER)
    assert call(lab, "GET", "/v1/whoami", mine, uid=OTHER).json()["role"] == "operator"
    assert {call(lab, "GET", "/v1/whoami", mine, uid=uid).status for uid in (0, OWNER)} == {401}


def test_signing_out_ends_a_session(lab: Lab) -> None:
    mine = session(lab)
    assert call(lab, "DELETE", "/v1/session", mine).status == 204
    assert call(lab, "GET", "/v1/whoami", mine).status == 401


def test_an_agent_and_a_stranger_are_not_invited(lab: Lab) -> None:
    assert {ask(lab, "POST", "/v1/console", uid=uid).status for uid in (ALICE, OTHER)} == {403}


@pytest.fixture
def agents_let_in(lab: Lab) -> Iterator[None]:
    """Agents reach the console's port, as if the kernel had no rule about it."""
    chain = ["inet", "egress-policy", "agent-loopback-permitted"]
    rule = lab.run(["nft", "insert", "rule", *chain, "tcp", "dport", str(CONSOLE_PORT), "accept"])
    assert rule.returncode == 0
    yield
    lab.apply()


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_the_kernel_refuses_agents(lab: Lab, token: str, host: str) -> None:
    sent = ("-H", f"Authorization: Bearer {token}")
    answer = lab.curl(f"http://{host}:{CONSOLE_PORT}/v1/whoami", *sent, uid=ALICE)
    assert (answer.status, answer.exit) == (0, 7)


@pytest.mark.usefixtures("agents_let_in")
def test_the_console_refuses_agents_too(lab: Lab, token: str) -> None:
    """Each barrier holds alone."""
    for path in ("/", "/console.js", "/v1/whoami"):
        answer = call(lab, "GET", path, token, uid=ALICE)
        assert (answer.status, answer.json()["detail"]) == (403, "no console for you")
    invitation = address(lab).rpartition("#")[2]
    assert call(lab, "POST", "/v1/session", invitation, uid=ALICE).status == 403


@pytest.mark.parametrize(
    "host",
    [
        "elsewhere.example",
        f"elsewhere.example:{CONSOLE_PORT}",
        "127.0.0.1.elsewhere.example",
        "localhost.",
        "",
        "[::2]",
    ],
)
def test_another_name_that_leads_here_is_refused(lab: Lab, token: str, host: str) -> None:
    for path in ("/", "/v1/whoami"):
        assert call(lab, "GET", path, token, "-H", f"Host: {host}" if host else "Host;").status == 421


def test_two_names_are_refused(lab: Lab, token: str) -> None:
    """One of them may be ours."""
    sent = f"""
import socket
with socket.create_connection(("127.0.0.1", {CONSOLE_PORT})) as one:
    one.sendall(b"GET /v1/whoami HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\nHost: elsewhere.example\\r\\n"
                b"Authorization: Bearer {token}\\r\\n\\r\\n")
    print(one.recv(100))
"""
    answer = lab.python(sent, uid=0).stdout
    assert answer.startswith(("b'HTTP/1.1 421 ", "b'HTTP/1.1 400 "))


@pytest.mark.parametrize(
    "field",
    [
        "Origin: http://elsewhere.example",
        "Origin: null",
        f"Origin: http://127.0.0.1:{ELSEWHERE_PORT}",
        f"Origin: https://127.0.0.1:{CONSOLE_PORT}",
        "Sec-Fetch-Site: cross-site",
        "Sec-Fetch-Site: same-site",
        "Sec-Fetch-Site: none",
    ],
)
def test_a_request_from_another_page_is_refused(lab: Lab, token: str, field: str) -> None:
    visit(lab)
    assert call(lab, "DELETE", "/v1/grants?all=true", token, "-H", field).status == 403
    assert len(grants(lab)) == 1


def test_what_is_malformed_or_too_large_is_refused(lab: Lab, token: str) -> None:
    for body in ("", "{", '{"agent": 1}', '{"agent": "alice", "more": 1}', "[" * 5000, '"\xff"'):
        assert call(lab, "POST", "/v1/pauses", token, "-d", body).status == 400
    huge = call(lab, "POST", "/v1/pauses", token, "-H", "Expect:", "-d", "x" * 20_000)
    assert huge.status in {0, 400, 413}
    assert call(lab, "GET", "/v1/whoami", token, "-H", f"X-Long: {'x' * 20_000}").status in {0, 400, 431}
    for method in ("PUT", "PATCH", "OPTIONS", "BREW"):
        assert call(lab, method, "/v1/whoami", token).status in {405, 501}
    assert json.loads(ask(lab, "GET", "/v1/pauses").body) == []
    assert call(lab, "GET", "/v1/whoami", token).status == 200


def test_a_user_cannot_use_up_the_proxy_s_connections(lab: Lab, token: str) -> None:
    flood = """
import socket, sys, time
held = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(100)]
end = time.monotonic() + 8
refused = set()
while len(refused) < int(sys.argv[2]) and time.monotonic() < end:
    for one in held:
        one.setblocking(False)
        try:
            if one.recv(1) == b"":
                refused.add(one)
        except BlockingIOError:
            pass
        except ConnectionError:
            refused.add(one)
    time.sleep(0.05)
print(len(refused))
"""
    done = lab.python(flood, str(CONSOLE_PORT), str(100 - MOST_CONNECTIONS), uid=OTHER)
    assert int(done.stdout) == 100 - MOST_CONNECTIONS
    assert call(lab, "GET", "/v1/whoami", token).status == 200


def test_a_page_of_an_agent_gets_nothing_from_the_console(lab: Lab, page: Page) -> None:
    """A person who is signed in looks at what an agent serves on this host: it cannot act, read, frame, or be sent a secret."""
    hostile = f"""
<iframe id="frame" src="{CONSOLE}/"></iframe>
<script>
const tries = [["POST", "/v1/pauses", '{{"all": true}}'], ["DELETE", "/v1/grants?all=true"], ["GET", "/v1/grants"]];
window.read = Promise.all(tries.flatMap(([method, path, body]) => ["cors", "no-cors"].map((mode) =>
  fetch("{CONSOLE}" + path, {{method, body, mode, credentials: "include"}}).then((answer) => answer.text(), () => ""))));
</script>
"""
    server = lab.start(
        ["python3", "-c", AGENT_SERVER, hostile, str(ELSEWHERE_PORT)], uid=ALICE, log="agent-server"
    )
    try:
        assert until(lambda: "ready" in lab.output("agent-server"), 20)
        visit(lab)
        sign_in(lab, page)
        other = page.context.new_page()
        framed: list[str] = []
        other.on("console", lambda message: framed.append(message.text))
        other.goto(f"http://127.0.0.1:{ELSEWHERE_PORT}/")
        assert set(other.evaluate("window.read")) == {""}
        assert until(lambda: any("frame-ancestors" in one for one in framed), 20)
        assert "Cookie" not in lab.output("agent-server")
        assert len(grants(lab)) == 1
        assert json.loads(ask(lab, "GET", "/v1/pauses").body) == []
    finally:
        server.terminate()
        server.wait(10)


def test_a_rebound_name_gets_not_even_the_page(page: Page) -> None:
    shown = page.goto(f"http://{ELSEWHERE}:{CONSOLE_PORT}/")
    assert shown is not None
    assert shown.status == 421
    expect(page.locator("body")).not_to_contain_text("Live grants")


def test_a_session_has_the_rights_that_the_policy_gives_now(lab: Lab, token: str) -> None:
    """Whoever was an owner when signing in, and is none any more, sees nothing."""
    mine = session(lab, OWNER)
    assert call(lab, "GET", "/v1/whoami", mine).json()["role"] == "owner"
    text = lab.policy_file.read_text()
    try:
        lab.write_policy(text.replace(f"owner_user: {OWNER}", f"owner_user: {OTHER}"))
        assert until(lambda: call(lab, "GET", "/v1/whoami", mine).status == 403, 30)
    finally:
        lab.write_policy(text)
    assert until(lambda: call(lab, "GET", "/v1/whoami", mine).status == 200, 30)


def test_refusals_are_seen_by_whom_they_concern(lab: Lab, token: str) -> None:
    assert visit(lab, "a.example", BOB, {"X-Agent-Scope": "sandbox-alice"}) == "scope_not_allowed"

    def seen(of: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = call(lab, "GET", "/v1/recent", of).json()["refusals"]
        return [one for one in found if one["code"] == "scope_not_allowed"]

    assert [(one["agent"], one["scope"]) for one in seen(token)] == [("bob", None)]
    assert seen(session(lab, OWNER)) == []
