"""Metrics of the master for Prometheus: `GET /metrics`, in its text format.

Counters rise from the start of this master; a scrape that finds them lower knows that it restarted. Everything is read
when it is asked for, except for what an operation counts as it ends. prometheus-client writes the format; the names
follow its conventions: base units (seconds, bytes), `_total` for counters.

Left out: the workers, which serve no HTTP. What they tell with their heartbeats is here, by worker.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from trikv.web.message import Request, Response, parse_query
from trikv.web.services import Services

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
_WORKER_STATES: Final = ("up", "suspect", "down", "unknown")


async def metrics(services: Services, request: Request) -> Response:
    parse_query(request.query)
    registry = CollectorRegistry()
    registry.register(_Master(services))
    return Response(200, {"content-type": CONTENT_TYPE, "cache-control": "no-store"}, generate_latest(registry))


class _Master(Collector):
    def __init__(self, services: Services) -> None:
        self._services = services

    def collect(self) -> Iterator[Metric]:
        state = self._services.status.describe()
        yield from self._operations(state)
        yield from _cluster(state)
        yield from _workers(state)
        yield from _healing(state["progress"])
        if state["autoscale"] is not None:
            yield GaugeMetricFamily(
                "trikv_autoscale_use_ratio", "Share of the workers' capacity in use", state["autoscale"]["use"]
            )

    def _operations(self, state: dict[str, Any]) -> Iterator[Metric]:
        coordinator = self._services.coordinator
        outcomes = CounterMetricFamily(
            "trikv_operations", "Operations that ended, by the mode in force and by outcome", labels=["mode", "outcome"]
        )
        for (mode, outcome), count in sorted(coordinator.outcomes_by_mode.items()):
            outcomes.add_metric([mode, outcome.value], count)
        yield outcomes
        durations = HistogramMetricFamily(
            "trikv_operation_duration_seconds", "From an operation's admission to its end", labels=["operation"]
        )
        for what, histogram in coordinator.durations.items():
            buckets = [("+Inf" if bound == float("inf") else f"{bound:g}", n) for bound, n in histogram.cumulative()]
            durations.add_metric([what], buckets=buckets, sum_value=histogram.sum_s)
        yield durations
        yield GaugeMetricFamily("trikv_operations_in_flight", "Operations under way", state["in_flight"])
        yield GaugeMetricFamily("trikv_keys_in_doubt", "Keys with a write of unknown outcome", state["pending"])


def _cluster(state: dict[str, Any]) -> Iterator[Metric]:
    yield GaugeMetricFamily("trikv_term", "The master's term", state["term"])
    yield GaugeMetricFamily("trikv_uptime_seconds", "Since this master started", state["uptime_s"])
    mode = GaugeMetricFamily("trikv_mode", "1 for the mode in force", labels=["mode", "promise"])
    mode.add_metric([state["mode"], state["promise"]], 1)
    yield mode
    partitions = GaugeMetricFamily("trikv_partitions", "Partitions, by what holds for them", labels=["state"])
    for name, count in state["partitions"].items():
        partitions.add_metric([name], count)
    yield partitions


def _workers(state: dict[str, Any]) -> Iterator[Metric]:
    states = GaugeMetricFamily("trikv_workers", "Workers, by state", labels=["state"])
    for name in _WORKER_STATES:
        states.add_metric([name], sum(worker["state"] == name for worker in state["workers"]))
    yield states
    keys = GaugeMetricFamily("trikv_worker_keys", "Keys that a worker holds", labels=["worker"])
    copies = GaugeMetricFamily("trikv_worker_partitions", "Partitions of which it is a replica", labels=["worker"])
    calls = CounterMetricFamily("trikv_worker_calls", "Calls that were put to a worker", labels=["worker"])
    for worker in state["workers"]:
        if worker["keys"] is not None:
            keys.add_metric([worker["id"]], worker["keys"])
        copies.add_metric([worker["id"]], worker["copies"])
        calls.add_metric([worker["id"]], worker["calls"])
    yield from (keys, copies, calls)


def _healing(progress: dict[str, Any]) -> Iterator[Metric]:
    yield GaugeMetricFamily("trikv_partitions_unsettled", "Partitions that are being settled", progress["settling"])
    yield CounterMetricFamily("trikv_partitions_settled", "Partitions that were settled", progress["settled"])
    yield CounterMetricFamily("trikv_settle_keys_moved", "Keys copied as they are to settle", progress["keys_moved"])
    yield CounterMetricFamily("trikv_settle_keys_repaired", "Keys repaired to settle", progress["keys_repaired"])
    yield CounterMetricFamily("trikv_settle_bytes", "Bytes moved to settle", progress["bytes_moved"])
    hints = progress["hints"]
    yield GaugeMetricFamily("trikv_hints", "Copies that are kept for replicas that missed them", hints["held"])
    yield GaugeMetricFamily("trikv_hints_bytes", "Their keys and values", hints["bytes"])
    yield CounterMetricFamily("trikv_hints_delivered", "Hints that were delivered", hints["delivered"])
    yield CounterMetricFamily("trikv_hints_dropped", "Hints that were given up", hints["dropped"])
    entropy = progress["anti_entropy"]
    yield CounterMetricFamily("trikv_anti_entropy_keys_repaired", "Keys mended by comparing", entropy["keys_repaired"])
    yield GaugeMetricFamily("trikv_tombstones", "Tombstones at the last look", progress["tombstones"]["tombstones"])
    yield CounterMetricFamily("trikv_tombstones_forgotten", "Keys forgotten", progress["tombstones"]["forgotten"])
