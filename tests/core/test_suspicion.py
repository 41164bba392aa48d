"""Failure detection: the worker's story told as (time, what happens) and what is thought of it then."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trikv.core.suspicion import DOWN_AFTER_S, SUSPECT_AFTER_S, State, Suspicion

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
        102.4 up
        102.5 suspect
        105.9 suspect
        106.0 down
    """,
    "one answer makes up for everything": """
        101.0 heard   up
        103.0 suspect
        103.1 heard   up
        110.0 down
        110.1 heard   up
        111.6 suspect
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
def test_without_broken_links_only_the_last_sign_of_life_counts(heard_s: list[float], now_s: float) -> None:
    suspicion = Suspicion(0.0)
    for time_s in heard_s:
        suspicion.heartbeat(time_s)
    silent_s = now_s - max(heard_s)
    if silent_s < SUSPECT_AFTER_S:
        assert suspicion.state(now_s) is State.UP
    else:
        assert suspicion.state(now_s) is (State.SUSPECT if silent_s < DOWN_AFTER_S else State.DOWN)


def test_thresholds_may_be_others() -> None:
    suspicion = Suspicion(0.0, suspect_after_s=10, down_after_s=20)
    assert suspicion.state(19.9) is State.UNKNOWN
    suspicion.heartbeat(20.0)
    assert [suspicion.state(now_s) for now_s in (29.9, 30.0, 39.9, 40.0)] == ["up", "suspect", "suspect", "down"]
