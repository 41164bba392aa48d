"""Moving a cluster's document from one config store to another, while no master runs: SQLite to etcd, and back.

The document is copied as it is, its term included: the first master that starts on the copy takes the next term, as
every master does at its start. The source stays as it is. Masters may be started on one of the two only; two masters
that know nothing of each other would both take that term.

*What is refused.* A source or a target on which a master runs: SQLite's lock says so of a file, and the masters' keys
of an etcd. A target with another cluster. A target with the same cluster whose term is not older: copying would undo
what was changed there. One that is older is replaced only if the operator says so (`replace`), since it may have been
meant as the source.

*How it is checked.* The target is written by compare-and-set on what was read of it, and read back. At the end the
source is read again, and must not have changed. No master can start on a file meanwhile, and one that starts on an
etcd changes the document first.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from trikv.core.configuration import Cluster
from trikv.master.configstore import (
    DOCUMENT_FILE,
    ConfigConflict,
    ConfigStore,
    ConfigStoreError,
    SqliteConfigStore,
)
from trikv.master.etcd import EtcdConfigStore
from trikv.net.etcdurl import EtcdSettings
from trikv.worker.datadir import open_data_dir

Place = Path | EtcdSettings  # a file, a master's data directory, or an etcd


class Copied(NamedTuple):
    cluster: Cluster
    was_there: bool  # the target had this very document already


async def copy_document(source: Place, target: Place, *, replace: bool = False) -> Copied:
    """
    Raises:
      ConfigStoreError, DataDirError: it was refused or failed; one line with the remedy. If it failed in writing, the
        target may have the copy, and the same call can be made again.
    """
    if _same(source, target):
        raise ConfigStoreError(f"{source} is both source and target; name two places")
    async with AsyncExitStack() as stack:
        from_store = await stack.enter_async_context(_source(source))
        document, revision = await from_store.read()
        if document is None:
            raise ConfigStoreError(f"{source} holds no cluster; nothing was copied")
        cluster = _read(source, document)
        to_store = await stack.enter_async_context(_target(target))
        present, at = await to_store.read()
        if present == document:
            return Copied(cluster, was_there=True)
        if present is not None:
            _check_replaceable(cluster, _read(target, present), target, replace)
        try:
            await to_store.compare_and_set(document, at)
        except ConfigConflict:
            raise ConfigStoreError(f"{target} was changed meanwhile; stop its masters, and copy again") from None
        copy, _ = await to_store.read()
        if copy != document:
            raise ConfigStoreError(f"{target} does not hold what was written; stop its masters, and copy again")
        if await from_store.read() != (document, revision):
            raise ConfigStoreError(f"{source} was changed meanwhile; stop its masters, and copy again with --replace")
        return Copied(cluster, was_there=False)


def _same(one: Place, other: Place) -> bool:
    if isinstance(one, Path) and isinstance(other, Path):
        return _file(one).resolve() == _file(other).resolve()
    return one == other


def _read(place: Place, document: dict[str, Any]) -> Cluster:
    try:
        return Cluster.from_document(document)
    except ValueError as error:
        raise ConfigStoreError(f"{place}: its document cannot be read: {error}; use the trikv that wrote it") from error


def _check_replaceable(ours: Cluster, theirs: Cluster, target: Place, replace: bool) -> None:
    if theirs.cluster != ours.cluster:
        raise ConfigStoreError(
            f"{target} holds another cluster, {theirs.cluster}, and this is {ours.cluster}; choose an empty target"
        )
    if theirs.term >= ours.term:
        raise ConfigStoreError(
            f"{target} holds this cluster with term {theirs.term}, and the source has term {ours.term}, so masters may "
            "have changed it there since; copy the other way round, or choose an empty target"
        )
    if not replace:
        raise ConfigStoreError(
            f"{target} holds this cluster as it was with term {theirs.term}, and the source has term {ours.term}; "
            "give --replace to replace it"
        )


# --- places -----------------------------------------------------------------------------------------------------------


def _file(place: Path) -> Path:
    return place if _is_file(place) else place / DOCUMENT_FILE


def _is_file(place: Path) -> bool:
    return place.is_file() or (place.suffix == ".sqlite" and not place.is_dir())


@asynccontextmanager
async def _source(place: Place) -> AsyncIterator[ConfigStore]:
    if isinstance(place, EtcdSettings):
        async with _unused_etcd(place) as store:
            yield store
            await _check_unused(store, place)
        return
    if not place.exists():
        raise ConfigStoreError(f"{place} does not exist; name a master's data directory, its file, or an etcd")
    if not _file(place).exists():
        raise ConfigStoreError(f"{place} has no {DOCUMENT_FILE}; name a master's data directory, its file, or an etcd")
    sqlite = await SqliteConfigStore.open(_file(place), founded=True)
    try:
        yield sqlite
    finally:
        await sqlite.close()


@asynccontextmanager
async def _target(place: Place) -> AsyncIterator[ConfigStore]:
    if isinstance(place, EtcdSettings):
        async with _unused_etcd(place) as store:
            yield store
        return
    with ExitStack() as stack:
        directory = None
        if not _is_file(place):
            directory = stack.enter_context(open_data_dir(place, "master", founding=DOCUMENT_FILE))
        sqlite = await SqliteConfigStore.open(_file(place))
        try:
            yield sqlite
            if directory is not None:
                directory.note_founded()
        finally:
            await sqlite.close()


@asynccontextmanager
async def _unused_etcd(settings: EtcdSettings) -> AsyncIterator[EtcdConfigStore]:
    store = await EtcdConfigStore.open(settings)
    try:
        await _check_unused(store, settings)
        yield store
    finally:
        await store.close()


async def _check_unused(store: EtcdConfigStore, settings: EtcdSettings) -> None:
    if running := await store.list_running():
        addresses = ", ".join(master.address for master in running)
        raise ConfigStoreError(
            f"masters run on {settings}: {addresses}; stop them and copy again (of one that was killed, etcd forgets "
            "within seconds)"
        )
