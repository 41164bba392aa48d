"""A partition in brief: whether two replicas hold the same, known without listing either.

Each row (a key and the version under which it is held; a tombstone is a row too) is hashed to 64 bits, and the digest
is the exclusive or of all of them. So it does not depend on the order in which rows came, and is kept up to date as
they come: replacing a row takes the old word out and puts the new one in, at a microsecond each. A version names one
record wherever it lies, also where two masters had one term (`record.py`), so the value need not be hashed.

Counts travel along: what replicas compare is the whole `Summary`.

Left out: anybody who means harm. Words can be chosen so that they cancel out; for that one would have to choose the
versions, which the coordinator gives, and which replica misses what. By accident, two partitions that differ have
one digest once in 2^64.
"""

from __future__ import annotations

from hashlib import blake2b
from struct import Struct
from typing import Final, NamedTuple

from trikv.core.record import Record, Version

_VERSION: Final = Struct(">QQ")
_HASH: Final = blake2b(digest_size=8)  # copied for each row: a third of the time goes into making one


class Summary(NamedTuple):
    """What a replica holds of one partition; equal where two hold the same."""

    digest: int = 0
    rows: int = 0  # tombstones included
    size_bytes: int = 0  # of keys and values
    keys: int = 0  # rows that are no tombstones

    @property
    def tombstones(self) -> int:
        return self.rows - self.keys

    def replaced(self, key: bytes, before: Record | None, after: Record | None) -> Summary:
        """The summary once `after` lies under the key in place of `before`; None: nothing does."""
        digest, rows, size_bytes, keys = self
        if before is not None:
            digest ^= word_of(key, before.version)
            rows -= 1
            size_bytes -= len(key) + len(before.value or b"")
            keys -= not before.is_tombstone
        if after is not None:
            digest ^= word_of(key, after.version)
            rows += 1
            size_bytes += len(key) + len(after.value or b"")
            keys += not after.is_tombstone
        return Summary(digest, rows, size_bytes, keys)

    def pack(self) -> bytes:
        """The form in which it is noted on disk."""
        return b"%d %d %d %d" % (self.keys, self.rows, self.size_bytes, self.digest)

    @classmethod
    def unpack(cls, note: bytes) -> Summary | None:
        """What `pack` wrote; None for a note from before there were digests, which has the number of keys alone."""
        numbers = [int(number) for number in note.split()]
        if len(numbers) == 1:
            return None
        keys, rows, size_bytes, digest = numbers
        return cls(digest, rows, size_bytes, keys)


def word_of(key: bytes, version: Version) -> int:
    """The row's share of the digest: 64 bits."""
    row = _HASH.copy()
    row.update(_VERSION.pack(*version) + key)
    return int.from_bytes(row.digest(), "big")
