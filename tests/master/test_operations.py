"""A cluster whose workers come and go, and whose mode changes: it becomes whole by itself, and keeps what it has."""

from __future__ import annotations

from itertools import permutations

import pytest
import trio
from trio.testing import MockClock

from tests.helpers import partition_of
from trikv.api import Batch, Promise, Record, ReplicaSet, Strategy, Write, newest
from trikv.core.errors import Refused
from trikv.core.precondition import Expect
from trikv.testing.inprocess import PARTITIONS, InProcessCluster

KEYS = [b"key-%d" % number for number in range(60)]
STRONG = ("sync", "chain", "quorum")
ALL = (*STRONG, "async")


async def fill(cluster: InProcessCluster) -> None:
    for key in KEYS:
        await cluster.coordinator.put(key, b"value of " + key)


async def read_all(cluster: InProcessCluster) -> list[bytes | None]:
    records = [await cluster.coordinator.get(key) for key in KEYS]
    return [None if record is None else record.value for record in records]


EXPECTED = [b"value of " + key for key in KEYS]


def copies(cluster: InProcessCluster, key: bytes) -> int:
    """On how many of the replicas that it is placed on the key is."""
    return sum(node.storage.get(partition_of(key), key) is not None for node in cluster.replicas_of(key))


def members(cluster: InProcessCluster) -> set[str]:
    return {m.worker for p in cluster.master.cluster.partitions for m in p.active.members}


@pytest.mark.parametrize("mode", ALL)
async def test_a_worker_that_stays_away_is_replaced_without_anyone_reading(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode=mode, workers=5)
    await fill(cluster)
    gone = cluster.workers[0]
    await cluster.kill(gone)
    await cluster.until(lambda: gone.worker.id not in members(cluster))
    await cluster.until_settled()
    assert all(copies(cluster, key) == 3 for key in KEYS)
    assert await read_all(cluster) == EXPECTED
    await cluster.coordinator.put(KEYS[0], b"again")


@pytest.mark.parametrize("mode", ALL)
async def test_a_worker_that_is_back_in_time_keeps_its_place(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode=mode, workers=4)
    await fill(cluster)
    before = cluster.master.cluster.partitions
    node = cluster.workers[0]
    await cluster.kill(node)
    await trio.sleep(3)
    await cluster.restart(node)
    await trio.sleep(30)
    assert cluster.master.cluster.partitions == before
    assert await read_all(cluster) == EXPECTED


