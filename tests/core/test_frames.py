"""Frames: what we say arrives as it was said, and whatever else arrives is refused with a sentence, never a crash."""

import contextlib
import struct
import tracemalloc
from datetime import UTC, datetime
from decimal import Decimal
from enum import IntEnum
from itertools import pairwise
from math import isinf, isnan
from typing import Any, NamedTuple
from uuid import UUID

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trikv.core.frames import (
    DEPTH_MAX,
    FRAME_BYTES_MAX,
    INT_MAX,
    INT_MIN,
    NO_FRAME,
    FrameBuffer,
    FrameError,
    NoFrame,
    encode,
    has_more_items,
    pack_frames,
)

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(INT_MIN, INT_MAX)
    | st.floats(allow_nan=False)
    | st.binary(max_size=300)
    | st.text(max_size=100)
)
ITEMS = st.lists(st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=5), max_leaves=20), max_size=6)


def framed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def drain(buffer: FrameBuffer) -> list[list[Any]]:
    frames: list[list[Any]] = []
    while not isinstance(frame := buffer.next_frame(), NoFrame):
        frames.append(frame)
    return frames


def decode(body: bytes) -> list[Any]:
    """The one frame that has this body."""
    buffer = FrameBuffer()
    buffer.feed(framed(body))
    (frame,) = drain(buffer)
    return frame


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


# --- what we say ----------------------------------------------------------------------------------------------------


@given(st.lists(ITEMS, max_size=6), st.lists(st.integers(0, 10_000), max_size=20))
def test_what_is_encoded_arrives_however_it_is_cut(items: list[list[Any]], cuts: list[int]) -> None:
    buffer = FrameBuffer()
    arrived = []
    for piece in pieces(b"".join(map(encode, items)), cuts):
        buffer.feed(piece)
        arrived += drain(buffer)
    assert arrived == items
    assert [[type(leaf) for leaf in item] for item in arrived] == [[type(leaf) for leaf in item] for item in items]
    assert len(buffer) == 0


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_frames_cut_in_two_at_every_place(kind: type[Any]) -> None:
    """A frame that arrives whole and alone takes another way than a piece of one."""
    items: list[list[Any]] = [[1, [[7, 1000, 1, b"key"]]], [3, [7]], [], [2, [[8, 3]]]]
    data = b"".join(map(encode, items))
    for cut in range(len(data) + 1):
        buffer = FrameBuffer()
        arrived = []
        for piece in (data[:cut], data[cut:]):
            buffer.feed(kind(piece))
            arrived += drain(buffer)
        assert arrived == items
        assert len(buffer) == 0


def test_what_was_not_taken_yet_is_not_lost_by_the_next_feed() -> None:
    buffer = FrameBuffer()
    for number in range(3):
        buffer.feed(encode([number]))
    assert drain(buffer) == [[0], [1], [2]]


def test_a_frame_arrives_byte_by_byte_and_not_before_its_last() -> None:
    frame = encode([1, b"x" * 10_000])
    buffer = FrameBuffer()
    for at in range(len(frame)):
        assert buffer.next_frame() is NO_FRAME
        buffer.feed(frame[at : at + 1])
    assert buffer.next_frame() == [1, b"x" * 10_000]
    assert buffer.next_frame() is NO_FRAME


def test_numbers_and_tuples_with_names_travel_as_what_they_derive_from() -> None:
    class Op(IntEnum):
        STORE = 1

    class Pair(NamedTuple):
        left: int
        right: bytes

    assert decode(encode([Op.STORE, Pair(7, b"v"), (None,)])[4:]) == [1, [7, b"v"], [None]]


def test_nan_and_the_infinities_are_plain_floats() -> None:
    nan, infinity = decode(encode([float("nan"), float("inf")])[4:])
    assert isnan(nan)
    assert isinf(infinity)


