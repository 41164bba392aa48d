"""What operators ask of a running cluster: another mode, fewer workers, certainty.

A wish is written into the document, durably, and the loop of `reconcile.py` fulfils it, whoever is master by then. One
wish that moves data at a time: while it is being fulfilled, another is refused. What a wish would do can be had
beforehand, as a plan.

A switch of the mode ends with a certificate: which epochs, how many partitions and keys, what had to be repaired, how
long it took, and the longest that any client waited meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import trio

from trikv.api import Promise, Strategy
from trikv.coordinator.ask import Question, ask_all
from trikv.coordinator.partition import Slot
from trikv.coordinator.replicas import Standing, Target
from trikv.core.calls import Op
from trikv.core.configuration import Cluster, Configuration, Enlisted, Partition
from trikv.core.errors import Fault, Refused
from trikv.core.placement import moves, place
from trikv.core.planning import Health, choose_workers, is_present
from trikv.core.record import JUMP_MAX, generation_of, spell_epoch
from trikv.healing.digests import ask_digests
from trikv.master.reconcile import holds

if TYPE_CHECKING:
    from trikv.master.master import Master

DISK_TIMEOUT_S: Final = 5.0
COPIES_S: Final = 2.0  # for copies that are under way; a disk that takes longer is no second replica just now
COPIES_TICK_S: Final = 0.01
WEIGHING_S: Final = 0.5  # it is an estimate, and an operator waits for what follows


class Changes:
    """What one master's operators may ask for. Everything here raises `Refused` with the reason."""

    def __init__(self, master: Master) -> None:
        self._master = master

    # --- what is under way --------------------------------------------------------------------------------------------

    def operation(self) -> dict[str, Any] | None:
        """The operator's wish that is being fulfilled; None if there is none."""
        cluster = self._master.cluster
        behind = sum(
            p.active.mode != cluster.mode or any(c.mode != cluster.mode for c in p.history) for p in cluster.partitions
        )
        if behind:
            return {"kind": "mode", "mode": cluster.mode, "partitions_left": behind}
        for worker in cluster.workers.values():
            if worker.draining and (left := holds(cluster, worker)):
                return {"kind": "drain", "worker": worker.worker, "partitions_left": left}
        return None

    def progress(self) -> dict[str, Any]:
        """How far the cluster is from being settled."""
        cluster, done = self._master.cluster, self._master.settling.progress
        unsettled = [index for index, partition in enumerate(cluster.partitions) if not partition.settled]
        return {
            "settling": len(unsettled),
            "settled": done.partitions,
            "keys_compared": done.keys_compared,
            "keys_moved": done.keys_moved,
            "keys_repaired": done.keys_repaired,
            "bytes_moved": done.bytes_moved,
            "seconds_left": self._master.settling.seconds_left(len(unsettled)),
            "operation": self.operation(),
            "hints": self._master.hints.progress(),
            "anti_entropy": self._master.antientropy.progress(),
            "tombstones": self._master.forgetting.progress(),
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

    # --- the mode -----------------------------------------------------------------------------------------------------

    def plan_mode(self, mode: str) -> dict[str, Any]:
        """What a switch to that mode would do."""
        cluster = self._master.cluster
        strategy = self._strategy(mode)
        up = self._up()
        members = {m for p in cluster.partitions for m in p.active.members}
        away = sorted({m.worker for m in members if m.worker not in up or not is_present(cluster, m)})
        notes = [f"From now on: {strategy.gives_up}"]
        lenient = self._is_lenient(cluster.mode)
        if lenient and strategy.promise is Promise.CP:
            notes.append(
                "Writes that only an unreachable replica holds cannot be asked for: they are lost. "
                "Reads are linearizable from the end of the switch on."
            )
        if away and strategy.copies(cluster.replicas) == cluster.replicas:
            notes.append(f"Mode {mode} writes to all replicas: until {', '.join(away)} is back or replaced, some wait.")
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

        A switch to that mode which is under way already is waited for; its certificate counts from now.
        """
        master = self._master
        strategy = self._strategy(mode)
        before = master.cluster
        if not before.formed:
            raise Refused("forming", master.enlisting.forming_detail())
        operation = self.operation()
        if mode != before.mode:
            self._refuse_if_busy()
        elif operation is None or operation["kind"] != "mode":
            return {"mode": mode, "from": mode, "partitions": 0}
        former = next((p.history[0].mode for p in before.partitions if p.history[0].mode != mode), mode)
        up = self._up()
        stuck = [slot.index for slot in master.coordinator.slots if not master.reconciler.can_settle(slot, up)]
        if stuck:
            raise Refused(
                "unavailable",
                f"{len(stuck):,} partitions, {stuck[0]} the first, have too few members up to be asked what they hold; "
                "bring workers back first",
            )
        began_s = trio.current_time()
        done = _counts(master)
        if mode != before.mode:
            async with master.changing:
                self._refuse_if_busy()
                master.coordinator.slowest_s = 0.0
                master.settling.could_not_ask.clear()
                await master.change(lambda cluster: replace(cluster, mode=mode))
            master.events.note("mode_switching", mode=mode, before=former, partitions=len(before.partitions))
        while self.operation():
            await master.coordinator.wait_change()
        epochs = [slot.epoch for slot in master.coordinator.slots]
        compared, repaired, moved = (b - a for a, b in zip(done, _counts(master), strict=True))
        certificate = {
            "mode": mode,
            "from": former,
            "promise": strategy.promise.value,
            "epochs": {"first": spell_epoch(min(epochs)), "last": spell_epoch(max(epochs))},
            "partitions": len(before.partitions),
            "keys_compared": compared,
            "keys_repaired": repaired,
            "keys_moved": moved,
            "duration_s": round(trio.current_time() - began_s, 3),
            "longest_pause_s": round(master.coordinator.slowest_s, 3),
            "could_not_ask": sorted(master.settling.could_not_ask),
        }
        if mode != before.mode:
            master.events.note("mode_switched", **certificate)
        return certificate

    def _strategy(self, mode: str) -> Strategy:
        strategy = self._master.registry.strategy(mode)
        replicas = self._master.cluster.replicas
        copies = strategy.copies(replicas)
        if not 1 <= copies <= replicas:
            raise Refused(
                "conflict", f"mode {mode} keeps {copies} copies of each write, and this cluster has {replicas} replicas"
            )
        return strategy

    # --- workers ------------------------------------------------------------------------------------------------------

    async def plan_drain(self, worker: str) -> dict[str, Any]:
        """What draining that worker would move, and whereto."""
        enlisted = self._worker(worker)
        cluster = self._master.cluster
        drained = replace(cluster, workers={**cluster.workers, worker: replace(enlisted, draining=True)})
        self._refuse_to_drain_last(drained, worker)
        plan = await self._describe_moves(drained, self._master.reconciler.health())
        return {"worker": worker, **plan}

    async def drain(self, worker: str) -> dict[str, Any]:
        """Have a worker emptied, and let go once it is stopped. Answers the plan, and goes on by itself."""
        plan = await self.plan_drain(worker)
        if self._worker(worker).draining:
            return plan
        self._refuse_if_busy()
        await self._set_draining(worker, draining=True)
        self._master.events.note("worker_draining", worker=worker, partitions=plan["partitions"])
        return plan

    async def undrain(self, worker: str) -> dict[str, Any]:
        """It may hold data after all."""
        if not self._worker(worker).draining:
            return {"worker": worker}
        await self._set_draining(worker, draining=False)
        self._master.events.note("worker_undrained", worker=worker)
        return {"worker": worker}

    async def remove(self, worker: str) -> dict[str, Any]:
        """Forget a worker that is gone, and holds nothing that counts."""
        enlisted = self._worker(worker)
        if left := holds(self._master.cluster, enlisted):
            raise Refused(
                "unsafe",
                f"worker {worker} holds copies of {left:,} partitions; drain it first, with trikv workers drain "
                f"{worker}, and if it is down for good, wait until the others have replaced it",
            )
        if self._master.watched[worker].standing is not Standing.DOWN:
            raise Refused("conflict", f"worker {worker} is running and would enlist again; stop it, then remove it")
        await self._master.forget(worker)
        return {"worker": worker}

    async def plan_join(self) -> dict[str, Any]:
        """What would move if everybody who is up had a share."""
        health = {w: h._replace(steady=h.up) for w, h in self._master.reconciler.health().items()}
        plan = await self._describe_moves(self._master.cluster, health)
        return {"workers": sorted(plan["to"]), **plan}

    def safe_to_stop(self, worker: str) -> tuple[bool, str]:
        """May the worker be stopped now, without anything acknowledged being on too few of those that are left?"""
        return self._judge_stop(worker, {slot for slot in self._master.coordinator.slots if slot.copies_under_way()})

    async def safe_to_stop_soon(self, worker: str) -> tuple[bool, str]:
        """`safe_to_stop`, of all that was acknowledged before the question: copies that are under way have a moment to
        arrive. Where much is written there are always some, but none of them takes long."""
        self._worker(worker)
        slots = self._master.coordinator.slots
        under_way = {slot: copies for slot in slots if (copies := slot.copies_under_way())}
        with trio.move_on_after(COPIES_S):
            while under_way:
                await trio.sleep(COPIES_TICK_S)
                under_way = {slot: each for slot, each in under_way.items() if any(c.under_way for c in each)}
        return self._judge_stop(worker, under_way)

    def _judge_stop(self, worker: str, under_way: Container[Slot]) -> tuple[bool, str]:
        """`under_way`: partitions in which a copy of something acknowledged may not have arrived yet."""
        enlisted = self._worker(worker)
        for slot in self._master.coordinator.slots:
            if not any(enlisted.member in past.configuration.members for past in slot.history):
                continue
            if slot.blocked:
                return False, f"partition {slot.index} is refused until trikv recover: {slot.blocked}"
            if not slot.partition.settled:
                return False, f"partition {slot.index} is being settled"
            others = [t for t in slot.targets if t.member != enlisted.member and t.standing is Standing.UP]
            if slot.configuration.copies < len(slot.targets):  # what is committed need not be on all of them
                if slot in under_way or slot.missed or self._master.hints.has(slot):
                    return False, f"copies of partition {slot.index} have not reached all of its replicas yet"
                if not self._master.antientropy.has_compared(slot):
                    return False, f"the replicas of partition {slot.index} have not been compared yet"
            lenient = slot.history[-1].lenient
            need = 1 if lenient else max(slot.configuration.recovery, min(2, len(slot.targets) - 1))
            if len(others) < need:
                return False, f"too few other replicas of partition {slot.index} are up"
        strategy = self._master.registry.strategy(self._master.cluster.mode)
        replicas = self._master.cluster.replicas
        pause = "; writes to them wait until it is back or replaced" if strategy.copies(replicas) == replicas else ""
        return True, f"every partition of worker {worker} is whole on the others{pause}"

    def _refuse_to_drain_last(self, drained: Cluster, worker: str) -> None:
        health = self._master.reconciler.health()
        left = [w for w in choose_workers(drained, health) if w != worker and not drained.workers[w].draining]
        if len(left) < drained.replicas:
            raise Refused(
                "unsafe",
                f"without worker {worker} there are {len(left)} workers for {drained.replicas} replicas; "
                "add one first: trikv worker PORT",
            )

    async def _set_draining(self, worker: str, *, draining: bool) -> None:
        def change(cluster: Cluster) -> Cluster:
            enlisted = replace(cluster.workers[worker], draining=draining)
            return replace(cluster, workers={**cluster.workers, worker: enlisted})

        async with self._master.changing:
            self._worker(worker)  # it may have been forgotten meanwhile
            if draining:
                self._refuse_if_busy()
                self._refuse_to_drain_last(change(self._master.cluster), worker)
            await self._master.change(change)

    async def _describe_moves(self, cluster: Cluster, health: Mapping[str, Health]) -> dict[str, Any]:
        """What a cluster that wanted this would move."""
        before = [tuple(m.worker for m in p.active.members) for p in cluster.partitions]
        chosen = choose_workers(cluster, health)
        after = place(sorted(chosen), cluster.replicas, partitions=len(before), previous=before) if chosen else before
        to: Counter[str] = Counter()
        partitions = 0
        for move in moves(before, after):
            partitions += 1
            to.update(move.joins)
        size_bytes = await self._weigh(to.total())
        rate = self._master.settling.rate_bytes
        return {
            "partitions": partitions,
            "copies": to.total(),
            "bytes": size_bytes,
            "seconds": None if size_bytes is None else round(size_bytes / rate, 1),
            "to": dict(sorted(to.items())),
        }

    async def _weigh(self, copies: int) -> int | None:
        """What so many copies of partitions weigh, in bytes, as far as can be asked now; None: nobody answers."""
        plan: dict[Target, list[Slot]] = {}
        for slot in self._master.coordinator.slots:
            if up := [target for target in slot.targets if target.standing is Standing.UP]:
                plan.setdefault(up[0], []).append(slot)
        answers = await ask_digests(plan, self._master.note_stale, trio.current_time() + WEIGHING_S)
        sizes_bytes = [summary.size_bytes for held in answers.values() for summary in held.values()]
        return copies * sum(sizes_bytes) // len(sizes_bytes) if sizes_bytes else None

    # --- certainty ----------------------------------------------------------------------------------------------------

    async def repair(self, *, dry_run: bool) -> dict[str, int]:
        """Compare all replicas of all settled partitions, and mend what differs (`AntiEntropy.repair`)."""
        report = await self._master.antientropy.repair(dry_run=dry_run)
        if report["repaired"]:
            self._master.events.note("repaired", keys=report["repaired"])
        return report

    # --- when all else fails ------------------------------------------------------------------------------------------

    async def recover(self, *, accept_loss: bool) -> dict[str, Any]:
        """Go on without what cannot be found any more: of each partition that cannot be settled, what is left of it.

        Without `accept_loss` only say which they are.
        """
        master = self._master
        async with master.reconciler.stepping:
            cluster, up = master.cluster, self._up()
            since_s = trio.current_time() - master.down_after_s
            doubtful = (w for w, each in master.watched.items() if each.standing is Standing.DOUBTFUL)
            if unsure := sorted(w for w in doubtful if master.watched[w].doubtful_since_s > since_s):
                raise Refused(
                    "unavailable",
                    f"worker {', '.join(unsure)} may yet be heard, and what it holds would be given up; ask again in "
                    f"{master.down_after_s:g} s, when it is up or down",
                )
            stuck = [slot for slot in master.coordinator.slots if not master.reconciler.can_settle(slot, up)]
            members = {m for slot in stuck for c in slot.partition.history for m in c.members}
            lost = sorted({m.worker for m in members if m.worker not in up or not is_present(cluster, m)})
            told = {"partitions": [slot.index for slot in stuck], "lost_members": lost}
            if not accept_loss or not stuck:
                return told
            if not up:
                raise Refused("unavailable", "no worker is up; start one first")
            asked = await self._answering(up) if any(slot.blocked for slot in stuck) else up
            told["not_asked"] = sorted(up - asked)
            if not asked:
                raise Refused("unavailable", "no worker answers from its disk; start one first")
            rescued = {slot.index: self._rescued(slot, up, asked) for slot in stuck}

            def change(cluster: Cluster) -> Cluster:
                partitions = (rescued.get(index, p) for index, p in enumerate(cluster.partitions))
                return replace(cluster, partitions=tuple(partitions))

            async with master.changing:
                await master.change(change)
            master.events.note("recovered", partitions=len(stuck), lost_members=lost)
        return told

    async def _answering(self, workers: Iterable[str]) -> set[str]:
        """Those whose disks answer; a heartbeat only tells that the process does."""
        answering: set[str] = set()
        members = [self._master.cluster.workers[worker].member for worker in workers]
        questions = [Question(self._master.target(member), [member.incarnation, []]) for member in members]

        def heard(number: int, fault: int, payload: list[Any]) -> None:
            if fault == Fault.OK:
                answering.add(members[number].worker)

        await ask_all(Op.DIGEST, questions, trio.current_time() + DISK_TIMEOUT_S, heard)
        return answering

    def _rescued(self, slot: Slot, up: Iterable[str], asked: Iterable[str]) -> Partition:
        """The partition under what is left: whoever is up of each configuration must be asked, all of them; where the
        document does not know all configurations, all workers that answer (`asked`)."""
        cluster = self._master.cluster
        history: list[Configuration] = []
        present = set(up)
        for configuration in slot.partition.history:
            left = tuple(m for m in configuration.members if m.worker in present and is_present(cluster, m))
            if left:
                history.append(replace(configuration, members=left, copies=1))
        members = history[-1].members if history else tuple(
            cluster.workers[worker].member for worker in sorted(present)[: cluster.replicas]
        )  # fmt: skip
        if slot.blocked:  # the document is older than the cluster: any of them may hold what it does not know of
            everybody = tuple(cluster.workers[worker].member for worker in sorted(asked))
            history.insert(0, Configuration(everybody, cluster.mode, copies=1))
        elif not history:  # what they may have of former times must at least become alike
            history.append(Configuration(members, cluster.mode, copies=1))
        copies = self._master.reconciler.copies(cluster.mode, len(members))
        if copies > len(members):
            raise Refused(
                "conflict", f"mode {cluster.mode} cannot have {len(members)} replicas; start more workers first"
            )
        history.append(Configuration(members, cluster.mode, copies))
        known = slot.partition.generation
        # Where one leap is not enough, the partition is blocked once more, and recovering it goes on from there.
        generation = min(max(known, generation_of(slot.promised)) + 1, known + JUMP_MAX)
        # Nor does it know when tombstones were last forgotten.
        forgot = generation if slot.blocked else slot.partition.forgot
        return replace(slot.partition, generation=generation, history=tuple(history), forgot=forgot)

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _worker(self, worker: str) -> Enlisted:
        enlisted = self._master.cluster.workers.get(worker)
        if enlisted is None:
            known = ", ".join(sorted(self._master.cluster.workers)) or "none"
            raise Refused("unknown_worker", f"there is no worker {worker}; there are {known}")
        return enlisted

    def _up(self) -> set[str]:
        return {worker for worker, health in self._master.reconciler.health().items() if health.up}

    def _is_lenient(self, mode: str) -> bool:
        return self._master.registry.strategy(mode).promise is Promise.AP


def _counts(master: Master) -> tuple[int, int, int]:
    done = master.settling.progress
    return done.keys_compared, done.keys_repaired, done.keys_moved
