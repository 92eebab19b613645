"""Whether this kernel can hold the policy, and holds it by the rules of this version: for IPv6 as for IPv4."""

import os
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Address

from egress_policy.cli.finding import Finding, Result
from egress_policy.firewall import FirewallError, Ruleset, is_loaded, list_rules, rules_of
from egress_policy.policy import Policy
from egress_policy.socket_owner import Protocol, SocketOwnerError, socket_owner

_CHECK = "kernel"
_MODULES = (
    "nf_tables, nft_fib_inet, nft_redir, nft_reject_inet, nft_log, nft_ct, nft_chain_nat, nfnetlink_log"
)


def kernel_state(policy: Policy, proxy_uid: int) -> Iterator[Finding]:
    """Compare the rules in the kernel with those that a fresh network namespace has after loading this version's."""
    if os.geteuid() != 0:
        yield Finding(_CHECK, Result.WARNING, "its rules cannot be compared", "run doctor as root")
        return
    proxy = policy.proxy
    try:
        expected = rules_of(Ruleset(proxy_uid, proxy.port, proxy.dns_port, proxy.ports))
    except FirewallError as error:
        yield Finding(
            _CHECK,
            Result.FAILED,
            f"it cannot hold the ruleset: {error}",
            f"load or build its modules: {_MODULES}",
        )
        return
    try:
        # Nobody's connection: what matters is that there is somebody to ask.
        socket_owner((IPv4Address("127.0.0.1"), 1), proxy.port, Protocol.TCP)
    except SocketOwnerError as error:
        yield Finding(_CHECK, Result.FAILED, str(error), "load or build its module nf_conntrack_netlink")
        return
    yield Finding(_CHECK, Result.OK, "it has what the ruleset and the proxy need")
    if is_loaded():
        yield from _compare(expected, list_rules())


def _compare(expected: str, loaded: str) -> Iterator[Finding]:
    wanted, found = (Counter(line.strip() for line in text.splitlines()) for text in (expected, loaded))
    missing, surplus = wanted - found, found - wanted
    if expected == loaded:
        yield Finding("rules", Result.OK, "those of this version, for IPv4 and IPv6")
        return
    without = " IPv6 is not held as IPv4 is." if any("ip6" in line for line in missing) else ""
    example = min(missing or surplus or {"their order"})
    yield Finding(
        "rules",
        Result.FAILED,
        f"{missing.total()} are missing and {surplus.total()} are not of this version, for instance: {example}.{without}",
        "egress-policy apply",
    )
