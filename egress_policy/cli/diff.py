"""`egress-policy diff`: what another policy would newly permit, or no longer."""

from collections import defaultdict
from pathlib import Path

import click
import msgspec

from egress_policy.cli.options import json_option
from egress_policy.policy import KNOWN_GOOD, Inspection, Policy
from egress_policy.policy_file import load_policy
from egress_policy.policy_source import PolicyFileError
from egress_policy.reachability import (
    Access,
    Actor,
    Change,
    FeedChange,
    changes,
    feed_changes,
    no_longer_held,
)

_TITLES = ("Newly permitted", "No longer permitted", "Changed")
_MOST_ACTORS = 6


@click.command(epilog="Example: egress-policy diff main/policy.yaml policy.yaml")
@json_option
# Every command takes it. Here the arguments name both files.
@click.option("--policy", hidden=True, expose_value=False)
@click.argument("old", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("new", type=click.Path(path_type=Path, dir_okay=False))
def diff(old: Path, new: Path, as_json: bool) -> None:
    """Say which destinations the policy NEW would newly permit, or no longer, where OLD is in force.

    By effect, not by text: an entry that moves to another level of trust, or is covered by another one, shows as
    what it does for each agent, scope and intent. So does whom NEW would not hold to anything any more. The text is
    Markdown, for a pull request.
    """
    before, after = _load(old), _load(new)
    found, feeds, released = (
        changes(before, after),
        feed_changes(before, after),
        no_longer_held(before, after),
    )
    if as_json:
        document = {
            "changes": [
                {"kind": _TITLES[_kind(one)].lower(), **msgspec.to_builtins(one, order="deterministic")}
                for one in found
            ],
            "no_longer_held": [{"agent": agent, "who": who} for agent, who in released],
            "feeds": [msgspec.to_builtins(one, order="deterministic") for one in feeds],
        }
        click.echo(msgspec.json.format(msgspec.json.encode(document)).decode())
        return
    if not found and not feeds and not released:
        click.echo("The same destinations, for everybody.")
    if released:
        click.echo("### No longer held to any policy\n")
        for agent, who in released:
            click.echo(f"- agent {agent} ({who}): its packets would leave as everybody's do")
        click.echo()
    for kind, title in enumerate(_TITLES):
        of_kind = [one for one in found if _kind(one) == kind]
        if of_kind:
            click.echo(f"### {title}\n")
            _print(of_kind)
            click.echo()
    if feeds:
        click.echo("### Deny feeds\n")
        for feed in feeds:
            click.echo(f"- {_feed_line(feed)}")


def _load(path: Path) -> Policy:
    try:
        return load_policy(path)
    except PolicyFileError as error:
        raise click.ClickException(f"the policy has errors:\n{error}") from None


def _kind(change: Change) -> int:
    return 0 if change.before is None else 1 if change.after is None else 2


def _print(found: list[Change]) -> None:
    """Print one line for each effect, with all destinations that it is the same for."""
    alike: dict[tuple[tuple[Actor, ...], Access | None, Access | None], list[str]] = defaultdict(list)
    for one in found:
        alike[one.actors, one.before, one.after].append(one.destination)
    for (actors, before, after), destinations in alike.items():
        effect = " → ".join(_said(one) for one in (before, after) if one is not None)
        # As code: the asterisk of a wildcard is none of Markdown's.
        click.echo(f"- {', '.join(f'`{one}`' for one in destinations)}: {effect}")
        for line in _who(actors):
            click.echo(f"    - {line}")


def _who(actors: tuple[Actor, ...]) -> list[str]:
    lines = [
        f"agent {agent}, without a scope"
        if scope == KNOWN_GOOD
        else f"agent {agent}, scope {scope}, intent {intent}"
        for agent, scope, intent in actors
    ]
    more = len(lines) - _MOST_ACTORS
    return lines if more <= 1 else [*lines[:_MOST_ACTORS], f"and {more} more"]


def _said(one: Access) -> str:
    if one.level == KNOWN_GOOD:
        return f"known-good, inspection {one.inspection}"
    methods = "any method" if one.methods is None else ", ".join(sorted(one.methods))
    body = "any body" if one.max_body is None else f"{one.max_body} bytes of body"
    approval = ", with a person's approval" if one.needs_approval else ""
    seen = "" if one.inspection is Inspection.FULL else f", inspection {one.inspection}"
    return f"{one.level}: {methods}, {body}, for {one.ttl.total_seconds():.0f} s{approval}{seen}"


def _feed_line(feed: FeedChange) -> str:
    examples = f" (such as {', '.join(feed.examples)})" if feed.examples else ""
    return f"{feed.feed}: {feed.added} more, {feed.removed} fewer{examples}"
