"""Recovering partitions that cannot go on by themselves: what is found, and what is given up only when told."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.helpers import (
    KEYS,
    VALUES,
    back_up,
    copies_of,
    fill,
    fill_apart,
    later,
    lay_down,
    partition_of,
    read_all,
    restore,
    shut,
    start_with_a_drained_one,
    under,
    values,
)
from trikv.core.errors import Refused
from trikv.core.quorums import Availability
from trikv.core.session import MasterId
from trikv.testing.inprocess import PARTITIONS, InProcessCluster


async def test_what_too_many_lost_disks_took_is_given_up_only_when_an_operator_says_so(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, workers=3)
    await fill_apart(cluster)
    await trio.sleep(1)  # the third copies arrive
    for node in cluster.workers[:2]:
        await cluster.restart(node, wiped=True)
    await trio.sleep(30)
    with pytest.raises(Refused):
        await cluster.coordinator.get(KEYS[0])
    told = await cluster.master.operations.recover(accept_loss=False)
    assert len(told["partitions"]) == PARTITIONS
    assert told["lost_members"] == sorted(node.worker.id for node in cluster.workers[:2])
    with pytest.raises(Refused):
        await cluster.coordinator.get(KEYS[0])
    await cluster.master.operations.recover(accept_loss=True)
    await cluster.until(lambda: all(len(p.active.members) == 3 for p in cluster.master.cluster.partitions))
    await cluster.until_settled()
    assert await read_all(cluster) == VALUES  # the third disk had it all
    assert all(copies_of(cluster, key) == 3 for key in KEYS)


async def test_recover_after_a_backup_finds_what_those_who_are_up_hold(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """All machines were replaced since the backup, the old ones are still running, and nobody is lost."""
    cluster = await InProcessCluster.start(nursery)
    await fill(cluster)
    backup = await back_up(cluster)
    old = list(cluster.workers)
    for _ in range(3):
        await cluster.add_worker()
    master = cluster.master
    for node in old:
        await cluster.until(lambda: all(health.steady for health in master.reconciler.health().values()))
        await cluster.until(lambda: master.operations.operation() is None)
        await master.operations.drain(node.worker.id)
        await cluster.until(
            lambda: (
                not any(master.cluster.partitions_of(w.member) for w in master.cluster.workers.values() if w.draining)
            )
        )
    await cluster.until_settled()
    assert await values(cluster) == {b"v"}
    await cluster.stop_master()
    await restore(cluster, backup)
    await cluster.start_master()
    await cluster.until(lambda: len(cluster.master.cluster.workers) == 6)
    await cluster.until_all_up()
    await trio.sleep(10)
    told = await cluster.master.operations.recover(accept_loss=False)
    assert told["lost_members"] == []
    await cluster.master.operations.recover(accept_loss=True)
    await trio.sleep(60)
    seen = await values(cluster)
    assert seen == {b"v"}, (len(told["partitions"]), told["lost_members"], seen)


async def test_recover_gives_up_nobody_who_is_only_silent_for_a_moment(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """One partition is refused until recover. While the operator asks for that, two workers pause for 1.5 s."""
    cluster = await InProcessCluster.start(nursery)
    await fill(cluster)
    await trio.sleep(5)
    state = next(s for s in cluster.coordinator.partitions if s.index not in {partition_of(key) for key in KEYS})
    cluster.master.fencing.note_stale(state, state.epoch + 7)
    told = await cluster.master.operations.recover(accept_loss=False)
    assert told == {"partitions": [state.index], "lost_members": []}
    for key in KEYS:  # as any write is that the third replica is a little late with
        version = later(cluster, key)
        for node in cluster.workers[1:]:
            await lay_down(cluster, nursery, node, key, version, b"acknowledged")
    for node in cluster.workers[1:]:
        cluster.network.hold(node.address)
    await trio.sleep(1.5)
    assert not any(watched.availability is Availability.DOWN for watched in cluster.master.membership.watched.values())
    report: dict[str, Any] = {}
    with suppress(Refused):
        report = await cluster.master.operations.recover(accept_loss=True)
    for node in cluster.workers[1:]:
        cluster.network.release(node.address)
    await trio.sleep(60)
    seen = await values(cluster)
    assert seen == {b"acknowledged"}, (len(report.get("partitions", [])), report.get("lost_members"), seen)


async def test_recover_does_not_wait_for_ever_for_one_that_never_becomes_clear(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names a term far beyond any that is believed, so it is never sent anything, and it is not down either."""
    cluster = await InProcessCluster.start(nursery, workers=5)
    await fill(cluster)
    odd = cluster.workers[4].worker
    vitals = odd.vitals()._replace(master=str(MasterId(1 << 30, "x")))
    monkeypatch.setattr(odd, "vitals", lambda: vitals)
    for node in cluster.workers[:2]:
        await cluster.kill(node)
    await trio.sleep(60)
    assert (await cluster.master.operations.recover(accept_loss=True))["partitions"]


async def test_recover_asks_only_those_whose_disks_answer(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster, drained = await start_with_a_drained_one(nursery, "quorum")
    shut(drained)
    state = cluster.coordinator.partitions[partition_of(KEYS[0])]
    cluster.master.fencing.note_stale(state, state.epoch + 7)
    told = await cluster.master.operations.recover(accept_loss=True)
    assert told["not_asked"] == [drained.worker.id]
    await cluster.until_settled()
    assert await values(cluster) == {b"v"}


async def test_deleted_stays_deleted_after_a_backup_and_a_recovery(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="async", workers=4, forget_after_s=2.0)
    await fill(cluster)
    evicted = cluster.workers[1]
    held = under(cluster, evicted)
    gone = [key for key in KEYS if partition_of(key) in held]
    await cluster.kill(evicted)
    await cluster.until(lambda: not under(cluster, evicted))
    await cluster.until_settled()
    backup = await back_up(cluster)
    for key in gone:
        await cluster.coordinator.delete(key)
    await cluster.until(lambda: cluster.master.tombstones.forgotten == len(gone))
    await cluster.stop_master()
    await restore(cluster, backup)
    await cluster.start_master()
    live = [node for node in cluster.workers if node is not evicted]
    await cluster.until(
        lambda: all(cluster.master.membership.watched[n.worker.id].availability is Availability.UP for n in live)
    )
    await trio.sleep(10)
    await cluster.master.operations.recover(accept_loss=True)
    await cluster.until_settled()
    assert [key for key in gone if await cluster.coordinator.get(key) is not None] == []
    await cluster.restart(evicted)
    await trio.sleep(20)
    back = [key for key in gone if await cluster.coordinator.get(key) is not None]
    assert not back, f"{len(back)} of {len(gone)} deleted keys are back"
