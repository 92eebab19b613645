"""A laboratory without the proxy: in its place something listens that only says whose it is."""

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from deploy.demo.lab import ALICE, BOB, OTHER, PROXY, Lab
from egress_policy.firewall import Ruleset

# Answers each TCP connection, and each datagram, with a word of its own.
LISTENER = """
import socket, sys, threading
word, *places = sys.argv[1:]
def tcp(sock):
    while True:
        peer, _ = sock.accept()
        peer.sendall(word.encode())
        peer.close()
def udp(sock):
    while True:
        _, peer = sock.recvfrom(2048)
        try:
            sock.sendto(word.encode(), peer)
        except OSError:
            pass  # the ruleset dropped it
for place in places:
    kind, address, port = place.split(",")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind((address, int(port)))
    if kind == "tcp":
        sock.listen(64)
    threading.Thread(target=tcp if kind == "tcp" else udp, args=(sock,)).start()
print("ready", flush=True)
"""
# Prints what comes back, or the name of the error.
PROBE = """
import errno, socket, sys
kind, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
sock = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
sock.settimeout(0.7)
try:
    sock.connect((address, port))
    sock.sendall(bytes.fromhex(sys.argv[4]) if len(sys.argv) > 4 else b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    answer = sock.recv(512)
    print("dns" if len(sys.argv) > 4 and answer else answer[:5].decode("latin-1").strip() or "closed")
except TimeoutError:
    print("timeout")
except OSError as error:
    print(errno.errorcode.get(error.errno, "?"))
"""


@dataclass(frozen=True, slots=True)
class World:
    """The laboratory, with addresses by what the ruleset makes of them (IPv4, IPv6)."""

    lab: Lab
    plain: tuple[str, ...]
    good: tuple[str, ...]
    named: tuple[str, ...]
    granted: tuple[str, ...]
    bad: tuple[str, ...]
    ruleset: Ruleset
    container: str

    def probe(
        self, kind: str, address: str, port: int, *, uid: int = ALICE, ns: str = "host", data: str = ""
    ) -> str:
        """Say what comes back when a user tries to reach a place."""
        arguments = [kind, address, str(port), *([data] if data else [])]
        return self.lab.python(PROBE, *arguments, uid=uid, ns=ns).stdout.strip()

    def load(self, text: str) -> None:
        """Load a ruleset's text, and the timed elements that the probes need."""
        timed = [
            f"add element inet egress-policy {name}{suffix} {{ {address} . {port} timeout 1h }}\n"
            for name, addresses in (("known-good-domains", self.named), ("developer-sandbox", self.granted))
            for suffix, address in zip(("", "-ipv6"), addresses, strict=True)
            for port in (22, 443)
        ]
        done = self.lab.run(["nft", "-f", "-"], stdin=text + "".join(timed))
        assert done.returncode == 0, done.stderr

    def listen(self, word: str, *places: str, uid: int, ns: str = "host") -> None:
        """Have a user listen at places such as `tcp,127.0.0.1,8080`."""
        name = f"listener-{word}-{places[0]}"
        process = self.lab.start(["python3", "-c", LISTENER, word, *places], uid=uid, ns=ns, log=name)
        self.lab.wait(process, name, lambda: "ready" in self.lab.output(name))


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Two agents by uid, one behind a link, and something that answers wherever a probe may get."""
    names = ("plain.example", "good.example", "named.example", "granted.example", "bad.example")
    with Lab(*names) as lab:
        container = lab.add_container("10.88.0.11", "fd88::11")
        plain, good, named, granted, bad = (lab.addresses(name) for name in names)
        networks = [ipaddress.ip_network(address) for address in (*good, *bad)]
        ruleset = Ruleset(
            proxy_uid=PROXY,
            proxy_port=8080,
            dns_port=8053,
            proxy_ports=(80, 443),
            agent_uids=((ALICE, ALICE), (BOB, BOB)),
            agent_links=(
                ("br-agents", ipaddress.ip_network("10.88.0.11")),
                ("br-agents", ipaddress.ip_network("fd88::11")),
            ),
            loopback=(((ALICE, ALICE), (1024, 65535)),),
            known_good=tuple((network, port) for network in networks for port in (22, 443)),
            known_bad=tuple(ipaddress.ip_network(address) for address in bad),
            nameservers=tuple(
                (ipaddress.ip_address(address), 5353) for address in ("127.0.0.1", "::1", *plain)
            ),
        )
        world = World(lab, plain, good, named, granted, bad, ruleset, container)
        both = ("0.0.0.0", "::")
        world.listen(
            "proxy",
            *(
                f"{kind},{address},{port}"
                for address in both
                for kind, port in (("tcp", 8080), ("tcp", 8053))
            ),
            *(f"udp,{address},8053" for address in ("127.0.0.1", "::1")),
            uid=PROXY,
        )
        world.listen(
            "local",
            *(
                f"{kind},{address},{port}"
                for address in both
                for kind, port in (("tcp", 9999), ("udp", 5353))
            ),
            uid=OTHER,
        )
        world.listen("agent", "tcp,0.0.0.0,9998", uid=ALICE)
        world.listen("inner", "tcp,0.0.0.0,9997", uid=0, ns=container)
        world.listen("ns", *(f"udp,{address},5353" for address in plain), uid=0, ns="net")
        yield world
