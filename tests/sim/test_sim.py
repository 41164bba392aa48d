"""The four modes keep their promises in the simulated world: as they are, while the cluster's configuration changes,
and through every switch from one to another.

    TRIKV_SIM_SEEDS=1000 python -m pytest tests/sim/test_sim.py

looks further; `scripts/soak.py` looks as far as one likes.
"""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import permutations

import pytest

from trikv.testing.certify.pool import HANG_S, PlayedTask, ProcessPool, Task
from trikv.testing.sim import CHANGING, SWITCHING, USUAL, Plan, Verdict

SEEDS = int(os.environ.get("TRIKV_SIM_SEEDS", "4"))


MODES = ("sync", "async", "chain", "quorum")


@pytest.mark.parametrize("mode", MODES)
def test_the_mode_keeps_its_promise(mode: str) -> None:
    play(mode, USUAL, SEEDS)


@pytest.mark.parametrize("mode", MODES)
def test_it_keeps_it_while_the_configuration_changes(mode: str) -> None:
    play(mode, CHANGING, max(1, SEEDS // 4))


@pytest.mark.parametrize(("first", "second"), list(permutations(MODES, 2)))
def test_so_do_two_between_which_one_switches(first: str, second: str) -> None:
    play(first, replace(SWITCHING, modes=(first, second)), max(1, SEEDS // 12))


def play(mode: str, plan: Plan, seeds: int) -> None:
    processes = min(os.cpu_count() or 1, max(1, seeds // 8))  # each costs a start
    with ProcessPool(mode, processes, hang_s=3 * HANG_S) as pool:
        broken = [told(played) for played in pool.play(Task(seed, plan) for seed in range(seeds)) if not held(played)]
    assert not broken, f"{len(broken)} of {seeds} seeds:\n" + "\n".join(broken)


def held(played: PlayedTask) -> bool:
    return played.run is not None and played.run.verdict is Verdict.HELD and not played.misconduct


def told(played: PlayedTask) -> str:
    findings = [] if played.run is None else [*played.run.findings, *played.run.undecided]
    return "\n  ".join([f"seed {played.task.seed}: {played.misconduct or ''}", *map(str, findings)])
