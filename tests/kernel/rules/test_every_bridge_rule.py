"""Each rule of egress.nft's second table is there for something, as those of the first are."""

import ipaddress
import struct
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from egress_policy.firewall import apply, compose, is_loaded
from tests.kernel.rules import probes
from tests.kernel.rules.test_every_rule import BLOCKED, Case, Family, Probe, dial, logged, run_in
from tests.kernel.rules.world import (
    BRIDGE,
    FAMILIES,
    GOOD,
    LEFT,
    RIGHT,
    RULESET,
    THIRD,
    UNKNOWN,
    World,
    rules,
    setting,
    without,
)

AGENTS = tuple(
    (port, ipaddress.ip_network(own[family]))
    for port, own in (("left", LEFT), ("right", RIGHT))
    for family in FAMILIES
)
SHARED = replace(
    RULESET,
    agent_links=(*RULESET.agent_links, *(("bridge", source) for _, source in AGENTS)),
    bridge_ports=AGENTS,
)
TEXT = compose(SHARED)
NOBODYS = {4: "10.91.0.77", 6: "fd91::77"}
UDP = 17
PATIENCE = 1.0
EVERYBODY = "ff:ff:ff:ff:ff:ff"


@pytest.fixture(scope="module")
def shared_world(built_world: World) -> Iterator[World]:
    """What passes from port to port is shown to no rule for IP packets, as where br_netfilter is not there."""
    for call in ("iptables", "ip6tables"):
        built_world.call("host", 0, setting, f"bridge/bridge-nf-call-{call}", "0")
    # Found out about each other: what each says to find the others is refused.
    for name, others in (("right", {"third": THIRD}), ("third", {"right": RIGHT})):
        for other, addresses in others.items():
            for family in FAMILIES:
                run_in(
                    built_world, name, *("ip", "neigh", "replace", addresses[family]),
                    *("lladdr", hardware(built_world, other), "dev", "eth0", "nud", "permanent"),
                )  # fmt: skip
    for name in ("right", "third"):
        # Theirs to send from, and not to be found at: they neither announce it nor answer for it.
        built_world.call(name, 0, setting, "ipv4/conf/all/arp_announce", "2")
        built_world.call(name, 0, setting, "ipv4/conf/all/arp_ignore", "1")
        for address in LEFT.values():
            run_in(built_world, name, "ip", "address", "add", address, "dev", "lo")
    for address in NOBODYS.values():
        run_in(built_world, "right", "ip", "address", "add", address, "dev", "eth0", "preferred_lft", "0")
    yield built_world
    built_world.call("host", 0, apply, RULESET)


@pytest.fixture
def shared(shared_world: World) -> World:
    """Two agents on a bridge, each bound to its port. The host has forgotten whom it believed in a test before."""
    shared_world.load(TEXT)
    run_in(shared_world, "host", "ip", "neigh", "flush", "dev", "bridge")
    return shared_world


def hardware(world: World, name: str) -> str:
    """The hardware address of a container's link."""
    return run_in(world, name, "ip", "-br", "link", "show", "dev", "eth0").split()[2]


def arrives(sender: str, source: str, receiver: str, destination: str, to: str | None = None) -> Probe:
    """Send a datagram under an address, to a place where it is waited for; `to` is where it is addressed."""

    def probe(world: World) -> object:
        with world.begin(receiver, 0, probes.receive, UDP, destination) as waiting:
            waiting.resume()
            port = 9999 if to is None else 53
            world.call(sender, 0, probes.ask, to or destination, port, source)
            return waiting.result()

    return probe


def borrowed(name: str, address: dict[Family, str], family: Family) -> Probe:
    """Ask the DNS under another's address, and see whether that comes in."""
    return arrives(name, address[family], "host", BRIDGE[family], UNKNOWN[family])


def claimed(name: str, family: Family) -> Probe:
    """Tell the host that the left one's address is here: by ARP, or by a neighbour advertisement."""

    def probe(world: World) -> object:
        # The host has to know a neighbour before it believes that it moved.
        assert world.call("left", 0, probes.connect, GOOD[family], 443) == "net"
        own = hardware(world, name)
        frame = _arp(own) if family == 4 else _advertisement(own, RIGHT[6], LEFT[6])
        world.call(name, 0, probes.transmit, "eth0", frame)
        end = time.monotonic() + PATIENCE
        while own not in run_in(world, "host", "ip", "neigh", "show", LEFT[family], "dev", "bridge"):
            if time.monotonic() > end:
                return "not believed"
        return "believed"

    return probe


