"""What happened in a run, in order: a digest always, and on demand events that can be drawn.

The digest is a hash over every message that arrived, with its bytes and its instant, over every fault, and over the
beginning and end of every operation. Two runs with one digest were the same run.

Events are for people, and cost a decoding of every frame, so they are kept only on demand. A message has two events: it
is sent, and it arrives, later or never. `number` joins the two. A frame carries many calls; each has its own events.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from struct import Struct
from typing import Any, Final, NamedTuple

from trikv.core import frames
from trikv.core.calls import Op, fetched_from_wire, record_from_wire
from trikv.core.errors import Fault
from trikv.core.record import Record
from trikv.testing.sim.names import Names

_SECONDS: Final = Struct("<d")


class TraceEvent(NamedTuple):
    """`what` is "send", "arrive", "fault", "heal", "begin", "end", "start", "down" or "told"; `text` is for a person.

    Messages also have a `number`, and `call`, `key` and `record` where these apply; answers have their `fault`.
    """

    time_s: float
    what: str
    source: str
    target: str
    text: str
    number: int = 0
    call: str = ""
    key: str = ""
    record: Record | None = None
    fault: Fault | None = None


class Trace:
    """Records one run. `events` stays empty unless they are wanted."""

    def __init__(self, *, wanted: bool, names: Names | None = None) -> None:
        self.events: list[TraceEvent] = []
        self.wanted = wanted
        self._names = names or Names()
        self._hash = blake2b(digest_size=16)
        self._calls: dict[tuple[int, int], tuple[str, str, Record | None]] = {}  # by connection and id: what was asked

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def note(self, time_s: float, what: str, node: str, text: str) -> None:
        """An event that is not a message."""
        self._hash.update(f"{time_s!r} {what} {node} {text}\n".encode())
        if self.wanted:
            self.events.append(TraceEvent(time_s, what, node, node, text))

    def note_arrival(self, time_s: float, route: bytes, data: bytes) -> None:
        self._hash.update(_SECONDS.pack(time_s) + route + data)

    def note_message(
        self, time_s: float, what: str, source: str, target: str, number: int, connection: int, data: bytes
    ) -> None:
        """The calls and answers in a frame that is sent or arrives; only if `wanted`."""
        for call, key, record, fault in self._told(connection, data):
            outcome = "" if fault is None else fault.name.lower()
            version = "" if record is None else str(record.version)
            text = " ".join(filter(None, (call, key, outcome, version)))
            self.events.append(TraceEvent(time_s, what, source, target, text, number, call, key, record, fault))

    def _told(self, connection: int, data: bytes) -> Iterator[tuple[str, str, Record | None, Fault | None]]:
        buffer = frames.FrameBuffer()
        buffer.feed(data)
        frame = buffer.next_frame()
        if isinstance(frame, frames.NoFrame):
            yield "torn frame", "", None, None
        while not isinstance(frame, frames.NoFrame):
            yield from self._told_of(connection, frame)
            frame = buffer.next_frame()

    def _told_of(self, connection: int, frame: list[Any]) -> Iterator[tuple[str, str, Record | None, Fault | None]]:
        match frame:
            case [1, list(calls)]:
                for call_id, _, op, *arguments in calls:
                    asked = self._calls[connection, call_id] = _asked(op, arguments, self._names)
                    yield *asked, None
            case [2, list(answers)]:
                for call_id, fault, *payload in answers:
                    call, key, record = self._calls.get((connection, call_id), ("call", "", None))
                    if call == "fetch" and fault == Fault.OK:
                        record = fetched_from_wire(payload)
                    yield f"{call} answer", key, record, Fault(fault)
            case [3, list(acknowledged)]:  # each is a call's id alone: what it asked for is done, or there is nothing
                for call_id in acknowledged:
                    call, key, record = self._calls.get((connection, call_id), ("call", "", None))
                    yield f"{call} answer", key, record, Fault.OK
            case [*_]:
                yield "greeting", "", None, None


def _asked(op: int, arguments: list[Any], names: Names) -> tuple[str, str, Record | None]:
    """The name of a call, and the key and record that it is about."""
    name = Op(op).name.lower()
    if op in (Op.STORE, Op.FETCH):
        key = names.decode(arguments[3])
        return name, key, record_from_wire(arguments[4:9]) if op == Op.STORE else None
    return name, "", None
