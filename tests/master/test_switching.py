"""Switching the mode of a cluster that serves, whatever its workers do meanwhile."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.helpers import (
    KEYS,
    MANY,
    VALUES,
    GatedStorage,
    fill,
    fill_apart,
    later,
    lay_down,
    read_all,
    shut,
    start_with_a_drained_one,
    under,
    value_of,
    values,
)
from trikv.core.errors import Refused
from trikv.core.precondition import Expect
from trikv.master.configstore import MemoryConfigStore
from trikv.testing.inprocess import PARTITIONS, InProcessCluster

MODES = ("sync", "chain", "quorum", "async")


@pytest.mark.parametrize(("before", "after"), [*permutations(MODES, 2)])
async def test_the_mode_changes_while_the_cluster_serves(
    before: str, after: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode=before, workers=4)
    await fill_apart(cluster)
    certificate = await cluster.master.operations.switch_mode(after)
    assert certificate["mode"] == after
    assert certificate["partitions"] == PARTITIONS
    assert all(p.settled and p.active.mode == after for p in cluster.master.cluster.partitions)
    assert await read_all(cluster) == VALUES
    if after != "async":
        record = await cluster.coordinator.get(KEYS[0])
        assert record is not None
        await cluster.coordinator.put(KEYS[0], b"set", expect=Expect(frozenset({record.stamp}), match=True))


async def test_a_new_master_goes_on_with_what_was_begun(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery, workers=4)
    await fill_apart(cluster)
    async with trio.open_nursery() as switching:
        switching.start_soon(cluster.master.operations.switch_mode, "chain")
        await cluster.until(lambda: any(len(p.history) == 2 for p in cluster.master.cluster.partitions))
        switching.cancel_scope.cancel()
    await cluster.restart_master()
    assert cluster.master.cluster.mode == "chain"
    await cluster.until_settled()
    assert await read_all(cluster) == VALUES


@pytest.mark.parametrize("mode", ["nope", "", "quorum "])
async def test_a_switch_to_a_mode_that_nobody_installed_names_those_there_are(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery)
    with pytest.raises(Refused, match="quorum"):
        await cluster.master.operations.switch_mode(mode)
    assert cluster.master.cluster.mode == "quorum"


async def test_a_blocked_partition_is_named_before_a_switch_begins(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery)
    state = cluster.coordinator.partitions[5]
    cluster.master.fencing.note_stale(state, state.epoch + 7)
    with pytest.raises(Refused, match="5 the first"):
        await cluster.master.operations.switch_mode("sync")
    assert cluster.master.cluster.mode == "quorum"


@pytest.mark.parametrize("mode", ["sync", "chain", "quorum"])
async def test_what_a_silent_replica_alone_holds_does_not_turn_up_after_a_switch_from_async(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Acknowledged under async by a replica that died with it: lost with the switch, and not found again after it."""
    cluster = await InProcessCluster.start(nursery, mode="async")
    await cluster.coordinator.put(b"any", b"thing")
    await trio.sleep(1)
    primary = cluster.replicas_of(b"key")[0]
    await lay_down(cluster, nursery, primary, b"key", later(cluster, b"key"), b"acknowledged")
    await cluster.kill(primary)
    certificate = await cluster.master.operations.switch_mode(mode)
    assert certificate["could_not_ask"] == [primary.worker.id]
    assert await cluster.coordinator.get(b"key") is None
    await cluster.restart(primary)
    await cluster.until(lambda: under(cluster, primary))
    await trio.sleep(10)
    assert await cluster.coordinator.get(b"key") is None


