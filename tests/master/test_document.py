"""Changes of the document: durable before they take effect, one at a time, and told truly.

Above all those of which nobody knows whether they were made: an fsync that failed, an answer that was lost.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.helpers import Around, GatedStorage, partition_of, shut
from trikv.core.configuration import Cluster, Configuration, Member, Partition
from trikv.core.errors import Refused, TrikvError, Unknown
from trikv.master.configstore import (
    CHANGE,
    ConfigConflict,
    ConfigStoreError,
    MemoryConfigStore,
    NotChanged,
    SqliteConfigStore,
)
from trikv.master.document import DOUBT_S, TOLD_S, Document
from trikv.testing.inprocess import InProcessCluster

KEY = b"k"
INDEX = partition_of(KEY)

MEMBERS = tuple(Member(f"w-{number}", "1") for number in range(4))
FORMED = Cluster(
    "c-1",
    "quorum",
    3,
    3,
    term=5,
    stored=True,
    partitions=(Partition(1, (Configuration(MEMBERS[:3], "quorum", 2),)),) * 3,
)

FAIL_SYNCS = """
// While the file fail-syncs exists, fsync and fdatasync fail with EIO, and what was written stays in the page cache.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <unistd.h>
static int fails(void) { if (access("fail-syncs", F_OK)) return 0; errno = EIO; return 1; }
int fsync(int fd) { int (*real)(int) = dlsym(RTLD_NEXT, "fsync"); return fails() ? -1 : real(fd); }
int fdatasync(int fd) { int (*real)(int) = dlsym(RTLD_NEXT, "fdatasync"); return fails() ? -1 : real(fd); }
"""

WRITE = """
import os, signal, sys, trio
from pathlib import Path
from trikv.master.configstore import ConfigStoreError, NotChanged, SqliteConfigStore

async def main(again):
    store = await SqliteConfigStore.open(Path("cluster.sqlite"))
    revision = await store.compare_and_set({"n": 1}, 0)
    Path("fail-syncs").touch()
    try:
        await store.compare_and_set({"n": 2}, revision)
    except NotChanged as error:
        print("not changed:", error)
    except ConfigStoreError as error:
        print("in doubt:", error)
    try:
        print("read", await store.read())
    except ConfigStoreError as error:
        print("cannot be read:", error)
    if again:
        Path("fail-syncs").unlink()
        print("revision", await store.compare_and_set({"n": 2}, revision), (await store.read())[0])
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)

trio.run(main, sys.argv[1] == "again")
"""


class DoubtfulStore(MemoryConfigStore):
    """While `failing`, every change is reported as failed; if `made`, the first of them is made all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.failing = self.made = False
        self.failed = trio.Event()
        self.tried: set[str] = set()  # meanwhile, by their names

    async def compare_and_set(self, document: dict[str, Any], revision: int) -> int:
        if not self.failing:
            return await super().compare_and_set(document, revision)
        if self.made and not self.failed.is_set():
            await super().compare_and_set(document, revision)
        self.failed.set()
        self.tried.add(document[CHANGE])
        raise ConfigStoreError("disk I/O error")


# --- one change -------------------------------------------------------------------------------------------------------


class Alone:
    """A document without a master: what was installed, and what the store held at that moment."""

    def __init__(self, store: MemoryConfigStore, cluster: Cluster = FORMED) -> None:
        self.store = store
        self.installed: list[tuple[Cluster, bool]] = []
        self.document = Document(cluster, 0, store, "m-1", lambda cluster, mine: self.installed.append((cluster, mine)))

    async def change(self, mode: str, *, made_here: bool = False) -> None:
        async with self.document.changing:
            await self.document.change(lambda cluster: replace(cluster, mode=mode), made_here=made_here)

    async def end(self) -> None:
        """What the master does that has nothing more to change."""
        with trio.fail_after(1):
            await self.document.run()

    async def stored_mode(self) -> str | None:
        document, _ = await self.store.read()
        return None if document is None else Cluster.from_document(document).mode


async def test_a_change_is_durable_first_then_effective_then_told(autojump_clock: MockClock) -> None:
    seen: list[tuple[str, str]] = []

    class Watched(MemoryConfigStore):
        async def compare_and_set(self, document: dict[str, Any], revision: int) -> int:
            seen.append(("store", alone.document.cluster.mode))
            return await super().compare_and_set(document, revision)

    alone = Alone(Watched())
    told = alone.document.changed.count
    await alone.change("sync", made_here=True)
    assert seen == [("store", "quorum")], "it was not effective before it was durable"
    assert [(cluster.mode, mine) for cluster, mine in alone.installed] == [("sync", True)]
    assert alone.document.changed.count == told + 1
    assert await alone.stored_mode() == alone.document.cluster.mode == "sync"
    await alone.change("chain")
    assert alone.installed[-1][1] is False
    assert await alone.stored_mode() == "chain"


