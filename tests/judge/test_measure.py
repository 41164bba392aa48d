"""Waiting, as the clients saw it: on histories short enough to be counted by hand."""

import pytest

from tests.judge.conftest import Told
from trikv.testing.judge.measure import describe_returns, longest_gap_s, percentile, returns_s, slowest_s


def test_a_write_is_back_when_the_client_that_insists_has_it(told: Told) -> None:
    history = told(
        "1-2 c1 put x=a !", "2-3 c1 put x=b ?", "5-6 c1 put x=c",
        "1-2 c2 put y=d !", "3-4 c2 get x=a", "4-9 c2 put z=e", "10-11 c2 put y=f",
        "1-2 c3 cas x=a>g #", "3-4 c3 put x=h",
    )  # fmt: skip
    assert returns_s(history, 0.5, 20) == [5.5]
    assert returns_s(history, 2.5, 20) == [], "the failure lies before"
    assert returns_s(history, 0.5, 1.5) == [5.5], "whatever came of it later"


def test_waiting_is_told_without_the_silence_that_it_has_to_last() -> None:
    assert "after 1.00 s (median), 3.00 s (p99), 3.00 s (most)" in describe_returns([5.5, 6.0, 8.0], 5.0)
    assert describe_returns([], 5.0) == "no client had to wait until it could write again"


def test_a_gap_reaches_from_commit_to_commit(told: Told) -> None:
    history = told("0-1 c1 put x=a", "2-4 c1 put x=b", "5-6 c1 put x=c !", "6-7 c1 get x=b", "8-9 c1 put x=d")
    assert longest_gap_s(history, 0, 10) == 5
    assert longest_gap_s(history, 4, 6) == 2
    assert longest_gap_s([], 3, 5) == 2


def test_the_slowest_is_one_that_was_committed_at_that_time(told: Told) -> None:
    history = told("0-1 c1 put x=a", "2-5 c2 put x=b", "3-9 c1 put x=c ?", "7-8 c2 get x=b")
    assert slowest_s(history, 0, 10) == 3
    assert slowest_s(history, 6, 10) == 1
    assert slowest_s([], 0, 1) == 0


@pytest.mark.parametrize(("share", "value"), [(0.0, 1.0), (0.5, 3.0), (0.99, 4.0), (1.0, 4.0)])
def test_percentiles(share: float, value: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], share) == value
    assert percentile([], share) == 0.0
