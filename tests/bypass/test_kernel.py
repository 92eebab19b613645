"""Ways past the proxy: other ports, other protocols, other users, other addresses."""

import shutil
import sys

import pytest

from deploy.demo.lab import ALICE, BOB, HOST_ADDRESSES, OTHER, PROXY_PORT
from deploy.demo.lab import PROXY as PROXY_UID
from tests.bypass.attempts import BOTH, KERNEL, PROXY, attempt
from tests.bypass.world import NEIGHBOUR, SUBORDINATE, World, until

REFUSED = {"EPERM", "EHOSTUNREACH", "EACCES", "ECONNREFUSED"}
LISTEN = """
import socket, sys
server = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready", flush=True)
while True:
    peer, _ = server.accept()
    print(peer.recv(100).decode(), flush=True)
"""
# Sends over one connection for as long as it is answered.
TALK = """
import socket, sys, time
try:
    client = socket.create_connection((sys.argv[1], 22), timeout=5)
    while True:
        client.send(b"?")
        assert client.recv(100)
        print("alive", flush=True)
        time.sleep(0.1)
except OSError as error:
    print(type(error).__name__, flush=True)
"""


@attempt(
    46,
    "Connect straight to the proxy's port, or have it connect to itself",
    outcome="refused; no request is read",
    barriers=BOTH,
    works_without=True,
)
@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1", *HOST_ADDRESSES])
def test_dialling_the_proxy(world: World, address: str) -> None:
    host, marker = world.raw_name(), world.marker()
    (reply,) = world.send([address], PROXY_PORT, world.get(host, f"/{marker}"))
    if world.barriers:
        world.nothing_reached(host, marker=marker)
        assert reply.status != 200
    else:
        # mitmproxy knows that it would connect to itself: the agent has reached it, which is all there is to it.
        assert reply.end not in REFUSED


@attempt(
    47,
    "Speak QUIC to UDP port 443",
    outcome="refused at once",
    barriers=KERNEL,
    works_without=True,
)
def test_quic(world: World) -> None:
    host = world.name()
    if world.barriers:
        world.open(host, 443)
    replies = world.send(host, 443, "\xc0\x00\x00\x00\x01" + "\0" * 1195, kind="udp")
    world.nothing_reached(host)
    if world.barriers:
        assert {reply.end for reply in replies} <= REFUSED


@attempt(
    48,
    "Dial another port of an address that has a grant",
    outcome="refused at once",
    barriers=KERNEL,
    works_without=True,
)
@pytest.mark.parametrize("port", [22, 8443, 9080])
def test_another_port_of_a_granted_address(world: World, port: int) -> None:
    host = world.name()
    world.grant(host)
    replies = world.send(host, port, "")
    if world.barriers:
        assert {reply.end for reply in replies} == {"ECONNREFUSED"}
    reached = [world.lab.packets_to(address, port) > 0 for address in world.lab.addresses(host)]
    assert reached == [not world.barriers] * 2


@attempt(
    51,
    "Become another user: a subordinate uid, root of a user namespace, a setuid program",
    outcome="still held to the policy, where it names the subordinate uids too and `no_new_privs` is set",
    barriers=BOTH,
    works_without=True,
)
@pytest.mark.parametrize("how", ["subordinate uid", "user namespace", "setuid program"])
def test_another_uid(world: World, how: str) -> None:
    host, marker = world.raw_name(), world.marker()
    address = world.lab.addresses(host)[0]
    field = "X-Agent-Scope: sandbox-other"
    curl = ["curl", "-s", "--max-time", "5", "-H", field, f"http://{host}/{marker}"]
    curl += ["--resolve", f"{host}:80:{address}"]
    uid = ALICE
    if how == "subordinate uid":
        uid = SUBORDINATE
    elif how == "user namespace":
        curl = ["unshare", "--user", "--map-root-user", *curl]
    else:
        program = world.lab.folder / f"curl-{marker}"
        shutil.copy(shutil.which("curl") or "", program)
        shutil.chown(program, OTHER, OTHER)
        program.chmod(0o6755)
        curl[0] = str(program)
    answer = world.lab.run(curl, uid=uid)
    world.nothing_reached(*([address] if not world.barriers else [host]), marker=marker)
    if PROXY in world.barriers:
        assert '"scope_not_allowed"' in answer.stdout


@attempt(
    53,
    "Take over the proxy's own user, and connect past the proxy",
    outcome="refused, save to what a grant has opened",
    barriers=KERNEL,
    works_without=True,
)
@pytest.mark.parametrize("port", [22, 80, 443, 8443])
def test_the_proxys_own_uid(world: World, port: int) -> None:
    host = world.name()
    replies = world.send(host, port, "", uid=PROXY_UID, patience=0.2)
    world.nothing_reached(host)
    if world.barriers:
        assert {reply.end for reply in replies} == {"ECONNREFUSED"}
        world.open(host, port)
        assert {one.end for one in world.send(host, port, "", uid=PROXY_UID, patience=0.2)} != {
            "ECONNREFUSED"
        }
        # And so by UDP.
        assert {one.end for one in world.send(host, port, "x", kind="udp", uid=PROXY_UID)} <= REFUSED


