"""A peer dials, keeps and redials a link; all of it on virtual time, on a network that notes who dialled when."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import trio
import trio.testing

from trikv.core.calls import Op
from trikv.core.errors import Fault
from trikv.core.session import Call, Hello
from trikv.net.doors import Doors
from trikv.net.link import Link
from trikv.net.peers import DIAL_TIMEOUT_S, REDIAL_FIRST_S, REDIAL_MOST_S, Peer
from trikv.net.serve import serve_links
from trikv.testing.inprocess import MemoryTransport

MASTER = Hello("master", "c-1", "term-1", "c-1")
WORKER = Hello("worker", "w-1", "i-1", "c-1")
ADDRESS = "127.0.0.1:8001"


class NotedTransport(MemoryTransport):
    def __init__(self) -> None:
        super().__init__()
        self.dialled_s: list[float] = []

    async def connect(self, address: str) -> trio.abc.Stream:
        self.dialled_s.append(trio.current_time())
        return await super().connect(address)


@pytest.fixture
def doors() -> Doors:
    return Doors(transport=NotedTransport(), dice=random.Random(1))


@pytest.fixture
def network(doors: Doors) -> NotedTransport:
    assert isinstance(doors.transport, NotedTransport)
    return doors.transport


def answer(link: Link, calls: list[Call]) -> None:
    for call in calls:
        if call[2] == Op.HEARTBEAT:
            link.answer(call[0], Fault.OK, ["here"])


async def serve(nursery: trio.Nursery, network: NotedTransport, turn_away: str | None = None) -> None:
    listening = await network.listen(ADDRESS)
    await nursery.start(serve_links, listening.listener, lambda: WORKER, lambda hello: turn_away, answer)


async def until(peer: Peer, *, linked: bool) -> None:
    with trio.fail_after(60):
        while (peer.link is not None) is not linked:
            await peer.wait_changed()


async def test_it_backs_off_with_jitter_while_nobody_answers(
    nursery: trio.Nursery, doors: Doors, network: NotedTransport, autojump_clock: trio.testing.MockClock
) -> None:
    peer = Peer(ADDRESS, lambda: MASTER, doors)
    nursery.start_soon(peer.run)
    await trio.sleep(60)
    assert network.dialled_s[0] == 0
    gaps = [after - before for before, after in pairwise(network.dialled_s)]
    pauses = [min(REDIAL_FIRST_S * 2**n, REDIAL_MOST_S) for n in range(len(gaps))]
    assert all(0.5 * pause <= gap <= 1.5 * pause for gap, pause in zip(gaps, pauses, strict=True))
    assert len({gap / pause for gap, pause in zip(gaps, pauses, strict=True)}) > len(gaps) // 2
    assert peer.refused
    assert peer.why_not == f"nobody listens at {ADDRESS}"
    nursery.cancel_scope.cancel()


async def test_it_finds_a_node_that_starts_later(
    nursery: trio.Nursery, doors: Doors, network: NotedTransport, autojump_clock: trio.testing.MockClock
) -> None:
    told: list[Link | None] = []
    peer = Peer(ADDRESS, lambda: MASTER, doors, on_link=told.append)
    nursery.start_soon(peer.run)
    await trio.sleep(30)
    await serve(nursery, network)
    began_s = trio.current_time()
    await until(peer, linked=True)
    assert trio.current_time() - began_s <= 1.5 * REDIAL_MOST_S
    assert (peer.why_not, peer.refused) == ("", False)
    assert told[:-1] == [None] * (len(told) - 1)
    assert told[-1] is peer.link
    assert await peer.ask(Op.HEARTBEAT, [], 1.0) == (Fault.OK, ["here"])
    nursery.cancel_scope.cancel()


async def test_a_link_that_lasted_is_redialled_at_once(
    nursery: trio.Nursery, doors: Doors, network: NotedTransport, autojump_clock: trio.testing.MockClock
) -> None:
    await serve(nursery, network)
    peer = Peer(ADDRESS, lambda: MASTER, doors)
    nursery.start_soon(peer.run)
    await until(peer, linked=True)
    await trio.sleep(100)
    network.cut(ADDRESS)
    await until(peer, linked=False)
    await peer.wait_changed()
    assert network.dialled_s == [0.0, 100.0]
    assert peer.refused
    nursery.cancel_scope.cancel()


async def test_one_that_greets_and_hangs_up_is_not_redialled_at_its_own_pace(
    nursery: trio.Nursery, doors: Doors, network: NotedTransport, autojump_clock: trio.testing.MockClock
) -> None:
    def hang_up(link: Link | None) -> None:
        if link is not None:
            nursery.start_soon(link.close)

    await serve(nursery, network)
    nursery.start_soon(Peer(ADDRESS, lambda: MASTER, doors, on_link=hang_up).run)
    await trio.sleep(60)
    assert 60 / (1.5 * REDIAL_MOST_S) <= len(network.dialled_s) <= 60 / (0.5 * REDIAL_MOST_S) + 10
    nursery.cancel_scope.cancel()


async def test_silence_is_no_refusal(
    nursery: trio.Nursery, doors: Doors, network: NotedTransport, autojump_clock: trio.testing.MockClock
) -> None:
    await serve(nursery, network)
    network.hold(ADDRESS)
    peer = Peer(ADDRESS, lambda: MASTER, doors)
    nursery.start_soon(peer.run)
    await peer.wait_changed()
    assert trio.current_time() == DIAL_TIMEOUT_S
    assert not peer.refused
    assert "no answer" in peer.why_not
    nursery.cancel_scope.cancel()


async def test_being_turned_away_is_no_refusal_and_says_why(
    nursery: trio.Nursery, doors: Doors, network: NotedTransport, autojump_clock: trio.testing.MockClock
) -> None:
    await serve(nursery, network, turn_away="you are of another cluster")
    peer = Peer(ADDRESS, lambda: MASTER, doors)
    nursery.start_soon(peer.run)
    await peer.wait_changed()
    assert (peer.link, peer.refused, peer.why_not) == (None, False, "you are of another cluster")
    nursery.cancel_scope.cancel()


async def test_who_answers_is_judged(
    nursery: trio.Nursery, doors: Doors, network: NotedTransport, autojump_clock: trio.testing.MockClock
) -> None:
    await serve(nursery, network)
    peer = Peer(ADDRESS, lambda: MASTER, doors, judge=lambda hello: f"{hello.node} is not w-2")
    nursery.start_soon(peer.run)
    await peer.wait_changed()
    assert (peer.link, peer.why_not) == (None, "w-1 is not w-2")
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("address", ["", "nowhere", "host:port", "host:99999", ":8001"])
async def test_what_is_no_address_is_said_to_be_none(
    nursery: trio.Nursery, doors: Doors, address: str, autojump_clock: trio.testing.MockClock
) -> None:
    peer = Peer(address, lambda: MASTER, doors)
    nursery.start_soon(peer.run)
    await peer.wait_changed()
    assert "is not an address; write HOST:PORT" in peer.why_not
    nursery.cancel_scope.cancel()


async def test_without_a_link_nothing_is_sent(doors: Doors, autojump_clock: trio.testing.MockClock) -> None:
    peer = Peer(ADDRESS, lambda: MASTER, doors)
    assert await peer.ask(Op.HEARTBEAT, [], 1.0) == (Fault.NOT_SENT, [])


async def test_a_question_ends_with_its_time(
    nursery: trio.Nursery, doors: Doors, network: NotedTransport, autojump_clock: trio.testing.MockClock
) -> None:
    await serve(nursery, network)
    peer = Peer(ADDRESS, lambda: MASTER, doors)
    nursery.start_soon(peer.run)
    await until(peer, linked=True)
    began_s = trio.current_time()
    assert await peer.ask(Op.ENLIST, ["x:1"], 1.5) == (Fault.LATE, [])
    assert trio.current_time() - began_s == 1.5
    nursery.cancel_scope.cancel()
