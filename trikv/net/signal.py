"""A signal tells waiting tasks that something has changed.

    changed.notify()                        wakes every task that waits now
    await changed.wait(patience_s)          returns at the next `notify`, or when patience runs out
    await wait_any((first, second), 0.5)    returns when one of them is given

A signal carries no news: a task reads the state, acts on it, and waits. It must not await between reading the state and
waiting, else it may miss a change. A task that must await there compares `count` before and after.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import trio


class Signal:
    """`count` is how often it was given."""

    __slots__ = ("_waiting", "count")

    def __init__(self) -> None:
        self.count = 0
        self._waiting: dict[trio.Event, None] = {}  # in the order in which they began to wait

    def notify(self) -> None:
        self.count += 1
        waiting, self._waiting = self._waiting, {}
        for event in waiting:
            event.set()

    async def wait(self, patience_s: float = math.inf) -> None:
        """Wait for the next `notify`, or until patience (in seconds) runs out."""
        await wait_any((self,), patience_s)


async def wait_any(signals: Sequence[Signal], patience_s: float = math.inf) -> None:
    """Wait until one of the signals is given, or until patience (in seconds) runs out."""
    given = trio.Event()
    for signal in signals:
        signal._waiting[given] = None
    try:
        if patience_s == math.inf:
            await given.wait()
        else:
            with trio.move_on_after(patience_s):
                await given.wait()
    finally:
        for signal in signals:
            signal._waiting.pop(given, None)
