"""Settling: which partitions come next, what is moved and how, at which rate, and when former members discard it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from tests.helpers import (
    KEYS,
    MANY,
    Around,
    configuration_of,
    fill,
    later,
    lay_down,
    partition_of,
    slow_down,
    start_on_slow_disks,
    under,
)
from tests.sim.driven import INDEX, driven
from trikv.coordinator.coordinator import Coordinator
from trikv.coordinator.partition import PartitionState
from trikv.core.configuration import Partition
from trikv.core.quorums import Availability
from trikv.core.record import Record, Version, make_epoch
from trikv.healing.hung import Hung
from trikv.healing.settle import AGAIN_S, PARTITIONS_TOGETHER, Settling, find_lacking
from trikv.testing.inprocess import InProcessCluster, Node

KEY = b"key"
P1 = Partition(4, (configuration_of("abc"),))


def record(seq: int) -> Record:
    version = Version(make_epoch(3, 4), seq)
    return Record(version, version, b"v")


async def nothing() -> None:
    pass


class Alone:
    """Settling without a cluster: what it would do with these states, and what it told."""

    def __init__(self, *states: PartitionState, rate_bytes: float = 1_000.0) -> None:
        self.coordinator = Coordinator(timeout_s=2.0, before_first_store=nothing)
        self.coordinator.partitions = list(states)
        self.hung = Hung()
        self.unheard: list[str] = []
        self.settling = Settling(
            self.coordinator,
            self.hung,
            note_settled=self._note_settled,
            note=lambda kind, **fields: None,
            note_unheard=self.unheard.append,
            rate_bytes=rate_bytes,
        )

    async def _note_settled(self, states: Sequence[PartitionState]) -> None:
        for state in states:
            state.settle(state.partition.as_settled())

    def next(self) -> list[int]:
        return [state.index for state in self.settling._next_group()]


# --- what a key needs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modes", "names", "asked", "held", "lacking"),
    [
        pytest.param("quorum", "abc bcd", "abcd", "a1 b1 c1", "d", id="all agree but the newcomer, which has nothing"),
        pytest.param("quorum", "abc bcd", "bcd", "b1 c1", "d", id="one is silent, as any write may lack one"),
        pytest.param("quorum", "abc bcd", "abcd", "a1 b1 c1 d1", "", id="the newcomer has it already"),
        pytest.param("quorum", "abc cba", "abc", "a1 b1 c1", "", id="there is no newcomer"),
        pytest.param("quorum", "abc bcd", "abcd", "b1 c1", None, id="one that was heard lacks it"),
        pytest.param("quorum", "abc bcd", "abcd", "a1 b2 c1", None, id="two versions"),
        pytest.param("quorum", "abc bcd", "abcd", "a1 b1 c1 d2", None, id="the newcomer has another version"),
        pytest.param("quorum", "abc bcd", "abcd", "d1", None, id="the newcomer alone has it"),
        pytest.param("quorum", "abc bcd", "abc", "a1 b1 c1", None, id="the newcomer was not heard"),
        pytest.param("quorum", "abc cde", "cde", "c1", None, id="two are silent"),
        pytest.param("sync", "abc bcd", "bcd", "b1 c1", "d", id="sync: all have what the silent one has"),
        pytest.param("async", "abc cde", "cde", "c1", "de", id="async: any member's copy was a commit"),
    ],
)
def test_a_key_is_copied_to_newcomers_or_must_be_repaired(
    modes: str, names: str, asked: str, held: str, lacking: str | None
) -> None:
    around = Around()
    former, active = names.split()
    state = around.state(Partition(4, (configuration_of(former, modes),)).changed_to(configuration_of(active, modes)))
    holds = {each[0]: record(int(each[1:])) for each in held.split()}
    found = find_lacking(state, holds, [around.replica(name) for name in asked])
    assert (None if found is None else "".join(target.member.worker for target in found)) == lacking


# --- which partitions come next ---------------------------------------------------------------------------------------


async def test_next_are_partitions_that_are_unsettled_served_and_can_be_heard(autojump_clock: MockClock) -> None:
    around = Around()
    unsettled = P1.changed_to(configuration_of("bcd"))
    states = [
        around.state(P1, index=0),  # settled
        around.state(unsettled, index=1),
        around.state(unsettled, index=2),  # blocked
        around.state(unsettled, index=3, made_here=True),  # closed
        around.state(P1.changed_to(configuration_of("xyz")), index=4),  # of its active configuration one is up
        around.state(unsettled, index=5, made_here=True),
    ]
    states[2].block(make_epoch(3, 9), "older")
    states[3].close()
    for name in "xy":
        around.replica(name).availability = Availability.DOWN
    alone = Alone(*states)
    assert alone.next() == [1, 5]
    around.replica("x").availability = Availability.UP
    assert alone.next() == [1, 4, 5]


async def test_a_partition_whose_members_disks_hang_waits_for_them(autojump_clock: MockClock) -> None:
    around = Around()
    alone = Alone(around.state(P1.changed_to(configuration_of("bcd")), index=0))
    alone.hung.note(around.replica("b"))
    assert alone.next() == [0]
    alone.hung.note(around.replica("c"))
    assert alone.next() == []


async def test_those_that_have_waited_longest_come_first_and_none_twice_in_a_moment(autojump_clock: MockClock) -> None:
    around = Around()
    unsettled = P1.changed_to(configuration_of("bcd"))
    alone = Alone(*(around.state(unsettled, index=index) for index in range(4)))
    await trio.sleep(10)
    now = trio.current_time()
    alone.settling._tried_s = {0: now - 2 * AGAIN_S, 1: now - 3 * AGAIN_S, 3: now - 0.1}
    assert alone.next() == [2, 1, 0]
    await trio.sleep(AGAIN_S)
    assert alone.next() == [2, 1, 0, 3]


async def test_so_many_are_taken_together_and_the_others_after_them(autojump_clock: MockClock) -> None:
    around = Around()
    unsettled = P1.changed_to(configuration_of("bcd"))
    alone = Alone(*(around.state(unsettled, index=index) for index in range(PARTITIONS_TOGETHER + 3)))
    assert alone.next() == list(range(PARTITIONS_TOGETHER))
    alone.settling._tried_s = dict.fromkeys(alone.next(), trio.current_time())
    assert alone.next() == [PARTITIONS_TOGETHER + n for n in range(3)]


# --- how fast ---------------------------------------------------------------------------------------------------------


async def test_the_time_that_is_left_follows_from_the_pace_so_far(autojump_clock: MockClock) -> None:
    settling = Alone().settling
    settling.progress.partitions = 100  # of an earlier stretch of work
    assert settling.seconds_left(0) == 0.0
    assert settling.seconds_left(7) is None
    settling._began = (trio.current_time(), replace(settling.progress))
    await trio.sleep(5)
    assert settling.seconds_left(7) is None, "nothing is done yet"
    settling.progress.partitions += 10
    assert settling.seconds_left(20) == pytest.approx(10.0)
    assert settling.seconds_left(0) == 0.0


async def test_what_is_moved_is_paid_for_in_time_and_idle_time_is_no_credit(autojump_clock: MockClock) -> None:
    settling = Alone(rate_bytes=1_000.0).settling

    async def takes(size_bytes: int) -> float:
        began_s = trio.current_time()
        await settling._throttle(size_bytes)
        return trio.current_time() - began_s

    assert await takes(2_000) == pytest.approx(2.0)
    assert await takes(50) == 0.0, "a short debt is not worth a sleep"
    assert await takes(950) == pytest.approx(1.0), "but it is kept"
    await trio.sleep(60)
    assert await takes(500) == pytest.approx(0.5)
    settling.rate_bytes = 10_000.0
    assert await takes(5_000) == pytest.approx(0.5)


async def test_what_is_moved_in_a_second_keeps_to_the_rate(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery, workers=4, settle_rate_bytes=20_000, partitions=MANY)
    await fill(cluster, b"v" * 20_000)
    await cluster.kill(cluster.workers[0])
    await cluster.until(lambda: cluster.master.operations.progress()["settling"])
    await trio.sleep(30)
    assert 15_000 < cluster.master.settling.progress.bytes_moved / 30 < 25_000
    assert cluster.master.operations.progress()["settling"]


# --- on a cluster -----------------------------------------------------------------------------------------------------


async def test_what_newcomers_lack_is_copied_what_members_disagree_on_is_written_anew_and_the_rest_is_left(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async with driven(nursery, "quorum") as drive:
        cluster, progress = drive.cluster, drive.cluster.master.settling.progress
        await drive.write(b"v")
        await trio.sleep(1)
        one, two, three = drive.replicas
        copied = one.storage.get(INDEX, KEY)
        await drive.change([two, three, drive.spares[0]], "quorum")
        await cluster.until(lambda: drive.state.partition.settled)
        assert (progress.keys_moved, progress.keys_repaired) == (1, 0)
        assert progress.bytes_moved > len(KEY) + len(b"v")
        assert drive.spares[0].storage.get(INDEX, KEY) == copied
        await cluster.until(lambda: one.storage.get(INDEX, KEY) is None)  # it is no member any more

        await drive.change([three, two, drive.spares[0]], "chain")  # all hold the same: nothing is to be moved
        await cluster.until(lambda: drive.state.partition.settled)
        assert (progress.keys_moved, progress.keys_repaired) == (1, 0)

        newer = Version(drive.state.epoch, 1 << 40)
        await lay_down(cluster, nursery, two, KEY, newer, b"w")
        await drive.change([two, three, one], "quorum")
        await cluster.until(lambda: drive.state.partition.settled)
        assert (progress.keys_moved, progress.keys_repaired) == (1, 1)
        records = {node.storage.get(INDEX, KEY) for node in (one, two, three)}
        assert {record and (record.value, record.stamp) for record in records} == {(b"w", newer)}
        assert all(record is not None and record.version > newer for record in records)
        kinds = [event["kind"] for event in cluster.master.events.latest(50)]
        assert kinds.count("partition_settled") == 3
        assert kinds.count("settled") >= 1


async def test_a_former_member_that_was_not_heard_is_told_of(autojump_clock: MockClock) -> None:
    """It holds what it should discard, and may be up again by now."""
    around = Around()
    state = around.state(Partition(4, (configuration_of("abc", "async"),)).changed_to(configuration_of("bcd", "async")))
    alone = Alone(around.state(P1, index=0), *[state] * 5)
    await alone.settling._conclude([state], {state: [around.replica(name) for name in "bcd"]})
    assert state.partition.settled
    assert alone.settling.progress.partitions == 1
    assert alone.unheard == ["a"]
    assert alone.settling.could_not_ask.keys() == {"a"}


# --- under AP ---------------------------------------------------------------------------------------------------------


def is_settled_without(cluster: InProcessCluster, partition: int, node: Node) -> bool:
    state = cluster.coordinator.partitions[partition]
    return state.partition.settled and all(target.member.worker != node.worker.id for target in state.targets)


async def test_what_async_moves_is_on_all_new_replicas_before_the_former_ones_discard_it(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """A write is committed on one of them, and the others' disks are slow."""
    cluster = await start_on_slow_disks(nursery)
    await fill(cluster)
    drained, *others = cluster.workers
    mine = [key for key in KEYS if partition_of(key) in under(cluster, drained)]
    for key in mine:  # one replica has yet to get it, so it is written anew, not copied
        await lay_down(cluster, nursery, drained, key, later(cluster, key), b"v2")
    for node in others[1:]:
        slow_down(node, 0.3)
    await cluster.master.operations.drain(drained.worker.id)
    for key in mine:
        partition = partition_of(key)
        await cluster.until(partial(is_settled_without, cluster, partition, drained))
        held = [node.storage.get(partition, key) for node in cluster.replicas_of(key)]
        assert [record and record.value for record in held] == [b"v2"] * 3


async def test_what_async_moves_is_on_all_new_replicas_also_where_somebody_reads_it_meanwhile(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """A read has brought it to one of them, and asks no others from then on."""
    cluster = await start_on_slow_disks(nursery)
    await fill(cluster)
    drained, *others = cluster.workers
    mine = [key for key in KEYS if partition_of(key) in under(cluster, drained)]
    for key in mine:
        await lay_down(cluster, nursery, drained, key, later(cluster, key), b"v2")
    for node in others[1:]:
        slow_down(node, 0.3)

    async def read(key: bytes) -> None:
        state = cluster.coordinator.partitions[partition_of(key)]
        await cluster.until(lambda: cluster.coordinator.partitions[state.index] is not state)
        await cluster.coordinator.get(key, timeout_s=5)

    for key in mine:
        nursery.start_soon(read, key)
    await cluster.master.operations.drain(drained.worker.id)
    for key in mine:
        partition = partition_of(key)
        await cluster.until(partial(is_settled_without, cluster, partition, drained))
        held = [node.storage.get(partition, key) for node in cluster.replicas_of(key)]
        assert [record and record.value for record in held] == [b"v2"] * 3
