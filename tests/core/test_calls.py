"""Calls and answers against their shapes: what we send arrives as it was, what we would never send is a `PeerError`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trikv.core import frames
from trikv.core.calls import (
    LIST_LIMIT_MAX,
    Digest,
    Discard,
    Enlist,
    Fetch,
    Forget,
    Full,
    Heartbeat,
    Hop,
    List,
    Op,
    RpcRequest,
    Store,
    Vitals,
    check_listed,
    digests_from_wire,
    fetched_from_wire,
    listed_from_wire,
    parse,
    record_from_wire,
    record_to_wire,
    vitals_from_wire,
)
from trikv.core.digest import Summary
from trikv.core.lineage import Start
from trikv.core.record import KEY_BYTES_MAX, VALUE_BYTES_MAX, Record, Version, make_epoch, pack, unpack
from trikv.core.session import PeerError

EPOCH = make_epoch(3, 1)
RECORD = Record(Version(EPOCH, 8), Version(EPOCH, 4), b"value")


def wired(item: list[Any]) -> list[Any]:
    """As it comes out at the other end of a link."""
    buffer = frames.FrameBuffer()
    buffer.feed(frames.encode(item))
    arrived = buffer.next_frame()
    assert isinstance(arrived, list)
    return arrived


CALLS: list[tuple[Op, list[Any], RpcRequest]] = [
    (Op.STORE, [5, EPOCH, "i", b"k", *record_to_wire(RECORD)], Store(5, EPOCH, "i", b"k", RECORD, [])),
    (
        Op.STORE,
        [5, EPOCH, "i", b"k", *record_to_wire(RECORD), [["w-2", "i-2", "h:1"], ["w-3", "i-3", "h:2"]]],
        Store(5, EPOCH, "i", b"k", RECORD, [Hop("w-2", "i-2", "h:1"), Hop("w-3", "i-3", "h:2")]),
    ),
    (Op.FETCH, [0, 0, "", b"k" * KEY_BYTES_MAX], Fetch(0, 0, "", b"k" * KEY_BYTES_MAX)),
    (
        Op.LIST,
        ["i", [[1, EPOCH], [2, EPOCH]], b"", None, LIST_LIMIT_MAX, True],
        List("i", [(1, EPOCH), (2, EPOCH)], b"", None, LIST_LIMIT_MAX, True),
    ),
    (Op.LIST, ["i", [], b"p", b"p1", 1, False], List("i", [], b"p", b"p1", 1, False)),
    (Op.DISCARD, [5, EPOCH, "i"], Discard(5, EPOCH, "i")),
    (Op.DIGEST, ["i", [[1, EPOCH], [2, EPOCH]]], Digest("i", [(1, EPOCH), (2, EPOCH)])),
    (Op.FORGET, [5, EPOCH, "i", b"k", EPOCH, 7], Forget(5, EPOCH, "i", b"k", Version(EPOCH, 7))),
    (Op.HEARTBEAT, [], Heartbeat()),
    (Op.ENLIST, ["localhost:8001"], Enlist("localhost:8001")),
]


@pytest.mark.parametrize(("op", "arguments", "request_"), CALLS)
def test_a_call_arrives_as_it_was_meant(op: Op, arguments: list[Any], request_: RpcRequest) -> None:
    assert parse(op, wired(arguments)) == request_


BAD_CALLS: list[tuple[int, list[Any]]] = [
    (0, []),
    (99, []),
    (Op.HEARTBEAT, [1]),
    (Op.ENLIST, [8001]),
    (Op.FETCH, [5, EPOCH, "i"]),
    (Op.FETCH, [5, EPOCH, "i", b""]),
    (Op.FETCH, [5, EPOCH, "i", "text"]),
    (Op.FETCH, [5, EPOCH, "i", b"k" * (KEY_BYTES_MAX + 1)]),
    (Op.FETCH, [-1, EPOCH, "i", b"k"]),
    (Op.FETCH, [0xFFFF, EPOCH, "i", b"k"]),
    (Op.FETCH, [5, -1, "i", b"k"]),
    (Op.FETCH, [5, 1 << 64, "i", b"k"]),
    (Op.FETCH, [True, EPOCH, "i", b"k"]),
    (Op.FETCH, [5, True, "i", b"k"]),
    (Op.FETCH, [5.0, EPOCH, "i", b"k"]),
    (Op.DISCARD, [5, EPOCH, None]),
    (Op.DIGEST, ["i", [[1]]]),
    (Op.DIGEST, ["i", [[0xFFFF, EPOCH]]]),
    (Op.DIGEST, [None, []]),
    (Op.FORGET, [5, EPOCH, "i", b"", EPOCH, 7]),
    (Op.FORGET, [5, EPOCH, "i", b"k", EPOCH, -7]),
    (Op.FORGET, [5, EPOCH, "i", b"k", 1 << 64, 7]),
    (Op.FORGET, [5, EPOCH, "i", b"k", EPOCH, True]),
    (Op.FORGET, [5, EPOCH, "i", b"k", EPOCH]),
    (Op.STORE, [5, EPOCH, "i", b"k"]),
    (Op.STORE, [5, EPOCH, "i", b"k", []]),
    (Op.STORE, [5, EPOCH, "i", b"k", record_to_wire(RECORD), []]),
    (Op.STORE, [5, EPOCH, "i", b"k", *record_to_wire(RECORD), None]),
    (Op.STORE, [5, EPOCH, "i", b"k", *record_to_wire(RECORD), [], []]),
    (Op.STORE, [5, EPOCH, "i", b"k", 1, 2, 3, -4, b""]),
    (Op.STORE, [5, EPOCH, "i", b"k", 1, 2, 3, 4, "text"]),
    (Op.STORE, [5, EPOCH, "i", b"k", 1, 2, 3, 4, b"v" * (VALUE_BYTES_MAX + 1)]),
    (Op.STORE, [5, EPOCH, "i", b"k", *record_to_wire(RECORD), [["w", "i"]]]),
    (Op.STORE, [5, EPOCH, "i", b"k", *record_to_wire(RECORD), [["w", "i", 8001]]]),
    (Op.STORE, [5, EPOCH, "i", b"k", *record_to_wire(RECORD), [["w", "i", []]]]),
    (Op.STORE, [5, EPOCH, "i", b"k", *record_to_wire(RECORD), ["wih"]]),
    (Op.LIST, ["i", [1], b"", None, 1, True]),
    (Op.LIST, ["i", [None], b"", None, 1, True]),
    (Op.LIST, ["i", ["ab"], b"", None, 1, True]),
    (Op.LIST, ["i", [[1]], b"", None, 1, True]),
    (Op.LIST, ["i", [[1, 2, 3]], b"", None, 1, True]),
    (Op.LIST, ["i", [[True, 2]], b"", None, 1, True]),
    (Op.LIST, ["i", [[1, EPOCH]], b"", None, 0, True]),
    (Op.LIST, ["i", [[1, EPOCH]], b"", None, LIST_LIMIT_MAX + 1, True]),
    (Op.LIST, ["i", [[1, EPOCH]], "", None, 1, True]),
]


@pytest.mark.parametrize(("op", "arguments"), BAD_CALLS)
def test_another_shape_is_the_peers_error(op: int, arguments: list[Any]) -> None:
    with pytest.raises(PeerError):
        parse(op, arguments)


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
)
JUNK = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=6), max_leaves=30)
ARGUMENTS = st.lists(JUNK, max_size=11)


@given(st.sampled_from([*Op, 0, -1, 2**64 - 1]), ARGUMENTS)
@example(Op.LIST, ["", [1], b"", None, 1, True])
def test_no_arguments_raise_anything_but_a_peer_error(op: int, arguments: list[Any]) -> None:
    try:
        parse(op, arguments)
    except PeerError as error:
        assert str(error)  # noqa: PT017 raising is allowed, not demanded


@given(st.sampled_from(CALLS), st.data())
def test_nor_does_a_call_with_one_thing_in_it_replaced(
    call: tuple[Op, list[Any], RpcRequest], data: st.DataObject
) -> None:
    op, arguments, _ = call
    place = arguments = wired(arguments)
    while place:
        index = data.draw(st.integers(0, len(place) - 1))
        if not isinstance(place[index], list) or not place[index] or data.draw(st.booleans()):
            place[index] = data.draw(JUNK)
            break
        place = place[index]
    try:
        request = parse(op, arguments)
    except PeerError:
        return
    if isinstance(request, Store):
        assert unpack(pack(request.record)) == request.record  # it fits the disk
        assert all(isinstance(part, str) for hop in request.onward for part in hop)
    if isinstance(request, Store | Fetch):
        assert (type(request.partition), type(request.epoch)) == (int, int)  # and no bool
        assert (type(request.incarnation), type(request.key)) == (str, bytes)


@pytest.mark.parametrize("place", range(9))
@pytest.mark.parametrize("odd", [True, False, 1.0, -1, 1 << 64, "1", b"", [], [1], None], ids=repr)
def test_every_place_of_a_store_takes_its_own_kind_alone(place: int, odd: Any) -> None:
    arguments = [5, EPOCH, "i", b"k", *record_to_wire(RECORD)]
    arguments[place] = odd
    if (place, type(odd)) in ((2, str), (8, bytes), (8, type(None))):
        assert isinstance(parse(Op.STORE, arguments), Store)
        return
    with pytest.raises(PeerError):
        parse(Op.STORE, arguments)
    if place >= 4:
        with pytest.raises(PeerError):
            fetched_from_wire(arguments[4:9])


READERS: list[Callable[[list[Any]], Any]] = [
    fetched_from_wire,
    listed_from_wire,
    digests_from_wire,
    vitals_from_wire,
    record_from_wire,
]


@pytest.mark.parametrize("reader", READERS)
@given(payload=ARGUMENTS | st.tuples(st.lists(JUNK, max_size=3), st.lists(JUNK, max_size=3), st.booleans()).map(list))
def test_no_answer_raises_anything_but_a_peer_error(reader: Callable[[list[Any]], Any], payload: list[Any]) -> None:
    try:
        reader(payload)
    except PeerError as error:
        assert str(error)  # noqa: PT017 raising is allowed, not demanded


def test_answers_arrive_as_they_were_meant() -> None:
    assert fetched_from_wire([]) is None
    assert fetched_from_wire(wired(record_to_wire(RECORD))) == RECORD
    tombstone = RECORD._replace(value=None)
    listing = wired([[[3, EPOCH]], [[5, b"k", *record_to_wire(tombstone)]], True])
    assert listed_from_wire(listing) == ([(3, EPOCH)], [(5, b"k", tombstone)], True)
    summary = Summary((1 << 64) - 1, 7, 1 << 40, 5)
    assert digests_from_wire(wired([[[3, EPOCH]], [[5, *summary]]])) == ([(3, EPOCH)], {5: summary})
    vitals = Vitals(12, Full.NO, "rocksdb", None, "p-1", "3/m-1", (Start(2, "a"), Start(3, "b")), 17, "", 1 << 40)
    assert vitals_from_wire(wired(vitals.to_wire())) == vitals
    assert len(vitals.to_wire()) == 10, "a worker without labels says what workers have always said"
    labelled = vitals._replace(labels={"zone": "a", "disk": "ssd"})
    assert vitals_from_wire(wired(labelled.to_wire())) == labelled


@pytest.mark.parametrize(
    "labels",
    [
        7,
        {},
        [7],
        [["zone"]],
        [["zone", 7]],
        [["zone", "a b"]],
        [["Zone", "a"]],
        [["zone", "a"]] * 2,
        [["zone", "a", 1]],
    ],
)
def test_labels_that_are_none_are_the_peers_error(labels: object) -> None:
    vitals = Vitals(12, Full.NO, "rocksdb", None, "p-1", "", (Start(2, "a"),), 17, "", 0).to_wire()
    with pytest.raises(PeerError):
        vitals_from_wire([*vitals, labels])


def test_a_listing_that_promises_more_must_say_from_where() -> None:
    with pytest.raises(PeerError):
        listed_from_wire([[], [], True])


@pytest.mark.parametrize(
    "row",
    [
        [5, 1, 7, 100],
        [5, 1, 7, 100, 8],  # more keys than rows
        [5, -1, 7, 100, 5],
        [5, 1 << 64, 7, 100, 5],
        [5, 1, 7, 100.0, 5],
        [0xFFFF, 1, 7, 100, 5],
        [True, 1, 7, 100, 5],
        "5171005",
    ],
)
def test_a_digest_that_is_none_is_the_peers_error(row: Any) -> None:
    with pytest.raises(PeerError):
        digests_from_wire([[], [row]])


REPEATED = [
    [[3, EPOCH]] * 2,
    [[3, EPOCH], [4, EPOCH], [3, EPOCH + 1]],
    [[0, EPOCH]] * 800_000,
    [[n, 1] for n in range(1025)],
]


@pytest.mark.parametrize("pairs", REPEATED, ids=["twice", "of two epochs", "800,000 times", "too many"])
def test_a_partition_is_asked_for_once_and_no_more_of_them_than_there_are(pairs: list[list[int]]) -> None:
    """Or the answer would not fit a frame."""
    for op, arguments in ((Op.DIGEST, ["i-1", pairs]), (Op.LIST, ["i-1", pairs, b"", None, 10, True])):
        with pytest.raises(PeerError):
            parse(op, arguments)
    for answer in (digests_from_wire, listed_from_wire):
        with pytest.raises(PeerError):
            answer([pairs, []] if answer is digests_from_wire else [pairs, [], False])


def test_a_record_of_a_later_epoch_is_neither_stored_nor_believed() -> None:
    """It would win over all that is written until that epoch comes."""
    row = record_to_wire(RECORD)
    epoch = RECORD.version.epoch
    assert fetched_from_wire(row, epoch) == RECORD
    with pytest.raises(PeerError, match="still to come"):
        fetched_from_wire(row, epoch - 1)
    with pytest.raises(PeerError, match="still to come"):
        parse(Op.STORE, [3, epoch - 1, "i-1", b"k", *row])


LISTED = [(1, b"p/a", RECORD), (2, b"p/b", RECORD), (1, b"p/c", RECORD)]


def test_a_listing_of_what_was_asked_for() -> None:
    check_listed(LISTED, {1, 2}, b"p/", b"p/", 3)
    check_listed([], set(), b"", None, 1)


@pytest.mark.parametrize(
    ("partitions", "prefix", "after", "limit"),
    [({1}, b"p/", None, 3), ({1, 2}, b"q", None, 3), ({1, 2}, b"p/", b"p/a", 3), ({1, 2}, b"p/", None, 2)],
    ids=["another partition", "another prefix", "a key before its beginning", "too many"],
)
def test_a_listing_of_something_else(partitions: set[int], prefix: bytes, after: bytes | None, limit: int) -> None:
    with pytest.raises(PeerError):
        check_listed(LISTED, partitions, prefix, after, limit)


def test_a_listing_out_of_order() -> None:
    with pytest.raises(PeerError):
        check_listed([LISTED[1], LISTED[0]], {1, 2}, b"", None, 3)
