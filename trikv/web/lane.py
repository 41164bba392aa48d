"""The express lane: plain requests for keys, answered by one task a connection, without the web framework.

A connection begins here. While what it sends are requests that the lane recognises, whole, from the first byte of the
method to the last byte of the body, the lane answers them itself, with the same handlers as the framework's side
(`keys.py`, `batch.py`) and byte for byte the same answers. At the first bytes that it does not recognise, the
connection is handed to Hypercorn, with these bytes in front, and stays there. So the lane need not know how to refuse
anything: what is odd, malformed, large, slow or merely uncommon is judged where it always was.

It recognises `GET`, `PUT` and `DELETE` of `/v1/kv/KEY`, `GET` of `/get` and `/put`, and `POST` of `/v1/batch`, in
HTTP/1.1, with the headers of `_HEADERS`, each at most once, and a body of at most `BODY_BYTES_MAX` whose length is
announced. One regular expression reads a whole head. Clients repeat their headers from request to request, so what a
block of headers means, and that the guard lets it pass, is kept for the last blocks (`_BLOCKS_MAX`).

A request that has come in part has `PART_S`, from its first byte, to come whole; then Hypercorn has it, and its own
bounds begin. A connection that sends nothing is closed after `IDLE_S`. One task looks at all connections once a second
for both, so that no request needs a timer, and either may take a second longer. One task looks after the deadlines of
all operations, too (`coordinator/deadlines.py`). While a request is served nothing is read, so a client that sends
without reading is held back by its own kernel. When a client leaves, the request under way goes on to its end. A
connection that the lane ends behind an answer is drained for a moment (`trikv/net/linger.py`).

Cost: about 15 microseconds a request beside the handler, a tenth of what the framework's side takes for its share.
"""

from __future__ import annotations

import email.utils
import logging
import re
import time
from collections.abc import Mapping
from enum import Enum
from typing import Final, Literal, NamedTuple

import trio

from trikv.coordinator.deadlines import Deadlines, Limit
from trikv.core.errors import TrikvError, Unknown
from trikv.core.serving import epoch, request_id
from trikv.net.linger import linger
from trikv.net.sockets import receive, send_now
from trikv.web import keys
from trikv.web.desk import Desk, internal_error
from trikv.web.guard import refuse_foreign
from trikv.web.message import SAFE_HEADERS, Request, RequestIds, Response, problem_response
from trikv.web.routes import ROUTES, Route

BODY_BYTES_MAX: Final = 64 * 1024
HEAD_BYTES_MAX: Final = 16 * 1024
IDLE_S: Final = 15.0
PART_S: Final = 1.0
SERVED_AT_ONCE: Final = 16  # requests of one connection, before others have a turn

_READ_BYTES: Final = 64 * 1024
_BLOCKS_MAX: Final = 256
_COPIED_BYTES_MAX: Final = 1024 * 1024  # a larger body is sent by itself: to copy fifty megabytes takes 35 ms
_TICK_S: Final = 1.0

_HEAD: Final = re.compile(
    rb"(GET|PUT|DELETE|POST) (/v1/kv/[!-~]+|/(?:get|put)\?[!-~]+|/v1/batch(?:\?[!-~]*)?) HTTP/1\.1\r\n"
    rb"((?:[A-Za-z-]{1,32}:[\t -~]*+\r\n){1,16})\r\n"
)
_IN_NO_HEAD: Final = re.compile(rb"[^\t\r\n -~]|(?<!\r)\n|\r(?!\n|\Z)")
_HEADERS: Final = frozenset(
    ("host", "user-agent", "accept", "accept-encoding", "accept-language", "connection", "content-length",
     "content-type", "if-match", "if-none-match", "trikv-trace", "origin", "sec-fetch-site", "sec-fetch-mode",
     "sec-fetch-dest", "referer")
)  # fmt: skip
_LENGTH: Final = re.compile(r"[0-9]{1,6}")
_REFUSED: Final = -1  # the length that stands for a block of headers that the lane leaves to Hypercorn

_log = logging.getLogger(__name__)


class PlainRequest(NamedTuple):
    """A request that the lane has recognised, whole."""

    route: Route
    request: Request


