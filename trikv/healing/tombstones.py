"""Forgetting tombstones: once every replica knows that a key was deleted, nobody has to remember it.

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
from trikv.coordinator.partition import Slot
from trikv.coordinator.replicas import NotEnough, Round, Standing, Target
from trikv.coordinator.scan import list_members
from trikv.core.calls import Op
from trikv.core.errors import Refused
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
      on_stale: hears when a member has promised a newer epoch of a slot's partition.
      min_age_s: how long a partition must have been known to have tombstones before it is swept.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        renew: Callable[[Sequence[int]], Awaitable[list[int]]],
        on_stale: Callable[[Slot, int], None],
        *,
        min_age_s: float = MIN_AGE_S,
    ) -> None:
        self.tombstones = 0  # rows of all partitions, as of the last look
        self.forgotten = 0  # keys, since this master started
        self._coordinator = coordinator
        self._renew = renew
        self._on_stale = on_stale
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

    async def _look(self) -> list[Slot]:
        """The partitions that have had tombstones for long enough, and all members up."""
        slots = [slot for slot in self._coordinator.slots if _is_whole(slot)]
        summaries = await ask_digests(_plan(slots), self._on_stale, trio.current_time() + STEP_TIMEOUT_S)
        now = trio.current_time()
        due = []
        self.tombstones = 0
        for slot in slots:
            answers = summaries.get(slot.index, {})
            tombstones = max((summary.tombstones for summary in answers.values()), default=0)
            self.tombstones += tombstones
            if not tombstones:
                self._since_s.pop(slot.index, None)
                continue
            age_s = now - self._since_s.setdefault(slot.index, now)
            if age_s >= self._min_age_s and len(answers) == len(slot.targets):
                due.append(slot)
        return due

    async def _sweep(self, due: Sequence[Slot]) -> None:
        """Renew these partitions, and forget what may be forgotten in them.

        Raises:
          Refused: they could not be renewed, or a member did not list them.
        """
        indexes = [slot.index for slot in due if self._coordinator.slots[slot.index] is slot and _is_whole(slot)]
        slots = {}
        for index in await self._renew(indexes):
            slot = self._coordinator.slots[index]
            if slot.untouched and _is_whole(slot):
                slot.sent_keys = set()
                slots[index] = slot
            self._since_s.pop(index, None)
        try:
            if slots:
                await trio.sleep(GRACE_S)
                await self._forget_all(slots)
        finally:
            for slot in slots.values():
                slot.sent_keys = None

    async def _forget_all(self, slots: dict[int, Slot]) -> None:
        after: bytes | None = None
        limiter = trio.Semaphore(KEYS_TOGETHER)
        while True:
            listing = await list_members(
                _plan(list(slots.values())), self._on_stale, prefix=b"", after=after, limit=LIST_ROWS,
                with_values=False, deadline_s=trio.current_time() + STEP_TIMEOUT_S,
            )  # fmt: skip
            async with trio.open_nursery() as nursery:
                for key, (partition, held) in listing.rows.items():
                    version = find_forgettable(slots[partition], held)
                    if version is not None and (listing.bound is None or key <= listing.bound):
                        await limiter.acquire()
                        nursery.start_soon(self._forget, slots[partition], key, version, limiter)
            if listing.bound is None:
                return
            after = listing.bound

    async def _forget(self, slot: Slot, key: bytes, version: Version, limiter: trio.Semaphore) -> None:
        try:
            with trio.move_on_after(STEP_TIMEOUT_S):
                async with slot.locks.exclusive(key):
                    await self._forget_key(slot, key, version)
        except NotEnough as error:
            _log.info("a tombstone of partition %d is not forgotten everywhere: %s", slot.index, error)
        finally:
            limiter.release()

    async def _forget_key(self, slot: Slot, key: bytes, version: Version) -> None:
        """Have all members remove it; the caller has the key's lock alone, so nothing of it is sent meanwhile."""
        if self._coordinator.slots[slot.index] is not slot or not _is_whole(slot):
            return
        if slot.sent_keys is None or key in slot.sent_keys or key in slot.pending:
            return
        targets = slot.targets
        round_ = Round(len(targets), len(targets), lambda promised: self._on_stale(slot, promised))
        deadline_s = trio.current_time() + STEP_TIMEOUT_S
        for target in targets:
            arguments = [slot.index, slot.epoch, target.member.incarnation, key, *version]
            target.call(Op.FORGET, arguments, deadline_s, round_.expect(target), 64 + len(key))
        while not await round_.wait():
            pass
        self.forgotten += 1


def find_forgettable(slot: Slot, held: dict[str, Record]) -> Version | None:
    """The version of the tombstone that all members hold, of an older epoch than this one; None if it is not so.

    `held`: what those that have listed the key in this epoch hold of it, by worker.
    """
    versions = {record.version if record.is_tombstone else None for record in held.values()}
    if len(held) < len(slot.targets) or len(versions) > 1:
        return None
    [version] = versions
    return version if version is not None and version.epoch < slot.epoch else None


def _is_whole(slot: Slot) -> bool:
    """Settled, with all its members up?"""
    up = all(target.standing is Standing.UP for target in slot.targets)
    return up and slot.partition.settled and not slot.blocked and not slot.closed


def _plan(slots: Sequence[Slot]) -> dict[Target, list[Slot]]:
    plan: dict[Target, list[Slot]] = {}
    for slot in slots:
        for target in slot.targets:
            plan.setdefault(target, []).append(slot)
    return plan
