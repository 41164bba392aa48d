"""The workers that a master starts, on virtual time: which come at its start, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.provisioner import InProcess
from trikv.api import WorkerOrder, WorkerProcess
from trikv.core.breaking import ProcessState
from trikv.master.fleet import RETRY_S, STARTS_AT_ONCE, TRIES_MAX, Fleet
from trikv.testing.inprocess import InProcessCluster


async def founded(
    nursery: trio.Nursery,
    directory: Path,
    *,
    founding: int = 3,
    replicas: int = 3,
    make: Callable[[InProcessCluster], InProcess] = InProcess,
    first_port: int = 0,
) -> tuple[InProcessCluster, InProcess, Fleet]:
    """A cluster whose workers are all its master's."""
    cluster = await InProcessCluster.start(nursery, workers=0, replicas=replicas)
    provisioner = make(cluster)
    fleet = cluster.master.start_workers(
        provisioner,
        founding=founding,
        address=cluster.master_address,
        directory=directory,
        storage="memory",
        first_port=first_port,
    )
    await nursery.start(fleet.run)
    return cluster, provisioner, fleet


def events(cluster: InProcessCluster, kind: str) -> list[dict[str, Any]]:
    return [event for event in reversed(cluster.master.events.latest(10_000)) if event["kind"] == kind]


async def test_so_many_workers_are_started_as_are_to_be_founded(
    nursery: trio.Nursery, tmp_path: Path, autojump_clock: MockClock
) -> None:
    cluster, provisioner, fleet = await founded(nursery, tmp_path, founding=5, first_port=8001)
    await cluster.until(lambda: len(cluster.master.cluster.workers) == 5 and not fleet.waiting)
    await cluster.until_all_up()
    orders = sorted(provisioner.orders)
    assert [order.number for order in orders] == [1, 2, 3, 4, 5]
    assert [order.port for order in orders] == [8001, 8002, 8003, 8004, 8005]
    assert orders[0] == WorkerOrder(1, cluster.master_address, tmp_path / "1", "memory", 8001)
    assert sorted(fleet.describe()["own"]) == sorted(cluster.master.cluster.workers)
    await cluster.coordinator.put(b"key", b"value")


async def test_workers_of_which_a_directory_is_left_come_first_and_fill_up_the_number(
    nursery: trio.Nursery, tmp_path: Path, autojump_clock: MockClock
) -> None:
    for name in ("2", "7", "007", "0", "-1", "lost+found", "1e3", "\u0663"):
        (tmp_path / name).mkdir()
    cluster, _, fleet = await founded(nursery, tmp_path, founding=3)
    await cluster.until(lambda: not fleet.waiting)
    assert sorted(fleet.own) == [1, 2, 7]


async def test_all_that_are_left_are_started_also_where_fewer_are_to_be_founded(
    nursery: trio.Nursery, tmp_path: Path, autojump_clock: MockClock
) -> None:
    for number in range(1, 6):
        (tmp_path / str(number)).mkdir()
    cluster, _, fleet = await founded(nursery, tmp_path, founding=2)
    await cluster.until(lambda: not fleet.waiting)
    assert sorted(fleet.own) == [1, 2, 3, 4, 5]


async def test_a_place_where_no_directory_can_be_is_no_worker_of_before(
    nursery: trio.Nursery, tmp_path: Path, autojump_clock: MockClock
) -> None:
    (tmp_path / "workers").write_text("a file")
    cluster, _, fleet = await founded(nursery, tmp_path / "workers")
    await cluster.until(lambda: not fleet.waiting)
    assert sorted(fleet.own) == [1, 2, 3]


async def test_only_so_many_start_at_once(nursery: trio.Nursery, tmp_path: Path, autojump_clock: MockClock) -> None:
    def make(cluster: InProcessCluster) -> InProcess:
        provisioner = InProcess(cluster)
        provisioner.broken = "hangs"
        return provisioner

    _, provisioner, fleet = await founded(nursery, tmp_path, founding=20, make=make)
    await trio.sleep(1)
    assert len(provisioner.orders) == STARTS_AT_ONCE
    assert fleet.describe()["waiting"] == 20


async def test_a_start_that_fails_is_reported_and_tried_again_a_few_times(
    nursery: trio.Nursery, tmp_path: Path, autojump_clock: MockClock
) -> None:
    class Broken(InProcess):
        async def start(self, order: WorkerOrder) -> str:
            if order.number == 2:
                self.orders.append(order)
                raise OSError("no such\nmachine")
            return await super().start(order)

    cluster, provisioner, fleet = await founded(nursery, tmp_path, make=Broken)
    await cluster.until(lambda: not fleet.waiting, patience_s=RETRY_S * 2**TRIES_MAX)
    assert sum(order.number == 2 for order in provisioner.orders) == TRIES_MAX
    failed = events(cluster, "worker_start_failed")
    assert [event["failures"] for event in failed] == list(range(1, TRIES_MAX + 1))
    assert {event["why"] for event in failed} == {"no such machine"}
    assert fleet.describe()["failed"] == [{"number": 2, "why": "no such machine"}]
    assert cluster.master.status.describe()["fleet"]["failed"] == fleet.describe()["failed"]
    await trio.sleep(1000)
    assert sum(order.number == 2 for order in provisioner.orders) == TRIES_MAX


