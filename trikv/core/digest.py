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

from trikv.core.record import Record, Version

_pack_version: Final = Struct(">QQ").pack
_unpack_word: Final = Struct(">Q").unpack
_copy_hash: Final = blake2b(digest_size=8).copy  # for each row: making one would take a third of the time
_new: Final = tuple.__new__  # takes half the time of a tuple's own class


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
            version, _, value = before
            digest ^= word_of(key, version)
            rows -= 1
            size_bytes -= len(key)
            if value is not None:
                size_bytes -= len(value)
                keys -= 1
        if after is not None:
            version, _, value = after
            digest ^= word_of(key, version)
            rows += 1
            size_bytes += len(key)
            if value is not None:
                size_bytes += len(value)
                keys += 1
        return _new(Summary, (digest, rows, size_bytes, keys))

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
    row = _copy_hash()
    row.update(_pack_version(version[0], version[1]) + key)
    word: int = _unpack_word(row.digest())[0]
    return word
