"""A worker's promises: what is judged here is a sequence of requests, as any network might deliver them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trikv.core.fence import EpochJudgement, Fence
from trikv.core.record import GENERATION_MAX, JUMP_MAX, TERM_MAX, generation_of, make_epoch, term_of

REQUESTS = st.lists(st.tuples(st.integers(0, 3), st.builds(make_epoch, st.integers(0, 4), st.integers(0, 4))))


def met(requests: list[tuple[int, int]]) -> tuple[Fence, dict[int, int]]:
    """A fence that met these requests, and the notes from which it is made again after a restart."""
    fence, notes = Fence(), {}
    for partition, epoch in requests:
        if fence.judge(partition, epoch) is EpochJudgement.NEWER:
            fence.promise(partition, epoch)
            notes[partition] = epoch
    return fence, notes


def test_a_promise_is_made_once_and_then_known() -> None:
    fence, _ = met([(7, make_epoch(1, 1))])
    assert fence.judge(7, make_epoch(1, 1)) is EpochJudgement.KNOWN
    assert fence.judge(7, make_epoch(1, 0)) is EpochJudgement.STALE
    assert fence.judge(7, make_epoch(1, 2)) is EpochJudgement.NEWER


def test_a_higher_term_met_anywhere_makes_every_older_one_stale() -> None:
    fence, _ = met([(7, make_epoch(1, 5)), (8, make_epoch(2, 1))])
    assert fence.judge(7, make_epoch(1, 5)) is EpochJudgement.STALE
    assert fence.judge(7, make_epoch(1, 6)) is EpochJudgement.STALE
    assert fence.judge(9, make_epoch(1, 9)) is EpochJudgement.STALE
    assert fence.judge(7, make_epoch(2, 5)) is EpochJudgement.NEWER


def test_a_generation_of_one_partition_disturbs_no_other() -> None:
    fence, _ = met([(7, make_epoch(1, 1)), (8, make_epoch(1, 1)), (7, make_epoch(1, 2))])
    assert fence.judge(8, make_epoch(1, 1)) is EpochJudgement.KNOWN


def test_a_later_term_does_not_excuse_an_earlier_generation() -> None:
    """Its master's document was restored from a backup: configurations existed that it knows nothing of."""
    fence, _ = met([(7, make_epoch(6, 5)), (8, make_epoch(7, 1))])
    assert fence.judge(7, make_epoch(9, 2)) is EpochJudgement.STALE
    assert fence.promised(7) == make_epoch(7, 5)


def test_to_promise_what_is_stale_is_our_own_mistake() -> None:
    fence, _ = met([(7, make_epoch(2, 2))])
    with pytest.raises(AssertionError):
        fence.promise(7, make_epoch(1, 3))


@given(REQUESTS)
def test_promises_never_go_back(requests: list[tuple[int, int]]) -> None:
    fence = Fence()
    for partition, epoch in requests:
        before = {each: fence.promised(each) for each in range(4)}
        judgement = fence.judge(partition, epoch)
        if judgement is EpochJudgement.NEWER:
            fence.promise(partition, epoch)
            assert fence.judge(partition, epoch) is EpochJudgement.KNOWN
        after = {each: fence.promised(each) for each in range(4)}
        for each in before:
            assert term_of(after[each]) >= term_of(before[each])
            assert generation_of(after[each]) >= generation_of(before[each])
        assert (judgement is EpochJudgement.STALE) == (
            term_of(epoch) < term_of(before[partition]) or generation_of(epoch) < generation_of(before[partition])
        )
        assert fence.term == max([0, *map(term_of, after.values())])


@given(REQUESTS, REQUESTS)
def test_a_restart_forgets_nothing(before: list[tuple[int, int]], after: list[tuple[int, int]]) -> None:
    fence, notes = met(before)
    again = Fence(notes)
    for partition, epoch in after:
        assert again.judge(partition, epoch) is fence.judge(partition, epoch)
        assert again.promised(partition) == fence.promised(partition)


TERM, GENERATION = 7, 20
ABSURD = [
    make_epoch(TERM_MAX, GENERATION_MAX),
    make_epoch(TERM, GENERATION_MAX),
    make_epoch(TERM_MAX, GENERATION),
    make_epoch(TERM + JUMP_MAX + 1, GENERATION),
    make_epoch(TERM, GENERATION + JUMP_MAX + 1),
]


@pytest.mark.parametrize("epoch", ABSURD)
def test_an_absurd_epoch_is_refused_and_not_remembered(epoch: int) -> None:
    fence, _ = met([(7, make_epoch(TERM, GENERATION))])
    assert fence.judge(7, epoch) is EpochJudgement.ABSURD
    with pytest.raises(AssertionError):
        fence.promise(7, epoch)
    assert fence.judge(7, make_epoch(TERM + 1, GENERATION)) is EpochJudgement.NEWER


def test_a_leap_that_a_backup_explains_is_believed() -> None:
    fence, _ = met([(7, make_epoch(TERM, GENERATION))])
    assert fence.judge(7, make_epoch(TERM + JUMP_MAX, GENERATION + JUMP_MAX)) is EpochJudgement.NEWER


def test_a_worker_that_has_met_no_master_believes_the_first_but_for_the_last_terms() -> None:
    assert Fence().believes(TERM_MAX - JUMP_MAX)
    assert not Fence().believes(TERM_MAX)
    assert not Fence().believes(9_999_999_999)


def test_a_term_that_was_greeted_counts_as_known() -> None:
    fence = Fence()
    fence.note_term(3 * JUMP_MAX)
    assert fence.judge(1, make_epoch(4 * JUMP_MAX, 1)) is EpochJudgement.NEWER
    assert fence.judge(1, make_epoch(4 * JUMP_MAX + 1, 1)) is EpochJudgement.ABSURD
