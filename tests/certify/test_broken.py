"""Every strategy that is broken on purpose is caught within the seeds that `trikv certify` plays by default.

Each plays the seed that is written down for it, up to the moment at which it was caught. If that does not catch it any
more, since the same seed gives another run by now, the default seeds are searched, and the end of the report says what
to write down instead.

    TRIKV_BROKEN_SEEDS=200 python -m pytest -n 0 tests/certify/test_broken.py

searches from seed 1 on, up to that many, and says at the end what to write down, and how many seconds it took.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace

import pytest

from tests.certify.broken import ALL, BROKEN
from trikv.api import Strategy
from trikv.testing.certify.certificate import SEEDS
from trikv.testing.certify.misconduct import Watch
from trikv.testing.certify.pool import PlayedTask, Task, play_task
from trikv.testing.judge.history import Finding
from trikv.testing.sim import CERTIFYING, Schedule

LONG_SEARCH = "TRIKV_BROKEN_SEEDS"
_SLACK_S = 0.5
_WRITTEN_DOWN = {broken.strategy: broken for broken in BROKEN}


def until(schedule: Schedule, end_s: float) -> Schedule:
    """The schedule without what comes later."""
    return replace(
        schedule,
        requests=tuple(request for request in schedule.requests if request.at_s <= end_s),
        faults=tuple(fault for fault in schedule.faults if fault.at_s <= end_s),
    )


def told_by(played: PlayedTask) -> dict[str, Finding | None]:
    """The rules that were broken and the misconduct that was noticed, with the findings."""
    assert played.run is not None, played.misconduct
    return {kind.value: None for kind in played.misconduct} | {one.rule: one for one in played.run.findings}


def _ended_s(finding: Finding) -> float:
    return finding.at_s or max((op.returned_s or 0.0 for op in finding.operations), default=60.0)


@pytest.mark.parametrize("strategy", ALL, ids=lambda strategy: strategy.__name__)
def test_it_is_caught(strategy: type[Strategy], found: list[str]) -> None:
    broken = _WRITTEN_DOWN.get(strategy)
    if broken is None or LONG_SEARCH in os.environ:
        found.append(search(strategy, int(os.environ.get(LONG_SEARCH, SEEDS))))
        return
    schedule = until(CERTIFYING.draw(strategy(), broken.seed), broken.until_s)
    if broken.by not in told_by(play_task(strategy(), Watch(), Task(broken.seed, CERTIFYING, schedule=schedule))):
        found.append(search(strategy, SEEDS))


def search(strategy: type[Strategy], seeds: int) -> str:
    """The line to write down for the first seed that catches it."""
    began_s = time.process_time()
    for seed in range(1, 1 + seeds):
        told = told_by(play_task(strategy(), Watch(), Task(seed, CERTIFYING)))
        if told:
            break
    else:
        pytest.fail(f"{strategy.__name__} was not caught by seeds 1 to {seeds}")
    ends_s = {by: 60.0 if finding is None else _ended_s(finding) for by, finding in told.items()}
    by = min(ends_s, key=lambda one: ends_s[one])
    until_s, took_s = ends_s[by] + _SLACK_S, time.process_time() - began_s
    return f'    Broken({strategy.__name__}, {seed}, "{by}", {until_s:.1f}, took_s={took_s:.1f}),'


def test_every_broken_strategy_has_its_seed_within_the_default_ones() -> None:
    assert [broken.strategy for broken in BROKEN] == ALL
    assert max(broken.seed for broken in BROKEN) <= SEEDS
