"""What must hold before the proxy accepts a connection, and what is carried over from the one before it."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from mitmproxy import options

import listening
from egress_policy.accounts import AccountError, proxy_uid, resolve_agents
from egress_policy.approvals import still_valid
from egress_policy.audit import AuditLog
from egress_policy.audit_files import AuditError
from egress_policy.audit_reading import read_records
from egress_policy.authorizer import Authorizer
from egress_policy.caller import Callers
from egress_policy.feed_files import FeedFiles
from egress_policy.firewall import (
    DEVELOPER_SANDBOX,
    Elements,
    FirewallError,
    delete_now,
    delete_ways_now,
    is_loaded,
    list_elements,
)
from egress_policy.kernel_changes import KernelChanges
from egress_policy.kernel_policy import pause_in_kernel
from egress_policy.known_good import KnownGoodNames
from egress_policy.ledger import LiveGrant
from egress_policy.live_grants import match
from egress_policy.pauses import PausesError, pauses_file, read_pauses
from egress_policy.policy import MAX_TTL, Policy
from egress_policy.policy_file import load
from egress_policy.policy_source import PolicyFileError
from egress_policy.records import policy_record
from egress_policy.resolver import Resolver
from egress_policy.status import PolicyStatus

DEFAULT_CONFDIR = "/var/lib/egress-policy/ca"

OPTIONS = (
    ("scope_policy", "/etc/egress-policy/policy.yaml", "The policy file."),
    ("scope_audit", "/var/log/egress-policy/audit.jsonl", "The audit log: a file, or - for standard output."),
    ("scope_control", "/run/egress-policy/control.sock", "The control socket."),
)
"""Name, default and help of each option."""


class StartError(Exception):
    """The proxy must not start: the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Started:
    """What the addon works with: `port` is the one that web traffic is redirected to, `modes` where to listen."""

    authorizer: Authorizer
    audit: AuditLog
    elements: Elements
    feeds: FeedFiles
    changes: KernelChanges
    known_good: KnownGoodNames
    callers: Callers
    port: int
    modes: tuple[str, ...]
    policy_status: PolicyStatus


def start(settings: options.Options, on_end: Callable[[LiveGrant], None]) -> Started:
    """Check and load everything. Raises StartError."""
    try:
        feeds = FeedFiles()
        loaded = load(Path(settings.scope_policy), feeds=feeds)
        policy = loaded.policy
        uid = proxy_uid(policy)
        if os.getuid() != uid:
            raise StartError(
                f"running as uid {os.getuid()}, but the policy's proxy.user is {policy.proxy.user}: "
                "the kernel would not hold this process to the policy"
            )
        _check_authority(Path(settings.confdir))
        audit = AuditLog(settings.scope_audit)
        if not is_loaded() or (_has_ports(policy) and not is_loaded("bridge")):
            raise StartError("the ruleset is not in the kernel: run `egress-policy apply` first")
        nameservers = policy.resolver.nameservers
        resolver = Resolver(nameservers, policy.resolver.timeout.total_seconds())
        elements = Elements()
        authorizer = Authorizer(policy, resolver, elements, audit, on_end)
        # Before the sets are read: what is deleted in between is heard of.
        changes = KernelChanges()
        authorizer.pauses = read_pauses(pauses_file(settings.scope_audit))
        pause_in_kernel(policy, authorizer.pauses)
        _take_over(authorizer, settings.scope_audit)
        audit.write(policy_record(f"{settings.scope_policy} is in force: the proxy started"))
        uids = resolve_agents(policy)
    except PolicyFileError as error:
        raise StartError("the policy has errors:\n" + "\n".join(str(one) for one in error.errors)) from None
    except (AccountError, AuditError, FirewallError, PausesError) as error:
        raise StartError(str(error)) from None
    return Started(
        authorizer,
        audit,
        elements,
        feeds,
        changes,
        KnownGoodNames(policy, resolver, elements),
        _callers(policy, uids),
        settings.listen_port or policy.proxy.port,
        listening.modes(policy, settings),
        PolicyStatus(Path(settings.scope_policy), loaded.version),
    )


def with_policy(
    started: Started,
    policy: Policy,
    resolver: Resolver,
    uids: list[tuple[int, int, str]],
) -> Started:
    """Return what the addon works with under another policy, which the authorizer has adopted."""
    return replace(
        started,
        known_good=KnownGoodNames(policy, resolver, started.elements),
        callers=_callers(policy, uids),
    )


def _has_ports(policy: Policy) -> bool:
    return any(agent.port is not None for agent in policy.agents.values())


def _callers(policy: Policy, uids: list[tuple[int, int, str]]) -> Callers:
    return Callers(
        uids,
        [(agent.source, agent.name) for agent in policy.agents.values() if agent.source is not None],
    )


def _check_authority(confdir: Path) -> None:
    """See that the CA can be used, or made: mitmproxy makes it at its first start."""
    key = confdir / "mitmproxy-ca.pem"
    try:
        usable = os.access(key, os.R_OK) if key.exists() else confdir.is_dir() and os.access(confdir, os.W_OK)
    except PermissionError:
        usable = False
    if not usable:
        raise StartError(
            f"no CA in {confdir}, and none can be made: `install -d -m 700 -o {os.getuid()} {confdir}`, or set confdir"
        )


def _take_over(authorizer: Authorizer, path: str) -> None:
    """Enter the grants that the kernel still holds and the log explains; close what it does not explain."""
    now = datetime.now(UTC)
    for decided, left in still_valid(read_records(path, now - MAX_TTL), now):
        authorizer.approvals.restore(decided, left)
    records = read_records(path)
    held = list_elements(DEVELOPER_SANDBOX)
    grants, unexplained = match(records, held, now)
    for one in grants:
        authorizer.take_over(one.grant, one.remaining)
    delete_now(DEVELOPER_SANDBOX, [(one.address, one.port) for one in unexplained])
    # Which address stands for which name is not remembered: the next request under a grant opens its ports anew.
    delete_ways_now(lambda _comment: True)
