"""`/metrics` is what Prometheus reads, and what it says is what was done."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(web: httpx.Client) -> Samples:
    answer = web.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def rise(before: Samples, after: Samples, name: str, **labels: str) -> float:
    key = name, frozenset(labels.items())
    return after[key] - before.get(key, 0.0)


def test_operations_are_counted_by_outcome_and_their_durations_in_buckets(web: httpx.Client) -> None:
    before = scrape(web)
    for _ in range(3):
        web.put("/v1/kv/measured", content=b"v")
    web.get("/v1/kv/measured")
    web.put("/v1/kv/measured", content=b"v", headers={"If-Match": '"1.1-1.000000"'})
    after = scrape(web)
    assert rise(before, after, "trikv_operations_total", mode="quorum", outcome="committed") == 4
    assert rise(before, after, "trikv_operations_total", mode="quorum", outcome="refused") == 1
    assert rise(before, after, "trikv_operation_duration_seconds_count", operation="put") == 4
    assert rise(before, after, "trikv_operation_duration_seconds_count", operation="get") == 1
    bounds = [
        (float(dict(labels)["le"]), count)
        for (name, labels), count in after.items()
        if name == "trikv_operation_duration_seconds_bucket" and ("operation", "put") in labels
    ]
    counts = [count for _, count in sorted(bounds)]
    assert counts == sorted(counts)


def test_the_cluster_and_its_workers_are_there(web: httpx.Client) -> None:
    samples = scrape(web)
    state = web.get("/v1/cluster").json()
    assert value(samples, "trikv_mode", mode="quorum", promise="CP") == 1
    assert value(samples, "trikv_workers", state="up") == 3
    assert value(samples, "trikv_partitions", state="total") == state["partitions"]["total"]
    for worker in state["workers"]:
        assert value(samples, "trikv_worker_calls_total", worker=worker["id"]) > 0
        assert value(samples, "trikv_worker_partitions", worker=worker["id"]) == worker["copies"]


@pytest.mark.parametrize("name", ["trikv_hints", "trikv_partitions_unsettled", "trikv_tombstones", "trikv_term"])
def test_what_heals_is_measured(name: str, web: httpx.Client) -> None:
    assert value(scrape(web), name) >= 0
