"""`/metrics` is what Prometheus reads, and what it says is what was done."""

from __future__ import annotations

import httpx
import pytest

from tests.web.scraped import Samples, flaws, samples_of, value
from trikv.coordinator.coordinator import ADMISSION_STEP
from trikv.testing.processes.cluster import LocalCluster


def scrape(web: httpx.Client) -> Samples:
    answer = web.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert flaws(answer.text) == []
    return samples_of(answer.text)


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


def test_answers_are_counted_by_route_and_status_whatever_path_a_client_makes_up(web: httpx.Client) -> None:
    before = scrape(web)
    for number in range(5):
        web.get(f"/v1/kv/missing-{number}")
        web.get(f"/made-up/{number}")
    web.post("/metrics")
    web.head("/v1/cluster")
    web.get("/")
    web.get("/v1/mode", headers={"Origin": "http://evil.example"})
    after = scrape(web)
    name = "trikv_http_requests_total"
    assert rise(before, after, name, method="GET", route="/v1/kv/{key...}", status="404") == 5
    assert rise(before, after, name, method="", route="none", status="404") == 5
    assert rise(before, after, name, method="", route="none", status="405") == 1
    assert rise(before, after, name, method="HEAD", route="/v1/cluster", status="200") == 1
    assert rise(before, after, name, method="GET", route="/", status="200") == 1
    assert rise(before, after, name, method="GET", route="/v1/mode", status="403") == 1
    assert rise(before, after, name, method="GET", route="/metrics", status="200") == 1


def test_errors_are_counted_by_their_code(web: httpx.Client) -> None:
    before = scrape(web)
    web.put("/v1/kv/measured", content=b"v", headers={"If-Match": '"1.1-1.000000"'})
    after = scrape(web)
    assert rise(before, after, "trikv_operation_errors_total", code="precondition_failed") == 1
    assert value(after, "trikv_operation_errors_total", code="unknown") == 0  # there before it happens, for rates


def test_what_a_write_waits_for_before_its_first_message_is_measured(web: httpx.Client) -> None:
    before = scrape(web)
    for _ in range(3 * ADMISSION_STEP):
        web.put("/v1/kv/measured", content=b"v")
    after = scrape(web)
    assert rise(before, after, "trikv_write_admission_seconds_count") == 3
    whole_s = rise(before, after, "trikv_operation_duration_seconds_sum", operation="put")
    assert 0 < rise(before, after, "trikv_write_admission_seconds_sum") < whole_s


def test_links_frames_and_the_document_are_measured(web: httpx.Client, cluster: LocalCluster) -> None:
    samples = scrape(web)
    for node in cluster.workers:
        assert value(samples, "trikv_worker_linked", worker=node.id) == 1
        assert value(samples, "trikv_worker_up", worker=node.id) == 1
        assert value(samples, "trikv_worker_lag_seconds", worker=node.id) < 20
        frames = value(samples, "trikv_worker_frames_total", worker=node.id)
        assert 0 < frames <= value(samples, "trikv_worker_calls_total", worker=node.id) + 100  # heartbeats too
        assert value(samples, "trikv_worker_call_duration_seconds_count", worker=node.id) > 0
    assert value(samples, "trikv_config_store_write_duration_seconds_count") >= 2
    assert value(samples, "trikv_events_total", kind="worker_enlisted") == 3
    assert value(samples, "trikv_build_info", role="master") == 1
