"""Operations of one task under one limit: each ends at its deadline, whatever its strategy awaits."""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import nullcontext
from itertools import count

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.helpers import partition_of
from trikv.api import Promise, Record, ReplicaSet, Strategy, Write
from trikv.coordinator.coordinator import Coordinator
from trikv.coordinator.deadlines import LOOK_S, Deadlines, Limit, limit_of_task
from trikv.coordinator.replicas import LATE_S
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
        self.waits_s: dict[bytes, float] = {}  # before the write of some key
        self.in_nursery = False
        self.breaks = False  # an error of its own, when it is cancelled
        self.cancelled = 0

    def copies(self, n: int) -> int:
        return n

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await self._dawdle(self.waits_s.get(write.key, self.before_s))
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
                    nursery.start_soon(self._sleep, seconds)
            elif seconds:
                await trio.sleep(seconds)
        except BaseException:
            self.cancelled += 1
            raise

    async def _sleep(self, seconds: float) -> None:
        try:
            await trio.sleep(seconds)
        except trio.Cancelled:
            if self.breaks:
                raise ZeroDivisionError from None
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


@pytest.mark.parametrize("with_limit", [True, False])
async def test_a_strategy_that_breaks_while_it_is_cancelled_is_late_and_no_more(
    task: Task, strategy: Dawdles, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, *, with_limit: bool
) -> None:
    """Its error comes in a group with the cancellation."""
    strategy.in_nursery = strategy.breaks = True
    coordinator = task.coordinator

    async def end(what: Callable[[], Awaitable[object]]) -> str:
        if not with_limit:
            with pytest.raises(TrikvError) as caught:
                await what()
            return caught.value.kind.code
        with task.limit:
            await what()
        assert task.limit.failure is not None
        return task.limit.failure.kind.code

    strategy.before_s, strategy.after_s = 10.0, 0.0
    assert await end(lambda: coordinator.get(KEY, timeout_s=0.5)) == "unanswered"
    assert await end(lambda: coordinator.put(KEY, b"v", timeout_s=0.5)) == "unanswered"
    strategy.before_s, strategy.after_s = 0.0, 10.0
    assert await end(lambda: coordinator.put(KEY, b"v", timeout_s=0.5)) == "unknown"
    outcomes = coordinator.outcomes
    assert (outcomes[Outcome.REFUSED], outcomes[Outcome.UNKNOWN], coordinator.in_flight) == (2, 1, 0)
    assert caplog.text.count("strategy dawdles failed in a nursery of its own") == 3


async def test_cancelled_from_outside_while_it_is_late_as_well_the_task_ends(
    nursery: trio.Nursery, task: Task, strategy: Dawdles, autojump_clock: MockClock
) -> None:
    strategy.before_s = 10.0
    for late_first in (False, True):
        went_on = False
        with trio.CancelScope() as outside:
            with task.limit:

                def end_both(late_first: bool = late_first) -> None:
                    for end in (task.limit.expire, outside.cancel)[:: 1 if late_first else -1]:
                        end()

                nursery.start_soon(_call_at, trio.current_time() + 0.2, end_both)
                await task.coordinator.put(KEY, b"v", timeout_s=0.5)
            went_on = True
        assert outside.cancelled_caught
        assert not went_on
        assert (task.coordinator.in_flight, limit_of_task.get(), task.deadlines.limits) == (0, None, set())


async def _call_at(at_s: float, what: Callable[[], None]) -> None:
    await trio.sleep_until(at_s)
    what()


@pytest.mark.parametrize("seed", range(3))
async def test_hundreds_of_tasks_with_any_timeouts_end_each_in_time_and_none_too_early(
    task: Task, strategy: Dawdles, autojump_clock: MockClock, seed: int
) -> None:
    """What takes less than its timeout is committed, and what takes longer is late, by `LOOK_S` at most."""
    dice = random.Random(seed)
    tried: list[tuple[float, float, float, str]] = []  # timeout, wait, how long it took, how it ended

    async def serve(number: int) -> None:
        limit = Limit(task.deadlines)
        await trio.sleep(dice.uniform(0.0, 1.0))
        for index in count():
            key = b"%d/%d" % (number, index)
            began_s, timeout_s = trio.current_time(), dice.choice((1e-9, 1e-4, 0.003, 0.1, dice.uniform(0.0, 2.0)))
            wait_s = strategy.waits_s[key] = dice.choice((0.0, 2 * timeout_s, dice.uniform(0.0, 2.0)))
            how = "committed"
            with limit:
                try:
                    await task.coordinator.put(key, b"v", timeout_s=timeout_s)
                except TrikvError as error:
                    how = error.kind.code
            if limit.failure is not None:
                how = limit.failure.kind.code
            tried.append((timeout_s, wait_s, trio.current_time() - began_s, how))
            if index == 5:
                return

    async with trio.open_nursery() as tasks:
        for number in range(200):
            tasks.start_soon(serve, number)
    assert len(tried) == 200 * 6
    for timeout_s, wait_s, took_s, how in tried:
        told = f"seed {seed}: {how} in {took_s} s, of {timeout_s} s, after {wait_s} s"
        assert took_s <= timeout_s + LOOK_S + 1e-6, told
        if how == "committed":
            assert abs(took_s - wait_s) < 1e-6, told
        elif how == "unknown":  # the links send nothing after the deadline
            assert timeout_s <= wait_s <= took_s + 1e-6, told
        else:
            assert how == "unanswered", told
            assert timeout_s <= min(wait_s, took_s) + 1e-6, told
    assert (task.coordinator.in_flight, task.deadlines.limits) == (0, set())


