"""Whether each container of a policy is told from every other, by where its packets come from. No I/O."""

from collections.abc import Iterable, Iterator, Sequence

from egress_policy.policy import Agent


def conflicts(agent: Agent, others: Iterable[Agent]) -> Iterator[tuple[str, str]]:
    """Yield what a container has in common with others that it must not: the key that is wrong, and why."""
    if agent.port is not None and agent.port == agent.interface:
        yield "port", "is the interface itself: name the bridge there, and its port here"
    for other in others:
        if agent.port is not None:
            if agent.port == other.interface:
                yield "port", f"is the interface of agent {other.name}"
            elif agent.port == other.port and agent.interface != other.interface:
                yield "port", f"is a port of {other.interface} to agent {other.name}"
        if agent.interface is not None and agent.interface == other.port:
            yield "interface", f"is a bridge's port to agent {other.name}"
        if agent.source is None or other.source is None or agent.source.version != other.source.version:
            continue
        if (agent.interface, agent.port) == (other.interface, other.port):
            if agent.source == other.source:
                yield "source", f"is that of agent {other.name}"
        elif agent.source.overlaps(other.source):
            # The proxy knows the address alone.
            yield "source", f"overlaps that of agent {other.name} elsewhere: one would be taken for the other"


def shared_links(agents: Sequence[Agent]) -> Iterator[tuple[Agent, Agent]]:
    """Yield each container that could take the address of one before it: on one link, and on its port if it has one."""
    for number, agent in enumerate(agents):
        other = next((other for other in agents[:number] if _may_borrow(agent, other)), None)
        if other is not None:
            yield agent, other


def _may_borrow(agent: Agent, other: Agent) -> bool:
    if agent.interface is None or agent.interface != other.interface:
        return False
    if agent.port is None or other.port is None:
        return True
    # By IPv4 and by IPv6 they are one container.
    one, two = agent.source, other.source
    return agent.port == other.port and one is not None and two is not None and one.version == two.version
