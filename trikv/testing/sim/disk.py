"""Disks that outlive their node, and forget what was not flushed.

A `Disk` is what a machine still has after a crash. A `SimStorage` is one life's view of it, behind the door that every
storage engine has. A batch is on its way to the disk for as long as an fsync takes; whether reads see it meanwhile is
drawn, since engines differ in it. A crash in that time leaves all of the batch or nothing. A disk that is full fails
the commit, and what it then holds is drawn too: after an fsync that failed nobody can say.

`ConfigDisk` and `SimConfigStore` are the same for the master's document.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Mapping, Sequence
from typing import Any

import cbor2
import trio

from trikv.api import Batch, Page, Record, Storage
from trikv.node.configstore import ConfigConflict, ConfigStore, ConfigStoreError
from trikv.storage.memory import MemoryStorage
from trikv.testing.sim.clock import sleep
from trikv.testing.sim.network import Life


class Disk:
    """What survives of a worker's records."""

    def __init__(self, fsync_s: float) -> None:
        self.fsync_s = fsync_s
        self.slow_s = 0.0
        self.full = False
        self.records: dict[tuple[int, bytes], Record] = {}
        self.meta: dict[str, bytes] = {}
        self.under_way: Batch | None = None

    def flush(self) -> None:
        """What was under way is on the disk."""
        batch, self.under_way = self.under_way, None
        if batch is not None:
            if batch.discards:
                kept = self.records.items()
                self.records = {where: record for where, record in kept if where[0] not in batch.discards}
            for where in batch.removes:
                self.records.pop(where, None)
            self.records.update(batch.puts)
            self.meta.update(batch.meta)

    def crash(self, dice: random.Random, share_kept: float) -> None:
        """What was under way is on the disk with this probability, and else lost."""
        if dice.random() < share_kept:
            self.flush()
        self.under_way = None

    def lose(self) -> None:
        """A new disk in its place."""
        self.records = {}
        self.meta = {}
        self.under_way = None


class SimStorage(Storage):
    """One life's view of a disk. Make it with `open`."""

    def __init__(self, disk: Disk, life: Life) -> None:
        self._disk = disk
        self._life = life
        self._view = MemoryStorage()

    @classmethod
    async def open(cls, disk: Disk, life: Life) -> SimStorage:
        self = cls(disk, life)
        await trio.lowlevel.checkpoint()
        self._view.apply(Batch(puts=disk.records, meta=disk.meta))
        return self

    def get(self, partition: int, key: bytes) -> Record | None:
        return self._view.get(partition, key)

    async def scan(
        self, partitions: Sequence[int], *, prefix: bytes = b"", after: bytes | None = None, limit: int, bytes_max: int
    ) -> Page:
        return await self._view.scan(partitions, prefix=prefix, after=after, limit=limit, bytes_max=bytes_max)

    async def commit(self, batch: Batch) -> None:
        disk, dice = self._disk, self._life.dice
        self._life.step()
        await trio.lowlevel.checkpoint_if_cancelled()
        disk.under_way = batch
        seen_early = dice.random() < 0.5
        if seen_early:
            self._view.apply(batch)
        await sleep(disk.fsync_s * (0.5 + dice.random()) + disk.slow_s * dice.random())
        if disk.full:
            raise OSError(errno.ENOSPC, "no space left on the simulated disk")
        disk.flush()
        if not seen_early:
            self._view.apply(batch)

    def meta(self) -> Mapping[str, bytes]:
        return self._view.meta()

    async def close(self) -> None:
        await self._view.close()


class ConfigDisk:
    """What survives of the cluster's document."""

    def __init__(self, document: dict[str, Any], fsync_s: float) -> None:
        self.fsync_s = fsync_s
        self.body = cbor2.dumps(document)
        self.revision = 1
        self.under_way: bytes | None = None

    def flush(self) -> None:
        if self.under_way is not None:
            self.body, self.under_way = self.under_way, None
            self.revision += 1

    def crash(self, dice: random.Random) -> None:
        if dice.random() < 0.5:
            self.flush()
        self.under_way = None


class SimConfigStore(ConfigStore):
    """One master's view of a `ConfigDisk`."""

    def __init__(self, disk: ConfigDisk, life: Life) -> None:
        self._disk = disk
        self._life = life

    async def read(self) -> tuple[dict[str, Any] | None, int]:
        await trio.lowlevel.checkpoint()
        return cbor2.loads(self._disk.body), self._disk.revision

    async def compare_and_set(self, document: dict[str, Any], revision: int) -> int:
        self._life.step()
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_alive()
        disk = self._disk
        if revision != disk.revision:
            raise ConfigConflict(f"the document is at revision {disk.revision}, not {revision}")
        disk.under_way = cbor2.dumps(document)
        await sleep(disk.fsync_s * (0.5 + self._life.dice.random()))
        self._check_alive()
        disk.flush()
        return disk.revision

    def _check_alive(self) -> None:
        """A master holds off its cancellation while it waits here. Its crash does not wait for that."""
        if self._life.dead:
            raise ConfigStoreError("the machine is off")

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()