@pytest.mark.parametrize("mode", ALL)
async def test_a_newcomer_takes_its_share_and_no_more(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode=mode, workers=3)
    await fill(cluster)
    newcomer = await cluster.add_worker()
    await cluster.until(lambda: newcomer.worker.id in members(cluster))
    await cluster.until(lambda: cluster.master.operations.progress()["settling"] == 0)
    await trio.sleep(10)
    share = sum(newcomer.worker.id in {m.worker for m in p.active.members} for p in cluster.master.cluster.partitions)
    assert abs(share - 3 * PARTITIONS // 4) <= 3
    assert await read_all(cluster) == EXPECTED
    assert all(copies(cluster, key) == 3 for key in KEYS)


@pytest.mark.parametrize(("before", "after"), [*permutations(ALL, 2)])
async def test_the_mode_changes_while_the_cluster_serves(
    before: str, after: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode=before, workers=4)
    await fill(cluster)
    certificate = await cluster.master.operations.switch_mode(after)
    assert certificate["mode"] == after
    assert certificate["partitions"] == PARTITIONS
    assert all(p.settled and p.active.mode == after for p in cluster.master.cluster.partitions)
    assert await read_all(cluster) == EXPECTED
    if after != "async":
        record = await cluster.coordinator.get(KEYS[0])
        assert record is not None
        await cluster.coordinator.put(KEYS[0], b"set", expect=Expect(frozenset({record.stamp}), match=True))


async def test_a_worker_is_drained_and_then_let_go(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery, workers=4)
    await fill(cluster)
    node = cluster.workers[1]
    plan = await cluster.master.operations.drain(node.worker.id)
    assert plan["copies"] <= 1.05 * 768
    with pytest.raises(Refused, match="under way"):
        await cluster.master.operations.switch_mode("chain")
    await cluster.until(lambda: node.worker.id not in members(cluster))
    await cluster.until_settled()
    assert cluster.master.operations.safe_to_stop(node.worker.id)[0]
    await cluster.kill(node)
    await cluster.until(lambda: node.worker.id not in cluster.master.cluster.workers)
    assert await read_all(cluster) == EXPECTED


async def test_a_new_master_goes_on_with_what_was_begun(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery, workers=4)
    await fill(cluster)
    async with trio.open_nursery() as switching:
        switching.start_soon(cluster.master.operations.switch_mode, "chain")
        await cluster.until(lambda: any(len(p.history) == 2 for p in cluster.master.cluster.partitions))
        switching.cancel_scope.cancel()
    await cluster.restart_master()
    assert cluster.master.cluster.mode == "chain"
    await cluster.until_settled()
    assert await read_all(cluster) == EXPECTED


async def test_what_only_an_evicted_async_worker_held_is_offered_when_it_returns(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="async", workers=5)
    await fill(cluster)
    await trio.sleep(1)
    key = KEYS[0]
    primary = cluster.replicas_of(key)[0]
    partition = partition_of(key)
    await cluster.kill(primary)
    # The primary acknowledged this just before it died, and its background copies died with the master's links.
    record = primary.storage.get(partition, key)
    assert record is not None
    newer = record._replace(version=record.version._replace(seq=record.version.seq + 100), value=b"only here")
    await primary.storage.commit(Batch(puts={(partition, key): newer}))
    await cluster.until(lambda: primary.worker.id not in members(cluster))
    await cluster.until_settled()
    await cluster.restart(primary)
    await cluster.until(lambda: primary.worker.id in members(cluster))
    await cluster.until(lambda: cluster.master.operations.progress()["settling"] == 0)
    found = await cluster.coordinator.get(key)
    assert found is not None
    assert found.value == b"only here"
    # Of partitions that are not its own any more it has kept nothing.
    states = cluster.coordinator.partitions
    others = [state.index for state in states if primary.worker.id not in {t.member.worker for t in state.targets}]
    await cluster.until(
        lambda: all(primary.storage.get(partition_of(k), k) is None or partition_of(k) not in others for k in KEYS)
    )


async def test_with_too_few_workers_sync_goes_on_with_fewer_copies_and_grows_again(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="sync")
    await fill(cluster)
    node = cluster.workers[0]
    await cluster.kill(node)
    await cluster.until(lambda: node.worker.id not in members(cluster))
    await cluster.until_settled()
    await cluster.coordinator.put(KEYS[0], b"with two copies")
    # Never with one: the second that goes leaves the partition waiting.
    other = cluster.workers[1]
    await cluster.kill(other)
    await trio.sleep(30)
    assert other.worker.id in members(cluster)
    with pytest.raises(Refused, match="cannot be reached"):
        await cluster.coordinator.put(KEYS[0], b"with one copy")
    await cluster.restart(other)
    await cluster.restart(node)
    await cluster.until(lambda: all(len(p.active.members) == 3 for p in cluster.master.cluster.partitions))
    await cluster.until_settled()
    assert await read_all(cluster) == [b"with two copies", *EXPECTED[1:]]
    assert all(copies(cluster, key) == 3 for key in KEYS)


async def test_what_too_many_lost_disks_took_is_given_up_only_when_an_operator_says_so(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, workers=3)
    await fill(cluster)
    await trio.sleep(1)  # the third copies arrive
    for node in cluster.workers[:2]:
        await cluster.restart(node, wiped=True)
    await trio.sleep(30)
    with pytest.raises(Refused):
        await cluster.coordinator.get(KEYS[0])
    told = await cluster.master.operations.recover(accept_loss=False)
    assert len(told["partitions"]) == PARTITIONS
    assert told["lost_members"] == sorted(node.worker.id for node in cluster.workers[:2])
    with pytest.raises(Refused):
        await cluster.coordinator.get(KEYS[0])
    await cluster.master.operations.recover(accept_loss=True)
    await cluster.until(lambda: all(len(p.active.members) == 3 for p in cluster.master.cluster.partitions))
    await cluster.until_settled()
    assert await read_all(cluster) == EXPECTED  # the third disk had it all
    assert all(copies(cluster, key) == 3 for key in KEYS)


@pytest.mark.parametrize("mode", ["nope", "", "quorum "])
async def test_a_switch_to_a_mode_that_nobody_installed_names_those_there_are(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery)
    with pytest.raises(Refused, match="quorum"):
        await cluster.master.operations.switch_mode(mode)
    assert cluster.master.cluster.mode == "quorum"


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


class OnlyThree(Strategy):
    """It knows three replicas, and fails over any other number."""

    name = "only-three"
    promise = Promise.CP
    gives_up = use_when = protocol = "-"

    def copies(self, n: int) -> int:
        return {3: 3}[n]

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.store(write)

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        return newest(await replicas.fetch(key))


async def test_a_strategy_that_cannot_have_fewer_replicas_waits_for_them(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="only-three", strategies=[OnlyThree()])
    await fill(cluster)
    await cluster.kill(cluster.workers[0])
    await trio.sleep(30)
    with pytest.raises(Refused, match="cannot be reached"):
        await cluster.coordinator.put(KEYS[0], b"new")
    await cluster.restart(cluster.workers[0])
    await cluster.until_all_up()
    assert await cluster.coordinator.put(KEYS[0], b"new")