async def test_a_change_that_changes_nothing_is_not_written(autojump_clock: MockClock) -> None:
    alone = Alone(MemoryConfigStore())
    await alone.change("quorum")
    assert await alone.stored_mode() is None
    assert not alone.installed


async def test_a_conflict_is_refused_and_ends_the_master(autojump_clock: MockClock) -> None:
    alone = Alone(MemoryConfigStore())
    await Alone(alone.store).change("async")  # another master's
    with pytest.raises(Refused, match="another master has taken over"):
        await alone.change("sync")
    with pytest.raises(ConfigConflict):
        await alone.end()
    with pytest.raises(Refused, match="about to end"):
        await alone.change("chain")
    assert await alone.stored_mode() == "async"
    assert not alone.installed


async def test_a_change_that_was_not_made_may_be_asked_for_again(autojump_clock: MockClock) -> None:
    class Full(MemoryConfigStore):
        full = True

        async def compare_and_set(self, document: dict[str, Any], revision: int) -> int:
            if self.full:
                raise NotChanged("disk is full")
            return await super().compare_and_set(document, revision)

    store = Full()
    alone = Alone(store)
    with pytest.raises(Refused, match="disk is full") as refused:
        await alone.change("sync")
    assert refused.value.kind.code == "unavailable"
    assert not alone.installed
    store.full = False
    await alone.change("sync")
    assert await alone.stored_mode() == "sync"


async def test_a_change_whose_answer_was_lost_is_made_once(autojump_clock: MockClock) -> None:
    store = DoubtfulStore()
    alone = Alone(store)
    await alone.change("async")
    store.failing = store.made = True

    async def work_again() -> None:
        await store.failed.wait()
        await trio.sleep(DOUBT_S / 2)
        assert alone.installed[-1][0].mode == "async", "it is not effective while it is in doubt"
        store.failing = False

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work_again)
        await alone.change("sync")
    assert alone.installed[-1][0].mode == "sync"
    await alone.change("chain")
    assert await alone.stored_mode() == "chain", "and the revision is known"


async def test_a_change_in_doubt_that_another_master_has_overtaken_is_unknown(autojump_clock: MockClock) -> None:
    store = DoubtfulStore()
    alone = Alone(store)
    store.failing = store.made = True

    async def take_over() -> None:
        await store.failed.wait()
        store.failing = False
        document, revision = await store.read()
        assert document is not None
        await store.compare_and_set(document | {CHANGE: "m-2/1", "mode": "async"}, revision)

    with pytest.RaisesGroup(pytest.RaisesExc(Unknown, match="read at the next start")):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_over)
            await alone.change("sync")
    with pytest.raises(ConfigStoreError):
        await alone.end()
    assert not alone.installed


async def test_a_change_that_stays_in_doubt_is_unknown_and_the_last(autojump_clock: MockClock) -> None:
    store = DoubtfulStore()
    alone = Alone(store)
    store.failing = True
    began_s = trio.current_time()
    with pytest.raises(Unknown):
        await alone.change("sync")
    assert trio.current_time() - began_s >= DOUBT_S
    store.failing = False
    with pytest.raises(Refused, match="about to end"):
        await alone.change("sync")
    with pytest.raises(ConfigStoreError):
        await alone.end()


async def test_nothing_is_built_on_a_doubt_whose_caller_has_gone(autojump_clock: MockClock) -> None:
    store = DoubtfulStore()
    alone = Alone(store)
    store.failing = True
    with trio.move_on_after(5) as caller:
        await alone.change("sync")
    assert caller.cancelled_caught
    store.failing = False
    with pytest.raises(Refused, match="about to end"):
        await alone.change("chain")
    assert await alone.stored_mode() is None