class ExpressLane:
    """The lane of one server. `run` looks after its connections."""

    def __init__(self, desk: Desk, *, loopback_only: bool) -> None:
        self._desk = desk
        self._loopback_only = loopback_only
        self.connections: set[LaneConnection] = set()
        self.deadlines = Deadlines()
        self._blocks: dict[bytes, tuple[int, Mapping[str, str]]] = {}
        self._ids = RequestIds()
        self._safe = "".join(f"\r\n{name}: {value}" for name, value in SAFE_HEADERS.items())
        self._date = ""
        self._date_until_s = 0.0
        self._stopping = False

    async def run(self) -> None:
        """End what is idle for too long, and what is late, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.deadlines.run)
            await self._tick_forever()

    async def _tick_forever(self) -> None:
        while True:
            await trio.sleep(_TICK_S)
            for connection in self.connections:
                connection.tick()

    async def serve(self, stream: trio.SocketStream) -> bytes | None:
        """Serve the stream. Returns what has arrived and is Hypercorn's to judge, or None: the connection has ended."""
        if self._stopping:
            return None
        connection = LaneConnection(self, stream)
        self.connections.add(connection)
        try:
            return await connection.run()
        finally:
            self.connections.discard(connection)
            request_id.set("")  # what follows in this task serves no request, or another one
            epoch.set(0)

    def stop(self) -> None:
        """Let each connection end once it has answered the request that it serves."""
        self._stopping = True
        for connection in self.connections:
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

    async def serve_plain(self, plain: PlainRequest) -> Response:
        """The answer to the request, as the desk gives it."""
        try:
            return await self._desk.answer(plain.route, plain.request)
        except TrikvError as error:
            return problem_response(error)
        except Exception:  # noqa: BLE001 any error is this request's alone
            _log.exception("%s %s failed", plain.request.method, plain.request.path)
            return problem_response(internal_error())

    def begin(self) -> str:
        """A request begins in this task; the answer's name for it."""
        named = self._ids.make()
        request_id.set(named)
        epoch.set(0)
        return named

    def spell_head(self, plain: PlainRequest, named: str, answer: Response) -> bytes:
        """What comes before the answer's body, as the framework's side would spell it."""
        self._desk.answered[plain.request.method, plain.route.path, answer.status] += 1
        return self._encode_head(answer, named)

    def _encode_head(self, answer: Response, named: str) -> bytes:
        length = "" if answer.status in (204, 304) else f"\r\ncontent-length: {len(answer.body)}"
        headers = "".join([f"\r\n{name}: {value}" for name, value in answer.headers.items()])
        now_s = time.time()
        if not self._date_until_s - 1.0 <= now_s < self._date_until_s:  # a clock may be set back
            self._date_until_s = int(now_s) + 1.0
            self._date = email.utils.formatdate(int(now_s), usegmt=True)
        head = (
            f"HTTP/1.1 {answer.status} {length}{headers}{self._safe}\r\nx-request-id: {named}\r\n"
            f"date: {self._date}\r\n\r\n"
        )
        return head.encode("latin-1")


class _Left(Enum):
    """What the buffer holds, if it begins with no whole request of the lane."""

    PART = "nothing, or the beginning of what may become one"
    OTHER = "what Hypercorn is to judge"


