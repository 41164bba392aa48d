"""The express lane answers as the framework's side does, byte for byte, and carries out what it should and no more."""

import os
import random
import resource
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.web.conftest import read_to_end
from tests.web.lanes import (
    DETOUR,
    HOST,
    OTHER,
    Lanes,
    Sent,
    Served,
    answers_in,
    comparable,
    etag_of,
    read_answers,
    read_to_the_end,
)
from trikv.api import Promise, Record, ReplicaSet, Strategy, Write
from trikv.core import serving
from trikv.core.record import VALUE_BYTES_MAX
from trikv.net.accept import raise_descriptor_limit
from trikv.testing.inprocess import InProcessCluster
from trikv.testing.processes.cluster import LocalCluster, wait_until
from trikv.testing.processes.process import STOP_DEADLINE_S
from trikv.web.lane import HEAD_BYTES_MAX, IDLE_S, PART_S, SERVED_AT_ONCE, ExpressLane, PlainRequest
from trikv.web.message import Request, Response
from trikv.web.routes import Route
from trikv.web.server import GRACE_S
from trikv.web.services import Services


@pytest.fixture(scope="module")
def lanes(cluster: LocalCluster) -> Lanes:
    return Lanes(cluster.master.http_port)


# --- the same answers -------------------------------------------------------------------------------------------------

KEYS = [
    b"a", b"..", b"../..", b".", b"./", b"a/../b", b"/", b"//", b"//a", b"a//", b"a/b", b"%2F", b"%2f%2F", b"%2e%2e",
    b"%2E./..", b"#", b"a#b?", b"%3F", b"%23", b"%25", b"%2500", b"%00", b"%0d%0a", b"%0A", b"%20", b"+", b"a+b", b";",
    b"a;b=c", b"&", b"=", b"\\", b'"', b"'", b"<>", b"[]", b"{}", b"|", b"^`", b"~!*()", b"@", b":", b":80", b"http://x/",
    b"%C3%BC", b"%F0%9F%94%91", b"%ED%A0%80", b"%ff", b"%FF%FE", b"%C3", b"%E0%80%80", b"%", b"%%", b"%2", b"%zz",
    b"a%", b"a%4", b"%u0041", b"%00trikv/x", b"%00trikv", b"k" * 4096, b"k" * 4097, b"%41" * 4096, b"%41" * 4097,
    b"k" * 12_000, b"static/x", b"v1/kv/a", b"*",
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS, ids=lambda key: ascii(key[:12].decode()))
def test_a_key_of_every_kind(lanes: Lanes, key: bytes) -> None:
    target, in_query = b"/v1/kv/" + key, key.replace(b"#", b"%23")
    answers = lanes.compare(
        Sent(b"DELETE", target),
        Sent(b"GET", target),
        Sent(b"PUT", target, b"a value"),
        Sent(b"GET", target),
        Sent(b"GET", b"/put?value=&key=" + in_query),
        Sent(b"GET", b"/get?key=" + in_query),
    )
    statuses = [answer.status for answer in answers]
    if statuses[0] == 204:
        assert (statuses[1], statuses[2], answers[3].body) == (404, 204, b"a value")
    else:
        assert set(statuses[:4]) == {400}


def test_no_key_at_all(lanes: Lanes) -> None:
    """A target that ends behind the last slash is left to the framework's side."""
    for method in (b"GET", b"PUT", b"DELETE"):
        lanes.compare(Sent(method, b"/v1/kv/"), express=False)
        targets = (b"/v1/kv/?", b"/v1/kv/?encoding=base64", b"/v1/kv/?limit=1")
        answers = lanes.compare(*(Sent(method, target) for target in targets))
        assert {answer.status for answer in answers} == {400}


QUERIES = [
    b"", b"encoding=base64", b"encoding=text", b"encoding=", b"encoding=hex", b"encoding=base64&encoding=base64",
    b"encoding=base64&encoding=text", b"Encoding=base64", b"%65ncoding=base64", b"encoding=%62ase64", b"encoding",
    b"timeout=1", b"timeout=0", b"timeout=-1", b"timeout=+1", b"timeout=61", b"timeout=60", b"timeout=.5",
    b"timeout=5.", b"timeout=1e1", b"timeout=nan", b"timeout=", b"timeout", b"timeout=1&timeout=1",
    b"timeout=1&encoding=text", b"unknown=1", b"=", b"&", b"&&", b"a=b=c", b"?", b"??", b"?encoding=text", b"%",
    b"%zz=1", b"timeout=%zz", b"%ff=1", b"timeout=%ff", b"key=a", b"#", b"timeout=1#x", b"limit=1",
    b"timeout=" + b"9" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: ascii(query[:40].decode()))
