"""Further ports: each way is its caller's alone, from the address that was dialled, and ends with its elements."""

from collections.abc import Iterator

import pytest

from tests.kernel.rules import probes
from tests.kernel.rules.world import (
    AGENT,
    BAD,
    BOX,
    DIALLED,
    FAMILIES,
    GATEWAY,
    GOOD,
    OTHER_AGENT,
    PROXY,
    RAW,
    RAW_PORT,
    UNKNOWN,
    World,
    load,
    way,
)

REFUSED = "ECONNREFUSED"
LATE_PORT = 9443
CALLERS = {"agent": ("host", AGENT), "container": ("box", 0)}

either_family = pytest.mark.parametrize("family", FAMILIES)
either_caller = pytest.mark.parametrize("caller", CALLERS)


def key(caller: str, family: int) -> int | str:
    """What the kernel knows a caller by."""
    return AGENT if caller == "agent" else BOX[family]


def change(world: World, *texts: str) -> None:
    world.call("host", 0, load, "".join(texts))


@pytest.fixture(autouse=True)
def nobody_else(world: World) -> Iterator[None]:
    """Each test ends with the ways that it found, whatever it opened."""
    yield
    for kind, names in (
        ("map", ("raw-tcp", "raw-tcp-sources")),
        ("set", ("raw-tcp-permitted", "raw-tcp-sources-permitted", "raw-tcp-closed")),
    ):
        for name in names:
            change(world, *(f"flush {kind} inet egress-policy {name}{v}\n" for v in ("", "-ipv6")))


@either_family
@either_caller
def test_a_way_is_its_caller_s_alone(world: World, caller: str, family: int) -> None:
    name, uid = CALLERS[caller]
    assert world.call(name, uid, probes.connect, DIALLED[family], RAW_PORT) == "net"
    change(world, way(key(caller, family), RAW_PORT, RAW[family], verb="delete"))
    assert world.call(name, uid, probes.connect, DIALLED[family], RAW_PORT) == REFUSED
    for other, other_uid in (("host", OTHER_AGENT), ("host", PROXY), ("other-box", 0)):
        assert world.call(other, other_uid, probes.connect, DIALLED[family], RAW_PORT) == REFUSED


@either_family
@either_caller
def test_a_way_is_one_port_s_by_tcp_from_the_address_that_was_told(
    world: World, caller: str, family: int
) -> None:
    name, uid = CALLERS[caller]
    assert world.call(name, uid, probes.connect, RAW[family], RAW_PORT) == REFUSED
    assert world.call(name, uid, probes.connect, RAW[family], 8443) == REFUSED
    assert world.call(name, uid, probes.connect, DIALLED[family], 8443) == REFUSED
    assert world.call(name, uid, probes.connect, DIALLED[family], 443) == "proxy"
    refused = {"EPERM", "EHOSTUNREACH", "EACCES"}
    for address in (RAW[family], DIALLED[family]):
        assert world.call(name, uid, probes.ask, address, RAW_PORT) in refused


@either_family
@either_caller
def test_a_port_of_the_proxy_s_is_never_led_past_it(world: World, caller: str, family: int) -> None:
    """Whatever the map says: it comes after the redirection."""
    name, uid = CALLERS[caller]
    change(world, way(key(caller, family), 443, RAW[family]), way(key(caller, family), 53, RAW[family]))
    assert world.call(name, uid, probes.connect, DIALLED[family], 443) == "proxy"
    assert world.call(name, uid, probes.connect, DIALLED[family], 53) == "proxy"


@either_family
@either_caller
def test_the_end_of_a_way_cuts_its_live_connection(world: World, caller: str, family: int) -> None:
    """Also for one agent while another has the same way."""
    name, uid = CALLERS[caller]
    change(world, way(OTHER_AGENT, RAW_PORT, RAW[family]))
    with (
        world.begin(name, uid, probes.converse, DIALLED[family], RAW_PORT) as connection,
        world.begin("host", OTHER_AGENT, probes.converse, DIALLED[family], RAW_PORT) as other,
    ):
        assert connection.next() == "net"
        change(world, way(key(caller, family), RAW_PORT, RAW[family], verb="delete", closed=False))
        assert connection.next() in {"ECONNRESET", REFUSED, "EPIPE"}
        assert other.next() == "net"


