"""The accepting side against whoever may connect: nonsense, slowness, silence, and too many."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from trikv.core import frames
from trikv.core.calls import Op
from trikv.core.errors import Fault
from trikv.core.session import PROTOCOL, Call, Hello, Session, TurnedAway
from trikv.net.doors import Listening, TcpTransport, Transport
from trikv.net.link import GREETING_TIMEOUT_S, SILENCE_MOST_S, Link, LinkError, dial
from trikv.net.serve import LINKS_MAX, serve_links
from trikv.testing.inprocess import MemoryTransport

HERE = Hello("worker", "w-1", "i-1", "c-1")
MASTER = Hello("master", "c-1", "term-1", "c-1")
PATIENCE_S = 20.0


def judge(hello: Hello) -> str | None:
    return None if hello.cluster == "c-1" else f"{hello.node} is of cluster {hello.cluster}"


def answer(link: Link, calls: list[Call]) -> None:
    for call in calls:
        link.answer(call[0], Fault.OK, call[3:])


async def serve(nursery: trio.Nursery, transport: Transport) -> Listening:
    listening = await transport.listen("127.0.0.1:0")
    await nursery.start(serve_links, listening.listener, lambda: HERE, judge, answer)
    return listening


async def read_to_the_end(stream: trio.abc.Stream) -> bytes:
    """What is still said before the other side hangs up; a reset counts as hanging up."""
    heard = b""
    with trio.fail_after(PATIENCE_S):
        try:
            while data := await stream.receive_some():
                heard += data
        except trio.BrokenResourceError:
            pass
    await trio.aclose_forcefully(stream)
    return heard


async def check_it_still_serves(transport: Transport, address: str) -> None:
    """One call there and back."""
    link = await dial(await transport.connect(address), MASTER)
    answered = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        link.call(Op.HEARTBEAT, ["ping"], trio.current_time() + PATIENCE_S, lambda fault, payload: answered.set())
        with trio.fail_after(PATIENCE_S):
            await answered.wait()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\xff" * 100_000,
        b"\0\0\0\1\xff",
        frames.encode(["hello", 1]),
    ],
)
async def test_a_stranger_is_answered_with_a_sentence(data: bytes, nursery: trio.Nursery) -> None:
    transport = MemoryTransport()
    listening = await serve(nursery, transport)
    stream = await transport.connect(listening.address)
    await stream.send_all(data)
    session = Session(MASTER, dialer=True)
    session.greet()
    [event] = session.receive(await read_to_the_end(stream))
    assert isinstance(event, TurnedAway)
    assert "is this address a trikv node's RPC port?" in event.sentence
    await check_it_still_serves(transport, listening.address)


async def test_a_stranger_on_a_real_socket_does_no_harm(nursery: trio.Nursery) -> None:
    transport = TcpTransport()
    listening = await serve(nursery, transport)
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 1_000_000, b""):
        stream = await transport.connect(listening.address)
        assert isinstance(stream, trio.SocketStream)
        try:
            await stream.send_all(data)
            await stream.send_eof()
        except trio.BrokenResourceError:
            pass  # hung up on already
        await read_to_the_end(stream)
        await check_it_still_serves(transport, listening.address)


@pytest.mark.parametrize(
    "data",
    [b"\0\0\0\1\xff", frames.encode([1, [[1, 2]]]), frames.encode([2, [[]]]), frames.encode([3, [True]]), b"\xff" * 9],
)
async def test_a_node_that_greets_and_then_speaks_nonsense_harms_nobody_else(
    data: bytes, nursery: trio.Nursery
) -> None:
    transport = MemoryTransport()
    listening = await serve(nursery, transport)
    stream = await transport.connect(listening.address)
    await stream.send_all(Session(MASTER, dialer=True).greet())
    await stream.receive_some()
    await stream.send_all(data)
    assert await read_to_the_end(stream) == b""
    await check_it_still_serves(transport, listening.address)


async def test_who_is_not_welcome_hears_why(nursery: trio.Nursery) -> None:
    transport = TcpTransport()
    listening = await serve(nursery, transport)
    with pytest.raises(LinkError, match="m-9 is of cluster c-9"):
        await dial(await transport.connect(listening.address), Hello("master", "m-9", "term-1", "c-9"))
    await check_it_still_serves(transport, listening.address)


async def test_another_version_hears_which_is_spoken_here(nursery: trio.Nursery) -> None:
    transport = TcpTransport()
    listening = await serve(nursery, transport)
    stream = await transport.connect(listening.address)
    await stream.send_all(frames.encode(["trikv", PROTOCOL + 1, "whatever", ["comes", "then"]]))
    heard = await read_to_the_end(stream)
    assert f"version {PROTOCOL + 1} of trikv's protocol and this node version {PROTOCOL}".encode() in heard


async def test_silent_and_slow_ones_are_closed_when_their_time_is_up(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    transport = MemoryTransport()
    listening = await serve(nursery, transport)
    silent = await transport.connect(listening.address)
    slow = await transport.connect(listening.address)

    async def drip() -> None:
        for byte in Session(MASTER, dialer=True).greet():
            await slow.send_all(bytes([byte]))
            await trio.sleep(0.9)

    with pytest.raises(trio.BrokenResourceError):
        await drip()
    assert GREETING_TIMEOUT_S <= trio.current_time() < GREETING_TIMEOUT_S + 1
    assert await read_to_the_end(silent) == b""
    await check_it_still_serves(transport, listening.address)


async def test_an_open_link_may_be_silent_as_long_as_it_likes(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    transport = MemoryTransport()
    listening = await serve(nursery, transport)
    link = await dial(await transport.connect(listening.address), MASTER)
    nursery.start_soon(link.run)
    await trio.sleep(3600)
    answered = trio.Event()
    link.call(Op.HEARTBEAT, [], trio.current_time() + 1, lambda fault, payload: answered.set())
    with trio.fail_after(1):
        await answered.wait()
    nursery.cancel_scope.cancel()


async def test_beyond_the_bound_of_connections_the_next_is_closed_unread(nursery: trio.Nursery) -> None:
    transport = MemoryTransport()
    listening = await serve(nursery, transport)
    held = [await transport.connect(listening.address) for _ in range(LINKS_MAX)]
    with pytest.raises(LinkError):
        await dial(await transport.connect(listening.address), MASTER)
    await held.pop().aclose()
    await trio.testing.wait_all_tasks_blocked()
    await check_it_still_serves(transport, listening.address)
    for stream in held:
        await stream.aclose()


async def test_links_that_say_nothing_make_room_for_others(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    transport = MemoryTransport()
    listening = await serve(nursery, transport)
    for _ in range(LINKS_MAX):
        link = await dial(await transport.connect(listening.address), MASTER)
        nursery.start_soon(link.run)
    with pytest.raises(LinkError):
        await dial(await transport.connect(listening.address), MASTER)
    await trio.sleep(2 * SILENCE_MOST_S)
    with pytest.raises(LinkError):
        await dial(await transport.connect(listening.address), MASTER)
    await trio.testing.wait_all_tasks_blocked()
    await check_it_still_serves(transport, listening.address)
    nursery.cancel_scope.cancel()
