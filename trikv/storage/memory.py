"""Records in memory, for caches, trials and tests. Nothing survives the process.

Each partition has a dict of its records, and a sorted list of its keys for scans. A new key costs a binary search and
the moving of the keys that sort behind it. With keys spread over a thousand partitions that is a short `memmove`, and
it stays under a millisecond for a hundred thousand keys in one partition. So a tree is not worth it.

Everything happens on the event loop between two checkpoints, so no task can see half a batch.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import trio

from trikv.api import Batch, Page, Record, Storage, StorageEngine, hookimpl
from trikv.storage.merge import first_key, merge_page


class _Partition:
    """The records of one partition, and their keys in order."""

    def __init__(self) -> None:
        self.records: dict[bytes, Record] = {}
        self.keys: list[bytes] = []

    def put(self, key: bytes, record: Record) -> None:
        if key not in self.records:
            insort(self.keys, key)
        self.records[key] = record

    def remove(self, key: bytes) -> None:
        if self.records.pop(key, None) is not None:
            del self.keys[bisect_left(self.keys, key)]


class MemoryStorage(Storage):
    """One worker's records, as long as this object lives."""

    def __init__(self) -> None:
        self._partitions: dict[int, _Partition] = {}
        self._meta: dict[str, bytes] = {}

    def get(self, partition: int, key: bytes) -> Record | None:
        held = self._partitions.get(partition)
        return None if held is None else held.records.get(key)

    async def scan(
        self, partitions: Sequence[int], *, prefix: bytes = b"", after: bytes | None = None, limit: int, bytes_max: int
    ) -> Page:
        await trio.lowlevel.checkpoint()
        start = first_key(prefix, after)
        streams = (self._keys(partition, prefix, start) for partition in partitions if partition in self._partitions)
        return merge_page(
            streams, lambda partition, key: self._partitions[partition].records[key], limit=limit, bytes_max=bytes_max
        )

    def _keys(self, partition: int, prefix: bytes, start: bytes) -> Iterator[tuple[bytes, int]]:
        keys = self._partitions[partition].keys
        for place in range(bisect_left(keys, start), len(keys)):
            if not keys[place].startswith(prefix):
                return
            yield keys[place], partition

    async def commit(self, batch: Batch) -> None:
        await trio.lowlevel.checkpoint()
        self.apply(batch)

    def apply(self, batch: Batch) -> None:
        """Do what `commit` does, at once."""
        for partition in batch.discards:
            self._partitions.pop(partition, None)
        for partition, key in batch.removes:
            if partition in self._partitions:
                self._partitions[partition].remove(key)
        for (partition, key), record in batch.puts.items():
            held = self._partitions.get(partition)
            if held is None:
                held = self._partitions[partition] = _Partition()
            held.put(key, record)
        self._meta.update(batch.meta)

    def meta(self) -> Mapping[str, bytes]:
        return self._meta

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()


class MemoryEngine(StorageEngine):
    """Records in memory: nothing survives the process, and a restarted worker is a new member."""

    name = "memory"
    durable = False

    async def open(self, directory: Path | None) -> Storage:
        await trio.lowlevel.checkpoint()
        return MemoryStorage()


@hookimpl
def trikv_storage_engines() -> Sequence[StorageEngine]:
    return [MemoryEngine()]
