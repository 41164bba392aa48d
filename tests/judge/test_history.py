"""Recording, merging, splitting by key, and the files that histories are kept in."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trikv.core.errors import Outcome
from trikv.core.record import Version
from trikv.testing.judge.history import Finding, Kind, Operation, Recorder, ScannedRow, by_key, dump, load, merge

Told = Callable[..., list[Operation]]


def test_what_begins_at_the_instant_of_an_end_comes_after_it() -> None:
    recorder = Recorder()
    put = recorder.begin("c1", Kind.PUT, "x", 5.0, value=recorder.fresh_value())
    recorder.end(put, 5.0, Outcome.COMMITTED, stamp=Version(1, 1))
    get = recorder.begin("c1", Kind.GET, "x", 5.0)
    assert put.ended is not None
    assert put.began < put.ended < get.began


def test_an_operation_without_answer_is_unknown_and_has_no_end() -> None:
    recorder = Recorder()
    silent = recorder.begin("c1", Kind.PUT, "x", 1.0, value="a")
    evictable = recorder.begin("c2", Kind.PUT, "x", 1.0, value="b")
    recorder.end(evictable, 3.0, Outcome.UNKNOWN, code="unknown")
    assert [op.outcome for op in recorder.operations] == [Outcome.UNKNOWN, Outcome.UNKNOWN]
    assert silent.ended is None
    assert evictable.ended is None
    assert evictable.returned_s == 3.0


def test_fresh_values_differ_within_a_recorder_and_between_named_ones() -> None:
    recorders = [Recorder("a-"), Recorder("b-")]
    values = [recorder.fresh_value() for recorder in recorders for _ in range(100)]
    assert len(set(values)) == 200


def test_merge_orders_by_time_and_takes_one_instant_as_concurrent() -> None:
    one, other = Recorder(), Recorder()
    put = one.begin("c1", Kind.PUT, "x", 1.0, value="a")
    one.end(put, 2.0, Outcome.COMMITTED)
    same_instant = other.begin("c2", Kind.GET, "x", 2.0)
    other.end(same_instant, 4.0, Outcome.COMMITTED, result="a")
    later = one.begin("c1", Kind.GET, "x", 3.0)
    one.end(later, 3.5, Outcome.COMMITTED, result="a")
    assert merge([one.operations, other.operations]) == [put, same_instant, later]
    assert put.ended is not None
    assert same_instant.began < put.ended < later.began


def test_a_scan_counts_as_a_get_of_every_key_in_its_page() -> None:
    recorder = Recorder()
    for key in ("a1", "b1", "b2", "b3", "b4"):
        recorder.end(recorder.begin("c1", Kind.PUT, key, 0.0, value=key), 0.0, Outcome.COMMITTED)
    scan = recorder.begin("c2", Kind.SCAN, "b", 1.0, value="b1")  # after b1, the page ends with b3
    recorder.end(scan, 2.0, Outcome.COMMITTED, rows=(ScannedRow("b2", "b2"), ScannedRow("b25", "?")), result="b3")
    seen = {key: [op.result for op in ops if op.kind is Kind.GET] for key, ops in by_key(recorder.operations).items()}
    assert seen == {"a1": [], "b1": [], "b2": ["b2"], "b25": ["?"], "b3": [None], "b4": []}


def test_a_scan_to_the_end_covers_all_that_follows_and_one_that_failed_covers_nothing() -> None:
    recorder = Recorder()
    recorder.end(recorder.begin("c1", Kind.PUT, "b9", 0.0, value="v"), 0.0, Outcome.COMMITTED)
    recorder.end(recorder.begin("c2", Kind.SCAN, "b", 1.0), 2.0, Outcome.COMMITTED)
    recorder.end(recorder.begin("c2", Kind.SCAN, "b", 1.0), 2.0, Outcome.REFUSED, code="unavailable")
    assert [op.result for op in by_key(recorder.operations)["b9"] if op.kind is Kind.GET] == [None]


_TEXT = st.text(max_size=5)
_STAMPS = st.none() | st.builds(Version, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
_OPERATIONS = st.builds(
    Operation,
    client=_TEXT,
    kind=st.sampled_from(Kind),
    key=_TEXT,
    began=st.integers(0, 1000),
    invoked_s=st.floats(0, 1e6),
    value=st.none() | _TEXT,
    expect=st.none() | _TEXT,
    ended=st.none() | st.integers(0, 1000),
    returned_s=st.none() | st.floats(0, 1e6),
    outcome=st.sampled_from(Outcome),
    code=st.none() | _TEXT,
    result=st.none() | _TEXT,
    stamp=_STAMPS,
    rows=st.lists(st.builds(ScannedRow, _TEXT, _TEXT, _STAMPS), max_size=2).map(tuple),
)


@settings(derandomize=True, deadline=None)
@given(st.lists(_OPERATIONS, max_size=5))
def test_load_gives_back_what_dump_wrote(operations: list[Operation]) -> None:
    file = io.StringIO()
    dump(operations, file)
    file.seek(0)
    assert load(file) == operations


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "line 1: not a history: the file is empty"),
        ("[]\n", "line 1: "),
        ('{"history":2}\n', "a history of format 2; this trikv reads format 1"),
        ('{"history":1}\n{"client":"c1"\n', "line 2: "),
        ('{"history":1}\n{"client":"c1"}\n', "line 2: "),
        ('{"history":1}\n7\n', "line 2: "),
    ],
)
def test_load_names_the_line_that_it_cannot_read(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        load(io.StringIO(text))


def test_operations_and_findings_read_as_sentences(told: Told) -> None:
    put, cas, get = told("0-1 c1 put x=a @4", "2-3 c2 cas x=a>- ?", "4-5 c3 get x=-")
    assert str(put) == "c1 put x = a, 0.000 s to 1.000 s, committed at 1.1-4"
    assert str(cas) == "c2 cas x from a to nothing, 2.000 s to 3.000 s, unknown"
    assert str(get) == "c3 get x -> nothing, 4.000 s to 5.000 s, committed"
    assert str(Finding("rule", "x", "why", (get,))) == f"rule, key x: why\n  [1] {get}"
