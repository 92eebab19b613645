"""A host with agents, containers (two with links of their own, three on a bridge) and an internet, in namespaces.

Addresses look public where the policy asks for that; none of their packets leaves the namespaces.
"""

import ipaddress
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from egress_policy.firewall import Ruleset, compose
from tests.kernel.rules import probes
from tests.kernel.rules.namespaces import Namespaces, Running, run

PROXY, AGENT, OTHER_AGENT, BYSTANDER = 61000, 61001, 61002, 61003
PROXY_PORT, DNS_PORT, CONSOLE_PORT = 8080, 8053, 8081

# By family: what an address is, and where.
GOOD = {4: "93.184.216.34", 6: "2a00:1450::1"}
NAMED = {4: "93.184.216.35", 6: "2a00:1450::2"}
GRANTED = {4: "93.184.216.36", 6: "2a00:1450::3"}
NEIGHBOUR = {4: "93.184.216.37", 6: "2a00:1450::4"}
RAW = {4: "93.184.216.38", 6: "2a00:1450::5"}
UNKNOWN = {4: "93.184.216.99", 6: "2a00:1450::99"}
BAD = {4: "66.6.6.6", 6: "2a0f:6666::6"}
NAMESERVER = {4: "9.9.9.9", 6: "2620:fe::fe"}
LOCAL = {4: "127.0.0.1", 6: "::1"}
HOST = {4: "10.66.0.2", 6: "fd66::2"}
NET = {4: "10.66.0.1", 6: "fd66::1"}
BOX = {4: "10.90.1.2", 6: "fd90:1::2"}
OTHER_BOX = {4: "10.90.2.2", 6: "fd90:2::2"}
GATEWAY = {4: "10.90.1.1", 6: "fd90:1::1"}
OTHER_GATEWAY = {4: "10.90.2.1", 6: "fd90:2::1"}

# On one bridge: two agents, and one that is none.
BRIDGED = ("left", "right", "third")
LEFT = {4: "10.91.0.2", 6: "fd91::2"}
RIGHT = {4: "10.91.0.3", 6: "fd91::3"}
THIRD = {4: "10.91.0.4", 6: "fd91::4"}
BRIDGE = {4: "10.91.0.1", 6: "fd91::1"}

# What agents are told for the name of RAW, and the port on which the kernel leads there.
DIALLED = {4: "198.18.0.1", 6: "2001:2:0:ffff::1"}
RAW_PORT = 22

# Addresses that `other-box` has taken beside its own: nobody's, and `box`'s.
TAKEN = {4: "10.90.2.77", 6: "fd90:2::77"}

LOCAL_NAMESERVER_PORT = 5300
INTERNET = (GOOD, NAMED, GRANTED, NEIGHBOUR, RAW, UNKNOWN, BAD, NAMESERVER)
FAMILIES = (4, 6)

_START_PATIENCE = 20.0


def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so. Raises TimeoutError."""
    end = time.monotonic() + _START_PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the world was not to be had")


def _network(address: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(address)


RULESET = Ruleset(
    proxy_uid=PROXY,
    proxy_port=PROXY_PORT,
    dns_port=DNS_PORT,
    proxy_ports=(80, 443),
    agent_uids=((AGENT, OTHER_AGENT),),
    agent_ports=((1024, 65535),),
    agent_links=tuple(
        (link, _network(box[family]))
        for link, box in (("box", BOX), ("other-box", OTHER_BOX))
        for family in FAMILIES
    ),
    # All of them, so that it is the rules that keep agents from the proxy's.
    loopback=(((AGENT, OTHER_AGENT), (1, 65535)),),
    known_good=tuple((_network(one[family]), 443) for one in (GOOD, BAD) for family in FAMILIES),
    known_bad=tuple(_network(BAD[family]) for family in FAMILIES),
    console_port=CONSOLE_PORT,
    nameservers=(
        *((ipaddress.ip_address(NAMESERVER[family]), 53) for family in FAMILIES),
        *((ipaddress.ip_address(LOCAL[family]), LOCAL_NAMESERVER_PORT) for family in FAMILIES),
    ),
)


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of a ruleset's text: its chain, what it says, and its line (from 0)."""

    chain: str
    text: str
    line: int


def rules(text: str) -> list[Rule]:
    """Find the rules of a ruleset's text: what stands in its chains, beside their hooks."""
    found = []
    chain = ""
    for number, line in enumerate(text.splitlines()):
        words = line.split("#")[0].split()
        if words[:1] == ["chain"]:
            chain = words[1]
        elif words == ["}"]:
            chain = ""
        elif chain and words and words[0] != "type":
            found.append(Rule(chain, " ".join(words), number))
    return found


def without(text: str, rule: Rule) -> str:
    """Take one rule out of a ruleset's text."""
    lines = text.splitlines()
    del lines[rule.line]
    return "\n".join(lines) + "\n"


