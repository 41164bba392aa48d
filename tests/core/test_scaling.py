"""When a worker is added or taken away: each case as a row, with the sentence that people are told."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trikv.core.scaling import (
    COOL_DOWN_S,
    IDLE_S,
    LOW,
    SHORT_S,
    Action,
    Decision,
    Limits,
    Sample,
    WorkerLoad,
    decide,
    use_of,
)

LIMITS = Limits(fewest=2, most=5, max_load=100, max_keys=1_000)
LONG_S = 60.0


def steady(workers: int, requests: float = 0.0, keys: int = 0, *, lasts_s: float = LONG_S, **more: Any) -> list[Sample]:
    """The same load on every worker, sampled every second until now."""
    load = {f"w{number}": WorkerLoad(requests, keys) for number in range(1, workers + 1)}
    more.setdefault("removable", ("w3",))

    return [Sample(now_s, load, **more) for now_s in range(int(LONG_S - lasts_s), int(LONG_S) + 1)]


def after(quiet: list[Sample], busy: list[Sample]) -> list[Sample]:
    return [sample for sample in quiet if sample.time_s < busy[0].time_s] + busy


@pytest.mark.parametrize(
    ("samples", "action", "words"),
    [
        pytest.param([], Action.WAIT, "nothing to go by", id="no sample"),
        pytest.param(steady(3, 90), Action.ADD, "270 requests a second are 90%", id="short of requests"),
        pytest.param(steady(3, 10, 900), Action.ADD, "2,700 copies of keys are 90%", id="short of keys"),
        pytest.param(
            after(steady(3, 10), steady(3, 90, lasts_s=1)), Action.WAIT, "once it has lasted 3 s", id="a burst"
        ),
        pytest.param(steady(5, 90), Action.WAIT, "the most that are wanted", id="no more workers are wanted"),
        pytest.param(steady(3, 90, hottest=0.61), Action.WAIT, "one key is 61% of the load", id="one key is hot"),
        pytest.param(steady(3, 90, busy="partitions move"), Action.WAIT, "partitions move", id="under way"),
        pytest.param(steady(3, 50), Action.WAIT, "150 requests a second are 50%", id="as it should be"),
        pytest.param(steady(3, 10), Action.REMOVE, "30 requests a second are 15% of what 2 workers", id="idle"),
        pytest.param(after(steady(3, 90), steady(3, 10, lasts_s=5)), Action.WAIT, "lasted 15 s", id="a short pause"),
        pytest.param(steady(3, 10, 500), Action.WAIT, "1,500 copies of keys are 50%", id="idle, but full of keys"),
        pytest.param(steady(2, 0), Action.WAIT, "0%", id="as few as are wanted"),
        pytest.param(steady(1, 0), Action.ADD, "at least 2", id="fewer than are wanted"),
        pytest.param(steady(1, 0, away=1), Action.WAIT, "1 worker of the fleet may come back", id="one is down"),
        pytest.param(steady(1, 90, away=1), Action.ADD, "90 requests", id="one is down, and the other is short"),
        pytest.param(steady(6, 50), Action.REMOVE, "at most 5", id="more than are wanted"),
        pytest.param(steady(3, 10, removable=()), Action.WAIT, "none of the workers", id="none is its own"),
    ],
)
def test_what_is_decided(samples: list[Sample], action: Action, words: str) -> None:
    decision = decide(samples, LIMITS, LONG_S)
    assert decision.action is action, decision
    assert words in decision.why
    assert decision.worker == ("w3" if action is Action.REMOVE else "")


def test_after_a_change_nothing_is_decided_for_a_while() -> None:
    samples = steady(3, 90)
    assert decide(samples, LIMITS, LONG_S, LONG_S - COOL_DOWN_S + 1).action is Action.WAIT
    assert decide(samples, LIMITS, LONG_S, LONG_S - COOL_DOWN_S).action is Action.ADD


@pytest.mark.parametrize(("lasts_s", "action"), [(SHORT_S - 1, Action.WAIT), (SHORT_S, Action.ADD)])
def test_being_short_counts_once_it_has_lasted(lasts_s: float, action: Action) -> None:
    assert decide(after(steady(3, 50), steady(3, 90, lasts_s=lasts_s)), LIMITS, LONG_S).action is action


@pytest.mark.parametrize(("lasts_s", "action"), [(IDLE_S - 1, Action.WAIT), (IDLE_S, Action.REMOVE)])
def test_being_idle_counts_once_it_has_lasted(lasts_s: float, action: Action) -> None:
    assert decide(after(steady(3, 50), steady(3, 10, lasts_s=lasts_s)), LIMITS, LONG_S).action is action


@given(workers=st.integers(1, 9), requests=st.floats(0, 500), keys=st.integers(0, 5_000))
def test_a_change_is_not_undone_by_the_same_load(workers: int, requests: float, keys: int) -> None:
    """Hysteresis: what calls for a worker does not, spread over one more, call for one fewer; and the reverse."""
    limits = Limits(1, 100, max_load=100, max_keys=1_000)
    before = decide(steady(workers, requests, keys), limits, LONG_S)
    step = {Action.ADD: 1, Action.REMOVE: -1, Action.WAIT: 0}[before.action]
    spread = steady(workers + step, requests * workers / (workers + step or 1), keys * workers // (workers + step or 1))
    again: Decision = decide(spread, limits, LONG_S)
    assert step == 0 or again.action is Action.WAIT or again.action is before.action
    if before.action is Action.REMOVE:
        assert use_of(spread[-1], limits, workers - 1).share < LOW + 0.01
