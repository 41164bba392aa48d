"""Deadlines of operations that one task carries out one after another, without a cancel scope for each.

    deadlines = Deadlines()                     one for a front; nursery.start_soon(deadlines.run)
    limit = Limit(deadlines)                    one for a task
    with limit:                                 the task's operations end at their deadlines
        await coordinator.put(...)
    if limit.failure: ...                       an operation was ended, and with it the block: what its client is told

A cancel scope with a deadline costs six microseconds, a fifth of what the coordinator does for a put. A task that
serves one client opens a `Limit` once instead. An operation of that task notes its deadline there, at the price of one
comparison. One task looks at all limits when the earliest deadline has passed that it saw the last time, and cancels
the scope of a limit whose operation is late. So a strategy may await whatever it likes: it is cancelled as ever. A
scope that was cancelled is of no further use, so the block ends, and the task opens the limit anew.

A limit also has one alarm: a read that asks one more replica when the first are late (`replicas.py`) would open a scope
for that, and nearly always close it in vain.

An operation ends up to `LOOK_S` after its deadline, and an alarm rings as late. An operation of a task without a limit
has a scope of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Final

import trio

from trikv.core.errors import TrikvError

LOOK_S: Final = 0.005  # between two looks, at least


class Deadlines:
    """The limits of one front. `run` looks after them."""

    def __init__(self) -> None:
        self.limits: set[Limit] = set()
        self.next_look_s = math.inf
        self._not_before_s = -math.inf
        self._sooner = trio.Event()

    async def run(self) -> None:
        """End what is late, until cancelled. Nothing ends what is late after that, so this outlives the tasks."""
        while True:
            with trio.move_on_at(self.next_look_s):
                await self._sooner.wait()
                self._sooner = trio.Event()
                continue
            now = trio.current_time()
            earliest_s = math.inf
            for limit in self.limits:
                if limit.deadline_s <= now:
                    limit.expire()
                    continue
                if limit.alarm_s <= now:
                    limit.ring()
                earliest_s = min(earliest_s, limit.deadline_s, limit.alarm_s)
            self._not_before_s = now + LOOK_S
            self.next_look_s = max(earliest_s, self._not_before_s)

    def look_sooner(self, at_s: float) -> None:
        """Look at that time already, or as soon after it as may be."""
        at_s = max(at_s, self._not_before_s)
        if at_s < self.next_look_s:
            self.next_look_s = at_s
            self._sooner.set()


class Limit:
    """The limit of one task's operations. `failure`: how the last one ended, if it was late."""

    __slots__ = ("_alarm", "_deadlines", "_token", "alarm_s", "deadline_s", "failure", "scope")

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._alarm: Callable[[], None] | None = None
        self.alarm_s = math.inf
        self.deadline_s = math.inf  # of the operation under way
        self.failure: TrikvError | None = None
        self.scope = trio.CancelScope()

    @property
    def is_free(self) -> bool:
        """May an operation begin within it? Not while another one is under way, or after one that was ended."""
        return self.deadline_s == math.inf and not self.scope.cancel_called

    @property
    def is_expired(self) -> bool:
        return self.scope.cancel_called

    def begin(self, deadline_s: float) -> None:
        """An operation begins."""
        self.deadline_s = deadline_s
        if deadline_s < self._deadlines.next_look_s:
            self._deadlines.look_sooner(deadline_s)

    def end(self) -> None:
        """It has ended."""
        self.deadline_s = math.inf

    def expire(self) -> None:
        """The operation under way is late."""
        self.scope.cancel()

    def set_alarm(self, at_s: float, alarm: Callable[[], None]) -> bool:
        """Have `alarm` called at that time, once; False if there is one already, or nobody looks after this limit."""
        if self._alarm is not None or self not in self._deadlines.limits:
            return False
        self._alarm, self.alarm_s = alarm, at_s
        if at_s < self._deadlines.next_look_s:
            self._deadlines.look_sooner(at_s)
        return True

    def clear_alarm(self, alarm: Callable[[], None]) -> None:
        """That one need not be called any more."""
        if self._alarm == alarm:
            self._alarm, self.alarm_s = None, math.inf

    def ring(self) -> None:
        """Call what is to be called, if anything is."""
        if (alarm := self._alarm) is not None:
            self._alarm, self.alarm_s = None, math.inf
            alarm()

    def __enter__(self) -> None:
        self.failure = None
        self.scope = trio.CancelScope()
        self._deadlines.limits.add(self)
        self._token = limit_of_task.set(self)
        self.scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        try:
            return self.scope.__exit__(kind, error, trace)
        finally:
            limit_of_task.reset(self._token)
            self._deadlines.limits.discard(self)
            self.ring()  # nobody would later


class SharedLimit(Limit):
    """The limit of one of several coroutines that have one deadline. The scope round them all ends them, so nobody
    looks after this one, and it has no alarm."""

    __slots__ = ()

    def __init__(self, scope: trio.CancelScope) -> None:
        self._alarm, self.alarm_s = None, math.inf
        self.deadline_s = math.inf
        self.failure = None
        self.scope = scope

    def begin(self, deadline_s: float) -> None:
        self.deadline_s = deadline_s

    def set_alarm(self, at_s: float, alarm: Callable[[], None]) -> bool:
        return False


limit_of_task: Final[ContextVar[Limit | None]] = ContextVar("limit_of_task", default=None)
