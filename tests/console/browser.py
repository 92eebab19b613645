"""A real Chromium in the laboratory: it runs on the agent host, and sees that host's network alone."""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, sync_playwright

from deploy.demo.lab import Lab
from tests.end_to_end.test_control import ask

CONSOLE_PORT = 8090
CONSOLE = f"http://127.0.0.1:{CONSOLE_PORT}"
ELSEWHERE = "elsewhere.example"
"""A name that the browser believes to be at 127.0.0.1, as after DNS rebinding."""
PATIENCE = 30.0
"""Seconds within which a page shows what it should, on a machine that has much else to do."""

_SWITCHES = (
    "--no-sandbox",  # as root it has none; its pages here are our own
    "--disable-dev-shm-usage",  # a container may have but little of it
    "--disable-quic",
    "--disable-component-update",
    "--disable-domain-reliability",
    f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)


@contextmanager
def chromium(lab: Lab) -> Iterator[Browser]:
    """Run headless Chromium on the agent host, as root; Playwright speaks to it through a pipe."""
    program = lab.folder / "chromium"
    enter = ["nsenter", f"--net=/run/netns/{lab._inside.name('host')}", "chromium"]
    program.write_text(f'#!/bin/sh\nexec {shlex.join(enter)} "$@"\n')
    program.chmod(0o755)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(_SWITCHES))
        yield browser
        browser.close()


def address(lab: Lab, uid: int = 0) -> str:
    """Have the control socket give a user an address that signs in."""
    return str(json.loads(ask(lab, "POST", "/v1/console", uid=uid).body)["url"])


def sign_in(lab: Lab, page: Page, uid: int = 0) -> None:
    """Open the console in a page, with a user's rights."""
    page.goto(address(lab, uid))
    page.locator("#console").wait_for()