@either_family
@either_caller
def test_a_name_that_moved_leads_new_connections_and_keeps_the_old(
    world: World, caller: str, family: int
) -> None:
    name, uid = CALLERS[caller]
    who = key(caller, family)
    with world.begin(name, uid, probes.converse, DIALLED[family], RAW_PORT) as connection:
        (former, *_) = way(who, RAW_PORT, RAW[family], verb="delete").splitlines(keepends=True)
        # GOOD is known-good on port 443 alone.
        change(world, former, way(who, RAW_PORT, GOOD[family]))
        assert connection.next() == "net"
        assert world.call(name, uid, probes.connect, DIALLED[family], RAW_PORT) == "net"
        _, old, *_ = way(who, RAW_PORT, RAW[family], verb="delete").splitlines(keepends=True)
        change(world, old)
        assert connection.next() != "net"
        assert world.call(name, uid, probes.connect, DIALLED[family], RAW_PORT) == "net"


@either_family
@either_caller
def test_an_idle_connection_does_not_wake_up_under_a_later_way(
    world: World, caller: str, family: int
) -> None:
    """The kernel still leads it where it led; by then the name leads elsewhere."""
    name, uid = CALLERS[caller]
    who = key(caller, family)
    with world.begin(name, uid, probes.converse, DIALLED[family], RAW_PORT) as connection:
        assert connection.next() == "net"
        change(world, way(who, RAW_PORT, RAW[family], verb="delete"))
        change(world, way(who, RAW_PORT, GOOD[family]))
        assert connection.next() in {"ECONNRESET", REFUSED, "EPIPE"}


@either_family
@either_caller
def test_known_bad_wins(world: World, caller: str, family: int) -> None:
    name, uid = CALLERS[caller]
    change(world, way(key(caller, family), 8443, BAD[family]))
    assert world.call(name, uid, probes.connect, DIALLED[family], 8443) == REFUSED


@either_family
@pytest.mark.parametrize("becomes_bad", [False, True])
def test_a_closed_socket_sends_on_unless_its_address_became_known_bad(
    world: World, becomes_bad: bool, family: int
) -> None:
    change(world, way(AGENT, LATE_PORT, UNKNOWN[family]))
    with (
        world.begin("net", 0, probes.take_late, UNKNOWN[family], LATE_PORT) as peer,
        world.begin("host", AGENT, probes.send_and_close, DIALLED[family], LATE_PORT),
    ):
        if becomes_bad:
            bad = "known-bad-ipv4" if family == 4 else "known-bad-ipv6"
            change(world, f"add element inet egress-policy {bad} {{ {UNKNOWN[family]} }}\n")
        assert peer.next() == ("ECONNRESET" if becomes_bad else "the end")


@either_family
def test_a_closed_socket_is_cut_when_nobody_has_its_way_any_more(world: World, family: int) -> None:
    change(world, way(AGENT, LATE_PORT, RAW[family]))
    with (
        world.begin("net", 0, probes.take_late, RAW[family], LATE_PORT) as peer,
        world.begin("host", AGENT, probes.send_and_close, DIALLED[family], LATE_PORT),
    ):
        change(world, way(AGENT, LATE_PORT, RAW[family], verb="delete"))
        assert peer.next() == "ECONNRESET"


@either_family
def test_an_open_socket_does_not_pass_for_a_closed_one(world: World, family: int) -> None:
    """Of an agent whose own way has ended, while another's has not."""
    change(world, way(AGENT, RAW_PORT, RAW[family], verb="delete", closed=False))
    assert world.call("host", AGENT, probes.connect, DIALLED[family], RAW_PORT) == REFUSED


@either_family
@either_caller
def test_who_is_paused_gets_nothing_out(world: World, caller: str, family: int) -> None:
    name, uid = CALLERS[caller]
    with world.begin(name, uid, probes.converse, DIALLED[family], RAW_PORT) as connection:
        paused = f"paused-uids {{ {AGENT} }}"
        if caller == "container":
            paused = f"paused-sources{'' if family == 4 else '-ipv6'} {{ {BOX[family]} }}"
        change(world, f"add element inet egress-policy {paused}\n")
        assert connection.next() != "net"
        assert world.call(name, uid, probes.connect, DIALLED[family], RAW_PORT) == REFUSED


def test_a_process_of_this_host_does_not_pass_for_a_container(world: World) -> None:
    """It may send from any IPv6 address (IPV6_FREEBIND in ipv6(7)), and is no container for it."""
    change(world, way(AGENT, RAW_PORT, RAW[6], verb="delete"))
    with world.begin("net", 0, probes.receive, 6, RAW[6]) as receiver:
        receiver.resume()
        assert world.call("host", AGENT, probes.connect_from_anywhere, DIALLED[6], RAW_PORT, BOX[6]) != "net"
        assert receiver.result() == "nothing"


@either_family
def test_nobody_outside_reaches_a_container_by_a_way(world: World, family: int) -> None:
    assert world.call("net", 0, probes.connect, BOX[family], RAW_PORT) == REFUSED
    assert world.call("box", 0, probes.connect, GATEWAY[family], RAW_PORT) == REFUSED