@pytest.mark.parametrize(
    "stranger",
    [
        memoryview(b"ab"),
        bytearray(b"ab"),
        {"a": 1},
        {1, 2},
        Decimal("1.5"),
        1j,
        range(3),
        datetime(2024, 1, 1, tzinfo=UTC),
        UUID(int=1),
        cbor2.CBORTag(1, 1),
        cbor2.undefined,
        object(),
    ],
    ids=lambda stranger: type(stranger).__name__,
)
def test_other_types_are_not_sent(stranger: object) -> None:
    for item in ([stranger], [1, [[stranger]]]):
        with pytest.raises(TypeError, match=type(stranger).__name__):
            encode(item)
        with pytest.raises(TypeError, match=type(stranger).__name__):
            list(pack_frames(1, [item]))


@pytest.mark.parametrize("item", [b"bytes", "text", {"a": 1}, memoryview(b"ab")])
def test_only_a_list_makes_a_frame(item: Any) -> None:
    with pytest.raises(TypeError, match="carries a list"):
        encode(item)


@pytest.mark.parametrize("integer", [INT_MAX + 1, INT_MIN - 1, 2**100])
def test_integers_beyond_64_bits_are_not_sent(integer: int) -> None:
    with pytest.raises(ValueError, match="64 bits"):
        encode([[integer]])


def test_text_that_utf8_cannot_express_is_not_sent() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        encode(["\ud800"])


def test_depth_is_the_same_on_both_sides() -> None:
    deepest: list[Any] = [0]
    for _ in range(DEPTH_MAX - 1):
        deepest = [deepest]
    assert decode(encode(deepest)[4:]) == deepest
    with pytest.raises(ValueError, match="nested"):
        encode([deepest])
    with pytest.raises(FrameError, match="depth"):
        decode(cbor2.dumps([deepest]))


def test_each_frame_of_a_link_is_judged_by_itself() -> None:
    """They share a decoder: what it has counted and kept for one must not be there for the next."""
    deep: list[Any] = [1]
    for _ in range(DEPTH_MAX - 1):
        deep = [deep]
    buffer = FrameBuffer()
    buffer.feed(encode(deep) * 100 + encode([b"x" * 1000, "y"]) + encode([]))
    assert drain(buffer) == [deep] * 100 + [[b"x" * 1000, "y"], []]


def test_a_list_that_holds_itself_is_not_sent() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValueError, match="nested"):
        encode(endless)


def test_a_frame_may_be_as_long_as_the_cap_and_no_longer() -> None:
    head = len(cbor2.dumps([b"x" * 70_000])) - 70_000
    longest = encode([b"x" * (FRAME_BYTES_MAX - head)])
    assert len(longest) == 4 + FRAME_BYTES_MAX
    buffer = FrameBuffer()
    buffer.feed(longest)
    assert len(drain(buffer)) == 1
    with pytest.raises(ValueError, match=f"{FRAME_BYTES_MAX + 1} bytes"):
        encode([b"x" * (FRAME_BYTES_MAX - head + 1)])


# --- many items in as few frames as the cap allows --------------------------------------------------------------------


def test_items_that_fit_share_one_frame() -> None:
    (frame,) = pack_frames(3, [[1, b"a"], [2, b"b"]])
    assert decode(frame[4:]) == [3, [[1, b"a"], [2, b"b"]]]
    assert list(pack_frames(3, [])) == []


@pytest.mark.parametrize("sizes", [[1024 * 1024 + 4096] * 20, [9, FRAME_BYTES_MAX - 20, 9, 9], [3 * 1024 * 1024] * 3])
def test_items_that_do_not_fit_are_split_in_order(sizes: list[int]) -> None:
    items = [[n, bytes(size)] for n, size in enumerate(sizes)]
    frames = list(pack_frames(7, items))
    assert len(frames) > 1
    buffer = FrameBuffer()
    arrived = []
    for frame in frames:
        buffer.feed(frame)
        for kind, some in drain(buffer):
            assert kind == 7
            arrived += some
    assert arrived == items


