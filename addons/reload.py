"""Another policy for a proxy that runs: on SIGHUP, and when one of the policy's files or a feed changes.

All of it or nothing: the file is read and the kernel loaded before the first request is decided by it, and what
cannot be put in force leaves everything as it was.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mitmproxy import options

import start_up
from egress_policy.accounts import AccountError, resolve_agents
from egress_policy.audit_files import AuditError
from egress_policy.feed_files import Signature, signature
from egress_policy.firewall import FirewallError
from egress_policy.kernel_policy import put_in_force
from egress_policy.policy import Policy
from egress_policy.policy_file import load
from egress_policy.policy_source import PolicyFileError
from egress_policy.records import policy_record
from egress_policy.resolver import ResolutionFailedError, Resolver

_INTERVAL = 1.0
"""Seconds between two looks at the files; what changed must look the same twice, so that it is written whole."""

_logger = logging.getLogger(__name__)


async def reload(started: start_up.Started, settings: options.Options) -> start_up.Started:
    """Put the policy file in force as it is now, or leave all as it is and say why in log and audit log."""
    path = Path(settings.scope_policy)
    try:
        loaded = await asyncio.to_thread(load, path, feeds=started.feeds)
        policy = loaded.policy
        _check_same_proxy(started.authorizer.policy, policy)
        resolver = Resolver(policy.resolver.nameservers, policy.resolver.timeout.total_seconds())
        uids = resolve_agents(policy)
        await asyncio.to_thread(put_in_force, policy, resolver.nameservers, started.authorizer.pauses)
    except PolicyFileError as error:
        _stays(started, f"{path} has errors, the policy stays as it was: {error}")
        return started
    except (AccountError, FirewallError, ResolutionFailedError, start_up.StartError) as error:
        _stays(started, f"{path} cannot be put in force, the policy stays as it was: {error}")
        return started
    revoked = await started.authorizer.adopt(policy, resolver)
    started.policy_status.taken(loaded.version, started.feeds.kept)
    _say(started, f"{path} is in force: it changed, and {revoked} grants were revoked")
    for feed, why in started.feeds.kept.items():
        _say(started, f"the feed {feed} could not be read: {why}", "fail")
    return start_up.with_policy(started, policy, resolver, uids)


async def asked(by_signal: asyncio.Event, seen: Mapping[Path, Signature | None]) -> None:
    """Wait until a reload is asked for, or one of the files has changed and is written whole."""
    known = last = tuple(seen.values())
    while not by_signal.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_INTERVAL):
                await by_signal.wait()
        now = tuple(map(signature, seen))
        if now != known and now == last:
            break
        last = now
    by_signal.clear()


def _check_same_proxy(old: Policy, new: Policy) -> None:
    if replace(old.proxy, ports=()) != replace(new.proxy, ports=()):
        raise start_up.StartError(
            "proxy.user, proxy.port, proxy.dns_port and proxy.console_port need a restart of the proxy"
        )


def _stays(started: start_up.Started, why: str) -> None:
    started.policy_status.refused(why)
    _say(started, why, "fail")


def _say(started: start_up.Started, what: str, outcome: str | None = None) -> None:
    _logger.log(logging.WARNING if outcome else logging.INFO, "egress-policy: %s", what)
    try:
        started.audit.write(policy_record(what, outcome))
    except AuditError as error:
        _logger.error("egress-policy: not on record: %s", error)
