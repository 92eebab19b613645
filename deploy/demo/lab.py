"""A laboratory: an agent host and an internet in network namespaces, with real processes under real uids.

It needs root, and changes nothing outside its namespaces: links, addresses, routes, sysctls and nftables are
theirs, mounts are in a mount namespace of its own, files in a temporary folder. All of it is gone at the end,
also after Ctrl-C; what a lab that was killed left behind, the next one removes.

    with Lab("docs.example") as lab:
        lab.write_policy(text)
        lab.apply()
        lab.start_proxy()
        answer = lab.curl("https://docs.example/", uid=ALICE, headers={"X-Agent-Scope": "sandbox-alice"})
"""

import ipaddress
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from deploy.demo.json_lines import read_log
from deploy.demo.namespaces import ROOT, LabError, Namespaces
from deploy.demo.zone import Behaviour, Name, write_zone

PROXY = 61000
ALICE = 61001
BOB = 61002
OTHER = 61003
"""Uids: the proxy, two agents, and a user who is no agent. None of them needs an entry in /etc/passwd."""

PROXY_PORT = 8080
DNS_PORT = 8053

HOST_ADDRESSES = ("10.66.0.2", "fd66::2")
NAMESERVERS = ("10.66.0.53", "fd66::53")
CONTAINER_LINK = "br-agents"

# The policy denies documentation and private ranges, so the origins have ordinary public numbers. They are
# used inside the lab's namespaces and nowhere else.
_FIRST_ORIGIN = (ipaddress.IPv4Address("45.90.0.10"), ipaddress.IPv6Address("2a0f:9000::10"))

_HOST_LINKS = (
    "address add 10.66.0.2/24 dev uplink",
    "address add fd66::2/64 dev uplink nodad",
    "link set uplink up",
    "route add default via 10.66.0.1",
    "route add default via fd66::1",
)
_INTERNET_LINKS = (
    "address add 10.66.0.1/24 dev downlink",
    "address add fd66::1/64 dev downlink nodad",
    "link set downlink up",
    *(f"address add {address} dev lo" for address in NAMESERVERS),
)
_COUNTERS = """
table inet lab {
	set arrivals { type ipv4_addr; flags dynamic; size 65536; }
	set arrivals-ipv6 { type ipv6_addr; flags dynamic; size 65536; }
	set port-arrivals { typeof ip daddr . meta l4proto . th dport; flags dynamic; size 65536; }
	set port-arrivals-ipv6 { typeof ip6 daddr . meta l4proto . th dport; flags dynamic; size 65536; }
	chain arriving {
		type filter hook prerouting priority -300; policy accept;
		iifname != "downlink" return
		update @arrivals { ip daddr counter }
		update @arrivals-ipv6 { ip6 daddr counter }
		meta l4proto != { tcp, udp } return
		update @port-arrivals { ip daddr . meta l4proto . th dport counter }
		update @port-arrivals-ipv6 { ip6 daddr . meta l4proto . th dport counter }
	}
}
"""
# Unit Separator: neither curl's messages nor header fields hold one.
_SEPARATOR = "\x1f"
_START_PATIENCE = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What curl got. `status` is 0 where no answer came; `exit` and `error` are curl's own; `seconds` in all."""

    status: int
    http: str
    headers: Mapping[str, str]
    body: str
    exit: int
    error: str
    seconds: float

    def json(self) -> Any:  # noqa: ANN401 - whatever the body holds
        """Return the body, decoded."""
        return json.loads(self.body)