@pytest.mark.parametrize(
    "items",
    [list(range(600_000)), [[n, b"key", n, None, True] for n in range(100_000)], [[[[n]]] * 3 for n in range(60_000)]],
    ids=["ids", "rows", "lists in rows"],
)
def test_no_frame_has_more_items_than_the_receiver_takes(items: list[Any]) -> None:
    frames = list(pack_frames(3, items))
    assert len(frames) > 1
    buffer = FrameBuffer()
    arrived = []
    for frame in frames:
        assert len(frame) < FRAME_BYTES_MAX
        buffer.feed(frame)
        arrived += [item for _, some in drain(buffer) for item in some]
    assert arrived == items


def test_one_item_of_more_items_than_a_receiver_takes_is_an_error() -> None:
    with pytest.raises(ValueError, match="250,000 items"):
        list(pack_frames(3, [[7], [0] * 250_000]))
    with pytest.raises(ValueError, match="250,000 items"):
        encode([0] * 250_000)


def test_an_item_beyond_a_frame_is_an_error() -> None:
    with pytest.raises(ValueError, match="an item of"):
        list(pack_frames(7, [[b"small"], [bytes(FRAME_BYTES_MAX)]]))


# --- what they say ----------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200))
def test_arbitrary_bodies_are_plain_lists_or_refused(body: bytes) -> None:
    with contextlib.suppress(FrameError):
        assert_plain(decode(body))


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=8))
def test_arbitrary_streams_end_in_frames_or_one_lasting_error(stream: bytes, cuts: list[int]) -> None:
    buffer = FrameBuffer(bytes_max=64)
    outcomes = []
    for piece in pieces(stream, cuts):
        try:
            buffer.feed(piece)
            drain(buffer)
            assert len(buffer) < 4 + 64
        except FrameError as error:
            outcomes.append(str(error))
            assert len(buffer) == 0
        else:
            assert not outcomes, "it recovered from an error"
    assert len(set(outcomes)) <= 1


@given(ITEMS, st.data())
def test_what_is_truncated_is_refused(item: list[Any], data: st.DataObject) -> None:
    body = encode(item)[4:]
    with pytest.raises(FrameError):
        decode(body[: data.draw(st.integers(0, len(body) - 1))])


@given(ITEMS, st.binary(min_size=1, max_size=20))
def test_what_goes_on_after_its_list_is_refused(item: list[Any], rest: bytes) -> None:
    with pytest.raises(FrameError, match=f"{len(rest)} bytes left over"):
        decode(encode(item)[4:] + rest)


@given(ITEMS, st.data())
def test_a_changed_byte_gives_a_plain_list_or_an_error(item: list[Any], data: st.DataObject) -> None:
    body = bytearray(encode(item)[4:])
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FrameError):
        assert_plain(decode(bytes(body)))


@given(st.integers(0, 2**64 - 1), st.sampled_from([0, b"", b"1", "2013-03-21T20:04:00Z", [], [1, 2], {}, "("]))
def test_every_tag_is_refused(tag: int, value: object) -> None:
    body = b"\x81\xdb" + struct.pack(">Q", tag) + cbor2.dumps(value)
    with pytest.raises(FrameError, match="tags are not allowed"):
        decode(body)


@pytest.mark.parametrize(
    "value",
    [
        2**64,
        -(2**64) - 1,
        datetime(2024, 1, 1, tzinfo=UTC),
        Decimal("1e999999"),
        UUID(int=1),
        {1, 2},
        cbor2.undefined,
        cbor2.CBORSimpleValue(19),
        cbor2.CBORSimpleValue(255),
        {},
        {"a": 1},
        {1: 2},
        cbor2.CBORTag(55799, []),
    ],
    ids=repr,
)
def test_what_cbor_has_beyond_plain_lists_is_refused(value: object) -> None:
    for item in ([value], [[1], [[value]]], value):
        with pytest.raises(FrameError):
            decode(cbor2.dumps(item))


@pytest.mark.parametrize(
    "body",
    ["9fff", "9f01ff", "815f4101ff", "817f6161ff", "81bfff", "819f", "81ff", "81a2616101616102", "811c", "81f800"],
)
def test_other_forms_are_refused(body: str) -> None:
    with pytest.raises(FrameError):
        decode(bytes.fromhex(body))


