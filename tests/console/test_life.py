"""The console when the proxy ends, begins again, or cannot have the port."""

import subprocess

from playwright.sync_api import Page, expect

from deploy.demo.lab import ALICE, BOB, OTHER, Lab
from tests.console.browser import CONSOLE_PORT, sign_in
from tests.end_to_end.conftest import ALICE_FIELD, until
from tests.end_to_end.test_control import stop, visit

HOLD = """
import socket, sys
with socket.create_server(("::1", int(sys.argv[1])), family=socket.AF_INET6) as server:
    print("ready", flush=True)
    while True:
        server.accept()
"""


def test_the_page_outlives_the_proxy_and_says_so(
    lab: Lab, page: Page, running: list[subprocess.Popen[bytes]]
) -> None:
    """The next proxy knows the day so far from the log, and nobody's session."""
    assert visit(lab) == "permit"
    assert lab.curl("https://a.example/", "-X", "PUT", uid=BOB).status == 403
    sign_in(lab, page)
    expect(page.locator("#refused li")).to_have_count(1)
    stop(running)
    expect(page.locator("#link")).to_contain_text("this may be out of date")
    expect(page.locator("#grants li")).to_have_count(1)
    page.get_by_role("button", name="Revoke").click()
    expect(page.get_by_role("alert")).to_have_text("The proxy does not answer: nothing was changed.")
    running.append(lab.start_proxy())
    expect(page.locator("#sign-in")).to_contain_text("sign in: run `egress-policy console`")
    expect(page.locator("#console")).to_be_hidden()
    sign_in(lab, page)
    expect(page.locator("#grants li")).to_contain_text("a.example:443")
    expect(page.locator("#refused li")).to_contain_text("method_not_allowed")
    expect(page.get_by_role("img", name="a.example:443: 1 permitted, 0 refused")).to_be_visible()


def test_a_port_that_is_taken_keeps_nobody_from_being_decided(
    lab: Lab, running: list[subprocess.Popen[bytes]]
) -> None:
    """On either loopback address: a person must not find somebody else at the other."""
    stop(running)
    holder = lab.start(["python3", "-c", HOLD, str(CONSOLE_PORT)], uid=OTHER, log="holder")
    try:
        assert until(lambda: "ready" in lab.output("holder"), 20)
        running.append(lab.start_proxy(log="without"))
        assert lab.curl("https://a.example/", uid=ALICE, headers=ALICE_FIELD).status == 200
        assert f"the console cannot be served on port {CONSOLE_PORT}" in lab.output("without")
        assert lab.curl(f"http://127.0.0.1:{CONSOLE_PORT}/", uid=0).exit == 7
        asked = lab.egress_policy("console", "--control", lab.control_socket)
        assert (asked.returncode, asked.stdout) == (1, "")
        assert "proxy.console_port" in asked.stderr
    finally:
        holder.terminate()
        holder.wait(10)
