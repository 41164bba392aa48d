"""Histories with switches to async and back: what is a violation, what was lost with good reason, what is carried over.

Async is from 10 s to 20 s.
"""

from math import inf

import pytest

from tests.judge.conftest import Told
from trikv.testing.judge.switched import Period, Switch, SwitchedVerdict, find_periods, judge

SWITCHES = [Switch(strong=False, began_s=10, ended_s=11), Switch(strong=True, began_s=18, ended_s=20)]


def judged(told: Told, *lines: str) -> SwitchedVerdict:
    return judge(told(*lines), True, SWITCHES)


def test_spans_end_where_async_begins_and_begin_with_a_certificate() -> None:
    periods, between = find_periods(True, [*SWITCHES, Switch(True, 30, 31), Switch(False, 40, 41)])
    assert periods == [Period(-inf, 10), Period(20, 40)]
    assert between == [Period(10, 20), Period(40, inf)]
    assert find_periods(False, []) == ([], [Period(-inf, inf)])


def test_what_async_left_is_carried_over(told: Told) -> None:
    verdict = judged(told, "12-13 c1 put x=a", "13-14 c1 put x=b", "21-22 c1 get x=b", "23-24 c1 cas x=b>c")
    assert (verdict.findings, verdict.undecided, verdict.lost) == ([], [], [])


def test_only_one_value_is_carried_over(told: Told) -> None:
    verdict = judged(told, "12-13 c1 put x=a", "13-14 c1 put x=b", "21-22 c1 get x=a", "23-24 c1 get x=b")
    assert verdict.findings


def test_an_unseen_value_may_have_been_there(told: Told) -> None:
    """The compare-and-set met something, which nobody saw."""
    lines = ("21-22 c1 cas x=->c #", "23-24 c1 put x=d", "25-26 c1 get x=d")
    assert judged(told, "12-13 c1 put x=a", *lines).findings == []
    assert judged(told, *lines).findings, "where nothing was ever written, it met nothing"


@pytest.mark.parametrize("times", ["9-12", "19-21", "15-16"])
def test_old_reads_are_async_s_right_even_if_they_reach_into_a_span(told: Told, times: str) -> None:
    history = ("1-2 c1 put x=a", "3-4 c1 put x=b", f"{times} c2 get x=a", "21.5-22 c1 get x=b")
    verdict = judged(told, *history)
    assert (verdict.findings, verdict.lost) == ([], [])


def test_an_old_read_within_a_span_is_a_violation(told: Told) -> None:
    assert judged(told, "1-2 c1 put x=a", "3-4 c1 put x=b", "8-9 c2 get x=a").findings
    assert judged(told, "21-22 c1 put x=a", "23-24 c1 put x=b", "25-26 c2 get x=a").findings


def test_what_is_under_way_at_an_end_of_a_span_may_take_effect_or_not(told: Told) -> None:
    for seen in "ab":
        assert judged(told, "1-2 c1 put x=a", "9-12 c2 put x=b", f"9.5-9.7 c1 get x={seen}").findings == []
        assert judged(told, "13-14 c1 put x=a", "19-22 c2 put x=b", f"21-21.5 c1 get x={seen}").findings == []
    assert judged(told, "1-2 c1 put x=a", "9-12 c2 put x=b", "9.1-9.2 c1 get x=b", "9.5-9.7 c1 get x=a").findings


def test_a_compare_and_set_that_reaches_into_a_span_may_have_met_what_was_there_before(told: Told) -> None:
    history = ("12-13 c1 put x=a", "19-22 c2 cas x=a>b", "23-24 c1 get x=b")
    assert judged(told, *history).findings == []
    assert judged(told, *history, "25-26 c1 get x=a").findings


def test_a_write_in_doubt_may_surface_later(told: Told) -> None:
    assert judged(told, "12-13 c1 put x=a", "14-15 c2 put x=b ?", "21-22 c1 get x=a", "23-24 c1 get x=b").findings == []


def test_what_async_acknowledged_and_lost_is_counted(told: Told) -> None:
    verdict = judged(told, "12-13 c1 put x=a", "14-15 c1 put x=b", "21-22 c1 get x=a")
    assert verdict.findings == []
    assert [loss.operations[0].value for loss in verdict.lost] == ["b"]
    assert judged(told, "12-13 c1 put x=a", "21-22 c1 get x=-").lost
    assert judged(told, "12-13 c1 put x=a", "14-15 c1 delete x", "21-22 c1 get x=a").lost, "a delete can be lost too"


def test_what_a_strong_mode_acknowledged_may_not_be_lost_by_async(told: Told) -> None:
    verdict = judged(told, "1-2 c1 put x=a", "3-4 c1 put x=b", "21-22 c1 get x=a")
    assert [finding.rule for finding in verdict.findings] == ["acknowledged write lost"]
    assert verdict.lost == []


def test_a_write_that_ends_after_somebody_looked_is_not_lost(told: Told) -> None:
    assert judged(told, "12-13 c1 put x=a", "19-25 c2 put x=b", "21-22 c1 get x=a", "26-27 c1 get x=b").lost == []


def test_a_refused_write_is_never_seen_in_any_mode(told: Told) -> None:
    assert judged(told, "12-13 c1 put x=a !", "14-15 c1 get x=a").findings


def test_old_answers_of_async_are_counted(told: Told) -> None:
    verdict = judged(told, "11-12 c1 put x=a", "13-14 c1 put x=b", "15-16 c1 get x=a", "21-22 c1 get x=b")
    assert (verdict.staleness.reads, verdict.staleness.stale, verdict.findings) == (1, 1, [])
