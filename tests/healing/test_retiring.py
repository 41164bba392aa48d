"""A changed configuration is served once R members of each earlier one have promised its epoch, and not before."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.helpers import Around, configuration_of
from trikv.core.configuration import Member, Partition
from trikv.core.quorums import Availability


def test_so_many_promises_are_needed_as_find_every_write_of_each_earlier_configuration() -> None:
    """[a b c] under quorum needs 2, [b c d] under sync needs 1; the active configuration needs none."""
    partition = Partition(4, (configuration_of("abc"),)).changed_to(configuration_of("bcd", "sync"))
    state = Around().state(partition.changed_to(configuration_of("def")))
    assert not state.is_writable
    state.note_promise(Member("d", "1"))
    assert {target.member.worker for target in state.to_fence()} == {"a", "b", "c"}
    state.note_promise(Member("a", "1"))
    assert not state.is_writable
    state.note_promise(Member("b", "1"))
    assert state.is_writable


def test_one_answer_counts_for_every_configuration_that_its_member_is_in() -> None:
    partition = Partition(4, (configuration_of("abc"),)).changed_to(configuration_of("abd"))
    state = Around().state(partition.changed_to(configuration_of("abe")))
    state.note_promise(Member("a", "1"))
    assert not state.is_fenced
    state.note_promise(Member("b", "1"))
    assert state.is_fenced


@pytest.mark.parametrize(("members", "copies", "promises"), [("abcd", 3, 0), ("abcd", 2, 3), ("abc", 1, 3)])
def test_where_two_writes_need_not_meet_the_active_configuration_is_fenced_against_an_earlier_term(
    members: str, copies: int, promises: int
) -> None:
    configuration = replace(configuration_of(members), copies=copies)
    assert Around().state(Partition(4, (configuration,))).is_fenced
    state = Around().state(Partition(4, (configuration,)), rivalled=True)
    for name in members[:promises]:
        assert not state.is_fenced
        state.note_promise(Member(name, "1"))
    assert state.is_fenced


@pytest.mark.parametrize(
    ("partition", "fenced"),
    [
        pytest.param(Partition(4, (configuration_of("abc"),)), True, id="one configuration"),
        pytest.param(Partition(4, (configuration_of("abc", "async"),)).changed_to(configuration_of("abc")), True,
                     id="only an AP mode before"),
        pytest.param(Partition(4, (configuration_of("abc"),)).changed_to(configuration_of("abc", "async")), False,
                     id="a CP mode before"),
    ],
)  # fmt: skip
def test_where_no_earlier_configuration_promises_consistency_nothing_is_waited_for(
    partition: Partition, fenced: bool
) -> None:
    assert Around().state(partition).is_fenced is fenced


def test_a_partition_that_too_few_are_left_to_fence_says_so() -> None:
    around = Around()
    state = around.state(Partition(4, (configuration_of("abc"),)).changed_to(configuration_of("cde")))
    around.replica("a").availability = Availability.DOWN
    assert state.can_be_fenced
    around.replica("b").availability = Availability.DOWN
    assert not state.can_be_fenced