def load(text: str) -> None:
    """Load a ruleset's text."""
    run("nft", "-f", "-", stdin=text)


def insert(name: str, address: str, port: int, timeout: str = "1h") -> None:
    """Add an element to a timed set, or give it another timeout."""
    load(_timed(name, address, port, timeout))


def remove(name: str, address: str, port: int) -> None:
    """Delete an element of a timed set, whether or not it is there."""
    suffix = "-ipv6" if ":" in address else ""
    element = f"element inet egress-policy {name}{suffix} {{ {address} . {port} }}"
    run("nft", f"add {element}; delete {element}")


def _timed(name: str, address: str, port: int, timeout: str) -> str:
    suffix = "-ipv6" if ":" in address else ""
    key = f"{address} . {port}"
    element = f"element inet egress-policy {name}{suffix}"
    return (
        f"add {element} {{ {key} }}\ndelete {element} {{ {key} }}\n"
        f"add {element} {{ {key} timeout {timeout} }}\n"
    )


def way(caller: int | str, port: int, address: str, *, verb: str = "add", closed: bool = True) -> str:
    """Write what leads a caller (a uid, or a container's address) from DIALLED to an address, and lets it go on there.

    With the verb `delete` all of it must be there. `closed` is for sockets that were closed.
    """
    version = 6 if ":" in address else 4
    suffix, name = (
        ("-ipv6" if version == 6 else ""),
        ("raw-tcp" if isinstance(caller, int) else "raw-tcp-sources"),
    )
    key = f"{DIALLED[version]} . {port}"
    elements = [
        (f"{name}{suffix}", f"{caller} . {key} : {address}"),
        (f"{name}-permitted{suffix}", f"{caller} . {key} . {address}"),
    ]
    if isinstance(caller, int) and closed:
        elements.append((f"raw-tcp-closed{suffix}", f"{key} . {address}"))
    return "".join(f"{verb} element inet egress-policy {name} {{ {one} }}\n" for name, one in elements)


_TIMED = "".join(
    _timed("known-good-domains", NAMED[family], 443, "1h")
    + _timed("developer-sandbox", GRANTED[family], 443, "1h")
    + way(AGENT, RAW_PORT, RAW[family])
    + way(BOX[family], RAW_PORT, RAW[family])
    for family in FAMILIES
)


def setting(name: str, value: str) -> None:
    """Give a sysctl below net/ a value."""
    Path("/proc/sys/net", name).write_text(value)


def _links(commands: Iterable[str]) -> None:
    # Tentative addresses would cost seconds; what the ruleset refuses must not be caught by another net before.
    for name, value in (("ipv4", "rp_filter"), ("ipv6", "accept_dad")):
        for interface in Path(f"/proc/sys/net/{name}/conf").iterdir():
            (interface / value).write_text("0")
    setting("ipv4/ip_unprivileged_port_start", "0")
    # One budget of ICMP errors for all destinations: an agent that floods would use up its neighbours'.
    setting("ipv4/icmp_msgs_per_sec", "1000000")
    setting("ipv4/icmp_msgs_burst", "1000000")
    setting("ipv4/icmp_ratelimit", "0")
    setting("ipv6/icmp/ratelimit", "0")
    run("ip", "-batch", "-", stdin="\n".join(["link set lo up", *commands]))


def _forwarding() -> None:
    setting("ipv4/ip_forward", "1")
    setting("ipv6/conf/all/forwarding", "1")


def _on_lo(addresses: Iterable[str]) -> list[str]:
    return [f"address add {address} dev lo" for address in addresses]