def test_a_query_of_every_kind(lanes: Lanes, query: bytes) -> None:
    target = b"/v1/kv/cXVlcnk=?" + query
    lanes.compare(Sent(b"GET", target), Sent(b"PUT", target, b"v"), Sent(b"DELETE", target))
    targets = (b"/put?key=query&value=1&", b"/get?key=query&", *((b"/get?", b"/put?") if query else ()))
    lanes.compare(*(Sent(b"GET", each + query) for each in targets))


@pytest.mark.parametrize("accept", [
    b"Accept: application/json", b"Accept: */*", b"Accept:", b"Accept: text/plain;q=0.5, application/json",
    b"Accept: application/json;q=0.1, */*", b"Accept: \t application/json \t", b"accept:application/json",
    b"Accept: APPLICATION/JSON", b"Accept: application/json;q=nan", b"Accept: ,,;;q=,",
])  # fmt: skip
@pytest.mark.parametrize("target", [
    b"/put?key=accepted&value=x%20y", b"/put?key=accepted&value=%ff", b"/put?key=accepted", b"/put?value=",
    b"/get?key=accepted", b"/get?key=absent", b"/get?key=%ff", b"/get?key=", b"/get?value=x", b"/v1/kv/accepted",
])  # fmt: skip
def test_what_is_accepted(lanes: Lanes, target: bytes, accept: bytes) -> None:
    lanes.put(b"accepted", b"x y")
    (answer,) = lanes.compare(Sent(b"GET", target).having(accept))
    if accept == b"Accept: application/json" and answer.status == 200 and not target.startswith(b"/v1"):
        assert b"\r\ncontent-type: application/json\r\n" in answer.head


@pytest.mark.parametrize("size", [0, 1, 64 * 1024 - 1, 64 * 1024, 64 * 1024 + 1, 1024 * 1024, 1024 * 1024 + 1])
def test_values_of_every_size(lanes: Lanes, size: int) -> None:
    value = bytes(range(256)) * (size // 256) + bytes(size % 256)
    (put,) = lanes.compare(Sent(b"PUT", b"/v1/kv/size", value), express=size <= 64 * 1024)
    (got,) = lanes.compare(Sent(b"GET", b"/v1/kv/size"))
    if size <= 1024 * 1024:
        assert (put.status, got.body) == (204, value)
    else:
        assert put.status == 413


def test_a_value_that_looks_like_the_end_of_an_answer(lanes: Lanes) -> None:
    """Nothing in a value ends its connection, or is taken for a header."""
    value = b"x\r\nconnection: close\r\n\r\nHTTP/1.1 500 \r\n\r\n"
    lanes.put(b"looks", value)
    assert [answer.body for answer in lanes.compare(*[Sent(b"GET", b"/v1/kv/looks")] * 3)] == [value] * 3


JSON, CBOR = b"Content-Type: application/json", b"Content-Type: application/cbor"
BATCHES = [
    b'{"items": []}', b'{"items": [{"op": "put", "key": "batch", "value": "1"}, {"op": "get", "key": "batch"}]}',
    b'{"items": [{"op": "put", "key": "", "value": "1"}, {"op": "get", "key": "absent"}]}', b'{"items": 1}',
    b'{"items": [{"op": "put", "key": "batch", "value": "1", "if_match": "1.1-0"}]}', b"{", b"", b"\xff",
    b'{"items": [{"op": "delete", "key": "batch"}, {"op": "get", "key": "batch"}]}',
    b'{"items": [' + b",".join(b'{"op": "put", "key": "b%d", "value": "v"}' % n for n in range(200)) + b"]}",
]  # fmt: skip


@pytest.mark.parametrize("body", BATCHES, ids=lambda body: ascii(body[:40].decode(errors="replace")))
def test_batches(lanes: Lanes, body: bytes) -> None:
    for target in (b"/v1/batch", b"/v1/batch?", b"/v1/batch?timeout=1", b"/v1/batch?timeout=x", b"/v1/batch?x=1"):
        lanes.compare(*(Sent(b"POST", target, body).having(*more) for more in ((JSON,), (CBOR,), ())))


def test_batches_that_are_none(lanes: Lanes) -> None:
    lanes.compare(Sent(b"POST", b"/v1/batch").having(JSON))
    lanes.compare(Sent(b"POST", b"/v1/batch", b'{"items": []}' + b" " * 65_536).having(JSON), express=False)
    for method, target in (
        (b"GET", b"/v1/batch"), (b"PUT", b"/v1/batch"), (b"DELETE", b"/v1/batch?"), (b"POST", b"/v1/batch/"),
        (b"POST", b"/v1/batchx"), (b"POST", b"/v1/batc"), (b"POST", b"/v1/kv/key"), (b"POST", b"/get?key=a"),
        (b"POST", b"/v1/%62atch"),
    ):  # fmt: skip
        lanes.compare(Sent(method, target, None if method == b"GET" else b'{"items": []}').having(JSON), express=False)


CONDITIONS = [
    b"If-Match: *", b"If-None-Match: *", b"If-Match: %s", b"If-None-Match: %s", b"If-Match: W/%s",
    b"If-None-Match: W/%s", b'If-Match: "1.1-0"', b'If-None-Match: "1.1-0"', b'If-Match: "other", %s',
    b'If-None-Match: "other",,%s,', b"If-Match: * ", b"If-Match:", b"If-None-Match: ", b"If-Match: 1.1-1",
    b'If-Match: "', b"If-Match: %s %s", b"If-Match: *, *", b"If-Match: %s, *", b"if-none-match:%s", b"IF-MATCH:\t%s\t",
    b"If-Match: *\r\nIf-None-Match: *", b"If-Match: " + b'"1.1-1", ' * 200 + b"%s",
]  # fmt: skip


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: ascii(condition[:40].decode()))
def test_preconditions(lanes: Lanes, condition: bytes, there: bool) -> None:
    """The same answers, and the same values afterwards."""
    paths = [b"/v1/kv/condition-%d" % number for number in range(5)]
    requests = (
        Sent(b"GET", paths[0]),
        Sent(b"PUT", paths[1], b"after"),
        Sent(b"DELETE", paths[2]),
        Sent(b"GET", b"/get?key=condition-3"),
        Sent(b"GET", b"/put?key=condition-4&value=after"),
    )
    told = []
    for more in ((), (OTHER,)):
        etags = [etag_of(answer) for answer in lanes.ask(*(Sent(b"PUT", path, b"before") for path in paths))]
        if not there:
            lanes.ask(*(Sent(b"DELETE", path) for path in paths))
        asked = [
            request.having(condition.replace(b"%s", etag), *more) for request, etag in zip(requests, etags, strict=True)
        ]
        answers = lanes.ask(*asked, *(Sent(b"GET", path) for path in paths))
        assert len(answers) == 2 * len(paths)
        told.append([comparable(answer.head + answer.body) for answer in answers])
    assert told[0] == told[1]


