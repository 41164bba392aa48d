"""Both engines against the contract that every engine must keep, and against a model under arbitrary batches."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from trikv.api import Batch, Page, Record, Storage, StorageEngine
from trikv.registry import PluginError
from trikv.storage.memory import MemoryEngine, MemoryStorage
from trikv.storage.merge import first_key, merge_page
from trikv.storage.rocksdb import RocksEngine
from trikv.testing.storage import PLENTY, StorageContract, record, survives_a_kill


class TestMemory(StorageContract):
    engine = MemoryEngine()


class TestRocksDB(StorageContract):
    engine = RocksEngine()


class NeverYields(MemoryStorage):
    """An engine whose methods wait for nothing."""

    async def scan(
        self, partitions: Sequence[int], *, prefix: bytes = b"", after: bytes | None = None, limit: int, bytes_max: int
    ) -> Page:
        start = first_key(prefix, after)
        streams = [self._keys(partition, prefix, start) for partition in partitions if partition in self._partitions]
        return merge_page(streams, self._listed, limit=limit, bytes_max=bytes_max)


class WaitsForEver(MemoryStorage):
    async def commit(self, batch: Batch) -> None:
        await trio.sleep_forever()


class NeedsItsDirectory(MemoryStorage):
    pass


class BrokenEngine(StorageEngine):
    """An engine that is broken in one way."""

    name = "broken"
    durable = True

    def __init__(self, storage: type[MemoryStorage] | None) -> None:
        self.storage = storage

    async def open(self, directory: Path | None) -> Storage:
        assert directory is not None
        if self.storage is NeedsItsDirectory:
            (directory / "records").touch()
        return cast("Storage", self.storage and self.storage())


def contract_of(storage: type[MemoryStorage] | None) -> StorageContract:
    class Broken(StorageContract):
        engine = BrokenEngine(storage)

    return Broken()


async def test_an_engine_that_never_yields_fails_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"scan never lets other tasks run: await trio\.lowlevel\.checkpoint"):
        await contract_of(NeverYields).test_a_scan_lets_other_tasks_run(tmp_path)
    await contract_of(NeverYields).test_a_scan_beside_commits_sees_whole_batches(tmp_path)  # it has an end
    with pytest.raises(AssertionError, match="commit never lets other tasks run while it writes"):
        await contract_of(MemoryStorage).test_a_durable_commit_lets_other_tasks_run(tmp_path)


async def test_an_engine_that_waits_for_ever_fails_with_a_sentence(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    with pytest.raises(AssertionError, match="commit has not returned within 60 s"):
        await contract_of(WaitsForEver).test_a_later_put_replaces(tmp_path)


async def test_an_engine_has_to_make_its_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await contract_of(NeedsItsDirectory).test_a_new_store_is_empty(tmp_path)


async def test_an_engine_has_to_open_a_storage(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"open must return a trikv.api.Storage, not None"):
        await contract_of(None).test_a_new_store_is_empty(tmp_path)


def test_an_engine_without_a_name_is_told_so() -> None:
    class Nameless(StorageContract):
        engine = type("Nameless", (BrokenEngine,), {"name": None})(MemoryStorage)

    with pytest.raises(PluginError, match="needs a name"):
        Nameless().test_it_can_be_installed()


async def test_a_process_that_cannot_commit_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"BrokenEngine\(\) and commits ended by itself after 0 commits"):
        await survives_a_kill(BrokenEngine(MemoryStorage), tmp_path, commits=1)


PARTITIONS = st.integers(0, 5)
KEYS = st.sampled_from([b"\0", b"a", b"\xff"]) | st.binary(min_size=1, max_size=3)  # so that some come again
BATCHES = st.lists(
    st.tuples(
        st.lists(PARTITIONS, max_size=2),
        st.sets(st.tuples(PARTITIONS, KEYS), max_size=10),
        st.dictionaries(st.tuples(PARTITIONS, KEYS), st.none() | st.binary(max_size=4), max_size=30),
    ),
    max_size=5,
)


@pytest.mark.parametrize("engine", [MemoryEngine(), RocksEngine()], ids=lambda engine: engine.name)
@settings(max_examples=60)
@given(
    batches=BATCHES,
    partitions=st.sets(PARTITIONS),
    prefix=st.binary(max_size=1),
    after=st.none() | KEYS,
    limit=st.integers(1, 40),
    bytes_max=st.integers(0, 60) | st.just(PLENTY),
)
async def test_like_a_plain_dict(
    engine: StorageEngine,
    batches: list[tuple[list[int], set[tuple[int, bytes]], dict[tuple[int, bytes], bytes | None]]],
    partitions: set[int],
    prefix: bytes,
    after: bytes | None,
    limit: int,
    bytes_max: int,
) -> None:
    model: dict[tuple[int, bytes], Record] = {}
    with tempfile.TemporaryDirectory() as directory:
        storage = await engine.open(Path(directory))
        try:
            for seq, (discards, removes, values) in enumerate(batches):
                puts = {where: record(seq, value) for where, value in values.items()}
                await storage.commit(Batch(puts=puts, removes=removes, discards=discards))
                gone = removes | {where for where in model if where[0] in discards}
                model = {where: held for where, held in model.items() if where not in gone} | puts
            assert {where: storage.get(*where) for where in model} == model

            page = await storage.scan(list(partitions), prefix=prefix, after=after, limit=limit, bytes_max=bytes_max)
            wanted = sorted(
                (key, p) for p, key in model if p in partitions and key.startswith(prefix) and key > (after or b"")
            )
            assert [(row.key, row.partition) for row in page.rows] == wanted[: len(page.rows)]
            assert all(row.record == model[row.partition, row.key] for row in page.rows)
            assert page.more == (len(page.rows) < len(wanted))
            sizes = [len(row.key) + len(row.record.value or b"") for row in page.rows]
            assert len(page.rows) <= limit
            assert sum(sizes[:-1]) <= bytes_max
            assert not page.more or len(page.rows) == limit or sum(sizes) > bytes_max
        finally:
            await storage.close()
