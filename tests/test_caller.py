"""Callers are known by the owner of their socket: a real redirect, in a network namespace of the test's own."""

import ctypes
import ipaddress
import os
import resource
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from egress_policy.caller import Caller, Callers
from egress_policy.socket_owner import Endpoint, Protocol, SocketOwnerError, socket_owner

ALICE, BOB = 2001, 2002
PROXY_PORT, DNS_PORT = 8080, 8053
HOST: dict[int, str] = {socket.AF_INET: "10.0.0.1", socket.AF_INET6: "fd00::1"}
ORIGIN: dict[int, str] = {socket.AF_INET: "203.0.113.1", socket.AF_INET6: "2001:db8::1"}
OTHER_ORIGIN: dict[int, str] = {socket.AF_INET: "203.0.113.2", socket.AF_INET6: "2001:db8::2"}
BOTH_FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
IPPROTO_MPTCP = 262
CAP_NET_ADMIN = 12

REDIRECT = f"""
table inet test {{
    chain output {{
        type nat hook output priority -100
        tcp dport 443 redirect to :{PROXY_PORT}
        udp dport 53 redirect to :{DNS_PORT}
    }}
}}
"""


class Host:
    """A host of its own whose traffic to port 443 and UDP port 53 is redirected to sockets of this process."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._proxy = {family: self._listener(family, socket.SOCK_STREAM, PROXY_PORT) for family in HOST}
        self.dns = {family: self._listener(family, socket.SOCK_DGRAM, DNS_PORT) for family in HOST}

    def open(self, uid: int, family: int, kind: int, port: int = 0, protocol: int = 0) -> socket.socket:
        """Make a socket as its user would, bound to a port of any address that other sockets may share."""
        with acting_as(uid):
            made = self._stack.enter_context(socket.socket(family, kind, protocol))
        made.settimeout(2)
        if port:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(("", port))
        return made

    def connect(self, client: socket.socket, address: str) -> Endpoint:
        """Connect to port 443, and return the client as the proxy sees it."""
        client.connect((address, 443))
        listener = self._proxy[socket.AF_INET if "." in address else socket.AF_INET6]
        accepted, peer = listener.accept()
        self._stack.enter_context(accepted)
        return endpoint(peer)

    def query(self, client: socket.socket, address: str) -> Endpoint:
        """Send a datagram to port 53, and return the client as the proxy sees it."""
        client.sendto(b"query", (address, 53))
        _, peer = self.dns[socket.AF_INET if "." in address else socket.AF_INET6].recvfrom(512)
        return endpoint(peer)

    def _listener(self, family: int, kind: int, port: int) -> socket.socket:
        listener = self._stack.enter_context(socket.socket(family, kind))
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.settimeout(2)
        listener.bind(("", port))
        if kind == socket.SOCK_STREAM:
            listener.listen()
        return listener


def endpoint(peer: tuple[str, int]) -> Endpoint:
    return ipaddress.ip_address(peer[0]), peer[1]


@contextmanager
def acting_as(uid: int) -> Iterator[None]:
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def host() -> Iterator[Host]:
    outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    os.unshare(os.CLONE_NEWNET)
    try:
        for command in (
            "link set lo up",
            "link add test0 type veth peer name test1",
            "addr add 10.0.0.1/24 dev test0",
            "addr add fd00::1/64 dev test0 nodad",
            "link set test0 up",
            "link set test1 up",
            "route add default dev test0",
            "-6 route add default dev test0",
        ):
            subprocess.run(["ip", *command.split()], check=True)
        subprocess.run(["nft", "-f", "-"], input=REDIRECT, text=True, check=True)
        with ExitStack() as stack:
            yield Host(stack)
    finally:
        os.setns(outside, os.CLONE_NEWNET)
        os.close(outside)


@BOTH_FAMILIES
def test_a_connection_belongs_to_the_user_who_made_it(host: Host, family: int) -> None:
    for uid in (ALICE, BOB, 0):
        client = host.connect(host.open(uid, family, socket.SOCK_STREAM), ORIGIN[family])
        assert socket_owner(client, PROXY_PORT, Protocol.TCP) == uid


def test_ipv4_from_an_ipv6_socket_is_found(host: Host) -> None:
    client = host.open(ALICE, socket.AF_INET6, socket.SOCK_STREAM)
    client.connect(("::ffff:203.0.113.1", 443))
    address, port = client.getsockname()[:2]
    assert address == "::ffff:10.0.0.1"
    for written in (address, "10.0.0.1"):
        assert socket_owner((ipaddress.ip_address(written), port), PROXY_PORT, Protocol.TCP) == ALICE


def test_a_multipath_tcp_connection_is_found(host: Host) -> None:
    made = host.open(ALICE, socket.AF_INET, socket.SOCK_STREAM, protocol=IPPROTO_MPTCP)
    assert socket_owner(host.connect(made, ORIGIN[socket.AF_INET]), PROXY_PORT, Protocol.TCP) == ALICE


@BOTH_FAMILIES
def test_two_connections_from_one_source_port_are_told_apart(host: Host, family: int) -> None:
    first = host.connect(host.open(ALICE, family, socket.SOCK_STREAM, 5000), ORIGIN[family])
    second = host.connect(host.open(BOB, family, socket.SOCK_STREAM, 5000), OTHER_ORIGIN[family])
    assert first[1] == 5000
    assert second[1] != 5000, "the kernel gives the second another source port at our end"
    assert socket_owner(first, PROXY_PORT, Protocol.TCP) == ALICE
    assert socket_owner(second, PROXY_PORT, Protocol.TCP) == BOB


@BOTH_FAMILIES
def test_a_rewritten_source_port_does_not_make_its_connection_somebody_elses(host: Host, family: int) -> None:
    """Bob arrives from another port; Alice's socket has that very port, and the same destination."""
    host.connect(host.open(BOB, family, socket.SOCK_STREAM, 5000), OTHER_ORIGIN[family])
    bobs = host.connect(host.open(BOB, family, socket.SOCK_STREAM, 5000), ORIGIN[family])
    alices = host.connect(host.open(ALICE, family, socket.SOCK_STREAM, bobs[1]), ORIGIN[family])
    assert socket_owner(bobs, PROXY_PORT, Protocol.TCP) == BOB
    assert socket_owner(alices, PROXY_PORT, Protocol.TCP) == ALICE