@pytest.mark.parametrize(("headers", "express"), [
    ((b"Host: 127.0.0.1",), True), ((b"Host: LOCALHOST:1",), True), ((b"Host: [::1]:8080",), True),
    ((b"Host:",), True), ((b"Host: a.localhost",), True), ((b"Host: evil.example",), False),
    ((b"Host: localhost.",), False), ((b"Host: localhost, localhost",), False), ((b"Host: localhost:99999",), True),
    ((b"Host: localhost:x",), True), ((b"Host: user@localhost",), True), ((b"Host: localhost/x",), True),
    ((b"Host: localhost?x",), True), ((b"Host: localhost#x",), True), ((b"Host: [::1",), False),
    ((b"Host: a b",), False), ((b"Host: localhost x",), False), ((b"Host:\tlocalhost\t ",), True),
    ((b"Host: " + b"a" * 64 + b".localhost",), True), ((b"Host: ..localhost",), True),
    ((HOST, b"Origin: http://localhost"), True), ((HOST, b"Origin: HTTPS://LOCALHOST"), True),
    ((HOST, b"Origin: http://evil.example"), False), ((HOST, b"Origin: null"), False), ((HOST, b"Origin:"), False),
    ((HOST, b"Sec-Fetch-Site: same-origin"), True), ((HOST, b"Sec-Fetch-Site: none"), True),
    ((HOST, b"Sec-Fetch-Site: cross-site"), False), ((HOST, b"Sec-Fetch-Site:"), False),
    ((HOST, b"Referer: http://localhost/"), True), ((HOST, b"Referer: http://evil.example/"), False),
    ((HOST, b"Referer: http://["), False), ((HOST, b"Referer:"), False),
    ((HOST, b"Sec-Fetch-Mode: navigate", b"Sec-Fetch-Dest: image"), True),
    ((), False), ((HOST, HOST), False), ((HOST, b"host: localhost"), False),
])  # fmt: skip
def test_a_foreign_page_is_refused(lanes: Lanes, headers: tuple[bytes, ...], express: bool) -> None:
    lanes.put(b"guarded", b"before")
    (put,) = lanes.compare(Sent(b"PUT", b"/v1/kv/guarded", b"after", headers), express=express)
    (by_query,) = lanes.compare(Sent(b"GET", b"/put?key=guarded&value=after", None, headers), express=express)
    if express:
        assert (put.status, by_query.status, lanes.get(b"guarded")) == (204, 200, b"after")
    else:
        assert put.status == by_query.status
        assert (put.status in (400, 403), lanes.get(b"guarded")) == (True, b"before")


