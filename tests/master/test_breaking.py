"""A cluster that is broken on purpose, on virtual time: what can be done to a worker, what comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.provisioner import InProcess
from trikv.core.breaking import BreakKind, LinkState, ProcessState
from trikv.core.errors import Refused, TrikvError, Unknown
from trikv.core.quorums import Availability
from trikv.master.breaking import Breaking
from trikv.net.breakable import BreakableTransport
from trikv.net.doors import Doors
from trikv.testing.inprocess import InProcessCluster, MemoryTransport

KEY = b"key"


async def broken_cluster(
    nursery: trio.Nursery, tmp_path: Path, *, own: int = 0, foreign: int = 3
) -> tuple[InProcessCluster, InProcess]:
    """A cluster that may be broken, with workers of its master's own and foreign ones. All nodes share one door."""
    transport = BreakableTransport(MemoryTransport())
    cluster = await InProcessCluster.start(nursery, workers=foreign, doors=Doors(transport=transport))
    provisioner = InProcess(cluster)
    fleet = cluster.master.start_workers(
        provisioner, founding=own, address=cluster.master_address, directory=tmp_path, storage="memory"
    )
    cluster.master.breaking.links = transport
    await nursery.start(fleet.run)
    await cluster.until(lambda: len(cluster.master.cluster.workers) == own + foreign and cluster.master.cluster.formed)
    await cluster.until_all_up()
    return cluster, provisioner


def told(cluster: InProcessCluster) -> list[tuple[str, str]]:
    events = [event for event in cluster.master.events.latest(1000) if event["kind"].startswith("fault_")]
    return [(event["kind"].removeprefix("fault_"), event["fault"]) for event in reversed(events)]


def row_of(breaking: Breaking, worker: str) -> dict[str, Any]:
    row: dict[str, Any] = next(row for row in breaking.describe()["workers"] if row["id"] == worker)
    return row


async def test_nothing_is_broken_where_it_is_not_allowed(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery)
    breaking = cluster.master.breaking
    with pytest.raises(Refused, match="without --break-it") as refused:
        await breaking.inject(BreakKind.CUT, "w-1")
    assert refused.value.kind.code == "no_faults"
    described = breaking.describe()
    assert (described["allowed"], "--break-it" in described["why"]) == (False, True)
    assert [row["can"] for row in described["workers"]] == [[], [], []]
    assert told(cluster) == []


async def test_a_worker_behind_a_cut_link_goes_down_by_silence_and_is_back_when_it_is_mended(
    nursery: trio.Nursery, tmp_path: Path, autojump_clock: MockClock
) -> None:
    cluster, _ = await broken_cluster(nursery, tmp_path)
    breaking, watched = cluster.master.breaking, cluster.master.membership.watched["w-1"]
    cut = await breaking.inject(BreakKind.CUT, "w-1")
    assert (cut["link"], cut["can"]) == ("cut", ["slow", "mend"])
    began_s = trio.current_time()
    await cluster.until(lambda: watched.availability is Availability.DOWN)
    assert trio.current_time() - began_s >= cluster.master.membership.down_after_s - 1  # nobody said that it is gone
    await cluster.coordinator.put(KEY, b"meanwhile")
    state = cluster.master.status.describe()["workers"][0]
    assert (state["id"], state["link"], state["process"], state["pid"]) == ("w-1", "cut", "foreign", None)
    await breaking.inject(BreakKind.MEND, "w-1")
    await cluster.until_all_up()
    assert told(cluster) == [("injected", "cut"), ("ended", "cut")]


