"""Tombstones go when nothing older is left anywhere, not before, and what they deleted never comes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.helpers import partition_of
from trikv.coordinator.partition import PartitionState
from trikv.core.record import Record, Version, make_epoch
from trikv.healing.antientropy import AntiEntropy
from trikv.healing.tombstones import Forgetting, find_forgettable
from trikv.testing.inprocess import InProcessCluster, Node

MODES = ["sync", "chain", "quorum", "async"]
KEYS = [b"k%d" % number for number in range(30)]
GONE = KEYS[:10]
AGE_S = 10.0


async def start(nursery: trio.Nursery, mode: str, **more: Any) -> InProcessCluster:
    """A cluster in which some keys were deleted."""
    cluster = await InProcessCluster.start(nursery, mode=mode, **more)
    for key in KEYS:
        await cluster.coordinator.put(key, b"v")
    for key in GONE:
        await cluster.coordinator.delete(key)
    await trio.sleep(5)
    return cluster


def forgetting(cluster: InProcessCluster) -> Forgetting:
    master = cluster.master
    return Forgetting(cluster.coordinator, master.reconciler.renew, min_age_s=AGE_S)


def holders(cluster: InProcessCluster, key: bytes) -> list[str]:
    """Who holds anything of the key, a member or not."""
    return [node.worker.id for node in cluster.workers if node.storage.get(partition_of(key), key) is not None]


def forgotten(cluster: InProcessCluster) -> bool:
    return not any(holders(cluster, key) for key in GONE)


async def check_reads(cluster: InProcessCluster) -> None:
    for key in KEYS:
        record = await cluster.coordinator.get(key)
        assert (None if record is None else record.value) == (None if key in GONE else b"v")


@pytest.mark.parametrize("mode", MODES)
async def test_a_tombstone_is_forgotten_by_all_after_a_while(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, mode)
    forget = forgetting(cluster)
    before = list(cluster.master.cluster.partitions)
    nursery.start_soon(forget.run)
    await trio.sleep(1.5 * AGE_S)  # it has seen them, and not for so long
    assert all(len(holders(cluster, key)) == 3 for key in KEYS)
    await trio.sleep(3 * AGE_S)
    assert forgotten(cluster)
    assert all(len(holders(cluster, key)) == 3 for key in KEYS[10:])
    assert forget.progress() == {"tombstones": 0, "forgotten": 10}
    swept = {partition_of(key) for key in GONE}
    for index, (old, new) in enumerate(zip(before, cluster.master.cluster.partitions, strict=True)):
        assert new == (old.renewed() if index in swept else old)
        assert new.forgot == (new.generation if index in swept else 0)
        assert not cluster.coordinator.partitions[index].remembers_sent
    await check_reads(cluster)
    for key in GONE:
        await cluster.coordinator.put(key, b"again")
        assert await cluster.coordinator.get(key) is not None


@pytest.mark.parametrize("mode", ["quorum", "async"])
async def test_what_a_replica_that_was_away_holds_does_not_come_back(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode=mode)
    for key in KEYS:
        await cluster.coordinator.put(key, b"v")
    await trio.sleep(5)
    away = cluster.workers[1]
    await cluster.kill(away)
    await cluster.until_down(away)
    for key in GONE:
        await cluster.coordinator.delete(key)
    nursery.start_soon(forgetting(cluster).run)
    nursery.start_soon(AntiEntropy(cluster.coordinator).run)
    epochs = [state.epoch for state in cluster.coordinator.partitions]
    await trio.sleep(5 * AGE_S)
    assert all(len(holders(cluster, key)) == 3 for key in GONE)
    assert [state.epoch for state in cluster.coordinator.partitions] == epochs  # nothing was tried in vain
    await cluster.restart(away)
    await cluster.until_all_up()
    await trio.sleep(5 * AGE_S)
    assert forgotten(cluster)
    await check_reads(cluster)


async def test_an_evicted_worker_that_returns_brings_nothing_back_that_was_deleted(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Under async it would offer what nobody else holds; a key of which the tombstone is forgotten is such a one."""
    cluster = await InProcessCluster.start(nursery, mode="async", workers=4)
    for key in KEYS:
        await cluster.coordinator.put(key, b"v")
    await trio.sleep(5)
    evicted = cluster.workers[1]
    await cluster.kill(evicted)
    member = evicted.worker.id
    await cluster.until(
        lambda: all(m.worker != member for s in cluster.coordinator.partitions for m in s.configuration.members)
    )
    await cluster.until_settled()
    for key in GONE:
        await cluster.coordinator.delete(key)
    nursery.start_soon(forgetting(cluster).run)
    await trio.sleep(5 * AGE_S)
    assert all(holders(cluster, key) in ([], [member]) for key in GONE)
    assert any(holders(cluster, key) for key in GONE)
    await cluster.restart(evicted)
    await cluster.until(
        lambda: any(m.worker == member for s in cluster.coordinator.partitions for m in s.configuration.members)
    )
    await trio.sleep(20)
    await cluster.until_settled()
    await check_reads(cluster)
    for key in GONE:
        members = [target.member.worker for target in cluster.coordinator.partitions[partition_of(key)].targets]
        assert not set(holders(cluster, key)) & set(members)


