"""Batches: an outcome for each item, and nothing done where the request as a whole is wrong."""

import base64
import json
from typing import Any

import cbor2
import httpx
import pytest
import trio
from trio.testing import MockClock

from trikv.api import Promise, Record, ReplicaSet, Strategy, Write
from trikv.core.errors import Outcome
from trikv.core.record import VALUE_BYTES_MAX
from trikv.masterprocess import services_of
from trikv.testing.inprocess import InProcessCluster
from trikv.web.batch import AT_ONCE_MAX, BODY_BYTES_MAX, batch, spell_json
from trikv.web.message import Request, json_response

CBOR = {"content-type": "application/cbor"}


def run(web: httpx.Client, *items: dict[str, Any], **query: str) -> list[dict[str, Any]]:
    answer = web.post("/v1/batch", json={"items": items}, params=query).raise_for_status()
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


def test_items_of_one_key_keep_their_order(web: httpx.Client) -> None:
    writes = [{"op": "put", "key": "order", "value": str(number)} for number in range(50)]
    results = run(
        web, *writes, {"op": "get", "key": "order"}, {"op": "delete", "key": "order"}, {"op": "get", "key": "order"}
    )
    assert [result["status"] for result in results] == [204] * 50 + [200, 204, 404]
    assert results[50]["value"] == "49"
    assert results[50]["etag"] == results[49]["etag"]
    assert results[52]["code"] == "not_found"


def test_a_refused_item_undoes_no_other(web: httpx.Client) -> None:
    results = run(
        web,
        {"op": "put", "key": "b/1", "value": "1"},
        {"op": "put", "key": "", "value": "2"},
        {"op": "put", "key": "k" * 4097, "value": "3"},
        {"op": "put", "key": "b/4", "value": "v" * (1024 * 1024 + 1)},
        {"op": "put", "key": "b/1", "value": "5", "if_none_match": "*"},
        {"op": "put", "key": "b/6", "value": "6"},
    )
    assert [result["status"] for result in results] == [204, 400, 400, 413, 412, 204]
    assert [result["outcome"] for result in results] == ["committed", *["refused"] * 4, "committed"]
    assert web.get("/v1/kv/b/1").content == b"1"
    assert web.get("/v1/kv/b/6").content == b"6"
    assert web.get("/v1/kv/b/4").status_code == 404


def test_conditions_of_items(web: httpx.Client) -> None:
    web.delete("/v1/kv/c")
    (first,) = run(web, {"op": "put", "key": "c", "value": "1", "if_none_match": "*"})
    seen = first["etag"]
    second, third, fourth = run(
        web,
        {"op": "put", "key": "c", "value": "2", "if_match": ["0.0-0", seen]},
        {"op": "put", "key": "c", "value": "3", "if_match": seen},
        {"op": "get", "key": "c", "if_match": f'"{seen}"'},
    )
    assert [second["status"], third["status"], fourth["status"]] == [204, 412, 412]


def test_base64_items(web: httpx.Client) -> None:
    key, value = base64.urlsafe_b64encode(b"\xff\xfe").decode(), base64.b64encode(bytes(range(256))).decode()
    put, got = run(
        web,
        {"op": "put", "key": key, "value": value, "encoding": "base64"},
        {"op": "get", "key": key, "encoding": "base64"},
    )
    assert put["status"] == 204
    assert base64.urlsafe_b64decode(got["value"]) == bytes(range(256))
    assert web.get(f"/v1/kv/{key}?encoding=base64").content == bytes(range(256))


def test_cbor(web: httpx.Client) -> None:
    items = [
        {"op": "put", "key": b"\xff\0", "value": b"\0\xff"},
        {"op": "get", "key": b"\xff\0"},
        {"op": "put", "key": "text", "value": "text"},
        {"op": "get", "key": "text", "if_none_match": "*"},
    ]
    answer = web.post("/v1/batch", content=cbor2.dumps({"items": items}), headers=CBOR).raise_for_status()
    assert answer.headers["content-type"] == "application/cbor"
    results = cbor2.loads(answer.content)["results"]
    assert [result["status"] for result in results] == [204, 200, 204, 412]
    assert results[1]["value"] == b"\0\xff"


