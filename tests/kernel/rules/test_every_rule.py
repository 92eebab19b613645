"""Each rule of egress.nft is there for something: a probe that ends differently when the rule is taken out."""

import ipaddress
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from egress_policy.firewall import compose
from tests.kernel.rules import probes
from tests.kernel.rules.namespaces import run
from tests.kernel.rules.world import (
    AGENT,
    BAD,
    BOX,
    BYSTANDER,
    CONSOLE_PORT,
    DIALLED,
    DNS_PORT,
    FAMILIES,
    GATEWAY,
    GOOD,
    GRANTED,
    HOST,
    LOCAL,
    LOCAL_NAMESERVER_PORT,
    NAMED,
    NAMESERVER,
    NET,
    OTHER_AGENT,
    OTHER_BOX,
    OTHER_GATEWAY,
    PROXY,
    PROXY_PORT,
    RAW,
    RAW_PORT,
    RULESET,
    TAKEN,
    UNKNOWN,
    World,
    insert,
    load,
    remove,
    rules,
    setting,
    way,
    without,
)

type Probe = Callable[[World], object]
type Family = int

REFUSED = "ECONNREFUSED"
BLOCKED = "Agent Egress Blocked: "
NOBODY = 61999
LATE_PORT = 9443
OWN_PORT = 5353
ANSWER = "tcp flags & (syn | ack) == syn | ack"


@dataclass(frozen=True, slots=True)
class Case:
    """A rule, and a probe with what it has to come to. `policy` is what differs from the world's ruleset."""

    chain: str
    rule: str
    name: str
    probe: Probe
    expected: object
    policy: Mapping[str, Any] = field(default_factory=dict)


def dial(name: str, uid: int, address: str, port: int, source: str = "") -> Probe:
    """Connect by TCP."""
    return lambda world: world.call(name, uid, probes.connect, address, port, source)


def ask(name: str, uid: int, address: str, port: int) -> Probe:
    """Ask by UDP."""
    return lambda world: world.call(name, uid, probes.ask, address, port)


def ask_from(name: str, uid: int, nameserver: str) -> Probe:
    """Ask a name server from the one port."""
    return lambda world: world.call(name, uid, probes.ask_from, OWN_PORT, nameserver, 53)


def shake_hands(name: str, address: str, port: int) -> Probe:
    """Connect by TCP, and nothing more."""
    return lambda world: world.call(name, 0, probes.shake_hands, address, port)


def with_cookies(act: Probe) -> Probe:
    """Do something while the host answers every connection with a SYN cookie."""

    def probe(world: World) -> object:
        world.call("host", 0, setting, "ipv4/tcp_syncookies", "2")
        try:
            return act(world)
        finally:
            world.call("host", 0, setting, "ipv4/tcp_syncookies", "1")

    return probe


def logged(*acts: Probe) -> Probe:
    """List what was logged of something: group, prefix and destination, once for each."""

    def probe(world: World) -> object:
        with world.begin("host", 0, probes.log, 1, 2) as log:
            for act in acts:
                act(world)
            seen = {(group, prefix, _destination(packet)) for group, prefix, packet in log.next()}
            # An agent that listened, in an earlier probe, still repeats its refused answers to the peer there.
            return sorted(one for one in seen if one[2] not in NET.values())

    return probe


def beside_a_flood(flooder: tuple[str, int], other: tuple[str, int, str], family: Family) -> Probe:
    """See whether all that an agent tries, from a source of its own, is logged while another tries far more than is."""
    name, uid, source = other

    def probe(world: World) -> object:
        with (
            world.begin("host", 0, probes.log, 1) as log,
            world.begin(*flooder, probes.hammer, [(UNKNOWN[family], 8443)] * 10, []) as hammer,
        ):
            # By then it has used up what is logged at once.
            time.sleep(0.5)
            for _ in range(8):
                world.call(name, uid, probes.connect, BAD[family], 8443, source)
            hammer.next()
            found = [_destination(packet) for _, _, packet in log.next()]
            assert found.count(UNKNOWN[family]) > 100
            return found.count(BAD[family]) == 8

    return probe


