"""The config store's door, held open by each of its makers; and what only a file can get wrong."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from trikv.master.configstore import ConfigConflict, ConfigStore, ConfigStoreError, MemoryConfigStore, SqliteConfigStore
from trikv.master.etcd import EtcdConfigStore
from trikv.net.etcdurl import parse_config_store
from trikv.testing.processes.etcd import EtcdCluster, etcd_missing

Open = Callable[[], Awaitable[ConfigStore]]
DOCUMENT: dict[str, Any] = {"term": 1 << 40, "name": "é", "none": None, "bytes": b"\0\xff", "list": [[1, [True]], {}]}


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    if (missing := etcd_missing()) is not None:
        pytest.skip(missing)
    with EtcdCluster(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture(params=["memory", "sqlite", "etcd"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    async def memory() -> ConfigStore:
        return MemoryConfigStore()

    async def sqlite() -> ConfigStore:
        return await SqliteConfigStore.open(tmp_path / "config.sqlite")

    async def etcd() -> ConfigStore:
        address = request.getfixturevalue("etcd").members[0].address
        prefix = re.sub(r"\W+", "-", request.node.name).strip("-")
        return await EtcdConfigStore.open(parse_config_store(f"etcd://{address}/{prefix}"))

    return {"memory": memory, "sqlite": sqlite, "etcd": etcd}[request.param]


async def test_an_empty_store_is_at_revision_zero(open_store: Open) -> None:
    store = await open_store()
    assert await store.read() == (None, 0)
    await store.close()


async def test_a_document_comes_back_as_it_was(open_store: Open) -> None:
    store = await open_store()
    revision = await store.compare_and_set(DOCUMENT, 0)
    assert await store.read() == (DOCUMENT, revision)
    again = await store.compare_and_set({"other": 1}, revision)
    assert again != revision
    assert await store.read() == ({"other": 1}, again)
    await store.close()


async def test_a_store_that_moved_on_refuses_and_keeps_what_it_has(open_store: Open) -> None:
    store = await open_store()
    with pytest.raises(ConfigConflict):
        await store.compare_and_set({"n": 0}, 1)
    first = await store.compare_and_set({"n": 1}, 0)
    second = await store.compare_and_set({"n": 2}, first)
    for stale in (0, first, second + 1):
        with pytest.raises(ConfigConflict):
            await store.compare_and_set({"n": 3}, stale)
    assert await store.read() == ({"n": 2}, second)
    await store.close()


async def test_of_rivals_at_one_revision_one_wins(open_store: Open) -> None:
    store = await open_store()
    won: list[int] = []

    async def rival(n: int) -> None:
        try:
            await store.compare_and_set({"n": n}, 0)
        except ConfigConflict:
            return
        won.append(n)

    async with trio.open_nursery() as nursery:
        for n in range(8):
            nursery.start_soon(rival, n)
    document, _ = await store.read()
    assert document == {"n": won[0]}
    assert len(won) == 1
    await store.close()


async def test_a_document_that_a_caller_holds_on_to_does_not_change_in_the_store(open_store: Open) -> None:
    store = await open_store()
    document = {"list": [1]}
    await store.compare_and_set(document, 0)
    document["list"].append(2)
    read, _ = await store.read()
    assert read == {"list": [1]}
    await store.close()


# --- the file ---------------------------------------------------------------------------------------------------------

WRITE_UNTIL_KILLED = """
import sys, trio
from pathlib import Path
from trikv.master.configstore import SqliteConfigStore

async def main():
    store = await SqliteConfigStore.open(Path(sys.argv[1]))
    revision = 0
    while True:
        revision = await store.compare_and_set({"n": revision}, revision)
        print(revision, flush=True)

trio.run(main)
"""


def write_until_killed(path: Path, writes: int) -> int:
    """The last revision that a process said it had written, when SIGKILL came."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WRITE_UNTIL_KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        said = [int(process.stdout.readline()) for _ in range(writes)]
        process.send_signal(signal.SIGKILL)
        said += [int(line) for line in process.stdout.read().splitlines()]
    return said[-1]


async def test_what_was_written_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "config.sqlite"
    said = write_until_killed(path, 20)
    store = await SqliteConfigStore.open(path)
    document, revision = await store.read()
    assert revision in (said, said + 1)  # the write that was under way may have made it
    assert document == {"n": revision - 1}
    await store.close()


async def test_a_second_master_is_kept_out_while_the_first_lives(tmp_path: Path) -> None:
    path = tmp_path / "config.sqlite"
    store = await SqliteConfigStore.open(path)
    with pytest.raises(ConfigStoreError, match="is in use by another process"):
        await SqliteConfigStore.open(path)
    await store.compare_and_set(DOCUMENT, 0)
    with pytest.raises(ConfigStoreError, match="is in use by another process"):
        await SqliteConfigStore.open(path)
    await store.close()
    store = await SqliteConfigStore.open(path)
    assert (await store.read())[0] == DOCUMENT
    await store.close()


async def test_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.sqlite"
    await (await SqliteConfigStore.open(path)).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(ConfigStoreError, match=r"config\.sqlite is of format 2, and this trikv reads format 1"):
        await SqliteConfigStore.open(path)


async def test_a_database_of_somebody_elses_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "config.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE precious (thing)")
    connection.close()
    with pytest.raises(ConfigStoreError, match="not a config store"):
        await SqliteConfigStore.open(path)
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("precious",)]
    connection.close()


async def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(bytes(range(256)) * 64)
    with pytest.raises(ConfigStoreError, match="noise cannot be opened: file is not a database"):
        await SqliteConfigStore.open(tmp_path / "noise")
    with pytest.raises(ConfigStoreError, match="cannot be opened"):
        await SqliteConfigStore.open(tmp_path / "no" / "such" / "directory")


async def test_a_store_in_which_a_document_was_written_and_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.sqlite"
    await (await SqliteConfigStore.open(path)).close()
    with pytest.raises(ConfigStoreError, match="is empty, and a cluster was founded in this directory; restore"):
        await SqliteConfigStore.open(path, founded=True)


async def test_a_damaged_document_is_an_error_not_an_empty_cluster(tmp_path: Path) -> None:
    path = tmp_path / "config.sqlite"
    store = await SqliteConfigStore.open(path)
    await store.compare_and_set(DOCUMENT, 0)
    await store.close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE document SET body = x'a1'")
    connection.commit()
    connection.close()
    store = await SqliteConfigStore.open(path)
    with pytest.raises(ConfigStoreError, match="cannot be read"):
        await store.read()
    await store.close()
