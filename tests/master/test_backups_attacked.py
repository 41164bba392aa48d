"""Schedules by which a cluster with a document from a backup, or one that had to be recovered, once lost data."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.helpers import lay_down, partition_of, shut
from tests.master.test_changes_attacked import KEYS, fill, later, start_with_a_drained_one, under, values
from trikv.core.errors import Refused
from trikv.core.quorums import Availability
from trikv.core.record import Record, Version
from trikv.core.session import MasterId
from trikv.master.configstore import ConfigStoreError, MemoryConfigStore
from trikv.testing.inprocess import InProcessCluster, Node


async def back_up(cluster: InProcessCluster) -> dict[str, Any]:
    document, _ = await cluster.store.read()
    assert document is not None
    return document


async def restore(cluster: InProcessCluster, document: dict[str, Any]) -> None:
    _, revision = await cluster.store.read()
    await cluster.store.compare_and_set(document, revision)


async def test_the_document_cannot_be_written_when_the_master_should_go_beyond_another_term(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = await InProcessCluster.start(nursery)
    await fill(cluster)
    backup = await back_up(cluster)
    for _ in range(3):
        await cluster.restart_master()
        await cluster.until_all_up()
        await cluster.coordinator.put(KEYS[0], b"v")
    await cluster.stop_master()
    await restore(cluster, backup)

    started = trio.Event()
    write = MemoryConfigStore.compare_and_set
    full = True

    async def refuse(self: MemoryConfigStore, document: dict[str, Any], revision: int) -> int:
        if started.is_set() and full:
            raise ConfigStoreError("disk full")
        return await write(self, document, revision)

    monkeypatch.setattr(MemoryConfigStore, "compare_and_set", refuse)
    await cluster.start_master()
    started.set()
    await trio.sleep(3)
    full = False
    await cluster.until_all_up()
    assert await values(cluster) == {b"v"}


async def test_deleted_stays_deleted_after_a_backup_and_a_recovery(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="async", workers=4, forget_after_s=2.0)
    await fill(cluster)
    evicted = cluster.workers[1]
    held = under(cluster, evicted)
    gone = [key for key in KEYS if partition_of(key) in held]
    await cluster.kill(evicted)
    await cluster.until(lambda: not under(cluster, evicted))
    await cluster.until_settled()
    backup = await back_up(cluster)
    for key in gone:
        await cluster.coordinator.delete(key)
    await cluster.until(lambda: cluster.master.tombstones.forgotten == len(gone))
    await cluster.stop_master()
    await restore(cluster, backup)
    await cluster.start_master()
    live = [node for node in cluster.workers if node is not evicted]
    await cluster.until(
        lambda: all(cluster.master.membership.watched[n.worker.id].availability is Availability.UP for n in live)
    )
    await trio.sleep(10)
    await cluster.master.operations.recover(accept_loss=True)
    await cluster.until_settled()
    assert [key for key in gone if await cluster.coordinator.get(key) is not None] == []
    await cluster.restart(evicted)
    await trio.sleep(20)
    back = [key for key in gone if await cluster.coordinator.get(key) is not None]
    assert not back, f"{len(back)} of {len(gone)} deleted keys are back"


async def test_workers_that_are_being_greeted_when_the_master_goes_beyond_another_term(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """The document is from a backup. One worker says so while the greetings to two others are on their way."""
    cluster = await InProcessCluster.start(nursery, workers=0)
    for _ in range(3):  # started without --master, and named to the master when the cluster was founded
        node = await cluster.add_worker(enlist=False)
        await cluster.master.enlisting.enlist(node.address)
    await cluster.until_all_up()
    await fill(cluster)
    backup = await back_up(cluster)
    for _ in range(3):
        await cluster.restart_master()
        await cluster.until_all_up()
    await cluster.stop_master()
    await restore(cluster, backup)
    late = cluster.workers[1:]
    for node in late:
        cluster.network.hold(node.address)
    await cluster.start_master()
    term = cluster.master.cluster.term
    await cluster.until(lambda: cluster.master.cluster.term > term)
    for node in late:
        cluster.network.release(node.address)
    await trio.sleep(300)
    availabilities = {name: watched.availability.value for name, watched in cluster.master.membership.watched.items()}
    assert set(availabilities.values()) == {"up"}, availabilities
    assert await values(cluster) == {b"v"}


async def test_recover_after_a_backup_finds_what_those_who_are_up_hold(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """All machines were replaced since the backup, the old ones are still running, and nobody is lost."""
    cluster = await InProcessCluster.start(nursery)
    await fill(cluster)
    backup = await back_up(cluster)
    old = list(cluster.workers)
    for _ in range(3):
        await cluster.add_worker()
    master = cluster.master
    for node in old:
        await cluster.until(lambda: all(health.steady for health in master.reconciler.health().values()))
        await cluster.until(lambda: master.operations.operation() is None)
        await master.operations.drain(node.worker.id)
        await cluster.until(
            lambda: (
                not any(master.cluster.partitions_of(w.member) for w in master.cluster.workers.values() if w.draining)
            )
        )
    await cluster.until_settled()
    assert await values(cluster) == {b"v"}
    await cluster.stop_master()
    await restore(cluster, backup)
    await cluster.start_master()
    await cluster.until(lambda: len(cluster.master.cluster.workers) == 6)
    await cluster.until_all_up()
    await trio.sleep(10)
    told = await cluster.master.operations.recover(accept_loss=False)
    assert told["lost_members"] == []
    await cluster.master.operations.recover(accept_loss=True)
    await trio.sleep(60)
    seen = await values(cluster)
    assert seen == {b"v"}, (len(told["partitions"]), told["lost_members"], seen)


async def test_recover_gives_up_nobody_who_is_only_silent_for_a_moment(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """One partition is refused until recover. While the operator asks for that, two workers pause for 1.5 s."""
    cluster = await InProcessCluster.start(nursery)
    await fill(cluster)
    await trio.sleep(5)
    state = next(s for s in cluster.coordinator.partitions if s.index not in {partition_of(key) for key in KEYS})
    cluster.master.fencing.note_stale(state, state.epoch + 7)
    told = await cluster.master.operations.recover(accept_loss=False)
    assert told == {"partitions": [state.index], "lost_members": []}
    for key in KEYS:  # as any write is that the third replica is a little late with
        version = later(cluster, key)
        for node in cluster.workers[1:]:
            await lay_down(cluster, nursery, node, key, version, b"acknowledged")
    for node in cluster.workers[1:]:
        cluster.network.hold(node.address)
    await trio.sleep(1.5)
    assert not any(watched.availability is Availability.DOWN for watched in cluster.master.membership.watched.values())
    report: dict[str, Any] = {}
    with suppress(Refused):
        report = await cluster.master.operations.recover(accept_loss=True)
    for node in cluster.workers[1:]:
        cluster.network.release(node.address)
    await trio.sleep(60)
    seen = await values(cluster)
    assert seen == {b"acknowledged"}, (len(report.get("partitions", [])), report.get("lost_members"), seen)


async def test_recover_does_not_wait_for_ever_for_one_that_never_becomes_clear(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names a term far beyond any that is believed, so it is never sent anything, and it is not down either."""
    cluster = await InProcessCluster.start(nursery, workers=5)
    await fill(cluster)
    odd = cluster.workers[4].worker
    vitals = odd.vitals()._replace(master=str(MasterId(1 << 30, "x")))
    monkeypatch.setattr(odd, "vitals", lambda: vitals)
    for node in cluster.workers[:2]:
        await cluster.kill(node)
    await trio.sleep(60)
    assert (await cluster.master.operations.recover(accept_loss=True))["partitions"]


