"""A cluster that scales by itself, with crashes at every step: no request fails for it, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from trikv.api import Strategy
from trikv.coordinator.coordinator import Coordinator
from trikv.core.errors import Outcome
from trikv.master.autoscale import Autoscaler
from trikv.master.fleet import Fleet
from trikv.master.operations import Operations
from trikv.testing.sim import SCALING, Run, Verdict, simulate
from trikv.testing.sim.plan import ScalingStep, Trouble, Victim

MODES = ("quorum", "sync", "chain", "async")
CALM_SEEDS = (0, 4)
SEEDS = [seed for seed in range(1, 8) if seed % 4]
REFUSED = "refused for scaling"


def scale(strategy: Strategy, seed: int) -> Run:
    run = simulate(strategy, seed, SCALING)
    assert run.scaling is not None
    return run


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", CALM_SEEDS)
def test_workers_come_and_go_with_the_load_and_no_request_fails(
    mode: str, seed: int, strategies: dict[str, Strategy]
) -> None:
    run = scale(strategies[mode], seed)
    assert run.verdict is Verdict.HELD, run.findings
    assert set(run.outcomes) == {Outcome.COMMITTED}
    scaling = run.schedule.scaling
    assert scaling is not None
    assert run.scaling is not None
    assert run.scaling.started == scaling.founding + 2
    assert run.scaling.stopped == 2
    assert {*run.scaling.reached} == {*ScalingStep}
    assert not run.scaling.crashed


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_crashes_at_whatever_step_the_promise_is_kept_and_the_cluster_is_mended(
    seed: int, strategies: dict[str, Strategy]
) -> None:
    run = scale(strategies[MODES[seed // 4 % len(MODES)]], seed)
    assert run.verdict is Verdict.HELD, run.findings


def test_seeds_crash_every_step_and_break_the_provisioner_in_every_way(strategies: dict[str, Strategy]) -> None:
    drawn = [SCALING.draw(strategies["quorum"], seed).scaling for seed in range(48)]
    crashes = {(crash.step, crash.victim) for one in drawn if one is not None for crash in one.crashes}
    assert {step for step, _ in crashes} == {*ScalingStep}
    assert {victim for _, victim in crashes} == {*Victim}
    assert {trouble for one in drawn if one is not None for trouble in one.troubles} == {*Trouble}
    assert {one.founding for one in drawn if one is not None} == {0, SCALING.fewest}


def test_a_seed_is_the_same_run_again(strategies: dict[str, Strategy]) -> None:
    one, other = (scale(strategies["chain"], 2) for _ in range(2))
    assert one.digest == other.digest
    assert one.scaling == other.scaling


# --- what would be wrong ----------------------------------------------------------------------------------------------


async def _stop_at_once(self: Any) -> None:
    for number in sorted(self._leaving):
        self._leaving.discard(number)
        await self._fleet.stop(number)


async def _drain_nothing(self: Any, worker: str) -> dict[str, Any]:
    return {}


async def _stop_once(self: Any) -> None:
    cluster = self._document.cluster
    for number in sorted(self._leaving):
        entry = cluster.workers.get(self._fleet.own[number])
        if entry is None or not cluster.partitions_of(entry.member):
            self._leaving.discard(number)
            await self._fleet.stop(number)


def _adopt_nobody(self: Any) -> list[int]:
    return list(range(1, self._founding + 1))


def _go_on_nowhere(self: Any, state: object, error: object) -> bool:
    return False


@pytest.mark.parametrize(
    ("mistake", "mode", "seed", "rule"),
    [
        ([(Autoscaler, "_stop_drained", _stop_at_once), (Operations, "drain", _drain_nothing)], "chain", 0, REFUSED),
        ([(Autoscaler, "_stop_drained", _stop_once)], "quorum", 150, "does not scale back"),
        ([(Fleet, "_numbers_at_start", _adopt_nobody)], "quorum", 6, "does not scale back"),
        ([(Coordinator, "_goes_on_elsewhere", _go_on_nowhere)], "sync", 4, REFUSED),
    ],
    ids=[
        "a worker is stopped with its share",
        "a stop that is refused is not repeated",
        "workers of the master before are not adopted",
        "a write fails with its configuration",
    ],
)
def test_a_mistake_is_found(
    mistake: list[tuple[type, str, Callable[..., Any]]],
    mode: str,
    seed: int,
    rule: str,
    strategies: dict[str, Strategy],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for owner, name, broken in mistake:
        monkeypatch.setattr(owner, name, broken)
    assert rule in {finding.rule for finding in scale(strategies[mode], seed).findings}
    monkeypatch.undo()
    assert scale(strategies[mode], seed).findings == []
