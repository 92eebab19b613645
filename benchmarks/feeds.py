"""Deny feeds against what one would write in ten lines: a set of names, and a walk through a list of networks.

Each is read in a thread of a fresh process, while an event loop there notes by how much it is kept waiting. No root
is needed, but for the last part: how long the kernel takes to get the networks. `python -m benchmarks feeds`.
"""

import asyncio
import gc
import ipaddress
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from deploy.demo.lab import ALICE, NAMESERVERS, Lab
from egress_policy.destination import Address, Network
from egress_policy.feed_files import FeedFiles

NAMES = (1_000, 100_000, 1_000_000)
NETWORKS = 100_000
QUERIES = 10_000
"""How many different names or addresses are looked up; WALKED where one takes milliseconds."""
WALKED = 20
ROUNDS = 5
TICK = 0.001
"""Seconds that the event loop wants to sleep; whatever it sleeps longer, it was kept waiting."""
POLICY = f"""\
version: 1
proxy: {{user: 61000}}
resolver: {{nameservers: [{NAMESERVERS[0]}]}}
agents: {{bench: {{user: {ALICE}, scopes: [sandbox-bench]}}}}
scopes: {{sandbox-bench: {{owner: bench@example.com}}}}
trust: {{known-bad: [{{feed: networks.txt}}]}}
"""


@dataclass(slots=True)
class Naive:
    """What one would write: no check of what a line holds, no comments but whole lines."""

    names: set[str] = field(default_factory=set)
    networks: list[Network] = field(default_factory=list)

    def find_name(self, name: str) -> str | None:
        """Walk up the labels."""
        labels = name.split(".")
        for place in range(len(labels)):
            parent = ".".join(labels[place:])
            if parent in self.names:
                return parent
        return None

    def find_address(self, address: Address) -> Network | None:
        """Walk through the list."""
        return next((network for network in self.networks if address in network), None)


def _read_naively(path: Path) -> Naive:
    found = Naive()
    with path.open() as lines:
        for line in lines:
            word = line.strip().lower()
            if word.startswith("#"):
                continue
            if ":" in word or "/" in word:
                found.networks.append(ipaddress.ip_network(word, strict=False))
            else:
                found.names.add(word)
    return found


READERS: dict[str, Callable[[Path], Any]] = {
    "ours": lambda path: FeedFiles().load(path),
    "naive": _read_naively,
}


def main() -> None:
    """Measure, and print a table for each feed."""
    with TemporaryDirectory() as folder:
        for count in NAMES:
            _compare(Path(folder, f"{count} names"), _names(random.Random(count), count))
        _compare(Path(folder, f"{NETWORKS} networks"), _networks(random.Random(NETWORKS), NETWORKS))
    if os.geteuid() == 0:
        seconds = " ".join(f"{one:.2f}" for one in _applied())
        print(f"\n{NETWORKS} networks into the kernel, seconds of each `egress-policy apply`: {seconds}")


def _compare(path: Path, lines: Iterator[str]) -> None:
    path.write_text("# a feed for a benchmark\n" + "".join(f"{line}\n" for line in lines))
    ours, naive = (_in_a_fresh_process(reader, path) for reader in READERS)
    print(f"\n{path.name}\n{'':34}{'ours':>10}{'naive':>12}{'ratio':>9}")
    for name, one in ours.items():
        other = naive[name]
        ratio = f"{one / other:9.3g}" if other else ""
        print(f"{name:34}{one:10.2f}{other:12.2f}{ratio}")


