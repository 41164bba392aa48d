"""Members asked for their partitions in brief, in a cluster."""

from __future__ import annotations

import trio
import trio.testing
from trio.testing import MockClock

from tests.helpers import partition_of
from trikv.coordinator.partition import PartitionState
from trikv.coordinator.replicas import Target
from trikv.core.calls import Op
from trikv.core.configuration import Member
from trikv.core.digest import Summary
from trikv.core.record import make_epoch
from trikv.healing.digests import ask_digests
from trikv.net.link import dial
from trikv.testing.inprocess import PARTITIONS, InProcessCluster

KEYS = [b"k%d" % number for number in range(40)]


async def ask(cluster: InProcessCluster, *, timeout_s: float = 1.0) -> dict[int, dict[Member, Summary]]:
    plan: dict[Target, list[PartitionState]] = {}
    for state in cluster.coordinator.partitions:
        for target in state.targets:
            plan.setdefault(target, []).append(state)
    return await ask_digests(plan, trio.current_time() + timeout_s)


async def test_members_that_hold_the_same_say_the_same(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery, mode="sync", workers=5)
    for key in KEYS:
        await cluster.coordinator.put(key, b"value")
    await cluster.coordinator.delete(KEYS[0])
    answers = await ask(cluster)
    assert len(answers) == PARTITIONS
    for state in cluster.coordinator.partitions:
        assert set(answers[state.index]) == set(state.configuration.members)
        [summary] = set(answers[state.index].values())
        keys = [key for key in KEYS if partition_of(key) == state.index]
        assert (summary.rows, summary.tombstones) == (len(keys), int(KEYS[0] in keys))


async def test_a_member_that_is_silent_or_gone_is_left_out(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery, mode="quorum", workers=4, replicas=4)
    await cluster.kill(cluster.workers[0])
    await cluster.until_down(cluster.workers[0])
    cluster.network.hold(cluster.workers[1].address)
    answers = await ask(cluster)
    heard = {member.worker for by_member in answers.values() for member in by_member}
    assert heard == {"w-3", "w-4"}
    assert len(answers) == PARTITIONS


async def test_a_member_that_has_promised_more_is_left_out_and_that_is_told(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="quorum")
    node, state = cluster.workers[0], cluster.coordinator.partitions[5]
    link = await dial(await cluster.network.connect(node.address), cluster.master.hello())
    nursery.start_soon(link.run)
    later = make_epoch(cluster.master.cluster.term, state.partition.generation + 1)
    arguments = [state.index, later, node.worker.incarnation, b"k"]
    link.call(Op.FETCH, arguments, trio.current_time() + 1, lambda fault, payload: None)
    await trio.testing.wait_all_tasks_blocked()
    answers = await ask(cluster)
    assert {member.worker for member in answers[5]} == {"w-2", "w-3"}
    assert len(answers[6]) == 3
    assert "promised generation" in state.blocked_because
