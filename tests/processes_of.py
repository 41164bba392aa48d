"""Which processes another one has, and whether they run: what tests about leaving nothing behind share."""

from __future__ import annotations

import os
from pathlib import Path


def children_of(pid: int) -> list[int]:
    """Those of all its threads (proc(5)): Trio starts a process from a thread of its own."""
    return [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in _read(task).split()]


def family_of(pid: int) -> list[int]:
    """Its children, and theirs, and so on."""
    return [each for child in children_of(pid) for each in (child, *family_of(child))]


def is_alive(pid: int) -> bool:
    """Does it run? One that has ended and that nobody has asked about yet (Z) does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (ProcessLookupError, FileNotFoundError):  # the thread has just ended
        return ""
