"""Broken strategies and broken cores, kept to test the ground that tests trikv: a ground that passes one is broken.

A `Mutant` breaks exactly one thing, for as long as its `breaks()` is entered: it replaces one function by one that
forgets what the real one takes care of, or it is a strategy with one step wrong. `by_search` says that random schedules
find it, and `seed` with which one they did; the others need a schedule made for them, in `scripts/`.

A write-back with the old version shows only if two masters after each other die in the middle of a write, the second
one of a compare-and-set, and a third meets what they left in the wrong order: 600 random runs did not get there.

Sync that stores at the head first or everywhere at once, and chain that reads its head, do nothing wrong until a
configuration is changed: as long as one replica answers all reads, what it says is the truth by definition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import trio

from trikv.api import Batch, Record, ReplicaSet, Storage, Strategy, Version, Write, newest
from trikv.core.calls import Hop, Op, Store
from trikv.core.configuration import Cluster, Configuration, Member
from trikv.core.errors import Fault, Refused, TrikvError
from trikv.core.fence import Fence, Judgement
from trikv.core.planning import Change
from trikv.core.record import term_of
from trikv.core.session import Hello, PeerError
from trikv.net.doors import Doors
from trikv.net.replicas import NotEnough, Replicas, Standing, Target
from trikv.node import coordinator, settle
from trikv.node.antientropy import AntiEntropy
from trikv.node.coordinator import Attempt, Coordinator
from trikv.node.locks import KeyLocks
from trikv.node.master import Master
from trikv.node.reconcile import Reconciler
from trikv.node.registers import Registers
from trikv.node.repair import fetch_history
from trikv.node.settle import Settling
from trikv.node.slot import Slot
from trikv.node.worker import Worker, _Item
from trikv.testing.sim import CHANGING, CROWDED, Plan
from trikv.testing.sim.disk import SimStorage
from trikv_async import Async
from trikv_chain import Chain
from trikv_quorum import Quorum
from trikv_sync import Sync

Break = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Mutant:
    """`seed`: one that caught it, None for those that are driven by hand; `plan`: if not the usual one."""

    name: str
    strategy: Strategy
    breaks: Break = nullcontext
    seed: int | None = None
    plan: Plan | None = None

    @property
    def by_search(self) -> bool:
        return self.seed is not None

    def __str__(self) -> str:
        return self.name


@contextmanager
def replaced(owner: Any, name: str, broken: Any) -> Iterator[None]:
    """Inside, `owner.name` is `broken`."""
    real = vars(owner)[name]
    setattr(owner, name, broken)
    try:
        yield
    finally:
        setattr(owner, name, real)


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

    def decide(self: Worker, item: _Item) -> bool:
        granted = real(self, item)
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


def ignore_incarnations() -> AbstractContextManager[None]:
    """A worker is known by its name alone: it answers for every life that it ever had."""
    real = Worker.open

    async def open_under_its_name(
        worker_id: str, storage: Storage, storage_name: str, doors: Doors, **options: Any
    ) -> Worker:
        if "incarnation" not in storage.meta():
            await storage.commit(Batch(meta={"worker": worker_id.encode(), "incarnation": worker_id.encode()}))
        return await real(worker_id, storage, storage_name, doors, **options)

    return replaced(Worker, "open", staticmethod(open_under_its_name))


def forget_epochs() -> AbstractContextManager[None]:
    """No epoch is ever too old."""

    def judge(self: Fence, partition: int, epoch: int) -> Judgement:
        return Judgement.KNOWN

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

    async def acquire(self: KeyLocks, key: bytes, *, exclusive: bool) -> None:
        await trio.lowlevel.checkpoint()

    def release(self: KeyLocks, key: bytes) -> None:
        pass

    with replaced(KeyLocks, "_acquire", acquire), replaced(KeyLocks, "_release", release):
        yield


def repair_with_the_old_version() -> AbstractContextManager[None]:
    """What a repair found is written as it is; something newer may be hidden from it."""
    real = Coordinator.repair

    async def repair(
        self: Coordinator, slot: Slot, key: bytes, deadline_s: float, *, besides: Target | None = None
    ) -> Record | None:
        if key not in slot.pending:
            found = await _find(self, slot, key, deadline_s, besides)
            if found is None:
                return None
            try:
                slot.note_sent(key, found)  # which the real repair then writes again, same version
            except NotEnough as error:
                raise Refused("unavailable", str(error)) from error
        return await real(self, slot, key, deadline_s)

    return replaced(Coordinator, "repair", repair)


async def _find(
    coordinator: Coordinator, slot: Slot, key: bytes, deadline_s: float, besides: Target | None
) -> Record | None:
    try:
        return await fetch_history(slot, key, deadline_s, coordinator._on_stale, besides=besides)
    except (NotEnough, PeerError) as error:
        raise Refused("unavailable", str(error)) from error


def ask_too_few() -> AbstractContextManager[None]:
    """n - W members are asked where R = n - W + 1 are needed to meet every committed write."""

    def recovery(self: Configuration) -> int:
        return len(self.members) - self.copies

    return replaced(Configuration, "recovery", property(recovery))


def call_the_unknown_refused() -> AbstractContextManager[None]:
    """A client is told that its write did not happen, whatever was sent."""

    def failure(attempt: Attempt, code: str, reason: str) -> TrikvError:
        return Refused(code, reason)

    return replaced(Coordinator, "_failure", staticmethod(failure))


def halve_majorities() -> AbstractContextManager[None]:
    """A majority of n is n // 2."""

    def majority(self: Replicas) -> int:
        return len(self) // 2

    return replaced(Replicas, "majority", property(majority))


