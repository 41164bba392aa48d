"""One page of a scan, merged from the partitions in which its keys lie.

Keys are spread over partitions by their hash, so a scan in key order reads a little from every partition. Each
partition gives its keys as a sorted stream. The merge holds one key of each stream, and reads a value only once its row
is chosen. So a page costs its own rows and one key for each partition, whatever else is stored.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator

from trikv.api import Page, Record, Row
from trikv.core.record import size_of


def first_key(prefix: bytes, after: bytes | None) -> bytes:
    """The least key that starts with `prefix` and comes after `after`, if there is such a key."""
    return prefix if after is None else max(prefix, after + b"\0")


def merge_page(
    streams: Iterable[Iterator[tuple[bytes, int]]],
    read: Callable[[int, bytes], Record],
    *,
    limit: int,
    bytes_max: int,
) -> Page:
    """A page of the rows whose (key, partition) the sorted `streams` give. `read` returns a row's record.

    It ends after `limit` rows, or after the row with which keys and values exceed `bytes_max` bytes.
    """
    assert limit > 0, limit
    rows: list[Row] = []
    bytes_so_far = 0
    for key, partition in heapq.merge(*streams):
        if len(rows) == limit or bytes_so_far > bytes_max:
            return Page(rows, more=True)
        record = read(partition, key)
        rows.append(Row(partition, key, record))
        bytes_so_far += size_of(key, record)
    return Page(rows, more=False)
