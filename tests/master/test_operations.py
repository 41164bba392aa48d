"""What operators ask for, and what they are told: draining, removing, stopping a worker, and comparing replicas."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.helpers import (
    KEYS,
    MANY,
    VALUES,
    GatedStorage,
    fill,
    fill_apart,
    later,
    lay_down,
    members_of,
    partition_of,
    read_all,
    shut,
    start_with_a_drained_one,
    under,
    values,
)
from trikv.api import Batch
from trikv.coordinator.listing import list_members
from trikv.core.errors import Refused
from trikv.master.configstore import MemoryConfigStore
from trikv.storage.memory import MemoryStorage
from trikv.testing.inprocess import InProcessCluster, Node

# --- fewer workers ----------------------------------------------------------------------------------------------------


async def test_a_worker_is_drained_and_then_let_go(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery, workers=4)
    await fill_apart(cluster)
    node = cluster.workers[1]
    plan = await cluster.master.operations.drain(node.worker.id)
    assert plan["copies"] <= 1.05 * 768
    with pytest.raises(Refused, match="under way"):
        await cluster.master.operations.switch_mode("chain")
    await cluster.until(lambda: node.worker.id not in members_of(cluster))
    await cluster.until_settled()
    assert cluster.master.operations.safe_to_stop(node.worker.id)[0]
    await cluster.kill(node)
    await cluster.until(lambda: node.worker.id not in cluster.master.cluster.workers)
    assert await read_all(cluster) == VALUES


async def test_the_last_replicas_are_not_drained(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery)
    changes = cluster.master.operations
    with pytest.raises(Refused, match="2 workers for 3 replicas"):
        await changes.drain("w-1")
    with pytest.raises(Refused, match="there is no worker w-9; there are w-1, w-2, w-3"):
        await changes.remove("w-9")
    with pytest.raises(Refused, match="drain it first"):
        await changes.remove("w-1")
    assert not cluster.master.cluster.workers["w-1"].draining


async def test_two_drains_at_once(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery, workers=4)
    await fill(cluster)
    refused: list[str] = []

    async def drain(node: Node) -> None:
        try:
            await cluster.master.operations.drain(node.worker.id)
        except Refused as error:
            refused.append(error.kind.code)

    async with trio.open_nursery() as both:
        both.start_soon(drain, cluster.workers[0])
        both.start_soon(drain, cluster.workers[1])
    await trio.sleep(60)
    assert len(refused) == 1, (refused, cluster.master.operations.operation())


async def test_what_a_drain_took_comes_back_when_it_is_undrained(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, workers=4, settle_rate_bytes=100_000, partitions=MANY)
    await fill(cluster, b"v" * 10_000)
    node = cluster.workers[0]
    await cluster.master.operations.drain(node.worker.id)
    await cluster.until(lambda: len(under(cluster, node)) < 200)
    await cluster.master.operations.undrain(node.worker.id)
    await trio.sleep(600)
    assert all(p.settled for p in cluster.master.cluster.partitions)
    shares = {node.worker.id: len(under(cluster, node)) for node in cluster.workers}
    assert min(shares.values()) >= 0.95 * 768 - 1, shares


async def test_a_drained_worker_that_pauses_is_let_go_and_not_filled_again(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster, drained = await start_with_a_drained_one(nursery, "quorum")
    cluster.network.hold(drained.address)
    await cluster.until(lambda: drained.worker.id not in cluster.master.cluster.workers)
    cluster.network.release(drained.address)
    await trio.sleep(60)
    assert not under(cluster, drained)


async def test_a_drained_replica_that_is_slow_is_waited_for_under_async(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """It neither died nor was given up, so what it alone acknowledged is not lost."""
    cluster = await InProcessCluster.start(nursery, mode="async", workers=4)
    await cluster.coordinator.put(b"any", b"thing")
    await trio.sleep(1)
    slow = cluster.replicas_of(b"key")[0]
    await lay_down(cluster, nursery, slow, b"key", later(cluster, b"key"), b"acknowledged")
    cluster.network.hold(slow.address)
    await cluster.master.operations.drain(slow.worker.id)
    await trio.sleep(3)
    cluster.network.release(slow.address)
    await cluster.until(lambda: not under(cluster, slow))
    await cluster.until_settled()
    record = await cluster.coordinator.get(b"key")
    assert record is not None
    assert record.value == b"acknowledged"


async def test_remove_while_the_loop_lets_go_of_the_same_drained_worker(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = await InProcessCluster.start(nursery, workers=4)
    await fill(cluster)
    node = cluster.workers[0]
    await cluster.master.operations.drain(node.worker.id)
    await cluster.until(
        lambda: not cluster.master.cluster.partitions_of(cluster.master.cluster.workers[node.worker.id].member)
    )
    await cluster.until_settled()
    await cluster.kill(node)
    await cluster.until_down(node)
    write = MemoryConfigStore.compare_and_set

    async def slowly(self: MemoryConfigStore, document: dict[str, Any], revision: int) -> int:
        await trio.sleep(1.5)
        return await write(self, document, revision)

    monkeypatch.setattr(MemoryConfigStore, "compare_and_set", slowly)
    watched = cluster.master.membership.watched[node.worker.id]
    await cluster.until(lambda: watched.suspicion.silent_s(trio.current_time()) > 4)
    await cluster.master.operations.remove(node.worker.id)  # under way when it becomes evictable
    await trio.sleep(5)
    assert await values(cluster) == {b"v"}


# --- safe to stop -----------------------------------------------------------------------------------------------------


async def test_safe_to_stop_after_a_restart_of_the_master_under_async(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """The copies that two replicas missed were the former master's to deliver; nobody has compared since."""
    cluster = await InProcessCluster.start(nursery, mode="async")
    await fill(cluster)
    one, two, three = cluster.workers
    await cluster.kill(two)
    await cluster.kill(three)
    await cluster.until_down(two, three)
    for key in KEYS:
        await cluster.coordinator.put(key, b"acknowledged")
    await cluster.stop_master()
    await cluster.restart(two)
    await cluster.restart(three)
    await cluster.start_master()
    await cluster.until_all_up()
    safe, why = cluster.master.operations.safe_to_stop(one.worker.id)
    if safe:
        await cluster.kill(one)  # for good
        await trio.sleep(30)
        seen = await values(cluster)
        assert seen == {b"acknowledged"}, (why, seen)


