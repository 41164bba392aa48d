"""One seed is one run: in this process, in another, and under another seed of Python's hashes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import trio

from trikv.api import Strategy
from trikv.testing.sim import Plan, run_schedule, simulate
from trikv.testing.sim.clock import SimClock, run_repeatably

_PROGRAM = """
import logging, sys
from trikv.registry import load_registry
from trikv.testing.sim import simulate
logging.getLogger("trikv").setLevel(logging.CRITICAL)
print(simulate(load_registry().strategy(sys.argv[1]), int(sys.argv[2])).digest)
"""


@pytest.mark.parametrize(("mode", "seed"), [("quorum", 3), ("chain", 4)])
def test_the_same_seed_is_the_same_run_in_another_process(
    strategies: dict[str, Strategy], mode: str, seed: int
) -> None:
    here = {simulate(strategies[mode], seed).digest for _ in range(2)}
    there = {
        subprocess.run(
            [sys.executable, "-c", _PROGRAM, mode, str(seed)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        ).stdout.strip()
        for hash_seed in ("0", "4711")
    }
    assert here == there
    assert len(here) == 1


def test_another_seed_is_another_run(strategies: dict[str, Strategy]) -> None:
    assert simulate(strategies["quorum"], 1).digest != simulate(strategies["quorum"], 2).digest


def test_a_trace_changes_nothing(strategies: dict[str, Strategy]) -> None:
    plain, traced = simulate(strategies["chain"], 5), simulate(strategies["chain"], 5, trace=True)
    assert plain.digest == traced.digest
    assert not plain.trace
    assert {"send", "arrive", "fault", "begin", "end"} <= {event.what for event in traced.trace}


def test_a_schedule_is_data(strategies: dict[str, Strategy]) -> None:
    """What a shrinker does: take something away, and run what is left."""
    strategy = strategies["quorum"]
    schedule = Plan(requests=40, faults=4).draw(strategy, 7)
    calm = type(schedule)(**{**{f: getattr(schedule, f) for f in schedule.__slots__}, "faults": ()})
    run = run_schedule(strategy, calm)
    assert not run.faults
    assert [operation.code for operation in run.history if operation.code not in (None, "precondition_failed")] == []


def test_trio_still_has_the_names_that_repeatability_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a release of Trio has dropped or renamed the private names by which its own Hypothesis plugin
    makes scheduling repeatable. Simulations would then differ from run to run: see `run_repeatably`."""
    orders = []
    for seed in (1, 1, 2):
        order: list[int] = []

        async def main(order: list[int] = order) -> None:
            async def note(number: int) -> None:
                await trio.sleep(1)
                order.append(number)

            async with trio.open_nursery() as nursery:
                for number in range(30):
                    nursery.start_soon(note, number)

        run_repeatably(main, SimClock(), seed)
        orders.append(order)
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]

    async def nothing() -> None:
        pass

    monkeypatch.delattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING")
    with pytest.raises(RuntimeError, match="no repeatable scheduling"):
        run_repeatably(nothing, SimClock(), 1)
