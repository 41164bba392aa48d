"""A master that is stopped in the middle of a change: it ends in order, and tells what it cannot know."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trikv.master.configstore import ConfigStoreError, MemoryConfigStore
from trikv.testing.inprocess import InProcessCluster


class SlowStore(MemoryConfigStore):
    """What is written is durable at once, and the answer waits at the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = trio.Event()
        self.gate.set()
        self.waiting = trio.Event()
        self.error: ConfigStoreError | None = None

    async def compare_and_set(self, document: dict[str, Any], revision: int) -> int:
        if self.error is not None:
            raise self.error
        revision = await super().compare_and_set(document, revision)
        if not self.gate.is_set():
            self.waiting.set()
            await self.gate.wait()
        return revision


async def start_on(store: SlowStore, nursery: trio.Nursery) -> InProcessCluster:
    """A cluster whose document lies in that store."""
    cluster = await InProcessCluster.start(nursery)
    await cluster.coordinator.put(b"k", b"v")
    await cluster.stop_master()
    document, _ = await cluster.store.read()
    assert document is not None
    cluster.store = store
    await store.compare_and_set(document, 0)
    await cluster.start_master()
    await cluster.until_all_up()
    await trio.sleep(3)
    return cluster


async def test_a_stop_while_a_worker_is_being_enlisted_is_a_clean_one(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    store = SlowStore()
    cluster = await start_on(store, nursery)
    store.gate = trio.Event()
    await cluster.add_worker()
    await store.waiting.wait()
    async with trio.open_nursery() as stopping:
        stopping.start_soon(cluster.stop_master)
        await trio.sleep(0.5)
        store.gate.set()
    await cluster.start_master()
    assert len(cluster.master.cluster.workers) == 4


async def test_a_stop_while_a_change_is_in_doubt_tells_of_the_doubt(autojump_clock: MockClock) -> None:
    store = SlowStore()
    with pytest.RaisesGroup(pytest.RaisesExc(ConfigStoreError, match="the disk failed"), flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            cluster = await start_on(store, nursery)
            store.error = ConfigStoreError("the disk failed")
            await cluster.add_worker()
            await trio.sleep(1.3)
            await cluster.stop_master()
            nursery.cancel_scope.cancel()
