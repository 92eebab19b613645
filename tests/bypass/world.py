"""A laboratory in which both barriers stand, or one of them, or neither."""

import ipaddress
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploy.demo.certificates import Authority
from deploy.demo.json_lines import read_log
from deploy.demo.lab import ALICE, BOB, DNS_PORT, NAMESERVERS, PROXY_PORT, Lab
from deploy.demo.lab import PROXY as PROXY_UID
from tests.bypass.agent import Reply, Send
from tests.bypass.attempts import KERNEL, PROXY, Barrier
from tests.end_to_end import raw_origin

SCOPE = {"X-Agent-Scope": "sandbox-alice;intent=free"}
CONTAINER = "10.88.0.2"
NEIGHBOUR = ("10.88.0.3", "fd88::3")
SUBORDINATE = 300_000
"""A uid that alice may take, as newuidmap(1) would give it to her."""
POLICY = f"""\
version: 1
proxy: {{user: {PROXY_UID}}}
resolver: {{nameservers: [{NAMESERVERS[0]}], timeout: 1s}}
agents:
  alice: {{user: {ALICE}, scopes: [sandbox-alice]}}
  alice-subordinate: {{user: "{SUBORDINATE}-365535", scopes: [sandbox-alice]}}
  bob: {{user: {BOB}, scopes: [sandbox-bob], default_scope: sandbox-bob}}
  container: {{interface: br-agents, port: port1, source: {CONTAINER}, scopes: [sandbox-bob]}}
  neighbour: {{interface: br-agents, port: port2, source: {NEIGHBOUR[0]}, scopes: [sandbox-alice]}}
  neighbour-ipv6: {{interface: br-agents, port: port2, source: "{NEIGHBOUR[1]}", scopes: [sandbox-alice]}}
scopes:
  sandbox-alice: {{owner: alice@example.com, max_destinations: 10000}}
  sandbox-bob: {{owner: bob@example.com, max_destinations: 10000}}
trust:
  known-good:
    - {{domain: named.example}}
    - {{domain: "*.named.example"}}
    - {{domain: direct.example, inspection: none}}
    - {{domain: full.example, inspection: full}}
  known-bad:
    - {{domain: bad.example}}
    - {{domain: "*.bad.example"}}
    - {{cidr: 66.0.0.0/8}}
  listed:
    - {{cidr: 45.90.200.0/24}}
  further:
    - {{domain: "*.further.example", ports: [443, 22]}}
intents:
  default:
    listed: {{}}
    unknown: {{methods: [GET, HEAD], max_body: 0, ttl: 1h}}
  develop:
    unknown: {{max_body: 64KiB, ttl: 4h}}
  free:
    listed: {{}}
    further: {{}}
    unknown: {{}}
"""
_FENCE = "fence.example"
_RESOLVE = """
import socket, sys
for family in (socket.AF_INET, socket.AF_INET6):
    print(socket.getaddrinfo(sys.argv[1], 22, family, socket.SOCK_STREAM)[0][4][0])
"""
_RAW_ORIGINS = """
table inet raw-origin {
	map ports { type ipv4_addr . inet_service : inet_service; }
	map ports-ipv6 { type ipv6_addr . inet_service : inet_service; }
	chain arriving {
		type nat hook prerouting priority -100; policy accept;
		meta l4proto tcp redirect to :ip daddr . tcp dport map @ports
		meta l4proto tcp redirect to :ip6 daddr . tcp dport map @ports-ipv6
	}
}
"""
# What is left of the ruleset is the redirection.
_NO_FILTER = "".join(
    [
        *(f"flush chain inet egress-policy {chain}\n" for chain in ("output", "input", "forward", "sources")),
        *(
            f"flush chain bridge egress-policy bridge-{hook}\n"
            for hook in ("prerouting", "forward", "output")
        ),
    ]
)


