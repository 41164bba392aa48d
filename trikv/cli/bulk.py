"""Whole directories in and out: `trikv load` and `trikv dump`.

Load: every regular file under a directory becomes a key, its path below that directory in POSIX form. Files travel in
batches of a bounded size, a few batches at once. A batch is not atomic, so every file has an outcome of its own. The
report names each file that was not stored: too large, unreadable, refused, unknown. Nothing is tried twice. Loading
again is safe, since it writes the same values. Once the cluster cannot be reached, the rest is not tried, and counted.

Dump: the reverse, page by page, one file a key. A key is not trusted to be a path. A key that would leave the
directory, or that cannot be a file's name, is reported and not written. A file appears whole or not at all: it is
written under another name in the same directory, flushed to the disk and renamed. That replaces an existing file of the
name, and no other.

A directory may hold links in circles, FIFOs without a writer, and devices. Load and dump take regular files alone, and
follow no symbolic link below the named directory. A link that is put there meanwhile is not followed either, since each
step of a path is opened by itself (`O_NOFOLLOW`). The report names what is left out.

Memory: at most `LOAD_REQUESTS` batches of `BATCH_BYTES` each; the largest value fits one.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from trikv.client import Change, Client
from trikv.core.errors import Outcome, TrikvError
from trikv.core.record import KEY_BYTES_MAX, VALUE_BYTES_MAX

BATCH_FILES: Final = 64
BATCH_BYTES: Final = 1024 * 1024
LOAD_REQUESTS: Final = 4

BulkProgress = Callable[[int, int], None]  # (files dealt with, files in all or 0 if that is not known)


@dataclass
class BulkReport:
    """The outcome of each file. The lists have (name, reason)."""

    done: int = 0
    done_bytes: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)  # this side did not take the file
    refused: list[tuple[str, str]] = field(default_factory=list)  # the cluster did not take it
    unknown: list[tuple[str, str]] = field(default_factory=list)
    not_tried: int = 0

    @property
    def exit_code(self) -> int:
        """The CLI's exit code for the worst that happened."""
        if self.unknown:
            return 6
        if self.refused or self.not_tried:
            return 4
        return 1 if self.skipped else 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def count(self, name: str, error: TrikvError) -> None:
        (self.unknown if error.kind.outcome is Outcome.UNKNOWN else self.refused).append((name, error.detail))


def load(client: Client, directory: Path, prefix: bytes, progress: BulkProgress) -> BulkReport:
    """Store every regular file under `directory`.

    Raises:
      NotADirectoryError: it is none.
    """
    if not directory.is_dir():
        raise NotADirectoryError(f"{directory} is not a directory")
    report = BulkReport()
    batches = list(_batches(directory, prefix, report))
    total = sum(len(batch) for batch in batches)
    dealt_with = 0
    reachable = True

    def send(batch: list[tuple[Path, bytes]]) -> list[tuple[Path, int, str | TrikvError | OSError]] | None:
        return _send(client, batch) if reachable else None

    with ThreadPoolExecutor(LOAD_REQUESTS) as pool:
        for batch, results in zip(batches, pool.map(send, batches), strict=True):
            dealt_with += len(batch)
            progress(dealt_with, total)
            if results is None:
                report.not_tried += len(batch)
                continue
            for path, size_bytes, result in results:
                name = str(path.relative_to(directory))
                if isinstance(result, TrikvError):
                    report.count(name, result)
                    reachable = reachable and result.kind.code != "unreachable"
                elif isinstance(result, OSError):
                    report.skipped.append((name, result.strerror or str(result)))
                else:
                    report.done += 1
                    report.done_bytes += size_bytes
    return report


def _batches(directory: Path, prefix: bytes, report: BulkReport) -> Iterator[list[tuple[Path, bytes]]]:
    """The files to store with their keys, in groups for one request each; the others are reported."""
    batch: list[tuple[Path, bytes]] = []
    batch_bytes = 0
    for path, size_bytes in _regular_files(directory, report):
        name = path.relative_to(directory)
        key = prefix + os.fsencode(name.as_posix())
        if size_bytes > VALUE_BYTES_MAX:
            report.skipped.append((str(name), f"{size_bytes:,} bytes; the limit of a value is {VALUE_BYTES_MAX:,}"))
            continue
        if len(key) > KEY_BYTES_MAX:
            report.skipped.append((str(name), f"its key has {len(key):,} bytes; the limit is {KEY_BYTES_MAX:,}"))
            continue
        if batch and (len(batch) == BATCH_FILES or batch_bytes + size_bytes > BATCH_BYTES):
            yield batch
            batch, batch_bytes = [], 0
        batch.append((path, key))
        batch_bytes += size_bytes
    if batch:
        yield batch


