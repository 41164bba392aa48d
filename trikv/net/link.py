"""One connection between two nodes: a `Session` on a stream, which sends many calls in one frame.

A link runs two tasks, a reader and a writer, whatever the number of calls in flight. A call is an entry in a dictionary
and a callback. All calls and answers that were made since the writer last looked go out as one frame (or as few as the
cap allows). So under load, system calls, encodings and the other side's fsyncs are shared; a single call does not wait
for others. What can be answered at once, the reader sends itself while the writer sleeps: waking the writer would cost
as much as the answer. Only the side that dialled sends calls, so the readers of two nodes never wait for each other.

A call ends in exactly one call of its `done`: with the answer, or with a fault of this side (NOT_SENT, CROWDED, LOST,
LATE). `done` runs on the stack of the reader, the writer or the sweeper. It notes and wakes, and does not wait.

`times` says how long calls took, from `call` to the answer; a late call counts with the time that it was waited for. It
is a sample: of one frame of answers in `SAMPLE_S`, all answers count as its last one. The clock is read once for a
frame of calls and once for a frame of answers, never once for a call. `frames` counts what they left in.

Bounds: `QUEUE_BYTES_MAX` waiting to leave, because a stopped peer must not use up this node's memory, and `CALLS_MAX`
in flight. Beyond either (`crowded`), a call ends at once as `CROWDED`. When too many answers wait, the reader stops
reading.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from trikv.core.errors import Fault
from trikv.core.frames import FRAME_BYTES_MAX
from trikv.core.histogram import CallTimes
from trikv.core.session import Acks, Answers, Call, CallAnswer, Calls, Greeted, Hello, PeerError, Session, TurnedAway
from trikv.net.accept import describe_failure
from trikv.net.sockets import receive, send_now

QUEUE_BYTES_MAX: Final = 32 * 1024 * 1024
CALLS_MAX: Final = 100_000
GREETING_TIMEOUT_S: Final = 5.0
SILENCE_MOST_S: Final = 5.0  # after which a link with unanswered calls is ended
SAMPLE_S: Final = 0.001  # a busy link has a thousand samples a second
_READ_BYTES: Final = 64 * 1024  # a larger buffer is mapped anew for each read, which costs more than the read
_READ_BYTES_MOST: Final = 256 * 1024  # while a large value arrives
_ACK_BYTES: Final = 16

_log = logging.getLogger(__name__)

Done = Callable[[int, list[Any]], None]
Handler = Callable[["Link", list[Call]], None]


class LinkError(Exception):
    """There is no link: the peer is not the right one, has turned us away, or does not speak the protocol."""


class Link:
    """One side of an open connection. `peer` is the other side's greeting."""

    def __init__(self, stream: trio.abc.Stream, session: Session, peer: Hello, handler: Handler | None) -> None:
        self.peer = peer
        # The clock's own method costs half as much as `trio.current_time`, which looks the clock up.
        self._now = trio.lowlevel.current_clock().current_time
        self.last_heard_s = self._now()
        self.times = CallTimes()
        self.frames = 0  # of calls, that were sent
        self._stream = stream
        self._session = session
        self._handler = handler
        self._next_id = 0
        # Deadline, `done`, when it was made, op; in the order of their ids, so the oldest is first.
        self._under_way: dict[int, tuple[float, Done, float, int]] = {}
        self._calls: list[tuple[float, list[Any], int]] = []  # deadline, row, size in bytes
        self._answers: list[list[Any]] = []
        self._acks: list[int] = []  # ids of calls whose answer is the fault OK and nothing else
        self._sample_again_s = -math.inf
        self._calls_since_s = 0.0  # when the first of these calls was made
        self._calls_bytes = 0
        self._answers_bytes = 0
        self._leaving_bytes = 0  # of answers that are being sent
        self._idle_writer: trio.lowlevel.Task | None = None  # while it waits for something to send
        self._reader_sends = False  # so the writer need not be woken
        self._held_reader: trio.Event | None = None  # the reader waits here while answers must leave first
        self._scope = trio.CancelScope()
        self._over = False
        self._broken: PeerError | None = None

    @property
    def crowded(self) -> bool:
        """Does so much wait to leave, or to be answered, that no further call is taken?"""
        return self._calls_bytes > QUEUE_BYTES_MAX or len(self._under_way) >= CALLS_MAX

    @property
    def answers_bytes(self) -> int:
        """The bytes of answers to the peer that wait to leave or are being sent."""
        return self._answers_bytes + self._leaving_bytes

    def call(self, op: int, arguments: list[Any], deadline_s: float, done: Done, size_bytes: int = 64) -> None:
        """Send a call; `done(fault, payload)` follows. `deadline_s` is an absolute `trio.current_time`."""
        if self._over or self.crowded:
            done(Fault.NOT_SENT if self._over else Fault.CROWDED, [])
            return
        if not self._calls:
            self._calls_since_s = self._now()
        self._next_id += 1
        self._under_way[self._next_id] = (deadline_s, done, self._calls_since_s, op)
        self._calls.append((deadline_s, [self._next_id, 0, int(op), *arguments], size_bytes))
        self._calls_bytes += size_bytes
        self._wake_writer()

    def answer(self, call_id: int, fault: int, payload: list[Any], size_bytes: int = 16) -> None:
        """Answer a call of the peer's. After the end of the link, the answer is dropped."""
        if not payload and not fault:
            self.acknowledge(call_id)
        elif not self._over:
            self._answers.append([call_id, int(fault), *payload])
            self._answers_bytes += size_bytes
            self._wake_writer()

    def acknowledge(self, call_id: int) -> None:
        """As `answer` with the fault OK and no payload."""
        if not self._over:
            self._acks.append(call_id)
            self._answers_bytes += _ACK_BYTES
            self._wake_writer()

    async def close(self) -> None:
        """End a link that was never run."""
        self._over = True
        await trio.aclose_forcefully(self._stream)

    def sweep(self, now: float) -> None:
        """End the calls whose deadline has passed.

        If the peer was silent meanwhile, end the link. A machine that lost its power closes no connection, and a new
        dial finds out where it is now.
        """
        late = [call_id for call_id, (deadline_s, *_) in self._under_way.items() if deadline_s <= now]
        for call_id in late:
            _, done, since_s, _ = self._under_way.pop(call_id)
            self.times.note(now - since_s)
            done(Fault.LATE, [])
        if late and now - self.last_heard_s > SILENCE_MOST_S:
            self.end()

    @property
    def queue_bytes(self) -> int:
        """The bytes of calls that wait to leave."""
        return self._calls_bytes

    @property
    def in_flight(self) -> int:
        """How many calls are not answered yet."""
        return len(self._under_way)

    def oldest_s(self, op: int) -> float | None:
        """When the oldest call of this kind that is under way was made; None: there is none."""
        return next((since_s for _, _, since_s, other in self._under_way.values() if other == op), None)

    def end(self) -> None:
        """Hang up: `run` returns soon."""
        self._scope.cancel()

    async def run(self, on_over: Callable[[], None] = lambda: None) -> None:
        """Carry calls and answers until the peer goes away, or until `end` or cancellation.

        Then every open call ends as `LOST`; `on_over` is called before the first of them.

        Raises:
          PeerError: the peer broke the protocol.
        """
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._guard, self._write)
                    await self._guard(self._read)
                    nursery.cancel_scope.cancel()
        finally:
            self._over = True
            on_over()
            under_way, self._under_way = self._under_way, {}
            for _, done, _, _ in under_way.values():
                done(Fault.LOST, [])
            await trio.aclose_forcefully(self._stream)
        if self._broken is not None:
            raise self._broken  # raised here, since out of the nursery it would come as a group

    async def _guard(self, part: Callable[[], Awaitable[None]]) -> None:
        """An error of this link ends the link and nothing else. The peer's bytes may have hit a fault of ours."""
        try:
            await part()
        except PeerError as error:
            self._broken = error
        except Exception as error:  # noqa: BLE001 see above
            _log.error("the link to %s %s ended in %s", self.peer.role, self.peer.node, describe_failure(error))
            self._broken = PeerError("this node failed over what it said")
        if self._broken is not None:
            self._over = True  # this session can say nothing more
            self._scope.cancel()

    async def _read(self) -> None:
        data: bytes | bytearray = b""  # at first, the rest of what came with the greeting
        read_bytes = _READ_BYTES
        while True:
            self._reader_sends = True
            for event in self._session.receive(data):
                if isinstance(event, Acks):
                    self._take_answers([[call_id, 0] for call_id in event.ids])
                elif isinstance(event, Answers):
                    self._take_answers(event.answers)
                elif isinstance(event, Calls):
                    if self._handler is None:
                        raise PeerError("it called where nothing is offered")
                    self._handler(self, event.calls)
            if (self._answers or self._acks) and self._idle_writer is not None:
                await self._send_what_waits()  # no further calls are read while the peer takes no answers
            self._reader_sends = False
            if self._answers or self._acks or self._calls:
                self._wake_writer()
            # Only answers hold the reader back. If calls did too, two nodes could wait for each other's readers.
            while self._answers_bytes > QUEUE_BYTES_MAX and not self._over:
                self._held_reader = trio.Event()
                await self._held_reader.wait()
            try:
                data = await receive(self._stream, read_bytes)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            if not data:
                return
            read_bytes = _READ_BYTES if len(data) < read_bytes else _READ_BYTES_MOST
            self.last_heard_s = self._now()

    def _take_answers(self, answers: list[CallAnswer]) -> None:
        answered = None
        for call_id, fault, *payload in answers:
            if waiting := self._under_way.pop(call_id, None):
                answered = waiting
                waiting[1](fault, payload)
        if answered is not None and self.last_heard_s >= self._sample_again_s:
            self._sample_again_s = self.last_heard_s + SAMPLE_S
            self.times.note(self.last_heard_s - answered[2], len(answers))

    async def _write(self) -> None:
        while not self._over:
            await self._wait_for_work()
            if not self._over:
                await self._send_what_waits()

    async def _send_what_waits(self) -> None:
        calls, self._calls = self._calls, []
        answers, self._answers = self._answers, []
        acks, self._acks = self._acks, []
        self._leaving_bytes = self._answers_bytes
        self._calls_bytes = self._answers_bytes = 0
        self._let_reader_go()
        now = self._now()
        rows = []
        for deadline_s, row, _ in calls:
            if deadline_s > now:
                row[1] = math.ceil((deadline_s - now) * 1000)
                rows.append(row)
            elif waiting := self._under_way.pop(row[0], None):
                waiting[1](Fault.NOT_SENT, [])
        try:
            if acks:
                for frame in self._session.acks(acks):
                    await send_now(self._stream, frame)
            if answers:
                for frame in self._session.answers(answers):
                    await send_now(self._stream, frame)
            if rows:
                self.frames += 1
                for frame in self._session.calls(rows):
                    await send_now(self._stream, frame)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # The reader sees the end too, after what the peer had still sent. A reader that is held goes on now.
            self._over = True
            self._let_reader_go()
        self._leaving_bytes = 0

    async def _wait_for_work(self) -> None:
        """Wait as on an Event, for a third of its price. This wait comes once for each frame."""
        if self._calls or self._answers or self._acks:
            await trio.lowlevel.checkpoint()
            return
        self._idle_writer = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._stop_waiting)

    def _stop_waiting(self, raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
        self._idle_writer = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _wake_writer(self) -> None:
        if self._idle_writer is not None and not self._reader_sends:
            writer, self._idle_writer = self._idle_writer, None
            trio.lowlevel.reschedule(writer)

    def _let_reader_go(self) -> None:
        if self._held_reader is not None:
            self._held_reader.set()
            self._held_reader = None


async def dial(stream: trio.abc.Stream, me: Hello) -> Link:
    """Greet over a fresh stream, as the side that connected. The stream is closed if no link comes of it.

    Raises:
      LinkError: see there.
    """
    session = Session(me, dialer=True)
    try:
        with trio.fail_after(GREETING_TIMEOUT_S):
            await stream.send_all(session.greet())
            match await _first_event(stream, session):
                case Greeted(hello):
                    return Link(stream, session, hello, None)
                case TurnedAway(sentence):
                    raise LinkError(sentence)
        raise LinkError("it ended the connection without a greeting")
    except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError, PeerError) as error:
        await trio.aclose_forcefully(stream)
        raise LinkError(str(error) or "it did not greet in time") from error
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


