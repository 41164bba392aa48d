"""What one client knows of each key that it wrote, and which answers it may be given.

The demo and the tests use it. The outcome of a write says what a later read may see. Committed: this value, and (in a
mode without stale reads) nothing older. Refused: never this value. Unknown: this value, or the one before. That is
enough for one client that waits for every answer. `linear.py` judges histories of many clients.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from trikv.client import Client
from trikv.core.errors import Outcome, TrikvError


@dataclass
class _Known:
    """What may be read of one key: `current`, and `doubtful` values of writes whose outcome is unknown.

    In a mode with stale reads also the values of `past`.
    """

    current: bytes | None = None
    doubtful: list[bytes | None] = field(default_factory=list)
    past: list[bytes | None] = field(default_factory=list)
    refused: list[bytes | None] = field(default_factory=list)


@dataclass
class Reads:
    """What came of reading many keys: how many were answered, why each other one was not, and every untrue answer.

    `stale` answers had a value that was committed once and is not the newest, in a mode that allows it.
    """

    answered: int = 0
    stale: int = 0
    refused: dict[bytes, TrikvError] = field(default_factory=dict)
    lies: list[str] = field(default_factory=list)


class Expectations:
    """
    Args:
      stale_reads: the mode may answer with a value that was committed once and is not the newest.
    """

    def __init__(self, *, stale_reads: bool) -> None:
        self._stale_reads = stale_reads
        self._keys: dict[bytes, _Known] = {}

    @property
    def keys(self) -> list[bytes]:
        return list(self._keys)

    def put(self, client: Client, key: bytes, value: bytes) -> TrikvError | None:
        """Write, and note the outcome. Returns the error if the write did not commit."""
        known = self._keys.setdefault(key, _Known())
        try:
            client.put(key, value)
        except TrikvError as error:
            (known.doubtful if error.kind.outcome is Outcome.UNKNOWN else known.refused).append(value)
            return error
        known.past.append(known.current)
        known.current, known.doubtful = value, []
        return None

    def read_back(self, client: Client, keys: Iterable[bytes] | None = None) -> Reads:
        """Read the keys (default: all), and judge each answer."""
        reads = Reads()
        for key in self._keys if keys is None else keys:
            try:
                found = client.get(key)
            except TrikvError as error:
                reads.refused[key] = error
                continue
            reads.answered += 1
            seen = found.value if found else None
            reads.stale += self.is_stale(key, seen)
            if lie := self.lie(key, seen):
                reads.lies.append(lie)
        return reads

    def lie(self, key: bytes, seen: bytes | None) -> str:
        """What is wrong with this answer; empty if it may be given."""
        known = self._keys[key]
        if seen == known.current or seen in known.doubtful or self.is_stale(key, seen):
            return ""
        what = "a write that was refused" if seen in known.refused else "neither the last write nor one in doubt"
        return f"{key!r} reads as {_short(seen)}, {what}; last committed: {_short(known.current)}"

    def is_stale(self, key: bytes, seen: bytes | None) -> bool:
        """Is this an older value, in a mode that may answer with one?"""
        known = self._keys[key]
        return self._stale_reads and seen != known.current and seen not in known.doubtful and seen in known.past


def _short(value: bytes | None) -> str:
    return "absent" if value is None else repr(value[:40])
