"""Durations in buckets: each is counted once, in the first bucket that is long enough."""

from __future__ import annotations

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from trikv.core.histogram import BOUNDS_S, Histogram


@given(durations_s=st.lists(st.floats(0, 100)))
def test_it_counts_as_one_would_by_hand(durations_s: list[float]) -> None:
    histogram = Histogram()
    for duration_s in durations_s:
        histogram.note(duration_s)
    by_hand = [(bound, sum(each <= bound for each in durations_s)) for bound in (*BOUNDS_S, inf)]
    assert histogram.cumulative() == by_hand
