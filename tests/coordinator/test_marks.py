"""Marks: what is known to be committed, by the epoch of the record and whether its key is in doubt."""

from __future__ import annotations

import pytest

from tests.helpers import Around, configuration_of
from trikv.api import Answer
from trikv.coordinator.marks import Marks
from trikv.core.configuration import Partition
from trikv.core.record import Record, Version

KEY, OTHER = b"key", b"other"
EPOCH = 7


def record(epoch: int) -> Record:
    return Record(Version(epoch, 1), Version(epoch, 1), b"v")


@pytest.mark.parametrize(
    ("held", "in_doubt", "alike", "committed"),
    [
        pytest.param(record(EPOCH), False, False, True, id="sent here, and not in doubt"),
        pytest.param(record(EPOCH), True, True, False, id="sent here, and in doubt"),
        pytest.param(record(EPOCH - 1), False, False, False, id="of before, and the members may differ"),
        pytest.param(record(EPOCH - 1), False, True, True, id="of before, and on all members"),
        pytest.param(record(EPOCH - 1), True, True, True, id="of before, on all members, and a newer one in doubt"),
        pytest.param(None, True, False, True, id="nothing, which cannot be undone"),
    ],
)
def test_what_is_known_to_be_committed(held: Record | None, in_doubt: bool, alike: bool, committed: bool) -> None:
    pending = {OTHER: record(EPOCH)} | ({KEY: record(EPOCH)} if in_doubt else {})
    assert Marks(EPOCH, pending, alike=alike).is_committed(KEY, held) is committed


def test_turns_follow_each_other() -> None:
    marks = Marks(EPOCH, {}, alike=False)
    assert [marks.take_turn() for _ in range(3)] == [1, 2, 3]


# --- when the members are alike ---------------------------------------------------------------------------------------

BEFORE = Answer("a", record(1))


def test_a_request_takes_the_marks_of_its_beginning() -> None:
    state = Around().state(Partition(4, (configuration_of("abc", "chain"),)), index=1, term=3, mark=5)
    early = state.request(1.0).replicas
    state.note_compared(0)
    assert not early.is_committed(KEY, BEFORE)
    assert state.request(1.0).replicas.is_committed(KEY, BEFORE)
    assert not state.request(1.0, listed={}).replicas.is_committed(KEY, BEFORE), "it may have been listed before that"


@pytest.mark.parametrize(("mode", "alike"), [("chain", True), ("sync", True), ("quorum", False), ("async", False)])
def test_settling_makes_members_alike_where_a_write_is_on_all(mode: str, alike: bool) -> None:
    """Elsewhere a member that was not heard may hold the remains of a write that never was."""
    partition = Partition(4, (configuration_of("abc", mode),)).changed_to(configuration_of("abd", mode))
    state = Around().state(partition, index=1, term=3, mark=5)
    assert not state.request(1.0).replicas.is_committed(KEY, BEFORE)
    state.settle(partition.as_settled())
    assert state.request(1.0).replicas.is_committed(KEY, BEFORE) is alike


def test_a_new_epoch_begins_without_knowing() -> None:
    partition = Partition(4, (configuration_of("abc", "chain"),))
    Around().state(partition, index=1, term=3, mark=5).note_compared(0)
    again = Around().state(partition.renewed(), index=1, term=3, mark=5)
    assert not again.request(1.0).replicas.is_committed(KEY, BEFORE)


def test_of_a_rotated_set_another_replica_comes_first_each_time() -> None:
    state = Around().state(Partition(4, (configuration_of("abc", "chain"),)), index=1, term=3, mark=5)
    firsts = [state.request(1.0).replicas.rotate().members[0].worker for _ in range(6)]
    assert firsts == ["b", "c", "a"] * 2
    replicas = state.request(1.0).replicas
    assert sorted(m.worker for m in replicas.rotate().members) == ["a", "b", "c"]
    assert len(replicas[3:].rotate()) == 0