async def test_a_key_of_which_something_was_sent_in_this_epoch_is_left_alone(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """What was sent may be late: older than the tombstone, and not fenced."""
    cluster = await start(nursery, "quorum")
    sent, free = GONE[:2]

    async def renew(partitions: Sequence[int]) -> list[int]:
        renewed = await cluster.master.reconciler.renew(partitions)
        if partition_of(sent) in renewed:
            nursery.start_soon(note, cluster.coordinator.partitions[partition_of(sent)])
        return renewed

    async def note(state: PartitionState) -> None:
        with await state.locks.exclusive(sent):
            await trio.sleep(1)  # by then the listing is done, and its tombstone waits for the lock
            state.note_store(sent)

    forget = Forgetting(cluster.coordinator, renew, min_age_s=AGE_S)
    nursery.start_soon(forget.run)
    await trio.sleep(2.5 * AGE_S)
    assert len(holders(cluster, sent)) == 3
    assert not holders(cluster, free)
    await cluster.until(lambda: not any(state.remembers_sent for state in cluster.coordinator.partitions))


async def test_a_partition_that_was_written_to_before_it_could_be_watched_is_left_alone(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, "quorum")

    async def renew(partitions: Sequence[int]) -> list[int]:
        renewed = await cluster.master.reconciler.renew(partitions)
        for index in renewed:
            cluster.coordinator.partitions[index].note_store(b"any key")
        return renewed

    forget = Forgetting(cluster.coordinator, renew, min_age_s=AGE_S)
    with trio.move_on_after(3 * AGE_S):
        await forget.run()
    assert all(len(holders(cluster, key)) == 3 for key in GONE)


@pytest.mark.parametrize("mode", ["quorum", "async"])  # the others drop a member that does not answer
async def test_a_tombstone_that_only_some_forget_still_deletes(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """One member does not hear of it; anti-entropy makes them alike again, and the next sweep forgets it."""
    cluster = await start(nursery, mode)
    key = GONE[0]
    deaf: Node = cluster.replicas_of(key)[1]

    async def renew(partitions: Sequence[int]) -> list[int]:
        renewed = await cluster.master.reconciler.renew(partitions)
        if partition_of(key) in renewed and not forget.forgotten:
            nursery.start_soon(go_deaf, cluster.coordinator.partitions[partition_of(key)])
        return renewed

    async def go_deaf(state: PartitionState) -> None:
        with await state.locks.exclusive(key):
            await trio.sleep(1)
            cluster.network.hold(deaf.address)
        await trio.sleep(0.1)
        cluster.network.cut(deaf.address)

    forget = Forgetting(cluster.coordinator, renew, min_age_s=AGE_S)
    with trio.move_on_after(3 * AGE_S):
        await forget.run()
    assert holders(cluster, key) == [deaf.worker.id]
    cluster.network.mend(deaf.address)
    cluster.network.release(deaf.address)
    await cluster.until_all_up()
    assert await cluster.coordinator.get(key) is None
    await AntiEntropy(cluster.coordinator).repair(dry_run=False)
    assert len(holders(cluster, key)) == 3
    assert await cluster.coordinator.get(key) is None
    with trio.move_on_after(5 * AGE_S):
        await forget.run()
    assert forgotten(cluster)
    await check_reads(cluster)


@pytest.mark.parametrize("mode", MODES)
async def test_deleting_and_writing_go_on_meanwhile(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, mode)
    master = cluster.master
    nursery.start_soon(Forgetting(cluster.coordinator, master.reconciler.renew, min_age_s=0.5).run)
    for number in range(400):
        key = KEYS[number % 7]
        if number % 3:
            await cluster.coordinator.put(key, b"%d" % number)
        else:
            await cluster.coordinator.delete(key)
        record = await cluster.coordinator.get(key)
        assert (None if record is None else record.value) == (b"%d" % number if number % 3 else None)
        await trio.sleep(0.03)


def test_only_what_all_hold_alike_and_from_before_may_be_forgotten() -> None:
    now, before = make_epoch(3, 2), make_epoch(3, 1)

    class Three:
        epoch = now
        targets = (1, 2, 3)

    def tombstone(seq: int, epoch: int = before) -> Record:
        return Record(Version(epoch, seq), Version(epoch, seq), None)

    def find(*held: Record | None) -> Version | None:
        rows = {str(number): record for number, record in enumerate(held) if record is not None}
        return find_forgettable(Three(), rows)  # type: ignore[arg-type]  # of a state only that much is looked at

    old, value = tombstone(1), tombstone(1)._replace(value=b"")
    assert find(old, old, old) == old.version
    assert find(old, old, None) is None
    assert find(old, old, tombstone(2)) is None
    assert find(old, old, value) is None
    assert find(value, value, value) is None
    assert find(*[tombstone(1, now)] * 3) is None
