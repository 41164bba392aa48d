"""CRAQ: it keeps its promise, every replica answers, and without the mark of what is committed it would be broken."""

from functools import partial

import pytest
import trio
from trio.testing import MockClock

from trikv.api import Record, ReplicaSet, Write, newest
from trikv.core.errors import Refused
from trikv.testing.inprocess import InProcessCluster, Node
from trikv.testing.sim import CHANGING, Plan, Verdict, simulate
from trikv_craq import Craq

SEEDS = range(2)  # the certificate plays many more
SEEDS_TO_FIND = range(40)
KEY = b"key"


@pytest.mark.parametrize("plan", [Plan(), CHANGING], ids=["usual", "changing"])
def test_the_promise_is_kept(plan: Plan) -> None:
    for seed in SEEDS:
        run = simulate(Craq(), seed, plan)
        assert run.verdict is Verdict.HELD, (seed, run.findings)


class Unmarked(Craq):
    """Returns what any replica holds, clean or dirty."""

    name = "unmarked"

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        return newest(await replicas.rotate().fetch(key, need=1))


def test_without_the_mark_it_would_be_broken() -> None:
    verdicts = (simulate(Unmarked(), seed).verdict for seed in SEEDS_TO_FIND)
    assert Verdict.VIOLATION in verdicts


# --- one key, and three replicas --------------------------------------------------------------------------------------


@pytest.fixture
async def cluster(nursery: trio.Nursery, autojump_clock: MockClock) -> InProcessCluster:
    return await InProcessCluster.start(nursery, mode="craq", strategies=[Craq()])


async def calls_of(cluster: InProcessCluster, operations: int) -> list[int]:
    """The calls that each replica gets while the key is read so often, at one moment."""
    members = [node.worker.id for node in cluster.replicas_of(KEY)]
    before = cluster.master.membership.calls()
    for _ in range(operations):
        await cluster.coordinator.get(KEY)
    after = cluster.master.membership.calls()
    return [after[member] - before[member] for member in members]


async def test_a_clean_key_is_read_from_every_replica_in_turn(
    cluster: InProcessCluster, autojump_clock: MockClock
) -> None:
    await cluster.coordinator.put(KEY, b"v")
    assert await calls_of(cluster, 9) == [3, 3, 3]


async def test_a_dirty_key_is_answered_by_nobody_but_the_tail(
    cluster: InProcessCluster, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """A write whose last hop is late: the head and the middle have it, and no read may return it."""
    await cluster.coordinator.put(KEY, b"old")
    *others, tail = cluster.replicas_of(KEY)
    cluster.network.hold(tail.address)
    nursery.start_soon(partial(cluster.coordinator.put, KEY, b"new", timeout_s=5.0))
    await cluster.until(lambda: [value_on(cluster, node) for node in others] == [b"new", b"new"])
    for _ in range(3):
        with pytest.raises(Refused):
            await cluster.coordinator.get(KEY, timeout_s=0.5)
    assert value_on(cluster, tail) == b"old"
    cluster.network.release(tail.address)
    await cluster.until(lambda: not cluster.coordinator.pending)
    assert await values_read(cluster, 3) == [b"new"] * 3


async def test_what_a_dead_master_left_on_the_head_alone_is_returned_by_no_read(
    cluster: InProcessCluster, autojump_clock: MockClock
) -> None:
    """The next master does not know of the write. It asks the tail, until the replicas have been compared."""
    await cluster.coordinator.put(KEY, b"old")
    state = cluster.coordinator.partitions[cluster.partition_of(KEY)]
    version = state.next_version()
    left = Write(KEY, Record(version, version, b"left"))
    await state.request(trio.current_time() + 1).replicas.head.store(left)
    await cluster.restart_master()
    await cluster.until_all_up()
    assert await values_read(cluster, 3) == [b"old"] * 3
    await trio.sleep(10)  # comparing finds it, and writes it anew, to all
    assert await values_read(cluster, 3) == [b"left"] * 3
    assert await calls_of(cluster, 9) == [3, 3, 3]


async def values_read(cluster: InProcessCluster, times: int) -> list[bytes | None]:
    records = [await cluster.coordinator.get(KEY) for _ in range(times)]
    return [None if record is None else record.value for record in records]


def value_on(cluster: InProcessCluster, node: Node) -> bytes | None:
    record = node.storage.get(cluster.partition_of(KEY), KEY)
    return None if record is None else record.value