def take_versions_from_the_clock() -> AbstractContextManager[None]:
    """Versions are the time of day on the coordinator's machine, which each term's has a little wrong."""
    real = Slot.next_version

    def next_version(self: Slot) -> Version:
        unique = real(self).seq  # two readings of a clock may be the same
        wrong_by_s = term_of(self.epoch) * 7 % 5
        return Version(0, round((trio.current_time() + wrong_by_s) * 1e6) << 20 | unique)

    return replaced(Slot, "next_version", next_version)


def leave_out_pending_first() -> AbstractContextManager[None]:
    """A compare-and-set compares with what it reads, while another write may still be on its way there."""

    async def read_for_write(self: Coordinator, slot: Slot, key: bytes, deadline_s: float) -> Record | None:
        return await self.own_read(slot, key, deadline_s, exclusive=True)

    return replaced(Coordinator, "_read_for_write", read_for_write)


@contextmanager
def restart_in_the_old_epoch() -> Iterator[None]:
    """A master that starts goes on as the one before it: under its term, and by its name."""

    def with_term(self: Cluster, term: int) -> Cluster:
        return replace(self, term=self.term or term)

    def hello(self: Master) -> Hello:
        return Hello("master", self.cluster.cluster, f"{self.cluster.term}/the one", self.cluster.cluster)

    with replaced(Cluster, "with_term", with_term), replaced(Master, "hello", hello):
        yield


def compare_nothing() -> AbstractContextManager[None]:
    """Nobody brings replicas together whose background copies were lost."""

    def is_due(self: AntiEntropy, slot: Slot, up: Sequence[Target]) -> bool:
        return False

    return replaced(AntiEntropy, "_is_due", is_due)


# --- changing configurations ------------------------------------------------------------------------------------------


def settle_without_the_sweep() -> AbstractContextManager[None]:
    """A partition is called settled though nobody went through its keys."""

    async def settle(self: Settling, group: Sequence[Slot]) -> list[Slot]:
        await trio.lowlevel.checkpoint()
        return list(group)

    return replaced(Settling, "_settle", settle)