def test_a_thousand_items_and_none(web: httpx.Client) -> None:
    results = run(web, *({"op": "put", "key": f"many/{number}", "value": "v"} for number in range(1000)), timeout="60")
    assert {result["status"] for result in results} == {204}
    assert run(web) == []


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "the body must be an object"),
        ({}, "the body lacks items"),
        ({"items": {}}, "items must be a list"),
        ({"items": [], "item": []}, "has 'item'"),
        ({"items": [{"op": "get", "key": "a"}] * 1001}, "at most 1,000"),
        ({"items": [7]}, "item 0 must be an object"),
        ({"items": [{"op": "get"}]}, "item 0 lacks key"),
        ({"items": [{"op": "steal", "key": "a"}]}, "op of item 0"),
        ({"items": [{"op": "put", "key": "untouched"}]}, "item 0 lacks its value"),
        ({"items": [{"op": "get", "key": "a", "value": "b"}]}, "a get has no value"),
        ({"items": [{"op": "put", "key": "untouched", "value": 7}]}, "the value of item 0 must be a string"),
        ({"items": [{"op": "get", "key": None}]}, "the key of item 0 must be a string"),
        ({"items": [{"op": "get", "key": "a", "encoding": "hex"}]}, "encoding of item 0"),
        ({"items": [{"op": "put", "key": "untouched", "value": "1", "encoding": None}]}, "encoding of item 0"),
        ({"items": [{"op": "get", "key": "!", "encoding": "base64"}]}, "not base64"),
        ({"items": [{"op": "get", "key": "\ud800"}]}, "surrogate"),
        ({"items": [{"op": "get", "key": "a", "if_match": 7}]}, "if_match of item 0"),
        ({"items": [{"op": "get", "key": "a", "if_match": []}]}, "if_match of item 0"),
        ({"items": [{"op": "get", "key": "a", "if_match": "*", "if_none_match": "*"}]}, "both"),
        (
            {"items": [{"op": "put", "key": "untouched", "value": "1"}, {"op": "put", "if-match": "x"}]},
            "item 1 lacks key",
        ),
        ({"items": [{"op": "put", "key": "untouched", "value": "1", "ifmatch": "x"}]}, "has 'ifmatch'"),
    ],
)
def test_a_malformed_batch_is_refused_as_a_whole(web: httpx.Client, document: Any, said: str) -> None:
    answer = web.post("/v1/batch", content=json.dumps(document), headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"], answer.json()["outcome"]) == (400, "bad_request", "refused")
    assert said in answer.json()["detail"]
    assert web.get("/v1/kv/untouched").status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        cbor2.dumps({"items": []}) + b"\0",
        cbor2.dumps({"items": []})[:-1],
        bytes.fromhex("bf656974656d7380ff"),  # a map of indefinite length
        bytes.fromhex("a2656974656d7380656974656d7380"),  # the same key twice
        bytes.fromhex("c11a514b67b0"),  # a date by its tag
        bytes.fromhex("a1656974656d7381") + b"\x81" * 40 + b"\0",  # nested deeply
        cbor2.dumps({"items": [{"op": "get", "key": 7}]}),
        cbor2.dumps({1: []}),
    ],
)
def test_what_is_not_plain_cbor_is_refused(web: httpx.Client, body: bytes) -> None:
    answer = web.post("/v1/batch", content=body, headers=CBOR)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


