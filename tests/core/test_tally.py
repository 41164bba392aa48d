"""The tally against a naive count over all the answers so far."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trikv.core.tally import Tally, TallyVerdict


def naive(need: int, total: int, answers: list[bool]) -> TallyVerdict:
    """By trying every way in which the answers still outstanding can turn out; the first decision stands."""
    for so_far in (answers[:n] for n in range(len(answers) + 1)):
        outcomes = {so_far.count(True) + more >= need for more in range(total - len(so_far) + 1)}
        if outcomes == {True}:
            return TallyVerdict.WON
        if outcomes == {False}:
            return TallyVerdict.LOST
    return TallyVerdict.PENDING


@given(st.integers(0, 8), st.lists(st.booleans(), max_size=8), st.integers(0, 8))
def test_agrees_with_a_naive_count(need: int, answers: list[bool], silent: int) -> None:
    total = len(answers) + silent
    tally = Tally(need, total)
    assert tally.verdict is naive(need, total, [])
    for n, stored in enumerate(answers, start=1):
        verdict = tally.ack() if stored else tally.fail()
        assert verdict is tally.verdict is naive(need, total, answers[:n])
    assert (tally.acks, tally.failures) == (answers.count(True), answers.count(False))


def test_hopelessness_is_noticed_with_the_failure_that_makes_it() -> None:
    tally = Tally(need=2, total=3)
    assert tally.fail() is TallyVerdict.PENDING
    assert tally.fail() is TallyVerdict.LOST


def test_a_verdict_stays_while_laggards_are_counted() -> None:
    won = Tally(need=1, total=3)
    assert [won.ack(), won.fail(), won.fail()] == [TallyVerdict.WON] * 3
    lost = Tally(need=3, total=3)
    assert [lost.fail(), lost.ack(), lost.ack()] == [TallyVerdict.LOST] * 3
    assert (lost.acks, lost.failures) == (2, 1)


def test_nothing_needed_is_won_and_too_much_needed_is_lost_before_any_answer() -> None:
    assert Tally(need=0, total=0).verdict is TallyVerdict.WON
    assert Tally(need=3, total=2).verdict is TallyVerdict.LOST


def test_an_answer_more_than_was_asked_for_is_our_own_mistake() -> None:
    tally = Tally(need=1, total=1)
    tally.ack()
    for more in (tally.ack, tally.fail):
        with pytest.raises(AssertionError):
            more()


def test_it_says_how_it_stands() -> None:
    tally = Tally(need=2, total=3)
    tally.fail()
    assert repr(tally) == "<Tally pending: 0 of 2, 1 failed, 3 asked>"
