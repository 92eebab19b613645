"""`egress-policy explain`: the decision that the proxy would take, and why."""

import asyncio
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import click
import msgspec

from egress_policy.caller import Caller
from egress_policy.cli.options import json_option, policy_option
from egress_policy.explanation import Explanation, Step, explain_request
from egress_policy.http_request import RequestHead
from egress_policy.policy_file import load_policy
from egress_policy.policy_source import PolicyFileError
from egress_policy.resolver import ResolutionFailedError, Resolver
from egress_policy.scope import HEADER

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
    head = _head(method, url, scope, body)
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


def _head(method: str, url: str, scope: str | None, body: int) -> RequestHead:
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError as error:
        raise click.UsageError(f"{url!r} is not a URL: {error}") from None
    if port is None or not parts.netloc:
        raise click.UsageError(f"{url!r} is not a URL such as https://docs.example/")
    authority = parts.netloc.encode("utf-8", "surrogateescape")
    fields = [(b"Host", authority)]
    if scope is not None:
        fields.append((HEADER.encode(), scope.encode("utf-8", "surrogateescape")))
    if body:
        fields.append((b"Content-Length", str(body).encode()))
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    name = None if parts.hostname is None or _is_address(parts.hostname) else parts.hostname
    return RequestHead(
        method=method.encode("utf-8", "surrogateescape"),
        target=target.encode("utf-8", "surrogateescape"),
        authority=b"",
        fields=fields,
        http2=False,
        version=b"HTTP/1.1",
        port=port,
        tls=parts.scheme == "https",
        server_name=name,
    )


def _is_address(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


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
