"""The dialogue on one link, without I/O: bytes go in, events come out.

Both sides greet before anything else, the dialer first. A greeting names the protocol's version, the cluster, the role,
the node and its incarnation. The acceptor may answer with a sentence instead, and the link ends. The form of a greeting
and of a refusal never changes, so any two versions can at least tell each other why they cannot talk.

After that, a frame is [kind, [item, ...]], with items of one kind. Many calls may be in flight, and answers come in any
order:

    kind  item
    1     [id, budget_ms, op, *arguments]     a call; the deadline travels as a budget, since clocks differ
    2     [id, fault, *payload]               an answer; fault 0: all is well
    3     id                                  an acknowledgement: the answer [id, 0], as nearly every write has it

All transitions:

    state      dialer                                acceptor
    START      greet() -> GREETING                   (bytes) -> GREETING
    GREETING   Greeted -> OPEN; TurnedAway -> OVER    Greeted -> JUDGING
    JUDGING                                          accept() -> OPEN; turn_away() -> OVER
    OPEN       Calls, Answers, Acks                  Calls, Answers, Acks
    OVER       nothing more

There are two kinds of error, as in h11: the peer's misbehaviour is a `PeerError`, our own misuse an AssertionError.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Any, Final, NamedTuple

from trikv.core import frames

PROTOCOL: Final = 3
GREETING_BYTES_MAX: Final = 4096  # all that a peer that is not known yet can make us keep
SMALL_FRAME_BYTES_MAX: Final = 64 * 1024  # for a side that receives only small calls
_MAGIC: Final = "trikv"
_REFUSAL: Final = "trikv-refuses"
_NOT_TRIKV: Final = "its first words are not trikv's; is this address a trikv node's RPC port?"
_CALLS: Final = 1
_ANSWERS: Final = 2
_ACKS: Final = 3
_INT: Final = frozenset((int,))  # a bool is none


_NAME: Final = re.compile(r"[!-~]{1,256}")


def is_name(text: str) -> bool:
    """May a node, an incarnation or a cluster have this name? Names stand in logs, documents and URLs: printable ASCII
    only."""
    return _NAME.fullmatch(text) is not None


class PeerError(Exception):
    """The other side broke the protocol; the message says how. The link is of no further use."""


class Hello(NamedTuple):
    """The identity that a greeting carries. `cluster` is None for a node that belongs to none yet.

    Roles are `master` (the one that leads), `standby` (a master that does not) and `worker`.
    """

    role: str
    node: str
    incarnation: str
    cluster: str | None


class MasterId(NamedTuple):
    """A master's incarnation: its term, and a name that no other start draws.

    Two masters can have one term, if the cluster's document was restored from a backup. The name tells them apart.
    """

    term: int
    name: str

    def __str__(self) -> str:
        return f"{self.term}/{self.name}"

    @classmethod
    def parse(cls, incarnation: str) -> MasterId:
        """The master that `str()` gave; term 0 for anything else."""
        term, slash, name = incarnation.partition("/")
        return cls(int(term), name) if slash and term.isascii() and term.isdigit() and len(term) <= 10 else cls(0, "")


# A call and an answer as they arrive: the rows above, of which the first three values and the first two are integers.
Call = list[Any]
CallAnswer = list[Any]


class Greeted(NamedTuple):
    hello: Hello


class TurnedAway(NamedTuple):
    sentence: str


class Calls(NamedTuple):
    calls: list[Call]


class Answers(NamedTuple):
    answers: list[CallAnswer]


class Acks(NamedTuple):
    """The ids of calls that are answered with fault 0 and nothing else."""

    ids: list[int]


SessionEvent = Greeted | TurnedAway | Calls | Answers | Acks


class SessionState(Enum):
    START = "start"
    GREETING = "greeting"
    JUDGING = "judging"
    OPEN = "open"
    OVER = "over"


class Session:
    """One side of one link. `receive` takes what arrives; the other methods return the bytes to send."""

    def __init__(self, me: Hello, *, dialer: bool) -> None:
        self.state = SessionState.START
        self._frame_bytes_max = frames.FRAME_BYTES_MAX
        self._me = me
        self._dialer = dialer
        self._buffer = frames.FrameBuffer(bytes_max=GREETING_BYTES_MAX)

    def greet(self) -> bytes:
        assert (self._dialer, self.state) == (True, SessionState.START), self.state
        self.state = SessionState.GREETING
        return self._greeting()

    def accept(self, frame_bytes_max: int = frames.FRAME_BYTES_MAX) -> bytes:
        """The bytes that greet back. From now on the peer may send frames of that size."""
        assert (self._dialer, self.state) == (False, SessionState.JUDGING), self.state
        self._frame_bytes_max = frame_bytes_max
        self._open()
        return self._greeting()

    def turn_away(self, sentence: str) -> bytes:
        """The bytes that refuse the peer, with a sentence for a person."""
        assert self.state is not SessionState.OPEN, self.state
        self.state = SessionState.OVER
        return frames.encode([_REFUSAL, sentence[:1000]])

    def receive(self, data: bytes | bytearray) -> Iterator[SessionEvent]:
        """The events that `data` completes.

        Raises:
          PeerError: what arrived is not of this protocol.
        """
        if self.state is SessionState.START and not self._dialer:
            self.state = SessionState.GREETING
        try:
            self._buffer.feed(data)
            while (frame := self._buffer.next_frame()) is not frames.NO_FRAME:
                yield self._event(frame)
        except frames.FrameError as error:
            stranger = self.state is SessionState.GREETING
            self.state = SessionState.OVER
            raise PeerError(f"{_NOT_TRIKV} ({error})" if stranger else str(error)) from error
        except PeerError:
            self.state = SessionState.OVER
            raise

    def calls(self, calls: list[Any]) -> Iterable[bytes]:
        """Frames that carry these calls, [id, budget_ms, op, *arguments] each; every frame is below the cap."""
        assert self.state is SessionState.OPEN, self.state
        return frames.pack_frames(_CALLS, calls)

    def answers(self, answers: list[Any]) -> Iterable[bytes]:
        """Likewise for answers, [id, fault, *payload] each."""
        assert self.state is SessionState.OPEN, self.state
        return frames.pack_frames(_ANSWERS, answers)

    def acks(self, ids: list[int]) -> Iterable[bytes]:
        """Likewise for acknowledgements."""
        assert self.state is SessionState.OPEN, self.state
        return frames.pack_frames(_ACKS, ids)

    def _greeting(self) -> bytes:
        me = self._me
        return frames.encode([_MAGIC, PROTOCOL, me.role, me.node, me.incarnation, me.cluster])

    def _open(self) -> None:
        self.state = SessionState.OPEN
        self._buffer.bytes_max = self._frame_bytes_max

    def _event(self, frame: list[Any]) -> SessionEvent:
        if self.state is SessionState.OPEN:
            # Every frame comes through here. A pattern would read better, and takes four times as long.
            if len(frame) == 2:
                kind, items = frame
                if type(kind) is int and type(items) is list:
                    if kind == _CALLS:
                        for row in items:
                            if (
                                type(row) is not list
                                or len(row) < 3
                                or not type(row[0]) is type(row[1]) is type(row[2]) is int
                            ):
                                raise PeerError("a call that is not [id, budget, op, *arguments]")
                        return Calls(items)
                    if kind == _ANSWERS:
                        for row in items:
                            if (
                                type(row) is not list
                                or len(row) < 2
                                or not type(row[0]) is type(row[1]) is int
                                or row[1] < 0  # such faults are this side's own: that nothing was sent, for instance
                            ):
                                raise PeerError("an answer that is not [id, fault, *payload]")
                        return Answers(items)
                    if kind == _ACKS:
                        if not _INT.issuperset(map(type, items)):
                            raise PeerError("an acknowledgement that is not an id")
                        return Acks(items)
            raise PeerError("a frame that is neither calls nor answers")
        if self.state is not SessionState.GREETING:
            raise PeerError("spoke before it was greeted")
        match frame:
            case [str(magic), str(sentence)] if magic == _REFUSAL and self._dialer:
                self.state = SessionState.OVER
                return TurnedAway(sentence)
            case [str(magic), int(protocol), *rest] if magic == _MAGIC:
                if protocol != PROTOCOL:
                    raise PeerError(
                        f"it speaks version {protocol} of trikv's protocol and this node version {PROTOCOL}; "
                        "run the same trikv on every node"
                    )
                match rest:
                    case [str(role), str(node), str(incarnation), str() | None as cluster] if all(
                        is_name(name) for name in (role, node, incarnation, cluster or "-")
                    ):
                        if self._dialer:
                            self._open()
                        else:
                            self.state = SessionState.JUDGING
                        return Greeted(Hello(role, node, incarnation, cluster))
        raise PeerError(_NOT_TRIKV)
