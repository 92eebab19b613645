"""Who is calling: the agent behind a client connection, by the channel and not by a claim.

On this host the owner of the client's socket tells; from elsewhere the source address, which the ruleset
binds to the link that its packets come from.
"""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from errno import EADDRNOTAVAIL

from egress_policy.destination import Address, Network
from egress_policy.socket_owner import Endpoint, Protocol, plain_address, socket_owner


@dataclass(frozen=True, slots=True)
class Caller:
    """Who connected. `agent` is None for everyone whom the policy does not name.

    `uid` is set where the caller is a process of this host whose socket was found, `source` where it is
    elsewhere.
    """

    agent: str | None
    uid: int | None = None
    source: Address | None = None


class Callers:
    """The agents by how they are known.

    `uids` are ranges, both ends included, that do not overlap. Of `sources` that do, the longest prefix wins.
    """

    def __init__(
        self, uids: Sequence[tuple[int, int, str]] = (), sources: Sequence[tuple[Network, str]] = ()
    ) -> None:
        self._uids = tuple(uids)
        self._sources = tuple(sorted(sources, key=lambda source: source[0].prefixlen, reverse=True))

    def identify(self, client: Endpoint, redirected_to: int, protocol: Protocol = Protocol.TCP) -> Caller:
        """Tell who sent what reached our port `redirected_to` from `client`. Raises SocketOwnerError.

        `redirected_to` is the port that our own socket is bound to, not the one that the client wanted to reach.
        A process of this host is never known by its address: it may take any that the host has.
        """
        address = plain_address(client[0])
        if not _is_of_this_host(address):
            return Caller(self._agent_at(address), source=address)
        uid = socket_owner(client, redirected_to, protocol)
        return Caller(None if uid is None else self._agent_of(uid), uid=uid)

    def _agent_of(self, uid: int) -> str | None:
        return next((agent for low, high, agent in self._uids if low <= uid <= high), None)

    def _agent_at(self, address: Address) -> str | None:
        return next(
            (
                agent
                for network, agent in self._sources
                if address.version == network.version and address in network
            ),
            None,
        )


def _is_of_this_host(address: Address) -> bool:
    """Tell whether an address is one of this host's own, which is what bind(2) tells.

    In doubt it is, and a socket must be found: that way nobody is taken for a container.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError as error:
        return error.errno != EADDRNOTAVAIL
    return True
