"""For each rule of nft/egress.nft, something that it decides: with the rule so, and without it otherwise."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.demo.lab import ALICE, OTHER, PROXY
from egress_policy import firewall
from tests.kernel.conftest import World

EGRESS = Path(firewall.__file__).with_name("egress.nft")
RESET, PROHIBITED = "ECONNREFUSED", "EPERM"

type Probe = Callable[[World], str]


def tcp(place: Callable[[World], str], port: int, uid: int = ALICE) -> Probe:
    return lambda world: world.probe("tcp", place(world), port, uid=uid)


def udp(place: Callable[[World], str], port: int, uid: int = ALICE) -> Probe:
    return lambda world: world.probe("udp", place(world), port, uid=uid)


def inside(kind: str, place: Callable[[World], str], port: int) -> Probe:
    return lambda world: world.probe(kind, place(world), port, uid=0, ns=world.container)


def here(address: str) -> Callable[[World], str]:
    return lambda _: address


def spoofed(world: World) -> str:
    """A container that took another address."""
    _readdress(world, "10.88.0.11", "10.88.0.99")
    try:
        return world.probe("tcp", world.good[0], 22, uid=0, ns=world.container)
    finally:
        _readdress(world, "10.88.0.99", "10.88.0.11")


def _readdress(world: World, old: str, new: str) -> None:
    for command in (
        f"address del {old}/24 dev eth0",
        f"address add {new}/24 dev eth0",
        "route replace default via 10.88.0.1",
    ):
        world.lab.run(["ip", *command.split()], ns=world.container)


def from_outside(world: World) -> str:
    return world.probe("tcp", "10.88.0.11", 9997, uid=0, ns="net")


PLAIN, PLAIN6 = (lambda world: world.plain[0]), (lambda world: world.plain[1])
GOOD, GOOD6 = (lambda world: world.good[0]), (lambda world: world.good[1])
NAMED, NAMED6 = (lambda world: world.named[0]), (lambda world: world.named[1])
GRANTED, GRANTED6 = (lambda world: world.granted[0]), (lambda world: world.granted[1])

# Chain, the rule's beginning (enough to tell it), the probe, and what comes back with the rule.
RULES: list[tuple[str, str, Probe, str]] = [
    ("nat-output", "meta skuid @agent-uids goto", tcp(PLAIN, 443), "proxy"),
    ("nat-prerouting", "iifname @agent-links ip saddr", inside("tcp", PLAIN, 443), "proxy"),
    ("nat-prerouting", "iifname @agent-links ip6 saddr", inside("tcp", PLAIN6, 443), "proxy"),
    ("to-proxy", "meta l4proto { tcp, udp } th dport 53", udp(PLAIN, 53), "proxy"),
    ("to-proxy", "fib daddr type local return", tcp(here("127.0.0.1"), 80), RESET),
    ("to-proxy", "ip daddr . tcp dport @known-good-ipv4", tcp(GOOD, 443), "closed"),
    ("to-proxy", "ip6 daddr . tcp dport @known-good-ipv6", tcp(GOOD6, 443), "closed"),
    ("to-proxy", "ip daddr . tcp dport @known-good-domains", tcp(NAMED, 443), "closed"),
    ("to-proxy", "ip6 daddr . tcp dport @known-good-domains-ipv6", tcp(NAMED6, 443), "closed"),
    ("to-proxy", "tcp dport $proxy_ports redirect", tcp(PLAIN6, 80), "proxy"),
    ("sources", "iifname != @agent-links accept", tcp(PLAIN, 22, OTHER), "SSH-2"),
    ("sources", "iifname . ip saddr @agent-link-sources", inside("tcp", PLAIN, 443), "proxy"),
    ("sources", "iifname . ip6 saddr @agent-link-sources-ipv6", inside("tcp", PLAIN6, 443), "proxy"),
    ("sources", "goto refuse", spoofed, RESET),
    ("output", "meta skuid @agent-uids goto", tcp(PLAIN, 22), RESET),
    ("output", "meta skuid $proxy_uid goto", tcp(PLAIN, 22, PROXY), RESET),
    ("forward", "iifname @agent-links goto", inside("tcp", PLAIN, 22), RESET),
    ("forward", "oifname @agent-links", from_outside, RESET),
    (
        "input",
        "meta l4proto { tcp, udp } th dport { $proxy_port, $dns_port } ct direction original ct status",
        tcp(PLAIN, 443),
        "proxy",
    ),
    (
        "input",
        "meta l4proto { tcp, udp } th dport { $proxy_port, $dns_port } ct direction original goto",
        tcp(here("127.0.0.1"), 8080, OTHER),
        RESET,
    ),
    ("input", "iifname @agent-links goto", inside("tcp", here("10.88.0.1"), 9999), RESET),
    ("agent-input", "ct direction reply accept", tcp(here("10.88.0.11"), 9997, OTHER), "inner"),
    ("agent-input", "goto refuse", inside("tcp", here("10.88.0.1"), 9999), RESET),
    ("agent-egress", "ip daddr != @known-bad-ipv4", tcp(GOOD, 22), "SSH-2"),
    ("agent-egress", "ip6 daddr != @known-bad-ipv6", tcp(GOOD6, 22), "SSH-2"),
    ("agent-egress", "goto refuse", tcp(PLAIN, 22), RESET),
    ("agent-permitted", "ip daddr . th dport @nameservers return", udp(here("127.0.0.1"), 5353), PROHIBITED),
    ("agent-permitted", "ip6 daddr . th dport @nameservers-ipv6 return", udp(here("::1"), 5353), PROHIBITED),
    ("agent-permitted", "fib daddr type local jump", tcp(here("127.0.0.1"), 9999), "local"),
    ("agent-permitted", "ip daddr . tcp dport @known-good-ipv4", tcp(GOOD, 22), "SSH-2"),
    ("agent-permitted", "ip6 daddr . tcp dport @known-good-ipv6", tcp(GOOD6, 22), "SSH-2"),
    ("agent-permitted", "ip daddr . tcp dport @known-good-domains", tcp(NAMED, 22), "SSH-2"),
    ("agent-permitted", "ip6 daddr . tcp dport @known-good-domains-ipv6", tcp(NAMED6, 22), "SSH-2"),
    ("agent-loopback-permitted", "ct direction original ct status dnat tcp", tcp(PLAIN, 443), "proxy"),
    ("agent-loopback-permitted", "ct direction original ct status dnat udp", udp(PLAIN, 53), "proxy"),
    (
        "agent-loopback-permitted",
        "ct direction original meta skuid . th dport @agent-loopback",
        tcp(here("127.0.0.1"), 9999),
        "local",
    ),
    ("agent-loopback-permitted", "ct direction reply accept", tcp(here("127.0.0.1"), 9998, OTHER), "agent"),
    ("direct", "accept", tcp(GOOD, 22), "SSH-2"),
    ("proxy-egress", "ip daddr != @known-bad-ipv4", tcp(GRANTED, 22, PROXY), "SSH-2"),
    ("proxy-egress", "ip6 daddr != @known-bad-ipv6", tcp(GRANTED6, 22, PROXY), "SSH-2"),
    ("proxy-egress", "goto refuse", tcp(PLAIN, 22, PROXY), RESET),
    ("proxy-permitted", "ct direction reply ct status dnat accept", tcp(PLAIN, 443), "proxy"),
    ("proxy-permitted", "ip daddr . th dport @nameservers", udp(PLAIN, 5353, PROXY), "ns"),
    ("proxy-permitted", "ip6 daddr . th dport @nameservers-ipv6", udp(PLAIN6, 5353, PROXY), "ns"),
    ("proxy-permitted", "ip daddr . tcp dport @known-good-ipv4", tcp(GOOD, 22, PROXY), "SSH-2"),
    ("proxy-permitted", "ip6 daddr . tcp dport @known-good-ipv6", tcp(GOOD6, 22, PROXY), "SSH-2"),
    ("proxy-permitted", "ip daddr . tcp dport @known-good-domains", tcp(NAMED, 22, PROXY), "SSH-2"),
    ("proxy-permitted", "ip6 daddr . tcp dport @known-good-domains-ipv6", tcp(NAMED6, 22, PROXY), "SSH-2"),
    ("proxy-permitted", "ip daddr . tcp dport @developer-sandbox", tcp(GRANTED, 22, PROXY), "SSH-2"),
    ("proxy-permitted", "ip6 daddr . tcp dport @developer-sandbox-ipv6", tcp(GRANTED6, 22, PROXY), "SSH-2"),
    ("refuse", "meta l4proto tcp reject", tcp(PLAIN, 22), RESET),
    ("refuse", "reject with icmpx", udp(PLAIN, 443), PROHIBITED),
]
# What no packet tells apart, and where it is tested or why it need not be.
ELSEWHERE = {
    ("sources", "icmpv6 type"): "IPv6 from a container works at all: every probe of a container's IPv6",
    ("sources", "ip daddr 224.0.0.0/4 drop"): "spares the log what every host sends",
    ("sources", "ip6 daddr ff00::/8 drop"): "the same",
    ("sources", "limit rate"): "says, and does not decide",
    ("agent-egress", "limit rate"): "says, and does not decide",
    ("proxy-egress", "limit rate"): "says, and does not decide",
    ("direct", "ct state new log"): "says, and does not decide",
    ("agent-input", "icmpv6 type"): "as in sources",
    ("agent-loopback-permitted", "th dport {"): "test_the_proxy_s_port_is_refused_twice",
    ("output", "ct direction reply ct status dnat tcp"): "test_whoever_takes_the_proxy_s_port",
    ("output", "ct direction reply ct status dnat udp"): "test_whoever_takes_the_proxy_s_port",
    ("agent-permitted", "ct state established ip saddr"): "test_a_live_direct_connection",
    ("agent-permitted", "ct state established ip6 saddr"): "test_a_live_direct_connection",
}


def rules() -> list[tuple[str, str]]:
    """List every rule of the file, with its chain."""
    found: list[tuple[str, str]] = []
    chain = ""
    for line in EGRESS.read_text().splitlines():
        words = line.strip()
        if words.startswith("chain "):
            chain = words.split()[1]
        elif words.startswith("}"):
            chain = ""
        elif chain and words and not words.startswith(("#", "type ")):
            found.append((chain, words))
    return found


def without(chain: str, beginning: str, text: str) -> str:
    """Take one rule out of a ruleset's text."""
    lines = text.splitlines()
    start = lines.index(f"\tchain {chain} {{")
    (place,) = [
        index for index in range(start, lines.index("\t}", start)) if _begins(lines[index].strip(), beginning)
    ]
    return "\n".join([*lines[:place], *lines[place + 1 :], ""])