def flooded(family: Family) -> Probe:
    """Send to the left one when the bridge has forgotten where it is, and listen to that on the right."""

    def probe(world: World) -> object:
        assert world.call("left", 0, probes.connect, GOOD[family], 443) == "net"
        with world.begin("right", 0, probes.overhear, "eth0", LEFT[family]) as listener:
            listener.resume()
            run_in(world, "host", "ip", "link", "set", "left", "type", "bridge_slave", "fdb_flush")
            world.call("host", 0, probes.ask, LEFT[family], 9999)
            return listener.result()

    return probe


def found_anew(family: Family) -> Probe:
    """Connect when neither the container nor the host know where the other is."""

    def probe(world: World) -> object:
        run_in(world, "right", "ip", "neigh", "flush", "dev", "eth0")
        run_in(world, "host", "ip", "neigh", "flush", "dev", "bridge")
        return world.call("right", 0, probes.connect, GOOD[family], 443)

    return probe


def link_local(world: World) -> object:
    """Ask for the host's link-local address from the container's own."""
    run_in(world, "right", "ip", "-6", "neigh", "flush", "dev", "eth0")
    shown = run_in(world, "host", "ip", "-6", "-br", "address", "show", "dev", "bridge", "scope", "link")
    address = shown.split()[2].split("/")[0]
    world.call("right", 0, probes.ask, f"{address}%eth0", 9)
    return "lladdr" in run_in(world, "right", "ip", "-6", "neigh", "show", address, "dev", "eth0")


def _arp(own: str) -> bytes:
    """A request that names the left one's address as that of its sender (RFC 826)."""
    fixed = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
    left, gateway = (ipaddress.ip_address(one).packed for one in (LEFT[4], BRIDGE[4]))
    return _ethernet(own, EVERYBODY, 0x0806) + fixed + _bytes(own) + left + bytes(6) + gateway


def _advertisement(own: str, source: str, target: str) -> bytes:
    """A neighbour advertisement that overrides (RFC 4861 section 4.4), to all nodes."""
    sender, everybody, claims = (ipaddress.ip_address(one).packed for one in (source, "ff02::1", target))
    message = struct.pack("!BBHI", 136, 0, 0, 0x20000000) + claims + struct.pack("!BB", 2, 1) + _bytes(own)
    pseudo = sender + everybody + struct.pack("!II", len(message), 58)
    message = message[:2] + struct.pack("!H", _checksum(pseudo + message)) + message[4:]
    head = struct.pack("!IHBB", 6 << 28, len(message), 58, 255) + sender + everybody
    return _ethernet(own, "33:33:00:00:00:01", 0x86DD) + head + message


def _ethernet(source: str, destination: str, kind: int) -> bytes:
    return _bytes(destination) + _bytes(source) + struct.pack("!H", kind)


def _bytes(hardware_address: str) -> bytes:
    return bytes.fromhex(hardware_address.replace(":", ""))


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _cases() -> Iterator[Case]:
    for v in FAMILIES:
        ip, suffix = ("ip", "") if v == 4 else ("ip6", "-ipv6")
        ether = f"ether type {ip}"

        yield Case("bridge-prerouting", "iifname @agent-links goto own-source", f"{v}",
                   dial("right", 0, GOOD[v], 443), "net")  # fmt: skip
        yield Case("bridge-prerouting", f"{ether} {ip} saddr @agent-sources{suffix} goto bridge-refuse", "",
                   borrowed("third", LEFT, v), "nothing")  # fmt: skip

        yield Case("own-source", f"{ether} iifname . {ip} saddr @agent-link-sources{suffix} accept", "",
                   dial("right", 0, GOOD[v], 443), "net")  # fmt: skip
        yield Case(
            "own-source", "goto bridge-refuse", f"another's {v}", borrowed("right", LEFT, v), "nothing"
        )

        yield Case("bridge-forward", "iifname @agent-links goto bridge-refuse", f"{v}",
                   arrives("right", RIGHT[v], "third", THIRD[v]), "nothing")  # fmt: skip
        yield Case("bridge-forward", "oifname @agent-links drop", f"{v}",
                   arrives("third", THIRD[v], "right", RIGHT[v]), "nothing")  # fmt: skip

        yield Case("bridge-output", f"{ether} oifname . {ip} daddr @agent-link-sources{suffix} accept", "",
                   dial("right", 0, GOOD[v], 443), "net")  # fmt: skip
        yield Case("bridge-output", f"{ether} {ip} daddr @agent-sources{suffix} drop", "",
                   flooded(v), "nothing")  # fmt: skip

        group = {4: "224.0.0.251", 6: "ff05::fb"}[v]
        refused = logged(asks_as_nobody(group, 5353, v), asks_as_nobody(UNKNOWN[v], 9999, v))
        yield Case("bridge-refuse", "meta pkttype { broadcast, multicast } drop", f"{v}",
                   refused, [(1, BLOCKED, UNKNOWN[v])])  # fmt: skip
        yield Case("bridge-refuse", 'limit rate 50/second log prefix "Agent Egress Blocked: " group 1', f"{v}",
                   refused, [(1, BLOCKED, UNKNOWN[v])])  # fmt: skip
        yield Case("bridge-refuse", "drop", f"{v}", borrowed("right", LEFT, v), "nothing")

    yield Case("bridge-prerouting", "ether type arp arp saddr ip @agent-sources goto bridge-refuse", "",
               claimed("third", 4), "not believed")  # fmt: skip
    yield Case("own-source", "ether type arp iifname . arp saddr ip @agent-link-sources accept", "",
               found_anew(4), "net")  # fmt: skip
    yield Case("own-source", "goto bridge-refuse", "another's by ARP", claimed("right", 4), "not believed")
    neighbour = "ether type ip6 icmpv6 type"
    yield Case("own-source",
               f"{neighbour} nd-neighbor-advert iifname . @th,64,128 != @agent-link-targets goto bridge-refuse", "",
               claimed("right", 6), "not believed")  # fmt: skip
    yield Case("own-source",
               f"{neighbour} {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit }} "
               "ip6 saddr { ::, fe80::/10 } accept", "",
               link_local, True)  # fmt: skip


