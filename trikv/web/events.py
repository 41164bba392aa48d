"""The events of the cluster as a stream: `GET /v1/events`, server-sent events for browsers, curl and scripts.

    id: 7-41
    event: worker_down
    data: {"id":"7-41","time_s":93.2,"kind":"worker_down","worker":"w-1"}

A stream begins with the events that the master still remembers, and goes on with new ones. A client that comes back
names the last event that it saw, with the header `Last-Event-ID` or with `?after=ID`. The header outweighs the query,
since browsers send it by themselves. If the master no longer knows the events after that place, the client is sent an
event of kind `gap`. `?kind=a,b` leaves out events of other kinds, but never a gap. `?follow=false` ends the stream
after the events that there are. A stream that was silent for a while sends a comment with the id of the newest event
that it has passed, so that a client that filters comes back with an id that the master still knows.

Nothing is queued for a stream (`trikv.master.events`); `streams.py` has the bounds.
"""

from __future__ import annotations

from typing import Final

from trikv.master.events import GAP, Event, EventLog, Subscription
from trikv.web.message import Request, choice_of, parse_query
from trikv.web.streams import Source, Stream, Streams

PIECE_CHARACTERS: Final = 64 * 1024  # a replay is sent in pieces of about this size; other tasks run between two pieces


def make_stream(streams: Streams, log: EventLog, request: Request) -> Stream:
    """The stream of events that the request asks for.

    Raises:
      Refused: too many streams are open, the node is stopping, or the request cannot be understood.
    """
    parameters = parse_query(request.query, "after", "kind", "follow")
    follow = choice_of(parameters, "follow", "true", "false") == "true"
    kinds = frozenset(parameters.get("kind", b"").decode(errors="replace").split(",")) - {""}
    after = request.headers.get("last-event-id") or parameters.get("after", b"").decode(errors="replace") or None
    return streams.make(_Events(log.subscribe(after), kinds), follow=follow)


class _Events(Source):
    def __init__(self, subscription: Subscription, kinds: frozenset[str]) -> None:
        self._subscription = subscription
        self._kinds = kinds
        self._last_id = ""

    def take(self) -> bytes:
        """Events that there are, of the kinds that are wanted."""
        piece: list[str] = []
        size = 0
        while size < PIECE_CHARACTERS and (event := self._subscription.take()) is not None:
            self._last_id = event.id
            if not self._kinds or event.kind in self._kinds or event.kind == GAP:
                piece.append(_spell(event))
                size += len(piece[-1])
        return "".join(piece).encode()

    async def wait(self) -> None:
        await self._subscription.wait()

    def keepalive(self) -> bytes:
        return f"id: {self._last_id}\n: nothing new\n\n".encode() if self._last_id else super().keepalive()


def _spell(event: Event) -> str:
    return f"id: {event.id}\nevent: {event.kind}\ndata: {event.text}\n\n"
