"""What counts as an acknowledgement, and how a write is named that was called committed without enough of them.

Each strategy is played in this process, in a short simulated run.
"""

from __future__ import annotations

import itertools
import random
from typing import ClassVar

import pytest

from trikv.api import Promise, ReplicaSet, Strategy, Write
from trikv.testing.certify.acknowledged import TOO_FEW
from trikv.testing.certify.misconduct import Misconduct, Watch
from trikv.testing.certify.pool import PlayedTask, Task, play_task
from trikv.testing.judge.history import Finding
from trikv.testing.sim import Plan
from trikv_async import Async
from trikv_chain import Chain
from trikv_quorum import Quorum
from trikv_sync import Sync

SHORT = Plan(lasts_s=12.0, requests=60, faults=4)


def play(strategy: Strategy, seed: int = 1) -> PlayedTask:
    played = play_task(strategy, Watch(), Task(seed, SHORT))
    assert played.run is not None, played.misconduct
    return played


def too_few(strategy: Strategy, seed: int = 1) -> Finding:
    played = play(strategy, seed)
    assert played.run is not None
    (finding,) = [one for one in played.run.findings if one.rule == TOO_FEW]
    return finding


# --- too few ----------------------------------------------------------------------------------------------------------


class OneIsEnough(Quorum):
    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.store(write, need=1)


class LaterIsEnough(Quorum):
    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.head.store(write)
        replicas.store_later(write)


class LaterHasAnswered(Quorum):
    """The others have answered by the time that the head has been read some times; but nothing waited for them."""

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        replicas.rest.store_later(write)
        await replicas.head.store(write)
        for _ in range(4):
            await replicas.head.fetch(write.key)


class HeadAlone(Sync):
    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.head.store(write)


class DeletesAtOne(Chain):
    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        if write.record.is_tombstone:
            await replicas.head.store(write)
        else:
            await super().write(write, replicas)


class TwoCopiesOfAsync(Async):
    def copies(self, n: int) -> int:
        return min(2, n)


def test_a_write_that_one_replica_has_is_named_with_the_missing_messages() -> None:
    finding = too_few(OneIsEnough())
    (write,) = finding.operations
    assert write.writes
    assert "[1] was called committed when w" in finding.why
    assert "alone had acknowledged it; copies(3) is 2, and w" in finding.why
    assert finding.why.endswith("had not answered yet")
    assert write.returned_s == finding.at_s


@pytest.mark.parametrize("strategy", [LaterIsEnough(), LaterHasAnswered()])
def test_what_is_stored_later_does_not_count(strategy: Strategy) -> None:
    assert "got it by store_later, which waits for nothing" in too_few(strategy).why


def test_replicas_that_were_sent_nothing_are_named() -> None:
    assert "got nothing to store" in too_few(HeadAlone()).why


def test_a_delete_counts_as_any_write() -> None:
    (delete,) = too_few(DeletesAtOne()).operations
    assert delete.value is None


def test_a_promise_of_convergence_states_copies_too() -> None:
    finding = too_few(TwoCopiesOfAsync())
    assert TwoCopiesOfAsync.promise is Promise.AP
    assert "copies(3) is 2" in finding.why


# --- enough -----------------------------------------------------------------------------------------------------------


class LooksAfterwards(Quorum):
    """What a fetch finds on a replica, and what `agree` puts there, is acknowledged as well."""

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.store(write, need=1)
        await replicas.agree(write.key, await replicas.fetch(write.key, need=replicas.majority))


class AsksForTheRest(Quorum):
    """In two calls, of which the second alone would not be enough."""

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.head.store(write)
        await replicas.rest.store(write, need=replicas.majority - 1)


@pytest.mark.parametrize("strategy", [Quorum(), Chain(), Sync(), Async(), LooksAfterwards(), AsksForTheRest()])
def test_enough_acknowledgements_are_enough(strategy: Strategy) -> None:
    for seed in (1, 2):
        played = play(strategy, seed)
        assert played.run is not None
        assert played.run.findings == []
        assert played.misconduct == {}


# --- copies -----------------------------------------------------------------------------------------------------------


class ChangesItsMind(Quorum):
    asked: ClassVar = itertools.count()

    def copies(self, n: int) -> int:
        return n // 2 + 1 if next(self.asked) < 40 else 1


class IsNoInteger(Quorum):
    def copies(self, n: int) -> int:
        return n / 2 + 0.5  # type: ignore[return-value]


class DrawsCopies(Quorum):
    def copies(self, n: int) -> int:
        return random.randint(1, n)


@pytest.mark.parametrize(
    ("strategy", "detail"),
    [
        (ChangesItsMind(), "copies(3) was 2, and later 1"),
        (IsNoInteger(), "copies(3) is 2.0, which is no integer from 1 to 3"),
        (DrawsCopies(), "copies(3) was"),
    ],
)
def test_copies_that_are_no_promise_are_named(strategy: Strategy, detail: str) -> None:
    assert detail in play(strategy).misconduct[Misconduct.COPIES]
