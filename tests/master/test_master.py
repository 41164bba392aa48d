"""The master: forming, enlisting, terms, and what it makes of workers that know more than its document."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cbor2
import pytest
import trio
from trio.testing import MockClock

from tests.helpers import partition_of
from trikv.api import Batch
from trikv.core import frames
from trikv.core.calls import Op
from trikv.core.configuration import Cluster
from trikv.core.errors import Fault, Refused
from trikv.core.record import JUMP_MAX, make_epoch
from trikv.core.session import Hello, Session
from trikv.master import enlist
from trikv.master.configstore import ConfigConflict, MemoryConfigStore
from trikv.master.master import Master, StartError
from trikv.net.link import LinkError, dial
from trikv.storage.memory import MemoryStorage
from trikv.testing.inprocess import PARTITIONS, InProcessCluster, Node
from trikv_sync import Sync

KEY = b"key"


async def start(nursery: trio.Nursery, **more: Any) -> InProcessCluster:
    return await InProcessCluster.start(nursery, **more)


def seen(cluster: InProcessCluster, node: Node) -> dict[str, Any]:
    """What the cluster's description says of that worker."""
    workers = cluster.master.status.describe()["workers"]
    return next(worker for worker in workers if worker["id"] == node.worker.id)


async def code_of(cluster: InProcessCluster, key: bytes = KEY) -> str:
    """How a read of the key ends."""
    try:
        await cluster.coordinator.get(key)
    except Refused as error:
        return error.kind.code
    return "committed"


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


# --- forming ------------------------------------------------------------------------------------------------------


async def test_until_enough_workers_have_enlisted_it_says_how_many_are_missing(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, workers=1)
    await cluster.until(lambda: cluster.master.cluster.workers)
    for operation in (cluster.coordinator.put(KEY, b"v"), cluster.coordinator.get(KEY)):
        with pytest.raises(Refused, match="1 of 3 workers have enlisted; 2 more needed") as refused:
            await operation
        assert refused.value.kind.code == "forming"
    forming = cluster.master.status.describe()["forming"]
    assert (forming["needed"], forming["enlisted"], forming["missing"]) == (3, 1, 2)
    for _ in range(2):
        await cluster.add_worker()
    await cluster.until(lambda: cluster.master.cluster.formed)
    assert cluster.master.status.describe()["forming"] is None
    await cluster.coordinator.put(KEY, b"v")


