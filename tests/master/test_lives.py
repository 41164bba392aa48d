"""A worker whose directory was put back from an older copy is another member; one that only stopped is not.

Wherever master or worker stop while a start is being confirmed, nothing is lost and nothing is stuck."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing, suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.helpers import GatedStorage, WorkerHarness, shut
from trikv.api import Batch
from trikv.core.calls import Op
from trikv.core.errors import Fault, Refused
from trikv.core.lineage import is_confirmed
from trikv.core.quorums import Availability
from trikv.master.configstore import MemoryConfigStore, NotChanged
from trikv.master.lives import ASK_TIMEOUT_S
from trikv.net.doors import Doors
from trikv.storage.memory import MemoryStorage
from trikv.storage.rocksdb import RocksEngine
from trikv.testing.inprocess import InProcessCluster, Node
from trikv.worker.progress import PROGRESS, ProgressFile
from trikv.worker.worker import Worker

KEYS = [b"k%d" % number for number in range(20)]


async def write(cluster: InProcessCluster, value: bytes) -> None:
    for key in KEYS:
        await cluster.coordinator.put(key, value)


async def read(cluster: InProcessCluster) -> set[bytes | None]:
    found = [await cluster.coordinator.get(key) for key in KEYS]
    return {None if record is None else record.value for record in found}


def copy_of(node: Node) -> MemoryStorage:
    assert isinstance(node.storage, MemoryStorage)
    return deepcopy(node.storage)


async def put_back(cluster: InProcessCluster, node: Node, copy: MemoryStorage) -> None:
    await cluster.kill(node)
    node.storage = copy
    await cluster.restart(node)


def enlisted(cluster: InProcessCluster, node: Node) -> str:
    return cluster.master.cluster.workers[node.worker.id].incarnation


def is_up(cluster: InProcessCluster, node: Node) -> bool:
    return (
        cluster.master.membership.target(cluster.master.cluster.workers[node.worker.id].member).availability
        is Availability.UP
    )


def members(cluster: InProcessCluster) -> set[str]:
    """The lives of all members of all active configurations."""
    return {
        member.incarnation for partition in cluster.master.cluster.partitions for member in partition.active.members
    }


async def until_another_member(cluster: InProcessCluster, node: Node, former: str) -> None:
    await cluster.until(lambda: enlisted(cluster, node) != former and is_up(cluster, node))
    assert node.worker.incarnation == enlisted(cluster, node)


@pytest.mark.parametrize("mode", ["sync", "chain", "quorum"])
async def test_a_directory_from_before_the_last_start_serves_no_old_value(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode=mode)
    await write(cluster, b"old")
    await trio.sleep(1)
    node = cluster.workers[0]
    former = enlisted(cluster, node)
    await cluster.kill(node)
    copy = copy_of(node)
    await cluster.restart(node)
    await cluster.until_all_up()
    assert enlisted(cluster, node) == former
    await trio.sleep(2)  # its neighbours in a chain dial it anew
    await write(cluster, b"new")
    await put_back(cluster, node, copy)
    for key in KEYS:
        with suppress(Refused):
            record = await cluster.coordinator.get(key)
            assert record is not None
            assert record.value == b"new"
    await until_another_member(cluster, node, former)
    await cluster.until(lambda: former not in members(cluster))
    await cluster.until_settled()
    assert await read(cluster) == {b"new"}
    told = [event for event in cluster.master.events.latest(100) if event.get("without_its_data")]
    assert [event["worker"] for event in told] == [node.worker.id]
    assert "older copy" in told[0]["why"]


async def test_an_answer_that_comes_too_late_leaves_nobody_between_two_lives(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Its disk hangs just when it is told to be another member; the master has given up when it has noted that."""
    cluster = await InProcessCluster.start(nursery, mode="sync", workers=0)
    for _ in range(3):
        await cluster.add_worker(storage=GatedStorage())
    await cluster.until(lambda: cluster.master.cluster.formed and len(cluster.master.cluster.workers) == 3)
    await cluster.until_all_up()
    await write(cluster, b"old")
    node = cluster.workers[0]
    former = enlisted(cluster, node)
    await cluster.kill(node)
    copy = GatedStorage()
    copy.__dict__.update(deepcopy({name: held for name, held in vars(node.storage).items() if name != "gate"}))
    await cluster.restart(node)
    await cluster.until_all_up()
    await write(cluster, b"new")
    await put_back(cluster, node, copy)
    gate = shut(node)
    await trio.sleep(3 * ASK_TIMEOUT_S)
    assert enlisted(cluster, node) == former
    gate.set()
    await until_another_member(cluster, node, former)
    await cluster.until_settled()
    assert await read(cluster) == {b"new"}


