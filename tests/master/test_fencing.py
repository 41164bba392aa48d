"""A master whose workers know more than its document, as after a restored backup: what it goes beyond, and blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.helpers import KEYS, back_up, code_of, fill, partition_of, restore, seen, values
from trikv.core.calls import Op
from trikv.core.configuration import Cluster
from trikv.core.errors import Refused
from trikv.core.quorums import Availability
from trikv.core.record import JUMP_MAX, PROMISED_MAX, Record, Version, make_epoch
from trikv.master.configstore import ConfigStoreError, MemoryConfigStore
from trikv.master.fencing import RIVAL_AT
from trikv.net.link import dial
from trikv.testing.inprocess import PARTITIONS, InProcessCluster, Node

KEY = b"key"


async def promise(cluster: InProcessCluster, node: Node, partition: int, epoch: int) -> None:
    """Have the worker promise an epoch that this master has never heard of."""
    link = await dial(await cluster.network.connect(node.address), cluster.master.hello())
    answered = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        arguments = [partition, epoch, node.worker.incarnation, b"k"]
        link.call(Op.FETCH, arguments, trio.current_time() + 1, lambda fault, payload: answered.set())
        await answered.wait()
        nursery.cancel_scope.cancel()


# --- what is believed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("terms", "generations", "blocked", "beyond"),
    [
        pytest.param(0, 1, True, None, id="a generation that the document does not know"),
        pytest.param(5, 1, True, 5, id="such a one under a later term: going beyond that proves nothing"),
        pytest.param(0, PROMISED_MAX, True, None, id="the highest generation that is believed"),
        pytest.param(0, PROMISED_MAX + 1, False, None, id="a generation beyond all belief"),
        pytest.param(1, 0, False, 1, id="this generation under a later term"),
        pytest.param(PROMISED_MAX, -1, False, PROMISED_MAX, id="the highest term that is believed"),
        pytest.param(PROMISED_MAX + 1, 0, False, None, id="a term beyond all belief"),
        pytest.param(0, 0, False, None, id="the present epoch"),
        pytest.param(-1, 0, False, None, id="an earlier term"),
    ],
)
@pytest.mark.parametrize("holds_lease", [None, lambda: True], ids=["alone", "among others"])
async def test_what_a_worker_has_promised_blocks_a_partition_or_makes_the_master_go_beyond_it(
    terms: int,
    generations: int,
    blocked: bool,
    beyond: int | None,
    holds_lease: Callable[[], bool] | None,
    nursery: trio.Nursery,
    autojump_clock: MockClock,
) -> None:
    cluster = await InProcessCluster.start(nursery, holds_lease=holds_lease)
    await cluster.coordinator.put(KEY, b"v")
    await cluster.restart_master()
    await cluster.until_all_up()
    term, state = cluster.master.cluster.term, cluster.coordinator.partitions[partition_of(KEY)]
    cluster.master.fencing.note_stale(state, make_epoch(term + terms, state.partition.generation + generations))
    await trio.sleep(5)
    now = cluster.coordinator.partitions[state.index]
    assert now.is_blocked is blocked
    assert [each.index for each in cluster.coordinator.partitions if each.is_blocked] == [state.index] * blocked
    assert cluster.master.cluster.term == (term if beyond is None else term + beyond + 1)
    if blocked:
        assert f"knows generation {state.partition.generation}: it is older than the cluster" in now.blocked_because


async def test_an_answer_to_a_former_state_is_held_against_the_present_one(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """A call of a former generation comes back with the present one: that is no news."""
    cluster = await InProcessCluster.start(nursery)
    await cluster.coordinator.put(KEY, b"v")
    former = cluster.coordinator.partitions[partition_of(KEY)]
    assert await cluster.master.reconciler.renew([former.index]) == [former.index]
    present = cluster.coordinator.partitions[former.index]
    cluster.master.fencing.note_stale(former, present.epoch)
    assert [former.is_blocked, present.is_blocked] == [False, False]
    cluster.master.fencing.note_stale(former, present.epoch + 1)
    assert [former.is_blocked, present.is_blocked] == [False, True]


@pytest.mark.parametrize(
    ("terms", "outbid"),
    [
        pytest.param(-1, False, id="an earlier one is over"),
        pytest.param(0, True, id="this one: another master has it too"),
        pytest.param(1, True, id="a later one"),
        pytest.param(PROMISED_MAX + 1, False, id="one beyond all belief"),
    ],
)
async def test_a_rival_of_this_term_or_a_later_one_is_outbid(
    terms: int, outbid: bool, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery)
    await cluster.restart_master()
    await cluster.until_all_up()
    term = cluster.master.cluster.term
    cluster.master.fencing.note_rival(term + terms)
    cluster.master.fencing.note_rival(term + terms)  # two workers say so
    await trio.sleep(5)
    assert cluster.master.cluster.term == (term + terms + 1 if outbid else term)
    # Under that other term there may be records, so a newcomer must stay spare.
    assert cluster.master.cluster.stored is outbid
    await cluster.until_all_up()


async def test_a_master_whose_workers_are_taken_away_again_and_again_has_a_rival(
    nursery: trio.Nursery, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = await InProcessCluster.start(nursery)
    master = cluster.master
    for times in range(1, RIVAL_AT + 2):
        term = master.cluster.term + 1
        for _ in cluster.workers:
            master.fencing.note_rival(term, taken=True)
        await cluster.until(partial(lambda rival: master.cluster.term > rival, term))
        assert master.events.counts["master_rival"] == (times >= RIVAL_AT), "once for all of them"
    assert caplog.text.count("stop one of the two") == 1


async def test_a_master_on_a_document_that_was_put_back_has_no_rival(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Its workers know later terms, each another one, and none of them has followed this master before."""
    cluster = await InProcessCluster.start(nursery, mode="quorum", workers=6)
    await cluster.coordinator.put(KEY, b"v")
    await cluster.until_settled()
    backup = await back_up(cluster)
    for node in cluster.workers[:-1]:
        await cluster.kill(node)
        await cluster.restart_master()
        await trio.sleep(2)
    term = cluster.master.cluster.term
    await cluster.stop_master()
    await restore(cluster, backup)
    await cluster.start_master()
    for node in cluster.workers[:-1]:
        await cluster.restart(node)
        await trio.sleep(2)
    await cluster.until(lambda: cluster.master.cluster.term > term)
    assert not cluster.master.events.counts["master_rival"]


