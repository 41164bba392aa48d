"""Scaling the cluster by itself: workers are added when load or keys call for it, and taken away when they are idle.

Every `TICK_S` a sample of the cluster is taken, and `core/scaling.py` decides. What it decides is carried out one
change at a time: a worker is started through a provisioner, and nothing more is decided until it has its share and
everything is settled; a worker is drained like an operator drains one, and stopped once it holds nothing. Reads and
writes go on, since all that moves data here is what operators use.

Only workers that were started here are taken away. They end with the master, and the next one starts those of which a
directory is left. A worker that does not start is reported, and tried again after a pause that doubles; after
`FAILURES_MAX` times in a row no more, until the master starts again.

Left out: a worker that dies. It is replaced like any other, and counts as one fewer.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from pathlib import Path
from typing import Any, Final

import trio

from trikv.api import Provisioner, WorkerOrder
from trikv.coordinator.coordinator import Coordinator
from trikv.core.errors import TrikvError
from trikv.core.quorums import Availability
from trikv.core.scaling import IDLE_S, Action, Decision, Limits, Sample, WorkerLoad, decide, use_of
from trikv.master.document import Document
from trikv.master.events import EventLog
from trikv.master.membership import Membership
from trikv.master.operations import Operations

TICK_S: Final = 1.0
START_S: Final = 60.0  # for a provisioner to start a worker, or to say that it cannot
STOP_S: Final = 30.0  # for it to stop one
CLOSE_S: Final = 30.0  # for it to stop all of them
JOIN_S: Final = 60.0  # for a worker that was started to be given its share
RETRY_S: Final = 5.0  # after the first failure to start one
FAILURES_MAX: Final = 4

_log = logging.getLogger(__name__)


class Autoscaler:
    """
    Args:
      master: this master's RPC address, with which workers enlist.
      directory: below which each worker that is started has a directory of its own.
      storage: the engine of workers that are started.
    """

    def __init__(
        self,
        document: Document,
        membership: Membership,
        coordinator: Coordinator,
        operations: Operations,
        events: EventLog,
        provisioner: Provisioner,
        *,
        limits: Limits,
        master: str,
        directory: Path,
        storage: str,
    ) -> None:
        self.limits = limits
        self.decision = Decision(Action.WAIT, "there is nothing to go by yet")
        self._document = document
        self._membership = membership
        self._coordinator = coordinator
        self._operations = operations
        self._events = events
        self._provisioner = provisioner
        self._master = master
        self._directory = directory
        self._storage = storage
        self._samples: deque[Sample] = deque(maxlen=round((IDLE_S + 5) / TICK_S))
        self._own: dict[int, str] = {}  # workers that were started here, by the number of their order
        self._leaving: set[int] = set()  # of these, those that are being drained
        self._joining: tuple[int, float] | None = None  # the one that has no share yet, and when it was started
        self._changed_s: float | None = None
        self._failures = 0
        self._failed = ""  # why the last one did not start
        self._retry_s = 0.0
        self._calls: Counter[str] = Counter()  # by worker, as of the last sample
        self._sampled_s = trio.current_time()

    async def run(self) -> None:
        """Until cancelled; then the workers that were started here are stopped, and keep what they hold."""
        try:
            for order in self._orders_left():
                await self._start(order)
            while True:
                await trio.sleep(TICK_S)
                self._look_after_own()
                await self._stop_drained()
                now_s = trio.current_time()
                self._samples.append(self._sample(now_s))
                self.decision = self._checked(decide(self._samples, self.limits, now_s, self._changed_s), now_s)
                await self._carry_out(self.decision)
        finally:
            with trio.move_on_after(CLOSE_S, shield=True):
                try:
                    await self._provisioner.close()
                except Exception as error:  # noqa: BLE001 a provisioner is a stranger's code
                    _log.error("provisioner %s failed in close: %r", self._provisioner.name, error)

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
            "own": sorted(self._own.values()),
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
        own = [worker for number, worker in sorted(self._own.items(), reverse=True) if number not in self._leaving]
        removable = [worker for worker in own if worker in load]
        return Sample(now_s, load, self._why_busy(), hottest, removable)

    def _why_busy(self) -> str:
        cluster = self._document.cluster
        if not cluster.formed:
            return "the cluster has not formed yet"
        if operation := self._operations.operation():
            return "a switch of the mode is under way" if operation["kind"] == "mode" else (
                f"worker {operation['worker']} is being drained"
            )  # fmt: skip
        if self._joining is not None:
            return f"worker {self._own[self._joining[0]]} is being given its share"
        if unsettled := sum(not partition.settled for partition in cluster.partitions):
            return f"{unsettled:,} partitions are being settled"
        return ""

    def _look_after_own(self) -> None:
        """Note when the worker that was started last has its share."""
        if self._joining is None:
            return
        number, since_s = self._joining
        entry = self._document.cluster.workers.get(self._own[number])
        now_s = trio.current_time()
        if (entry is not None and self._document.cluster.partitions_of(entry.member)) or now_s - since_s > JOIN_S:
            self._joining = None
            self._changed_s = now_s

    def _orders_left(self) -> list[WorkerOrder]:
        """Of a master of before: each directory is a worker that this one is to go on with."""
        numbers = sorted(
            int(path.name) for path in self._directory.glob("*") if path.name.isascii() and path.name.isdecimal()
        )
        return [self._order(number) for number in numbers]

    def _order(self, number: int) -> WorkerOrder:
        return WorkerOrder(number, self._master, self._directory / str(number), self._storage)

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
            await self._start(self._order(max(self._own, default=0) + 1))
        elif decision.action is Action.REMOVE:
            number = next(number for number, worker in self._own.items() if worker == decision.worker)
            try:
                await self._operations.drain(decision.worker)
            except TrikvError as error:
                self.decision = Decision(Action.WAIT, f"{decision.why}, and that could not be begun: {error.detail}")
            else:
                self._leaving.add(number)
                self._events.note("scaling_down", worker=decision.worker, why=decision.why)

    async def _start(self, order: WorkerOrder) -> None:
        try:
            with trio.fail_after(START_S):
                worker = await self._provisioner.start(order)
        except Exception as error:  # noqa: BLE001 a provisioner is a stranger's code
            self._failures += 1
            self._failed = _told(error)
            self._retry_s = trio.current_time() + RETRY_S * 2 ** (self._failures - 1)
            _log.warning("a worker could not be started (%d in a row): %s", self._failures, self._failed)
            self._events.note("worker_start_failed", failures=self._failures, why=self._failed)
            return
        self._failures = 0
        self._own[order.number] = worker
        entry = self._document.cluster.workers.get(worker)
        if entry is not None and entry.draining:
            self._leaving.add(order.number)
        elif entry is None:
            self._joining = (order.number, trio.current_time())
        self._events.note("worker_started", worker=worker)

    async def _stop_drained(self) -> None:
        """Stop workers that were drained and hold nothing any more; undrained ones stay."""
        cluster = self._document.cluster
        for number in sorted(self._leaving):
            entry = cluster.workers.get(self._own[number])
            if entry is not None and not entry.draining:
                self._leaving.discard(number)
            elif entry is None or not cluster.partitions_of(entry.member):
                self._leaving.discard(number)
                worker = self._own.pop(number)
                try:
                    with trio.fail_after(STOP_S):
                        await self._provisioner.stop(number)
                except Exception as error:  # noqa: BLE001 as above
                    _log.warning("worker %s holds nothing, and could not be stopped: %s", worker, _told(error))
                self._changed_s = trio.current_time()
                self._events.note("worker_stopped", worker=worker)


def _told(error: Exception) -> str:
    """Why a provisioner failed, in a line."""
    match error:
        case trio.TooSlowError():
            return "the provisioner did not answer in time"
        case OSError():
            return " ".join(str(error).split())
        case _:
            return " ".join(f"{type(error).__name__}: {error}".split())