async def test_a_switch_from_async_waits_for_a_former_replica_that_is_just_restarting(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """It is not given up, and back with its disk after a second; some partitions move away from it with the switch."""
    cluster = await InProcessCluster.start(nursery, mode="async")
    await fill(cluster)
    away = cluster.workers[0]
    for key in KEYS:
        await lay_down(cluster, nursery, away, key, later(cluster, key), b"acknowledged")
    newcomer = await cluster.add_worker()
    await cluster.until(lambda: len(cluster.master.membership.watched) == 4)
    await cluster.until_all_up()
    await trio.sleep(0.6)  # soon it will have been up for so long that it is given data
    assert not under(cluster, newcomer)
    await cluster.kill(away)
    await cluster.until_down(away)
    certificates: list[Any] = []

    async def switch() -> None:
        certificates.append(await cluster.master.operations.switch_mode("sync"))

    nursery.start_soon(switch)
    await trio.sleep(1.5)
    assert not cluster.master.membership.watched[away.worker.id].evictable
    await values(cluster)  # what is read is brought to the configuration of that moment, which must not be the next
    await cluster.restart(away)
    await cluster.until_settled()
    await cluster.until(lambda: certificates)
    seen = [await value_of(cluster, key) for key in KEYS]
    lost = seen.count(b"v")
    assert not lost, f"{lost} of {len(KEYS)} are lost, {certificates}"


async def test_a_switch_from_async_waits_for_a_replica_that_restarts_just_after_it_began(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no member of the new configuration, which a newcomer is in its place."""
    cluster = await InProcessCluster.start(nursery, mode="async")
    await fill(cluster)
    away = cluster.workers[0]
    for key in KEYS:
        await lay_down(cluster, nursery, away, key, later(cluster, key), b"acknowledged")
    write = MemoryConfigStore.compare_and_set

    async def kill_first(self: MemoryConfigStore, document: dict[str, Any], revision: int) -> int:
        if any(mode == "sync" for _, mode, _ in document["configurations"]):
            await cluster.kill(away)
        return await write(self, document, revision)

    await cluster.add_worker()
    health = cluster.master.reconciler.health
    async with cluster.master.reconciler.stepping:  # both wishes are there when it looks
        monkeypatch.setattr(MemoryConfigStore, "compare_and_set", kill_first)
        nursery.start_soon(cluster.master.operations.switch_mode, "sync")
        await cluster.until(lambda: len(health()) == 4 and all(each.steady for each in health().values()))
    await cluster.until(lambda: any(p.active.mode == "sync" for p in cluster.master.cluster.partitions))
    monkeypatch.undo()
    await trio.sleep(2)
    assert not cluster.master.membership.watched[away.worker.id].evictable
    await cluster.restart(away)
    await cluster.until_settled()
    assert len(under(cluster, away)) < len(cluster.coordinator.partitions)
    assert await values(cluster) == {b"acknowledged"}


@pytest.mark.parametrize("mode", ["quorum", "async"])
async def test_a_drained_worker_whose_disk_hangs_holds_up_no_switch(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster, drained = await start_with_a_drained_one(nursery, mode)
    shut(drained)
    cluster.network.cut(drained.address)
    await cluster.until_down(drained)
    cluster.network.mend(drained.address)
    await cluster.until_all_up()
    with trio.fail_after(60):
        await cluster.master.operations.switch_mode("sync")


async def test_a_switch_to_quorum_is_a_way_out_when_a_disk_hangs(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="sync", workers=0)
    for _ in range(4):
        await cluster.add_worker(storage=GatedStorage())
    await cluster.until(lambda: cluster.master.cluster.formed and len(cluster.master.cluster.workers) == 4)
    await cluster.until_all_up()
    await fill(cluster)
    shut(cluster.workers[0])
    await cluster.restart_master()
    await cluster.until_all_up()
    nursery.start_soon(cluster.master.operations.switch_mode, "quorum")
    await trio.sleep(60)
    for key in KEYS:
        await cluster.coordinator.put(key, b"w")


async def test_both_who_ask_for_one_switch_are_told_what_could_not_be_asked(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second asks when the worker that was away is back: the switch began without it all the same."""
    cluster = await InProcessCluster.start(nursery, mode="async", settle_rate_bytes=20_000, partitions=MANY)
    for number in range(300):
        await cluster.coordinator.put(b"key-%d" % number, b"v" * 5_000)
    await trio.sleep(3)
    write = MemoryConfigStore.compare_and_set

    async def write_slowly(self: MemoryConfigStore, document: dict[str, Any], revision: int) -> int:
        await trio.sleep(0.4)
        return await write(self, document, revision)

    monkeypatch.setattr(MemoryConfigStore, "compare_and_set", write_slowly)
    away = cluster.workers[0]
    await cluster.kill(away)
    certificates: list[dict[str, Any]] = []

    async def switch() -> None:
        certificates.append(await cluster.master.operations.switch_mode("quorum"))

    nursery.start_soon(switch)
    await cluster.until(lambda: cluster.master.settling.could_not_ask, patience_s=300)
    await cluster.restart(away)
    await trio.sleep(1)
    assert cluster.master.operations.operation() is not None, "the switch is over, so this shows nothing"
    nursery.start_soon(switch)
    await cluster.until(lambda: len(certificates) == 2, patience_s=600)
    assert [each["could_not_ask"] for each in certificates] == [[away.worker.id]] * 2