async def test_a_clock_that_leaps_ends_what_is_late_and_nothing_that_follows(
    nursery: trio.Nursery, task: Task, strategy: Dawdles, autojump_clock: MockClock
) -> None:
    """As when the process was stopped for a while."""
    strategy.before_s = 1000.0  # longer than the leap
    tasks = [Task(task.coordinator, task.deadlines) for _ in range(5)]
    ended: list[str] = []

    async def put_twice(each: Task) -> None:
        ended.append(await each.put(2.0))
        ended.append(await each.put(2.0))

    async with trio.open_nursery() as puts:
        for each in tasks:
            puts.start_soon(put_twice, each)
        await trio.sleep(0.1)
        strategy.before_s = 1.0
        autojump_clock.jump(600)
    assert ended == ["unanswered"] * 5 + ["committed"] * 5


class Counted(set[Limit]):
    """How often somebody has looked at all of them."""

    looks = 0

    def __iter__(self) -> Iterator[Limit]:
        self.looks += 1
        return super().__iter__()


async def test_a_client_with_tiny_timeouts_makes_nobody_look_more_often(
    task: Task, strategy: Dawdles, autojump_clock: MockClock
) -> None:
    """A look takes time for each connection, so there are `LOOK_S` between two, whatever the deadlines are."""
    task.deadlines.limits = limits = Counted()
    began_s = trio.current_time()
    for _ in range(200):
        strategy.before_s = 0.0004
        assert await task.put(0.001) == "committed"
        strategy.before_s = 0.01
        assert await task.put(0.0001) == "unanswered"
    assert limits.looks <= 2 + (trio.current_time() - began_s) / LOOK_S


# --- alarms -----------------------------------------------------------------------------------------------------------


async def test_a_read_asks_one_more_replica_when_the_first_are_late(
    cluster: InProcessCluster, task: Task, strategy: Dawdles, autojump_clock: MockClock
) -> None:
    """Within a limit as without one: after `LATE_S` each time, and no scope is needed for it."""
    await cluster.coordinator.put(KEY, b"v")
    state = cluster.coordinator.partitions[partition_of(KEY)]
    cluster.network.hold(cluster.replicas_of(KEY)[0].address)
    for limited in (True, False):
        request = state.request(trio.current_time() + 1.0)
        began_s = trio.current_time()
        with task.limit if limited else nullcontext():
            answers = await request.replicas.fetch(KEY, need=2)
        assert [answer.replica for answer in answers] == [node.worker.id for node in cluster.replicas_of(KEY)[1:]]
        assert LATE_S <= trio.current_time() - began_s <= LATE_S + LOOK_S
    assert task.limit.alarm_s == math.inf


async def test_two_reads_at_once_in_one_limit_both_ask_further(
    cluster: InProcessCluster, task: Task, autojump_clock: MockClock
) -> None:
    """There is one alarm, and what comes second has a scope of its own. The first one's end leaves the other alone."""
    await cluster.coordinator.put(KEY, b"v")
    state = cluster.coordinator.partitions[partition_of(KEY)]
    cluster.network.hold(cluster.replicas_of(KEY)[0].address)
    ended_s: list[float] = []

    async def fetch(after_s: float) -> None:
        await trio.sleep(after_s)
        request = state.request(trio.current_time() + 1.0)
        began_s = trio.current_time()
        await request.replicas.fetch(KEY, need=1)
        ended_s.append(trio.current_time() - began_s)

    with task.limit:
        async with trio.open_nursery() as fetches:
            for after_s in (0.0, 0.05, LATE_S):
                fetches.start_soon(fetch, after_s)
    assert len(ended_s) == 3
    assert all(LATE_S <= each <= LATE_S + LOOK_S for each in ended_s)


async def test_what_outlives_its_limit_is_not_left_without_an_alarm(
    nursery: trio.Nursery, cluster: InProcessCluster, task: Task, autojump_clock: MockClock
) -> None:
    await cluster.coordinator.put(KEY, b"v")
    state = cluster.coordinator.partitions[partition_of(KEY)]
    cluster.network.hold(cluster.replicas_of(KEY)[0].address)
    took_s: list[float] = []

    async def fetch() -> None:
        began_s = trio.current_time()
        await state.request(began_s + 5.0).replicas.fetch(KEY, need=1)
        took_s.append(trio.current_time() - began_s)

    with task.limit:
        nursery.start_soon(fetch)  # it inherits the limit, and sets its alarm
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(fetch)  # it has not begun when the limit ends
    await cluster.until(lambda: len(took_s) == 2)
    assert max(took_s) <= LATE_S + LOOK_S
    assert task.limit.alarm_s == math.inf


async def test_who_clears_an_alarm_that_has_rung_leaves_the_next_one_alone() -> None:
    rung: list[str] = []

    def first() -> None:
        rung.append("first")

    def second() -> None:
        rung.append("second")

    limit = Limit(Deadlines())
    with limit:
        assert limit.set_alarm(1.0, first)
        limit.ring()
        assert limit.set_alarm(2.0, second)
        limit.clear_alarm(first)
        assert limit.alarm_s == 2.0
    assert rung == ["first", "second"]
