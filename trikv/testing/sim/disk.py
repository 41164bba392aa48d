"""Disks that outlive their node, and forget what was not flushed.

A `Disk` is what a machine still has after a crash. A `SimStorage` is one life's view of the disk, behind the door that
every storage engine has. A batch is on its way to the disk for as long as an fsync takes. Whether reads see the batch
meanwhile is drawn, since engines differ in it. A crash in that time leaves all of the batch or nothing.

A full disk fails the commit, and after that its content is drawn too: after a failed fsync it cannot be known. A hung
disk answers neither commits nor scans until it is mended. Reads of what is in memory still work.

A disk remembers its batches, so that it can be put back as it was after any of them.

`ConfigDisk` and `SimConfigStore` are the same for the master's document. While the document is in doubt, a change is
refused or reported as failed. A change that was reported as failed was made, or was not made, or is made later, unless
another change is made first. It is made later when the master's process ends, as with a log that was written and not
flushed, or by itself, as with a request still on its way.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import cbor2
import trio

from trikv.api import Batch, Page, Record, Storage
from trikv.master.configstore import ConfigConflict, ConfigStore, ConfigStoreError, NotChanged
from trikv.storage.memory import MemoryStorage
from trikv.testing.sim.clock import SimClock, sleep
from trikv.testing.sim.network import Life
from trikv.worker.progress import ProgressMarker

_FAILING: Final = 0.7  # this share of the changes fails while the document is in doubt
_LATER_S: Final = 3.0


class Disk:
    """What survives of a worker's records."""

    def __init__(self, fsync_s: float) -> None:
        self.fsync_s = fsync_s
        self.slow_s = 0.0
        self.full = False
        self.mended: trio.Event | None = None  # the disk hangs until this event
        self.past: list[Batch] = []  # the batches that were written since the disk was new
        self.records: dict[tuple[int, bytes], Record] = {}
        self.meta: dict[str, bytes] = {}
        self.progress = 0  # the number of batches in the marker beside the records
        self.under_way: Batch | None = None

    def flush(self) -> None:
        """Put what is under way on the disk."""
        batch, self.under_way = self.under_way, None
        if batch is not None:
            self.past.append(batch)
            if batch.discards:
                kept = self.records.items()
                self.records = {where: record for where, record in kept if where[0] not in batch.discards}
            for where in batch.removes:
                self.records.pop(where, None)
            self.records.update(batch.puts)
            self.meta.update(batch.meta)

    def crash(self, dice: random.Random, share_kept: float) -> None:
        """Keep what is under way with this probability, and lose it otherwise."""
        if dice.random() < share_kept:
            self.flush()
        self.under_way = None

    def lose(self) -> None:
        """Put a new disk in its place."""
        self.past = []
        self.records = {}
        self.meta = {}
        self.progress = 0
        self.under_way = None

    def copies(self) -> list[int]:
        """The copies of the disk, by the number of batches in them.

        There is one from before each start of its worker, except the first.
        """
        return [number for number, batch in enumerate(self.past) if number and b" " in batch.meta.get("starts", b"")]

    def put_back(self, share: float) -> None:
        """Make the disk as it was when a copy was made: the one at `share` of the way from the first to the last."""
        copies = self.copies()
        past = self.past[: copies[int(share * len(copies))]]
        self.lose()
        for batch in past:
            self.under_way = batch
            self.flush()
        self.progress = int(self.meta["batches"])

    def hang(self) -> None:
        if self.mended is None:
            self.mended = trio.Event()

    def mend(self) -> None:
        if self.mended is not None:
            self.mended.set()
            self.mended = None


class SimProgress(ProgressMarker):
    """The marker beside the records of a disk."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def read(self) -> int:
        return self._disk.progress

    async def write(self, batches: int) -> None:
        await trio.lowlevel.checkpoint()
        self._disk.progress = batches


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
        await self._wait_while_it_hangs()
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
        await self._wait_while_it_hangs()
        if disk.full:
            self._life.disk_failed = True
            raise OSError(errno.ENOSPC, "no space left on the simulated disk")
        disk.flush()
        if not seen_early:
            self._view.apply(batch)

    async def _wait_while_it_hangs(self) -> None:
        while self._disk.mended is not None:
            await self._disk.mended.wait()

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
        self.doubtful = False
        self.later: tuple[bytes, int] | None = (
            None  # a change that was reported as failed, and the revision that it changes
        )
        self.past: list[bytes] = []  # the earlier documents
        self.on_change: Callable[[], None] = lambda: None  # called whenever the document has changed

    def flush(self) -> None:
        if self.under_way is not None:
            self.past.append(self.body)
            self.body, self.under_way = self.under_way, None
            self.revision += 1
            self.on_change()

    def make_later_change(self) -> None:
        """Make a change that was reported as failed, unless another change was made first."""
        later, self.later = self.later, None
        if later is not None and later[1] == self.revision:
            before, self.under_way = self.under_way, later[0]
            self.flush()
            self.under_way = before

    def crash(self, dice: random.Random) -> None:
        if dice.random() < 0.5:
            self.flush()
        if dice.random() < 0.5:
            self.make_later_change()
        self.under_way = self.later = None


class SimConfigStore(ConfigStore):
    """One master's view of a `ConfigDisk`."""

    def __init__(self, disk: ConfigDisk, life: Life, clock: SimClock) -> None:
        self._disk = disk
        self._life = life
        self._clock = clock

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
        if revision != disk.revision:  # meanwhile a change was made that had been reported as failed
            disk.under_way = None
            raise ConfigConflict(f"the document is at revision {disk.revision}, not {revision}")
        if disk.doubtful and self._life.dice.random() < _FAILING:
            self._fail()
        disk.flush()
        return disk.revision

    def _fail(self) -> None:
        disk, dice = self._disk, self._life.dice
        self._life.disk_failed = True
        fate = dice.choice(("made", "not made", "made later", "refused"))
        if fate == "refused":
            disk.under_way = None
            raise NotChanged("the simulated document's disk has no room")
        if fate == "made":
            disk.flush()
        elif fate == "made later":
            assert disk.under_way is not None
            disk.later = (disk.under_way, disk.revision)
            if dice.random() < 0.5:
                self._clock.after(_LATER_S * dice.random(), disk.make_later_change)
        disk.under_way = None
        raise ConfigStoreError("the answer of the simulated document's disk was lost")

    def _check_alive(self) -> None:
        """A master shields itself from cancellation while it waits here. A crash must end it all the same."""
        if self._life.dead:
            raise ConfigStoreError("the machine is off")

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()
