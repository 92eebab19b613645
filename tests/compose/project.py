"""The Compose file without a container engine: its networks as bridges, its services as containers of ours.

What Docker does to a network with these options stands in `_network`: a bridge without an address of its own, on a
machine that forwards, and at each service a link with the address and the default route that the file gives it.
"""

import ipaddress
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from deploy.demo.lab import Lab
from deploy.demo.namespaces import ROOT
from tests.containers import Container, Volume

FOLDER = ROOT / "deploy" / "compose"
FILE = FOLDER / "compose.yaml"
OPTIONS = {
    "com.docker.network.bridge.inhibit_ipv4": "true",
    "com.docker.network.bridge.enable_ip_masquerade": "false",
}


def load() -> dict[str, Any]:
    """Read the file, with its anchors and merges resolved."""
    document: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return document


class Project:
    """The services and networks of compose.yaml in a lab: the proxy is its host, and `outside` its uplink."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        document = load()
        self.services: dict[str, Any] = document["services"]
        self._folder = lab.folder / "compose"
        self._scratch = self._folder / "scratch"
        self._scratch.mkdir(parents=True)
        for name in document["volumes"]:
            # A new volume takes the owner of the image's folder; tests/compose/test_compose_file.py looks there.
            self._owned(name, 61000, 61000)
        self._owned("policy", 0, 0)
        self._owned("run", 61000, 61000)
        lab.add_namespace("engine")
        self._set("engine", "net.ipv4.ip_forward", "1")
        for name, value in self.services["proxy"]["sysctls"].items():
            self._set("host", name, value)
        for number, (name, network) in enumerate(document["networks"].items()):
            if network:
                self._network(name, network, number)

    def volume(self, name: str) -> Path:
        return self._folder / name

    def write_policy(self, text: str) -> None:
        (self.volume("policy") / "policy.yaml").write_text(text)

    def run(
        self, service: str, argv: Sequence[str] | None = None, user: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a service's own command to its end, or another one in its container."""
        return self.lab.run(self._command(service, argv, user), ns=self._namespace(service))

    def start_proxy(self) -> subprocess.Popen[bytes]:
        """Start the proxy's own command, trusting the lab's origins too: they are of a CA that no image knows."""
        *first, script = self.services["proxy"]["command"]
        argv = [*first, f"{script.rstrip()} --set ssl_verify_upstream_trusted_ca={self.lab.internet_ca}"]
        return self.lab.start(self._command("proxy", argv, None), log="proxy")

    def fetch(self, agent: str, url: str, *options: str) -> str:
        """What an agent's curl gets: the status, or curl's own exit status as `exit 7`."""
        curl = ["curl", "-sS", "-o", "/dev/null", "--max-time", "5", "-w", "%{http_code}", *options, url]
        done = self.run(agent, curl)
        return done.stdout if done.returncode == 0 else f"exit {done.returncode}"

    def _network(self, name: str, network: dict[str, Any], number: int) -> None:
        assert network["driver"] == "bridge"
        assert network["driver_opts"] == OPTIONS
        (config,) = network["ipam"]["config"]
        subnet = ipaddress.ip_network(config["subnet"])
        self.lab.ip("engine", f"link add br-{name} type bridge", f"link set br-{name} up")
        for service, content in self.services.items():
            joined = content.get("networks", {}).get(name)
            if joined is None:
                continue
            ns, port = self._namespace(service), f"{service}-{number}"
            if ns != "host":
                self.lab.add_namespace(ns)
            link = joined.get("interface_name", "eth0")
            self.lab.ip(
                "engine",
                f"link add {port} type veth peer name {link} netns {self.lab.peer(ns)}",
                f"link set {port} master br-{name} up",
            )
            self.lab.ip(
                ns,
                f"address add {joined['ipv4_address']}/{subnet.prefixlen} dev {link}",
                f"link set {link} up",
            )
            # Docker switches IPv6 off in networks without it.
            self._set(ns, f"net.ipv6.conf.{link}.disable_ipv6", "1")
            if ns != "host":
                self.lab.ip(ns, f"route add default via {config['gateway']}")

    def _command(self, service: str, argv: Sequence[str] | None, user: int | None) -> list[str]:
        content = self.services[service]
        assert content["cap_drop"] == ["ALL"]
        assert content["security_opt"] == ["no-new-privileges:true"]
        uid, _, gid = content["user"].partition(":")
        assert uid == gid
        container = Container(
            volumes=list(self._volumes(service, content)),
            read_only=content["read_only"],
            user=int(uid) if user is None else user,
            added=content.get("cap_add", []),
            environment=content.get("environment", {}),
        )
        # Compose takes $$ for a dollar.
        own = [part.replace("$$", "$") for part in content["command"]]
        return container.command(self._scratch, own if argv is None else argv)

    def _volumes(self, service: str, content: dict[str, Any]) -> Iterator[Volume]:
        for written in content["volumes"]:
            source, target, *how = written.split(":")
            yield Volume(self.volume(source.removeprefix("./")), target, how == ["ro"])
        for written in content.get("tmpfs", []):
            target, _, options = written.partition(":")
            # The lab's own folder is below /tmp.
            if target != "/tmp":
                assert options == "uid=61000,gid=61000,mode=0755"
                yield Volume(self.volume("run"), target)
        if "dns" in content:
            resolver = self._folder / f"resolv.conf.{service}"
            resolver.write_text("".join(f"nameserver {address}\n" for address in content["dns"]))
            yield Volume(resolver, "/etc/resolv.conf", read_only=True)

    def _namespace(self, service: str) -> str:
        """The proxy's is the lab's host, and what has no network may be anywhere."""
        return service if "dns" in self.services[service] else "host"

    def _owned(self, name: str, uid: int, gid: int) -> None:
        self.volume(name).mkdir(mode=0o755)
        os.chown(self.volume(name), uid, gid)

    def _set(self, ns: str, name: str, value: str) -> None:
        done = self.lab.run(
            ["sh", "-c", 'echo "$1" > "$2"', "sh", value, f"/proc/sys/{name.replace('.', '/')}"], ns=ns
        )
        assert done.returncode == 0, done.stderr