async def test_a_request_waits_for_a_slow_link_if_it_needs_it(
    nursery: trio.Nursery, tmp_path: Path, autojump_clock: MockClock
) -> None:
    cluster, _ = await broken_cluster(nursery, tmp_path)
    for worker in ("w-1", "w-2"):
        await cluster.master.breaking.inject(BreakKind.SLOW, worker, 400.0)
    began_s = trio.current_time()
    await cluster.coordinator.put(KEY, b"value")  # a majority of three, and two are slow
    assert trio.current_time() - began_s >= 0.4
    assert row_of(cluster.master.breaking, "w-1")["delay_ms"] == 400.0
    await cluster.master.breaking.inject(BreakKind.SLOW, "w-1", 10.0)
    await cluster.master.breaking.inject(BreakKind.CUT, "w-1")
    injected, ended = ("injected", "slow"), ("ended", "slow")
    assert told(cluster) == [injected, injected, ended, injected, ended, ("injected", "cut")]


async def test_a_foreign_process_is_let_alone(nursery: trio.Nursery, tmp_path: Path, autojump_clock: MockClock) -> None:
    cluster, _ = await broken_cluster(nursery, tmp_path)
    for kind in (BreakKind.PAUSE, BreakKind.RESUME, BreakKind.KILL, BreakKind.START):
        with pytest.raises(Refused, match="was not started by this master"):
            await cluster.master.breaking.inject(kind, "w-2")
    assert row_of(cluster.master.breaking, "w-2")["can"] == ["cut", "slow"]
    assert told(cluster) == []


async def test_a_provisioner_that_offers_no_faults_has_foreign_processes(
    nursery: trio.Nursery, tmp_path: Path, autojump_clock: MockClock
) -> None:
    cluster, provisioner = await broken_cluster(nursery, tmp_path, own=3, foreign=0)
    provisioner.can_break = False  # type: ignore[misc]
    assert cluster.master.breaking.condition_of("w-1").process is ProcessState.FOREIGN
    with pytest.raises(Refused, match="was not started by this master"):
        await cluster.master.breaking.inject(BreakKind.KILL, "w-1")


async def test_a_process_is_paused_killed_and_started_again(
    nursery: trio.Nursery, tmp_path: Path, autojump_clock: MockClock
) -> None:
    cluster, provisioner = await broken_cluster(nursery, tmp_path, own=3, foreign=0)
    breaking = cluster.master.breaking
    paused = await breaking.inject(BreakKind.PAUSE, "w-1")
    assert (paused["process"], paused["can"]) == ("paused", ["resume", "kill", "cut", "slow"])
    assert (await breaking.inject(BreakKind.RESUME, "w-1"))["process"] == "running"
    await breaking.inject(BreakKind.PAUSE, "w-1")
    killed = await breaking.inject(BreakKind.KILL, "w-1")
    assert (killed["process"], killed["pid"], killed["can"]) == ("gone", None, ["start", "cut", "slow"])
    await cluster.until_down(cluster.node_of("w-1"))
    assert (await breaking.inject(BreakKind.START, "w-1"))["process"] == "running"
    again = provisioner.orders[-1]
    assert provisioner.nodes[again.number].worker.id == "w-1"
    assert again in provisioner.orders[:-1]  # the same number and directory
    await cluster.until_all_up()
    pause, kill = [("injected", "pause"), ("ended", "pause")], [("injected", "kill"), ("ended", "kill")]
    assert told(cluster) == [*pause, *pause, *kill]


async def test_a_process_that_ended_by_itself_is_started_and_no_fault_has_ended(
    nursery: trio.Nursery, tmp_path: Path, autojump_clock: MockClock
) -> None:
    cluster, provisioner = await broken_cluster(nursery, tmp_path, own=3, foreign=0)
    number = next(n for n, node in provisioner.running.items() if node.worker.id == "w-2")
    await provisioner.kill(number)
    with pytest.raises(Refused, match="is gone; kill is for one that is running or paused"):
        await cluster.master.breaking.inject(BreakKind.KILL, "w-2")
    await cluster.master.breaking.inject(BreakKind.START, "w-2")
    await cluster.until_all_up()
    assert told(cluster) == []


