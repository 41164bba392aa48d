"""Strategies that are broken on purpose, each in one way that a person might really write.

A strategy differs from its base by what its docstring says. `BROKEN`, at the end, names the seed of `CERTIFYING` that
shows it, and by what; `test_broken.py` plays that seed, and searches all from 1 on if it is asked to.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any

import trio

from trikv.api import Answer, Promise, Record, ReplicaSet, Strategy, Write, newest
from trikv_async import Async
from trikv_chain import Chain
from trikv_quorum import Quorum
from trikv_sync import Sync

# --- called committed too early ---------------------------------------------------------------------------------------


class AcksAtOne(Quorum):
    """One replica is enough."""

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.store(write, need=1)


class StoresLater(Quorum):
    """`store_later` where `store` was meant."""

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        replicas.store_later(write)


class HeadThenLater(Quorum):
    """The head, and the others later."""

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.head.store(write)
        replicas.store_later(write)


class SaysAllWaitsForSome(Quorum):
    """States all copies, and waits for a majority."""

    def copies(self, n: int) -> int:
        return n


class HundredthAtOne(Quorum):
    """Every hundredth write is acknowledged by one."""

    def __init__(self) -> None:
        self.writes = 0

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        self.writes += 1
        await replicas.store(write, need=replicas.majority if self.writes % 100 else 1)


class DeletesAtOne(Quorum):
    """A delete carries no value, so one replica is enough."""

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.store(write, need=1 if write.record.is_tombstone else replicas.majority)


class Swallows(Quorum):
    """An exception is logged, so to speak, and swallowed."""

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        try:
            await super().write(write, replicas)
        except Exception:  # noqa: BLE001 that is the mistake
            return


class FallsBackToOne(Quorum):
    """Where a majority is out of reach, one replica is better than none."""

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        try:
            await super().write(write, replicas)
        except Exception:  # noqa: BLE001 that is the mistake
            await replicas.store(write, need=1)


class GivesUpWaiting(Quorum):
    """After a fifth of a second the write is taken for done."""

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        with trio.move_on_after(0.2):
            await super().write(write, replicas)


class DoesWithoutTheHead(Sync):
    """Sync, but a head that is down does not stop it."""

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.rest.store(write)
        try:
            await replicas.head.store(write)
        except Exception:  # noqa: BLE001 that is the mistake
            return


class TwoCopiesButOne(Async):
    """Promises convergence and two copies, and waits for one."""

    def copies(self, n: int) -> int:
        return min(2, n)


class MajorityOfOdd(Quorum):
    """Half, rounded up: a majority for odd numbers only."""

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.store(write, need=(len(replicas) + 1) // 2)


class MajorityOfTheRest(Quorum):
    """A majority of all but the head, which is right for odd numbers."""

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.rest.store(write, need=replicas.rest.majority)
        replicas.head.store_later(write)


class TwoAreAlwaysEnough(Quorum):
    """Two replicas, however many there are."""

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.store(write, need=min(2, len(replicas)))


class OneOfTwo(Quorum):
    """If only two replicas are left, one is enough."""

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.store(write, need=1 if len(replicas) == 2 else replicas.majority)


class LongKeysAtOne(Quorum):
    """Keys over 16 bytes are acknowledged by one."""

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.store(write, need=1 if len(write.key) > 16 else replicas.majority)


class ShortKeysAtOne(Quorum):
    """Keys of one byte are acknowledged by one."""

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.store(write, need=1 if len(write.key) == 1 else replicas.majority)


class LongestKeysAtOne(Quorum):
    """Keys over 2 KiB are acknowledged by one."""

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.store(write, need=1 if len(write.key) > 2048 else replicas.majority)


class LargeAtOne(Quorum):
    """Values over 4 KiB are acknowledged by one."""

    large_bytes = 4096

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        is_large = len(write.record.value or b"") > self.large_bytes
        await replicas.store(write, need=1 if is_large else replicas.majority)


class HugeAtOne(LargeAtOne):
    """Values over half a megabyte are acknowledged by one."""

    large_bytes = 512 * 1024


class EmptyAtOne(Quorum):
    """An empty value is taken for a delete, and a delete for nothing."""

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.store(write, need=1 if write.record.value == b"" else replicas.majority)


class SkipsVainDeletes(Quorum):
    """What is not there need not be deleted."""

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        if write.record.is_tombstone:
            held = newest(await replicas.fetch(write.key, need=replicas.majority))
            if held is None or held.is_tombstone:
                return
        await super().write(write, replicas)


class SkipsTheMiddle(Chain):
    """The chain goes from the head to the tail at once."""

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.head.store(write, onward=replicas.tail if len(replicas) > 1 else None)
        replicas.store_later(write)


class CutsKeys(Quorum):
    """Stores under the first 255 bytes of the key."""

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await super().write(Write(write.key[:255], write.record), replicas)


class DrawsCopies(Quorum):
    """What it promises is a matter of luck."""

    def copies(self, n: int) -> int:
        return random.randint(1, n)


class LearnsCopies(Quorum):
    """It promises less once it has written."""

    def __init__(self) -> None:
        self.writes = 0

    def copies(self, n: int) -> int:
        return n // 2 + 1 if self.writes < 10 else 1

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        self.writes += 1
        await replicas.store(write, need=self.copies(len(replicas)))


# --- read too early, or too late --------------------------------------------------------------------------------------


class NeverAgrees(Quorum):
    """The newest answer is given as it is."""

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        return newest(await replicas.fetch(key, need=replicas.majority))


class AgreesIfTheFirstIsOld(Quorum):
    """If the first answer is the newest, it need not be agreed on."""

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        answers = await replicas.fetch(key, need=replicas.majority)
        top = newest(answers)
        return top if top == answers[0].record else await replicas.agree(key, answers)


class AgreesIfTheFirstTwoDiffer(Quorum):
    """If two answers are alike, the others are not looked at."""

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        answers = await replicas.fetch(key, need=replicas.majority)
        if len(answers) > 1 and answers[0].record == answers[1].record:
            return newest(answers)
        return await replicas.agree(key, answers)


class DoesNotAgreeOnDeletes(Quorum):
    """There is nothing to mend in a delete."""

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        answers = await replicas.fetch(key, need=replicas.majority)
        top = newest(answers)
        return top if top is not None and top.is_tombstone else await replicas.agree(key, answers)


class MendsLater(Quorum):
    """What a read found is put on the others, and not waited for."""

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        top = newest(await replicas.fetch(key, need=replicas.majority))
        if top is not None:
            replicas.store_later(Write(key, top))
        return top


class AgreesOnOne(Quorum):
    """Only the first answer is agreed on."""

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        answers = await replicas.fetch(key, need=replicas.majority)
        return await replicas.agree(key, answers[:1])


class AgreesAndForgets(Quorum):
    """Agrees, and then returns the answer that came first."""

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        answers = await replicas.fetch(key, need=replicas.majority)
        await replicas.agree(key, answers)
        return answers[0].record


class ReadsOne(Quorum):
    """One answer is enough for a read."""

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        return await replicas.agree(key, await replicas.fetch(key, need=1))


class ReadsHalf(Quorum):
    """r + w = n: the two need not meet."""

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        need = max(1, len(replicas) - replicas.majority)
        return await replicas.agree(key, await replicas.fetch(key, need=need))


class ReadsOneIfItMust(Quorum):
    """Where a majority does not answer, one answer is better than none."""

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        try:
            return await super().read(key, replicas)
        except Exception:  # noqa: BLE001 that is the mistake
            return newest(await replicas.fetch(key, need=1))


class FailsToNothing(Quorum):
    """Where a read fails there is nothing."""

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        try:
            return await super().read(key, replicas)
        except Exception:  # noqa: BLE001 that is the mistake
            return None


class ForgetsDeletes(Quorum):
    """Takes the newest value, and looks past tombstones."""

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        answers = await replicas.fetch(key, need=replicas.majority)
        alive = [Answer(a.replica, a.record) for a in answers if a.record is not None and not a.record.is_tombstone]
        return await replicas.agree(key, alive)


class TakesTheLargest(Quorum):
    """Orders records by their values."""

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        answers = await replicas.fetch(key, need=replicas.majority)
        held = [a for a in answers if a.record is not None]
        top = max(held, key=lambda a: a.record.value or b"" if a.record else b"", default=None)
        return await replicas.agree(key, [top] if top else [])


class Remembers(Quorum):
    """Answers from a cache that only its own writes and reads change."""

    def __init__(self) -> None:
        self.cache: dict[bytes, Record | None] = {}

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await super().write(write, replicas)
        self.cache[write.key] = write.record

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        if key not in self.cache:
            self.cache[key] = await super().read(key, replicas)
        return self.cache[key]


class OneRequestAtATime(Quorum):
    """Keeps the request in an attribute, as if there were one at a time."""

    wanted: Any = None

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        self.wanted = write
        await replicas.fetch(write.key, need=1)
        await replicas.store(self.wanted, need=replicas.majority)


# --- the head, the tail and the wrong end -----------------------------------------------------------------------------


class HeadFirst(Sync):
    """Sync, but the head comes first."""

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.head.store(write)
        await replicas.rest.store(write)


class AllAtOnce(Sync):
    """Sync, but all copies at once."""

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.store(write)


class HeadAndMajority(Quorum):
    """The head first, then a majority; a read asks the head alone, and believes it."""

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.head.store(write)
        if replicas.majority > 1:
            await replicas.rest.store(write, need=replicas.majority - 1)

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        return newest(await replicas.head.fetch(key))


class TailFirst(Chain):
    """The tail first, then the others; the tail answers reads."""

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.tail.store(write)
        await replicas.store(write)


class ReadsTheHead(Chain):
    """A chain whose head answers reads."""

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        return newest(await replicas.head.fetch(key))

    def listing(self, replicas: ReplicaSet) -> ReplicaSet:
        return replicas.head


class ReadsTheHeadIfItMust(Chain):
    """A chain whose head answers reads while the tail does not."""

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        try:
            return await super().read(key, replicas)
        except Exception:  # noqa: BLE001 that is the mistake
            return newest(await replicas.head.fetch(key))


class ReadsAny(Sync):
    """Every replica has everything, so any of them may answer."""

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        return newest(await replicas.fetch(key, need=1))


class ReadsTheNearest(Sync):
    """The tail answers reads, though the head is written last."""

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        return newest(await replicas.tail.fetch(key))


class ListsTheTail(HeadAndMajority):
    """The head first, then a majority, and a read agrees on what the head has; it lists the tail."""

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        return await replicas.agree(key, await replicas.head.fetch(key))

    def listing(self, replicas: ReplicaSet) -> ReplicaSet:
        return replicas.tail


class ListsOne(Quorum):
    """A quorum, which no single replica can list."""

    def listing(self, replicas: ReplicaSet) -> ReplicaSet:
        return replicas.head


# --- what it says of itself -------------------------------------------------------------------------------------------


class SaysConsistent(Async):
    """Asynchronous, and says that it is linearizable."""

    promise = Promise.CP


class SaysThatItCompares(Async):
    """Reads may be out of date, and it says that it can compare and set."""

    compare_and_set = True


class ComparesAfterAMajority(Async):
    """Writes wait for a majority and reads ask one; it says that it can compare and set."""

    compare_and_set = True

    def copies(self, n: int) -> int:
        return n // 2 + 1

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.store(write, need=replicas.majority)


class CutsValues(Quorum):
    """Keeps the first thousand bytes of a value."""

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        record = write.record
        if record.value is not None:
            record = record._replace(value=record.value[:1000])
        await super().write(Write(write.key, record), replicas)


# --- with their seeds -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Broken:
    """`seed`: the first that shows it, within `until_s`. `by`: the rule, or the misconduct. `took_s`: the processor
    time of all seeds up to that one."""

    strategy: type[Strategy]
    seed: int
    by: str
    until_s: float
    took_s: float

    def __str__(self) -> str:
        return self.strategy.__name__


ALL = [
    one
    for one in list(vars().values())
    if isinstance(one, type) and issubclass(one, Strategy) and one.__module__ == __name__
]
for one in ALL:
    one.name = re.sub(r"(?<!^)(?=[A-Z])", "-", one.__name__).lower()  # so that `trikv certify` takes it as well

BROKEN = [
    Broken(AcksAtOne, 1, "too few acknowledgements", 4.8, took_s=0.4),
    Broken(StoresLater, 1, "too few acknowledgements", 1.1, took_s=0.5),
    Broken(HeadThenLater, 1, "too few acknowledgements", 1.1, took_s=0.5),
    Broken(SaysAllWaitsForSome, 1, "too few acknowledgements", 1.1, took_s=0.5),
    Broken(HundredthAtOne, 6, "too few acknowledgements", 28.4, took_s=2.7),
    Broken(DeletesAtOne, 1, "too few acknowledgements", 11.7, took_s=0.4),
    Broken(Swallows, 1, "too few acknowledgements", 12.3, took_s=0.5),
    Broken(FallsBackToOne, 14, "too few acknowledgements", 12.2, took_s=5.3),
    Broken(GivesUpWaiting, 1, "too few acknowledgements", 11.9, took_s=0.6),
    Broken(DoesWithoutTheHead, 1, "too few acknowledgements", 16.6, took_s=0.4),
    Broken(TwoCopiesButOne, 1, "too few acknowledgements", 1.1, took_s=0.3),
    Broken(MajorityOfOdd, 2, "too few acknowledgements", 15.3, took_s=0.7),
    Broken(MajorityOfTheRest, 2, "too few acknowledgements", 14.8, took_s=0.7),
    Broken(TwoAreAlwaysEnough, 1, "too few acknowledgements", 11.7, took_s=0.4),
    Broken(OneOfTwo, 7, "too few acknowledgements", 1.7, took_s=2.2),
    Broken(LongKeysAtOne, 3, "too few acknowledgements", 6.4, took_s=1.0),
    Broken(ShortKeysAtOne, 8, "too few acknowledgements", 24.4, took_s=3.0),
    Broken(LongestKeysAtOne, 3, "too few acknowledgements", 6.4, took_s=1.1),
    Broken(LargeAtOne, 3, "too few acknowledgements", 16.4, took_s=1.2),
    Broken(HugeAtOne, 80, "too few acknowledgements", 3.5, took_s=21.4),
    Broken(EmptyAtOne, 4, "too few acknowledgements", 8.0, took_s=1.2),
    Broken(SkipsVainDeletes, 2, "too few acknowledgements", 2.4, took_s=0.6),
    Broken(SkipsTheMiddle, 1, "too few acknowledgements", 1.1, took_s=0.2),
    Broken(CutsKeys, 2, "too few acknowledgements", 13.3, took_s=0.8),
    Broken(DrawsCopies, 1, "too few acknowledgements", 1.2, took_s=0.3),
    Broken(LearnsCopies, 1, "too few acknowledgements", 18.5, took_s=0.4),
    Broken(NeverAgrees, 17, "value lost", 9.3, took_s=4.8),
    Broken(AgreesIfTheFirstIsOld, 17, "value lost", 9.3, took_s=4.7),
    Broken(AgreesIfTheFirstTwoDiffer, 25, "value lost", 33.0, took_s=8.5),
    Broken(DoesNotAgreeOnDeletes, 41, "value lost", 29.4, took_s=14.7),
    Broken(MendsLater, 17, "value lost", 9.3, took_s=5.9),
    Broken(AgreesOnOne, 4, "stamp goes back", 28.6, took_s=1.5),
    Broken(AgreesAndForgets, 1, "value lost", 39.2, took_s=0.4),
    Broken(ReadsOne, 4, "stamp goes back", 10.9, took_s=1.7),
    Broken(ReadsHalf, 4, "stamp goes back", 10.9, took_s=1.3),
    Broken(ReadsOneIfItMust, 11, "value lost", 6.0, took_s=3.1),
    Broken(FailsToNothing, 1, "value lost", 39.3, took_s=0.3),
    Broken(ForgetsDeletes, 1, "stamp goes back", 36.1, took_s=0.3),
    Broken(TakesTheLargest, 5, "stamp goes back", 38.2, took_s=2.0),
    Broken(Remembers, 2, "stamp goes back", 17.5, took_s=0.6),
    Broken(OneRequestAtATime, 2, "too few acknowledgements", 18.1, took_s=0.7),
    Broken(HeadFirst, 5, "stamp goes back", 18.1, took_s=1.3),
    Broken(AllAtOnce, 5, "stamp goes back", 18.1, took_s=1.3),
    Broken(HeadAndMajority, 5, "value lost", 30.5, took_s=1.4),
    Broken(TailFirst, 9, "stamp goes back", 20.4, took_s=2.5),
    Broken(ReadsTheHead, 5, "stamp goes back", 18.1, took_s=1.4),
    Broken(ReadsTheHeadIfItMust, 4, "value lost", 10.6, took_s=1.2),
    Broken(ReadsAny, 1, "stamp goes back", 25.3, took_s=0.3),
    Broken(ReadsTheNearest, 9, "stamp goes back", 20.4, took_s=2.4),
    Broken(ListsTheTail, 13, "value lost", 14.3, took_s=4.0),
    Broken(ListsOne, 9, "value lost", 9.1, took_s=2.9),
    Broken(SaysConsistent, 1, "stamp goes back", 2.1, took_s=0.3),
    Broken(SaysThatItCompares, 3, "compared with an old value", 11.9, took_s=0.8),
    Broken(ComparesAfterAMajority, 3, "compared with an old value", 11.9, took_s=0.8),
    Broken(CutsValues, 2, "value from nowhere", 8.0, took_s=0.7),
]
