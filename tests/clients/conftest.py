"""Real clients as agents' users, with the variables that `egress-policy env` prints and nothing else."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.demo.certificates import Authority
from deploy.demo.json_lines import read_log
from deploy.demo.lab import ALICE, BOB, NAMESERVERS, Lab
from tests.clients import origin

ECHO, NAMED, BAD = "docs.example", "api.model.example", "paste.example"
"""The lab's own origins, which speak HTTP/2 too; the second is known-good, and not decrypted."""
FILES, GRPC = "files.tools.example", "grpc.tools.example"
"""The origin of `origin.py`."""

FIELD = "sandbox-alice;intent=develop"
POLICY = f"""\
version: 1
proxy: {{user: 61000}}
resolver: {{nameservers: [{NAMESERVERS[0]}]}}
agents:
  alice: {{user: {ALICE}, scopes: [sandbox-alice]}}
  bob: {{user: {BOB}, scopes: [sandbox-bob], default_scope: sandbox-bob}}
scopes:
  sandbox-alice: {{owner: alice@example.com}}
  sandbox-bob: {{owner: bob@example.com}}
trust:
  known-good: [{{domain: {NAMED}}}]
  known-bad: [{{domain: {BAD}}}]
intents:
  default:
    unknown: {{methods: [GET, HEAD], max_body: 0, ttl: 1h}}
  develop:
    unknown: {{}}
"""
_TO_ORIGIN = """
table inet real-clients {{
	chain arriving {{
		type nat hook prerouting priority -100; policy accept;
		ip daddr {files} tcp dport 443 redirect to :{tls}
		ip daddr {grpc} tcp dport 443 redirect to :{grpc_port}
	}}
}}
"""


@dataclass(frozen=True, slots=True)
class World:
    """The lab, what its origin serves, and what agents are told to trust."""

    lab: Lab
    served: Path
    trust: Path
    log: Path
    printed: Mapping[int, str]

    def run(
        self,
        *argv: str | Path,
        uid: int = BOB,
        kit: bool = True,
        settings: Mapping[str, str] | None = None,
        stdin: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Run a client as an agent; alice's tools are told her scope, bob has a default one.

        Its environment is a home folder, PATH, `settings` and, with the kit, what `egress-policy env` printed.
        """
        script = 'eval "$1"; shift; cd; exec "$@"' if kit else 'shift; cd; exec "$@"'
        own = {
            "HOME": str(self.home(uid)),
            "PATH": f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin",
            **(settings or {}),
        }
        return self.lab.run(
            ["env", "-i", *(f"{name}={value}" for name, value in own.items()), "sh", "-c", script, "sh", self.printed[uid], *argv],
            uid=uid,
            stdin=stdin,
        )  # fmt: skip

    def home(self, uid: int) -> Path:
        """Return an agent's home folder, which is made when it is first asked for."""
        folder = self.lab.folder / f"home-{uid}"
        if not folder.exists():
            folder.mkdir()
            os.chown(folder, uid, uid)
        return folder

    def requests(self, path: str) -> list[dict[str, Any]]:
        """List the requests for a path that reached an origin, the lab's own too."""
        records = [*read_log(self.log), *self.lab.arrivals()]
        return [one for one in records if one["event"] == "request" and one["path"] == path]

    def fields(self, path: str) -> set[str]:
        """List the names of the header fields that reached an origin with the requests for a path."""
        return {name.lower() for one in self.requests(path) for name, _ in one["headers"]}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """A lab for each module: the policy in force, the proxy running, the trust kit written by root."""
    with Lab(ECHO, NAMED, BAD, FILES, GRPC) as lab:
        lab.write_policy(POLICY)
        lab.apply()
        authority = Authority()
        leaf = lab.folder / "internet" / "clients.pem"
        authority.write_leaf(f"*.{FILES.partition('.')[2]}", leaf)
        with lab.internet_ca.open("ab") as trusted:
            trusted.write(authority.certificate_pem())
        for name in (FILES, GRPC):
            lab.add_name(name, lab.addresses(name)[0])
        redirected = _TO_ORIGIN.format(
            files=lab.addresses(FILES)[0],
            grpc=lab.addresses(GRPC)[0],
            tls=origin.TLS_PORT,
            grpc_port=origin.GRPC_PORT,
        )
        loaded = lab.run(["nft", "-f", "-"], ns="net", stdin=redirected)
        assert loaded.returncode == 0, loaded.stderr
        served, log = lab.folder / "served", lab.folder / "internet" / "clients.jsonl"
        served.mkdir()
        server = lab.start(
            [sys.executable, "-m", "tests.clients.origin", log, leaf, served], ns="net", log="clients-origin"
        )
        lab.wait(server, "clients-origin", lambda: "ready" in lab.output("clients-origin"))
        lab.start_proxy()
        trust = lab.folder / "trust"
        succeeded(
            lab.egress_policy(
                "env", "--write", "--trust", trust, "--ca", lab.proxy_ca, "--roots", lab.internet_ca
            )
        )
        command = (sys.executable, "-m", "egress_policy", "env", "--trust", trust)
        printed = {
            BOB: succeeded(lab.run(command, uid=BOB)),
            ALICE: succeeded(lab.run([*command, "--scope", FIELD], uid=ALICE)),
        }
        yield World(lab, served, trust, log, printed)


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a client printed."""
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout
