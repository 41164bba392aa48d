"""Settling: bringing all that was ever committed in a partition to its active configuration, while it is served.

A partition whose configuration has changed has a history: the configurations under which something may have been
committed that the active one does not hold yet. Reads repair key by key, as they come. This file does the same for the
keys that nobody reads, and when all are done, shortens the history to one, durably: the partition is settled.

For each partition: list what R members of every configuration hold, and of the active one so many as a write is on
(all, where that is all: a leftover on the one that reads ask must be found); the listing also fences them, so nothing
more can be committed under an older epoch. Then for every key that has no committed version of this epoch yet, under
its lock alone:

- where all members agree, but for newcomers that hold nothing, the record goes to those as it is;
- anywhere else the key is repaired like a read would: newest of R of each, written under a fresh version.

The first is by far the common case, and it is exact: it asks that the history has two configurations, that every member
of the active one was heard, and that no more of the other were silent than can be spared. Where digests agree as well,
the partition needs no listing at all.

Nobody is held up by this: reads and writes go on, and a change of the configuration meanwhile ends the work on that
partition, since its successor starts anew. What was done is not lost, it need not be done again. What is moved is
throttled to a rate in bytes. `PARTITIONS_TOGETHER` partitions are listed in one go, `KEYS_TOGETHER` keys mended.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import trio

from trikv.api import Write
from trikv.coordinator.partition import Slot
from trikv.coordinator.repair import copy_record, store_record
from trikv.coordinator.replicas import NotEnough, Standing, Target
from trikv.coordinator.scan import list_members
from trikv.core.calls import Op
from trikv.core.configuration import Member
from trikv.core.errors import Refused, Unknown
from trikv.core.record import Record, spell_epoch
from trikv.core.session import PeerError
from trikv.healing.digests import ask_digests

if TYPE_CHECKING:
    from trikv.master.master import Master

TICK_S: Final = 0.5
PARTITIONS_TOGETHER: Final = 64
KEYS_TOGETHER: Final = 32
LIST_ROWS: Final = 512
STEP_TIMEOUT_S: Final = 5.0
AGAIN_S: Final = 0.5
_OVERHEAD_BYTES: Final = 128  # what moving a key costs beside key and value

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Progress:
    """What settling has done since the master started."""

    partitions: int = 0
    keys_compared: int = 0
    keys_moved: int = 0  # copied as they are
    keys_repaired: int = 0  # written anew
    bytes_moved: int = 0


class Settling:
    """Settles one master's partitions. `rate_bytes`: the most that it moves in a second."""

    def __init__(self, master: Master, *, rate_bytes: float) -> None:
        self.progress = Progress()
        self.rate_bytes = rate_bytes
        self.could_not_ask: set[str] = set()  # members of lenient configurations that were down when it came to them
        self._master = master
        self._tried_s: dict[int, float] = {}
        self._owed_s = 0.0  # until when the rate is used up
        # When this stretch of work began, and what had been done by then.
        self._began: tuple[float, Progress] | None = None

    async def run(self) -> None:
        """Until cancelled."""
        master = self._master
        while True:
            group = self._next_group()
            if not group:
                is_done = all(slot.partition.settled for slot in master.coordinator.slots)
                if is_done and self._began is not None:
                    self._tell_end(*self._began)
                    self._began = None
                await master.coordinator.wait_change(math.inf if is_done else TICK_S)
                continue
            now = trio.current_time()
            self._began = self._began or (now, replace(self.progress))
            for slot in group:
                self._tried_s[slot.index] = now
            try:
                heard = {slot: chosen for slot in group if (chosen := choose_all(slot, master.hung)) is not None}
                done = await self._settle(heard)
            except (Refused, NotEnough, PeerError) as error:
                _log.info("%d partitions cannot be settled yet: %s", len(group), error)
                continue
            try:
                await self._conclude(done, heard)
            except Refused as error:
                _log.warning("settled partitions could not be noted: %s", error)

    def _next_group(self) -> list[Slot]:
        """Unsettled partitions that can be settled by those that are up, those first that have waited longest."""
        now = trio.current_time()
        able = [
            slot
            for slot in self._master.coordinator.slots
            if not slot.partition.settled
            and now - self._tried_s.get(slot.index, -AGAIN_S) >= AGAIN_S
            and choose_all(slot, self._master.hung) is not None
        ]
        able.sort(key=lambda slot: self._tried_s.get(slot.index, 0.0))
        return able[:PARTITIONS_TOGETHER]

    def _tell_end(self, began_s: float, before: Progress) -> None:
        done = self.progress
        self._master.events.note(
            "settled",
            partitions=done.partitions - before.partitions,
            keys_moved=done.keys_moved - before.keys_moved,
            keys_repaired=done.keys_repaired - before.keys_repaired,
            bytes_moved=done.bytes_moved - before.bytes_moved,
            duration_s=round(trio.current_time() - began_s, 3),
        )

    def seconds_left(self, partitions: int) -> float | None:
        """How long so many partitions will take, at the pace of the present stretch of work; None: nobody knows yet."""
        if not partitions:
            return 0.0
        if self._began is None or self.progress.partitions == self._began[1].partitions:
            return None
        began_s, before = self._began
        pace = (self.progress.partitions - before.partitions) / max(trio.current_time() - began_s, 1e-3)
        return round(partitions / pace, 1)

    # --- one group of partitions --------------------------------------------------------------------------------------

    async def _settle(self, heard: Mapping[Slot, Sequence[Target]]) -> list[Slot]:
        """Go through all keys of these partitions, asking those beside each; those of which every key is in place."""
        agreed, differing = await self._compare(heard)
        slots = {slot.index: slot for slot in differing}
        plan = _plan(heard, slots.values())
        failed: set[int] = set()
        after: bytes | None = None
        while slots:
            listing = await list_members(
                plan, self._master.note_stale, prefix=b"", after=after, limit=LIST_ROWS, with_values=False,
                deadline_s=trio.current_time() + STEP_TIMEOUT_S,
            )  # fmt: skip
            limiter = trio.CapacityLimiter(KEYS_TOGETHER)
            async with trio.open_nursery() as nursery:
                for key, (partition, held) in listing.rows.items():
                    if listing.bound is not None and key > listing.bound:
                        continue
                    await limiter.acquire_on_behalf_of(key)
                    slot = slots[partition]
                    nursery.start_soon(self._mend, slot, key, held, heard[slot], failed, limiter)
            if listing.bound is None:
                break
            after = listing.bound
        done = [slot for slot in slots.values() if slot.index not in failed]
        return [slot for slot in (*agreed, *done) if self._is_current(slot)]

    async def _compare(self, heard: Mapping[Slot, Sequence[Target]]) -> tuple[list[Slot], list[Slot]]:
        """The partitions of which all that are asked hold the same already, and the others.

        One of which somebody did not answer is neither: without that one it is tried again, or waits for it. So a
        member that does not answer holds up nothing that it has no part in.
        """
        deadline_s = trio.current_time() + STEP_TIMEOUT_S
        plan = _plan(heard, heard)
        summaries = await ask_digests(plan, self._master.note_stale, deadline_s)
        for target, slots in plan.items():
            if not any(target.member in summaries.get(slot.index, ()) for slot in slots):
                self._master.hung.note(target)
        agreed: list[Slot] = []
        differing: list[Slot] = []
        for slot, asked in heard.items():
            answers = summaries.get(slot.index, {})
            if not all(target.member in answers for target in asked):
                continue
            if heard_enough(slot, answers) and len(set(answers.values())) == 1:
                self.progress.keys_compared += next(iter(answers.values())).rows
                agreed.append(slot)
            else:
                differing.append(slot)
        return agreed, differing

    async def _mend(
        self,
        slot: Slot,
        key: bytes,
        held: Mapping[str, Record],
        asked: Sequence[Target],
        failed: set[int],
        limiter: trio.CapacityLimiter,
    ) -> None:
        """Bring one key into place; a partition in which that does not succeed is noted in `failed`."""
        try:
            if slot.index in failed or not self._is_current(slot):
                failed.add(slot.index)
                return
            deadline_s = trio.current_time() + STEP_TIMEOUT_S
            size_bytes = 0
            with trio.move_on_at(deadline_s) as scope:
                try:
                    size_bytes = await self._mend_key(slot, key, held, asked, deadline_s)
                except (Refused, Unknown, NotEnough, PeerError) as error:
                    _log.info("a key of partition %d cannot be settled yet: %s", slot.index, error)
                    failed.add(slot.index)
            if scope.cancelled_caught:
                failed.add(slot.index)
            self.progress.bytes_moved += size_bytes
            await self._throttle(size_bytes)
        finally:
            limiter.release_on_behalf_of(key)

    async def _mend_key(
        self, slot: Slot, key: bytes, held: Mapping[str, Record], asked: Sequence[Target], deadline_s: float
    ) -> int:
        """Bring the key into place; how many bytes that moved."""
        self.progress.keys_compared += 1
        coordinator = self._master.coordinator
        size_bytes = 0
        async with slot.locks.exclusive(key):
            if slot.partition.settled or (key in slot.anchored and not slot.history[-1].lenient):
                return 0  # under AP a read anchors what is on one member; the others must have it too
            lacking = None if key in slot.pending else find_lacking(slot, held, asked)
            newest = max(held.values(), key=lambda record: record.version)
            source = next(target for target in asked if held.get(target.member.worker) == newest)
            if lacking is None:
                record = await coordinator.repair(slot, key, deadline_s, besides=source)
                self.progress.keys_repaired += 1
                copies = len(slot.targets)
                if record is not None and slot.history[-1].lenient:
                    # Committed is it on one of them, and those who had more copies of it are about to discard them.
                    up = [target for target in slot.targets if target.standing is Standing.UP]
                    await store_record(slot, Write(key, record), up, deadline_s, self._master.note_stale)
            else:
                record, copies = None, len(lacking)
                if lacking:
                    record = await copy_record(
                        slot, key, newest.version, source, lacking, deadline_s, self._master.note_stale
                    )
                    self.progress.keys_moved += 1
                slot.anchor(key)
            if record is not None:
                size_bytes = copies * (len(key) + len(record.value or b"") + _OVERHEAD_BYTES)
        return size_bytes

    async def _throttle(self, size_bytes: int) -> None:
        now = trio.current_time()
        self._owed_s = max(self._owed_s, now) + size_bytes / self.rate_bytes
        if self._owed_s - now > 0.1:  # shorter debts are not worth a sleep
            await trio.sleep(self._owed_s - now)

    def _is_current(self, slot: Slot) -> bool:
        return self._master.coordinator.slots[slot.index] is slot and not slot.closed and not slot.blocked

    # --- the end ------------------------------------------------------------------------------------------------------

    async def _conclude(self, done: Sequence[Slot], heard: Mapping[Slot, Sequence[Target]]) -> None:
        """Shorten their histories, durably; then let those who are in no configuration any more discard them."""
        master = self._master
        for slot in done:
            for past in slot.history:
                if past.lenient:
                    asked = {target.member for target in heard[slot]}
                    self.could_not_ask |= {t.member.worker for t in past.targets if t.member not in asked}
        former = {slot: {t.member: t for past in slot.history for t in past.targets} for slot in done}
        settled = await master.note_settled(done)
        self.progress.partitions += len(settled)
        if settled:
            epochs = [slot.epoch for slot in settled]
            told = {"first": spell_epoch(min(epochs)), "last": spell_epoch(max(epochs))}
            master.events.note("partition_settled", partitions=len(settled), epochs=told)
        for slot in settled:
            self._tried_s.pop(slot.index, None)
            for member, target in former[slot].items():
                if member in slot.configuration.members:
                    continue
                if target in heard[slot]:
                    arguments = [slot.index, slot.epoch, member.incarnation]
                    deadline_s = trio.current_time() + STEP_TIMEOUT_S
                    target.call(Op.DISCARD, arguments, deadline_s, lambda fault, payload: None, 64)
                else:
                    master.reconciler.note_up(member.worker)  # it was not asked what it holds


