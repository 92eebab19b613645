"""`egress-policy explain`: the decision that the proxy would take, and why."""

import asyncio
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from egress_policy.caller import Caller
from egress_policy.cli.options import json_option, policy_option
from egress_policy.explanation import Explanation, Step, explain_request
from egress_policy.policy_file import load_policy
from egress_policy.policy_source import PolicyFileError
from egress_policy.resolver import ResolutionFailedError, Resolver
from egress_policy.scope import HEADER
from egress_policy.written_request import head_of

_MARK = {"passed": "✓", "denied": "✗", "failed": "✗", "unchecked": "?", "not reached": " "}


@click.command(
    epilog="Example: egress-policy explain --agent alice-claude --scope sandbox-alice GET https://docs.example/"
)
@policy_option
@click.option("--agent", required=True, help="Who sends the request: an agent's name in the policy.")
@click.option("--scope", help=f"The value of the {HEADER} field, such as 'sandbox-alice;intent=develop'.")
@click.option("--body", type=click.IntRange(min=0), default=0, help="Bytes of body that the request carries.")
@json_option
@click.argument("method")
@click.argument("url")
def explain(
    policy: Path, agent: str, scope: str | None, body: int, as_json: bool, method: str, url: str
) -> None:
    """Take the decision on METHOD URL as the proxy would, and show each step. Exit status 0 permit, 1 deny.

    The name is looked up only if the steps before permit it. Nothing is opened and nothing recorded.
    """
    try:
        loaded = load_policy(policy)
        resolver = Resolver(loaded.resolver.nameservers, loaded.resolver.timeout.total_seconds())
    except PolicyFileError as error:
        raise click.ClickException(f"the policy has errors:\n{error}") from None
    except ResolutionFailedError as error:
        raise click.ClickException(str(error)) from None
    try:
        head = head_of(method, url, scope, body)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    explanation = asyncio.run(
        explain_request(loaded, head, Caller(agent), resolver, datetime.now(UTC), str(uuid.uuid4()))
    )
    if as_json:
        document = {
            **msgspec.to_builtins(explanation.record),
            "steps": [msgspec.to_builtins(s) for s in explanation.steps],
        }
        click.echo(msgspec.json.format(msgspec.json.encode(document)).decode())
    else:
        _print(explanation)
    sys.exit(0 if explanation.record.outcome == "permit" else 1)


def _print(explanation: Explanation) -> None:
    record = explanation.record
    verdict = "PERMIT" if record.outcome == "permit" else f"DENY {record.code}"
    until = f" for {record.ttl} seconds" if record.outcome == "permit" and record.ttl else ""
    click.secho(f"{verdict}{until}", bold=True, fg="green" if record.outcome == "permit" else "red")
    if record.detail:
        click.echo(record.detail)
    for step in explanation.steps:
        click.echo(f"  {_MARK[step.result]} {step.step:>2}. {step.name}: {_finding(step)}")


def _finding(step: Step) -> str:
    return step.finding or step.result
