"""HTTP/1.1 on Hypercorn: connections that answer each request with its own outcome, within bounds.

Hypercorn parses requests (with h11) and drives the ASGI app. Three things are decided here:

- **Protocols.** HTTP/1.0 and 1.1 are served, nothing else. A request to upgrade (WebSocket, h2c) is answered as if it
  did not ask for that, as RFC 9110, section 7.8 allows. An HTTP/2 preface is answered 400.
- **Answers.** Once a whole request has arrived, nothing that follows it on the connection can change its answer. What
  follows waits, unparsed, until the answer is sent; if the connection is to be closed, it is dropped. A client that has
  closed its half of the connection is still answered.
- **Clients that have left.** The request under way goes on, and no further one begins. A reset ends the reading at
  once, and after the first answer that could not be sent no pipelined request is carried out.

Bounds: `HEAD_BYTES_MAX` for a head; `IDLE_TIMEOUT_S` for a whole head or for the next request to arrive;
`STALLED_TIMEOUT_S` for a client to take some of its answer (sends are shielded, so only the kernel can end one that
stalls). `PIPELINED_BYTES_MAX` of what follows a request are held, and no more is read until the request is answered. A
connection that this side ends is drained for a moment, so that the client sees the answer and not a reset
(`trikv/net/linger.py`).

Sources: Hypercorn's `trio/tcp_server.py` and `protocol/h11.py`, whose classes are extended here; RFC 9112, section 9.6
on closing.
"""

from __future__ import annotations

import logging
import math
import socket
from typing import Any, Final

import h11
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, EndBody, Request, Response
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState
from hypercorn.utils import parse_socket_addr

from trikv.net.accept import accept_forever, connections_max
from trikv.net.linger import linger
from trikv.web.lane import ExpressLane

HEAD_BYTES_MAX: Final = 32 * 1024  # a key of 4 KiB with each byte percent-encoded, beside a page of ETags
IDLE_TIMEOUT_S: Final = 15.0
STALLED_TIMEOUT_S: Final = 10.0
GRACE_S: Final = 3.0
PIPELINED_BYTES_MAX: Final = 64 * 1024
BACKLOG: Final = 1024

_READ_BYTES: Final = 64 * 1024
_VERSIONS: Final = (b"1.0", b"1.1")
_TCP_CLOSE: Final = 7  # the kernel's number for a connection that the peer has reset, in the first byte of TCP_INFO


