"""What the rules come to together, for agents, containers, the proxy and everybody else."""

import pytest

from tests.kernel.rules import probes
from tests.kernel.rules.world import (
    AGENT,
    BAD,
    BOX,
    BYSTANDER,
    FAMILIES,
    GATEWAY,
    GOOD,
    GRANTED,
    HOST,
    INTERNET,
    LOCAL,
    NAMED,
    NAMESERVER,
    NEIGHBOUR,
    OTHER_AGENT,
    OTHER_BOX,
    PROXY,
    PROXY_PORT,
    RULESET,
    UNKNOWN,
    World,
    insert,
    remove,
    rules,
    without,
)

REFUSED = "ECONNREFUSED"
HELD = [("host", AGENT), ("box", 0), ("host", PROXY)]
AGENTS = HELD[:2]
UDP_REFUSED = {"EPERM", "EHOSTUNREACH", "EACCES"}
ICMP = {4: 1, 6: 58}
SCTP = 132
UDP = 17

either_family = pytest.mark.parametrize("family", FAMILIES)


@either_family
@pytest.mark.parametrize(("name", "uid"), HELD)
def test_known_bad_wins_over_every_set(world: World, name: str, uid: int, family: int) -> None:
    """It is in known-good already; a name's address and a grant do not open it either."""
    for timed in ("known-good-domains", "developer-sandbox"):
        world.call("host", 0, insert, timed, BAD[family], 443)
    assert world.call(name, uid, probes.connect, BAD[family], 443) == REFUSED
    for timed in ("known-good-domains", "developer-sandbox"):
        world.call("host", 0, remove, timed, BAD[family], 443)


@either_family
@pytest.mark.parametrize(("name", "uid"), HELD)
@pytest.mark.parametrize("place", [GOOD, NAMED, GRANTED, UNKNOWN, NEIGHBOUR])
def test_no_set_opens_udp(world: World, name: str, uid: int, place: dict[int, str], family: int) -> None:
    """QUIC would pass the proxy by."""
    assert world.call(name, uid, probes.ask, place[family], 443) in UDP_REFUSED


@either_family
@pytest.mark.parametrize(("name", "uid"), HELD)
@pytest.mark.parametrize("place", [GOOD, GRANTED, UNKNOWN])
def test_an_open_port_opens_no_other(
    world: World, name: str, uid: int, place: dict[int, str], family: int
) -> None:
    assert world.call(name, uid, probes.connect, place[family], 8443) == REFUSED


@either_family
@pytest.mark.parametrize("protocol", ["icmp", SCTP])
def test_no_other_protocol_leaves(world: World, protocol: str | int, family: int) -> None:
    """Not even to known-good, and not even from a process that was given a raw socket."""
    number = ICMP[family] if protocol == "icmp" else int(protocol)
    for name, uid in HELD:
        with world.begin("net", 0, probes.receive, number, GOOD[family]) as receiver:
            receiver.resume()
            world.call(name, 0, probes.send, number, GOOD[family], uid)
            assert receiver.result() == "nothing", name
    with world.begin("net", 0, probes.receive, number, GOOD[family]) as receiver:
        receiver.resume()
        world.call("host", 0, probes.send, number, GOOD[family], BYSTANDER)
        assert receiver.result() == "received"


@either_family
def test_whoever_is_no_agent_is_not_touched(world: World, family: int) -> None:
    for place in INTERNET:
        for port in (22, 80, 443, 8443):
            assert world.call("host", BYSTANDER, probes.connect, place[family], port) == "net"
        for port in (53, 443):
            assert world.call("host", BYSTANDER, probes.ask, place[family], port) == "net"
    assert world.call("net", 0, probes.connect, HOST[family], 9000) == "local"
    assert world.call("host", BYSTANDER, probes.connect, LOCAL[family], 9000) == "local"


@either_family
@pytest.mark.parametrize(("name", "uid"), AGENTS)
def test_agents_do_not_use_each_others_grants(world: World, name: str, uid: int, family: int) -> None:
    """A grant opens an address to the proxy, which knows whose it is; agents get there through it alone."""
    assert world.call(name, uid, probes.connect, GRANTED[family], 443) == "proxy"
    assert world.call("host", PROXY, probes.connect, GRANTED[family], 443) == "net"


