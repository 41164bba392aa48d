"""Metrics of the master for Prometheus: `GET /metrics`, in its text format.

Counts rise from the start of this master; a scrape that finds them lower knows that it restarted. Labels from a table
are there from the start, with 0, since a rate needs a value from before. Everything is read when it is asked for,
except for what an operation, a frame or a change of the document counts as it ends. One scrape takes some 20 ms, half
of it for the state that `GET /v1/cluster` tells too.

What a worker knows of itself it serves itself (`worker_metrics.py`); what the master knows of it is here, by worker.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from trikv.core.errors import KINDS, Outcome
from trikv.core.news import SENTENCES
from trikv.web.exposition import answer, counter, counters, gauge, gauges, histogram, histograms
from trikv.web.message import Request, Response, parse_query
from trikv.web.services import Services

_CODES: Final = sorted(code for code, kind in KINDS.items() if kind.outcome is not Outcome.COMMITTED)
_WORKER_STATES: Final = ("up", "suspect", "down", "unknown")


async def metrics(services: Services, request: Request) -> Response:
    parse_query(request.query)
    state = services.status.describe()
    return answer("master", state["uptime_s"], _Master(services, state))


class _Master(Collector):
    def __init__(self, services: Services, state: dict[str, Any]) -> None:
        self._services = services
        self._state = state

    def collect(self) -> Iterator[Metric]:
        yield from self._operations()
        yield from self._requests()
        yield from _cluster(self._state)
        yield from self._document()
        yield from _workers(self._state)
        yield from self._links()
        yield from _healing(self._state["progress"])
        yield from _autoscale(self._state["autoscale"])
        if (probe := self._services.status.probe) is not None:
            yield from _probe(probe.describe())

    def _operations(self) -> Iterator[Metric]:
        coordinator = self._services.coordinator
        outcomes = CounterMetricFamily(
            "trikv_operations", "Operations that ended, by the mode in force and by outcome", labels=["mode", "outcome"]
        )
        counts = {(coordinator.mode, outcome): 0 for outcome in Outcome} | coordinator.outcomes_by_mode
        for (mode, outcome), count in sorted(counts.items()):
            outcomes.add_metric([mode, outcome.value], count)
        yield outcomes
        yield counters(
            "trikv_operation_errors", "Operations that were refused or are unknown, by the code of the error table",
            "code", dict.fromkeys(_CODES, 0) | coordinator.error_codes,
        )  # fmt: skip
        yield histograms(
            "trikv_operation_duration_seconds", "From an operation's admission to its end", "operation",
            coordinator.durations,
        )  # fmt: skip
        yield histogram(
            "trikv_write_admission_seconds",
            "Of one write in 8, the part before its first message: awaited members, the key's lock, a comparison",
            coordinator.admission,
        )
        yield gauge("trikv_operations_in_flight", "Operations under way", self._state["in_flight"])
        yield gauge("trikv_writing_bytes", "Values on their way", coordinator.writing_bytes)
        yield gauge("trikv_scans_in_flight", "Scans that do not wait for their turn", coordinator.scans_under_way)
        yield gauge("trikv_keys_in_doubt", "Keys with a write of unknown outcome", self._state["pending"])
        yield gauge("trikv_in_doubt_bytes", "Their keys and values", coordinator.doubt.size_bytes)
        yield histogram("trikv_repair_duration_seconds", "Repairs of single keys", coordinator.repairs)

    def _requests(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "trikv_http_requests",
            "HTTP requests that were answered; route none: there is no such",
            labels=["method", "route", "status"],
        )
        for (method, route, status), count in sorted(self._services.answered.items()):
            requests.add_metric([method, route, str(status)], count)
        yield requests
        yield counters(
            "trikv_events", "Events, by kind", "kind", dict.fromkeys(SENTENCES, 0) | self._services.events.counts
        )

    def _document(self) -> Iterator[Metric]:
        document = self._services.status.document
        yield gauge("trikv_term", "The master's term", self._state["term"])
        generations = [partition.generation for partition in document.cluster.partitions]
        yield gauge("trikv_generation_max", "The highest generation of a partition", max(generations, default=0))
        yield histogram(
            "trikv_config_store_write_duration_seconds", "Writes of the cluster's document", document.write_times
        )
        yield counter("trikv_config_store_write_failures", "Writes that failed or are in doubt", document.failures)

    def _links(self) -> Iterator[Metric]:
        peers = self._services.status.peers
        yield histograms(
            "trikv_worker_call_duration_seconds",
            "Calls to a worker, from the call to the answer or to its deadline; a sample of them",
            "worker", {worker: peer.times for worker, peer in peers.items()},
        )  # fmt: skip
        yield counters(
            "trikv_worker_frames", "Frames of calls that were sent to it: under load, calls share a frame", "worker",
            {worker: peer.frames for worker, peer in peers.items()},
        )  # fmt: skip
        links = {worker: peer.link for worker, peer in peers.items()}
        yield gauges(
            "trikv_worker_linked", "1: there is a connection to it", "worker",
            {worker: link is not None for worker, link in links.items()},
        )  # fmt: skip
        yield gauges(
            "trikv_worker_calls_in_flight", "Calls to it that are not answered yet", "worker",
            {worker: 0 if link is None else link.in_flight for worker, link in links.items()},
        )  # fmt: skip
        yield gauges(
            "trikv_worker_queue_bytes", "Calls to it that wait to leave", "worker",
            {worker: 0 if link is None else link.queue_bytes for worker, link in links.items()},
        )  # fmt: skip


def _cluster(state: dict[str, Any]) -> Iterator[Metric]:
    mode = GaugeMetricFamily("trikv_mode", "1 for the mode in force", labels=["mode", "promise"])
    mode.add_metric([state["mode"], state["promise"]], 1)
    yield mode
    yield gauges("trikv_partitions", "Partitions, by what holds for them", "state", state["partitions"])
    yield gauge("trikv_partitions_unsettled", "Partitions that are being settled", state["unsettled"])
    yield gauge("trikv_forming", "1: it waits for its first workers", state["forming"] is not None)


def _workers(state: dict[str, Any]) -> Iterator[Metric]:
    workers = state["workers"]
    states = {name: sum(worker["state"] == name for worker in workers) for name in _WORKER_STATES}
    yield gauges("trikv_workers", "Workers, by state", "state", states)
    for name, help_text, field in (
        ("trikv_worker_keys", "Keys that a worker holds", "keys"),
        ("trikv_worker_bytes", "Keys and values of its records", "bytes"),
        ("trikv_worker_partitions", "Partitions of which it is a replica", "copies"),
        ("trikv_worker_primaries", "Partitions of which it is the first replica", "primaries"),
        ("trikv_worker_hints", "Copies that are kept for it", "hints"),
        ("trikv_worker_lag_seconds", "The age of the oldest copy that it lacks; 0 if it lacks none", "lag_s"),
        ("trikv_worker_silent_seconds", "Since its last sign of life", "last_heard_s"),
        ("trikv_worker_disk_full", "1: it takes deletes alone", "disk_full"),
    ):
        yield gauges(name, help_text, "worker", {worker["id"]: worker[field] for worker in workers})
    yield gauges("trikv_worker_up", "1: it is up", "worker", {w["id"]: w["state"] == "up" for w in workers})
    calls = {worker["id"]: worker["calls"] for worker in workers}
    yield counters("trikv_worker_calls", "Calls that were put to a worker, heartbeats not counted", "worker", calls)


def _healing(progress: dict[str, Any]) -> Iterator[Metric]:
    yield counter("trikv_partitions_settled", "Partitions that were settled", progress["settled"])
    yield counter("trikv_settle_keys_compared", "Keys listed to settle", progress["keys_compared"])
    yield counter("trikv_settle_keys_moved", "Keys copied as they are to settle", progress["keys_moved"])
    yield counter("trikv_settle_keys_repaired", "Keys repaired to settle", progress["keys_repaired"])
    yield counter("trikv_settle_bytes", "Bytes moved to settle", progress["bytes_moved"])
    hints = progress["hints"]
    yield gauge("trikv_hints", "Copies that are kept for replicas that missed them", hints["held"])
    yield gauge("trikv_hints_bytes", "Their keys and values", hints["bytes"])
    yield counter("trikv_hints_delivered", "Hints that were delivered", hints["delivered"])
    yield counter("trikv_hints_dropped", "Hints that were given up", hints["dropped"])
    entropy = progress["anti_entropy"]
    yield counter("trikv_anti_entropy_keys_differing", "Keys whose replicas differed", entropy["keys_differing"])
    yield counter("trikv_anti_entropy_keys_repaired", "Keys mended by comparing", entropy["keys_repaired"])
    yield gauge("trikv_anti_entropy_partitions_alike", "Partitions found alike in their epoch", entropy["compared"])
    if entropy["round_ended_s_ago"] is not None:
        yield gauge(
            "trikv_anti_entropy_round_age_seconds", "Since nothing was left to compare", entropy["round_ended_s_ago"]
        )
    yield gauge("trikv_tombstones", "Tombstones at the last look", progress["tombstones"]["tombstones"])
    yield counter("trikv_tombstones_forgotten", "Keys forgotten", progress["tombstones"]["forgotten"])


def _autoscale(autoscale: dict[str, Any] | None) -> Iterator[Metric]:
    if autoscale is not None:
        yield gauge("trikv_autoscale_use_ratio", "Share of the workers' capacity in use", autoscale["use"])


def _probe(told: dict[str, Any]) -> Iterator[Metric]:
    """These begin anew when the mode changes, as counters of a process do when it restarts."""
    reads, stale = told["reads"], told["stale"]
    yield counter("trikv_probe_reads", "Reads of the probe that ended", reads)
    yield counter("trikv_probe_writes", "Writes of the probe that ended", told["writes"])
    yield counter("trikv_probe_refused", "Its operations that were refused", told["refused"])
    yield counter("trikv_probe_unknown", "Its operations of unknown outcome", told["unknown"])
    yield counter("trikv_probe_violations", "Promises that were seen broken", told["violation_count"])
    yield counter("trikv_probe_stale_reads", "Reads of a value older than a committed one", stale["reads"])
    yield gauge("trikv_probe_stale_worst_seconds", "How late the stalest read was", stale["worst_ms"] / 1000)
