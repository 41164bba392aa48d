"""Who is up, over time: heartbeats on virtual time, with real workers behind them."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trikv.core.calls import Full
from trikv.core.errors import TrikvError
from trikv.core.quorums import Availability
from trikv.core.suspicion import STEADY_AFTER_S, SUSPECT_FLOOR_S, WorkerState
from trikv.master.membership import Replica, WatchedWorker, beat_forever
from trikv.testing.inprocess import InProcessCluster, Node

GRACE_S = 4.0


@dataclass
class Watch:
    """The first worker of a cluster, watched by nobody but the test."""

    cluster: InProcessCluster
    node: Node
    watched: WatchedWorker = field(init=False)
    states: list[tuple[WorkerState, WorkerState]] = field(default_factory=list)
    looks: list[tuple[Availability, bool, bool]] = field(default_factory=list)  # at each on_change

    @classmethod
    async def start(cls, nursery: trio.Nursery) -> Watch:
        cluster = await InProcessCluster.start(nursery)
        await cluster.until_all_up()
        watch = cls(cluster, cluster.workers[0])
        master = cluster.master
        watched = watch.watched = WatchedWorker(
            master.cluster.workers[watch.node.worker.id],
            master.hello,
            cluster.doors,
            lambda: watch.looks.append((watched.availability, watched.evictable, watched.steady)),
            on_rival=lambda term, taken: None,
            grace_s=GRACE_S,
            on_state=lambda old, new: watch.states.append((old, new)),
        )
        nursery.start_soon(watched.peer.run)
        nursery.start_soon(beat_forever, {watch.node.worker.id: watched})
        await cluster.until(lambda: watched.availability is Availability.UP)
        return watch


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
        for watched in cluster.master.membership.watched.values():
            assert watched.state is WorkerState.UP
            assert watched.last_heard_s is not None
            oldest_s = max(oldest_s, watched.last_heard_s)
    assert oldest_s < 0.7 * SUSPECT_FLOOR_S


async def test_a_silent_worker_is_suspect_then_down_and_up_again_when_it_is_heard(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery)
    await cluster.until_all_up()
    node = cluster.workers[0]
    watched = cluster.master.membership.watched[node.worker.id]

    def state() -> WorkerState:
        return watched.state

    cluster.network.hold(node.address)
    await trio.sleep(2.5)
    assert state() is WorkerState.SUSPECT
    await trio.sleep(4)
    assert state() is WorkerState.DOWN
    cluster.network.release(node.address)
    await cluster.until(lambda: state() is WorkerState.UP)
    assert watched.peer.link is not None


async def test_each_change_of_state_is_told_and_whatever_the_planner_waits_for(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    watch = await Watch.start(nursery)
    watched, cluster = watch.watched, watch.cluster
    await cluster.until(lambda: watched.steady)
    assert watch.looks[-1] == (Availability.UP, False, True)
    cluster.network.hold(watch.node.address)
    await trio.sleep(2 * GRACE_S)
    assert watched.evictable
    assert watch.looks[-1] == (Availability.DOWN, True, False)
    cluster.network.release(watch.node.address)
    await cluster.until(lambda: watched.steady)
    assert watch.looks[-1] == (Availability.UP, False, True)
    assert watch.states == [
        (WorkerState.UNKNOWN, WorkerState.UP),
        (WorkerState.UP, WorkerState.SUSPECT),
        (WorkerState.SUSPECT, WorkerState.DOWN),
        (WorkerState.DOWN, WorkerState.UP),
    ]


async def test_one_that_is_dead_and_one_that_is_stopped_are_told_apart(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    watch = await Watch.start(nursery)
    watched, cluster = watch.watched, watch.cluster
    assert watched.why == ""
    cluster.network.hold(watch.node.address)
    await trio.sleep(3)
    assert "connection is open" in watched.why
    assert "stopped" in watched.why
    cluster.network.release(watch.node.address)
    await cluster.until(lambda: watched.availability is Availability.UP)
    await cluster.kill(watch.node)
    await cluster.until(lambda: watched.availability is Availability.DOWN)
    assert "nobody listens" in watched.why


async def test_a_worker_that_is_restarted_in_time_is_never_evictable(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    watch = await Watch.start(nursery)
    watched, cluster = watch.watched, watch.cluster
    await cluster.kill(watch.node)
    await cluster.until(lambda: watched.availability is Availability.DOWN)
    await trio.sleep(GRACE_S - 2)
    await cluster.restart(watch.node)
    await cluster.until(lambda: watched.steady)
    assert not any(evictable for _, evictable, _ in watch.looks)


async def test_one_that_was_evicted_waits_longer_for_data(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    watch = await Watch.start(nursery)
    watched, cluster = watch.watched, watch.cluster
    await cluster.kill(watch.node)
    await cluster.until(lambda: watched.evictable)
    for _ in range(4):
        watched.note_evicted()
    await cluster.restart(watch.node)
    await cluster.until(lambda: watched.availability is Availability.UP)
    await trio.sleep(8 * STEADY_AFTER_S)
    assert not watched.steady
    await trio.sleep(9 * STEADY_AFTER_S)
    assert watched.steady


async def test_when_the_master_itself_was_stopped_nobody_is_to_blame(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    watch = await Watch.start(nursery)
    watched, cluster = watch.watched, watch.cluster
    await cluster.until(lambda: watched.steady)
    watch.states.clear()
    watch.looks.clear()
    for offset_s in (0.0, 0.1, 0.2, 0.3, 0.4):  # whatever it was about to do, and whichever callback comes first
        await trio.sleep(5 + offset_s)
        autojump_clock.jump(600)
        assert not watched.evictable
        assert watched.state is WorkerState.UP
    await trio.sleep(5)
    assert watch.states == []
    assert all(look == (Availability.UP, False, True) for look in watch.looks)
    cluster.network.hold(watch.node.address)
    await trio.sleep(1)
    autojump_clock.jump(600)
    await trio.sleep(0.6 * GRACE_S - 1)
    assert not watched.evictable  # the silence before counts, and the one after, and nothing in between
    await trio.sleep(0.6 * GRACE_S)
    assert watched.evictable


async def test_a_worker_that_is_heard_again_as_it_is_evicted_is_told_of(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, workers=4, down_after_s=5.0)
    watched = cluster.master.membership.watched[cluster.workers[0].worker.id]
    cluster.network.hold(cluster.workers[0].address)
    await cluster.until(lambda: watched.evictable)
    assert watched.peer.link is not None
    watched.peer.link.last_heard_s = trio.current_time()  # an answer that is not a heartbeat's
    before = cluster.coordinator.changed.count
    watched.note_evicted()
    assert watched.availability is Availability.UP
    assert cluster.coordinator.changed.count > before


# --- what replicas say ------------------------------------------------------------------------------------------------


class Looker(trio.abc.Instrument):
    """Looks at all replicas whenever a task has run, and whenever the master hears of a change: does each say what is
    known of its worker at that moment? Those of states that were replaced are looked at as well."""

    def __init__(self, cluster: InProcessCluster) -> None:
        self.cluster = cluster
        self.replicas: dict[int, Replica] = {}  # all that there ever were, by identity
        self.looks = 0
        self.wrong: list[str] = []
        self.master = cluster.master
        self.attend()

    def attend(self) -> None:
        """Look also whenever this master hears of a change."""
        self.master = self.cluster.master
        self.replicas.clear()
        membership = self.master.membership
        membership._on_change = self._before(membership._on_change)
        membership.on_up = self._before(membership.on_up)
        membership.on_otherwise = self._before(membership.on_otherwise)

    def _before(self, hear: Callable[..., None]) -> Callable[..., None]:
        def look_and_hear(*arguments: Any) -> None:
            self.look()
            hear(*arguments)

        return look_and_hear

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.look()

    def look(self) -> None:
        for replica in self.master.membership._targets.values():
            self.replicas[id(replica)] = replica
        for replica in self.replicas.values():
            self.looks += 1
            said = (replica.address, replica.availability, replica.evictable, replica.full, replica._link)
            known = self._known(replica)
            if said != known:
                self.wrong.append(f"{replica.member}: says {said}, known is {known}")

    def _known(self, replica: Replica) -> tuple[object, ...]:
        watched = self.master.membership.watched.get(replica.member.worker)
        if watched is None:
            return "", Availability.DOWN, True, Full.NO, None
        link = watched.peer.link
        life = watched.enlisted.incarnation
        lives = life == replica.member.incarnation and (link is None or link.peer.incarnation == life)
        return (
            watched.enlisted.address,
            watched.availability if lives else Availability.DOWN,
            watched.evictable if lives else True,
            Full.NO if watched.vitals is None else watched.vitals.full,
            link if watched.acknowledged else None,
        )


@pytest.mark.parametrize("seed", range(4))
async def test_a_replica_says_at_every_moment_what_is_known_of_its_worker(
    nursery: trio.Nursery, autojump_clock: MockClock, seed: int
) -> None:
    """Workers that die, come back with or without their data, at another address, are silent, cut off, drained,
    removed, enlisted again, or full; a master that starts again; and clients all the while."""
    dice = random.Random(seed)
    cluster = await InProcessCluster.start(nursery, workers=4, down_after_s=3.0, partitions=16, max_keys=60)
    looker = Looker(cluster)
    trio.lowlevel.add_instrument(looker)

    async def write(number: int) -> None:
        with suppress(TrikvError):
            await cluster.coordinator.put(b"%d" % number, b"v", timeout_s=1.0)

    async def move(node: Node) -> None:
        await cluster.kill(node)
        cluster.workers.remove(node)
        await cluster.add_worker(storage=node.storage, worker_id=node.worker.id, max_keys=node.max_keys)

    async def disturb(node: Node) -> None:
        operations, worker = cluster.master.operations, node.worker.id
        match dice.randrange(9):
            case 0:
                await cluster.kill(node)
            case 1:
                await cluster.restart(node, wiped=dice.random() < 0.5)
            case 2:
                cluster.network.hold(node.address)
            case 3:
                cluster.network.cut(node.address)
            case 4:
                await move(node)
            case 5:
                await operations.drain(worker)
            case 6:
                await operations.undrain(worker)
            case 7:
                await operations.remove(worker)
            case 8:
                await cluster.restart_master()
                looker.attend()

    try:
        for step in range(40):
            node = dice.choice(cluster.workers)
            with suppress(TrikvError), trio.move_on_after(5.0):
                await disturb(node)
            for number in range(5):
                nursery.start_soon(write, 5 * step + number)
            await trio.sleep(dice.choice((0.0, 0.1, 1.0, 5.0)))
            if dice.random() < 0.7:
                cluster.network.mend(node.address)
                cluster.network.release(node.address)
    finally:
        trio.lowlevel.remove_instrument(looker)
    assert not looker.wrong, f"seed {seed}: {looker.wrong[:3]}"
    assert looker.looks > 1000
