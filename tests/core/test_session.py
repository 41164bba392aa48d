"""The dialogue on a link: its transitions as a table, and any bytes at all against both sides."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trikv.core import frames
from trikv.core.errors import Fault
from trikv.core.session import (
    GREETING_BYTES_MAX,
    PROTOCOL,
    Acks,
    Answers,
    Calls,
    Greeted,
    Hello,
    PeerError,
    Session,
    SessionEvent,
    SessionState,
    TurnedAway,
)

DIALER = Hello("worker", "w-1", "i-1", None)
ACCEPTOR = Hello("master", "c-1", "term-1", "c-1")

GREETING = frames.encode(["trikv", PROTOCOL, "worker", "w-9", "i-9", "c-1"])
REFUSAL = frames.encode(["trikv-refuses", "you are a stranger"])
CALLS = frames.encode([1, [[7, 2000, 2, 5, b"key"], [8, 1, 5]]])
ANSWERS = frames.encode([2, [[7, 0, 1], [8, 3]]])
ACKS = frames.encode([3, [9, 10]])
NONSENSE = frames.encode(["GET", "/"])


def dialer(state: SessionState) -> Session:
    session = Session(DIALER, dialer=True)
    if state is not SessionState.START:
        session.greet()
    if state is SessionState.OPEN:
        hear(session, GREETING)
    elif state is SessionState.OVER:
        hear(session, REFUSAL)
    assert session.state is state
    return session


def acceptor(state: SessionState) -> Session:
    session = Session(ACCEPTOR, dialer=False)
    if state is SessionState.GREETING:
        hear(session, GREETING[:1])
    elif state is not SessionState.START:
        hear(session, GREETING)
    if state is SessionState.OPEN:
        session.accept()
    elif state is SessionState.OVER:
        session.turn_away("no")
    assert session.state is state
    return session


def hear(session: Session, data: bytes) -> list[SessionEvent]:
    return list(session.receive(data))


HEARD: list[tuple[Callable[[SessionState], Session], SessionState, bytes, SessionState]] = [
    (dialer, SessionState.GREETING, GREETING, SessionState.OPEN),
    (dialer, SessionState.GREETING, REFUSAL, SessionState.OVER),
    (dialer, SessionState.OPEN, CALLS, SessionState.OPEN),
    (dialer, SessionState.OPEN, ANSWERS, SessionState.OPEN),
    (dialer, SessionState.OPEN, ACKS, SessionState.OPEN),
    (acceptor, SessionState.START, b"\0", SessionState.GREETING),
    (acceptor, SessionState.START, GREETING, SessionState.JUDGING),
    (acceptor, SessionState.GREETING, GREETING[1:], SessionState.JUDGING),
    (acceptor, SessionState.OPEN, CALLS, SessionState.OPEN),
    (acceptor, SessionState.OPEN, ANSWERS, SessionState.OPEN),
    (acceptor, SessionState.OPEN, ACKS, SessionState.OPEN),
]


@pytest.mark.parametrize(("side", "before", "data", "after"), HEARD)
def test_what_is_heard_moves_the_session_on(
    side: Callable[[SessionState], Session], before: SessionState, data: bytes, after: SessionState
) -> None:
    session = side(before)
    hear(session, data)
    assert session.state is after


BROKEN: list[tuple[Callable[[SessionState], Session], SessionState, bytes]] = [
    (dialer, SessionState.START, GREETING),
    (dialer, SessionState.GREETING, CALLS),
    (dialer, SessionState.GREETING, NONSENSE),
    (dialer, SessionState.OPEN, GREETING),
    (dialer, SessionState.OPEN, REFUSAL),
    (dialer, SessionState.OVER, GREETING),
    (acceptor, SessionState.START, REFUSAL),
    (acceptor, SessionState.START, CALLS),
    (acceptor, SessionState.START, NONSENSE),
    (acceptor, SessionState.JUDGING, CALLS),
    (acceptor, SessionState.JUDGING, GREETING),
    (acceptor, SessionState.OPEN, GREETING),
    (acceptor, SessionState.OVER, CALLS),
]


@pytest.mark.parametrize(("side", "before", "data"), BROKEN)
def test_a_peer_that_speaks_out_of_turn_ends_the_session(
    side: Callable[[SessionState], Session], before: SessionState, data: bytes
) -> None:
    session = side(before)
    with pytest.raises(PeerError):
        hear(session, data)
    assert session.state is SessionState.OVER
    with pytest.raises(PeerError):
        hear(session, CALLS)


MISUSES: list[tuple[Callable[[SessionState], Session], SessionState, Callable[[Session], Any]]] = [
    (dialer, SessionState.GREETING, Session.greet),
    (dialer, SessionState.GREETING, Session.accept),
    (dialer, SessionState.GREETING, lambda session: session.calls([])),
    (dialer, SessionState.OVER, lambda session: session.answers([])),
    (acceptor, SessionState.START, Session.greet),
    (acceptor, SessionState.START, Session.accept),
    (acceptor, SessionState.JUDGING, lambda session: session.calls([])),
    (acceptor, SessionState.OPEN, lambda session: session.turn_away("too late")),
]


@pytest.mark.parametrize(("side", "state", "misuse"), MISUSES)
def test_our_own_misuse_is_another_error(
    side: Callable[[SessionState], Session], state: SessionState, misuse: Callable[[Session], Any]
) -> None:
    with pytest.raises(AssertionError):
        misuse(side(state))


def test_both_sides_learn_who_the_other_is() -> None:
    ours, theirs = Session(DIALER, dialer=True), Session(ACCEPTOR, dialer=False)
    assert hear(theirs, ours.greet()) == [Greeted(DIALER)]
    assert hear(ours, theirs.accept()) == [Greeted(ACCEPTOR)]
    [frame] = ours.calls([[1, 50, 2, "a"], [2, 60, 5]])
    assert hear(theirs, frame) == [Calls([[1, 50, 2, "a"], [2, 60, 5]])]
    [frame] = theirs.answers([[2, 0, 7], [1, 3]])
    assert hear(ours, frame) == [Answers([[2, 0, 7], [1, 3]])]
    [frame] = theirs.acks([2, 1])
    assert hear(ours, frame) == [Acks([2, 1])]


def test_a_refusal_arrives_as_its_sentence() -> None:
    ours, theirs = Session(DIALER, dialer=True), acceptor(SessionState.JUDGING)
    ours.greet()
    assert hear(ours, theirs.turn_away("you belong to another cluster")) == [
        TurnedAway("you belong to another cluster")
    ]


def test_the_longest_refusal_still_fits_a_greeting() -> None:
    ours, theirs = Session(DIALER, dialer=True), acceptor(SessionState.JUDGING)
    ours.greet()
    [turned_away] = hear(ours, theirs.turn_away("\U0001f6ab" * 5000))
    assert isinstance(turned_away, TurnedAway)


@pytest.mark.parametrize(
    ("side", "state"), [(dialer, SessionState.GREETING), (acceptor, SessionState.START)], ids=["dialer", "acceptor"]
)
@pytest.mark.parametrize("rest", [["worker", "w-9", "i-9", "c-1"], [1, ["something", "new"]], []])
@pytest.mark.parametrize("version", [0, 1, PROTOCOL - 1, PROTOCOL + 1, 2**64 - 1])
def test_another_version_is_named_with_a_remedy(
    side: Callable[[SessionState], Session], state: SessionState, rest: list[Any], version: int
) -> None:
    """Only the first two places of a greeting are fixed for ever; what follows may differ between versions."""
    sentence = rf"version {version} .* version {PROTOCOL}; run the same trikv on every node"
    with pytest.raises(PeerError, match=sentence):
        hear(side(state), frames.encode(["trikv", version, *rest]))


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", NONSENSE, b"\0\0\0\1\xff"]
)
def test_a_stranger_is_told_apart_from_a_bad_node(data: bytes) -> None:
    with pytest.raises(PeerError, match="first words are not trikv's"):
        hear(acceptor(SessionState.START), data)


def test_before_the_greeting_little_is_kept_and_afterwards_much_is_taken() -> None:
    announced = (GREETING_BYTES_MAX + 1).to_bytes(4, "big")
    with pytest.raises(PeerError, match="at most 4096"):
        hear(acceptor(SessionState.START), announced)
    assert hear(acceptor(SessionState.OPEN), announced) == []
    assert hear(dialer(SessionState.OPEN), announced) == []
    with pytest.raises(PeerError, match=str(frames.FRAME_BYTES_MAX)):
        hear(acceptor(SessionState.OPEN), (frames.FRAME_BYTES_MAX + 1).to_bytes(4, "big"))


@pytest.mark.parametrize("fault", [Fault.NOT_SENT, Fault.CROWDED, -(2**64)])
def test_no_peer_says_what_only_this_side_can_know(fault: int) -> None:
    """That a call was not sent, for instance: its outcome would be taken for refused."""
    with pytest.raises(PeerError, match="an answer that is not"):
        hear(dialer(SessionState.OPEN), frames.encode([2, [[7, 0], [8, int(fault)]]]))


SIDES = st.sampled_from(
    [
        (dialer, SessionState.GREETING),
        (dialer, SessionState.OPEN),
        (acceptor, SessionState.START),
        (acceptor, SessionState.OPEN),
    ]
)
LEAVES = st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.floats() | st.text() | st.binary()
LISTS = st.recursive(st.lists(LEAVES, max_size=4), lambda inner: st.lists(LEAVES | inner, max_size=5), max_leaves=20)
NEARLY = st.tuples(st.sampled_from([1, 2, 3, 4, True, "trikv", "trikv-refuses"]), LISTS | LEAVES).map(list)


@given(SIDES, st.lists(st.binary(max_size=64), max_size=4))
def test_no_bytes_raise_anything_but_a_peer_error(
    side: tuple[Callable[[SessionState], Session], SessionState], pieces: list[bytes]
) -> None:
    session = side[0](side[1])
    try:
        for piece in pieces:
            hear(session, piece)
    except PeerError as error:
        assert str(error)  # noqa: PT017 raising is allowed, not demanded
        assert session.state is SessionState.OVER


@given(SIDES, st.lists(LISTS | NEARLY, max_size=3))
def test_no_frame_raises_anything_but_a_peer_error(
    side: tuple[Callable[[SessionState], Session], SessionState], items: list[list[Any]]
) -> None:
    session = side[0](side[1])
    try:
        for item in items:
            hear(session, frames.encode(item))
    except PeerError:
        assert session.state is SessionState.OVER


@given(
    st.lists(
        st.lists(
            st.builds(
                lambda *head, rest: [*head, *rest], st.integers(0, 2**32), st.integers(0, 9), st.just(5), rest=LISTS
            )
        ),
        max_size=4,
    ),
    st.lists(st.integers(0, 2000)),
)
def test_where_the_bytes_are_cut_does_not_matter(rows: list[list[Any]], cuts: list[int]) -> None:
    ours, theirs = dialer(SessionState.OPEN), acceptor(SessionState.OPEN)
    data = b"".join(frame for calls in rows for frame in ours.calls(calls))
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    events = [event for start, end in pairwise(places) for event in hear(theirs, data[start:end])]
    assert repr(events) == repr(hear(acceptor(SessionState.OPEN), data))  # repr, since NaN is not itself
    assert [len(event.calls) for event in events if isinstance(event, Calls)] == [len(calls) for calls in rows if calls]