@BOTH_FAMILIES
def test_a_closed_socket_is_nobodys(host: Host, family: int) -> None:
    made = host.open(ALICE, family, socket.SOCK_STREAM)
    client = host.connect(made, ORIGIN[family])
    made.close()
    assert socket_owner(client, PROXY_PORT, Protocol.TCP) is None


@BOTH_FAMILIES
def test_a_listener_on_the_port_of_a_lost_client_is_not_the_client(host: Host, family: int) -> None:
    made = host.open(ALICE, family, socket.SOCK_STREAM)
    client = host.connect(made, ORIGIN[family])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    made.close()
    host.open(BOB, family, socket.SOCK_STREAM, client[1]).listen()
    assert socket_owner(client, PROXY_PORT, Protocol.TCP) is None


def test_what_was_not_redirected_to_us_is_nobodys(host: Host) -> None:
    client = host.connect(host.open(ALICE, socket.AF_INET, socket.SOCK_STREAM), ORIGIN[socket.AF_INET])
    assert socket_owner(client, PROXY_PORT + 1, Protocol.TCP) is None
    assert socket_owner(client, PROXY_PORT, Protocol.UDP) is None
    assert socket_owner((client[0], client[1] ^ 1), PROXY_PORT, Protocol.TCP) is None


def test_a_connection_from_our_port_to_a_clients_is_not_the_clients(host: Host) -> None:
    """The kernel finds a connection by either end; only one that arrived at our port has a client."""
    listener = host.open(ALICE, socket.AF_INET, socket.SOCK_STREAM, 7000)
    listener.listen()
    from_our_port = host.open(BOB, socket.AF_INET, socket.SOCK_STREAM)
    from_our_port.bind(("127.0.0.1", 7001))
    from_our_port.connect(("127.0.0.1", 7000))
    assert socket_owner((ipaddress.ip_address("127.0.0.1"), 7000), 7001, Protocol.TCP) is None


