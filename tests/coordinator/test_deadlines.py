"""Operations of one task under one limit: each ends at its deadline, whatever its strategy awaits."""

from __future__ import annotations

import math

import pytest
import trio
from trio.testing import MockClock

from trikv.api import Promise, Record, ReplicaSet, Strategy, Write
from trikv.coordinator.coordinator import Coordinator
from trikv.coordinator.deadlines import LOOK_S, Deadlines, Limit, limit_of_task
from trikv.core.errors import Outcome, TrikvError
from trikv.testing.inprocess import InProcessCluster

KEY = b"key"


class Dawdles(Strategy):
    """Stores at all replicas, in its own way of waiting."""

    name = "dawdles"
    promise = Promise.CP
    gives_up = use_when = protocol = "Nothing, never, nohow."

    def __init__(self) -> None:
        self.before_s = self.after_s = 0.0
        self.in_nursery = False
        self.cancelled = 0

    def copies(self, n: int) -> int:
        return n

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await self._dawdle(self.before_s)
        await replicas.store(write)
        await self._dawdle(self.after_s)

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        await self._dawdle(self.before_s)
        return (await replicas.tail.fetch(key))[0].record

    async def _dawdle(self, seconds: float) -> None:
        try:
            if self.in_nursery:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.sleep, seconds)
                    nursery.start_soon(trio.sleep, seconds)
            elif seconds:
                await trio.sleep(seconds)
        except BaseException:
            self.cancelled += 1
            raise


class Task:
    """A task with a limit, as a connection has one."""

    def __init__(self, coordinator: Coordinator, deadlines: Deadlines) -> None:
        self.coordinator = coordinator
        self.deadlines = deadlines
        self.limit = Limit(deadlines)
        self.ended_s = 0.0

    async def put(self, timeout_s: float) -> str:
        """How it ended: "committed", or the code of the error."""
        began_s = trio.current_time()
        with self.limit:
            await self.coordinator.put(KEY, b"v", timeout_s=timeout_s)
        self.ended_s = trio.current_time() - began_s
        return "committed" if self.limit.failure is None else self.limit.failure.kind.code


@pytest.fixture
def strategy() -> Dawdles:
    return Dawdles()


@pytest.fixture
async def cluster(nursery: trio.Nursery, autojump_clock: MockClock, strategy: Dawdles) -> InProcessCluster:
    return await InProcessCluster.start(nursery, mode="dawdles", strategies=[strategy], timeout_s=2.0)


@pytest.fixture
async def task(nursery: trio.Nursery, cluster: InProcessCluster) -> Task:
    deadlines = Deadlines()
    nursery.start_soon(deadlines.run)
    return Task(cluster.coordinator, deadlines)


@pytest.mark.parametrize("in_nursery", [False, True])
async def test_a_late_operation_is_cancelled_whatever_it_awaits(
    task: Task, strategy: Dawdles, autojump_clock: MockClock, *, in_nursery: bool
) -> None:
    strategy.in_nursery = in_nursery
    strategy.before_s = 10.0
    assert await task.put(0.5) == "unanswered"  # nothing was sent
    assert 0.5 <= task.ended_s <= 0.5 + LOOK_S
    strategy.before_s, strategy.after_s = 0.0, 10.0
    assert await task.put(0.5) == "unknown"
    assert 0.5 <= task.ended_s <= 0.5 + LOOK_S
    assert strategy.cancelled == 2
    outcomes = task.coordinator.outcomes
    assert (outcomes[Outcome.REFUSED], outcomes[Outcome.UNKNOWN], task.coordinator.in_flight) == (1, 1, 0)
    strategy.after_s = 0.0
    assert await task.put(0.5) == "committed"


async def test_a_late_answer_of_the_replicas_is_not_waited_for(
    cluster: InProcessCluster, task: Task, autojump_clock: MockClock
) -> None:
    for node in cluster.replicas_of(KEY):
        cluster.network.hold(node.address)
    assert await task.put(0.3) == "unknown"
    assert 0.3 <= task.ended_s <= 0.3 + LOOK_S
    assert task.coordinator.pending == 1


async def test_each_operation_has_its_own_deadline(
    nursery: trio.Nursery, task: Task, strategy: Dawdles, autojump_clock: MockClock
) -> None:
    """A long one is under way; those with an earlier deadline end at theirs, and none is ended by a former one's."""
    strategy.before_s = 10.0
    ended: list[tuple[float, str]] = []

    async def put(timeout_s: float) -> None:
        ended.append((timeout_s, await Task(task.coordinator, task.deadlines).put(timeout_s)))

    async with trio.open_nursery() as puts:
        for timeout_s in (1.5, 0.2, 1.0, 0.6):
            puts.start_soon(put, timeout_s)
    assert ended == [(0.2, "unanswered"), (0.6, "unanswered"), (1.0, "unanswered"), (1.5, "unanswered")]

    strategy.before_s = 0.4
    with task.limit:
        for _ in range(5):  # together they take longer than any of them may
            await task.coordinator.put(KEY, b"v", timeout_s=0.5)
        await trio.sleep(5.0)  # nothing is under way, so nothing is late
    assert task.limit.failure is None


async def test_a_decision_in_the_last_moment_stands(task: Task, autojump_clock: MockClock) -> None:
    """It is late, and decided before it hears of that: the client is told of the decision."""
    with task.limit:
        real = task.coordinator.note_end

        def note_end(what: str, began_s: float, admitted_s: float | None) -> None:
            task.limit.expire()
            real(what, began_s, admitted_s)

        task.coordinator.note_end = note_end  # type: ignore[method-assign]
        await task.coordinator.put(KEY, b"v")
    assert (task.limit.failure, task.limit.is_expired) == (None, True)
    assert task.coordinator.outcomes[Outcome.COMMITTED] == 1


async def test_an_operation_of_a_task_below_has_a_scope_of_its_own(
    task: Task, strategy: Dawdles, autojump_clock: MockClock
) -> None:
    """It inherits the context while the limit is in use: its end must not end the other one."""
    codes: list[str] = []

    async def put_below() -> None:
        strategy.before_s = 10.0
        try:
            await task.coordinator.put(KEY, b"v", timeout_s=0.2)
        except TrikvError as error:
            codes.append(error.kind.code)

    with task.limit:
        task.limit.begin(trio.current_time() + 5.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(put_below)
        assert limit_of_task.get() is task.limit
        task.limit.end()
    assert codes == ["unanswered"]
    assert not task.limit.is_expired


async def test_what_is_under_way_when_the_looking_ends_still_ends_in_time(
    nursery: trio.Nursery, cluster: InProcessCluster, strategy: Dawdles, autojump_clock: MockClock
) -> None:
    deadlines = Deadlines()
    task = Task(cluster.coordinator, deadlines)
    strategy.before_s = 10.0
    async with trio.open_nursery() as looking:
        looking.start_soon(deadlines.run)
        nursery.start_soon(task.put, 0.5)
        await trio.sleep(0.1)
        looking.cancel_scope.cancel()
    await cluster.until(lambda: task.ended_s > 0)
    assert 0.5 <= task.ended_s <= 0.5 + LOOK_S
    assert task.limit.deadline_s == math.inf
    assert task.limit.failure is not None