def test_a_body_that_no_handler_takes(lanes: Lanes) -> None:
    path = b"/v1/kv/bodies"
    for method in (b"GET", b"DELETE"):
        lanes.compare(Sent(method, path, b"a body"), Sent(method, path, b""), express=False)
        lanes.compare(Sent(method, path, b""))
    lanes.compare(Sent(b"GET", b"/put?key=bodies&value=1", b"a body"), Sent(b"GET", b"/get?key=bodies"))


@pytest.mark.parametrize("headers", [
    (b"Connection: keep-alive",), (b"connection:Keep-Alive",), (b"User-Agent: x\t y", b"Accept-Encoding: gzip, br"),
    (b"User-Agent:",), (b"Accept-Language: \t",), (b"User-Agent: " + b"x" * 10_000,),
    (b"Content-Type: text/html; charset=\\",), (b"Content-Type: application/x-www-form-urlencoded",),
    (b"Content-Type: multipart/form-data; boundary=x",), (b"Trikv-Trace: 1",), (b"TRIKV-TRACE:",),
])  # fmt: skip
def test_other_headers(lanes: Lanes, headers: tuple[bytes, ...]) -> None:
    path = b"/v1/kv/headers"
    requests = (Sent(b"PUT", path, b"a=1&b=2"), Sent(b"GET", path), Sent(b"DELETE", path), Sent(b"GET", path))
    answers = lanes.compare(*(request.having(*headers) for request in requests))
    assert [answer.status for answer in answers] == [204, 200, 204, 404]
    for answer in answers:
        assert (b"\r\ntrikv-trace: " in answer.head or b'"trace": ' in answer.body) is headers[0].lower().startswith(
            b"trikv-trace"
        )


# --- by a clock that jumps ------------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> MockClock:
    """Virtual time, for tests that name it. It passes when nothing happens for a moment: the sockets are real ones."""
    return MockClock(autojump_threshold=0.01)


@pytest.fixture
async def served(nursery: trio.Nursery, clock: MockClock) -> AsyncIterator[Served]:
    served = Served(await InProcessCluster.start(nursery))
    await nursery.start(served.run)
    yield served
    await served.end()
    assert not served.lane.connections


GET = Sent(b"GET", b"/v1/kv/k").spelt
PUT = Sent(b"PUT", b"/v1/kv/k", b"value").spelt


async def are_in_lane(served: Served) -> int:
    """How many connections the express lane has, once all is quiet."""
    await trio.testing.wait_all_tasks_blocked()
    return len(served.lane.connections)


@pytest.mark.parametrize("sent", [GET[:1], GET[:-1], PUT[:-1], PUT[:-5], b"GET /v1/kv/" + b"k" * 8_000])
async def test_a_part_of_a_request_is_hypercorns_after_a_moment(served: Served, clock: MockClock, sent: bytes) -> None:
    stream = await served.connect()
    await stream.send_all(sent)
    assert await are_in_lane(served) == 1
    await trio.sleep(PART_S + 2)
    assert await are_in_lane(served) == 0
    assert (await read_to_the_end(stream))[:13] in (b"", b"HTTP/1.1 408 ")
    assert trio.current_time() > IDLE_S
    assert await served.cluster.coordinator.get(b"k") is None


@pytest.mark.parametrize("sent", [
    b"g", b"POST /p", b"POST /v1/kv/", b"POST /v1/batchx", b"GET /v1/batch", b"GET /v1/kX", b"GET /v1/kv?",
    b"GET /put ", b"GET /v1/kv/k\xff", b"GET /v1/kv/k\0",
    b"GET /v1/kv/k HTTP/1.1\nHost:", b"GET /v1/kv/k HTTP/1.1\rHost", b"GET /v1/kv/" + b"k" * HEAD_BYTES_MAX,
    GET[:-4] + b"\r\nX: y\r\n\r\n", PUT[:-7] + b"\r\nExpect: 100-continue\r\n\r\n", GET.replace(b"1.1", b"1.0"),
    b"PUT /v1/kv/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 65537\r\n\r\n", b"\r\n",
    b"GET /v1/kv/k HTTP/1.1\r\nHost: localhost\r\nUser-Agent: " + b"x" * HEAD_BYTES_MAX + b"\r\n\r\n",
], ids=lambda sent: ascii(sent[:40].decode("latin-1")))  # fmt: skip
async def test_what_the_lane_does_not_take_is_hypercorns_at_once(served: Served, clock: MockClock, sent: bytes) -> None:
    stream = await served.connect()
    await stream.send_all(GET)
    await read_answers(stream, 1)
    assert await are_in_lane(served) == 1
    await stream.send_all(sent)
    assert await are_in_lane(served) == 0


