"""Disks that are nearly full: values are refused before anything is lost, reads and deletes go on."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.helpers import HeadLast, WorkerHarness, partition_of
from trikv.api import Room
from trikv.core.calls import Full, Op, vitals_from_wire
from trikv.core.errors import Fault, Refused
from trikv.storage.memory import MemoryStorage
from trikv.testing.inprocess import InProcessCluster, Node

KEY = b"k"
RESERVE = 1000


class SmallDisk(MemoryStorage):
    """As much is free as the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.free_bytes = 1 << 30

    def room(self) -> Room:
        return Room(self.free_bytes, RESERVE)


async def start(nursery: trio.Nursery, mode: str) -> InProcessCluster:
    cluster = await InProcessCluster.start(nursery, mode=mode, workers=0, strategies=[HeadLast()])
    for _ in range(3):
        await cluster.add_worker(storage=SmallDisk())
    await cluster.until(lambda: cluster.master.cluster.formed and len(cluster.master.cluster.workers) == 3)
    await cluster.until_all_up()
    await cluster.coordinator.put(KEY, b"before")
    return cluster


async def fill(cluster: InProcessCluster, *nodes: Node, free_bytes: int = RESERVE - 1) -> None:
    """Let the disks of these have so much free, and the others plenty, and wait until the master knows."""
    for node in cluster.workers:
        assert isinstance(node.storage, SmallDisk)
        node.storage.free_bytes = free_bytes if node in nodes else 1 << 30

    def known() -> bool:
        watched = cluster.master.membership.watched
        return all(
            (vitals := watched[node.worker.id].vitals) is not None and (vitals.full is Full.DISK) == (node in nodes)
            for node in cluster.workers
        )

    await cluster.until(known)


async def told(operation: Any) -> str:
    try:
        await operation
    except Refused as refused:
        return refused.kind.code
    return "committed"


@pytest.mark.parametrize("mode", ["sync", "chain", "quorum", "async"])
async def test_with_all_disks_full_values_are_refused_and_the_rest_goes_on(
    nursery: trio.Nursery, autojump_clock: MockClock, mode: str
) -> None:
    cluster = await start(nursery, mode)
    coordinator = cluster.coordinator
    await fill(cluster, *cluster.workers)
    assert await told(coordinator.put(KEY, b"after")) == "full"
    assert await told(coordinator.put(b"another", b"after")) == "full"
    assert (await coordinator.get(KEY)).value == b"before"  # type: ignore[union-attr]
    assert await told(coordinator.delete(KEY)) == "committed"
    assert await coordinator.get(KEY) is None
    await fill(cluster)
    assert await told(coordinator.put(KEY, b"after")) == "committed"
    kinds = [event["kind"] for event in cluster.master.events.latest(100)]
    assert kinds.count("worker_disk_full") == kinds.count("worker_disk_has_room") == 3


@pytest.mark.parametrize(
    ("mode", "code"),
    [("sync", "full"), ("chain", "full"), ("head-last", "full"), ("quorum", "committed"), ("async", "committed")],
)
async def test_one_full_disk_refuses_what_cannot_be_committed_without_it(
    nursery: trio.Nursery, autojump_clock: MockClock, mode: str, code: str
) -> None:
    cluster = await start(nursery, mode)
    full = cluster.replicas_of(KEY)[0]
    await fill(cluster, full)
    assert await told(cluster.coordinator.put(KEY, b"after")) == code
    await trio.sleep(5)
    held = full.storage.get(partition_of(KEY), KEY)
    assert held is not None
    assert held.value == b"before"
    await fill(cluster)
    await cluster.until(lambda: _value(full) == (b"after" if code == "committed" else b"before"))


def _value(node: Node) -> bytes | None:
    record = node.storage.get(partition_of(KEY), KEY)
    return None if record is None else record.value


async def test_full_ends_where_a_quarter_more_than_the_reserve_is_free(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    disk = SmallDisk()
    harness = await WorkerHarness(nursery, disk).start()

    async def full() -> Full:
        _, payload = await harness.ask(Op.HEARTBEAT, [])
        return vitals_from_wire(payload).full

    seen = []
    for free_bytes in (RESERVE, RESERVE - 1, RESERVE + 1, RESERVE * 5 // 4, RESERVE):
        disk.free_bytes = free_bytes
        seen.append(await full())
    assert seen == [Full.NO, Full.DISK, Full.DISK, Full.NO, Full.NO]
    nursery.cancel_scope.cancel()


async def test_what_was_on_its_way_ends_at_half_of_the_reserve(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    disk = SmallDisk()
    harness = await WorkerHarness(nursery, disk).start()
    assert await harness.put(1) == Fault.OK
    disk.free_bytes = RESERVE // 2
    assert await harness.put(2) == Fault.FULL
    assert await harness.put(3, None) == Fault.OK
    assert await harness.seq_of() == 3
    nursery.cancel_scope.cancel()