def _begins(rule: str, beginning: str) -> bool:
    return (
        rule == beginning
        or rule.startswith(f"{beginning} ")
        or (rule.startswith(beginning) and beginning[-1] == "{")
    )


def test_every_rule_is_in_the_tables_once() -> None:
    tables = [*((chain, beginning) for chain, beginning, _, _ in RULES), *ELSEWHERE]
    for chain, rule in rules():
        assert sum(where == chain and _begins(rule, beginning) for where, beginning in tables) == 1, (
            chain,
            rule,
        )
    assert len(tables) == len(rules())


@pytest.mark.parametrize(
    ("chain", "beginning", "probe", "outcome"),
    RULES,
    ids=[f"{chain}: {beginning}" for chain, beginning, _, _ in RULES],
)
def test_the_rule_decides(world: World, chain: str, beginning: str, probe: Probe, outcome: str) -> None:
    text = firewall.compose(world.ruleset)
    world.load(text)
    assert probe(world) == outcome
    world.load(without(chain, beginning, text))
    assert probe(world) != outcome


@pytest.mark.parametrize(("number", "uid"), [(0, ALICE), (1, ALICE), (0, PROXY), (1, PROXY)])
def test_known_bad_wins_over_known_good(world: World, number: int, uid: int) -> None:
    text = firewall.compose(world.ruleset)
    world.load(text)
    assert world.probe("tcp", world.bad[number], 22, uid=uid) == RESET
    family = ("ip", "ipv4") if number == 0 else ("ip6", "ipv6")
    world.load(text.replace(f"{family[0]} daddr != @known-bad-{family[1]} jump", "jump"))
    assert world.probe("tcp", world.bad[number], 22, uid=uid) == "SSH-2"