async def test_settled_is_noted_of_partitions_that_are_still_in_force(autojump_clock: MockClock) -> None:
    """The others have another configuration by now, or another epoch: what was settled is not theirs."""
    first, second = FORMED.partitions[0].active, Configuration(MEMBERS[1:], "quorum", 2)
    unsettled = [Partition(1, (first,)).changed_to(second) for _ in range(3)]
    alone = Alone(MemoryConfigStore(), replace(FORMED, partitions=tuple(unsettled)))
    states = [Around().state(partition, index=index, term=FORMED.term) for index, partition in enumerate(unsettled)]
    overtaken = unsettled[1].changed_to(first)
    alone.document.install(alone.document.cluster.with_partitions({1: overtaken}))
    other_term = Around().state(unsettled[2], index=2, term=FORMED.term - 1)
    await alone.document.note_settled([states[0], states[1], other_term])
    assert alone.document.cluster.partitions == (unsettled[0].as_settled(), overtaken, unsettled[2])
    document, _ = await alone.store.read()
    assert document is not None
    assert Cluster.from_document(document).partitions == alone.document.cluster.partitions


# --- in doubt, on a whole cluster -------------------------------------------------------------------------------------


async def start(nursery: trio.Nursery) -> tuple[InProcessCluster, DoubtfulStore]:
    """A cluster of four workers, after its first write."""
    cluster = await InProcessCluster.start(nursery, mode="sync", workers=4)
    await cluster.coordinator.put(KEY, b"v0")
    await cluster.stop_master()
    document, _ = await cluster.store.read()
    assert document is not None
    store = cluster.store = DoubtfulStore()
    await store.compare_and_set(document, 0)
    await cluster.start_master()
    await cluster.until_all_up()
    return cluster, store


