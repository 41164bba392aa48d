"""The config store: one durable document, changed by compare-and-set. All that a cluster must agree on is in there.

The door is narrow (read, compare-and-set) so that several masters can later share etcd through it: the master that wins
the conditional write was right, and nothing here elects anyone.

*What a failure means.* A change ends in one of three ways: made, certainly not made (`ConfigConflict`, `NotChanged`),
or in doubt (any other `ConfigStoreError`): an fsync that failed, an answer that was lost. What is in doubt may be found
in the store later, so the master must not go on as if it had not happened. It becomes known by the same change, written
again until the store says that it is made; each carries a name of its own (`CHANGE`), by which it is told from
another's.

`SqliteConfigStore` keeps the document in one SQLite file. SQLite's write-ahead log with `synchronous=FULL` has each
change on disk before the call returns; its exclusive locking keeps a second master out for as long as the first
lives. The document is CBOR, some 100 KiB for a thousand partitions; it is written whole each time, which is what
configuration changes can afford, being rare. Each call costs one trip to a worker thread. After a flush that failed
the frames of the change may stand in the log, and are replayed after a crash; so the document that this process then
reads proves nothing, and only a later commit does, which writes the same frames anew. At the start the log is moved
into the database and flushed, since it may hold frames that never reached the disk.

`MemoryConfigStore` keeps the same promises for as long as the object lives: for tests and for simulations.
"""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Final

import cbor2
import trio

DOCUMENT_FILE: Final = "cluster.sqlite"  # in a master's data directory
FORMAT_VERSION: Final = 1
_APPLICATION_ID: Final = 0x7472696B  # "trik": SQLite keeps it in the file's header


CHANGE: Final = "change"  # in a document: the name of the change that made it

# SQLite reports these before the frame that would commit is written. All else may come from the commit itself.
_NOT_CHANGED: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY})


class ConfigConflict(Exception):
    """The store has moved on: someone else changed the document since it was read."""


class ConfigStoreError(OSError):
    """The store cannot be used; one line that names the file and the reason. A change that ends so is in doubt."""


class NotChanged(ConfigStoreError):
    """The change was not made, and never will be."""


class ConfigStore(ABC):
    @abstractmethod
    async def read(self) -> tuple[dict[str, Any] | None, int]:
        """The document and its revision; (None, 0) where there is none yet.

        Raises:
          ConfigStoreError: it cannot be read, or what is read may be gone after a crash.
        """

    @abstractmethod
    async def compare_and_set(self, document: dict[str, Any], revision: int) -> int:
        """Make `document` the document if its revision is still `revision`; the new revision. On return it is durable.

        A call that is cancelled has happened or not; only reading again tells which.

        Raises:
          ConfigConflict: it is not, and this call changed nothing. An earlier one, in doubt, may have.
          NotChanged: it could not be written, and nothing was changed.
          ConfigStoreError: it may have been written, or may yet appear.
        """

    @abstractmethod
    async def close(self) -> None: ...


class MemoryConfigStore(ConfigStore):
    """It holds bytes, as the durable ones do, so that no caller can change a document by holding on to it."""

    def __init__(self) -> None:
        self._body: bytes | None = None
        self._revision = 0

    async def read(self) -> tuple[dict[str, Any] | None, int]:
        await trio.lowlevel.checkpoint()
        return None if self._body is None else cbor2.loads(self._body), self._revision

    async def compare_and_set(self, document: dict[str, Any], revision: int) -> int:
        await trio.lowlevel.checkpoint()
        if revision != self._revision:
            raise ConfigConflict(f"the document is at revision {self._revision}, not {revision}")
        self._body = cbor2.dumps(document)
        self._revision += 1
        return self._revision

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()


