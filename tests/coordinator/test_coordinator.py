"""Client operations on a whole cluster, on virtual time: above all that each outcome is the true one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from inspect import currentframe
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.helpers import HeadLast, partition_of
from trikv.api import Batch, Promise, ReplicaSet, Strategy, Write
from trikv.coordinator.coordinator import IN_FLIGHT_MAX, LARGE_BYTES_MAX, SCANS_MAX
from trikv.coordinator.partition import PENDING_BYTES_MAX, PENDING_MAX
from trikv.core.calls import Op
from trikv.core.errors import Outcome, Refused, TrikvError, Unknown
from trikv.core.precondition import Expect
from trikv.core.record import KEY_BYTES_MAX, VALUE_BYTES_MAX, Record, Version, make_epoch
from trikv.net.link import QUEUE_BYTES_MAX
from trikv.testing.inprocess import InProcessCluster, Node

MODES = ["sync", "async", "chain", "quorum"]
CP_MODES = ["sync", "chain", "quorum"]
KEY = b"key"
TIMEOUT_S = 2.0


async def start(nursery: trio.Nursery, mode: str, **more: Any) -> InProcessCluster:
    return await InProcessCluster.start(nursery, mode=mode, timeout_s=TIMEOUT_S, **more)


async def outcome(operation: Awaitable[object]) -> str:
    """How it ended: "committed", or the error's code. It must end within its deadline."""
    began_s = trio.current_time()
    try:
        await operation
    except TrikvError as error:
        assert error.detail  # noqa: PT017 ending well is as good
        return error.kind.code
    finally:
        assert trio.current_time() - began_s <= TIMEOUT_S
    return "committed"


async def value_of(cluster: InProcessCluster, key: bytes = KEY) -> bytes | None:
    record = await cluster.coordinator.get(key)
    return None if record is None else record.value


def held(cluster: InProcessCluster, key: bytes = KEY) -> list[bytes | None]:
    """The values on the disks of the key's replicas, in the order of its preference list."""
    records = [node.storage.get(partition_of(key), key) for node in cluster.replicas_of(key)]
    return [None if record is None else record.value for record in records]


async def lay_down(nodes: Iterable[Node], record: Record, key: bytes = KEY) -> None:
    """Put a record on disks behind everyone's back: what an earlier master may have left there."""
    for node in nodes:
        await node.storage.commit(Batch(puts={(partition_of(key), key): record}))