async def test_recover_asks_only_those_whose_disks_answer(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster, drained = await start_with_a_drained_one(nursery, "quorum")
    shut(drained)
    state = cluster.coordinator.partitions[partition_of(KEYS[0])]
    cluster.master.fencing.note_stale(state, state.epoch + 7)
    told = await cluster.master.operations.recover(accept_loss=True)
    assert told["not_asked"] == [drained.worker.id]
    await cluster.until_settled()
    assert await values(cluster) == {b"v"}


async def test_what_two_masters_of_one_term_wrote_converges(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """The second one's document is one start old. Both give out the first version of the same epoch for one key; where
    the version was the same, replicas differed for ever, and nothing could tell."""
    cluster = await InProcessCluster.start(nursery, mode="async")
    key = KEYS[0]
    await cluster.coordinator.put(b"any", b"v")
    await trio.sleep(5)
    backup = await back_up(cluster)
    m1, m2, m3 = cluster.replicas_of(key)
    await cluster.stop_master()

    def is_up(node: Node) -> bool:
        return cluster.master.membership.watched[node.worker.id].availability is Availability.UP

    async def write(value: bytes, *nodes: Node) -> None:
        """A master starts that can reach these nodes alone, and puts the key."""
        for node in cluster.workers:
            (cluster.network.mend if node in nodes else cluster.network.cut)(node.address)
        await cluster.start_master()
        for node in nodes:
            await cluster.until(partial(is_up, node))
        stamps.append(await cluster.coordinator.put(key, value))

    stamps: list[Version] = []
    await write(b"first", m1, m2)
    term = cluster.master.cluster.term
    await cluster.stop_master()
    await restore(cluster, backup)
    await write(b"second", m3)
    assert cluster.master.cluster.term == term
    assert stamps[0] != stamps[1], "an ETag names one value"
    for node in (m1, m2):
        cluster.network.mend(node.address)
    await cluster.until(lambda: cluster.master.cluster.term > term)  # noticed
    await cluster.until_all_up()

    def held() -> set[Record | None]:
        return {node.storage.get(partition_of(key), key) for node in cluster.workers}

    await cluster.until(lambda: len(held()) == 1)
    assert (await cluster.master.operations.repair(dry_run=True))["differing"] == 0