def _in_a_fresh_process(reader: str, path: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.feeds", reader, path],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def _measure(reader: str, path: Path) -> dict[str, float]:
    before = _memory()
    seconds, waits, feed = asyncio.run(_read_while_serving(READERS[reader], path))
    figures = {
        "load, ms": seconds * 1e3,
        "memory, MiB": _memory() - before,
        "event loop kept waiting, p50, ms": statistics.median(waits) * 1e3,
        "event loop kept waiting, p99, ms": waits[int(len(waits) * 0.99)] * 1e3,
        "event loop kept waiting, max, ms": waits[-1] * 1e3,
    }
    start = time.perf_counter()
    gc.collect()
    figures["a full garbage collection, ms"] = (time.perf_counter() - start) * 1e3
    randomly = random.Random(1)
    if feed.names:
        listed = randomly.choices(sorted(feed.names), k=QUERIES)
        figures["look-up of a listed name, µs"] = _per_call(feed.find_name, listed)
        figures["look-up below a listed name, µs"] = _per_call(
            feed.find_name, [f"www.{one}" for one in listed]
        )
        for labels in (2, 4, 6):
            other = [".".join(_label(randomly) for _ in range(labels)) for _ in range(QUERIES)]
            figures[f"look-up of another, {labels} labels, µs"] = _per_call(feed.find_name, other)
    else:
        count = WALKED if reader == "naive" else QUERIES
        with path.open() as lines:
            networks = [ipaddress.ip_network(line.strip(), strict=False) for line in lines if line[0] != "#"]
        for version in (4, 6):
            own = [one for one in networks if one.version == version]
            hits = [network.network_address for network in randomly.choices(own, k=count)]
            first = 0x0A000000 if version == 4 else 0xFD << 120
            misses = [ipaddress.ip_address(first + randomly.getrandbits(24)) for _ in range(count)]
            figures[f"look-up of a listed IPv{version}, µs"] = _per_call(feed.find_address, hits)
            figures[f"look-up of another IPv{version}, µs"] = _per_call(feed.find_address, misses)
    start = time.perf_counter()
    del feed
    figures["letting go of it, ms"] = (time.perf_counter() - start) * 1e3
    return figures


async def _read_while_serving(reader: Callable[[Path], Any], path: Path) -> tuple[float, list[float], Any]:
    """Return the seconds a feed took in a thread, by how many the loop was kept waiting (sorted), and the feed."""
    waits: list[float] = []

    async def serve() -> None:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(TICK)
            waits.append(time.perf_counter() - start - TICK)

    serving = asyncio.create_task(serve())
    await asyncio.sleep(TICK * 10)
    start = time.perf_counter()
    feed = await asyncio.to_thread(reader, path)
    seconds = time.perf_counter() - start
    await asyncio.sleep(TICK * 10)
    serving.cancel()
    return seconds, sorted(waits), feed


def _per_call(find: Callable[[Any], object], queries: Sequence[object]) -> float:
    """Return the microseconds of one look-up: the median of some rounds over all queries."""
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for query in queries:
            find(query)
        rounds.append((time.perf_counter() - start) / len(queries) * 1e6)
    return statistics.median(rounds)


def _memory() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _applied() -> Iterator[float]:
    with Lab() as lab:
        lab.write_policy(POLICY)
        networks = _networks(random.Random(NETWORKS), NETWORKS)
        lab.policy_file.with_name("networks.txt").write_text("".join(f"{network}\n" for network in networks))
        for _ in range(ROUNDS):
            start = time.perf_counter()
            lab.apply()
            yield time.perf_counter() - start


def _label(randomly: random.Random) -> str:
    return f"{randomly.getrandbits(32):x}"


def _names(randomly: random.Random, count: int) -> Iterator[str]:
    """Yield names of two to five labels; some few that are internationalised, or hold an underscore."""
    tops = ("com", "net", "org", "info", "top", "co.uk")
    for number in range(count):
        kind = "xn--bcher-kva." if number % 331 == 0 else "my_" if number % 199 == 0 else ""
        labels = [_label(randomly) for _ in range(randomly.choice((1, 1, 2, 2, 3)))]
        yield f"{kind}{'.'.join(labels)}.{randomly.choice(tops)}"


def _networks(randomly: random.Random, count: int) -> Iterator[str]:
    """Yield as many networks of IPv4 (/12 to /32) as of IPv6 (/32 to /128), most of them long."""
    for number in range(count):
        share = randomly.random() ** 8
        if number % 2:
            start = randomly.randrange(128 << 24, 224 << 24)
            yield str(ipaddress.IPv4Network((start, 32 - int(share * 20.99)), strict=False))
        else:
            start = 0x2 << 124 | randomly.getrandbits(44) << 80 | randomly.getrandbits(16)
            yield str(ipaddress.IPv6Network((start, 128 - int(share * 96.99)), strict=False))


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], Path(sys.argv[2]))))