# --- what every mode does -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
async def test_put_get_delete(mode: str, nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await start(nursery, mode)
    coordinator = cluster.coordinator
    assert await coordinator.get(KEY) is None
    first = await coordinator.put(KEY, b"1")
    assert await coordinator.get(KEY) == Record(first, first, b"1")
    second = await coordinator.put(KEY, b"")
    assert second > first
    assert await value_of(cluster) == b""
    assert await coordinator.delete(KEY) > second
    assert await coordinator.get(KEY) is None
    assert await coordinator.delete(b"never there") is not None
    assert coordinator.outcomes == {Outcome.COMMITTED: 8, Outcome.REFUSED: 0, Outcome.UNKNOWN: 0}
    assert (coordinator.in_flight, coordinator.pending) == (0, 0)


@pytest.mark.parametrize("mode", CP_MODES)
async def test_compare_and_set(mode: str, nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    coordinator = (await start(nursery, mode)).coordinator
    first = await coordinator.put(KEY, b"1", expect=Expect.absent())
    assert await outcome(coordinator.put(KEY, b"2", expect=Expect.absent())) == "precondition_failed"
    second = await coordinator.put(KEY, b"2", expect=Expect.one_of([first]))
    assert await outcome(coordinator.put(KEY, b"3", expect=Expect.one_of([first]))) == "precondition_failed"
    assert await outcome(coordinator.delete(KEY, expect=Expect.none_of([second]))) == "precondition_failed"
    await coordinator.delete(KEY, expect=Expect.one_of([second]))
    assert await outcome(coordinator.put(KEY, b"4", expect=Expect.present())) == "precondition_failed"
    await coordinator.put(KEY, b"5", expect=Expect.absent())


async def test_no_compare_and_set_under_a_promise_of_availability(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    coordinator = (await start(nursery, "async")).coordinator
    assert await outcome(coordinator.put(KEY, b"1", expect=Expect.absent())) == "no_compare_and_set"


@pytest.mark.parametrize("mode", CP_MODES)
async def test_of_many_compare_and_sets_one_wins(mode: str, nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    coordinator = (await start(nursery, mode)).coordinator
    outcomes: list[str] = []

    async def attempt(number: int) -> None:
        outcomes.append(await outcome(coordinator.put(KEY, b"%d" % number, expect=Expect.absent())))

    async with trio.open_nursery() as inner:
        for number in range(20):
            inner.start_soon(attempt, number)
    assert sorted(outcomes) == ["committed", *["precondition_failed"] * 19]


@pytest.mark.parametrize("mode", MODES)
async def test_what_cannot_be_taken_is_refused_with_its_reason(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    coordinator = (await start(nursery, mode)).coordinator
    assert await outcome(coordinator.put(b"", b"v")) == "bad_key"
    assert await outcome(coordinator.get(b"k" * (KEY_BYTES_MAX + 1))) == "bad_key"
    assert await outcome(coordinator.delete(b"")) == "bad_key"
    assert await outcome(coordinator.put(KEY, bytes(VALUE_BYTES_MAX + 1))) == "value_too_large"
    assert await outcome(coordinator.scan(limit=0)) == "bad_request"
    assert await outcome(coordinator.put(b"k" * KEY_BYTES_MAX, bytes(VALUE_BYTES_MAX))) == "committed"


# --- refused, or unknown ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sync", "chain"])
@pytest.mark.parametrize("number", [0, 1, 2])
async def test_a_refused_write_is_nowhere_and_never_seen(
    mode: str, number: int, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, mode)
    await cluster.coordinator.put(KEY, b"before")
    node = cluster.replicas_of(KEY)[number]
    await cluster.kill(node)
    assert await outcome(cluster.coordinator.put(KEY, b"refused")) == "unavailable"
    assert await outcome(cluster.coordinator.delete(KEY)) == "unavailable"
    assert held(cluster) == [b"before"] * 3
    assert cluster.coordinator.pending == 0
    await cluster.restart(node)
    await cluster.until_all_up()
    assert await value_of(cluster) == b"before"
    await cluster.restart_master()
    assert await value_of(cluster) == b"before"


@pytest.mark.parametrize("mode", ["quorum", "async"])
async def test_one_worker_less_changes_nothing_for_a_client(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, mode, workers=5)
    await cluster.kill(cluster.workers[2])
    for number in range(100):
        await cluster.coordinator.put(b"k%d" % number, b"v%d" % number)
    assert [await value_of(cluster, b"k%d" % number) for number in range(100)] == [b"v%d" % n for n in range(100)]


@pytest.mark.parametrize(("mode", "number"), [("sync", 0), ("sync", 2), ("chain", 0), ("chain", 1), ("chain", 2)])
async def test_a_write_under_way_when_a_replica_stops_is_unknown_and_rolls_forward(
    mode: str, number: int, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, mode)
    await cluster.coordinator.put(KEY, b"before")
    stopped = cluster.replicas_of(KEY)[number]
    cluster.network.hold(stopped.address)
    assert await outcome(cluster.coordinator.put(KEY, b"unknown")) == "unknown"
    assert cluster.coordinator.pending == 1
    assert await outcome(cluster.coordinator.put(KEY, b"refused")) == "unanswered"  # by now it is suspect
    cluster.network.release(stopped.address)
    await cluster.until(lambda: cluster.coordinator.pending == 0)
    assert held(cluster) == [b"unknown"] * 3
    assert await value_of(cluster) == b"unknown"


@pytest.mark.parametrize("mode", MODES)
async def test_no_operation_outlives_its_deadline(mode: str, nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await start(nursery, mode)
    coordinator = cluster.coordinator
    await coordinator.put(KEY, b"before")
    for node in cluster.workers:
        cluster.network.hold(node.address)
    results: dict[str, str] = {}

    async def run(name: str, operation: Awaitable[object]) -> None:
        results[name] = await outcome(operation)

    async with trio.open_nursery() as inner:
        inner.start_soon(run, "put", coordinator.put(KEY, b"1"))
        inner.start_soon(run, "get", coordinator.get(b"another"))
        inner.start_soon(run, "scan", coordinator.scan())
        inner.start_soon(run, "short", coordinator.get(b"a third", timeout_s=0.1))
    assert results == {"put": "unknown", "get": "unanswered", "scan": "unanswered", "short": "unanswered"}
    await trio.sleep(10)
    results.clear()
    async with trio.open_nursery() as inner:
        inner.start_soon(run, "put", coordinator.put(KEY, b"2"))
        inner.start_soon(run, "get", coordinator.get(KEY))
        inner.start_soon(run, "scan", coordinator.scan())
    assert results == {"put": "unavailable", "get": "unavailable", "scan": "unavailable"}
    assert coordinator.in_flight == 0


async def test_a_read_that_cannot_be_answered_truthfully_is_refused(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, "quorum")
    await cluster.coordinator.put(KEY, b"1")
    for node in cluster.workers[:2]:
        await cluster.kill(node)
    await cluster.until_down(*cluster.workers[:2])
    assert await outcome(cluster.coordinator.get(KEY)) == "unavailable"


# --- compare-and-set, repair --------------------------------------------------------------------------------------


async def test_compare_and_set_finishes_what_is_in_doubt_first(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Schedule 2: the head has nothing yet of a write that its replicas hold already."""
    cluster = await start(nursery, "sync")
    head = cluster.replicas_of(KEY)[0]
    cluster.network.hold(head.address)
    assert await outcome(cluster.coordinator.put(KEY, b"in doubt")) == "unknown"
    cluster.network.cut(head.address)  # what was on its way to the head is gone
    assert held(cluster) == [None, b"in doubt", b"in doubt"]
    cluster.network.mend(head.address)
    cluster.network.release(head.address)
    results: list[str] = []

    async def attempt() -> None:
        results.append(await outcome(cluster.coordinator.put(KEY, b"mine", expect=Expect.absent())))

    async with trio.open_nursery() as inner:
        inner.start_soon(attempt)
    assert results == ["precondition_failed"]
    assert held(cluster) == [b"in doubt"] * 3


async def test_a_repair_gives_a_fresh_version_and_keeps_the_stamp(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Schedule 3: the remains of a dead epoch on one replica, and a newer, hidden one on another."""
    cluster = await start(nursery, "quorum")
    await cluster.coordinator.put(b"any", b"thing")
    await cluster.restart_master()
    await cluster.restart_master()
    await cluster.until_all_up()
    one, two, three = cluster.replicas_of(KEY)
    generation = cluster.coordinator.partitions[partition_of(KEY)].partition.generation
    v0, v1 = (Version(make_epoch(1, generation), seq) for seq in (10, 11))
    v2 = Version(make_epoch(2, generation), 1)
    await lay_down([one], Record(v2, v2, b"v2"))
    await lay_down([two], Record(v0, v0, b"v0"))
    await lay_down([three], Record(v1, v1, b"v1"))
    await cluster.kill(one)
    await cluster.until_down(one)

    record = await cluster.coordinator.get(KEY)
    assert record is not None
    assert (record.value, record.stamp) == (b"v1", v1)
    assert record.version > v2
    await cluster.restart(one)
    await cluster.until_all_up()
    await cluster.kill(three)
    assert await cluster.coordinator.get(KEY) == record
    await cluster.coordinator.put(KEY, b"next", expect=Expect.one_of([v1]))


async def test_a_deleted_key_whose_value_lingers_stays_deleted(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, "quorum")
    stamp = await cluster.coordinator.put(KEY, b"v")
    one, _, three = cluster.replicas_of(KEY)
    cluster.network.hold(three.address)
    await cluster.coordinator.delete(KEY)
    cluster.network.cut(three.address)
    assert held(cluster) == [None, None, b"v"]
    await cluster.kill(one)
    cluster.network.mend(three.address)
    cluster.network.release(three.address)
    await cluster.restart_master()
    assert await cluster.coordinator.get(KEY) is None
    assert await outcome(cluster.coordinator.put(KEY, b"w", expect=Expect.one_of([stamp]))) == "precondition_failed"


# --- waiting, and bounds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
async def test_a_master_that_starts_before_its_workers_answers_late_rather_than_wrongly(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, mode)
    await cluster.coordinator.put(KEY, b"1")
    await trio.sleep(10)  # an async write's background copies arrive, by the sweep if need be
    await cluster.stop_master()
    for node in cluster.workers:
        await cluster.kill(node)
    await cluster.start_master()
    values: list[bytes | None] = []

    async def read() -> None:
        values.append(await value_of(cluster))

    async with trio.open_nursery() as inner:
        inner.start_soon(read)
        inner.start_soon(cluster.coordinator.put, b"another", b"2")
        await trio.sleep(0.5)
        assert values == []
        for node in cluster.workers:
            await cluster.restart(node)
    assert values == [b"1"]


async def test_writes_in_doubt_are_bounded_in_bytes_over_all_partitions(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, "quorum")
    coordinator = cluster.coordinator
    state = coordinator.partitions[partition_of(KEY)]
    huge = Record(state.next_version(), Version(1, 1), bytes(PENDING_BYTES_MAX))
    state.note_sent(b"in doubt", huge)
    coordinator.changed.notify()  # whatever changes meanwhile, what is in doubt still weighs
    assert await outcome(coordinator.put(b"another", b"v")) == "overloaded"
    assert await outcome(coordinator.get(b"another")) == "committed"
    state.note_committed(b"in doubt", huge)
    assert await outcome(coordinator.put(b"another", b"v")) == "committed"


async def test_too_many_keys_in_doubt_are_refused(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await start(nursery, "quorum")
    state = cluster.coordinator.partitions[partition_of(KEY)]
    version = state.next_version()
    for number in range(PENDING_MAX):
        state.note_sent(b"in doubt %d" % number, Record(version, version, b""))
    assert await outcome(cluster.coordinator.put(KEY, b"v")) == "overloaded"
    assert await outcome(cluster.coordinator.get(KEY)) == "committed"
    state.note_committed(b"in doubt 0", Record(version, version, b""))
    assert await outcome(cluster.coordinator.put(KEY, b"v")) == "committed"


async def test_too_many_operations_at_once_are_refused(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await start(nursery, "sync")
    for node in cluster.workers:
        cluster.network.hold(node.address)
    results: list[str] = []

    async def read() -> None:
        results.append(await outcome(cluster.coordinator.get(KEY)))

    async with trio.open_nursery() as inner:
        for _ in range(IN_FLIGHT_MAX):
            inner.start_soon(read)
        await trio.sleep(0.1)
        assert results == []
        assert await outcome(cluster.coordinator.get(KEY)) == "overloaded"
        for node in cluster.workers:
            cluster.network.release(node.address)
    assert results == ["committed"] * IN_FLIGHT_MAX


@pytest.mark.parametrize("mode", MODES)
async def test_a_full_worker_takes_no_new_key_and_every_old_one(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, mode, max_keys=2)
    coordinator = cluster.coordinator
    await coordinator.put(b"a", b"1")
    await coordinator.put(b"b", b"1")
    await cluster.until(lambda: all(w.vitals and w.vitals.full for w in cluster.master.membership.watched.values()))
    with pytest.raises(Refused, match="holds as many keys as it may") as refused:
        await coordinator.put(b"c", b"1")
    assert (refused.value.kind.code, refused.value.kind.http) == ("full", 507)
    assert held(cluster, b"c") == [None] * 3
    assert coordinator.pending == 0
    await coordinator.put(b"a", b"2")
    await coordinator.delete(b"a")
    await coordinator.delete(b"c")
    assert await outcome(coordinator.put(b"a", b"3")) == "full"  # a tombstone is no key
    await cluster.until(lambda: not any(w.vitals and w.vitals.full for w in cluster.master.membership.watched.values()))
    await coordinator.put(b"c", b"1")


async def test_the_first_store_ends_forming_durably_before_it_is_sent(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, "quorum")
    for node in cluster.workers:
        cluster.network.hold(node.address)
    document, _ = await cluster.store.read()
    assert document is not None
    assert document["stored"] is False
    assert await outcome(cluster.coordinator.put(KEY, b"v")) == "unknown"
    document, _ = await cluster.store.read()
    assert document is not None
    assert document["stored"] is True


# --- strategies are anybody's code --------------------------------------------------------------------------------


class Odd(Strategy):
    """Does what it is told to."""

    name = "odd"
    promise = Promise.CP
    gives_up = use_when = protocol = "Nothing, never, nohow."

    def __init__(self) -> None:
        self.before: BaseException | None = None
        self.after: BaseException | None = None
        self.answer: Any = None
        self.lists: BaseException | None = None

    def listing(self, replicas: ReplicaSet) -> ReplicaSet | None:
        if self.lists is not None:
            raise self.lists
        return None

    def copies(self, n: int) -> int:
        return n

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        if self.before:
            raise self.before
        await replicas.store(write)
        if self.after:
            raise self.after

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer  # type: ignore[no-any-return]  # that is what is odd about it


async def start_odd(nursery: trio.Nursery) -> tuple[InProcessCluster, Odd]:
    odd = Odd()
    return await start(nursery, "odd", strategies=[odd]), odd


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("bug"),
        Refused("unavailable", "says who?"),
        ExceptionGroup("both", [ValueError("bug")]),
        SystemExit(1),
        BaseExceptionGroup("both", [SystemExit(1), ValueError("bug")]),
    ],
)
async def test_a_strategy_that_raises_is_judged_by_what_was_sent(
    error: BaseException, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster, odd = await start_odd(nursery)
    odd.before = error
    assert await outcome(cluster.coordinator.put(KEY, b"1")) == "unavailable"
    assert (held(cluster), cluster.coordinator.pending) == ([None] * 3, 0)
    odd.before, odd.after = None, error
    assert await outcome(cluster.coordinator.put(KEY, b"2")) == "unknown"
    assert (held(cluster), cluster.coordinator.pending) == ([b"2"] * 3, 1)


async def test_a_write_whose_need_cannot_be_met_is_refused_before_anything_is_sent(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, "head-last", strategies=[HeadLast()])
    await cluster.coordinator.put(KEY, b"1")
    head, _, tail = cluster.replicas_of(KEY)
    await cluster.kill(tail)
    await cluster.until_down(tail)
    await cluster.coordinator.put(KEY, b"2")
    await cluster.restart(tail)
    await cluster.until_all_up()
    await cluster.kill(head)
    await cluster.until_down(head)
    with pytest.raises(Refused) as refused:
        await cluster.coordinator.put(KEY, b"3")
    assert "needs 2 of 3 replicas, the first replica among them, and " in refused.value.detail
    assert head.worker.id in refused.value.detail
    assert cluster.coordinator.pending == 0
    assert b"3" not in held(cluster)


@pytest.mark.parametrize(
    "answer",
    [RuntimeError("bug"), SystemExit(1), BaseExceptionGroup("one", [SystemExit(1)]), b"bytes", ("a", "tuple"), 7],
)
async def test_a_strategy_that_answers_junk_answers_nobody(
    answer: object, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster, odd = await start_odd(nursery)
    odd.answer = answer
    assert await outcome(cluster.coordinator.get(KEY)) == "unanswered"
    assert await outcome(cluster.coordinator.put(KEY, b"1", expect=Expect.absent())) == "unanswered"
    assert held(cluster) == [None] * 3


@pytest.mark.parametrize("error", [RuntimeError("bug"), SystemExit(1)])
async def test_a_strategy_that_fails_in_listing_fails_the_scan_alone(
    error: BaseException, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster, odd = await start_odd(nursery)
    odd.lists = error
    with pytest.raises(Refused, match="strategy odd failed: "):
        await cluster.coordinator.scan()
    odd.lists = None
    assert (await cluster.coordinator.scan()).items == []


# --- clients that go away -----------------------------------------------------------------------------------------


async def test_a_client_that_leaves_leaves_its_write_in_doubt(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await start(nursery, "sync")
    head = cluster.replicas_of(KEY)[0]
    cluster.network.hold(head.address)
    with trio.move_on_after(0.5):
        await cluster.coordinator.put(KEY, b"v")
    assert (cluster.coordinator.pending, cluster.coordinator.in_flight) == (1, 0)
    cluster.network.release(head.address)
    await cluster.until(lambda: cluster.coordinator.pending == 0)
    assert await value_of(cluster) == b"v"


async def leave_during(cluster: InProcessCluster, operation: Callable[[], Awaitable[object]]) -> None:
    with trio.move_on_after(0.5):
        await cluster.master.tasks.run_detached(operation)


async def test_a_detached_write_goes_on_without_its_client(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await start(nursery, "sync")
    head = cluster.replicas_of(KEY)[0]
    cluster.network.hold(head.address)
    await leave_during(cluster, lambda: cluster.coordinator.put(KEY, b"v"))
    assert cluster.coordinator.in_flight == 1
    cluster.network.release(head.address)
    await cluster.until(lambda: cluster.coordinator.in_flight == 0)
    assert cluster.coordinator.outcomes[Outcome.COMMITTED] == 1
    assert await value_of(cluster) == b"v"


async def test_a_detached_operation_answers_and_raises_as_it_would_here(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, "quorum")
    version = await cluster.master.tasks.run_detached(lambda: cluster.coordinator.put(KEY, b"v"))
    assert isinstance(version, Version)
    with pytest.raises(Refused, match="keys have 1 to"):
        await cluster.master.tasks.run_detached(lambda: cluster.coordinator.get(b""))


async def test_a_detached_write_is_unknown_when_the_master_stops_under_it(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, "sync")
    cluster.network.hold(cluster.replicas_of(KEY)[0].address)

    async def stop_soon() -> None:
        await trio.sleep(0.5)
        await cluster.stop_master()

    nursery.start_soon(stop_soon)
    with pytest.raises(Unknown, match="stopped while this was under way"):
        await cluster.master.tasks.run_detached(lambda: cluster.coordinator.put(KEY, b"v"))
    with pytest.raises(Refused, match="shutting down"):
        await cluster.master.tasks.run_detached(lambda: cluster.coordinator.put(KEY, b"v"))


async def test_many_large_values_at_once_are_committed_or_refused_and_small_ones_pass(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """More than the links' queues take, while the workers take nothing."""
    cluster = await start(nursery, "sync")
    await cluster.coordinator.put(KEY, b"v")
    large = bytes(VALUE_BYTES_MAX)
    outcomes: list[str] = []

    async def put(number: int) -> None:
        outcomes.append(await outcome(cluster.coordinator.put(b"large %d" % number, large, timeout_s=20)))

    for node in cluster.workers:
        cluster.network.hold(node.address)
    async with trio.open_nursery() as inner:
        for number in range(200):
            inner.start_soon(put, number)
        await trio.testing.wait_all_tasks_blocked()
        small: list[str] = []

        async def put_small() -> None:
            small.append(await outcome(cluster.coordinator.put(KEY, b"small", timeout_s=20)))

        inner.start_soon(put_small)
        await trio.sleep(0.1)
        for node in cluster.workers:
            cluster.network.release(node.address)
    assert small == ["committed"]
    assert set(outcomes) == {"committed", "overloaded"}
    assert outcomes.count("committed") == LARGE_BYTES_MAX // VALUE_BYTES_MAX
    assert await outcome(cluster.coordinator.put(b"large", large)) == "committed"


async def test_what_a_crowded_link_would_not_take_is_refused_before_anything_is_sent(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, "sync")
    await cluster.coordinator.put(KEY, b"v")
    last = cluster.coordinator.partitions[partition_of(KEY)].targets[-1]
    cluster.network.hold(last.address)
    link = cluster.master.membership.watched[last.member.worker].peer.link
    assert link is not None
    for _ in range(2):
        link.call(Op.HEARTBEAT, [], trio.current_time() + 5, lambda fault, payload: None, QUEUE_BYTES_MAX)
    assert await outcome(cluster.coordinator.put(KEY, b"w")) == "unavailable"
    cluster.network.release(last.address)


async def test_scans_wait_for_each_other_and_leave_room_for_puts(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, "quorum")
    await cluster.coordinator.put(KEY, b"v")
    for node in cluster.workers:
        cluster.network.hold(node.address)
    answered: list[str] = []

    async def scan() -> None:
        answered.append(await outcome(cluster.coordinator.scan(limit=100)))

    async with trio.open_nursery() as inner:
        for _ in range(20):
            inner.start_soon(scan)
        await trio.testing.wait_all_tasks_blocked()
        assert cluster.coordinator.scans_under_way == SCANS_MAX
        for node in cluster.workers:
            cluster.network.release(node.address)
    assert answered == ["committed"] * 20


class NotesItsCallers(Strategy):
    """Quorum, which writes down by which functions of trikv it was called."""

    name = "notes-its-callers"
    promise = Promise.CP

    def __init__(self) -> None:
        self.callers: list[str] = []

    def copies(self, n: int) -> int:
        return n // 2 + 1

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        frame = currentframe()
        while frame is not None and frame.f_globals["__name__"] in (__name__, "trikv.coordinator.coordinator"):
            self.callers.append(frame.f_code.co_name)
            frame = frame.f_back
        await replicas.store(write, need=replicas.majority)

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        return await replicas.agree(key, await replicas.fetch(key, need=replicas.majority))


async def test_a_put_crosses_four_frames_between_its_caller_and_the_strategy(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """The path of a put is read in one sitting, and each frame is paid for by every put."""
    strategy = NotesItsCallers()
    cluster = await InProcessCluster.start(nursery, mode=strategy.name, strategies=[strategy])

    async def handler() -> None:
        await cluster.coordinator.put(KEY, b"v")

    await handler()
    between = strategy.callers[1 : strategy.callers.index("handler")]
    assert len(between) <= 4, between
