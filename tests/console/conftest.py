"""A laboratory with the console on, and a browser in it."""

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from deploy.demo.lab import Lab
from tests.console.browser import CONSOLE_PORT, PATIENCE, chromium
from tests.end_to_end.conftest import NAMES
from tests.end_to_end.test_control import CONTROLLED, ask

expect.set_options(timeout=PATIENCE * 1000)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    with Lab(*NAMES) as lab:
        lab.write_policy(
            CONTROLLED.replace("{user: 61000}", f"{{user: 61000, console_port: {CONSOLE_PORT}}}")
        )
        lab.apply()
        lab.start_proxy()
        yield lab


@pytest.fixture(scope="session")
def browser(lab: Lab) -> Iterator[Browser]:
    with chromium(lab) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty page, which must say nothing on its log: a breach of the content-security policy would be there."""
    context = browser.new_context()
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    yield page
    context.close()
    assert not said


@pytest.fixture(autouse=True)
def afresh(lab: Lab) -> Iterator[None]:
    """Every test ends with nothing open and nothing paused."""
    yield
    for one in json.loads(ask(lab, "GET", "/v1/pauses").body):
        name = "all=true" if one["kind"] == "all" else f"{one['kind']}={one['name']}"
        ask(lab, "DELETE", f"/v1/pauses?{name}")
    ask(lab, "DELETE", "/v1/grants?all=true")
