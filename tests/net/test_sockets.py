"""Sending and receiving at the price of the system calls, on real sockets, in good order and in bad."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack, suppress

import pytest
import trio
from trio.testing import memory_stream_pair

from trikv.net.sockets import receive, send_now


@pytest.fixture
def pair() -> tuple[trio.SocketStream, socket.socket]:
    """A stream, and the other end as a plain socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    ours.setblocking(False)
    return trio.SocketStream(trio.socket.from_stdlib_socket(ours)), theirs


async def test_what_is_there_is_received_up_to_the_bound_and_then_the_end(
    pair: tuple[trio.SocketStream, socket.socket],
) -> None:
    stream, peer = pair
    async with stream:
        with peer:
            peer.sendall(b"abcde")
            assert [await receive(stream, 3), await receive(stream, 3)] == [b"abc", b"de"]
        assert await receive(stream, 3) == b""


async def test_it_waits_until_there_is_something(
    pair: tuple[trio.SocketStream, socket.socket], nursery: trio.Nursery
) -> None:
    stream, peer = pair
    received: list[bytes | bytearray] = []

    async def receive_one() -> None:
        received.append(await receive(stream, 10))
        nursery.cancel_scope.cancel()

    with peer:
        async with stream:
            nursery.start_soon(receive_one)
            await trio.testing.wait_all_tasks_blocked()
            peer.sendall(b"late")
            with pytest.raises(trio.Cancelled):
                await trio.sleep_forever()
    assert received == [b"late"]


async def test_a_large_answer_is_sent_whole_to_a_peer_that_reads_slowly(
    pair: tuple[trio.SocketStream, socket.socket],
) -> None:
    stream, peer = pair
    data = bytes(range(256)) * (32 * 1024)  # more than the kernel takes at once
    read = bytearray()

    def read_all() -> None:
        while piece := peer.recv(100_000):
            read.extend(piece)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, read_all)
        async with stream:
            await send_now(stream, data)
    peer.close()
    assert read == data


async def test_a_connection_that_was_reset_is_broken(pair: tuple[trio.SocketStream, socket.socket]) -> None:
    stream, peer = pair
    async with stream:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        with pytest.raises(trio.BrokenResourceError):
            await receive(stream, 10)
        with pytest.raises(trio.BrokenResourceError):
            await send_now(stream, b"x")
    with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
        await receive(stream, 10)
    with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
        await send_now(stream, b"x")


async def test_a_stream_that_is_closed_meanwhile_is_closed(pair: tuple[trio.SocketStream, socket.socket]) -> None:
    stream, peer = pair
    ended: list[str] = []

    async def wait() -> None:
        try:
            await receive(stream, 10)
        except trio.ClosedResourceError:
            ended.append("closed")

    with peer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            await trio.aclose_forcefully(stream)
    assert ended == ["closed"]


class Between(trio.abc.Instrument):
    """Does something when the system has said what is readable, and no task has run on it yet."""

    def __init__(self, do: Callable[[], object]) -> None:
        self._do = do
        self.seen = 0

    def after_io_wait(self, timeout: float) -> None:
        self.seen += 1
        if self.seen == 1:
            self._do()


async def receive_between(stream: trio.SocketStream, peer: socket.socket, do: Callable[[], object]) -> bytes:
    """What is received, if this is done after the stream has become readable."""
    received: list[bytes] = []

    async def wait() -> None:
        received.append(bytes(await receive(stream, 10)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        between = Between(do)
        trio.lowlevel.add_instrument(between)
        try:
            peer.sendall(b"first")
            while not between.seen:
                await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked()
            with suppress(OSError):
                peer.sendall(b"second")
        finally:
            trio.lowlevel.remove_instrument(between)
    return received[0]


async def test_what_is_no_longer_there_is_waited_for_anew(pair: tuple[trio.SocketStream, socket.socket]) -> None:
    stream, peer = pair
    async with stream:
        with peer:
            taken = await receive_between(stream, peer, lambda: os.read(stream.socket.fileno(), 10))
    assert taken == b"second"


async def test_the_number_of_a_closed_stream_may_be_anothers_and_that_is_not_read(
    pair: tuple[trio.SocketStream, socket.socket],
) -> None:
    stream, peer = pair
    number = stream.socket.fileno()
    others: list[socket.socket] = []

    def close_and_open() -> None:
        stream.socket.close()
        while number not in {other.fileno() for other in others}:
            others.extend(socket.socketpair())
        for other in others:
            other.sendall(b"others")

    with peer, ExitStack() as opened:
        with pytest.RaisesGroup(trio.BrokenResourceError):
            await receive_between(stream, peer, close_and_open)
        for other in others:
            opened.enter_context(other)
            assert other.recv(10) == b"others"
    await stream.aclose()


async def test_a_stream_that_is_no_socket_is_used_as_it_is() -> None:
    near, far = memory_stream_pair()
    await send_now(near, b"frame")
    assert await receive(far, 10) == b"frame"