async def test_a_start_that_fails_once_leaves_no_report(
    nursery: trio.Nursery, tmp_path: Path, autojump_clock: MockClock
) -> None:
    class Hesitant(InProcess):
        async def start(self, order: WorkerOrder) -> str:
            first = order.number not in [each.number for each in self.orders]
            self.broken = "its predecessor is still ending" if first else ""
            return await super().start(order)

    cluster, _, fleet = await founded(nursery, tmp_path, make=Hesitant)
    await cluster.until(lambda: not fleet.waiting)
    assert (sorted(fleet.own), fleet.describe()["failed"]) == ([1, 2, 3], [])


@pytest.mark.parametrize("answer", [None, "", 7, b"w-1"])
async def test_an_answer_that_is_no_id_is_a_start_that_failed(
    answer: object, nursery: trio.Nursery, tmp_path: Path, autojump_clock: MockClock
) -> None:
    class Odd(InProcess):
        async def start(self, order: WorkerOrder) -> str:
            return answer  # type: ignore[return-value]

    cluster, _, fleet = await founded(nursery, tmp_path, make=Odd)
    await cluster.until(lambda: not fleet.waiting, patience_s=1000)
    assert fleet.own == {}
    assert "which is no id of a worker" in fleet.describe()["failed"][0]["why"]
    assert cluster.master.status.describe()["workers"] == []


async def test_a_process_that_cannot_be_told_is_foreign(
    nursery: trio.Nursery, tmp_path: Path, autojump_clock: MockClock
) -> None:
    class Odd(InProcess):
        def process(self, number: int) -> WorkerProcess | None:
            return {1: "running", 2: None}[number]  # type: ignore[return-value]

    cluster, _, fleet = await founded(nursery, tmp_path, make=Odd)
    await cluster.until(lambda: not fleet.waiting)
    states = [fleet.process_of(fleet.own[number]) for number in (1, 2, 3)]
    foreign = (ProcessState.FOREIGN, None)
    assert states == [foreign, (ProcessState.GONE, None), foreign]
    assert fleet.process_of("w-stranger") == foreign


async def test_a_worker_that_is_drained_and_killed_is_forgotten_with_its_directory(
    nursery: trio.Nursery, tmp_path: Path, autojump_clock: MockClock
) -> None:
    cluster, provisioner, fleet = await founded(nursery, tmp_path, founding=4)
    await cluster.until(lambda: not fleet.waiting and len(cluster.master.cluster.workers) == 4)
    await cluster.until_all_up()
    for n in range(20):
        await cluster.coordinator.put(b"%d" % n, b"value")
    worker = fleet.own[2]
    await provisioner.kill(2)
    await cluster.until_down(provisioner.nodes[2])
    await cluster.master.operations.drain(worker)
    await cluster.until(lambda: 2 not in fleet.own, patience_s=100)
    assert 2 not in provisioner.nodes  # it was stopped for good
    assert [event["worker"] for event in events(cluster, "worker_stopped")] == [worker]
    assert worker not in cluster.master.cluster.workers
    for n in range(20):
        assert await cluster.coordinator.get(b"%d" % n) is not None


async def test_a_worker_that_is_drained_and_runs_is_kept(
    nursery: trio.Nursery, tmp_path: Path, autojump_clock: MockClock
) -> None:
    cluster, provisioner, fleet = await founded(nursery, tmp_path, founding=4)
    await cluster.until(lambda: not fleet.waiting and len(cluster.master.cluster.workers) == 4)
    await cluster.until_all_up()
    await cluster.coordinator.put(b"key", b"value")
    await cluster.master.operations.drain(fleet.own[2])
    await cluster.until(lambda: events(cluster, "worker_drained"), patience_s=100)
    await trio.sleep(30)
    assert 2 in provisioner.running


async def test_its_provisioner_is_closed_once_nothing_is_being_started(
    nursery: trio.Nursery, tmp_path: Path, autojump_clock: MockClock
) -> None:
    class Slow(InProcess):
        ended = False

        async def start(self, order: WorkerOrder) -> str:
            try:
                await trio.sleep_forever()
            finally:
                self.ended = not self.closed
            raise AssertionError

    async with trio.open_nursery() as inner:
        _, provisioner, _ = await founded(inner, tmp_path, make=Slow)
        await trio.sleep(1)
        inner.cancel_scope.cancel()
    assert isinstance(provisioner, Slow)
    assert (provisioner.closed, provisioner.ended) == (True, True)
