"""One worker's disk hangs while its process answers heartbeats: nobody waits for it but who needs that very worker."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.helpers import GatedStorage, shut
from trikv.coordinator.partition import PartitionState
from trikv.core.configuration import Member
from trikv.testing.inprocess import InProcessCluster, Node

KEYS = [b"key%d" % number for number in range(300)]


async def start(nursery: trio.Nursery, mode: str, workers: int, spare: int = 0) -> InProcessCluster:
    """A cluster whose disks can be made to hang, with some keys, and all replicas alike. The last ones are spare."""
    cluster = await InProcessCluster.start(nursery, mode=mode, workers=0)
    for _ in range(workers):
        await cluster.add_worker(storage=GatedStorage())
    await cluster.until(lambda: cluster.master.cluster.formed and len(cluster.master.cluster.workers) == workers)
    await cluster.until_all_up()
    for key in KEYS:
        await cluster.coordinator.put(key, b"v")
    for _ in range(spare):
        await cluster.add_worker(storage=GatedStorage())
    await cluster.until(lambda: len(cluster.master.cluster.workers) == workers + spare)
    await cluster.until_all_up()
    return cluster


def members(state: PartitionState) -> set[Member]:
    return {m for c in state.partition.history for m in c.members}


def involves(state: PartitionState, node: Node) -> bool:
    return any(m.worker == node.worker.id for m in members(state))


@pytest.mark.parametrize("mode", ["sync", "quorum", "async"])
async def test_partitions_that_have_nothing_to_do_with_it_are_settled(
    nursery: trio.Nursery, autojump_clock: MockClock, mode: str
) -> None:
    cluster = await start(nursery, mode, 7)
    hung, dead = cluster.workers[:2]
    gate = shut(hung)
    await cluster.kill(dead)

    def left() -> list[PartitionState]:
        states = [state for state in cluster.coordinator.partitions if not involves(state, hung)]
        return [state for state in states if not state.partition.settled or involves(state, dead)]

    await cluster.until(lambda: cluster.master.membership.watched[dead.worker.id].evictable)
    await cluster.until(lambda: not left())
    # Once it answers again, the rest is settled as well, and it has its share.
    gate.set()
    await cluster.until_settled()
    await cluster.until(lambda: not any(involves(state, dead) for state in cluster.coordinator.partitions))
    for key in KEYS:
        record = await cluster.coordinator.get(key)
        assert record is not None
        assert record.value == b"v"


@pytest.mark.parametrize("mode", ["sync", "chain"])
async def test_a_spare_whose_disk_hangs_stops_no_writes(
    nursery: trio.Nursery, autojump_clock: MockClock, mode: str
) -> None:
    cluster = await start(nursery, mode, 3, spare=1)
    dead, *live, spare = cluster.workers
    gate = shut(spare)
    await cluster.kill(dead)
    await cluster.until(lambda: not any(involves(state, dead) for state in cluster.coordinator.partitions))
    assert {m.worker for state in cluster.coordinator.partitions for m in members(state)} == {n.worker.id for n in live}
    await cluster.coordinator.put(KEYS[0], b"w")
    # Another spare is taken instead, and the first one as well once its disk answers.
    await cluster.add_worker(storage=GatedStorage())
    await cluster.until(lambda: all(len(state.targets) == 3 for state in cluster.coordinator.partitions))
    assert not any(involves(state, spare) for state in cluster.coordinator.partitions)
    gate.set()
    await cluster.until(lambda: any(involves(state, spare) for state in cluster.coordinator.partitions))
    await cluster.until_settled()
    assert (await cluster.coordinator.get(KEYS[0])).value == b"w"  # type: ignore[union-attr]