def list_too_few() -> AbstractContextManager[None]:
    """R members of each configuration list their keys, the active one included; a leftover on the others stays."""

    def choose(slot: Slot) -> list[Target] | None:
        chosen: dict[Member, Target] = {}
        for past in slot.history:
            up = [target for target in past.targets if target.standing is Standing.UP]
            if len(up) < past.recovery_need():
                return None
            chosen.update({target.member: target for target in up[: past.recovery_need()]})
        return None if slot.blocked or slot.closed else list(chosen.values())

    return replaced(settle, "choose_all", choose)


@contextmanager
def ask_only_the_last() -> Iterator[None]:
    """What was committed under former configurations is looked for in the active one."""
    find: Any = vars(coordinator)["fetch_history"]
    choose = settle.choose_all

    def without_past(slot: Slot) -> Slot:
        slot = copy(slot)
        slot.history = slot.history[-1:]
        return slot

    async def fetch(slot: Slot, *rest: Any, **options: Any) -> Record | None:
        found: Record | None = await find(without_past(slot), *rest, **options)
        return found

    def choose_last(slot: Slot) -> list[Target] | None:
        return choose(without_past(slot))

    with replaced(coordinator, "fetch_history", fetch), replaced(settle, "choose_all", choose_last):
        yield


def repair_nothing() -> AbstractContextManager[None]:
    """A repair answers what it found, and leaves it where it is."""
    real = Coordinator.repair

    async def repair(
        self: Coordinator, slot: Slot, key: bytes, deadline_s: float, *, besides: Target | None = None
    ) -> Record | None:
        if key in slot.pending:
            return await real(self, slot, key, deadline_s)
        return await _find(self, slot, key, deadline_s, besides)

    return replaced(Coordinator, "repair", repair)


def copy_blindly() -> AbstractContextManager[None]:
    """The newest that was listed goes to whoever lacks it, as it is, whoever was silent and whatever others hold."""

    def find(slot: Slot, held: Mapping[str, Record], heard: Mapping[Member, Target]) -> list[Target] | None:
        version = max(record.version for record in held.values())
        members = [member for member in slot.configuration.members if member in heard]
        return [heard[m] for m in members if m.worker not in held or held[m.worker].version < version]

    return replaced(settle, "find_lacking", find)


def settle_whatever_is_there() -> AbstractContextManager[None]:
    """Who has settled a partition says so, though its configuration may have changed meanwhile."""

    async def note_settled(self: Master, slots: Sequence[Slot]) -> list[Slot]:
        def change(cluster: Cluster) -> Cluster:
            partitions = list(cluster.partitions)
            for slot in slots:
                partitions[slot.index] = partitions[slot.index].as_settled()
            return replace(cluster, partitions=tuple(partitions))

        await trio.sleep(1.5)  # it takes its time
        async with self.changing:
            await self.change(change)
        return list(slots)

    def is_current(self: Settling, slot: Slot) -> bool:
        return True

    @contextmanager
    def both() -> Iterator[None]:
        with replaced(Master, "note_settled", note_settled), replaced(Settling, "_is_current", is_current):
            yield

    return both()


def discard_nothing() -> AbstractContextManager[None]:
    """A joiner keeps what it held when it was last a member."""

    async def empty(self: Reconciler, due: Sequence[Change]) -> list[Change]:
        await trio.lowlevel.checkpoint()
        return list(due)

    return replaced(Reconciler, "_empty_joiners", empty)


@contextmanager
def discard_late() -> Iterator[None]:
    """Joiners are told to discard what they hold once the change is durable, and under its epoch."""
    real = Reconciler.carry_out
    late_s = 0.1

    async def carry_out(self: Reconciler, due: Sequence[Change]) -> None:
        master = self._master
        slots = master.coordinator.slots
        known = {
            c.partition: {m for past in slots[c.partition].history for m in past.configuration.members} for c in due
        }
        await real(self, due)
        await trio.sleep(late_s)
        for change in due:
            slot = master.coordinator.slots[change.partition]
            for member in change.configuration.members:
                if member not in known[change.partition]:
                    arguments = [slot.index, slot.epoch, member.incarnation]
                    target = master.target(member)
                    target.call(Op.DISCARD, arguments, trio.current_time() + 2, lambda fault, payload: None, 64)

    with discard_nothing(), replaced(Reconciler, "carry_out", carry_out):
        yield