@pytest.mark.parametrize("first", [BreakKind.KILL, BreakKind.PAUSE, BreakKind.START])
async def test_what_is_asked_while_something_is_being_done_is_refused(
    first: BreakKind, nursery: trio.Nursery, tmp_path: Path, autojump_clock: MockClock
) -> None:
    cluster, provisioner = await broken_cluster(nursery, tmp_path, own=3, foreign=0)
    breaking = cluster.master.breaking
    if first is BreakKind.START:
        await breaking.inject(BreakKind.KILL, "w-1")
    provisioner.broken = "hangs"
    outcomes: list[str] = []

    async def inject(kind: BreakKind) -> None:
        try:
            await breaking.inject(kind, "w-1")
        except TrikvError as error:
            outcomes.append(error.kind.code)

    nursery.start_soon(inject, first)
    await trio.sleep(1)
    await inject(first)
    assert outcomes == ["operation_under_way"]
    provisioner.broken = ""
    await breaking.inject(BreakKind.KILL, "w-2")  # others are not held up
    await trio.sleep(100)
    assert outcomes == ["operation_under_way", "conflict" if first is BreakKind.START else "unknown"]
    await inject(first)  # and it can be tried again
    assert len(outcomes) == 2


@pytest.mark.parametrize(
    ("broken", "error", "why"),
    [
        ("no permission", Refused, "worker w-1 was not killed: no permission"),
        ("is buggy", Unknown, "whether worker w-1 was killed: ZeroDivisionError: a bug"),
        ("hangs", Unknown, "whether worker w-1 was killed: the provisioner did not answer in time"),
    ],
)
async def test_a_provisioner_that_misbehaves_is_told(
    broken: str,
    error: type[TrikvError],
    why: str,
    nursery: trio.Nursery,
    tmp_path: Path,
    autojump_clock: MockClock,
) -> None:
    cluster, provisioner = await broken_cluster(nursery, tmp_path, own=3, foreign=0)
    provisioner.broken = broken
    with pytest.raises(error, match=why):
        await cluster.master.breaking.inject(BreakKind.KILL, "w-1")
    assert told(cluster) == []
    await cluster.coordinator.put(KEY, b"value")


async def test_a_start_that_fails_is_refused_with_its_reason_and_can_be_tried_again(
    nursery: trio.Nursery, tmp_path: Path, autojump_clock: MockClock
) -> None:
    cluster, provisioner = await broken_cluster(nursery, tmp_path, own=3, foreign=0)
    breaking = cluster.master.breaking
    await breaking.inject(BreakKind.KILL, "w-1")
    provisioner.broken = "no such machine"
    with pytest.raises(Refused, match="worker w-1 did not start: no such machine"):
        await breaking.inject(BreakKind.START, "w-1")
    assert row_of(breaking, "w-1")["can"] == ["start", "cut", "slow"]
    provisioner.broken = ""
    await breaking.inject(BreakKind.START, "w-1")
    await cluster.until_all_up()


async def test_an_injection_goes_on_when_its_client_goes_away(
    nursery: trio.Nursery, tmp_path: Path, autojump_clock: MockClock
) -> None:
    cluster, provisioner = await broken_cluster(nursery, tmp_path, own=3, foreign=0)
    provisioner.broken = "hangs"
    with trio.move_on_after(1):
        await cluster.master.breaking.inject(BreakKind.PAUSE, "w-1")
    with pytest.raises(Refused, match="worker w-1 is being paused"):
        await cluster.master.breaking.inject(BreakKind.KILL, "w-1")


async def test_a_worker_that_moved_has_another_link(
    nursery: trio.Nursery, tmp_path: Path, autojump_clock: MockClock
) -> None:
    cluster, _ = await broken_cluster(nursery, tmp_path)
    breaking = cluster.master.breaking
    node = cluster.node_of("w-1")
    await breaking.inject(BreakKind.CUT, "w-1")
    await cluster.kill(node)
    await cluster.add_worker(storage=node.storage, worker_id="w-1")
    await cluster.until(lambda: cluster.master.cluster.workers["w-1"].address != node.address)
    assert breaking.condition_of("w-1").link is LinkState.WHOLE
    await cluster.until_all_up()
