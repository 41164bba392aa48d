"""What a returning worker alone holds under async is offered to the others, without holding up what else changes."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from tests.helpers import GatedStorage, partition_of
from trikv.api import Record, Version, Write
from trikv.coordinator.repair import store_record
from trikv.testing.inprocess import InProcessCluster


async def test_a_disk_that_hangs_costs_a_page_of_records_one_deadline_and_not_one_each(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="async", workers=0)
    for _ in range(5):
        await cluster.add_worker(storage=GatedStorage())
    await cluster.until(lambda: cluster.master.cluster.formed and len(cluster.master.cluster.workers) == 5)
    await cluster.until_all_up()
    await cluster.coordinator.put(b"any", b"v")
    await trio.sleep(3)
    back, hung = cluster.workers[:2]
    member = cluster.master.cluster.workers[back.worker.id].member
    target = cluster.master.membership.target(member)
    states = {}
    for number in range(3_000):
        key = b"key%d" % number
        state = cluster.coordinator.partitions[partition_of(key)]
        workers = {each.worker for each in state.configuration.members}
        if back.worker.id in workers or hung.worker.id not in workers:
            continue
        version = Version(state.epoch, (1 << 40) + number)
        await store_record(state, Write(key, Record(version, version, b"x")), [target], trio.current_time() + 5)
        states[state.index] = state
    assert isinstance(hung.storage, GatedStorage)
    await cluster.coordinator.scan(limit=10)  # all have promised the present epochs
    hung.storage.gate = trio.Event()
    began_s = trio.current_time()
    unready = await cluster.master.reconciler._salvage(target, list(states.values()))
    assert unready == set(states)
    assert trio.current_time() - began_s < 30
