"""What must not grow: with time, links to neighbours that have moved and what is known of lives that are over; with
what a peer asks for, the answers that wait for it and the calls that are kept."""

from __future__ import annotations

from collections import Counter

import trio
from trio.testing import MockClock

from tests.helpers import NOW, PATIENCE_S, P, Reply, WorkerHarness
from trikv.core.calls import Op
from trikv.core.errors import Fault
from trikv.storage.memory import MemoryStorage
from trikv.testing.inprocess import InProcessCluster, Node
from trikv.worker.worker import ANSWERS_BYTES_MAX, BUDGET_MOST_S, LISTS_MAX, Worker

KEYS = [b"key%d" % number for number in range(30)]


async def move(cluster: InProcessCluster, node: Node) -> None:
    """It is stopped, and started with its disk at another port."""
    await cluster.kill(node)
    listening = await cluster.doors.transport.listen("127.0.0.1:0")
    node.address = listening.address
    node.worker = await Worker.open(node.worker.id, node.storage, "memory", cluster.doors)
    node.scope, node.stopped = trio.CancelScope(), trio.Event()
    await cluster._run(node, listening, enlist=True)


async def test_a_neighbour_that_moved_is_not_dialled_where_it_was(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="chain")
    moving, *others = cluster.workers
    for _ in range(8):
        await move(cluster, moving)
        await cluster.until(
            lambda: cluster.master.membership.watched[moving.worker.id].enlisted.address == moving.address
        )
        await cluster.until_all_up()
        for key in KEYS:
            await cluster.coordinator.put(key, b"v")
        await trio.sleep(5)
    neighbours = {node.worker.id: len(node.worker.neighbours) for node in others}
    assert max(neighbours.values()) <= 2, neighbours


async def test_a_life_that_is_over_is_forgotten(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery, mode="quorum")
    await cluster.coordinator.put(b"k", b"v")
    node = cluster.workers[0]
    for _ in range(2):
        await cluster.restart(node, wiped=True)
        await cluster.until(
            lambda: cluster.master.cluster.workers[node.worker.id].incarnation == node.worker.incarnation
        )
        await trio.sleep(320)
        await cluster.until_settled()
    assert len(cluster.master.membership._targets) <= 4


async def until_answered(replies: list[list[Reply]]) -> Counter[int]:
    with trio.fail_after(PATIENCE_S):
        while not all(replies):  # noqa: ASYNC110 the clock is virtual
            await trio.sleep(0.01)
    return Counter(fault for [(fault, _)] in replies)


async def test_one_frame_of_fetches_is_answered_as_far_as_its_answers_find_room(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    harness = await WorkerHarness(nursery, MemoryStorage()).start()
    value = b"v" * 60 * 1024
    assert await harness.put(1, value) == Fault.OK
    faults = await until_answered([harness.post(Op.FETCH, harness.fetch()) for _ in range(3000)])
    assert faults[Fault.OK] * len(value) <= ANSWERS_BYTES_MAX + len(value), faults
    assert faults[Fault.BUSY] == 3000 - faults[Fault.OK]
    assert await harness.seq_of() == 1
    await harness.stop()


async def test_listings_wait_for_their_turn_in_bounded_number(gated: WorkerHarness, autojump_clock: MockClock) -> None:
    for many in (LISTS_MAX + 5, LISTS_MAX):
        faults = await until_answered([gated.post(Op.LIST, gated.list((P, NOW))) for _ in range(many)])
        assert (faults[Fault.OK], faults[Fault.BUSY]) == (LISTS_MAX, many - LISTS_MAX)


async def test_a_neighbour_is_dialled_no_longer_than_any_client_waits(
    gated: WorkerHarness, autojump_clock: MockClock
) -> None:
    for number in range(20):
        arguments = gated.store(number + 1)
        arguments.append([["w-9", "life", f"127.0.0.1:{number + 1}"]])
        gated.post(Op.STORE, arguments, timeout_s=1e12)
    await trio.sleep(1)
    assert len(gated.worker.neighbours) == 20
    await trio.sleep(BUDGET_MOST_S + 5)
    assert not gated.worker.neighbours