@pytest.mark.parametrize(("body", "why"), [("81a2616101616102", "Duplicate map key"), ("81a10102", "map key must be")])
def test_maps_are_not_even_built_where_they_could_do_harm(body: str, why: str) -> None:
    with pytest.raises(FrameError, match=why):
        decode(bytes.fromhex(body))


@pytest.mark.parametrize("value", [None, True, 7, 1.5, b"bytes", "text"])
def test_only_a_list_is_a_frame(value: object) -> None:
    with pytest.raises(FrameError, match="where a list belongs"):
        decode(cbor2.dumps(value))


@pytest.mark.parametrize("body", ["9b0000000100000000", "9bffffffffffffffff", "815bffffffffffffffff", "815a7fffffff"])
def test_a_length_that_lies_costs_nothing(body: str) -> None:
    with pytest.raises(FrameError):
        decode(bytes.fromhex(body))


def test_an_empty_frame_is_refused() -> None:
    with pytest.raises(FrameError):
        decode(b"")


# --- bounds and the end -----------------------------------------------------------------------------------------------


def test_a_length_beyond_the_cap_is_refused_before_any_of_it_is_kept() -> None:
    buffer = FrameBuffer(bytes_max=4096)
    buffer.feed(b"\x00\x00\x10")
    with pytest.raises(FrameError, match="4097 bytes was announced; at most 4096"):
        buffer.feed(b"\x01" + bytes(100))
    assert len(buffer) == 0


def test_a_greeting_may_be_answered_with_a_higher_cap() -> None:
    buffer = FrameBuffer(bytes_max=64)
    buffer.feed(encode(["hello"]) + encode([bytes(1000)]))
    assert buffer.next_frame() == ["hello"]
    buffer.bytes_max = FRAME_BYTES_MAX
    assert buffer.next_frame() == [bytes(1000)]


def test_after_an_error_there_is_nothing_but_the_error() -> None:
    buffer = FrameBuffer()
    buffer.feed(encode(["good"]) + framed(b"\xff") + encode(["never seen"]))
    assert buffer.next_frame() == ["good"]
    with pytest.raises(FrameError) as first:
        buffer.next_frame()
    assert len(buffer) == 0
    for again in (lambda: buffer.feed(encode(["good"])), buffer.next_frame):
        with pytest.raises(FrameError, match=str(first.value)):
            again()
    assert len(buffer) == 0


def assert_plain(item: list[Any]) -> None:
    assert type(item) is list
    for leaf in item:
        if type(leaf) is list:
            assert_plain(leaf)
        else:
            assert leaf is None or type(leaf) in (bool, int, float, bytes, str)
            assert type(leaf) is not int or INT_MIN <= leaf <= INT_MAX


def test_a_frame_of_millions_of_empty_items_is_refused_before_it_is_decoded() -> None:
    items = b"\x80" * (FRAME_BYTES_MAX - 5)
    body = b"\x9a" + len(items).to_bytes(4, "big") + items
    buffer = FrameBuffer()
    buffer.feed(len(body).to_bytes(4, "big") + body)
    tracemalloc.start()
    try:
        with pytest.raises(FrameError, match="more than 250,000 items"):
            buffer.next_frame()
        assert tracemalloc.get_traced_memory()[1] < 3 * FRAME_BYTES_MAX
    finally:
        tracemalloc.stop()


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.floats(allow_nan=False) | st.binary() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=30,
)


def count(item: object) -> int:
    if isinstance(item, list):
        return 1 + sum(map(count, item))
    if isinstance(item, dict):
        return 1 + sum(1 + count(value) for value in item.values())
    return 1


@given(NESTED)
def test_items_are_counted_as_the_decoder_would_meet_them(item: object) -> None:
    data = cbor2.dumps(item)
    assert not has_more_items(data, count(item))
    assert has_more_items(data, count(item) - 1)


@given(st.binary(max_size=200))
def test_whatever_the_bytes_counting_comes_to_an_end(data: bytes) -> None:
    assert not has_more_items(data, len(data))
