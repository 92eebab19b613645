"""The link between a command's network namespace and the host: a veth pair that goes with the namespace.

The host's end has the name that the policy gives the agent, the other end the agent's source address. So neither the
ruleset nor a proxy that runs has anything to learn, and the command's packets are an agent's from the first one on.
"""

import contextlib
import ipaddress
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from egress_policy.confined.errors import RunError
from egress_policy.policy import Agent, Policy

_SETTINGS = Path("/proc/sys/net")
_INSIDE = "eth0"
_PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class Link:
    """The pair: the host's end by name, and the addresses of both ends (a /31, RFC 3021)."""

    name: str
    source: ipaddress.IPv4Address
    gateway: ipaddress.IPv4Address


def link_of(policy: Policy, agent: Agent) -> Link | None:
    """Return the link that an agent is known by; None for one that is known by its user. Raises RunError."""
    if agent.interface is None or agent.source is None:
        return None
    if not isinstance(agent.source, ipaddress.IPv4Network) or agent.source.num_addresses != 1:
        raise RunError(
            f"agents.{agent.name}.source: {agent.source} is not one IPv4 address, and the command's link needs one"
        )
    source = agent.source.network_address
    gateway = ipaddress.IPv4Address(int(source) ^ 1)
    for other in policy.agents.values():
        if other.name != agent.name and agent.interface == other.interface:
            raise RunError(
                f"agents {agent.name} and {other.name} share the link {agent.interface}: give each its own"
            )
        if other.source is not None and gateway in other.source:
            raise RunError(
                f"agents.{agent.name}.source: {gateway}, the other end of its link, is agent {other.name}'s: "
                "give their addresses a distance of two"
            )
    return Link(agent.interface, source, gateway)


def join(link: Link, pid: int) -> None:
    """Make the pair, with its other end in a process's network namespace. Raises RunError."""
    _ip(
        f"link add {link.name} type veth peer name {_INSIDE} netns {pid}",
        f"address add {link.gateway}/31 dev {link.name}",
    )
    _set(f"ipv6/conf/{link.name}/disable_ipv6", "1")
    # What comes from this link and is neither web traffic nor DNS gets as far as the ruleset's forward chain, which
    # refuses it at once and puts it on record; else the kernel would drop it without a word.
    _set(f"ipv4/conf/{link.name}/forwarding", "1")
    _ip(f"link set {link.name} up")


def configure(link: Link) -> None:
    """Set up the inner end, in the network namespace of the calling process. Raises RunError."""
    # The agent has one address and no other to send from: an IPv6 destination is unreachable at once.
    _set(f"ipv6/conf/{_INSIDE}/disable_ipv6", "1")
    _ip(
        "link set lo up",
        f"address add {link.source}/31 dev {_INSIDE}",
        f"link set {_INSIDE} up",
        f"route add default via {link.gateway}",
    )


def probe(link: Link) -> None:
    """See from inside that the proxy is reached over the link, by its DNS. Raises RunError."""
    try:
        socket.create_connection((str(link.gateway), 53), _PATIENCE).close()
    except ConnectionRefusedError:
        raise RunError("the proxy does not answer DNS: see that it runs") from None
    except OSError as error:
        raise RunError(
            f"the proxy is not reached over the link {link.name} ({error.strerror or error}): another firewall on "
            f"this host may drop what comes from it; for ufw: `ufw allow in on {link.name}`, for firewalld: "
            f"`firewall-cmd --zone=trusted --add-interface={link.name}`"
        ) from None


def wait_until_gone(link: Link) -> None:
    """Wait until no such link is there: the kernel takes one away a moment after its namespace. Raises RunError."""
    until = time.monotonic() + _PATIENCE
    while exists(link):
        if time.monotonic() > until:
            raise RunError(
                f"the link {link.name} is there already: `run` makes it for the command and takes it away; "
                "for an agent with containers it is not meant"
            )
        time.sleep(0.02)


def exists(link: Link) -> bool:
    """Tell whether this host has a link of that name."""
    try:
        socket.if_nametoindex(link.name)
    except OSError:
        return False
    return True


def remove(link: Link) -> None:
    """Take the pair away now, if it is still there."""
    subprocess.run(["ip", "link", "delete", link.name], capture_output=True, check=False)


def _ip(*lines: str) -> None:
    done = subprocess.run(
        ["ip", "-batch", "-"],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RunError(f"the command's link cannot be made: {done.stderr.strip()}")


def _set(path: str, value: str) -> None:
    # Not there: this kernel has no IPv6. Read-only (in some containers): refusals come later, and are refusals.
    with contextlib.suppress(OSError):
        (_SETTINGS / path).write_text(value)
