"""Pictures of the console for the documentation: `make pictures`, as root.

The laboratory of the tests, with a morning's work of three agents on record and a little of it going on.
"""

import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from time import sleep

from playwright.sync_api import Page, ViewportSize

from deploy.demo.lab import ALICE, BOB, NAMESERVERS, OTHER, PROXY, Lab
from egress_policy.audit import AuditLog, Record, timestamp
from tests.console.browser import CONSOLE_PORT, chromium, sign_in

POLICY = f"""\
version: 1
proxy: {{user: {PROXY}, console_port: {CONSOLE_PORT}}}
resolver: {{nameservers: [{NAMESERVERS[0]}], timeout: 1s}}
agents:
  alice-claude: {{user: {ALICE}, scopes: [sandbox-alice]}}
  bob-codex: {{user: {BOB}, scopes: [sandbox-bob], default_scope: sandbox-bob}}
  ci-runner: {{user: {OTHER}, scopes: [sandbox-ci]}}
scopes:
  sandbox-alice: {{owner: alice@example.com}}
  sandbox-bob: {{owner: bob@example.com}}
  sandbox-ci: {{owner: platform@example.com}}
trust:
  known-good:
    - {{domain: api.model.example}}
  known-bad:
    - {{domain: paste.example}}
    - {{domain: "*.paste.example"}}
  vetted:
    - {{domain: "*.docs.example"}}
intents:
  default:
    vetted: {{methods: [GET, HEAD], ttl: 8h}}
    unknown: {{methods: [GET, HEAD], max_body: 0, ttl: 1h}}
  develop:
    vetted: {{ttl: 24h}}
    unknown: {{max_body: 64KiB, ttl: 4h}}
  careful:
    unknown: {{approval: required, ttl: 2h}}
"""
# Who asked for what on the hours before, about how often an hour, from when to when (hours ago), and what came of it.
PAST = (
    ("alice-claude", "sandbox-alice", "docs.vendor.example", 9, (8, 0), None),
    ("alice-claude", "sandbox-alice", "python.docs.example", 5, (7, 1), None),
    ("alice-claude", "sandbox-alice", "sandbox.payments.example", 3, (5, 0), None),
    ("alice-claude", "sandbox-alice", "api.weather.example", 2, (6, 3), "method_not_allowed"),
    ("bob-codex", "sandbox-bob", "registry.packages.example", 14, (23, 18), None),
    ("bob-codex", "sandbox-bob", "registry.packages.example", 8, (6, 0), None),
    ("bob-codex", "sandbox-bob", "geo.maps.example", 4, (9, 4), None),
    ("bob-codex", "sandbox-bob", "upload.paste.example", 1, (7, 2), "destination_denied"),
    ("ci-runner", "sandbox-ci", "registry.packages.example", 22, (24, 0), None),
    ("ci-runner", "sandbox-ci", "mirror.images.example", 7, (24, 0), None),
    ("ci-runner", "sandbox-ci", "telemetry.build.example", 5, (12, 10), "trust_not_allowed"),
)
WHY = {
    "method_not_allowed": "PUT is not among the methods GET, HEAD that intent default has at unknown destinations",
    "destination_denied": "the name is known-bad: *.paste.example",
    "trust_not_allowed": "intent default may not reach unknown destinations",
}
NAMES = (*dict.fromkeys(host for *_, host, _, _, _ in PAST), "hooks.chat.example", "ledger.partner.example")
DESK: ViewportSize = {"width": 1280, "height": 900}
PHONE: ViewportSize = {"width": 390, "height": 844}


def past(now: datetime) -> Iterator[Record]:
    """What the three did, in the order of time."""
    chance = Random(7)
    asked = [
        (now - timedelta(hours=chance.uniform(min(begin, 23.9), end)), agent, scope, host, code)
        for agent, scope, host, often, (begin, end), code in PAST
        for _ in range(often * (begin - end))
    ]
    for time, agent, scope, host, code in sorted(asked):
        yield Record(
            time=timestamp(time),
            event="decision",
            agent=agent,
            scope=scope,
            intent="default",
            method="PUT" if code == "method_not_allowed" else "GET",
            host=host,
            port=443,
            outcome="permit" if code is None else "deny",
            code=code,
            detail=None if code is None else WHY[code],
        )


def work(lab: Lab) -> None:
    """What the three do now."""

    def ask(host: str, uid: int, field: str, *options: str) -> None:
        lab.curl(f"https://{host}/", *options, uid=uid, headers={"X-Agent-Scope": field})

    ask("docs.vendor.example", ALICE, "sandbox-alice")
    ask("sandbox.payments.example", ALICE, "sandbox-alice;intent=develop;ttl=7200")
    ask("registry.packages.example", BOB, "sandbox-bob;intent=develop")
    ask("geo.maps.example", BOB, "sandbox-bob;ttl=70")
    ask("mirror.images.example", OTHER, "sandbox-ci;ttl=100")
    ask("upload.paste.example", BOB, "sandbox-bob")
    ask("hooks.chat.example", ALICE, "sandbox-alice", "-X", "POST", "-d", "hello")
    ask(
        "ledger.partner.example",
        ALICE,
        'sandbox-alice;intent=careful;agent=claude-code;reason="try the partner\'s ledger API as in ticket 311"',
    )


def photograph(page: Page, path: Path, *, whole: bool = True) -> None:
    page.locator("#grants li").nth(4).wait_for()
    page.locator("#waiting .cards li").wait_for()
    page.mouse.move(0, 0)
    page.screenshot(path=path, full_page=whole)
    page.close()
    print(f"{path}: {path.stat().st_size // 1024} KiB")  # noqa: T201 - what the program is for


def main() -> None:
    """Take them into a folder."""
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    with Lab(*NAMES) as lab:
        log = AuditLog(str(lab.audit_file))
        for record in past(datetime.now(UTC)):
            log.write(record)
        log.close()
        os.chown(lab.audit_file, PROXY, PROXY)
        lab.write_policy(POLICY)
        lab.apply()
        lab.start_proxy()
        work(lab)
        sleep(25)  # so that time has passed
        with chromium(lab) as browser:
            page = browser.new_page(viewport=DESK)
            sign_in(lab, page)
            photograph(page, folder / "console.png")
            page = browser.new_page(viewport=PHONE, is_mobile=True, has_touch=True, device_scale_factor=2)
            sign_in(lab, page)
            photograph(page, folder / "console-phone.png", whole=False)


if __name__ == "__main__":
    main()
