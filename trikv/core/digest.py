"""A partition in brief: two replicas compare what they hold without listing it.

Each row is a key and the version that is held under it; a tombstone is a row too. Each row is hashed to 64 bits, and
the digest is the exclusive or of all the hashes. So the digest does not depend on the order of the rows. It is kept up
to date as rows come: a replacement takes the old hash out and puts the new one in, at a microsecond each. A version
names one record on every worker, also where two masters had one term (`record.py`), so the value need not be hashed.

Replicas compare the whole `Summary`: the digest, and the counts beside it.

Left out: an attacker. Hashes can be chosen so that they cancel out, but the attacker would have to choose the versions,
which the coordinator gives, and which replica misses which write. By accident, two partitions that differ have the same
digest once in 2^64.
"""

from __future__ import annotations

from hashlib import blake2b
from struct import Struct
from typing import Final, NamedTuple

from trikv.core.record import Record, Version, size_of

_VERSION: Final = Struct(">QQ")
_HASH: Final = blake2b(digest_size=8)  # copied for each row: making one would take a third of the time


class Summary(NamedTuple):
    """What a replica holds of one partition. Two replicas that hold the same have equal summaries."""

    digest: int = 0
    rows: int = 0  # tombstones included
    size_bytes: int = 0  # of keys and values
    keys: int = 0  # rows that are no tombstones

    @property
    def tombstones(self) -> int:
        return self.rows - self.keys

    def replaced(self, key: bytes, before: Record | None, after: Record | None) -> Summary:
        """The summary after `after` takes the place of `before` under the key. None: no record."""
        digest, rows, size_bytes, keys = self
        if before is not None:
            digest ^= word_of(key, before.version)
            rows -= 1
            size_bytes -= size_of(key, before)
            keys -= not before.is_tombstone
        if after is not None:
            digest ^= word_of(key, after.version)
            rows += 1
            size_bytes += size_of(key, after)
            keys += not after.is_tombstone
        return Summary(digest, rows, size_bytes, keys)

    def pack(self) -> bytes:
        """The form of the note on disk."""
        return b"%d %d %d %d" % (self.keys, self.rows, self.size_bytes, self.digest)

    @classmethod
    def unpack(cls, note: bytes) -> Summary | None:
        """What `pack` wrote. None for a note from before there were digests: it has the number of keys alone."""
        numbers = [int(number) for number in note.split()]
        if len(numbers) == 1:
            return None
        keys, rows, size_bytes, digest = numbers
        return cls(digest, rows, size_bytes, keys)


def word_of(key: bytes, version: Version) -> int:
    """The row's 64 bits in the digest."""
    row = _HASH.copy()
    row.update(_VERSION.pack(*version) + key)
    return int.from_bytes(row.digest(), "big")