# --- terms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sync", "async", "chain", "quorum"])
async def test_a_master_whose_document_is_behind_outbids_what_workers_have_promised(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode=mode)
    await cluster.coordinator.put(KEY, b"early")
    backup = await back_up(cluster)
    for _ in range(5):
        await cluster.restart_master()
    late = await cluster.coordinator.put(KEY, b"late")
    await trio.sleep(2)
    await cluster.stop_master()
    await restore(cluster, backup)
    await cluster.start_master()
    await cluster.until_all_up()
    await code_of(cluster)  # it may be refused: this is how the master finds out
    await cluster.until(lambda: cluster.master.cluster.term > 6)
    record = await cluster.coordinator.get(KEY)
    assert record is not None
    assert record.stamp == late
    assert await cluster.coordinator.put(KEY, b"after") > late
    stored, _ = await cluster.store.read()
    assert stored is not None
    assert Cluster.from_document(stored).term == cluster.master.cluster.term


async def test_a_worker_that_was_led_on_by_several_leaps_is_followed(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Each leap is one that a backup could explain; together they are more than the other workers believe at once."""
    cluster = await InProcessCluster.start(nursery, mode="sync")
    await cluster.coordinator.put(b"k", b"v")
    term = cluster.master.cluster.term
    for leaps in (1, 2, 3):
        stranger = cluster.master.hello()._replace(incarnation=f"{term + leaps * JUMP_MAX}/a-stranger")
        link = await dial(await cluster.network.connect(cluster.workers[0].address), stranger)
        await link.close()
    await cluster.until(lambda: cluster.master.cluster.term > term + 3 * JUMP_MAX)
    await cluster.until_all_up()
    await cluster.coordinator.put(b"k", b"w")
    assert (await cluster.coordinator.get(b"k")).value == b"w"  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", ["sync", "chain", "quorum"])
async def test_a_document_restored_under_a_term_that_was_used_already_loses_nothing(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode=mode)
    await cluster.coordinator.put(b"another", b"0")
    backup = await back_up(cluster)
    await cluster.restart_master()
    await cluster.until_all_up()
    first = await cluster.coordinator.put(KEY, b"A")
    await cluster.stop_master()
    await restore(cluster, backup)
    await cluster.start_master()  # takes the term that the last master had, until a worker names that one
    await cluster.until_all_up()
    assert await cluster.coordinator.put(KEY, b"B") > first
    record = await cluster.coordinator.get(KEY)
    assert record is not None
    assert record.value == b"B"


async def test_a_document_restored_from_before_the_first_store_makes_nobody_lose_a_place(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery)
    backup = await back_up(cluster)
    await cluster.restart_master()
    await cluster.until_all_up()
    await cluster.coordinator.put(KEY, b"v")
    await cluster.stop_master()
    await restore(cluster, backup)
    await cluster.start_master()
    await cluster.until_all_up()
    newcomer = await cluster.add_worker()
    await cluster.until(lambda: newcomer.worker.id in cluster.master.cluster.workers)
    assert seen(cluster, newcomer)["place"] == "spare"
    assert await code_of(cluster) == "committed"


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


# --- generations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terms_ahead", [0, 5])
async def test_a_partition_of_an_unknown_generation_is_refused_and_no_other(
    terms_ahead: int, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Configurations may have existed that nobody remembers; a later term does not change that."""
    cluster = await InProcessCluster.start(nursery, mode="quorum")
    await cluster.coordinator.put(KEY, b"v")
    await cluster.coordinator.put(b"another", b"v")
    state = cluster.coordinator.partitions[partition_of(KEY)]
    assert state.index != partition_of(b"another")
    term = cluster.master.cluster.term
    later = make_epoch(term + terms_ahead, state.partition.generation + 1)
    for node in cluster.workers:
        await promise(cluster, node, state.index, later)
    await code_of(cluster)
    await cluster.until(lambda: cluster.coordinator.partitions[state.index].is_blocked)
    with pytest.raises(Refused, match="it is older than the cluster") as refused:
        await cluster.coordinator.get(KEY)
    assert refused.value.kind.code == "recover"
    with pytest.raises(Refused):
        await cluster.coordinator.put(KEY, b"w")
    await code_of(cluster, b"another")
    await cluster.until(lambda: cluster.master.cluster.term > term + terms_ahead or not terms_ahead)
    assert await code_of(cluster, b"another") == "committed"
    assert await code_of(cluster) == "recover"
    assert cluster.master.status.describe()["partitions"]["readable"] == PARTITIONS - 1
    await cluster.restart_master()  # nor does a restart
    await cluster.until_all_up()
    await code_of(cluster)
    assert await code_of(cluster) == "recover"
    # Until an operator decides to go on with what those have who are known.
    told = await cluster.master.operations.recover(accept_loss=True)
    assert told["partitions"] == [state.index]
    await cluster.until(lambda: cluster.master.cluster.partitions[state.index].settled)
    record = await cluster.coordinator.get(KEY)
    assert record is not None
    assert record.value == b"v"
    assert await cluster.coordinator.put(KEY, b"w")


async def test_a_generation_that_no_backup_explains_blocks_nothing(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="quorum")
    await cluster.coordinator.put(b"k", b"v")
    state = cluster.coordinator.partitions[partition_of(b"k")]
    cluster.master.fencing.note_stale(state, make_epoch(1, (1 << 32) - 1))
    assert (await cluster.coordinator.get(b"k")).value == b"v"  # type: ignore[union-attr]
