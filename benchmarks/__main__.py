"""HTTPS through the proxy, with its whole policy and audit log, against bare mitmdump with its defaults.

Both run in one laboratory, on one machine, in turns; what counts is the ratio of each turn. Run as root:
`make bench` for every benchmark, `python -m benchmarks https` for this one.
"""

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks import audit, feeds
from deploy.demo.lab import ALICE, NAMESERVERS, OTHER, Lab

HOST = "bench.example"
ROUNDS = 5
SECONDS = 3.0
CONNECTIONS = 8
BARE, BARE_PORT = 61009, 8090
POLICY = f"""\
version: 1
proxy: {{user: 61000}}
resolver: {{nameservers: [{NAMESERVERS[0]}]}}
agents: {{bench: {{user: {ALICE}, scopes: [sandbox-bench]}}}}
scopes: {{sandbox-bench: {{owner: bench@example.com}}}}
trust: {{known-bad: [{{domain: "*.paste.example"}}, {{cidr: 198.51.100.0/24}}]}}
intents:
  default: {{unknown: {{methods: [GET, HEAD], max_body: 0, ttl: 1h}}}}
"""
REDIRECT = f"""\
table inet bare {{
	chain output {{
		type nat hook output priority -100; policy accept;
		meta skuid {OTHER} tcp dport 443 redirect to :{BARE_PORT}
	}}
}}
"""
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn's figures: requests a second, seconds of the proxy's CPU a request, its memory in MiB.

    `lost` counts requests that had no answer within 3 seconds.
    """

    rate: float
    cpu: float
    memory: float
    lost: int


def main() -> None:
    """Measure, and print a table."""
    with Lab(HOST) as lab:
        ours, bare = _start(lab)
        for kind in ("keep-alive", "new"):
            turns = [
                (_turn(lab, ours, ALICE, kind, "X-Agent-Scope: sandbox-bench"), _turn(lab, bare, OTHER, kind))
                for _ in range(ROUNDS)
            ]
            _print(kind, turns)


def _start(lab: Lab) -> tuple[int, int]:
    lab.write_policy(POLICY)
    lab.apply()
    ours = lab.start_proxy()
    confdir = lab.folder / "bare"
    confdir.mkdir()
    for file in lab.confdir.iterdir():
        (confdir / file.name).write_bytes(file.read_bytes())
    for path in (confdir, *confdir.iterdir()):
        os.chown(path, BARE, BARE)
    lab.run(["nft", "-f", "-"], stdin=REDIRECT)
    mitmdump = Path(sys.prefix, "bin", "mitmdump")
    bare = lab.start(
        [
            *(sys.executable, mitmdump, "--mode", f"transparent@{BARE_PORT}", "--set", f"confdir={confdir}"),
            *("--set", f"ssl_verify_upstream_trusted_ca={lab.internet_ca}"),
        ],
        uid=BARE,
        log="bare",
    )
    lab.wait(bare, "bare", lambda: lab.listens(bare, BARE_PORT))
    return ours.pid, bare.pid


def _turn(lab: Lab, pid: int, uid: int, kind: str, header: str = "") -> Turn:
    load = Path(__file__).with_name("load.py")
    arguments = [HOST, str(SECONDS), str(CONNECTIONS), kind, str(lab.bundle), *([header] if header else [])]
    before = _cpu(pid)
    done: subprocess.CompletedProcess[str] = lab.run([sys.executable, load, *arguments], uid=uid)
    used = _cpu(pid) - before
    counts = json.loads(done.stdout or "{}")
    if done.returncode or not counts["answered"]:
        sys.exit(f"the load did not run through: {done.stderr or counts}")
    return Turn(counts["answered"] / SECONDS, used / counts["answered"], _memory(pid), counts["other"])


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def _memory(pid: int) -> float:
    line = next(
        line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")
    )
    return int(line.split()[1]) / 1024


def _print(kind: str, turns: list[tuple[Turn, Turn]]) -> None:
    print(f"\n{kind} connections, {CONNECTIONS} at a time, {ROUNDS} turns of {SECONDS:g} s each")
    print(f"{'':22}{'ours':>10}{'mitmdump':>10}{'ratio':>8}")
    for name, figure, scale in (
        ("requests/s", "rate", 1.0),
        ("CPU ms a request", "cpu", 1000.0),
        ("memory MiB", "memory", 1.0),
    ):
        ours = [getattr(turn, figure) * scale for turn, _ in turns]
        bare = [getattr(turn, figure) * scale for _, turn in turns]
        ratio = statistics.median(one / other for one, other in zip(ours, bare, strict=True))
        print(f"{name:22}{statistics.median(ours):10.2f}{statistics.median(bare):10.2f}{ratio:8.2f}")
    print(
        f"{'lost requests':22}{sum(turn.lost for turn, _ in turns):10}{sum(turn.lost for _, turn in turns):10}"
    )


if __name__ == "__main__":
    benchmarks = {"https": main, "feeds": feeds.main, "audit": audit.main}
    for chosen in sys.argv[1:] or benchmarks:
        if chosen not in benchmarks:
            sys.exit(f"{chosen!r} is no benchmark: there are {', '.join(benchmarks)}")
        benchmarks[chosen]()
