"""Links over memory and over real sockets; what goes over the wire is looked at from outside, frame by frame."""

from __future__ import annotations

import os
import random
import re
import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from trikv.core import frames
from trikv.core.errors import Fault
from trikv.core.histogram import EXPORTED_BOUNDS_S
from trikv.core.session import PROTOCOL, Acks, Answers, Call, Hello, PeerError, Session
from trikv.net.doors import TcpTransport
from trikv.net.link import (
    CALLS_MAX,
    GREETING_TIMEOUT_S,
    QUEUE_BYTES_MAX,
    SILENCE_MOST_S,
    Handler,
    Link,
    LinkError,
    accept,
    dial,
)

NEAR = Hello("master", "c-1", "term-1", "c-1")
FAR = Hello("worker", "w-1", "i-1", "c-1")
PATIENCE_S = 20.0

Streams = tuple[trio.abc.Stream, trio.abc.Stream]


@pytest.fixture(params=["memory", "tcp"])
async def streams(request: pytest.FixtureRequest) -> Streams:
    """A connection's two ends."""
    if request.param == "memory":
        return trio.testing.memory_stream_pair()
    return await tcp_pair()


async def tcp_pair() -> Streams:
    listening = await TcpTransport().listen("127.0.0.1:0")
    near = await TcpTransport().connect(listening.address)
    far = await listening.listener.accept()
    await listening.listener.aclose()
    return near, far


