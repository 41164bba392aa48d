"""What operators were once told wrongly, or what they asked for and did not get; each must hold now."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.helpers import GatedStorage, lay_down, partition_of, shut
from tests.master.test_changes_attacked import KEYS, fill, later, under, values
from trikv.api import Batch
from trikv.coordinator.listing import list_members
from trikv.core.errors import Refused
from trikv.core.quorums import Availability
from trikv.master.configstore import MemoryConfigStore
from trikv.storage.memory import MemoryStorage
from trikv.testing.inprocess import InProcessCluster, Node


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


async def test_a_worker_that_comes_back_while_it_is_removed_does_not_stay_outside(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """The document is being written for somebody else; the worker enlists, and then the operator has their turn."""
    cluster = await InProcessCluster.start(nursery, workers=4)
    await fill(cluster)
    node = cluster.workers[0]
    await cluster.kill(node)
    await cluster.until(lambda: not under(cluster, node))
    await cluster.until_settled()
    async with cluster.master.document.changing:
        await cluster.restart(node)
        await trio.testing.wait_all_tasks_blocked()
        assert (
            cluster.master.membership.watched[node.worker.id].availability is Availability.DOWN
        )  # not dialled again yet
        nursery.start_soon(cluster.master.operations.remove, node.worker.id)
        await trio.testing.wait_all_tasks_blocked()
    await trio.sleep(300)
    assert node.worker.id in cluster.master.cluster.workers, "it runs, thinks that it is enlisted, and is not"


async def test_a_worker_that_was_paused_while_it_was_removed_enlists_again(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """No race here: its own connection to the master outlives the pause, so it does not know that it was forgotten."""
    cluster = await InProcessCluster.start(nursery, workers=4)
    await fill(cluster)
    node = cluster.workers[0]
    cluster.network.hold(node.address)
    await cluster.until(lambda: not under(cluster, node))
    await cluster.until_settled()
    await cluster.master.operations.remove(node.worker.id)
    cluster.network.release(node.address)
    await trio.sleep(300)
    assert node.worker.id in cluster.master.cluster.workers, "it runs, thinks that it is enlisted, and is not"


async def test_safe_to_stop_says_yes_while_another_replica_is_down_and_enough_are_left(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, workers=5, replicas=5)
    await fill(cluster)
    await cluster.kill(cluster.workers[4])
    await trio.sleep(60)
    safe, why = cluster.master.operations.safe_to_stop(cluster.workers[0].worker.id)
    assert safe, why
