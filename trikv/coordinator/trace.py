"""What one request sent to which replica, when, and what came of it: the coordinator's own record, also after the
answer.

    trace = coordinator.traces.make()                       for a request that asks for one
    await coordinator.put(key, value, trace=trace)
    trace.describe()                                        now or later: what arrives late is added as it comes

A trace is the context of the task that serves the request (`contextvars`), since the calls that it notes lie below a
strategy, which knows nothing of it: `RequestTrace.noted` wraps the `done` of one call. Where a task has no trace, its
calls cost one look-up. Of the requests that ask for none, one in `SAMPLE_STEP` is traced all the same.

The last `KEPT_MAX` traces are kept, with `MESSAGES_MAX` messages each; a copy that is kept as a hint and delivered
later belongs to the trace of its write as long as that is kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

import trio

from trikv.api import Write
from trikv.core.errors import Fault
from trikv.core.record import Version, spell_epoch

KEPT_MAX: Final = 256
MESSAGES_MAX: Final = 200
PINNED_MAX: Final = 32
SAMPLE_STEP: Final = 1_000

Done = Callable[[int, list[Any]], None]


class TracedCall:
    """One call to one replica. Times are in seconds since the request began; None: not yet."""

    __slots__ = ("ended_s", "fault", "replica", "sent_s", "what")

    def __init__(self, replica: str, what: str, sent_s: float) -> None:
        self.replica = replica
        self.what = what
        self.sent_s = sent_s
        self.ended_s: float | None = None
        self.fault: int | None = None


class RequestTrace:
    """Of one request. `promised_s`: when the strategy said that its promise is met."""

    __slots__ = (
        "began_s", "detail", "ended_s", "epoch", "id", "key", "mode", "notes", "outcome", "promised_s", "stamp",
        "what", )  # fmt: skip

    def __init__(self, trace_id: str) -> None:
        self.id = trace_id
        self.what = ""
        self.key = b""
        self.mode = ""
        self.epoch = 0
        self.began_s = trio.current_time()
        self.ended_s: float | None = None
        self.promised_s: float | None = None
        self.outcome = ""
        self.detail = ""
        self.stamp: Version | None = None
        self.notes: list[TracedCall] = []

    def begin(self, what: str, key: bytes) -> None:
        self.what, self.key = what, key
        self.began_s = trio.current_time()

    def end(self, outcome: str, detail: str) -> None:
        self.ended_s, self.outcome, self.detail = self.now_s(), outcome, detail

    def now_s(self) -> float:
        return trio.current_time() - self.began_s

    def noted(self, replica: str, what: str, done: Done) -> Done:
        """`done`, which also writes down when and how the call ended."""
        if len(self.notes) >= MESSAGES_MAX:
            return done
        note = TracedCall(replica, what, self.now_s())
        self.notes.append(note)

        def ended(fault: int, payload: list[Any]) -> None:
            note.ended_s, note.fault = self.now_s(), fault
            done(fault, payload)

        return ended

    def describe(self, spell_fault: Callable[[int], str]) -> dict[str, Any]:
        """As JSON-ready values; times in milliseconds since the request began, None for what has not happened yet."""
        return {
            "id": self.id,
            "what": self.what,
            "key": self.key.decode(errors="replace"),
            "mode": self.mode,
            "epoch": spell_epoch(self.epoch) if self.epoch else None,
            "outcome": self.outcome or None,
            "detail": self.detail,
            "promised_ms": _ms(self.promised_s),
            "ended_ms": _ms(self.ended_s),
            "messages": [
                {
                    "replica": note.replica,
                    "what": note.what,
                    "sent_ms": _ms(note.sent_s),
                    "ended_ms": _ms(note.ended_s),
                    "ended": _spell(note.fault, spell_fault),
                }
                for note in self.notes
            ],
        }


def _spell(fault: int | None, spell_fault: Callable[[int], str]) -> str | None:
    return None if fault is None else "ok" if fault == Fault.OK else spell_fault(fault)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)


class Traces:
    """The traces of one coordinator: the latest, each to be found by its id."""

    def __init__(self, *, kept_max: int = KEPT_MAX, sample_step: int = SAMPLE_STEP) -> None:
        self._kept_max = kept_max
        self._sample_step = sample_step
        self._kept: OrderedDict[str, RequestTrace] = OrderedDict()
        self._pinned: OrderedDict[str, RequestTrace] = OrderedDict()
        self._of_writes: dict[tuple[bytes, Version], RequestTrace] = {}  # by key and stamp, which together name a write
        self._count = 0
        self._asked = 0

    def make(self) -> RequestTrace:
        """A new one, which is kept from now on."""
        self._count += 1
        trace = self._kept[str(self._count)] = RequestTrace(str(self._count))
        while len(self._kept) > self._kept_max:
            _, gone = self._kept.popitem(last=False)
            if gone.stamp is not None:
                self._of_writes.pop((gone.key, gone.stamp), None)
        return trace

    def pin(self, trace: RequestTrace) -> None:
        """Keep a trace that was not made here, beside the others: it is evidence of something."""
        self._count += 1
        trace.id = str(self._count)
        self._pinned[trace.id] = trace
        while len(self._pinned) > PINNED_MAX:
            self._pinned.popitem(last=False)

    def sample(self) -> RequestTrace | None:
        """One for a request that asked for none, now and then."""
        self._asked += 1
        return self.make() if self._asked % self._sample_step == 0 else None

    def note_stamp(self, trace: RequestTrace, stamp: Version) -> None:
        """The request is the write with this stamp: copies of it that are sent later belong to the trace, if that is
        kept here."""
        if self._kept.get(trace.id) is not trace:
            return
        if trace.stamp is not None:  # it was tried under another configuration before
            self._of_writes.pop((trace.key, trace.stamp), None)
        trace.stamp = stamp
        self._of_writes[trace.key, stamp] = trace

    @property
    def has_writes(self) -> bool:
        return bool(self._of_writes)

    def of_write(self, key: bytes, stamp: Version) -> RequestTrace | None:
        return self._of_writes.get((key, stamp))

    def find(self, trace_id: str) -> RequestTrace | None:
        return self._kept.get(trace_id) or self._pinned.get(trace_id)

    def latest(self) -> list[RequestTrace]:
        """Those that are kept, the newest first."""
        return list(reversed(self._kept.values()))


current: Final[ContextVar[RequestTrace | None]] = ContextVar("trace", default=None)


def note_promised(mode: str, epoch: int) -> None:
    """The strategy of that mode says that the promise is met."""
    if (trace := current.get()) is not None:
        trace.mode, trace.epoch, trace.promised_s = mode, epoch, trace.now_s()


def trace_of(traces: Traces | None = None, write: Write | None = None) -> RequestTrace | None:
    """The trace of the request that this task serves; else that of the `write`, of which a copy is sent later."""
    trace = current.get()
    if trace is None and traces is not None and write is not None and traces.has_writes:
        trace = traces.of_write(write.key, write.record.stamp)
    return trace