def test_the_proxy_s_port_is_refused_twice(world: World) -> None:
    """Dialled directly by an agent: on its way out and on its way in; and the proxy may not answer."""
    leaving = ("agent-loopback-permitted", "th dport {")
    arriving = (
        "input",
        "meta l4proto { tcp, udp } th dport { $proxy_port, $dns_port } ct direction original goto",
    )
    text = firewall.compose(world.ruleset)
    for one in (leaving, arriving):
        world.load(without(*one, text))
        assert world.probe("tcp", "127.0.0.1", 8080) == RESET
    answering = ("output", "meta skuid $proxy_uid goto")
    world.load(without(*leaving, without(*arriving, without(*answering, text))))
    assert world.probe("tcp", "127.0.0.1", 8080) == "proxy"


@pytest.mark.parametrize(("kind", "port"), [("tcp", 443), ("udp", 53)])
def test_whoever_takes_the_proxy_s_port_is_not_taken_for_it(world: World, kind: str, port: int) -> None:
    """Another uid at the redirected port; here the policy says that the proxy is somebody else."""
    text = firewall.compose(replace(world.ruleset, proxy_uid=OTHER))
    world.load(text)
    assert world.probe(kind, world.plain[0], port) == "timeout"
    world.load(without("output", f"ct direction reply ct status dnat {kind}", text))
    assert world.probe(kind, world.plain[0], port) == "proxy"