def asks_as_nobody(address: str, port: int, family: Family) -> Probe:
    """Ask from the right under an address that is nobody's."""
    return lambda world: world.call("right", 0, probes.ask, address, port, NOBODYS[family])


CASES = tuple(_cases())


@pytest.mark.parametrize(
    "case", CASES, ids=[" ".join(filter(None, (one.chain, one.rule, one.name))) for one in CASES]
)
def test_each_rule_matters(shared: World, case: Case) -> None:
    """With the rule, the probe ends as it should; without it, it does not."""
    (rule,) = [one for one in rules(TEXT) if (one.chain, one.text) == (case.chain, case.rule)]
    assert case.probe(shared) == case.expected
    shared.load(without(TEXT, rule))
    assert case.probe(shared) != case.expected


def test_no_rule_is_left_out() -> None:
    """And the table names no rule that is gone."""
    first = [(one.chain, one.text) for one in rules(compose(RULESET))]
    every = [(one.chain, one.text) for one in rules(TEXT)]
    assert every[: len(first)] == first
    assert len(every) == len(set(every))
    assert {(case.chain, case.rule) for case in CASES} == set(every[len(first) :])


@pytest.mark.parametrize("family", FAMILIES)
def test_each_finds_its_gateway(shared: World, family: Family) -> None:
    """A neighbour that advertises its own address is believed, whatever else is refused."""
    assert found_anew(family)(shared) == "net"
    assert dial("left", 0, GOOD[family], 443)(shared) == "net"


@pytest.mark.parametrize(("name", "own"), [("right", RIGHT), ("third", THIRD)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_port_outside_its_bridge_is_held(
    shared: World, name: str, own: dict[Family, str], family: Family
) -> None:
    """Its packets then show the port as their link: refused, and not let through like those of who is no agent."""
    run_in(shared, "host", "ip", "link", "set", name, "nomaster")
    try:
        host = run_in(shared, "host", "ip", "-br", "link", "show", "dev", name).split()[2]
        place = ("lladdr", host, "dev", "eth0", "nud", "permanent")
        run_in(shared, name, "ip", "neigh", "replace", BRIDGE[family], *place)
        came = arrives(name, own[family], "net", UNKNOWN[family])(shared)
    finally:
        run_in(shared, name, "ip", "neigh", "del", BRIDGE[family], "dev", "eth0")
        run_in(shared, "host", "ip", "link", "set", name, "master", "bridge")
    assert came == ("received" if name == "third" else "nothing")


def test_the_table_comes_and_goes_with_the_ports(shared: World) -> None:
    """Of a policy without them nothing is left behind; one with them can be applied over itself."""
    for ruleset, expected in (
        (SHARED, True),
        (SHARED, True),
        (RULESET, False),
        (RULESET, False),
        (SHARED, True),
    ):
        shared.call("host", 0, apply, ruleset)
        assert shared.call("host", 0, is_loaded, "bridge") is expected
        assert shared.call("host", 0, is_loaded) is True