def _regular_files(directory: Path, report: BulkReport) -> Iterator[tuple[Path, int]]:
    """Every regular file with its size, in the order of paths. Everything else but directories is reported as skipped.

    Files in a directory that may be listed and not entered are reported too.
    """

    def leave_out(path: Path, reason: str) -> None:
        report.skipped.append((str(path.relative_to(directory)), reason))

    def unreadable(error: OSError) -> None:
        leave_out(Path(error.filename), error.strerror or str(error))

    for root, directories, names in os.walk(directory, onerror=unreadable):
        directories.sort()
        for name in sorted([*names, *(each for each in directories if Path(root, each).is_symlink())]):
            path = Path(root, name)
            try:
                found = path.lstat()
            except OSError as error:
                leave_out(path, error.strerror or str(error))
                continue
            if stat.S_ISREG(found.st_mode):
                yield path, found.st_size
            else:
                leave_out(path, _not_regular(found.st_mode))


def _not_regular(mode: int) -> str:
    return "a symbolic link, which is not followed" if stat.S_ISLNK(mode) else "not a regular file"


def _read(path: Path) -> bytes:
    """
    Raises:
      OSError: it cannot be read, or is no longer the regular file of a value's size that was found.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(_not_regular(0))
        value = file.read(VALUE_BYTES_MAX + 1)
    if len(value) > VALUE_BYTES_MAX:
        raise OSError(f"it grew beyond {VALUE_BYTES_MAX:,} bytes, the limit of a value")
    return value


def _send(client: Client, batch: list[tuple[Path, bytes]]) -> list[tuple[Path, int, str | TrikvError | OSError]]:
    """Read and store one batch; return the outcome of each of its files."""
    results: list[tuple[Path, int, str | TrikvError | OSError]] = []
    changes: list[Change] = []
    paths: list[Path] = []
    for path, key in batch:
        try:
            value = _read(path)
        except OSError as error:
            results.append((path, 0, error))
            continue
        changes.append(Change(key, value))
        paths.append(path)
    answers: list[str | TrikvError]
    try:
        answers = client.batch(changes) if changes else []
    except TrikvError as error:  # the request failed as a whole, so each of its files did
        answers = [error] * len(changes)
    sizes = [len(change.value or b"") for change in changes]
    return results + list(zip(paths, sizes, answers, strict=True))


def dump(client: Client, directory: Path, prefix: bytes, progress: BulkProgress) -> BulkReport:
    """Write every key that starts with `prefix` to a file called by the rest of the key.

    Raises:
      OSError: the directory cannot be made.
      TrikvError: a page of keys could not be had; the files of the pages before it are written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    report = BulkReport()
    root = os.open(directory, _DIRECTORY)  # it may itself be a link, since the user named it
    try:
        for entry in client.scan(prefix):
            try:
                _write(root, entry.key.removeprefix(prefix), entry.value)
            except OSError as error:
                report.skipped.append((os.fsdecode(entry.key), error.strerror or str(error)))
            else:
                report.done += 1
                report.done_bytes += len(entry.value)
            progress(report.done + len(report.skipped), 0)
    finally:
        os.close(root)
    return report


_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def _write(root: int, name: bytes, value: bytes) -> None:
    """Write the file that `name` means below `root`.

    Raises:
      OSError: the name means no file, or one elsewhere; something else is in its place; it could not be written whole.
    """
    if b"\0" in name:
        raise OSError("a file's name cannot hold a NUL byte")
    *above, last = name.split(b"/")
    if any(part in (b"", b".", b"..") for part in (*above, last)):
        raise OSError("it names no file inside the directory")
    with _directory(root, above) as directory:
        mode = None
        with suppress(FileNotFoundError):
            mode = os.stat(last, dir_fd=directory, follow_symlinks=False).st_mode
            if not stat.S_ISREG(mode):
                raise OSError(f"what lies in its place is {_not_regular(mode)}")
        draft = b".trikv-dump-" + secrets.token_hex(8).encode()
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with os.fdopen(os.open(draft, flags, 0o666, dir_fd=directory), "wb") as file:
                if mode is not None:
                    os.fchmod(file.fileno(), stat.S_IMODE(mode))
                file.write(value)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, last, src_dir_fd=directory, dst_dir_fd=directory)
        finally:
            with suppress(OSError):  # it was renamed, or was never made
                os.unlink(draft, dir_fd=directory)


@contextmanager
def _directory(root: int, parts: list[bytes]) -> Iterator[int]:
    """The directory below `root` to which the parts lead, made if missing. No step follows a symbolic link."""
    here = os.dup(root)
    try:
        for part in parts:
            with suppress(FileExistsError):
                os.mkdir(part, dir_fd=here)
            try:
                below = os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            except OSError as error:  # Linux answers ENOTDIR for a symbolic link
                if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                    raise
                raise OSError(f"{os.fsdecode(part)!r}, in its way, is a symbolic link or no directory") from error
            os.close(here)
            here = below
        yield here
    finally:
        os.close(here)
