"""Broken strategies and broken cores, kept to test the ground that tests trikv: a ground that passes one is broken.

Here are the broken strategies, workers and coordinators; what can be broken about changes of configurations is in
`mutants_changes.py`, and about several masters in `mutants_masters.py`. A mutant replaces one function by one that
forgets what the real one takes care of, or it is a strategy with one step wrong. Random schedules find most of them;
the others need a schedule made for them.

A write-back with the old version shows only if two masters after each other die in the middle of a write, the second
one of a compare-and-set, and a third meets what they left in the wrong order: 600 random runs did not get there.

Sync that stores at the head first or everywhere at once, and chain that reads its head, do nothing wrong until a
configuration is changed: as long as one replica answers all reads, what it says is the truth by definition.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import trio

from tests.sim.mutant import Mutant, replaced
from tests.sim.mutants_changes import OF_CHANGES
from tests.sim.mutants_masters import OF_MASTERS
from trikv.api import Batch, Record, ReplicaSet, Storage, Version, Write, newest
from trikv.coordinator.coordinator import Attempt, Coordinator
from trikv.coordinator.locks import KeyLock, KeyLocks
from trikv.coordinator.partition import PartitionState
from trikv.coordinator.repair import fetch_history
from trikv.coordinator.replicas import NotEnough, Replicas, Target
from trikv.core.calls import Hop, Store
from trikv.core.configuration import Cluster, Configuration
from trikv.core.errors import Fault, Refused
from trikv.core.fence import EpochJudgement, Fence
from trikv.core.lineage import Claim, Start, judge
from trikv.core.record import MARK_BITS, term_of
from trikv.core.session import Hello, PeerError
from trikv.healing.antientropy import AntiEntropy
from trikv.master import lives
from trikv.master.configstore import ConfigStoreError, NotChanged
from trikv.master.document import Document
from trikv.master.master import Master
from trikv.net.doors import Doors
from trikv.testing.sim import CHANGING, CROWDED, MASTERS, FaultKind
from trikv.testing.sim.disk import SimStorage
from trikv.worker.registers import Registers
from trikv.worker.worker import Worker, _Item
from trikv_async import Async
from trikv_chain import Chain
from trikv_quorum import Quorum
from trikv_sync import Sync

# --- strategies -------------------------------------------------------------------------------------------------------


class ForgetfulQuorum(Quorum):
    """A read answers the newest that it met, and leaves it where it is."""

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        return newest(await replicas.fetch(key, need=replicas.majority))


class HeadFirstSync(Sync):
    """The head's copy comes first, so a read may meet what the others never get."""

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.head.store(write)
        await replicas.rest.store(write)


class ParallelSync(Sync):
    """All copies at once."""

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.store(write)


class HeadReadChain(Chain):
    """The head answers reads, though what it has may not have reached the tail."""

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        return newest(await replicas.head.fetch(key))


# --- the worker -------------------------------------------------------------------------------------------------------


def stop_relays() -> AbstractContextManager[None]:
    """What is not newer here is not passed on."""
    real = Worker._relay

    def relay(self: Worker, item: _Item, request: Store, hop: Hop, rest: list[Hop]) -> None:
        held = self._storage.get(request.partition, request.key)
        if held is not None and held.version > request.record.version:
            item.link.answer(item.call_id, Fault.OK, [])
        else:
            real(self, item, request, hop, rest)

    return replaced(Worker, "_relay", relay)


def acknowledge_before_the_tail() -> AbstractContextManager[None]:
    """A chain's member acknowledges when it has stored, and passes the write on besides."""
    real = Worker._relay

    def relay(self: Worker, item: _Item, request: Store, hop: Hop, rest: list[Hop]) -> None:
        item.link.answer(item.call_id, Fault.OK, [])
        real(self, item, request, hop, rest)  # its answer is the second one, and nobody waits for it

    return replaced(Worker, "_relay", relay)


def acknowledge_before_fsync() -> AbstractContextManager[None]:
    """A store is acknowledged when it is in the batch, which may never reach the disk."""
    real = Worker._decide

    def decide(self: Worker, item: _Item, now: float) -> bool:
        granted = real(self, item, now)
        if granted and isinstance(item.request, Store) and not item.request.onward:
            item.link.answer(item.call_id, Fault.OK, [])
        return granted

    return replaced(Worker, "_decide", decide)


def flush_one_batch_late() -> AbstractContextManager[None]:
    """An engine whose `commit` returns before the flush: all is well until the power goes."""

    async def commit(self: SimStorage, batch: Batch) -> None:
        self._life.step()
        await trio.sleep(self._disk.fsync_s)
        self._disk.flush()
        self._disk.under_way = batch
        self._view.apply(batch)

    return replaced(SimStorage, "commit", commit)


