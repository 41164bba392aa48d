"""A node's data directory: made if missing, locked while in use, refused if it is not ours.

Two files stand in it from the first moment. `LOCK` is locked (flock) for as long as the node lives. It holds the
process id for the message that a second node prints. The kernel drops the lock with the process, however the process
ends, so there is nothing to clean up. `FORMAT` names the role and the format version. It is written once, durably,
before anything else. So a directory without it is either empty or not ours; a directory that is not ours is left alone.

If one file makes the directory what it is, as a cluster's document does, `FORMAT` is written after that file
(`founding`). So `FORMAT` says that the file was there, complete: if the file is missing later, it was lost.

A directory that is made here is open to its owner alone, because of the values in it. An existing directory keeps its
permissions. Neither file is followed if it is a symbolic link, and what is not a regular file is refused. Otherwise
another user with access to the directory could choose what this process truncates.

Left out: file systems on which flock does not reach other machines. A data directory belongs on a local disk.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Final, Literal

FORMAT_VERSION: Final = 1
Role = Literal["worker", "master"]

_LOCK: Final = "LOCK"
_FORMAT: Final = "FORMAT"
_DRAFT: Final = "FORMAT.new"  # what a crash in the first moment may leave behind
_NOBODYS: Final = "lost+found"  # mkfs puts it into a fresh volume
_FORMAT_BYTES_MAX: Final = 1_000


class DataDirError(OSError):
    """The directory cannot be used. One line names it, the reason and the remedy."""


class DataDir:
    """A data directory that this process holds until `close`."""

    def __init__(self, path: Path, lock_fd: int, role: Role, *, founded: bool) -> None:
        self.path = path
        self.founded = founded
        self._role = role
        self._lock_fd: int | None = lock_fd

    def note_founded(self) -> None:
        """Note, durably, that the file which makes the directory what it is stands in it."""
        if not self.founded:
            _write_durably(self.path, self._role)
            self.founded = True

    def close(self) -> None:
        """Unlock it. Closing twice does no harm."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def __enter__(self) -> DataDir:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_data_dir(path: Path, role: Role, *, founding: str | None = None) -> DataDir:
    """Make or open the directory, and lock it.

    Args:
      founding: the file that makes it what it is; until `DataDir.note_founded` the directory counts as new. Files
        beside it may have names that begin with its name.

    Raises:
      DataDirError: it is in use, belongs to another role, format version or program, or cannot be written.
    """
    path = path.absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_strangers(path, founding)
        lock_fd = _open_plain(path, _LOCK, os.O_RDWR | os.O_CREAT)
    except DataDirError:
        raise
    except OSError as error:
        raise DataDirError(
            f"data directory {path} cannot be used: {error.strerror}; choose another with --data-dir"
        ) from error
    try:
        _take_lock(path, lock_fd)
        founded = _is_founded(path, role)
        if not founded and founding is None:
            _write_durably(path, role)
            founded = True
    except BaseException:  # after any error, the lock must not outlive this call
        os.close(lock_fd)
        raise
    return DataDir(path, lock_fd, role, founded=founded)


def _open_plain(path: Path, name: str, flags: int) -> int:
    """Open a regular file of that name.

    Raises:
      DataDirError: it is a symbolic link, a FIFO or a directory.
      OSError: it cannot be opened.
    """
    try:  # O_NONBLOCK: a FIFO would wait for its other end
        file_fd = os.open(path / name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        if stat.S_ISREG(os.fstat(file_fd).st_mode):
            return file_fd
        os.close(file_fd)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR):
            raise
    raise DataDirError(
        f"data directory {path}: {name} is not a regular file, as trikv makes it; remove it, or choose another "
        "directory with --data-dir"
    )


def _refuse_strangers(path: Path, founding: str | None) -> None:
    """Before anything is written: refuse a directory that holds files and is not ours."""

    def is_ours(name: str) -> bool:
        return name in (_LOCK, _DRAFT, _NOBODYS) or (founding is not None and name.startswith(founding))

    if not (path / _FORMAT).exists() and not all(is_ours(entry.name) for entry in path.iterdir()):
        raise DataDirError(
            f"data directory {path} holds files that are not trikv's; choose an empty or new one with --data-dir"
        )


def _take_lock(path: Path, lock_fd: int) -> None:
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock_fd, 20).decode("ascii", "replace").strip()
        whose = f"process {holder}" if holder else "another process"  # it may not have written its id yet
        raise DataDirError(
            f"data directory {path} is in use by {whose}; stop that, or choose another with --data-dir"
        ) from None
    os.ftruncate(lock_fd, 0)
    os.pwrite(lock_fd, b"%d\n" % os.getpid(), 0)


def _is_founded(path: Path, role: Role) -> bool:
    """Under the lock: is it of our role and format? False: it has no `FORMAT` yet."""
    try:
        with os.fdopen(_open_plain(path, _FORMAT, os.O_RDONLY), "rb") as file:
            found = file.read(_FORMAT_BYTES_MAX).decode("ascii", "replace").split()
    except FileNotFoundError:
        return False
    except DataDirError:
        raise
    except OSError as error:
        raise DataDirError(f"data directory {path}: {_FORMAT} cannot be read: {error.strerror}") from error
    match found:
        case ["trikv", found_role, version] if version != str(FORMAT_VERSION):
            raise DataDirError(
                f"data directory {path} is a {found_role}'s of format {version}, and this trikv reads format "
                f"{FORMAT_VERSION}; use the trikv that wrote it, or choose another with --data-dir"
            )
        case ["trikv", found_role, _] if found_role != role:
            raise DataDirError(
                f"data directory {path} belongs to a {found_role}, not to a {role}; choose another with --data-dir"
            )
        case ["trikv", _, _]:
            return True
        case _:
            raise DataDirError(
                f"data directory {path}: {_FORMAT} is not as trikv wrote it; restore the directory from a backup, "
                "or choose another with --data-dir"
            )


def _write_durably(path: Path, role: Role) -> None:
    """Write `FORMAT`. Even after a power failure, the file is there under its name in full or not at all."""
    draft = path / _DRAFT
    try:
        draft.unlink(missing_ok=True)
        with os.fdopen(_open_plain(path, _DRAFT, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w") as file:
            file.write(f"trikv {role} {FORMAT_VERSION}\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path / _FORMAT)
        for directory in (path, path.parent):
            directory_fd = os.open(directory, os.O_RDONLY)
            try:
                os.fsync(directory_fd)
            finally:
                os.close(directory_fd)
    except DataDirError:
        raise
    except OSError as error:
        raise DataDirError(
            f"data directory {path} cannot be written: {error.strerror}; choose another with --data-dir"
        ) from error
