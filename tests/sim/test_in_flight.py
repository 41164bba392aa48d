"""Writes that are on their way when their partition moves on to another configuration: clients do not notice."""

from __future__ import annotations

from collections import Counter
from itertools import cycle

import pytest
import trio

from trikv.api import Promise, Record, ReplicaSet, Strategy, Write
from trikv.core.errors import Outcome
from trikv.testing.judge.history import Kind
from trikv.testing.sim import FaultKind, Schedule, ScheduledFault, ScheduledRequest, Verdict, run_schedule
from trikv.testing.sim.plan import MASTER

CLIENTS = 12
CHANGES = {
    "drain": ScheduledFault(1.0, FaultKind.DRAIN, ("w2",), 2.0),
    "join": ScheduledFault(1.0, FaultKind.JOIN, ("w5",), 0.0),
    "switch": ScheduledFault(1.0, FaultKind.MODE_SWITCH, (MASTER,), 0.0, mode="chain"),
}


def crowd(change: ScheduledFault, kinds: tuple[Kind, ...], seed: int) -> Schedule:
    """Writes all the time, several to each key at once, while the cluster changes."""
    turns = cycle(kinds)
    requests = [
        ScheduledRequest(0.8 + number / 150, number % CLIENTS, next(turns), f"k{number % 2}") for number in range(300)
    ]
    return Schedule(
        seed=seed,
        workers=4,
        replicas=3,
        clients=CLIENTS,
        partitions=2,
        latency_s=0.004,
        fsync_s=0.004,
        keys=("k0", "k1"),
        requests=tuple(requests),
        faults=(change,),
        down_after_s=2.0,
        joiners=1,
        modes=(change.mode,) if change.mode else (),
        lasts_s=8.0,
    )


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("mode", ["sync", "chain", "quorum"])
def test_no_write_fails_for_a_change_of_the_cluster(mode: str, change: str, strategies: dict[str, Strategy]) -> None:
    outcomes: Counter[Outcome] = Counter()
    for seed in (1, 2, 3):
        schedule = crowd(CHANGES[change], (Kind.PUT, Kind.PUT, Kind.GET, Kind.DELETE), seed)
        run = run_schedule(strategies[mode], schedule)
        assert run.verdict is Verdict.HELD, run.findings
        assert run.faults == {CHANGES[change].kind: 1}
        outcomes += run.outcomes
    assert set(outcomes) == {Outcome.COMMITTED}


@pytest.mark.parametrize("mode", ["sync", "chain", "quorum"])
def test_compare_and_set_is_never_done_twice(mode: str, strategies: dict[str, Strategy]) -> None:
    for seed in (1, 2, 3):
        run = run_schedule(strategies[mode], crowd(CHANGES["drain"], (Kind.CAS, Kind.PUT, Kind.CAS, Kind.GET), seed))
        assert run.verdict is Verdict.HELD, run.findings
        others = Counter(op.kind for op in run.history if op.outcome is Outcome.UNKNOWN)
        assert set(others) <= {Kind.CAS, Kind.PUT}  # also a put that a compare-and-set has overtaken


def test_a_write_is_not_done_again_once_its_deletion_was_forgotten(strategies: dict[str, Strategy]) -> None:
    strategy = StoresOnceMore(strategies["sync"])
    requests = [
        ScheduledRequest(1.0, 0, Kind.PUT, "k"),
        ScheduledRequest(1.1, 1, Kind.GET, "k"),
        ScheduledRequest(1.2, 1, Kind.DELETE, "k"),
        ScheduledRequest(2.1, 1, Kind.GET, "k"),
        ScheduledRequest(2.9, 1, Kind.GET, "k"),
    ]
    schedule = Schedule(
        seed=1,
        workers=3,
        replicas=3,
        clients=2,
        partitions=1,
        latency_s=0.002,
        fsync_s=0.002,
        keys=("k",),
        requests=tuple(requests),
        faults=(),
        forget_after_s=0.2,
        lasts_s=4.0,
    )
    run = run_schedule(strategy, schedule)
    assert run.verdict is Verdict.HELD, run.findings
    put, seen, deleted, *after = run.history[: len(requests)]
    assert (put.outcome, deleted.outcome) == (Outcome.UNKNOWN, Outcome.COMMITTED)
    assert seen.result == put.value
    assert [get.result for get in after] == [None, None]


class StoresOnceMore(Strategy):
    """Its first write is on every replica, and fails for what it sends a second later."""

    name = "once-more"
    promise = Promise.CP
    compare_and_set = True

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._is_first = True

    def copies(self, n: int) -> int:
        return self._strategy.copies(n)

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        is_first, self._is_first = self._is_first, False
        await self._strategy.write(write, replicas)
        if is_first:
            await trio.sleep(1.2)
            await replicas.head.store(write)

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        return await self._strategy.read(key, replicas)
