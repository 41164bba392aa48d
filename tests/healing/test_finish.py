"""Writes in doubt are finished once enough of their replicas are up, whether or not anybody reads their keys."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.helpers import partition_of
from trikv.testing.inprocess import InProcessCluster

KEYS = [b"k%d" % number for number in range(8)]


def held(cluster: InProcessCluster, key: bytes) -> list[bytes | None]:
    """What each replica has of the key: its value, b"" for a tombstone, None for nothing."""
    records = [node.storage.get(partition_of(key), key) for node in cluster.replicas_of(key)]
    return [None if record is None else record.value or b"" for record in records]


@pytest.mark.parametrize("mode", ["sync", "chain", "quorum", "async"])
async def test_a_write_in_doubt_is_finished_once_its_replicas_are_back(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode=mode)
    await cluster.coordinator.put(b"any", b"thing")
    for node in cluster.workers:
        cluster.network.hold(node.address)
    with trio.move_on_after(1):
        await cluster.coordinator.put(KEYS[0], b"v")
    assert cluster.coordinator.pending == 1
    for node in cluster.workers:
        cluster.network.cut(node.address)  # nothing of it arrives
        cluster.network.mend(node.address)
        cluster.network.release(node.address)
    assert held(cluster, KEYS[0]) == [None] * 3
    await cluster.until(lambda: cluster.coordinator.pending == 0)
    await cluster.until(
        lambda: held(cluster, KEYS[0]).count(b"v") >= cluster.coordinator.partitions[0].configuration.copies
    )
    record = await cluster.coordinator.get(KEYS[0])
    assert record is not None
    assert record.value == b"v"
