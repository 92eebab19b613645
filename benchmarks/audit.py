"""The audit log against what one would write in five lines: a record to write, a million to ask.

Written: with chain, bounds, lock and the look for a rotation, against encoding and one write(2). Asked:
`egress-policy audit` against a loop over json.loads(). No root is needed. `python -m benchmarks audit`.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from egress_policy.audit import AuditLog, Record

RECORDS = 1_000_000
WRITES = 20_000
ROUNDS = 5
_LOOP = """
import collections, json, sys
found = collections.Counter()
for line in open(sys.argv[1]):
    record = json.loads(line)
    if record.get("host") == "h7.example":
        found[record["agent"], record["scope"], record["outcome"]] += 1
print(found)
"""


def main() -> None:
    """Measure, and print a table."""
    with TemporaryDirectory() as folder:
        ours, plain = _writing(Path(folder))
        print("| | ours | plain | ratio |\n|---|---|---|---|")
        print(f"| one record written, µs | {ours:.1f} | {plain:.1f} | {ours / plain:.1f} |")
        log = Path(folder, "million.jsonl")
        _fill(log)
        loop = _timed([sys.executable, "-c", _LOOP, str(log)])
        for what, options in {
            "who reached one host": ["--host", "h7.example"],
            "what was refused, and why": ["--outcome", "deny"],
            "is it whole": ["--verify", "--journal", os.devnull],
        }.items():
            seconds, memory = _timed(
                [sys.executable, "-m", "egress_policy", "audit", "--audit", str(log), *options]
            )
            print(
                f"| a million records: {what}, s | {seconds:.1f} | {loop[0]:.1f} | {seconds / loop[0]:.2f} |"
            )
            print(f"| memory, MiB | {memory:.0f} | {loop[1]:.0f} | {memory / loop[1]:.1f} |")


def _writing(folder: Path) -> tuple[float, float]:
    """Time both in turns, in microseconds a record."""
    log = AuditLog(str(folder / "ours.jsonl"))
    file = os.open(folder / "plain.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    encoder = msgspec.json.Encoder()
    ours, plain = [], []
    for _ in range(ROUNDS):
        ours.append(_each(log.write))
        plain.append(_each(lambda record: os.write(file, encoder.encode(record) + b"\n")))
    os.close(file)
    log.close()
    return statistics.median(ours), statistics.median(plain)


def _each(write: Callable[[Record], object]) -> float:
    record = _record(1)
    began = time.perf_counter()
    for _ in range(WRITES):
        write(record)
    return (time.perf_counter() - began) / WRITES * 1e6


def _fill(path: Path) -> None:
    log = AuditLog(str(path))
    for number in range(RECORDS):
        log.write(_record(number))
        if not number % 100_000:
            print(f"{number:,} of {RECORDS:,} records written", file=sys.stderr)
    log.close()


def _record(number: int) -> Record:
    refused = number % 7 == 0
    return Record(
        time="2026-03-01T11:00:00.000Z",
        event="decision",
        id=f"6b2f4c1e-1111-4222-8333-{number:012d}",
        agent="alice-claude",
        uid=2001,
        scope="sandbox-alice",
        intent="develop",
        method="GET",
        host=f"h{number % 500}.example",
        port=443,
        path="/v1/things",
        addresses=("93.184.216.34",),
        trust="unknown",
        outcome="deny" if refused else "permit",
        code="trust_not_allowed" if refused else None,
        ttl=3600,
        expires="2026-03-01T12:00:00.000Z",
        grant=None if refused else f"6b2f4c1e-2222-4222-8333-{number % 5000:012d}",
    )


def _timed(command: list[str]) -> tuple[float, float]:
    """Run a command; return its seconds, and the most memory that it held, in MiB."""
    measured = (
        "import json, resource, subprocess, sys, time; began = time.perf_counter();"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL);"
        "took = time.perf_counter() - began;"
        "print(json.dumps([took, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", measured, *command], capture_output=True, text=True, check=True
    )
    seconds, memory = json.loads(done.stdout)
    return seconds, memory


if __name__ == "__main__":
    main()
