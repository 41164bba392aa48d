"""The express lane: plain requests for keys, answered by one task a connection, without the web framework.

A connection begins here. While what it sends are requests that the lane recognises, whole, from the first byte of the
method to the last byte of the body, the lane answers them itself, with the same handlers as the framework's side
(`keys.py`) and byte for byte the same answers. At the first bytes that it does not recognise, the connection is handed
to Hypercorn, with these bytes in front, and stays there. So the lane need not know how to refuse anything: what is odd,
malformed, large, slow or merely uncommon is judged where it always was.

It recognises `GET`, `PUT` and `DELETE` of `/v1/kv/KEY`, and `/get` and `/put`, in HTTP/1.1, with the headers of
`_HEADERS`, each at most once, and a body of at most `BODY_BYTES_MAX` whose length is announced. One regular expression
reads a whole head. Clients repeat their headers from request to request, so what a block of headers means, and that
the guard lets it pass, is kept for the last blocks (`_BLOCKS_MAX`).

A request that has come in part is waited for, `PART_S` at most; then Hypercorn has it, and its own bounds begin. A
connection that sends nothing is closed after `IDLE_S`. One task looks at all connections once a second for both, so
that no request needs a timer. While a request is served nothing is read, so a client that sends without reading is held
back by its own kernel. When a client leaves, the request under way goes on to its end.

Cost: about 15 microseconds a request beside the handler, a tenth of what the framework's side takes for its share.
"""

from __future__ import annotations

import email.utils
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import trio

from trikv.core.errors import TrikvError, Unknown
from trikv.web import keys
from trikv.web.guard import refuse_foreign
from trikv.web.message import SAFE_HEADERS, Request, Response, problem_response
from trikv.web.services import Services

BODY_BYTES_MAX: Final = 64 * 1024
HEAD_BYTES_MAX: Final = 16 * 1024
IDLE_S: Final = 15.0
PART_S: Final = 1.0
SERVED_AT_ONCE: Final = 16  # requests of one connection, before others have a turn

_READ_BYTES: Final = 64 * 1024
_BLOCKS_MAX: Final = 256
_TICK_S: Final = 1.0

_HEAD: Final = re.compile(
    rb"(GET|PUT|DELETE) (/v1/kv/[!-~]+|/(?:get|put)\?[!-~]+) HTTP/1\.1\r\n"
    rb"((?:[A-Za-z-]{1,32}:[\t -~]*+\r\n){1,16})\r\n"
)
_BEGINS: Final = re.compile(rb"(?:GET|PUT|DELETE) /(?:v1/kv/|get\?|put\?)")
_BEGINS_BYTES: Final = len("DELETE /v1/kv/")
_HEADERS: Final = frozenset(
    ("host", "user-agent", "accept", "accept-encoding", "accept-language", "connection", "content-length",
     "content-type", "if-match", "if-none-match", "trikv-trace", "origin", "sec-fetch-site", "sec-fetch-mode",
     "sec-fetch-dest", "referer")
)  # fmt: skip
_LENGTH: Final = re.compile(r"[0-9]{1,6}")
_REFUSED: Final = -1  # the length that stands for a block of headers that the lane leaves to Hypercorn

_log = logging.getLogger(__name__)

Handle = Callable[[Services, Request], Awaitable[Response]]


