"""Failure detection: the worker's story told as (time, what happens) and what is thought of it then."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trikv.core.suspicion import (
    DOWN_AFTER_S,
    STEADY_AFTER_MOST_S,
    STEADY_AFTER_S,
    SUSPECT_FLOOR_S,
    Suspicion,
    WorkerState,
)

STORIES = {
    "silence from the beginning": """
        100.0 unknown
        104.9 unknown
        105.0 down
        200.0 down
    """,
    "a refused dial while it may still be starting proves nothing": """
        101.0 broken  unknown
        104.9 unknown
        105.0 down
        106.0 heard   up
    """,
    "missed heartbeats, then silence": """
        101.0 heard   up
        101.9 up
        102.2 suspect
        105.9 suspect
        106.0 down
    """,
    "one answer makes up for everything": """
        101.0 heard   up
        103.0 suspect
        103.1 heard   up
        110.0 down
        110.1 heard   up
        111.9 suspect
    """,
    "a refused dial of one that was up is proof": """
        101.0 heard   up
        101.1 broken  down
        101.2 down
        101.3 heard   up
        101.4 up
    """,
    "a refused dial of a suspect is proof too": """
        101.0 heard   up
        103.0 suspect
        103.1 broken  down
    """,
    "news from before the link broke does not mend it": """
        101.0 heard   up
        101.5 broken  down
        101.2 heard   down
        101.6 down
        101.7 heard   up
    """,
    "a refused dial in the grace is forgotten with the first answer": """
        101.0 broken  unknown
        102.0 heard   up
        103.5 suspect
    """,
}


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_story(story: str) -> None:
    suspicion = Suspicion(100.0)
    for line in filter(None, map(str.strip, story.splitlines())):
        time, *event, expected = line.split()
        match event:
            case ["heard"]:
                suspicion.heartbeat(float(time))
            case ["broken"]:
                suspicion.broken(float(time))
        assert suspicion.state(float(time)) == expected, line


@given(st.lists(st.floats(0, 20), min_size=1), st.floats(0, 40))
def test_whatever_was_heard_it_is_not_suspect_too_soon_and_down_in_time(heard_s: list[float], now_s: float) -> None:
    suspicion = Suspicion(0.0)
    for time_s in heard_s:
        suspicion.heartbeat(time_s)
    silent_s = now_s - max(heard_s)
    if silent_s < SUSPECT_FLOOR_S:
        assert suspicion.state(now_s) is WorkerState.UP
    assert (suspicion.state(now_s) is WorkerState.DOWN) == (silent_s >= DOWN_AFTER_S) == suspicion.evictable(now_s)


def beating(every_s: float, beats: int, suspicion: Suspicion | None = None, *, from_s: float = 0.0) -> Suspicion:
    suspicion = suspicion or Suspicion(from_s)
    for beat in range(beats):
        suspicion.heartbeat(from_s + beat * every_s)
    return suspicion


@pytest.mark.parametrize("every_s", [0.001, 0.1, 0.5, 0.75])
def test_one_that_beats_normally_is_suspect_soon_after_it_stops(every_s: float) -> None:
    suspicion = beating(every_s, 50)
    stopped_s = 49 * every_s
    assert suspicion.state(stopped_s + 0.99) is WorkerState.UP
    assert suspicion.state(stopped_s + 1.5) is WorkerState.SUSPECT


def test_one_that_is_always_slow_is_not_suspected_at_each_beat() -> None:
    suspicion = beating(0.5, 50)
    suspected = []
    for beat in range(1, 50):
        at_s = 24.5 + beat * 1.2
        suspected.append(suspicion.state(at_s - 0.001) is not WorkerState.UP)
        suspicion.heartbeat(at_s)
    assert not any(suspected[4:])
    assert suspicion.state(24.5 + 49 * 1.2 + 3) is WorkerState.SUSPECT  # but it is when it says nothing at all


def test_what_was_slow_once_is_forgotten_and_one_long_pause_teaches_little() -> None:
    suspicion = beating(0.5, 50, beating(1.2, 50), from_s=60.0)
    assert suspicion.suspect_after_s() == SUSPECT_FLOOR_S
    suspicion.heartbeat(84.5 + 4)
    assert suspicion.suspect_after_s() < 1.5


def test_a_burst_of_answers_does_not_hide_how_slow_it_is() -> None:
    suspicion = Suspicion(0.0)
    for beat in range(50):
        beating(0.001, 100, suspicion, from_s=beat * 1.3)
    assert suspicion.state(49 * 1.3 + 1.299) is WorkerState.UP


def test_thresholds_follow_how_soon_it_is_down() -> None:
    suspicion = beating(10.0, 100, Suspicion(0.0, down_after_s=20))
    assert [suspicion.state(990.0 + silent_s) for silent_s in (11.0, 19.9, 20.0)] == ["up", "suspect", "down"]
    quick = beating(0.1, 10, Suspicion(0.0, down_after_s=0.5))
    assert [quick.state(0.9 + silent_s) for silent_s in (0.49, 0.51)] == ["up", "down"]


def test_a_refused_dial_makes_it_down_at_once_and_evictable_only_after_the_silence() -> None:
    suspicion = beating(0.5, 10)
    suspicion.broken(4.6)
    assert suspicion.state(4.7) is WorkerState.DOWN
    assert not suspicion.evictable(4.5 + DOWN_AFTER_S - 0.1)
    assert suspicion.evictable(4.5 + DOWN_AFTER_S)
    assert suspicion.silent_s(6.5) == 2.0


def test_one_that_was_never_heard_is_evictable_after_the_grace() -> None:
    suspicion = Suspicion(100.0)
    assert not suspicion.evictable(104.9)
    assert suspicion.evictable(105.0)
    assert not suspicion.steady(200.0)


def test_it_is_steady_when_it_has_been_up_without_interruption() -> None:
    suspicion = beating(0.5, 3)
    assert suspicion.steady(1.0)
    assert not beating(0.5, 2).steady(0.9)
    suspicion.heartbeat(2.5)  # suspect in between
    assert not suspicion.steady(2.6)
    beating(0.5, 3, suspicion, from_s=3.0)
    assert suspicion.steady(4.0)


def flap(suspicion: Suspicion, from_s: float, *, evict: bool) -> float:
    """Ten seconds of silence, and back; the time when it is back."""
    if evict:
        suspicion.evicted(from_s + 8)
    suspicion.heartbeat(from_s + 10)
    return from_s + 10


def wait_until_steady(suspicion: Suspicion, from_s: float) -> float:
    for tick in range(1, 2000):
        now_s = from_s + tick * 0.5
        suspicion.heartbeat(now_s)
        if suspicion.steady(now_s):
            return now_s - from_s
    raise AssertionError("never")


@pytest.mark.parametrize("evict", [False, True])
def test_the_more_often_it_flaps_the_longer_it_waits_for_data(evict: bool) -> None:
    suspicion = beating(0.5, 10)
    now_s, waits_s = 4.5, []
    for _ in range(11):
        now_s = flap(suspicion, now_s, evict=evict)
        waits_s.append(wait_until_steady(suspicion, now_s))
        now_s += waits_s[-1]
    expected = [STEADY_AFTER_S * 2**n for n in range(1, 9)]
    assert waits_s[:8] == expected
    assert waits_s[8:] == [STEADY_AFTER_MOST_S] * 3
    assert wait_until_steady(suspicion, flap(suspicion, now_s + 20_000, evict=False)) == 2 * STEADY_AFTER_S


def test_silence_that_makes_it_only_suspect_is_no_setback() -> None:
    suspicion = beating(3.0, 20)
    assert suspicion.steady_after_s(60.0) == STEADY_AFTER_S


def test_what_a_worker_did_at_its_former_address_is_not_forgotten() -> None:
    former = beating(0.5, 10)
    flap(former, 4.5, evict=True)
    suspicion = Suspicion(20.0)
    suspicion.learn_setbacks(former)
    suspicion.heartbeat(20.5)
    assert not suspicion.steady(20.5 + STEADY_AFTER_S)
    assert suspicion.steady_after_s(20.5) == 2 * STEADY_AFTER_S


@pytest.mark.parametrize("broken", [False, True])
def test_time_for_which_the_observer_was_stopped_counts_for_nothing(broken: bool) -> None:
    suspicion, undisturbed = beating(0.5, 3), beating(0.5, 3)
    if broken:
        suspicion.broken(1.1)
        undisturbed.broken(1.1)
    suspicion.forgive(600.0)
    for later_s in (1.2, 1.9, 2.1, 5.9, 6.1):
        assert suspicion.state(600.0 + later_s) is undisturbed.state(later_s)
        assert suspicion.evictable(600.0 + later_s) is undisturbed.evictable(later_s)
        assert suspicion.steady(600.0 + later_s) is undisturbed.steady(later_s)
    suspicion.heartbeat(601.6)
    undisturbed.heartbeat(1.6)
    assert suspicion.suspect_after_s() == pytest.approx(undisturbed.suspect_after_s())
    assert suspicion.steady_after_s(602.0) == undisturbed.steady_after_s(2.0)
