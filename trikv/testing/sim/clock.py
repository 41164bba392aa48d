"""Virtual time, and a repeatable scheduler: the base of a simulated world.

Nothing here waits. When no task can run, Trio asks the clock how long it may sleep. This clock then moves to the next
deadline of Trio's or the next event of the world, lets the event happen, and answers "not at all". So a message that
arrives costs a heap entry and a call, not a task; a world made of tasks took twice as long. The clock moves by whole
ticks of two milliseconds, and what falls into one tick happens together. That saves Trio a third of its rounds. The
order of the tasks that it wakes is still drawn.

The same seed gives the same run, bit for bit, in any process. Four things inside Trio stand in the way, and only
`run_repeatably` knows of them. Tests say what broke if a release of Trio drops a name.

    the order in which tasks that can all run are run     Trio's own Hypothesis plugin sets the same two names
    the dice that shuffle it
    the order in which tasks of one scope are cancelled   Trio keeps them in sets, ordered by memory address; here these
                                                          sets keep the order of entry
    the order in which equal deadlines expire             Trio compares the addresses of the scopes; here a counter

The order of cancellation matters although all these tasks then wake in one round. A task that is cancelled while it
waits for a lock leaves the queue at once. The lock goes to the next task in the queue, unless that task was cancelled
earlier.

A fifth private name only saves time.

Left out: threads and sockets. Time would jump past what happens there.
"""

from __future__ import annotations

import gc
import heapq
import itertools
import math
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import trio

T = TypeVar("T")


_ASKS_EVERY: Final = 64  # rounds of Trio's
TICKS_PER_S: Final = 512  # a power of two, so every instant is an exact float


class SimClock(trio.abc.Clock):
    """Begins at 0. `at` and `after` enter an event. Events of one instant happen in the order of their entry."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._entries = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def at(self, time_s: float, event: Callable[[], None]) -> None:
        """Make `event` happen at the first tick that is not before `time_s`.

        It runs between tasks, which it may wake, cancel and start. It must not raise.
        """
        self._entries += 1
        heapq.heappush(self._events, (_next_tick(time_s), self._entries, event))

    def after(self, delay_s: float, event: Callable[[], None]) -> None:
        self.at(self.now_s + delay_s, event)

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self.now_s

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Trio calls this only when no task can run, so time may pass."""
        events = self._events
        if not events or events[0][0] > deadline:  # an event in the deadline's own tick happens one round later
            if deadline == float("inf"):
                return deadline  # the run is over, or hangs for ever; its caller finds out
            self.now_s = max(self.now_s, _next_tick(deadline))
            return 0.0
        self.now_s = max(self.now_s, events[0][0])
        while events and events[0][0] <= self.now_s:
            heapq.heappop(events)[2]()
        return 0.0


def _next_tick(time_s: float) -> float:
    return math.ceil(time_s * TICKS_PER_S) / TICKS_PER_S


