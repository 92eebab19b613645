"""The console as people have it: in Chromium, by pointer and by keyboard, wide and narrow, with hostile text in it."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from deploy.demo.lab import ALICE, BOB, Lab
from tests.console.browser import CONSOLE, CONSOLE_PORT, PATIENCE, address, sign_in
from tests.end_to_end.conftest import until
from tests.end_to_end.test_control import ASKING, OWNER, grants, visit

MARKUP = "<script>document.title='ran'</script><img src=x onerror=alert(1)>"


@pytest.fixture(autouse=True)
def quiet(logged: list[str]) -> Iterator[None]:
    """No page here breaches its content-security policy, fails, or is made to speak."""
    yield
    assert not logged


def entry(page: Page, section: str, text: str) -> Locator:
    return page.locator(f"{section} li").filter(has_text=text)


def seconds_left(row: Locator) -> int:
    minutes, seconds = (row.locator(".left").inner_text()).removesuffix(" left").split(":")
    return int(minutes) * 60 + int(seconds)


def tab_to(page: Page, wanted: Locator) -> None:
    """Press Tab until something has the focus; what cannot be reached so is not usable by keyboard."""
    for _ in range(60):
        if wanted.evaluate("node => node === document.activeElement"):
            return
        page.keyboard.press("Tab")
    pytest.fail("Tab does not lead there")


@pytest.mark.parametrize("by", ["pointer", "keyboard"])
def test_a_grant_appears_counts_down_and_is_revoked(lab: Lab, page: Page, by: str) -> None:
    """And the download that ran under it ends."""
    sign_in(lab, page)
    expect(page.locator("#grants")).to_contain_text("Nothing is open.")
    page.evaluate("window.loadedOnce = true")
    command = ["curl", "-sS", "-N", "-H", "X-Agent-Scope: sandbox-alice", "https://a.example/slow-stream"]
    download = lab.start(command, uid=ALICE, log=f"download-{by}")
    row = entry(page, "#grants", "a.example:443")
    expect(row).to_contain_text("sandbox-alice")
    before = seconds_left(row)
    assert until(lambda: seconds_left(row) < before, PATIENCE)
    assert until(lambda: bool(lab.output(f"download-{by}")), PATIENCE)
    assert download.poll() is None
    button = row.get_by_role("button", name="Revoke a.example:443 of sandbox-alice")
    if by == "pointer":
        button.click()
    else:
        tab_to(page, button)
        page.keyboard.press("Enter")
    expect(row).to_have_count(0)
    assert until(lambda: download.poll() is not None, PATIENCE)
    assert not grants(lab)
    assert page.evaluate("window.loadedOnce")


def test_whoever_works_by_keyboard_goes_on_where_a_grant_was(lab: Lab, page: Page) -> None:
    sign_in(lab, page)
    for host in ("a.example", "b.example"):
        assert visit(lab, host) == "permit"
        expect(entry(page, "#grants", host)).to_be_visible()
    first = page.locator("#grants li button").first
    first.focus()
    page.keyboard.press("Space")
    expect(page.locator("#grants li")).to_have_count(1)
    expect(page.locator("#grants li button")).to_be_focused()
    page.keyboard.press("Space")
    expect(page.locator("#grants")).to_be_focused()


def test_an_approval_lets_the_next_request_through(lab: Lab, page: Page) -> None:
    sign_in(lab, page, OWNER)
    lab.add_name("wanted.example")
    assert visit(lab, "wanted.example", field=ASKING) == "pending_approval"
    card = entry(page, ".cards", "wanted.example:443")
    expect(card).to_contain_text("sandbox-alice · alice · careful")
    expect(page).to_have_title("(1) egress-policy")
    card.get_by_role("button", name="Approve wanted.example:443 for sandbox-alice, 15 min").click()
    expect(page.get_by_role("status")).to_contain_text(
        "Approved wanted.example:443 for sandbox-alice, 15 min."
    )
    expect(card).to_have_count(0)
    assert visit(lab, "wanted.example", field=ASKING) == "permit"
    (record,) = [one for one in lab.audit() if one["event"] == "approval" and one["host"] == "wanted.example"]
    assert (record["by"], record["detail"]) == (f"uid {OWNER}", "approved for 15m")


def test_a_request_is_declined_by_keyboard(lab: Lab, page: Page) -> None:
    lab.add_name("unwanted.example")
    assert visit(lab, "unwanted.example", field=ASKING) == "pending_approval"
    sign_in(lab, page)
    decline = entry(page, ".cards", "unwanted.example").get_by_role("button", name="Decline")
    tab_to(page, decline)
    page.keyboard.press("Enter")
    expect(entry(page, ".cards", "unwanted.example")).to_have_count(0)
    assert visit(lab, "unwanted.example", field=ASKING) == "approval_declined"


def test_script_in_a_reason_or_a_host_is_text(lab: Lab, page: Page) -> None:
    lab.add_name("asks.example")
    reason = f'{ASKING["X-Agent-Scope"]};reason="{MARKUP}"'
    assert visit(lab, "asks.example", field={"X-Agent-Scope": reason}) == "pending_approval"
    lab.curl("http://a.example/", uid=ALICE, headers={"Host": MARKUP, "X-Agent-Scope": "sandbox-alice"})
    sign_in(lab, page)
    expect(entry(page, ".cards", "asks.example").locator("q")).to_have_text(MARKUP)
    expect(entry(page, "#refused", "asks.example").locator("q")).to_have_text(MARKUP)
    expect(page.locator("#refused .host").filter(has_text=MARKUP)).to_have_count(1)
    expect(page.locator("#reached .host").filter(has_text=MARKUP)).to_have_count(1)
    assert page.locator("main script, main img").count() == 0
    expect(page).to_have_title(re.compile("egress-policy"))


def test_what_has_no_shape_or_turns_text_around_is_shown_by_number(lab: Lab, page: Page) -> None:
    """The audit log writes it so already; the page would, too."""
    one = {
        "id": "0",
        "agent": "alice",
        "scope": "sandbox-alice",
        "intent": "default",
        "port": 443,
        "addresses": [],
    }
    times = {"issued": "2026-01-01T00:00:00Z", "expires": "2026-01-01T01:00:00Z", "remaining": 60}
    grant = {**one, **times, "host": "moc.rodnev\u202e\x00\u200b.example"}
    page.route("**/v1/grants", lambda route: route.fulfill(json=[grant]))
    sign_in(lab, page)
    expect(page.locator("#grants .host")).to_have_text(r"moc.rodnev\u{202e}\u{0}\u{200b}.example:443")


def test_what_was_refused_is_shown_with_the_reason_and_drawn(lab: Lab, page: Page) -> None:
    sign_in(lab, page)
    for host in ("drawn.example", "drawn-too.example"):
        lab.add_name(host)
    assert lab.curl("https://drawn.example/", "-X", "PUT", uid=BOB).status == 403
    assert visit(lab, "drawn-too.example", BOB, {}) == "permit"
    row = entry(page, "#refused", "drawn.example:443")
    expect(row).to_contain_text("sandbox-bob · bob · PUT")
    expect(row.locator(".said").first).to_contain_text("PUT")
    scope = page.locator(".scope").filter(has=page.get_by_role("heading", name="sandbox-bob"))
    refused, permitted = (
        scope.get_by_role("img", name=f"{host}:443: {counted} in 24 hours")
        for host, counted in (
            ("drawn.example", "0 permitted, 1 refused"),
            ("drawn-too.example", "1 permitted, 0 refused"),
        )
    )
    expect(refused.locator("rect.refused")).to_have_count(1)
    expect(permitted.locator("rect.permitted")).to_have_count(1)


def test_a_pause_stops_a_scope_until_it_is_resumed(lab: Lab, page: Page) -> None:
    assert visit(lab) == "permit"
    sign_in(lab, page)
    page.get_by_label("Pause", exact=True).select_option(label="scope sandbox-alice")
    page.get_by_role("button", name="Pause now").click()
    expect(page.get_by_role("status")).to_contain_text("Paused scope sandbox-alice: 1 grant taken back.")
    expect(page.locator("#grants li")).to_have_count(0)
    assert visit(lab) == "paused"
    page.get_by_role("button", name="Resume scope sandbox-alice").click()
    expect(page.locator("#paused")).to_contain_text("Nothing is paused.")
    assert visit(lab) == "permit"


def test_an_owner_sees_the_own_scopes_alone(lab: Lab, page: Page) -> None:
    assert visit(lab) == visit(lab, "b.example", BOB, {}) == "permit"
    assert lab.curl("https://a.example/", "-X", "DELETE", uid=BOB).status == 403
    # A claim of alice's scope does not put bob's doings among hers.
    assert visit(lab, "b.example", BOB, {"X-Agent-Scope": "sandbox-alice"}) == "scope_not_allowed"
    sign_in(lab, page, OWNER)
    expect(page.locator("#who")).to_have_text(f"uid {OWNER} · owner of sandbox-alice")
    expect(page.locator("#grants li")).to_have_count(1)
    expect(page.locator("#grants li")).to_contain_text("sandbox-alice")
    expect(page.locator("#pause-what option")).to_have_text(["choose", "scope sandbox-alice"])
    expect(page.locator("#reached h3")).to_have_text(["sandbox-alice"])
    for section in ("#refused", "#reached"):
        expect(page.locator(section)).not_to_contain_text("bob")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(
    lab: Lab, browser: Browser, scheme: str, logged: list[str]
) -> None:
    long = f"{'a' * 60}.{'b' * 60}.{'c' * 60}.{scheme}.example"
    lab.add_name(long)
    reason = f'{ASKING["X-Agent-Scope"]};reason="{"w" * 200}"'
    assert visit(lab, long) == "permit"
    assert visit(lab, long, field={"X-Agent-Scope": reason}) == "pending_approval"
    context = browser.new_context(
        viewport={"width": 390, "height": 844},
        is_mobile=True,
        has_touch=True,
        color_scheme=scheme,  # type: ignore[arg-type]
    )
    page = context.new_page()
    page.on("console", lambda message: logged.append(message.text))
    sign_in(lab, page)
    expect(entry(page, ".cards", long)).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 200) == (scheme == "dark")
    entry(page, "#grants", long).get_by_role("button").tap()
    expect(entry(page, "#grants", long)).to_have_count(0)
    context.close()


def test_an_address_signs_in_once_and_leaves_no_trace(lab: Lab, page: Page) -> None:
    url = address(lab)
    page.goto(url)
    page.locator("#console").wait_for()
    assert page.url == f"{CONSOLE}/"
    # A reload goes on; another tab does not have the session, and the address is used up.
    page.reload()
    page.locator("#console").wait_for()
    assert page.context.cookies() == []
    page.get_by_role("button", name="Sign out").click()
    expect(page.locator("#sign-in")).to_contain_text("You have signed out.")


def test_the_command_prints_the_address(lab: Lab, page: Page) -> None:
    printed = lab.egress_policy("console", "--control", lab.control_socket)
    assert printed.returncode == 0
    assert f"ssh -L {CONSOLE_PORT}:127.0.0.1:{CONSOLE_PORT}" in printed.stderr
    # As through an SSH tunnel: by another name of loopback.
    page.goto(printed.stdout.strip().replace("127.0.0.1", "localhost"))
    page.locator("#console").wait_for()
    expect(page.locator("#who")).to_have_text("root · operator")
