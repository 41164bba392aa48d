"""Schedules by which a changing cluster once lost data, lied, or never became whole again; each must hold now."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.helpers import GatedStorage, lay_down, partition_of, shut
from trikv.api import Batch
from trikv.coordinator.partition import Stage
from trikv.core.errors import Refused, Unknown
from trikv.core.quorums import Availability
from trikv.core.record import Version, make_seq
from trikv.healing.antientropy import PERIOD_S
from trikv.master.configstore import ConfigStoreError, MemoryConfigStore
from trikv.storage.memory import MemoryStorage
from trikv.testing.inprocess import InProcessCluster, Node

MANY = 1024  # partitions: so many that they move in several steps
KEYS = [b"key-%d" % number for number in range(100)]


async def fill(cluster: InProcessCluster, value: bytes = b"v") -> None:
    for key in KEYS:
        await cluster.coordinator.put(key, value)
    await trio.sleep(1)  # copies that nobody waits for arrive


async def value_of(cluster: InProcessCluster, key: bytes) -> bytes | None:
    record = await cluster.coordinator.get(key)
    return None if record is None else record.value


async def values(cluster: InProcessCluster) -> set[bytes | None]:
    return {await value_of(cluster, key) for key in KEYS}


def under(cluster: InProcessCluster, *nodes: Node) -> list[int]:
    """The partitions whose active configuration has all of them."""
    workers = {node.worker.id for node in nodes}
    return [
        state.index for state in cluster.coordinator.partitions if workers <= {t.member.worker for t in state.targets}
    ]


def later(cluster: InProcessCluster, key: bytes) -> Version:
    """Than any that the present configuration has given so far."""
    return Version(cluster.coordinator.partitions[partition_of(key)].epoch, make_seq(1 << 20, 0))


@pytest.mark.parametrize("mode", ["sync", "chain", "quorum"])
async def test_one_change_after_another_that_had_nothing_to_store(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Settled without a single store, a configuration holds everything all the same: the next does not replace it."""
    cluster = await InProcessCluster.start(nursery, mode="quorum" if mode != "quorum" else "chain")
    await fill(cluster)
    await cluster.master.operations.switch_mode(mode)
    newcomer = await cluster.add_worker()
    await cluster.until(lambda: under(cluster, newcomer))
    await cluster.until_settled()
    assert await values(cluster) == {b"v"}


async def test_newcomers_that_die_at_once_block_nothing(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery)
    await fill(cluster)
    newcomers = [await cluster.add_worker() for _ in range(2)]
    await cluster.until(lambda: any(cluster.coordinator.partitions[i].is_unused for i in under(cluster, *newcomers)))
    for node in newcomers:
        await cluster.kill(node)
    await trio.sleep(30)
    assert not any(cluster.coordinator.partitions[i].is_unused for i in under(cluster, *newcomers))
    assert await values(cluster) == {b"v"}


async def test_a_drained_worker_that_dies_is_replaced_like_any_other(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="sync", workers=5, settle_rate_bytes=1_000, partitions=MANY)
    await fill(cluster, b"v" * 1000)
    node = cluster.workers[0]
    await cluster.master.operations.drain(node.worker.id)
    await cluster.until(lambda: any(not p.settled for p in cluster.master.cluster.partitions))
    assert under(cluster, node)
    await cluster.kill(node)
    await trio.sleep(10)
    assert not under(cluster, node)
    for key in KEYS:
        await cluster.coordinator.put(key, b"w")


class FirstIsQuick(MemoryStorage):
    """Of these, the first that is told to discard does so at once, and the second takes its time."""

    told: list[FirstIsQuick]

    async def commit(self, batch: Batch) -> None:
        if batch.discards and self not in self.told:
            self.told.append(self)
            if len(self.told) == 2:
                await trio.sleep(3)
        await super().commit(batch)


