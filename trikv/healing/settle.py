"""Settling: bringing all that was ever committed in a partition to its active configuration, while it is served.

A partition whose configuration has changed has a history: the configurations under which something may have been
committed that the active one does not hold yet. Reads repair key by key, as they come. This file does the same for the
keys that are not read, and when all are done, shortens the history to one, durably: the partition is settled.

For each partition: list what R members of every configuration hold, and of the active one so many as a write is on
(all, where that is all: a leftover on the one that reads ask must be found); the listing also fences them, so nothing
more can be committed under an older epoch. Then for every key that has no committed version of this epoch yet, under
its lock alone:

- where all members agree, but for newcomers that hold nothing, the record goes to those as it is;
- anywhere else the key is repaired like a read would: newest of R of each, written under a fresh version.

The first is by far the common case, and it is exact: it asks that the history has two configurations, that every member
of the active one was heard, and that no more of the other were silent than can be spared. Where digests agree as well,
the partition needs no listing at all.

Reads and writes go on meanwhile, and a change of the configuration ends the work on that
partition, since its successor starts anew. What was done is not lost, it need not be done again. What is moved is
throttled to a rate in bytes. `PARTITIONS_TOGETHER` partitions are listed in one go, `KEYS_TOGETHER` keys mended.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import trio

from trikv.api import Write
from trikv.coordinator.coordinator import Coordinator
from trikv.coordinator.listing import Pages, group_by_target
from trikv.coordinator.partition import PartitionState
from trikv.coordinator.repair import copy_record, store_record
from trikv.coordinator.replicas import NotEnough, Target
from trikv.core.calls import Op
from trikv.core.errors import Refused, Unknown
from trikv.core.quorums import Availability, are_enough_to_copy, choose_to_settle
from trikv.core.record import Record, size_of, spell_epoch
from trikv.core.session import PeerError
from trikv.healing.digests import ask_digests
from trikv.healing.hung import Hung

TICK_S: Final = 0.5
PARTITIONS_TOGETHER: Final = 64
KEYS_TOGETHER: Final = 32
LIST_ROWS: Final = 512
STEP_TIMEOUT_S: Final = 5.0
AGAIN_S: Final = 0.5
_OVERHEAD_BYTES: Final = 128  # what moving a key costs beside key and value

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class SettleProgress:
    """What settling has done since the master started."""

    partitions: int = 0
    keys_compared: int = 0
    keys_moved: int = 0  # copied as they are
    keys_repaired: int = 0  # written anew
    bytes_moved: int = 0


class Note(Protocol):
    """Tells that something happened, as `EventLog.note` does."""

    def __call__(self, kind: str, **fields: Any) -> None: ...


class Settling:
    """Settles one coordinator's partitions.

    Args:
      hung: members whose disk does not answer.
      note_settled: notes durably that these partitions are settled, as far as they are still in force.
      note: is told what was settled.
      note_unheard: hears of a worker that holds what it should discard, and was not asked.
      rate_bytes: the most that is moved in a second.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        hung: Hung,
        *,
        note_settled: Callable[[Sequence[PartitionState]], Awaitable[None]],
        note: Note,
        note_unheard: Callable[[str], None],
        rate_bytes: float,
    ) -> None:
        self.progress = SettleProgress()
        self.rate_bytes = rate_bytes
        self.could_not_ask: dict[str, float] = {}  # members of AP configurations that were not up, and when it was so
        self._coordinator = coordinator
        self._hung = hung
        self._note_settled = note_settled
        self._note = note
        self._note_unheard = note_unheard
        self._tried_s: dict[int, float] = {}
        self._owed_s = 0.0  # until when the rate is used up
        # When this stretch of work began, and what had been done by then.
        self._began: tuple[float, SettleProgress] | None = None

    async def run(self) -> None:
        """Until cancelled."""
        coordinator = self._coordinator
        while True:
            group = self._next_group()
            if not group:
                is_done = all(state.partition.settled for state in coordinator.partitions)
                if is_done and self._began is not None:
                    self._tell_end(*self._began)
                    self._began = None
                await coordinator.changed.wait(math.inf if is_done else TICK_S)
                continue
            now = trio.current_time()
            self._began = self._began or (now, replace(self.progress))
            for state in group:
                self._tried_s[state.index] = now
            try:
                heard = {state: chosen for state in group if (chosen := self._choose(state)) is not None}
                done = await self._settle(heard)
            except (Refused, NotEnough, PeerError) as error:
                _log.info("%d partitions cannot be settled yet: %s", len(group), error)
                continue
            try:
                await self._conclude(done, heard)
            except Refused as error:
                _log.warning("settled partitions could not be noted: %s", error)

    def _next_group(self) -> list[PartitionState]:
        """Unsettled partitions that can be settled by those that are up, those first that have waited longest."""
        now = trio.current_time()
        able = [
            state
            for state in self._coordinator.partitions
            if not state.partition.settled
            and now - self._tried_s.get(state.index, -AGAIN_S) >= AGAIN_S
            and self._choose(state) is not None
        ]
        able.sort(key=lambda state: self._tried_s.get(state.index, 0.0))
        return able[:PARTITIONS_TOGETHER]

    def _tell_end(self, began_s: float, before: SettleProgress) -> None:
        done = self.progress
        self._note(
            "settled",
            partitions=done.partitions - before.partitions,
            keys_moved=done.keys_moved - before.keys_moved,
            keys_repaired=done.keys_repaired - before.keys_repaired,
            bytes_moved=done.bytes_moved - before.bytes_moved,
            duration_s=round(trio.current_time() - began_s, 3),
        )

    def seconds_left(self, partitions: int) -> float | None:
        """How long so many partitions will take, at the pace of the present stretch of work; None: not known yet."""
        if not partitions:
            return 0.0
        if self._began is None or self.progress.partitions == self._began[1].partitions:
            return None
        began_s, before = self._began
        pace = (self.progress.partitions - before.partitions) / max(trio.current_time() - began_s, 1e-3)
        return round(partitions / pace, 1)

    # --- one group of partitions --------------------------------------------------------------------------------------

    async def _settle(self, heard: Mapping[PartitionState, Sequence[Target]]) -> list[PartitionState]:
        """Go through all keys of these partitions, asking those beside each; those of which every key is in place."""
        agreed, differing = await self._compare(heard)
        states = {state.index: state for state in differing}
        failed: set[int] = set()
        plan = group_by_target({state: heard[state] for state in differing})
        async for rows in Pages(plan, rows=LIST_ROWS, timeout_s=STEP_TIMEOUT_S):
            limiter = trio.CapacityLimiter(KEYS_TOGETHER)
            async with trio.open_nursery() as nursery:
                for key, (partition, held) in rows.items():
                    await limiter.acquire_on_behalf_of(key)
                    state = states[partition]
                    nursery.start_soon(self._mend, state, key, held, heard[state], failed, limiter)
        done = [state for state in states.values() if state.index not in failed]
        return [state for state in (*agreed, *done) if self._is_current(state)]

    async def _compare(
        self, heard: Mapping[PartitionState, Sequence[Target]]
    ) -> tuple[list[PartitionState], list[PartitionState]]:
        """The partitions of which all that are asked hold the same already, and the others.

        A partition with a member that did not answer is neither: it is tried again without it, or waits for it. So a
        member that does not answer holds up nothing that it has no part in.
        """
        deadline_s = trio.current_time() + STEP_TIMEOUT_S
        plan = group_by_target(heard)
        summaries = await ask_digests(plan, deadline_s)
        for target, states in plan.items():
            if not any(target.member in summaries.get(state.index, ()) for state in states):
                self._hung.note(target)
        agreed: list[PartitionState] = []
        differing: list[PartitionState] = []
        for state, asked in heard.items():
            answers = summaries.get(state.index, {})
            if not all(target.member in answers for target in asked):
                continue
            if are_enough_to_copy(state.history, answers) and len(set(answers.values())) == 1:
                self.progress.keys_compared += next(iter(answers.values())).rows
                agreed.append(state)
            else:
                differing.append(state)
        return agreed, differing

    async def _mend(
        self,
        state: PartitionState,
        key: bytes,
        held: Mapping[str, Record],
        asked: Sequence[Target],
        failed: set[int],
        limiter: trio.CapacityLimiter,
    ) -> None:
        """Bring one key into place; a partition in which that does not succeed is noted in `failed`."""
        try:
            if state.index in failed or not self._is_current(state):
                failed.add(state.index)
                return
            deadline_s = trio.current_time() + STEP_TIMEOUT_S
            size_bytes = 0
            with trio.move_on_at(deadline_s) as scope:
                try:
                    size_bytes = await self._mend_key(state, key, held, asked, deadline_s)
                except (Refused, Unknown, NotEnough, PeerError) as error:
                    _log.info("a key of partition %d cannot be settled yet: %s", state.index, error)
                    failed.add(state.index)
            if scope.cancelled_caught:
                failed.add(state.index)
            self.progress.bytes_moved += size_bytes
            await self._throttle(size_bytes)
        finally:
            limiter.release_on_behalf_of(key)

    async def _mend_key(
        self, state: PartitionState, key: bytes, held: Mapping[str, Record], asked: Sequence[Target], deadline_s: float
    ) -> int:
        """Bring the key into place; how many bytes that moved."""
        self.progress.keys_compared += 1
        coordinator = self._coordinator
        size_bytes = 0
        with await state.locks.exclusive(key):
            if state.partition.settled or (key in state.anchored and not state.is_ap):
                return 0  # under AP a read anchors what is on one member; the others must have it too
            lacking = None if key in state.pending else find_lacking(state, held, asked)
            newest = max(held.values(), key=lambda record: record.version)
            source = next(target for target in asked if held.get(target.member.worker) == newest)
            if lacking is None:
                record = await coordinator.repair(state, key, deadline_s, besides=source)
                self.progress.keys_repaired += 1
                copies = len(state.targets)
                if record is not None and state.is_ap:
                    # Under AP it is committed on one of them, and members with more copies are about to discard them.
                    up = [target for target in state.targets if target.availability is Availability.UP]
                    await store_record(state, Write(key, record), up, deadline_s)
            else:
                record, copies = None, len(lacking)
                if lacking:
                    record = await copy_record(state, key, newest.version, source, lacking, deadline_s)
                    self.progress.keys_moved += 1
                state.anchor(key)
            if record is not None:
                size_bytes = copies * (size_of(key, record) + _OVERHEAD_BYTES)
        return size_bytes

    async def _throttle(self, size_bytes: int) -> None:
        now = trio.current_time()
        self._owed_s = max(self._owed_s, now) + size_bytes / self.rate_bytes
        if self._owed_s - now > 0.1:  # shorter debts are not worth a sleep
            await trio.sleep(self._owed_s - now)

    def _choose(self, state: PartitionState) -> list[Target] | None:
        """See `quorums.choose_to_settle`; None also where the partition is not served."""
        return choose_to_settle(state.history, self._hung) if state.is_served else None

    def _is_current(self, state: PartitionState) -> bool:
        return self._coordinator.partitions[state.index] is state and state.is_served

    # --- the end ------------------------------------------------------------------------------------------------------

    async def _conclude(self, done: Sequence[PartitionState], heard: Mapping[PartitionState, Sequence[Target]]) -> None:
        """Shorten their histories, durably; then have members that are in no configuration any more discard them."""
        for state in done:
            asked = {target.member for target in heard[state]}
            for electorate in state.history:
                if electorate.is_ap:
                    absent = [t.member.worker for t in electorate.voters if t.member not in asked]
                    self.could_not_ask |= dict.fromkeys(absent, trio.current_time())
        former = {state: {t.member: t for each in state.history for t in each.voters} for state in done}
        await self._note_settled(done)
        settled = [state for state in done if state.partition.settled and self._is_current(state)]
        self.progress.partitions += len(settled)
        if settled:
            epochs = [state.epoch for state in settled]
            told = {"first": spell_epoch(min(epochs)), "last": spell_epoch(max(epochs))}
            self._note("partition_settled", partitions=len(settled), epochs=told)
        for state in settled:
            self._tried_s.pop(state.index, None)
            for member, target in former[state].items():
                if member in state.configuration.members:
                    continue
                if target in heard[state]:
                    arguments = [state.index, state.epoch, member.incarnation]
                    deadline_s = trio.current_time() + STEP_TIMEOUT_S
                    target.call(Op.DISCARD, arguments, deadline_s, lambda fault, payload: None, 64)
                else:
                    self._note_unheard(member.worker)


def find_lacking(state: PartitionState, held: Mapping[str, Record], asked: Sequence[Target]) -> list[Target] | None:
    """The newcomers that lack a key which all others hold alike: it may go to them as it is. None: it must be repaired.

    `held`: what those that were asked hold of the key, by worker.
    """
    heard = {target.member: target for target in asked}
    if not are_enough_to_copy(state.history, heard):
        return None
    before, active = state.history[0].configuration, state.configuration
    [_one, *others] = {record.version for record in held.values()}
    if others or any(member in heard and member.worker not in held for member in before.members):
        return None
    return [heard[member] for member in active.members if member.worker not in held]