def borrowed(family: Family) -> Probe:
    """Ask the DNS from a container under another's address, and see whether that comes in."""

    def probe(world: World) -> object:
        with world.begin("host", 0, probes.receive, 17, OTHER_GATEWAY[family]) as receiver:
            receiver.resume()
            world.call("other-box", 0, probes.ask, UNKNOWN[family], 53, BOX[family])
            return receiver.result()

    return probe


def multicast(address: str, family: Family) -> Probe:
    """Send to a group, under an address that is not the container's."""
    group = ask_from_taken(address, 5353, family)
    return logged(group, ask_from_taken(UNKNOWN[family], 9999, family))


def ask_from_taken(address: str, port: int, family: Family) -> Probe:
    """Ask under an address that is nobody's."""
    return lambda world: world.call("other-box", 0, probes.ask, address, port, TAKEN[family])


def neighbours(world: World) -> object:
    """Connect from a container that has yet to find out where its gateway is, and the gateway where it is."""
    _forget_neighbours(world)
    return world.call("box", 0, probes.connect, GOOD[6], 443)


def link_local_neighbours(world: World) -> object:
    """Ask for the gateway's link-local address from the container's own."""
    _forget_neighbours(world)
    gateway = run_in(world, "host", "ip", "-6", "-br", "address", "show", "dev", "box", "scope", "link")
    address = gateway.split()[2].split("/")[0]
    world.call("box", 0, probes.ask, f"{address}%eth0", 9)
    return "lladdr" in run_in(world, "box", "ip", "-6", "neigh", "show", address, "dev", "eth0")


def run_in(world: World, name: str, *command: str) -> str:
    """Run a command there, as root."""
    return str(world.call(name, 0, run, *command))


def lives_on(family: Family) -> Probe:
    """Use a connection to a known-good name after the name has moved on."""

    def probe(world: World) -> object:
        world.call("host", 0, insert, "known-good-domains", NAMED[family], 443)
        with world.begin("host", AGENT, probes.converse, NAMED[family], 443) as connection:
            world.call("host", 0, remove, "known-good-domains", NAMED[family], 443)
            return connection.next()

    return probe


def closed(uid: int, name: str, address: str) -> Probe:
    """Close a connection that still has data to send, then delete the element that it depends on."""

    def probe(world: World) -> object:
        element = f"element inet egress-policy {name} {{ {address} . {LATE_PORT} }}"
        run_in(world, "host", "nft", f"add {element}")
        with (
            world.begin("net", 0, probes.take_late, address, LATE_PORT) as peer,
            world.begin("host", uid, probes.send_and_close, address, LATE_PORT),
        ):
            run_in(world, "host", "nft", f"delete {element}")
            return peer.next()

    return probe


def closed_raw(family: Family) -> Probe:
    """Close a connection to a further port that still has data to send."""

    def probe(world: World) -> object:
        world.call("host", 0, load, way(AGENT, LATE_PORT, RAW[family]))
        with (
            world.begin("net", 0, probes.take_late, RAW[family], LATE_PORT) as peer,
            world.begin("host", AGENT, probes.send_and_close, DIALLED[family], LATE_PORT),
        ):
            return peer.next()

    return probe


def in_turn(*parts: Probe) -> Probe:
    """Do one after the other."""
    return lambda world: [part(world) for part in parts]


def _forget_neighbours(world: World) -> None:
    run_in(world, "box", "ip", "-6", "neigh", "flush", "dev", "eth0")
    run_in(world, "host", "ip", "-6", "neigh", "flush", "dev", "box")


def _destination(packet: bytes) -> str:
    version = packet[0] >> 4
    return str(ipaddress.ip_address(packet[16:20] if version == 4 else packet[24:40]))