async def test_safe_to_stop_of_a_partition_that_is_refused_until_recover(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery)
    await fill(cluster)
    state = cluster.coordinator.partitions[5]
    cluster.master.fencing.note_stale(state, state.epoch + 7)
    safe, why = cluster.master.operations.safe_to_stop(state.targets[0].member.worker)
    assert not safe, why


async def test_safe_to_stop_under_quorum_while_the_third_copy_is_only_a_hint(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, workers=0)
    for _ in range(3):
        await cluster.add_worker(storage=GatedStorage())
    await cluster.until(lambda: cluster.master.cluster.formed and len(cluster.master.cluster.workers) == 3)
    await cluster.until_all_up()
    await cluster.coordinator.put(b"key", b"v")
    await trio.sleep(1)
    one, _, three = cluster.replicas_of(b"key")
    gate = shut(three)
    await cluster.coordinator.put(b"key", b"acknowledged")
    await trio.sleep(12)
    assert cluster.master.hints.has(cluster.coordinator.partitions[partition_of(b"key")])
    safe, why = cluster.master.operations.safe_to_stop(one.worker.id)
    gate.set()
    assert not safe, why


@pytest.mark.parametrize("mode", ["async", "quorum"])
async def test_safe_to_stop_while_a_copy_is_under_way(
    nursery: trio.Nursery, autojump_clock: MockClock, mode: str
) -> None:
    cluster = await InProcessCluster.start(nursery, mode=mode, workers=0)
    for _ in range(3):
        await cluster.add_worker(storage=GatedStorage())
    await cluster.until(lambda: cluster.master.cluster.formed and len(cluster.master.cluster.workers) == 3)
    await cluster.until_all_up()
    await cluster.coordinator.put(b"key", b"v")
    one, two, three = cluster.replicas_of(b"key")
    changes = cluster.master.operations
    await cluster.until(lambda: changes.safe_to_stop(one.worker.id)[0])
    gates = [shut(node) for node in ((two, three) if mode == "async" else (three,))]
    await cluster.coordinator.put(b"key", b"acknowledged")
    for _ in range(3):
        safe, why = await changes.safe_to_stop_soon(one.worker.id)
        assert not safe
        assert why == f"copies of partition {partition_of(b'key')} have not reached all of its replicas yet"
        assert (safe, why) == changes.safe_to_stop(one.worker.id)
        await trio.sleep(2)
    for gate in gates:
        gate.set()
    await cluster.until(lambda: changes.safe_to_stop(one.worker.id)[0])


class SlowStorage(MemoryStorage):
    """Each flush takes a while, so that under load one follows the other."""

    async def commit(self, batch: Batch) -> None:
        await super().commit(batch)
        await trio.sleep(0.005)


async def test_safe_to_stop_while_much_is_written(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """Some copy is always under way, and none of them for long."""
    cluster = await InProcessCluster.start(nursery, workers=0)
    for storage in (MemoryStorage(), MemoryStorage(), SlowStorage()):
        await cluster.add_worker(storage=storage)
    await cluster.until(lambda: cluster.master.cluster.formed and len(cluster.master.cluster.workers) == 3)
    await cluster.until_all_up()
    await cluster.coordinator.put(b"key", b"v")
    changes, worker = cluster.master.operations, cluster.workers[0].worker.id
    await cluster.until(lambda: changes.safe_to_stop(worker)[0])

    async def write() -> None:
        while True:
            await cluster.coordinator.put(b"key", b"w")
            await trio.sleep(0.001)

    async with trio.open_nursery() as writers:
        for _ in range(3):
            writers.start_soon(write)
        await trio.sleep(0.1)
        for _ in range(10):
            assert not changes.safe_to_stop(worker)[0]
            assert (await changes.safe_to_stop_soon(worker))[0]
        writers.cancel_scope.cancel()


async def test_safe_to_stop_says_yes_while_another_replica_is_down_and_enough_are_left(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, workers=5, replicas=5)
    await fill(cluster)
    await cluster.kill(cluster.workers[4])
    await trio.sleep(60)
    safe, why = cluster.master.operations.safe_to_stop(cluster.workers[0].worker.id)
    assert safe, why


# --- repair -----------------------------------------------------------------------------------------------------------


async def test_a_dry_run_that_could_not_list_does_not_say_that_all_is_alike(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="sync")
    await fill(cluster)
    await trio.sleep(5)
    nobody = cluster.replicas_of(KEYS[0])[-1]
    await lay_down(cluster, nursery, nobody, KEYS[0], later(cluster, KEYS[0]), b"x")

    async def hold_first(*args: Any, **more: Any) -> Any:
        cluster.network.hold(nobody.address)  # it falls silent between its digest and its list
        return await list_members(*args, **more)

    monkeypatch.setattr("trikv.coordinator.listing.list_members", hold_first)
    report = await cluster.master.operations.repair(dry_run=True)
    cluster.network.release(nobody.address)
    assert report["differing"] or report["skipped"], report
