"""Links that are broken on purpose, on virtual time: a cut one is silent, a slow one late, and neither loses a byte."""

from __future__ import annotations

import gc

import pytest
import trio
from trio.testing import MockClock

from trikv.core.breaking import LinkState
from trikv.net.breakable import BreakableTransport
from trikv.testing.inprocess import MemoryTransport

ADDRESS = "127.0.0.1:8001"
OTHER = "127.0.0.1:8002"


async def both_ends(transport: BreakableTransport, address: str = ADDRESS) -> tuple[trio.abc.Stream, trio.abc.Stream]:
    """Of a new connection: that which dialled, and the other."""
    listening = await transport.listen(address)
    near = await transport.connect(address)
    far = await listening.listener.accept()
    await listening.listener.aclose()
    return near, far


@pytest.fixture
def transport() -> BreakableTransport:
    return BreakableTransport(MemoryTransport())


async def test_a_whole_link_passes_everything_at_once(transport: BreakableTransport, autojump_clock: MockClock) -> None:
    near, far = await both_ends(transport)
    transport.cut(OTHER)
    await near.send_all(b"there")
    assert await far.receive_some() == b"there"
    await far.send_all(b"back")
    assert await near.receive_some() == b"back"
    await near.aclose()
    assert await far.receive_some() == b""
    assert trio.current_time() == 0


async def test_a_cut_link_is_silent_until_it_is_mended(
    transport: BreakableTransport, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    near, far = await both_ends(transport)
    transport.cut(ADDRESS)
    nursery.start_soon(near.send_all, b"there")
    await far.send_all(b"back")
    for receiving in (near.receive_some, far.receive_some):
        with trio.move_on_after(60) as waited:
            await receiving()
        assert waited.cancelled_caught
    await far.send_all(b" again")
    transport.mend(ADDRESS)
    assert await far.receive_some() == b"there"
    assert await near.receive_some() == b" again"  # what it had read when it was cancelled went with that


async def test_a_dial_through_a_cut_link_waits_and_is_not_refused(
    transport: BreakableTransport, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    transport.cut(ADDRESS)
    with trio.move_on_after(60) as waited:
        await transport.connect(ADDRESS)
    assert waited.cancelled_caught
    transport.mend(ADDRESS)
    with pytest.raises(ConnectionRefusedError):  # nobody listens
        await transport.connect(ADDRESS)


async def test_a_slow_link_lets_each_message_wait_and_keeps_their_order(
    transport: BreakableTransport, autojump_clock: MockClock
) -> None:
    near, far = await both_ends(transport)
    transport.slow(ADDRESS, 0.5)
    await near.send_all(b"one ")
    assert trio.current_time() == 0.5
    await near.send_all(b"two")
    assert trio.current_time() == 1.0
    assert await far.receive_some() == b"one two"
    await far.send_all(b"back")
    assert await near.receive_some() == b"back"
    assert trio.current_time() == 1.0


@pytest.mark.parametrize("changed", ["mended", "slowed less", "cut and mended"])
async def test_what_waits_hears_of_each_change(
    changed: str, transport: BreakableTransport, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    near, far = await both_ends(transport)
    transport.slow(ADDRESS, 1000.0)
    nursery.start_soon(near.send_all, b"there")
    await trio.sleep(5)
    if changed == "slowed less":
        transport.slow(ADDRESS, 6.0)
    elif changed == "cut and mended":
        transport.cut(ADDRESS)
        await trio.sleep(1)
    if changed != "slowed less":
        transport.mend(ADDRESS)
    assert await far.receive_some() == b"there"
    assert trio.current_time() == (5.0 if changed == "mended" else 6.0)


async def test_both_spellings_of_this_machine_are_one_link(transport: BreakableTransport) -> None:
    transport.slow("localhost:8001", 0.5)
    assert transport.look(ADDRESS) == (LinkState.SLOW, 0.5)
    transport.cut(ADDRESS)
    assert transport.look("localhost:8001") == (LinkState.CUT, 0.0)
    assert transport.look(OTHER) == (LinkState.WHOLE, 0.0)
    transport.mend(OTHER)
    transport.mend("localhost:8001")
    assert transport.look(ADDRESS) == (LinkState.WHOLE, 0.0)


async def test_nothing_is_kept_of_links_that_are_whole_and_over(transport: BreakableTransport) -> None:
    for port in range(100):
        with pytest.raises(ConnectionRefusedError):
            await transport.connect(f"127.0.0.1:{port + 1}")
    gc.collect()
    assert len(transport._wires) == 0
