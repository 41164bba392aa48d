"""A whole cluster in a simulated world: virtual time, faults drawn from a seed, and a verdict.

    from trikv.testing.sim import simulate
    run = simulate(Quorum(), seed=17)
    assert run.verdict is Verdict.HELD, run.findings

The production code runs unchanged. `plan.py` says, as data, what happens; `certifying.py` says it for a strategy that
is on trial. `run.py` plays and judges it. They rest on the world (`world.py`), its faults (`faults.py`), its clients
(`clients.py`) and operators (`operators.py`), and its doors: `network.py`, `disk.py`, `sharedstore.py`, `clock.py`.
`script.py` plays scenarios that are written as text instead of drawn, and `schedulefile.py` reads schedules that a
person saved.
"""

from trikv.testing.sim.certifying import CERTIFYING
from trikv.testing.sim.plan import (
    CHANGING,
    CROWDED,
    MASTERS,
    SWITCHING,
    USUAL,
    FaultKind,
    Plan,
    Schedule,
    ScheduledFault,
    ScheduledRequest,
)
from trikv.testing.sim.run import Run, Verdict, run_schedule, simulate
from trikv.testing.sim.scaling import SCALING
from trikv.testing.sim.trace import TraceEvent

__all__ = [
    "CERTIFYING",
    "CHANGING",
    "CROWDED",
    "MASTERS",
    "SCALING",
    "SWITCHING",
    "USUAL",
    "FaultKind",
    "Plan",
    "Run",
    "Schedule",
    "ScheduledFault",
    "ScheduledRequest",
    "TraceEvent",
    "Verdict",
    "run_schedule",
    "simulate",
]  # fmt: skip
