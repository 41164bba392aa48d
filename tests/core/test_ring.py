"""The ring: what a walk meets, against the plainest way of walking."""

from collections import Counter
from pathlib import Path
from zlib import crc32

from hypothesis import given
from hypothesis import strategies as st

from trikv.core.ring import PARTITION_COUNT, VNODES, partition_of, tokens, walks

WORKERS = st.lists(st.text(min_size=1, max_size=12), unique=True, max_size=8)


def plain_walk(workers: list[str], beginning: int) -> tuple[str, ...]:
    ring = sorted((token, worker) for worker in workers for token in tokens(worker))
    ahead = [worker for token, worker in ring if token >= beginning]
    behind = [worker for token, worker in ring if token < beginning]
    return tuple(dict.fromkeys(ahead + behind))


@given(WORKERS, st.integers(0, 4))
def test_walks_meet_whom_a_plain_walk_meets(workers: list[str], bits: int) -> None:
    partitions = 2**bits
    met = walks(workers, partitions)
    assert met == [plain_walk(workers, p * 2**32 // partitions) for p in range(partitions)]
    assert met == walks(workers[::-1], partitions)


def test_the_ring_is_closed() -> None:
    """Behind the last token comes the first one again."""
    workers = ["a", "b", "c"]
    last, first = (f({t: w for w in workers for t in tokens(w)}.items()) for f in (max, min))
    finest = walks(workers, 2**20)
    assert (last[0] >> 12) < 2**20 - 1
    assert finest[-1] == finest[0]
    assert finest[-1][0] == first[1]


def test_tokens_are_spread_and_the_same_everywhere() -> None:
    assert tokens("w-3fa2c1d0", 2) == [crc32(b"w-3fa2c1d0#0"), crc32(b"w-3fa2c1d0#1")]
    assert len(set(tokens("w-3fa2c1d0"))) == VNODES


@given(st.binary(min_size=1))
def test_a_key_lies_in_the_partition_of_its_top_bits(key: bytes) -> None:
    partition = partition_of(key)
    assert 0 <= partition < PARTITION_COUNT
    assert partition * 2**22 <= crc32(key) < (partition + 1) * 2**22


def test_partitions_of_known_keys_never_change() -> None:
    """Records lie on disk under these numbers."""
    assert [partition_of(key) for key in (b"123456789", b"a", b"hello", b"\x00")] == [815, 930, 216, 840]


def test_keys_of_common_shapes_fill_partitions_evenly() -> None:
    shapes = (
        [b"user:%d" % n for n in range(100_000)],
        [b"%08d" % n for n in range(100_000)],
        [str(Path("/usr/lib") / f"module{n}" / "__init__.py").encode() for n in range(100_000)],
    )
    for keys in shapes:
        filled = Counter(map(partition_of, keys))
        assert len(filled) == PARTITION_COUNT
        assert max(filled.values()) < 2 * len(keys) / PARTITION_COUNT
