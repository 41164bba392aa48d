"""What operators ask of a running cluster: another mode, fewer workers, certainty.

A wish is written into the document, durably, and the loop of `reconcile.py` fulfils it, also under the next master. One
wish that moves data at a time: while it is being fulfilled, another is refused. What a wish would do can be had
beforehand, as a plan.

A switch of the mode ends with a certificate: which epochs, how many partitions and keys, what had to be repaired, how
long it took, and the longest that any client waited meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import trio

from trikv.api import Promise, Strategy
from trikv.coordinator.ask import Question, ask_all
from trikv.coordinator.coordinator import Coordinator, Longest
from trikv.coordinator.listing import group_by_target
from trikv.coordinator.partition import PartitionState
from trikv.core.calls import Op
from trikv.core.configuration import Cluster, Configuration, Partition, WorkerEntry
from trikv.core.errors import Fault, Refused
from trikv.core.placement import moves, place
from trikv.core.planning import Health, choose_workers, is_present
from trikv.core.quorums import Availability, count_to_stop
from trikv.core.record import JUMP_MAX, generation_of, spell_epoch
from trikv.healing.antientropy import AntiEntropy
from trikv.healing.digests import ask_digests
from trikv.healing.hints import Hints
from trikv.healing.settle import Settling
from trikv.healing.tombstones import Forgetting
from trikv.master.document import Document, note_begun
from trikv.master.enlist import Enlisting
from trikv.master.events import EventLog
from trikv.master.membership import Membership
from trikv.master.reconcile import Reconciler
from trikv.registry import Registry, can_keep, needs_of

DISK_TIMEOUT_S: Final = 5.0
COPIES_S: Final = 2.0  # for copies that are under way; a disk that takes longer is no second replica just now
COPIES_TICK_S: Final = 0.01
WEIGHING_S: Final = 0.5  # it is an estimate, and an operator waits for what follows


class Operations:
    """What one master's operators may ask for. Everything here raises `Refused` with the reason."""

    def __init__(
        self,
        document: Document,
        membership: Membership,
        coordinator: Coordinator,
        registry: Registry,
        events: EventLog,
        *,
        enlisting: Enlisting,
        reconciler: Reconciler,
        settling: Settling,
        hints: Hints,
        antientropy: AntiEntropy,
        tombstones: Forgetting,
    ) -> None:
        self._document = document
        self._membership = membership
        self._coordinator = coordinator
        self._registry = registry
        self._events = events
        self._enlisting = enlisting
        self._reconciler = reconciler
        self._settling = settling
        self._hints = hints
        self._antientropy = antientropy
        self._tombstones = tombstones
        self._measure: _Measure | None = None  # of the latest switch
        self.upheavals = 0  # rises before and after what may change the promise, or lose what was committed

    # --- what is under way --------------------------------------------------------------------------------------------

    def operation(self) -> dict[str, Any] | None:
        """The operator's wish that is being fulfilled; None if there is none."""
        cluster = self._document.cluster
        behind = sum(
            p.active.mode != cluster.mode or any(c.mode != cluster.mode for c in p.history) for p in cluster.partitions
        )
        if behind:
            return {"kind": "mode", "mode": cluster.mode, "partitions_left": behind}
        for worker in cluster.workers.values():
            if worker.draining and (left := cluster.partitions_of(worker.member)):
                return {"kind": "drain", "worker": worker.worker, "partitions_left": left}
        return None

    def progress(self) -> dict[str, Any]:
        """How far the cluster is from being settled."""
        cluster, done = self._document.cluster, self._settling.progress
        unsettled = [index for index, partition in enumerate(cluster.partitions) if not partition.settled]
        return {
            "settling": len(unsettled),
            "settled": done.partitions,
            "keys_compared": done.keys_compared,
            "keys_moved": done.keys_moved,
            "keys_repaired": done.keys_repaired,
            "bytes_moved": done.bytes_moved,
            "seconds_left": self._settling.seconds_left(len(unsettled)),
            "operation": self.operation(),
            "hints": self._hints.progress(),
            "anti_entropy": self._antientropy.progress(),
            "tombstones": self._tombstones.progress(),
        }

    def _refuse_if_busy(self) -> None:
        if operation := self.operation():
            what = f"a switch to mode {operation['mode']}" if operation["kind"] == "mode" else (
                f"draining worker {operation['worker']}"
            )  # fmt: skip
            raise Refused(
                "operation_under_way",
                f"{what} is under way, {operation['partitions_left']:,} partitions are left; wait for its end",
            )

    @contextmanager
    def _upheaval(self) -> Iterator[None]:
        self.upheavals += 1
        try:
            yield
        finally:
            self.upheavals += 1

    # --- the mode -----------------------------------------------------------------------------------------------------

    def plan_mode(self, mode: str) -> dict[str, Any]:
        """What a switch to that mode would do."""
        cluster = self._document.cluster
        strategy = self._strategy(mode)
        up = self._up()
        members = {m for p in cluster.partitions for m in p.active.members}
        away = sorted({m.worker for m in members if m.worker not in up or not is_present(cluster, m)})
        notes = [f"From now on: {strategy.gives_up}"]
        if self._registry.strategy(cluster.mode).promise is Promise.AP and strategy.promise is Promise.CP:
            notes.append(
                "Writes that only an unreachable replica holds cannot be asked for: they are lost. "
                "Reads are linearizable from the end of the switch on."
            )
        needs = needs_of(strategy, cluster.replicas, strategy.copies(cluster.replicas))
        for what, need in (("write", needs.write), ("read", needs.read)):
            rows = (p.active.members for p in cluster.partitions if len(p.active.members) == cluster.replicas)
            if not all(need.is_met([m.worker not in away for m in row]) for row in rows):
                until = f"until {', '.join(away)} is back or replaced, some wait"
                notes.append(f"Mode {mode} needs {need.describe(cluster.replicas)} for a {what}: {until}.")
        return {
            "mode": mode,
            "from": cluster.mode,
            "promise": strategy.promise.value,
            "partitions": 0 if mode == cluster.mode else len(cluster.partitions),
            "members_up": len({m.worker for m in members}) - len(away),
            "cannot_ask": away,
            "gives_up": strategy.gives_up,
            "notes": notes,
        }

    async def switch_mode(self, mode: str) -> dict[str, Any]:
        """Switch, wait until every partition is settled under it, and answer the certificate of the switch.

        A switch to that mode which is under way already is waited for, and its certificate counts from its beginning;
        if another master began it, from now.
        """
        strategy = self._strategy(mode)
        async with self._document.changing:  # what is being written may be another mode
            before = self._document.cluster
        if not before.formed:
            raise Refused("forming", self._enlisting.forming_detail())
        operation = self.operation()
        if mode != before.mode:
            self._refuse_if_busy()
        elif operation is None or operation["kind"] != "mode":
            return {"mode": mode, "from": mode, "partitions": 0}
        else:
            note_begun()
        former = next((p.history[0].mode for p in before.partitions if p.history[0].mode != mode), mode)
        up = self._up()
        stuck = [state.index for state in self._coordinator.partitions if not self._reconciler.can_settle(state, up)]
        if stuck:
            raise Refused(
                "unavailable",
                f"{len(stuck):,} partitions, {stuck[0]} the first, have too few members up to be asked what they hold; "
                "bring workers back first",
            )
        if mode != before.mode or self._measure is None:
            self._measure = _Measure(self._coordinator, self._settling)
        with self._measure as measure:
            if mode != before.mode:
                async with self._document.changing:
                    self._refuse_if_busy()
                    with self._upheaval():
                        await self._document.change(lambda cluster: replace(cluster, mode=mode))
                self._events.note("mode_switching", mode=mode, before=former, partitions=len(before.partitions))
            while self.operation():
                await self._document.changed.wait()
        epochs = [state.epoch for state in self._coordinator.partitions]
        certificate = {
            "mode": mode,
            "from": former,
            "promise": strategy.promise.value,
            "epochs": {"first": spell_epoch(min(epochs)), "last": spell_epoch(max(epochs))},
            "partitions": len(before.partitions),
            **measure.results(),
        }
        if mode != before.mode:
            self._events.note("mode_switched", **certificate)
        return certificate

    def _strategy(self, mode: str) -> Strategy:
        strategy = self._registry.strategy(mode)
        replicas = self._document.cluster.replicas
        copies = strategy.copies(replicas)
        if not can_keep(copies, replicas):
            raise Refused(
                "conflict", f"mode {mode} keeps {copies} copies of each write, and this cluster has {replicas} replicas"
            )
        return strategy

    # --- workers ------------------------------------------------------------------------------------------------------

    async def plan_drain(self, worker: str) -> dict[str, Any]:
        """What draining that worker would move, and whereto."""
        enlisted = self._worker(worker)
        cluster = self._document.cluster
        drained = replace(cluster, workers={**cluster.workers, worker: replace(enlisted, draining=True)})
        self._refuse_to_drain_last(drained, worker)
        plan = await self._describe_moves(drained, self._reconciler.health())
        return {"worker": worker, **plan}

    async def drain(self, worker: str) -> dict[str, Any]:
        """Have a worker emptied, and let go once it is stopped. Answers the plan, and goes on by itself."""
        plan = await self.plan_drain(worker)
        if await self._set_draining(worker, draining=True):
            self._events.note("worker_draining", worker=worker, partitions=plan["partitions"])
        return plan

    async def undrain(self, worker: str) -> dict[str, Any]:
        """It may hold data after all."""
        if await self._set_draining(worker, draining=False):
            self._events.note("worker_undrained", worker=worker)
        return {"worker": worker}

    async def remove(self, worker: str) -> dict[str, Any]:
        """Forget a worker that is gone, and holds nothing that counts."""
        enlisted = self._worker(worker)
        if left := self._document.cluster.partitions_of(enlisted.member):
            raise Refused(
                "unsafe",
                f"worker {worker} holds copies of {left:,} partitions; drain it first, with trikv workers drain "
                f"{worker}, and if it is down for good, wait until the others have replaced it",
            )
        if self._membership.watched[worker].availability is not Availability.DOWN:
            raise Refused("conflict", f"worker {worker} is running and would enlist again; stop it, then remove it")
        await self._enlisting.forget(worker)
        return {"worker": worker}

    async def plan_join(self) -> dict[str, Any]:
        """What would move if every worker that is up had a share."""
        health = {w: h._replace(steady=h.up) for w, h in self._reconciler.health().items()}
        plan = await self._describe_moves(self._document.cluster, health)
        return {"workers": sorted(plan["to"]), **plan}

    def safe_to_stop(self, worker: str) -> tuple[bool, str]:
        """May the worker be stopped now, without anything acknowledged being on too few of those that are left?"""
        return self._judge_stop(worker, {state for state in self._coordinator.partitions if state.copies_under_way()})

    async def safe_to_stop_soon(self, worker: str) -> tuple[bool, str]:
        """`safe_to_stop`, of all that was acknowledged before the question: copies that are under way have a moment to
        arrive. Where much is written there are always some, but none of them takes long."""
        self._worker(worker)
        states = self._coordinator.partitions
        under_way = {state: copies for state in states if (copies := state.copies_under_way())}
        with trio.move_on_after(COPIES_S):
            while under_way:
                await trio.sleep(COPIES_TICK_S)
                under_way = {state: each for state, each in under_way.items() if any(c.under_way for c in each)}
        return self._judge_stop(worker, under_way)

    def _judge_stop(self, worker: str, under_way: Container[PartitionState]) -> tuple[bool, str]:
        """`under_way`: partitions in which a copy of something acknowledged may not have arrived yet."""
        enlisted = self._worker(worker)
        held = 0
        waiting = {"writes": 0, "reads": 0}  # partitions that cannot be written, or read, without it
        for state in self._coordinator.partitions:
            if not any(enlisted.member in each.configuration.members for each in state.history):
                continue
            if state.is_blocked:
                return False, f"partition {state.index} is refused until trikv recover: {state.blocked_because}"
            if not state.partition.settled:
                return False, f"partition {state.index} is being settled"
            others = [t for t in state.targets if t.member != enlisted.member and t.availability is Availability.UP]
            if state.configuration.copies < len(state.targets):  # what is committed need not be on all of them
                if state in under_way or state.missed or self._hints.has(state):
                    return False, f"copies of partition {state.index} have not reached all of its replicas yet"
                if not self._antientropy.has_compared(state):
                    return False, f"the replicas of partition {state.index} have not been compared yet"
            if len(others) < count_to_stop(state.history[-1]):
                return False, f"too few other replicas of partition {state.index} are up"
            able = [target in others for target in state.targets]
            held += 1
            waiting["writes"] += not state.needs.write.is_met(able)
            waiting["reads"] += not state.needs.read.is_met(able)
        paused = [f"{what} of {'all' if n == held else f'{n:,}'} of them" for what, n in waiting.items() if n]
        pause = f"; {' and '.join(paused)} wait until it is back or replaced" if paused else ""
        return True, f"every partition of worker {worker} is whole on the others{pause}"

    def _refuse_to_drain_last(self, drained: Cluster, worker: str) -> None:
        health = self._reconciler.health()
        left = [w for w in choose_workers(drained, health) if w != worker and not drained.workers[w].draining]
        if len(left) < drained.replicas:
            raise Refused(
                "unsafe",
                f"without worker {worker} there are {len(left)} workers for {drained.replicas} replicas; "
                "add one first: trikv worker PORT",
            )

    async def _set_draining(self, worker: str, *, draining: bool) -> bool:
        """Whether it had to be changed."""

        def change(cluster: Cluster) -> Cluster:
            enlisted = replace(cluster.workers[worker], draining=draining)
            return replace(cluster, workers={**cluster.workers, worker: enlisted})

        async with self._document.changing:
            if self._worker(worker).draining is draining:  # an unknown worker may have been forgotten meanwhile
                return False
            if draining:
                self._refuse_if_busy()
                self._refuse_to_drain_last(change(self._document.cluster), worker)
            await self._document.change(change)
        return True

    async def _describe_moves(self, cluster: Cluster, health: Mapping[str, Health]) -> dict[str, Any]:
        """What a cluster that wanted this would move."""
        before = [tuple(m.worker for m in p.active.members) for p in cluster.partitions]
        chosen = choose_workers(cluster, health)
        after = before
        if chosen:
            after = place(
                sorted(chosen), cluster.replicas, partitions=len(before), previous=before, zones=cluster.zones
            )
        to: Counter[str] = Counter()
        partitions = 0
        for move in moves(before, after):
            partitions += 1
            to.update(move.joins)
        size_bytes = await self._weigh(to.total())
        rate = self._settling.rate_bytes
        return {
            "partitions": partitions,
            "copies": to.total(),
            "bytes": size_bytes,
            "seconds": None if size_bytes is None else round(size_bytes / rate, 1),
            "to": dict(sorted(to.items())),
        }

    async def _weigh(self, copies: int) -> int | None:
        """What so many copies of partitions weigh, in bytes, as far as can be asked now; None: no worker answers."""
        up = {state: state.history[-1].up()[:1] for state in self._coordinator.partitions}
        plan = group_by_target(up)
        answers = await ask_digests(plan, trio.current_time() + WEIGHING_S)
        sizes_bytes = [summary.size_bytes for held in answers.values() for summary in held.values()]
        return copies * sum(sizes_bytes) // len(sizes_bytes) if sizes_bytes else None

    # --- certainty ----------------------------------------------------------------------------------------------------

    async def repair(self, *, dry_run: bool) -> dict[str, int]:
        """Compare all replicas of all settled partitions, and mend what differs (`AntiEntropy.repair`)."""
        report = await self._antientropy.repair(dry_run=dry_run)
        if report["repaired"]:
            self._events.note("repaired", keys=report["repaired"])
        return report

    # --- when all else fails ------------------------------------------------------------------------------------------

    async def recover(self, *, accept_loss: bool) -> dict[str, Any]:
        """Go on without what cannot be found any more: of each partition that cannot be settled, what is left of it.

        Without `accept_loss` only say which they are.
        """
        async with self._reconciler.stepping:
            cluster, up = self._document.cluster, self._up()
            since_s = trio.current_time() - self._membership.down_after_s
            doubtful = (w for w, each in self._membership.watched.items() if each.availability is Availability.DOUBTFUL)
            if unsure := sorted(w for w in doubtful if self._membership.watched[w].doubtful_since_s > since_s):
                raise Refused(
                    "unavailable",
                    f"worker {', '.join(unsure)} may yet be heard, and what it holds would be given up; ask again in "
                    f"{self._membership.down_after_s:g} s, when it is up or down",
                )
            stuck = [state for state in self._coordinator.partitions if not self._reconciler.can_settle(state, up)]
            members = {m for state in stuck for c in state.partition.history for m in c.members}
            lost = sorted({m.worker for m in members if m.worker not in up or not is_present(cluster, m)})
            told = {"partitions": [state.index for state in stuck], "lost_members": lost}
            if not accept_loss or not stuck:
                return told
            if not up:
                raise Refused("unavailable", "no worker is up; start one first")
            asked = await self._answering(up) if any(state.is_blocked for state in stuck) else up
            told["not_asked"] = sorted(up - asked)
            if not asked:
                raise Refused("unavailable", "no worker answers from its disk; start one first")
            rescued = {state.index: self._rescued(state, up, asked) for state in stuck}

            def change(cluster: Cluster) -> Cluster:
                partitions = (rescued.get(index, p) for index, p in enumerate(cluster.partitions))
                return replace(cluster, partitions=tuple(partitions))

            with self._upheaval():
                async with self._document.changing:
                    await self._document.change(change)
            self._events.note("recovered", partitions=len(stuck), lost_members=lost)
        return told

    async def _answering(self, workers: Iterable[str]) -> set[str]:
        """The workers whose disks answer; a heartbeat only tells that the process does."""
        answering: set[str] = set()
        members = [self._document.cluster.workers[worker].member for worker in workers]
        questions = [Question(self._membership.target(member), [member.incarnation, []]) for member in members]

        def heard(number: int, fault: int, payload: list[Any]) -> None:
            if fault == Fault.OK:
                answering.add(members[number].worker)

        await ask_all(Op.DIGEST, questions, trio.current_time() + DISK_TIMEOUT_S, heard)
        return answering

    def _rescued(self, state: PartitionState, up: Iterable[str], asked: Iterable[str]) -> Partition:
        """The partition under what is left: all members of each configuration that are up must be asked; where the
        document does not know all configurations, all workers that answer (`asked`)."""
        cluster = self._document.cluster
        history: list[Configuration] = []
        present = set(up)
        for configuration in state.partition.history:
            left = tuple(m for m in configuration.members if m.worker in present and is_present(cluster, m))
            if left:
                history.append(replace(configuration, members=left, copies=1))
        members = history[-1].members if history else tuple(
            cluster.workers[worker].member for worker in sorted(present)[: cluster.replicas]
        )  # fmt: skip
        if state.is_blocked:  # the document is older than the cluster: any of them may hold what it does not know of
            everybody = tuple(cluster.workers[worker].member for worker in sorted(asked))
            history.insert(0, Configuration(everybody, cluster.mode, copies=1))
        elif not history:  # what they may have of former times must at least become alike
            history.append(Configuration(members, cluster.mode, copies=1))
        copies = self._reconciler.copies(cluster.mode, len(members))
        if copies > len(members):
            raise Refused(
                "conflict", f"mode {cluster.mode} cannot have {len(members)} replicas; start more workers first"
            )
        history.append(Configuration(members, cluster.mode, copies))
        known = state.partition.generation
        # Where one leap is not enough, the partition is blocked once more, and recovering it goes on from there.
        generation = min(max(known, generation_of(state.promised)) + 1, known + JUMP_MAX)
        # Nor does it know when tombstones were last forgotten.
        forgot = generation if state.is_blocked else state.partition.forgot
        return replace(state.partition, generation=generation, history=tuple(history), forgot=forgot)

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _worker(self, worker: str) -> WorkerEntry:
        enlisted = self._document.cluster.workers.get(worker)
        if enlisted is None:
            known = ", ".join(sorted(self._document.cluster.workers)) or "none"
            raise Refused("unknown_worker", f"there is no worker {worker}; there are {known}")
        return enlisted

    def _up(self) -> set[str]:
        return self._membership.up(self._document.cluster)


class _Measure:
    """What a switch of the mode costs, while this is entered. Several may measure at once."""

    def __init__(self, coordinator: Coordinator, settling: Settling) -> None:
        self._coordinator = coordinator
        self._settling = settling
        self._began_s = trio.current_time()
        self._before = replace(settling.progress)
        self._longest = Longest()

    def __enter__(self) -> _Measure:
        self._coordinator.longest.add(self._longest)
        return self

    def __exit__(self, *_: object) -> None:
        self._coordinator.longest.discard(self._longest)

    def results(self) -> dict[str, Any]:
        """As a part of the certificate of the switch."""
        before, done = self._before, self._settling.progress
        silent = self._settling.could_not_ask
        return {
            "keys_compared": done.keys_compared - before.keys_compared,
            "keys_repaired": done.keys_repaired - before.keys_repaired,
            "keys_moved": done.keys_moved - before.keys_moved,
            "duration_s": round(trio.current_time() - self._began_s, 3),
            "longest_pause_s": round(self._longest.duration_s, 3),
            "could_not_ask": sorted(worker for worker, when_s in silent.items() if when_s >= self._began_s),
        }
