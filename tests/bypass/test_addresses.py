"""Names that lead where they should not, and addresses that serve more than one name."""

from dataclasses import replace

import pytest

from deploy.demo.lab import ALICE
from deploy.demo.zone import Behaviour
from tests.bypass.agent import Send
from tests.bypass.attempts import BOTH, KERNEL, PROXY, attempt
from tests.bypass.world import SCOPE, World

# What is sent to these leaves the host, where nothing stops it.
ROUTED = (
    "10.66.0.53",  # private; the lab's name server
    "172.16.0.1",
    "192.168.1.1",
    "169.254.1.1",  # link-local
    "169.254.169.254",  # cloud metadata
    "fd00:ec2::254",
    "168.63.129.16",
    "100.100.100.200",
    "100.64.0.1",  # carriers' NAT
    "192.0.0.192",
    "192.0.2.1",  # documentation
    "198.51.100.1",
    "203.0.113.1",
    "198.18.0.1",  # our own synthetic ones
    "2001:2:0:ffff::1",
    "2001:db8::1",
    "fc00::1",
    "fec0::1",
    "::10.66.0.53",  # IPv4 inside IPv6: compatible, NAT64, 6to4, Teredo
    "64:ff9b::a42:35",
    "64:ff9b:1::a42:35",
    "2002:a42:35::1",
    "2001:0:a42:35::1",
    "100::1",
    "66.1.2.3",  # known-bad in this policy
)
LOCAL = (
    "0.0.0.0",
    "127.0.0.1",
    "127.0.0.53",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fe80::1",
    "ff02::1",
    "::ffff:10.66.0.53",
    "::ffff:127.0.0.1",
    "::ffff:66.1.2.3",
)


@attempt(
    42,
    "Point a permitted name elsewhere after it was checked (DNS rebinding)",
    outcome="within the TTL the checked address is contacted; after it the new one is checked, and denied",
    barriers=BOTH,
    works_without=True,
)
@pytest.mark.parametrize(
    "evil", ["10.99.1.1", "66.99.1.1", "45.90.99.1"], ids=["private", "known-bad", "moved"]
)
def test_rebinding(world: World, evil: str) -> None:
    is_denied = not evil.startswith("45.")
    host, marker = world.name(ttl=0 if is_denied else 60), world.marker()
    (own, _) = world.lab.addresses(host)
    world.lab.add_name(host, own, ttl=0 if is_denied else 60)
    if PROXY in world.barriers:
        (before,) = world.send([own], 80, world.get(host, "/"))
        assert before.status == 200
    world.lab.add_name(host, evil, ttl=0)
    dialled = own if PROXY in world.barriers else evil
    (reply,) = world.send([dialled], 80, world.get(host, f"/{marker}"))
    if PROXY in world.barriers:
        assert (reply.status, reply.code) == ((403, "address_denied") if is_denied else (200, ""))
    world.nothing_reached(evil, marker="" if reply.status == 200 and world.barriers else marker)


@attempt(
    43,
    "Use a name that leads to a private, local, reserved, embedded or known-bad address, be it among good ones",
    outcome="denied as a whole: `address_denied`",
    barriers=BOTH,
    works_without=True,
)
def test_addresses_that_are_never_destinations(world: World) -> None:
    dialled = world.lab.addresses(world.name())[0]
    sends = []
    for place in (*ROUTED, *LOCAL):
        if PROXY not in world.barriers:
            sends.append(Send(place, 80, world.get("any.example", "/"), patience=0.5))
            continue
        alone, among = world.name(), world.name()
        good = world.lab.addresses(among)
        world.lab.add_name(alone, place)
        world.lab.add_name(among, *good, place)
        sends += [Send(dialled, 80, world.get(host, "/")) for host in (alone, among)]
    replies = world.make(sends)
    if world.barriers:
        world.fence()
    reached = {place for place in ROUTED if world.lab.packets_to(place, 80)}
    assert reached == (set() if world.barriers else set(ROUTED))
    if PROXY in world.barriers:
        denied = [reply.code for reply in replies]
        assert denied == ["address_denied"] * len(sends)


