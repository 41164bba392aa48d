"""The clients of a run: one request after another, no retries, and every answer recorded.

They call the coordinator's public methods inside the master that serves at that moment, as the HTTP handlers do. HTTP
itself is not simulated. If that master crashes while a call is in flight, the client learns nothing: the outcome is
unknown.

Of several masters they ask any. One that stands by passes on to the master that leads by what it last heard, after a
message's time on the way. A deposed master that does not know it yet is asked more often than its share. A client waits
only so long, since its master may be stopped; then the outcome is unknown.

A compare-and-set expects what the clients saw last of its key, like a client that read it a moment ago.

Requests of one batch are sent together, as `POST /v1/batch` does: those of one key in their order, others at once.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby

import trio

from trikv.coordinator.coordinator import Coordinator
from trikv.coordinator.deadlines import SharedLimit, limit_of_task
from trikv.coordinator.scan import ScanPage
from trikv.coordinator.steps import carry_out
from trikv.core.errors import Outcome, TrikvError
from trikv.core.precondition import Expect
from trikv.core.record import Record, Version
from trikv.master.configstore import ConfigStoreError
from trikv.master.master import Master
from trikv.testing.judge.history import Finding, Kind, Operation, Recorder, ScannedRow
from trikv.testing.sim.clock import sleep
from trikv.testing.sim.names import EMPTY, Names, sized
from trikv.testing.sim.network import Life
from trikv.testing.sim.plan import Expected, ScheduledRequest
from trikv.testing.sim.world import World
from trikv.web.batch import AT_ONCE_MAX

_SLACK_S = 0.05  # an answer is late if it comes this long after its deadline
_TIMEOUT_S = 2.0
_PATIENCE_S = 5.0  # how long a client waits for a master before it sends its request; without one it is refused
_PAGE = 100
_ASK_DEPOSED = 0.5  # of the requests, while a deposed master believes that it leads
_LONG_PATIENCE_S = 8.0  # of a client that waits for a master that is stopped
_NEVER_SEEN = ("another version", Version(0, 0))

Asked = tuple[Operation, tuple[str, Version] | None]  # what a compare-and-set expects to find
ClientAnswer = Record | Version | ScanPage | None
Call = Callable[..., Awaitable[ClientAnswer]]  # takes `timeout_s`


class Clients:
    """The clients of one run, and their common history."""

    def __init__(self, world: World) -> None:
        self.recorder = Recorder(world.names.fresh)
        self._world = world
        self.deposed: list[Operation] = []  # those that a deposed master was asked for
        self.by_deposed: list[Operation] = []  # those that a master answered when it was deposed
        self._dice = random.Random(f"{world.schedule.seed}/clients")
        self._seen: dict[str, tuple[str, Version] | None] = {}  # by key: value and stamp, None for absence

    async def run(self) -> None:
        """Make every request of the schedule."""
        began_s = trio.current_time()
        schedule = self._world.schedule
        async with trio.open_nursery() as nursery:
            for number in range(schedule.clients):
                requests = [request for request in schedule.requests if request.client == number]
                nursery.start_soon(self._run_one, began_s, number, requests)

    async def _run_one(self, began_s: float, number: int, requests: list[ScheduledRequest]) -> None:
        schedule = self._world.schedule
        dice = random.Random(f"{schedule.seed}/client/{number}")
        for together in _batches(requests):
            await sleep(max(0.0, began_s + together[0].at_s - trio.current_time()) + schedule.think_s * dice.random())
            if self._world.master is None:  # a request without a master proves nothing
                await self._world.wait_until(lambda: self._world.master is not None, _PATIENCE_S)
            await self.ask_together(f"c{number + 1}", together)

    def last_seen(self, key: str) -> str | None:
        """The value that a compare-and-set expects if it begins now; None for absence."""
        seen = self._seen.get(key)
        return None if seen is None else seen[0]

    async def ask(
        self,
        client: str,
        kind: Kind,
        key: str,
        value: str | None = None,
        *,
        expected: Expected = Expected.LAST_SEEN,
        at: str | None = None,
    ) -> Operation:
        """One request, from its beginning to its end. It writes `value`, or a fresh value if there is none.

        `at`: of several masters, the machine that is asked.
        """
        (operation,) = await self.ask_together(client, [ScheduledRequest(0.0, 0, kind, key, value, expected)], at=at)
        return operation

    async def ask_together(
        self, client: str, requests: Sequence[ScheduledRequest], *, at: str | None = None
    ) -> list[Operation]:
        """One request, or several as a batch, from the beginning to the end."""
        world = self._world
        asked = [self._begin(client, request) for request in requests]
        operations = [operation for operation, _ in asked]
        if world.schedule.masters > 1:
            await self._ask_some_master(asked, at)
        elif world.master is None:
            self._end_unreachable(operations)
        else:
            await self._ask_master(world.master, asked)
        return operations

    async def _ask_master(self, master: Master, asked: Sequence[Asked]) -> None:
        world = self._world
        life = world.life_of(master)
        asked_s = trio.current_time()
        calls = [(op, _call(master.coordinator, op, seen, world.names)) for op, seen in asked]
        if len(calls) == 1:
            ((operation, call),) = calls
            await self._answer(operation, life, partial(master.tasks.run_detached, partial(call, timeout_s=_TIMEOUT_S)))
        else:
            with suppress(TrikvError):  # the master ended meanwhile
                await master.tasks.run_detached(partial(self._carry_out, calls, life))
        for operation, _ in asked:
            if operation.returned_s is None:
                self._end(operation, Outcome.UNKNOWN)
                operation.why = "the master crashed"
            late_s = trio.current_time() - asked_s - _TIMEOUT_S
            if late_s > _SLACK_S and (life is None or life.woken_s < asked_s):
                why = f"[1] ended {late_s:.3f} s too late"
                world.findings.append(Finding("late answer", operation.key, why, (operation,)))

    # --- several masters ----------------------------------------------------------------------------------------------

    async def _ask_some_master(self, asked: Sequence[Asked], at: str | None) -> None:
        """Ask one of several masters, that one if one is named, until the client's patience is over.

        A master that was deposed and does not know it gets more than its share, since it is what is tested.
        """
        world, dice = self._world, self._dice
        operations = [operation for operation, _ in asked]
        deposed = [name for name, master in world.serving.items() if world.is_deposed(master)]
        some = deposed if deposed and dice.random() < _ASK_DEPOSED else list(world.schedule.master_ids)
        patience_s = dice.choice((_TIMEOUT_S + _SLACK_S, _LONG_PATIENCE_S))
        with trio.move_on_after(patience_s):
            await self._ask_machine(at or dice.choice(some), asked)
        for operation in operations:
            if operation.returned_s is None:
                self._end(operation, Outcome.UNKNOWN)
                operation.why = "there was no answer"

    async def _ask_machine(self, name: str, asked: Sequence[Asked]) -> None:
        """Ask that machine's master. If it stands by, it passes on to the master that leads by what it last heard."""
        world = self._world
        leader = name
        if name not in world.serving:
            told = name in world.stores and world.network.hosts[name].life is not None and world.stores[name].leader
            if not told:
                self._end_unreachable([operation for operation, _ in asked])
                return
            leader = world.machine_of(told.master)
            await self._carry(name, leader)
        master = world.serving.get(leader)
        if master is None:
            self._end_unreachable([operation for operation, _ in asked])
            return
        if world.is_deposed(master):
            self.deposed += [operation for operation, _ in asked]
        try:
            await self._ask_master(master, asked)
        finally:
            if world.is_deposed(master):
                self.by_deposed += [operation for operation, _ in asked]

    async def _carry(self, source: str, target: str) -> None:
        """Wait for as long as a message takes from one machine to another."""
        arrived = trio.Event()
        self._world.network.post(source, target, arrived.set)
        await arrived.wait()

    def _end_unreachable(self, operations: Sequence[Operation]) -> None:
        for operation in operations:
            self._end(operation, Outcome.REFUSED, code="unreachable")
            operation.why = "there is no master"

    def _begin(self, client: str, request: ScheduledRequest) -> Asked:
        world, recorder = self._world, self.recorder
        kind, key, value = request.kind, request.key, request.value
        if value is None and kind in (Kind.PUT, Kind.CAS):
            value = recorder.fresh_value()
            if request.size_bytes is not None:
                value = sized(value, request.size_bytes)
        seen = None
        if kind is Kind.CAS and request.expected is not Expected.ABSENCE:
            seen = self._seen.get(key) if request.expected is Expected.LAST_SEEN else _NEVER_SEEN
        operation = recorder.begin(
            client, kind, key, trio.current_time(), value=value, expect=None if seen is None else seen[0]
        )
        world.trace.note(operation.invoked_s, "begin", client, f"{kind.value} {key} {value}")
        return operation, seen

    async def _answer(self, operation: Operation, life: Life | None, call: Call) -> None:
        """Wait for the answer, and record it."""
        try:
            answer = await call()
        except TrikvError as error:
            self._end_failed(operation, life, error)
        except ConfigStoreError:
            if life is not None and not life.dead:
                raise
            self._end(operation, Outcome.UNKNOWN)  # it died while its document was being written
            operation.why = "the master crashed"
        else:
            if life is None or life.dead:
                self._end(operation, Outcome.UNKNOWN)
                operation.why = "the master crashed"
            else:
                self._end_committed(operation, answer)

    async def _carry_out(self, calls: Sequence[tuple[Operation, Call]], life: Life | None) -> None:
        """A batch: those of one key in turn, different keys at once."""
        until_s = trio.current_time() + _TIMEOUT_S
        by_key: dict[str, list[tuple[Operation, Call]]] = {}
        for operation, call in calls:
            by_key.setdefault(operation.key, []).append((operation, call))

        async def work(scope: trio.CancelScope, some: list[tuple[Operation, Call]]) -> None:
            limit = SharedLimit(scope)
            limit_of_task.set(limit)
            for operation, call in some:
                left_s = until_s - trio.current_time()
                if left_s <= 0:
                    return
                try:
                    await self._answer(operation, life, partial(call, timeout_s=left_s))
                finally:
                    if limit.failure is not None and operation.returned_s is None:
                        self._end_failed(operation, life, limit.failure)

        with trio.CancelScope(deadline=until_s) as scope:
            await carry_out((partial(work, scope, some) for some in by_key.values()), at_once=AT_ONCE_MAX)
        for operation, _ in calls:
            if operation.returned_s is None and life is not None and not life.dead:
                self._end(operation, Outcome.REFUSED, code="unanswered")
                operation.why = "the time for the batch was over before its turn came"

    def _end_failed(self, operation: Operation, life: Life | None, error: TrikvError) -> None:
        crashed = life is None or life.dead
        self._end(operation, Outcome.UNKNOWN if crashed else error.kind.outcome, code=error.kind.code)
        operation.why = "the master crashed" if crashed else error.detail  # only now, so no digest has the words

    def _end_committed(self, operation: Operation, answer: ClientAnswer) -> None:
        key, decode = operation.key, self._world.names.decode
        if isinstance(answer, ScanPage):
            rows = tuple(ScannedRow(decode(key), decode(_data(record)), record.stamp) for key, record in answer.items)
            operation_end = None if answer.after is None else decode(answer.after)
            self._end(operation, Outcome.COMMITTED, result=operation_end, rows=rows)
        elif isinstance(answer, Version):
            self._seen[key] = None if operation.value is None else (operation.value, answer)
            self._end(operation, Outcome.COMMITTED, stamp=answer)
        elif answer is None:
            self._seen[key] = None
            self._end(operation, Outcome.COMMITTED)
        else:
            value = decode(_data(answer))
            self._seen[key] = (value, answer.stamp)
            self._end(operation, Outcome.COMMITTED, result=value, stamp=answer.stamp)

    def _end(
        self,
        operation: Operation,
        outcome: Outcome,
        *,
        code: str | None = None,
        result: str | None = None,
        stamp: Version | None = None,
        rows: tuple[ScannedRow, ...] = (),
    ) -> None:
        now_s = trio.current_time()
        self.recorder.end(operation, now_s, outcome, result=result, stamp=stamp, code=code, rows=rows)
        self._world.trace.note(now_s, "end", operation.client, str(operation))


def _batches(requests: Sequence[ScheduledRequest]) -> Iterator[list[ScheduledRequest]]:
    """The requests of one client in their order, those of a batch together."""
    for batch, some in groupby(requests, key=lambda one: one.batch):
        if batch:
            yield list(some)
        else:
            yield from ([one] for one in some)


def _call(coordinator: Coordinator, operation: Operation, seen: tuple[str, Version] | None, names: Names) -> Call:
    key = names.encode(operation.key)
    value = names.encode(EMPTY if operation.value is None else operation.value)
    if operation.kind is Kind.GET:
        return partial(coordinator.get, key)
    if operation.kind is Kind.PUT:
        return partial(coordinator.put, key, value)
    if operation.kind is Kind.DELETE:
        return partial(coordinator.delete, key)
    if operation.kind is Kind.SCAN:
        return partial(coordinator.scan, key, limit=_PAGE)
    expect = Expect.absent() if seen is None else Expect.one_of([seen[1]])
    return partial(coordinator.put, key, value, expect=expect)


def _data(record: Record) -> bytes:
    assert record.value is not None
    return record.value