def write_to_what_is_replaced() -> AbstractContextManager[None]:
    """A configuration under which nothing was stored yet is replaced, and writes that had begun still go to it."""

    def note_store(self: Slot, *key: bytes) -> None:
        self.replaceable = False

    return replaced(Slot, "note_store", note_store)


def replace_what_was_used() -> AbstractContextManager[None]:
    """A configuration takes the place of the one before though writes were committed under that."""

    def note_store(self: Slot, *key: bytes) -> None:
        pass

    return replaced(Slot, "note_store", note_store)


MUTANTS = [
    Mutant("relay that stops", Chain(), stop_relays, seed=0),
    Mutant("incarnation unchecked", Sync(), ignore_incarnations, seed=12),
    Mutant("no key lock", Quorum(), lock_nothing, seed=0),
    Mutant("quorum read without write-back", ForgetfulQuorum(), seed=9, plan=CROWDED),
    Mutant("write-back with the old version", Quorum(), repair_with_the_old_version),
    Mutant("n - W instead of R", Quorum(), ask_too_few, seed=3),
    Mutant("unknown reported as refused", Sync(), call_the_unknown_refused, seed=0),
    Mutant("acknowledge before fsync", Sync(), acknowledge_before_fsync, seed=11),
    Mutant("engine that flushes one batch late", Sync(), flush_one_batch_late, seed=5),
    Mutant("acknowledge before the tail", Chain(), acknowledge_before_the_tail, seed=0),
    Mutant("majority of n // 2", Quorum(), halve_majorities, seed=3),
    Mutant("version from the wall clock", Sync(), take_versions_from_the_clock, seed=2),
    Mutant("store that overwrites newer", Sync(), overwrite_newer, seed=1),
    Mutant("no anti-entropy", Async(), compare_nothing, seed=0),
    Mutant("no epoch check", Sync(), forget_epochs),
    Mutant("pending-first left out", Chain(), leave_out_pending_first),
    Mutant("restart in the old epoch", Sync(), restart_in_the_old_epoch),
    Mutant("promise kept in memory", Sync(), promise_in_memory),
    Mutant("sync head first", HeadFirstSync(), seed=7, plan=CHANGING),
    Mutant("sync in parallel", ParallelSync(), seed=7, plan=CHANGING),
    Mutant("chain read from the head", HeadReadChain(), seed=7, plan=CHANGING),
    Mutant("settle without the sweep", Sync(), settle_without_the_sweep, seed=0, plan=CHANGING),
    Mutant("settle: R listed", Quorum(), list_too_few),
    Mutant("settle: only the last configuration asked", Quorum(), ask_only_the_last, seed=25, plan=CHANGING),
    Mutant("settle: n - W instead of R", Quorum(), ask_too_few, seed=5, plan=CHANGING),
    Mutant("settle: repair without write-back", Quorum(), repair_nothing, seed=0, plan=CHANGING),
    Mutant("settle: ends after the next change", Quorum(), settle_whatever_is_there, seed=8, plan=CHANGING),
    Mutant("discard after persisting", Sync(), discard_late, seed=1, plan=CHANGING),
    Mutant("used configuration replaced", Sync(), replace_what_was_used),
]

# Nobody has caught these yet: 40 runs did not, and no schedule was made for them. A joiner that keeps what it held does
# harm only once tombstones are forgotten; until then it is superseded.
UNCAUGHT = [
    Mutant("settle: copies whatever is newest", Quorum(), copy_blindly, plan=CHANGING),
    Mutant("joiner without discard", Sync(), discard_nothing, plan=CHANGING),
    Mutant("replaced configuration still written", Sync(), write_to_what_is_replaced, plan=CHANGING),
]
BY_NAME = {mutant.name: mutant for mutant in MUTANTS}