def _plan(heard: Mapping[Slot, Sequence[Target]], slots: Collection[Slot]) -> dict[Target, list[Slot]]:
    plan: dict[Target, list[Slot]] = {}
    for slot in slots:
        for target in heard[slot]:
            plan.setdefault(target, []).append(slot)
    return plan


def choose_all(slot: Slot, hung: Container[Member]) -> list[Target] | None:
    """All that are up of its configurations, without those whose disk hangs; None while they are too few to find
    everything that was committed."""
    if slot.blocked or slot.closed:
        return None
    active = slot.history[-1]
    # What a silent member alone holds under an AP mode must not turn up once the partition is linearizable.
    becomes_strict = not active.lenient and any(past.lenient for past in slot.history)
    chosen: dict[Member, Target] = {}
    for past in slot.history:
        up = [t for t in past.targets if t.standing is Standing.UP and t.member not in hung]
        need = past.recovery_need()
        if past is active:
            need = len(past.targets) if becomes_strict else max(need, past.configuration.copies)
        elif becomes_strict and past.lenient:
            need = max(need, sum(not target.given_up for target in past.targets))
        if len(up) < need:
            return None
        chosen.update({target.member: target for target in up})
    return list(chosen.values())


def find_lacking(slot: Slot, held: Mapping[str, Record], asked: Sequence[Target]) -> list[Target] | None:
    """The newcomers that lack a key which all others hold alike: it may go to them as it is. None: it must be repaired.

    `held`: what those that were asked hold of the key, by worker.
    """
    heard = {target.member: target for target in asked}
    if not heard_enough(slot, heard):
        return None
    before, active = slot.history[0].configuration, slot.configuration
    [_one, *others] = {record.version for record in held.values()}
    if others or any(member in heard and member.worker not in held for member in before.members):
        return None
    return [heard[member] for member in active.members if member.worker not in held]


def heard_enough(slot: Slot, heard: Collection[Member]) -> bool:
    """Were so many members heard that what they hold alike may be taken as it is? All of the active configuration, and
    of the one before it all but those that can be spared; of longer histories never."""
    if len(slot.history) != 2:
        return False
    before = slot.history[0].configuration
    silent = sum(member not in heard for member in before.members)
    spare = 1 if before.copies == len(before.members) else len(before.members) - before.copies
    return silent <= spare and all(member in heard for member in slot.configuration.members)
