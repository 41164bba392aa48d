"""Moving the document between a file and an etcd: what arrives, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner

from trikv.cli.main import main
from trikv.core.configuration import Cluster
from trikv.master.configstore import CHANGE, DOCUMENT_FILE, ConfigStoreError, SqliteConfigStore
from trikv.master.etcd import EtcdConfigStore
from trikv.master.leadership import Candidate
from trikv.master.migrate import Copied, Place, copy_document
from trikv.net.etcdurl import EtcdSettings, parse_config_store
from trikv.testing.processes.etcd import EtcdCluster, etcd_missing
from trikv.worker.datadir import DataDirError, open_data_dir

if (missing := etcd_missing()) is not None:
    pytest.skip(missing, allow_module_level=True)

CLUSTER = Cluster("c1", "quorum", 3, 8, term=5, stored=True)
DOCUMENT = CLUSTER.to_document() | {CHANGE: "abc/4"}

_prefixes = count()


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture
def shared(etcd: EtcdCluster) -> EtcdSettings:
    return parse_config_store(f"etcd://{etcd.members[0].address}/migrate/{next(_prefixes)}")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "master"


async def write(place: Place, document: dict[str, Any]) -> None:
    if isinstance(place, EtcdSettings):
        store: EtcdConfigStore | SqliteConfigStore = await EtcdConfigStore.open(place)
    else:
        with open_data_dir(place, "master", founding=DOCUMENT_FILE) as directory:
            store = await SqliteConfigStore.open(place / DOCUMENT_FILE)
            directory.note_founded()
    _, revision = await store.read()
    await store.compare_and_set(document, revision)
    await store.close()


async def read(place: Place) -> dict[str, Any] | None:
    if isinstance(place, EtcdSettings):
        store: EtcdConfigStore | SqliteConfigStore = await EtcdConfigStore.open(place)
    else:
        store = await SqliteConfigStore.open(place / DOCUMENT_FILE, founded=True)
    document, _ = await store.read()
    await store.close()
    return document


async def refusal(source: Place, target: Place, **how: bool) -> str:
    with pytest.raises((ConfigStoreError, DataDirError)) as raised:
        await copy_document(source, target, **how)
    assert str(raised.value).isprintable()
    return str(raised.value)


async def test_a_document_goes_into_etcd_and_back_as_it_is(directory: Path, shared: EtcdSettings) -> None:
    await write(directory, DOCUMENT)
    assert await copy_document(directory, shared) == Copied(CLUSTER, was_there=False)
    assert await read(shared) == DOCUMENT
    assert await copy_document(directory / DOCUMENT_FILE, shared) == Copied(CLUSTER, was_there=True)
    back = directory.parent / "back"
    assert await copy_document(shared, back) == Copied(CLUSTER, was_there=False)
    assert await read(back) == DOCUMENT == await read(directory)
    with open_data_dir(back, "master", founding=DOCUMENT_FILE) as opened:
        assert opened.founded  # so a master that finds the file missing there does not found another cluster


async def test_an_older_document_of_the_cluster_is_replaced_on_demand_and_no_other(
    directory: Path, shared: EtcdSettings
) -> None:
    await write(directory, DOCUMENT)
    for term, how, why in [
        (4, {}, "as it was with term 4, and the source has term 5; give --replace"),
        (5, {"replace": True}, "with term 5, and the source has term 5, so masters may have changed it there"),
        (6, {"replace": True}, "copy the other way round, or choose an empty target"),
    ]:
        there = replace(CLUSTER, term=term, mode="chain").to_document()
        await write(shared, there)
        assert why in await refusal(directory, shared, **how)
        assert await read(shared) == there
    await write(shared, replace(CLUSTER, cluster="c2", term=1).to_document())
    assert "holds another cluster, c2, and this is c1" in await refusal(directory, shared, replace=True)
    await write(shared, replace(CLUSTER, term=4).to_document())
    await copy_document(directory, shared, replace=True)
    assert await read(shared) == DOCUMENT


async def test_nothing_is_copied_while_a_master_runs(directory: Path, shared: EtcdSettings) -> None:
    await write(directory, DOCUMENT)
    store = await SqliteConfigStore.open(directory / DOCUMENT_FILE)
    assert "is in use by another process" in await refusal(directory, shared)
    assert "is in use by another process" in await refusal(directory / DOCUMENT_FILE, shared)
    await store.close()
    with open_data_dir(directory.parent / "other", "master", founding=DOCUMENT_FILE):
        assert "in use" in await refusal(directory, directory.parent / "other")
    await write(shared, DOCUMENT)
    running = await EtcdConfigStore.open(shared)
    async with trio.open_nursery() as nursery:
        await nursery.start(running.run, Candidate("one", "10.0.0.1:8000", "10.0.0.1:8080"))
        for places in ((shared, directory.parent / "new"), (directory, shared)):
            assert "masters run on etcd://" in (said := await refusal(*places))
            assert "10.0.0.1:8000; stop them and copy again" in said
        nursery.cancel_scope.cancel()
    await running.close()
    assert await read(shared) == DOCUMENT


async def test_a_source_that_is_none_is_said_and_nothing_is_made(directory: Path, shared: EtcdSettings) -> None:
    assert "does not exist; name a master's data directory" in await refusal(directory, shared)
    directory.mkdir()
    assert f"has no {DOCUMENT_FILE}" in await refusal(directory, shared)
    assert "holds no cluster; nothing was copied" in await refusal(shared, directory)
    assert list(directory.iterdir()) == []
    assert "is both source and target" in await refusal(shared, shared)
    await write(shared, {"format": 99})
    assert "its document cannot be read: the cluster's document is of format 99" in await refusal(shared, directory)


def run(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, ["config-store", "copy", *map(str, words)])
    return done.exit_code, done.stdout, done.stderr


async def test_the_command_says_in_one_line_what_it_did(directory: Path, shared: EtcdSettings) -> None:
    await write(directory, DOCUMENT)
    code, out, err = await trio.to_thread.run_sync(run, directory, shared)
    copied = f"copied cluster c1 (term 5, 0 workers) to {shared}; start masters on {shared} alone, not on {directory}"
    assert (code, out, err) == (0, f"{copied} any more\n", "")
    code, out, err = await trio.to_thread.run_sync(run, "etcd://me:secret@127.0.0.1:1", directory)
    assert (code, out) == (1, "")
    assert err.startswith("error: config store etcd://127.0.0.1:1/trikv cannot be used: ")
    assert "secret" not in err
    assert err.count("\n") == 1
    code, out, err = await trio.to_thread.run_sync(run, "etcd://nowhere", directory)
    assert (code, out) == (2, "")
    assert "endpoint 1 of the config store is not HOST:PORT; write etcd://" in err
