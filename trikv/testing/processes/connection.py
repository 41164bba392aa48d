"""An HTTP/1.1 connection for load: it does what the cluster's answers need, at the least cost.

    async with HttpConnection(lambda: cluster.master.http_port) as connection:
        await connection.dial()
        answer = await connection.ask(make_request("PUT", "/v1/kv/color", b"blue"))
        answer.status, answer.header("etag"), answer.body

A client library costs more than the cluster does, so a load test would measure the library. This client sends one
request at a time over a bare socket and expects answers with a content-length. It knows no chunks, no redirects and no
pool. Tests of the HTTP interface itself use httpx, or bare sockets where the request is to be malformed.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Final, NamedTuple, Self

import trio

RECEIVE_BYTES: Final = 64 * 1024


class HttpAnswer(NamedTuple):
    """`head`: the status line and the header fields, in lower case."""

    status: int
    head: bytes
    body: bytes

    def header(self, name: str) -> str:
        """The value of a header field, in lower case; empty if there is none."""
        value = self.head.partition(b"\r\n%s:" % name.encode())[2]
        return value.partition(b"\r\n")[0].strip().decode("latin-1")


def make_request(method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    """The bytes of one request; `headers` are whole lines."""
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", *headers]
    if body or method == "PUT":
        lines += ["content-type: application/octet-stream", f"content-length: {len(body)}"]
    return "\r\n".join((*lines, "", "")).encode() + body


class HttpConnection:
    """A connection to a port of loopback, closed at the end of the `with` block.

    `port` is asked at each `dial`, since a master may come back at another port.
    """

    def __init__(self, port: Callable[[], int]) -> None:
        self._port = port
        self._stream: trio.SocketStream | None = None
        self._buffer = bytearray()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.hang_up()

    async def dial(self) -> None:
        """Connect, unless it is connected.

        Raises:
          OSError: nobody listens there, so nothing was sent.
        """
        if self._stream is None:
            self._buffer.clear()
            self._stream = await trio.open_tcp_stream("127.0.0.1", self._port())

    async def ask(self, request: bytes) -> HttpAnswer:
        """Send one request and wait for its answer.

        Raises:
          trio.BrokenResourceError: the connection ended first.
        """
        assert self._stream is not None, "dial first"
        await self._stream.send_all(request)
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            await self._receive()
        head = bytes(self._buffer[:end]).lower()
        length = head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
        whole = end + 4 + int(length or 0)
        while len(self._buffer) < whole:
            await self._receive()
        answer = HttpAnswer(int(head[9:12]), head, bytes(self._buffer[end + 4 : whole]))
        del self._buffer[:whole]
        if b"\r\nconnection: close" in head:
            await self.hang_up()
        return answer

    async def _receive(self) -> None:
        assert self._stream is not None
        data = await self._stream.receive_some(RECEIVE_BYTES)
        if not data:
            raise trio.BrokenResourceError("the master closed the connection")
        self._buffer += data

    async def hang_up(self) -> None:
        """Close the connection, if there is one, without waiting for the other side."""
        if self._stream is not None:
            stream, self._stream = self._stream, None
            await trio.aclose_forcefully(stream)
