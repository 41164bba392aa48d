"""Summaries that are kept as rows come and go, against those of the rows themselves."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trikv.core.digest import Summary
from trikv.core.record import Record, Version

VERSIONS = st.builds(Version, st.integers(0, 3), st.integers(0, 3))
RECORDS = st.builds(Record, VERSIONS, VERSIONS, st.none() | st.binary(max_size=3))
KEYS = st.binary(min_size=1, max_size=2)
ROWS = st.dictionaries(KEYS, RECORDS, max_size=8)

V1, V2 = Version(1 << 32, 1), Version(1 << 32, 2)


def summary_of(rows: dict[bytes, Record]) -> Summary:
    summary = Summary()
    for key, record in rows.items():
        summary = summary.replaced(key, None, record)
    return summary


@given(st.lists(st.tuples(KEYS, st.none() | RECORDS), max_size=40))
def test_whatever_came_and_went_only_what_is_there_counts(changes: list[tuple[bytes, Record | None]]) -> None:
    kept, rows = Summary(), dict[bytes, Record]()
    for key, record in changes:
        kept = kept.replaced(key, rows.get(key), record)
        rows.pop(key, None)
        if record is not None:
            rows[key] = record
    assert kept == summary_of(rows)
    live = [record for record in rows.values() if record.value is not None]
    assert (kept.rows, kept.keys, kept.tombstones) == (len(rows), len(live), len(rows) - len(live))
    assert kept.size_bytes == sum(map(len, rows)) + sum(len(record.value or b"") for record in live)


@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_does_not_matter(rows: dict[bytes, Record], dice: Random) -> None:
    shuffled = list(rows.items())
    dice.shuffle(shuffled)
    assert summary_of(dict(shuffled)) == summary_of(rows)


@given(ROWS, ROWS)
def test_it_is_one_where_keys_and_versions_are_and_only_there(
    one: dict[bytes, Record], two: dict[bytes, Record]
) -> None:
    alike = {key: record.version for key, record in one.items()} == {key: record.version for key, record in two.items()}
    assert (summary_of(one).digest == summary_of(two).digest) == alike


@pytest.mark.parametrize(
    "other",
    [
        {b"k": Record(V2, V1, b"v")},
        {b"kk": Record(V1, V1, b"v")},
        {b"k": Record(Version(V1.epoch + 1, V1.seq), V1, b"v")},
        {b"k": Record(V1, V1, b"v"), b"gone": Record(V1, V1, None)},
        {},
    ],
)
def test_one_row_that_differs_shows(other: dict[bytes, Record]) -> None:
    assert summary_of(other).digest != summary_of({b"k": Record(V1, V1, b"v")}).digest


@given(ROWS)
def test_it_comes_back_from_disk_as_it_was(rows: dict[bytes, Record]) -> None:
    assert Summary.unpack(summary_of(rows).pack()) == summary_of(rows)


def test_a_note_that_only_counts_keys_is_from_before() -> None:
    assert Summary.unpack(b"0") is None
    assert Summary.unpack(b"17") is None


def test_the_words_stay_what_they_are() -> None:
    """Replicas of another release compare theirs with ours."""
    assert Summary().replaced(b"k", None, Record(V1, V1, b"v")) == Summary(3179452235188159685, 1, 2, 1)