@either_family
@pytest.mark.parametrize(("name", "uid"), AGENTS)
def test_a_grant_for_another_port_opens_nothing_to_the_agent_itself(
    world: World, name: str, uid: int, family: int
) -> None:
    """What is not redirected does not get to the proxy, and not past it either."""
    world.call("host", 0, insert, "developer-sandbox", GRANTED[family], 22)
    assert world.call(name, uid, probes.connect, GRANTED[family], 22) == REFUSED
    assert world.call("host", PROXY, probes.connect, GRANTED[family], 22) == "net"
    world.call("host", 0, remove, "developer-sandbox", GRANTED[family], 22)


@either_family
def test_every_name_server_is_the_addons(world: World, family: int) -> None:
    """Whichever address an agent asks, on this host too: the resolver of systemd listens on loopback."""
    for name, uid in AGENTS:
        for address in (NAMESERVER[family], UNKNOWN[family], GOOD[family]):
            assert world.call(name, uid, probes.ask, address, 53) == "proxy"
            assert world.call(name, uid, probes.connect, address, 53) == "proxy"
    assert world.call("host", AGENT, probes.ask, LOCAL[family], 53) == "proxy"
    assert world.call("box", 0, probes.ask, GATEWAY[family], 53) == "proxy"


@either_family
@pytest.mark.parametrize("port", [8080, 8053])
def test_the_proxys_ports_are_not_to_be_dialled(world: World, port: int, family: int) -> None:
    """Only what was redirected gets there."""
    dialled = (
        ("host", AGENT, LOCAL),
        ("host", AGENT, HOST),
        ("host", PROXY, LOCAL),
        ("host", BYSTANDER, LOCAL),
        ("host", BYSTANDER, HOST),
        ("box", 0, GATEWAY),
        ("box", 0, HOST),
        ("net", 0, HOST),
    )
    for name, uid, place in dialled:
        assert world.call(name, uid, probes.connect, place[family], port) == REFUSED, (name, uid)


@either_family
def test_the_proxys_port_is_refused_twice(world: World, family: int) -> None:
    """Where an agent's packet leaves, and where it arrives; and then the proxy may not answer."""
    barriers = (
        ("agent-loopback-permitted", "th dport { $proxy_port, $dns_port } return"),
        (
            "input",
            "meta l4proto { tcp, udp } th dport { $proxy_port, $dns_port } ct direction original goto refuse",
        ),
        ("output", "meta skuid $proxy_uid ct label set 97 goto proxy-egress"),
    )
    bare = world.text
    for chain, text in barriers:
        (rule,) = [one for one in rules(world.text) if (one.chain, one.text) == (chain, text)]
        world.load(without(world.text, rule))
        assert world.call("host", AGENT, probes.connect, LOCAL[family], PROXY_PORT) == REFUSED
        (rule,) = [one for one in rules(bare) if (one.chain, one.text) == (chain, text)]
        bare = without(bare, rule)
    world.load(bare)
    assert world.call("host", AGENT, probes.connect, LOCAL[family], PROXY_PORT) == "proxy"


@either_family
def test_containers_reach_neither_each_other_nor_this_host(world: World, family: int) -> None:
    assert world.call("box", 0, probes.connect, OTHER_BOX[family], 9000) == REFUSED
    for place in (GATEWAY, HOST):
        assert world.call("box", 0, probes.connect, place[family], 9000) == REFUSED
        assert world.call("box", 0, probes.ask, place[family], 9000) in UDP_REFUSED
    assert world.call("net", 0, probes.connect, BOX[family], 9000) == REFUSED
    assert world.call("host", AGENT, probes.connect, BOX[family], 9000) == REFUSED


@either_family
def test_an_agent_that_listens_is_heard_on_this_host_alone(world: World, family: int) -> None:
    for name in ("net", "box"):
        assert world.call(name, 0, probes.connect, HOST[family], 9100) != "agent"
    assert world.call("host", BYSTANDER, probes.connect, LOCAL[family], 9100) == "agent"


@either_family
def test_an_agent_with_a_full_queue_answers_nobody_outside(world: World, family: int) -> None:
    """The kernel does, with a SYN cookie, of which no rule knows whose it is; others' cookies stay good."""
    for uid, port, answer in ((AGENT, 9200, "silence"), (BYSTANDER, 443, "connected")):
        with world.begin("host", uid, probes.listen_with_a_full_queue, HOST[family], port):
            assert world.call("net", 0, probes.shake_hands, HOST[family], port) == answer


