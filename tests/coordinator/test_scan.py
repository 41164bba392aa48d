"""Scans: every live key once, in order, each as a read would answer it; or no page at all."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.helpers import lay_down, partition_of
from trikv.api import Batch
from trikv.coordinator.scan import PAGE_MAX
from trikv.core.errors import Refused
from trikv.core.record import Record, Version, make_epoch
from trikv.testing.inprocess import InProcessCluster

MODES = ["sync", "async", "chain", "quorum"]


async def start(nursery: trio.Nursery, mode: str, **more: Any) -> InProcessCluster:
    return await InProcessCluster.start(nursery, mode=mode, **more)


async def fill(cluster: InProcessCluster, count: int) -> dict[bytes, bytes]:
    """Put keys, overwrite some, delete some; answers what is there then."""
    alive: dict[bytes, bytes] = {}
    for number in range(count):
        key = b"%s/%03d" % ([b"a", b"b", b"\xff\xff"][number % 3], number)
        await cluster.coordinator.put(key, b"1")
        alive[key] = b"1"
        if number % 5 == 0:
            await cluster.coordinator.put(key, b"22")
            alive[key] = b"22"
        if number % 7 == 0:
            await cluster.coordinator.delete(key)
            del alive[key]
    return alive


async def scan_all(cluster: InProcessCluster, prefix: bytes = b"", *, limit: int = 7) -> list[tuple[bytes, bytes]]:
    seen: list[tuple[bytes, bytes]] = []
    after = None
    while True:
        page = await cluster.coordinator.scan(prefix, after=after, limit=limit)
        assert len(page.items) <= limit
        for key, record in page.items:
            assert record.value is not None
            seen.append((key, record.value))
        if page.after is None:
            return seen
        assert page.items
        after = page.after


@pytest.mark.parametrize("mode", MODES)
async def test_every_live_key_comes_once_and_in_order(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, mode, workers=5)
    assert (await cluster.coordinator.scan()).items == []
    alive = await fill(cluster, 150)
    assert await scan_all(cluster) == sorted(alive.items())
    assert await scan_all(cluster, limit=PAGE_MAX * 10) == sorted(alive.items())
    for prefix in (b"b/", b"a/00", b"\xff", b"nothing"):
        expected = sorted((key, value) for key, value in alive.items() if key.startswith(prefix))
        assert await scan_all(cluster, prefix) == expected
    after = sorted(alive)[40]
    page = await cluster.coordinator.scan(after=after, limit=3)
    assert [key for key, _ in page.items] == sorted(alive)[41:44]
    page = await cluster.coordinator.scan(after=b"\xff" * 9)
    assert (page.items, page.after) == ([], None)


async def test_a_page_ends_where_the_first_listing_did(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """The first keys all lie at one worker: beyond what it listed of them, the others' keys must wait."""
    cluster = await start(nursery, "sync")
    crowded = cluster.workers[0]
    keys: dict[bytes, list[bytes]] = {b"a": [], b"b": []}
    for number in range(1000):
        for letter, held in keys.items():
            key = b"%s%03d" % (letter, number)
            if len(held) < 40 and (cluster.replicas_of(key)[0] is crowded) is (letter == b"a"):
                held.append(key)
                await cluster.coordinator.put(key, b"v")
    assert [key for key, _ in await scan_all(cluster, limit=30)] == keys[b"a"] + keys[b"b"]


@pytest.mark.parametrize("mode", ["quorum", "async"])
async def test_with_a_worker_down_nothing_is_left_out(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, mode, workers=5)
    alive = await fill(cluster, 60)
    await cluster.coordinator.get(b"any")
    await trio.sleep(1)  # the background copies of an async write arrive
    await cluster.kill(cluster.workers[1])
    await cluster.until_down(cluster.workers[1])
    assert await scan_all(cluster) == sorted(alive.items())


@pytest.mark.parametrize("mode", ["sync", "chain"])
async def test_a_partition_that_cannot_answer_refuses_the_page(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, mode)
    alive = await fill(cluster, 30)
    await cluster.kill(cluster.workers[1])
    await cluster.until_down(cluster.workers[1])
    with pytest.raises(Refused, match="cannot be reached") as refused:
        await cluster.coordinator.scan()
    assert refused.value.kind.code == "unavailable"
    await cluster.restart(cluster.workers[1])
    await cluster.until_all_up()
    assert await scan_all(cluster) == sorted(alive.items())


