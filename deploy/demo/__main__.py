"""The demo: the whole product at work in network namespaces of its own, as a transcript.

    python -m deploy.demo        (or `make demo`)

Exits with 1 if anything did not happen as the transcript says it should.
"""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import count
from pathlib import Path

from deploy.demo.lab import Lab
from deploy.demo.namespaces import ROOT, LabError
from deploy.demo.transcript import Checks, Result, Scene, last_lines, lines_with, spaced_json

AT_ONCE = 0.5
"""Seconds within which a refusal counts as noticed at once."""

_PROBLEM = ("code", "detail", "agent", "scope", "destination", "next_steps")
_SHORT_PROBLEM = ("code", "detail")
_ECHO = ("server_name", "local", "headers")


class Demo:
    """The steps, in order; each shows what it does and yields what is to be seen, and whether it was."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._lab = scene.lab
        self._proxy: subprocess.Popen[bytes] | None = None

    def steps(self) -> tuple[tuple[str, Callable[[], Checks]], ...]:
        """List the steps with what each of them shows."""
        return (
            ("The policy is checked, then loaded into the kernel.", self._policy),
            ("The proxy starts: mitmdump with one script, as a user with one capability.", self._start),
            ("No header: the agent is told why, and what to do; nothing leaves the host.", self._no_header),
            ("With the header: an answer, a kernel rule whose time runs down, and a record.", self._header),
            ("Another developer's scope: denied.", self._foreign_scope),
            ("A known-bad name: not resolved, and denied whatever address is tried.", self._known_bad),
            ("A known-good name: no header needed, and not decrypted.", self._known_good),
            ("SSH, QUIC, and a granted address on another port: refused at once.", self._other_ways),
            ("The grant ends: so does the connection that it opened.", self._end),
            ("The proxy is killed: agents are refused, others are not.", self._killed),
        )

    def _policy(self) -> Checks:
        self._lab.write_policy(Path(__file__).with_name("policy.yaml").read_text())
        self._scene.run("root", ["cat", "policy/policy.yaml"])
        checked = self._scene.egress_policy("check", "--policy", "policy/policy.yaml")
        yield checked.status == 0, "the policy is valid"
        applied = self._scene.egress_policy("apply", "--policy", "policy/policy.yaml")
        yield applied.status == 0, "the ruleset is in the kernel"

    def _start(self) -> Checks:
        program, *arguments = self._lab.proxy_command()[1:]
        shown = shlex.join([Path(program).name, *arguments])
        self._scene.show_command(
            "egress-proxy", shown.replace(f"{self._lab.folder}/", "").replace(f"{ROOT}/", "")
        )
        self._proxy = self._lab.start_proxy()
        status = self._scene.run("root", ["grep", "CapEff", f"/proc/{self._proxy.pid}/status"])
        # capabilities(7): CAP_NET_ADMIN is number 12.
        yield f"{1 << 12:016x}" in status.output, "it listens, and holds CAP_NET_ADMIN alone"

    def _no_header(self) -> Checks:
        denied = self._scene.curl("alice-claude", "https://docs.example/", keys=_PROBLEM)
        yield _is_denied(denied, "scope_missing"), "denied: scope_missing"
        packets = sum(map(self._lab.packets_to, self._lab.addresses("docs.example")))
        yield packets == 0, f"packets that reached docs.example: {packets}"
        queries = sum(query["name"] == "docs.example" for query in self._lab.queries())
        yield queries == 0, f"queries for its name that left the host: {queries}"

    def _header(self) -> Checks:
        permitted = self._scene.curl(
            "alice-claude", "https://docs.example/", scope="sandbox-alice", keys=_ECHO
        )
        status, echo = permitted.answer
        yield status == 200, "the origin answered"
        yield (
            status == 200 and "x-agent-scope" not in str(echo).lower(),
            "the header stayed here: the origin did not get it",
        )
        first = self._time_left()
        yield first is not None, "the kernel holds the grant, with its id, scope and host as comment"
        time.sleep(2)
        second = self._time_left()
        yield first is not None and second is not None and first - second > 1, "its time runs down"
        self._scene.run("root", ["tail", "-n", "3", "audit/audit.jsonl"], form=spaced_json)
        events = [(record["event"], record.get("outcome")) for record in self._lab.audit()[-2:]]
        yield events == [("grant", None), ("decision", "permit")], "the grant and the decision are on record"
        yield (
            [end["status"] for end in self._lab.ends()] == [200],
            "and what was exchanged, when the connection had closed",
        )

    def _foreign_scope(self) -> Checks:
        denied = self._scene.curl(
            "alice-claude", "https://docs.example/", scope="sandbox-bob", keys=_SHORT_PROBLEM
        )
        yield _is_denied(denied, "scope_not_allowed"), "denied: scope_not_allowed"

    def _known_bad(self) -> Checks:
        unresolved = self._scene.curl(
            "alice-claude", "https://paste.example/", scope="sandbox-alice", keys=_SHORT_PROBLEM
        )
        # curl(1): 6 is "could not resolve host".
        yield unresolved.status == 6, "the name is not resolved"
        ipv4, _ = self._lab.addresses("paste.example")
        known = ("--resolve", f"paste.example:443:{ipv4}")
        denied = self._scene.curl(
            "alice-claude", "https://paste.example/", *known, scope="sandbox-alice", keys=_SHORT_PROBLEM
        )
        yield _is_denied(denied, "destination_denied"), "denied: destination_denied"
        packets = sum(map(self._lab.packets_to, self._lab.addresses("paste.example")))
        yield packets == 0, f"packets that reached paste.example: {packets}"

    def _known_good(self) -> Checks:
        issuers = []
        for url in ("-H 'X-Agent-Scope: sandbox-alice' https://docs.example/", "https://api.model.example/"):
            fetch = f"curl -sv {url} 2>&1 | grep -E 'issuer:|< HTTP'"
            issuers.append(self._scene.run("alice-claude", ["sh", "-c", fetch], shown=fetch).output)
        decrypted, untouched = issuers
        yield "mitmproxy" in decrypted, "docs.example is inspected: its certificate is the proxy's"
        yield (
            "Demo Internet CA" in untouched and " 200" in untouched,
            "api.model.example answered with its own certificate",
        )

    def _other_ways(self) -> Checks:
        ipv4, ipv6 = self._lab.addresses("docs.example")
        ways = (
            ("tcp", "docs.example", 22),
            ("tcp", ipv4, 22),
            ("udp", ipv4, 443),
            ("tcp", ipv4, 8443),
            ("tcp", ipv6, 8443),
        )
        for way in ways:
            refused = self._scene.probe("alice-claude", *way)
            took = re.search(r"refused .* after ([\d.]+) ms", refused.output)
            yield took is not None and float(took[1]) < AT_ONCE * 1000, "refused at once"
        answered = [self._scene.probe("visitor", *way) for way in ways[1:]]
        yield (
            all(re.match("connected|answered", one.output) for one in answered),
            "somebody is there: a user who is no agent gets through",
        )

    def _end(self) -> Checks:
        url, scope = "https://stream.example/slow-stream", "X-Agent-Scope: sandbox-alice;ttl=5"
        cut = self._scene.run("alice-claude", ["curl", "-sSN", "-H", scope, url], form=last_lines(3))
        yield "line 1\n" in cut.output, "the endless stream flowed"
        yield (
            cut.status != 0 and 4 < cut.seconds < 10,
            f"it was cut after {cut.seconds:.1f} s; its ttl was 5 s",
        )
        grants = self._list_grants()
        yield (
            "docs.example" in grants and "stream.example" not in grants,
            "its element is gone from the kernel",
        )

    def _killed(self) -> Checks:
        if self._proxy is None:
            raise LabError("the proxy never started")
        self._scene.show_command("root", f"kill -KILL {self._proxy.pid}")
        self._proxy.kill()
        self._proxy.wait()
        ipv4, _ = self._lab.addresses("docs.example")
        refused = [
            self._scene.curl("alice-claude", "https://docs.example/", scope="sandbox-alice", keys=()),
            self._scene.probe("alice-claude", "tcp", ipv4, 443),
        ]
        by_name, by_address = refused
        yield (
            by_name.answer[0] == 0 and "refused" in by_address.output and by_name.seconds < 2,
            "the agent gets nowhere, its live grant notwithstanding",
        )
        free = self._scene.curl("visitor", "https://docs.example/", keys=("local",))
        yield free.answer[0] == 200, "a user who is no agent does not notice"

    def _list_grants(self) -> str:
        listing = ["nft", "list", "set", "inet", "egress-policy", "developer-sandbox"]
        return self._scene.run("root", listing, form=lines_with("expires")).output

    def _time_left(self) -> float | None:
        """Return the seconds that the grant for docs.example has left in the kernel."""
        found = re.search(
            r'expires (\S+) comment "[-0-9a-f]{36} sandbox-alice docs\.example"', self._list_grants()
        )
        return _seconds(found[1]) if found else None


def _is_denied(result: Result, code: str) -> bool:
    status, problem = result.answer
    return status == 403 and problem.get("code") == code


def _seconds(duration: str) -> float:
    """Read a duration as nft(8) writes it, such as `59m58s724ms`."""
    units = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds", "ms": "milliseconds"}
    parts = {units[unit]: int(number) for number, unit in re.findall(r"(\d+)(ms|[dhms])", duration)}
    return timedelta(**parts).total_seconds()


def main() -> int:
    """Play all steps; return the exit status."""
    begun = time.monotonic()
    print("Building an agent host and an internet in network namespaces …", flush=True)
    with Lab("docs.example", "api.model.example", "paste.example", "stream.example") as lab:
        scene = Scene(lab)
        played = [scene.step(number, *step) for number, step in zip(count(1), Demo(scene).steps())]
        if not all(played):
            print(f"\nThe proxy said:\n{lab.output('proxy')}", flush=True)
    took = f"in {time.monotonic() - begun:.0f} s; nothing of it is left on this machine"
    failed = played.count(False)
    if failed:
        print(f"\n{failed} of {len(played)} steps did not go as expected, {took}.")
        return 1
    print(f"\nAll {len(played)} steps went as expected, {took}.")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        print("\nInterrupted; nothing of it is left on this machine.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read the transcript has left; Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
