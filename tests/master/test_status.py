"""The cluster's state as it is told: what can be read and written, where a key lives, and a worker's place."""

from __future__ import annotations

import json
from typing import Any
from zlib import crc32

import pytest
import trio
from trio.testing import MockClock

from tests.helpers import fill, members_of, seen
from tests.sim.driven import INDEX, KEY, driven
from trikv.api import Write
from trikv.core.errors import Refused
from trikv.core.histogram import RECENT_S
from trikv.core.quorums import Availability
from trikv.core.record import Record, make_epoch
from trikv.healing import hints, settle
from trikv.master.status import describe_strategy
from trikv.storage.memory import MemoryStorage
from trikv.testing.inprocess import PARTITIONS, InProcessCluster, Node
from trikv_chain import Chain


def partitions(cluster: InProcessCluster) -> dict[str, int]:
    told: dict[str, int] = cluster.master.status.describe()["partitions"]
    return told


def place(cluster: InProcessCluster, node: Node) -> str:
    told: str = seen(cluster, node)["place"]
    return told


# --- partitions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "down", "readable", "writable"),
    [
        pytest.param("quorum", [], True, True, id="quorum: all are up"),
        pytest.param("quorum", [0], True, True, id="quorum: a majority is up"),
        pytest.param("quorum", [0, 1], False, False, id="quorum: one is left"),
        pytest.param("sync", [1], True, False, id="sync: a write needs all, a read the head"),
        pytest.param("sync", [0], False, False, id="sync: the head is away"),
        pytest.param("chain", [0], True, False, id="chain: the tail answers a read"),
        pytest.param("chain", [2], False, False, id="chain: the tail is away"),
        pytest.param("async", [0, 1], True, True, id="async: one is enough for both"),
    ],
)
async def test_what_can_be_read_and_written_follows_from_who_is_up(
    mode: str, down: list[int], readable: bool, writable: bool, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode=mode, partitions=1)
    await cluster.coordinator.put(KEY, b"v")
    away = [cluster.replicas_of(KEY)[place] for place in down]
    for node in away:
        await cluster.kill(node)
    await cluster.until_down(*away)
    assert (partitions(cluster)["readable"], partitions(cluster)["writable"]) == (readable, writable)


async def test_a_doubtful_member_is_not_counted_on(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery, partitions=1)
    silent = cluster.workers[:2]
    for node in silent:
        cluster.network.hold(node.address)
    await cluster.until(
        lambda: [t.availability for t in cluster.coordinator.partitions[0].targets].count(Availability.DOUBTFUL) == 2
    )
    assert (partitions(cluster)["readable"], partitions(cluster)["writable"]) == (0, 0)


async def test_a_blocked_partition_is_neither_readable_nor_writable(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery)
    assert partitions(cluster) == {
        "total": PARTITIONS, "settled": PARTITIONS, "readable": PARTITIONS, "writable": PARTITIONS, "short": 0,
        "crowded": 0,
    }  # fmt: skip
    state = cluster.coordinator.partitions[3]
    state.block(make_epoch(1, state.partition.generation + 1), "older")
    assert partitions(cluster) == {
        "total": PARTITIONS, "settled": PARTITIONS, "readable": PARTITIONS - 1, "writable": PARTITIONS - 1, "short": 0,
        "crowded": 0,
    }  # fmt: skip


async def test_many_partitions_that_are_alike_are_counted_each(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="async")
    await fill(cluster)
    silent = cluster.workers[0]
    cluster.network.hold(silent.address)  # what it may hold alone is waited for
    nursery.start_soon(cluster.master.operations.switch_mode, "quorum")
    await cluster.until(lambda: all(not partition.settled for partition in cluster.master.cluster.partitions))
    status = cluster.master.status.describe()
    assert (status["unsettled"], status["partitions"]["settled"]) == (PARTITIONS, 0)
    cluster.network.release(silent.address)
    await cluster.until_settled()
    status = cluster.master.status.describe()
    assert (status["unsettled"], status["partitions"]["settled"]) == (0, PARTITIONS)


