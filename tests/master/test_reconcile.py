"""Changes of configurations: which workers join and leave, and that no committed write is lost on the way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.helpers import (
    KEYS,
    MANY,
    VALUES,
    copies_of,
    fill,
    fill_apart,
    later,
    lay_down,
    members_of,
    partition_of,
    read_all,
    shut,
    slow_down,
    start_on_slow_disks,
    start_with_a_drained_one,
    under,
    value_of,
    values,
)
from tests.sim.driven import INDEX, KEY, driven
from trikv.api import Batch, Promise, Record, ReplicaSet, Strategy, Write, newest
from trikv.coordinator.partition import Stage
from trikv.core.configuration import Cluster, Configuration
from trikv.core.errors import Refused, Unknown
from trikv.core.planning import ConfigurationChange, Reason
from trikv.core.quorums import Availability
from trikv.core.record import make_epoch
from trikv.healing import settle
from trikv.master.configstore import MemoryConfigStore
from trikv.master.reconcile import MOVES_TOGETHER
from trikv.storage.memory import MemoryStorage
from trikv.testing.inprocess import PARTITIONS, InProcessCluster

MODES = ("sync", "chain", "quorum", "async")


# --- workers that come and go -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
async def test_a_worker_that_stays_away_is_replaced_without_anyone_reading(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode=mode, workers=5)
    await fill_apart(cluster)
    gone = cluster.workers[0]
    await cluster.kill(gone)
    await cluster.until(lambda: gone.worker.id not in members_of(cluster))
    await cluster.until_settled()
    assert all(copies_of(cluster, key) == 3 for key in KEYS)
    assert await read_all(cluster) == VALUES
    await cluster.coordinator.put(KEYS[0], b"again")


@pytest.mark.parametrize("mode", MODES)
async def test_a_worker_that_is_back_in_time_keeps_its_place(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode=mode, workers=4)
    await fill_apart(cluster)
    before = cluster.master.cluster.partitions
    node = cluster.workers[0]
    await cluster.kill(node)
    await trio.sleep(3)
    await cluster.restart(node)
    await trio.sleep(30)
    assert cluster.master.cluster.partitions == before
    assert await read_all(cluster) == VALUES


@pytest.mark.parametrize("mode", MODES)
async def test_a_newcomer_takes_its_share_and_no_more(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode=mode, workers=3)
    await fill_apart(cluster)
    newcomer = await cluster.add_worker()
    await cluster.until(lambda: newcomer.worker.id in members_of(cluster))
    await cluster.until(lambda: cluster.master.operations.progress()["settling"] == 0)
    await trio.sleep(10)
    share = sum(newcomer.worker.id in {m.worker for m in p.active.members} for p in cluster.master.cluster.partitions)
    assert abs(share - 3 * PARTITIONS // 4) <= 3
    assert await read_all(cluster) == VALUES
    assert all(copies_of(cluster, key) == 3 for key in KEYS)


async def test_with_too_few_workers_sync_goes_on_with_fewer_copies_and_grows_again(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="sync")
    await fill_apart(cluster)
    node = cluster.workers[0]
    await cluster.kill(node)
    await cluster.until(lambda: node.worker.id not in members_of(cluster))
    await cluster.until_settled()
    await cluster.coordinator.put(KEYS[0], b"with two copies")
    # Never with one: the second that goes leaves the partition waiting.
    other = cluster.workers[1]
    await cluster.kill(other)
    await trio.sleep(30)
    assert other.worker.id in members_of(cluster)
    with pytest.raises(Refused, match="cannot be reached"):
        await cluster.coordinator.put(KEYS[0], b"with one copy")
    await cluster.restart(other)
    await cluster.restart(node)
    await cluster.until(lambda: all(len(p.active.members) == 3 for p in cluster.master.cluster.partitions))
    await cluster.until_settled()
    assert await read_all(cluster) == VALUES | {KEYS[0]: b"with two copies"}
    assert all(copies_of(cluster, key) == 3 for key in KEYS)


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
    await fill_apart(cluster)
    await cluster.kill(cluster.workers[0])
    await trio.sleep(30)
    with pytest.raises(Refused, match="cannot be reached"):
        await cluster.coordinator.put(KEYS[0], b"new")
    await cluster.restart(cluster.workers[0])
    await cluster.until_all_up()
    assert await cluster.coordinator.put(KEYS[0], b"new")


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


# --- a configuration that was made here -------------------------------------------------------------------------------


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


async def test_what_is_acknowledged_after_a_configuration_was_closed_is_unknown(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is just being replaced, in the belief that nobody has been told of anything in it."""
    monkeypatch.setattr(settle, "choose_to_settle", lambda history, hung: None)  # settling has not come to it
    async with driven(nursery, "quorum") as drive:
        await drive.write(b"v")
        await drive.change(drive.spares, "quorum")
        state = drive.state
        for node in drive.spares:
            drive.cluster.network.hold(node.address)

        async def close_when_sent() -> None:
            await drive.cluster.until(lambda: state.pending)
            state.close()
            for node in drive.spares:
                drive.cluster.network.release(node.address)

        nursery.start_soon(close_when_sent)
        with pytest.raises(Unknown, match="was replaced"):
            await drive.cluster.coordinator.put(KEY, b"w")
        assert state.stage is Stage.CLOSED