async def test_a_copy_that_was_started_again_without_a_master_is_told_by_its_name_not_by_its_number(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="sync")
    node = cluster.workers[0]
    former = enlisted(cluster, node)
    await cluster.kill(node)
    copy = copy_of(node)
    await cluster.restart(node)
    await cluster.until_all_up()
    await write(cluster, b"new")
    await cluster.stop_master()
    await put_back(cluster, node, copy)
    for _ in range(3):
        await cluster.restart(node)
    await cluster.start_master()
    await until_another_member(cluster, node, former)


async def test_a_copy_of_the_running_start_is_told_by_the_batches_that_it_lacks(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="sync")
    node = cluster.workers[0]
    former = enlisted(cluster, node)
    await write(cluster, b"old")
    copy = copy_of(node)
    await write(cluster, b"new")
    await trio.sleep(2)  # heartbeats
    await put_back(cluster, node, copy)
    await until_another_member(cluster, node, former)


async def test_a_worker_that_only_stops_keeps_its_place_however_often(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="sync")
    await write(cluster, b"v")
    former = [enlisted(cluster, node) for node in cluster.workers]
    for _ in range(3):
        await cluster.stop_master()
        for node in cluster.workers:
            await cluster.restart(node)
            await cluster.restart(node)
        await cluster.start_master()
        await cluster.until_all_up()
    assert [enlisted(cluster, node) for node in cluster.workers] == former
    assert await read(cluster) == {b"v"}
    assert all(is_confirmed(node.worker.starts) for node in cluster.workers)
    assert len(cluster.master.cluster.starts) == 3


async def test_a_document_that_was_put_back_takes_no_place_from_workers_that_started_since(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="sync")
    await write(cluster, b"v")
    former = [enlisted(cluster, node) for node in cluster.workers]
    backup, _ = await cluster.store.read()
    assert backup is not None
    for _ in range(2):
        for node in cluster.workers:
            await cluster.restart(node)
            await cluster.until_all_up()
    await cluster.stop_master()
    _, revision = await cluster.store.read()
    await cluster.store.compare_and_set(backup, revision)
    await cluster.start_master()
    await cluster.until_all_up()
    assert [enlisted(cluster, node) for node in cluster.workers] == former
    assert await read(cluster) == {b"v"}