def _cases() -> Iterator[Case]:
    def one(chain: str, rule: str, name: str, probe: Probe, expected: object, **policy: Any) -> Case:
        return Case(chain, rule, name, probe, expected, policy)

    for v in FAMILIES:
        ip, suffix = ("ip", "") if v == 4 else ("ip6", "-ipv6")
        unknown, good, local = UNKNOWN[v], GOOD[v], LOCAL[v]

        yield one("nat-output", "meta skuid @agent-uids goto to-proxy", f"agent {v}",
                  dial("host", AGENT, unknown, 443), "proxy")  # fmt: skip
        yield one("nat-prerouting", f"iifname @agent-links {ip} saddr @agent-sources{suffix} goto to-proxy",
                  f"container {v}", dial("box", 0, unknown, 443), "proxy")  # fmt: skip

        yield one("own-queries", f"meta skuid $proxy_uid {ip} daddr . th dport @nameservers{suffix} ct original zone set 97", "",
                  in_turn(ask_from("host", PROXY, NAMESERVER[v]), ask_from("host", AGENT, NAMESERVER[v])),
                  ["net", "proxy"])  # fmt: skip

        dns = "meta l4proto { tcp, udp } th dport 53 redirect to :$dns_port"
        yield one("to-proxy", dns, f"udp {v}", ask("host", AGENT, unknown, 53), "proxy")
        yield one("to-proxy", dns, f"tcp {v}", dial("host", AGENT, unknown, 53), "proxy")
        yield one("to-proxy", dns, f"container's udp {v}", ask("box", 0, unknown, 53), "proxy")
        yield one("to-proxy", "fib daddr type local return", f"{v}", dial("host", AGENT, local, 80), "local")
        yield one("to-proxy", f"{ip} daddr . tcp dport @known-good-ipv{v} return", "",
                  dial("host", AGENT, good, 443), "net")  # fmt: skip
        yield one("to-proxy", f"{ip} daddr . tcp dport @known-good-domains{suffix} return", "",
                  dial("host", AGENT, NAMED[v], 443), "net")  # fmt: skip
        web = "tcp dport $proxy_ports redirect to :$proxy_port"
        yield one("to-proxy", web, f"{v}", dial("host", AGENT, unknown, 80), "proxy")

        to_raw = f"{ip} daddr . tcp dport map @raw-tcp"
        yield one("to-proxy", f"dnat {ip} to meta skuid . {to_raw}{suffix}", "",
                  dial("host", AGENT, DIALLED[v], RAW_PORT), "net")  # fmt: skip
        yield one("to-proxy", f"iifname @agent-links dnat {ip} to {ip} saddr . {to_raw}-sources{suffix}", "",
                  dial("box", 0, DIALLED[v], RAW_PORT), "net")  # fmt: skip

        yield one("sources", "iifname != @agent-links accept", f"{v}",
                  dial("host", BYSTANDER, unknown, 443), "net")  # fmt: skip
        yield one("sources", f"iifname . {ip} saddr @agent-link-sources{suffix} accept", "",
                  dial("box", 0, good, 443), "net")  # fmt: skip
        group = {4: "224.0.0.251", 6: "ff05::fb"}[v]
        yield one("sources", {4: "ip daddr 224.0.0.0/4 drop", 6: "ip6 daddr ff00::/8 drop"}[v], "",
                  multicast(group, v), [(1, BLOCKED, unknown)])  # fmt: skip
        yield one("sources", 'limit rate 50/second log prefix "Agent Egress Blocked: " group 1', f"{v}",
                  logged(ask_from_taken(unknown, 9999, v)), [(1, BLOCKED, unknown)])  # fmt: skip
        yield one("sources", "goto refuse", f"another's {v}", borrowed(v), "nothing")
        yield one("sources", "goto refuse", f"nobody's {v}",
                  dial("other-box", 0, good, 443, TAKEN[v]), REFUSED)  # fmt: skip

        # Here somebody else than the proxy's user has the proxy's port.
        yield one(
            "output",
            f"ct direction reply ct status dnat tcp sport {{ $proxy_port, $dns_port }} {ANSWER} jump own-answer",
            f"{v}",
            in_turn(dial("host", AGENT, unknown, 443), dial("host", AGENT, unknown, 53)),
            ["silence", "silence"],
            proxy_uid=NOBODY,
        )
        yield one(
            "output",
            "ct direction reply ct status dnat udp sport $dns_port meta skuid != $proxy_uid drop",
            f"{v}",
            ask("host", AGENT, unknown, 53),
            "silence",
            proxy_uid=NOBODY,
        )
        yield one(
            "own-answer", "drop", f"{v}", dial("host", AGENT, unknown, 443), "silence", proxy_uid=NOBODY
        )
        yield one("own-answer", "drop", f"without a socket {v}",
                  with_cookies(dial("host", AGENT, unknown, 443)), "silence", proxy_uid=NOBODY)  # fmt: skip
        yield one("own-answer", "meta skuid $proxy_uid return", f"{v}",
                  dial("host", AGENT, unknown, 443), "proxy")  # fmt: skip
        yield one("output", f'oifname != "lo" tcp sport @agent-ports {ANSWER} jump socket-answer', f"{v}",
                  with_cookies(shake_hands("net", HOST[v], 9100)), "silence")  # fmt: skip
        yield one("socket-answer", "drop", f"{v}",
                  with_cookies(shake_hands("net", HOST[v], 9100)), "silence")  # fmt: skip
        yield one("socket-answer", "meta cgroup 0-4294967295 return", f"{v}",
                  dial("net", 0, HOST[v], 9000), "local")  # fmt: skip
        yield one("output", "meta skuid @agent-uids ct label set 96 goto agent-egress", f"{v}",
                  dial("host", AGENT, unknown, 8443), REFUSED)  # fmt: skip
        yield one("output", "meta skuid $proxy_uid ct label set 97 goto proxy-egress", f"{v}",
                  dial("host", PROXY, unknown, 443), REFUSED)  # fmt: skip

        raw = f"ct original {ip} daddr . tcp dport . {ip} daddr @raw-tcp"
        yield one("output", f"ct label 96 {ip} daddr != @known-bad-ipv{v} {raw}-closed{suffix} accept", "",
                  closed_raw(v), "the end")  # fmt: skip

        for label, chain, uid, name in ((96, "agent-egress", AGENT, f"known-good-ipv{v}"),
                                        (97, "proxy-egress", PROXY, f"developer-sandbox{suffix}")):  # fmt: skip
            yield one("output", f"ct label {label} fib daddr type != local tcp flags & rst != rst goto {chain}", f"{v}",
                      closed(uid, name, GRANTED[v]), "ECONNRESET")  # fmt: skip

        yield one("forward", "iifname @agent-links goto agent-egress", f"{v}",
                  dial("box", 0, unknown, 8443), REFUSED)  # fmt: skip
        yield one("forward", "oifname @agent-links ct direction original goto refuse", f"{v}",
                  dial("net", 0, BOX[v], 9000), REFUSED)  # fmt: skip

        ports = "meta l4proto { tcp, udp } th dport { $proxy_port, $dns_port } ct direction original"
        for what, port, probe in (("tcp", 443, dial), ("tcp dns", 53, dial), ("udp dns", 53, ask)):
            yield one("input", f"{ports} ct status dnat accept", f"{what} {v}",
                      probe("host", AGENT, unknown, port), "proxy")  # fmt: skip
        for port in (PROXY_PORT, DNS_PORT):
            yield one("input", f"{ports} goto refuse", f"from outside {port} {v}",
                      dial("net", 0, HOST[v], port), REFUSED)  # fmt: skip
            yield one("input", f"{ports} goto refuse", f"from inside {port} {v}",
                      dial("host", BYSTANDER, LOCAL[v], port), REFUSED)  # fmt: skip
        yield one("input", "iifname @agent-links goto agent-input", f"{v}",
                  dial("box", 0, GATEWAY[v], 9000), REFUSED)  # fmt: skip
        yield one("agent-input", "ct direction reply accept", f"{v}",
                  dial("host", BYSTANDER, BOX[v], 9000), "box")  # fmt: skip
        yield one("agent-input", "goto refuse", f"{v}", dial("box", 0, HOST[v], 9000), REFUSED)

        yield one("agent-egress", f"{ip} daddr != @known-bad-ipv{v} jump agent-permitted", "",
                  dial("host", AGENT, good, 443), "net")  # fmt: skip
        yield one("agent-egress", "jump log-refusal", f"{v}", logged(dial("host", AGENT, unknown, 8443)),
                  [(1, BLOCKED, unknown)])  # fmt: skip
        limited = "limit rate 50/second burst 100 packets"
        log = f'log prefix "{BLOCKED}" group 1'
        yield one("log-refusal",
                  f"meta skuid @agent-uids update @refused-uids {{ meta skuid {limited} }} {log} return",
                  f"{v}", beside_a_flood(("host", AGENT), ("host", OTHER_AGENT, ""), v), True)  # fmt: skip
        yield one("log-refusal",
                  f"iifname @agent-links update @refused-links {{ iifname {limited} }} {log} return",
                  f"{v}", beside_a_flood(("box", 0), ("other-box", 0, OTHER_BOX[v]), v), True)  # fmt: skip
        # Of the closed socket's packets, which are no uid's any more.
        yield one("log-refusal", f"{limited} {log}", f"{v}",
                  logged(closed(AGENT, f"known-good-ipv{v}", GRANTED[v])),
                  [(1, BLOCKED, GRANTED[v]), (2, "Agent Egress Direct: ", GRANTED[v])])  # fmt: skip
        yield one("agent-egress", "goto refuse", f"{v}", dial("host", AGENT, unknown, 8443), REFUSED)

        paused_uid = {"paused_uids": ((AGENT, AGENT),)}
        paused_box = {"paused_sources": (ipaddress.ip_network(BOX[v]),)}
        yield one("to-proxy", "meta skuid @paused-uids tcp dport $proxy_ports redirect to :$proxy_port", f"{v}",
                  dial("host", AGENT, good, 443), "proxy", **paused_uid)  # fmt: skip
        yield one("to-proxy",
                  f"{ip} saddr @paused-sources{suffix} tcp dport $proxy_ports redirect to :$proxy_port", "",
                  dial("box", 0, good, 443), "proxy", **paused_box)  # fmt: skip
        # On a port that is not redirected, the kernel alone refuses.
        yield one("agent-permitted", "meta skuid @paused-uids return", f"{v}",
                  dial("host", AGENT, good, 443), REFUSED, proxy_ports=(80,), **paused_uid)  # fmt: skip
        yield one("agent-permitted", f"iifname @agent-links {ip} saddr @paused-sources{suffix} return", "",
                  dial("box", 0, good, 443), REFUSED, proxy_ports=(80,), **paused_box)  # fmt: skip

        nameservers = f"{ip} daddr . th dport @nameservers{suffix} return"
        yield one("agent-permitted", nameservers, "tcp",
                  dial("host", AGENT, local, LOCAL_NAMESERVER_PORT), REFUSED)  # fmt: skip
        yield one("agent-permitted", nameservers, "udp",
                  ask("host", AGENT, local, LOCAL_NAMESERVER_PORT), "EPERM")  # fmt: skip
        yield one("agent-permitted", "fib daddr type local jump agent-loopback-permitted", f"{v}",
                  dial("host", AGENT, local, 9000), "local")  # fmt: skip
        yield one("agent-permitted", f"{ip} daddr . tcp dport @known-good-ipv{v} goto direct", "",
                  dial("host", AGENT, good, 443), "net")  # fmt: skip
        yield one("agent-permitted", f"meta skuid . {raw}-permitted{suffix} goto direct", "",
                  dial("host", AGENT, DIALLED[v], RAW_PORT), "net")  # fmt: skip
        yield one("agent-permitted",
                  f"iifname @agent-links {ip} saddr . {raw}-sources-permitted{suffix} goto direct", "",
                  dial("box", 0, DIALLED[v], RAW_PORT), "net")  # fmt: skip
        connection = f"{ip} saddr . tcp sport . {ip} daddr . tcp dport"
        update = f"update @direct-connections{suffix} {{ {connection} }}"
        yield one("agent-permitted",
                  f"{ip} daddr . tcp dport @known-good-domains{suffix} {update}", "",
                  lives_on(v), "net")  # fmt: skip
        yield one("agent-permitted", f"{ip} daddr . tcp dport @known-good-domains{suffix} goto direct", "",
                  dial("host", AGENT, NAMED[v], 443), "net")  # fmt: skip
        yield one("agent-permitted",
                  f"ct state established {connection} @direct-connections{suffix} {update} accept", "",
                  lives_on(v), "net")  # fmt: skip

        yield one("agent-loopback-permitted",
                  "ct direction original ct status dnat tcp dport { $proxy_port, $dns_port } accept", f"web {v}",
                  dial("host", AGENT, unknown, 443), "proxy")  # fmt: skip
        yield one("agent-loopback-permitted",
                  "ct direction original ct status dnat tcp dport { $proxy_port, $dns_port } accept", f"dns {v}",
                  dial("host", AGENT, unknown, 53), "proxy")  # fmt: skip
        yield one("agent-loopback-permitted", "ct direction original ct status dnat udp dport $dns_port accept",
                  f"{v}", ask("host", AGENT, unknown, 53), "proxy")  # fmt: skip
        # The input hook would refuse it too, but nobody would hear of it.
        for port, probe in ((PROXY_PORT, dial), (DNS_PORT, dial), (DNS_PORT, ask)):
            yield one("agent-loopback-permitted", "th dport { $proxy_port, $dns_port } return",
                      f"{probe.__name__} {port} {v}",
                      logged(probe("host", AGENT, local, port)), [(1, BLOCKED, local)])  # fmt: skip
        yield one("agent-loopback-permitted", "tcp dport @console-ports return", f"{v}",
                  logged(dial("host", AGENT, local, CONSOLE_PORT)), [(1, BLOCKED, local)])  # fmt: skip
        # Here an agent has the console's port.
        yield one("agent-loopback-permitted", "ct direction reply tcp sport @console-ports return", f"{v}",
                  dial("host", BYSTANDER, local, 9100), "silence", console_port=9100)  # fmt: skip
        yield one("proxy-permitted", "ct direction reply tcp sport @console-ports fib daddr type local accept",
                  f"{v}", dial("host", BYSTANDER, local, CONSOLE_PORT), "proxy")  # fmt: skip
        yield one("agent-loopback-permitted",
                  "ct direction original meta skuid . th dport @agent-loopback accept", f"{v}",
                  dial("host", AGENT, local, 9000), "local")  # fmt: skip
        yield one("agent-loopback-permitted", "ct direction reply accept", f"{v}",
                  dial("host", BYSTANDER, local, 9100), "agent")  # fmt: skip

        yield one("direct", 'ct state new log prefix "Agent Egress Direct: " group 2', f"{v}",
                  logged(dial("host", AGENT, good, 443)), [(2, "Agent Egress Direct: ", good)])  # fmt: skip
        yield one("direct", "accept", f"{v}", dial("host", AGENT, good, 443), "net")

        yield one("proxy-egress", f"{ip} daddr != @known-bad-ipv{v} jump proxy-permitted", "",
                  dial("host", PROXY, good, 443), "net")  # fmt: skip
        yield one("proxy-egress",
                  'meta skuid $proxy_uid limit rate 100/second burst 200 packets '
                  'log prefix "Proxy Egress Blocked: " group 1',
                  f"{v}", logged(dial("host", PROXY, unknown, 443), closed(PROXY, f"developer-sandbox{suffix}", GRANTED[v])),
                  [(1, "Proxy Egress Blocked: ", unknown)])  # fmt: skip
        yield one("proxy-egress", "goto refuse", f"{v}", dial("host", PROXY, unknown, 443), REFUSED)
        yield one("proxy-permitted", "ct direction reply ct status dnat accept", f"agent {v}",
                  dial("host", AGENT, unknown, 443), "proxy")  # fmt: skip
        yield one("proxy-permitted", "ct direction reply ct status dnat accept", f"container {v}",
                  dial("box", 0, unknown, 443), "proxy")  # fmt: skip
        asked = f"{ip} daddr . th dport @nameservers{suffix} meta l4proto {{ tcp, udp }} accept"
        yield one("proxy-permitted", asked, "udp", ask("host", PROXY, NAMESERVER[v], 53), "net")
        yield one("proxy-permitted", asked, "tcp", dial("host", PROXY, NAMESERVER[v], 53), "net")
        yield one("proxy-permitted", f"{ip} daddr . tcp dport @known-good-ipv{v} accept", "",
                  dial("host", PROXY, good, 443), "net")  # fmt: skip
        yield one("proxy-permitted", f"{ip} daddr . tcp dport @known-good-domains{suffix} accept", "",
                  dial("host", PROXY, NAMED[v], 443), "net")  # fmt: skip
        yield one("proxy-permitted", f"{ip} daddr . tcp dport @developer-sandbox{suffix} accept", "",
                  dial("host", PROXY, GRANTED[v], 443), "net")  # fmt: skip

        yield one("refuse", "meta l4proto tcp reject with tcp reset", f"agent {v}",
                  dial("host", AGENT, unknown, 8443), REFUSED)  # fmt: skip
        yield one("refuse", "meta l4proto tcp reject with tcp reset", f"container {v}",
                  dial("box", 0, unknown, 8443), REFUSED)  # fmt: skip
        yield one("refuse", "reject with icmpx admin-prohibited", f"agent {v}",
                  ask("host", AGENT, unknown, 443), "EPERM")  # fmt: skip
        yield one("refuse", "reject with icmpx admin-prohibited", f"container {v}",
                  ask("box", 0, unknown, 443), {4: "EHOSTUNREACH", 6: "EACCES"}[v])  # fmt: skip

    kinds = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit }"
    yield one("sources", f"{kinds} ip6 hoplimit 255 accept", "link-local", link_local_neighbours, True)
    yield one("agent-input", f"{kinds} accept", "", neighbours, "net")