async def test_a_blocked_partition_refuses_the_page(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await start(nursery, "quorum")
    cluster.coordinator.partitions[7].block(1, "its past cannot be proved")
    with pytest.raises(Refused, match="its past cannot be proved"):
        await cluster.coordinator.scan()


@pytest.mark.parametrize("mode", MODES)
async def test_a_page_waits_for_workers_that_may_be_starting(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, mode)
    alive = await fill(cluster, 20)
    await trio.sleep(1)
    for node in cluster.workers:
        await cluster.kill(node)
    await cluster.restart_master()
    seen: list[tuple[bytes, bytes]] = []

    async def scan() -> None:
        seen.extend(await scan_all(cluster, limit=1000))

    async with trio.open_nursery() as inner:
        inner.start_soon(scan)
        await trio.sleep(0.5)
        for node in cluster.workers:
            await cluster.restart(node)
    assert seen == sorted(alive.items())


async def test_a_key_in_doubt_is_answered_as_a_read_would(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """Remains of a dead epoch on some replicas: what a page has shown, later reads and pages show too."""
    cluster = await start(nursery, "quorum")
    alive = await fill(cluster, 20)
    await cluster.restart_master()
    await cluster.until_all_up()
    generation = cluster.coordinator.partitions[0].partition.generation
    for number in range(12):
        key = b"doubt/%02d" % number
        version = Version(make_epoch(1, generation), 10_000 + number)
        record = Record(version, version, b"r")
        holders = [node for place, node in enumerate(cluster.replicas_of(key)) if (number + 1) >> place & 1]
        for node in holders:
            await node.storage.commit(Batch(puts={(partition_of(key), key): record}))
    first = await scan_all(cluster)
    assert [item for item in first if not item[0].startswith(b"doubt")] == sorted(alive.items())
    certain = {b"doubt/%02d" % n for n in range(12) if (n + 1 & 7).bit_count() >= 2}
    assert certain <= {key for key, _ in first}  # on a majority: whichever is asked, it is found
    for node in cluster.workers:
        await cluster.kill(node)
        await cluster.until_down(node)
        again = await scan_all(cluster)
        assert set(first) <= set(again)
        for key, value in first:
            record_again = await cluster.coordinator.get(key)
            assert record_again is not None
            assert record_again.value == value
        await cluster.restart(node)
        await cluster.until_all_up()


async def test_before_the_cluster_has_formed_there_is_no_page(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await start(nursery, "quorum", workers=1)
    with pytest.raises(Refused) as refused:
        await cluster.coordinator.scan()
    assert refused.value.kind.code == "forming"


async def test_a_page_ends_before_it_grows_too_large(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await start(nursery, "sync")
    value = bytes(1 << 20)
    for number in range(12):
        await cluster.coordinator.put(b"%02d" % number, value)
    page = await cluster.coordinator.scan(limit=100)
    assert 1 <= len(page.items) < 12
    assert [key for key, _ in await scan_all(cluster, limit=100)] == [b"%02d" % number for number in range(12)]


async def test_a_record_under_a_partition_not_its_own_is_nobodys(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, "quorum", workers=5)
    coordinator, key = cluster.coordinator, b"k"
    await coordinator.put(key, b"v")
    own = coordinator.partitions[partition_of(key)]
    members = {target.member.worker for target in own.targets}
    outsider = next(node for node in cluster.workers if node.worker.id not in members)
    other = next(
        state
        for state in coordinator.partitions[own.index // 64 * 64 :]  # so that the two are settled together
        if state is not own and outsider.worker.id in {target.member.worker for target in state.targets}
    )
    for where, state, name in ((outsider, other, key), (cluster.replicas_of(key)[0], own, b"of another")):
        late = Version(state.epoch, 1 << 63)  # newer than all that was written
        await lay_down(cluster, nursery, where, name, late, b"stray", partition=state.index)
    assert [(k, record.value) for k, record in (await coordinator.scan()).items] == [(key, b"v")]
    await cluster.master.operations.switch_mode("sync")
    await cluster.until_settled()
    assert [(k, record.value) for k, record in (await coordinator.scan()).items] == [(key, b"v")]
    read = await coordinator.get(key)
    assert read is not None
    assert read.value == b"v"
