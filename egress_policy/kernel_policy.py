"""The part of a policy that the kernel enforces by itself, as the values that the ruleset is filled with."""

from pathlib import Path

from egress_policy.accounts import proxy_uid, resolve_agents
from egress_policy.destination import Address
from egress_policy.firewall import Ruleset
from egress_policy.policy import Policy

_FIRST_PORT = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


def ruleset_of(policy: Policy, nameservers: tuple[tuple[Address, int], ...]) -> Ruleset:
    """Fill in the ruleset for a policy. Raises AccountError."""
    agents = resolve_agents(policy)
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
        loopback=tuple(
            ((low, high), ports) for low, high, name in agents for ports in policy.agents[name].loopback
        ),
        known_good=tuple(policy.trust.direct_networks()),
        known_bad=tuple(policy.trust.known_bad.all_networks()),
        nameservers=nameservers,
    )
