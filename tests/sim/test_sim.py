"""The four modes keep their promises in the simulated world. `TRIKV_SIM_SEEDS=1000 pytest tests/sim` looks further."""

from __future__ import annotations

import os

import pytest

from trikv.api import Strategy
from trikv.testing.sim import Verdict, simulate

SEEDS = int(os.environ.get("TRIKV_SIM_SEEDS", "100"))
CHUNK = 10


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
@pytest.mark.parametrize("mode", ["sync", "async", "chain", "quorum"])
def test_the_mode_keeps_its_promise(strategies: dict[str, Strategy], mode: str, first: int) -> None:
    for seed in range(first, min(first + CHUNK, SEEDS)):
        run = simulate(strategies[mode], seed)
        told = "\n".join(map(str, run.findings))
        assert run.verdict is Verdict.HELD, f"{mode}, seed {seed}: {run.verdict} {run.undecided}\n{told}"
