"""A whole cluster in a simulated world: virtual time, a network and disks that misbehave by a seed, and a verdict.

    from trikv.testing.sim import simulate
    run = simulate(Quorum(), seed=17)
    assert run.verdict is Verdict.HELD, run.findings

The production code runs unchanged. `plan.py` says what happens as data, `run.py` plays and judges it; beneath them lie
the world (`world.py`), what befalls it (`faults.py`), who asks it (`clients.py`), and its doors: `network.py`,
`disk.py`, `clock.py`. `script.py` plays scenarios that somebody wrote, as text, instead of drawn ones.
"""

from trikv.testing.sim.plan import (
    CERTIFYING,
    CHANGING,
    CROWDED,
    SWITCHING,
    USUAL,
    FaultKind,
    Plan,
    Schedule,
    ScheduledFault,
    ScheduledRequest,
)
from trikv.testing.sim.run import Run, Verdict, run_schedule, simulate
from trikv.testing.sim.trace import TraceEvent

__all__ = [
    "CERTIFYING",
    "CHANGING",
    "CROWDED",
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
