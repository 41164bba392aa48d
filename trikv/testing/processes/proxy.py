"""Links that can be cut: a TCP proxy in front of a node, for tests with real processes.

    link = await nursery.start(serve_link, lambda: worker.address)
    link.address                # the master and the chain's workers dial this instead of the worker
    link.cut()                  # every connection breaks, and each new one breaks at once
    link.hold()                 # nothing arrives in either direction, and no connection breaks
    link.hold("answers")        # questions arrive, answers do not
    link.mend()

`hold` acts like a network that loses packets. Bytes stay where they are and arrive once the link is mended, ends of
connections included. A connection that is made meanwhile hears nothing. netem and iptables can do the same, but need
privileges.

What differs from a real network: if the node behind the proxy is dead, a connection to the proxy is made and then
reset, whereas the node's own address would refuse it. So a master that dials through proxies learns of a death by
silence alone. While a link is held, the proxy takes up to `PIECE_BYTES` of each direction from the sender, whose window
then fills up.

Costs: two tasks for each connection, one copy of every byte.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Final, Literal

import trio

from trikv.net.doors import split_address

PIECE_BYTES: Final = 64 * 1024

Direction = Literal["questions", "answers"]
_BOTH: Final[tuple[Direction, Direction]] = ("questions", "answers")


class ProxyLink:
    """One proxy. Call its methods in the loop that serves it. `target` is asked at each connection."""

    def __init__(self, target: Callable[[], str], address: str) -> None:
        self.address = address
        self.target = target
        self.is_cut = False
        self._open: set[_Connection] = set()
        self._flows: dict[Direction, trio.Event] = {}
        for direction in _BOTH:
            self._let_flow(direction)

    def cut(self) -> None:
        """Break every connection, and each new one as soon as it is made."""
        self.is_cut = True
        self.reset()

    def hold(self, *directions: Direction) -> None:
        """Let nothing through in these directions (default: both)."""
        for direction in directions or _BOTH:
            if self._flows[direction].is_set():
                self._flows[direction] = trio.Event()

    def reset(self) -> None:
        """Break the connections that exist now."""
        for connection in self._open:
            connection.scope.cancel()

    def mend(self) -> None:
        """Let everything through again, and deliver what was held first."""
        self.is_cut = False
        for direction in _BOTH:
            self._flows[direction].set()

    def _let_flow(self, direction: Direction) -> None:
        self._flows[direction] = trio.Event()
        self._flows[direction].set()

    async def may_flow(self, direction: Direction) -> None:
        """Return when bytes may pass that way."""
        await self._flows[direction].wait()

    async def handle(self, near: trio.SocketStream) -> None:
        """Pass on one connection until one of its ends is closed."""
        connection = _Connection(near)
        self._open.add(connection)
        try:
            if self.is_cut:
                connection.scope.cancel()
            with connection.scope:
                await self.may_flow("questions")
                far = connection.far = await trio.open_tcp_stream(*split_address(self.target()))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pass_on, near, far, "questions", nursery)
                    nursery.start_soon(self._pass_on, far, near, "answers", nursery)
        except* (OSError, trio.BrokenResourceError):
            connection.scope.cancel()  # one end is gone, or the target does not listen
        finally:
            self._open.discard(connection)
            connection.close(reset=connection.scope.cancel_called)

    async def _pass_on(
        self, source: trio.SocketStream, sink: trio.SocketStream, direction: Direction, nursery: trio.Nursery
    ) -> None:
        while True:
            data = await source.receive_some(PIECE_BYTES)
            await self.may_flow(direction)
            if not data:
                nursery.cancel_scope.cancel()
                return
            await sink.send_all(data)


class _Connection:
    """A connection with its two ends."""

    def __init__(self, near: trio.SocketStream) -> None:
        self.scope = trio.CancelScope()
        self.near = near
        self.far: trio.SocketStream | None = None

    def close(self, *, reset: bool) -> None:
        """`reset`: both ends see a broken connection; otherwise each sees that the other has closed."""
        for stream in (self.near, self.far):
            if stream is not None:
                if reset:
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                stream.socket.close()


async def serve_link(
    target: Callable[[], str], *, task_status: trio.TaskStatus[ProxyLink] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve one link on a free port of loopback, until cancelled."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    host, port = listener.socket.getsockname()
    link = ProxyLink(target, f"{host}:{port}")
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, link.handle, [listener])
        task_status.started(link)