@pytest.mark.parametrize("request_", [GET, PUT])
async def test_bytes_that_trickle_do_not_keep_a_connection_in_the_lane(
    served: Served, clock: MockClock, request_: bytes
) -> None:
    stream = await served.connect()
    began_s = trio.current_time()
    with suppress(trio.BrokenResourceError):
        for at in range(len(request_) - 1):
            await stream.send_all(request_[at : at + 1])
            await trio.sleep(PART_S / 2)
            if trio.current_time() - began_s > PART_S + 2:
                assert await are_in_lane(served) == 0
    assert await read_to_the_end(stream) == b""
    assert await served.cluster.coordinator.get(b"k") is None


async def test_a_request_that_comes_late_and_whole_is_answered_by_hypercorn(served: Served, clock: MockClock) -> None:
    stream = await served.connect()
    await stream.send_all(PUT[:-3])
    await trio.sleep(PART_S + 2)
    await stream.send_all(PUT[-3:] + GET)
    received = await read_answers(stream, 2)
    assert received.startswith(b"HTTP/1.1 204")
    assert received.endswith(b"\r\n\r\nvalue")


async def test_a_connection_that_sends_nothing_is_closed(served: Served, clock: MockClock) -> None:
    before, after = await served.connect(), await served.connect()
    await after.send_all(GET)
    await trio.sleep(IDLE_S - 1)
    await after.send_all(GET)
    assert await are_in_lane(served) == 2
    await trio.sleep(3)
    assert len(served.lane.connections) == 1
    assert await before.receive_some() == b""
    await trio.sleep(IDLE_S)
    assert len(answers_in(await read_to_the_end(after))) == 2


# --- clients that leave, and the end ----------------------------------------------------------------------------------


def hold(served: Served) -> None:
    """From now on no worker hears or answers anything."""
    for node in served.cluster.workers:
        served.cluster.network.hold(node.address)


def release(served: Served) -> None:
    for node in served.cluster.workers:
        served.cluster.network.release(node.address)


async def has_in_flight(served: Served, count: int) -> None:
    await served.cluster.until(lambda: served.cluster.coordinator.in_flight == count)


async def test_what_a_client_asked_for_before_it_left_is_done_no_further(served: Served, clock: MockClock) -> None:
    """The request under way goes on to its end; those behind it do not begin."""
    stream = await served.connect()
    hold(served)
    await stream.send_all(PUT + b"".join(Sent(b"PUT", b"/v1/kv/later-%d" % n, b"x").spelt for n in range(20)))
    await has_in_flight(served, 1)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await stream.aclose()
    release(served)
    await has_in_flight(served, 0)
    assert await are_in_lane(served) == 0
    assert [key for key, _ in (await served.cluster.coordinator.scan()).items] == [b"k"]


async def test_a_client_that_closed_its_half_is_answered_also_behind_a_wait(served: Served, clock: MockClock) -> None:
    stream = await served.connect()
    hold(served)
    await stream.send_all(PUT + GET + GET[:-2])
    await stream.send_eof()
    await has_in_flight(served, 1)
    release(served)
    assert [answer.status for answer in answers_in(await read_to_the_end(stream))] == [204, 200]


async def test_at_a_stop_requests_under_way_are_answered_and_all_connections_end(
    served: Served, clock: MockClock
) -> None:
    await served.cluster.coordinator.put(b"large", b"x" * VALUE_BYTES_MAX)
    idle, began, half, unread = [await served.connect() for _ in range(4)]
    other = await served.connect(detour=True)
    await began.send_all(GET[:20])
    await half.send_all(PUT[:-1])
    await unread.send_all(Sent(b"GET", b"/v1/kv/large").spelt * 40)
    await trio.testing.wait_all_tasks_blocked()
    hold(served)
    express, slow = await served.connect(), await served.connect(detour=True)
    for stream in (express, slow):
        await stream.send_all(PUT + GET)
    await has_in_flight(served, 2)
    served.stop.set()
    await trio.testing.wait_all_tasks_blocked()
    release(served)
    for stream in (idle, began, half, other):
        assert await read_to_the_end(stream) == b""
    for stream in (express, slow):
        assert [answer.status for answer in answers_in(await read_to_the_end(stream))] == [204]
        await stream.aclose()
    with trio.fail_after(GRACE_S + 1):
        await served.stopped.wait()


async def test_an_answer_at_a_stop_is_not_lost_to_a_reset(served: Served, clock: MockClock) -> None:
    """The kernel would send a reset at once, if this side closed while bytes are unread."""
    stream = await served.connect()
    hold(served)
    await stream.send_all(PUT)
    await has_in_flight(served, 1)
    await stream.send_all(GET)  # nothing is read while a request is served
    served.stop.set()
    await trio.testing.wait_all_tasks_blocked()
    release(served)
    await has_in_flight(served, 0)
    await trio.testing.wait_all_tasks_blocked()
    await stream.send_all(GET)
    assert [answer.status for answer in answers_in(await read_to_the_end(stream))] == [204]
    assert stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    await stream.send_eof()
    await served.stopped.wait()