class Lane:
    """The lane of one server. `run` looks after its connections."""

    def __init__(self, services: Services, *, loopback_only: bool) -> None:
        self.services = services
        self._loopback_only = loopback_only
        self._connections: set[LaneConnection] = set()
        self._blocks: dict[bytes, tuple[int, Mapping[str, str]]] = {}
        self._tail = b""
        self._tail_until_s = 0.0
        self._stopping = False

    async def run(self) -> None:
        """End what is idle for too long, until cancelled."""
        while True:
            await trio.sleep(_TICK_S)
            now_s = trio.current_time()
            for connection in self._connections:
                connection.end_if_idle(now_s)

    async def serve(self, stream: trio.SocketStream) -> bytes | None:
        """Serve the stream. Returns what has arrived and is Hypercorn's to judge, or None: the connection has ended."""
        if self._stopping:
            return None
        connection = LaneConnection(self, stream)
        self._connections.add(connection)
        try:
            return await connection.run()
        finally:
            self._connections.discard(connection)

    def stop(self) -> None:
        """Let each connection end once it has answered the request that it serves."""
        self._stopping = True
        for connection in self._connections:
            connection.stop()

    # --- what a head means --------------------------------------------------------------------------------------------

    def read_block(self, block: bytes) -> tuple[int, Mapping[str, str]]:
        """The length of the body (`_REFUSED`: it is Hypercorn's to judge), and the headers by name in lower case."""
        known = self._blocks.get(block)
        if known is None:
            known = self._parse_block(block)
            if len(self._blocks) >= _BLOCKS_MAX:
                self._blocks.clear()
            self._blocks[block] = known
        return known

    def _parse_block(self, block: bytes) -> tuple[int, Mapping[str, str]]:
        headers: dict[str, str] = {}
        for line in block.decode("ascii").split("\r\n")[:-1]:
            name, _, value = line.partition(":")
            name = name.lower()
            if name not in _HEADERS or name in headers:
                return _REFUSED, {}
            headers[name] = value.strip(" \t")
        length = headers.get("content-length", "0")
        if not _LENGTH.fullmatch(length) or int(length) > BODY_BYTES_MAX or "host" not in headers:
            return _REFUSED, {}
        if headers.get("connection", "keep-alive").lower() != "keep-alive":
            return _REFUSED, {}
        try:
            refuse_foreign(headers, loopback_only=self._loopback_only)
        except TrikvError:
            return _REFUSED, {}
        return int(length), headers

    # --- answers ------------------------------------------------------------------------------------------------------

    def encode(self, answer: Response) -> bytes:
        """The answer as the framework's side would send it."""
        lines = [f"HTTP/1.1 {answer.status} "]
        if answer.status not in (204, 304):
            lines.append(f"content-length: {len(answer.body)}")
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        return "\r\n".join(lines).encode("latin-1") + self._rest_of_head() + answer.body

    def _rest_of_head(self) -> bytes:
        """The headers that every answer has, and the end of the head. Made anew once a second, for its date."""
        now_s = time.time()
        if not self._tail_until_s - 1.0 <= now_s < self._tail_until_s:  # a clock may be set back
            safe = "".join(f"\r\n{name}: {value}" for name, value in SAFE_HEADERS.items())
            self._tail = f"{safe}\r\ndate: {email.utils.formatdate(int(now_s), usegmt=True)}\r\n\r\n".encode("latin-1")
            self._tail_until_s = int(now_s) + 1.0
        return self._tail