LIVE = """
import socket, sys, time
sock = socket.create_connection((sys.argv[1], 22), timeout=2)
sock.recv(100)
print("up", flush=True)
time.sleep(1.5)
try:
    sock.sendall(b"still here")
    print("alive" if sock.recv(100) else "closed")
except OSError:
    print("dead")
"""


@pytest.mark.parametrize(("number", "suffix", "family"), [(0, "", "ip"), (1, "-ipv6", "ip6")])
@pytest.mark.parametrize("rule", [True, False], ids=["with the rule", "without it"])
def test_a_live_direct_connection_outlives_the_name_s_address(
    world: World, number: int, suffix: str, family: str, rule: bool
) -> None:
    """DNS moved on: a new connection is refused, the live one is not cut; a new policy cuts it."""
    text = firewall.compose(world.ruleset)
    world.load(text if rule else without("agent-permitted", f"ct state established {family} saddr", text))
    log = f"live{number}{rule}"
    process = world.lab.start(["python3", "-c", LIVE, world.named[number]], uid=ALICE, log=log)
    world.lab.wait(process, log, lambda: "up" in world.lab.output(log))
    element = f"{{ {world.named[number]} . 22 }}"
    world.lab.run(
        ["nft", "delete", "element", "inet", "egress-policy", f"known-good-domains{suffix}", element]
    )
    assert world.probe("tcp", world.named[number], 22) == RESET
    process.wait(10)
    assert ("alive" in world.lab.output(log)) is rule


def test_a_grant_opens_nothing_to_the_agent_itself(world: World) -> None:
    world.load(firewall.compose(world.ruleset))
    assert world.probe("tcp", world.granted[0], 22) == RESET
    assert world.probe("tcp", world.granted[0], 8443, uid=PROXY) == RESET


def test_an_agent_that_listens_is_reached_on_loopback_alone(world: World) -> None:
    world.load(firewall.compose(world.ruleset))
    assert world.probe("tcp", "127.0.0.1", 9998, uid=OTHER) == "agent"
    assert world.probe("tcp", "10.66.0.2", 9998, uid=0, ns="net") != "agent"


def test_others_on_the_host_are_not_touched(world: World) -> None:
    world.load(firewall.compose(world.ruleset))
    for address in (*world.plain, *world.bad):
        assert world.probe("tcp", address, 22, uid=OTHER) == "SSH-2"


def test_a_reload_keeps_the_timed_elements_and_a_broken_one_changes_nothing(world: World) -> None:
    text = firewall.compose(world.ruleset)
    world.load(text)
    broken = world.lab.run(["nft", "-f", "-"], stdin=text + "add rule inet egress-policy nowhere accept\n")
    assert broken.returncode != 0
    assert world.lab.run(["nft", "-f", "-"], stdin=text).returncode == 0
    assert world.probe("tcp", world.granted[0], 22, uid=PROXY) == "SSH-2"
    assert world.probe("tcp", world.good[0], 22) == "SSH-2"


HAMMER = """
import socket, sys, time
until, through = time.monotonic() + 4, 0
while time.monotonic() < until:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.sendto(b"x", (sys.argv[1], 443))
        through += 1
    except OSError:
        pass
    sock.close()
print(through)
"""


def test_no_packet_gets_out_while_the_ruleset_is_reloaded(world: World) -> None:
    """One transaction each: there is no moment without rules."""
    text = firewall.compose(world.ruleset)
    world.load(text)
    before = world.lab.packets_to(world.plain[0], 443)
    hammer = world.lab.start(["python3", "-c", HAMMER, world.plain[0]], uid=ALICE, log="hammer")
    reloads = 0
    while hammer.poll() is None:
        assert world.lab.run(["nft", "-f", "-"], stdin=text).returncode == 0
        reloads += 1
    assert reloads > 10
    assert world.lab.output("hammer").strip() == "0"
    assert world.lab.packets_to(world.plain[0], 443) == before
