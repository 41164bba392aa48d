"""Changing configurations: from what the planner wants to what is in force, without losing anything on the way.

One loop compares the document with the workers that are up (`core/planning.py`) and carries out what follows, a step at
a time:

1. The members that join a partition discard what they hold of it, under the present epoch, and say so *before* anything
   else: from then on they count only for what they are given. Under AP modes what only they hold is first offered to
   the others. Their answer is their sign of life; a worker that does not answer is avoided, and another joins instead.
2. The next generation and the longer history become durable, in one conditional write for many partitions, and are
   served at once. Operations under way finish under the old epoch: committed, or unknown.

A configuration that this coordinator made itself, and in which nothing was committed yet, is replaced and not kept in
the history: its members may be gone before it was ever of use. It is closed before that (`Stage.CLOSED`), and what was
sent under it and is acknowledged too late ends unknown.

The rest is `healing/settle.py`'s. Nothing here is remembered outside the document, so a master that starts anew goes on
where its predecessor was. Where a member is gone, all its partitions change at once; so they do for another mode; those
that only move, `MOVES_TOGETHER` at a time, since an unsettled partition's reads cost more.

What operators ask for (`operations.py`) alters the document's wishes, and this loop does the rest.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import trio

from trikv.api import Promise
from trikv.coordinator.ask import Question, ask_all
from trikv.coordinator.coordinator import Coordinator
from trikv.coordinator.listing import Pages, group_by_target
from trikv.coordinator.partition import PartitionState, Stage
from trikv.coordinator.repair import copy_record
from trikv.coordinator.replicas import NotEnough, Target
from trikv.core.calls import Op, is_epoch
from trikv.core.configuration import Cluster, Member, Partition
from trikv.core.errors import Fault, Refused
from trikv.core.planning import (
    ConfigurationChange,
    Health,
    Reason,
    Wanted,
    can_settle,
    choose_workers,
    draw_table,
    is_present,
    plan,
)
from trikv.core.quorums import Availability, Need, Needs
from trikv.core.record import generation_of, spell_epoch
from trikv.core.session import PeerError
from trikv.healing.digests import ask_digests
from trikv.healing.hung import Hung
from trikv.master.document import Document
from trikv.master.events import EventLog
from trikv.master.membership import Membership
from trikv.net.signal import Signal, wait_any
from trikv.registry import Registry, needs_of

TICK_S: Final = 0.5
DISCARD_TIMEOUT_S: Final = 2.0
MOVES_TOGETHER: Final = 128
_SALVAGE_ROWS: Final = 256

_log = logging.getLogger(__name__)


class Reconciler:
    """All changes of one master's configurations.

    Args:
      forget: takes a worker out of the document that was drained and has gone.
      min_copies: the fewest members that a configuration is reduced to when workers are lost.
    """

    def __init__(
        self,
        document: Document,
        membership: Membership,
        coordinator: Coordinator,
        registry: Registry,
        hung: Hung,
        events: EventLog,
        *,
        forget: Callable[[str], Awaitable[None]],
        min_copies: int,
    ) -> None:
        self._document = document
        self._membership = membership
        self._coordinator = coordinator
        self._registry = registry
        self._hung = hung
        self._events = events
        self._forget = forget
        self._min_copies = min_copies
        self.stepping = trio.Lock()  # steps 1 and 2 of one change at a time
        self._noted_up = Signal()
        self._wanted: Wanted | None = None
        # What that was drawn for: the workers that hold data, those that get no more, and the zone of each.
        self._asked: tuple[Set[str], Set[str], Mapping[str, str]] | None = None
        self._returned: set[str] = set()  # came up, and what they hold was not looked at yet
        self._returned_s: dict[str, float] = {}  # when they came up
        self._shares: tuple[Cluster, Mapping[str, int]] | None = None  # in how many partitions each worker counts
        self._quiet: tuple[Cluster, Mapping[str, Health]] | None = None  # what last gave no reason to change anything

    # --- the loop -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            if self._document.cluster.formed:
                try:
                    async with self.stepping:
                        await self._step()
                except Refused as error:
                    _log.info("a change has to wait: %s", error.detail)
            # Without anything to do it waits for news: of workers, which every beat may bring, or of the document. What
            # had to wait is tried again.
            patience_s = math.inf if self._is_quiet(self.health()) and not self._returned else TICK_S
            await wait_any(
                (self._document.changed, self._membership.changed, self._hung.changed, self._noted_up), patience_s
            )

    def note_up(self, worker: str) -> None:
        """That worker was not up, and is now."""
        self._returned.add(worker)
        self._returned_s[worker] = trio.current_time()
        self._noted_up.notify()

    @property
    def at_rest(self) -> bool:
        """Is nothing under way, no worker to be looked at, and nothing to be changed in things as they are now?"""
        is_known = not self._returned and not self._hung
        return is_known and not self.stepping.locked() and self._is_quiet(self.health())

    async def _step(self) -> None:
        """Change what should change now, as far as it can be."""
        for worker in sorted(self._returned):
            self._returned.discard(worker)  # first, since it may come back once more meanwhile
            enlisted = self._document.cluster.workers.get(worker)
            if enlisted is None:
                continue
            if enlisted.member in self._hung or not await self._welcome(worker):
                self._returned.add(worker)
        self._tell_shares()
        due = self._plan()
        if not due:
            await self._let_go()
            return
        most_pressing = min(change.reason for change in due)
        if most_pressing is Reason.MODE and self._is_any_awaited():
            # What they hold is offered under an AP mode only.
            states = self._coordinator.partitions
            due = [change for change in due if not states[change.partition].is_ap]
        if most_pressing is Reason.MOVE:
            unsettled = sum(not partition.settled for partition in self._document.cluster.partitions)
            due = due[: max(0, MOVES_TOGETHER - unsettled)]
        else:
            due = [change for change in due if change.reason is most_pressing]
        if due:
            await self.carry_out(due)

    async def _let_go(self) -> None:
        """Forget workers that were drained and have gone: they hold nothing, and are not expected back."""
        cluster = self._document.cluster
        gone = [
            worker.worker
            for worker in cluster.workers.values()
            if worker.draining
            and self._membership.watched[worker.worker].evictable
            and not cluster.partitions_of(worker.member)
        ]
        for worker in gone:
            with suppress(Refused):  # it holds something by now
                await self._forget(worker)

    def _is_any_awaited(self) -> bool:
        """Is a worker up that was not looked at yet? It is waited for as long as a silent one, and no longer."""
        oldest_s = trio.current_time() - self._membership.down_after_s
        return any(self._returned_s[worker] > oldest_s for worker in self._returned)

    def _plan(self) -> list[ConfigurationChange]:
        cluster = self._document.cluster
        health = self.health()
        if self._is_quiet(health):
            return []
        workers = choose_workers(cluster, health)
        if not workers:
            return []
        avoided = {w.worker for w in cluster.workers.values() if w.member in self._hung}
        asked = (workers, avoided, cluster.zones)
        if self._wanted is None or self._asked != asked or self._disagrees(self._wanted):
            self._wanted, self._asked = draw_table(cluster, workers, avoided), asked
        copies = {n: self.copies(cluster.mode, n) for n in range(1, cluster.replicas + 1)}
        needs = {n: self._needs(cluster.mode, n, stated) for n, stated in copies.items()}
        states = self._coordinator.partitions
        unused = {state.index for state in states if state.is_unused}
        due = plan(
            cluster,
            self._wanted,
            health,
            copies.__getitem__,
            needs.__getitem__,
            self._min_copies,
            self._promise,
            unused,
        )
        changes = [change for change in due if not states[change.partition].is_blocked]
        self._quiet = None if changes else (cluster, health)
        return changes

    def _is_quiet(self, health: Mapping[str, Health]) -> bool:
        """Has nothing happened since nothing was to be changed?"""
        return self._quiet is not None and self._quiet[0] is self._document.cluster and self._quiet[1] == health

    def copies(self, mode: str, n: int) -> int:
        """W of so many replicas; more than there are where the strategy does not know so few."""
        try:
            stated = self._registry.strategy(mode).copies(n)
        except Exception as error:  # noqa: BLE001 a strategy is a stranger's code
            _log.debug("mode %s cannot have %d replicas: %r", mode, n, error)
            return n + 1
        return stated if 1 <= stated <= n else n + 1

    def _needs(self, mode: str, n: int, copies: int) -> Needs:
        """What the mode needs of `n` replicas; what cannot be had where it does not know so few."""
        return Needs(Need(n + 1), Need(n + 1)) if copies > n else needs_of(self._registry.strategy(mode), n, copies)

    def _disagrees(self, wanted: Wanted) -> bool:
        return len(wanted.table) != len(self._document.cluster.partitions)

    def _promise(self, mode: str) -> Promise:
        return self._registry.strategy(mode).promise

    def can_settle(self, state: PartitionState, up: Container[str]) -> bool:
        """Are enough members among those that are up to find everything that was committed in the partition?"""
        partition = state.partition
        if state.is_unused:
            partition = replace(partition, history=partition.history[:-1])
        return not state.is_blocked and can_settle(self._document.cluster, partition, up, self._promise)

    def health(self) -> Mapping[str, Health]:
        """By worker, for those that live the life in which they are enlisted."""
        return self._membership.health(self._document.cluster, self._hung)

    # --- steps 1 and 2 ------------------------------------------------------------------------------------------------

    async def carry_out(self, due: Sequence[ConfigurationChange]) -> None:
        """Steps 1 and 2 for these partitions, those that cannot be prepared left out. The caller holds `stepping`."""
        states = self._coordinator.partitions
        before = {change.partition: states[change.partition].partition for change in due}
        ready = await self._empty_joiners(await self._with_life(due))
        replaced = {c.partition for c in ready if states[c.partition].is_unused}
        closed = {partition for partition in replaced if states[partition].stage is not Stage.CLOSED}
        for partition in closed:
            states[partition].close()  # from here on nothing is stored under it, so it stays unused
        now_due = {change.partition: change.configuration for change in ready}

        def change(cluster: Cluster) -> Cluster:
            partitions = list(cluster.partitions)
            for index, configuration in now_due.items():
                # Not where it was settled meanwhile, another term has begun, or a newcomer is another by now: what was
                # prepared is out of date.
                newcomers = set(configuration.members) - set(before[index].active.members)
                is_current = self._coordinator.partitions[index] is states[index] and partitions[index] == before[index]
                if is_current and all(is_present(cluster, member) for member in newcomers):
                    partitions[index] = partitions[index].changed_to(configuration, replaces=index in replaced)
            return replace(cluster, partitions=tuple(partitions))

        def reopen() -> None:
            for partition in closed:
                if states[partition] is self._coordinator.partitions[partition]:
                    states[partition].reopen()
            self._coordinator.changed.notify()  # writers may be waiting for those that are open again

        try:
            async with self._document.changing:
                await self._document.change(change, made_here=True)
        except Refused:
            reopen()
            raise
        reopen()  # all else leaves in doubt what the document says of them
        changed = [c for c in ready if self._coordinator.partitions[c.partition] is not states[c.partition]]
        for reason in Reason:
            of_reason = [c for c in changed if c.reason is reason]
            if of_reason:
                self._tell(reason, of_reason, before)

    async def renew(self, partitions: Sequence[int]) -> list[int]:
        """Give settled partitions a new generation, so that tombstones of older ones may be forgotten; those it did."""
        renewed: list[int] = []

        def change(cluster: Cluster) -> Cluster:
            changed = list(cluster.partitions)
            for index in partitions:
                if changed[index].settled and not self._coordinator.partitions[index].is_blocked:
                    changed[index] = changed[index].renewed()
                    renewed.append(index)
            return replace(cluster, partitions=tuple(changed))

        async with self.stepping, self._document.changing:
            await self._document.change(change)
        return renewed

    def _tell_shares(self) -> None:
        """Tell which workers hold data now and did not before, and the other way round."""
        cluster = self._document.cluster
        if self._shares is not None and self._shares[0] is cluster:
            return
        counts = Counter(m.worker for p in cluster.partitions for m in {m for c in p.history for m in c.members})
        before = self._shares[1] if self._shares is not None else counts
        self._shares = (cluster, counts)
        for worker, enlisted in cluster.workers.items():
            if counts[worker] and worker not in before:
                self._events.note("worker_joined", worker=worker, partitions=counts[worker])
            elif worker in before and not counts[worker]:
                kind = "worker_drained" if enlisted.draining else "worker_left"
                self._events.note(kind, worker=worker)

    def _tell(self, reason: Reason, changes: Sequence[ConfigurationChange], before: Mapping[int, Partition]) -> None:
        epochs = [self._coordinator.partitions[c.partition].epoch for c in changes]
        joined: Counter[str] = Counter()
        left: Counter[str] = Counter()
        for change in changes:
            old = set(before[change.partition].active.members)
            new = set(change.configuration.members)
            joined.update(m.worker for m in new - old)
            left.update(m.worker for m in old - new)
        if reason is Reason.EVICT:
            for worker in sorted(left):
                if worker not in (self._wanted.workers if self._wanted else ()):
                    if watched := self._membership.watched.get(
                        worker
                    ):  # else it was removed, in a later life that held nothing
                        watched.note_evicted()
                    self._events.note("worker_evicted", worker=worker, partitions=left[worker])
        self._events.note(
            "configuration_changed",
            reason=reason.name.lower(),
            partitions=len(changes),
            epochs={"first": spell_epoch(min(epochs)), "last": spell_epoch(max(epochs))},
            joins=dict(joined),
            leaves=dict(left),
        )

    async def _with_life(self, due: Sequence[ConfigurationChange]) -> list[ConfigurationChange]:
        """Step 1: the changes whose members all give a sign of life. A joining member's discard is one.

        A worker that has just lost its disk may still be thought to be up, and would be a member that cannot be asked.
        A member that is known to be down stays what it is.
        """
        asked: dict[Member, Target] = {}
        for change in due:
            known = {m for c in self._coordinator.partitions[change.partition].partition.history for m in c.members}
            asked.update({m: self._membership.target(m) for m in change.configuration.members if m in known})
        asked = {member: target for member, target in asked.items() if target.availability is not Availability.DOWN}
        alive: set[Member] = set()
        questions = [Question(target, []) for target in asked.values()]

        def heard(number: int, fault: int, payload: list[Any]) -> None:
            if fault == Fault.OK:
                alive.add(questions[number].target.member)

        await ask_all(Op.HEARTBEAT, questions, trio.current_time() + DISCARD_TIMEOUT_S, heard)
        silent = asked.keys() - alive
        return [change for change in due if silent.isdisjoint(change.configuration.members)]

    async def _empty_joiners(self, due: Sequence[ConfigurationChange]) -> list[ConfigurationChange]:
        """Step 1: the changes whose joiners have emptied their partition, and said so."""
        states = self._coordinator.partitions
        joiners: dict[Target, list[PartitionState]] = defaultdict(list)
        for change in due:
            state = states[change.partition]
            known = {m for c in state.partition.history for m in c.members}
            for member in change.configuration.members:
                if member not in known:
                    joiners[self._membership.target(member)].append(state)
        unready: set[int] = set()
        for target, asked in joiners.items():
            emptied = await self._empty(target, asked)
            unready |= {state.index for state in asked if state.index not in emptied}
        return [change for change in due if change.partition not in unready]

    async def _welcome(self, worker: str) -> bool:
        """A worker is back: what it still holds of partitions that are not its own any more counts for nothing.

        Answers whether all of it could be seen to.
        """
        member = self._document.cluster.workers[worker].member
        target = self._membership.target(member)
        if target.availability is not Availability.UP:
            return target.availability is Availability.DOWN  # then it will be back, or not
        up = {each for each, health in self.health().items() if health.up}
        foreign = [
            state
            for state in self._coordinator.partitions
            if not state.is_blocked and all(member not in c.members for c in state.partition.history)
        ]
        states = [state for state in foreign if self.can_settle(state, up)]
        deadline_s = trio.current_time() + DISCARD_TIMEOUT_S
        held = await ask_digests({target: states}, deadline_s)
        if states and not held:
            self._hung.note(target)
        leftover = [state for state in states if state.index in held and held[state.index][member].rows]
        return len(await self._empty(target, leftover)) == len(leftover) and len(held) == len(foreign)

    async def _empty(self, target: Target, states: Sequence[PartitionState]) -> set[int]:
        """Have a worker discard partitions of which it is no member; answers those that it said it has discarded."""
        ready = list(states)
        if ap := [state for state in states if state.strategy.promise is Promise.AP]:
            unready = await self._salvage(target, ap)
            ready = [state for state in states if state.index not in unready]
        emptied: set[int] = set()
        answered = not ready

        def heard(number: int, fault: int, payload: list[Any]) -> None:
            nonlocal answered
            answered |= fault != Fault.LATE
            if fault == Fault.OK:
                emptied.add(ready[number].index)
            elif fault == Fault.STALE and is_epoch(payload):
                ready[number].report_stale(payload[0])

        questions = [Question(target, [state.index, state.epoch, target.member.incarnation]) for state in ready]
        await ask_all(Op.DISCARD, questions, trio.current_time() + DISCARD_TIMEOUT_S, heard)
        if not answered:
            self._hung.note(target)
        return emptied

    async def _salvage(self, joiner: Target, states: Sequence[PartitionState]) -> set[int]:
        """Offer what a returning worker holds of AP partitions to their members, before it discards it.

        Answers the partitions in which that did not succeed. What is older than the partition's last forgotten
        tombstone is not offered, since it may have been deleted meanwhile: it is counted, and said.
        """
        deadline_s = trio.current_time() + DISCARD_TIMEOUT_S
        holds = await ask_digests({joiner: states}, deadline_s)
        if not holds:
            self._hung.note(joiner)
        unready = {state.index for state in states if state.index not in holds}
        states = [state for state in states if state.index in holds and holds[state.index][joiner.member].rows]
        if not states:
            return unready
        by_index = {state.index: state for state in states}
        members = {state: [t for t in state.targets if t.availability is Availability.UP] for state in states}
        plan = group_by_target({state: [joiner, *members[state]] for state in states})
        saved = lost = 0
        try:
            async for rows in Pages(plan, rows=_SALVAGE_ROWS, timeout_s=DISCARD_TIMEOUT_S):
                deadline_s = trio.current_time() + DISCARD_TIMEOUT_S  # for all copies of a page
                for key, (partition, held) in rows.items():
                    mine = held.pop(joiner.member.worker, None)
                    if (
                        mine is None
                        or partition in unready
                        or any(record.version >= mine.version for record in held.values())
                    ):
                        continue
                    state = by_index[partition]
                    if generation_of(mine.version.epoch) < state.partition.forgot:
                        lost += 1
                        continue
                    if not members[state]:
                        unready.add(partition)
                        continue
                    try:
                        await copy_record(state, key, mine.version, joiner, members[state], deadline_s)
                        saved += 1
                    except (NotEnough, PeerError):
                        unready.add(partition)
        except Refused:
            return unready | set(by_index)
        if saved:
            self._events.note("records_salvaged", worker=joiner.member.worker, records=saved)
        if lost:
            self._events.note("records_lost", worker=joiner.member.worker, records=lost)
        return unready