class Http1(H11Protocol):
    """The dialogue of one connection. `whole`: a whole request has arrived, and its answer is not sent yet."""

    whole = False
    over = False  # nothing more is to be read or answered
    peer_is_done = False  # the peer has closed its half: no further request will come

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._turn = trio.Lock()  # both the reader and the task that ends an answer go on to the next request
        self.answered = trio.Event()

    async def handle(self, event: Event) -> None:
        if isinstance(event, RawData):
            if not self.over:
                self.connection.receive_data(event.data)
                await self._handle_events()
        elif isinstance(event, Closed):
            self.over = True
            self.answered.set()
            await self._close_stream()

    @property
    def pipelined_bytes(self) -> int:
        return len(self.connection.trailing_data[0])

    @property
    def is_answering(self) -> bool:
        """Has an answer begun? A refusal of a body's size begins before the whole request has arrived."""
        return self.connection.our_state is h11.SEND_BODY

    async def end_of_input(self) -> None:
        """The peer has closed its half. A whole request is still answered; a stream would not end by itself."""
        self.peer_is_done = True
        if self.whole and isinstance(self.stream, HTTPStream) and self.stream.state is ASGIHTTPState.RESPONSE:
            await self._tell_app(self.stream)

    async def stream_send(self, event: StreamEvent) -> None:
        await super().stream_send(event)
        if isinstance(event, Response) and self.peer_is_done and isinstance(self.stream, HTTPStream):
            await self._tell_app(self.stream)

    async def _tell_app(self, stream: HTTPStream) -> None:
        await stream.app_put({"type": "http.disconnect"})  # cancels nothing once the answer has begun

    async def has_whole_request(self) -> bool:
        """Is there one, after all that arrived has been parsed?"""
        async with self._turn:
            return self.whole

    async def _handle_events(self) -> None:
        async with self._turn:
            await self._handle_events_in_turn()

    async def _handle_events_in_turn(self) -> None:
        while not (self.whole or self.over):
            if self.connection.they_are_waiting_for_100_continue:
                headers = self.config.response_headers("h11")
                await self._send_h11_event(h11.InformationalResponse(status_code=100, headers=headers))
            try:
                event = self.connection.next_event()
            except h11.RemoteProtocolError as error:
                # h11 hints at 501 for an unknown transfer coding. That is a fault of the request, like other framing.
                await self._refuse(400 if error.error_status_hint >= 500 else error.error_status_hint)
                return
            if isinstance(event, h11.Request):
                await self.send(Updated(idle=False))
                if event.http_version not in _VERSIONS or _is_framed_twice(event) or not event.method.isupper():
                    await self._refuse(400)
                    return
                await self._begin(event)
            elif isinstance(event, h11.Data) and self.stream is not None:
                await self.stream.handle(Body(stream_id=STREAM_ID, data=bytes(event.data)))
            elif isinstance(event, h11.EndOfMessage) and self.stream is not None:
                self.whole = True
                await self.stream.handle(EndBody(stream_id=STREAM_ID))
            else:
                return  # more must come first

    async def _begin(self, request: h11.Request) -> None:
        self.answered = trio.Event()
        self.stream = HTTPStream(
            self.app, self.config, self.context, self.task_group, self.ssl, self.client, self.server,
            self.stream_send, STREAM_ID,
        )  # fmt: skip
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=list(request.headers),
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii").upper(),
                raw_path=request.target,
                state=self.connection_state,
            )
        )
        self.keep_alive_requests += 1

    async def _refuse(self, status: int) -> None:
        """Refuse what is no request, and close. Nothing was carried out, since handlers begin when a body is whole."""
        if self.connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            await self._send_error_response(status)
        await self.send(Closed())

    async def _send_h11_event(self, event: Any) -> None:
        if not self.over:
            await super()._send_h11_event(event)

    async def _maybe_recycle(self) -> None:
        """The answer is sent: go on to the next request, or close."""
        await self._close_stream()
        states = (self.connection.our_state, self.connection.their_state)
        if self.over or self.context.terminated.is_set() or states != (h11.DONE, h11.DONE):
            self.answered.set()
            await self.send(Closed())
            return
        answered = self.answered
        async with self._turn:  # until the next request is under way, or it is known that there is none yet
            self.connection.start_next_cycle()
            self.whole = False
            await self.send(Updated(idle=True))
            await self._handle_events_in_turn()
        answered.set()


def _is_framed_twice(request: h11.Request) -> bool:
    """Has it a length and a transfer coding? A proxy in front may go by the other one (RFC 9112, section 6.3)."""
    return {b"content-length", b"transfer-encoding"} <= {name for name, _ in request.headers}


