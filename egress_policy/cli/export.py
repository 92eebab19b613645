"""`egress-policy export`: the same policy for Kubernetes or a service mesh."""

import asyncio
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from egress_policy.cli.options import json_option, policy_option
from egress_policy.export.cilium import compile_cilium_policies
from egress_policy.export.compiled import LABEL, Compiled, Pods
from egress_policy.export.istio import compile_istio
from egress_policy.export.manifest import write
from egress_policy.export.networkpolicy import compile_network_policies, names_to_resolve
from egress_policy.grant import Resolution
from egress_policy.policy import Policy
from egress_policy.policy_file import load_policy
from egress_policy.policy_source import PolicyFileError
from egress_policy.resolver import ResolutionFailedError, Resolver

# Kubernetes: a name is an RFC 1123 label; a label's key may have a DNS prefix, its value may be empty.
_NAMESPACE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_LABEL = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
    r"=(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?"
)


@click.command(
    epilog="Example: egress-policy export networkpolicy --agent alice-claude --namespace agents --resolve "
    "| kubectl apply -f -"
)
@policy_option
@click.option("--agent", help="Only this agent's pods; default all agents of the policy.")
@click.option("--namespace", default="default", show_default=True, help="Where the pods are.")
@click.option(
    "--pod-selector",
    "selectors",
    multiple=True,
    metavar="KEY=VALUE",
    help=f"A label that the pods bear; may be given several times. Default {LABEL}=AGENT.",
)
@click.option("--strict", is_flag=True, help="Exit with status 1 if anything of the policy is lost.")
@click.option(
    "--resolve", is_flag=True, help="networkpolicy: look known-good names up, and write their addresses."
)
@json_option
@click.argument("target", type=click.Choice(["networkpolicy", "cilium", "istio"]))
def export(
    policy: Path,
    agent: str | None,
    namespace: str,
    selectors: tuple[str, ...],
    strict: bool,
    resolve: bool,
    as_json: bool,
    target: str,
) -> None:
    """Compile the policy for Kubernetes NetworkPolicy, Cilium or Istio, as YAML.

    What is known-good is opened to each agent's pods, and nothing else; the comments at the top, and warnings on
    standard error, say what that system cannot express of this policy. What a scope and an intent open for a time
    goes through the proxy only.
    """
    if resolve and target != "networkpolicy":
        raise click.UsageError(f"--resolve is for networkpolicy: {target} rules hold names")
    if not _NAMESPACE.fullmatch(namespace):
        raise click.UsageError(
            f"--namespace {namespace!r} is not a namespace's name (lower-case, digits, '-')"
        )
    for selector in selectors:
        if not _LABEL.fullmatch(selector):
            raise click.UsageError(f"--pod-selector {selector!r} is not a label such as app=agent")
    try:
        loaded = load_policy(policy)
        pods = _pods(loaded, agent, namespace, selectors)
        compiled = _compile(loaded, target, pods, resolve)
    except PolicyFileError as error:
        raise click.ClickException(f"the policy has errors:\n{error}") from None
    except ResolutionFailedError as error:
        raise click.ClickException(str(error)) from None
    for loss in compiled.losses:
        click.echo(f"warning: {loss}", err=True)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(compiled)).decode())
    else:
        click.echo(write(compiled, f"egress-policy export {target}, of {policy.name}"), nl=False)
    if strict and compiled.losses:
        sys.exit(1)


def _pods(policy: Policy, agent: str | None, namespace: str, selectors: tuple[str, ...]) -> list[Pods]:
    if agent is not None and agent not in policy.agents:
        named = ", ".join(sorted(policy.agents)) or "none"
        raise click.UsageError(f"the policy has no agent {agent}; it has {named}")
    agents = sorted(policy.agents) if agent is None else [agent]
    if not agents:
        raise click.ClickException("the policy names no agent: there are no pods to write rules for")
    if selectors and len(agents) > 1:
        raise click.UsageError("--pod-selector is for one agent's pods: name it with --agent")
    labels = dict(selector.split("=", 1) for selector in selectors)
    return [Pods(name, namespace, labels) for name in agents]


def _compile(policy: Policy, target: str, pods: Sequence[Pods], resolve: bool) -> Compiled:
    if target == "cilium":
        return compile_cilium_policies(policy, pods)
    if target == "istio":
        return compile_istio(policy, pods)
    return compile_network_policies(policy, pods, asyncio.run(_resolve(policy)) if resolve else None)


async def _resolve(policy: Policy) -> dict[str, Resolution | str]:
    resolver = Resolver(policy.resolver.nameservers, policy.resolver.timeout.total_seconds())
    names = names_to_resolve(policy)
    answers = await asyncio.gather(*(_look_up(resolver, name) for name in names))
    return dict(zip(names, answers, strict=True))


async def _look_up(resolver: Resolver, name: str) -> Resolution | str:
    try:
        return await resolver.resolve(name)
    except ResolutionFailedError as error:
        return str(error)
