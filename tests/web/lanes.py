"""Both lanes of the HTTP port: sending the same bytes to each, and what may differ in their answers.

A request with a header that the express lane does not know (`OTHER`) goes to Hypercorn, and so does its connection
(`DETOUR`). Each lane has its own counter of request ids, so the id of an answer tells the lane (`lane_of`).
"""

import re
import socket
from contextlib import suppress
from typing import Final, NamedTuple

import trio
import trio.testing

from tests.web.conftest import read_to_end
from trikv.masterprocess import services_of
from trikv.testing.inprocess import InProcessCluster
from trikv.web.app import create_app
from trikv.web.desk import OwnDesk
from trikv.web.lane import ExpressLane
from trikv.web.server import serve_app

HOST: Final = b"Host: localhost"
OTHER: Final = b"X-Other: 1"
DETOUR: Final = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
_STAMP: Final = re.compile(rb"\b[0-9]+\.[0-9]+-[0-9]+\b")
_OWN: Final = re.compile(rb"(?<=\r\n)(x-request-id|date|trikv-trace): [^\r]*")
_TRACE: Final = re.compile(rb'"trace": "[^"]*"')
_LENGTH: Final = re.compile(rb"(?<=\r\n)content-length: [0-9]+")
_LANE: Final = re.compile(rb"\r\nx-request-id: ([0-9a-f]+)-[0-9]+\r\n")


class Answer(NamedTuple):
    """`head`: from the status line to the empty line."""

    head: bytes
    body: bytes

    @property
    def status(self) -> int:
        return int(self.head[9:12])


class Sent(NamedTuple):
    """A request. `headers` are whole lines. A body has its length with it."""

    method: bytes
    target: bytes
    body: bytes | None = None
    headers: tuple[bytes, ...] = (HOST,)

    def having(self, *headers: bytes) -> "Sent":
        """The same with further headers."""
        return self._replace(headers=(*self.headers, *headers))

    @property
    def spelt(self) -> bytes:
        length = () if self.body is None else (b"Content-Length: %d" % len(self.body),)
        line = self.method + b" " + self.target + b" HTTP/1.1"
        return b"\r\n".join((line, *self.headers, *length, b"", b"")) + (self.body or b"")


def answers_in(received: bytes) -> list[Answer]:
    """The answers, which must fill `received` to the last byte. None of them may answer a HEAD request."""
    answers = []
    while received:
        head, ended, rest = received.partition(b"\r\n\r\n")
        assert ended, f"half an answer: {received[:200]!r}"
        length = int(found[0].rpartition(b" ")[2]) if (found := _LENGTH.search(head)) else 0
        assert len(rest) >= length, f"half a body: {received[:200]!r}"
        answers.append(Answer(head + b"\r\n\r\n", rest[:length]))
        received = rest[length:]
    return answers


def ask(port: int, sent: bytes) -> list[Answer]:
    """All answers to what is sent on a connection of its own, of which this side then closes its half."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        return answers_in(read_to_end(connection))


def comparable(received: bytes) -> bytes:
    """Answers without what differs from request to request: date, ids, and stamps with the lengths that they have."""
    received = _OWN.sub(rb"\1:", received)
    plain = _TRACE.sub(b'"trace": ""', _STAMP.sub(b"STAMP", received))
    return plain if plain == received else _LENGTH.sub(b"content-length: N", plain)


def lane_of(answer: bytes) -> bytes:
    """The name of the lane that answered: the beginning of the request's id. Nothing, where an answer has none."""
    found = _LANE.search(answer)
    return found[1] if found else b""


class Lanes:
    """The two lanes of a port."""

    def __init__(self, port: int) -> None:
        self.port = port
        asked = Sent(b"GET", b"/get?key=which-lane")
        self.express, self.slow = (lane_of(self.ask(each)[0].head) for each in (asked, asked.having(OTHER)))
        assert self.express != self.slow

    def ask(self, *requests: Sent) -> list[Answer]:
        """The answers, of one connection."""
        return ask(self.port, b"".join(each.spelt for each in requests))

    def put(self, key: bytes, value: bytes) -> bytes:
        """Store, and answer the ETag."""
        return etag_of(self.ask(Sent(b"PUT", b"/v1/kv/" + key, value))[0])

    def get(self, key: bytes) -> bytes:
        """The value, or the problem."""
        return self.ask(Sent(b"GET", b"/v1/kv/" + key))[0].body

    def compare(self, *requests: Sent, express: bool = True) -> list[Answer]:
        """Ask both lanes the same, each on one connection; the answers. `express`: does the express lane answer them?
        It may leave them to the other one."""
        by_slow = self.ask(*(each.having(OTHER) for each in requests))
        by_express = self.ask(*requests)
        assert len(by_express) == len(by_slow) == len(requests)
        for one, other in zip(by_express, by_slow, strict=True):
            assert comparable(one.head + one.body) == comparable(other.head + other.body)
            assert (lane_of(one.head) == self.express) is express
        return by_express


def etag_of(answer: Answer) -> bytes:
    assert answer.status < 300, answer
    return answer.head.partition(b"\r\netag: ")[2].partition(b"\r\n")[0]


class Served:
    """The HTTP port of a cluster in this process, on a socket of loopback. `lane`: the express lane of that port."""

    def __init__(self, cluster: InProcessCluster) -> None:
        self.cluster = cluster
        self.services = services_of(cluster.master)
        self.lane = ExpressLane(OwnDesk(self.services), loopback_only=True)
        self.stop = trio.Event()
        self.stopped = trio.Event()
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.sock.getsockname()[1]
        self._clients: list[trio.SocketStream] = []

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        await serve_app(create_app(self.services), self.sock, self.stop, lane=self.lane, task_status=task_status)
        self.stopped.set()

    async def end(self) -> None:
        """Close what clients hold, stop, and wait for the end."""
        for stream in self._clients:
            await trio.aclose_forcefully(stream)
        self.stop.set()
        await self.stopped.wait()

    async def connect(self, *, detour: bool = False) -> trio.SocketStream:
        """A connection, which is in the express lane. `detour`: Hypercorn has it."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        self._clients.append(stream)
        if detour:
            await stream.send_all(DETOUR)
            await read_answers(stream, 1)
        return stream

    async def ask(self, *pieces: bytes, detour: bool = False) -> bytes:
        """All that comes back, until the server ends the connection. Each piece is sent when all is quiet."""
        stream = await self.connect(detour=detour)
        async with stream:
            with suppress(trio.BrokenResourceError):  # it may hang up early
                for piece in pieces:
                    await stream.send_all(piece)
                    await trio.testing.wait_all_tasks_blocked()
                await stream.send_eof()
            return await read_to_the_end(stream)


async def read_to_the_end(stream: trio.SocketStream) -> bytes:
    received = b""
    with suppress(trio.BrokenResourceError):
        async for data in stream:
            received += data
    return received


async def read_answers(stream: trio.SocketStream, count: int) -> bytes:
    """As many answers, none of which has a body that looks like a head."""
    received = b""
    while received.count(b"HTTP/1.1 ") < count or not _is_whole(received):
        data = await stream.receive_some()
        assert data, f"the connection has ended: {received[:200]!r}"
        received += data
    return received


def _is_whole(received: bytes) -> bool:
    try:
        answers_in(received)
    except AssertionError:
        return False
    return True
