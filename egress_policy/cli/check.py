"""`egress-policy check`: is the policy valid, and what does it say?"""

import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import click
import msgspec

from egress_policy.accounts import missing_accounts
from egress_policy.cli.options import json_option, policy_option
from egress_policy.policy import KNOWN_BAD, Policy
from egress_policy.policy_file import Loaded, load
from egress_policy.policy_source import PolicyFileError


@click.command(epilog="Example: egress-policy check --policy policy.yaml")
@policy_option
@json_option
def check(policy: Path, as_json: bool) -> None:
    """Validate the policy and print what it says; exit status 1 with every error found."""
    try:
        loaded = load(policy)
    except PolicyFileError as error:
        if as_json:
            _print_json({"ok": False, "errors": [asdict(one) for one in error.errors], "summary": None})
        else:
            for one in error.errors:
                click.echo(str(one), err=True)
            click.echo(f"{len(error.errors)} error{'s' * (len(error.errors) != 1)}", err=True)
        sys.exit(1)
    summary = _summary(loaded.policy)
    warnings = _warnings(loaded)
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


def _summary(policy: Policy) -> dict[str, object]:
    levels = Counter(entry.level for entry in policy.trust.domains)
    levels.update(entry.level for entry in policy.trust.cidrs)
    bad = policy.trust.known_bad
    entries = len(bad.patterns) + len(bad.networks)
    if entries:
        levels[KNOWN_BAD] = entries
    return {
        "agents": len(policy.agents),
        "scopes": len(policy.scopes),
        "intents": len(policy.intents),
        "entries": dict(levels),
        "feeds": {name: len(feed) for name, feed in bad.feeds},
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