@dataclass(slots=True)
class World:
    """The namespaces, with a proxy in `host` and servers in `net`."""

    namespaces: Namespaces
    text: str
    closing: ExitStack = field(default_factory=ExitStack)

    @classmethod
    def build(cls) -> Self:
        """Make it."""
        namespaces = Namespaces("host", "net", "box", "other-box", *BRIDGED, preload=__name__)
        world = cls(namespaces, compose(RULESET))
        try:
            world._build()
        except BaseException:
            world.close()
            raise
        return world

    def close(self) -> None:
        """Remove it."""
        self.closing.close()
        self.namespaces.close()

    def call(self, name: str, uid: int, function: Callable[..., object], *arguments: object) -> Any:
        """Call a function there."""
        return self.namespaces.call(name, uid, function, *arguments)

    def begin(self, name: str, uid: int, function: Callable[..., object], *arguments: object) -> Running:
        """Begin a generator there, and let it run to its first value."""
        running = self.namespaces.begin(name, uid, function, *arguments)
        try:
            running.result()
        except BaseException:
            running.close()
            raise
        return running

    def serve(self, name: str, uid: int, who: str, *places: tuple[str, int]) -> Running:
        """Answer there, by TCP and UDP, with a name."""
        server = self.begin(name, uid, probes.serve, who, places)
        server.resume()
        return server

    def load(self, text: str | None = None) -> None:
        """Load a ruleset's text; the right one, with the timed elements that the probes count on, if none is given."""
        self.call("host", 0, load, self.text + _TIMED if text is None else text)

    def set_policy(self, **changes: Any) -> None:
        """Load the ruleset with some of its values changed."""
        self.load(compose(replace(RULESET, **changes)) + _TIMED)

    def _reaches(self, name: str) -> bool:
        return bool(self.call(name, BYSTANDER, probes.connect, GOOD[6], 443) == "net")

    def _build(self) -> None:
        def peer(name: str) -> str:
            return f"/proc/{self.namespaces.pid}/fd/{self.namespaces.descriptors[name]}"

        self.call("host", 0, _links, [
            f"link add uplink type veth peer name downlink netns {peer('net')}",
            f"link add box type veth peer name eth0 netns {peer('box')}",
            f"link add other-box type veth peer name eth0 netns {peer('other-box')}",
            "address add 10.66.0.2/24 dev uplink",
            "address add fd66::2/64 dev uplink nodad",
            "address add 10.90.1.1/24 dev box",
            "address add fd90:1::1/64 dev box nodad",
            "address add 10.90.2.1/24 dev other-box",
            "address add fd90:2::1/64 dev other-box nodad",
            "link set uplink up", "link set box up", "link set other-box up",
            "route add default via 10.66.0.1",
            "route add default via fd66::1",
            "link add bridge type bridge",
            "address add 10.91.0.1/24 dev bridge",
            "address add fd91::1/64 dev bridge nodad",
            "link set bridge up",
            *(f"link add {name} type veth peer name eth0 netns {peer(name)}" for name in BRIDGED),
            *(f"link set {name} master bridge up" for name in BRIDGED),
        ])  # fmt: skip
        self.call("host", 0, _forwarding)
        self.call("net", 0, _links, [
            "address add 10.66.0.1/24 dev downlink",
            "address add fd66::1/64 dev downlink nodad",
            "link set downlink up",
            *_on_lo(one[family] for one in INTERNET for family in FAMILIES),
            "route add 10.90.0.0/16 via 10.66.0.2",
            "route add fd90::/16 via fd66::2",
            "route add 10.91.0.0/24 via 10.66.0.2",
            "route add fd91::/64 via fd66::2",
        ])  # fmt: skip
        for name, own in zip(BRIDGED, (LEFT, RIGHT, THIRD), strict=True):
            self.call(name, 0, _links, [
                f"address add {own[4]}/24 dev eth0",
                f"address add {own[6]}/64 dev eth0 nodad",
                "link set eth0 up",
                "route add default via 10.91.0.1",
                "route add default via fd91::1",
            ])  # fmt: skip
        for name, number in (("box", 1), ("other-box", 2)):
            self.call(name, 0, _links, [
                f"address add 10.90.{number}.2/24 dev eth0",
                f"address add fd90:{number}::2/64 dev eth0 nodad",
                "link set eth0 up",
                f"route add default via 10.90.{number}.1",
                f"route add default via fd90:{number}::1",
            ])  # fmt: skip
        taken = [one[family] for one in (BOX, TAKEN) for family in FAMILIES]
        self.call("other-box", 0, _links, [f"address add {address} dev eth0" for address in taken])
        anywhere = ("0.0.0.0", "::")
        # A reply by UDP comes from where the question went only if the server is bound to that.
        internet = [one[family] for one in (*INTERNET, NET) for family in FAMILIES]
        gateways = (LOCAL, HOST, GATEWAY, OTHER_GATEWAY, BRIDGE)
        redirected_to = [one[family] for one in gateways for family in FAMILIES]
        servers = (
            ("net", 0, "net", internet, (22, 53, 80, 443, LOCAL_NAMESERVER_PORT, 8443)),
            ("host", PROXY, "proxy", redirected_to, (PROXY_PORT, DNS_PORT, CONSOLE_PORT)),
            ("host", BYSTANDER, "local", anywhere, (80, 9000, LOCAL_NAMESERVER_PORT)),
            ("host", OTHER_AGENT, "agent", anywhere, (9100,)),
            ("box", 0, "box", anywhere, (9000,)),
            ("other-box", 0, "other-box", anywhere, (9000,)),
        )
        for name, uid, who, addresses, ports in servers:
            server = self.serve(name, uid, who, *((address, port) for address in addresses for port in ports))
            self.closing.callback(server.close)
        # IPv6 takes up to a second or two to find its neighbours on links that are new.
        for name in ("host", "box", "other-box", *BRIDGED):
            until(partial(self._reaches, name))
        self.load()
