"""The config store: one durable document, changed by compare-and-set. All that a cluster must agree on is in there.

The door is narrow (read, compare-and-set) so that several masters can later share etcd through it: whoever wins the
conditional write was right, and nothing here elects anyone.

`SqliteConfigStore` keeps the document in one SQLite file. SQLite's write-ahead log with `synchronous=FULL` has each
change on disk before the call returns; its exclusive locking keeps a second master out for as long as the first
lives. The document is CBOR, some 100 KiB for a thousand partitions; it is written whole each time, which is what
configuration changes can afford, being rare. Each call costs one trip to a worker thread.

`MemoryConfigStore` keeps the same promises for as long as the object lives: for tests and for simulations.
"""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Final

import cbor2
import trio

FORMAT_VERSION: Final = 1
_APPLICATION_ID: Final = 0x7472696B  # "trik": SQLite keeps it in the file's header


class ConfigConflict(Exception):
    """The store has moved on: someone else changed the document since it was read."""


class ConfigStoreError(OSError):
    """The store cannot be used; one line that names the file and the reason."""


class ConfigStore(ABC):
    @abstractmethod
    async def read(self) -> tuple[dict[str, Any] | None, int]:
        """The document and its revision; (None, 0) where there is none yet."""

    @abstractmethod
    async def compare_and_set(self, document: dict[str, Any], revision: int) -> int:
        """Make `document` the document if its revision is still `revision`; the new revision. On return it is durable.

        A call that is cancelled has happened or not; nobody knows which before reading again.

        Raises:
          ConfigConflict: it is not, and nothing was changed.
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

    @classmethod
    async def open(cls, path: Path) -> SqliteConfigStore:
        """
        Raises:
          ConfigStoreError: in use by another process, of another format, not ours, or damaged.
        """
        return cls(await trio.to_thread.run_sync(_open, path), path)

    async def read(self) -> tuple[dict[str, Any] | None, int]:
        async with self._turn:
            return await trio.to_thread.run_sync(self._read)

    def _read(self) -> tuple[dict[str, Any] | None, int]:
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
            raise ConfigStoreError(f"config store {self._path} cannot be written: {error}") from error
        if changed.rowcount != 1:
            raise ConfigConflict(f"the document is not at revision {revision} any more")
        return revision + 1

    async def close(self) -> None:
        with trio.CancelScope(shield=True):  # a connection left open keeps the file locked
            async with self._turn:
                await trio.to_thread.run_sync(self._connection.close)


def _open(path: Path) -> sqlite3.Connection:
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
