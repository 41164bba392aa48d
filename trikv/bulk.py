"""Whole directories in and out: `trikv load` and `trikv dump`.

Load: every regular file under a directory becomes a key, its path below that directory in POSIX form. Files travel in
batches of a bounded size, a few batches at once. A batch has no atomicity, so every file has an outcome of its own,
and a file that was not stored is named: too large, unreadable, refused, unknown. Nothing is tried twice; to load again
is safe, since it writes the same values. When nobody answers any more, what is left is not tried, and counted as such.

Dump: the reverse, page by page, one file a key. A key is not trusted to be a path: one that would leave the directory,
or that no file can be called, is named and not written. Existing files are replaced, other files are left alone.

Memory: at most `LOAD_REQUESTS` batches of `BATCH_BYTES` each; the largest value fits one. Symbolic links are not
followed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from trikv.client import Change, Client
from trikv.core.errors import Outcome, TrikvError
from trikv.core.record import KEY_BYTES_MAX, VALUE_BYTES_MAX

BATCH_FILES: Final = 64
BATCH_BYTES: Final = 1024 * 1024
LOAD_REQUESTS: Final = 4

Progress = Callable[[int, int], None]  # (files dealt with, files in all; 0 where it is not known)


@dataclass
class Report:
    """What became of each file; the lists have (name, reason)."""

    done: int = 0
    done_bytes: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)  # this end would not take it
    refused: list[tuple[str, str]] = field(default_factory=list)  # the cluster would not take it
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


def load(client: Client, directory: Path, prefix: bytes, progress: Progress) -> Report:
    """Store every regular file under `directory`.

    Raises:
      NotADirectoryError: it is none.
    """
    if not directory.is_dir():
        raise NotADirectoryError(f"{directory} is not a directory")
    report = Report()
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


def _batches(directory: Path, prefix: bytes, report: Report) -> Iterator[list[tuple[Path, bytes]]]:
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


def _regular_files(directory: Path, report: Report) -> Iterator[tuple[Path, int]]:
    """Every regular file with its size, in the order of its path."""

    def unreadable(error: OSError) -> None:
        report.skipped.append((str(Path(error.filename).relative_to(directory)), error.strerror or str(error)))

    for root, directories, names in os.walk(directory, onerror=unreadable):
        directories.sort()
        for name in sorted(names):
            path = Path(root, name)
            found = path.lstat()
            if stat.S_ISREG(found.st_mode):
                yield path, found.st_size


def _send(client: Client, batch: list[tuple[Path, bytes]]) -> list[tuple[Path, int, str | TrikvError | OSError]]:
    """Read and store one batch; what became of each of its files."""
    results: list[tuple[Path, int, str | TrikvError | OSError]] = []
    changes: list[Change] = []
    paths: list[Path] = []
    for path, key in batch:
        try:
            value = path.read_bytes()
        except OSError as error:
            results.append((path, 0, error))
            continue
        changes.append(Change(key, value))
        paths.append(path)
    answers: list[str | TrikvError]
    try:
        answers = client.batch(changes) if changes else []
    except TrikvError as error:  # the request failed as a whole: so did each of its files
        answers = [error] * len(changes)
    sizes = [len(change.value or b"") for change in changes]
    return results + list(zip(paths, sizes, answers, strict=True))


def dump(client: Client, directory: Path, prefix: bytes, progress: Progress) -> Report:
    """Write every key that starts with `prefix` to a file called by the rest of the key.

    Raises:
      OSError: the directory cannot be made.
      TrikvError: a page of keys could not be had; the files of the pages before it are written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    root = directory.resolve()
    report = Report()
    for entry in client.scan(prefix):
        try:
            target = _target(root, entry.key.removeprefix(prefix))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(entry.value)
        except OSError as error:
            report.skipped.append((os.fsdecode(entry.key), error.strerror or str(error)))
        else:
            report.done += 1
            report.done_bytes += len(entry.value)
        progress(report.done + len(report.skipped), 0)
    return report


def _target(root: Path, name: bytes) -> Path:
    """The file below `root` that `name` means.

    Raises:
      OSError: it means none, or one elsewhere, be it through a symbolic link that lies there already.
    """
    if b"\0" in name:
        raise OSError("a file's name cannot hold a NUL byte")
    if any(part in (b"", b".", b"..") for part in name.split(b"/")):
        raise OSError("it names no file inside the directory")
    target = root / os.fsdecode(name)
    if target.is_symlink() or not target.parent.resolve().is_relative_to(root):
        raise OSError("a symbolic link lies in its way")
    return target
