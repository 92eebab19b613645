"""What the proxy counts and measures, for Prometheus. Names and labels of a few values only: no host is a label.

What is counted as it happens lives here for as long as the process; what can be looked at is looked at when asked for.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST

_REGISTRY = CollectorRegistry()
_PREFIX = "egress_policy"
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Seconds: a request under a live grant takes less than the first, a name server that is silent the last."""

# Beside each counter the library would show when it began; Prometheus finds restarts by itself.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
# Under a name of its own: node_exporter, which may hand these on, has a process_cpu_seconds_total too.
ProcessCollector(namespace=_PREFIX, registry=_REGISTRY)

REQUESTS = Counter(
    f"{_PREFIX}_requests", "Requests decided, by outcome and code.", ["outcome", "code"], registry=_REGISTRY
)
DECISION = Histogram(
    f"{_PREFIX}_decision_seconds",
    "Time from a request's head to its verdict on record, DNS and kernel included.",
    registry=_REGISTRY,
    buckets=_BUCKETS,
)
DNS = Histogram(
    f"{_PREFIX}_dns_seconds",
    "Time to resolve the name of a new or renewed grant.",
    registry=_REGISTRY,
    buckets=_BUCKETS,
)
NETLINK = Histogram(
    f"{_PREFIX}_netlink_seconds",
    "Time until the kernel acknowledged a grant's elements.",
    registry=_REGISTRY,
    buckets=_BUCKETS,
)
PACKETS = Counter(
    f"{_PREFIX}_packets",
    "Packets that the kernel reported: refused, or the first of a connection that went straight through (direct).",
    ["verdict"],
    registry=_REGISTRY,
)
BYTES = Counter(
    f"{_PREFIX}_bytes",
    "Bytes that agents sent to destinations and received from them, counted when an exchange is over.",
    ["direction"],
    registry=_REGISTRY,
)
for _verdict in ("refused", "direct"):
    PACKETS.labels(_verdict)
for _direction in ("sent", "received"):
    BYTES.labels(_direction)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is looked at when the metrics are asked for.

    `grants` are live ones by scope, `feeds` entries by file, `version` and `loaded` (Unix time, seconds) the
    policy's.
    """

    grants: Mapping[str, int]
    feeds: Mapping[str, int]
    version: str
    loaded: float
    reload_failed: bool
    pending: int
    pauses: int
    connections: int
    audit_failures: int


def exposition(snapshot: Snapshot) -> bytes:
    """Write all metrics in Prometheus' text format."""
    now = CollectorRegistry()
    now.register(_Seen(snapshot))
    return generate_latest(_REGISTRY) + generate_latest(now)


class _Seen(Collector):
    """Hands a snapshot to the library."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        seen = self._snapshot
        yield _by_label("grants", "Live grants, by scope.", "scope", seen.grants)
        yield _by_label("feed_entries", "Entries of each known-bad feed.", "feed", seen.feeds)
        yield InfoMetricFamily(
            f"{_PREFIX}_policy", "The policy in force, by the SHA-256 of its file.", {"version": seen.version}
        )
        for name, what, value in (
            (
                "policy_loaded_timestamp_seconds",
                "When the policy was put in force, in Unix time.",
                seen.loaded,
            ),
            (
                "policy_reload_failed",
                "1 where the policy's file, or a feed, has changed and was not taken.",
                seen.reload_failed,
            ),
            ("approvals_pending", "Requests that wait for a person's approval.", seen.pending),
            ("pauses", "Scopes and agents that somebody paused; all of them count as one.", seen.pauses),
            ("connections", "Client connections that are open.", seen.connections),
        ):
            yield GaugeMetricFamily(f"{_PREFIX}_{name}", what, value)
        yield CounterMetricFamily(
            f"{_PREFIX}_audit_failures", "Records that could not be written.", seen.audit_failures
        )


def _by_label(name: str, what: str, label: str, values: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(f"{_PREFIX}_{name}", what, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family
