"""Durations in buckets: each is counted once, in the first bucket that is long enough."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trikv.core.histogram import BOUNDS_S, EXPORTED_BOUNDS_S, CallTimes, Histogram, percentile_s


@given(durations_s=st.lists(st.floats(0, 100)))
def test_it_counts_as_one_would_by_hand(durations_s: list[float]) -> None:
    histogram = Histogram()
    for duration_s in durations_s:
        histogram.note(duration_s)
    by_hand = [(bound, sum(each <= bound for each in durations_s)) for bound in (*EXPORTED_BOUNDS_S, inf)]
    assert histogram.cumulative() == by_hand


@given(durations_s=st.lists(st.floats(1e-4, 9.0), min_size=1), share=st.floats(0, 1))
def test_a_percentile_is_right_to_within_a_bucket(durations_s: list[float], share: float) -> None:
    histogram = Histogram()
    for duration_s in durations_s:
        histogram.note(duration_s)
    found_s = percentile_s(histogram.counts, share)
    assert found_s is not None
    exact_s = sorted(durations_s)[max(0, -(-int(share * len(durations_s) * 1e9) // 10**9) - 1)]
    assert exact_s / 1.26 <= found_s <= exact_s * 1.26


def test_the_ends() -> None:
    assert percentile_s([0] * (len(BOUNDS_S) + 1), 0.5) is None
    longest = Histogram()
    longest.note(1e6)
    assert percentile_s(longest.counts, 0.99) == BOUNDS_S[-1]
    first = Histogram()
    first.note(0.0)
    assert percentile_s(first.counts, 1.0) == pytest.approx(BOUNDS_S[0])


def test_what_took_long_is_told_for_a_while_and_then_forgotten() -> None:
    times = CallTimes()
    assert percentile_s(times.recent(), 0.5) is None
    times.tick(100.0)
    times.note(1.0, 50)
    for now in (101.0, 105.0, 109.9):
        times.tick(now)
        assert sum(times.recent()) == 50, now
    times.note(0.001, 3)
    times.tick(110.0)
    assert sum(times.recent()) == 3
    assert (percentile_s(times.recent(), 0.99) or 1.0) <= 0.001
    times.tick(200.0)  # as after a stop of the whole process
    assert percentile_s(times.recent(), 0.5) is None
    assert sum(times.counts) == 53
    assert times.sum_s == pytest.approx(50.003)