@attempt(
    44,
    "Use a name that is an alias, directly or over others, of a denied one",
    outcome="denied: `address_denied`",
    barriers=BOTH,
    works_without=True,
)
@pytest.mark.parametrize("links", [1, 2, 8])
def test_an_alias_of_a_denied_name(world: World, links: int) -> None:
    end = f"{world.marker()}.bad.example"
    world.lab.add_name(end)
    target = end
    for _ in range(links):
        alias = world.name(cname=target)
        target = alias
    address = world.lab.addresses(world.name())[0]
    dialled = [address] if PROXY in world.barriers else world.lab.addresses(end)
    replies = world.send(dialled, 80, world.get(target, "/"))
    world.nothing_reached(end)
    if PROXY in world.barriers:
        assert {reply.code for reply in replies} == {"address_denied"}


@attempt(
    45,
    "Use a name whose name server is silent, or fails",
    outcome="502 `resolution_failed` within the resolver's timeout, on record as a failure",
    barriers=PROXY,
)
@pytest.mark.parametrize("behaviour", [Behaviour.SILENT, Behaviour.SERVFAIL, None])
def test_a_failing_name_server(world: World, behaviour: Behaviour | None) -> None:
    host = world.name(behaviour=behaviour or Behaviour.ANSWER)
    address = world.lab.addresses(host)[0]
    if behaviour is None:
        world.lab.add_name(host, cname=host)
    answer = world.lab.curl(f"http://{host}/", "--resolve", f"{host}:80:{address}", uid=ALICE, headers=SCOPE)
    assert (answer.status, answer.json()["code"]) == (502, "resolution_failed")
    assert answer.seconds < 5
    (record,) = (one for one in world.lab.audit() if one.get("host") == host)
    assert record["outcome"] == "fail"
    world.nothing_reached(address)


@attempt(
    64,
    "Reach a denied name at an address that another name's grant has opened (a CDN)",
    outcome="each name is decided by itself: `destination_denied`",
    barriers=PROXY,
    works_without=True,
)
@pytest.mark.parametrize("port", [80, 443])
def test_a_shared_address(world: World, port: int) -> None:
    good, marker = world.name(), world.marker()
    evil = f"{marker}.bad.example"
    world.lab.add_name(evil, *world.lab.addresses(good))
    permitted = world.get(good, "/")
    assert {one.status for one in world.send(good, port, permitted, tls=good if port == 443 else None)} == {
        200
    }
    alone = world.send(good, port, world.get(evil, f"/{marker}"), tls=evil if port == 443 else None)
    world.nothing_reached(marker=marker)
    if PROXY in world.barriers:
        assert {reply.code for reply in alone} == {"destination_denied"}


@attempt(
    49,
    "Make the same attempts over IPv6, and with IPv4 addresses mapped into IPv6",
    outcome="the same; every attempt of this table is made over IPv4, IPv6 and mapped addresses where it can be",
    barriers=BOTH,
    works_without=True,
)
@pytest.mark.parametrize("way", ["IPv6", "mapped"])
def test_the_other_family(world: World, way: str) -> None:
    host, marker = world.raw_name(tls=False), world.marker()
    ipv4, ipv6 = world.lab.addresses(host)
    dialled = ipv6 if way == "IPv6" else f"::ffff:{ipv4}"
    web = (
        f"SSH-2.0-{marker}\r\n",
        f"\0{marker}\r\n",
        f"GET /{marker} HTTP/1.1\r\nHost: {host}\r\n\r\n",
        world.get(host, f"/{marker}", scope="sandbox-bob"),
        world.get(f"[{dialled}]", f"/{marker}"),
        world.get(f"[{dialled}%eth0]", f"/{marker}"),
    )
    sends = [
        Send(dialled, port, data, patience=5 if world.barriers else 0.5) for data in web for port in (80, 443)
    ]
    if KERNEL in world.barriers:
        sends += [replace(sends[0], port=port) for port in (22, 8443)]
        sends += [replace(sends[0], port=port, kind="udp") for port in (443, 853)]
    replies = world.make(sends)
    world.nothing_reached(ipv6 if way == "IPv6" else ipv4, marker=marker)
    assert (200 in {reply.status for reply in replies}) == (not world.barriers)