class Tap(trio.abc.Stream):
    """A stream of which one sees every write, and can hold it up."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.frames: list[list[Any]] = []
        self.gate = trio.Event()
        self.gate.set()
        self._buffer = frames.FrameBuffer()

    async def send_all(self, data: Any) -> None:
        self._buffer.feed(data)
        while (frame := self._buffer.next_frame()) is not frames.NO_FRAME:
            self.frames.append(frame)
        await self.gate.wait()
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.stream.aclose()


class Answered:
    """Where the answers to numbered calls end up."""

    def __init__(self) -> None:
        self.results: dict[int, tuple[int, list[Any]]] = {}
        self._arrived = trio.Event()

    def expect(self, number: int) -> partial[None]:
        return partial(self._done, number)

    def _done(self, number: int, fault: int, payload: list[Any]) -> None:
        assert number not in self.results, "a call ended twice"
        self.results[number] = (fault, payload)
        self._arrived.set()

    async def wait(self, count: int) -> dict[int, tuple[int, list[Any]]]:
        with trio.fail_after(PATIENCE_S):
            while len(self.results) < count:
                self._arrived = trio.Event()
                await self._arrived.wait()
        return self.results


def echo(link: Link, calls: list[Call]) -> None:
    for call in calls:
        link.answer(call[0], Fault.OK, call[3:])


async def link_up(streams: Streams, handler: Handler | None) -> tuple[Link, Link]:
    links: dict[str, Link] = {}
    near, far = streams

    async def take() -> None:
        links["far"] = await accept(far, FAR, lambda hello: None, handler)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        links["near"] = await dial(near, NEAR)
    return links["near"], links["far"]


@asynccontextmanager
async def linked(streams: Streams, handler: Handler | None = echo) -> AsyncIterator[tuple[Link, Link]]:
    near, far = await link_up(streams, handler)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.run)
        nursery.start_soon(far.run)
        yield near, far
        nursery.cancel_scope.cancel()


def soon() -> float:
    return trio.current_time() + PATIENCE_S


async def test_both_know_who_the_other_is(streams: Streams) -> None:
    async with linked(streams) as (near, far):
        assert (near.peer, far.peer) == (FAR, NEAR)


async def test_many_calls_are_under_way_and_answered_in_any_order(streams: Streams) -> None:
    held: list[Call] = []
    answered = Answered()

    def backwards(link: Link, calls: list[Call]) -> None:
        held.extend(calls)
        if len(held) == 1000:
            for call in reversed(held):
                link.answer(call[0], call[3] % 7, [call[3] * 2])

    async with linked(streams, backwards) as (near, _):
        for number in range(1000):
            near.call(1, [number], soon(), answered.expect(number))
            if number % 100 == 0:
                await trio.lowlevel.checkpoint()
        assert await answered.wait(1000) == {n: (n % 7, [n * 2]) for n in range(1000)}


async def test_large_answers_come_whole(streams: Streams) -> None:
    answered = Answered()
    value = bytes(range(256)) * 4096
    async with linked(streams) as (near, _):
        for number in range(20):
            near.call(1, [number, value], soon(), answered.expect(number), len(value))
        assert await answered.wait(20) == {n: (Fault.OK, [n, value]) for n in range(20)}


async def test_what_waits_goes_out_as_one_frame_and_comes_back_as_one() -> None:
    near_end, far_end = trio.testing.memory_stream_pair()
    near_tap, far_tap = Tap(near_end), Tap(far_end)
    answered = Answered()
    async with linked((near_tap, far_tap)) as (near, _):
        for number in range(64):
            near.call(1, [number], soon(), answered.expect(number))
        await answered.wait(64)
    greeting, *calls = near_tap.frames
    assert greeting[0] == "trikv"
    assert [len(rows) for _, rows in calls] == [64]
    assert [len(rows) for _, rows in far_tap.frames[1:]] == [64]


async def test_what_is_asked_during_a_send_shares_the_next_frame() -> None:
    near_end, far_end = trio.testing.memory_stream_pair()
    tap = Tap(near_end)
    answered = Answered()
    async with linked((tap, far_end)) as (near, _):
        tap.gate = trio.Event()
        near.call(1, [0], soon(), answered.expect(0))
        await trio.testing.wait_all_tasks_blocked()
        for number in range(1, 51):
            near.call(1, [number], soon(), answered.expect(number))
            await trio.lowlevel.checkpoint()
        tap.gate.set()
        await answered.wait(51)
    assert [len(rows) for _, rows in tap.frames[1:]] == [1, 50]


async def test_a_break_ends_what_is_under_way_as_lost_and_what_follows_as_not_sent(streams: Streams) -> None:
    answered = Answered()
    near, far = await link_up(streams, lambda link, calls: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.run)
        far_scope = trio.CancelScope()

        async def far_side() -> None:
            with far_scope:
                await far.run()

        nursery.start_soon(far_side)
        for number in range(3):
            near.call(1, [], soon(), answered.expect(number))
        far_scope.cancel()
        assert await answered.wait(3) == dict.fromkeys(range(3), (Fault.LOST, []))
    near.call(1, [], soon(), answered.expect(3))
    assert answered.results[3] == (Fault.NOT_SENT, [])


async def test_a_cancelled_link_leaves_nothing_behind(streams: Streams) -> None:
    answered = Answered()
    near, far = await link_up(streams, lambda link, calls: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(far.run)  # it ends by itself, since its peer hangs up
        with trio.CancelScope() as scope:
            near.call(1, [], soon(), answered.expect(0))
            scope.cancel()
            await near.run()
        assert answered.results == {0: (Fault.LOST, [])}
    with pytest.raises(trio.ClosedResourceError):
        await streams[0].send_all(b"more")


async def test_a_call_ends_late_when_it_is_swept_and_its_answer_is_then_of_no_use() -> None:
    held: list[Call] = []
    answered = Answered()
    async with linked(trio.testing.memory_stream_pair(), lambda link, calls: held.extend(calls)) as (near, far):
        near.call(1, [], trio.current_time() + 1, answered.expect(0))
        near.call(1, [], soon(), answered.expect(1))
        await trio.testing.wait_all_tasks_blocked()
        near.sweep(trio.current_time())
        assert answered.results == {}
        near.sweep(trio.current_time() + 1)
        assert answered.results == {0: (Fault.LATE, [])}
        for call in held:
            far.answer(call[0], Fault.OK, [])
        assert await answered.wait(2) == {0: (Fault.LATE, []), 1: (Fault.OK, [])}


async def test_a_link_that_can_send_no_more_ends_though_its_connection_stays_open() -> None:
    """Else its node would never dial anew: no call leaves that could be late."""
    near_end, far_end = await tcp_pair()
    assert isinstance(near_end, trio.SocketStream)
    near, _ = await link_up((near_end, far_end), None)
    answered = Answered()
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.run)
            await trio.testing.wait_all_tasks_blocked()
            near_end.socket.shutdown(socket.SHUT_WR)  # the peer takes no notice
            near.call(1, [], trio.current_time() + 100.0, answered.expect(0))
            await trio.testing.wait_all_tasks_blocked()
            near.call(1, [], trio.current_time() + 100.0, answered.expect(1))
            assert answered.results == {1: (Fault.NOT_SENT, [])}
            near.sweep(trio.current_time() + SILENCE_MOST_S + 1.0)
    assert answered.results[0] == (Fault.LOST, [])
    await trio.aclose_forcefully(far_end)


async def test_how_long_calls_took_is_told_from_the_call_to_the_answer(
    mock_clock: trio.testing.MockClock,
) -> None:
    held: list[Call] = []
    answered = Answered()
    async with linked(trio.testing.memory_stream_pair(), lambda link, calls: held.extend(calls)) as (near, far):
        for number in range(3):
            near.call(1, [], 100.0, answered.expect(number))
        near.call(2, [], 0.5, answered.expect(3))
        await trio.testing.wait_all_tasks_blocked()
        assert (near.oldest_s(1), near.oldest_s(3)) == (0.0, None)
        mock_clock.jump(0.03)
        for call in held[:2]:
            far.answer(call[0], Fault.OK, [])
        await answered.wait(2)
        far.answer(held[2][0], Fault.OK, [])  # in another frame, too soon for another sample
        await answered.wait(3)
        near.call(3, [], 100.0, answered.expect(4))
        assert near.oldest_s(3) == pytest.approx(0.03)
        mock_clock.jump(0.97)
        near.sweep(trio.current_time())
        bounds_s = (*EXPORTED_BOUNDS_S, float("inf"))
        by_hand = [(bound_s, 2 * (bound_s >= 0.03) + (bound_s >= 1.0)) for bound_s in bounds_s]
        assert near.times.cumulative() == by_hand
        assert near.times.sum_s == pytest.approx(2 * 0.03 + 1)


async def test_a_deadline_travels_as_a_budget(mock_clock: trio.testing.MockClock) -> None:
    near_end, far_end = trio.testing.memory_stream_pair()
    tap = Tap(near_end)
    answered = Answered()
    async with linked((tap, far_end)) as (near, _):
        tap.gate = trio.Event()
        near.call(1, [], trio.current_time() + 2, answered.expect(0))
        await trio.testing.wait_all_tasks_blocked()
        near.call(1, [], trio.current_time() + 0.5, answered.expect(1))
        near.call(1, [], trio.current_time() + 2, answered.expect(2))
        mock_clock.jump(0.75)
        tap.gate.set()
        await answered.wait(3)
    budgets = {row[0]: row[1] for _, rows in tap.frames[1:] for row in rows}
    assert budgets == {1: 2000, 3: 1250}
    assert answered.results[1] == (Fault.NOT_SENT, [])  # its time was up before it could leave


async def test_beyond_the_bound_of_bytes_a_call_is_not_sent() -> None:
    near_end, far_end = trio.testing.memory_stream_pair()
    tap = Tap(near_end)
    answered = Answered()
    async with linked((tap, far_end)) as (near, _):
        tap.gate = trio.Event()
        near.call(1, [], soon(), answered.expect(0))
        await trio.testing.wait_all_tasks_blocked()
        near.call(1, [], soon(), answered.expect(1), QUEUE_BYTES_MAX + 1)
        near.call(1, [], soon(), answered.expect(2))
        assert answered.results == {2: (Fault.CROWDED, [])}
        tap.gate.set()
        await answered.wait(3)
        near.call(1, [], soon(), answered.expect(3))
        await answered.wait(4)
    assert {n: fault for n, (fault, _) in answered.results.items()} == {0: 0, 1: 0, 2: Fault.CROWDED, 3: 0}


async def test_answers_are_read_however_many_calls_wait_to_leave() -> None:
    near_end, far_end = trio.testing.memory_stream_pair()
    tap = Tap(near_end)
    answered = Answered()
    asked: list[Call] = []
    async with linked((tap, far_end), lambda _, calls: asked.extend(calls)) as (near, far):
        for number in range(2):
            near.call(1, [], soon(), answered.expect(number))
        await trio.testing.wait_all_tasks_blocked()
        tap.gate = trio.Event()
        near.call(1, [], soon(), answered.expect(2))  # held up on its way, and more behind it than the bound
        await trio.testing.wait_all_tasks_blocked()
        near.call(1, [], soon(), answered.expect(3), QUEUE_BYTES_MAX + 1)
        for count, call in enumerate(asked, start=1):
            far.answer(call[0], Fault.OK, [])
            await answered.wait(count)
        tap.gate.set()
    assert {0, 1} <= set(answered.results)


async def test_beyond_the_bound_of_calls_a_call_is_not_sent() -> None:
    answered = Answered()
    near, _ = await link_up(trio.testing.memory_stream_pair(), None)
    for number in range(CALLS_MAX):
        near.call(1, [], soon(), answered.expect(number), 1)
    assert not answered.results
    near.call(1, [], soon(), answered.expect(-1), 1)
    assert answered.results == {-1: (Fault.CROWDED, [])}
    await near.close()


@asynccontextmanager
async def linked_thrice(handler: Handler = echo) -> AsyncIterator[tuple[list[Link], list[trio.CancelScope]]]:
    """The near ends of three links over sockets in one run, and what cancels each of them."""
    async with trio.open_nursery() as nursery:
        links, scopes = [], []

        async def run(link: Link, scope: trio.CancelScope) -> None:
            with scope, suppress(PeerError):
                await link.run()

        for _ in range(3):
            near, far = await link_up(await tcp_pair(), handler)
            links.append(near)
            scopes.append(trio.CancelScope())
            nursery.start_soon(run, near, scopes[-1])
            nursery.start_soon(far.run)
        await trio.testing.wait_all_tasks_blocked()
        yield links, scopes
        nursery.cancel_scope.cancel()


async def test_links_that_send_in_one_pass_share_a_writer_and_each_sends_its_own() -> None:
    answered = Answered()
    async with linked_thrice() as (links, _):
        for turn in range(3):
            for number, link in enumerate(links):
                for repeat in range(2):
                    place = 6 * turn + 2 * number + repeat
                    link.call(1, [place], soon(), answered.expect(place))
            await answered.wait(6 * turn + 6)
        assert answered.results == {place: (Fault.OK, [place]) for place in range(18)}
        assert [link.frames for link in links] == [3, 3, 3]


@pytest.mark.parametrize("ended", range(3))
async def test_a_link_that_ends_as_it_is_about_to_send_leaves_the_others_their_turn(ended: int) -> None:
    answered = Answered()
    async with linked_thrice() as (links, scopes):
        for number, link in enumerate(links):
            link.call(1, [number], soon(), answered.expect(number))
        scopes[ended].cancel()
        results = await answered.wait(3)
        kept = [number for number in range(3) if number != ended]
        assert [results[number] for number in kept] == [(Fault.OK, [number]) for number in kept]
        for number in kept:
            links[number].call(1, [], soon(), answered.expect(10 + number))
        await answered.wait(5)


@pytest.mark.parametrize("broken", range(3))
async def test_what_no_frame_carries_ends_its_own_link_alone(broken: int, caplog: pytest.LogCaptureFixture) -> None:
    answered = Answered()
    async with linked_thrice() as (links, _):
        for number, link in enumerate(links):
            arguments: list[Any] = [{"a": "map"}] if number == broken else [number]
            link.call(1, arguments, soon(), answered.expect(number))
        results = await answered.wait(3)
        assert results == {n: (Fault.LOST, []) if n == broken else (Fault.OK, [n]) for n in range(3)}
        links[broken].call(1, [], soon(), answered.expect(3))
        assert answered.results[3] == (Fault.NOT_SENT, [])
    assert [record.getMessage().split(" ended in ")[0] for record in caplog.records] == ["the link to worker w-1"]


async def test_what_the_kernel_does_not_take_at_once_comes_whole_and_in_order() -> None:
    answered = Answered()
    value = bytes(range(256)) * 4096
    heard: list[int] = []

    def note(link: Link, calls: list[Call]) -> None:
        heard.extend(call[3] for call in calls if call[4] == value)
        echo(link, calls)

    async with linked_thrice(note) as (links, _):
        count = 0
        for _ in range(3):
            for link in links:
                for _ in range(12):  # more than a socket takes while its peer does not read
                    link.call(1, [count, value], soon(), answered.expect(count), len(value))
                    count += 1
            await trio.lowlevel.checkpoint()
            links[2].call(1, [count, value], soon(), answered.expect(count), len(value))
            count += 1
        results = await answered.wait(count)
    assert {fault for fault, _ in results.values()} == {Fault.OK}
    assert all(payload == [number, value] for number, (_, payload) in results.items())
    assert sorted(heard) == list(range(count))


@pytest.mark.parametrize("value_bytes", [0, 6_000_000])  # the kernel does not take the larger at once
async def test_a_call_that_is_made_as_another_ends_unsent_is_sent(value_bytes: int) -> None:
    """In the turn of another link's writer, too."""
    answered = Answered()
    value = bytes(value_bytes)
    async with linked_thrice() as (links, _):
        again = links[1]

        def retry(fault: int, payload: list[Any]) -> None:
            assert fault == Fault.NOT_SENT
            again.call(1, [7], soon(), answered.expect(7))

        links[0].call(1, [0], soon(), answered.expect(0))
        again.call(1, [value], soon(), answered.expect(1), value_bytes)
        again.call(1, [2], trio.current_time(), retry)
        await answered.wait(3)
        links[0].call(1, [3], soon(), answered.expect(3))
        await answered.wait(4)
    assert answered.results == {
        0: (Fault.OK, [0]),
        1: (Fault.OK, [value]),
        3: (Fault.OK, [3]),
        7: (Fault.OK, [7]),
    }


