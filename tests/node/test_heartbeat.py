"""Who is up, over time: heartbeats on virtual time, with real workers behind them."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from trikv.core.suspicion import SUSPECT_AFTER_S, State
from trikv.testing.inprocess import InProcessCluster


async def test_an_idle_worker_is_heard_well_before_it_would_be_suspect(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery)
    await cluster.until_all_up()
    oldest_s = 0.0
    for _ in range(600):
        for node in cluster.workers:  # a network that takes its time: an answer is never heard at once
            cluster.network.hold(node.address)
        await trio.sleep(0.04)
        for node in cluster.workers:
            cluster.network.release(node.address)
        await trio.sleep(0.01)
        for watched in cluster.master.watched.values():
            assert watched.state is State.UP
            assert watched.last_heard_s is not None
            oldest_s = max(oldest_s, watched.last_heard_s)
    assert oldest_s < SUSPECT_AFTER_S / 2


async def test_a_silent_worker_is_suspect_then_down_and_up_again_when_it_is_heard(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery)
    await cluster.until_all_up()
    node = cluster.workers[0]
    watched = cluster.master.watched[node.worker.id]

    def state() -> State:
        return watched.state

    cluster.network.hold(node.address)
    await trio.sleep(2.5)
    assert state() is State.SUSPECT
    await trio.sleep(4)
    assert state() is State.DOWN
    cluster.network.release(node.address)
    await cluster.until(lambda: state() is State.UP)
    assert watched.peer.link is not None
