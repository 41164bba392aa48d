"""Many operations of one request, carried out without a task for each.

    await carry_out((partial(put, key) for key in keys), at_once=64)

does what a nursery does that starts each of them: it returns when all have ended, it cancels all if one raises, and
each may await what it likes. The difference is the price. A task of Trio's costs seven microseconds from its start over
one wait to its end; a coroutine that is stepped costs one.

How it works. A coroutine is stepped by one task, the *host*: the host sends into it, and gets back what it awaits. An
operation of ours mostly awaits one thing, that its `Round` (`replicas.py`) is decided. There it *parks*: what the host
gets back is `PARKED`, and the host goes on to the next coroutine. The answer that decides the round makes the coroutine
ready again, and wakes the host once for all that are ready by then.

Anything else that is awaited is meant for Trio, and Trio takes it for a wish of the host's. So the host is no host any
more: it passes this wish on and all that follow, until the coroutine has ended. It has become the coroutine's own task.
A new task is the host of the others. Therefore a strategy may sleep, open a nursery or wait for an event.

A coroutine also goes on in a task of its own
- when it waits for a round within a cancel scope or a nursery that it opened itself. These belong to the task that
  opened them, so no other coroutine may be stepped there meanwhile;
- when the host is cancelled: each coroutine that is parked goes on in a task of the same nursery. So each of them is
  cancelled at its own `await`, and may clean up as ever.

What it leaves out: a coroutine cannot see all this, except by Trio's name for the present task. What goes by that name
without awaiting anything (`trio.Lock.acquire_nowait`, `trio.lowlevel.current_task`) and is kept while a round is waited
for would take two coroutines for one. Each coroutine has its own context variables.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator
from contextvars import ContextVar, copy_context
from enum import Enum
from heapq import heappop, heappush
from typing import Any, Final, Literal

import trio

Work = Callable[[], Coroutine[Any, Any, None]]


class Told(Enum):
    """What the host is told by a step, unless it is a wish for Trio."""

    PARKED = "parked"
    ENDED = "ended"


PARKED: Final[Literal[Told.PARKED]] = Told.PARKED
ENDED: Final[Literal[Told.ENDED]] = Told.ENDED


async def carry_out(works: Iterable[Work], *, at_once: int) -> None:
    """Carry out all of them, at most `at_once` at a time. Each is begun when its turn comes."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_Steps(nursery, iter(works), at_once).host)