@BOTH_FAMILIES
def test_a_dns_query_belongs_to_the_user_who_sent_it(host: Host, family: int) -> None:
    unconnected = host.open(ALICE, family, socket.SOCK_DGRAM)
    assert socket_owner(host.query(unconnected, ORIGIN[family]), DNS_PORT, Protocol.UDP) == ALICE
    connected = host.open(BOB, family, socket.SOCK_DGRAM)
    connected.connect((ORIGIN[family], 53))
    assert socket_owner(host.query(connected, ORIGIN[family]), DNS_PORT, Protocol.UDP) == BOB


def test_a_dns_query_over_ipv4_from_an_ipv6_socket_is_found(host: Host) -> None:
    client = host.open(ALICE, socket.AF_INET6, socket.SOCK_DGRAM)
    client.sendto(b"query", ("::ffff:203.0.113.1", 53))
    address = ipaddress.ip_address("10.0.0.1")
    assert socket_owner((address, client.getsockname()[1]), DNS_PORT, Protocol.UDP) == ALICE


@BOTH_FAMILIES
def test_a_udp_port_shared_by_two_users_is_nobodys(host: Host, family: int) -> None:
    alices = host.open(ALICE, family, socket.SOCK_DGRAM, 6000)
    client = host.query(alices, ORIGIN[family])
    assert socket_owner(client, DNS_PORT, Protocol.UDP) == ALICE
    bobs = host.open(BOB, family, socket.SOCK_DGRAM, 6000)
    assert socket_owner(client, DNS_PORT, Protocol.UDP) is None
    bobs.close()
    host.open(ALICE, family, socket.SOCK_DGRAM, 6000)
    assert socket_owner(client, DNS_PORT, Protocol.UDP) == ALICE


def test_a_user_who_sends_from_anothers_address_is_not_taken_for_him(host: Host) -> None:
    """Bob's socket is bound to loopback, and IP_PKTINFO (ip(7)) makes its datagram come from Alice's socket."""
    family = socket.AF_INET
    host.open(ALICE, family, socket.SOCK_DGRAM).bind((HOST[family], 6000))
    bobs = host.open(BOB, family, socket.SOCK_DGRAM)
    bobs.bind(("127.0.0.1", 6000))
    packet_info = struct.pack("i4s4s", 0, socket.inet_aton(HOST[family]), bytes(4))
    bobs.sendmsg([b"query"], [(socket.IPPROTO_IP, socket.IP_PKTINFO, packet_info)], 0, (ORIGIN[family], 53))
    _, peer = host.dns[family].recvfrom(512)
    assert peer == (HOST[family], 6000)
    assert socket_owner(endpoint(peer), DNS_PORT, Protocol.UDP) is None


@BOTH_FAMILIES
def test_a_closed_udp_socket_is_nobodys(host: Host, family: int) -> None:
    made = host.open(ALICE, family, socket.SOCK_DGRAM)
    client = host.query(made, ORIGIN[family])
    made.close()
    assert socket_owner(client, DNS_PORT, Protocol.UDP) is None


def test_without_the_capability_the_error_names_it(host: Host) -> None:
    client = host.connect(host.open(ALICE, socket.AF_INET, socket.SOCK_STREAM), ORIGIN[socket.AF_INET])
    with acting_as(ALICE), pytest.raises(SocketOwnerError, match="CAP_NET_ADMIN"):
        socket_owner(client, PROXY_PORT, Protocol.TCP)


def test_that_capability_alone_is_enough(host: Host) -> None:
    tcp = host.connect(host.open(ALICE, socket.AF_INET, socket.SOCK_STREAM), ORIGIN[socket.AF_INET])
    udp = host.query(host.open(BOB, socket.AF_INET, socket.SOCK_DGRAM), ORIGIN[socket.AF_INET])

    def both_are_found() -> bool:
        return (
            socket_owner(tcp, PROXY_PORT, Protocol.TCP) == ALICE
            and socket_owner(udp, DNS_PORT, Protocol.UDP) == BOB
        )

    assert in_a_process_with_net_admin_alone(both_are_found)


