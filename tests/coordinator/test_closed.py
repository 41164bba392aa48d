"""An unused configuration that is just being replaced: what is heard of it and asked of it meanwhile still counts."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.helpers import GatedStorage
from trikv.coordinator.partition import Stage
from trikv.core.errors import Refused
from trikv.master.configstore import MemoryConfigStore, NotChanged
from trikv.testing.inprocess import InProcessCluster

PARTITION = 0


class GatedStore(MemoryConfigStore):
    """A change waits at the gate; then it is made, or refused where `refuses` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = trio.Event()
        self.gate.set()
        self.refuses = False

    async def compare_and_set(self, document: dict[str, Any], revision: int) -> int:
        if not self.gate.is_set():
            await self.gate.wait()
            if self.refuses:
                raise NotChanged("the disk is full")
        return await super().compare_and_set(document, revision)


async def with_a_closed_one(nursery: trio.Nursery) -> tuple[InProcessCluster, GatedStore]:
    """A cluster of which one partition has an unused configuration that is being replaced: the document is not yet."""
    cluster = await InProcessCluster.start(nursery, mode="sync", workers=0, partitions=2)
    for _ in range(3):
        await cluster.add_worker(storage=GatedStorage())
    await cluster.until(lambda: cluster.master.cluster.formed and len(cluster.master.cluster.workers) == 3)
    await cluster.until_all_up()
    await cluster.coordinator.put(b"k", b"v")
    await cluster.stop_master()
    document, _ = await cluster.store.read()
    assert document is not None
    store = cluster.store = GatedStore()
    await store.compare_and_set(document, 0)
    await cluster.start_master()
    await cluster.until_all_up()
    for _ in range(2):
        await cluster.add_worker(storage=GatedStorage())
    await trio.sleep(20)
    await cluster.until_settled()

    def members() -> list[str]:
        return [member.worker for member in cluster.coordinator.partitions[PARTITION].configuration.members]

    first = members()
    dead, hung = cluster.node_of(first[0]), cluster.node_of(first[1])
    assert isinstance(hung.storage, GatedStorage)
    hung.storage.gate = trio.Event()  # so the next configuration is never settled
    await cluster.kill(dead)
    await cluster.until(lambda: members() != first)
    await cluster.restart(dead)
    await cluster.until_all_up()
    await trio.sleep(1)
    assert cluster.coordinator.partitions[PARTITION].stage is Stage.UNUSED
    store.gate = trio.Event()
    for worker in members():
        await cluster.kill(cluster.node_of(worker))
    await cluster.until(lambda: cluster.coordinator.partitions[PARTITION].stage is Stage.CLOSED)
    await trio.sleep(1)
    return cluster, store


async def test_what_a_worker_has_promised_meanwhile_blocks_it_if_it_is_not_replaced(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster, store = await with_a_closed_one(nursery)
    state = cluster.coordinator.partitions[PARTITION]
    cluster.master.fencing.note_stale(state, state.epoch + 7)
    store.refuses = True
    store.gate.set()
    await cluster.until(lambda: state.stage is not Stage.CLOSED)
    assert cluster.coordinator.partitions[PARTITION] is state
    assert state.is_blocked
    await trio.sleep(5)
    with pytest.raises(Refused, match="it is older than the cluster"):
        await cluster.coordinator.scan()


async def test_an_operator_may_switch_the_mode_meanwhile(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster, store = await with_a_closed_one(nursery)
    told: list[str] = []

    async def switch() -> None:
        try:
            await cluster.master.operations.switch_mode("chain")
        except Refused as refused:
            told.append(refused.detail)

    nursery.start_soon(switch)
    await trio.sleep(1)
    assert told == []
    store.gate.set()
    await cluster.until(lambda: cluster.master.cluster.mode == "chain")
