"""What the live page shows, as a stream: the whole state once, then what changed, at most twice a second.

    event: snapshot
    id: 3f2a-17
    data: {"state": {...}, "words": {...}, "workers": {...}, "ring": {...}, "partitions": {...}, "sample": {...}}

    event: patch
    id: 3f2a-18
    data: {"workers":{"w-1":{"state":"down","tone":"poor"}}}

A patch is a JSON merge patch (RFC 7396): an object says which members changed, and null that one is gone. So every part
that changes piece by piece is an object: workers by id, partitions by number. Its size depends on how much changed
among workers and partitions, and never on how many keys there are or how many requests come.

The document is made `STEP_S` apart while any stream is open, and compared and encoded once for all of them. Nothing is
queued for a stream: it is a place in the list of the last `KEPT_MAX` patches. A client that comes back names the last
id that it saw, with `Last-Event-ID`, and is sent what it missed; where that is too long ago, or was another master's,
it is sent a snapshot.

Cost: about two milliseconds of the event loop for each document (five workers, all settled), whether one page is open
or a hundred, and less than one for each stream that it is sent to.
"""

from __future__ import annotations

import json
import secrets
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

import trio

from trikv.core.configuration import Partition
from trikv.core.labels import spell_labels
from trikv.core.news import tell, tone_of
from trikv.core.present import (
    as_sentence,
    describe_progress,
    judge_health,
    judge_notes,
    notes_on,
    say_config_store,
    say_copies,
    say_needs,
    say_place,
    say_promise,
    tell_masters,
)
from trikv.core.ring import tokens
from trikv.net.signal import Signal
from trikv.web.message import Request, parse_query
from trikv.web.page import TOO_MANY_TO_SHOW
from trikv.web.services import Services
from trikv.web.streams import Source, Stream, Streams

STEP_S: Final = 0.5
KEPT_MAX: Final = 120
EVENTS_TOLD: Final = 30

_GONE: Final = object()
_STATE: Final = (
    "cluster", "version", "term", "mode", "promise", "replicas", "copies", "modes", "forming", "uptime_s", "last_event",
    "operations", "in_flight", "pending", "unsettled", "progress", "autoscale", "down_after_s",
    "probe",
)  # fmt: skip
_OF_WORKERS: Final = frozenset({"last_heard_s", "calls"})  # they change all the time; `rate` and `state` say the same


def describe_live(services: Services, numbers: dict[str, int]) -> dict[str, Any]:
    """The document of this moment, but for the partitions. `numbers` gives each worker a number, and is added to."""
    state = services.status.describe()
    loads = services.sampling.loads
    for worker in state["workers"]:
        numbers.setdefault(worker["id"], len(numbers))
    progress = describe_progress(state)
    return {
        "state": {name: state[name] for name in _STATE if name in state} | {"partitions": state["partitions"]},
        "words": {
            "health": judge_health(state)._asdict(),
            "promise": say_promise(state["promise"])._asdict(),
            "copies": say_copies(state),
            "needs": say_needs(state),
            "masters": [master._asdict() for master in tell_masters(state["masters"])],
            "config_store": say_config_store(state["masters"]),
            "progress": None if progress is None else progress._asdict(),
            "events": [
                {
                    "at": str(event.get("at", "")),
                    "time_s": event["time_s"],
                    "told": as_sentence(tell(event)),
                    "tone": tone_of(event["kind"]).value,
                }
                for event in services.events.latest(EVENTS_TOLD, but=TOO_MANY_TO_SHOW)
            ],
        },
        "workers": {
            worker["id"]: {
                **{name: value for name, value in worker.items() if name not in _OF_WORKERS},
                "number": numbers[worker["id"]],
                "labels_spelled": spell_labels(worker["labels"]),
                "place_word": say_place(worker["place"]),
                "notes": [as_sentence(note) for note in notes_on(worker)],
                "tone": judge_notes(worker).value,
                "rate": round(loads.get(worker["id"], 0.0), 1),
            }
            for worker in state["workers"]
        },
        "ring": {worker["id"]: tokens(worker["id"]) for worker in state["workers"] if worker["held"]},
        "sample": services.sampling.latest,
    }


