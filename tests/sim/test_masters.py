"""Several masters share the document in the simulated world, and each mode keeps its promise.

    TRIKV_SIM_SEEDS=1000 python -m pytest tests/sim/test_masters.py

looks further, and so does `scripts/soak.py --plan masters`.
"""

from __future__ import annotations

import os

import pytest

from trikv.api import Strategy
from trikv.testing.sim import MASTERS, Verdict, simulate

SEEDS = max(1, int(os.environ.get("TRIKV_SIM_SEEDS", "6")) // 3)


@pytest.mark.parametrize("mode", ["sync", "async", "chain", "quorum"])
def test_the_mode_keeps_its_promise_with_several_masters(mode: str, strategies: dict[str, Strategy]) -> None:
    asked_of_deposed = takeovers = 0
    for seed in range(SEEDS):
        run = simulate(strategies[mode], seed, MASTERS)
        assert run.verdict is Verdict.HELD, f"seed {seed}: {[*map(str, run.findings), *run.undecided]}"
        asked_of_deposed += run.deposed.total()
        takeovers += run.takeovers
    assert takeovers > 2 * SEEDS
    assert asked_of_deposed > 2 * SEEDS
