"""A cluster of real processes is broken over HTTP: what is answered and refused; odd requests break nothing."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from trikv.testing.processes.cluster import LocalCluster, wait_until

WORKERS = 3  # of the master's own; one more is foreign


@pytest.fixture(scope="module")
def running() -> Iterator[LocalCluster]:
    options = ("--start-workers", str(WORKERS), "--worker-storage", "memory", "--break-it")
    with LocalCluster(workers=1, master_options=options) as cluster, cluster.client() as client:
        wait_until(lambda: len(client.faults()["workers"]) == WORKERS + 1, what="all workers have enlisted")
        yield cluster


@pytest.fixture
def broken(running: LocalCluster) -> Iterator[httpx.Client]:
    """It is put right after each test."""
    with httpx.Client(base_url=running.url, trust_env=False, timeout=60) as client:
        yield client
        for worker in faults(client)["workers"]:
            for kind in ("resume", "start", "mend"):
                if kind in worker["can"]:
                    inject(client, kind, worker["id"]).raise_for_status()
        wait_until(lambda: all(worker["state"] == "up" for worker in workers(client)), what="all are up again")


def faults(web: httpx.Client) -> dict[str, Any]:
    told: dict[str, Any] = web.get("/v1/faults").raise_for_status().json()
    return told


def workers(web: httpx.Client) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = web.get("/v1/cluster").raise_for_status().json()["workers"]
    return told


def inject(web: httpx.Client, kind: object, worker: object, **further: object) -> httpx.Response:
    return web.post("/v1/faults", json={"kind": kind, "worker": worker, **further})


def own(web: httpx.Client) -> str:
    """A worker that the master started."""
    return next(str(worker["id"]) for worker in faults(web)["workers"] if worker["process"] == "running")


def test_it_says_what_can_be_broken_and_how(broken: httpx.Client, running: LocalCluster) -> None:
    told = faults(broken)
    assert (told["allowed"], told["why"], told["delay_most_ms"]) == (True, "", 10_000)
    assert told["kinds"] == ["pause", "resume", "kill", "start", "cut", "slow", "mend"]
    foreign = running.workers[0].id
    for worker in told["workers"]:
        process, can = ("foreign", []) if worker["id"] == foreign else ("running", ["pause", "kill"])
        pid = worker.pop("pid")
        assert (pid is None) is (worker["id"] == foreign)
        rest = {"process": process, "link": "whole", "delay_ms": 0, "can": [*can, "cut", "slow"]}
        assert worker == {"id": worker["id"], **rest}
        shown = next(each for each in workers(broken) if each["id"] == worker["id"])
        assert (shown["process"], shown["pid"], shown["link"], shown["delay_ms"]) == (process, pid, "whole", 0)


def test_a_worker_without_a_disk_is_killed_and_started_again_at_its_address(broken: httpx.Client) -> None:
    worker = own(broken)
    killed = inject(broken, "kill", worker).raise_for_status().json()
    assert (killed["outcome"], killed["id"], killed["process"], killed["pid"]) == ("committed", worker, "gone", None)
    wait_until(lambda: next(w["state"] for w in workers(broken) if w["id"] == worker) == "down", what="it is down")
    started = inject(broken, "start", worker).raise_for_status().json()
    assert (started["id"], started["process"]) == (worker, "running")
    assert started["pid"] is not None


def test_a_paused_worker_is_named_by_its_address_too(broken: httpx.Client) -> None:
    worker = own(broken)
    address = next(str(each["address"]) for each in workers(broken) if each["id"] == worker)
    paused = inject(broken, "pause", address.replace("127.0.0.1", "localhost")).raise_for_status().json()
    assert (paused["id"], paused["process"]) == (worker, "paused")
    wait_until(lambda: next(w["state"] for w in workers(broken) if w["id"] == worker) != "up", what="it is silent")
    assert inject(broken, "pause", worker).json()["code"] == "conflict"
    assert inject(broken, "start", worker).json()["code"] == "conflict"


def test_a_foreign_worker_is_let_alone_and_its_link_is_not(broken: httpx.Client, running: LocalCluster) -> None:
    foreign = running.workers[0]
    for kind in ("pause", "resume", "kill", "start"):
        refused = inject(broken, kind, foreign.id)
        assert (refused.status_code, refused.json()["outcome"]) == (409, "refused")
        assert "--start-workers" in refused.json()["detail"]
    assert foreign.running
    assert inject(broken, "slow", foreign.id, delay_ms=1.5).json()["delay_ms"] == 1.5


def test_of_two_that_are_told_the_same_at_once_one_is_refused(broken: httpx.Client, running: LocalCluster) -> None:
    worker = own(broken)
    inject(broken, "kill", worker).raise_for_status()
    codes: list[int] = []

    def start() -> None:
        with httpx.Client(base_url=running.url, trust_env=False, timeout=60) as client:
            codes.append(inject(client, "start", worker).status_code)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [200, 409, 409, 409]


def test_a_start_is_refused_where_somebody_else_has_made_that_impossible(broken: httpx.Client) -> None:
    refused = inject(broken, "start", own(broken))
    assert "start is for one that is gone" in refused.json()["detail"]


BODIES = [
    b"", b"null", b"[]", b'"kill"', b"{}", b'{"kind": "kill"}', b'{"worker": "w"}', b'{"kind": 7, "worker": "w"}',
    b'{"kind": ["kill"], "worker": "w"}', b'{"kind": {"kill": 1}, "worker": "w"}', b'{"kind": "KILL", "worker": "w"}',
    b'{"kind": "", "worker": "w"}', b'{"kind": "stop", "worker": "w"}', b'{"kind": "kill", "worker": 7}',
    b'{"kind": "kill", "worker": null}', b'{"kind": "kill", "worker": ["OWN"]}',
    b'{"kind": "kill", "worker": "OWN", "delay_ms": 5}', b'{"kind": "kill", "worker": "OWN", "delay_ms": null}',
    b'{"kind": "kill", "worker": "OWN", "pid": 1}', b'{"kind": "kill", "kind": "cut", "worker": "OWN"}',
    b'{"kind": "slow", "worker": "OWN"}', b'{"kind": "slow", "worker": "OWN", "delay_ms": "5"}',
    b'{"kind": "slow", "worker": "OWN", "delay_ms": true}', b'{"kind": "slow", "worker": "OWN", "delay_ms": 0}',
    b'{"kind": "slow", "worker": "OWN", "delay_ms": -1}', b'{"kind": "slow", "worker": "OWN", "delay_ms": 1e999}',
    b'{"kind": "slow", "worker": "OWN", "delay_ms": NaN}', b'{"kind": "slow", "worker": "OWN", "delay_ms": 10001}',
    b'{"kind": "slow", "worker": "OWN", "delay_ms": ' + b"9" * 400 + b"}", b'{"kind": "kill", "worker": "OWN"',
    b'\xff{"kind": "kill", "worker": "OWN"}', b"[" * 60_000,
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=[body[:60].decode("ascii", "replace") for body in BODIES])
def test_an_odd_body_breaks_nothing(body: bytes, broken: httpx.Client) -> None:
    before = faults(broken)
    body = body.replace(b"OWN", own(broken).encode())
    refused = broken.post("/v1/faults", content=body, headers={"content-type": "application/json"})
    assert (refused.status_code, refused.json()["outcome"], refused.json()["code"]) == (400, "refused", "bad_request")
    assert faults(broken) == before


@pytest.mark.parametrize("worker", ["w-nobody", "", "127.0.0.1:1", "../1", "1", "\u0000", "x" * 10_000])
def test_a_worker_that_there_is_none_of_is_refused_by_name(worker: str, broken: httpx.Client) -> None:
    refused = inject(broken, "kill", worker)
    assert (refused.status_code, refused.json()["code"]) == (404, "unknown_worker")


def test_what_is_no_json_or_comes_from_another_site_is_refused(broken: httpx.Client) -> None:
    body = json.dumps({"kind": "cut", "worker": own(broken)})
    assert broken.post("/v1/faults", content=body, headers={"content-type": "text/plain"}).status_code == 415
    strange = {"content-type": "application/json", "sec-fetch-site": "cross-site"}
    assert broken.post("/v1/faults", content=body, headers=strange).status_code == 403
    assert broken.post("/v1/faults?dry_run=true", json=json.loads(body)).status_code == 400
    assert {worker["link"] for worker in faults(broken)["workers"]} == {"whole"}


def test_a_master_that_does_not_allow_it_says_how_it_would(web: httpx.Client) -> None:
    told = faults(web)
    assert (told["allowed"], [worker["can"] for worker in told["workers"]]) == (False, [[], [], []])
    refused = inject(web, "cut", told["workers"][0]["id"])
    assert (refused.status_code, refused.json()["code"]) == (403, "no_faults")
    assert "--break-it" in refused.json()["remedy"]
    assert {worker["link"] for worker in faults(web)["workers"]} == {"whole"}
