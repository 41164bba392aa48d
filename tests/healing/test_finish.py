"""Writes in doubt are finished once enough of their replicas are up, whether or not anybody reads their keys."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.helpers import partition_of
from trikv.core.errors import Unknown
from trikv.core.record import Record, Version, make_epoch, make_seq
from trikv.testing.inprocess import InProcessCluster

KEY = b"k0"
LATE = Record(Version(make_epoch(1, 1), make_seq(1 << 20, 0)), Version(make_epoch(1, 1), make_seq(1 << 20, 0)), b"late")


def held(cluster: InProcessCluster, key: bytes) -> list[bytes | None]:
    """What each replica has of the key: its value, b"" for a tombstone, None for nothing."""
    records = [node.storage.get(partition_of(key), key) for node in cluster.replicas_of(key)]
    return [None if record is None else record.value or b"" for record in records]


@pytest.mark.parametrize("mode", ["sync", "chain", "quorum", "async"])
async def test_a_write_in_doubt_is_finished_once_its_replicas_are_back(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode=mode)
    await cluster.coordinator.put(b"any", b"thing")
    for node in cluster.workers:
        cluster.network.hold(node.address)
    with trio.move_on_after(1):
        await cluster.coordinator.put(KEY, b"v")
    assert cluster.coordinator.pending == 1
    for node in cluster.workers:
        cluster.network.cut(node.address)  # nothing of it arrives
        cluster.network.mend(node.address)
        cluster.network.release(node.address)
    assert held(cluster, KEY) == [None] * 3
    await cluster.until(lambda: cluster.coordinator.pending == 0)
    await cluster.until(
        lambda: held(cluster, KEY).count(b"v") >= cluster.coordinator.partitions[0].configuration.copies
    )
    record = await cluster.coordinator.get(KEY)
    assert record is not None
    assert record.value == b"v"


async def leave_in_doubt(cluster: InProcessCluster, key: bytes, value: bytes) -> None:
    """A write whose deadline passes, and nothing of which arrives."""
    for node in cluster.workers:
        cluster.network.hold(node.address)
    with pytest.raises(Unknown):
        await cluster.coordinator.put(key, value, timeout_s=0.3)
    for node in cluster.workers:
        cluster.network.cut(node.address)
        cluster.network.mend(node.address)
        cluster.network.release(node.address)


async def test_it_is_finished_under_the_version_that_it_was_sent_with(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """So that a copy of it that arrives late is the same."""
    cluster = await InProcessCluster.start(nursery)
    await cluster.coordinator.put(b"any", b"thing")
    await leave_in_doubt(cluster, KEY, b"v")
    [sent] = cluster.coordinator.partitions[partition_of(KEY)].pending.values()
    await cluster.until(lambda: cluster.coordinator.pending == 0)
    assert cluster.coordinator.doubt.size_bytes == 0
    assert await cluster.coordinator.get(KEY) == sent


async def test_while_too_few_of_its_replicas_are_up_nothing_is_sent(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="sync")
    await cluster.coordinator.put(b"any", b"thing")
    head = cluster.replicas_of(KEY)[0]
    await cluster.kill(head)
    await cluster.until_down(head)
    cluster.coordinator.partitions[partition_of(KEY)].note_sent(KEY, LATE)
    cluster.coordinator.in_doubt.set()
    await trio.sleep(1.5)  # it is not given up yet
    assert cluster.coordinator.pending == 1
    assert held(cluster, KEY) == [None] * 3
    await cluster.restart(head)
    await cluster.until(lambda: cluster.coordinator.pending == 0)
    assert held(cluster, KEY) == [LATE.value] * 3


async def test_a_key_at_which_an_operation_is_is_left_to_it_and_holds_up_no_other(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery)
    await cluster.coordinator.put(b"any", b"thing")
    state = cluster.coordinator.partitions[partition_of(KEY)]
    other = next(key for key in map(b"other-%d".__mod__, range(10_000)) if partition_of(key) == state.index)
    with await state.locks.exclusive(KEY):
        state.note_sent(KEY, LATE)
        state.note_sent(other, LATE)
        cluster.coordinator.in_doubt.set()
        await cluster.until(lambda: other not in state.pending)
        await trio.sleep(5)
        assert KEY in state.pending
    await cluster.until(lambda: not state.pending)
    assert await cluster.coordinator.get(KEY) == LATE


async def test_a_write_that_is_finished_holds_its_lock_for_a_moment_only(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Its replicas are up and do not answer: clients of the key get their turn in time, and it is tried again."""
    cluster = await InProcessCluster.start(nursery)
    await cluster.coordinator.put(b"any", b"thing")
    state = cluster.coordinator.partitions[partition_of(KEY)]
    for node in cluster.workers:
        cluster.network.hold(node.address)
    state.note_sent(KEY, LATE)
    cluster.coordinator.in_doubt.set()
    await cluster.until(lambda: state.locks.held(KEY))
    began_s = trio.current_time()
    with await state.locks.exclusive(KEY):
        assert trio.current_time() - began_s <= cluster.coordinator.timeout_s / 2
    for node in cluster.workers:
        cluster.network.release(node.address)
    await cluster.until(lambda: cluster.coordinator.pending == 0)
