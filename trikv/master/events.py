"""What happened in the cluster: a bounded log that can be read from any point, and followed.

    events.note("worker_down", worker="w-1")                 the code that makes it happen says so; one JSON encoding
    async for event in events.subscribe(after="7-41"): ...   a watcher reads what came after, then waits

An event's id is `<term>-<number>`, the term of the master that noted it and a number that rises by one. A watcher that
lost its connection comes back with the last id that it saw, and misses nothing, as long as this log still knows that
place. Where it does not (the place is too long ago, or of another master's life: the log dies with its process), the
watcher is told with an event of its own, kind `gap`, before anything else: never by silence. It then knows that the
picture it has is stale, and reads the whole state anew.

The log keeps the last `COUNT_MAX` events, and of these the last `BYTES_MAX` bytes: the count bounds the time to replay
them, the bytes what a cluster with very many workers can make of a single event. Watchers have no queues. Each is a
number, the place up to which it has read; one that is too slow finds that its place is gone, which is a gap like any
other. So a thousand watchers that read nothing cost no memory.

An event is encoded once, when it is noted: so its size is known, every stream sends the same bytes, and nothing can
alter it later. `time_s` is how long this log has lived, by Trio's clock. `at` is the time of day, for people and to
compare with other logs; it comes from outside (`wall_clock`), is left out where there is none, and orders nothing.

Left out: durability. What must survive is in the cluster's document.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Container
from itertools import islice
from typing import Any, Final, NamedTuple

import trio

COUNT_MAX: Final = 4096
BYTES_MAX: Final = 1024 * 1024
GAP: Final = "gap"

_OURS: Final = frozenset({"id", "time_s", "at", "kind"})


class Event(NamedTuple):
    """`text`: the whole event as a JSON object on one line."""

    id: str
    kind: str
    text: str

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.text)
        return document


class EventLog:
    """
    Args:
      term: of the master whose log this is; it may be raised later, ids only ever rise.
      wall_clock: the time of day as text (ISO 8601); it may be given later. None: events carry no `at`.
    """

    def __init__(
        self,
        term: int = 0,
        *,
        wall_clock: Callable[[], str] | None = None,
        count_max: int = COUNT_MAX,
        bytes_max: int = BYTES_MAX,
    ) -> None:
        assert count_max >= 1, count_max
        self.term = term
        self.wall_clock = wall_clock
        self.counts: Counter[str] = Counter()  # by kind, of all that were ever noted here
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._kept: deque[Event] = deque()
        self._kept_bytes = 0
        self._first = 1  # the number of the first event that is kept, or of the next one if there is none
        self._before = f"{term}-0"  # the id of the place just before that event
        self._began_s = trio.current_time()
        self._watchers = trio.lowlevel.ParkingLot()

    @property
    def last_id(self) -> str:
        """The id of the newest event: a watcher that reads the state now and follows from here misses nothing."""
        return self._kept[-1].id if self._kept else self._before

    def note(self, kind: str, **fields: Any) -> None:
        """Say that something happened. `fields`, which JSON can carry, tell what; many partitions are a count."""
        assert not fields.keys() & _OURS, (kind, fields)
        event = self._encode(f"{self.term}-{self._first + len(self._kept)}", kind, fields)
        self.counts[kind] += 1
        self._kept.append(event)
        self._kept_bytes += len(event.text)
        while len(self._kept) > self._count_max or (self._kept_bytes > self._bytes_max and len(self._kept) > 1):
            gone = self._kept.popleft()
            self._kept_bytes -= len(gone.text)
            self._before = gone.id
            self._first += 1
        self._watchers.unpark_all()

    def latest(self, count: int, *, but: Container[str] = ()) -> list[dict[str, Any]]:
        """The newest events, newest first; `but`: not those of these kinds."""
        wanted = (event for event in reversed(self._kept) if event.kind not in but)
        return [event.document for event in islice(wanted, count)]

    def subscribe(self, after: str | None = None) -> Subscription:
        """Everything after the event with that id, or all that is kept; then whatever is noted."""
        return Subscription(self, after)

    def _encode(self, event_id: str, kind: str, fields: dict[str, Any]) -> Event:
        ours: dict[str, Any] = {"id": event_id, "time_s": round(trio.current_time() - self._began_s, 3)}
        if self.wall_clock is not None:
            ours["at"] = self.wall_clock()
        return Event(event_id, kind, json.dumps({**ours, "kind": kind, **fields}, separators=(",", ":")))

    def _place_of(self, event_id: str) -> int | None:
        """The number of the event that comes after that one, if this log still knows the place."""
        if event_id == self._before:
            return self._first
        _, _, digits = event_id.partition("-")
        if not digits.isascii() or not digits.isdigit() or len(digits) > 18:
            return None
        index = int(digits) - self._first
        if 0 <= index < len(self._kept) and self._kept[index].id == event_id:
            return self._first + index + 1
        return None

    def _gap(self, reason: str, fields: dict[str, Any]) -> Event:
        """Its id is the place after which the log goes on, so that a watcher that resumes there has no second gap."""
        return self._encode(self._before, GAP, {"reason": reason, **fields})


class Subscription(AsyncIterator[Event]):
    """One watcher's place in a log. Made by `EventLog.subscribe`; holds nothing that must be closed."""

    def __init__(self, log: EventLog, after: str | None) -> None:
        self._log = log
        place = log._first if after is None else log._place_of(after)
        self._next = log._first if place is None else place
        self._unknown = after if place is None else None  # the place that was asked for and is not known

    def take(self) -> Event | None:
        """The next event, if it is there already."""
        log = self._log
        if self._unknown is not None:
            asked_for, self._unknown = self._unknown, None
            self._next = log._first
            return log._gap("this master does not know that place: too long ago, or not its own", {"after": asked_for})
        if self._next < log._first:
            missed, self._next = log._first - self._next, log._first
            return log._gap("events came faster than they were read", {"missed": missed})
        index = self._next - log._first
        if index >= len(log._kept):
            return None
        self._next += 1
        return log._kept[index]

    async def wait(self) -> None:
        """Return when there is something to take."""
        await trio.lowlevel.checkpoint()
        log = self._log
        while self._unknown is None and log._first <= self._next >= log._first + len(log._kept):
            await log._watchers.park()

    async def __anext__(self) -> Event:
        """The next event, waiting for it if need be. Cancelled, it has taken none."""
        await self.wait()
        event = self.take()
        assert event is not None
        return event
