"""What only an engine with a disk can get wrong: kills, damage, directories that cannot be used."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from rocksdict import Options, Rdict

from trikv.api import Batch
from trikv.storage.rocksdb import RocksEngine
from trikv.testing.storage import PLENTY, commit_until_killed, record, survives_a_kill

VALUE = bytes(range(256)) * 16


async def filled(directory: Path, commits: int) -> None:
    storage = await RocksEngine().open(directory)
    for seq in range(commits):
        await storage.commit(Batch(puts={(0, b"k%d" % seq): record(seq, VALUE)}))
    await storage.close()


def put_raw(directory: Path, place: bytes, data: bytes) -> None:
    options = Options(raw_mode=True)
    db = Rdict(str(directory), options)
    db[place] = data
    db.close()


def damage(file: Path, where: float) -> None:
    """Turn one byte over, at that fraction of the file."""
    data = bytearray(file.read_bytes())
    data[int(len(data) * where)] ^= 0xFF
    file.write_bytes(data)


async def test_commits_survive_a_kill(tmp_path: Path) -> None:
    await survives_a_kill(RocksEngine(), tmp_path, commits=50)


async def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    storage = await RocksEngine().open(tmp_path)
    with pytest.raises(OSError, match=f"RocksDB cannot open {tmp_path}"):
        await RocksEngine().open(tmp_path)
    await storage.close()
    await (await RocksEngine().open(tmp_path)).close()


async def test_no_directory_is_refused() -> None:
    with pytest.raises(OSError, match="none was given"):
        await RocksEngine().open(None)


async def test_a_record_of_a_later_format_is_named_not_misread(tmp_path: Path) -> None:
    await filled(tmp_path, 1)
    put_raw(tmp_path, b"\0\0later", b"\x02" + bytes(40))
    put_raw(tmp_path, b"\0\0torn", b"\x01\x00")
    storage = await RocksEngine().open(tmp_path)
    assert storage.get(0, b"k0") == record(0, VALUE)
    with pytest.raises(OSError, match=r"b'later' in partition 0 .* format 2; this trikv reads format 1"):
        storage.get(0, b"later")
    with pytest.raises(OSError, match=r"b'torn' in partition 0 .* at least 34 bytes, this has 2"):
        storage.get(0, b"torn")
    with pytest.raises(OSError, match="format 2"):
        await storage.scan([0], limit=10, bytes_max=PLENTY)
    await storage.close()


async def test_a_damaged_table_is_an_error_not_an_absent_key(tmp_path: Path) -> None:
    await filled(tmp_path, 20)
    put_raw(tmp_path, b"\1\0k", b"")  # opening once more moves the log into a table
    tables = sorted(tmp_path.glob("*.sst"), key=lambda file: file.stat().st_size)
    damage(tables[-1], 0.05)
    storage = await RocksEngine().open(tmp_path)
    unreadable = []
    for seq in range(20):
        try:
            held = storage.get(0, b"k%d" % seq)
        except OSError as error:
            unreadable.append(str(error))
        else:
            assert held == record(seq, VALUE)
    assert unreadable
    assert all("Corruption" in complaint for complaint in unreadable)
    with pytest.raises(OSError, match=f"cannot scan {tmp_path}.*Corruption"):
        await storage.scan([0], limit=100, bytes_max=PLENTY)
    await storage.close()


async def test_damage_inside_the_log_is_refused_and_a_torn_tail_is_not(tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    for directory in (whole, torn):
        directory.mkdir()
        commit_until_killed(RocksEngine(), directory, commits=50)
    [log] = torn.glob("*.log")
    log.write_bytes(log.read_bytes()[:-3])
    storage = await RocksEngine().open(torn)
    assert storage.get(0, b"k0") is not None
    await storage.close()

    [log] = whole.glob("*.log")
    damage(log, 0.3)
    with pytest.raises(OSError, match=f"RocksDB cannot open {whole}.*Corruption"):
        await RocksEngine().open(whole)


@contextmanager
def files_no_longer_than(size_bytes: int) -> Iterator[None]:
    """A disk that is full, as far as this process can tell."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_what_the_log_holds_is_on_the_disk_before_it_is_read(tmp_path: Path) -> None:
    """A flush may have failed, and then the log's pages look well only while they are cached."""
    storage = await RocksEngine().open(tmp_path / "live")
    await storage.commit(Batch(puts={(0, b"k"): record(1)}))
    shutil.copytree(tmp_path / "live", tmp_path / "killed")
    await storage.close()
    assert [log.stat().st_size > 0 for log in (tmp_path / "killed").glob("*.log")] == [True]
    storage = await RocksEngine().open(tmp_path / "killed")
    assert storage.get(0, b"k") == record(1)
    assert [log.stat().st_size for log in (tmp_path / "killed").glob("*.log")] == [0]
    await storage.close()


async def test_after_a_failed_commit_nothing_is_taken_any_more(tmp_path: Path) -> None:
    storage = await RocksEngine().open(tmp_path)
    await storage.commit(Batch(puts={(0, b"k"): record(1)}))
    with files_no_longer_than(64 * 1024), pytest.raises(OSError, match=f"cannot write to {tmp_path}.*File too large"):
        await storage.commit(Batch(puts={(0, b"big"): record(2, bytes(1024 * 1024))}))
    with pytest.raises(OSError, match="failed earlier and must be opened anew: RocksDB cannot write"):
        await storage.commit(Batch(puts={(0, b"k"): record(3)}))
    await storage.close()

    storage = await RocksEngine().open(tmp_path)
    assert storage.get(0, b"k") == record(1)
    await storage.close()


async def test_a_commit_that_began_is_not_cancelled_half_way(tmp_path: Path) -> None:
    storage = await RocksEngine().open(tmp_path)
    with trio.CancelScope() as scope:
        scope.cancel()
        await storage.commit(Batch(puts={(0, b"a"): record(1), (1, b"b"): record(1)}))
    assert (storage.get(0, b"a") is None) == (storage.get(1, b"b") is None)
    await storage.close()
