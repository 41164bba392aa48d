"""The life of a partition, pair by pair, and what each stage allows; what a state remembers of writes and copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Final

import pytest

from tests.helpers import Around, configuration_of, partition_of
from trikv.api import Write
from trikv.coordinator import partition as partition_module
from trikv.coordinator.partition import LIFE, PartitionState, Stage, Step
from trikv.coordinator.replicas import NotEnough, Target
from trikv.core.configuration import Member, Partition
from trikv.core.quorums import Availability
from trikv.core.record import Record, Version, make_epoch, make_seq
from trikv.core.tally import TallyVerdict
from trikv.testing.inprocess import PARTITIONS

TERM: Final = 3
MARK: Final = 77
INDEX: Final = 5
KEY, OTHER = b"k", b"other"


SETTLED: Final = Partition(4, (configuration_of("abc"),))
UNSETTLED: Final = SETTLED.changed_to(configuration_of("bcd"))


def make(partition: Partition = SETTLED, around: Around | None = None, *, made_here: bool = False) -> PartitionState:
    return (around or Around()).state(partition, index=INDEX, term=TERM, mark=MARK, made_here=made_here)


def state_in(stage: Stage, around: Around | None = None) -> PartitionState:
    """A state that its own methods have brought there."""
    around = around or Around()
    match stage:
        case Stage.SETTLED:
            state = make(SETTLED, around)
        case Stage.UNUSED | Stage.CLOSED:
            state = make(UNSETTLED, around, made_here=True)
        case _:
            state = make(UNSETTLED, around)
    if stage is Stage.CLOSED:
        state.close()
    elif stage is Stage.BLOCKED:
        state.block(make_epoch(TERM, 9), "it is older than the cluster")
    elif stage is Stage.REPLACED:
        state.replace()
    assert state.stage is stage
    return state


def take(state: PartitionState, step: Step) -> None:
    match step:
        case Step.COMMIT:
            state.anchor(KEY)
        case Step.SETTLE:
            state.settle(state.partition.as_settled())
        case Step.CLOSE:
            state.close()
        case Step.REOPEN:
            state.reopen()
        case Step.BLOCK:
            state.block(make_epoch(TERM, 9), "it is older than the cluster")
        case Step.REPLACE:
            state.replace()


def version(seq: int) -> Version:
    return Version(make_epoch(TERM, 4), seq)


def record(seq: int, value: bytes | None = b"v") -> Record:
    return Record(version(seq), version(seq), value)


# --- the table --------------------------------------------------------------------------------------------------------

# A dot: the step leaves the stage alone.
GRID = """
            commit    settle   close   reopen  block    replace
