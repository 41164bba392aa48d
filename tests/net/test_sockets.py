"""Sending and receiving at the price of the system calls, on real sockets, in good order and in bad."""

from __future__ import annotations

import socket
import struct

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


async def test_a_stream_that_is_no_socket_is_used_as_it_is() -> None:
    near, far = memory_stream_pair()
    await send_now(near, b"frame")
    assert await receive(far, 10) == b"frame"
