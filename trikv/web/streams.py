"""Streams of server-sent events: answers that go on until their client leaves or the node stops.

What a stream sends comes from its `Source`, which has no queue: it is asked for its next piece when the client has
taken the one before. A stream that was silent for `KEEPALIVE_S` sends what its source says to that, a comment, so that
both ends notice when the other is gone.

A stream costs a connection and a task. There are at most `STREAMS_MAX`, so that streams cannot use up the file
descriptors that requests for keys need. A stream ends when its client goes, and at once when the node stops.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Final

import trio

from trikv.core.errors import Refused

KEEPALIVE_S: Final = 15.0
STREAMS_MAX: Final = 100

STREAM_HEADERS: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
    "x-accel-buffering": "no",  # a proxy should pass each event on at once
}


class Source(ABC):
    """Where the pieces of one stream come from."""

    def open(self) -> None:  # noqa: B027 most sources need not know
        """The stream begins."""

    def close(self) -> None:  # noqa: B027
        """The stream has ended."""

    @abstractmethod
    def take(self) -> bytes:
        """The next piece, whole events; empty: there is nothing now."""

    @abstractmethod
    async def wait(self) -> None:
        """Return when there may be something to take."""

    def keepalive(self) -> bytes:
        return b": nothing new\n\n"


class Streams:
    """The streams that one server has open. `KEEPALIVE_S` and `STREAMS_MAX` may be set lower for a test."""

    def __init__(self, *, keepalive_s: float = KEEPALIVE_S, streams_max: int = STREAMS_MAX) -> None:
        self._keepalive_s = keepalive_s
        self._streams_max = streams_max
        self._open: set[Stream] = set()
        self._stopping = False

    def make(self, source: Source, *, follow: bool = True) -> Stream:
        """A stream, which counts as open once it is entered. `follow` False: it ends after the pieces that there are.

        Raises:
          Refused: too many streams are open, or the node is stopping.
        """
        if self._stopping:
            raise Refused("stopping", "the master is shutting down")
        if len(self._open) >= self._streams_max:
            raise Refused("overloaded", f"{self._streams_max} streams are open, and there may be no more")
        return Stream(self, source, self._keepalive_s if follow else 0.0)

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
    """The bytes of one stream, in pieces. `keepalive_s` 0: it ends after the pieces that there are."""

    def __init__(self, streams: Streams, source: Source, keepalive_s: float) -> None:
        self._streams = streams
        self._source = source
        self._keepalive_s = keepalive_s
        self._ended = False
        self._begun = False
        self._waiting: trio.CancelScope | None = None

    def __enter__(self) -> Stream:
        self._streams.enter(self)
        self._source.open()
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()
        self._streams.leave(self)

    def end(self) -> None:
        """Let the stream end at its next piece; a stream that waits ends now."""
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
            if piece := self._source.take():
                return piece
            if trio.current_time() >= deadline_s:
                if not self._keepalive_s:
                    break
                return self._source.keepalive()
            with trio.CancelScope(deadline=deadline_s) as self._waiting:
                await self._source.wait()
        raise StopAsyncIteration