CASES = tuple(_cases())


@pytest.mark.parametrize(
    "case", CASES, ids=[" ".join(filter(None, (one.chain, one.rule, one.name))) for one in CASES]
)
def test_each_rule_matters(world: World, case: Case) -> None:
    """With the rule, the probe ends as it should; without it, it does not."""
    text = compose(replace(RULESET, **case.policy))
    (rule,) = [one for one in rules(text) if (one.chain, one.text) == (case.chain, case.rule)]
    if case.policy:
        world.load(text)
    assert case.probe(world) == case.expected
    world.load(without(text, rule))
    assert case.probe(world) != case.expected


def test_no_rule_is_left_out() -> None:
    """And the table names no rule that is gone."""
    in_file = [(one.chain, one.text) for one in rules(compose(RULESET))]
    assert len(in_file) == len(set(in_file)), "a rule stands twice in one chain"
    assert {(case.chain, case.rule) for case in CASES} == set(in_file)


POLICIES: dict[str, Probe] = {
    "nat-output": dial("host", BYSTANDER, UNKNOWN[4], 443),
    "nat-prerouting": dial("net", 0, HOST[4], 9000),
    "output": dial("host", BYSTANDER, UNKNOWN[4], 443),
    "forward": dial("box", 0, GOOD[4], 443),
    "input": dial("net", 0, HOST[4], 9000),
}


@pytest.mark.parametrize("chain", POLICIES)
def test_each_hook_leaves_alone_what_is_no_agents(world: World, chain: str) -> None:
    """A policy of drop would be felt. (Nothing comes to the end of the hook `sources`.)"""
    head, tail = world.text.split(f"chain {chain} {{\n")
    world.load(f"{head}chain {chain} {{\n{tail.replace('policy accept', 'policy drop', 1)}")
    assert POLICIES[chain](world) in {"silence", "EPERM"}
    # A chain's policy stays as it is when the chain is flushed, unless it is declared anew.
    world.load()
    assert POLICIES[chain](world) in {"net", "local"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_full_set_of_live_connections_refuses_no_new_one(world: World, family: Family) -> None:
    """One busy agent must not cut the others off from known-good names for an hour."""
    clear = (
        "add table inet egress-policy\ndelete table inet egress-policy\n"  # a set's size cannot be changed
    )
    world.load(clear + world.text.replace("size 65536", "size 2"))
    try:
        world.call("host", 0, insert, "known-good-domains", NAMED[family], 443)
        dialled = [world.call("host", AGENT, probes.connect, NAMED[family], 443) for _ in range(4)]
    finally:
        world.load(clear)
        world.load()
    assert dialled == ["net"] * 4