@pytest.mark.parametrize("mode", ["sync", "chain"])
async def test_nothing_is_acknowledged_in_a_configuration_that_the_document_may_have_given_up(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    cluster = await InProcessCluster.start(nursery, mode=mode, workers=0)
    for _ in range(5):
        await cluster.add_worker(storage=GatedStorage())
    await cluster.until(lambda: cluster.master.cluster.formed and len(cluster.master.cluster.workers) == 5)
    await cluster.until_all_up()
    await cluster.coordinator.put(KEY, b"v0")

    def members() -> list[str]:
        return [m.worker for m in cluster.coordinator.partitions[INDEX].configuration.members]

    # One replica dies and is replaced: C2. Another one's disk is slow meanwhile, so that nothing is settled.
    c1 = members()
    dead, slow = cluster.node_of(c1[0]), cluster.node_of(c1[-1])
    gate = shut(slow)
    await cluster.kill(dead)
    await cluster.until(lambda: members() != c1)
    c2 = members()
    assert cluster.coordinator.partitions[INDEX].is_unused

    # The slow one dies as well. C3 is to take the place of C2. That change is made, and reported as failed; what is
    # written after it does not arrive at all.
    write = MemoryConfigStore.compare_and_set
    failed = trio.Event()

    async def fail(self: MemoryConfigStore, document: dict[str, Any], revision: int) -> int:
        active = Cluster.from_document(document).partitions[INDEX].active
        if not failed.is_set():
            revision = await write(self, document, revision)
            if [m.worker for m in active.members] == c2:
                return revision
            failed.set()
        raise ConfigStoreError("disk I/O error")

    await cluster.kill(slow)
    with monkeypatch.context() as patch:
        patch.setattr(MemoryConfigStore, "compare_and_set", fail)
        await failed.wait()
        gate.set()
        await cluster.restart(slow)
        assert members() == c2
        acknowledged = False
        for _ in range(5):
            with suppress(TrikvError):
                await cluster.coordinator.put(KEY, b"v1")
                acknowledged = True
    assert not acknowledged
    # The store works again, the change is known to be made, and the cluster goes on from there.
    await cluster.until(lambda: members() != c2)
    await cluster.until_settled()
    await cluster.coordinator.put(KEY, b"v2")


@pytest.mark.parametrize("made", [False, True], ids=["not made", "made"])
async def test_a_change_in_doubt_is_effective_once_it_is_known_to_be_made(
    nursery: trio.Nursery, autojump_clock: MockClock, made: bool
) -> None:
    cluster, store = await start(nursery)
    store.failing, store.made = True, made
    answers: list[Any] = []

    async def drain() -> None:
        answers.append(await cluster.master.operations.drain(cluster.workers[0].worker.id))

    nursery.start_soon(drain)
    await store.failed.wait()
    await trio.sleep(3)
    assert not answers
    await cluster.coordinator.put(KEY, b"v1")  # which that has nothing to do with
    store.failing = False
    await cluster.until(lambda: answers)
    assert cluster.master.cluster.workers[cluster.workers[0].worker.id].draining
    await cluster.restart_master()
    await cluster.until(lambda: not cluster.master.operations.operation())


async def test_an_operator_is_told_of_a_change_in_doubt_and_what_was_asked_for_goes_on(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster, store = await start(nursery)
    master = cluster.master
    worker = cluster.workers[0].worker.id
    store.failing = store.made = True
    began_s = trio.current_time()
    with pytest.raises(Unknown, match=r"is in doubt: disk I/O error.*goes on"):
        await master.carry_out(lambda: master.operations.drain(worker))
    assert trio.current_time() - began_s <= TOLD_S + 1
    with pytest.raises(Refused, match="in doubt: disk I/O error, and nothing else is changed") as refused:
        await master.carry_out(lambda: master.operations.undrain(worker))
    assert refused.value.kind.code == "operation_under_way"
    store.failing = False
    await cluster.until(lambda: master.cluster.workers[worker].draining)
    await cluster.until(lambda: not master.operations.operation())
    assert master.cluster.workers[worker].draining, "what was refused has not happened"
    await master.carry_out(lambda: master.operations.undrain(worker))
    assert not master.cluster.workers[worker].draining, "once the doubt is over, operators are served"


class HungStore(MemoryConfigStore):
    """A store whose writes do not come back until it is mended."""

    def __init__(self) -> None:
        super().__init__()
        self.mended = trio.Event()
        self.mended.set()
        self.tried = trio.Event()

    async def compare_and_set(self, document: dict[str, Any], revision: int) -> int:
        self.tried.set()
        await self.mended.wait()
        return await super().compare_and_set(document, revision)


async def test_of_a_store_that_hangs_operators_are_told_in_time(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster, doubtful = await start(nursery)
    await cluster.stop_master()
    document, _ = await doubtful.read()
    assert document is not None
    store = cluster.store = HungStore()
    await store.compare_and_set(document, 0)
    await cluster.start_master()
    await cluster.until_all_up()
    master, worker = cluster.master, cluster.workers[0].worker.id
    store.mended, store.tried = trio.Event(), trio.Event()
    answers: list[Any] = []

    async def drain() -> None:
        with pytest.raises(Unknown, match="the config store does not answer; what was asked for goes on") as error:
            await master.carry_out(lambda: master.operations.drain(worker))
        answers.append(error.value)

    async def undrain() -> None:
        with pytest.raises(Refused, match="nothing else is changed meanwhile") as error:
            await master.carry_out(lambda: master.operations.undrain(worker))
        answers.append(error.value)

    with trio.fail_after(TOLD_S + 1):
        async with trio.open_nursery() as asking:
            asking.start_soon(drain)
            await store.tried.wait()
            asking.start_soon(undrain)  # it must not be answered by what was in force before
    assert len(answers) == 2
    with pytest.raises(Refused, match="does not answer"):
        await master.carry_out(lambda: master.operations.recover(accept_loss=False))
    store.mended.set()
    await cluster.until(lambda: master.cluster.workers[worker].draining)
    await cluster.until(lambda: not master.operations.operation())
    assert master.cluster.workers[worker].draining, "what was refused has not happened"


async def test_a_wish_whose_change_is_made_waits_through_the_doubt_of_another(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster, store = await start(nursery)
    master = cluster.master

    async def fail_while_it_is_settled() -> None:
        await cluster.until(lambda: master.cluster.mode == "quorum")
        store.failing = True
        await store.failed.wait()
        await trio.sleep(3 * TOLD_S)
        store.failing = False

    nursery.start_soon(fail_while_it_is_settled)
    certificate = await master.carry_out(lambda: master.operations.switch_mode("quorum"))
    assert certificate["mode"] == "quorum"
    assert store.failed.is_set()


async def test_who_joins_a_switch_under_way_waits_through_the_doubt_too(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """The mode is in force already, so the second operator must not hear that nothing happened."""
    cluster, store = await start(nursery)
    master = cluster.master
    modes: list[str] = []

    async def switch() -> None:
        modes.append((await master.carry_out(lambda: master.operations.switch_mode("quorum")))["mode"])

    with trio.fail_after(DOUBT_S):
        async with trio.open_nursery() as asking:
            asking.start_soon(switch)
            await cluster.until(lambda: master.cluster.mode == "quorum")
            asking.start_soon(switch)
            store.failing = True
            await store.failed.wait()
            await trio.sleep(3 * TOLD_S)
            store.failing = False
    assert modes == ["quorum", "quorum"]


async def test_a_short_doubt_is_not_told(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster, store = await start(nursery)
    master = cluster.master
    store.failing = True

    async def work_again() -> None:
        await store.failed.wait()
        await trio.sleep(TOLD_S / 2)
        store.failing = False

    nursery.start_soon(work_again)
    worker = cluster.workers[0].worker.id
    await master.carry_out(lambda: master.operations.drain(worker))
    assert master.cluster.workers[worker].draining


async def test_the_master_ends_where_it_cannot_be_known_and_the_next_one_reads_what_is_there(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster, store = await start(nursery)
    worker = cluster.workers[0].worker.id
    await cluster.stop_master()
    listening = await cluster.doors.transport.listen(cluster.master_address)
    cluster.master = master = await type(cluster.master).open(store, cluster.registry, cluster.doors)
    outcomes: list[str] = []

    async def drain() -> None:
        try:
            await master.tasks.run_detached(lambda: master.operations.drain(worker))
        except TrikvError as error:
            outcomes.append(error.kind.outcome)

    with pytest.RaisesGroup(
        pytest.RaisesExc(ConfigStoreError, match="disk I/O error; whether the change was made is read at the next"),
        flatten_subgroups=True,
    ):
        async with trio.open_nursery() as node:
            await node.start(master.run, listening)
            await cluster.until_all_up()
            store.failing, store.made = True, True
            nursery.start_soon(drain)
            await store.failed.wait()
            nursery.start_soon(drain)  # which has to wait, and comes too late
            with trio.fail_after(DOUBT_S + 20):
                await trio.sleep_forever()
    await cluster.until(lambda: len(outcomes) == 2)
    assert "unknown" in outcomes
    assert store.tried == {f"{master._name}/{master.document._revision}"}, (
        "nothing else is changed after what is in doubt"
    )
    store.failing = False
    await cluster.start_master()
    assert cluster.master.cluster.workers[worker].draining


async def test_a_change_that_was_certainly_not_made_is_refused_at_once(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, store = await start(nursery)

    async def full(document: dict[str, Any], revision: int) -> int:
        raise NotChanged("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "compare_and_set", full)
        with pytest.raises(Refused, match="database or disk is full"):
            await cluster.master.operations.drain(cluster.workers[0].worker.id)
    await cluster.master.operations.drain(cluster.workers[0].worker.id)


async def test_a_first_write_is_refused_while_the_flag_before_it_is_in_doubt(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = await InProcessCluster.start(nursery)

    async def fail(document: dict[str, Any], revision: int) -> int:
        raise ConfigStoreError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(cluster.store, "compare_and_set", fail)
        with pytest.raises(Refused, match="no decision within"):
            await cluster.coordinator.put(KEY, b"v")
    await cluster.until(lambda: cluster.coordinator.stored)
    assert await cluster.coordinator.get(KEY) is None
    await cluster.coordinator.put(KEY, b"w")


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


# --- the file ---------------------------------------------------------------------------------------------------------


def write_with_failing_syncs(directory: Path, then: str) -> list[str]:
    """What the process that does `WRITE` says before it is killed."""
    source, library = directory / "fail.c", directory / "fail.so"
    source.write_text(FAIL_SYNCS)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "LD_PRELOAD": str(library)}
    command = [sys.executable, "-c", WRITE, then]
    done = subprocess.run(command, cwd=directory, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    return done.stdout.splitlines()


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler, with which to make an fsync fail")
@pytest.mark.parametrize("again", [False, True], ids=["ends", "written again"])
async def test_a_flush_that_failed_leaves_the_change_in_doubt(tmp_path: Path, again: bool) -> None:
    lines = write_with_failing_syncs(tmp_path, "again" if again else "ends")
    assert lines[0].startswith("in doubt: config store cluster.sqlite cannot be written: disk I/O error")
    assert lines[1].startswith("cannot be read: config store cluster.sqlite: the last change is in doubt")
    assert lines[2:] == (["revision 2 {'n': 2}"] if again else [])
    store = await SqliteConfigStore.open(tmp_path / "cluster.sqlite", founded=True)
    document, revision = await store.read()
    assert document == {"n": revision}
    assert revision == 2 or not again
    assert (tmp_path / "cluster.sqlite-wal").stat().st_size == 0  # what the log held is on the disk
    await store.close()


async def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    store = await SqliteConfigStore.open(tmp_path / "cluster.sqlite")
    await store.compare_and_set({"n": 1}, 0)
    store._connection.execute("PRAGMA max_page_count = 4")
    with pytest.raises(NotChanged, match=r"cluster\.sqlite cannot be written: database or disk is full"):
        await store.compare_and_set({"n": "x" * 100_000}, 1)
    assert await store.read() == ({"n": 1}, 1)
    assert await store.compare_and_set({"n": 2}, 1) == 2
    await store.close()
