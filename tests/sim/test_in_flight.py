"""Writes that are on their way when their partition moves on to another configuration: clients do not notice."""

from __future__ import annotations

from collections import Counter
from itertools import cycle

import pytest

from trikv.api import Strategy
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
        assert set(others) <= {Kind.CAS}
