"""How far a worker's disk once was: a marker by which a log that lost its end is noticed.

The storage counts its batches in each batch. This file, of one line that is overwritten in place, repeats the count of
the last batch, and is written after that batch is on disk. It is never flushed by itself, so it costs no fsync. After a
crash of the process it is current; after a loss of power it may be older. It is never ahead of what was durable. If the
storage is behind it, some of what was acknowledged is gone: the log lost its end, or a part of the directory is from an
older copy.

The write goes through a worker thread, since a hung disk would otherwise stop the event loop. It is not on the path of
an acknowledgement, and one write covers all batches since the last one.

A marker that is missing or cannot be read proves nothing, and is begun anew.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Final

import trio

PROGRESS: Final = "PROGRESS"
_DIGITS: Final = 20


class ProgressMarker(ABC):
    """The door to the marker."""

    @abstractmethod
    def read(self) -> int:
        """The count that was noted last; 0 if there is none."""

    @abstractmethod
    async def write(self, batches: int) -> None:
        """Note the count.

        Raises:
          OSError: it cannot be written. The former count stays.
        """


class ProgressFile(ProgressMarker):
    """The marker in a data directory that the caller has locked."""

    def __init__(self, directory: Path) -> None:
        """
        Raises:
          OSError: the file cannot be made or opened.
        """
        self._fd = os.open(directory / PROGRESS, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def read(self) -> int:
        line = os.pread(self._fd, _DIGITS + 1, 0)
        return int(line) if len(line) == _DIGITS + 1 and line[:-1].isdigit() and line.endswith(b"\n") else 0

    async def write(self, batches: int) -> None:
        await trio.to_thread.run_sync(os.pwrite, self._fd, b"%0*d\n" % (_DIGITS, batches), 0)

    def close(self) -> None:
        os.close(self._fd)