async def test_partitions_that_are_unsettled_or_short_of_replicas_are_counted(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "choose_to_settle", lambda history, hung: None)
    async with driven(nursery, "quorum") as drive:
        await drive.change(drive.replicas[:2], "quorum")
        status = drive.cluster.master.status.describe()
        assert status["unsettled"] == 1
        assert status["partitions"] | {"readable": 0, "writable": 0} == {
            "total": PARTITIONS, "settled": PARTITIONS - 1, "readable": 0, "writable": 0, "short": 1, "crowded": 0
        }  # fmt: skip


# --- where a key lives ------------------------------------------------------------------------------------------------


async def test_a_key_lives_on_its_preference_list(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery, workers=5)
    first, second, third = cluster.replicas_of(KEY)
    await cluster.kill(second)
    await cluster.until_down(second)
    assert cluster.master.status.locate(KEY) == {
        "hash": crc32(KEY),
        "key": "key",
        "partition": INDEX,
        "replicas": [
            {"id": first.worker.id, "address": first.address, "state": "up"},
            {"id": second.worker.id, "address": second.address, "state": "down"},
            {"id": third.worker.id, "address": third.address, "state": "up"},
        ],
    }
    json.dumps(cluster.master.status.locate(b"\xff"))


async def test_what_can_be_no_key_is_refused_and_so_is_any_before_the_cluster_has_formed(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, workers=1)
    await cluster.until(lambda: cluster.master.cluster.workers)
    for key, code in ((b"", "bad_key"), (KEY, "forming")):
        with pytest.raises(Refused) as refused:
            cluster.master.status.locate(key)
        assert refused.value.kind.code == code


# --- workers ----------------------------------------------------------------------------------------------------------


async def test_each_worker_is_told_of_once_with_its_share(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery, workers=4)
    workers: list[dict[str, Any]] = cluster.master.status.describe()["workers"]
    assert [worker["address"] for worker in workers] == sorted(node.address for node in cluster.workers)
    assert sum(worker["primaries"] for worker in workers) == PARTITIONS
    assert sum(worker["copies"] for worker in workers) == sum(worker["held"] for worker in workers) == 3 * PARTITIONS
    for node in cluster.workers:
        told = seen(cluster, node)
        targets = [state.targets for state in cluster.coordinator.partitions]
        assert told["primaries"] == sum(each[0].member.worker == node.worker.id for each in targets)
        assert told["copies"] == sum(node.worker.id in {t.member.worker for t in each} for each in targets)
        assert (told["state"], told["incarnation"], told["storage"]) == ("up", node.worker.incarnation, "memory")


async def test_what_a_worker_stores_is_told_in_bytes_of_keys_and_values(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery)
    await cluster.coordinator.put(b"12345", bytes(1000))
    await cluster.coordinator.put(b"123", bytes(10))
    await cluster.coordinator.delete(b"123")
    await cluster.until(lambda: [seen(cluster, node)["bytes"] for node in cluster.workers] == [1008] * 3)
    assert [seen(cluster, node)["keys"] for node in cluster.workers] == [1] * 3


async def test_latency_is_that_of_the_last_seconds(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery)
    slow, quick = cluster.workers[:2]
    await trio.sleep(2 * RECENT_S)
    cluster.network.hold(slow.address)
    await cluster.coordinator.put(KEY, b"v")
    await trio.sleep(0.3)
    cluster.network.release(slow.address)
    await trio.sleep(2)  # a beat after it
    told = seen(cluster, slow)["latency_ms"]
    assert told["p99"] > 200
    assert told["p50"] <= told["p99"]
    assert seen(cluster, quick)["latency_ms"]["p99"] < 1
    await trio.sleep(2 * RECENT_S + 1)
    assert seen(cluster, slow)["latency_ms"]["p99"] < 1


