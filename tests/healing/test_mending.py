"""What the master mends by itself, on a cluster: async replicas that differ, and writes in doubt."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.helpers import partition_of
from trikv.core.calls import Op
from trikv.core.record import make_epoch, term_of
from trikv.net.link import dial
from trikv.testing.inprocess import InProcessCluster

KEYS = [b"k%d" % number for number in range(8)]


def held(cluster: InProcessCluster, key: bytes) -> list[bytes | None]:
    """What each replica has of the key: its value, b"" for a tombstone, None for nothing."""
    records = [node.storage.get(partition_of(key), key) for node in cluster.replicas_of(key)]
    return [None if record is None else record.value or b"" for record in records]


@pytest.mark.parametrize("number", [0, 1, 2])
async def test_a_copy_that_a_replica_missed_reaches_it_when_it_is_back(
    number: int, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="async")
    await cluster.coordinator.put(KEYS[0], b"1")
    await trio.sleep(5)
    missing = cluster.replicas_of(KEYS[0])[number]
    await cluster.kill(missing)
    await cluster.coordinator.put(KEYS[0], b"2")
    await trio.sleep(20)
    assert held(cluster, KEYS[0]).count(b"2") == 2
    await cluster.restart(missing)
    await cluster.until_all_up()
    await trio.sleep(3)  # far less than the period: it was noted that a copy is missing
    assert held(cluster, KEYS[0]) == [b"2"] * 3


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


async def test_being_fenced_during_a_sweep_is_survived(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery, mode="async")
    await cluster.coordinator.put(KEYS[0], b"v")
    await trio.sleep(5)
    node = cluster.workers[0]
    state = cluster.coordinator.partitions[-1]
    link = await dial(await cluster.network.connect(node.address), cluster.master.hello())
    nursery.start_soon(link.run)
    later = make_epoch(40, state.partition.generation)
    arguments = [state.index, later, node.worker.incarnation, b"k"]
    link.call(Op.FETCH, arguments, trio.current_time() + 1, lambda fault, payload: None)
    state.note_missed()  # so that it is swept at the next tick
    await cluster.until(lambda: cluster.master.cluster.term == 41)
    assert {term_of(state.epoch) for state in cluster.coordinator.partitions} == {41}
    assert (await cluster.coordinator.get(KEYS[0])) is not None
