"""What every storage engine must do, as a test class to inherit.

    class TestMine(StorageContract):
        engine = MyEngine()

trikv's own engines pass it. It needs pytest and pytest-trio (`trio_mode = true`). Like a worker, it opens a durable
engine in a directory that does not exist yet, closes it, and opens it again. Whether its commits outlive a killed
process cannot be tested inside one; call `survives_a_kill` for that, from a test of your own.

An engine that breaks the contract fails with a sentence. That holds for one that waits for ever, too. What blocks
without waiting (an endless loop, a thread that does not end) blocks the test as well.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import ClassVar, Final

import trio

from trikv.api import Batch, Page, Record, Room, Row, Storage, StorageEngine, Version
from trikv.registry import check_storage_engine

PLENTY = 1 << 40  # bytes: such a page ends for another reason
_PATIENCE_S: Final = 60.0  # no call of these tests takes a second


def record(seq: int, value: bytes | None = b"") -> Record:
    """A record whose version tells where it came from."""
    return Record(Version(1 << 32, seq), Version(1 << 32, seq), value)


def keys_of(page: Page) -> list[bytes]:
    return [row.key for row in page.rows]


class StorageContract:
    """Inherit, set `engine`, and pytest collects the rest."""

    engine: ClassVar[StorageEngine]

    @asynccontextmanager
    async def opened(self, directory: Path) -> AsyncIterator[Storage]:
        """The engine, opened as a worker does it: in a directory that the engine is to make, if it needs one."""
        with _bounded("open"):
            storage = await self.engine.open(directory / "records" if self.engine.durable else None)
        assert isinstance(storage, Storage), f"open must return a trikv.api.Storage, not {storage!r}"
        try:
            yield _Bounded(storage)
        finally:
            with _bounded("close"):
                await storage.close()

    def test_it_can_be_installed(self) -> None:
        check_storage_engine(self.engine, type(self.engine).__module__)

    async def test_a_scan_lets_other_tasks_run(self, tmp_path: Path) -> None:
        """A worker whose engine never waits serves nobody else, and its heartbeats are late."""
        async with self.opened(tmp_path) as storage:
            await storage.commit(Batch(puts={(0, b"k"): record(1)}))
            with _Steps() as steps:
                await storage.scan([0], limit=10, bytes_max=PLENTY)
            assert steps.count, "scan never lets other tasks run: await trio.lowlevel.checkpoint() in it, or a thread"

    async def test_a_durable_commit_lets_other_tasks_run(self, tmp_path: Path) -> None:
        """A flush takes milliseconds, and seconds on a busy disk."""
        if not self.engine.durable:
            return
        async with self.opened(tmp_path) as storage:
            with _Steps() as steps:
                await storage.commit(Batch(puts={(0, b"k"): record(1)}))
            assert steps.count, (
                "commit never lets other tasks run while it writes: let a thread do that, with trio.to_thread.run_sync"
            )

    async def test_a_new_store_is_empty(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            assert storage.get(0, b"k") is None
            assert dict(storage.meta()) == {}
            assert await storage.scan([0, 1], limit=10, bytes_max=PLENTY) == Page([], more=False)
            assert await storage.scan([], limit=10, bytes_max=PLENTY) == Page([], more=False)

    async def test_what_was_committed_is_read_back_byte_for_byte(self, tmp_path: Path) -> None:
        every_byte = bytes(range(256))
        puts = {
            (0, b"k"): record(1, b"value"),
            (65_534, b"k"): record(2, every_byte * 4096),
            (7, every_byte): record(3, b""),
            (7, b"\xff" * 4096): record(4, None),
            (7, b"repaired"): Record(Version(9 << 32, 5), Version(1 << 32, 1), b"kept its stamp"),
        }
        async with self.opened(tmp_path) as storage:
            await storage.commit(Batch(puts=dict(puts)))
            assert {where: storage.get(*where) for where in puts} == puts
            assert storage.get(1, b"k") is None

    async def test_a_later_put_replaces(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            await storage.commit(Batch(puts={(0, b"k"): record(1, b"old")}))
            await storage.commit(Batch(puts={(0, b"k"): record(2, b"new")}))
            assert storage.get(0, b"k") == record(2, b"new")
            page = await storage.scan([0], limit=10, bytes_max=PLENTY)
            assert page == Page([Row(0, b"k", record(2, b"new"))], more=False)

    async def test_an_empty_batch_changes_nothing(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            await storage.commit(Batch(puts={(0, b"k"): record(1)}))
            await storage.commit(Batch())
            assert storage.get(0, b"k") == record(1)

    async def test_a_discard_empties_its_partition_and_no_other(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            partitions = (0, 1, 2, 255, 256, 65_533, 65_534)
            await storage.commit(
                Batch(puts={(p, key): record(p) for p in partitions for key in (b"\0", b"k", b"\xff" * 9)})
            )
            await storage.commit(Batch(discards=[1, 255, 65_534], meta={"note": b"stays"}))
            page = await storage.scan(partitions, limit=100, bytes_max=PLENTY)
            assert {row.partition for row in page.rows} == {0, 2, 256, 65_533}
            assert len(page.rows) == 12
            assert storage.get(1, b"k") is None
            assert storage.meta()["note"] == b"stays"

    async def test_in_one_batch_discards_come_before_puts(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            await storage.commit(Batch(puts={(3, b"old"): record(1)}))
            await storage.commit(Batch(puts={(3, b"new"): record(2)}, discards=[3]))
            assert storage.get(3, b"old") is None
            assert storage.get(3, b"new") == record(2)

    async def test_a_removed_row_is_gone_and_its_neighbours_stay(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            await storage.commit(Batch(puts={(p, key): record(1) for p in (3, 4) for key in (b"a", b"aa", b"b")}))
            await storage.commit(Batch(removes={(3, b"aa"), (3, b"never"), (9, b"a")}))
            assert storage.get(3, b"aa") is None
            page = await storage.scan([3, 4, 9], limit=10, bytes_max=PLENTY)
            assert [(row.partition, row.key) for row in page.rows] == [
                (3, b"a"), (4, b"a"), (4, b"aa"), (3, b"b"), (4, b"b"),
            ]  # fmt: skip
            await storage.commit(Batch(puts={(3, b"aa"): record(2)}))
            assert keys_of(await storage.scan([3], limit=10, bytes_max=PLENTY)) == [b"a", b"aa", b"b"]

    async def test_in_one_batch_removes_come_after_discards_and_before_puts(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            await storage.commit(Batch(puts={(3, b"k"): record(1), (4, b"k"): record(1)}))
            await storage.commit(
                Batch(removes={(3, b"k"), (4, b"k")}, puts={(3, b"k"): record(2)}, discards=[4], meta={"n": b"1"})
            )
            assert storage.get(3, b"k") == record(2)
            assert storage.get(4, b"k") is None
            assert storage.meta()["n"] == b"1"

    async def test_a_discarded_partition_can_be_filled_again(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            for seq in range(3):
                await storage.commit(Batch(puts={(3, b"k%d" % seq): record(seq)}, discards=[3]))
            assert keys_of(await storage.scan([3], limit=10, bytes_max=PLENTY)) == [b"k2"]

    async def test_notes_are_kept_apart_and_the_newest_wins(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            await storage.commit(Batch(meta={"promise": b"1", "né": b"\0\xff"}))
            await storage.commit(Batch(meta={"promise": b"2", "empty": b""}))
            assert dict(storage.meta()) == {"promise": b"2", "né": b"\0\xff", "empty": b""}
            assert keys_of(await storage.scan(range(65_535), limit=10, bytes_max=PLENTY)) == []

    async def test_a_scan_merges_partitions_in_key_order(self, tmp_path: Path) -> None:
        keys = [b"a", b"a\0", b"a\0\0", b"aa", b"b", b"\x7f", b"\x80", b"\xff", b"\xff\xff"]
        async with self.opened(tmp_path) as storage:
            await storage.commit(Batch(puts={(i * 7 % 5, key): record(i, key) for i, key in enumerate(keys)}))
            page = await storage.scan([4, 0, 3, 1, 2], limit=100, bytes_max=PLENTY)
            assert page.rows == [Row(i * 7 % 5, key, record(i, key)) for i, key in enumerate(keys)]
            assert not page.more

    async def test_a_scan_leaves_other_partitions_out(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            await storage.commit(Batch(puts={(p, b"k%d" % p): record(p) for p in range(6)}))
            assert keys_of(await storage.scan([1, 4], limit=100, bytes_max=PLENTY)) == [b"k1", b"k4"]

    async def test_a_scan_gives_tombstones(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            await storage.commit(Batch(puts={(0, b"gone"): record(1, None)}))
            page = await storage.scan([0], limit=100, bytes_max=PLENTY)
            assert page.rows == [Row(0, b"gone", record(1, None))]

    async def test_a_scan_keeps_to_its_prefix(self, tmp_path: Path) -> None:
        keys = [b"a", b"b", b"b\0", b"ba", b"b\xff\xff", b"c", b"\xff", b"\xff\xff"]
        async with self.opened(tmp_path) as storage:
            await storage.commit(Batch(puts={(i % 3, key): record(i) for i, key in enumerate(keys)}))
            for prefix in (b"b", b"\xff", b"", b"ba", b"nothing"):
                page = await storage.scan([0, 1, 2], prefix=prefix, limit=100, bytes_max=PLENTY)
                assert keys_of(page) == [key for key in keys if key.startswith(prefix)]

    async def test_a_scan_begins_after_its_cursor(self, tmp_path: Path) -> None:
        keys = [b"a", b"b", b"b\0", b"ba", b"c"]
        async with self.opened(tmp_path) as storage:
            await storage.commit(Batch(puts={(i % 2, key): record(i) for i, key in enumerate(keys)}))
            for after in (b"", b"a", b"aa", b"b", b"b\0", b"c", b"d"):
                page = await storage.scan([0, 1], after=after, limit=100, bytes_max=PLENTY)
                assert keys_of(page) == [key for key in keys if key > after]
            page = await storage.scan([0, 1], prefix=b"b", after=b"a", limit=100, bytes_max=PLENTY)
            assert keys_of(page) == [b"b", b"b\0", b"ba"]
            page = await storage.scan([0, 1], prefix=b"b", after=b"c", limit=100, bytes_max=PLENTY)
            assert keys_of(page) == []

    async def test_pages_in_a_row_give_every_key_once(self, tmp_path: Path) -> None:
        keys = sorted(b"%d/%d" % (i % 7, i) for i in range(300))
        async with self.opened(tmp_path) as storage:
            # Most keys in one partition: pages must not depend on an even spread.
            await storage.commit(Batch(puts={(i % 10 if i < 60 else 3, key): record(i) for i, key in enumerate(keys)}))
            for limit in (1, 2, 7, 299, 300, 301):
                assert await self._all_keys(storage, range(10), limit) == keys

    async def _all_keys(self, storage: Storage, partitions: Sequence[int], limit: int) -> list[bytes]:
        keys: list[bytes] = []
        more = True
        while more:
            page = await storage.scan(partitions, after=keys[-1] if keys else None, limit=limit, bytes_max=PLENTY)
            assert len(page.rows) == limit or not page.more
            keys += keys_of(page)
            more = page.more
        return keys

    async def test_a_page_ends_at_its_limit_and_says_whether_more_follows(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            await storage.commit(Batch(puts={(i, b"k%d" % i): record(i) for i in range(4)}))
            page = await storage.scan(range(4), limit=3, bytes_max=PLENTY)
            assert (keys_of(page), page.more) == ([b"k0", b"k1", b"k2"], True)
            page = await storage.scan(range(4), limit=4, bytes_max=PLENTY)
            assert (len(page.rows), page.more) == (4, False)

    async def test_a_page_ends_after_the_row_that_exceeds_its_bytes(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            await storage.commit(Batch(puts={(i, b"k%d" % i): record(i, b"x" * 98) for i in range(4)}))
            for bytes_max, rows in ((0, 1), (99, 1), (100, 2), (199, 2), (200, 3), (399, 4)):
                page = await storage.scan(range(4), limit=100, bytes_max=bytes_max)
                assert (len(page.rows), page.more) == (rows, rows < 4)

    async def test_a_scan_beside_commits_sees_whole_batches(self, tmp_path: Path) -> None:
        """Each batch writes one version to every partition; a page that mixes two has seen half of one."""
        partitions = range(200)

        def batch(seq: int) -> Batch:
            return Batch(puts={(p, b"k%d" % p): record(seq) for p in partitions})

        async with self.opened(tmp_path) as storage, trio.open_nursery() as nursery:

            async def write() -> None:
                for seq in range(1, 200):
                    await storage.commit(batch(seq))
                    await trio.lowlevel.checkpoint()  # an engine need not wait for anything
                nursery.cancel_scope.cancel()

            await storage.commit(batch(0))
            interval_s = sys.getswitchinterval()
            sys.setswitchinterval(1e-6)  # threads take turns as often as they can
            try:
                nursery.start_soon(write)
                while True:
                    await trio.lowlevel.checkpoint()
                    page = await storage.scan(partitions, limit=1000, bytes_max=PLENTY)
                    assert len(page.rows) == len(partitions)
                    assert len({row.record.version for row in page.rows}) == 1
            finally:
                sys.setswitchinterval(interval_s)

    async def test_a_durable_store_opens_again_as_it_was_left(self, tmp_path: Path) -> None:
        if not self.engine.durable:
            return
        for life in range(3):
            async with self.opened(tmp_path) as storage:
                assert dict(storage.meta()) == ({"life": b"%d" % (life - 1)} if life else {})
                assert [storage.get(0, b"k%d" % i) for i in range(life)] == [record(i, b"v") for i in range(life)]
                assert storage.get(1, b"discarded") is None
                assert storage.get(2, b"removed") is None
                gone = {(1, b"discarded"): record(life), (2, b"removed"): record(life)}
                await storage.commit(Batch(puts={(0, b"k%d" % life): record(life, b"v")} | gone))
                await storage.commit(Batch(discards=[1], removes={(2, b"removed")}, meta={"life": b"%d" % life}))


# --- sentences instead of hangs ---------------------------------------------------------------------------------------


@contextmanager
def _bounded(method: str) -> Iterator[None]:
    with trio.move_on_after(_PATIENCE_S) as scope:
        yield
    assert not scope.cancelled_caught, f"{method} has not returned within {_PATIENCE_S:g} s"


class _Bounded(Storage):
    """A storage whose calls fail with a sentence when they wait for ever."""

    def __init__(self, inner: Storage) -> None:
        self._inner = inner

    def get(self, partition: int, key: bytes) -> Record | None:
        return self._inner.get(partition, key)

    async def scan(
        self, partitions: Sequence[int], *, prefix: bytes = b"", after: bytes | None = None, limit: int, bytes_max: int
    ) -> Page:
        with _bounded("scan"):
            return await self._inner.scan(partitions, prefix=prefix, after=after, limit=limit, bytes_max=bytes_max)

    async def commit(self, batch: Batch) -> None:
        with _bounded("commit"):
            await self._inner.commit(batch)

    def meta(self) -> Mapping[str, bytes]:
        return self._inner.meta()

    def room(self) -> Room | None:
        return self._inner.room()

    async def close(self) -> None:
        await self._inner.close()


class _Steps(trio.abc.Instrument):
    """Counts how often the present task lets others run, inside a `with` block."""

    def __init__(self) -> None:
        self.count = 0
        self._task = trio.lowlevel.current_task()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task is self._task

    def __enter__(self) -> _Steps:
        trio.lowlevel.add_instrument(self)
        return self

    def __exit__(self, *_: object) -> None:
        trio.lowlevel.remove_instrument(self)


# --- a process that is killed -----------------------------------------------------------------------------------------

_COMMIT_UNTIL_KILLED = """
import importlib, sys, trio
from pathlib import Path
from trikv.api import Batch
from trikv.testing.storage import record

