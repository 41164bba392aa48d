"""Strategies that certification must see through: some break their promise, some misbehave in other ways.

Each differs from its base, quorum or async, by what its docstring says, and has a name of its own.
"""

import os
import random
import sys
from time import monotonic

import trio

from trikv.api import Promise, Record, ReplicaSet, Strategy, Version, Write, newest
from trikv_async import Async
from trikv_quorum import Quorum


class AcksBeforeStoring(Quorum):
    """Acknowledges as soon as the write is on its way."""

    name = "acks-before-storing"

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        replicas.store_later(write)


class HalfIsEnough(Quorum):
    """Takes n // 2 for a majority, so that two of them need not meet."""

    name = "half-is-enough"

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.store(write, need=len(replicas) // 2)

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        return newest(await replicas.fetch(key, need=len(replicas) // 2))


class ReadsOne(Quorum):
    """Believes the first replica."""

    name = "reads-one"

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        return newest(await replicas.fetch(key, need=1))


class PromisesTooMuch(Async):
    """As asynchronous as it is, it says that it is linearizable."""

    name = "promises-too-much"
    promise = Promise.CP


class LeavesRepair(Async):
    """Sends a write to one replica alone, and mends nothing: anti-entropy has to bring it to the others."""

    name = "leaves-repair"

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.store(write, need=1, in_order=True)

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        return newest(await replicas.fetch(key, need=1))


class Raises(Quorum):
    name = "raises"

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        raise ValueError("not today")


class Hangs(Quorum):
    """Waits for what never comes."""

    name = "hangs"

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await trio.sleep_forever()


class Spins(Quorum):
    """Never lets go."""

    name = "spins"

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        while len(replicas):
            pass


class ReturnsJunk(Quorum):
    name = "returns-junk"

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        return "junk"  # type: ignore[return-value]


class ReturnsJunkRecord(Quorum):
    """A record of its own making."""

    name = "returns-junk-record"

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        return Record(Version(1, 1), Version(1, 1), lambda: 1)  # type: ignore[arg-type]


class IsNotAsync(Quorum):
    """The word `async` is missing."""

    name = "is-not-async"

    def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:  # type: ignore[override]
        return None


class ForgetsAwait(Quorum):
    """The write is never sent."""

    name = "forgets-await"

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        replicas.store(write, need=replicas.majority)  # type: ignore[unused-coroutine]


class Exits(Quorum):
    """One write in a few ends the process, in the way that can be caught."""

    name = "exits"

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await super().write(write, replicas)
        if write.key == b"hot0":
            sys.exit(3)


class StartsTasks(Quorum):
    name = "starts-tasks"

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(replicas.store, write)


class ReadsClock(Quorum):
    """By a name that it imported before anybody looked."""

    name = "reads-clock"

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        monotonic()
        return await super().read(key, replicas)


class ThrowsDice(Quorum):
    """Through a function that throws them on its behalf."""

    name = "throws-dice"

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        random.shuffle([1, 2, 3])
        return await super().read(key, replicas)


class HashesText(Quorum):
    """Depends on what only differs between processes."""

    name = "hashes-text"

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        need = replicas.majority + hash("x") % 2
        return await replicas.agree(key, await replicas.fetch(key, need=need))


class EndsProcess(Quorum):
    name = "ends-process"

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        os._exit(3)


class KillsProcess(Quorum):
    name = "kills-process"

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        os.kill(os.getpid(), 9)
        return None


class NameIsTaken(Quorum):
    pass


class SaysTooLittle(Strategy):
    name = "says-too-little"
    promise = Promise.CP

    def copies(self, n: int) -> int:
        return n

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.store(write)

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        return newest(await replicas.fetch(key))


class NoStrategy:
    pass
