"""The events of the cluster as a stream: `GET /v1/events`, server-sent events for browsers, curl and scripts.

    id: 7-41
    event: worker_down
    data: {"id":"7-41","time_s":93.2,"kind":"worker_down","worker":"w-1"}

A stream begins with the events that the master still remembers, and goes on with new ones. A client that comes back
names the last event that it saw, with the header `Last-Event-ID` or with `?after=ID`. The header outweighs the query,
since browsers send it by themselves. If the master no longer knows the events after that place, the client is sent an
event of kind `gap`. `?kind=a,b` leaves out events of other kinds, but never a gap. `?follow=false` ends the stream
after the events that there are. A stream that was silent for `KEEPALIVE_S` sends a comment with the id of the newest
event that it has passed, so that a client that filters comes back with an id that the master still knows.

A stream costs a connection and a task; nothing is queued for it (`trikv.master.events`). There are at most
`STREAMS_MAX`, so that streams cannot use up the file descriptors that requests for keys need. A stream ends when its
client goes, and at once when the master stops.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import trio

from trikv.core.errors import Refused
from trikv.master.events import GAP, Event, EventLog, Subscription
from trikv.web.message import Request, choice_of, parse_query

KEEPALIVE_S: Final = 15.0
STREAMS_MAX: Final = 100
PIECE_CHARACTERS: Final = 64 * 1024  # a replay is sent in pieces of about this size; other tasks run between two pieces

STREAM_HEADERS: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
    "x-accel-buffering": "no",  # a proxy should pass each event on at once
}


class Streams:
    """The streams that one server has open. `KEEPALIVE_S` and `STREAMS_MAX` may be set lower for a test."""

    def __init__(self, *, keepalive_s: float = KEEPALIVE_S, streams_max: int = STREAMS_MAX) -> None:
        self._keepalive_s = keepalive_s
        self._streams_max = streams_max
        self._open: set[Stream] = set()
        self._stopping = False

    def make(self, log: EventLog, request: Request) -> Stream:
        """The stream that the request asks for. It counts as open once it is entered.

        Raises:
          Refused: too many streams are open, the master is stopping, or the request cannot be understood.
        """
        parameters = parse_query(request.query, "after", "kind", "follow")
        follow = choice_of(parameters, "follow", "true", "false") == "true"
        kinds = frozenset(parameters.get("kind", b"").decode(errors="replace").split(",")) - {""}
        after = request.headers.get("last-event-id") or parameters.get("after", b"").decode(errors="replace") or None
        if self._stopping:
            raise Refused("stopping", "the master is shutting down")
        if len(self._open) >= self._streams_max:
            raise Refused("overloaded", f"{self._streams_max} streams of events are open, and there may be no more")
        return Stream(self, log.subscribe(after), kinds, self._keepalive_s if follow else 0.0)

    def enter(self, stream: Stream) -> None:
        self._open.add(stream)

    def leave(self, stream: Stream) -> None:
        self._open.discard(stream)

    async def end_all(self, stop: trio.Event) -> None:
        """Once `stop` is set, end every stream and refuse new ones."""
        await stop.wait()
        self._stopping = True
        for stream in self._open:
            stream.end()


class Stream(AsyncIterator[bytes]):
    """The bytes of one stream, in pieces. `keepalive_s` 0: it ends after the events that there are."""

    def __init__(self, streams: Streams, subscription: Subscription, kinds: frozenset[str], keepalive_s: float) -> None:
        self._streams = streams
        self._subscription = subscription
        self._kinds = kinds
        self._keepalive_s = keepalive_s
        self._last_id = ""
        self._ended = False
        self._begun = False
        self._waiting: trio.CancelScope | None = None

    def __enter__(self) -> Stream:
        self._streams.enter(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._streams.leave(self)

    def end(self) -> None:
        """Let the stream end at its next piece; a stream that waits for events ends now."""
        self._ended = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def __anext__(self) -> bytes:
        if not self._begun:  # the headers of an answer are sent with its first bytes
            self._begun = True
            return b"retry: 1000\n\n"
        deadline_s = trio.current_time() + self._keepalive_s
        while not self._ended:
            await trio.lowlevel.checkpoint()
            if piece := self._take():
                return piece
            if trio.current_time() >= deadline_s:
                if not self._keepalive_s:
                    break
                return f"id: {self._last_id}\n: nothing new\n\n".encode() if self._last_id else b": nothing new\n\n"
            with trio.CancelScope(deadline=deadline_s) as self._waiting:
                await self._subscription.wait()
        raise StopAsyncIteration

    def _take(self) -> bytes:
        """The next piece: events that there are, of the kinds that are wanted."""
        piece: list[str] = []
        size = 0
        while size < PIECE_CHARACTERS and (event := self._subscription.take()) is not None:
            self._last_id = event.id
            if not self._kinds or event.kind in self._kinds or event.kind == GAP:
                piece.append(_spell(event))
                size += len(piece[-1])
        return "".join(piece).encode()


def _spell(event: Event) -> str:
    return f"id: {event.id}\nevent: {event.kind}\ndata: {event.text}\n\n"