def overwrite_newer() -> AbstractContextManager[None]:
    """A store replaces whatever is there."""

    def put(self: Registers, partition: int, key: bytes, record: Record) -> None:
        current = self._current((partition, key))
        self._batch.puts[partition, key] = record
        self._set_summary(partition, self.summary(partition).replaced(key, current, record))

    return replaced(Registers, "put", put)


@contextmanager
def ignore_incarnations() -> Iterator[None]:
    """A worker is known by its name alone: it answers for every life that it ever had, whatever its disk knows."""
    real = Worker.open

    async def open_under_its_name(
        worker_id: str, storage: Storage, storage_name: str, doors: Doors, **options: Any
    ) -> Worker:
        if "incarnation" not in storage.meta():
            await storage.commit(Batch(meta={"worker": worker_id.encode(), "incarnation": worker_id.encode()}))
        return await real(worker_id, storage, storage_name, doors, **options)

    def judge_nothing(starts: Sequence[Start], named: Start | None, batches: int, heard: int) -> Claim:
        claim = judge(starts, named, batches, heard)
        return Claim.LATER if claim is Claim.OLDER else claim

    with replaced(Worker, "open", staticmethod(open_under_its_name)), replaced(lives, "judge", judge_nothing):
        yield


def forget_epochs() -> AbstractContextManager[None]:
    """No epoch is ever too old."""

    def judge(self: Fence, partition: int, epoch: int) -> EpochJudgement:
        return EpochJudgement.KNOWN

    return replaced(Fence, "judge", judge)


def promise_in_memory() -> AbstractContextManager[None]:
    """A promise is kept, until the worker restarts."""
    real = Registers.pass_fence

    def pass_fence(self: Registers, partition: int, epoch: int) -> bool:
        passes = real(self, partition, epoch)
        self._batch.meta.pop(f"promise/{partition}", None)
        return passes

    return replaced(Registers, "pass_fence", pass_fence)


# --- the coordinator --------------------------------------------------------------------------------------------------


@contextmanager
def lock_nothing() -> Iterator[None]:
    """Whoever wants a key's lock has it."""

    async def hold(self: KeyLocks, key: bytes, *, exclusive: bool) -> KeyLock:
        await trio.lowlevel.checkpoint()
        return KeyLock(self, key, exclusive=exclusive)

    def admit(self: KeyLocks, key: bytes, lock: KeyLock) -> None:
        pass

    with replaced(KeyLocks, "hold", hold), replaced(KeyLocks, "_admit", admit):
        yield


def repair_with_the_old_version() -> AbstractContextManager[None]:
    """What a repair found is written as it is; something newer may be hidden from it."""
    real = Coordinator.repair

    async def repair(
        self: Coordinator, state: PartitionState, key: bytes, deadline_s: float, *, besides: Target | None = None
    ) -> Record | None:
        if key not in state.pending:
            found = await _find(self, state, key, deadline_s, besides)
            if found is None:
                return None
            try:
                state.note_sent(key, found)  # which the real repair then writes again, same version
            except NotEnough as error:
                raise Refused("unavailable", str(error)) from error
        return await real(self, state, key, deadline_s)

    return replaced(Coordinator, "repair", repair)


async def _find(
    coordinator: Coordinator, state: PartitionState, key: bytes, deadline_s: float, besides: Target | None
) -> Record | None:
    try:
        return await fetch_history(state, key, deadline_s, besides=besides)
    except (NotEnough, PeerError) as error:
        raise Refused("unavailable", str(error)) from error


def repair_nothing() -> AbstractContextManager[None]:
    """A repair answers what it found, and leaves it where it is."""
    real = Coordinator.repair

    async def repair(
        self: Coordinator, state: PartitionState, key: bytes, deadline_s: float, *, besides: Target | None = None
    ) -> Record | None:
        if key in state.pending:
            return await real(self, state, key, deadline_s)
        return await _find(self, state, key, deadline_s, besides)

    return replaced(Coordinator, "repair", repair)


def ask_too_few() -> AbstractContextManager[None]:
    """n - W members are asked where R = n - W + 1 are needed to meet every committed write."""

    def recovery(self: Configuration) -> int:
        return len(self.members) - self.copies

    return replaced(Configuration, "recovery", property(recovery))


def call_the_unknown_refused() -> AbstractContextManager[None]:
    """A client is told that its write did not happen, whatever was sent."""

    def fail(self: Attempt, code: str, reason: str) -> Refused:
        return Refused(code, reason)

    return replaced(Attempt, "_fail", fail)


def halve_majorities() -> AbstractContextManager[None]:
    """A majority of n is n // 2."""

    def majority(self: Replicas) -> int:
        return len(self) // 2

    return replaced(Replicas, "majority", property(majority))