@attempt(
    63,
    "Connect directly to an address that a grant opened for the proxy",
    outcome="refused, or redirected and decided like any other request",
    barriers=KERNEL,
    works_without=True,
)
@pytest.mark.parametrize("uid", [ALICE, BOB])
def test_an_open_address_is_the_proxys_alone(world: World, uid: int) -> None:
    """Also when the proxy is gone."""
    host = world.name()
    world.grant(host)
    if world.barriers:
        world.open(host, 22)
    ended = {reply.end for reply in world.send(host, 22, "", uid=uid)}
    reached = [world.lab.packets_to(address, 22) > 0 for address in world.lab.addresses(host)]
    assert reached == [not world.barriers] * 2
    if world.barriers:
        assert ended == {"ECONNREFUSED"}
        world.stop_proxy()
        before = [world.lab.packets_to(address, 443) for address in world.lab.addresses(host)]
        assert {reply.end for reply in world.send(host, 443, "", uid=uid)} == {"ECONNREFUSED"}
        assert [world.lab.packets_to(address, 443) for address in world.lab.addresses(host)] == before


@attempt(
    70,
    "Dial a further port (SSH) of a name by its real address, with a grant for the name or without",
    outcome="refused at once: the agent with the grant is led there from the address that it was told",
    barriers=KERNEL,
    works_without=True,
)
@pytest.mark.parametrize("uid", [ALICE, BOB])
def test_a_further_port_by_its_real_address(world: World, uid: int) -> None:
    host = world.further_name()
    world.grant(host)
    ended = {reply.end for reply in world.send(host, 22, "", uid=uid)}
    reached = [world.lab.packets_to(address, 22) > 0 for address in world.lab.addresses(host)]
    assert reached == [not world.barriers] * 2
    if world.barriers:
        assert ended == {"ECONNREFUSED"}
        # For alice it is open all the same.
        replies = world.send(world.told(host), 22, "", patience=2)
        assert {one.answer for one in replies} == {"SSH-2.0-demo\r\n"}


@attempt(
    71,
    "Take another agent's way to a further port, or go on there after the grant was revoked",
    outcome="refused at once; cut when the grant ends",
    barriers=KERNEL,
)
def test_a_further_port_after_its_grant(world: World) -> None:
    host, marker = world.further_name(), world.marker()
    world.grant(host)
    told = world.told(host)
    running = world.lab.start([sys.executable, "-c", TALK, told[0]], uid=ALICE, log=marker)
    try:
        assert until(lambda: "alive" in world.lab.output(marker), 30)
        assert {one.end for one in world.send(told, 22, "", uid=BOB)} == {"ECONNREFUSED"}
        assert {one.end for one in world.send(told, 23, "")} == {"ECONNREFUSED"}
        revoked = world.lab.egress_policy("revoke", "--host", host, "--audit", world.lab.audit_file,
                                          "--control", world.lab.control_socket)  # fmt: skip
        assert revoked.returncode == 0, revoked.stderr
        assert running.wait(20) == 0
        assert "Connection" in world.lab.output(marker)
    finally:
        running.kill()
        running.wait(10)
    assert {one.end for one in world.send(told, 22, "")} == {"ECONNREFUSED"}


@attempt(
    65,
    "Listen, and have an outside peer connect",
    outcome="the peer gets no answer",
    barriers=KERNEL,
    works_without=True,
)
def test_an_agent_that_listens(world: World) -> None:
    marker, port = world.marker(), 9100
    server = world.lab.start([sys.executable, "-c", LISTEN, str(port)], uid=ALICE, log=marker)
    try:
        world.lab.wait(server, marker, lambda: "ready" in world.lab.output(marker))
        replies = world.send(HOST_ADDRESSES, port, marker, ns="net", uid=0, patience=0.5)
        if world.barriers:
            assert {reply.end for reply in replies} <= {"silence", "ECONNREFUSED"}
            assert marker not in world.lab.output(marker)
        else:
            assert until(lambda: world.lab.output(marker).count(marker) == len(replies))
    finally:
        server.kill()
        server.wait(10)


@attempt(
    66,
    "A container takes another address than its own, its neighbour's on one bridge, or an IPv6 address",
    outcome="refused, on every port and to every destination",
    barriers=KERNEL,
    works_without=True,
)
@pytest.mark.parametrize(
    "taken",
    ["10.88.0.77/24", "45.90.199.9/32", "fd88::77/64", f"{NEIGHBOUR[0]}/32", f"{NEIGHBOUR[1]}/128"],
)
def test_a_container_with_another_address(world: World, taken: str) -> None:
    container, host = world.container, world.name()
    address = world.lab.addresses(host)[":" in taken]
    source = taken.partition("/")[0]
    world.lab.run(["ip", "address", "add", taken, "dev", "eth0", "nodad"], ns=container)
    try:
        for port in (80, 443, 8443):
            world.lab.run(
                ["curl", "-s", "--max-time", "0.5", "--interface", source, f"http://{_url(address)}:{port}/"],
                ns=container,
            )
        world.nothing_reached(address)
    finally:
        world.lab.run(["ip", "address", "del", taken, "dev", "eth0"], ns=container)


@attempt(
    69,
    "Talk to another container on the same bridge, which the host only passes on",
    outcome="no packet arrives, where each agent's `port` is named",
    barriers=KERNEL,
    works_without=True,
)
@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_a_neighbour_on_the_bridge(world: World, family: int) -> None:
    """It could pass on what the policy denies."""
    marker, port, lab = world.marker(), 9200, world.lab
    server = lab.start([sys.executable, "-c", LISTEN, str(port)], ns=world.neighbour, log=marker)
    try:
        lab.wait(server, marker, lambda: "ready" in lab.output(marker))
        (reply,) = world.send([NEIGHBOUR[family]], port, marker, ns=world.container, uid=0, patience=0.5)
        if world.barriers:
            world.fence()
            assert reply.answer == ""
            assert marker not in lab.output(marker)
        else:
            assert until(lambda: marker in lab.output(marker))
    finally:
        server.kill()
        server.wait(10)


def _url(address: str) -> str:
    return f"[{address}]" if ":" in address else address
