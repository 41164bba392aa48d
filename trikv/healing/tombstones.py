"""Forgetting tombstones: once every replica knows that a key was deleted, none has to remember it.

A tombstone must outlive every older record of its key, wherever that may be: on a replica that is away, in a message
that is late. It may go when nothing older is left that could come back:

1. The partition gets a new generation with the same members, durably. From then on the keys of which anything is sent
   are remembered.
2. All its members, every one, list it in that epoch. Now no message of an older epoch can do anything there.
3. A tombstone that all of them hold, in exactly one version, of an older epoch, and of whose key nothing was sent in
   this one, is all that there is of that key. Under the key's exclusive lock each member is told to remove it, if it is
   still exactly that version.

If only some members do (the rest did not hear of it), the others still hold the tombstone, and none of them anything
older: anti-entropy finds the difference, and makes it a tombstone everywhere again.

A worker that was evicted may hold what was deleted meanwhile. It comes back as a newcomer and discards what it has;
under AP modes, where it would first offer it, the document says since which generation tombstones have been forgotten
(`Partition.forgot`, with the new generation in one write), and nothing older is taken.

What it costs: a new generation for each partition with tombstones every `min_age_s` at most, its keys listed once
from each member, and one small call to each member for each tombstone. `TOGETHER` partitions at a time, `KEYS_TOGETHER`
keys of them. An operation that is under way while its partition is renewed goes on under the old epoch, for which it
is given `GRACE_S` before the members hear of the new one from here.

Left out: partitions of which a member is away. Their tombstones wait for it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import trio

from trikv.coordinator.coordinator import Coordinator
from trikv.coordinator.listing import Pages, group_by_target
from trikv.coordinator.partition import PartitionState
from trikv.coordinator.replicas import NotEnough, Round
from trikv.core.calls import Op
from trikv.core.errors import Refused
from trikv.core.quorums import Availability
from trikv.core.record import Record, Version
from trikv.healing.digests import ask_digests

MIN_AGE_S: Final = 3600.0
TICK_S: Final = 60.0
GRACE_S: Final = 0.2
TOGETHER: Final = 16
LIST_ROWS: Final = 512
KEYS_TOGETHER: Final = 16
STEP_TIMEOUT_S: Final = 5.0  # for one call to each member, or one forgotten key

_log = logging.getLogger(__name__)


class Forgetting:
    """Forgets the tombstones of one coordinator's partitions.

    Args:
      renew: gives settled partitions a new generation with the same members, with that noted as the one from which
        tombstones are forgotten; answers those with which it succeeded.
      min_age_s: how long a partition must have been known to have tombstones before it is swept.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        renew: Callable[[Sequence[int]], Awaitable[list[int]]],
        *,
        min_age_s: float = MIN_AGE_S,
    ) -> None:
        self.tombstones = 0  # rows of all partitions, as of the last look
        self.forgotten = 0  # keys, since this master started
        self._coordinator = coordinator
        self._renew = renew
        self._min_age_s = min_age_s
        self._since_s: dict[int, float] = {}  # by partition: since when it is known to have tombstones

    async def run(self) -> None:
        """Until cancelled. What cannot be forgotten now is tried again."""
        while True:
            await trio.sleep(min(TICK_S, self._min_age_s))
            try:
                due = await self._look()
                for first in range(0, len(due), TOGETHER):
                    await self._sweep(due[first : first + TOGETHER])
            except (Refused, NotEnough) as error:
                _log.info("tombstones cannot be forgotten yet: %s", error)

    def progress(self) -> dict[str, Any]:
        return {"tombstones": self.tombstones, "forgotten": self.forgotten}

    async def _look(self) -> list[PartitionState]:
        """The partitions that have had tombstones for long enough, and all members up."""
        states = [state for state in self._coordinator.partitions if _is_whole(state)]
        plan = group_by_target({state: state.targets for state in states})
        summaries = await ask_digests(plan, trio.current_time() + STEP_TIMEOUT_S)
        now = trio.current_time()
        due = []
        self.tombstones = 0
        for state in states:
            answers = summaries.get(state.index, {})
            tombstones = max((summary.tombstones for summary in answers.values()), default=0)
            self.tombstones += tombstones
            if not tombstones:
                self._since_s.pop(state.index, None)
                continue
            age_s = now - self._since_s.setdefault(state.index, now)
            if age_s >= self._min_age_s and len(answers) == len(state.targets):
                due.append(state)
        return due

    async def _sweep(self, due: Sequence[PartitionState]) -> None:
        """Renew these partitions, and forget what may be forgotten in them.

        Raises:
          Refused: they could not be renewed, or a member did not list them.
        """
        present = self._coordinator.partitions
        indexes = [state.index for state in due if present[state.index] is state and _is_whole(state)]
        states = {}
        for index in await self._renew(indexes):
            state = self._coordinator.partitions[index]
            if _is_whole(state) and state.remember_sent():
                states[index] = state
            self._since_s.pop(index, None)
        try:
            if states:
                await trio.sleep(GRACE_S)
                await self._forget_all(states)
        finally:
            for state in states.values():
                state.stop_remembering()

    async def _forget_all(self, states: dict[int, PartitionState]) -> None:
        limiter = trio.Semaphore(KEYS_TOGETHER)
        plan = group_by_target({state: state.targets for state in states.values()})
        async for rows in Pages(plan, rows=LIST_ROWS, timeout_s=STEP_TIMEOUT_S):
            async with trio.open_nursery() as nursery:
                for key, (partition, held) in rows.items():
                    version = find_forgettable(states[partition], held)
                    if version is not None:
                        await limiter.acquire()
                        nursery.start_soon(self._forget, states[partition], key, version, limiter)

    async def _forget(self, state: PartitionState, key: bytes, version: Version, limiter: trio.Semaphore) -> None:
        try:
            with trio.move_on_after(STEP_TIMEOUT_S):
                with await state.locks.exclusive(key):
                    await self._forget_key(state, key, version)
        except NotEnough as error:
            _log.info("a tombstone of partition %d is not forgotten everywhere: %s", state.index, error)
        finally:
            limiter.release()

    async def _forget_key(self, state: PartitionState, key: bytes, version: Version) -> None:
        """Have all members remove it; the caller has the key's lock alone, so nothing of it is sent meanwhile."""
        if self._coordinator.partitions[state.index] is not state or not _is_whole(state):
            return
        if state.was_sent(key) or key in state.pending:
            return
        targets = state.targets
        round_ = Round(len(targets), len(targets), state.report_stale)
        deadline_s = trio.current_time() + STEP_TIMEOUT_S
        for target in targets:
            arguments = [state.index, state.epoch, target.member.incarnation, key, *version]
            target.call(Op.FORGET, arguments, deadline_s, round_.expect(target), 64 + len(key))
        while not await round_.wait():
            pass
        self.forgotten += 1


def find_forgettable(state: PartitionState, held: dict[str, Record]) -> Version | None:
    """The version of the tombstone that all members hold, of an older epoch than this one; None if it is not so.

    `held`: what those that have listed the key in this epoch hold of it, by worker.
    """
    versions = {record.version if record.is_tombstone else None for record in held.values()}
    if len(held) < len(state.targets) or len(versions) > 1:
        return None
    [version] = versions
    return version if version is not None and version.epoch < state.epoch else None


def _is_whole(state: PartitionState) -> bool:
    """Settled, with all its members up?"""
    up = all(target.availability is Availability.UP for target in state.targets)
    return up and state.partition.settled and state.is_served