async def main():
    storage = await getattr(importlib.import_module(sys.argv[1]), sys.argv[2])().open(Path(sys.argv[3]))
    seq = 0
    while True:
        await storage.commit(Batch(puts={(p, b"k%d" % seq): record(seq) for p in range(3)}, meta={"seq": b"%d" % seq}))
        print(seq, flush=True)
        seq += 1

trio.run(main)
"""


def commit_until_killed(engine: StorageEngine, directory: Path, *, commits: int) -> list[int]:
    """Let a process commit, and kill it with SIGKILL meanwhile. Returns the numbers that it reported as committed.

    The process makes an engine of the same class, without arguments.
    """
    kind = type(engine)
    command = [sys.executable, "-c", _COMMIT_UNTIL_KILLED, kind.__module__, kind.__qualname__, str(directory)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(commits)]
        assert all(lines), (
            f"a process that opens {kind.__module__}.{kind.__qualname__}() and commits ended by itself after "
            f"{sum(map(bool, lines))} commits; its error is above"
        )
        said = [int(line) for line in lines]
        process.send_signal(signal.SIGKILL)
        said += [int(line) for line in process.stdout.read().splitlines()]
    assert said == list(range(len(said)))
    return said


async def survives_a_kill(engine: StorageEngine, directory: Path, *, commits: int) -> None:
    """After `commit_until_killed`, find everything that was reported as committed, and no half of a batch."""
    directory = directory / "records"  # which the engine is to make
    said = commit_until_killed(engine, directory, commits=commits)
    storage = await engine.open(directory)
    try:
        for seq in said:
            assert [storage.get(p, b"k%d" % seq) for p in range(3)] == [record(seq)] * 3
        last = int(storage.meta()["seq"])
        assert last in (said[-1], said[-1] + 1)  # the batch that was under way is there as a whole, or not at all
        assert {storage.get(p, b"k%d" % last) for p in range(3)} == {record(last)}
        assert {storage.get(p, b"k%d" % (last + 1)) for p in range(3)} == {None}
    finally:
        await storage.close()