class Connection(TCPServer):
    """One accepted stream. When `run` returns, the stream is closed."""

    protocol: Http1  # type: ignore[assignment]  # the wrapper would choose among protocols

    def __init__(self, app: AppWrapper, config: Config, context: WorkerContext, stream: trio.SocketStream) -> None:
        super().__init__(app, config, context, ConnectionState({}), stream)  # type: ignore[arg-type]  # no TLS here
        self._reading = trio.CancelScope()
        self._sending = trio.CancelScope(shield=True)
        self._until_s = math.inf

    def end_by(self, deadline_s: float) -> None:
        """Send nothing after this time, also if the peer has not taken all of its answer."""
        self._until_s = self._sending.deadline = deadline_s

    async def run(self, first: bytes = b"") -> None:
        """Serve until the end. `first`: what has been read of the stream already."""
        sock = self.stream.socket
        try:
            client, server = (parse_socket_addr(sock.family, name()) for name in (sock.getpeername, sock.getsockname))
        except OSError:
            return  # the peer has left already
        try:
            async with TaskGroup() as group:
                self._task_group = group
                self.protocol = Http1(
                    self.app, self.config, self.context, group, self.state, False, client, server, self.protocol_send
                )
                await self.idle_task.restart(group, self._idle_timeout)
                with self._reading:
                    if first:
                        await self.protocol.handle(RawData(first))
                    await self._read_data()
                await self.protocol.handle(Closed())
                await self.idle_task.stop()
            await linger(self.stream)  # type: ignore[arg-type]  # no TLS here
        finally:
            await trio.aclose_forcefully(self.stream)

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            async with self.send_lock:
                try:
                    with trio.CancelScope(shield=True, deadline=self._until_s) as self._sending:
                        await self.stream.send_all(event.data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    await self._end()
                if self._sending.cancelled_caught:
                    await self._end()
        elif isinstance(event, Closed):
            await self._end()
        elif isinstance(event, Updated):
            if event.idle:
                await self.idle_task.restart(self._task_group, self._idle_timeout)
            else:
                await self.idle_task.stop()

    async def _end(self) -> None:
        """Read no more requests."""
        if not self.protocol.over:
            await self.protocol.handle(Closed())
            self._reading.cancel()

    async def _idle_timeout(self) -> None:
        with trio.move_on_after(self.config.keep_alive_timeout):
            await self.context.terminated.wait()
        await self._end()

    async def _read_data(self) -> None:
        """Pass on what arrives, until the peer sends no more, or the protocol is over."""
        protocol = self.protocol
        while not protocol.over:
            if protocol.whole and (protocol.peer_is_done or protocol.pipelined_bytes > PIPELINED_BYTES_MAX):
                await protocol.answered.wait()
                if self._was_reset():
                    return
                continue
            if protocol.peer_is_done:
                if await protocol.has_whole_request():
                    continue
                if protocol.is_answering:
                    await protocol.answered.wait()
                return
            try:
                data = await self.stream.receive_some(_READ_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            if data:
                await protocol.handle(RawData(bytes(data)))
            else:
                await protocol.end_of_input()

    def _was_reset(self) -> bool:
        """Has the peer reset the connection? If the kernel cannot tell, sending the next answer will."""
        sock = self.stream.socket
        if not hasattr(socket, "TCP_INFO"):
            return False
        try:
            return bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE)
        except OSError:
            return True


async def serve_app(
    app: Any,
    sock: socket.socket,
    stop: trio.Event,
    *,
    lane: ExpressLane | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the ASGI app on `sock`, which is bound, until `stop`; then give the requests under way `GRACE_S` to end,
    and close it. Where there is a `lane`, each connection begins there."""
    config = Config()
    config.errorlog = logging.getLogger("trikv.web.hypercorn")
    config.include_server_header = False
    config.h11_max_incomplete_size = HEAD_BYTES_MAX
    config.keep_alive_timeout = IDLE_TIMEOUT_S
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; the connections inherit it
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(STALLED_TIMEOUT_S * 1000))
    sock.setblocking(False)
    sock.listen(BACKLOG)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    context = WorkerContext(None)

    served: set[Connection] = set()

    async def serve_one(stream: trio.abc.Stream) -> None:
        assert isinstance(stream, trio.SocketStream), stream
        first = b"" if lane is None else await lane.serve(stream)
        if first is None:
            return
        connection = Connection(ASGIWrapper(app), config, context, stream)
        served.add(connection)
        try:
            await connection.run(first)
        finally:
            served.discard(connection)

    async with trio.open_nursery() as looking:
        if lane is not None:
            looking.start_soon(lane.run)  # to the end of the last connection, since requests under way have deadlines
        async with trio.open_nursery() as connections:
            async with listener, trio.open_nursery() as accepting:
                accepting.start_soon(_cancel_at, stop, accepting.cancel_scope)
                task_status.started()
                at_most = connections_max(listener)
                await accept_forever(listener, serve_one, what="the HTTP port", nursery=connections, at_most=at_most)
            if lane is not None:
                lane.stop()
            await context.terminated.set()  # connections without a request end at once
            deadline_s = connections.cancel_scope.deadline = trio.current_time() + GRACE_S
            for connection in served:
                connection.end_by(deadline_s)
        looking.cancel_scope.cancel()


async def _cancel_at(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
