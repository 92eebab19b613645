"""Who else manages this host's firewall: every table's rules apply, and some managers take others' tables away."""

import re
from collections.abc import Iterator
from pathlib import Path

from egress_policy.cli.finding import Finding, Result
from egress_policy.firewall import FirewallError, nat_chains_before_ours

_CHECK = "other firewalls"
_PROCESSES = Path("/proc")
_UFW = Path("/etc/ufw/ufw.conf")
_NFTABLES = Path("/etc/nftables.conf")
_LEGACY = (Path("/proc/net/ip_tables_names"), Path("/proc/net/ip6_tables_names"))
"""The tables of iptables-legacy in this network namespace, one a line; iptables-nft is nftables."""


def other_firewalls() -> Iterator[Finding]:
    """Find other managers and what of theirs comes before our rules."""
    found = [*_managers(), *_legacy(), *_flush(), *_chains()]
    yield from found or [Finding(_CHECK, Result.OK, "none that would come before ours, or take it away")]


def _managers() -> Iterator[Finding]:
    running = {_text(file).strip() for file in _PROCESSES.glob("[0-9]*/comm")}
    names = [name for name in ("firewalld",) if name in running]
    if re.search(r"^ENABLED=yes", _text(_UFW), re.MULTILINE | re.IGNORECASE):
        names.append("ufw")
    for name in names:
        yield Finding(
            _CHECK,
            Result.WARNING,
            f"{name} manages this host's firewall too: what it drops or redirects, no grant opens",
            f"see that its rules leave agents' web traffic, their DNS and the proxy alone, or switch {name} off",
        )


def _legacy() -> Iterator[Finding]:
    tables = sorted({table for file in _LEGACY for table in _text(file).split()})
    if tables:
        yield Finding(
            _CHECK,
            Result.WARNING,
            f"iptables-legacy has the tables {', '.join(tables)}: nft shows none of it, and its nat may redirect first",
            "iptables-legacy-save shows them; use iptables-nft, or none",
        )


def _flush() -> Iterator[Finding]:
    if re.search(r"^\s*flush\s+ruleset", _text(_NFTABLES), re.MULTILINE):
        yield Finding(
            _CHECK,
            Result.WARNING,
            f"{_NFTABLES} has `flush ruleset`: whoever loads it by hand takes our table away, and agents are not held",
            "have it flush its own tables only: `table inet filter`, then `flush table inet filter`",
        )


def _chains() -> Iterator[Finding]:
    try:
        chains = nat_chains_before_ours()
    except FirewallError:
        return  # whoever cannot ask is told so for our own table
    for chain in chains:
        yield Finding(
            _CHECK,
            Result.WARNING,
            f"{chain} translates before ours: what it takes of agents' traffic does not come to the proxy",
            f"nft list {chain} shows it; give it a priority above -100",
        )


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
