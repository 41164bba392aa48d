"""A shared/exclusive lock for each key in use.

Writes of a key share, since their versions order them; compare-and-set and repair exclude, since they decide on what
they read. First come, first served: a stream of writes does not starve a repair. A key that is neither held nor waited
for costs nothing; the lock of an uncontended key is one dictionary entry.
"""

from __future__ import annotations

from collections import deque

import trio


class _Lock:
    __slots__ = ("exclusive", "holders", "queue")

    def __init__(self) -> None:
        self.holders = 0
        self.exclusive = False
        self.queue: deque[tuple[trio.lowlevel.Task, bool]] = deque()

    def admits(self, exclusive: bool) -> bool:
        return not self.holders or not (exclusive or self.exclusive)


class _Holding:
    """For `async with`. A generator in its place would cost more than the lock itself."""

    __slots__ = ("_exclusive", "_key", "_locks")

    def __init__(self, locks: KeyLocks, key: bytes, *, exclusive: bool) -> None:
        self._locks = locks
        self._key = key
        self._exclusive = exclusive

    async def __aenter__(self) -> None:
        await self._locks._acquire(self._key, exclusive=self._exclusive)

    async def __aexit__(self, *_: object) -> None:
        self._locks._release(self._key)


class KeyLocks:
    def __init__(self) -> None:
        self._locks: dict[bytes, _Lock] = {}

    def __len__(self) -> int:
        """How many keys are held or waited for."""
        return len(self._locks)

    def held(self, key: bytes) -> bool:
        """Is it held, or waited for?"""
        return key in self._locks

    def shared(self, key: bytes) -> _Holding:
        """To be held by `async with`."""
        return _Holding(self, key, exclusive=False)

    def exclusive(self, key: bytes) -> _Holding:
        """To be held by `async with`, alone."""
        return _Holding(self, key, exclusive=True)

    async def _acquire(self, key: bytes, *, exclusive: bool) -> None:
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = _Lock()
        if not lock.queue and lock.admits(exclusive):
            lock.holders += 1
            lock.exclusive = exclusive
            return
        entry = (trio.lowlevel.current_task(), exclusive)
        lock.queue.append(entry)

        def abort(raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            lock.queue.remove(entry)
            # The next in the queue may be able to go now.
            self._admit(key, lock)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def _release(self, key: bytes) -> None:
        lock = self._locks[key]
        lock.holders -= 1
        self._admit(key, lock)

    def _admit(self, key: bytes, lock: _Lock) -> None:
        """Hand the lock to those at the front of the queue that may have it; it is theirs before they run."""
        while lock.queue and lock.admits(lock.queue[0][1]):
            task, exclusive = lock.queue.popleft()
            lock.holders += 1
            lock.exclusive = exclusive
            trio.lowlevel.reschedule(task)
        if not lock.holders and not lock.queue:
            del self._locks[key]
