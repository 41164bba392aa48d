"""Records on disk, in RocksDB: the default engine.

A record lies under its partition number (two bytes, big-endian) and its key. So a partition is one contiguous range: a
scan seeks into it, and a discard is one range delete. The worker's notes lie behind the last partition.

`commit` writes one batch and then flushes the log to disk with one fsync, both in one trip to a worker thread. The two
steps are separate because rocksdict holds Python's global lock during a write that syncs by itself. That would stop the
event loop for as long as the disk takes. What it costs: a batch is visible to `get` shortly before it is durable. The
worker hides it for that time.

After a failed flush it is not known what is on disk. So after one failure the storage takes no further commit.

At the start RocksDB replays its log, and flushes what it found as a table before anything is read from it. So what a
failed flush has left in the log is by then either gone or durable, and not only cached. A torn tail is what a crash
leaves behind, and is dropped: it was never acknowledged. Damage before the tail is refused, since skipping it would
silently lose what was acknowledged.

Buffers and threads are small: a machine may run many workers, each with its own instance. On a small disk they are
smaller still (`_Sizes`), since what RocksDB writes for itself must fit the reserve.

A full disk. `room` tells how much is free, and the reserve; below the reserve a worker takes no more values. A
compaction writes its output before it removes its input: with these sizes, some twelve write buffers at most. A batch
whose log finds no room ends the worker. So compactions are off while less than `_COMPACTS_FROM` buffers are free. Other
programs may fill the disk all the same, and a RocksDB that cannot write cannot open. So a file `BALLAST` lies in its
directory. It is removed if the disk is full at a start, and written again by the first batch that finds room for it. If
another program fills the disk once more before that, an operator must make room by hand.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import trio
from rocksdict import (
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    DBRecoveryMode,
    Options,
    Rdict,
    RdictIter,
    ReadOptions,
    WriteBatch,
)

from trikv.api import Batch, Page, Record, Room, Storage, StorageEngine, hookimpl
from trikv.core.record import pack, unpack
from trikv.storage.merge import first_key, merge_page

_META: Final = 0xFFFF  # the notes lie under this number; partitions end one below

_CACHE_BYTES: Final = 32 * 1024 * 1024
_MB: Final = 1024 * 1024
_BALLAST: Final = "BALLAST"
_COMPACTS_FROM: Final = 14  # free write buffers
_LOOK_S: Final = 0.02  # how long a look at the free space counts: each store asks, and a look costs as much as a read
_OPEN_FILES_MAX: Final = 256
_BLOOM_BITS: Final = 10  # 1 % of lookups of absent keys read a block in vain; a write of a new key is such a lookup


class _Sizes(NamedTuple):
    """What is taken of a disk, in bytes; it depends on the size of the disk."""

    write_buffer: int
    reserve: int
    ballast: int

    @classmethod
    def of(cls, directory: Path) -> _Sizes:
        disk = os.statvfs(directory)
        write_buffer = max(_MB // 4, min(8 * _MB, disk.f_blocks * disk.f_frsize // 64))
        return cls(write_buffer, 16 * write_buffer, 6 * write_buffer)

    def may_compact(self, free_bytes: int) -> bool:
        return free_bytes >= _COMPACTS_FROM * self.write_buffer


def _free_bytes(directory: Path) -> int:
    disk = os.statvfs(directory)
    return disk.f_bavail * disk.f_frsize


class RocksStorage(Storage):
    """One worker's records, in an open RocksDB."""

    def __init__(self, db: Rdict, directory: Path, sizes: _Sizes, *, may_compact: bool) -> None:
        self._db = db
        self._may_compact = may_compact
        self._sizes = sizes
        self._has_ballast = _lay_ballast(directory / _BALLAST, sizes)
        self._directory = directory
        self._failure: OSError | None = None
        self._free_bytes, self._free_until_s = 0, 0.0  # as of the last look, and until when it counts
        notes = _Cursor(db.iter())
        self._meta = {
            place[2:].decode(): notes.value() for place in notes.places(_place(_META, b""), _place(_META, b""))
        }

    def get(self, partition: int, key: bytes) -> Record | None:
        try:
            data = self._db.get(_place(partition, key))
        except Exception as error:  # rocksdict raises no narrower type
            raise OSError(f"RocksDB cannot read from {self._directory}: {error}") from error
        return None if data is None else _record(partition, key, data)

    async def scan(
        self, partitions: Sequence[int], *, prefix: bytes = b"", after: bytes | None = None, limit: int, bytes_max: int
    ) -> Page:
        return await trio.to_thread.run_sync(
            partial(self._scan, sorted(partitions), prefix, first_key(prefix, after), limit, bytes_max)
        )

    def _scan(self, partitions: Sequence[int], prefix: bytes, start: bytes, limit: int, bytes_max: int) -> Page:
        """A page, through one iterator. RocksDB gives it one unchanging view, with all of a batch or nothing of it.

        The first round takes from each partition its fair share of the page, in ascending order, so that the iterator
        only moves forward. A partition from which more is needed is asked for twice as many keys each time. At most
        about 2 * limit + len(partitions) keys are held, and one value besides those of the page.
        """
        if not partitions:
            return Page([], more=False)
        bounds = ReadOptions()
        bounds.set_iterate_upper_bound(_place(partitions[-1] + 1, b""))
        share = 1 + limit // len(partitions)

        def keys(partition: int) -> Iterator[tuple[bytes, int]]:
            wanted, place, count = _place(partition, prefix), _place(partition, start), share
            while True:
                found = list(cursor.places(place, wanted, count))
                yield from ((place[2:], partition) for place in found)
                if len(found) < count:
                    return
                place, count = found[-1] + b"\0", 2 * count

        def read(partition: int, key: bytes) -> Record:
            return _record(partition, key, cursor.value_at(_place(partition, key)))

        with _reported(f"RocksDB cannot scan {self._directory}"):
            cursor = _Cursor(self._db.iter(bounds))
            return merge_page(map(keys, partitions), read, limit=limit, bytes_max=bytes_max)

    async def commit(self, batch: Batch) -> None:
        if self._failure:
            raise OSError(f"this storage failed earlier and must be opened anew: {self._failure}")
        try:
            await trio.to_thread.run_sync(self._commit, batch)
        except OSError as error:
            self._failure = error
            raise
        self._meta.update(batch.meta)

    def _commit(self, batch: Batch) -> None:
        changes = WriteBatch(raw_mode=True)
        for partition in batch.discards:
            changes.delete_range(_place(partition, b""), _place(partition + 1, b""))
        for partition, key in batch.removes:
            changes.delete(_place(partition, key))
        for (partition, key), record in batch.puts.items():
            changes.put(_place(partition, key), pack(record))
        for name, note in batch.meta.items():
            changes.put(_place(_META, name.encode()), note)
        with _reported(f"RocksDB cannot write to {self._directory}"):
            self._db.write(changes)
            self._db.flush_wal(True)
            self._look_at_room()

    def _look_at_room(self) -> None:
        self._free_bytes, self._free_until_s = _free_bytes(self._directory), time.monotonic() + _LOOK_S
        may_compact = self._sizes.may_compact(self._free_bytes)
        if may_compact != self._may_compact:
            self._db.set_options({"disable_auto_compactions": "false" if may_compact else "true"})
            self._may_compact = may_compact
        if not self._has_ballast:
            self._has_ballast = _lay_ballast(self._directory / _BALLAST, self._sizes)

    def meta(self) -> Mapping[str, bytes]:
        return self._meta

    def room(self) -> Room:
        now_s = time.monotonic()
        if now_s >= self._free_until_s:
            self._free_bytes, self._free_until_s = _free_bytes(self._directory), now_s + _LOOK_S
        return Room(self._free_bytes, self._sizes.reserve)

    async def close(self) -> None:
        with trio.CancelScope(shield=True):  # an open instance keeps its directory locked
            try:
                await trio.to_thread.run_sync(self._close)
            except OSError:
                if not self._failure:  # else the error is known already
                    raise

    def _close(self) -> None:
        with _reported(f"RocksDB cannot close {self._directory}"):
            self._db.close()