async def test_a_newcomer_that_is_removed_while_another_is_waited_for(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery)
    await fill(cluster)
    FirstIsQuick.told = []
    newcomers = [await cluster.add_worker(storage=FirstIsQuick()) for _ in range(2)]
    await cluster.until(lambda: FirstIsQuick.told)
    quick = next(node for node in newcomers if node.storage is FirstIsQuick.told[0])
    await cluster.kill(quick)
    await cluster.until_down(quick)
    await cluster.master.operations.remove(quick.worker.id)
    await trio.sleep(30)
    document = cluster.master.cluster
    assert {m.worker for p in document.partitions for c in p.history for m in c.members} <= set(document.workers)
    assert await values(cluster) == {b"v"}


@pytest.mark.parametrize("mode", ["sync", "chain", "quorum"])
async def test_what_a_silent_replica_alone_holds_does_not_turn_up_after_a_switch_from_async(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Acknowledged under async by a replica that died with it: lost with the switch, and not found again after it."""
    cluster = await InProcessCluster.start(nursery, mode="async")
    await cluster.coordinator.put(b"any", b"thing")
    await trio.sleep(1)
    primary = cluster.replicas_of(b"key")[0]
    await lay_down(cluster, nursery, primary, b"key", later(cluster, b"key"), b"acknowledged")
    await cluster.kill(primary)
    certificate = await cluster.master.operations.switch_mode(mode)
    assert certificate["could_not_ask"] == [primary.worker.id]
    assert await cluster.coordinator.get(b"key") is None
    await cluster.restart(primary)
    await cluster.until(lambda: under(cluster, primary))
    await trio.sleep(10)
    assert await cluster.coordinator.get(b"key") is None


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


async def test_a_repair_under_async_does_not_win_over_a_replica_that_is_only_cut_off(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="async")
    await fill(cluster)
    away = cluster.workers[0]
    for key in KEYS:
        await lay_down(cluster, nursery, away, key, later(cluster, key), b"acknowledged last")
    await cluster.add_worker()
    cluster.network.cut(away.address)
    before = cluster.master.cluster.partitions
    await cluster.until(lambda: cluster.master.cluster.partitions != before)
    cluster.network.mend(away.address)
    await cluster.until_all_up()
    await trio.sleep(PERIOD_S + 5)  # nobody has noted that copies are missing, so they are found in their turn
    assert await values(cluster) == {b"acknowledged last"}


async def test_a_worker_that_came_back_empty_is_enlisted_though_the_document_cannot_be_written_for_a_while(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="sync")
    await cluster.coordinator.put(b"key", b"v")
    node = cluster.workers[0]

    async def refuse(document: Any, revision: int) -> int:
        raise ConfigStoreError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(cluster.store, "compare_and_set", refuse)
        await cluster.restart(node, wiped=True)
        await trio.sleep(3)
    states = cluster.coordinator.partitions
    await cluster.until(lambda: cluster.coordinator.partitions is not states)
    await cluster.until(
        lambda: all(t.availability is Availability.UP for s in cluster.coordinator.partitions for t in s.targets)
    )
    assert await cluster.coordinator.put(b"key", b"w")


async def test_what_is_moved_in_a_second_keeps_to_the_rate(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery, workers=4, settle_rate_bytes=20_000, partitions=MANY)
    await fill(cluster, b"v" * 20_000)
    await cluster.kill(cluster.workers[0])
    await cluster.until(lambda: cluster.master.operations.progress()["settling"])
    await trio.sleep(30)
    assert 15_000 < cluster.master.settling.progress.bytes_moved / 30 < 25_000
    assert cluster.master.operations.progress()["settling"]


async def test_a_blocked_partition_is_named_before_a_switch_begins(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery)
    state = cluster.coordinator.partitions[5]
    cluster.master.fencing.note_stale(state, state.epoch + 7)
    with pytest.raises(Refused, match="5 the first"):
        await cluster.master.operations.switch_mode("sync")
    assert cluster.master.cluster.mode == "quorum"


async def test_nobody_is_taken_into_a_configuration_without_a_sign_of_life(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """They may just have lost their disks: under sync one survivor is enough to find everything, under quorum two."""
    cluster = await InProcessCluster.start(nursery, mode="sync", workers=4)
    await fill(cluster)
    silent = cluster.workers[:2]
    for node in silent:
        cluster.network.hold(node.address)
    nursery.start_soon(cluster.master.operations.switch_mode, "quorum")
    await trio.sleep(3)  # they were thought to be up when it began
    changed = {state.index for state in cluster.coordinator.partitions if state.configuration.mode == "quorum"}
    assert not changed & {index for node in silent for index in under(cluster, node)}
    for node in silent:
        cluster.network.release(node.address)
    await cluster.until_settled()
    assert await values(cluster) == {b"v"}


async def test_a_worker_that_was_removed_after_its_disk_was_lost_is_replaced_like_any_other(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Its new life holds nothing, so it may be removed, while its former one is still a member."""
    cluster = await InProcessCluster.start(nursery)
    await fill(cluster)
    node = cluster.workers[0]
    await cluster.restart(node, wiped=True)
    await cluster.until(lambda: cluster.master.cluster.workers[node.worker.id].incarnation == node.worker.incarnation)
    await cluster.kill(node)
    await cluster.until_down(node)
    await cluster.master.operations.remove(node.worker.id)
    newcomer = await cluster.add_worker()
    await cluster.until(lambda: under(cluster, newcomer))
    await cluster.until_settled()
    assert not under(cluster, node)
    assert await values(cluster) == {b"v"}


async def test_what_an_evicted_worker_holds_is_offered_though_it_is_heard_first_after_a_restart_of_the_master(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="async", workers=4)
    await fill(cluster)
    evicted = cluster.workers[0]
    held = under(cluster, evicted)
    mine = [key for key in KEYS if partition_of(key) in held]
    for key in mine:
        await lay_down(cluster, nursery, evicted, key, later(cluster, key), b"acknowledged last")
    await cluster.kill(evicted)
    await cluster.until(lambda: not under(cluster, evicted))
    await cluster.until_settled()
    await cluster.stop_master()
    await cluster.restart(evicted)
    for node in cluster.workers[1:]:
        cluster.network.cut(node.address)
    await cluster.start_master()
    await cluster.until(lambda: cluster.master.membership.watched[evicted.worker.id].availability is Availability.UP)
    for node in cluster.workers[1:]:
        cluster.network.mend(node.address)
    await cluster.until_all_up()
    await trio.sleep(200)
    lost = [key for key in mine if await value_of(cluster, key) != b"acknowledged last"]
    assert not lost, f"{len(lost)} of {len(mine)} were never offered"


async def test_a_join_goes_on_under_the_next_master(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery, settle_rate_bytes=100_000, partitions=MANY)
    await fill(cluster, b"v" * 10_000)
    newcomer = await cluster.add_worker()
    await cluster.until(lambda: under(cluster, newcomer))
    await cluster.restart_master()
    await cluster.until_all_up()
    await trio.sleep(600)
    assert all(p.settled for p in cluster.master.cluster.partitions)
    shares = {node.worker.id: len(under(cluster, node)) for node in cluster.workers}
    assert min(shares.values()) >= 0.95 * 768 - 1, shares


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


async def test_a_switch_from_async_waits_for_a_former_replica_that_is_just_restarting(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """It is not given up, and back with its disk after a second; some partitions move away from it with the switch."""
    cluster = await InProcessCluster.start(nursery, mode="async")
    await fill(cluster)
    away = cluster.workers[0]
    for key in KEYS:
        await lay_down(cluster, nursery, away, key, later(cluster, key), b"acknowledged")
    newcomer = await cluster.add_worker()
    await cluster.until(lambda: len(cluster.master.membership.watched) == 4)
    await cluster.until_all_up()
    await trio.sleep(0.6)  # soon it will have been up for so long that it is given data
    assert not under(cluster, newcomer)
    await cluster.kill(away)
    await cluster.until_down(away)
    certificates: list[Any] = []

    async def switch() -> None:
        certificates.append(await cluster.master.operations.switch_mode("sync"))

    nursery.start_soon(switch)
    await trio.sleep(1.5)
    assert not cluster.master.membership.watched[away.worker.id].evictable
    await values(cluster)  # what is read is brought to the configuration of that moment, which must not be the next
    await cluster.restart(away)
    await cluster.until_settled()
    await cluster.until(lambda: certificates)
    seen = [await value_of(cluster, key) for key in KEYS]
    lost = seen.count(b"v")
    assert not lost, f"{lost} of {len(KEYS)} are lost, {certificates}"


class SlowDisk(MemoryStorage):
    slow_s = 0.0

    async def commit(self, batch: Batch) -> None:
        await trio.sleep(self.slow_s)
        await super().commit(batch)


def slow_down(node: Node, slow_s: float) -> None:
    assert isinstance(node.storage, SlowDisk)
    node.storage.slow_s = slow_s


async def start_on_slow_disks(nursery: trio.Nursery) -> InProcessCluster:
    cluster = await InProcessCluster.start(nursery, mode="async", workers=0)
    for _ in range(4):
        await cluster.add_worker(storage=SlowDisk())
    await cluster.until(lambda: cluster.master.cluster.formed and len(cluster.master.cluster.workers) == 4)
    await cluster.until_all_up()
    return cluster


async def test_what_a_returning_worker_holds_is_not_offered_to_nobody_and_then_discarded(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Its disk is slow, and while it says what it holds the others are cut off from the master for two seconds."""
    cluster = await start_on_slow_disks(nursery)
    await fill(cluster)
    evicted, *others = cluster.workers
    mine = [key for key in KEYS if partition_of(key) in under(cluster, evicted)]
    for key in mine:
        await lay_down(cluster, nursery, evicted, key, later(cluster, key), b"acknowledged last")
    await cluster.kill(evicted)
    await cluster.until(lambda: not under(cluster, evicted))
    await cluster.until_settled()
    slow_down(evicted, 1.6)
    await cluster.restart(evicted)
    await cluster.until(lambda: cluster.master.membership.watched[evicted.worker.id].availability is Availability.UP)
    for node in others:
        cluster.network.hold(node.address)
    await trio.sleep(2.2)
    for node in others:
        cluster.network.release(node.address)
    slow_down(evicted, 0.0)
    await trio.sleep(120)
    lost = [key for key in mine if await value_of(cluster, key) != b"acknowledged last"]
    assert not lost, f"{len(lost)} of {len(mine)} are gone"


async def test_what_async_moves_is_on_all_new_replicas_before_the_former_ones_discard_it(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """A write is committed on one of them, and the others' disks are slow."""
    cluster = await start_on_slow_disks(nursery)
    await fill(cluster)
    drained, *others = cluster.workers
    mine = [key for key in KEYS if partition_of(key) in under(cluster, drained)]
    for key in mine:  # one replica has yet to get it, so it is written anew, not copied
        await lay_down(cluster, nursery, drained, key, later(cluster, key), b"v2")
    for node in others[1:]:
        slow_down(node, 0.3)
    await cluster.master.operations.drain(drained.worker.id)
    for key in mine:
        partition = partition_of(key)
        await cluster.until(partial(is_settled_without, cluster, partition, drained))
        held = [node.storage.get(partition, key) for node in cluster.replicas_of(key)]
        assert [record and record.value for record in held] == [b"v2"] * 3


def is_settled_without(cluster: InProcessCluster, partition: int, node: Node) -> bool:
    state = cluster.coordinator.partitions[partition]
    return state.partition.settled and all(target.member.worker != node.worker.id for target in state.targets)


async def test_what_async_moves_is_on_all_new_replicas_also_where_somebody_reads_it_meanwhile(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """A read has brought it to one of them, and asks no others from then on."""
    cluster = await start_on_slow_disks(nursery)
    await fill(cluster)
    drained, *others = cluster.workers
    mine = [key for key in KEYS if partition_of(key) in under(cluster, drained)]
    for key in mine:
        await lay_down(cluster, nursery, drained, key, later(cluster, key), b"v2")
    for node in others[1:]:
        slow_down(node, 0.3)

    async def read(key: bytes) -> None:
        state = cluster.coordinator.partitions[partition_of(key)]
        await cluster.until(lambda: cluster.coordinator.partitions[state.index] is not state)
        await cluster.coordinator.get(key, timeout_s=5)

    for key in mine:
        nursery.start_soon(read, key)
    await cluster.master.operations.drain(drained.worker.id)
    for key in mine:
        partition = partition_of(key)
        await cluster.until(partial(is_settled_without, cluster, partition, drained))
        held = [node.storage.get(partition, key) for node in cluster.replicas_of(key)]
        assert [record and record.value for record in held] == [b"v2"] * 3


async def start_with_a_drained_one(nursery: trio.Nursery, mode: str, **settings: Any) -> tuple[InProcessCluster, Node]:
    """Four workers that hold everything, and a fifth that was emptied; its disk can be made to hang (`shut`)."""
    cluster = await InProcessCluster.start(nursery, mode=mode, workers=0, **settings)
    for _ in range(5):
        await cluster.add_worker(storage=GatedStorage())
    await cluster.until(lambda: cluster.master.cluster.formed and len(cluster.master.cluster.workers) == 5)
    await cluster.until_all_up()
    await fill(cluster)
    drained = cluster.workers[0]
    await cluster.master.operations.drain(drained.worker.id)
    await cluster.until(lambda: cluster.master.operations.operation() is None)
    await cluster.until_settled()
    return cluster, drained


@pytest.mark.parametrize("mode", ["quorum", "async"])
async def test_a_drained_worker_whose_disk_hangs_holds_up_no_switch(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster, drained = await start_with_a_drained_one(nursery, mode)
    shut(drained)
    cluster.network.cut(drained.address)
    await cluster.until_down(drained)
    cluster.network.mend(drained.address)
    await cluster.until_all_up()
    with trio.fail_after(60):
        await cluster.master.operations.switch_mode("sync")


async def test_a_drained_worker_whose_disk_hangs_holds_up_no_replacement(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """A switch from async is still settling when a member dies for good."""
    cluster, drained = await start_with_a_drained_one(nursery, "async", settle_rate_bytes=1_000)
    for key in KEYS:
        await lay_down(cluster, nursery, cluster.replicas_of(key)[0], key, later(cluster, key), b"v" * 1000)
    nursery.start_soon(cluster.master.operations.switch_mode, "sync")
    await cluster.until(lambda: all(p.active.mode == "sync" for p in cluster.master.cluster.partitions))
    shut(drained)
    cluster.network.cut(drained.address)
    await cluster.until_down(drained)
    cluster.network.mend(drained.address)
    await cluster.until_all_up()
    dead = cluster.workers[1]
    await cluster.kill(dead)
    await trio.sleep(60)
    assert not under(cluster, dead)


async def test_a_switch_to_quorum_is_a_way_out_when_a_disk_hangs(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="sync", workers=0)
    for _ in range(4):
        await cluster.add_worker(storage=GatedStorage())
    await cluster.until(lambda: cluster.master.cluster.formed and len(cluster.master.cluster.workers) == 4)
    await cluster.until_all_up()
    await fill(cluster)
    shut(cluster.workers[0])
    await cluster.restart_master()
    await cluster.until_all_up()
    nursery.start_soon(cluster.master.operations.switch_mode, "quorum")
    await trio.sleep(60)
    for key in KEYS:
        await cluster.coordinator.put(key, b"w")


async def test_news_that_comes_while_the_document_is_written_is_not_missed(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drained worker is let go, which takes a while; a newcomer becomes steady in that time."""
    cluster = await InProcessCluster.start(nursery, workers=4)
    await fill(cluster)
    node = cluster.workers[0]
    await cluster.master.operations.drain(node.worker.id)
    await cluster.until(lambda: cluster.master.operations.operation() is None)
    await cluster.until_settled()
    await cluster.kill(node)
    watched = cluster.master.membership.watched[node.worker.id]
    await cluster.until(lambda: watched.suspicion.silent_s(trio.current_time()) > 4.2)
    newcomer = await cluster.add_worker()
    await cluster.until(lambda: newcomer.worker.id in cluster.master.cluster.workers)
    write = MemoryConfigStore.compare_and_set

    async def slowly(self: MemoryConfigStore, document: dict[str, Any], revision: int) -> int:
        await trio.sleep(1.5)
        return await write(self, document, revision)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryConfigStore, "compare_and_set", slowly)
        await cluster.until(lambda: node.worker.id not in cluster.master.cluster.workers)
    await trio.sleep(60)
    assert under(cluster, newcomer)


async def test_a_drained_worker_that_pauses_is_let_go_and_not_filled_again(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster, drained = await start_with_a_drained_one(nursery, "quorum")
    cluster.network.hold(drained.address)
    await cluster.until(lambda: drained.worker.id not in cluster.master.cluster.workers)
    cluster.network.release(drained.address)
    await trio.sleep(60)
    assert not under(cluster, drained)


async def test_a_configuration_in_which_nothing_was_committed_may_be_given_up(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From chain, of which one replica is enough to find everything, to quorum, of which it takes two. One is down
    when the switch begins, another is lost just after its sign of life, and a write under way is on the third alone."""
    cluster = await InProcessCluster.start(nursery, mode="chain")
    await fill(cluster)
    _, down, lost = cluster.workers
    await cluster.kill(down)
    await cluster.until_down(down)
    write = MemoryConfigStore.compare_and_set

    async def lose_one(self: MemoryConfigStore, document: dict[str, Any], revision: int) -> int:
        if any(mode == "quorum" for _, mode, _ in document["configurations"]):
            cluster.network.hold(lost.address)
        return await write(self, document, revision)

    monkeypatch.setattr(MemoryConfigStore, "compare_and_set", lose_one)
    nursery.start_soon(cluster.master.operations.switch_mode, "quorum")
    await cluster.until(lambda: cluster.coordinator.partitions[0].configuration.mode == "quorum")
    with pytest.raises(Unknown):
        await cluster.coordinator.put(KEYS[0], b"w", timeout_s=0.3)
    monkeypatch.undo()
    cluster.network.release(lost.address)
    for node in (down, lost):
        await cluster.restart(node, wiped=True)
    await cluster.until_settled()
    assert {await value_of(cluster, key) for key in KEYS[1:]} == {b"v"}
    assert await value_of(cluster, KEYS[0]) in (b"v", b"w")


async def test_a_switch_from_async_waits_for_a_replica_that_restarts_just_after_it_began(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no member of the new configuration, which a newcomer is in its place."""
    cluster = await InProcessCluster.start(nursery, mode="async")
    await fill(cluster)
    away = cluster.workers[0]
    for key in KEYS:
        await lay_down(cluster, nursery, away, key, later(cluster, key), b"acknowledged")
    write = MemoryConfigStore.compare_and_set

    async def kill_first(self: MemoryConfigStore, document: dict[str, Any], revision: int) -> int:
        if any(mode == "sync" for _, mode, _ in document["configurations"]):
            await cluster.kill(away)
        return await write(self, document, revision)

    await cluster.add_worker()
    health = cluster.master.reconciler.health
    async with cluster.master.reconciler.stepping:  # both wishes are there when it looks
        monkeypatch.setattr(MemoryConfigStore, "compare_and_set", kill_first)
        nursery.start_soon(cluster.master.operations.switch_mode, "sync")
        await cluster.until(lambda: len(health()) == 4 and all(each.steady for each in health().values()))
    await cluster.until(lambda: any(p.active.mode == "sync" for p in cluster.master.cluster.partitions))
    monkeypatch.undo()
    await trio.sleep(2)
    assert not cluster.master.membership.watched[away.worker.id].evictable
    await cluster.restart(away)
    await cluster.until_settled()
    assert len(under(cluster, away)) < len(cluster.coordinator.partitions)
    assert await values(cluster) == {b"acknowledged"}


async def test_what_is_acknowledged_after_a_configuration_was_closed_is_unknown(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """It is just being replaced, in the belief that nobody has been told of anything in it."""
    cluster = await InProcessCluster.start(nursery)
    state = cluster.coordinator.partitions[partition_of(b"key")]
    for node in cluster.workers:
        cluster.network.hold(node.address)

    async def close_when_sent() -> None:
        await cluster.until(lambda: state.pending)
        state.stage = Stage.CLOSED
        for node in cluster.workers:
            cluster.network.release(node.address)

    nursery.start_soon(close_when_sent)
    with pytest.raises(Unknown, match="was replaced"):
        await cluster.coordinator.put(b"key", b"v")
