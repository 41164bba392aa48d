"""An HTTP endpoint of a test's own: it passes requests on to a real etcd, or does to them what the test wants."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio

Answer = Callable[[str, bytes, trio.abc.Stream], Awaitable[None]]


class Relay:
    """In front of the etcd at `port`. Requests to a path in `lost` are passed on, and their answers are lost; those to
    a path in `answers` get that JSON; those in `held` are held until the test ends, and those in `dropped` are neither
    passed on nor answered. `heard` has all paths."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.lost: set[str] = set()
        self.held: set[str] = set()
        self.dropped: set[str] = set()
        self.answers: dict[str, Callable[[], dict[str, Any]]] = {}
        self.is_cut = False
        self.heard: list[str] = []
        self.address = ""
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        await serve(self._answer, task_status=task_status)

    async def _answer(self, path: str, body: bytes, stream: trio.abc.Stream) -> None:
        self.heard.append(path)
        if self.is_cut or path in self.held:
            await trio.sleep_forever()
        if path in self.dropped:
            return
        if path in self.answers:
            await stream.send_all(json_answer(self.answers[path]()))
            return
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as etcd:
            head = f"POST {path} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
            await etcd.send_all(head.encode() + body)
            async for piece in etcd:
                await self._pass_back(path, piece, stream)

    async def _pass_back(self, path: str, piece: bytes | bytearray, stream: trio.abc.Stream) -> None:
        if self.is_cut:
            await trio.sleep_forever()
        if path not in self.lost:
            await stream.send_all(piece)


async def serve(answer: Answer, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
    """Serve one request per connection on a free port of loopback; started with its address."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    task_status.started(f"127.0.0.1:{port}")
    await trio.serve_listeners(partial(_serve_one, answer), [listener])


async def _serve_one(answer: Answer, stream: trio.SocketStream) -> None:
    async with stream:
        try:
            received = b""
            while b"\r\n\r\n" not in received:
                received += await stream.receive_some() or b"\r\n\r\n"
            head, _, body = received.partition(b"\r\n\r\n")
            lines = head.decode().split("\r\n")
            length = next((int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length:")), 0)
            while len(body) < length:
                piece = await stream.receive_some()
                if not piece:
                    return
                body += piece
            await answer(lines[0].split(" ")[1] if " " in lines[0] else "", body, stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has left, as it may


def json_answer(document: object, status: str = "200 OK") -> bytes:
    return http_answer(json.dumps(document).encode(), status)


def http_answer(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