class SqliteConfigStore(ConfigStore):
    """Make it with `open`."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._turn = trio.Lock()  # one thread at a time
        self._in_doubt = False  # the last change may be in the log or not

    @classmethod
    async def open(cls, path: Path, *, founded: bool = False) -> SqliteConfigStore:
        """
        Args:
          founded: a document was written here, so there must be one.

        Raises:
          ConfigStoreError: in use by another process, of another format, not ours, damaged, or without its document.
        """
        return cls(await trio.to_thread.run_sync(_open, path, founded), path)

    async def read(self) -> tuple[dict[str, Any] | None, int]:
        async with self._turn:
            return await trio.to_thread.run_sync(self._read)

    def _read(self) -> tuple[dict[str, Any] | None, int]:
        if self._in_doubt:
            raise ConfigStoreError(f"config store {self._path}: the last change is in doubt until one succeeds")
        try:
            row = self._connection.execute("SELECT body, revision FROM document").fetchone()
            if row is None:
                return None, 0
            return cbor2.loads(row[0]), row[1]
        except (sqlite3.Error, cbor2.CBORDecodeError) as error:
            raise ConfigStoreError(f"config store {self._path} cannot be read: {error}") from error

    async def compare_and_set(self, document: dict[str, Any], revision: int) -> int:
        async with self._turn:
            return await trio.to_thread.run_sync(self._compare_and_set, cbor2.dumps(document), revision)

    def _compare_and_set(self, body: bytes, revision: int) -> int:
        try:
            if revision == 0:
                changed = self._connection.execute("INSERT OR IGNORE INTO document VALUES (1, 1, ?)", (body,))
            else:
                changed = self._connection.execute(
                    "UPDATE document SET revision = revision + 1, body = ? WHERE revision = ?", (body, revision)
                )
        except sqlite3.Error as error:
            reason = f"config store {self._path} cannot be written: {error}"
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _NOT_CHANGED:  # its low byte is the kind
                raise NotChanged(reason) from error
            self._in_doubt = True
            raise ConfigStoreError(reason) from error
        if changed.rowcount != 1:
            raise ConfigConflict(f"the document is not at revision {revision} any more")
        self._in_doubt = False
        return revision + 1

    async def close(self) -> None:
        with trio.CancelScope(shield=True):  # a connection left open keeps the file locked
            async with self._turn:
                await trio.to_thread.run_sync(self._connection.close)


def _open(path: Path, founded: bool) -> sqlite3.Connection:
    if founded:
        _check_founded(path)
    try:
        # Without a transaction of Python's own making, each statement is one, and is durable when it returns.
        connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise ConfigStoreError(f"config store {path} cannot be opened: {error}") from error
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")  # takes the lock, and in this locking mode keeps it
        _check_format(connection, path)
        connection.execute("COMMIT")
        # The log may hold what was flushed in vain, and looks well only while it is cached: bring it to the disk.
        [is_left, _, _] = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if is_left:
            raise ConfigStoreError(f"config store {path} cannot be opened: its write-ahead log cannot be written back")
        if founded and connection.execute("SELECT count(*) FROM document").fetchone() == (0,):
            raise ConfigStoreError(_without_document(path))
    except sqlite3.OperationalError as error:
        connection.close()
        if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
            raise ConfigStoreError(
                f"config store {path} is in use by another process; stop that, or choose another with --data-dir"
            ) from None
        raise ConfigStoreError(f"config store {path} cannot be opened: {error}") from error
    except sqlite3.Error as error:
        connection.close()
        raise ConfigStoreError(f"config store {path} cannot be opened: {error}") from error
    except BaseException:  # whatever it was, the file must not stay locked
        connection.close()
        raise
    return connection


def _check_founded(path: Path) -> None:
    """Before SQLite makes what is not there."""
    try:
        is_empty = path.stat().st_size == 0
    except FileNotFoundError:
        raise ConfigStoreError(_without_document(path)) from None
    except OSError as error:
        raise ConfigStoreError(f"config store {path} cannot be opened: {error.strerror}") from error
    if is_empty:
        raise ConfigStoreError(_without_document(path))


def _without_document(path: Path) -> str:
    what = "is empty" if path.exists() else "is missing"
    return (
        f"config store {path} {what}, and a cluster was founded in this directory; restore the file from a backup, or, "
        "to found another cluster, choose an empty or new directory with --data-dir"
    )


def _check_format(connection: sqlite3.Connection, path: Path) -> None:
    [application] = connection.execute("PRAGMA application_id").fetchone()
    [version] = connection.execute("PRAGMA user_version").fetchone()
    [tables] = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application == version == tables == 0:
        connection.execute("CREATE TABLE document (id INTEGER PRIMARY KEY CHECK (id = 1), revision INTEGER, body BLOB)")
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
    elif application != _APPLICATION_ID:
        raise ConfigStoreError(f"{path} is a database, but not a config store of trikv's; choose another --data-dir")
    elif version != FORMAT_VERSION:
        raise ConfigStoreError(
            f"config store {path} is of format {version}, and this trikv reads format {FORMAT_VERSION}; "
            "use the trikv that wrote it"
        )