def _spell(partition: Partition, numbers: dict[str, int]) -> str:
    """The numbers of its workers in order, `2,0,4`; unsettled: its older configurations in front, `2,0,1>2,0,4`."""
    spelt: list[str] = []
    for configuration in partition.history:
        names = (member.worker for member in configuration.members)
        spelt.append(",".join(str(numbers.setdefault(name, len(numbers))) for name in names))
    return ">".join(spelt)


def merge_patch(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """What makes `before` to `now` (RFC 7396); empty where they are the same."""
    patch: dict[str, Any] = {name: None for name in before if name not in now}
    for name, value in now.items():
        former = before.get(name, _GONE)
        if former == value:
            continue
        if isinstance(value, Mapping) and isinstance(former, Mapping):
            patch[name] = merge_patch(former, value)
        else:
            patch[name] = value
    return patch


class LiveFeed:
    """The document of one server, and its latest changes. `run` keeps it up to date while it is followed."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._name = secrets.token_hex(4)  # an id of another process's feed is not known here
        self._numbers: dict[str, int] = {}
        self._document: dict[str, Any] = {}
        self._partitions: Sequence[Partition] = ()  # as they were spelt last
        self._spelt: dict[str, str] = {}
        self._count = 0  # of patches so far
        self._patches: deque[str] = deque(maxlen=KEPT_MAX)
        self._snapshot: tuple[int, str] | None = None  # encoded, and after how many patches it was taken
        self._followers = 0
        self._followed = trio.Event()
        self.changed = Signal()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._followed.wait()
            while self._followers:
                self._update()
                await trio.sleep(STEP_S)
            self._followed = trio.Event()

    def make_stream(self, streams: Streams, request: Request) -> Stream:
        """The stream that the request asks for.

        Raises:
          Refused: too many streams are open, the node is stopping, or the request cannot be understood.
        """
        parse_query(request.query)
        return streams.make(LiveReader(self, self._place_of(request.headers.get("last-event-id"))))

    def enter(self) -> None:
        self._followers += 1
        self._followed.set()

    def leave(self) -> None:
        self._followers -= 1

    def _update(self) -> None:
        document = json.loads(json.dumps(describe_live(self._services, self._numbers)))
        document["partitions"] = self._spell_partitions()
        if self._document and (patch := merge_patch(self._document, document)):
            self._count += 1
            self._patches.append(self._encode("patch", self._count, patch))
        elif not self._document:
            self._count += 1
        else:
            return
        self._document = document
        self.changed.notify()

    def _spell_partitions(self) -> dict[str, str]:
        """By index. A partition that is the same object as the last time is not spelt again: few change at once."""
        before, now = self._partitions, self._services.status.partitions
        if now is not before:
            self._partitions = now
            self._spelt = {
                str(index): self._spelt[str(index)]
                if index < len(before) and before[index] is partition
                else _spell(partition, self._numbers)
                for index, partition in enumerate(now)
            }
        return self._spelt

    def _encode(self, kind: str, count: int, document: Mapping[str, Any]) -> str:
        data = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
        return f"event: {kind}\nid: {self._name}-{count}\ndata: {data}\n\n"

    def _place_of(self, event_id: str | None) -> int | None:
        name, _, digits = (event_id or "").rpartition("-")
        if name != self._name or not (digits.isascii() and digits.isdigit() and len(digits) < 18):
            return None
        return int(digits) if 0 < int(digits) <= self._count else None

    def take(self, place: int | None) -> tuple[int | None, str]:
        """What there is for a reader that has seen the patches up to `place`, and where it is then; or nothing."""
        if place is not None and self._count - place <= len(self._patches):
            return self._count, "".join(list(self._patches)[len(self._patches) - (self._count - place) :])
        if not self._document:
            return None, ""
        if self._snapshot is None or self._snapshot[0] != self._count:
            self._snapshot = self._count, self._encode("snapshot", self._count, self._document)
        return self._snapshot


class LiveReader(Source):
    """One stream's place in a feed."""

    def __init__(self, feed: LiveFeed, place: int | None) -> None:
        self._feed = feed
        self._place = place

    def open(self) -> None:
        self._feed.enter()

    def close(self) -> None:
        self._feed.leave()

    def take(self) -> bytes:
        self._place, piece = self._feed.take(self._place)
        return piece.encode()

    async def wait(self) -> None:
        await self._feed.changed.wait()