@either_family
def test_whoever_takes_the_proxys_port_with_a_full_queue_hears_no_request(world: World, family: int) -> None:
    """What the kernel answers for it with a SYN cookie does not count as the proxy's answer."""
    with world.begin("host", AGENT, probes.listen_with_a_full_queue, LOCAL[family], 9200):
        world.load(world.text.replace(f"proxy_port = {PROXY_PORT}", "proxy_port = 9200"))
        for name, uid in (("host", OTHER_AGENT), ("host", AGENT)):
            assert world.call(name, uid, probes.shake_hands, UNKNOWN[family], 443) == "silence"


@either_family
def test_an_agent_reaches_the_local_ports_that_it_was_given(world: World, family: int) -> None:
    """And another agent does not."""
    world.set_policy(loopback=(((AGENT, AGENT), (9000, 9000)),))
    assert world.call("host", AGENT, probes.connect, LOCAL[family], 9000) == "local"
    assert world.call("host", AGENT, probes.connect, LOCAL[family], 80) == REFUSED
    assert world.call("host", OTHER_AGENT, probes.connect, LOCAL[family], 9000) == REFUSED


@either_family
@pytest.mark.parametrize("squatters", [RULESET.agent_uids, ((PROXY, OTHER_AGENT),)], ids=["user", "agent"])
def test_whoever_takes_the_proxys_port_hears_no_request(
    world: World, squatters: tuple[tuple[int, int], ...], family: int
) -> None:
    """Be it an agent or not: here the proxy's uid is another than that of who listens."""
    world.set_policy(proxy_uid=61999, agent_uids=squatters)
    assert world.call("host", AGENT, probes.connect, UNKNOWN[family], 443) == "silence"
    assert world.call("host", AGENT, probes.connect, UNKNOWN[family], 53) == "silence"
    assert world.call("host", AGENT, probes.ask, UNKNOWN[family], 53) == "silence"
    assert world.call("box", 0, probes.connect, UNKNOWN[family], 443) == "silence"


@either_family
def test_the_end_of_a_grant_cuts_its_live_connection(world: World, family: int) -> None:
    with world.begin("host", PROXY, probes.converse, GRANTED[family], 443) as connection:
        assert connection.next() == "net"
        world.call("host", 0, remove, "developer-sandbox", GRANTED[family], 443)
        assert connection.next() in {"ECONNRESET", REFUSED, "EPIPE"}


@either_family
def test_a_socket_that_was_closed_sends_on_while_its_grant_lasts(world: World, family: int) -> None:
    """And no longer: it has no uid any more, but is not nobody's. The peer hears that it is gone."""
    for grant_lasts, end in ((True, "the end"), (False, "ECONNRESET")):
        world.call("host", 0, insert, "developer-sandbox", GRANTED[family], 9443)
        with (
            world.begin("net", 0, probes.take_late, GRANTED[family], 9443) as peer,
            world.begin("host", PROXY, probes.send_and_close, GRANTED[family], 9443),
        ):
            if not grant_lasts:
                world.call("host", 0, remove, "developer-sandbox", GRANTED[family], 9443)
            assert peer.next() == end


@either_family
@pytest.mark.parametrize(("name", "uid"), AGENTS)
def test_a_changed_policy_cuts_live_direct_connections(
    world: World, name: str, uid: int, family: int
) -> None:
    """Also the one that was let live on after its name had moved."""
    with (
        world.begin(name, uid, probes.converse, NAMED[family], 443) as named,
        world.begin(name, uid, probes.converse, GOOD[family], 443) as good,
    ):
        world.call("host", 0, remove, "known-good-domains", NAMED[family], 443)
        assert named.next() == "net"
        assert world.call(name, uid, probes.connect, NAMED[family], 443) == "proxy"
        world.load(world.text)
        assert named.next() != "net"
        assert good.next() == "net"
        world.set_policy(known_good=())
        assert good.next() != "net"


@either_family
def test_refusals_beyond_the_logs_limit_are_refusals(world: World, family: int) -> None:
    """A limit in the refusing rule would let the rest out."""
    for uid in (AGENT, PROXY):
        most = 0
        # A busy machine may not send that many at once in every round.
        for _ in range(10):
            with (
                world.begin("host", uid, probes.hammer, [(UNKNOWN[family], 8443)] * 10, []) as hammer,
                world.begin("net", 0, probes.receive, UDP, UNKNOWN[family]) as receiver,
            ):
                assert receiver.next() == "nothing"
                counts = hammer.next()
            assert set(counts) == {("udp", "EPERM"), ("tcp", REFUSED)}
            most = max(most, min(counts.values()))
            if most > 300:
                break
        assert most > 300