async def test_it_waits_for_all_whom_the_command_line_names(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await start(nursery, workers=0)
    await cluster.stop_master()
    cluster.store = MemoryConfigStore()
    named = ["127.0.0.1:7001", "127.0.0.1:7002"]
    await cluster.start_master(mode="quorum", replicas=2, named=named)
    await cluster.add_worker()
    await cluster.add_worker()
    await cluster.add_worker(address=named[0], enlist=False)
    await cluster.until(lambda: len(cluster.master.cluster.workers) == 3)
    with pytest.raises(Refused, match=r"waiting for 127\.0\.0\.1:7002, named at the start"):
        await cluster.coordinator.put(KEY, b"v")
    await cluster.add_worker(address=named[1], enlist=False)
    await cluster.until(lambda: cluster.master.cluster.formed)
    assert len(cluster.master.cluster.workers) == 4
    assert all(seen(cluster, node)["place"] == "member" for node in cluster.workers)


async def test_until_the_first_store_each_newcomer_gets_a_share_and_after_it_is_spare(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, workers=4)
    assert [seen(cluster, node)["place"] for node in cluster.workers] == ["member"] * 4
    assert sum(seen(cluster, node)["copies"] for node in cluster.workers) == 3 * PARTITIONS
    await cluster.coordinator.put(KEY, b"v")
    newcomer = await cluster.add_worker()
    await cluster.until(lambda: newcomer.worker.id in cluster.master.cluster.workers)
    assert (seen(cluster, newcomer)["place"], seen(cluster, newcomer)["copies"]) == ("spare", 0)
    assert await code_of(cluster) == "committed"


# --- workers that come back ---------------------------------------------------------------------------------------


async def test_a_worker_that_comes_back_without_its_data_is_lost(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, mode="quorum")
    await cluster.coordinator.put(KEY, b"v")
    wiped = cluster.replicas_of(KEY)[0]
    await cluster.restart(wiped, wiped=True)
    await cluster.until(lambda: seen(cluster, wiped)["place"] == "lost")
    assert "came back without its data" in seen(cluster, wiped)["note"]
    assert seen(cluster, wiped)["incarnation"] == wiped.worker.incarnation
    record = await cluster.coordinator.get(KEY)
    assert record is not None
    await cluster.coordinator.put(KEY, b"w")
    assert wiped.storage.get(partition_of(KEY), KEY) is None
    await cluster.restart_master()
    await cluster.until_all_up()
    assert seen(cluster, wiped)["place"] == "lost"


async def test_one_wiped_before_the_first_store_is_placed_anew(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery)
    wiped = cluster.workers[0]
    await cluster.restart(wiped, wiped=True)
    await cluster.until(lambda: seen(cluster, wiped)["incarnation"] == wiped.worker.incarnation)
    assert seen(cluster, wiped)["place"] == "member"
    await cluster.until_all_up()
    await cluster.coordinator.put(KEY, b"v")
    assert wiped.storage.get(partition_of(KEY), KEY) is not None


async def test_a_worker_may_come_back_at_another_address(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await start(nursery, mode="sync")
    await cluster.coordinator.put(KEY, b"v")
    moved = cluster.workers.pop(0)
    await cluster.kill(moved)
    again = await cluster.add_worker(storage=moved.storage, worker_id=moved.worker.id)
    assert again.address != moved.address
    await cluster.until(lambda: seen(cluster, again)["address"] == again.address)
    await cluster.until_all_up()
    assert seen(cluster, again)["place"] == "member"
    assert await code_of(cluster) == "committed"
    await cluster.coordinator.put(KEY, b"w")
    assert again.storage.get(partition_of(KEY), KEY) is not None


async def test_two_workers_with_one_identity_are_refused(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await start(nursery)
    original = cluster.workers[0]
    twin = MemoryStorage()
    await twin.commit(Batch(meta=dict(original.storage.meta())))
    copy = await cluster.add_worker(storage=twin, worker_id=original.worker.id)
    with pytest.raises(Refused, match="has a copy of its data directory: give it one of its own"):
        await cluster.master.enlisting.enlist(copy.address)
    await trio.sleep(10)
    assert seen(cluster, original)["address"] == original.address
    assert await code_of(cluster) == "committed"


async def test_one_process_under_two_names_of_its_address_is_one_worker(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery)
    before = cluster.master.cluster
    for node in cluster.workers:
        assert (await cluster.master.enlisting.enlist(node.address))["address"] == node.address
    assert cluster.master.cluster == before


# --- who is not taken ---------------------------------------------------------------------------------------------


async def test_a_worker_of_another_cluster_is_refused_with_a_sentence(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery)
    storage = MemoryStorage()
    await storage.commit(Batch(meta={"incarnation": b"i-9", "cluster": b"c-other"}))
    stranger = await cluster.add_worker(storage=storage)
    with pytest.raises(Refused, match=r"belongs to cluster c-other, not to c-\w+; start it with another --data-dir"):
        await cluster.master.enlisting.enlist(stranger.address)
    with pytest.raises(LinkError, match=r"belongs to cluster c-other, and this is c-\w+"):
        await dial(await cluster.network.connect(cluster.master_address), stranger.worker.hello())
    assert stranger.worker.id not in cluster.master.cluster.workers


async def test_nobody_at_an_address_is_refused_with_a_sentence(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery)
    cluster.network.hold(cluster.workers[0].address)
    for address, reason in (
        ("127.0.0.1:9", "nobody listens"),
        ("nonsense", "is not an address"),
        (cluster.master_address, "a master talks to workers"),
        (cluster.workers[0].address, "no answer in time"),
    ):
        with pytest.raises(Refused, match=reason) as refused:
            await cluster.master.enlisting.enlist(address)
        assert refused.value.kind.code == "conflict"


@pytest.mark.parametrize("answer", [[2, [[1, 0, ["not", "vitals"]]]], [9, []], [2, [[]]]])
async def test_a_worker_that_greets_and_then_speaks_nonsense_is_refused(
    answer: list[Any], nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery)
    listening = await cluster.network.listen("127.0.0.1:0")

    async def speak(stream: trio.abc.Stream) -> None:
        session = Session(Hello("worker", "w-9", "i-9", None), dialer=False)
        list(session.receive(await stream.receive_some()))
        await stream.send_all(session.accept())
        await stream.receive_some()
        await stream.send_all(frames.encode(answer))
        await stream.receive_some()

    nursery.start_soon(trio.serve_listeners, speak, [listening.listener])
    with pytest.raises(Refused, match=r"no worker can be enlisted|went away"):
        await cluster.master.enlisting.enlist(listening.address)
    assert await code_of(cluster) == "committed"
    nursery.cancel_scope.cancel()


# --- terms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sync", "async", "chain", "quorum"])
async def test_after_a_restart_of_everything_everything_is_there_under_a_new_term(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, mode=mode, workers=4)
    stamps = {b"k%d" % number: await cluster.coordinator.put(b"k%d" % number, b"v") for number in range(50)}
    term, name = cluster.master.cluster.term, cluster.master.cluster.cluster
    await trio.sleep(5)
    await cluster.stop_master()
    for node in cluster.workers:
        await cluster.kill(node)
    await cluster.start_master()
    for node in cluster.workers:
        await cluster.restart(node)
    assert (cluster.master.cluster.term, cluster.master.cluster.cluster) == (term + 1, name)
    for key, stamp in stamps.items():
        record = await cluster.coordinator.get(key)
        assert record is not None
        assert record.stamp == stamp
        assert await cluster.coordinator.put(key, b"w") > stamp


async def test_of_two_masters_that_start_at_once_one_starts(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await start(nursery)
    await cluster.stop_master()
    started: list[int] = []
    conflicts: list[str] = []

    async def open_one() -> None:
        try:
            master = await Master.open(cluster.store, cluster.registry, cluster.doors)
        except ConfigConflict as conflict:
            conflicts.append(str(conflict))
        else:
            started.append(master.cluster.term)

    async with trio.open_nursery() as inner:
        inner.start_soon(open_one)
        inner.start_soon(open_one)
    assert (started, len(conflicts)) == ([2], 1)


async def test_a_master_that_was_superseded_changes_nothing_any_more(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery)
    await Master.open(cluster.store, cluster.registry, cluster.doors)
    document = await cluster.store.read()
    listening = await cluster.doors.transport.listen("m2:1")
    newcomer = await cluster.add_worker(enlist=False)
    with pytest.RaisesGroup(ConfigConflict, flatten_subgroups=True):
        async with trio.open_nursery() as inner:
            await inner.start(cluster.master.run, listening)
            with pytest.raises(Refused, match="another master has taken over"):
                await cluster.master.enlisting.enlist(newcomer.address)
    assert await cluster.store.read() == document


async def test_a_restart_with_other_founding_settings_comes_up_with_the_clusters_own(
    nursery: trio.Nursery, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = await start(nursery, mode="chain")
    await cluster.stop_master()
    for mode, replicas in (("chain", 3), (None, None), ("sync", 5)):
        assert "own settings" not in caplog.text
        await cluster.start_master(mode=mode, replicas=replicas)
        assert (cluster.master.cluster.mode, cluster.master.cluster.replicas) == ("chain", 3)
        await cluster.stop_master()
    warnings = [record.getMessage() for record in caplog.records if "own settings" in record.getMessage()]
    assert len(warnings) == 1
    assert "mode chain, not sync" in warnings[0]
    assert "3 replicas, not 5" in warnings[0]
    with pytest.raises(Refused, match="'nope' is none of"):
        await Master.open(MemoryConfigStore(), cluster.registry, cluster.doors, mode="nope")


async def restore_backup(cluster: InProcessCluster, document: dict[str, Any]) -> None:
    """Start the master again on an earlier state of its document."""
    await cluster.stop_master()
    cluster.store = MemoryConfigStore()
    await cluster.store.compare_and_set(cbor2.loads(cbor2.dumps(document)), 0)
    await cluster.start_master()


@pytest.mark.parametrize("mode", ["sync", "async", "chain", "quorum"])
async def test_a_master_whose_document_is_behind_outbids_what_workers_have_promised(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, mode=mode)
    await cluster.coordinator.put(KEY, b"early")
    document, _ = await cluster.store.read()
    assert document is not None
    for _ in range(5):
        await cluster.restart_master()
    late = await cluster.coordinator.put(KEY, b"late")
    await trio.sleep(2)
    await restore_backup(cluster, document)
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


@pytest.mark.parametrize("terms_ahead", [0, 5])
async def test_a_partition_of_an_unknown_generation_is_refused_and_no_other(
    terms_ahead: int, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Configurations may have existed that nobody remembers; a later term does not change that."""
    cluster = await start(nursery, mode="quorum")
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


async def test_it_takes_no_calls_for_records(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await start(nursery)
    hello = cluster.workers[0].worker.hello()
    link = await dial(await cluster.network.connect(cluster.master_address), hello)
    faults: list[int] = []
    async with trio.open_nursery() as inner:
        inner.start_soon(link.run)
        link.call(Op.FETCH, [1, 1, "i", b"k"], trio.current_time() + 1, lambda fault, payload: faults.append(fault))
    assert faults == [Fault.LOST]
    assert await code_of(cluster) == "committed"


class FewerCopies(Sync):
    """The same mode, in a version that stores one copy less."""

    def copies(self, n: int) -> int:
        return n - 1


async def test_a_mode_that_stores_other_copies_than_it_did_is_refused(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, mode="sync")
    others = {name: strategy for name, strategy in cluster.registry.strategies.items() if name != "sync"}
    changed = replace(cluster.registry, strategies={**others, "sync": FewerCopies()})
    with pytest.raises(StartError, match="stores 2 copies of 3 now, and this cluster's records were written with 3"):
        await Master.open(cluster.store, changed, cluster.doors)


@pytest.mark.parametrize("mode", ["sync", "chain", "quorum"])
async def test_a_document_restored_under_a_term_that_was_used_already_loses_nothing(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, mode=mode)
    await cluster.coordinator.put(b"another", b"0")
    backup = await cluster.store.read()
    await cluster.restart_master()
    await cluster.until_all_up()
    first = await cluster.coordinator.put(KEY, b"A")
    await cluster.stop_master()
    _, revision = await cluster.store.read()
    assert backup[0] is not None
    await cluster.store.compare_and_set(backup[0], revision)
    await cluster.start_master()  # takes the term that the last master had, until a worker names that one
    await cluster.until_all_up()
    assert await cluster.coordinator.put(KEY, b"B") > first
    record = await cluster.coordinator.get(KEY)
    assert record is not None
    assert record.value == b"B"


async def test_a_document_restored_from_before_the_first_store_makes_nobody_lose_a_place(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery)
    backup = await cluster.store.read()
    await cluster.restart_master()
    await cluster.until_all_up()
    await cluster.coordinator.put(KEY, b"v")
    await cluster.stop_master()
    _, revision = await cluster.store.read()
    assert backup[0] is not None
    await cluster.store.compare_and_set(backup[0], revision)
    await cluster.start_master()
    await cluster.until_all_up()
    newcomer = await cluster.add_worker()
    await cluster.until(lambda: newcomer.worker.id in cluster.master.cluster.workers)
    assert seen(cluster, newcomer)["place"] == "spare"
    assert await code_of(cluster) == "committed"


async def test_a_document_that_no_master_could_serve_is_not_written(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="quorum")
    await cluster.coordinator.put(b"k", b"v")
    before = await cluster.store.read()

    def last_generation(found: Cluster) -> Cluster:
        first = replace(found.partitions[0], generation=(1 << 32) - 1)
        return replace(found, partitions=(first.renewed(), *found.partitions[1:]))

    for change in (last_generation, lambda found: replace(found, term=1 << 32)):
        async with cluster.master.document.changing:
            with pytest.raises(Refused, match="is beyond"):
                await cluster.master.document.change(change)
    assert await cluster.store.read() == before
    assert (await cluster.coordinator.get(b"k")).value == b"v"  # type: ignore[union-attr]


async def test_a_generation_that_no_backup_explains_blocks_nothing(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="quorum")
    await cluster.coordinator.put(b"k", b"v")
    state = cluster.coordinator.partitions[partition_of(b"k")]
    cluster.master.fencing.note_stale(state, make_epoch(1, (1 << 32) - 1))
    assert (await cluster.coordinator.get(b"k")).value == b"v"  # type: ignore[union-attr]


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


async def test_the_number_of_workers_has_a_bound(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="quorum")
    await cluster.coordinator.put(b"k", b"v")
    monkeypatch.setattr(enlist, "WORKERS_MAX", 3)
    further = await cluster.add_worker(enlist=False)
    with pytest.raises(Refused, match="3 workers"):
        await cluster.master.enlisting.enlist(further.address)
    await cluster.master.enlisting.enlist(cluster.workers[0].address)  # one of those that it knows