class LaneConnection:
    """One connection, while it is in the lane."""

    def __init__(self, lane: Lane, stream: trio.SocketStream) -> None:
        self._lane = lane
        self._stream = stream
        self._buffer = b""
        self._reading = False
        self._waits_since_s = trio.current_time()
        self._stopping = False
        self._overdue = False
        self._scope = trio.CancelScope()  # of waiting for bytes; entered once, since a scope costs as much as a read

    def end_if_idle(self, now_s: float) -> None:
        patience_s = PART_S if self._buffer else IDLE_S
        if self._reading and now_s - self._waits_since_s > patience_s:
            self._overdue = True
            self._scope.cancel()

    def stop(self) -> None:
        self._stopping = True
        if self._reading:
            self._scope.cancel()

    async def run(self) -> bytes | None:
        """See `Lane.serve`."""
        with self._scope:
            left = await self._serve()
            if not self._scope.cancel_called:
                return left
        return self._buffer if self._overdue and self._buffer else None

    async def _serve(self) -> bytes | None:
        in_a_row = 0
        while not self._stopping:
            taken = self._take()
            if taken is None:
                if not self._may_become_plain():
                    return self._buffer
                if not await self._read() or self._scope.cancel_called:
                    return self._buffer or None  # a handler must not begin in a scope that is cancelled
                in_a_row = 0
                continue
            handle, request = taken
            answer = self._lane.encode(await self._handle(handle, request))
            if not await self._send(answer) or b"\r\nconnection: close\r\n" in answer:
                return None
            in_a_row += 1
            if in_a_row >= SERVED_AT_ONCE:
                in_a_row = 0
                await trio.lowlevel.checkpoint()
        return None

    def _take(self) -> tuple[Handle, Request] | None:
        """The next whole request, taken off the buffer; None where there is none, or none that is the lane's."""
        head = _HEAD.match(self._buffer) if self._buffer else None
        if head is None:
            return None
        method, target, block = head.groups()
        length, headers = self._lane.read_block(block)
        begin = head.end()
        if length < 0 or len(self._buffer) - begin < length:
            return None
        path, _, query = target.partition(b"?")
        handle = _handler_of(method, path)
        if handle is None or (length and method != b"PUT"):
            return None
        body = self._buffer[begin : begin + length]
        self._buffer = self._buffer[begin + length :]
        return handle, Request(method.decode("ascii"), path, query, headers, body)

    def _may_become_plain(self) -> bool:
        """May the buffer be the beginning of a request that the lane would take?"""
        if not self._buffer:
            return True
        begins = self._buffer[:_BEGINS_BYTES]
        if not (_BEGINS.match(begins) or (len(begins) < _BEGINS_BYTES and _is_beginning(begins))):
            return False
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return len(self._buffer) <= HEAD_BYTES_MAX
        head = _HEAD.match(self._buffer)
        if head is None:
            return False
        method, target, block = head.groups()
        length, _ = self._lane.read_block(block)
        if length < 0 or (length and method != b"PUT") or _handler_of(method, target.partition(b"?")[0]) is None:
            return False
        return len(self._buffer) - head.end() < length

    async def _handle(self, handle: Handle, request: Request) -> Response:
        try:
            return await handle(self._lane.services, request)
        except TrikvError as error:
            return problem_response(error)
        except Exception:  # noqa: BLE001 any error is this request's alone
            _log.exception("%s %s failed", request.method, request.path)
            return problem_response(
                Unknown("this node met a condition that its authors did not foresee", code="internal")
            )

    async def _read(self) -> bool:
        """Wait for further bytes; False: there will be none."""
        self._waits_since_s = trio.current_time()
        self._reading = True
        try:
            data = await self._stream.receive_some(_READ_BYTES)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._buffer = b""
            return False
        finally:
            self._reading = False
        self._buffer += data
        return bool(data)

    async def _send(self, data: bytes) -> bool:
        """Send all of it; False: the peer is gone."""
        try:
            sent = os.write(self._stream.socket.fileno(), data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return False
        if sent < len(data):
            try:
                await self._stream.send_all(data[sent:])
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return False
        return True


def _handler_of(method: bytes, path: bytes) -> Handle | None:
    if path.startswith(keys.KEY_PATH):
        return _OF_KEYS[method]
    if path == b"/get":
        return keys.get_by_query if method == b"GET" else None
    return keys.put_by_query if path == b"/put" and method == b"GET" else None


_OF_KEYS: Final[Mapping[bytes, Handle]] = {b"GET": keys.get, b"PUT": keys.put, b"DELETE": keys.delete}
_BEGINNINGS: Final = [
    method + path for method in (b"GET ", b"PUT ", b"DELETE ") for path in (b"/v1/kv/", b"/get?", b"/put?")
]


def _is_beginning(data: bytes) -> bool:
    return any(beginning.startswith(data) for beginning in _BEGINNINGS)
