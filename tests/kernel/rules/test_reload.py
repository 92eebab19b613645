"""The ruleset is replaced under traffic, and there is no moment without one."""

import ipaddress
import json
from dataclasses import replace

from egress_policy.firewall import apply
from tests.kernel.rules import probes
from tests.kernel.rules.namespaces import run
from tests.kernel.rules.world import (
    AGENT,
    BAD,
    FAMILIES,
    GOOD,
    GRANTED,
    NEIGHBOUR,
    PROXY,
    RULESET,
    UNKNOWN,
    World,
    load,
)

RELOADS = 200
OTHER_RULESET = replace(
    RULESET,
    proxy_ports=(80, 443, 8080),
    known_good=tuple((ipaddress.ip_network(one[v]), 443) for one in (GOOD, NEIGHBOUR) for v in FAMILIES),
    known_bad=tuple(ipaddress.ip_network(text) for text in ("66.0.0.0/8", "2a0f:6666::/32", "100.0.0.0/8")),
)
# No table of the host's: it counts what arrived.
ARRIVALS = f"""
table inet arrivals {{
    counter denied {{ }}
    counter permitted {{ }}
    chain arriving {{
        type filter hook prerouting priority -300; policy accept;
        iifname != "downlink" return
        ip daddr {{ {UNKNOWN[4]}, {BAD[4]} }} counter name denied
        ip6 daddr {{ {UNKNOWN[6]}, {BAD[6]} }} counter name denied
        ip daddr {GOOD[4]} counter name permitted
        ip6 daddr {GOOD[6]} counter name permitted
    }}
}}
"""


def reload() -> None:
    """Apply two policies in turns."""
    for turn in range(RELOADS):
        apply((RULESET, OTHER_RULESET)[turn % 2])


def test_hundreds_of_reloads_let_nothing_out_and_cut_nothing_off(world: World) -> None:
    """What both policies deny never arrives; what both permit always does; grants and connections stay."""
    world.call("net", 0, load, ARRIVALS)
    denied = [(one[family], 8443) for one in (UNKNOWN, BAD) for family in FAMILIES]
    permitted = [(GOOD[family], 443) for family in FAMILIES]
    with (
        world.begin("host", AGENT, probes.hammer, denied, permitted) as agent,
        world.begin("box", 0, probes.hammer, denied, permitted) as container,
        world.begin("host", PROXY, probes.converse, GRANTED[4], 443) as granted,
        world.begin("host", AGENT, probes.converse, GOOD[6], 443) as direct,
    ):
        world.call("host", 0, reload)
        counts = [agent.next(), container.next()]
        assert granted.next() == "net"
        assert direct.next() == "net"
    listed = json.loads(world.call("net", 0, run, "nft", "--json", "list", "counters"))
    arrived = {
        one["counter"]["name"]: one["counter"]["packets"] for one in listed["nftables"] if "counter" in one
    }
    world.call("net", 0, load, "delete table inet arrivals\n")
    assert arrived["denied"] == 0
    assert arrived["permitted"] > 100
    for count, udp in zip(counts, ({"EPERM"}, {"EHOSTUNREACH", "EACCES"}), strict=True):
        assert set(count) == {
            ("tcp", "ECONNREFUSED"),
            ("permitted", "net"),
            *(("udp", refusal) for refusal in udp),
        }
        assert min(count.values()) > 100
    for family in FAMILIES:
        assert world.call("host", PROXY, probes.connect, GRANTED[family], 443) == "net"


def test_a_text_that_nft_does_not_take_changes_nothing(world: World) -> None:
    before = world.call("host", 0, run, "nft", "--stateless", "list", "ruleset")
    broken = replace(RULESET, known_good=(), agent_links=(("a link's name is fifteen bytes", GOOD_NETWORK),))
    try:
        world.call("host", 0, apply, broken)
    except RuntimeError as error:
        assert "FirewallError: nft(8) did not take the ruleset; nothing was changed" in str(error)
    else:
        raise AssertionError("nft took it")
    assert world.call("host", 0, run, "nft", "--stateless", "list", "ruleset") == before


GOOD_NETWORK = ipaddress.ip_network(GOOD[4])
