"""From a packet that the kernel logged to a record of who sent it where: no I/O, the clock is the caller's."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from egress_policy import metrics
from egress_policy.accounts import proxy_uid, resolve_agents
from egress_policy.audit import Record
from egress_policy.destination import Address, Network
from egress_policy.packet import PROTOCOLS, Packet
from egress_policy.policy import Policy
from egress_policy.records import kernel_record
from egress_policy.repeats import Repeats


class Group(IntEnum):
    """The NFLOG groups that the ruleset logs to."""

    REFUSED = 1
    DIRECT = 2


_VERDICTS = {Group.REFUSED: "refused", Group.DIRECT: "direct"}
_EVENTS = {Group.REFUSED: "drop", Group.DIRECT: "direct"}


@dataclass(frozen=True, slots=True)
class Senders:
    """Who sends packets: ranges of uids, both ends included, and networks behind a link, each with its agent.

    `ports` are bridges' ports with the agent behind each.
    """

    proxy_uid: int
    uids: tuple[tuple[int, int, str], ...]
    links: tuple[tuple[str, Network, str], ...]
    ports: tuple[tuple[str, str], ...] = ()

    def agent_of(self, packet: Packet) -> str | None:
        """Name the agent that sent a packet, or None. A source address counts on the agent's own link alone.

        On a bridge it counts on the agent's own port; what another agent sends under it is the other's doing.
        """
        if packet.in_link is None:
            uid = packet.uid
            return next(
                (agent for low, high, agent in self.uids if uid is not None and low <= uid <= high), None
            )
        covering = [
            (network.prefixlen, agent)
            for link, network, agent in self.links
            if link == packet.in_link and packet.source in network and self._may_be_at(agent, packet.in_port)
        ]
        behind = next((agent for port, agent in self.ports if port == packet.in_port), None)
        return max(covering, default=(0, behind))[1]

    def _may_be_at(self, agent: str, port: str | None) -> bool:
        own = {one for one, whose in self.ports if whose == agent}
        return not own or port is None or port in own


def senders_of(policy: Policy) -> Senders:
    """Find out whom a policy names. Raises AccountError."""
    return Senders(
        proxy_uid(policy),
        tuple(resolve_agents(policy)),
        tuple(
            (agent.interface, agent.source, agent.name)
            for agent in policy.agents.values()
            if agent.interface is not None and agent.source is not None
        ),
        tuple((agent.port, agent.name) for agent in policy.agents.values() if agent.port is not None),
    )


class KernelReports:
    """Makes records of packets; the same sender, destination and port are one record a second, with a count.

    `name_of` tells what name an address and port were given to agents for. `senders` may be replaced, with the policy.
    """

    def __init__(self, senders: Senders, name_of: Callable[[Address, int | None], str | None]) -> None:
        self.senders = senders
        self._name_of = name_of
        self._repeats = {group: Repeats() for group in Group}

    def take(self, group: Group, packet: Packet, now: float) -> Record | None:
        """Return the record of a packet, or None where the same is on record already; `now` in seconds."""
        metrics.PACKETS.labels(_VERDICTS[group]).inc()
        agent = self.senders.agent_of(packet)
        sender = agent or (packet.uid, packet.in_link, packet.source)
        kind = (sender, packet.protocol, packet.destination, packet.destination_port)
        return self._repeats[group].take(kind, lambda: self._describe(group, packet, agent), now)

    def due(self, now: float) -> Iterator[Record]:
        """Yield a record for each that was repeated in the second that has passed, and forget the others."""
        for group, repeats in self._repeats.items():
            yield from repeats.due(now)
            if repeats.uncounted:
                detail = (
                    f"{repeats.uncounted} packets to ever other destinations are not on record one by one"
                )
                yield kernel_record(_EVENTS[group], "fail", detail)
                repeats.uncounted = 0

    def lost(self, group: Group, count: int) -> Record:
        """Return the record of reports that the kernel could not hand over."""
        detail = f"{count} logged packets are not on record: they came faster than they were read"
        return kernel_record(_EVENTS[group], "fail", detail)

    def unheard(self, group: Group, why: str) -> Record:
        """Return the record of a group that cannot be listened to."""
        return kernel_record(_EVENTS[group], "fail", why)

    def _describe(self, group: Group, packet: Packet, agent: str | None) -> Record:
        what = PROTOCOLS.get(packet.protocol, f"protocol {packet.protocol}")
        port = "" if packet.destination_port is None else f" port {packet.destination_port}"
        where = f"{what} to {packet.destination}{port}"
        is_the_proxys = packet.in_link is None and packet.uid == self.senders.proxy_uid
        if group is Group.DIRECT:
            detail = f"{where} went straight through the kernel"
        elif is_the_proxys:
            detail = f"{where} by the proxy itself was refused by the kernel"
        else:
            detail = f"{where} was refused by the kernel"
        outcome = "permit" if group is Group.DIRECT else "deny"
        return kernel_record(
            _EVENTS[group],
            outcome,
            detail,
            packet,
            agent,
            self._name_of(packet.destination, packet.destination_port),
        )