# --- what a worker brings back ----------------------------------------------------------------------------------------


async def test_what_only_an_evicted_async_worker_held_is_offered_when_it_returns(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="async", workers=5)
    await fill_apart(cluster)
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
    await cluster.until(lambda: primary.worker.id not in members_of(cluster))
    await cluster.until_settled()
    await cluster.restart(primary)
    await cluster.until(lambda: primary.worker.id in members_of(cluster))
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


# --- steps 1 and 2 of one change --------------------------------------------------------------------------------------


async def test_a_joiner_has_discarded_what_it_held_before_it_counts(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "choose_to_settle", lambda history, hung: None)
    async with driven(nursery, "quorum") as drive:
        await drive.write(b"v")
        joiner = drive.spares[0]
        await lay_down(drive.cluster, nursery, joiner, KEY, later(drive.cluster, KEY), b"of a former life")
        generation = drive.state.partition.generation
        await drive.change([*drive.replicas[:2], joiner], "quorum")
        assert joiner.storage.get(INDEX, KEY) is None
        assert drive.state.partition.generation == generation + 1
        assert [t.member.worker for t in drive.state.targets][-1] == joiner.worker.id
        stored, _ = await drive.cluster.store.read()
        assert stored is not None
        assert Cluster.from_document(stored).partitions[INDEX] == drive.state.partition