def take_versions_from_the_clock() -> AbstractContextManager[None]:
    """Versions are the time of day on the coordinator's machine, which each term's has a little wrong."""
    real = PartitionState.next_version

    def next_version(self: PartitionState) -> Version:
        unique = real(self).seq >> MARK_BITS  # two readings of a clock may be the same
        wrong_by_s = term_of(self.epoch) * 7 % 5
        return Version(0, round((trio.current_time() + wrong_by_s) * 1e6) << 20 | unique)

    return replaced(PartitionState, "next_version", next_version)


def leave_out_pending_first() -> AbstractContextManager[None]:
    """A compare-and-set compares with what it reads, while another write may still be on its way there."""

    async def read_for_write(self: Coordinator, state: PartitionState, key: bytes, deadline_s: float) -> Record | None:
        return await self.own_read(state, key, deadline_s, exclusive=True)

    return replaced(Coordinator, "_read_for_write", read_for_write)


@contextmanager
def restart_in_the_old_epoch() -> Iterator[None]:
    """A master that starts goes on as the one before it: under its term, and by its name."""

    def with_term(self: Cluster, term: int) -> Cluster:
        return replace(self, term=self.term or term)

    def hello(self: Master) -> Hello:
        return Hello("master", self.cluster.cluster, f"{self.cluster.term}/the-one", self.cluster.cluster)

    with replaced(Cluster, "with_term", with_term), replaced(Master, "hello", hello):
        yield


def compare_nothing() -> AbstractContextManager[None]:
    """Nobody brings replicas together whose background copies were lost."""

    def is_due(self: AntiEntropy, state: PartitionState, up: Sequence[Target]) -> bool:
        return False

    return replaced(AntiEntropy, "_is_due", is_due)


def take_doubt_for_no() -> AbstractContextManager[None]:
    """A change of the document that was reported as failed is taken for one that was not made."""

    async def write(self: Document, document: dict[str, Any]) -> int:
        try:
            with trio.CancelScope(shield=True):
                revision = await self._store.compare_and_set(document, self._revision)
        except ConfigStoreError as error:
            raise NotChanged(str(error)) from error
        return revision

    return replaced(Document, "_write", write)


# Fewer kinds of fault, so that there is more of each.
PLAIN = replace(
    CHANGING,
    weights={
        kind: weight
        for kind, weight in CHANGING.weights.items()
        if kind not in (FaultKind.HUNG_DISK, FaultKind.OLD_DISK, FaultKind.DOUBTFUL_DOCUMENT, FaultKind.OLD_DOCUMENT)
    },
)

MUTANTS = [
    Mutant("relay that stops", Chain(), stop_relays, seed=1),
    Mutant("incarnation unchecked", Sync(), ignore_incarnations, seed=30),
    Mutant("no key lock", Quorum(), lock_nothing, seed=2),
    Mutant("quorum read without write-back", ForgetfulQuorum(), seed=9, plan=CROWDED),
    Mutant("write-back with the old version", Quorum(), repair_with_the_old_version),
    Mutant("n - W instead of R", Quorum(), ask_too_few, seed=30),
    Mutant("unknown reported as refused", Sync(), call_the_unknown_refused, seed=0),
    Mutant("acknowledge before fsync", Sync(), acknowledge_before_fsync, seed=4),
    Mutant("engine that flushes one batch late", Sync(), flush_one_batch_late, seed=0),
    Mutant("acknowledge before the tail", Chain(), acknowledge_before_the_tail, seed=0),
    Mutant("majority of n // 2", Quorum(), halve_majorities, seed=4),
    Mutant("version from the wall clock", Sync(), take_versions_from_the_clock, seed=1),
    Mutant("store that overwrites newer", Sync(), overwrite_newer, seed=1),
    Mutant("no anti-entropy", Async(), compare_nothing, seed=11),
    Mutant("no epoch check", Sync(), forget_epochs),
    Mutant("pending-first left out", Chain(), leave_out_pending_first),
    Mutant("restart in the old epoch", Sync(), restart_in_the_old_epoch),
    Mutant("promise kept in memory", Sync(), promise_in_memory),
    Mutant("sync head first", HeadFirstSync(), seed=21, plan=CHANGING),
    Mutant("sync in parallel", ParallelSync(), seed=7, plan=PLAIN),
    Mutant("chain read from the head", HeadReadChain(), seed=40, plan=CHANGING),
    Mutant("settle: n - W instead of R", Quorum(), ask_too_few, seed=15, plan=CHANGING),
    Mutant("settle: repair without write-back", Quorum(), repair_nothing, seed=1, plan=CHANGING),
    Mutant("doubt taken for no", Sync(), take_doubt_for_no, seed=8, plan=CHANGING),
    *OF_CHANGES,
    *OF_MASTERS,
    Mutant("masters: takeover without a new term", Sync(), restart_in_the_old_epoch, seed=0, plan=MASTERS),
]
BY_NAME = {mutant.name: mutant for mutant in MUTANTS}
