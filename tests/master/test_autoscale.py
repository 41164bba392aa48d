"""A cluster that scales by itself: workers come under load and go when they are idle, and no request fails for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.provisioner import InProcess
from trikv.core.errors import TrikvError
from trikv.core.scaling import Action, Limits
from trikv.master.autoscale import FAILURES_MAX, Autoscaler
from trikv.testing.inprocess import InProcessCluster

KEYS = [b"key-%03d" % number for number in range(60)]
PATIENCE_S = 300.0


class Clients:
    """So many requests a second, one after the other, until the nursery ends; `failures` are those that did."""

    def __init__(self, cluster: InProcessCluster, keys: list[bytes] = KEYS) -> None:
        self.cluster = cluster
        self.keys = keys
        self.rate = 0.0
        self.done = 0
        self.failures: list[str] = []

    async def run(self) -> None:
        while True:
            if not self.rate:
                await trio.sleep(0.5)
                continue
            key = self.keys[self.done % len(self.keys)]
            try:
                await self.cluster.coordinator.put(key, b"%d" % self.done)
                found = await self.cluster.coordinator.get(key)
                assert found is not None
            except TrikvError as error:
                self.failures.append(f"{error.kind.code}: {error.detail}")
            self.done += 1
            await trio.sleep(1 / self.rate)


async def scaled(
    nursery: trio.Nursery, tmp_path: Path, limits: Limits, *, workers: int = 0
) -> tuple[InProcessCluster, InProcess, Autoscaler, Clients]:
    cluster = await InProcessCluster.start(nursery, workers=workers or limits.fewest)
    provisioner = InProcess(cluster)
    fleet = cluster.master.start_workers(
        provisioner, address=cluster.master_address, directory=tmp_path, storage="memory"
    )
    autoscaler = cluster.master.scale_by_itself(limits, fleet)
    await nursery.start(fleet.run)
    clients = Clients(cluster)
    nursery.start_soon(autoscaler.run)
    nursery.start_soon(clients.run)
    return cluster, provisioner, autoscaler, clients


async def test_workers_come_under_load_and_go_when_it_ends_and_no_request_fails(
    nursery: trio.Nursery, tmp_path: Path, autojump_clock: MockClock
) -> None:
    # Quorum of three replicas: a put and a get are some five calls in all, spread over the workers.
    cluster, provisioner, autoscaler, clients = await scaled(nursery, tmp_path, Limits(3, 5, max_load=50))
    clients.rate = 50.0
    await cluster.until(lambda: len(provisioner.running) == 2, patience_s=PATIENCE_S)
    await cluster.until(lambda: not autoscaler._why_busy(), patience_s=PATIENCE_S)
    clients.rate = 1.0
    await cluster.until(lambda: not provisioner.running, patience_s=PATIENCE_S)
    await cluster.until(lambda: len(cluster.master.cluster.workers) == 3, patience_s=PATIENCE_S)
    assert clients.failures == []
    kinds = [event["kind"] for event in cluster.master.events.latest(10_000)]
    assert kinds.count("scaling_up") == kinds.count("scaling_down") == kinds.count("worker_stopped") == 2
    for key in KEYS:
        assert await cluster.coordinator.get(key) is not None


async def test_a_hot_key_is_no_reason_for_another_worker(
    nursery: trio.Nursery, tmp_path: Path, autojump_clock: MockClock
) -> None:
    cluster, provisioner, autoscaler, clients = await scaled(nursery, tmp_path, Limits(3, 5, max_load=50))
    clients.keys = KEYS[:1]
    clients.rate = 50.0
    await cluster.until(lambda: "one key is 100% of the load" in autoscaler.describe()["why"], patience_s=PATIENCE_S)
    await trio.sleep(30)
    assert provisioner.orders == []


async def test_a_worker_that_does_not_start_is_reported_and_not_tried_for_ever(
    nursery: trio.Nursery, tmp_path: Path, autojump_clock: MockClock
) -> None:
    cluster, provisioner, autoscaler, clients = await scaled(nursery, tmp_path, Limits(3, 5, max_load=50))
    provisioner.broken = "no such machine"
    clients.rate = 50.0
    await trio.sleep(90)
    assert len(provisioner.orders) == FAILURES_MAX
    assert autoscaler.decision.action is Action.WAIT
    assert autoscaler.decision.why == f"a worker failed to start {FAILURES_MAX} times, the last: no such machine"
    assert cluster.master.status.describe()["autoscale"]["failures"] == FAILURES_MAX
    assert clients.failures == []


async def test_the_next_master_goes_on_with_the_workers_of_the_last(
    nursery: trio.Nursery, tmp_path: Path, autojump_clock: MockClock
) -> None:
    (tmp_path / "4").mkdir()
    (tmp_path / "lost+found").mkdir()
    cluster, provisioner, _, _ = await scaled(nursery, tmp_path, Limits(3, 5, max_load=50))
    await cluster.until(lambda: provisioner.running, patience_s=PATIENCE_S)
    [order] = provisioner.orders
    assert (order.number, order.directory, order.storage) == (4, tmp_path / "4", "memory")
    await cluster.until(lambda: not provisioner.running, patience_s=PATIENCE_S)  # it is not needed


async def test_an_operator_who_undrains_a_worker_keeps_it(
    nursery: trio.Nursery, tmp_path: Path, autojump_clock: MockClock
) -> None:
    cluster, provisioner, autoscaler, clients = await scaled(nursery, tmp_path, Limits(3, 4, max_load=50))
    clients.rate = 50.0
    await cluster.until(lambda: provisioner.running and not autoscaler._why_busy(), patience_s=PATIENCE_S)
    [node] = provisioner.running.values()
    clients.rate = 1.0
    await cluster.until(lambda: autoscaler.decision.action is Action.REMOVE, patience_s=PATIENCE_S)
    clients.rate = 50.0
    await cluster.master.operations.undrain(node.worker.id)
    await trio.sleep(10)
    assert list(provisioner.running.values()) == [node]
    assert cluster.master.cluster.workers[node.worker.id].draining is False


@pytest.mark.parametrize(
    ("broken", "why"),
    [("is buggy", "ZeroDivisionError: a bug"), ("hangs", "the provisioner did not answer in time")],
)
async def test_a_provisioner_that_misbehaves_ends_nothing(
    broken: str, why: str, nursery: trio.Nursery, tmp_path: Path, autojump_clock: MockClock
) -> None:
    cluster, provisioner, _, clients = await scaled(nursery, tmp_path, Limits(3, 5, max_load=50))
    provisioner.broken = broken
    clients.rate = 50.0
    await trio.sleep(90)
    failed = [each["why"] for each in cluster.master.events.latest(100) if each["kind"] == "worker_start_failed"]
    assert set(failed) == {why}
    assert clients.failures == []
    assert clients.done > 1_000


async def test_a_worker_that_cannot_be_stopped_ends_nothing(
    nursery: trio.Nursery, tmp_path: Path, autojump_clock: MockClock
) -> None:
    cluster, provisioner, autoscaler, clients = await scaled(nursery, tmp_path, Limits(3, 4, max_load=50))
    clients.rate = 50.0
    await cluster.until(lambda: provisioner.running and not autoscaler._why_busy(), patience_s=PATIENCE_S)
    provisioner.broken = "is buggy"
    clients.rate = 1.0
    await cluster.until(lambda: not autoscaler.describe()["own"], patience_s=PATIENCE_S)
    assert await cluster.coordinator.get(KEYS[0]) is not None


async def test_a_worker_that_is_down_is_not_replaced_until_the_load_calls_for_it(
    nursery: trio.Nursery, tmp_path: Path, autojump_clock: MockClock
) -> None:
    (tmp_path / "1").mkdir()
    cluster, provisioner, autoscaler, clients = await scaled(nursery, tmp_path, Limits(4, 6, max_load=50), workers=3)
    await cluster.until(lambda: provisioner.running and not autoscaler._why_busy(), patience_s=PATIENCE_S)
    clients.rate = 1.0
    await provisioner.kill(1)
    await cluster.until(lambda: "1 worker of the fleet may come back" in autoscaler.decision.why, patience_s=PATIENCE_S)
    await trio.sleep(60)
    assert len(provisioner.orders) == 1
    clients.rate = 50.0
    await cluster.until(lambda: len(provisioner.orders) == 2, patience_s=PATIENCE_S)
    assert provisioner.orders[1].number == 2
    assert clients.failures == []
