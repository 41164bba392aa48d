"""One seed is one run: in this process, in another, under another seed of Python's hashes, with other addresses.

    TRIKV_REPEATED_SEEDS=40 python -m pytest tests/sim/test_repeatable.py

plays more seeds a second time.
"""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys

import pytest
import trio

from trikv.api import Strategy
from trikv.testing.sim import CERTIFYING, Plan, run_schedule, simulate
from trikv.testing.sim.clock import SimClock, run_repeatably

SEEDS = int(os.environ.get("TRIKV_REPEATED_SEEDS", "1"))

# What lies in memory before and between the runs differs with the number, and so do the addresses of all that is made.
_PROGRAM = """
import logging, random, sys
from trikv.registry import load_registry
from trikv.testing.sim import CERTIFYING, simulate
logging.getLogger("trikv").setLevel(logging.CRITICAL)
mode, seeds, allocation, traced = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "traced"
dice = random.Random(allocation)
for seed in range(1, seeds + 1):
    lumps = [bytearray(dice.randrange(1, 900)) for _ in range(10_000 * allocation)]
    dice.shuffle(lumps)
    del lumps[::2]
    print(seed, simulate(load_registry().strategy(mode), seed, CERTIFYING, trace=traced).digest)
"""


@pytest.mark.parametrize("mode", ["sync", "async", "chain", "quorum"])
def test_the_same_seed_is_the_same_run_in_another_process(mode: str) -> None:
    plain, traced = (
        subprocess.run(
            [sys.executable, "-c", _PROGRAM, mode, str(SEEDS), allocation, traced],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=True,
            capture_output=True,
            text=True,
            timeout=30 + 10 * SEEDS,
        ).stdout.splitlines()
        for hash_seed, allocation, traced in (("0", "0", "plain"), ("4711", "1", "traced"))
    )
    assert len(plain) == SEEDS
    assert plain == traced


@pytest.mark.parametrize("seed", [3, 20])
def test_the_end_of_a_master_does_not_hang_on_addresses(seed: int, strategies: dict[str, Strategy]) -> None:
    """Seeds in which a master dies while clients queue for one key, and another one in which they did so once."""
    digests = set()
    for allocation in range(4):
        lumps = [bytearray(size % 900) for size in range(1, 40_000 * allocation, 7)]
        del lumps[::2]
        digests.add(simulate(strategies["chain"], seed, CERTIFYING).digest)
    assert len(digests) == 1


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


@pytest.mark.parametrize("together", ["one cancels the scope of all", "their deadlines are equal"])
def test_the_order_in_which_tasks_are_cancelled_together_hangs_on_that_of_their_entry(together: str) -> None:
    """If this fails, Trio keeps the tasks of a scope, or scopes with one deadline, in another way than it did.
    Simulations would then hang on memory addresses: see `run_repeatably`."""
    cancelled: list[int] = []
    lumps = []

    async def wait(number: int) -> None:
        def abort(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            cancelled.append(number)
            return trio.lowlevel.Abort.SUCCEEDED

        with trio.CancelScope(deadline=2.0 if together == "their deadlines are equal" else math.inf):
            await trio.lowlevel.wait_task_rescheduled(abort)

    async def main() -> None:
        dice = random.Random(1)
        async with trio.open_nursery() as nursery:
            for number in range(200):
                lumps.append([bytearray(dice.randrange(900)) for _ in range(20)][::2])
                nursery.start_soon(wait, number)
                await trio.lowlevel.checkpoint()
            if together == "one cancels the scope of all":
                nursery.cancel_scope.cancel()

    run_repeatably(main, SimClock(), 1)
    in_order = list(range(200))
    assert cancelled in (in_order, in_order[::-1])
