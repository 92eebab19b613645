"""The part of a policy that the kernel enforces by itself."""

import os
import tempfile
from dataclasses import replace
from pathlib import Path

from egress_policy.accounts import proxy_uid, resolve_agents
from egress_policy.destination import Address, Network
from egress_policy.firewall import (
    KNOWN_GOOD_DOMAINS,
    Ruleset,
    apply,
    compose,
    delete_now,
    list_elements,
    pause,
)
from egress_policy.pauses import NOTHING, Pauses
from egress_policy.policy import Policy, Range

_FIRST_PORT = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


def put_in_force(
    policy: Policy, nameservers: tuple[tuple[Address, int], ...], pauses: Pauses = NOTHING
) -> tuple[Ruleset, list[str]]:
    """Load a policy into the kernel, in one transaction; grants stay.

    Returns what was loaded, and the names that an earlier policy had DNS open there and that are closed now.
    Raises AccountError, with nothing changed, and FirewallError.
    """
    ruleset = ruleset_of(policy, nameservers, pauses)
    apply(ruleset)
    direct = set(policy.trust.direct_names())
    former = [
        element
        for element in list_elements(KNOWN_GOOD_DOMAINS)
        if (element.comment.rpartition(" ")[2], element.port) not in direct
    ]
    delete_now(KNOWN_GOOD_DOMAINS, [(one.address, one.port) for one in former])
    return ruleset, sorted({element.comment.rpartition(" ")[2] for element in former})


def keep_for_boot(ruleset: Ruleset, path: Path) -> None:
    """Write what nft(8) can load at boot before anything else: the same agents, and nothing open to them.

    A policy that cannot be put in force then (it has errors, a feed or an account is missing) leaves its agents refused.
    Raises OSError.
    """
    closed = replace(ruleset, known_good=(), known_bad=(), nameservers=())
    # Renamed when it is whole, and root's alone: nft(8) does as root what it says.
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    new = Path(name)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(compose(closed))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def ruleset_of(
    policy: Policy, nameservers: tuple[tuple[Address, int], ...], pauses: Pauses = NOTHING
) -> Ruleset:
    """Fill in the ruleset for a policy. Raises AccountError."""
    agents = resolve_agents(policy)
    paused_uids, paused_sources = paused_senders(policy, pauses)
    return Ruleset(
        proxy_uid=proxy_uid(policy),
        proxy_port=policy.proxy.port,
        dns_port=policy.proxy.dns_port,
        proxy_ports=policy.proxy.ports,
        agent_uids=tuple((low, high) for low, high, _ in agents),
        agent_ports=((int(_FIRST_PORT.read_text()), 65535),) if agents else (),
        agent_links=tuple(
            (agent.interface, agent.source)
            for agent in policy.agents.values()
            if agent.interface is not None and agent.source is not None
        ),
        bridge_ports=tuple(
            (agent.port, agent.source)
            for agent in policy.agents.values()
            if agent.port is not None and agent.source is not None
        ),
        loopback=tuple(
            ((low, high), ports) for low, high, name in agents for ports in policy.agents[name].loopback
        ),
        known_good=tuple(policy.trust.direct_networks()),
        known_bad=tuple(policy.trust.known_bad.all_networks()),
        nameservers=nameservers,
        paused_uids=paused_uids,
        paused_sources=paused_sources,
        console_port=policy.proxy.console_port,
    )


def pause_in_kernel(policy: Policy, pauses: Pauses) -> None:
    """Have the kernel refuse all that paused agents send. Raises AccountError and FirewallError."""
    pause(*paused_senders(policy, pauses))


def paused_senders(policy: Policy, pauses: Pauses) -> tuple[tuple[Range, ...], tuple[Network, ...]]:
    """Tell by which uids and source addresses the kernel knows the agents that are paused. Raises AccountError."""
    return (
        tuple((low, high) for low, high, name in resolve_agents(policy) if pauses.of_agent(name)),
        tuple(
            agent.source
            for name, agent in policy.agents.items()
            if agent.source is not None and pauses.of_agent(name)
        ),
    )
