"""What a worker holds: versioned records behind a fence, made durable one batch at a time.

`pass_fence`, `put`, `discard`, `forget` and `note` judge and collect; `commit` makes all that they collected durable in
one batch. A record is replaced only by a newer one. While a batch is being flushed, `durable` still answers with the
record from before it, so that nothing is visible that could be lost. A partition whose promise or discard is in that
batch is in doubt: `knows` is False for it until the flush is over.

Each partition has a `Summary` (digest and counts). It is kept up to date as records come and go, and noted on disk in
the same batch, as `keys/N`. `promise/N` is the promised epoch. A store from before there were digests has only the
number of keys there; its partitions are read through once, when it is opened. Each batch contains its number.

Only the worker's committer calls the methods that change anything, between two commits. Between a commit and the next
change, a summary is that of the durable records.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import trio

from trikv.api import Batch, Storage
from trikv.core.digest import Summary
from trikv.core.fence import EpochJudgement, Fence
from trikv.core.histogram import Histogram, Sizes
from trikv.core.record import Record, Version

_EMPTY: Final = Summary()
_KNOWN: Final = EpochJudgement.KNOWN  # every call looks it up
_PAGE_ROWS: Final = 1_000
_PAGE_BYTES: Final = 4 * 1024 * 1024


@cache
def _note_of_summary(partition: int) -> str:
    return f"keys/{partition}"


class Registers:
    """One worker's records. Make it with `open`."""

    def __init__(self, storage: Storage) -> None:
        promised: dict[int, int] = {}
        self._summaries: dict[int, Summary] = {}
        for name, note in storage.meta().items():
            kind, _, partition = name.partition("/")
            if kind == "promise":
                promised[int(partition)] = int(note)
            elif kind == "keys" and (summary := Summary.unpack(note)) is not None:
                self._summaries[int(partition)] = summary
        self._unread = promised.keys() - self._summaries.keys()  # a partition without a promise holds no record
        self.fence = Fence(promised)
        self.batches = int(storage.meta().get("batches", b"0"))  # how many batches were ever made durable here
        self.keys = sum(summary.keys for summary in self._summaries.values())
        self.size_bytes = sum(summary.size_bytes for summary in self._summaries.values())  # of keys and values
        self._storage = storage
        self._now = trio.lowlevel.current_clock().current_time  # `trio.current_time` costs twice as much
        self.commit_times = Histogram()  # of batches, from the write to the end of its flush
        self.commit_sizes = Sizes()  # records in a batch
        # What the next `commit` makes durable.
        self._batch = Batch()
        self._changed: set[int] = set()  # partitions whose summary differs from the note on disk
        # The records from before that batch or the one being flushed, and the partitions that these promise or discard.
        self._before: dict[tuple[int, bytes], Record | None] = {}
        self._in_doubt: set[int] = set()

    @classmethod
    async def open(cls, storage: Storage) -> Registers:
        self = cls(storage)
        for partition in self._unread:
            summary, after, more = _EMPTY, None, True
            while more:
                page = await storage.scan([partition], after=after, limit=_PAGE_ROWS, bytes_max=_PAGE_BYTES)
                for _, key, record in page.rows:
                    summary = summary.replaced(key, None, record)
                    after = key
                more = page.more
            self._set_summary(partition, summary)
        await self.commit()
        return self

    # --- what is durable ----------------------------------------------------------------------------------------------

    def knows(self, partition: int, epoch: int) -> bool:
        """Is this the epoch that is promised, durably, with no discard under way?"""
        return partition not in self._in_doubt and self.fence.judge(partition, epoch) is _KNOWN

    def durable(self, partition: int, key: bytes) -> Record | None:
        """The record as it is on disk, without the batch that is on its way there."""
        where = (partition, key)
        return self._before[where] if where in self._before else self._storage.get(partition, key)

    def summary(self, partition: int) -> Summary:
        return self._summaries.get(partition, _EMPTY)

    # --- what changes it ----------------------------------------------------------------------------------------------

    def pass_fence(self, partition: int, epoch: int) -> bool:
        """Promise the epoch if it is newer. False: it is stale, or absurd."""
        judgement = self.fence.judge(partition, epoch)
        if judgement is _KNOWN:
            return True
        if judgement is EpochJudgement.NEWER:
            self.fence.promise(partition, epoch)
            self.note(f"promise/{partition}", b"%d" % epoch)
            self._in_doubt.add(partition)
            if partition not in self._summaries:
                self._set_summary(partition, _EMPTY)
        return judgement is EpochJudgement.NEWER

    def put(self, partition: int, key: bytes, record: Record) -> None:
        """Replace the record if the new one is newer."""
        where = (partition, key)
        current = self._current(where)
        if current is None or record.version > current.version:
            self._batch.puts[where] = record
            self._set_summary(partition, self.summary(partition).replaced(key, current, record))

    def forget(self, partition: int, key: bytes, version: Version) -> None:
        """Remove the record if it is a tombstone of exactly this version."""
        where = (partition, key)
        current = self._current(where)
        if current is not None and current.is_tombstone and current.version == version:
            self._batch.puts.pop(where, None)
            self._batch.removes.add(where)
            self._set_summary(partition, self.summary(partition).replaced(key, current, None))

    def discard(self, partition: int) -> None:
        """Remove all of the partition's records."""
        batch = self._batch
        for where in [where for where in batch.puts if where[0] == partition]:
            del batch.puts[where]
        if partition not in batch.discards:
            batch.discards.append(partition)
        self._in_doubt.add(partition)
        self._set_summary(partition, _EMPTY)

    def note(self, name: str, note: bytes) -> None:
        """Add a note of the worker's own to the batch."""
        self._batch.meta[name] = note

    async def commit(self) -> None:
        """Make durable what was collected since the last commit."""
        batch, self._batch = self._batch, Batch()
        for partition in self._changed:
            batch.meta[_note_of_summary(partition)] = self._summaries[partition].pack()
        self._changed.clear()
        if batch:
            batch.meta["batches"] = b"%d" % (self.batches + 1)
            began_s = self._now()
            await self._storage.commit(batch)
            self.batches += 1
            self.commit_times.note(self._now() - began_s)
            if records := len(batch.puts) + len(batch.removes):
                self.commit_sizes.note(records)
        self._before.clear()
        self._in_doubt.clear()

    def _current(self, where: tuple[int, bytes]) -> Record | None:
        """The record as it will be once the collected batch is durable."""
        batch = self._batch
        if where in batch.puts:
            return batch.puts[where]
        if where in batch.removes or where[0] in batch.discards:
            return None
        current = self._before[where] = self._storage.get(*where)
        return current

    def _set_summary(self, partition: int, summary: Summary) -> None:
        _, _, size_bytes, keys = summary
        _, _, former_bytes, former_keys = self._summaries.get(partition, _EMPTY)
        self.keys += keys - former_keys
        self.size_bytes += size_bytes - former_bytes
        self._summaries[partition] = summary
        self._changed.add(partition)
