"""Replicas that differ are found and mended without anybody reading the keys; what they agree on is left alone."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.helpers import later, lay_down, partition_of, value_of
from trikv.api import Batch
from trikv.core.calls import Op
from trikv.core.record import Record, Version, make_epoch, make_seq, term_of
from trikv.healing import hints
from trikv.healing.antientropy import PERIOD_S, AntiEntropy
from trikv.net.link import dial
from trikv.testing.inprocess import PARTITIONS, InProcessCluster

KEYS = [b"k%d" % number for number in range(40)]
OLD = make_epoch(1, 1)  # of a term before the present one
LATER = Version(OLD, make_seq(1 << 20, 0))


async def start(nursery: trio.Nursery, mode: str, **more: Any) -> InProcessCluster:
    """A cluster in its second term, in which every key has a value of the first."""
    cluster = await InProcessCluster.start(nursery, mode=mode, **more)
    for key in KEYS:
        await cluster.coordinator.put(key, b"first")
    await trio.sleep(5)
    await cluster.restart_master()
    await cluster.until_all_up()
    await trio.sleep(5)
    return cluster


def held(cluster: InProcessCluster, key: bytes) -> list[Record | None]:
    return [node.storage.get(partition_of(key), key) for node in cluster.replicas_of(key)]


def values_held(cluster: InProcessCluster, key: bytes) -> list[bytes | None]:
    return [record and record.value for record in held(cluster, key)]


def whole(cluster: InProcessCluster) -> bool:
    return all(len(set(held(cluster, key))) == 1 and held(cluster, key)[0] is not None for key in KEYS)


def versions(cluster: InProcessCluster) -> dict[bytes, Version]:
    """Of the newest record of each key."""
    return {key: max(record.version for record in held(cluster, key) if record is not None) for key in KEYS}


async def test_a_replica_that_was_away_gets_all_that_it_missed_as_it_is(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hints, "BYTES_MAX", 0)  # nothing that it misses is kept for it
    cluster = await start(nursery, "quorum")
    away = cluster.workers[1]
    await cluster.kill(away)
    await cluster.until_down(away)
    for key in KEYS[:20]:
        await cluster.coordinator.put(key, b"second")
    for key in KEYS[10:15]:
        await cluster.coordinator.delete(key)
    await trio.sleep(20)
    before = versions(cluster)
    await cluster.restart(away)
    await cluster.until_all_up()
    await trio.sleep(8)  # far less than the period
    assert whole(cluster)
    assert versions(cluster) == before
    assert all(record is not None and record.value is None for key in KEYS[10:15] for record in held(cluster, key))


@pytest.mark.parametrize("mode", ["sync", "chain", "quorum", "async"])
@pytest.mark.parametrize("place", [0, 1, 2])
async def test_the_remains_of_a_write_that_died_half_way_are_mended(
    mode: str, place: int, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Whether the write survives is nobody's promise; that all replicas are of one mind is."""
    cluster = await start(nursery, mode)
    for number, key in enumerate(KEYS[:4]):
        value = None if number % 2 else b"remains"
        await lay_down(cluster, nursery, cluster.replicas_of(key)[place], key, LATER, value)
    fresh = b"nowhere else"
    await lay_down(cluster, nursery, cluster.replicas_of(fresh)[place], fresh, LATER, b"v")
    assert not whole(cluster)
    report = await AntiEntropy(cluster.coordinator).repair(dry_run=False)
    assert (report["differing"], report["repaired"]) == (5, 5)
    assert whole(cluster)
    assert len(set(held(cluster, fresh))) == 1
    for key in (*KEYS[:4], fresh):
        now = await cluster.coordinator.get(key)
        [record] = set(held(cluster, key))
        assert record is not None
        assert record.value == (None if now is None else now.value)
        assert (record.version.epoch > OLD) == (mode != "async")  # it may be older than what nobody found


