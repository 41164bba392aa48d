"""What must not grow with time: links to neighbours that have moved, and what is known of lives that are over."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from trikv.node.worker import Worker
from trikv.testing.inprocess import InProcessCluster, Node

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
        await cluster.until(lambda: cluster.master.watched[moving.worker.id].enlisted.address == moving.address)
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
    assert len(cluster.master.replicas) <= 4
