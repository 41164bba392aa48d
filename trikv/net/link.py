"""One connection between two nodes: a `Session` on a stream, which sends many calls in one frame.

A link runs two tasks, a reader and a writer, whatever the number of calls in flight. A call is an entry in a dictionary
and a callback. All calls that were made in one pass of the scheduler go out as one frame (or as few as the cap allows),
and so do all answers. So under load, system calls, encodings and the other side's fsyncs are shared; a single call does
not wait for others. Only the side that dialled sends calls, so the readers of two nodes never wait for each other.

Waking a task costs as much as a small frame. So one writer sends for all links of the run that were called in one pass
(`_Turn`), and wakes the writer of another link only for what the kernel does not take at once. What can be answered at
once, the reader sends itself, and the acknowledgements of a batch are sent where the batch ends (`acknowledge`). None
of this happens while one of the link's own tasks is sending. Streams that are no sockets have their own writer woken.

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
from trikv.net.sockets import receive, write_now

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


class _Turn:
    """The links over sockets that have something to send in the scheduler's next pass.

    The writer of the first is awake, and sends for all of them.
    """

    __slots__ = ("links",)

    def __init__(self) -> None:
        self.links: list[Link] = []

    @staticmethod
    def of_this_run() -> _Turn:
        try:
            return _turn.get()
        except LookupError:
            turn = _Turn()
            _turn.set(turn)
            return turn


_turn: Final = trio.lowlevel.RunVar[_Turn]("the links that send next")


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
        self._calls: list[list[Any]] = []  # rows; the deadline stands where the budget will
        self._answers: list[list[Any]] = []
        self._acks: list[int] = []  # ids of calls whose answer is the fault OK and nothing else
        self._sample_again_s = -math.inf
        self._calls_since_s = 0.0  # when the first of these calls was made
        self._calls_bytes = 0
        self._answers_bytes = 0
        self._leaving_bytes = 0  # of answers that are being sent
        self._unsent: bytes | memoryview = b""  # of what left last, what the writer has still to send
        self._socket = stream if isinstance(stream, trio.SocketStream) else None
        self._turn = _Turn.of_this_run()
        self._is_in_turn = False
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
        self._calls.append([self._next_id, deadline_s, int(op), *arguments])
        self._calls_bytes += size_bytes
        self._wake_writer()

    def answer(self, call_id: int, fault: int, payload: list[Any], size_bytes: int = 16) -> None:
        """Answer a call of the peer's. After the end of the link, the answer is dropped."""
        if not self._over:
            if payload or fault:
                self._answers.append([call_id, int(fault), *payload])
            else:
                self._acks.append(call_id)
            self._answers_bytes += size_bytes
            self._wake_writer()

    def acknowledge(self, call_ids: list[int]) -> None:
        """Answer all these with the fault OK and no payload, and send what waits at once.

        A batch has ended: its acknowledgements share a frame already, and more will not come soon.
        """
        if not self._over:
            self._acks += call_ids
            self._answers_bytes += _ACK_BYTES * len(call_ids)
            if self._socket is not None:
                self._send_at_once()
            else:
                self._wake_writer()

    async def close(self) -> None:
        """End a link that was never run."""
        self._over = True
        await trio.aclose_forcefully(self._stream)

    def sweep(self, now: float) -> None:
        """End the calls whose deadline has passed.

        If the peer was silent meanwhile, end the link. A machine that lost its power closes no connection, and a new
        dial finds out where it is now. Likewise if nothing can be sent any more and the connection stays open.
        """
        late = [call_id for call_id, (deadline_s, *_) in self._under_way.items() if deadline_s <= now]
        for call_id in late:
            _, done, since_s, _ = self._under_way.pop(call_id)
            self.times.note(now - since_s)
            self._end_call(done, Fault.LATE)
        if (late or self._over) and now - self.last_heard_s > SILENCE_MOST_S:
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
                self._end_call(done, Fault.LOST)
            await trio.aclose_forcefully(self._stream)
        if self._broken is not None:
            raise self._broken  # raised here, since out of the nursery it would come as a group

    def _end_call(self, done: Done, fault: Fault) -> None:
        """End a call that has no answer. An error in its `done` ends the link and keeps no other call from its end."""
        try:
            done(fault, [])
        except Exception as error:  # noqa: BLE001 see `_fail`
            self._fail(error)

    async def _guard(self, part: Callable[[], Awaitable[None]]) -> None:
        try:
            await part()
        except Exception as error:  # noqa: BLE001 see `_fail`
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """An error of this link ends the link and nothing else. The peer's bytes may have hit a fault of ours."""
        if isinstance(error, PeerError):
            self._broken = error
        else:
            _log.error("the link to %s %s ended in %s", self.peer.role, self.peer.node, describe_failure(error))
            self._broken = PeerError("this node failed over what it said")
        self._over = True  # this session can say nothing more
        self._scope.cancel()

    async def _read(self) -> None:
        data: bytes | bytearray = b""  # at first, the rest of what came with the greeting
        read_bytes = _READ_BYTES
        while True:
            self._reader_sends = True
            for event in self._session.receive(data):
                if isinstance(event, Acks):
                    self._take_acks(event.ids)
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

    def _take_acks(self, ids: list[int]) -> None:
        since_s = None
        for call_id in ids:
            if waiting := self._under_way.pop(call_id, None):
                _, done, since_s, _ = waiting
                done(0, [])
        self._sample(since_s, len(ids))

    def _take_answers(self, answers: list[CallAnswer]) -> None:
        since_s = None
        for call_id, fault, *payload in answers:
            if waiting := self._under_way.pop(call_id, None):
                _, done, since_s, _ = waiting
                done(fault, payload)
        self._sample(since_s, len(answers))

    def _sample(self, since_s: float | None, count: int) -> None:
        """So many calls of one frame were answered, the last of them made then; None: nobody waited for any."""
        if since_s is not None and self.last_heard_s >= self._sample_again_s:
            self._sample_again_s = self.last_heard_s + SAMPLE_S
            self.times.note(self.last_heard_s - since_s, count)

    async def _write(self) -> None:
        while not self._over:
            await self._wait_for_work()
            self._send_for_others()  # before anything that could end this task
            if not self._over:
                await self._send_what_waits()

    def _send_for_others(self) -> None:
        links, self._turn.links = self._turn.links, []
        for link in links:
            link._is_in_turn = False
            if link is not self:
                link._send_at_once()

    def _send_at_once(self) -> None:
        """Send what waits without this link's writer, which is woken only for what the kernel does not take.

        It is called on stacks that are not this link's, so nothing is raised.
        """
        if self._idle_writer is None or self._reader_sends or self._over:
            return  # one of its own tasks sends, or nobody can
        try:
            self._unsent = self._write_now()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._note_broken()
        except Exception as error:  # noqa: BLE001 see `_fail`
            self._fail(error)
        if not self._unsent:
            self._leaving_bytes = 0
        elif self._idle_writer is not None:  # a `done` may have woken it meanwhile, by a call of its own
            writer, self._idle_writer = self._idle_writer, None
            trio.lowlevel.reschedule(writer)

    async def _send_what_waits(self) -> None:
        """One of this link's two tasks is in here at a time."""
        try:
            if self._unsent:
                unsent, self._unsent = self._unsent, b""
                await self._stream.send_all(unsent)
            if self._socket is None:
                for frame in self._what_waits():
                    await self._stream.send_all(frame)
            elif unsent := self._write_now():
                await self._stream.send_all(unsent)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._note_broken()
        self._leaving_bytes = 0

    def _write_now(self) -> bytes | memoryview:
        """Have the kernel take what waits, as one write. Returns what it did not take."""
        assert self._socket is not None
        data = b"".join(self._what_waits())
        sent = write_now(self._socket, data) if data else 0
        return memoryview(data)[sent:] if sent < len(data) else b""

    def _what_waits(self) -> list[bytes]:
        """The frames that carry it. Calls that are late by now end here."""
        frames: list[bytes] = []
        self._leaving_bytes = self._answers_bytes
        if self._acks:
            acks, self._acks = self._acks, []
            frames += self._session.acks(acks)
        if self._answers:
            answers, self._answers = self._answers, []
            frames += self._session.answers(answers)
        self._answers_bytes = 0
        self._let_reader_go()
        if self._calls:
            calls, self._calls = self._calls, []
            self._calls_bytes = 0
            now = self._now()
            rows = []
            for row in calls:
                budget_s = row[1] - now
                if budget_s > 0:
                    row[1] = math.ceil(budget_s * 1000)
                    rows.append(row)
                elif waiting := self._under_way.pop(row[0], None):
                    self._end_call(waiting[1], Fault.NOT_SENT)
            if rows:
                self.frames += 1
                frames += self._session.calls(rows)
        return frames

    def _note_broken(self) -> None:
        """The reader sees the end too, after what the peer had still sent. A reader that is held goes on now."""
        self._over = True
        self._let_reader_go()

    async def _wait_for_work(self) -> None:
        """Wait as on an Event, for a third of its price. This wait comes once for each frame."""
        if self._calls or self._answers or self._acks or self._unsent:
            await trio.lowlevel.checkpoint()
            return
        self._idle_writer = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._stop_waiting)

    def _stop_waiting(self, raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
        self._idle_writer = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _wake_writer(self) -> None:
        """Have what waits sent in the scheduler's next pass, by this link's writer or that of another link."""
        if self._idle_writer is None or self._reader_sends or self._is_in_turn:
            return
        if self._socket is not None:
            self._is_in_turn = True
            self._turn.links.append(self)
            if len(self._turn.links) > 1:
                return
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
    frame_bytes_max: Callable[[Hello], int] = lambda _peer: FRAME_BYTES_MAX,
) -> Link:
    """Greet over a fresh stream, as the side that was dialled.

    `judge` says why a peer is not welcome, or None. `frame_bytes_max` says how large a frame of this peer may be. The
    stream is closed if no link comes of it. A peer that does not speak the protocol is told so in a sentence.

    Raises:
      LinkError: see there.
    """
    session = Session(me, dialer=False)
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
            await stream.send_all(session.accept(frame_bytes_max(event.hello)))
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
