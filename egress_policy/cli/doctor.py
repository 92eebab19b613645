"""`egress-policy doctor`: what is missing on this host, and what to do about it."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import click

import egress_policy
from egress_policy.accounts import AccountError, proxy_uid, resolve_agents
from egress_policy.cli.client_trials import try_clients
from egress_policy.cli.finding import Finding, Result
from egress_policy.cli.helpers import helpers
from egress_policy.cli.kernel_state import kernel_state
from egress_policy.cli.options import audit_option, json_option, policy_option, trust_option
from egress_policy.cli.other_firewalls import other_firewalls
from egress_policy.cli.permissions import Holder, secret, tamper_proof
from egress_policy.cli.trust_probes import browsers, trust_kit, validity
from egress_policy.cli.ways_around import (
    AgentUids,
    fast_open,
    links,
    name_services,
    privileged_groups,
    subordinate_uids,
    syn_cookies,
)
from egress_policy.firewall import FirewallError, is_loaded
from egress_policy.policy import Policy
from egress_policy.policy_file import load
from egress_policy.policy_source import PolicyFileError
from egress_policy.resolver import ResolutionFailedError, system_nameservers
from egress_policy.trust_files import TrustError, find_faults, read_authority
from egress_policy.trust_kit import TrustFiles

_PACKAGE = Path(egress_policy.__file__).parent
_SCRIPT = _PACKAGE.parent / "addons/scope.py"
_KEY = "mitmproxy-ca.pem"
_LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp, proc(5)


@click.command(epilog="Example: egress-policy doctor --policy /etc/egress-policy/policy.yaml")
@policy_option
@audit_option
@click.option(
    "--confdir",
    type=click.Path(path_type=Path),
    default=Path("/var/lib/egress-policy/ca"),
    show_default=True,
    help="Where the proxy keeps its CA.",
)
@trust_option
@json_option
def doctor(policy: Path, audit: str, confdir: Path, trust: Path, as_json: bool) -> None:
    """Check this host from the policy file to the listening proxy. Exit status 1 if something is missing."""
    findings = list(_examine(policy, Path(audit), confdir, TrustFiles(trust)))
    if as_json:
        json.dump([asdict(finding) for finding in findings], sys.stdout, indent=2)
        click.echo()
    else:
        for finding in findings:
            mark = {Result.OK: "ok     ", Result.WARNING: "warning", Result.FAILED: "FAILED "}[finding.result]
            click.echo(f"{mark}  {finding.check}: {finding.finding}")
            if finding.remedy:
                click.echo(f"         → {finding.remedy}")
    if any(finding.result is Result.FAILED for finding in findings):
        sys.exit(1)


def _examine(path: Path, audit: Path, confdir: Path, trust: TrustFiles) -> Iterator[Finding]:
    yield _programs()
    yield _ruleset("inet", "agents are not held")
    try:
        loaded = load(path)
    except PolicyFileError as error:
        further = len(error.errors) - 1
        more = f" (and {further} more)" if further else ""
        yield Finding("policy", Result.FAILED, f"{error.errors[0]}{more}", "egress-policy check shows all")
        return
    policy = loaded.policy
    yield Finding("policy", Result.OK, f"{path} is valid")
    for warning in loaded.warnings:
        yield Finding("policy", Result.WARNING, str(warning))
    try:
        uid = proxy_uid(policy)
        agents = resolve_agents(policy)
    except AccountError as error:
        yield Finding("accounts", Result.FAILED, str(error))
        return
    yield Finding("accounts", Result.OK, f"the proxy is uid {uid}; {len(agents)} ranges of agents' uids")
    yield from privileged_groups(agents)
    yield from subordinate_uids(agents)
    yield from links(policy)
    if any(agent.port is not None for agent in policy.agents.values()):
        yield _ruleset("bridge", "agents on one bridge could take each other's addresses")
    if agents:
        yield syn_cookies()
        yield fast_open()
        yield from name_services()
    yield from other_firewalls()
    yield from kernel_state(policy, uid)
    yield _listener(policy, uid)
    holders = [Holder.of(f"agent {name}", low, high) for low, high, name in agents]
    if agents:
        yield from helpers(holders)
    yield from _authority(confdir, trust, policy, agents, holders)
    yield from _permissions(
        policy, loaded.files, confdir, trust.directory, holders, Holder.of("the proxy", uid, uid)
    )
    yield _audit_log(audit, uid)
    yield _nameservers(policy)


def _programs() -> Finding:
    missing = [
        name
        for name in ("nft", "ip")
        if shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None
    ]
    if missing:
        return Finding(
            "programs", Result.FAILED, f"not found: {', '.join(missing)}", "install nftables and iproute2"
        )
    return Finding("programs", Result.OK, "nft and ip are installed")


def _ruleset(family: Literal["inet", "bridge"], otherwise: str) -> Finding:
    try:
        loaded = is_loaded(family)
    except FirewallError as error:
        return Finding("ruleset", Result.FAILED, str(error))
    table = f"table {family} egress-policy"
    if not loaded:
        return Finding(
            "ruleset", Result.FAILED, f"{table} is not in the kernel: {otherwise}", "run egress-policy apply"
        )
    return Finding("ruleset", Result.OK, f"{table} is in the kernel")


def _listener(policy: Policy, uid: int) -> Finding:
    owners = set(_listeners(policy.proxy.port))
    if not owners:
        return Finding(
            "proxy",
            Result.FAILED,
            f"nobody listens on port {policy.proxy.port}: agents are refused",
            "start mitmdump -s addons/scope.py",
        )
    if owners != {uid}:
        return Finding(
            "proxy",
            Result.FAILED,
            f"uid {min(owners - {uid})} listens on its port {policy.proxy.port}",
            "stop that process",
        )
    return Finding("proxy", Result.OK, f"listens on port {policy.proxy.port}")


def _listeners(port: int) -> Iterator[int]:
    """Yield the uids that listen on a TCP port, from /proc/net/tcp and tcp6 (proc(5))."""
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            columns = line.split()
            if columns[3] == _LISTEN and int(columns[1].rpartition(":")[2], 16) == port:
                yield int(columns[7])


def _authority(
    confdir: Path, trust: TrustFiles, policy: Policy, agents: AgentUids, holders: list[Holder]
) -> Iterator[Finding]:
    certificate = confdir / "mitmproxy-ca-cert.pem"
    try:
        if not certificate.exists():
            yield Finding(
                "CA", Result.FAILED, f"{certificate} is missing", "start the proxy: it makes its CA"
            )
            return
        authority = read_authority(certificate)
    except PermissionError:
        yield Finding("CA", Result.WARNING, f"{confdir} cannot be looked at", "run doctor as root")
        return
    except TrustError as error:
        yield Finding(
            "CA", Result.FAILED, str(error), f"move {confdir} away, and restart the proxy: it makes a new CA"
        )
        return
    yield validity(authority)
    yield from trust_kit(authority, trust, holders)
    yield from browsers(authority, trust, agents)
    if os.geteuid() == 0 and not find_faults(trust, authority.certificate):
        yield from try_clients(confdir / _KEY, trust, policy, agents)


def _permissions(
    policy: Policy, files: tuple[Path, ...], confdir: Path, trust: Path, agents: list[Holder], proxy: Holder
) -> Iterator[Finding]:
    path, *included = files
    things = {
        "the code": _PACKAGE,
        "the script": _SCRIPT.parent,
        "the policy": path,
        **{f"the policy's {one.relative_to(path.parent)}": one for one in included},
        **{f"the feed {name}": path.parent / name for name, _ in policy.trust.known_bad.feeds},
        "the CA": confdir,
        "the trust kit": trust,
    }
    try:
        yield from tamper_proof([proxy, *agents], {what: one for what, one in things.items() if one.exists()})
        if (confdir / _KEY).exists():
            yield from secret(agents, confdir / _KEY)
    except PermissionError as error:
        yield Finding(
            "permissions", Result.WARNING, f"{error.filename} cannot be looked at", "run doctor as root"
        )


def _audit_log(audit: Path, uid: int) -> Finding:
    place = audit if audit.exists() else audit.parent
    if not place.exists():
        return Finding(
            "audit", Result.FAILED, f"{place} does not exist", f"install -d -o {uid} -m 750 {place}"
        )
    if place.stat().st_uid != uid:
        return Finding(
            "audit", Result.FAILED, f"{place} is not the proxy's: it could not write", f"chown {uid} {place}"
        )
    return Finding("audit", Result.OK, f"{place} is the proxy's")


def _nameservers(policy: Policy) -> Finding:
    try:
        found = policy.resolver.nameservers or system_nameservers()
    except ResolutionFailedError as error:
        return Finding("resolver", Result.FAILED, str(error))
    if not found:
        return Finding(
            "resolver", Result.FAILED, "no name servers are known", "name them under resolver.nameservers"
        )
    return Finding("resolver", Result.OK, ", ".join(f"{address} port {port}" for address, port in found))