async def accept(
    stream: trio.abc.Stream,
    me: Hello,
    judge: Callable[[Hello], str | None],
    handler: Handler | None,
    frame_bytes_max: int = FRAME_BYTES_MAX,
) -> Link:
    """Greet over a fresh stream, as the side that was dialled.

    `judge` says why a peer is not welcome, or None. `frame_bytes_max` bounds what the peer may send in one frame. The
    stream is closed if no link comes of it. A peer that does not speak the protocol is told so in a sentence.

    Raises:
      LinkError: see there.
    """
    session = Session(me, dialer=False, frame_bytes_max=frame_bytes_max)
    try:
        with trio.fail_after(GREETING_TIMEOUT_S):
            try:
                event = await _first_event(stream, session)
            except PeerError as error:
                await stream.send_all(session.turn_away(str(error)))
                raise LinkError(str(error)) from error
            if not isinstance(event, Greeted):
                raise LinkError("it left without a word")
            if reason := judge(event.hello):
                await stream.send_all(session.turn_away(reason))
                raise LinkError(reason)
            await stream.send_all(session.accept())
            return Link(stream, session, event.hello, handler)
    except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
        await trio.aclose_forcefully(stream)
        raise LinkError("it did not greet in time, or left") from error
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


async def _first_event(stream: trio.abc.Stream, session: Session) -> Any:
    """The peer's first event, or None if it leaves first."""
    while data := await stream.receive_some(_READ_BYTES):
        for event in session.receive(data):
            return event
    return None
