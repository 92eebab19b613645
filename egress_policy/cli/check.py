"""`egress-policy check`: is the policy valid, and what does it say?"""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import click
import msgspec

from egress_policy.accounts import missing_accounts
from egress_policy.cli.options import json_option, policy_option
from egress_policy.policy import KNOWN_BAD
from egress_policy.policy_file import Loaded, load
from egress_policy.policy_source import PolicyError, PolicyFileError


@click.command(epilog="Example: egress-policy check --policy policy.yaml")
@policy_option
@json_option
def check(policy: Path, as_json: bool) -> None:
    """Validate the policy, run its own tests, and print what it says; exit status 1 with every error found.

    What the policy file includes is part of it. A test (`tests:`) is decided as the proxy would decide it if nothing
    were open, paused or approved; no name is looked up.
    """
    try:
        loaded = load(policy)
    except PolicyFileError as error:
        _end(error.errors, None, "error", as_json=as_json)
    summary = _summary(loaded)
    warnings = _warnings(loaded)
    if loaded.failures:
        _end(loaded.failures, summary, "failed test", as_json=as_json)
    if as_json:
        _print_json({"ok": True, "errors": [], "warnings": warnings, "summary": summary})
        return
    click.echo(f"{policy} is valid.")
    for name, value in summary.items():
        shown = (
            ", ".join(f"{key} {count}" for key, count in value.items()) if isinstance(value, dict) else value
        )
        click.echo(f"  {name.replace('_', ' ')}: {shown or 'none'}")
    for warning in warnings:
        click.echo(f"warning: {warning}")


def _end(
    errors: Sequence[PolicyError], summary: dict[str, object] | None, what: str, *, as_json: bool
) -> NoReturn:
    if as_json:
        _print_json({"ok": False, "errors": [asdict(one) for one in errors], "summary": summary})
    else:
        for one in errors:
            click.echo(str(one), err=True)
        click.echo(f"{len(errors)} {what}{'s' * (len(errors) != 1)}", err=True)
    sys.exit(1)


def _summary(loaded: Loaded) -> dict[str, object]:
    policy = loaded.policy
    levels = Counter(entry.level for entry in policy.trust.domains)
    levels.update(entry.level for entry in policy.trust.cidrs)
    bad = policy.trust.known_bad
    entries = len(bad.patterns) + len(bad.networks)
    if entries:
        levels[KNOWN_BAD] = entries
    return {
        "files": len(loaded.files),
        "agents": len(policy.agents),
        "scopes": len(policy.scopes),
        "intents": len(policy.intents),
        "entries": dict(levels),
        "feeds": {name: len(feed) for name, feed in bad.feeds},
        "tests": loaded.tests,
    }


def _warnings(loaded: Loaded) -> list[str]:
    return [
        *(str(warning) for warning in loaded.warnings),
        *(
            f"this host has no user {name}: apply and the proxy need it"
            for name in missing_accounts(loaded.policy)
        ),
    ]


def _print_json(document: object) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(document)).decode())
