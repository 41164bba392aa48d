"""Breaking the cluster on purpose, to see what a mode's promise is worth; where the master allows it (`--break-it`).

A fault is injected into one worker at a time, by its id. What can be done to it depends on its condition
(`core/breaking.py`), which is looked up each time and never remembered: the process is asked of whoever started it
(`fleet.py`), the link of the master's network door (`net/breakable.py`). Each fault, and its end, is an event.

A cut or slow link is the master's to that worker. Workers still reach each other, as chain's relays do. A paused worker
is silent to all.
"""

from __future__ import annotations

from typing import Any, Final

from trikv.core.breaking import (
    DELAY_MOST_MS,
    LINK_KINDS,
    TOLD,
    BreakKind,
    Condition,
    LinkState,
    ProcessState,
    kinds_for,
    why_not,
)
from trikv.core.errors import Refused
from trikv.master.document import Document
from trikv.master.events import EventLog
from trikv.master.fleet import Fleet
from trikv.net.breakable import BreakableTransport

NOT_ALLOWED: Final = "this master was started without --break-it, so nothing is broken on purpose"

# The fault that is there in a state, and so has ended when the state is another.
_FAULT_OF: Final = {
    ProcessState.PAUSED: BreakKind.PAUSE,
    LinkState.CUT: BreakKind.CUT,
    LinkState.SLOW: BreakKind.SLOW,
}
_ENDS: Final = (BreakKind.RESUME, BreakKind.START, BreakKind.MEND)


class Breaking:
    """One master's way of breaking things."""

    def __init__(self, document: Document, events: EventLog) -> None:
        self.links: BreakableTransport | None = None  # where faults are allowed
        self.fleet: Fleet | None = None  # where this master starts workers
        self._killed: set[str] = set()  # workers that were killed on purpose, and not started since
        self._document = document
        self._events = events

    def condition_of(self, worker: str) -> Condition:
        process, pid = (ProcessState.FOREIGN, None) if self.fleet is None else self.fleet.process_of(worker)
        entry = self._document.cluster.workers.get(worker)
        if entry is None or self.links is None:
            return Condition(process, pid)
        link, delay_s = self.links.look(entry.address)
        return Condition(process, pid, link, round(delay_s * 1000, 3))

    def describe(self) -> dict[str, Any]:
        """What can be broken, and what is."""
        return {
            "allowed": self.links is not None,
            "why": "" if self.links is not None else NOT_ALLOWED,
            "kinds": [kind.value for kind in BreakKind],
            "delay_most_ms": DELAY_MOST_MS,
            "workers": [self._describe(worker) for worker in sorted(self._document.cluster.workers)],
        }

    async def inject(self, kind: BreakKind, worker: str, delay_ms: float = 0.0) -> dict[str, Any]:
        """Do that to the worker. Answers its condition.

        Raises:
          Refused: faults are not allowed, or the worker is not in a condition for it.
        """
        if self.links is None:
            raise Refused("no_faults", NOT_ALLOWED)
        before = self.condition_of(worker)
        if reason := why_not(kind, worker, before):
            raise Refused("conflict", reason)
        address = self._document.cluster.workers[worker].address
        now = worker  # its id, which a new start of a worker without a disk may change
        match kind:
            case BreakKind.CUT:
                self.links.cut(address)
            case BreakKind.SLOW:
                self.links.slow(address, delay_ms / 1000)
            case BreakKind.MEND:
                self.links.mend(address)
            case _:
                assert self.fleet is not None, worker
                now = await self.fleet.do(kind, worker)
        self._tell(kind, worker, before, delay_ms)
        return self._describe(now)

    def _tell(self, kind: BreakKind, worker: str, before: Condition, delay_ms: float) -> None:
        state = before.link if any(kind in kinds for kinds in LINK_KINDS.values()) else before.process
        ended = _FAULT_OF.get(state)
        if kind is BreakKind.KILL:
            self._killed.add(worker)
        elif kind is BreakKind.START and worker in self._killed:
            self._killed.discard(worker)
            ended = BreakKind.KILL
        why = TOLD[kind].format(delay_ms=delay_ms)
        if ended is not None:
            self._events.note("fault_ended", worker=worker, fault=ended.value, why=why if kind in _ENDS else "")
        if kind not in _ENDS:
            delay = {"delay_ms": delay_ms} if kind is BreakKind.SLOW else {}
            self._events.note("fault_injected", worker=worker, fault=kind.value, **delay, why=why)

    def _describe(self, worker: str) -> dict[str, Any]:
        condition = self.condition_of(worker)
        return {
            "id": worker,
            "process": condition.process.value,
            "pid": condition.pid,
            "link": condition.link.value,
            "delay_ms": condition.delay_ms,
            "can": [kind.value for kind in kinds_for(condition)] if self.links is not None else [],
        }
