"""Metrics in Prometheus' text format: what the master's and a worker's have in common.

prometheus-client writes the format. The names follow its conventions: `trikv_` first, base units (seconds, bytes),
`_total` for counters. No label takes a value that a client chooses, so the number of series is bounded by the program's
own tables and by the number of workers.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from trikv import __version__
from trikv.core.histogram import Histogram, Sizes
from trikv.web.message import Response

_HEADERS: Final = {"content-type": CONTENT_TYPE_PLAIN_0_0_4, "cache-control": "no-store"}


def answer(role: str, uptime_s: float, collector: Collector) -> Response:
    """The metrics of this process as an answer: the collector's, and what every process tells of itself."""
    registry = CollectorRegistry()
    registry.register(_Node(role, uptime_s))
    registry.register(collector)
    ProcessCollector(registry=registry)
    return Response(200, _HEADERS, generate_latest(registry))


class _Node(Collector):
    def __init__(self, role: str, uptime_s: float) -> None:
        self._role = role
        self._uptime_s = uptime_s

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily(
            "trikv_build_info", "1; the program is in the labels", labels=["role", "version", "python"]
        )
        build.add_metric([self._role, __version__, platform.python_version()], 1)
        yield build
        yield GaugeMetricFamily("trikv_uptime_seconds", "Since this process began to serve", self._uptime_s)


def counter(name: str, help_text: str, value: float) -> Metric:
    return CounterMetricFamily(name, help_text, value)


def gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help_text, value)


def counters(name: str, help_text: str, label: str, values: Mapping[str, float]) -> Metric:
    """One counter for each value of the label."""
    family = CounterMetricFamily(name, help_text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def gauges(name: str, help_text: str, label: str, values: Mapping[str, float | None]) -> Metric:
    """One gauge for each value of the label, but for those that are not known (None)."""
    family = GaugeMetricFamily(name, help_text, labels=[label])
    for value, measured in values.items():
        if measured is not None:
            family.add_metric([value], measured)
    return family


def histogram(name: str, help_text: str, measured: Histogram | Sizes) -> Metric:
    family = HistogramMetricFamily(name, help_text, labels=[])
    family.add_metric([], buckets=_buckets(measured), sum_value=_total(measured))
    return family


def histograms(
    name: str, help_text: str, label: str, measured: Mapping[str, Histogram] | Mapping[str, Sizes]
) -> Metric:
    """One histogram for each value of the label."""
    family = HistogramMetricFamily(name, help_text, labels=[label])
    for value, each in measured.items():
        family.add_metric([value], buckets=_buckets(each), sum_value=_total(each))
    return family


def _total(measured: Histogram | Sizes) -> float:
    return measured.sum_s if isinstance(measured, Histogram) else measured.total


def _buckets(measured: Histogram | Sizes) -> list[tuple[str, float]]:
    return [("+Inf" if bound == float("inf") else f"{bound:g}", count) for bound, count in measured.cumulative()]
