"""Scaling the cluster by itself: workers are added when load or keys call for it, and taken away when they are idle.

Every `TICK_S` a sample of the cluster is taken, and `core/scaling.py` decides. What it decides is carried out one
change at a time: the fleet (`fleet.py`) starts a worker, and nothing more is decided until it has its share and
everything is settled; a worker is drained like an operator drains one, and stopped once it holds nothing. Reads and
writes go on, since all that moves data here is what operators use.

Only workers of the fleet are taken away. A worker that does not start is tried again after a pause that doubles; after
`FAILURES_MAX` times in a row no more, until the master starts again.

A worker of the fleet that is down counts as one that is there, as far as the fewest are concerned: what it held heals
on the others, and it may be started again. It takes no load, so if the others have too much, a worker is added.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Any, Final

import trio

from trikv.coordinator.coordinator import Coordinator
from trikv.core.errors import TrikvError
from trikv.core.quorums import Availability
from trikv.core.scaling import IDLE_S, Action, Decision, Limits, Sample, WorkerLoad, decide, use_of
from trikv.master.document import Document
from trikv.master.events import EventLog
from trikv.master.fleet import Fleet, WorkerNotStarted
from trikv.master.membership import Membership
from trikv.master.operations import Operations

TICK_S: Final = 1.0
JOIN_S: Final = 60.0  # for a worker that was started to be given its share
RETRY_S: Final = 5.0  # after the first failure to start one
FAILURES_MAX: Final = 4


class Autoscaler:
    """Run it while the fleet runs."""

    def __init__(
        self,
        document: Document,
        membership: Membership,
        coordinator: Coordinator,
        operations: Operations,
        events: EventLog,
        fleet: Fleet,
        limits: Limits,
    ) -> None:
        self.limits = limits
        self.decision = Decision(Action.WAIT, "there is nothing to go by yet")
        self._document = document
        self._membership = membership
        self._coordinator = coordinator
        self._operations = operations
        self._events = events
        self._fleet = fleet
        self._samples: deque[Sample] = deque(maxlen=round((IDLE_S + 5) / TICK_S))
        self._known: set[int] = set()  # numbers of the fleet's workers that were looked at
        self._leaving: set[int] = set()  # of these, those that are being drained to be stopped
        self._joining: tuple[int, float] | None = None  # the one that has no share yet, and when it was started
        self._changed_s: float | None = None
        self._failures = 0
        self._failed = ""  # why the last one did not start
        self._retry_s = 0.0
        self._calls: Counter[str] = Counter()  # by worker, as of the last sample
        self._sampled_s = trio.current_time()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await trio.sleep(TICK_S)
            self._look_after_fleet()
            await self._stop_drained()
            now_s = trio.current_time()
            self._samples.append(self._sample(now_s))
            self.decision = self._checked(decide(self._samples, self.limits, now_s, self._changed_s), now_s)
            await self._carry_out(self.decision)

    def describe(self) -> dict[str, Any]:
        """As a part of the cluster's state."""
        last = self._samples[-1] if self._samples else None
        share = use_of(last, self.limits, len(last.workers)).share if last and last.workers else 0.0
        return {
            "fewest": self.limits.fewest,
            "most": self.limits.most,
            "max_load": self.limits.max_load,
            "max_keys": self.limits.max_keys,
            "use": round(share, 3),
            "hottest": round(last.hottest, 3) if last else 0.0,
            "action": self.decision.action.value,
            "why": self.decision.why,
            "own": sorted(self._fleet.own.values()),
            "failures": self._failures,
        }

    # --- what there is ------------------------------------------------------------------------------------------------

    def _sample(self, now_s: float) -> Sample:
        cluster = self._document.cluster
        calls = self._membership.calls()
        elapsed_s = max(now_s - self._sampled_s, 1e-3)
        load: dict[str, WorkerLoad] = {}
        for worker, entry in cluster.workers.items():
            vitals = self._membership.watched[worker].vitals
            up = self._membership.target(entry.member).availability is Availability.UP
            if not entry.draining and (up or cluster.partitions_of(entry.member)):
                requests = max(0, calls[worker] - self._calls[worker]) / elapsed_s  # of a new member it begins anew
                load[worker] = WorkerLoad(requests, 0 if vitals is None else vitals.keys)
        self._calls, self._sampled_s = calls, now_s
        hottest = self._coordinator.hot_keys.hottest()[1]
        self._coordinator.hot_keys.fade()
        own = [w for number, w in sorted(self._fleet.own.items(), reverse=True) if number not in self._leaving]
        removable = [worker for worker in own if worker in load]
        draining = {worker for worker, entry in cluster.workers.items() if entry.draining}
        away = sum(worker not in load and worker not in draining for worker in own)
        return Sample(now_s, load, self._why_busy(), hottest, removable, away)

    def _why_busy(self) -> str:
        cluster = self._document.cluster
        if not cluster.formed:
            return "the cluster has not formed yet"
        if operation := self._operations.operation():
            return "a switch of the mode is under way" if operation["kind"] == "mode" else (
                f"worker {operation['worker']} is being drained"
            )  # fmt: skip
        if self._fleet.waiting:
            return f"workers that are to be there from the beginning are being started: {len(self._fleet.waiting)}"
        if self._joining is not None:
            return f"worker {self._fleet.own[self._joining[0]]} is being given its share"
        if unsettled := sum(not partition.settled for partition in cluster.partitions):
            return f"{unsettled:,} partitions are being settled"
        return ""

    def _look_after_fleet(self) -> None:
        """Note which of its workers were being drained when they came, and when the one added last has its share."""
        workers, own = self._document.cluster.workers, self._fleet.own
        for number in own.keys() - self._known:
            entry = workers.get(own[number])
            if entry is not None and entry.draining:
                self._leaving.add(number)
        self._known = set(own)
        self._leaving &= self._known
        if self._joining is None:
            return
        number, since_s = self._joining
        entry = workers.get(own.get(number, ""))
        now_s = trio.current_time()
        has_share = entry is not None and self._document.cluster.partitions_of(entry.member)
        if has_share or number not in own or now_s - since_s > JOIN_S:
            self._joining = None
            self._changed_s = now_s

    # --- what is done -------------------------------------------------------------------------------------------------

    def _checked(self, decision: Decision, now_s: float) -> Decision:
        """The decision, unless starting workers has failed just now, or too often."""
        if decision.action is not Action.ADD or not self._failures:
            return decision
        if self._failures >= FAILURES_MAX:
            return Decision(Action.WAIT, f"a worker failed to start {self._failures} times, the last: {self._failed}")
        if now_s < self._retry_s:
            return Decision(Action.WAIT, f"a worker did not start, and is tried again soon: {self._failed}")
        return decision

    async def _carry_out(self, decision: Decision) -> None:
        if decision.action is Action.ADD:
            self._events.note("scaling_up", why=decision.why)
            await self._add()
        elif decision.action is Action.REMOVE:
            number = next(number for number, worker in self._fleet.own.items() if worker == decision.worker)
            try:
                await self._operations.drain(decision.worker)
            except TrikvError as error:
                self.decision = Decision(Action.WAIT, f"{decision.why}, and that could not be begun: {error.detail}")
            else:
                self._leaving.add(number)
                self._events.note("scaling_down", worker=decision.worker, why=decision.why)

    async def _add(self) -> None:
        try:
            number = await self._fleet.start_another()
        except WorkerNotStarted as error:
            self._failures += 1
            self._failed = str(error)
            self._retry_s = trio.current_time() + RETRY_S * 2 ** (self._failures - 1)
            return
        self._failures = 0
        self._joining = (number, trio.current_time())

    async def _stop_drained(self) -> None:
        """Stop workers that were drained and hold nothing any more; undrained ones stay."""
        cluster = self._document.cluster
        for number in sorted(self._leaving):
            entry = cluster.workers.get(self._fleet.own[number])
            holds = entry is not None and cluster.partitions_of(entry.member)
            if entry is not None and not entry.draining:
                self._leaving.discard(number)
            elif not holds and await self._fleet.stop(number):  # what cannot be stopped now is looked at again
                self._leaving.discard(number)
                self._changed_s = trio.current_time()
