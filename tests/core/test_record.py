"""Records: their order, their bytes, and what is refused as bytes of ours."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trikv.core.record import Record, Version, generation_of, make_epoch, make_seq, newest, pack, term_of, unpack

PARTS = st.integers(0, 2**32 - 1)
VERSIONS = st.builds(Version, st.builds(make_epoch, PARTS, PARTS), st.integers(0, 2**64 - 1))
RECORDS = st.builds(Record, VERSIONS, VERSIONS, st.none() | st.binary(max_size=200))


@given(PARTS, PARTS, PARTS, PARTS)
def test_epochs_compare_as_term_then_generation(term: int, generation: int, term2: int, generation2: int) -> None:
    epoch, other = make_epoch(term, generation), make_epoch(term2, generation2)
    assert (term_of(epoch), generation_of(epoch)) == (term, generation)
    assert (epoch < other) == ((term, generation) < (term2, generation2))


@pytest.mark.parametrize("parts", [(2**32, 0), (0, 2**32), (-1, 0), (0, -1)])
def test_an_epoch_out_of_range_is_our_own_mistake(parts: tuple[int, int]) -> None:
    with pytest.raises(AssertionError):
        make_epoch(*parts)


@given(VERSIONS)
def test_a_version_is_read_as_it_is_written(version: Version) -> None:
    assert Version.parse(str(version)) == version


def test_a_version_reads_term_generation_count_and_the_masters_mark() -> None:
    assert str(Version(make_epoch(3, 7), make_seq(42, 0xBEEF))) == "3.7-42.00beef"


def test_a_version_from_before_there_were_marks_reads_as_it_did() -> None:
    assert str(Version(make_epoch(3, 7), 42)) == "3.7-42"


def test_the_count_orders_what_one_master_writes_and_the_mark_tells_two_masters_apart() -> None:
    assert make_seq(1, 0xFFFFFF) < make_seq(2, 0)
    assert make_seq(1, 1) != make_seq(1, 2)


NO_VERSIONS = (
    *("", "3.7", "3-7", ".7-1", "3.-1", "3.7-", "3.7-x", "-3.7-1", "3.7-1 ", " 3.7-1", "3.7-+1", "3.7-1_0", "٣.7-1"),
    *("3.7-1-1", "3.7.1-1", "4294967296.0-1", "0.4294967296-1"),
    *("3.7-1.", "3.7-1.00000", "3.7-1.00000G", "3.7-1.00BEEF"),
    *("0.0-18446744073709551616", "0.0-1099511627776.000000", "0.0-" + "9" * 5000),
)


@pytest.mark.parametrize("text", NO_VERSIONS)
def test_other_texts_are_no_versions(text: str) -> None:
    with pytest.raises(ValueError, match=r"form|range"):
        Version.parse(text)


@given(RECORDS)
def test_a_record_is_unpacked_as_it_was_packed(record: Record) -> None:
    assert unpack(pack(record)) == record
    assert unpack(pack(record)).is_tombstone == (record.value is None)


def test_an_empty_value_is_not_a_tombstone() -> None:
    version = Version(1, 1)
    assert unpack(pack(Record(version, version, b""))).value == b""
    assert unpack(pack(Record(version, version, None))).value is None


def test_the_format_on_disk_never_changes() -> None:
    record = Record(Version(make_epoch(1, 2), 3), Version(make_epoch(4, 5), 6), b"value")
    assert pack(record) == b"\x01\x00" + struct.pack(">IIQIIQ", 1, 2, 3, 4, 5, 6) + b"value"
    assert pack(record._replace(value=None)) == b"\x01\x01" + struct.pack(">IIQIIQ", 1, 2, 3, 4, 5, 6)


@given(st.binary(max_size=33))
def test_too_few_bytes_are_no_record(data: bytes) -> None:
    with pytest.raises(ValueError, match="at least 34 bytes"):
        unpack(data)


def test_a_record_of_another_format_is_refused() -> None:
    version = Version(1, 1)
    with pytest.raises(ValueError, match="format 2"):
        unpack(b"\x02" + pack(Record(version, version, b"value"))[1:])


@given(st.lists(st.none() | RECORDS, max_size=6))
def test_the_newest_has_the_highest_version(records: list[Record | None]) -> None:
    held = [record for record in records if record is not None]
    found = newest(records)
    if found is None:
        assert not held
    else:
        assert found in held
        assert all(record.version <= found.version for record in held)
