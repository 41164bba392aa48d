"""Forming the cluster, and taking workers into it: who is taken, as whom, and who is not."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.helpers import code_of, fill, partition_of, read_all, seen, under
from trikv.api import Batch
from trikv.core.calls import Op
from trikv.core.errors import Refused
from trikv.core.quorums import Availability
from trikv.master import enlist
from trikv.master.configstore import ConfigStoreError, MemoryConfigStore
from trikv.net.doors import split_address
from trikv.net.link import LinkError, dial
from trikv.storage.memory import MemoryStorage
from trikv.testing.inprocess import PARTITIONS, InProcessCluster, Node

KEY = b"key"


# --- forming ----------------------------------------------------------------------------------------------------------


async def test_until_enough_workers_have_enlisted_it_says_how_many_are_missing(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, workers=1)
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
    cluster = await InProcessCluster.start(nursery, workers=0)
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
    cluster = await InProcessCluster.start(nursery, workers=4)
    assert [seen(cluster, node)["place"] for node in cluster.workers] == ["member"] * 4
    assert sum(seen(cluster, node)["copies"] for node in cluster.workers) == 3 * PARTITIONS
    await cluster.coordinator.put(KEY, b"v")
    newcomer = await cluster.add_worker()
    await cluster.until(lambda: newcomer.worker.id in cluster.master.cluster.workers)
    assert (seen(cluster, newcomer)["place"], seen(cluster, newcomer)["copies"]) == ("spare", 0)
    assert await code_of(cluster) == "committed"


async def test_each_placement_before_the_first_store_is_a_new_generation_of_all_partitions(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery)
    before = cluster.master.cluster.partitions
    assert {(p.settled, len(p.active.members), p.active.copies, p.active.mode) for p in before} == {
        (True, 3, 2, "quorum")
    }
    await cluster.add_worker()
    await cluster.until(lambda: len(cluster.master.cluster.workers) == 4)
    after = cluster.master.cluster.partitions
    assert [p.generation for p in after] == [p.generation + 1 for p in before]
    assert all(p.settled for p in after)
    assert len({m.worker for p in after for m in p.active.members}) == 4
    await cluster.master.enlisting.enlist(cluster.workers[0].address)  # it is known: nothing is placed anew
    assert cluster.master.cluster.partitions == after


# --- workers that come back -------------------------------------------------------------------------------------------


async def test_a_worker_that_comes_back_without_its_data_is_lost(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="quorum")
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
    cluster = await InProcessCluster.start(nursery)
    wiped = cluster.workers[0]
    await cluster.restart(wiped, wiped=True)
    await cluster.until(lambda: seen(cluster, wiped)["incarnation"] == wiped.worker.incarnation)
    assert seen(cluster, wiped)["place"] == "member"
    await cluster.until_all_up()
    await cluster.coordinator.put(KEY, b"v")
    assert wiped.storage.get(partition_of(KEY), KEY) is not None


async def test_a_worker_may_come_back_at_another_address(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery, mode="sync")
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


async def test_one_process_under_two_names_of_its_address_is_one_worker(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery)
    before = cluster.master.cluster
    for node in cluster.workers:
        _, port = split_address(node.address)
        alias = f"localhost:{port}"
        cluster.network._listeners[alias] = cluster.network._listeners[node.address]
        for address in (node.address, alias):
            assert (await cluster.master.enlisting.enlist(address))["address"] == node.address
    assert cluster.master.cluster == before


def is_enlisted(cluster: InProcessCluster, node: Node) -> bool:
    """In its present life."""
    return bool(seen(cluster, node)["incarnation"] == node.worker.incarnation)


async def test_a_worker_that_knows_no_master_and_lost_its_disk_is_enlisted_anew_where_it_is(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """The command line named it, so it never asks to be taken in: its heartbeat shows the other life."""
    cluster = await InProcessCluster.start(nursery)
    await fill(cluster)
    named = await cluster.add_worker(enlist=False)
    await cluster.master.enlisting.enlist(named.address)
    await cluster.until_all_up()
    lives = {named.worker.incarnation}
    for _ in range(2):
        await cluster.kill(named)
        named = await cluster.add_worker(address=named.address, worker_id=named.worker.id, enlist=False)
        lives.add(named.worker.incarnation)
        await cluster.until(partial(is_enlisted, cluster, named))
        assert enlisted_events(cluster)[-1]["without_its_data"]
        await cluster.until_all_up()
        await trio.sleep(5)
    assert len(lives) == 3


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


# --- who is not taken -------------------------------------------------------------------------------------------------


async def test_two_workers_with_one_identity_are_refused(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery)
    original = cluster.workers[0]
    twin = MemoryStorage()
    await twin.commit(Batch(meta=dict(original.storage.meta())))
    copy = await cluster.add_worker(storage=twin, worker_id=original.worker.id)
    with pytest.raises(Refused, match="has a copy of its data directory: give it one of its own"):
        await cluster.master.enlisting.enlist(copy.address)
    await trio.sleep(10)
    assert seen(cluster, original)["address"] == original.address
    assert await code_of(cluster) == "committed"


async def test_a_worker_of_another_cluster_is_refused_with_a_sentence(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery)
    storage = MemoryStorage()
    await storage.commit(Batch(meta={"incarnation": b"i-9", "cluster": b"c-other"}))
    stranger = await cluster.add_worker(storage=storage)
    with pytest.raises(Refused, match=r"belongs to cluster c-other, not to c-\w+; start it with another --data-dir"):
        await cluster.master.enlisting.enlist(stranger.address)
    with pytest.raises(LinkError, match=r"belongs to cluster c-other, and this is c-\w+"):
        await dial(await cluster.network.connect(cluster.master_address), stranger.worker.hello())
    assert stranger.worker.id not in cluster.master.cluster.workers


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


async def test_over_one_connection_a_worker_is_taken_in_once_at_a_time(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery)
    silent = await cluster.add_worker(enlist=False)
    cluster.network.hold(silent.address)
    link = await dial(await cluster.network.connect(cluster.master_address), silent.worker.hello())
    answers: list[list[Any]] = []
    nursery.start_soon(link.run)
    for _ in range(2):
        link.call(Op.ENLIST, [silent.address], trio.current_time() + 9, lambda fault, payload: answers.append(payload))
    await cluster.until(lambda: len(answers) == 2)
    assert answers[0] == ["it is being enlisted already"]
    assert "no answer in time" in answers[1][0]
    cluster.network.release(silent.address)
    link.call(Op.ENLIST, [silent.address], trio.current_time() + 9, lambda fault, payload: answers.append(payload))
    await cluster.until(lambda: len(answers) == 3)
    assert answers[2] == []
    assert silent.worker.id in cluster.master.cluster.workers


# --- what is noted ----------------------------------------------------------------------------------------------------


def enlisted_events(cluster: InProcessCluster) -> list[dict[str, Any]]:
    """Oldest first."""
    events = cluster.master.events.latest(100)
    return [event for event in reversed(events) if event["kind"] == "worker_enlisted"]


async def test_it_is_told_once_and_again_only_when_something_changed(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery)
    node = cluster.workers[0]
    await fill(cluster)
    before = enlisted_events(cluster)
    assert [event["without_its_data"] for event in before] == [False] * 3
    assert await cluster.master.enlisting.enlist(node.address) == {
        "id": node.worker.id,
        "address": node.address,
        "incarnation": node.worker.incarnation,
    }
    assert enlisted_events(cluster) == before
    await cluster.restart(node, wiped=True)
    await cluster.until(lambda: len(enlisted_events(cluster)) == 4)
    last = enlisted_events(cluster)[-1]
    assert (last["worker"], last["without_its_data"]) == (node.worker.id, True)


async def test_a_worker_that_is_being_drained_stays_so_wherever_it_comes_back(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, workers=4)
    await fill(cluster)
    moved = cluster.workers.pop(0)
    await cluster.master.operations.drain(moved.worker.id)
    await cluster.kill(moved)
    again = await cluster.add_worker(storage=moved.storage, worker_id=moved.worker.id)
    await cluster.until(lambda: cluster.master.cluster.workers[moved.worker.id].address == again.address)
    assert cluster.master.cluster.workers[moved.worker.id].draining


# --- forgetting -------------------------------------------------------------------------------------------------------


async def test_only_a_worker_that_is_down_and_holds_nothing_is_forgotten(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, workers=4)
    await fill(cluster)
    forget = cluster.master.enlisting.forget
    node = cluster.workers[0]
    with pytest.raises(Refused, match="has been removed already"):
        await forget("w-9")
    with pytest.raises(Refused, match="holds copies of"):
        await forget(node.worker.id)
    await cluster.master.operations.drain(node.worker.id)
    await cluster.until(lambda: not seen(cluster, node)["held"])
    with pytest.raises(Refused, match="is back"):
        await forget(node.worker.id)
    await cluster.kill(node)
    await cluster.until_down(node)
    await forget(node.worker.id)
    assert node.worker.id not in cluster.master.cluster.workers
    assert node.worker.id not in cluster.master.membership.watched
    assert cluster.master.events.latest(1)[0]["kind"] == "worker_removed"
    stored, _ = await cluster.store.read()
    assert stored is not None
    assert node.worker.id not in {worker[0] for worker in stored["workers"]}


# --- labels -----------------------------------------------------------------------------------------------------------


async def start_in_zones(nursery: trio.Nursery, zones: str) -> InProcessCluster:
    """A cluster with a worker in each of these zones."""
    cluster = await InProcessCluster.start(nursery, workers=0)
    for zone in zones:
        await cluster.add_worker(labels={"zone": zone})
        await cluster.until(lambda: len(cluster.master.cluster.workers) == len(cluster.workers))
    await cluster.until_all_up()
    return cluster


def zones_of_partitions(cluster: InProcessCluster) -> set[str]:
    """The zones of each partition's replicas, spelled in order."""
    zones = cluster.master.cluster.zones
    return {"".join(sorted(zones[m.worker] for m in p.active.members)) for p in cluster.master.cluster.partitions}