unused      settling  settled  closed  .       blocked  replaced
settling    .         settled  .       .       blocked  replaced
settled     .         .        .       .       blocked  replaced
closed      .         settled  .       unused  .        .
blocked     .         .        .       .       .        replaced
replaced    .         .        .       .       .        .
"""


def spelled_out() -> list[tuple[Stage, Step, Stage]]:
    head, *rows = GRID.strip().splitlines()
    return [
        (Stage(stage), Step(step), Stage(stage if cell == "." else cell))
        for stage, *cells in map(str.split, rows)
        for step, cell in zip(head.split(), cells, strict=True)
    ]


def test_the_grid_has_every_pair_and_the_table_says_the_same() -> None:
    pairs = spelled_out()
    assert {(stage, step) for stage, step, _ in pairs} == {(stage, step) for stage in Stage for step in Step}
    assert {(stage, step): after for stage, step, after in pairs if after is not stage} == LIFE


@pytest.mark.parametrize(("stage", "step", "after"), spelled_out())
def test_a_step_leads_there_or_leaves_the_stage_alone(stage: Stage, step: Step, after: Stage) -> None:
    state = state_in(stage)
    if (stage, step) == (Stage.CLOSED, Step.COMMIT):
        with pytest.raises(NotEnough):
            take(state, step)
    else:
        take(state, step)
    assert state.stage is after


@pytest.mark.parametrize(
    ("partition", "made_here", "stage"),
    [
        pytest.param(SETTLED, False, Stage.SETTLED, id="the document has one configuration"),
        pytest.param(SETTLED, True, Stage.SETTLED, id="settled, whoever made it"),
        pytest.param(UNSETTLED, False, Stage.SETTLING, id="another coordinator may have stored something under it"),
        pytest.param(UNSETTLED, True, Stage.UNUSED, id="this coordinator made it, and has stored nothing yet"),
    ],
)
def test_a_state_begins_as_the_document_says(partition: Partition, made_here: bool, stage: Stage) -> None:
    assert make(partition, made_here=made_here).stage is stage


# --- what each stage allows -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", Stage)
def test_something_may_be_stored_and_committed_in_every_stage_but_closed(stage: Stage) -> None:
    """In a blocked or replaced one what is under way finishes."""
    state = state_in(stage)
    if stage is Stage.CLOSED:
        too_late = pytest.RaisesExc(NotEnough, match="replaced before anything was committed")
        with too_late:
            state.note_store(KEY)
        with too_late:
            state.note_sent(KEY, record(1))
        with too_late:
            state.note_committed(KEY, record(1))
        assert state.untouched
        assert not state.pending
    else:
        state.note_sent(KEY, record(1))
        assert state.pending
        state.note_committed(KEY, record(1))
        assert not state.untouched
        assert not state.pending


def test_a_state_that_is_open_again_may_be_stored_in() -> None:
    state = state_in(Stage.CLOSED)
    state.reopen()
    state.note_sent(KEY, record(1))
    state.note_committed(KEY, record(1))
    assert state.stage is Stage.SETTLING


def test_a_store_alone_leaves_a_configuration_unused() -> None:
    """Nobody was told of it, so the next configuration may take the place of this one."""
    state = state_in(Stage.UNUSED)
    state.note_sent(KEY, record(1))
    assert state.is_unused
    assert not state.untouched


@pytest.mark.parametrize(
    ("stage", "served", "blocked", "unused"),
    [
        (Stage.SETTLED, True, False, False),
        (Stage.SETTLING, True, False, False),
        (Stage.UNUSED, True, False, True),
        (Stage.CLOSED, False, False, True),
        (Stage.BLOCKED, False, True, False),
        (Stage.REPLACED, False, False, False),
    ],
)
def test_what_others_ask_of_a_stage(stage: Stage, served: bool, blocked: bool, unused: bool) -> None:
    state = state_in(stage)
    assert (state.is_served, state.is_blocked, state.is_unused) == (served, blocked, unused)


@pytest.mark.parametrize("stage", Stage)
def test_a_state_is_writable_where_the_judge_says_so_and_it_is_fenced_and_not_closed(stage: Stage) -> None:
    around = Around()
    state = state_in(stage, around)
    for voters in product(Availability, repeat=len(state.targets)):
        for target, availability in zip(state.targets, voters, strict=True):
            around.replica(target.member.worker).availability = availability
        won = state.judge_write() is TallyVerdict.WON
        assert state.is_writable is (won and state.is_fenced and stage is not Stage.CLOSED), voters


@pytest.mark.parametrize("stage", Stage)
def test_what_counts_as_settled_has_one_configuration(stage: Stage) -> None:
    """So a commit there leaves nothing to be noted."""
    state = state_in(stage)
    for step in Step:
        if stage is not Stage.CLOSED or step is not Step.COMMIT:
            state = state_in(stage)
            take(state, step)
        assert (state.stage is not Stage.SETTLED) or (state.partition.settled and len(state.history) == 1)


def test_a_blocked_partition_keeps_its_first_reason_and_the_newest_promise() -> None:
    state = state_in(Stage.SETTLED)
    state.block(make_epoch(TERM, 9), "first")
    state.block(make_epoch(TERM + 1, 8), "second")
    assert (state.blocked_because, state.promised) == ("first", make_epoch(TERM, 9))
    state.block(make_epoch(TERM - 1, 10), "third")
    assert (state.blocked_because, state.promised) == ("first", make_epoch(TERM - 1, 10)), "the generation decides"


def test_what_was_replaced_is_not_blocked_and_gives_no_reason() -> None:
    state = state_in(Stage.REPLACED)
    state.block(make_epoch(TERM, 9), "too late")
    assert (state.blocked_because, state.promised) == ("", 0)


def test_what_is_closed_keeps_the_reason_and_is_blocked_once_it_is_reopened_or_settled() -> None:
    for go_on in (PartitionState.reopen, lambda state: state.settle(state.partition.as_settled())):
        state = state_in(Stage.CLOSED)
        state.block(make_epoch(TERM, 9), "older than the cluster")
        assert state.stage is Stage.CLOSED
        go_on(state)
        assert state.is_blocked
        assert (state.blocked_because, state.promised) == ("older than the cluster", make_epoch(TERM, 9))


def test_a_blocked_partition_is_listed_by_nobody() -> None:
    state = state_in(Stage.SETTLED)
    assert state.choose_to_list()
    state.block(make_epoch(TERM, 9), "older")
    assert state.choose_to_list() is None


# --- reads, settled and not -------------------------------------------------------------------------------------------


def test_while_settling_only_a_key_with_a_commit_is_read_directly() -> None:
    state = state_in(Stage.SETTLING)
    assert not state.reads_directly(KEY)
    state.note_sent(KEY, record(1))
    assert not state.reads_directly(KEY)
    state.note_committed(KEY, record(1))
    assert state.reads_directly(KEY)
    assert not state.reads_directly(OTHER)


def test_once_settled_every_key_is_and_nothing_is_remembered_of_them() -> None:
    state = state_in(Stage.SETTLING)
    state.anchor(KEY)
    state.settle(state.partition.as_settled())
    assert state.reads_directly(OTHER)
    assert not state.anchored
    assert [each.configuration for each in state.history] == [state.configuration]
    state.anchor(OTHER)
    assert not state.anchored


def test_only_the_same_partition_can_be_settled() -> None:
    state = state_in(Stage.SETTLING)
    with pytest.raises(AssertionError):
        state.settle(replace(state.partition.as_settled(), generation=state.partition.generation + 1))
    assert state.stage is Stage.SETTLING


def test_a_state_is_current_as_long_as_term_generation_and_history_are_the_documents() -> None:
    state = state_in(Stage.SETTLING)
    assert state.is_current(TERM, UNSETTLED)
    assert not state.is_current(TERM + 1, UNSETTLED)
    assert not state.is_current(TERM, UNSETTLED.changed_to(configuration_of("cde")))
    assert not state.is_current(TERM, UNSETTLED.as_settled())


def test_what_the_strategy_reads_is_listed_only_once_settled() -> None:
    def listed(state: PartitionState) -> list[str] | None:
        chosen = state.choose_to_list()
        return None if chosen is None else [each.member.worker for each in chosen]

    settled = Partition(4, (configuration_of("abc", "sync"),))
    state = make(settled.changed_to(configuration_of("abd", "sync")))
    assert state.named_to_list() == (Member("a", "1"),)
    assert listed(state) == ["a", "b", "d"]
    assert listed(make(settled)) == ["a"]
    assert make(SETTLED).named_to_list() is None


# --- versions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", Stage)
def test_versions_grow_in_every_stage_and_carry_epoch_and_mark(stage: Stage) -> None:
    state = state_in(stage)
    given = [state.next_version() for _ in range(3)]
    epoch = make_epoch(TERM, state.partition.generation)
    assert given == [Version(epoch, make_seq(count, MARK)) for count in (1, 2, 3)]
    assert given == sorted(given)


# --- writes in doubt --------------------------------------------------------------------------------------------------


def test_the_newest_write_of_a_key_is_pending_until_it_or_a_newer_one_is_committed() -> None:
    state = state_in(Stage.SETTLED)
    state.note_sent(KEY, record(2))
    state.note_sent(KEY, record(1))
    assert state.pending == {KEY: record(2)}
    state.note_committed(KEY, record(1))
    assert state.pending == {KEY: record(2)}, "an older commit says nothing of it"
    state.note_committed(KEY, record(3))
    assert not state.pending


def test_doubt_weighs_what_is_pending_and_no_more() -> None:
    around = Around()
    state = state_in(Stage.SETTLED, around)
    state.note_sent(KEY, record(1, b"x" * 1000))
    first = around.doubt.size_bytes
    assert first > 1000
    state.note_sent(KEY, record(2, b"x" * 10))
    assert around.doubt.size_bytes == first - 990
    state.note_sent(OTHER, record(3, None))
    assert around.doubt.size_bytes > first - 990 + len(OTHER)
    state.note_committed(OTHER, record(3, None))
    assert around.doubt.size_bytes == first - 990
    state.note_committed(KEY, record(2))
    assert around.doubt.size_bytes == 0


def test_what_is_in_doubt_under_a_replaced_state_weighs_no_more() -> None:
    around = Around()
    replaced, other = state_in(Stage.SETTLED, around), state_in(Stage.SETTLED, around)
    replaced.note_sent(KEY, record(1, b"x" * 1000))
    other.note_sent(OTHER, record(1, b"y"))
    weight = around.doubt.size_bytes
    replaced.replace()
    assert 0 < around.doubt.size_bytes < weight - 1000
    left = around.doubt.size_bytes
    replaced.note_sent(OTHER, record(2))
    replaced.note_committed(KEY, record(1))
    replaced.replace()
    assert around.doubt.size_bytes == left, "what finishes there takes nothing from the others"


# --- what tombstones need to know -------------------------------------------------------------------------------------


def test_where_nothing_was_sent_before_it_is_remembered_what_is_sent_now() -> None:
    state = state_in(Stage.SETTLED)
    assert state.was_sent(KEY), "nobody knows"
    assert state.remember_sent()
    assert state.remembers_sent
    state.note_store(KEY)
    assert state.was_sent(KEY)
    assert not state.was_sent(OTHER)
    state.stop_remembering()
    assert state.was_sent(OTHER)


def test_where_something_was_sent_before_nothing_is_remembered() -> None:
    state = state_in(Stage.SETTLED)
    state.note_store(KEY)
    assert not state.remember_sent()
    assert state.was_sent(OTHER)


def test_beyond_its_bound_nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition_module, "SENT_KEYS_MAX", 2)
    state = state_in(Stage.SETTLED)
    assert state.remember_sent()
    state.note_store(b"1")
    state.note_store(b"2")
    state.note_store(b"2")
    assert not state.was_sent(OTHER)
    state.note_store(b"3")
    assert not state.remembers_sent
    assert state.was_sent(OTHER)


# --- copies -----------------------------------------------------------------------------------------------------------


def test_copies_under_way_are_those_sent_before_the_question() -> None:
    state = state_in(Stage.SETTLED)
    assert state.copies_under_way() == []
    before = state.count_copies()
    before.under_way += 1
    assert state.copies_under_way() == [before]
    later = state.count_copies()
    assert later is not before
    later.under_way += 1
    assert state.copies_under_way() == [before, later]
    before.under_way -= 1
    assert state.copies_under_way() == [later], "what has arrived is waited for no more"


def test_a_comparison_clears_what_was_missed_before_it_alone() -> None:
    state = state_in(Stage.SETTLED)
    state.note_missed()
    state.note_missed(2)
    began = state.missed
    state.note_missed()
    state.note_compared(began)
    assert state.missed == 4, "one was missed meanwhile: it is not known whether the comparison saw it"
    state.note_compared(4)
    assert state.missed == 0


# --- requests ---------------------------------------------------------------------------------------------------------


def a_write(key: bytes = KEY) -> Write:
    return Write(key, record(1))


def test_a_request_knows_the_partition_its_epoch_and_its_members() -> None:
    around = Around()
    state = state_in(Stage.SETTLED, around)
    request = state.request(7.0)
    assert (request.partition, request.epoch, request.copies) == (INDEX, state.epoch, 2)
    assert (request.targets, request.deadline_s) == (state.targets, 7.0)
    some: Sequence[Target] = state.targets[:1]
    assert state.request(7.0, some).targets == some
    request.on_stale(make_epoch(TERM, 9))
    assert around.stale == [(INDEX, make_epoch(TERM, 9))]


def test_what_a_request_sends_is_noted_where_nobody_else_notes_it() -> None:
    state = state_in(Stage.SETTLED)
    assert state.remember_sent()
    state.request(7.0, on_send=lambda write: None).on_send(a_write(OTHER))
    state.request(7.0).on_send(a_write())
    assert state.was_sent(KEY)
    assert not state.was_sent(OTHER)


def test_the_copies_of_a_clients_request_are_counted_and_reported_and_of_no_other() -> None:
    around = Around()
    state = state_in(Stage.SETTLED, around)
    target = state.targets[0]
    aside, tracked = state.request(7.0), state.request(7.0, tracked=True)
    assert aside.count_copies() is not state.count_copies()
    assert tracked.count_copies() is state.count_copies()
    aside.on_missed(target, a_write(), 3.0)
    assert around.missed == []
    tracked.on_missed(target, a_write(), 3.0)
    assert around.missed == [(INDEX, target, a_write(), 3.0)]


def test_a_key_is_its_partitions_alone() -> None:
    states = [Around().state(SETTLED, index=index) for index in range(PARTITIONS)]
    assert [state.index for state in states if state.is_of(KEY)] == [partition_of(KEY)]
