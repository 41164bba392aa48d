"""Hints: copies that a replica missed, kept by the coordinator until the replica is back.

A quorum or async write does not wait for all of its replicas, so one that is away for a moment lacks what was written
meanwhile. Anti-entropy finds out, by listing whole partitions. The coordinator knows better: it had the record in hand
when the copy failed, or when it was not even sent since the replica was down. It keeps the record, only the newest of
each key, and stores it as it is, same version and same epoch, once that member is up. Where all that was missed is
delivered so, nothing is left to be listed.

Is that safe where reads are linearizable? A hint is a message that is late, and no more: a copy that was sent, or
noted as if it were, in this epoch, to this member in this life of it. The protocol bears such messages at any time,
repeated or not. A replica takes only what is newer than what it has, so a hint never undoes a write or a repair that
came after it, though it may bring what a client was told is unknown. At the partition's next generation its hints are
dropped, and one that is just on its way is refused by a member that has promised the new epoch. Modes that store on all
members (W = n: sync, chain) get none: they rest on the order in which members store, which a late store breaks. And
since each delivery is noted as a store, no tombstone of the key is forgotten meanwhile (`tombstones.py`).

Bounds: `BYTES_MAX` of keys and values, `COUNT_MAX` hints (each costs some 400 bytes besides), `AGE_MAX_S`. A worker
that is down is replaced after seconds if there is a spare, which ends its hints. Where there is none, ten minutes are a
reboot or a deployment; after more, listing costs no more than what was missed. All hints that a member has of one
partition go together, since the partition has to be compared once one is lost: they count as missed copies from then on
(`PartitionState.missed`), no further ones are taken, and anti-entropy mends.

For the status, `held_for` and `lacks_since_s` say of one member what it lacks: copies that are kept here, and copies
that are not kept, until their partition has been compared.

What it costs: nothing, while all copies arrive; else `TOGETHER` stores under way to each member that is up.
Left out: hints on disk. They end with the master's term, and every partition is compared in a new one.
"""

from __future__ import annotations

import logging
from itertools import islice
from typing import Final, NamedTuple

import trio

from trikv.api import Write
from trikv.coordinator.coordinator import Coordinator
from trikv.coordinator.partition import PartitionState
from trikv.coordinator.replicas import NotEnough, Target
from trikv.core.quorums import Availability
from trikv.core.record import Record, size_of

BYTES_MAX: Final = 64 * 1024 * 1024
COUNT_MAX: Final = 1 << 17
AGE_MAX_S: Final = 600.0
TICK_S: Final = 1.0
TOGETHER: Final = 16  # of one member: as much as a few further clients
STEP_TIMEOUT_S: Final = 5.0  # for one hint

_log = logging.getLogger(__name__)


class _Hint(NamedTuple):
    """The newest record of a key that one member missed, and since when it lacks a record of that key."""

    record: Record
    since_s: float


class _Bundle(NamedTuple):
    """What one member missed of one partition, the key that it lacks for longest first. Begun at `since_s`."""

    since_s: float
    hints: dict[bytes, _Hint]