class RocksEngine(StorageEngine):
    """Records on disk in RocksDB, one fsync for each batch before anything is acknowledged."""

    name = "rocksdb"
    durable = True

    async def open(self, directory: Path | None) -> Storage:
        if directory is None:
            raise OSError("the rocksdb engine keeps its records in a directory, and none was given")
        return await trio.to_thread.run_sync(_open, directory)


def _open(directory: Path) -> RocksStorage:
    with _reported(f"RocksDB cannot open {directory}"):
        directory.mkdir(parents=True, exist_ok=True)
        sizes = _Sizes.of(directory)
        ballast = directory / _BALLAST
        if _free_bytes(directory) < sizes.ballast:
            ballast.unlink(missing_ok=True)
        may_compact = sizes.may_compact(_free_bytes(directory))
        db = Rdict(str(directory), _options(sizes, may_compact=may_compact))
        try:
            return RocksStorage(db, directory, sizes, may_compact=may_compact)
        except BaseException:  # after any error, the directory must not stay locked
            db.close()
            raise


def _lay_ballast(ballast: Path, sizes: _Sizes) -> bool:
    """Write the ballast if there is room for it beside the reserve. Returns whether it is there."""
    if ballast.exists():
        return True
    if _free_bytes(ballast.parent) < sizes.reserve + 2 * sizes.ballast:
        return False
    with suppress(OSError), ballast.open("xb") as file:
        os.posix_fallocate(file.fileno(), 0, sizes.ballast)
    return ballast.exists()