async def test_a_stop_does_not_wait_for_replicas_that_are_silent(served: Served, clock: MockClock) -> None:
    hold(served)
    express, slow = await served.connect(), await served.connect(detour=True)
    for stream in (express, slow):
        await stream.send_all(Sent(b"PUT", b"/v1/kv/k?timeout=60", b"x").spelt)
    await has_in_flight(served, 2)
    served.stop.set()
    with trio.fail_after(GRACE_S + 1):
        await served.stopped.wait()


async def test_at_a_stop_a_client_that_reads_slowly_gets_its_value_and_nothing_else(
    served: Served, clock: MockClock
) -> None:
    """The request was served in time. That its deadline passes while the answer leaves means nothing."""
    value = b"x" * VALUE_BYTES_MAX
    await served.cluster.coordinator.put(b"large", value)
    served.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    stream = await served.connect()
    hold(served)
    await stream.send_all(Sent(b"GET", b"/v1/kv/large?timeout=0.5").spelt)
    await has_in_flight(served, 1)
    served.stop.set()
    await trio.testing.wait_all_tasks_blocked()
    release(served)
    await has_in_flight(served, 0)
    await trio.sleep(1.0)
    assert [answer.body for answer in answers_in(await read_to_the_end(stream))] == [value]


class Lingers(Strategy):
    """Its first write goes on for some rounds of the scheduler after the stop, its second one to no end."""

    name = "lingers"
    promise = Promise.CP
    gives_up = use_when = protocol = "Nothing, never, nohow."

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.stop = trio.Event()
        self.begun = 0

    def copies(self, n: int) -> int:
        return n

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        self.begun += 1
        if self.begun > 1:
            await trio.sleep_forever()
        await self.stop.wait()
        for _ in range(self.rounds):
            await trio.lowlevel.checkpoint()

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        return None


@pytest.mark.parametrize("rounds", range(8))
async def test_what_begins_in_the_instant_of_a_stop_is_late_at_its_deadline_as_ever(
    nursery: trio.Nursery, clock: MockClock, rounds: int
) -> None:
    strategy = Lingers(rounds)
    served = Served(await InProcessCluster.start(nursery, mode="lingers", strategies=[strategy]))
    strategy.stop = served.stop
    await nursery.start(served.run)
    stream = await served.connect()
    await stream.send_all(b"".join(Sent(b"PUT", b"/v1/kv/k?timeout=" + t, b"v").spelt for t in (b"60", b"0.5", b"60")))
    await has_in_flight(served, 1)
    served.stop.set()
    answers = answers_in(await read_to_the_end(stream))
    assert [answer.status for answer in answers] == [204, 503][: strategy.begun]
    await served.end()


async def test_a_client_that_sends_hundreds_of_requests_at_once_does_not_keep_others_waiting(
    served: Served, clock: MockClock
) -> None:
    """Its requests are refused at once, so none of them waits for anything."""
    many, one = await served.connect(), await served.connect()
    for stream, count in ((many, 500), (one, 1)):
        os.write(stream.socket.fileno(), Sent(b"GET", b"/v1/kv/%").spelt * count)
    await read_answers(one, 1)
    assert served.services.answered.total() <= 4 * SERVED_AT_ONCE
    assert len(answers_in(await read_answers(many, 500))) == 500


# --- deadlines --------------------------------------------------------------------------------------------------------


async def test_a_request_that_is_late_is_told_so_and_the_next_one_is_served(served: Served, clock: MockClock) -> None:
    """In both lanes alike: the first ends at its deadline, and what was sent behind it has its turn."""
    cluster = served.cluster
    await cluster.coordinator.put(b"k", b"before")
    slow = Sent(b"PUT", b"/v1/kv/k?timeout=0.1", b"late").spelt + Sent(b"GET", b"/v1/kv/k?timeout=0.05").spelt
    traced = Sent(b"PUT", b"/v1/kv/k?timeout=0.1", b"late").having(b"Trikv-Trace: 1").spelt
    told = []
    for detour in (False, True):
        stream = await served.connect(detour=detour)
        for node in cluster.replicas_of(b"k"):
            cluster.network.hold(node.address)
        began_s = trio.current_time()
        await stream.send_all(slow + traced)
        late = answers_in(await read_answers(stream, 3))
        assert trio.current_time() - began_s >= 0.25
        for node in cluster.replicas_of(b"k"):
            cluster.network.release(node.address)
        await stream.send_all(Sent(b"PUT", b"/v1/kv/k", b"after").spelt + GET)
        told.append([answer.status for answer in (*late, *answers_in(await read_answers(stream, 2)))])
        assert b'"code": "unknown"' in late[0].body
        assert b'"code": "unanswered"' in late[1].body
        assert b'"trace": "' in late[2].body
    assert told == [[504, 503, 504, 204, 200]] * 2