@pytest.mark.parametrize("mode", ["quorum", "async"])
async def test_lag_is_the_age_of_the_oldest_copy_that_a_worker_lacks(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """It grows with the time from the first copy that did not arrive, wherever that copy is, until all have."""
    cluster = await InProcessCluster.start(nursery, mode=mode, partitions=1)
    await cluster.coordinator.put(KEY, b"v")
    await trio.sleep(5)
    behind = cluster.replicas_of(KEY)[1]
    assert [(seen(cluster, node)["lag_s"], seen(cluster, node)["hints"]) for node in cluster.workers] == [(0.0, 0)] * 3
    cluster.network.hold(behind.address)
    began_s = trio.current_time()
    for number in range(40):  # on its way at first, then late, or not sent since it is down: kept as a hint
        await cluster.coordinator.put(KEY if number % 2 else b"other", b"%d" % number)
        await trio.sleep(1)
        for node in cluster.workers:
            lag_s = seen(cluster, node)["lag_s"]
            assert lag_s == pytest.approx(trio.current_time() - began_s if node is behind else 0, abs=0.001)
    assert [seen(cluster, node)["hints"] for node in cluster.workers if node is behind] == [2]
    cluster.network.release(behind.address)
    await cluster.until(lambda: seen(cluster, behind)["lag_s"] == 0.0)
    assert seen(cluster, behind)["hints"] == 0
    assert behind.storage.get(0, KEY) == cluster.replicas_of(KEY)[0].storage.get(0, KEY)


async def test_lag_is_that_of_the_older_of_a_hint_and_a_copy_on_its_way(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, partitions=1)
    await cluster.coordinator.put(KEY, b"v")
    await trio.sleep(5)
    (state,) = cluster.coordinator.partitions
    behind = cluster.replicas_of(KEY)[1]
    target = next(t for t in state.targets if t.member.worker == behind.worker.id)
    cluster.network.hold(behind.address)
    began_s = trio.current_time()
    await cluster.coordinator.put(KEY, b"on its way")
    await trio.sleep(0.5)
    assert seen(cluster, behind)["lag_s"] == pytest.approx(0.5)
    version = state.next_version()
    cluster.master.hints.note(state, target, Write(b"other", Record(version, version, b"v")), began_s - 50)
    assert seen(cluster, behind)["lag_s"] == pytest.approx(50.5)
    cluster.network.release(behind.address)


async def test_copies_that_are_not_kept_are_lacked_until_the_replicas_were_compared(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hints, "COUNT_MAX", 3)
    cluster = await InProcessCluster.start(nursery, partitions=1)
    await cluster.coordinator.put(KEY, b"v")
    behind = cluster.replicas_of(KEY)[2]
    await cluster.kill(behind)
    await cluster.until_down(behind)
    began_s = trio.current_time()
    for number in range(6):
        await cluster.coordinator.put(b"%d" % number, b"v")
        await trio.sleep(1)
    told = seen(cluster, behind)
    assert (told["hints"], told["lag_s"]) == (0, pytest.approx(trio.current_time() - began_s, abs=0.001))
    await cluster.restart(behind)
    await cluster.until(lambda: seen(cluster, behind)["lag_s"] == 0.0)
    assert behind.storage.get(0, b"0") is not None


async def test_a_worker_that_leaves_a_partition_is_told_to_hold_it_still(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with driven(nursery, "quorum") as drive:
        leaving, *others = drive.replicas
        before = seen(drive.cluster, leaving)
        with monkeypatch.context() as patch:
            patch.setattr(settle, "choose_to_settle", lambda history, hung: None)
            await drive.change([*others, drive.spares[0]], "quorum")
            during = seen(drive.cluster, leaving)
            assert (during["copies"], during["held"]) == (before["copies"] - 1, before["held"])
        await drive.cluster.until(lambda: drive.state.partition.settled)
        after = seen(drive.cluster, leaving)
        assert (after["copies"], after["held"]) == (before["copies"] - 1, before["held"] - 1)


async def test_a_drained_worker_is_draining_then_drained(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery, workers=4)
    await fill(cluster)
    node = cluster.workers[0]
    assert (place(cluster, node), seen(cluster, node)["note"]) == ("member", "")
    await cluster.master.operations.drain(node.worker.id)
    assert place(cluster, node) == "draining"
    assert f"{seen(cluster, node)['held']} partitions are left" in seen(cluster, node)["note"]
    await cluster.until(lambda: not seen(cluster, node)["held"])
    assert place(cluster, node) == "drained"
    assert "may be stopped" in seen(cluster, node)["note"]


async def test_a_worker_that_is_replaced_is_leaving_then_spare_and_a_member_again(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, workers=4, settle_rate_bytes=100_000)
    await fill(cluster, b"v" * 10_000)
    node = cluster.workers[0]
    await cluster.kill(node)
    await cluster.until(lambda: node.worker.id not in members_of(cluster))
    assert place(cluster, node) == "leaving"
    assert f"{seen(cluster, node)['held']} partitions are left" in seen(cluster, node)["note"]
    await cluster.until(lambda: not seen(cluster, node)["held"])
    assert place(cluster, node) == "spare"
    assert "others hold what it held" in seen(cluster, node)["note"]
    assert seen(cluster, node)["state"] == "down"
    await cluster.restart(node)
    await cluster.until(lambda: place(cluster, node) == "member")


async def test_a_newcomer_is_spare_until_it_is_steady(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery, workers=2)
    await cluster.until(lambda: len(cluster.master.cluster.workers) == 2)
    assert place(cluster, cluster.workers[0]) == "spare"
    assert "waits for the cluster to form" in seen(cluster, cluster.workers[0])["note"]
    await cluster.add_worker()
    await cluster.until(lambda: cluster.master.cluster.formed)
    await cluster.until_all_up()
    await cluster.coordinator.put(KEY, b"v")
    newcomer = await cluster.add_worker()
    await cluster.until(lambda: newcomer.worker.id in cluster.master.cluster.workers)
    assert place(cluster, newcomer) == "spare"
    assert "is given its share when it has been up for a while" in seen(cluster, newcomer)["note"]
    await cluster.until(lambda: place(cluster, newcomer) == "member")


async def test_a_worker_that_lost_its_disk_is_lost_until_it_is_a_member_again(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery)
    await fill(cluster)
    node = cluster.workers[0]
    await cluster.restart(node, wiped=True)
    await cluster.until(lambda: place(cluster, node) == "lost")
    assert seen(cluster, node)["note"].startswith("it came back without its data, as a new incarnation")
    await cluster.until(lambda: place(cluster, node) == "member")


async def test_a_worker_that_holds_as_many_keys_as_it_may_is_full(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, max_keys=3)
    node = cluster.workers[0]
    assert not seen(cluster, node)["full"]
    for number in range(3):
        await cluster.coordinator.put(b"%d" % number, b"v")
    await cluster.until(lambda: seen(cluster, node)["full"])
    told = seen(cluster, node)
    assert (told["keys"], told["max_keys"], told["disk_full"]) == (3, 3, False)


# --- the whole --------------------------------------------------------------------------------------------------------


async def test_all_that_is_told_is_json_before_and_after_the_cluster_has_formed(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, workers=2)
    status = cluster.master.status
    await cluster.until(lambda: len(cluster.master.cluster.workers) == 2)
    before = json.loads(json.dumps(status.describe()))
    assert before["forming"]["detail"] == "2 of 3 workers have enlisted; 1 more needed"
    nothing = {"settled": 0, "readable": 0, "writable": 0, "short": 0, "crowded": 0}
    assert before["partitions"] == {"total": PARTITIONS, **nothing}
    await cluster.add_worker(storage=MemoryStorage())
    await cluster.until(lambda: cluster.master.cluster.formed)
    await cluster.until_all_up()
    await cluster.coordinator.put(KEY, b"v")
    after = json.loads(json.dumps(status.describe()))
    assert after.keys() == before.keys()
    assert (after["forming"], after["operations"]["committed"]) == (None, 1)
    assert (after["mode"], after["promise"], after["replicas"], after["copies"]) == ("quorum", "CP", 3, 2)
    assert after["modes"] == [describe_strategy(each, 3) for each in cluster.registry.strategies.values()]
    assert {each["name"]: each["compare_and_set"] for each in after["modes"]}["async"] is False


class Few(Chain):
    def copies(self, n: int) -> int:
        if n > 2:
            raise ValueError("two at most")
        return n


def test_a_mode_is_described_with_what_it_needs_if_it_knows_so_many_replicas() -> None:
    assert describe_strategy(Chain(), 3)["needs"] == {
        "write": {"count": 3, "places": [], "detail": "all 3 replicas"},
        "read": {"count": 1, "places": [-1], "detail": "the last replica"},
    }
    assert describe_strategy(Few(), 3)["needs"] == {}