def _options(sizes: _Sizes, *, may_compact: bool) -> Options:
    table = BlockBasedOptions()
    table.set_block_cache(Cache(_CACHE_BYTES))
    table.set_bloom_filter(_BLOOM_BITS, False)
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(table)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_write_buffer_size(sizes.write_buffer)
    options.set_max_total_wal_size(4 * sizes.write_buffer)  # the most that is replayed at the next start
    options.set_target_file_size_base(sizes.write_buffer)
    options.set_max_bytes_for_level_base(4 * sizes.write_buffer)
    options.set_disable_auto_compactions(not may_compact)
    options.set_max_background_jobs(2)
    options.set_max_open_files(_OPEN_FILES_MAX)
    options.set_wal_recovery_mode(DBRecoveryMode.tolerate_corrupted_tail_records())
    options.set_keep_log_file_num(2)  # RocksDB's own messages, not the write-ahead log
    options.set_stats_dump_period_sec(0)
    return options


class _Cursor:
    """An iterator that knows its place, and which places before it hold no row.

    After a discard, RocksDB walks over every deleted key of a range until it meets a living one. So a seek that would
    end where the last one ended is not made: the first round of a scan walks over no dead key twice.
    """

    def __init__(self, iterator: RdictIter) -> None:
        self._iterator = iterator
        self._at: bytes | None = None  # the iterator's place; None: at the end
        self._from: bytes | None = None  # no row lies from this place to `_at`; None: not known

    def places(self, start: bytes, prefix: bytes, count: int | None = None) -> Iterator[bytes]:
        """The next `count` places from `start` that begin with `prefix`. The iterator is at the last one given."""
        place = self._seek(start)
        while place is not None and place.startswith(prefix) and count != 0:
            yield place
            count = None if count is None else count - 1
            self._iterator.next()
            self._from = place + b"\0"
            place = self._arrive()

    def value_at(self, place: bytes) -> bytes:
        found = self._seek(place)
        assert found == place, (found, place)  # it was listed in this view
        return self.value()

    def value(self) -> bytes:
        data = self._iterator.value()
        assert isinstance(data, bytes), data
        return data

    def _seek(self, place: bytes) -> bytes | None:
        if self._from is None or not (self._from <= place and (self._at is None or place <= self._at)):
            self._iterator.seek(place)
            self._from = place
            self._arrive()
        return self._at

    def _arrive(self) -> bytes | None:
        if self._iterator.valid():
            self._at = self._iterator.key()
        else:
            self._at = None
            self._iterator.status()  # raises if the iterator stopped before the end
        return self._at


def _place(partition: int, key: bytes) -> bytes:
    return partition.to_bytes(2, "big") + key


def _record(partition: int, key: bytes, data: bytes) -> Record:
    try:
        return unpack(data)
    except ValueError as error:
        raise OSError(f"the record of key {key!r} in partition {partition} cannot be read: {error}") from error


@contextmanager
def _reported(what: str) -> Iterator[None]:
    """Turn rocksdict's plain exceptions into the OSError that callers of a storage engine expect."""
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:  # rocksdict raises plain Exceptions only
            raise
        raise OSError(f"{what}: {error}") from error


@hookimpl
def trikv_storage_engines() -> Sequence[StorageEngine]:
    return [RocksEngine()]
