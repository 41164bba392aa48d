"""The four modes keep their promises in the simulated world.

    TRIKV_SIM_SEEDS=1000 python -m pytest tests/sim/test_sim.py

looks further; `scripts/soak.py` looks as far as one likes.
"""

from __future__ import annotations

import os

import pytest

from trikv.testing.crew import HANG_S, Crew, Played, Task
from trikv.testing.sim import USUAL, Verdict

SEEDS = int(os.environ.get("TRIKV_SIM_SEEDS", "100"))


@pytest.mark.parametrize("mode", ["sync", "async", "chain", "quorum"])
def test_the_mode_keeps_its_promise(mode: str) -> None:
    plan = USUAL
    with Crew(mode, os.cpu_count() or 1, hang_s=3 * HANG_S) as crew:
        broken = [told(played) for played in crew.play(Task(seed, plan) for seed in range(SEEDS)) if not held(played)]
    assert not broken, f"{len(broken)} of {SEEDS} seeds:\n" + "\n".join(broken)


def held(played: Played) -> bool:
    return played.run is not None and played.run.verdict is Verdict.HELD and not played.misconduct


def told(played: Played) -> str:
    findings = [] if played.run is None else [*played.run.findings, *played.run.undecided]
    return "\n  ".join([f"seed {played.task.seed}: {played.misconduct or ''}", *map(str, findings)])
