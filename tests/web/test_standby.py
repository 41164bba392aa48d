"""HTTP at a master that stands by, against what the leader answers; and what it says when there is no answer."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import cbor2
import httpx
import pytest
import trio

from tests.web.lanes import OTHER, Answer, Sent, ask, comparable
from tests.web.scraped import flaws, samples_of, value
from tests.web.standbys import Masters
from trikv.core.calls import PIECE_BYTES
from trikv.core.errors import Refused
from trikv.masterprocess import services_of
from trikv.testing.inprocess import InProcessCluster
from trikv.web.batch import BODY_BYTES_MAX
from trikv.web.desk import answer_passed

VALUE = bytes(range(256)) * 4096  # 1 MiB
ALIKE = (
    Sent(b"PUT", b"/v1/kv/a", b"one"),
    Sent(b"GET", b"/v1/kv/a"),
    Sent(b"GET", b"/v1/kv/a?timeout=1.5"),
    Sent(b"GET", b"/v1/kv/absent"),
    Sent(b"GET", b"/v1/kv/a?timeout=0"),
    Sent(b"GET", b"/v1/kv/a?timeout=1&timeout=2"),
    Sent(b"GET", b"/v1/kv/a?t%69meout=1"),
    Sent(b"GET", b"/v1/kv/a?nonsense=1"),
    Sent(b"GET", b"/v1/kv/%zz"),
    Sent(b"PUT", b"/v1/kv/a", b"two").having(b'If-Match: "1.0-0"'),
    Sent(b"GET", b"/v1/kv/a").having(b"If-None-Match: *"),
    Sent(b"PUT", b"/v1/kv/traced", b"v").having(b"Trikv-Trace: 1"),
    Sent(b"PUT", b"/v1/kv/YQ==?encoding=base64", b"\0\xff"),
    Sent(b"GET", b"/get?key=a"),
    Sent(b"GET", b"/get?key=a").having(b"Accept: application/json"),
    Sent(b"GET", b"/put?key=b&value=2"),
    Sent(b"POST", b"/v1/batch", b'{"items": [{"op": "get", "key": "b"}, {"op": "put", "key": "c", "value": "3"}]}'),
    Sent(b"POST", b"/v1/batch", b"{"),
    Sent(b"GET", b"/v1/kv?prefix=b"),
    Sent(b"GET", b"/v1/kv?limit=0"),
    Sent(b"DELETE", b"/v1/kv/a"),
    Sent(b"GET", b"/v1/mode"),
    Sent(b"PUT", b"/v1/mode?plan=true", b'{"mode": "chain"}'),
    Sent(b"PUT", b"/v1/mode", b'{"mode": "no-such"}'),
    Sent(b"GET", b"/v1/locate?key=a"),
    Sent(b"GET", b"/v1/no-such"),
    Sent(b"PATCH", b"/v1/kv/a"),
    Sent(b"GET", b"/readyz?safe_to_stop=w-1"),
    Sent(b"GET", b"/livez"),
    Sent(b"GET", b"/timeline.css"),
    Sent(b"GET", b"/static/page.css"),
    Sent(b"GET", b"/v1/kv/a").having(b"Sec-Fetch-Site: cross-site"),
    Sent(b"GET", b"/v1/kv/a", headers=(b"Host: elsewhere.example",)),
)


async def asked(port: int, *requests: Sent) -> list[Answer]:
    """The answers, of one connection."""
    return await trio.to_thread.run_sync(lambda: ask(port, b"".join(each.spelt for each in requests)))


async def asked_one(port: int, method: str, target: str, body: bytes | None = None, *headers: bytes) -> Answer:
    [answer] = await asked(port, Sent(method.encode(), target.encode(), body).having(*headers))
    return answer


def problem_in(answer: Answer) -> tuple[int, str, str]:
    problem = json.loads(answer.body)
    return answer.status, problem["code"], problem["outcome"]


@pytest.fixture
async def masters(nursery: trio.Nursery) -> Any:
    masters = await Masters.start(nursery, await InProcessCluster.start(nursery), timeout_s=1.0)
    yield masters
    nursery.cancel_scope.cancel()


# --- alike ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("detour", [(), (OTHER,)], ids=["lane", "detour"])
async def test_a_standby_answers_what_the_leader_answers(masters: Masters, detour: Sequence[bytes]) -> None:
    for request in ALIKE:
        [by_leader] = await asked(masters.port, request.having(*detour))
        [by_standby] = await asked(masters.standby.port, request.having(*detour))
        assert comparable(by_standby.head + by_standby.body) == comparable(by_leader.head + by_leader.body), request


async def test_pipelined_requests_are_answered_in_order(masters: Masters) -> None:
    requests = [
        request
        for number in range(60)
        for request in (Sent(b"PUT", b"/v1/kv/k", b"%d" % number), Sent(b"GET", b"/v1/kv/k"))
    ]
    answers = await asked(masters.standby.port, *requests)
    assert [answer.status for answer in answers] == [204, 200] * 60
    assert [int(answer.body) for answer in answers[1::2]] == list(range(60))


async def test_a_value_of_the_largest_size_goes_through(masters: Masters) -> None:
    port = masters.standby.port
    assert (await asked_one(port, "PUT", "/v1/kv/large", VALUE)).status == 204
    assert (await asked_one(port, "GET", "/v1/kv/large")).body == VALUE
    assert problem_in(await asked_one(port, "PUT", "/v1/kv/large", VALUE + b"x"))[:2] == (413, "value_too_large")


async def test_a_batch_of_the_largest_size_and_a_scan_of_it_go_through(masters: Masters) -> None:
    values = [b"\0" * (len(VALUE) - 100) for _ in range(8)]
    items = [{"op": "put", "key": b"k%d" % n, "value": value} for n, value in enumerate(values)]
    body = cbor2.dumps({"items": items})
    assert BODY_BYTES_MAX - 1024 < len(body) <= BODY_BYTES_MAX
    port = masters.standby.port
    answer = await asked_one(port, "POST", "/v1/batch?timeout=30", body, b"Content-Type: application/cbor")
    assert [row["outcome"] for row in cbor2.loads(answer.body)["results"]] == ["committed"] * 8
    scan = f"http://127.0.0.1:{port}/v1/kv?prefix=k&timeout=30"
    scanned = await trio.to_thread.run_sync(lambda: httpx.get(scan, timeout=30, trust_env=False).content)
    assert len(scanned) > 40 * PIECE_BYTES  # each of these bytes takes six as JSON
    assert [item["value"].encode() for item in json.loads(scanned)["items"]] == values
    assert masters.cluster.master.passed_on.held_bytes == 0


async def test_many_clients_at_once(masters: Masters) -> None:
    async def write_and_read(client: int) -> None:
        answers = await asked(
            masters.standby.port,
            *[Sent(b"PUT", b"/v1/kv/c%d-%d" % (client, n), b"%d" % n) for n in range(20)],
            *[Sent(b"GET", b"/v1/kv/c%d-%d" % (client, n)) for n in range(20)],
        )
        assert [int(answer.body) for answer in answers[20:]] == list(range(20))

    async with trio.open_nursery() as nursery:
        for client in range(20):
            nursery.start_soon(write_and_read, client)


async def test_the_id_of_a_request_is_carried_over(masters: Masters) -> None:
    answer = await asked_one(masters.standby.port, "GET", "/v1/kv/a", None, b"X-Request-Id: mine")
    assert b"\r\nx-request-id: mine\r\n" in answer.head


# --- its own ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["/", "/?refresh=off", "/v1/events?after=1-1&kind=a,b", "/v1/live"])
async def test_a_page_and_streams_are_at_the_leader(masters: Masters, target: str) -> None:
    answer = await asked_one(masters.standby.port, "GET", target)
    assert answer.status == 307
    assert f"\r\nlocation: http://127.0.0.1:{masters.port}{target}\r\n".encode() in answer.head


async def test_it_tells_its_role_and_who_leads(masters: Masters) -> None:
    [leads, stands_by] = [await asked_one(port, "GET", "/readyz") for port in (masters.port, masters.standby.port)]
    assert (leads.status, json.loads(leads.body)["role"]) == (200, "leader")
    told = json.loads(stands_by.body)
    assert (stands_by.status, told["ready"], told["role"]) == (200, True, "standby")
    assert told["leader"] == masters.me._asdict()
    told = json.loads((await asked_one(masters.standby.port, "GET", "/v1/masters")).body)
    assert told["leader"] == {**masters.me._asdict(), "since": "2026-01-01T00:00:00Z", "term": 1}
    assert {(master["name"], master["role"]) for master in told["masters"]} == {("m-1", "leader"), ("m-2", "standby")}
    assert told["answered_by"] == "m-2"
    assert told["config_store"]["kind"] == "memory"


async def test_it_counts_what_it_passed_on(masters: Masters) -> None:
    await asked(masters.standby.port, *[Sent(b"GET", b"/v1/kv/absent")] * 3)
    scraped = (await asked_one(masters.standby.port, "GET", "/metrics")).body.decode()
    assert flaws(scraped) == []
    samples = samples_of(scraped)
    assert value(samples, "trikv_passed_on_total", outcome="answered") == 3
    assert value(samples, "trikv_leader_linked") == 1


# --- nobody answers ---------------------------------------------------------------------------------------------------


async def lose_leader(masters: Masters) -> None:
    await masters.leader.give_up_lead()
    masters.cluster.network.cut(masters.me.address)
    await until(lambda: masters.standby.passing.leader is None)


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110 what is waited for is in several places
            await trio.sleep(0.01)


async def test_while_no_master_leads_requests_wait_and_are_then_refused(masters: Masters) -> None:
    await lose_leader(masters)
    port = masters.standby.port
    for method, target in (
        ("GET", "/v1/kv/a?timeout=0.1"),
        ("PUT", "/v1/kv/a?timeout=0.1"),
        ("GET", "/v1/cluster"),
        ("GET", "/"),
    ):
        answer = await asked_one(port, method, target, b"v" if method == "PUT" else None)
        assert problem_in(answer) == (503, "no_leader", "refused")
        assert b"\r\nretry-after: 1\r\n" in answer.head
    ready = await asked_one(port, "GET", "/readyz")
    assert (ready.status, json.loads(ready.body)["detail"]) == (503, "no master leads")
    assert (await asked_one(port, "GET", "/livez")).status == 200


async def test_a_request_that_waits_is_answered_by_the_next_leader(masters: Masters, nursery: trio.Nursery) -> None:
    await lose_leader(masters)
    answers = []

    async def write() -> None:
        answers.append(await asked_one(masters.standby.port, "PUT", "/v1/kv/a?timeout=20", b"v"))

    nursery.start_soon(write)
    await until(lambda: masters.standby.passing.held_bytes)
    masters.cluster.network.mend(masters.me.address)
    assert await masters.leader.take_lead("later")
    await until(lambda: answers)
    assert answers[0].status == 204


async def test_the_leader_is_told_how_much_time_is_left(masters: Masters, nursery: trio.Nursery) -> None:
    """Its workers do not answer, so the request takes all the time that the leader gives it."""
    for node in masters.cluster.workers:
        masters.cluster.network.hold(node.address)
    await lose_leader(masters)
    answers = []

    async def write() -> None:
        answers.append(await asked_one(masters.standby.port, "PUT", "/v1/kv/a?timeout=2", b"v"))

    began_s = trio.current_time()
    nursery.start_soon(write)
    await until(lambda: masters.standby.passing.held_bytes)
    await trio.sleep(1.5)
    masters.cluster.network.mend(masters.me.address)
    assert await masters.leader.take_lead("later")
    await until(lambda: answers)
    problem = json.loads(answers[0].body)
    assert problem["code"] != "no_leader"
    assert "passed on" not in problem["detail"]  # it is the leader's own, and came in time
    assert trio.current_time() - began_s >= 2


async def test_what_a_leader_refuses_since_it_stops_is_asked_of_the_next(masters: Masters) -> None:
    class StoppingOnce:
        def __init__(self) -> None:
            self.asked = 0

        async def get(self, key: bytes, **options: Any) -> Any:
            self.asked += 1
            if self.asked == 1:
                raise Refused("stopping", "the master is about to end")
            return await masters.cluster.coordinator.get(key, **options)

    coordinator = StoppingOnce()
    services = replace(services_of(masters.cluster.master), coordinator=cast("Any", coordinator))
    with masters.cluster.master.passed_on.served_by(partial(answer_passed, services)):
        answer = await asked_one(masters.standby.port, "GET", "/v1/kv/absent")
    assert answer.status == 404
    assert coordinator.asked == 2


@pytest.mark.parametrize(
    ("method", "told"), [("PUT", (504, "unknown", "unknown")), ("GET", (503, "unanswered", "refused"))]
)
@pytest.mark.parametrize("how", ["cut", "late"])
async def test_what_was_sent_and_has_no_answer(
    masters: Masters, nursery: trio.Nursery, method: str, told: tuple[int, str, str], how: str
) -> None:
    network = masters.cluster.network
    network.hold(masters.me.address)
    answers = []

    async def request() -> None:
        body = b"v" if method == "PUT" else None
        answers.append(await asked_one(masters.standby.port, method, "/v1/kv/a?timeout=0.3", body))

    nursery.start_soon(request)
    await until(lambda: (link := masters.standby.passing.link) and link.in_flight and not link.queue_bytes)
    if how == "cut":
        network.cut(masters.me.address)
    await until(lambda: answers)
    assert problem_in(answers[0]) == told
    network.release(masters.me.address)


async def test_a_leader_that_stops_answers_what_is_under_way_and_begins_nothing_more(
    masters: Masters, nursery: trio.Nursery
) -> None:
    cluster = masters.cluster
    for node in cluster.workers:
        cluster.network.hold(node.address)
    answers: list[Answer] = []

    async def write(key: str, timeout: str) -> None:
        answers.append(await asked_one(masters.standby.port, "PUT", f"/v1/kv/{key}?timeout={timeout}", b"v"))

    nursery.start_soon(write, "a", "20")
    await until(lambda: cluster.coordinator.in_flight)
    masters.stop.set()
    await trio.testing.wait_all_tasks_blocked(0.05)
    nursery.start_soon(write, "b", "0.5")
    await until(lambda: masters.standby.passing.held_bytes == 2)
    for node in cluster.workers:
        cluster.network.release(node.address)
    await until(lambda: answers)
    assert answers[0].status == 204
    await until(lambda: len(answers) == 2)
    assert problem_in(answers[1]) == (503, "no_leader", "refused")
    assert await cluster.coordinator.get(b"b") is None


async def test_a_standby_that_ends_answers_what_it_has(masters: Masters, nursery: trio.Nursery) -> None:
    network = masters.cluster.network
    network.hold(masters.me.address)
    answers: dict[str, Answer] = {}

    async def request(method: str, body: bytes | None) -> None:
        answers[method] = await asked_one(masters.standby.port, method, "/v1/kv/a?timeout=30", body)

    nursery.start_soon(request, "PUT", b"v")
    nursery.start_soon(request, "GET", None)
    await until(lambda: (link := masters.standby.passing.link) and link.in_flight == 2 and not link.queue_bytes)
    await masters.standby.end()
    await until(lambda: len(answers) == 2)
    assert problem_in(answers["PUT"]) == (504, "unknown", "unknown")
    assert problem_in(answers["GET"]) == (503, "unanswered", "refused")


async def test_a_standby_that_ends_refuses_what_waits(masters: Masters, nursery: trio.Nursery) -> None:
    await lose_leader(masters)
    answers = []

    async def write() -> None:
        answers.append(await asked_one(masters.standby.port, "PUT", "/v1/kv/a?timeout=30", b"v"))

    nursery.start_soon(write)
    await until(lambda: masters.standby.passing.held_bytes)
    await masters.standby.end()
    await until(lambda: answers)
    assert problem_in(answers[0]) == (503, "no_leader", "refused")


async def test_a_client_that_leaves_leaves_its_write_to_the_leader(masters: Masters) -> None:
    port = masters.standby.port

    def write_and_leave() -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(Sent(b"PUT", b"/v1/kv/left", b"v").having(OTHER).spelt)

    await trio.to_thread.run_sync(write_and_leave)

    with trio.fail_after(10):
        while (await asked_one(port, "GET", "/v1/kv/left")).status != 200:
            pass
