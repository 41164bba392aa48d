"""Where keys and workers lie on the hash space, and which workers a walk round it meets.

The hash space is that of CRC32: 0 to 2**32 - 1, closed to a ring. A key lies at its hash. The top bits of the hash are
its partition, which is all that an operation computes. A worker lies at 64 tokens, so that it has many neighbours, and
its load goes to many of them when it fails. Each token ends a vnode, the arc that begins after the token before it.

CRC32 is not a cryptographic hash and need not be: a client gains nothing by its key's partition, and `placement` evens
out what the tokens leave uneven. CRC32 is in every Python, fast, and the same on every machine. It fills 1,024
partitions to within 3 to 9 % over common shapes of keys.

The ring is used only when a placement table is filled; `placement` says what that costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from zlib import crc32

PARTITION_COUNT: Final = 1024  # fixed when a cluster is made: records lie on disk under their partition's number
VNODES: Final = 64

_HASH_BITS: Final = 32


def hash_of(key: bytes) -> int:
    """Where a key lies on the hash space."""
    return crc32(key)


def partition_of(key: bytes, partitions: int = PARTITION_COUNT) -> int:
    """The partition of a key, from 0 to `partitions` - 1: the top bits of its hash if that is a power of two."""
    return crc32(key) * partitions >> _HASH_BITS


def tokens(worker: str, vnodes: int = VNODES) -> list[int]:
    """Where a worker lies on the ring. If two tokens coincide, a walk meets them in the order of the workers' ids."""
    return [crc32(f"{worker}#{i}".encode()) for i in range(vnodes)]


def walks(workers: Sequence[str], partitions: int = PARTITION_COUNT) -> list[tuple[str, ...]]:
    """For every partition, all the workers in the order in which a walk from its beginning first meets them.

    One pass backwards round the ring does it for all partitions: what comes next lies in front. So a token moves its
    worker to the front of the order, and a partition's beginning takes a copy of the order. One round before the pass
    establishes the order. O(vnodes x workers^2 + partitions x workers) in all.
    """
    order = sorted(workers)
    ring = sorted(((token, worker) for worker in order for token in tokens(worker)), reverse=True)
    for _, worker in ring:
        order.remove(worker)
        order.insert(0, worker)
    met: list[tuple[str, ...]] = []
    ahead = iter(ring)
    token, worker = next(ahead, (-1, ""))
    for partition in reversed(range(partitions)):
        beginning = (partition << _HASH_BITS) // partitions
        while token >= beginning:
            order.remove(worker)
            order.insert(0, worker)
            token, worker = next(ahead, (-1, ""))
        met.append(tuple(order))
    met.reverse()
    return met
