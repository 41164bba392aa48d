"""A running cluster is steered over HTTP: its mode, its workers. One real cluster of five, put right after each."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.helpers import filled_cluster, put_right
from trikv.core.configuration import WorkerEntry
from trikv.core.errors import Refused
from trikv.testing.processes.cluster import LocalCluster, wait_until
from trikv.web.operate import NAMED_MAX, find_worker

MODES = ["async", "chain", "quorum", "sync"]
KEYS = 50


@pytest.fixture(scope="module")
def running() -> Iterator[LocalCluster]:
    with filled_cluster(workers=5, keys=KEYS) as cluster:
        yield cluster


@pytest.fixture
def web(running: LocalCluster) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.url, trust_env=False, timeout=30) as client:
        yield client
    put_right(running)


def place_of(web: httpx.Client, worker: str) -> str:
    return str(next(w["place"] for w in web.get("/v1/cluster").json()["workers"] if w["id"] == worker))


def everything(web: httpx.Client) -> list[bytes]:
    return [web.get(f"/v1/kv/operate/{n}").content for n in range(KEYS)]


def kinds(web: httpx.Client) -> list[str]:
    lines = web.get("/v1/events", params={"follow": "false"}).text.splitlines()
    return [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]


# --- the mode ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), [("PUT", "/v1/mode"), ("POST", "/config")])
def test_the_mode_is_switched_and_everything_is_still_there(web: httpx.Client, method: str, path: str) -> None:
    switched = web.request(method, path, json={"mode": "chain"}).raise_for_status().json()
    assert (switched["outcome"], switched["mode"], switched["from"]) == ("committed", "chain", "quorum")
    assert (switched["partitions"], switched["could_not_ask"]) == (1024, [])
    assert switched["keys_compared"] >= KEYS
    state = web.get("/v1/cluster").json()
    assert (state["mode"], state["unsettled"]) == ("chain", 0)
    assert web.get("/v1/mode").json()["mode"] == "chain"
    assert everything(web) == [b"%d" % n for n in range(KEYS)]
    again = web.request(method, path, json={"mode": "chain"}).raise_for_status().json()
    assert (again["mode"], again["partitions"]) == ("chain", 0)


def test_a_plan_changes_nothing(web: httpx.Client) -> None:
    plan = web.put("/v1/mode", params={"plan": "true"}, json={"mode": "async"}).raise_for_status().json()
    assert (plan["mode"], plan["from"], plan["promise"], plan["partitions"]) == ("async", "quorum", "AP", 1024)
    assert "outcome" not in plan
    assert web.get("/v1/mode").json()["mode"] == "quorum"


@pytest.mark.parametrize(("method", "path"), [("PUT", "/v1/mode"), ("POST", "/config")])
def test_what_is_no_mode_is_refused(web: httpx.Client, method: str, path: str) -> None:
    unknown = web.request(method, path, json={"mode": "quroum"})
    assert (unknown.status_code, unknown.json()["code"], unknown.json()["modes"]) == (400, "unknown_mode", MODES)
    assert web.request(method, path, json={"mode": 7}).status_code == 400
    assert web.request(method, path, json={}).json()["missing"] == ["mode"]
    broken = web.request(method, path, content=b'{"mode": chain}', headers={"content-type": "application/json"})
    assert (broken.status_code, broken.json()["position"]) == (400, 9)
    assert web.request(method, path, data={"mode": "chain"}).status_code == 415
    assert web.request(method, f"{path}?plan=perhaps", json={"mode": "chain"}).status_code == 400
    assert web.get("/v1/mode").json()["mode"] == "quorum"


def test_a_switch_goes_on_without_the_client_that_asked_for_it(web: httpx.Client, running: LocalCluster) -> None:
    """Sync needs every replica to settle, so the switch is held up for as long as one of them is silent."""
    body = json.dumps({"mode": "sync"}).encode()
    head = b"PUT /v1/mode HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    before = kinds(web).count("mode_switched")
    running.workers[0].pause()
    try:
        with socket.create_connection(("127.0.0.1", running.master.http_port), timeout=30) as leaving:
            leaving.sendall(head % len(body) + body)
            wait_until(lambda: web.get("/v1/mode").json()["progress"]["operation"], what="the switch is under way")
        another = web.put("/v1/mode", json={"mode": "chain"})
        assert (another.status_code, another.json()["code"]) == (409, "operation_under_way")
        assert web.get("/v1/mode").json()["progress"]["operation"]["mode"] == "sync"
        assert "Switching to mode sync" in web.get("/").text
    finally:
        running.workers[0].resume()
    wait_until(lambda: kinds(web).count("mode_switched") == before + 1, what="the switch has ended")
    assert web.get("/v1/mode").json()["mode"] == "sync"


# --- workers ----------------------------------------------------------------------------------------------------------


def test_a_worker_is_drained_and_taken_back(web: httpx.Client, running: LocalCluster) -> None:
    node = running.workers[1]
    plan = web.post(f"/v1/workers/{node.address}/drain", params={"dry_run": "true"}).raise_for_status().json()
    assert plan["worker"] == node.id
    assert plan["copies"] == sum(plan["to"].values()) > 0
    assert node.id not in plan["to"]
    assert place_of(web, node.id) == "member"

    assert web.post(f"/v1/workers/{node.id}/drain").raise_for_status().json()["outcome"] == "committed"
    wait_until(lambda: place_of(web, node.id) == "drained", what="the worker is empty")
    assert web.get("/readyz", params={"safe_to_stop": node.id}).json()["safe"] is True
    assert everything(web) == [b"%d" % n for n in range(KEYS)]
    running_still = web.delete(f"/v1/workers/{node.id}")
    assert (running_still.status_code, running_still.json()["outcome"]) == (409, "refused")

    joins = web.post(f"/v1/workers/{node.id}/undrain").raise_for_status().json()
    assert (joins["outcome"], joins["worker"]) == ("committed", node.id)
    wait_until(lambda: place_of(web, node.id) == "member", what="it has a place again")


def test_a_worker_that_holds_something_is_not_forgotten(web: httpx.Client, running: LocalCluster) -> None:
    refused = web.delete(f"/v1/workers/{running.workers[2].id}")
    assert (refused.status_code, refused.json()["code"], refused.json()["outcome"]) == (409, "unsafe", "refused")
    assert place_of(web, running.workers[2].id) == "member"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/workers/w-nobody/drain"),
        ("POST", "/v1/workers/w-nobody/drain?dry_run=true"),
        ("POST", "/v1/workers/w-nobody/undrain"),
        ("DELETE", "/v1/workers/w-nobody"),
        ("GET", "/readyz?safe_to_stop=w-nobody"),
    ],
)
def test_an_unknown_worker_is_named(web: httpx.Client, running: LocalCluster, method: str, path: str) -> None:
    answer = web.request(method, path)
    assert (answer.status_code, answer.json()["code"], answer.json()["outcome"]) == (404, "unknown_worker", "refused")
    assert "w-nobody" in answer.json()["detail"]
    assert answer.json()["workers"] == sorted(node.id for node in running.workers)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/workers/x/drain?force=true"),
        ("POST", "/v1/workers/x/drain?dry_run=1"),
        ("POST", "/v1/workers/%zz/drain"),
        ("GET", "/v1/workers/plan?x=1"),
    ],
)
def test_what_cannot_be_understood_is_refused(web: httpx.Client, method: str, path: str) -> None:
    answer = web.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


def test_nothing_moves_where_everybody_has_a_share(web: httpx.Client) -> None:
    assert web.get("/v1/workers/plan").raise_for_status().json()["copies"] == 0


def test_a_worker_is_unsafe_to_stop_while_too_few_others_are_up(web: httpx.Client, running: LocalCluster) -> None:
    for node in running.workers[:2]:
        node.pause()
    try:

        def answer() -> httpx.Response:
            return web.get("/readyz", params={"safe_to_stop": running.workers[2].id})

        wait_until(lambda: answer().status_code == 503, what="two of five are missed")
        told = answer()
        assert told.json()["safe"] is False
        assert told.json()["detail"]
        assert told.headers["retry-after"]
    finally:
        for node in running.workers[:2]:
            node.resume()
    wait_until(lambda: answer().json().get("safe") is True, what="all are back")


# --- when something is wrong ------------------------------------------------------------------------------------------


def test_all_copies_are_compared_on_request(web: httpx.Client, running: LocalCluster) -> None:
    for parameters, outcome in (({"dry_run": "true"}, None), ({}, "committed")):
        report = web.post("/v1/repair", params=parameters).raise_for_status().json()
        assert report.get("outcome") == outcome
        assert (report["differing"], report["repaired"], report["partitions"], report["skipped"]) == (0, 0, 1024, 0)
    assert web.post("/v1/repair?dry_run=1").status_code == 400
    assert everything(web) == [b"%d" % n for n in range(KEYS)]


def test_there_is_nothing_to_recover_in_a_cluster_that_is_whole(web: httpx.Client) -> None:
    for accept_loss in (False, True):
        report = web.post("/v1/recover", json={"accept_loss": accept_loss}).raise_for_status().json()
        assert (report["partitions"], report["lost_members"]) == ([], [])
    assert "recovered" not in kinds(web)
    for body in ({}, {"accept_loss": "yes"}, {"accept_loss": True, "force": True}):
        assert web.post("/v1/recover", json=body).status_code == 400


# --- how a worker is named --------------------------------------------------------------------------------------------


def workers(**addresses: str) -> dict[str, WorkerEntry]:
    return {name: WorkerEntry(name, "i", address, "memory") for name, address in addresses.items()}


@pytest.mark.parametrize("name", ["w1", "127.0.0.1:8001", "localhost:8001"])
def test_a_worker_has_an_id_and_an_address(name: str) -> None:
    assert find_worker(workers(w1="127.0.0.1:8001", w2="127.0.0.1:8002"), name) == "w1"


def test_an_address_of_two_is_ambiguous_and_an_id_never() -> None:
    two: dict[str, Any] = workers(w1="h:1", w2="h:1")
    assert find_worker(two, "w2") == "w2"
    with pytest.raises(Refused, match="w1, w2") as refused:
        find_worker(two, "h:1")
    assert refused.value.kind.code == "bad_request"


def test_an_error_names_only_so_many_workers() -> None:
    many = workers(**{f"w{n:02}": f"h:{n}" for n in range(NAMED_MAX + 1)})
    with pytest.raises(Refused, match=rf"w{NAMED_MAX - 1:02}, \.\.\.$"):
        find_worker(many, "nobody")
    with pytest.raises(Refused, match="none has enlisted"):
        find_worker({}, "nobody")
