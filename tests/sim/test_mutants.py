"""The simulated world catches what is broken: a ground that passes a mutant is broken itself.

The seed that once caught a mutant is tried first, and must be good to the unbroken code, or catching would prove
nothing. If it does not catch the mutant any more, since the world draws other things from it now, a bounded search
follows, and the summary at the end says which seed to write down instead.

    TRIKV_MUTANT_SEEDS=500 python -m pytest tests/sim/test_mutants.py

searches from seed 0 on, up to that many, and says how many it took.
"""

import os
from itertools import chain

import pytest

from tests.sim.mutant import Mutant
from tests.sim.mutants import MUTANTS
from trikv.api import Strategy
from trikv.testing.sim import Verdict, simulate

SEARCH_SEEDS = 100
LONG_SEARCH = "TRIKV_MUTANT_SEEDS"


@pytest.mark.parametrize("mutant", [mutant for mutant in MUTANTS if mutant.by_search], ids=str)
def test_search_catches(mutant: Mutant, strategies: dict[str, Strategy], found: list[str]) -> None:
    long = os.environ.get(LONG_SEARCH)
    seeds = range(int(long)) if long else chain([mutant.seed or 0], range(SEARCH_SEEDS))
    with mutant.breaks():
        for seed in seeds:
            run = simulate(mutant.strategy, seed, mutant.plan)
            if run.verdict is Verdict.VIOLATION:
                break
        else:
            pytest.fail(f"{mutant} was not caught by any of these seeds; {LONG_SEARCH}=N tries so many")
    note = "" if seed == mutant.seed else f" (written down is {mutant.seed})"
    found.append(f"{mutant}, {mutant.strategy.name}: seed {seed}{note}, by {run.findings[0].rule}")

    real = strategies.get(mutant.strategy.name, mutant.strategy)  # one that is not installed is not broken itself
    assert simulate(real, seed, mutant.plan).findings == [], f"seed {seed} is against the unbroken code too"
