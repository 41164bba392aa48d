"""What a worker holds, in brief: kept through everything that changes it, and found again on every disk."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.helpers import NOW, OLD, P, WorkerHarness, shut
from trikv.api import Batch, Storage
from trikv.core.calls import Op, digests_from_wire
from trikv.core.digest import Summary
from trikv.core.errors import Fault
from trikv.core.record import Record, Version
from trikv.storage.memory import MemoryStorage
from trikv.storage.rocksdb import RocksEngine
from trikv.worker.registers import Registers

Q = P + 1


def record(seq: int, value: bytes | None = b"v") -> Record:
    return Record(Version(NOW, seq), Version(NOW, seq), value)


async def count_anew(storage: Storage, partition: int) -> Summary:
    """From the rows themselves."""
    summary = Summary()
    for _, key, held in (await storage.scan([partition], limit=10_000, bytes_max=1 << 30)).rows:
        summary = summary.replaced(key, None, held)
    return summary


async def change_at_random(registers: Registers, dice: random.Random, rounds: int) -> None:
    """Batches of stores, deletes, forgets and discards, some of which cancel each other out."""
    for _ in range(rounds):
        for _ in range(dice.randrange(6)):
            partition, key, seq = dice.choice([P, Q]), b"k%d" % dice.randrange(8), dice.randrange(1, 100)
            assert registers.pass_fence(partition, NOW)
            match dice.randrange(12):
                case 0:
                    registers.discard(partition)
                case 1 | 2 | 3:
                    held = registers._current((partition, key))
                    registers.forget(partition, key, held.version if held else Version(NOW, seq))
                case 4 | 5 | 6:
                    registers.put(partition, key, record(seq, None))
                case _:
                    registers.put(partition, key, record(seq, bytes(seq)))
        await registers.commit()


@pytest.mark.parametrize("seed", range(20))
async def test_a_summary_is_that_of_the_rows_whatever_was_done(seed: int) -> None:
    print(f"seed {seed}")
    storage = MemoryStorage()
    registers = await Registers.open(storage)
    await change_at_random(registers, random.Random(seed), 60)
    for partition in (P, Q):
        assert registers.summary(partition) == await count_anew(storage, partition)
    assert registers.keys == registers.summary(P).keys + registers.summary(Q).keys
    assert registers.size_bytes == registers.summary(P).size_bytes + registers.summary(Q).size_bytes


async def test_it_is_there_again_after_a_restart_without_reading_the_rows(tmp_path: Path) -> None:
    storage = await RocksEngine().open(tmp_path)
    registers = await Registers.open(storage)
    await change_at_random(registers, random.Random(1), 30)
    before = [registers.summary(P), registers.summary(Q)]
    assert before[0].rows
    assert before[1].rows
    await storage.commit(Batch(puts={(P, b"behind its back"): record(1)}))
    await storage.close()
    storage = await RocksEngine().open(tmp_path)
    registers = await Registers.open(storage)
    assert [registers.summary(P), registers.summary(Q)] == before
    assert registers.keys == sum(summary.keys for summary in before)
    assert registers.size_bytes == sum(summary.size_bytes for summary in before)
    await storage.close()


class FailingStorage(MemoryStorage):
    """A disk that loses the batch that it is given last."""

    broken = False

    async def commit(self, batch: Batch) -> None:
        if self.broken:
            raise OSError("no space left on device")
        await super().commit(batch)


async def test_a_batch_that_was_lost_is_lost_with_its_share_of_the_summary() -> None:
    storage = FailingStorage()
    registers = await Registers.open(storage)
    registers.pass_fence(P, NOW)
    registers.put(P, b"a", record(1))
    await registers.commit()
    registers.put(P, b"b", record(2))
    storage.broken = True
    with pytest.raises(OSError, match="no space"):
        await registers.commit()
    storage.broken = False
    assert (await Registers.open(storage)).summary(P) == Summary().replaced(b"a", None, record(1))


async def test_a_store_from_before_there_were_digests_is_read_through_once() -> None:
    storage = MemoryStorage()
    rows = {(P, b"k%04d" % n): record(n, None if n % 3 else b"v") for n in range(2500)}
    promises = {f"promise/{partition}": b"%d" % NOW for partition in (P, Q)}
    live = sum(held.value is not None for held in rows.values())
    await storage.commit(Batch(puts=dict(rows), meta=promises | {f"keys/{P}": b"%d" % live}))
    first = (await Registers.open(storage)).summary(P)
    assert first == await count_anew(storage, P)
    assert (first.rows, first.keys) == (2500, live)
    await storage.commit(Batch(puts={(P, b"behind its back"): record(1)}))
    again = await Registers.open(storage)
    assert again.summary(P) == first
    assert again.summary(Q) == Summary()
    assert again.keys == live


async def test_only_a_tombstone_of_exactly_that_version_is_forgotten() -> None:
    registers = await Registers.open(MemoryStorage())
    registers.pass_fence(P, NOW)
    for key, held in ((b"live", record(5)), (b"gone", record(5, None))):
        registers.put(P, key, held)
    await registers.commit()
    before = registers.summary(P)
    for key, seq in ((b"live", 5), (b"gone", 4), (b"gone", 6), (b"never", 5)):
        registers.forget(P, key, Version(NOW, seq))
    await registers.commit()
    assert registers.summary(P) == before
    registers.forget(P, b"gone", Version(NOW, 5))
    await registers.commit()
    assert registers.durable(P, b"gone") is None
    assert registers.durable(P, b"live") == record(5)


async def test_within_a_batch_forgetting_has_its_place() -> None:
    storage = MemoryStorage()
    registers = await Registers.open(storage)
    registers.pass_fence(P, NOW)
    registers.put(P, b"disk", record(1, None))
    await registers.commit()
    registers.forget(P, b"disk", Version(NOW, 1))
    registers.put(P, b"disk", record(1, b"older than nothing"))
    registers.put(P, b"batch", record(2, None))
    registers.forget(P, b"batch", Version(NOW, 2))
    assert registers.durable(P, b"disk") == record(1, None)  # nothing of it is on disk yet
    await registers.commit()
    assert registers.durable(P, b"disk") == record(1, b"older than nothing")
    assert registers.durable(P, b"batch") is None
    assert registers.summary(P) == await count_anew(storage, P)


async def test_a_row_that_is_being_forgotten_is_visible_until_that_is_durable() -> None:
    class Slow(MemoryStorage):
        gate = trio.Event()

        async def commit(self, batch: Batch) -> None:
            await super().commit(batch)
            await self.gate.wait()

    storage = Slow()
    Slow.gate.set()
    registers = await Registers.open(storage)
    registers.pass_fence(P, NOW)
    registers.put(P, b"k", record(1, None))
    await registers.commit()
    Slow.gate = trio.Event()
    registers.forget(P, b"k", Version(NOW, 1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(registers.commit)
        await wait_all_tasks_blocked()
        assert registers.knows(P, NOW)
        assert registers.durable(P, b"k") == record(1, None)
        Slow.gate.set()
    assert registers.durable(P, b"k") is None


# --- asked over a link ------


async def test_workers_that_hold_the_same_have_one_digest_and_others_have_not(nursery: trio.Nursery) -> None:
    one, two = [await WorkerHarness(nursery, MemoryStorage()).start(name=name) for name in ("w-1", "w-2")]
    for number in range(20):
        await one.put(number + 2, b"v" * number, key=b"k%d" % number)
    for number in reversed(range(20)):
        await two.put(1, None, key=b"k%d" % number)
        await two.put(number + 2, b"v" * number, key=b"k%d" % number)
    summary = await one.summary()
    assert summary == await two.summary()
    assert (summary.rows, summary.tombstones) == (20, 0)
    await two.put(50, b"", key=b"k0")
    assert (await two.summary()).digest != summary.digest
    assert await one.summary(partition=P + 1) == Summary()
    await one.restart()
    assert await one.summary() == summary


async def test_a_digest_waits_for_what_is_not_durable_yet_and_has_it(gated: WorkerHarness) -> None:
    await gated.put(1)
    gate = shut(gated)
    gated.post(Op.STORE, gated.store(2, key=b"fresh"))
    await wait_all_tasks_blocked()
    digests = gated.post(Op.DIGEST, gated.digest((P, NOW), (P + 1, OLD), (P + 2, NOW)))
    await wait_all_tasks_blocked()
    assert digests == []
    gate.set()
    await wait_all_tasks_blocked()
    [(fault, payload)] = digests
    assert fault == Fault.OK
    stale, summaries = digests_from_wire(payload)
    assert stale == []
    assert {partition: summary.rows for partition, summary in summaries.items()} == {P: 2, P + 1: 0, P + 2: 0}


async def test_a_tombstone_that_is_forgotten_is_gone_for_good(harness: WorkerHarness) -> None:
    await harness.put(1)
    await harness.put(2, None)
    assert await harness.ask(Op.FORGET, harness.forget(1)) == (Fault.OK, [])
    assert await harness.seq_of() == 2
    assert await harness.ask(Op.FORGET, harness.forget(2)) == (Fault.OK, [])
    assert await harness.seq_of() is None
    assert await harness.summary() == Summary()
    await harness.restart()
    assert await harness.seq_of() is None
    assert (await harness.summary()).rows == 0
