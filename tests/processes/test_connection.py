"""The load's own HTTP client: does it read an answer whole, however it arrives, and say when there is none?"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trikv.testing.processes.connection import HttpAnswer, HttpConnection, make_request

FOUND = b'HTTP/1.1 200 \r\nETag: "1.2-3.0A"\r\nContent-Length: 5\r\n\r\nhello'
EMPTY = b"HTTP/1.1 204 \r\n\r\n"


@asynccontextmanager
async def connect(nursery: trio.Nursery, *answers: Sequence[bytes]) -> AsyncIterator[HttpConnection]:
    """A connection to a server that sends these pieces, one answer's for each request.

    It hangs up after the last answer, and after one that says so.
    """
    left = list(answers)

    async def serve(stream: trio.SocketStream) -> None:
        while left and await stream.receive_some(65_536):
            pieces = left.pop(0)
            for piece in pieces:
                await stream.send_all(piece)
                await wait_all_tasks_blocked()
            if b"close" in b"".join(pieces):
                return

    [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
    async with HttpConnection(lambda: int(listener.socket.getsockname()[1])) as connection:
        await connection.dial()
        yield connection


async def ask(connection: HttpConnection) -> HttpAnswer:
    with trio.fail_after(20):
        return await connection.ask(make_request("GET", "/v1/kv/k"))


async def test_answers_are_read_whole_and_one_after_the_other(nursery: trio.Nursery) -> None:
    torn = [FOUND[:9], FOUND[9:50], FOUND[50:]]
    async with connect(nursery, torn, [EMPTY], [FOUND]) as connection:
        heard = [await ask(connection) for _ in range(3)]
    assert [(answer.status, answer.body) for answer in heard] == [(200, b"hello"), (204, b""), (200, b"hello")]
    assert [answer.header("etag") for answer in heard] == ['"1.2-3.0a"', "", '"1.2-3.0a"']


@pytest.mark.parametrize("said", [b"", FOUND[:30], FOUND[:-1]], ids=["nothing", "half a head", "half a body"])
async def test_an_answer_that_ends_too_early_is_none(nursery: trio.Nursery, said: bytes) -> None:
    async with connect(nursery, [said] if said else []) as connection:
        with pytest.raises(trio.BrokenResourceError):
            await ask(connection)


async def test_a_connection_that_the_master_closes_is_dialled_again(nursery: trio.Nursery) -> None:
    async with connect(nursery, [b"HTTP/1.1 204 \r\nConnection: close\r\n\r\n"], [FOUND]) as connection:
        assert (await ask(connection)).status == 204
        await connection.dial()
        assert (await ask(connection)).status == 200


def test_a_request_says_how_long_its_body_is() -> None:
    request = make_request("PUT", "/v1/kv/k", b"", "if-none-match: *")
    assert request.startswith(b"PUT /v1/kv/k HTTP/1.1\r\n")
    assert b"\r\nif-none-match: *\r\n" in request
    assert request.endswith(b"\r\ncontent-length: 0\r\n\r\n")
    assert b"content-length" not in make_request("GET", "/v1/kv/k")
