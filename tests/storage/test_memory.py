"""The memory engine: what its records cost in memory and in collections, and its leaves against a sorted model."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from trikv.api import Batch, Record
from trikv.storage.memory import MemoryStorage
from trikv.testing.storage import PLENTY, keys_of, record

# A worker's records from their first to their last, in a process that has done nothing else. The keys come in random
# order, in batches of 64. It prints the growth of the process relative to the bytes of keys and values, and how many
# objects more the collector visits.
_FILL = """
import gc, os, random, resource
import trio
from trikv.api import Record, Version
from trikv.core.ring import PARTITION_COUNT, partition_of
from trikv.storage.memory import MemoryStorage
from trikv.worker.registers import Registers

KEYS = 100_000

def resident_bytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()

async def main():
    registers = await Registers.open(MemoryStorage())
    for partition in range(PARTITION_COUNT):
        registers.pass_fence(partition, 1)
    await registers.commit()
    gc.collect()
    before_bytes, before_objects = resident_bytes(), len(gc.get_objects())
    step = 7919  # has no divisor in common with KEYS
    for n in range(KEYS):
        key, version = b"key%d" % (n * step % KEYS), Version(1, n)
        registers.put(partition_of(key), key, Record(version, version, os.urandom(100)))
        if n % 64 == 63:
            await registers.commit()
    await registers.commit()
    assert registers.keys == KEYS
    after_bytes, after_objects = resident_bytes(), len(gc.get_objects())
    print((after_bytes - before_bytes) / registers.size_bytes, after_objects - before_objects)

trio.run(main)
"""


def test_a_worker_takes_at_most_three_times_the_bytes_of_keys_and_values() -> None:
    filled = subprocess.run([sys.executable, "-c", _FILL], check=True, capture_output=True, text=True)
    ratio, tracked = map(float, filled.stdout.split())
    assert ratio <= 3
    assert tracked <= 10_000, "a full collection visits each of these objects: there should be few for a partition"


@pytest.mark.parametrize("seed", range(20))
async def test_a_partition_of_many_leaves_is_like_a_sorted_dict(seed: int) -> None:
    dice = random.Random(seed)
    keys = [b"%03d" % n for n in range(1000)]
    storage = MemoryStorage()
    model: dict[bytes, Record] = {}
    for seq in range(8):
        low, high = sorted((dice.choice((0, dice.randrange(1000))), dice.choice((1000, dice.randrange(1000)))))
        removed = {*dice.sample(keys, dice.randrange(300)), *keys[low:high]}  # whole leaves too, and sometimes all
        puts = {key: record(seq, key) for key in dice.sample(keys, dice.randrange(400))}
        storage.apply(Batch(puts={(0, key): put for key, put in puts.items()}, removes={(0, key) for key in removed}))
        model = {key: held for key, held in model.items() if key not in removed} | puts
        assert {key: storage.get(0, key) for key in keys} == {key: model.get(key) for key in keys}
        for _ in range(10):
            after, prefix = dice.choice((None, *keys)), b"%d" % dice.randrange(100) if dice.randrange(2) else b""
            page = await storage.scan([0], prefix=prefix, after=after, limit=1000, bytes_max=PLENTY)
            assert keys_of(page) == sorted(key for key in model if key.startswith(prefix) and key > (after or b""))


async def test_short_and_long_values_are_read_back_alike() -> None:
    storage = MemoryStorage()
    sizes = (0, 100, 16 * 1024, 16 * 1024 + 1, 1024 * 1024)
    for old in sizes:
        for new in sizes:
            for size in (old, new):
                storage.apply(Batch(puts={(0, b"k"): record(size, bytes(size))}))
                assert storage.get(0, b"k") == record(size, bytes(size))
            storage.apply(Batch(puts={(0, b"k"): record(7, None)}))
            assert storage.get(0, b"k") == record(7, None)
