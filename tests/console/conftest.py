"""A laboratory with the console on, and a browser in it."""

import json
import subprocess
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from deploy.demo.lab import Lab
from tests.console.browser import CONSOLE_PORT, PATIENCE, chromium
from tests.end_to_end.conftest import NAMES
from tests.end_to_end.test_control import CONTROLLED, ask

POLICY = CONTROLLED.replace("{user: 61000}", f"{{user: 61000, console_port: {CONSOLE_PORT}}}")

expect.set_options(timeout=PATIENCE * 1000)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(*NAMES) as lab:
        lab.write_policy(POLICY)
        lab.apply()
        yield lab


@pytest.fixture(scope="module", autouse=True)
def running(lab: Lab) -> list[subprocess.Popen[bytes]]:
    """The proxy that runs, the last of them."""
    return [lab.start_proxy()]


@pytest.fixture(scope="module")
def browser(lab: Lab) -> Iterator[Browser]:
    with chromium(lab) as browser:
        yield browser


@pytest.fixture
def logged() -> list[str]:
    """What Chromium said of a page: a breach of the content-security policy is there, and whatever a script showed."""
    return []


@pytest.fixture
def page(browser: Browser, logged: list[str]) -> Iterator[Page]:
    """An empty page."""
    context = browser.new_context()
    context.set_default_timeout(PATIENCE * 1000)
    page = context.new_page()
    page.on("console", lambda message: logged.append(message.text))
    page.on("pageerror", lambda error: logged.append(str(error)))
    page.on("dialog", lambda dialog: logged.append(dialog.message))
    yield page
    context.close()


@pytest.fixture(autouse=True)
def afresh(lab: Lab) -> Iterator[None]:
    """Every test ends with nothing open, nothing paused, and nothing that waits."""
    yield
    for one in json.loads(ask(lab, "GET", "/v1/pauses").body):
        name = "all=true" if one["kind"] == "all" else f"{one['kind']}={one['name']}"
        ask(lab, "DELETE", f"/v1/pauses?{name}")
    ask(lab, "DELETE", "/v1/grants?all=true")
    for one in json.loads(ask(lab, "GET", "/v1/approvals").body)["pending"]:
        ask(lab, "POST", f"/v1/approvals/{one['id']}", {"decision": "decline", "for": "once"})