class Lab:
    """Two namespaces, `host` and `net`, and one more for each container.

    Each of `names` gets one IPv4 and one IPv6 address, at which an origin answers (see `origin.py`).
    Raises LabError.
    """

    def __init__(self, *names: str) -> None:
        self._names = names
        self._records: dict[str, Name] = {}
        self._next_origin = 0
        self._containers = 0
        self._logs = itertools.count(1)
        self._closing = ExitStack()

    # Life

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):
                self._closing.callback(signal.signal, number, signal.signal(number, _leave))
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process of the lab and remove what it made. A second Ctrl-C waits until that is done."""
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
        try:
            self._closing.close()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)

    def _build(self) -> None:
        self._inside = inside = Namespaces(self._closing)
        self.folder = inside.folder
        self.policy_file = self._folder("policy") / "policy.yaml"
        self.audit_file = self._folder("audit", PROXY, 0o750) / "audit.jsonl"
        self.control_socket = self._folder("control", PROXY) / "control.sock"
        self.boot_file = self._folder("boot", mode=0o700) / "boot.nft"
        self.confdir = self._folder("ca")
        self.bundle = self.folder / "ca-bundle.pem"
        internet = self._folder("internet", mode=0o700)
        self._zone_file = internet / "zone.json"
        # What common clients read to find out whom to trust.
        for variable in ("CURL_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"):
            inside.environment[variable] = str(self.bundle)

        inside.add("host")
        inside.add("net")
        inside.ip("net", f"link add downlink type veth peer name uplink netns {inside.name('host')}")
        inside.ip("net", *_INTERNET_LINKS)
        inside.ip("host", *_HOST_LINKS)
        interpreter = Path(sys.executable).resolve()
        inside.mount(
            [ROOT, Path(sys.prefix), Path(sys.base_prefix), interpreter.parent.parent],
            {
                "/etc/resolv.conf": f"nameserver {NAMESERVERS[0]}\n",
                # No other source of names: nss-resolve would ask the machine's own resolver over a Unix socket.
                "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
            },
        )
        self._check_reachable(interpreter)
        self._must(["nft", "-f", "-"], ns="net", stdin=_COUNTERS)
        write_zone(self._zone_file, {})
        for name in self._names:
            self.add_name(name)

        make_ca = (
            "import sys, pathlib, mitmproxy.certs as c;"
            "c.CertStore.create_store(pathlib.Path(sys.argv[1]), 'mitmproxy', 2048)"
        )
        ca = inside.start([sys.executable, "-c", make_ca, self.confdir], log="ca")
        servers = {
            "name-server": ("name_server", internet / "dns.jsonl", *NAMESERVERS),
            "origin": ("origin", internet / "origin.jsonl", internet),
        }
        started = {
            log: inside.start(
                [sys.executable, "-m", f"deploy.demo.{module}", self._zone_file, *rest], log=log, ns="net"
            )
            for log, (module, *rest) in servers.items()
        }
        for log, process in started.items():
            self.wait(process, log, partial(self._says_ready, log))
        if ca.wait(_START_PATIENCE):
            raise LabError(f"mitmproxy's CA cannot be made:\n{inside.output('ca')}")
        for secret in ("mitmproxy-ca.pem", "mitmproxy-ca.p12"):
            os.chown(self.confdir / secret, 0, PROXY)
            (self.confdir / secret).chmod(0o640)
        self.internet_ca = self.folder / "internet-ca.pem"
        _publish(self.internet_ca, (internet / "ca.pem").read_bytes())
        self.proxy_ca = self.confdir / "mitmproxy-ca-cert.pem"
        _publish(self.bundle, self.proxy_ca.read_bytes() + self.internet_ca.read_bytes())

    def _folder(self, name: str, owner: int = 0, mode: int = 0o755) -> Path:
        folder = self.folder / name
        folder.mkdir()
        os.chown(folder, owner, owner)
        folder.chmod(mode)
        return folder

    def _check_reachable(self, interpreter: Path) -> None:
        needed = (interpreter, ROOT / "addons/scope.py", ROOT / "egress_policy/__init__.py", self._mitmdump())
        for path in needed:
            if path.exists() and self.run(["test", "-r", path], uid=PROXY).returncode:
                raise LabError(
                    f"{path} is not readable for other users, and the lab's processes are others: "
                    f"`chmod -R go+rX {path.parent}`"
                )

    # Commands

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        uid: int = 0,
        ns: str = "host",
        caps: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        stdin: str = "",
        timeout: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, in the lab's folder. See `Namespaces.run`."""
        return self._inside.run(argv, uid=uid, ns=ns, caps=caps, env=env, stdin=stdin, timeout=timeout)

    def start(
        self,
        argv: Sequence[str | Path],
        *,
        uid: int = 0,
        ns: str = "host",
        caps: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        log: str | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a process; read what it prints with `output(log)`. See `Namespaces.start`."""
        name = log or f"process-{next(self._logs)}"
        return self._inside.start(argv, log=name, uid=uid, ns=ns, caps=caps, env=env)

    def output(self, log: str) -> str:
        """Return what a started process has printed so far."""
        return self._inside.output(log)

    def python(
        self, code: str, *arguments: str, uid: int, ns: str = "host", timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run Python code under a uid; `arguments` are its sys.argv[1:]."""
        return self.run([sys.executable, "-c", code, *arguments], uid=uid, ns=ns, timeout=timeout)

    def curl(
        self, url: str, *options: str, uid: int, headers: Mapping[str, str] | None = None, ns: str = "host"
    ) -> Answer:
        """Fetch a URL. The proxy's CA and that of the origins are trusted; 10 s are the longest it takes."""
        fields = [part for name, value in (headers or {}).items() for part in ("-H", f"{name}: {value}")]
        shown = f"%{{stderr}}{_SEPARATOR}%{{header_json}}{_SEPARATOR}%{{json}}"
        done = self.run(
            ["curl", "-sS", "--max-time", "10", "-w", shown, *fields, *options, url], uid=uid, ns=ns
        )
        error, header_json, result_json = done.stderr.rsplit(_SEPARATOR, 2)
        result = json.loads(result_json)
        return Answer(
            status=result["http_code"],
            http=result["http_version"],
            headers={name: ", ".join(values) for name, values in json.loads(header_json).items()},
            body=done.stdout,
            exit=done.returncode,
            error=error.strip(),
            seconds=result["time_total"],
        )

    def add_namespace(self, ns: str) -> None:
        """Make a further network namespace."""
        self._inside.add(ns)

    def ip(self, ns: str, *lines: str) -> None:
        """Run ip commands in a namespace, written as `ip -batch` reads them. Raises LabError."""
        self._inside.ip(ns, *lines)

    def peer(self, ns: str) -> str:
        """Return a namespace's name as ip(8) knows it, for the other end of a link."""
        return self._inside.name(ns)

    def _must(self, argv: Sequence[str | Path], ns: str = "host", stdin: str = "") -> str:
        done = self.run(argv, ns=ns, stdin=stdin)
        if done.returncode:
            shown = " ".join(map(str, argv))
            raise LabError(f"`{shown}` failed: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    # The product

    def write_policy(self, text: str) -> None:
        """Replace the policy file, which only root may write."""
        new = self.policy_file.with_suffix(".new")
        _publish(new, text.encode())
        new.replace(self.policy_file)

    def egress_policy(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run the command line on the agent host, as root, with the lab's policy."""
        command, *rest = arguments
        if command == "apply":
            rest += ["--boot", self.boot_file]
        return self.run([sys.executable, "-m", "egress_policy", command, "--policy", self.policy_file, *rest])

    def apply(self) -> None:
        """Load the ruleset for the lab's policy. Raises LabError."""
        applied = self.egress_policy("apply")
        if applied.returncode:
            raise LabError(f"`egress-policy apply` failed:\n{applied.stderr or applied.stdout}")

    def proxy_command(self, *options: str, script: Path = ROOT / "addons/scope.py") -> list[str]:
        """Return the proxy's command line; `options` come last, as in `--set`, `listen_port=8081`."""
        settings = {
            "confdir": self.confdir,
            "scope_policy": self.policy_file,
            "scope_audit": self.audit_file,
            "scope_control": self.control_socket,
            "ssl_verify_upstream_trusted_ca": self.internet_ca,
        }
        sets = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
        return [sys.executable, str(self._mitmdump()), "-s", str(script), *sets, *options]

    def start_proxy(
        self, *options: str, script: Path = ROOT / "addons/scope.py", log: str = "proxy"
    ) -> subprocess.Popen[bytes]:
        """Start the proxy under its own uid with CAP_NET_ADMIN alone, and wait until it listens.

        Raises LabError with what the proxy said.
        """
        command = self.proxy_command(*options, script=script)
        process = self.start(command, uid=PROXY, caps=("net_admin",), log=log)
        self.wait(process, log, lambda: self.listens(process, PROXY_PORT, DNS_PORT))
        return process

    def audit(self) -> list[dict[str, Any]]:
        """Return the audit log's records, but for those of ends(): they come when a client happens to close."""
        return [record for record in read_log(self.audit_file) if record["event"] != "end"]

    def ends(self) -> list[dict[str, Any]]:
        """Return the audit log's records of what was exchanged over connections that are closed by now."""
        return [record for record in read_log(self.audit_file) if record["event"] == "end"]

    def _mitmdump(self) -> Path:
        return Path(sys.prefix, "bin", "mitmdump")

    def _says_ready(self, log: str) -> bool:
        return "ready" in self.output(log)

    def listens(self, process: subprocess.Popen[bytes], tcp: int, udp: int | None = None) -> bool:
        """Tell whether these ports are taken on the agent host, in which a process was started."""
        if not self._inside.has_entered(process, "host"):
            return False
        bound = partial(_bound_ports, process.pid)
        return tcp in bound("tcp") | bound("tcp6") and (udp is None or udp in bound("udp") & bound("udp6"))

    def wait(self, process: subprocess.Popen[bytes], log: str, ready: Callable[[], bool]) -> None:
        """Wait until a started process is ready. Raises LabError with its output if it ends, or after 20 s."""
        until = time.monotonic() + _START_PATIENCE
        while not ready():
            if process.poll() is not None:
                raise LabError(
                    f"{log} ended with status {process.returncode} before it was ready:\n{self.output(log)}"
                )
            if time.monotonic() > until:
                raise LabError(f"{log} was not ready after {_START_PATIENCE:.0f} s:\n{self.output(log)}")
            time.sleep(0.02)

    # The internet

    def add_name(
        self,
        name: str,
        *addresses: str,
        cname: str | None = None,
        ttl: int = 60,
        behaviour: Behaviour = Behaviour.ANSWER,
        certificate: str | None = None,
    ) -> None:
        """Add a name, or change it; without an address or a `cname` it keeps those it has, or gets new ones.

        Origins answer at every address that the internet can have. `ttl` in seconds; `certificate` is another
        name for which the origin's certificate is.
        """
        known = self._records.get(name)
        if not addresses and cname is None:
            addresses = known.addresses if known is not None and known.addresses else self._new_addresses()
        for address in addresses:
            if _can_be_an_origins(address):
                self._inside.ip("net", f"address replace {address} dev lo")
        self._records[name] = Name(addresses, cname, ttl, behaviour, certificate)
        write_zone(self._zone_file, self._records)

    def remove_name(self, name: str) -> None:
        """Take a name out of DNS; its addresses stay."""
        del self._records[name]
        write_zone(self._zone_file, self._records)

    def addresses(self, name: str) -> tuple[str, ...]:
        """Return a name's addresses, IPv4 first where the lab chose them."""
        return self._records[name].addresses

    def queries(self) -> list[dict[str, Any]]:
        """Return the queries that reached the internet's name server."""
        return read_log(self.folder / "internet" / "dns.jsonl")

    def arrivals(self) -> list[dict[str, Any]]:
        """Return what reached the origins: `connection`, `request`, `body`, `closed` and `datagram` records."""
        return read_log(self.folder / "internet" / "origin.jsonl")

    def packets_to(self, destination: str, port: int | None = None) -> int:
        """Count the packets that reached the internet for an address or a network, TCP's SYN and ICMP included.

        With a port, TCP and UDP packets to it.
        """
        network = ipaddress.ip_network(destination)
        family = "" if network.version == 4 else "-ipv6"
        table = f"{'arrivals' if port is None else 'port-arrivals'}{family}"
        listed = json.loads(self._must(["nft", "--json", "list", "set", "inet", "lab", table], ns="net"))
        (held,) = (one["set"] for one in listed["nftables"] if "set" in one)
        packets = 0
        for element in held.get("elem", []):
            key = element["elem"]["val"]
            address, arrived_at = (
                (key, None) if isinstance(key, str) else (key["concat"][0], key["concat"][2])
            )
            if ipaddress.ip_address(address) in network and arrived_at == port:
                packets += element["elem"]["counter"]["packets"]
        return int(packets)

    def _new_addresses(self) -> tuple[str, ...]:
        self._next_origin += 1
        return tuple(str(first + self._next_origin - 1) for first in _FIRST_ORIGIN)

    # Containers

    def add_container(self, ipv4: str, ipv6: str | None = None) -> str:
        """Add a container behind the bridge `br-agents` of the agent host, and return its namespace's name.

        Addresses are of 10.88.0.0/24 and fd88::/64, where the agent host is the first.
        """
        inside = self._inside
        if not self._containers:
            for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
                inside.sysctl("host", f"net/{path}", "1")
            inside.ip(
                "host",
                f"link add {CONTAINER_LINK} type bridge",
                f"address add 10.88.0.1/24 dev {CONTAINER_LINK}",
                f"address add fd88::1/64 dev {CONTAINER_LINK} nodad",
                f"link set {CONTAINER_LINK} up",
            )
            inside.ip(
                "net",
                f"route add 10.88.0.0/24 via {HOST_ADDRESSES[0]}",
                f"route add fd88::/64 via {HOST_ADDRESSES[1]}",
            )
        self._containers += 1
        container, port = f"container{self._containers}", f"port{self._containers}"
        inside.add(container)
        inside.ip("host", f"link add {port} type veth peer name eth0 netns {inside.name(container)}")
        inside.ip("host", f"link set {port} master {CONTAINER_LINK} up")
        inside.ip(
            container,
            "link set eth0 up",
            f"address add {ipv4}/24 dev eth0",
            "route add default via 10.88.0.1",
        )
        if ipv6 is not None:
            inside.ip(container, f"address add {ipv6}/64 dev eth0 nodad", "route add default via fd88::1")
        return container


def _publish(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o644)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _can_be_an_origins(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    mapped = isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None
    return not (parsed.is_loopback or parsed.is_unspecified or parsed.is_multicast or mapped)


def _bound_ports(pid: int, table: str) -> set[int]:
    """List the ports that sockets in a process's network namespace are bound to: proc(5), /proc/net/tcp."""
    try:
        rows = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
    except FileNotFoundError:
        return set()
    # Listening TCP sockets are in state 0A, unconnected UDP sockets in state 07.
    return {
        int(local.rpartition(":")[2], 16)
        for _, local, _, state, *_ in (row.split() for row in rows)
        if state in {"0A", "07"}
    }
