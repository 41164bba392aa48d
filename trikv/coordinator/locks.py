"""A shared/exclusive lock for each key in use.

    with await locks.shared(key): ...
    with await locks.exclusive(key): ...

Writes of a key share, since their versions order them; compare-and-set and repair exclude, since they decide on what
they read. First come, first served: a stream of writes does not starve a repair. A key that is neither held nor waited
for costs nothing; the lock of an uncontended key is one small object in a dictionary.
"""

from __future__ import annotations

from collections import deque

import trio


class KeyLock:
    """The lock of one key, for whoever holds it: the end of the `with` lets it go."""

    __slots__ = ("_key", "_locks", "exclusive", "holders", "queue")

    def __init__(self, locks: KeyLocks, key: bytes, *, exclusive: bool) -> None:
        self._locks = locks
        self._key = key
        self.holders = 1
        self.exclusive = exclusive
        self.queue: deque[tuple[trio.lowlevel.Task, bool]] | None = None  # while somebody waits, or has waited

    def admits(self, exclusive: bool) -> bool:
        return not self.holders or not (exclusive or self.exclusive)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.holders -= 1
        self._locks._admit(self._key, self)


class KeyLocks:
    def __init__(self) -> None:
        self._locks: dict[bytes, KeyLock] = {}

    def __len__(self) -> int:
        """How many keys are held or waited for."""
        return len(self._locks)

    def held(self, key: bytes) -> bool:
        """Is it held, or waited for?"""
        return key in self._locks

    async def shared(self, key: bytes) -> KeyLock:
        """Hold it beside others that share it."""
        return await self.hold(key, exclusive=False)

    async def exclusive(self, key: bytes) -> KeyLock:
        """Hold it alone."""
        return await self.hold(key, exclusive=True)

    async def hold(self, key: bytes, *, exclusive: bool) -> KeyLock:
        """Wait until it can be held; that is no checkpoint if it can be at once."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = KeyLock(self, key, exclusive=exclusive)
        elif not lock.queue and lock.admits(exclusive):
            lock.holders += 1
        else:
            await self._wait(key, lock, exclusive)
        return lock

    async def _wait(self, key: bytes, lock: KeyLock, exclusive: bool) -> None:
        if lock.queue is None:
            lock.queue = deque()
        queue = lock.queue
        entry = (trio.lowlevel.current_task(), exclusive)
        queue.append(entry)

        def abort(raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            queue.remove(entry)
            # The next in the queue may be able to go now.
            self._admit(key, lock)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def _admit(self, key: bytes, lock: KeyLock) -> None:
        """Hand the lock to those at the front of the queue that may have it; it is theirs before they run."""
        while lock.queue and lock.admits(lock.queue[0][1]):
            task, exclusive = lock.queue.popleft()
            lock.holders += 1
            lock.exclusive = exclusive
            trio.lowlevel.reschedule(task)
        if not lock.holders and not lock.queue:
            del self._locks[key]
