"""Faults of the simulated world: how they begin and end, and that nothing stays broken when the last one is over."""

from __future__ import annotations

import pytest

from trikv.api import Strategy
from trikv.testing.history import Kind
from trikv.testing.sim import FaultKind, Schedule, Verdict, run_schedule
from trikv.testing.sim.plan import MASTER, Fault, Request


def one_put(*faults: Fault, at_s: float = 1.0) -> Schedule:
    """Three workers, one key, one request, and these faults."""
    return Schedule(
        seed=1,
        workers=3,
        replicas=3,
        clients=1,
        partitions=1,
        latency_s=0.03,
        fsync_s=0.01,
        keys=("k",),
        requests=(Request(at_s, 0, Kind.PUT, "k"),),
        faults=faults,
    )


@pytest.mark.parametrize("at_s", [1.03, 1.05, 1.07, 1.09])
def test_a_master_that_is_stopped_under_the_last_request_is_started_again(
    at_s: float, strategies: dict[str, Strategy]
) -> None:
    """The stop ends the request, the request's end is the end of all faults, and the master is still on its way out."""
    run = run_schedule(strategies["quorum"], one_put(Fault(at_s, FaultKind.MASTER_STOP, (MASTER,), 60.0)))
    assert run.faults == {FaultKind.MASTER_STOP: 1}
    assert run.verdict is Verdict.HELD, run.findings