async def test_partitions_are_spread_over_the_zones_of_the_workers(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start_in_zones(nursery, "aabbcc")
    assert zones_of_partitions(cluster) == {"abc"}
    assert cluster.master.status.describe()["partitions"]["crowded"] == 0
    assert [seen(cluster, node)["labels"]["zone"] for node in cluster.workers] == list("aabbcc")
    await cluster.restart_master()
    await cluster.until_all_up()
    assert [target.labels["zone"] for target in cluster.coordinator.partitions[0].targets] == [
        cluster.master.cluster.zones[member.worker] for member in cluster.master.cluster.partitions[0].active.members
    ]


async def test_a_worker_that_comes_back_with_other_labels_is_enlisted_with_them_and_partitions_are_spread_anew(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start_in_zones(nursery, "aaaabc")
    await fill(cluster)
    assert cluster.master.status.describe()["partitions"]["crowded"] > 0
    for node, zone in zip(cluster.workers, "aabbcc", strict=True):
        if node.labels["zone"] != zone:
            node.labels = {"zone": zone}
            await cluster.restart(node)
    await cluster.until(lambda: "".join(seen(cluster, n)["labels"]["zone"] for n in cluster.workers) == "aabbcc")
    await cluster.until(lambda: zones_of_partitions(cluster) == {"abc"})
    await cluster.until_settled()
    assert set((await read_all(cluster)).values()) == {b"v"}


async def test_a_worker_that_the_command_line_names_is_enlisted_with_its_new_labels_as_well(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """It does not ask to be enlisted when it comes back."""
    cluster = await start_in_zones(nursery, "abc")
    node = cluster.workers[0]
    await cluster.kill(node)
    await cluster.until_down(node)
    cluster.workers.remove(node)
    await cluster.add_worker(
        storage=node.storage, address=node.address, worker_id=node.worker.id, labels={"zone": "d"}, enlist=False
    )
    await cluster.until(lambda: cluster.master.cluster.zones[node.worker.id] == "d")
