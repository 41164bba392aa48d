"""Both engines against the contract that every engine must keep, and against a model under arbitrary batches."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trikv.api import Batch, Record, StorageEngine
from trikv.storage.memory import MemoryEngine
from trikv.storage.rocksdb import RocksEngine
from trikv.testing.storage import PLENTY, StorageContract, record


class TestMemory(StorageContract):
    engine = MemoryEngine()


class TestRocksDB(StorageContract):
    engine = RocksEngine()


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