def test_bodies_of_other_kinds_and_sizes(web: httpx.Client) -> None:
    form = web.post("/v1/batch", data={"items": "[]"})
    assert (form.status_code, form.json()["code"]) == (415, "bad_media")
    large = web.post("/v1/batch", content=bytes(8 * 1024 * 1024 + 1), headers=CBOR)
    assert (large.status_code, large.json()["code"], large.headers["connection"]) == (413, "value_too_large", "close")
    assert run(web) == []


def test_an_answer_holds_no_more_values_than_it_may(web: httpx.Client) -> None:
    """Also if the gets are under way together."""
    keys = [f"large/{number}" for number in range(12)]
    for key in keys:
        assert web.put(f"/v1/kv/{key}", content=bytes(VALUE_BYTES_MAX)).status_code == 204
    results = run(web, *({"op": "get", "key": key} for key in keys))
    read = [result for result in results if result["status"] == 200]
    assert len(read) == BODY_BYTES_MAX // VALUE_BYTES_MAX + 1
    assert {result["value"] for result in read} == {"\0" * VALUE_BYTES_MAX}
    assert {result["code"] for result in results if result not in read} == {"overloaded"}
    for key in keys:
        web.delete(f"/v1/kv/{key}")


@pytest.mark.parametrize("count", [0, 1, 5])
async def test_others_have_turns_while_a_large_answer_is_spelled(nursery: trio.Nursery, count: int) -> None:
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    nursery.start_soon(take_turns)
    await trio.lowlevel.checkpoint()
    turns = 0
    results = [{"status": 200, "value": "v" * (VALUE_BYTES_MAX + 1)}] * count
    answer = await spell_json(results)
    assert turns >= count - 1
    assert answer == json_response({"results": results})


def test_millions_of_empty_items_are_refused_at_once(web: httpx.Client) -> None:
    items = b"\x80" * (BODY_BYTES_MAX - 20)
    body = b"\xa1\x65items\x9a" + len(items).to_bytes(4, "big") + items
    answer = web.post("/v1/batch", content=body, headers={"content-type": "application/cbor"})
    assert (answer.status_code, answer.json()["outcome"]) == (400, "refused")
    assert "more than 65,536 items" in answer.json()["detail"]


# --- in a cluster of this process, on virtual time ------------------------------------------------------------------

MODES = ("sync", "async", "chain", "quorum")


async def post(cluster: InProcessCluster, *items: dict[str, Any], timeout: str = "") -> list[dict[str, Any]]:
    body = json.dumps({"items": items}).encode()
    query = f"timeout={timeout}".encode() if timeout else b""
    request = Request("POST", b"/v1/batch", query, {"content-type": "application/json"}, body)
    results: list[dict[str, Any]] = json.loads((await batch(services_of(cluster.master), request)).body)["results"]
    assert len(results) == len(items)
    return results


def put(number: int, value: str = "v") -> dict[str, Any]:
    return {"op": "put", "key": f"k{number}", "value": value}


def get(number: int) -> dict[str, Any]:
    return {"op": "get", "key": f"k{number}"}


def assert_nothing_is_left(cluster: InProcessCluster) -> None:
    coordinator = cluster.coordinator
    assert coordinator.in_flight == coordinator.writing_bytes == 0
    assert not any(len(state.locks) for state in coordinator.partitions)


class Spawned(trio.abc.Instrument):
    """How many tasks were started."""

    count = 0

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


class Naps(Strategy):
    """Sleeps before it stores a key that ends in 7; stores one that ends in 3 again, within a scope of its own."""

    name = "naps"
    promise = Promise.CP
    gives_up = use_when = protocol = "Nothing, never, nohow."

    def __init__(self) -> None:
        self.cancelled: list[bytes] = []

    def copies(self, n: int) -> int:
        return n

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        try:
            if write.key.endswith(b"7"):
                await trio.sleep(0.2)
            await replicas.store(write)
            if write.key.endswith(b"3"):
                with trio.CancelScope():
                    await replicas.store(write)
        except trio.Cancelled:
            self.cancelled.append(write.key)
            raise

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        return (await replicas.tail.fetch(key))[0].record