class LaneConnection:
    """One connection, while it is in the lane."""

    def __init__(self, lane: ExpressLane, stream: trio.SocketStream) -> None:
        self._lane = lane
        self._stream = stream
        self._buffer = b""
        self._at = 0  # in the buffer: what is before it was answered
        self._reading = False
        self._waited_ticks = 0  # for the first byte of a request, or since that for the last one
        self._stopping = False
        self._overdue = False
        self._scope = trio.CancelScope()  # of waiting for bytes; entered once, since a scope costs as much as a read
        self._served: PlainRequest | None = None  # the last request, with its name
        self._named = ""
        self._decided: Response | None = None  # its answer, if that came when it was late
        self._broken = False  # nothing more can be sent or received

    def tick(self) -> None:
        if self._reading:
            self._waited_ticks += 1
            if self._waited_ticks * _TICK_S > (PART_S if self._buffer else IDLE_S):
                self._overdue = True
                self._scope.cancel()

    def stop(self) -> None:
        self._stopping = True
        if self._reading:
            self._scope.cancel()

    async def run(self) -> bytes | None:
        """See `ExpressLane.serve`."""
        with self._scope:
            left = await self._serve()
            if not self._scope.cancel_called:
                return left
        return self._buffer if self._overdue and self._buffer and not self._stopping else None

    async def _serve(self) -> bytes | None:
        """Serve until the connection ends or is Hypercorn's; what is left for that."""
        limit = Limit(self._lane.deadlines)
        while True:
            with limit:
                left = await self._serve_within(limit)
            if not limit.is_expired:
                break
            # The operation of the last request was late. It may have been decided all the same, at the last moment.
            answer = self._decided or problem_response(limit.failure or Unknown("the request was ended"))
            if not await self._send(answer):
                left = None
                break
        if left is None and not self._broken:
            await linger(self._stream)
        return left

    async def _serve_within(self, limit: Limit) -> bytes | None:
        lane, in_a_row = self._lane, 0
        while not self._stopping:
            taken = self._take()
            if taken is _Left.OTHER:
                return self._buffer[self._at :]
            if taken is _Left.PART:
                if not await self._read() or self._scope.cancel_called:
                    self._broken = True
                    return None  # a handler must not begin in a scope that is cancelled
                in_a_row = 0
                continue
            self._served, self._named, self._decided = taken, lane.begin(), None
            answer = await lane.serve_plain(taken)
            if limit.is_expired:
                self._decided = answer  # nothing can be sent in a scope that is cancelled
                return None
            if not await self._send(answer):
                return None
            in_a_row += 1
            if in_a_row >= SERVED_AT_ONCE:
                in_a_row = 0
                await trio.lowlevel.checkpoint()
        return None

    async def _send(self, answer: Response) -> bool:
        """Send the answer to the request that was served last; False if nothing is to follow it."""
        assert self._served is not None
        try:
            head = self._lane.spell_head(self._served, self._named, answer)
            if len(answer.body) <= _COPIED_BYTES_MAX:
                await send_now(self._stream, head + answer.body)
            else:
                await send_now(self._stream, head)
                await send_now(self._stream, answer.body)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._broken = True
            return False
        return answer.headers.get("connection") != "close"

    def _take(self) -> PlainRequest | Literal[_Left.PART, _Left.OTHER]:
        """The next request, taken off the buffer if it is there as a whole."""
        buffer, at = self._buffer, self._at
        if at == len(buffer):
            return _Left.PART
        head = _HEAD.match(buffer, at)
        if head is None:
            return _Left.PART if _may_become_head(buffer[at:]) else _Left.OTHER
        begin = head.end()
        if begin - at > HEAD_BYTES_MAX:
            return _Left.OTHER
        length, headers = self._lane.read_block(head[3])
        route = _route_of(head[1], head[2])
        if length < 0 or route is None or (length and not route.body_bytes_max):
            return _Left.OTHER
        end = begin + length
        if end > len(buffer):
            return _Left.PART
        self._at = end
        self._waited_ticks = 0
        path, _, query = head[2].partition(b"?")
        return PlainRequest(route, Request(route.method, path, query, headers, buffer[begin:end]))

    async def _read(self) -> bool:
        """Wait for further bytes; False: there will be none."""
        self._buffer = self._buffer[self._at :]
        self._at = 0
        self._reading = True
        try:
            data = await receive(self._stream, _READ_BYTES)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        finally:
            self._reading = False
        if not self._buffer:
            self._waited_ticks = 0
        self._buffer += data
        return bool(data)


def _route_of(method: bytes, target: bytes) -> Route | None:
    if target.startswith(keys.KEY_PATH):
        return _OF_KEYS.get(method)
    return _OF_PATHS.get((method, target.partition(b"?")[0]))


def _may_become_head(data: bytes) -> bool:
    """May these bytes, which are no head, be the beginning of one that the lane knows?"""
    if len(data) > HEAD_BYTES_MAX or not any(data.startswith(each[: len(data)]) for each in _BEGINNINGS):
        return False
    return b"\r\n\r\n" not in data and _IN_NO_HEAD.search(data) is None


_OF_KEYS: Final = {route.method.encode(): route for route in ROUTES if route.path == "/v1/kv/{key...}"}
_OF_PATHS: Final = {
    (route.method.encode(), route.path.encode()): route
    for route in ROUTES
    if (route.method, route.path) in (("GET", "/get"), ("GET", "/put"), ("POST", "/v1/batch"))
}
_BEGINNINGS: Final = (
    *(method + b" " + keys.KEY_PATH for method in _OF_KEYS),
    *(method + b" " + path + b"?" for method, path in _OF_PATHS),
    b"POST /v1/batch ",
)