def in_a_process_with_net_admin_alone(check: Callable[[], bool]) -> bool:
    child = os.fork()
    if child == 0:
        passed = False
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            keep_capabilities = 8
            libc.prctl(keep_capabilities, 1, 0, 0, 0)
            os.setgroups([])
            os.setresgid(ALICE + 99, ALICE + 99, ALICE + 99)
            os.setresuid(ALICE + 99, ALICE + 99, ALICE + 99)
            # capset(2), version 3: effective, permitted and inheritable, of the low and of the high 32.
            version = struct.pack("=II", 0x20080522, 0)
            net_admin = 1 << CAP_NET_ADMIN
            if libc.capset(version, struct.pack("=6I", net_admin, net_admin, 0, 0, 0, 0)) == 0:
                passed = check()
        finally:
            os._exit(0 if passed else 1)
    return os.waitpid(child, 0)[1] == 0


def test_a_look_up_takes_no_noticeable_time(host: Host) -> None:
    """It runs in the event loop: with many sockets about, too, it must not hold up other requests."""
    crowd = [host.open(BOB, socket.AF_INET, socket.SOCK_DGRAM) for _ in range(500)]
    for other in crowd:
        other.bind((HOST[socket.AF_INET], 0))
    tcp = host.connect(host.open(ALICE, socket.AF_INET, socket.SOCK_STREAM), ORIGIN[socket.AF_INET])
    udp = host.query(host.open(ALICE, socket.AF_INET, socket.SOCK_DGRAM, 6000), ORIGIN[socket.AF_INET])
    began = time.perf_counter()
    for _ in range(100):
        assert socket_owner(tcp, PROXY_PORT, Protocol.TCP) == ALICE
        assert socket_owner(udp, DNS_PORT, Protocol.UDP) == ALICE
    assert (time.perf_counter() - began) / 100 < 0.02


CALLERS = Callers(
    uids=[(ALICE, ALICE, "alice"), (BOB, BOB + 10, "bob")],
    sources=[
        (ipaddress.ip_network("10.0.0.0/8"), "all-containers"),
        (ipaddress.ip_network("10.88.0.0/16"), "containers"),
        (ipaddress.ip_network("10.88.0.11/32"), "one-container"),
        (ipaddress.ip_network("fd00:88::/64"), "containers"),
    ],
)


@pytest.mark.parametrize(
    ("uid", "agent"),
    [
        (ALICE, "alice"),
        (BOB, "bob"),
        (BOB + 10, "bob"),
        (ALICE - 1, None),
        (BOB + 11, None),
        (0, None),
    ],
)
def test_agents_of_this_host_are_known_by_their_uid_alone(host: Host, uid: int, agent: str | None) -> None:
    """The host's own address lies in an agent's source, and makes nobody that agent."""
    made = host.open(uid, socket.AF_INET, socket.SOCK_STREAM)
    client = host.connect(made, ORIGIN[socket.AF_INET])
    assert CALLERS.identify(client, PROXY_PORT) == Caller(agent, uid=uid)
    made.close()
    assert CALLERS.identify(client, PROXY_PORT) == Caller(None)


def test_a_dns_query_is_identified_like_a_connection(host: Host) -> None:
    client = host.query(host.open(ALICE, socket.AF_INET6, socket.SOCK_DGRAM), ORIGIN[socket.AF_INET6])
    assert CALLERS.identify(client, DNS_PORT, Protocol.UDP) == Caller("alice", uid=ALICE)


@pytest.mark.parametrize(
    ("address", "agent"),
    [
        ("10.88.0.11", "one-container"),
        ("::ffff:10.88.0.11", "one-container"),
        ("10.88.0.12", "containers"),
        ("10.89.0.1", "all-containers"),
        ("fd00:88::5", "containers"),
        ("fd00:89::5", None),
        ("192.0.2.1", None),
    ],
)
def test_who_is_elsewhere_is_known_by_the_longest_source(host: Host, address: str, agent: str | None) -> None:
    written = ipaddress.ip_address(address)
    plain = getattr(written, "ipv4_mapped", None) or written
    assert CALLERS.identify((written, 40000), PROXY_PORT) == Caller(agent, source=plain)


def test_with_no_file_descriptor_left_nobody_is_taken_for_a_container(host: Host) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(SocketOwnerError, match="Too many open files"):
            CALLERS.identify((ipaddress.ip_address("10.88.0.11"), 40000), PROXY_PORT)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
