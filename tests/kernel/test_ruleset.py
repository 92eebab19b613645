"""What several rules of nft/egress.nft do together; rules/ tries each of them alone."""

from dataclasses import replace

import pytest

from deploy.demo.lab import ALICE, OTHER, PROXY
from egress_policy import firewall
from tests.kernel.conftest import World

RESET = "ECONNREFUSED"


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