class Stepped:
    """One coroutine, from its first step to its end."""

    __slots__ = ("_context", "_coroutine", "_is_awake", "_sleeper", "_steps", "parks", "wish")

    def __init__(self, steps: _Steps, coroutine: Coroutine[Any, Any, None]) -> None:
        self._steps = steps
        self._coroutine = coroutine
        self._context = copy_context()
        self._context.run(_stepped.set, self)
        self._is_awake = True
        self._sleeper: trio.lowlevel.Task | None = None  # its own task, while that waits for the round in our place
        self.parks = 0  # how often it has parked
        self.wish: Any = None

    def step(self) -> bool:
        """Go on to the next wait. False: it is neither parked nor ended, but has a wish for Trio."""
        try:
            self.wish = self._context.run(self._coroutine.send, None)
        except StopIteration:
            self.wish = ENDED
        except BaseException:
            self.wish = ENDED
            raise
        return self.wish is PARKED or self.wish is ENDED

    @types.coroutine
    def park(self, until_s: float | None) -> Generator[Told, None, None]:
        """Wait for `wake`, at most until that time."""
        self._is_awake = False
        self.parks += 1
        if until_s is not None:
            self._steps.wake_at(until_s, self)
        yield PARKED

    def wake(self) -> None:
        """What it waits for has come. After that, and after the end of its wait, this does nothing."""
        if not self._is_awake:
            self._is_awake = True
            if self._sleeper is None:
                self._steps.is_ready(self)
            else:
                trio.lowlevel.reschedule(self._sleeper)

    async def go_on(self) -> None:
        """Go on as the present task, to the end."""
        if self.wish is PARKED:
            await self._wait_as_task()
        await self._pass_on()

    async def _wait_as_task(self) -> None:
        def stop(raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            self._is_awake = True
            return trio.lowlevel.Abort.SUCCEEDED

        try:
            if not self._is_awake:
                self._sleeper = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(stop)
        except BaseException as error:  # noqa: BLE001 it is the coroutine's
            self._resume(self._coroutine.throw, error)
        else:
            self._resume(self._coroutine.send, None)

    @types.coroutine
    def _pass_on(self) -> Generator[Any, Any, None]:
        while self.wish is not ENDED:
            try:
                fulfilled = yield self.wish
            except BaseException as error:  # noqa: BLE001 it is the coroutine's
                self._resume(self._coroutine.throw, error)
            else:
                self._resume(self._coroutine.send, fulfilled)

    def _resume(self, resume: Callable[[Any], Any], what: Any) -> None:
        try:
            self.wish = self._context.run(resume, what)
        except StopIteration:
            self.wish = ENDED


class _Steps:
    """One `carry_out` under way."""

    def __init__(self, nursery: trio.Nursery, works: Iterator[Work], at_once: int) -> None:
        self._nursery = nursery
        self._works = works
        self._at_once = at_once
        self._stepped: set[Stepped] = set()  # by the host
        self._own_tasks = 0  # of others that are under way
        self._ready: deque[Stepped] = deque()
        self._alarms: list[tuple[float, int, Stepped, int]] = []  # time, serial number, whom, at which park
        self._alarms_set = 0
        self._host: trio.lowlevel.Task | None = None
        self._status: object = None  # the host's scopes, as Trio keeps them
        self._is_idle = False

    async def host(self) -> None:
        """Step all of them, until the last has ended, or this task is one coroutine's own."""
        stepped = await self._step_all()
        if stepped is not None:
            self._nursery.start_soon(self.host)
            await self._go_on(stepped)

    async def _step_all(self) -> Stepped | None:
        """The coroutine of which this is the task from now on; None: all have ended."""
        self._host = trio.lowlevel.current_task()
        self._status = _scopes_of(self._host)
        try:
            while True:
                while stepped := self._next():
                    if not stepped.step():
                        self._set_apart(stepped)
                        return stepped
                    if stepped.wish is ENDED:
                        self._stepped.discard(stepped)
                if not (self._stepped or self._own_tasks):
                    return None
                await self._wait()
        except BaseException:
            for stepped in list(self._stepped):
                self._set_apart(stepped)
                self._nursery.start_soon(self._go_on, stepped)
            raise
        finally:
            self._host = None

    def _next(self) -> Stepped | None:
        if self._ready:
            return self._ready.popleft()
        if len(self._stepped) + self._own_tasks < self._at_once and (work := next(self._works, None)):
            stepped = Stepped(self, work())
            self._stepped.add(stepped)
            return stepped
        return None

    def _set_apart(self, stepped: Stepped) -> None:
        """It goes on in a task of its own."""
        self._stepped.discard(stepped)
        self._own_tasks += 1

    async def _go_on(self, stepped: Stepped) -> None:
        await stepped.go_on()
        self._own_tasks -= 1
        self._wake_host()  # there may be room for the next work, and this may have been the last

    async def _wait(self) -> None:
        """Until something is ready, or the next alarm."""
        while self._alarms and self._alarms[0][2].parks != self._alarms[0][3]:
            heappop(self._alarms)  # it is past that wait
        if not self._alarms:
            await self._sleep()
            return
        with trio.move_on_at(self._alarms[0][0]):
            await self._sleep()
        now = trio.current_time()
        while self._alarms and self._alarms[0][0] <= now:
            _, _, stepped, park = heappop(self._alarms)
            if stepped.parks == park:
                stepped.wake()

    async def _sleep(self) -> None:
        self._is_idle = True
        await trio.lowlevel.wait_task_rescheduled(self._stop_sleeping)

    def _stop_sleeping(self, raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
        self._is_idle = False
        return trio.lowlevel.Abort.SUCCEEDED

    def _wake_host(self) -> None:
        if self._is_idle and self._host is not None:
            self._is_idle = False
            trio.lowlevel.reschedule(self._host)

    def is_ready(self, stepped: Stepped) -> None:
        self._ready.append(stepped)
        self._wake_host()

    def wake_at(self, until_s: float, stepped: Stepped) -> None:
        self._alarms_set += 1
        heappush(self._alarms, (until_s, self._alarms_set, stepped, stepped.parks))

    def hosts(self, task: trio.lowlevel.Task) -> bool:
        """Is this task the host, within no scope but its own?"""
        return task is self._host and self._status is not None and _scopes_of(task) is self._status


def parker(task: trio.lowlevel.Task) -> Stepped | None:
    """The coroutine that is stepped by the present task and may park; None: what it awaits is this task's to await."""
    stepped = _stepped.get()
    return stepped if stepped is not None and stepped._steps.hosts(task) else None


def _scopes_of(task: trio.lowlevel.Task) -> object:
    """Trio's note of the scopes that the task is in: another object for each. It is not public. A Trio that keeps none
    gives None; then no coroutine parks, and each has a task."""
    return getattr(task, "_cancel_status", None)


_stepped: Final[ContextVar[Stepped | None]] = ContextVar("stepped", default=None)