class World:
    """A lab, and the barriers that stand in it.

    With `PROXY` the proxy is the product; without it a bare mitmdump, as it is when it knows no addon. Without
    `KERNEL` nothing of the ruleset is left but the redirection.
    """

    def __init__(self, lab: Lab, barriers: Barrier, container: str, neighbour: str) -> None:
        self.lab = lab
        self.barriers = barriers
        self.container = container
        self.neighbour = neighbour
        self._numbers = itertools.count(1)
        self._proxy: subprocess.Popen[bytes] | None = None
        self._raw_log = lab.folder / "internet" / "raw.jsonl"

    # Set-up

    def load_rules(self) -> None:
        """Load the ruleset, or what this world has of it."""
        self.lab.apply()
        if KERNEL not in self.barriers:
            self.nft(_NO_FILTER)

    def nft(self, text: str, ns: str = "host") -> None:
        """Load lines of nft's language."""
        loaded = self.lab.run(["nft", "-f", "-"], stdin=text, ns=ns)
        assert loaded.returncode == 0, loaded.stderr

    def start_raw_origin(self) -> None:
        """Have an origin that keeps every byte, for the names of `raw_name`."""
        lab, authority = self.lab, Authority()
        leaf = lab.folder / "internet" / "raw.pem"
        authority.write_leaf("*.raw.example", leaf)
        with lab.internet_ca.open("ab") as trusted:
            trusted.write(authority.certificate_pem())
        self.nft(_RAW_ORIGINS, ns="net")
        command = [sys.executable, "-m", "tests.end_to_end.raw_origin", str(self._raw_log), str(leaf)]
        server = lab.start(command, ns="net", log="raw-origin")
        lab.wait(server, "raw-origin", lambda: "ready" in lab.output("raw-origin"))

    def ensure_proxy(self) -> None:
        """Have this world's own proxy run."""
        if self._proxy is not None and self._proxy.poll() is None:
            return
        self._proxy = self.lab.start_proxy() if PROXY in self.barriers else self.start_bare_proxy()
        if KERNEL in self.barriers and PROXY not in self.barriers:
            self.open(_FENCE, 80)

    def start_bare_proxy(self, *options: str, log: str = "bare") -> subprocess.Popen[bytes]:
        """Start mitmdump with mitmproxy's defaults and no addon of ours, under the proxy's uid."""
        lab = self.lab
        modes = (f"transparent@{PROXY_PORT}", f"dns@127.0.0.1:{DNS_PORT}", f"dns@::1:{DNS_PORT}")
        settings = {"confdir": lab.confdir, "ssl_verify_upstream_trusted_ca": lab.internet_ca}
        command: list[str | Path] = [Path(sys.prefix, "bin", "mitmdump")]
        command += [word for mode in modes for word in ("--mode", mode)]
        command += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        process = lab.start([*command, *options], uid=PROXY_UID, log=log)
        lab.wait(process, log, lambda: lab.listens(process, PROXY_PORT, DNS_PORT))
        return process

    def stop_proxy(self) -> None:
        """End this world's proxy, for a test that starts one of its own; the next test's fixture starts it again."""
        if self._proxy is not None:
            self._proxy.kill()
            self._proxy.wait(10)
            self._proxy = None

    # The internet

    def name(self, *addresses: str, **records: Any) -> str:
        """Add a name of one's own, as `Lab.add_name` does; its origin speaks HTTP and TLS."""
        name = f"n{next(self._numbers)}.example"
        self.lab.add_name(name, *addresses, **records)
        return name

    def further_name(self) -> str:
        """Add a name of one's own that has the further port 22."""
        name = f"n{next(self._numbers)}.further.example"
        self.lab.add_name(name)
        return name

    def told(self, name: str, uid: int = ALICE) -> list[str]:
        """Return the addresses that an agent is told for a name: IPv4, then IPv6."""
        return self.lab.python(_RESOLVE, name, uid=uid).stdout.split()

    def raw_name(self, *, tls: bool = True) -> str:
        """Add a name of one's own whose origin keeps every byte; see tests/end_to_end/raw_origin.py.

        `tls` says whether its port 443 speaks TLS.
        """
        name = f"n{next(self._numbers)}.raw.example"
        self.lab.add_name(name)
        to = {80: raw_origin.HTTP_PORT, 443: raw_origin.TLS_PORT if tls else raw_origin.HTTP_PORT}
        for address, ports in zip(self.lab.addresses(name), ("ports", "ports-ipv6"), strict=True):
            pairs = ", ".join(f"{address} . {port} : {target}" for port, target in to.items())
            self.nft(f"add element inet raw-origin {ports} {{ {pairs} }}", ns="net")
        return name

    def marker(self) -> str:
        """Make a word that no other test sends; it may stand in a name."""
        return f"marker-{next(self._numbers)}x"

    def open(self, name: str, port: int) -> None:
        """Open a name's addresses in the kernel for an hour, as a grant would, past the proxy."""
        for address in self.lab.addresses(name):
            family = "-ipv6" if ":" in address else ""
            element = f"{{ {address} . {port} timeout 1h }}"
            self.nft(f"add element inet egress-policy developer-sandbox{family} {element}\n")

    def grant(self, name: str) -> None:
        """Have a name granted to alice on port 443: by a request of hers, or in the kernel alone."""
        if PROXY in self.barriers:
            replies = self.send(name, 443, self.get(name, "/granted"), tls=name)
            assert [reply.status for reply in replies] == [200] * len(replies)
        elif KERNEL in self.barriers:
            self.open(name, 443)

    # Attempts

    def ways(self, to: str) -> list[str]:
        """List the addresses to dial for a name or an address: IPv4, IPv6, and IPv4 mapped into IPv6."""
        addresses = [to] if _is_address(to) else list(self.lab.addresses(to))
        return [*addresses, *(f"::ffff:{address}" for address in addresses if ":" not in address)]

    def get(self, host: str, path: str, scope: str = SCOPE["X-Agent-Scope"]) -> str:
        """Write a plain HTTP/1.1 request."""
        return f"GET {path} HTTP/1.1\r\nHost: {host}\r\nX-Agent-Scope: {scope}\r\n\r\n"

    def send(
        self,
        to: str | Sequence[str],
        port: int,
        data: str,
        *,
        tls: str | None = None,
        alpn: Sequence[str] = (),
        answers: int = 1,
        patience: float | None = None,
        kind: str = "tcp",
        uid: int = ALICE,
        ns: str = "host",
        caps: Sequence[str] = (),
    ) -> list[Reply]:
        """Send bytes as `Send` says to each address that leads to a name, or to those given.

        `patience` is 5 seconds, but half of one where no barrier stands: there an attempt may wait for an answer that
        no origin has.
        """
        patience = patience or (5.0 if self.barriers else 0.5)
        sends = [
            Send(address, port, data, tls, tuple(alpn), answers, patience, kind)
            for address in (self.ways(to) if isinstance(to, str) else to)
        ]
        return self.make(sends, uid=uid, ns=ns, caps=caps)

    def make(
        self, sends: Sequence[Send], uid: int = ALICE, ns: str = "host", caps: Sequence[str] = ()
    ) -> list[Reply]:
        """Make several sends at once, in one process."""
        command = [sys.executable, "-m", "tests.bypass.agent"]
        wanted = json.dumps([asdict(one) for one in sends])
        done = self.lab.run(command, uid=uid, ns=ns, caps=caps, stdin=wanted)
        assert done.returncode == 0, done.stderr
        return [Reply(**one) for one in json.loads(done.stdout)]

    # What came of them

    def nothing_reached(self, *hosts: str, marker: str = "") -> None:
        """Assert that no packet reached a host (a name of this test's own, or an address), nor the marker anyone.

        Where no barrier stands, assert that packets reached each of its addresses, and the marker somebody: the
        attempt is real.
        """
        if self.barriers:
            self.fence()
            assert not [what for what, arrived in self._arrived(hosts, marker) if arrived]
        else:
            assert until(lambda: all(arrived for _, arrived in self._arrived(hosts, marker)))

    def fence(self) -> None:
        """Make a request that works, and wait for its answer: whatever was under way before has been sent by then."""
        address = self.lab.addresses(_FENCE)[0]
        to_it = ("--resolve", f"{_FENCE}:80:{address}")
        answer = self.lab.curl(f"http://{_FENCE}/", *to_it, uid=ALICE, headers=SCOPE)
        assert answer.status == 200, answer

    def arrivals(self, marker: str) -> list[dict[str, Any]]:
        """Return the origins' records that hold a marker."""
        records = self.lab.arrivals() + (read_log(self._raw_log) if self._raw_log.exists() else [])
        return [record for record in records if marker in json.dumps(record)]

    def received(self, marker: str) -> str:
        """Return every byte that raw origins received on connections on which a marker came."""
        data: dict[int, str] = {}
        for record in read_log(self._raw_log):
            data[record["connection"]] = data.get(record["connection"], "") + record["data"]
        return "".join(one for one in data.values() if marker in one)

    def _arrived(self, hosts: Sequence[str], marker: str) -> Iterator[tuple[str, bool]]:
        for host in hosts:
            for address in [host] if _is_address(host) else self.lab.addresses(host):
                yield address, self.lab.packets_to(address) > 0
        if marker:
            yield marker, bool(self.arrivals(marker))


@contextmanager
def open_world(barriers: Barrier) -> Iterator[World]:
    """Build a world; its proxy is started by who needs it."""
    with Lab(_FENCE, "named.example", "direct.example", "full.example") as lab:
        container, neighbour = lab.add_container(CONTAINER, "fd88::2"), lab.add_container(*NEIGHBOUR)
        lab.write_policy(POLICY)
        world = World(lab, barriers, container, neighbour)
        world.load_rules()
        world.start_raw_origin()
        yield world


def until(ready: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
