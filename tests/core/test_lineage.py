"""Which lists of starts go on from what a document names, and which do not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trikv.core.lineage import (
    NO_START,
    STARTS_MAX,
    Claim,
    Start,
    Starts,
    begin,
    begin_anew,
    is_confirmed,
    judge,
    pack,
    unpack,
)

A, B, C, D = (Start(number, name) for number, name in enumerate("abcd", start=1))
OTHER_B = Start(2, "x")
STARTS = st.lists(
    st.builds(Start, st.integers(0, 10**9), st.text("0123456789abcdef", min_size=1, max_size=8)), min_size=1
).map(tuple)


@pytest.mark.parametrize(
    ("starts", "named", "claim"),
    [
        ((NO_START, A), None, Claim.LATER),
        ((NO_START, A), A, Claim.NAMED),
        ((A,), A, Claim.CONFIRMED),
        ((A, B), A, Claim.LATER),
        ((A, B, C), A, Claim.LATER),  # two starts, and no master in between
        ((A, B, C), B, Claim.LATER),  # the document named B, and B stopped before it knew
        ((A, B), B, Claim.NAMED),
        ((A, OTHER_B), B, Claim.OLDER),  # a copy that was started again counts to the same number
        ((A, OTHER_B, C), B, Claim.OLDER),
        ((NO_START, A), C, Claim.OLDER),  # a copy from before there were starts
        ((A,), B, Claim.OLDER),
        ((C, D), B, Claim.LATER),  # the document was put back, and is older than what the worker has confirmed
        ((C, D), A, Claim.LATER),
        ((C, D), None, Claim.LATER),
    ],
)
def test_what_a_list_is_worth(starts: Starts, named: Start | None, claim: Claim) -> None:
    assert judge(starts, named, batches=7, heard=7) is claim


@pytest.mark.parametrize("starts", [(A,), (A, B), (NO_START, A)])
def test_who_has_fewer_batches_than_the_master_heard_of_is_older_whatever_it_knows(starts: Starts) -> None:
    for named in (A, None):
        assert judge(starts, named, batches=6, heard=7) is Claim.OLDER


def test_a_list_grows_with_each_start_until_one_is_confirmed() -> None:
    starts = begin(begin((A,), "b"), "c")
    assert starts == (A, B, C)
    assert not is_confirmed(starts)
    assert is_confirmed(starts[-1:])


def test_another_member_in_the_same_directory_claims_none_of_the_starts_before() -> None:
    starts = begin_anew((A, B), "c")
    assert starts[-1] == C
    assert not {A, B} & set(starts)
    assert not is_confirmed(starts)


def test_a_list_is_bounded_and_keeps_the_confirmed_start_and_the_latest() -> None:
    starts: Starts = (A,)
    for number in range(2 * STARTS_MAX):
        starts = begin(starts, f"{number:x}")
    assert len(starts) == STARTS_MAX
    assert starts[0] == A
    assert [start.number for start in starts[-2:]] == [2 * STARTS_MAX, 2 * STARTS_MAX + 1]
    assert judge(starts, A, 0, 0) is Claim.LATER


@given(STARTS)
def test_a_list_is_read_as_it_was_noted(starts: Starts) -> None:
    assert unpack(pack(starts)) == starts


def test_a_directory_from_before_there_were_starts_knows_none() -> None:
    assert unpack(b"") == (NO_START,)


@pytest.mark.parametrize("text", ["", "7", ".a", "x.a", "-1.a", "1" * 11 + ".a", "1." + "a" * 33, "1.\n", "1.a b"])
def test_other_texts_name_no_start(text: str) -> None:
    with pytest.raises(ValueError, match="names no start"):
        Start.parse(text)
