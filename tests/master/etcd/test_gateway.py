"""Calls of etcd: what an endpoint may answer, hang on or break off, and what the caller then knows."""

from __future__ import annotations

import gzip
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import trio
import trio.lowlevel

from tests.master.etcd.relay import http_answer, json_answer, serve
from trikv.master.configstore import ConfigStoreError, NotChanged
from trikv.master.etcd.gateway import ANSWER_BYTES_MAX, EtcdGateway, EtcdRefusal
from trikv.net.etcdurl import EtcdSettings

TIMEOUT_S = 0.5  # for what hangs; all else answers at once
OK = json_answer({"header": {"raft_term": "2"}})
Send = Callable[[trio.abc.Stream], Awaitable[None]]


class Endpoint:
    """Answers each request with those bytes, as often as it is asked."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.heard: list[tuple[str, bytes]] = []

    async def answer(self, path: str, body: bytes, stream: trio.abc.Stream) -> None:
        self.heard.append((path, body))
        await stream.send_all(self.answers[min(len(self.heard), len(self.answers)) - 1])


async def start(nursery: trio.Nursery, answer: Any) -> str:
    address: str = await nursery.start(serve, answer)
    return address


def gateway_of(*addresses: str, **settings: Any) -> EtcdGateway:
    return EtcdGateway(EtcdSettings(addresses, **settings))


async def ask(gateway: EtcdGateway, timeout_s: float = TIMEOUT_S) -> Any:
    try:
        return (await gateway.call("/v3/kv/txn", {}, timeout_s)).body
    finally:
        await gateway.close()


def is_one_line(error: BaseException) -> bool:
    return str(error).isprintable() and 20 < len(str(error)) < 600


# --- hostile answers --------------------------------------------------------------------------------------------------

NONSENSE = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "nothing": b"",
    "a broken head": b"HTTP/1.1 200 O",
    "an endless head": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 2_000_000,
    "a page": http_answer(b"<html>\x1b[31m\n hello</html>"),
    "not UTF-8": http_answer(b'{"a": "\xff\xfe"}'),
    "truncated JSON": http_answer(b'{"header": {"raft_term": "2"'),
    "fewer bytes than it says": OK[:-5],
    "a list": http_answer(b"[1, 2]"),
    "a number": http_answer(b"17"),
    "deep": http_answer(b"[" * 100_000),
    "deep objects": http_answer(b'{"a":' * 100_000),
    "a long number": http_answer(b'{"header": {"raft_term": ' + b"9" * 10_000 + b"}}"),
    "a header of another type": json_answer({"header": "yes"}),
    "a term of another type": json_answer({"header": {"raft_term": [2]}}),
    "a negative term": json_answer({"header": {"raft_term": -2}}),
    "a term that is too large": json_answer({"header": {"raft_term": "9" * 20}}),
    "NaN": http_answer(b'{"header": {"raft_term": NaN}}'),
    "compressed": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n" + gzip.compress(b"{}"),
    "a redirect": b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "continue for ever": b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000,
    "upgrade": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "an old etcd": http_answer(b"404 page not found\n", "404 Not Found"),
    "an error without a code": json_answer({"error": "no"}, "400 Bad Request"),
    "an error of another type": json_answer({"error": 1, "code": "x"}, "500 Internal Server Error"),
    "an error that is long": http_answer(b"x" * 1_000_000, "500 Internal Server Error"),
    "two answers": OK.replace(b"Content-Length", b"X") + OK,
    "bad chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
    "no leader": json_answer({"error": "etcdserver: no leader", "code": 14}, "503 Service Unavailable"),
    "timed out": json_answer({"error": "etcdserver: request timed out", "code": 14}, "503 Service Unavailable"),
    "a limit of gRPC's": json_answer(
        {"error": "grpc: received message larger than max (5 vs. 4)", "code": 8}, "429 Too Many Requests"
    ),
}  # fmt: skip


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE.keys())
async def test_an_answer_that_is_none_of_etcds_leaves_the_request_in_doubt(
    answer: bytes, nursery: trio.Nursery
) -> None:
    address = await start(nursery, Endpoint(answer).answer)
    with pytest.raises(ConfigStoreError) as raised:
        await ask(gateway_of(address))
    assert not isinstance(raised.value, NotChanged)
    assert is_one_line(raised.value)
    assert address in str(raised.value)


async def endless(stream: trio.abc.Stream) -> None:
    while True:
        await stream.send_all(b"x" * 65_536)


async def endless_chunks(stream: trio.abc.Stream) -> None:
    while True:
        await stream.send_all(b"10000\r\n" + b"x" * 65_536 + b"\r\n")


async def dripping(stream: trio.abc.Stream) -> None:
    while True:
        await stream.send_all(b"1\r\n \r\n")
        await trio.sleep(0.01)


async def hanging(stream: trio.abc.Stream) -> None:
    await trio.sleep_forever()


@pytest.mark.parametrize("send", [endless, endless_chunks, dripping, hanging])
@pytest.mark.parametrize("status", ["200 OK", "500 Internal Server Error"])
async def test_an_answer_that_does_not_end_ends_the_call(send: Send, status: str, nursery: trio.Nursery) -> None:
    sent = 0

    async def answer(path: str, body: bytes, stream: trio.abc.Stream) -> None:
        nonlocal sent

        class Counting:
            async def send_all(self, data: bytes) -> None:
                nonlocal sent
                await stream.send_all(data)
                sent += len(data)

        encoding = "" if send is endless else "Transfer-Encoding: chunked\r\n"
        await stream.send_all(f"HTTP/1.1 {status}\r\n{encoding}\r\n".encode())
        await send(Counting())  # type: ignore[arg-type]

    address = await start(nursery, answer)
    with trio.fail_after(20), pytest.raises(ConfigStoreError) as raised:
        await ask(gateway_of(address))
    assert not isinstance(raised.value, NotChanged)
    assert is_one_line(raised.value)
    assert sent < 2 * ANSWER_BYTES_MAX + (8 << 20)  # and what sockets buffer


async def test_what_etcd_refuses_was_not_done_and_says_why(nursery: trio.Nursery) -> None:
    for error, remedy in [
        ({"error": "etcdserver: permission denied", "code": 7}, "grant the user's role"),
        ({"error": "etcdserver: user name is empty", "code": 3}, "etcd://USER:PASSWORD@HOST:PORT"),
        ({"error": "etcdserver: mvcc: database space exceeded", "code": 8}, "defragment"),
        ({"error": "etcdserver: request is too large", "code": 3}, "--max-request-bytes"),
    ]:
        trailer = b"Grpc-Trailer-Content-Type: application/grpc\r\n"  # as etcd 3.4 leaves it in the body
        body = json_answer(error).partition(b"\r\n\r\n")[2] + trailer
        address = await start(nursery, Endpoint(http_answer(body, "400 Bad Request")).answer)
        with pytest.raises(EtcdRefusal) as raised:
            await ask(gateway_of(address))
        assert str(error["error"]) in str(raised.value)
        assert remedy in str(raised.value)
        assert is_one_line(raised.value)


# --- several endpoints ------------------------------------------------------------------------------------------------


async def test_the_endpoint_that_answered_last_is_asked_first(nursery: trio.Nursery) -> None:
    endpoints = [Endpoint(b""), Endpoint(OK)]
    gateway = gateway_of("127.0.0.1:1", *[await start(nursery, each.answer) for each in endpoints])
    first = await gateway.call("/v3/kv/txn", {}, TIMEOUT_S)
    second = await gateway.call("/v3/kv/txn", {}, TIMEOUT_S)
    assert (first.again, second.again) == (True, False)  # the second endpoint had the first request, perhaps
    assert [len(each.heard) for each in endpoints] == [1, 2]
    assert [each["reachable"] for each in gateway.describe()] == [False, False, True]
    assert gateway.raft_term == 2
    await gateway.close()


async def test_an_endpoint_that_refuses_connections_leaves_no_doubt(nursery: trio.Nursery) -> None:
    address = await start(nursery, Endpoint(OK).answer)
    gateway = gateway_of("127.0.0.1:1", address)
    assert not (await gateway.call("/v3/kv/txn", {}, TIMEOUT_S)).again
    await gateway.close()
    with pytest.raises(NotChanged, match=r"127\.0\.0\.1:1: nobody listens there; 127\.0\.0\.1:2: nobody listens there"):
        await ask(gateway_of("127.0.0.1:1", "127.0.0.1:2"))


async def test_a_refusal_after_a_request_without_an_answer_is_a_doubt(nursery: trio.Nursery) -> None:
    denied = json_answer({"error": "etcdserver: permission denied", "code": 7}, "403 Forbidden")
    addresses = [await start(nursery, Endpoint(answer).answer) for answer in (b"", denied)]
    with pytest.raises(ConfigStoreError, match="another endpoint did not answer") as raised:
        await ask(gateway_of(*addresses))
    assert not isinstance(raised.value, NotChanged)


async def test_a_call_that_is_cancelled_leaves_nothing_behind(nursery: trio.Nursery) -> None:
    async def hang(path: str, body: bytes, stream: trio.abc.Stream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        with pytest.raises(trio.BrokenResourceError):
            await dripping(stream)
        gone.set()

    gone = trio.Event()
    gateway = gateway_of(await start(nursery, hang))
    for _ in range(3):
        gone = trio.Event()
        with trio.move_on_after(0.05):
            await gateway.call("/v3/kv/txn", {}, 60)
        with trio.fail_after(20):
            await gone.wait()
    await gateway.close()


# --- streams ----------------------------------------------------------------------------------------------------------

LINE = b'{"result": {"n": 1}}\n'
HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


@pytest.mark.parametrize(
    ("pieces", "told", "why"),
    [
        ([HEAD, LINE], 1, "the stream ended"),
        ([HEAD + LINE + LINE[:7], LINE[7:] + LINE], 3, "the stream ended"),
        ([HEAD, LINE, b"\n", b"nonsense\n", LINE], 1, "not JSON"),
        ([HEAD, b'{"result": 3}\n'], 0, "'result' is no object"),
        ([HEAD, LINE, b"[]\n"], 1, "no object"),
        ([HEAD, LINE, b"x" * 3_000_000], 1, "a line of the stream does not end"),
        ([HEAD, LINE, b'{"error": {"grpc_code": 14, "message": "etcdserver: no leader"}}\n'], 1, "no leader"),
        ([HEAD, LINE, b'{"error": {"grpc_code": 7, "message": "etcdserver: permission denied"}}\n'], 1, "refuses"),
        ([HEAD, LINE, b'{"error": "x"}\n'], 1, "an error is no object"),
        (
            [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n15\r\n" + LINE + b"\r\n"],
            1,
            "it ended the connection in the middle of an answer",
        ),
        ([b"HTTP/1.1 404 Not Found\r\n\r\n"], 0, "HTTP 404"),
    ],
)
async def test_a_stream_tells_what_came_and_why_it_ended(
    pieces: Sequence[bytes], told: int, why: str, nursery: trio.Nursery
) -> None:
    async def answer(path: str, body: bytes, stream: trio.abc.Stream) -> None:
        for piece in pieces:
            await stream.send_all(piece)
            await trio.lowlevel.checkpoint()

    gateway = gateway_of(await start(nursery, answer))
    results: list[Any] = []
    with trio.fail_after(20), pytest.raises(ConfigStoreError, match=why) as raised:
        await gateway.follow("/v3/watch", {}, 10, results.append)
    assert [result for result in results if result] == [{"n": 1}] * told
    assert is_one_line(raised.value)
    await gateway.close()


async def test_a_stream_that_does_not_begin_is_left(nursery: trio.Nursery) -> None:
    async def answer(path: str, body: bytes, stream: trio.abc.Stream) -> None:
        await hanging(stream)

    gateway = gateway_of(await start(nursery, answer))
    with pytest.raises(ConfigStoreError, match=r"no answer within 0\.1 s"):
        await gateway.follow("/v3/watch", {}, 0.1, print)
    await gateway.close()


# --- users ------------------------------------------------------------------------------------------------------------


async def test_a_token_that_is_none_any_more_is_renewed(nursery: trio.Nursery) -> None:
    tokens = iter(["first", "second"])
    heard = []

    async def answer(path: str, body: bytes, stream: trio.abc.Stream) -> None:
        heard.append(path)
        if path == "/v3/auth/authenticate":
            await stream.send_all(json_answer({"token": next(tokens)}))
        elif len(heard) == 4:
            old = {"error": "etcdserver: invalid auth token", "code": 16}
            await stream.send_all(json_answer(old, "401 Unauthorized"))
        else:
            await stream.send_all(OK)

    gateway = gateway_of(await start(nursery, answer), user="me", password="secret")
    for _ in range(3):
        assert not (await gateway.call("/v3/kv/txn", {}, TIMEOUT_S)).again
    authenticate, call = "/v3/auth/authenticate", "/v3/kv/txn"
    assert heard == [authenticate, call, call, call, authenticate, call]
    await gateway.close()


@pytest.mark.parametrize("token", [None, 1, "", "a\r\nX: y", "é"])
async def test_a_token_that_is_none_is_not_used(token: object, nursery: trio.Nursery) -> None:
    endpoint = Endpoint(json_answer({"token": token}))
    with pytest.raises(NotChanged, match="it gave the user no token") as raised:
        await ask(gateway_of(await start(nursery, endpoint.answer), user="me", password="secret"))
    assert "secret" not in str(raised.value)
    assert [path for path, _ in endpoint.heard] == ["/v3/auth/authenticate"]
