"""The probe accuses no mode wrongly, whatever happens to a cluster: in the simulated world, beside every master that
ever lives there, through faults, changes of the configuration and switches of the mode.

    TRIKV_SIM_SEEDS=1000 python -m pytest tests/sim/test_probe.py

looks further.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial

import pytest
import trio

from tests.certify.strategies import AcksBeforeStoring, HalfIsEnough
from trikv.api import Strategy
from trikv.core.probe import Violation
from trikv.master.master import Master
from trikv.master.probe import Probe, ProbeSession
from trikv.net.doors import Listening
from trikv.registry import load_registry
from trikv.testing.sim import CHANGING, SWITCHING, USUAL, Plan, Verdict, simulate

SEEDS = max(1, int(os.environ.get("TRIKV_SIM_SEEDS", "40")) // 40)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[ProbeSession]:
    """All sessions of the probes that from now on run beside every master, in the order of their beginnings."""
    begun: list[ProbeSession] = []
    run, begin = Master.run, Probe._begin

    async def run_probed(
        self: Master, listening: Listening, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(run, self, listening))
            nursery.start_soon(self.probe().run)
            task_status.started()

    def note_session(self: Probe) -> ProbeSession:
        begun.append(begin(self))
        return begun[-1]

    monkeypatch.setattr(Master, "run", run_probed)
    monkeypatch.setattr(Probe, "_begin", note_session)
    return begun


def violations_of(sessions: list[ProbeSession]) -> list[Violation]:
    return [violation for session in sessions for violation in session.tallied.violations]


def play(strategy: Strategy, plan: Plan, seed: int, sessions: list[ProbeSession]) -> int:
    """How many operations were checked in a run in which the mode held what it promises, as did the probe."""
    sessions.clear()
    run = simulate(strategy, seed, plan)
    assert run.verdict is Verdict.HELD, f"seed {seed}: {run.findings}"
    assert not violations_of(sessions), f"seed {seed}"
    assert not any(session.tallied.stale.reads for session in sessions if session.basis.is_consistent), f"seed {seed}"
    return sum(session.tallied.reads + session.tallied.writes for session in sessions)


@pytest.mark.parametrize("plan", [USUAL, CHANGING])
@pytest.mark.parametrize("mode", ["sync", "async", "chain", "quorum"])
def test_no_mode_is_accused_that_keeps_its_promise(mode: str, plan: Plan, sessions: list[ProbeSession]) -> None:
    for seed in range(SEEDS):
        assert play(load_registry().strategy(mode), plan, seed, sessions) > 500


@pytest.mark.parametrize("modes", [("quorum", "async"), ("async", "sync"), ("chain", "async"), ("sync", "quorum")])
def test_nor_is_one_while_the_mode_is_switched(modes: tuple[str, ...], sessions: list[ProbeSession]) -> None:
    for seed in range(SEEDS):
        play(load_registry().strategy(modes[0]), replace(SWITCHING, modes=modes), seed, sessions)
        assert len({session.basis for session in sessions}) > 1


@pytest.mark.parametrize("strategy", [AcksBeforeStoring(), HalfIsEnough()])
def test_one_that_breaks_it_is_accused(strategy: Strategy, sessions: list[ProbeSession]) -> None:
    for seed in range(1, 7):
        simulate(strategy, seed)
        if violations_of(sessions):
            return
    pytest.fail("not accused in six runs")
