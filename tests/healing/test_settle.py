"""Settling: what is moved and how, at which rate, and when the former members may discard it."""

from __future__ import annotations

from functools import partial

import trio
from trio.testing import MockClock

from tests.helpers import KEYS, MANY, fill, later, lay_down, partition_of, slow_down, start_on_slow_disks, under
from trikv.testing.inprocess import InProcessCluster, Node


async def test_what_is_moved_in_a_second_keeps_to_the_rate(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery, workers=4, settle_rate_bytes=20_000, partitions=MANY)
    await fill(cluster, b"v" * 20_000)
    await cluster.kill(cluster.workers[0])
    await cluster.until(lambda: cluster.master.operations.progress()["settling"])
    await trio.sleep(30)
    assert 15_000 < cluster.master.settling.progress.bytes_moved / 30 < 25_000
    assert cluster.master.operations.progress()["settling"]


# --- under AP ---------------------------------------------------------------------------------------------------------


def is_settled_without(cluster: InProcessCluster, partition: int, node: Node) -> bool:
    state = cluster.coordinator.partitions[partition]
    return state.partition.settled and all(target.member.worker != node.worker.id for target in state.targets)


async def test_what_async_moves_is_on_all_new_replicas_before_the_former_ones_discard_it(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """A write is committed on one of them, and the others' disks are slow."""
    cluster = await start_on_slow_disks(nursery)
    await fill(cluster)
    drained, *others = cluster.workers
    mine = [key for key in KEYS if partition_of(key) in under(cluster, drained)]
    for key in mine:  # one replica has yet to get it, so it is written anew, not copied
        await lay_down(cluster, nursery, drained, key, later(cluster, key), b"v2")
    for node in others[1:]:
        slow_down(node, 0.3)
    await cluster.master.operations.drain(drained.worker.id)
    for key in mine:
        partition = partition_of(key)
        await cluster.until(partial(is_settled_without, cluster, partition, drained))
        held = [node.storage.get(partition, key) for node in cluster.replicas_of(key)]
        assert [record and record.value for record in held] == [b"v2"] * 3


async def test_what_async_moves_is_on_all_new_replicas_also_where_somebody_reads_it_meanwhile(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """A read has brought it to one of them, and asks no others from then on."""
    cluster = await start_on_slow_disks(nursery)
    await fill(cluster)
    drained, *others = cluster.workers
    mine = [key for key in KEYS if partition_of(key) in under(cluster, drained)]
    for key in mine:
        await lay_down(cluster, nursery, drained, key, later(cluster, key), b"v2")
    for node in others[1:]:
        slow_down(node, 0.3)

    async def read(key: bytes) -> None:
        state = cluster.coordinator.partitions[partition_of(key)]
        await cluster.until(lambda: cluster.coordinator.partitions[state.index] is not state)
        await cluster.coordinator.get(key, timeout_s=5)

    for key in mine:
        nursery.start_soon(read, key)
    await cluster.master.operations.drain(drained.worker.id)
    for key in mine:
        partition = partition_of(key)
        await cluster.until(partial(is_settled_without, cluster, partition, drained))
        held = [node.storage.get(partition, key) for node in cluster.replicas_of(key)]
        assert [record and record.value for record in held] == [b"v2"] * 3