async def test_under_async_the_newest_wins_as_it_is(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await start(nursery, "async")
    newest = {
        key: await lay_down(cluster, nursery, cluster.replicas_of(key)[n % 3], key, LATER, None if n % 2 else b"new")
        for n, key in enumerate(KEYS[:6])
    }
    await AntiEntropy(cluster.coordinator).repair(dry_run=False)
    assert {key: held(cluster, key) for key in newest} == {key: [record] * 3 for key, record in newest.items()}


async def test_a_dry_run_counts_and_changes_nothing(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await start(nursery, "sync")
    entropy = AntiEntropy(cluster.coordinator)
    alike = {"compared": 40, "differing": 0, "repaired": 0, "partitions": PARTITIONS, "skipped": 0}
    assert await entropy.repair(dry_run=True) == alike
    for key in KEYS[:3]:
        await lay_down(cluster, nursery, cluster.replicas_of(key)[1], key, LATER, b"remains")
    before = {key: held(cluster, key) for key in KEYS}
    assert await entropy.repair(dry_run=True) == {**alike, "differing": 3}
    assert {key: held(cluster, key) for key in KEYS} == before
    assert await entropy.repair(dry_run=False) == {**alike, "differing": 3, "repaired": 3}
    assert await entropy.repair(dry_run=False) == alike
    await lay_down(cluster, nursery, cluster.replicas_of(KEYS[9])[1], KEYS[9], LATER, b"remains")
    another = AntiEntropy(cluster.coordinator)
    await another.repair(dry_run=True)
    with trio.move_on_after(5):
        await another.run()
    assert whole(cluster)
    await cluster.kill(cluster.workers[0])
    await cluster.until_down(cluster.workers[0])
    report = await entropy.repair(dry_run=True)
    assert (report["partitions"], report["skipped"]) == (0, PARTITIONS)


async def test_from_time_to_time_all_is_compared_in_any_case(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await start(nursery, "quorum")
    entropy = cluster.master.antientropy
    await trio.sleep(10)
    assert entropy.progress()["compared"] == entropy.progress()["total"] == PARTITIONS
    assert entropy.progress()["round_ended_s_ago"] is not None
    await lay_down(cluster, nursery, cluster.replicas_of(KEYS[0])[2], KEYS[0], LATER, b"remains")
    await trio.sleep(PERIOD_S + 10)
    assert whole(cluster)
    assert entropy.progress()["keys_repaired"] == 1


async def test_a_replica_that_comes_up_is_compared_at_once(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """Nobody noted that it missed anything: the master that knew may be gone."""
    cluster = await start(nursery, "quorum")
    entropy = AntiEntropy(cluster.coordinator, period_s=1000)
    nursery.start_soon(entropy.run)
    node = cluster.workers[1]
    await cluster.kill(node)
    await cluster.until_down(node)
    await trio.sleep(10)
    partition, remains = partition_of(KEYS[0]), Record(Version(OLD, 1 << 20), Version(OLD, 1 << 20), b"remains")
    # A note of the form from before there were digests has the worker count anew.
    await node.storage.commit(Batch(puts={(partition, KEYS[0]): remains}, meta={f"keys/{partition}": b"1"}))
    await cluster.restart(node)
    await cluster.until_all_up()
    assert not whole(cluster)
    await trio.sleep(5)
    assert whole(cluster)


async def test_writes_go_on_while_replicas_are_compared_and_none_is_lost(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, "quorum")
    entropy = AntiEntropy(cluster.coordinator, period_s=0.5)
    nursery.start_soon(entropy.run)
    for number in range(300):
        key = KEYS[number % 7]
        await cluster.coordinator.put(key, b"%d" % number)
        record = await cluster.coordinator.get(key)
        assert record is not None
        assert record.value == b"%d" % number
        await trio.sleep(0.05)
    await trio.sleep(5)
    assert whole(cluster)


async def test_being_fenced_meanwhile_is_survived(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await start(nursery, "quorum")
    entropy = AntiEntropy(cluster.coordinator, period_s=1)
    nursery.start_soon(entropy.run)
    node, state = cluster.workers[0], cluster.coordinator.partitions[-1]
    link = await dial(await cluster.network.connect(node.address), cluster.master.hello())
    nursery.start_soon(link.run)
    later = make_epoch(40, state.partition.generation)
    arguments = [state.index, later, node.worker.incarnation, b"k"]
    link.call(Op.FETCH, arguments, trio.current_time() + 1, lambda fault, payload: None)
    await cluster.until(lambda: term_of(cluster.coordinator.partitions[0].epoch) > 40)
    await cluster.until_all_up()
    await lay_down(cluster, nursery, node, KEYS[0], LATER, b"remains")
    await cluster.until(lambda: whole(cluster))


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
    assert values_held(cluster, KEYS[0]).count(b"2") == 2
    await cluster.restart(missing)
    await cluster.until_all_up()
    await trio.sleep(3)  # far less than the period: it was noted that a copy is missing
    assert values_held(cluster, KEYS[0]) == [b"2"] * 3


async def test_a_repair_under_async_does_not_win_over_a_replica_that_is_only_cut_off(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, "async")
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
    assert {await value_of(cluster, key) for key in KEYS} == {b"acknowledged last"}


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


async def test_a_partition_that_is_replaced_before_its_key_is_mended_is_not_called_compared(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, "quorum")
    await lay_down(cluster, nursery, cluster.replicas_of(KEYS[0])[0], KEYS[0], LATER, b"remains")
    state = cluster.coordinator.partitions[partition_of(KEYS[0])]
    reports: list[dict[str, int]] = []

    async def compare() -> None:
        reports.append(await AntiEntropy(cluster.coordinator).repair(dry_run=False))

    with await state.locks.exclusive(KEYS[0]):
        nursery.start_soon(compare)
        await trio.sleep(2.5)  # it has looked again, has listed what differs, and waits for the key
        await cluster.master.operations.switch_mode("sync")
        assert cluster.coordinator.partitions[state.index] is not state
    await cluster.until(lambda: bool(reports))
    assert (reports[0]["partitions"], reports[0]["differing"], reports[0]["repaired"]) == (PARTITIONS - 1, 1, 0)