async def sleep(delay_s: float) -> None:
    """`trio.sleep` for the world's own waits, of which there are hundreds in a run.

    An event of the clock wakes the sleeper. Trio's way, a scope that expires and an exception that unwinds from it,
    costs four times as much.
    """
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, SimClock), clock
    task = trio.lowlevel.current_task()
    cancelled = False

    def wake() -> None:
        if not cancelled:
            trio.lowlevel.reschedule(task)

    def abort(raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
        nonlocal cancelled
        cancelled = True
        return trio.lowlevel.Abort.SUCCEEDED

    clock.after(delay_s, wake)
    await trio.lowlevel.wait_task_rescheduled(abort)


class Stopped(trio.abc.Instrument):
    """Tasks that do not run until `resume`, as those of a process that gets SIGSTOP, and then SIGCONT.

    They are all tasks in a nursery of `scope`, or below one. What wakes them meanwhile (messages, timers, cancellation)
    is noted, and they run when all of them go on, in an order that is drawn. So a timer is late, and what was waiting
    to be sent before the stop may be sent before anything new is heard.

    Both must be called by an event of the clock: then no task is in the middle of a step.
    """

    def __init__(self, scope: trio.CancelScope) -> None:
        self._scope = scope
        self._woken: list[trio.lowlevel.Task] = []
        self._is_inside: dict[trio.lowlevel.Task, bool] = {}
        trio.lowlevel.add_instrument(self)

    def resume(self) -> None:
        trio.lowlevel.remove_instrument(self)
        _runner().runq.extend(self._woken)

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        """Trio's call after it has put a task at the end of its queue."""
        inside = self._is_inside.get(task)
        if inside is None:
            inside = self._is_inside[task] = self._holds(task)
        if inside:
            last = _runner().runq.pop()
            assert last is task
            self._woken.append(task)

    def _holds(self, task: trio.lowlevel.Task) -> bool:
        status: Any = task._cancel_status
        while status is not None:
            if status._scope is self._scope:
                return True
            status = status._parent
        return False


def _runner() -> Any:
    return trio._core._run.GLOBAL_RUN_CONTEXT.runner


def run_repeatably(main: Callable[[], Awaitable[T]], clock: SimClock, seed: int) -> T:
    """`trio.run` with an order of tasks that depends on `seed` alone.

    Raises:
      RuntimeError: this release of Trio does not offer that any more.
    """
    scheduler: Any = trio._core._run
    names = ("_ALLOW_DETERMINISTIC_SCHEDULING", "_r", "CancelStatus")
    if missing := [name for name in names if not hasattr(scheduler, name)]:
        raise RuntimeError(
            f"Trio {trio.__version__} has no repeatable scheduling under the names that trikv knows "
            f"({', '.join(missing)} in trio._core._run): a seed would give another run each time. "
            "Look for what Trio's Hypothesis plugin sets now, and in which order Trio cancels tasks, "
            "and set both in run_repeatably."
        )
    entries = itertools.count()
    ours = {
        "_ALLOW_DETERMINISTIC_SCHEDULING": True,
        "_r": random.Random(seed),
        "CancelStatus": _in_order_of_entry(scheduler.CancelStatus),
        "id": lambda scope: next(entries),  # this module of Trio's compares scopes of one deadline by it
    }
    if hasattr(scheduler, "TheIOManager"):
        ours["TheIOManager"] = _seldom_asking(scheduler.TheIOManager)
    theirs = {name: value for name, value in vars(scheduler).items() if name in ours}
    vars(scheduler).update(ours)
    collecting = gc.isenabled()
    gc.disable()  # it would run finalizers at arbitrary moments; a run leaves only a few megabytes
    try:
        return trio.run(main, clock=clock)
    finally:
        if collecting:
            gc.enable()
        del scheduler.id
        vars(scheduler).update(theirs)


class _OrderedSet(dict[Any, None]):
    """As much of a set as Trio's cancel statuses use, in the order of entry and at the speed of a dictionary."""

    __slots__ = ()
    add = dict.setdefault
    remove = dict.__delitem__


def _in_order_of_entry(cancel_status: Any) -> Any:
    """A cancel status that cancels its tasks, and the scopes inside it, in the order of their entry."""

    class InOrderOfEntry(cancel_status):  # type: ignore[misc]
        __slots__ = ()

        def __attrs_post_init__(self) -> None:
            self._tasks = _OrderedSet()  # type: ignore[misc]
            self._children = _OrderedSet()  # type: ignore[misc]
            super().__attrs_post_init__()

    return InOrderOfEntry


def _seldom_asking(io_manager: Any) -> Any:
    """An I/O manager that asks the kernel seldom.

    Trio asks it for news of sockets in each of its rounds, six thousand times in a run. There are no sockets here, so
    that is 2 % of the time for nothing. It still asks now and then, since an interrupt from the keyboard comes that
    way.
    """

    class SeldomAsking(io_manager):  # type: ignore[misc]
        rounds = 0

        def get_events(self, timeout: float) -> Any:
            self.rounds += 1
            return super().get_events(timeout) if timeout or not self.rounds % _ASKS_EVERY else None

        def process_events(self, events: Any) -> None:
            if events is not None:
                super().process_events(events)

    return SeldomAsking
