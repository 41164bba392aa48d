"""Several masters share the document in the simulated world, and each mode keeps its promise.

    TRIKV_SIM_SEEDS=1000 python -m pytest tests/sim/test_masters.py

looks further, and so does `scripts/soak.py --plan masters`.
"""

from __future__ import annotations

import os

import pytest

from trikv.api import Strategy
from trikv.testing.judge.history import Kind
from trikv.testing.sim import (
    MASTERS,
    FaultKind,
    Schedule,
    ScheduledFault,
    ScheduledRequest,
    Verdict,
    run_schedule,
    simulate,
)
from trikv.testing.sim.plan import LEADER
from trikv_flex import FlexW1

SEEDS = max(1, int(os.environ.get("TRIKV_SIM_SEEDS", "4")) // 3)


@pytest.mark.parametrize("mode", ["sync", "async", "chain", "quorum"])
def test_the_mode_keeps_its_promise_with_several_masters(mode: str, strategies: dict[str, Strategy]) -> None:
    asked_of_deposed = takeovers = 0
    for seed in range(SEEDS):
        run = simulate(strategies[mode], seed, MASTERS)
        assert run.verdict is Verdict.HELD, f"seed {seed}: {[*map(str, run.findings), *run.undecided]}"
        asked_of_deposed += run.deposed.total()
        takeovers += run.takeovers
    assert takeovers >= 2 * SEEDS
    assert asked_of_deposed >= 2 * SEEDS


def test_a_leader_that_went_on_hears_of_the_store_when_all_faults_are_over(strategies: dict[str, Strategy]) -> None:
    schedule = Schedule(
        seed=1,
        workers=3,
        replicas=3,
        clients=1,
        partitions=1,
        latency_s=0.01,
        fsync_s=0.01,
        keys=("k",),
        requests=tuple(ScheduledRequest(at_s, 0, Kind.PUT, "k") for at_s in (1.0, 8.0)),
        faults=(ScheduledFault(0.5, FaultKind.STOP, (LEADER,), 6.0, linger_s=600.0),),
        masters=3,
    )
    run = run_schedule(strategies["quorum"], schedule)
    assert run.faults == {FaultKind.STOP: 1}
    assert run.takeovers == 2
    assert run.verdict is Verdict.HELD, run.findings


@pytest.mark.parametrize(
    ("mode", "seed"),
    [pytest.param("quorum", 2360, id="a disk is lost while a change that needs it is in doubt, and written again")],
)
def test_what_was_found_with_several_masters(mode: str, seed: int, strategies: dict[str, Strategy]) -> None:
    run = simulate(strategies[mode], seed, MASTERS)
    assert run.verdict is Verdict.HELD, [*map(str, run.findings), *run.undecided]


def test_a_mode_keeps_its_promise_with_several_masters_where_two_writes_need_not_meet() -> None:
    for seed in range(4, 4 + SEEDS):
        run = simulate(FlexW1(), seed, MASTERS)
        assert run.verdict is Verdict.HELD, f"seed {seed}: {[*map(str, run.findings), *run.undecided]}"