async def test_a_former_life_whose_directory_is_put_back_older_is_not_that_member_either(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Two lives ago, in a configuration that is still in the history: its backup must not stand in for it."""
    cluster = await InProcessCluster.start(nursery, mode="sync", replicas=1, workers=1, min_copies=1)
    node = cluster.workers[0]
    former = enlisted(cluster, node)
    await cluster.kill(node)
    copy = copy_of(node)
    await cluster.restart(node)
    await cluster.until_all_up()
    await write(cluster, b"new")
    await cluster.restart(node, wiped=True)
    await cluster.until(lambda: enlisted(cluster, node) != former)
    await put_back(cluster, node, copy)
    await cluster.until(lambda: node.worker.incarnation not in (former, ""))
    with pytest.raises(Exception, match=r"reach|down|data"):
        await cluster.coordinator.get(KEYS[0])


async def test_a_start_that_is_not_confirmed_serves_nobody(nursery: trio.Nursery) -> None:
    harness = await WorkerHarness(nursery, MemoryStorage()).start(confirm=False)
    assert await harness.ask(Op.STORE, harness.store(1)) == (Fault.OTHER_MEMBER, [])
    wrong = [harness.worker.incarnation, "9.f"]
    assert await harness.ask(Op.CONFIRM, wrong) == (Fault.OTHER_MEMBER, [])
    assert await harness.ask(Op.STORE, harness.store(1)) == (Fault.OTHER_MEMBER, [])
    right = [harness.worker.incarnation, str(harness.worker.starts[-1])]
    assert await harness.ask(Op.CONFIRM, right) == (Fault.OK, [])
    assert await harness.ask(Op.STORE, harness.store(1)) == (Fault.OK, [])


# --- wherever it stops ------------------------------------------------------------------------------------------------


class StoppingStore(MemoryConfigStore):
    """Refuses changes while it is told to, and does something once it has made one."""

    refuses = False
    refused = 0

    def __init__(self) -> None:
        super().__init__()
        self.then: Callable[[], None] = lambda: None

    async def compare_and_set(self, document: dict[str, Any], revision: int) -> int:
        if self.refuses:
            self.refused += 1
            raise NotChanged("no room")
        revision = await super().compare_and_set(document, revision)
        self.then()
        return revision


class StoppingStorage(MemoryStorage):
    """Its commits stop before or after they are written."""

    stops = ""
    stopped = False

    async def commit(self, batch: Batch) -> None:
        if self.stops == "before":
            await self._stop()
        await super().commit(batch)
        if self.stops == "after":
            await self._stop()

    async def _stop(self) -> None:
        self.stopped = True
        await trio.sleep(5)  # it is killed meanwhile, or its master is


@pytest.mark.parametrize("dies", ["master", "worker", "both"])
@pytest.mark.parametrize(
    "stop", ["the document is refused", "before it is told", "before it is noted", "before it is answered"]
)
async def test_wherever_a_confirmation_stops_nothing_is_lost_and_nothing_is_stuck(
    stop: str, dies: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="sync", workers=2)
    storage, store = StoppingStorage(), StoppingStore()
    node = await cluster.add_worker(storage=storage)
    await cluster.until(lambda: cluster.master.cluster.formed)
    await cluster.until_all_up()
    await write(cluster, b"v")
    await cluster.stop_master()
    document, _ = await cluster.store.read()
    assert document is not None
    await store.compare_and_set(document, 0)
    cluster.store = store
    await cluster.start_master()
    await cluster.until_all_up()
    former, term = enlisted(cluster, node), cluster.master.cluster.term

    def stop_there() -> None:
        if stop == "before it is told":
            cluster.network.hold(node.address)
        elif stop == "before it is noted":
            storage.stops = "before"
        elif stop == "before it is answered":
            storage.stops = "after"
        told.set()

    told = trio.Event()
    store.then, store.refuses = stop_there, stop == "the document is refused"
    await cluster.restart(node)
    await cluster.until(lambda: store.refused or (told.is_set() and (storage.stopped or not storage.stops)))
    if dies != "master":
        await cluster.kill(node)
    if dies != "worker":
        await cluster.stop_master()
    storage.stops, store.refuses, store.then = "", False, lambda: None
    cluster.network.release(node.address)
    if dies != "worker":
        await cluster.start_master()
    if dies != "master":
        await cluster.restart(node)
    await cluster.until(lambda: is_up(cluster, node))
    await cluster.until_all_up()
    assert (cluster.master.cluster.term == term) == (dies == "worker")
    assert enlisted(cluster, node) == node.worker.incarnation == former
    assert is_confirmed(node.worker.starts)
    assert (
        cluster.master.cluster.starts[cluster.master.cluster.workers[node.worker.id].member] == node.worker.starts[-1]
    )
    assert await read(cluster) == {b"v"}
    await write(cluster, b"w")
    assert await read(cluster) == {b"w"}


# --- how far the disk was ---------------------------------------------------------------------------------------------


async def test_records_that_end_before_the_marker_begin_another_life(nursery: trio.Nursery, tmp_path: Path) -> None:
    """The directory as a crash leaves it, but for the end of its write-ahead log."""
    home, copy = tmp_path / "home", tmp_path / "copy"
    home.mkdir()
    engine = RocksEngine()
    storage = await engine.open(home / "records")
    with closing(ProgressFile(home)) as progress:
        harness = await WorkerHarness(nursery, storage).start(progress=progress)
        lives = [harness.worker.incarnation]
        for seq in range(1, 9):
            assert await harness.put(seq) == Fault.OK
        while progress.read() < harness.worker.vitals().batches:
            await harness.ask(Op.HEARTBEAT, [])
        shutil.copytree(home, copy)
        await harness.stop()
        await storage.close()
    for cut_bytes in (0, 200):
        directory = tmp_path / f"cut {cut_bytes}"
        shutil.copytree(copy, directory)
        [log] = [path for path in (directory / "records").glob("*.log") if path.stat().st_size]
        with log.open("r+b") as file:
            file.truncate(log.stat().st_size - cut_bytes)
        for _ in range(2):
            storage = await engine.open(directory / "records")
            with closing(ProgressFile(directory)) as progress:
                worker = await Worker.open(None, storage, "rocksdb", Doors(), progress=progress)
            await storage.close()
            lives.append(worker.incarnation)
            assert worker.id == "w-1"
            assert bool(worker.vitals().past) == (cut_bytes > 0)
    assert lives[0] == lives[1] == lives[2] != lives[3] == lives[4]


@pytest.mark.parametrize("line", [b"", b"7\n", b"x" * 21, b"0" * 30])
async def test_a_marker_that_cannot_be_read_proves_nothing(line: bytes, tmp_path: Path) -> None:
    (tmp_path / PROGRESS).write_bytes(line)
    with closing(ProgressFile(tmp_path)) as progress:
        assert progress.read() == 0
        await progress.write(17)
        assert progress.read() == 17
