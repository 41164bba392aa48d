"""The express lane answers as the framework's side does, byte for byte, and carries out what it should and no more."""

from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import trio
from trio.testing import MockClock

from tests.web.lanes import (
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
from trikv.testing.inprocess import InProcessCluster
from trikv.testing.processes.cluster import LocalCluster
from trikv.web.lane import IDLE_S, PART_S


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