class Shields(Strategy):
    """Stores, and hears of its deadline only when it has taken its time."""

    name = "shields"
    promise = Promise.CP
    gives_up = use_when = protocol = "Nothing, never, nohow."

    def copies(self, n: int) -> int:
        return n

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.store(write)
        with trio.CancelScope(shield=True):
            await trio.sleep(0.4)
        if write.record.value == b"goes on":
            await trio.sleep_forever()

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        return (await replicas.tail.fetch(key))[0].record


async def test_a_decision_in_the_last_moment_is_told_and_is_no_answer_to_the_next_request(
    nursery: trio.Nursery, clock: MockClock
) -> None:
    served = Served(await InProcessCluster.start(nursery, mode="shields", strategies=[Shields()]))
    await nursery.start(served.run)
    stream = await served.connect()
    values = (b"decides", b"goes on", b"decides", b"decides")
    await stream.send_all(b"".join(Sent(b"PUT", b"/v1/kv/k?timeout=0.2", value).spelt for value in values))
    answers = answers_in(await read_answers(stream, len(values)))
    assert [answer.status for answer in answers] == [204, 504, 204, 204]
    assert len({etag_of(answer) for answer in answers if answer.status == 204}) == 3
    await served.end()


@pytest.mark.parametrize("seed", range(2))
async def test_late_requests_and_others_in_one_stream_are_answered_each_once_and_in_their_order(
    served: Served, clock: MockClock, seed: int
) -> None:
    """Each key is written once, with its own name. Clients send ahead, some leave, and replicas are silent at times."""
    dice = random.Random(seed)

    def requests(client: int) -> list[Sent]:
        made = []
        for number in range(24):
            key, timeout = b"%d/%d" % (client, number // 2), b"?timeout=%f" % dice.choice((0.001, 0.05, 0.5, 5.0))
            of_key = Sent(b"GET", b"/v1/kv/" + key + timeout)
            made.append(of_key if number % 2 else of_key._replace(method=b"PUT", body=key))
        return made

    async def ask(client: int) -> None:
        stream = await served.connect()
        sent = requests(client)
        at = 0
        while at < len(sent):
            ahead = sent[at : at + dice.randint(1, 8)]
            await stream.send_all(b"".join(each.spelt for each in ahead))
            if client % 4 == 0 and dice.random() < 0.1:
                await trio.aclose_forcefully(stream)
                return
            answers = answers_in(await read_answers(stream, len(ahead)))
            for each, answer in zip(ahead, answers, strict=True):
                key = each.target.removeprefix(b"/v1/kv/").partition(b"?")[0]
                if each.method == b"PUT":
                    assert answer.status in (204, 503, 504), f"seed {seed}: {answer}"
                    written[key] = answer.status
                elif answer.status == 200:
                    assert answer.body == key, f"seed {seed}"
                    assert written[key] != 503, f"seed {seed}: {key!r} was refused"
                elif answer.status == 404:
                    assert written[key] != 204, f"seed {seed}: {key!r} was committed"
                else:
                    assert answer.status == 503, f"seed {seed}: {answer}"
            at += len(ahead)
            await trio.sleep(dice.uniform(0.0, 0.6))

    written: dict[bytes, int] = {}
    async with trio.open_nursery() as clients:
        for client in range(8):
            clients.start_soon(ask, client)
        for _ in range(5):
            for node in dice.sample(served.cluster.workers, 2):
                served.cluster.network.hold(node.address)
            await trio.sleep(dice.choice((0.2, 3.0)))
            release(served)
            await trio.sleep(0.2)
    assert len(set(written.values())) > 1, f"seed {seed}: nothing was late"
    await has_in_flight(served, 0)
    assert await are_in_lane(served) == len(served.lane.deadlines.limits)


# --- one request after another ----------------------------------------------------------------------------------------


async def test_a_request_leaves_nothing_to_the_next_one(served: Served, clock: MockClock) -> None:
    """The lines of the log have the id and the epoch of the request that they are about, and of no other."""
    seen = []

    async def handle(services: Services, request: Request) -> Response:
        seen.append((serving.request_id.get(), serving.epoch.get()))
        serving.epoch.set(7)
        return Response(204)

    plain = PlainRequest(Route("GET", "/seen", handle), Request("GET", b"/seen"))
    for _ in range(2):
        served.lane.begin()
        await served.lane.serve_plain(plain)
    assert seen[0][0] != seen[1][0]
    assert [epoch for _, epoch in seen] == [0, 0]

    ours, theirs = socket.socketpair()
    with ours:
        ours.sendall(GET + DETOUR)
        async with trio.SocketStream(trio.socket.from_stdlib_socket(theirs)) as stream:
            assert await served.lane.serve(stream) == DETOUR
    assert (serving.request_id.get(), serving.epoch.get()) == ("", 0)


async def test_an_error_that_its_authors_did_not_foresee_is_one_requests_alone(
    served: Served, clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def handle(services: Services, request: Request) -> Response:
        raise ZeroDivisionError

    plain = PlainRequest(Route("GET", "/bad", handle), Request("GET", b"/bad"))
    named = served.lane.begin()
    response = await served.lane.serve_plain(plain)
    answer = served.lane.spell_head(plain, named, response) + response.body
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b'"code": "internal"' in answer
    assert served.services.answered["GET", "/bad", 500] == 1
    assert "GET b'/bad' failed" in caplog.text


def test_blocks_of_headers_that_are_kept_are_few() -> None:
    """A client that never sends the same headers twice takes no memory."""
    lane = ExpressLane(None, loopback_only=True)  # type: ignore[arg-type]  # no request is served
    for number in range(10_000):
        length, headers = lane.read_block(b"Host: localhost\r\nUser-Agent: %d\r\n" % number)
        assert (length, headers["user-agent"]) == (0, str(number))
    assert len(lane._blocks) <= 256


# --- floods at a real process -----------------------------------------------------------------------------------------


def descriptors(cluster: LocalCluster) -> int:
    return len(list(Path(f"/proc/{cluster.master.pid}/fd").iterdir()))


def memory_bytes(cluster: LocalCluster) -> int:
    return int(Path(f"/proc/{cluster.master.pid}/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Room in this process for the ends of the clients."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    raise_descriptor_limit()
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_flood_of_connections_leaves_nothing_behind(
    lanes: Lanes, cluster: LocalCluster, many_descriptors: None
) -> None:
    """A thousand that send nothing, a part, or all, and then close, close their half, or reset."""
    lanes.put(b"flood", b"x")
    before = descriptors(cluster)
    parts = (b"", GET[:30], PUT[:-2], GET, GET * 3 + GET[:-1], GET + DETOUR)
    with ExitStack() as stack:
        held = [
            stack.enter_context(socket.create_connection(("127.0.0.1", lanes.port), timeout=30)) for _ in range(1_000)
        ]
        for number, connection in enumerate(held):
            connection.sendall(parts[number % len(parts)])
            if number % 5 == 1:
                connection.shutdown(socket.SHUT_WR)
            elif number % 5 == 2:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()
        assert lanes.get(b"flood") == b"x"
    wait_until(lambda: descriptors(cluster) <= before + 2, deadline_s=30, what="the descriptors are closed")
    assert "Traceback" not in cluster.master.log.read_text()


def test_clients_that_never_read_cost_one_answer_each(lanes: Lanes, cluster: LocalCluster) -> None:
    lanes.ask(Sent(b"PUT", b"/v1/kv/unread", b"x" * VALUE_BYTES_MAX))
    before = memory_bytes(cluster)
    with ExitStack() as stack:
        for _ in range(20):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            connection.connect(("127.0.0.1", lanes.port))
            connection.sendall(Sent(b"GET", b"/v1/kv/unread").spelt * 200)
            assert connection.recv(1)
        assert lanes.get(b"unread") == b"x" * VALUE_BYTES_MAX
        assert memory_bytes(cluster) - before < 20 * 5 * VALUE_BYTES_MAX


def test_a_master_with_thousands_of_connections_in_every_state_stops(many_descriptors: None) -> None:
    with LocalCluster(mode="quorum", workers=3) as cluster, ExitStack() as stack:
        port = cluster.master.http_port
        lanes = Lanes(port)
        large = Sent(b"PUT", b"/v1/kv/large", b"x" * VALUE_BYTES_MAX)
        assert lanes.ask(large)[0].status == 204
        unread = Sent(b"GET", b"/v1/kv/large").spelt * 50
        parts = (b"", GET[:30], PUT[:-2], GET, DETOUR, DETOUR + GET[:-1], PUT + GET, DETOUR + PUT, unread)
        for number in range(2_000):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            connection.sendall(parts[number % len(parts) if number < 200 else 0])
        for worker in cluster.workers:
            worker.pause()
        under_way = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30)) for _ in range(20)]
        for number, connection in enumerate(under_way):
            connection.sendall((b"", DETOUR)[number % 2] + Sent(b"PUT", b"/v1/kv/a?timeout=60", b"x").spelt)
        for worker in cluster.workers:
            worker.resume()
        cluster.master.ask_to_stop()
        assert cluster.master.wait(STOP_DEADLINE_S) == 0
        for connection in under_way:
            received = read_to_end(connection)
            assert all(answer.status in (200, 204) for answer in answers_in(received)), received
        assert "Traceback" not in cluster.master.log.read_text()