@pytest.mark.parametrize("mode", MODES)
async def test_sixty_four_puts_take_a_few_tasks(nursery: trio.Nursery, autojump_clock: MockClock, mode: str) -> None:
    cluster = await InProcessCluster.start(nursery, mode=mode)
    await post(cluster, *map(put, range(64)))
    spawned = Spawned()
    trio.lowlevel.add_instrument(spawned)
    results = await post(cluster, *map(put, range(64)))
    trio.lowlevel.remove_instrument(spawned)
    assert [result["outcome"] for result in results] == ["committed"] * 64
    assert spawned.count < 8
    assert_nothing_is_left(cluster)
    results = await post(cluster, *map(get, range(64)))
    assert [result["value"] for result in results] == ["v"] * 64


async def test_a_strategy_may_await_what_it_likes(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery, mode="naps", strategies=[Naps()])
    began_s = trio.current_time()
    results = await post(cluster, *map(put, range(100)))
    assert [result["outcome"] for result in results] == ["committed"] * 100
    assert trio.current_time() - began_s < 0.5  # they slept side by side
    results = await post(cluster, *map(get, range(100)))
    assert [result["value"] for result in results] == ["v"] * 100
    assert_nothing_is_left(cluster)


@pytest.mark.parametrize("mode", MODES)
async def test_each_item_has_the_outcome_of_its_own_key(
    nursery: trio.Nursery, autojump_clock: MockClock, mode: str
) -> None:
    """One of five workers hears nothing: puts that need it are unknown, the others are committed."""
    cluster = await InProcessCluster.start(nursery, mode=mode, workers=5, down_after_s=60.0)
    await cluster.until_settled()
    silent = cluster.workers[0]
    cluster.network.hold(silent.address)
    results = await post(cluster, *map(put, range(AT_ONCE_MAX)), timeout="1")
    needy = [
        mode in ("sync", "chain") and silent in cluster.replicas_of(b"k%d" % number) for number in range(AT_ONCE_MAX)
    ]
    assert [result["outcome"] for result in results] == ["unknown" if needs else "committed" for needs in needy]
    assert any(needy) == (mode in ("sync", "chain"))
    assert not all(needy)
    assert_nothing_is_left(cluster)
    assert cluster.coordinator.outcomes[Outcome.UNKNOWN] == sum(needy)
    cluster.network.release(silent.address)
    await cluster.until_all_up()
    found = await post(cluster, *map(get, range(AT_ONCE_MAX)))
    assert all(result["value"] == "v" for result, needs in zip(found, needy, strict=True) if not needs)


async def test_items_whose_turn_never_came_are_refused(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery, mode="sync", down_after_s=60.0)
    await cluster.until_settled()
    for node in cluster.workers:
        cluster.network.hold(node.address)
    began_s = trio.current_time()
    results = await post(cluster, *map(put, range(AT_ONCE_MAX + 10)), put(0, "again"), timeout="1")
    assert trio.current_time() - began_s == pytest.approx(1)
    assert [result["outcome"] for result in results] == ["unknown"] * AT_ONCE_MAX + ["refused"] * 11
    assert {result["code"] for result in results[AT_ONCE_MAX:]} == {"unanswered"}
    assert_nothing_is_left(cluster)


async def test_a_batch_that_is_cancelled_leaves_nothing_behind(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    strategy = Naps()
    cluster = await InProcessCluster.start(nursery, mode="naps", strategies=[strategy], down_after_s=60.0)
    await cluster.until_settled()
    for node in cluster.workers:
        cluster.network.hold(node.address)
    with trio.move_on_after(0.5):
        await post(cluster, *map(put, range(100)))
    assert sorted(strategy.cancelled) == sorted(b"k%d" % number for number in range(AT_ONCE_MAX))
    assert_nothing_is_left(cluster)
