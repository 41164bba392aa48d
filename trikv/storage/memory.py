"""Records in memory, for caches, trials and tests. Nothing survives the process.

Each record is packed into one `bytes` object, as on a disk (`core/record.py`), and unpacked for each read. A partition
is a list of leaves in key order. A leaf is a dict of at most `_LEAF_KEYS_MAX` records, and is split when it is full. A
read bisects the bounds between the leaves and looks into one dict. A scan sorts the keys of each leaf that it reaches,
so no list of all keys is kept.

The collector of garbage does not look at `bytes`, nor at a dict that holds nothing else. So it sees a few objects for
each partition, whatever is stored. That is so up to Python 3.13; later ones look at every dict.

What it costs, with keys of 8 to 12 bytes, values of 100, and a million keys in 1,024 partitions: a worker takes 2.4 to
2.5 times the bytes of keys and values (268 bytes a key: 176 are the record, 48 the key, 44 its place in the leaf). A
full collection takes 1 to 10 ms. On two cores of a shared AMD EPYC, Python 3.11, a read takes 1 to 2.5 us, of which 0.6
are the unpacking, a put 3 to 4 us, and a page of 1,000 rows from all partitions 13 ms, mostly for the sorting.

Left out: leaves are never joined. A leaf from which most keys were removed keeps its table of up to 1.2 KB until its
last key, or the partition, goes.

Everything happens on the event loop between two checkpoints, so no task can see half a batch.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import trio

from trikv.api import Batch, Page, Record, Storage, StorageEngine, hookimpl
from trikv.core.record import pack, unpack
from trikv.storage.merge import first_key, merge_page

_LEAF_KEYS_MAX: Final = 42  # a dict's table grows with the next key, so that of a split leaf is half full or more
_PACKED_BYTES_MAX: Final = 16 * 1024  # a longer value is not copied: the objects around it are small beside it


class _Partition:
    """The records of one partition, in leaves. Each bound is the least key of the leaf behind it."""

    __slots__ = ("bounds", "leaves")

    def __init__(self) -> None:
        self.leaves: list[dict[bytes, bytes | Record]] = [{}]
        self.bounds: list[bytes] = []  # between the leaves: one fewer

    def get(self, key: bytes) -> Record | None:
        held = self.leaves[bisect_right(self.bounds, key)].get(key)
        return unpack(held) if isinstance(held, bytes) else held

    def put(self, key: bytes, record: Record) -> None:
        place = bisect_right(self.bounds, key)
        leaf = self.leaves[place]
        value = record.value
        leaf[key] = pack(record) if value is None or len(value) <= _PACKED_BYTES_MAX else record
        if len(leaf) > _LEAF_KEYS_MAX:
            keys = sorted(leaf)
            low, high = keys[: len(keys) // 2], keys[len(keys) // 2 :]
            self.leaves[place : place + 1] = [{key: leaf[key] for key in low}, {key: leaf[key] for key in high}]
            self.bounds.insert(place, high[0])

    def remove(self, key: bytes) -> None:
        place = bisect_right(self.bounds, key)
        self.leaves[place].pop(key, None)
        if not self.leaves[place] and self.bounds:
            del self.leaves[place]
            del self.bounds[max(place - 1, 0)]

    def keys(self, start: bytes) -> Iterator[bytes]:
        """The keys from `start`, in order."""
        for leaf in self.leaves[bisect_right(self.bounds, start) :]:
            keys = sorted(leaf)
            yield from keys[bisect_left(keys, start) :]


class MemoryStorage(Storage):
    """One worker's records, as long as this object lives."""

    def __init__(self) -> None:
        self._partitions: dict[int, _Partition] = {}
        self._meta: dict[str, bytes] = {}

    def get(self, partition: int, key: bytes) -> Record | None:
        held = self._partitions.get(partition)
        return None if held is None else held.get(key)

    async def scan(
        self, partitions: Sequence[int], *, prefix: bytes = b"", after: bytes | None = None, limit: int, bytes_max: int
    ) -> Page:
        await trio.lowlevel.checkpoint()
        start = first_key(prefix, after)
        streams = (self._keys(partition, prefix, start) for partition in partitions if partition in self._partitions)
        return merge_page(streams, self._listed, limit=limit, bytes_max=bytes_max)

    def _keys(self, partition: int, prefix: bytes, start: bytes) -> Iterator[tuple[bytes, int]]:
        for key in self._partitions[partition].keys(start):
            if not key.startswith(prefix):
                return
            yield key, partition

    def _listed(self, partition: int, key: bytes) -> Record:
        record = self._partitions[partition].get(key)
        assert record is not None, (partition, key)
        return record

    async def commit(self, batch: Batch) -> None:
        self.apply(batch)  # there is nothing to wait for, and a pass of the scheduler costs as much as a store

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