class Hints:
    """Keeps and delivers what the members of one coordinator's partitions missed."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.delivered = 0
        self.dropped = 0
        self._count = 0
        self._bytes = 0
        self._coordinator = coordinator
        self._held: dict[Target, dict[PartitionState, _Bundle]] = {}  # a coordinator has one target for each member
        self._noted = trio.Event()  # something is held
        self._busy: set[Target] = set()  # to which hints are being delivered
        self._failing: set[Target] = set()  # that did not take what was delivered last
        self._not_kept: dict[Target, dict[PartitionState, float]] = {}  # since when each lacks copies that are not kept

    def note(self, state: PartitionState, target: Target, write: Write, since_s: float) -> None:
        """This copy, sent then, did not arrive, or it was not sent. Keep it, if a hint may be given; else have it count
        as missed."""
        if state.missed or state.configuration.copies == len(state.targets):
            self._note_not_kept(state, target, 1, since_s)
            return
        bundle = self._held.setdefault(target, {}).setdefault(state, _Bundle(trio.current_time(), {}))
        former = bundle.hints.get(write.key)
        if former is None or former.record.version < write.record.version:
            self._set(bundle, write.key, _Hint(write.record, since_s if former is None else former.since_s))
            self._noted.set()
        if self._bytes > BYTES_MAX or self._count > COUNT_MAX:
            self._drop(target, state)

    def has(self, state: PartitionState) -> bool:
        """Does any replica of that partition lack something that is kept here for it?"""
        return any(state in bundles for bundles in self._held.values())

    def expects(self, state: PartitionState) -> bool:
        """Is a replica about to get what it lacks, so that comparing it now would find that and no more?"""
        return any(
            state in bundles and target.availability is Availability.UP and target not in self._failing
            for target, bundles in self._held.items()
        )

    def held_for(self, target: Target) -> int:
        """How many copies are kept for this member."""
        return sum(len(bundle.hints) for bundle in self._held.get(target, {}).values())

    def lacks_since_s(self, target: Target) -> float | None:
        """When the oldest copy was sent that this member is known to lack and that is not on its way; None: it lacks
        none."""
        times = [hint.since_s for b in self._held.get(target, {}).values() for hint in islice(b.hints.values(), 1)]
        return min(times + list(self._not_kept.get(target, {}).values()), default=None)

    def progress(self) -> dict[str, int]:
        return {"held": self._count, "bytes": self._bytes, "delivered": self.delivered, "dropped": self.dropped}

    async def run(self) -> None:
        """Until cancelled. What cannot be delivered now is tried again, until it is too old."""
        async with trio.open_nursery() as nursery:
            while True:
                self._drop_what_is_over()
                for target in self._held:
                    if target not in self._busy and target.availability is Availability.UP:
                        self._busy.add(target)
                        nursery.start_soon(self._deliver_all, target)
                if not (self._held or self._not_kept):
                    self._noted = trio.Event()
                    await self._noted.wait()
                await self._coordinator.changed.wait(TICK_S)

    def _set(self, bundle: _Bundle, key: bytes, hint: _Hint | None) -> None:
        """The one place where hints come, are replaced (each keeps its place), and go."""
        former = bundle.hints.get(key)
        if former is not None:
            self._count -= 1
            self._bytes -= size_of(key, former.record)
        if hint is not None:
            bundle.hints[key] = hint
            self._count += 1
            self._bytes += size_of(key, hint.record)
        else:
            bundle.hints.pop(key, None)

    def _drop(self, target: Target, state: PartitionState) -> None:
        """All that this member missed of the partition; from now on only anti-entropy can find out what that was."""
        bundle = self._held[target].pop(state)
        self.dropped += len(bundle.hints)
        if bundle.hints:
            since_s = next(iter(bundle.hints.values())).since_s
            self._note_not_kept(state, target, len(bundle.hints), since_s)
        for key in list(bundle.hints):
            self._set(bundle, key, None)
        if not self._held[target]:
            del self._held[target]

    def _note_not_kept(self, state: PartitionState, target: Target, count: int, since_s: float) -> None:
        state.note_missed(count)
        lacking = self._not_kept.setdefault(target, {})
        lacking[state] = min(since_s, lacking.get(state, since_s))
        self._noted.set()

    def _drop_what_is_over(self) -> None:
        """What is too old, and what belongs to a former generation."""
        oldest_s = trio.current_time() - AGE_MAX_S
        for target, bundles in list(self._held.items()):
            for state, bundle in list(bundles.items()):
                if bundle.since_s < oldest_s or self._coordinator.partitions[state.index] is not state:
                    self._drop(target, state)
        for target, lacking in list(self._not_kept.items()):
            for state in list(lacking):
                if not state.missed or self._coordinator.partitions[state.index] is not state:
                    del lacking[state]
            if not lacking:
                del self._not_kept[target]

    async def _deliver_all(self, target: Target) -> None:
        """In order, some at a time, until nothing is left or one does not arrive."""
        try:
            while target in self._held:
                every = (
                    (state, Write(key, record))
                    for state, bundle in self._held[target].items()
                    for key, (record, _) in bundle.hints.items()
                )
                some = list(islice(every, TOGETHER))
                arrived: list[Write] = []
                async with trio.open_nursery() as nursery:
                    for state, write in some:
                        nursery.start_soon(self._deliver, state, target, write, arrived)
                if len(arrived) < len(some):
                    self._failing.add(target)
                    self._coordinator.changed.notify()
                    await trio.sleep(TICK_S)
                    return
                self._failing.discard(target)
            self._coordinator.changed.notify()  # its partitions may be compared by now
        finally:
            self._busy.discard(target)

    async def _deliver(self, state: PartitionState, target: Target, write: Write, arrived: list[Write]) -> None:
        request = state.request(trio.current_time() + STEP_TIMEOUT_S, [target])
        with trio.move_on_after(STEP_TIMEOUT_S):
            try:
                await request.replicas.store(write)
            except NotEnough as error:
                _log.info("a hint of partition %d could not be delivered yet: %s", state.index, error)
            else:
                arrived.append(write)
                self._note_delivered(state, target, write)

    def _note_delivered(self, state: PartitionState, target: Target, write: Write) -> None:
        self.delivered += 1
        bundle = self._held.get(target, {}).get(state)
        hint = None if bundle is None else bundle.hints.get(write.key)
        if bundle is not None and hint is not None and hint.record == write.record:  # no newer one came meanwhile
            self._set(bundle, write.key, None)
            if not bundle.hints:
                self._drop(target, state)