@pytest.mark.parametrize("ended_by", ["sweep", "end", "turn"])
async def test_a_done_that_fails_ends_its_own_link_alone(ended_by: str, caplog: pytest.LogCaptureFixture) -> None:
    """In the sweeper, as the link ends, and in the turn of another link: the other calls and links go on."""
    answered = Answered()
    async with linked_thrice(lambda link, calls: None) as (links, _):
        if ended_by == "turn":
            links[0].call(1, [], soon(), answered.expect(0))
        links[1].call(1, [], trio.current_time() if ended_by == "turn" else soon(), fail)
        links[1].call(1, [], soon(), answered.expect(1))
        await trio.testing.wait_all_tasks_blocked()
        if ended_by == "sweep":
            links[1].sweep(soon())
        elif ended_by == "end":
            links[1].end()
        await answered.wait(1)
        assert answered.results == {1: (Fault.LATE if ended_by == "sweep" else Fault.LOST, [])}
        links[1].call(1, [], soon(), answered.expect(2))
        assert answered.results[2] == (Fault.NOT_SENT, [])
        assert links[0].in_flight == (ended_by == "turn")
    [record] = caplog.records
    assert "the link to worker w-1 ended in KeyError" in record.getMessage()


class Storm:
    """Links over small sockets that carry calls of every kind; half of the links are harmed on the way.

    Each call's `done` notes if the call ended otherwise than it may.
    """

    LINKS = 8
    CALLS_MOST = 1000
    ECHO, ACKNOWLEDGE, BATCH, REFUSE, TANGLE = range(1, 6)

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.streams: list[trio.SocketStream] = []
        self.nears: list[Link] = []
        self.fars: list[Link] = []
        self.harmed = sorted(self.dice.sample(range(self.LINKS), self.LINKS // 2))
        self.held: list[tuple[Link, Call]] = []  # what waits for the next batch
        self.made = 0
        self.ended: set[int] = set()
        self.wrong: list[tuple[int, int, int, int]] = []  # the calls that ended twice, or as they may not

    async def run(self) -> None:
        for _ in range(self.LINKS):
            await self.connect()
        async with trio.open_nursery() as nursery:
            for at in range(self.LINKS):
                for link in (self.nears[at], self.fars[at]):
                    nursery.start_soon(self.carry, link)
            nursery.start_soon(self.commit)
            nursery.start_soon(self.sweep)
            async with trio.open_nursery() as work:
                work.start_soon(self.ask)
                work.start_soon(self.harm)
            for at in self.harmed:
                self.nears[at].end()
            whole = [at for at in range(self.LINKS) if at not in self.harmed]
            with trio.fail_after(PATIENCE_S):
                while len(self.ended) < self.made or any(self.fars[at].answers_bytes for at in whole):
                    await trio.lowlevel.checkpoint()
            for at in whole:
                assert (self.nears[at].in_flight, self.nears[at].queue_bytes) == (0, 0)
                self.call(at, self.ECHO)
            with trio.fail_after(PATIENCE_S):
                while len(self.ended) < self.made:
                    await trio.lowlevel.checkpoint()
            assert not self.wrong
            nursery.cancel_scope.cancel()

    async def connect(self) -> None:
        streams = await tcp_pair()
        for stream in streams:
            assert isinstance(stream, trio.SocketStream)
            if self.dice.random() < 0.7:  # with a receiver's buffer smaller than a segment the kernel waits at times
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.dice.choice([1, 4096, 20_000]))
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
            self.streams.append(stream)
        near, far = await link_up(streams, self.handle)
        self.nears.append(near)
        self.fars.append(far)

    async def carry(self, link: Link) -> None:
        with suppress(PeerError):
            await link.run()

    def handle(self, link: Link, calls: list[Call]) -> None:
        for call in calls:
            if call[2] == self.ECHO:
                self.answer(link, call)
            elif call[2] == self.REFUSE:
                link.answer(call[0], Fault.BUSY, [])
            elif call[2] == self.TANGLE:
                link.answer(call[0], Fault.OK, [object()])
            else:
                self.held.append((link, call))

    def answer(self, link: Link, call: Call) -> None:
        link.answer(call[0], Fault.OK, call[3:], 64 + len(call[4]))

    async def commit(self) -> None:
        while True:
            await self.pause(6)
            batch, self.held = self.held, []
            for link, call in batch:
                if call[2] == self.BATCH:
                    self.answer(link, call)
            for far in self.fars:
                if ids := [call[0] for link, call in batch if link is far and call[2] == self.ACKNOWLEDGE]:
                    far.acknowledge(ids)

    async def sweep(self) -> None:
        while True:
            await self.pause(10)
            for near in self.nears:
                near.sweep(trio.current_time())

    async def ask(self) -> None:
        while self.made < self.CALLS_MOST:
            for _ in range(self.dice.choice([1, 3, 10])):
                self.call()
            await self.pause(5)

    async def harm(self) -> None:
        for at in self.harmed:
            await self.pause(100)
            self.call(at)
            harm = self.dice.randrange(4)
            if harm == 0:
                self.dice.choice([self.nears, self.fars])[at].end()
            elif harm == 1:
                self.call(at, self.TANGLE)
            elif harm == 2:
                self.call(at, done_fails=True)
            else:
                stream = self.dice.choice(self.streams[2 * at : 2 * at + 2])
                stream.socket.shutdown(self.dice.choice([socket.SHUT_WR, socket.SHUT_RDWR]))
            self.call(at)
            self.call()

    async def pause(self, passes_most: int) -> None:
        for _ in range(self.dice.randint(1, passes_most)):
            await trio.lowlevel.checkpoint()

    def call(self, at: int | None = None, op: int | None = None, *, done_fails: bool = False) -> None:
        number, self.made = self.made, self.made + 1
        at = self.dice.randrange(self.LINKS) if at is None else at
        may_be_late = op is None and (done_fails or self.dice.random() < 0.1)
        op = op or self.dice.choice([self.ECHO, self.ACKNOWLEDGE, self.ACKNOWLEDGE, self.BATCH, self.REFUSE])
        value = self.dice.randbytes(self.dice.choice([0, 10, 1000, 10_000, self.dice.choice([0, 0, 200_000])]))
        deadline_s = trio.current_time() + self.dice.choice([0, 0.001]) if may_be_late else soon()

        def may_end_so(fault: int, payload: list[Any]) -> bool:
            if fault == Fault.OK and op in (self.ECHO, self.ACKNOWLEDGE, self.BATCH):
                return payload == ([] if op == self.ACKNOWLEDGE else [number, value])
            if fault == Fault.BUSY:
                return op == self.REFUSE
            lost = at in self.harmed and fault in (Fault.LOST, Fault.NOT_SENT)
            return lost or (may_be_late and fault in (Fault.LATE, Fault.NOT_SENT))

        def done(fault: int, payload: list[Any]) -> None:
            if number in self.ended or not may_end_so(fault, payload):
                self.wrong.append((number, at, op, fault))  # an error here would end the link and be seen by nobody
            self.ended.add(number)
            if self.made < self.CALLS_MOST and self.dice.random() < 0.15:
                self.call()  # on the stack of what ended this one
            if done_fails:
                fail()

        self.nears[at].call(op, [number, value], deadline_s, done, 64 + len(value))


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_befalls_some_links_each_call_ends_once_and_the_other_links_answer_rightly(seed: int) -> None:
    await Storm(seed).run()


async def test_acknowledgements_of_a_batch_leave_at_once_and_share_a_frame(streams: Streams) -> None:
    held: list[Call] = []
    answered = Answered()
    async with linked(streams, lambda link, calls: held.extend(calls)) as (near, far):
        for number in range(5):
            near.call(1, [], soon(), answered.expect(number))
        await trio.testing.wait_all_tasks_blocked()
        while len(held) < 5:
            await trio.lowlevel.checkpoint()
        far.acknowledge([call[0] for call in held])
        assert await answered.wait(5) == dict.fromkeys(range(5), (Fault.OK, []))
        assert far.answers_bytes == 0
        await far.close()
        far.acknowledge([9])


@pytest.mark.parametrize("sender", ["reader", "writer"])
async def test_nothing_is_sent_between_what_one_of_its_tasks_is_sending(sender: str) -> None:
    near, far = await tcp_pair()
    assert isinstance(near, trio.SocketStream)
    session = Session(NEAR, dialer=True)
    value = bytes(range(256)) * 4096
    held: list[Call] = []
    links: list[Link] = []
    heard: list[tuple[int, ...]] = []

    def answer_at_length(link: Link, calls: list[Call]) -> None:
        for call in calls:
            link.answer(call[0], Fault.OK, [value, value])

    def hear(data: bytes | bytearray) -> None:
        for event in session.receive(data):
            if isinstance(event, Acks):
                heard.extend((call_id,) for call_id in event.ids)
            elif isinstance(event, Answers):
                heard.extend((row[0], row[1], len(row)) for row in event.answers)
                assert all(row[2:] == [value, value] for row in event.answers if len(row) > 2)

    async def take() -> None:
        handler = answer_at_length if sender == "reader" else lambda link, calls: held.extend(calls)
        links.append(await accept(far, FAR, lambda hello: None, handler))
        await links[0].run()

    async with near, trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await near.send_all(session.greet())
        list(session.receive(await near.receive_some()))
        await trio.testing.wait_all_tasks_blocked()  # its writer sleeps, so its reader will send what it can
        for frame in session.calls([[number, 60_000, 1] for number in range(8)]):
            await near.send_all(frame)
        await trio.testing.wait_all_tasks_blocked()
        answer_at_length(links[0], held)
        await trio.testing.wait_all_tasks_blocked()  # the kernel takes no more, and one of its tasks waits
        for number in range(100, 110):
            with suppress(BlockingIOError):
                hear(os.read(near.socket.fileno(), 1024 * 1024))  # so there is room, which that task has not seen yet
            links[0].acknowledge([number])
        links[0].answer(110, Fault.BUSY, [])
        with trio.fail_after(PATIENCE_S):
            while len(heard) < 19:
                data = await near.receive_some()
                assert data
                hear(data)
        nursery.cancel_scope.cancel()
    acknowledged = [(number,) for number in range(100, 110)]
    assert sorted(heard) == [*((number, 0, 4) for number in range(8)), *acknowledged, (110, Fault.BUSY, 2)]


def answer_amply(link: Link, calls: list[Call]) -> None:
    for call in calls:
        link.answer(call[0], Fault.OK, [], QUEUE_BYTES_MAX // 4)


async def test_who_does_not_take_its_answers_is_not_read_from() -> None:
    near, far = trio.testing.lockstep_stream_pair()  # a write lasts until it is read
    session = Session(NEAR, dialer=True)
    taken = 0

    async def take() -> None:
        link = await accept(far, FAR, lambda hello: None, answer_amply)
        await link.run()

    async def ask() -> None:
        nonlocal taken
        for number in range(20):
            for frame in session.calls([[number, 1000, 1]]):
                await near.send_all(frame)
            taken += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await near.send_all(session.greet())
        list(session.receive(await near.receive_some()))
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        assert taken < 10
        answers: set[int] = set()
        with trio.fail_after(PATIENCE_S):
            while len(answers) < 20:
                for event in session.receive(await near.receive_some()):
                    answers.update(event.ids)  # type: ignore[union-attr]  # none other comes
        await trio.testing.wait_all_tasks_blocked()
        assert taken == 20
        nursery.cancel_scope.cancel()


async def test_who_leaves_with_its_answers_untaken_is_let_go() -> None:
    near, far = trio.testing.lockstep_stream_pair()
    session = Session(NEAR, dialer=True)
    ended = trio.Event()

    async def take() -> None:
        link = await accept(far, FAR, lambda hello: None, answer_amply)
        await link.run()
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await near.send_all(session.greet())
        list(session.receive(await near.receive_some()))
        for frame in session.calls([[number, 1000, 1] for number in range(8)]):
            await near.send_all(frame)
        await trio.testing.wait_all_tasks_blocked()  # its writer waits for us, and its reader for its writer
        await near.aclose()
        with trio.fail_after(PATIENCE_S):
            await ended.wait()


@pytest.mark.parametrize(
    "data", [b"\0\0\0\1\xff", frames.encode([1, [[1, 2]]]), frames.encode([3, [None]]), frames.encode([4, []])]
)
async def test_a_peer_that_breaks_the_protocol_ends_the_link_with_a_plain_error(data: bytes) -> None:
    near_end, far_end = trio.testing.memory_stream_pair()
    answered = Answered()
    near, _ = await link_up((near_end, far_end), None)
    near.call(1, [], soon(), answered.expect(0))
    await far_end.send_all(data)
    with pytest.raises(PeerError):
        await near.run()
    assert answered.results == {0: (Fault.LOST, [])}


@pytest.mark.parametrize("turn", range(8))  # who runs first is up to Trio
async def test_nonsense_beside_an_answer_that_is_about_to_leave_ends_the_link_with_a_plain_error(turn: int) -> None:
    near_end, far_end = trio.testing.memory_stream_pair()
    _, far = await link_up((near_end, far_end), echo)
    raised: list[PeerError] = []

    async def run() -> None:
        try:
            await far.run()
        except PeerError as error:
            raised.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        far.answer(1, Fault.OK, [])
        far_end.receive_stream.put_data(b"\xff" * 100)
    assert raised


async def test_a_call_where_nothing_is_offered_breaks_the_protocol() -> None:
    near_end, far_end = trio.testing.memory_stream_pair()
    near, _ = await link_up((near_end, far_end), None)
    await far_end.send_all(frames.encode([1, [[1, 2000, 5]]]))
    with pytest.raises(PeerError, match="nothing is offered"):
        await near.run()


async def test_an_answer_to_nothing_that_was_asked_is_ignored() -> None:
    near_end, far_end = trio.testing.memory_stream_pair()
    answered = Answered()
    async with linked((near_end, far_end)) as (near, _):
        await far_end.send_all(frames.encode([2, [[77, 0]]]))
        near.call(1, [5], soon(), answered.expect(0))
        assert await answered.wait(1) == {0: (Fault.OK, [5])}


async def test_an_acknowledgement_of_nothing_or_of_what_was_answered_is_ignored() -> None:
    near_end, far_end = trio.testing.memory_stream_pair()
    held: list[Call] = []
    answered = Answered()
    async with linked((near_end, far_end), lambda link, calls: held.extend(calls)) as (near, far):
        for number in range(3):
            near.call(1, [], soon(), answered.expect(number))
        await trio.testing.wait_all_tasks_blocked()
        first, second, third = (call[0] for call in held)
        strange = [0, -1, 2**64 - 1, 77, -(2**64)]
        await far_end.send_all(frames.encode([3, [*strange, first, first, *strange, second]]))
        await answered.wait(2)
        await far_end.send_all(frames.encode([2, [[first, Fault.BUSY], [second, Fault.OK, 1]]]))
        await far_end.send_all(frames.encode([3, [first] * 100_000]))
        far.answer(third, Fault.OK, [])
        assert await answered.wait(3) == dict.fromkeys(range(3), (Fault.OK, []))
        assert near.in_flight == 0


async def test_acknowledgements_leave_as_bare_ids_and_answers_with_something_in_them_as_rows() -> None:
    near_end, far_end = trio.testing.memory_stream_pair()
    tap = Tap(far_end)
    answered = Answered()

    def mixed(link: Link, calls: list[Call]) -> None:
        for call in calls:
            link.answer(call[0], call[3], call[4:])

    async with linked((near_end, tap), mixed) as (near, _):
        said: list[list[Any]] = [[0], [0, None], [3], [0], [4, b"v", []]]
        for number, arguments in enumerate(said):
            near.call(1, arguments, soon(), answered.expect(number))
        results = await answered.wait(5)
    assert results == {0: (0, []), 1: (0, [None]), 2: (3, []), 3: (0, []), 4: (4, [b"v", []])}
    assert sorted(tap.frames[1:]) == [[2, [[2, 0, None], [3, 3], [5, 4, b"v", []]]], [3, [1, 4]]]


async def test_what_comes_in_one_piece_with_the_greeting_is_not_left_lying() -> None:
    near, far = trio.testing.memory_stream_pair()
    ahead = Session(NEAR, dialer=True)
    call = frames.encode([1, [[1, 2000, 1, "early"]]])
    await near.send_all(ahead.greet() + call)
    link = await accept(far, FAR, lambda hello: None, echo)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        buffer = frames.FrameBuffer()
        heard: list[Any] = []
        with trio.fail_after(PATIENCE_S):
            while len(heard) < 2:
                buffer.feed(await near.receive_some())
                while (frame := buffer.next_frame()) is not frames.NO_FRAME:
                    heard.append(frame)
        nursery.cancel_scope.cancel()
    assert heard[1] == [2, [[1, 0, "early"]]]


async def test_who_is_not_welcome_is_told_why_and_hung_up_on(streams: Streams) -> None:
    near, far = streams

    async def take() -> None:
        with pytest.raises(LinkError, match="another cluster"):
            await accept(far, FAR, lambda hello: f"{hello.node} is of another cluster", None)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        with pytest.raises(LinkError, match="c-1 is of another cluster"):
            await dial(near, NEAR)
    with pytest.raises(trio.ClosedResourceError):
        await far.send_all(b"more")


async def test_a_peer_of_the_former_version_is_told_to_run_the_same_trikv(streams: Streams) -> None:
    near, far = streams
    sentence = f"version {PROTOCOL - 1} .* version {PROTOCOL}; run the same trikv on every node"

    async def take() -> None:
        with pytest.raises(LinkError, match=sentence):
            await accept(far, FAR, lambda hello: None, echo)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await near.send_all(frames.encode(["trikv", PROTOCOL - 1, *NEAR]))
        buffer = frames.FrameBuffer()
        heard: list[Any] = []
        with trio.fail_after(PATIENCE_S):
            while not heard:
                buffer.feed(await near.receive_some())
                if (frame := buffer.next_frame()) is not frames.NO_FRAME:
                    heard = frame
    assert heard[0] == "trikv-refuses"
    assert re.search(sentence, heard[1])
    await near.aclose()


@pytest.mark.parametrize("reply", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\0\0\1\xff", frames.encode(["hello"])])
async def test_dialling_something_else_says_so(reply: bytes, streams: Streams) -> None:
    near, far = streams
    await far.send_all(reply)
    with pytest.raises(LinkError, match="is this address a trikv node's RPC port"):
        await dial(near, NEAR)
    await trio.aclose_forcefully(far)


async def test_dialling_someone_who_hangs_up_says_so(streams: Streams) -> None:
    near, far = streams
    await far.aclose()
    with pytest.raises(LinkError):
        await dial(near, NEAR)


async def test_silence_is_not_waited_for_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    near, far = trio.testing.memory_stream_pair()
    with pytest.raises(LinkError, match="in time"):
        await dial(near, NEAR)
    with pytest.raises(LinkError, match="in time"):
        await accept(trio.testing.memory_stream_pair()[0], FAR, lambda hello: None, None)
    assert trio.current_time() == 2 * GREETING_TIMEOUT_S
    with pytest.raises(trio.ClosedResourceError):
        await near.send_all(b"more")
    await far.aclose()


def fail(*_: object) -> None:
    raise KeyError("nobody thought of this")


def answer_what_no_frame_carries(link: Link, calls: list[Call]) -> None:
    link.answer(calls[0][0], Fault.OK, [object()])


@pytest.mark.parametrize(
    ("handler", "said"), [(fail, "KeyError"), (answer_what_no_frame_carries, "TypeError"), (echo, "KeyError")]
)
async def test_a_fault_of_this_side_ends_the_link_and_nothing_else(
    caplog: pytest.LogCaptureFixture, handler: Handler, said: str
) -> None:
    """In a handler, where an answer is encoded, or (the last) in a `done`: one line, and a PeerError."""
    near, far = await link_up(trio.testing.memory_stream_pair(), handler)
    broken: list[str] = []

    async def run(link: Link) -> None:
        try:
            await link.run()
        except PeerError as error:
            broken.append(str(error))

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, near)
            nursery.start_soon(run, far)
            near.call(1, [], soon(), fail if handler is echo else Answered().expect(0))
    assert broken == ["this node failed over what it said"]
    [record] = caplog.records
    assert said in record.getMessage()
    assert record.exc_info is None


async def test_a_stream_that_is_closed_here_during_the_greeting_makes_no_link(streams: Streams) -> None:
    near, far = streams
    ended: list[str] = []

    async def greet(greeting: Awaitable[Link]) -> None:
        with pytest.raises(LinkError):
            await greeting
        ended.append("no link")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(greet, dial(near, NEAR))
        nursery.start_soon(greet, accept(far, FAR, lambda hello: None, None))
        for stream in streams:
            await trio.aclose_forcefully(stream)
    assert ended == ["no link"] * 2