@pytest.mark.parametrize("joins", [True, False], ids=["a joiner", "a member"])
async def test_a_change_to_one_that_gives_no_sign_of_life_is_left_out_and_others_are_made(
    joins: bool, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async with driven(nursery, "quorum") as drive:
        cluster = drive.cluster
        await drive.write(b"v")
        silent = drive.spares[0] if joins else drive.replicas[2]
        other = next(
            state
            for state in cluster.coordinator.partitions
            if silent.worker.id not in {target.member.worker for target in state.targets}
        )
        mine = drive.state
        cluster.network.hold(silent.address)
        members = tuple(cluster.master.cluster.workers[node.worker.id].member for node in (*drive.replicas[:2], silent))
        await cluster.master.reconciler.carry_out(
            [
                ConfigurationChange(mine.index, Configuration(members, "chain", 3), Reason.MODE),
                ConfigurationChange(other.index, replace(other.configuration, mode="chain", copies=3), Reason.MODE),
            ]
        )
        assert drive.state is mine
        assert cluster.coordinator.partitions[other.index].configuration.mode == "chain"


async def test_what_was_prepared_for_a_partition_that_was_settled_meanwhile_is_not_made(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its history is another by now: the next look at it decides anew."""
    async with driven(nursery, "quorum") as drive:
        await drive.write(b"v")
        first, second, *_ = drive.spares
        with monkeypatch.context() as patch:
            patch.setattr(settle, "choose_to_settle", lambda history, hung: None)
            await drive.change([*drive.replicas[:2], first], "quorum")
            state = drive.state
            drive.cluster.network.hold(second.address)
            nursery.start_soon(drive.change, [*drive.replicas[:2], second], "quorum")
            await trio.testing.wait_all_tasks_blocked()
        await drive.cluster.until(lambda: drive.state.partition.settled)
        drive.cluster.network.release(second.address)
        await trio.sleep(5)
        assert drive.state is state
        assert drive.state.stage is Stage.SETTLED


async def test_a_configuration_is_kept_in_the_history_once_something_was_committed_under_it(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "choose_to_settle", lambda history, hung: None)
    async with driven(nursery, "quorum") as drive:
        await drive.write(b"v")
        histories = [drive.state.partition.history]
        one, two, three = drive.spares
        for members, commits in (([one, two], False), ([one, three], True), ([two, three], False)):
            await drive.change([*members, drive.replicas[0]], "quorum")
            if commits:
                await drive.write(b"w")
            histories.append(drive.state.partition.history)
        first, unused, used, last = (history[-1] for history in histories)
        assert histories == [(first,), (first, unused), (first, used), (first, used, last)]
        assert await drive.read() == b"w"


async def test_settled_partitions_are_renewed_and_no_others(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "choose_to_settle", lambda history, hung: None)
    async with driven(nursery, "quorum") as drive:
        await drive.change([*drive.replicas[:2], drive.spares[0]], "quorum")
    cluster = drive.cluster
    settled, blocked = (n for n in (0, 1, 2) if n != INDEX) if INDEX < 3 else (0, 1)
    cluster.coordinator.partitions[blocked].block(make_epoch(1, 9), "older")
    before = cluster.master.cluster.partitions
    assert await cluster.master.reconciler.renew([settled, blocked, INDEX]) == [settled]
    after = cluster.master.cluster.partitions
    assert after[settled] == before[settled].renewed()
    assert after[settled].forgot == after[settled].generation == before[settled].generation + 1
    assert (after[blocked], after[INDEX]) == (before[blocked], before[INDEX])


# --- what is due, and how much at once --------------------------------------------------------------------------------


class Strange(Strategy):
    """What it says of its copies is what a test wants."""

    name = "strange"
    promise = Promise.CP
    gives_up = use_when = protocol = "-"
    said: Any = 2

    def copies(self, n: int) -> int:
        if isinstance(self.said, Exception):
            raise self.said
        return int(self.said)

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.store(write)

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        return newest(await replicas.fetch(key))


@pytest.mark.parametrize(
    ("said", "copies"),
    [
        pytest.param(1, 1, id="as many as it says"),
        pytest.param(3, 3, id="all of them"),
        pytest.param(0, 4, id="none: it cannot have so few"),
        pytest.param(4, 4, id="more than there are"),
        pytest.param(KeyError(3), 4, id="it fails"),
    ],
)
async def test_a_strategy_that_cannot_have_so_many_replicas_needs_more_than_there_are(
    said: Any, copies: int, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    strategy = Strange()
    cluster = await InProcessCluster.start(nursery, mode="strange", strategies=[strategy])
    strategy.said = said
    assert cluster.master.reconciler.copies("strange", 3) == copies


async def test_those_that_only_move_go_a_few_at_a_time_and_those_of_an_evicted_worker_at_once(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = await InProcessCluster.start(nursery, workers=4, partitions=MANY)
    await fill(cluster)
    monkeypatch.setattr(settle, "choose_to_settle", lambda history, hung: None)

    def unsettled() -> int:
        return sum(not partition.settled for partition in cluster.master.cluster.partitions)

    newcomer = await cluster.add_worker()
    await cluster.until(lambda: under(cluster, newcomer))
    await trio.sleep(10)
    assert unsettled() == MOVES_TOGETHER
    gone = cluster.workers[0]
    places = len(under(cluster, gone))
    assert places > 3 * MOVES_TOGETHER
    await cluster.kill(gone)
    await cluster.until(lambda: not under(cluster, gone))
    assert unsettled() >= places


async def test_it_is_at_rest_when_nothing_is_due_and_nobody_has_to_be_looked_at(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, workers=4)
    await fill(cluster)
    reconciler = cluster.master.reconciler
    await cluster.until(lambda: reconciler.at_rest)
    async with reconciler.stepping:
        assert not reconciler.at_rest
    reconciler.note_up(cluster.workers[0].worker.id)
    assert not reconciler.at_rest
    await cluster.until(lambda: reconciler.at_rest)
    await cluster.kill(cluster.workers[0])
    await cluster.until(lambda: not under(cluster, cluster.workers[0]))
    assert not reconciler.at_rest, "it looks once more before it rests"
    await cluster.until(lambda: reconciler.at_rest)


async def test_each_change_is_told_with_its_reason_and_those_that_it_brings_and_takes(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, workers=4)
    await fill(cluster)

    def told(kind: str) -> list[dict[str, Any]]:
        return [event for event in reversed(cluster.master.events.latest(500)) if event["kind"] == kind]

    newcomer = await cluster.add_worker()
    await cluster.until(lambda: under(cluster, newcomer))
    await cluster.until_settled()
    await cluster.until(lambda: cluster.master.reconciler.at_rest)
    assert [event["worker"] for event in told("worker_joined")][-1] == newcomer.worker.id
    moved = told("configuration_changed")
    assert {event["reason"] for event in moved} == {"move"}
    assert sum(event["joins"].get(newcomer.worker.id, 0) for event in moved) == len(under(cluster, newcomer))

    gone = cluster.workers[0]
    places = len(under(cluster, gone))
    await cluster.kill(gone)
    await cluster.until(lambda: not under(cluster, gone))
    assert [(event["worker"], event["partitions"]) for event in told("worker_evicted")] == [(gone.worker.id, places)]
    evicted = [event for event in told("configuration_changed") if event["reason"] == "evict"]
    assert sum(event["leaves"][gone.worker.id] for event in evicted) == places
    await cluster.until_settled()
    await cluster.until(lambda: told("worker_left"))
    assert [event["worker"] for event in told("worker_left")] == [gone.worker.id]

    drained = cluster.workers[1]
    await cluster.master.operations.drain(drained.worker.id)
    await cluster.until(lambda: told("worker_drained"))
    assert [event["worker"] for event in told("worker_drained")] == [drained.worker.id]
