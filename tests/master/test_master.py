"""The master: its start and its restart, its term, and the calls that it takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from tests.helpers import code_of
from trikv.core.calls import Op
from trikv.core.configuration import Cluster
from trikv.core.errors import Fault, Refused
from trikv.master.configstore import ConfigConflict, ConfigStoreError, MemoryConfigStore
from trikv.master.master import Master, StartError
from trikv.net.doors import Doors
from trikv.net.link import dial
from trikv.registry import load_registry
from trikv.testing.inprocess import InProcessCluster
from trikv_sync import Sync

# --- workers that come back ---------------------------------------------------------------------------------------


# --- terms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sync", "async", "chain", "quorum"])
async def test_after_a_restart_of_everything_everything_is_there_under_a_new_term(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode=mode, workers=4)
    stamps = {b"k%d" % number: await cluster.coordinator.put(b"k%d" % number, b"v") for number in range(50)}
    term, name = cluster.master.cluster.term, cluster.master.cluster.cluster
    await trio.sleep(5)
    await cluster.stop_master()
    for node in cluster.workers:
        await cluster.kill(node)
    await cluster.start_master()
    for node in cluster.workers:
        await cluster.restart(node)
    assert (cluster.master.cluster.term, cluster.master.cluster.cluster) == (term + 1, name)
    for key, stamp in stamps.items():
        record = await cluster.coordinator.get(key)
        assert record is not None
        assert record.stamp == stamp
        assert await cluster.coordinator.put(key, b"w") > stamp


async def test_of_two_masters_that_start_at_once_one_starts(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery)
    await cluster.stop_master()
    started: list[int] = []
    conflicts: list[str] = []

    async def open_one() -> None:
        try:
            master = await Master.open(cluster.store, cluster.registry, cluster.doors)
        except ConfigConflict as conflict:
            conflicts.append(str(conflict))
        else:
            started.append(master.cluster.term)

    async with trio.open_nursery() as inner:
        inner.start_soon(open_one)
        inner.start_soon(open_one)
    assert (started, len(conflicts)) == ([2], 1)


async def test_a_master_that_was_superseded_changes_nothing_any_more(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery)
    await Master.open(cluster.store, cluster.registry, cluster.doors)
    document = await cluster.store.read()
    listening = await cluster.doors.transport.listen("m2:1")
    newcomer = await cluster.add_worker(enlist=False)
    with pytest.RaisesGroup(ConfigConflict, flatten_subgroups=True):
        async with trio.open_nursery() as inner:
            await inner.start(cluster.master.run, listening)
            with pytest.raises(Refused, match="another master has taken over"):
                await cluster.master.enlisting.enlist(newcomer.address)
    assert await cluster.store.read() == document


async def test_a_restart_with_other_founding_settings_comes_up_with_the_clusters_own(
    nursery: trio.Nursery, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="chain")
    await cluster.stop_master()
    for mode, replicas in (("chain", 3), (None, None), ("sync", 5)):
        assert "own settings" not in caplog.text
        await cluster.start_master(mode=mode, replicas=replicas)
        assert (cluster.master.cluster.mode, cluster.master.cluster.replicas) == ("chain", 3)
        await cluster.stop_master()
    warnings = [record.getMessage() for record in caplog.records if "own settings" in record.getMessage()]
    assert len(warnings) == 1
    assert "mode chain, not sync" in warnings[0]
    assert "3 replicas, not 5" in warnings[0]
    with pytest.raises(Refused, match="'nope' is none of"):
        await Master.open(MemoryConfigStore(), cluster.registry, cluster.doors, mode="nope")


async def test_it_takes_no_calls_for_records(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery)
    hello = cluster.workers[0].worker.hello()
    link = await dial(await cluster.network.connect(cluster.master_address), hello)
    faults: list[int] = []
    async with trio.open_nursery() as inner:
        inner.start_soon(link.run)
        link.call(Op.FETCH, [1, 1, "i", b"k"], trio.current_time() + 1, lambda fault, payload: faults.append(fault))
    assert faults == [Fault.LOST]
    assert await code_of(cluster) == "committed"


class FewerCopies(Sync):
    """The same mode, in a version that stores one copy less."""

    def copies(self, n: int) -> int:
        return n - 1


async def test_a_mode_that_stores_other_copies_than_it_did_is_refused(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="sync")
    others = {name: strategy for name, strategy in cluster.registry.strategies.items() if name != "sync"}
    changed = replace(cluster.registry, strategies={**others, "sync": FewerCopies()})
    with pytest.raises(StartError, match="stores 2 copies of 3 now, and this cluster's records were written with 3"):
        await Master.open(cluster.store, changed, cluster.doors)


@pytest.mark.parametrize("another", [False, True])
async def test_a_process_that_belongs_to_a_cluster_takes_no_other_in_its_place(another: bool) -> None:
    store = MemoryConfigStore()
    if another:
        await store.compare_and_set(Cluster("c-2", "sync", 3, 64).to_document(), 0)
    before = await store.read()
    with pytest.raises(ConfigStoreError, match="document of cluster c-1 is gone"):
        await Master.open(store, load_registry(), Doors(), known="c-1")
    assert await store.read() == before
