"""Several members asked at once: whose answer is told, and how long one waits."""

from __future__ import annotations

from typing import Any

import trio
from trio.testing import MockClock

from trikv.coordinator.ask import Question, ask_all
from trikv.core.calls import Op
from trikv.core.errors import Fault
from trikv.testing.inprocess import InProcessCluster

DEADLINE_S = 2.0


async def ask(cluster: InProcessCluster, heard: dict[int, int]) -> float:
    """Ask all replicas of one partition for a sign of life; what became of each goes to `heard`. How long it took."""
    began_s = trio.current_time()
    questions = [Question(target, []) for target in cluster.coordinator.partitions[0].targets]

    def note(number: int, fault: int, payload: list[Any]) -> None:
        heard[number] = fault

    await ask_all(Op.HEARTBEAT, questions, began_s + DEADLINE_S, note)
    return trio.current_time() - began_s


async def test_it_ends_with_the_last_answer(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery)
    heard: dict[int, int] = {}
    assert await ask(cluster, heard) < DEADLINE_S
    assert heard == dict.fromkeys(range(3), Fault.OK)


async def test_a_silent_one_is_waited_for_until_the_deadline_and_told_of_when_its_call_ends(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery)
    silent = cluster.node_of(cluster.coordinator.partitions[0].targets[1].member.worker)
    cluster.network.hold(silent.address)
    heard: dict[int, int] = {}
    assert await ask(cluster, heard) == DEADLINE_S
    assert heard == {0: Fault.OK, 2: Fault.OK}
    await cluster.until(lambda: 1 in heard)
    assert heard[1] == Fault.LATE


async def test_one_to_which_nothing_can_be_sent_holds_nobody_up(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery)
    gone = cluster.node_of(cluster.coordinator.partitions[0].targets[0].member.worker)
    await cluster.kill(gone)
    await cluster.until_down(gone)
    heard: dict[int, int] = {}
    assert await ask(cluster, heard) < DEADLINE_S
    assert heard == {0: Fault.NOT_SENT, 1: Fault.OK, 2: Fault.OK}


async def test_where_nobody_is_asked_nothing_is_waited_for(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    began_s = trio.current_time()
    await ask_all(Op.HEARTBEAT, [], began_s + DEADLINE_S, lambda number, fault, payload: None)
    assert trio.current_time() == began_s
