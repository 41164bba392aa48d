"""Faults of the simulated world: how they begin and end, and that nothing stays broken when the last one is over."""

from __future__ import annotations

import logging

import pytest

from trikv.api import Batch, Strategy
from trikv.core.errors import Outcome
from trikv.testing.judge.history import Kind
from trikv.testing.sim import FaultKind, Schedule, Verdict, run_schedule
from trikv.testing.sim.disk import ConfigDisk, Disk
from trikv.testing.sim.plan import MASTER, ScheduledFault, ScheduledRequest


def one_put(*faults: ScheduledFault, at_s: float = 1.0) -> Schedule:
    """Three workers, one key, one request, and these faults."""
    return Schedule(
        seed=1,
        workers=3,
        replicas=3,
        clients=1,
        partitions=1,
        latency_s=0.03,
        fsync_s=0.01,
        keys=("k",),
        requests=(ScheduledRequest(at_s, 0, Kind.PUT, "k"),),
        faults=faults,
    )


@pytest.mark.parametrize("at_s", [1.03, 1.05, 1.07, 1.09])
def test_a_master_that_is_stopped_under_the_last_request_is_started_again(
    at_s: float, strategies: dict[str, Strategy]
) -> None:
    """The stop ends the request, the request's end is the end of all faults, and the master is still on its way out."""
    run = run_schedule(strategies["quorum"], one_put(ScheduledFault(at_s, FaultKind.MASTER_STOP, (MASTER,), 60.0)))
    assert run.faults == {FaultKind.MASTER_STOP: 1}
    assert run.verdict is Verdict.HELD, run.findings


@pytest.mark.parametrize("mode", ["sync", "chain"])
def test_a_write_that_needs_a_hung_disk_is_unknown_and_the_process_lives(
    mode: str, strategies: dict[str, Strategy]
) -> None:
    run = run_schedule(strategies[mode], one_put(ScheduledFault(0.9, FaultKind.HUNG_DISK, ("w2",), 20.0)), trace=True)
    assert run.faults == {FaultKind.HUNG_DISK: 1}
    assert run.history[0].outcome is Outcome.UNKNOWN
    assert not [event for event in run.trace if event.what == "down"]
    assert run.verdict is Verdict.HELD, run.findings


def test_two_of_three_commit_while_the_disk_of_the_third_hangs(strategies: dict[str, Strategy]) -> None:
    run = run_schedule(strategies["quorum"], one_put(ScheduledFault(0.9, FaultKind.HUNG_DISK, ("w2",), 20.0)))
    assert run.history[0].outcome is Outcome.COMMITTED
    assert run.verdict is Verdict.HELD, run.findings


@pytest.mark.parametrize("mode", ["async", "quorum"])
def test_a_document_that_is_put_back_gives_a_term_twice(
    mode: str, strategies: dict[str, Strategy], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="trikv.master.fencing")
    crash = ScheduledFault(0.5, FaultKind.MASTER_CRASH, (MASTER,), 0.1)
    put_back = ScheduledFault(1.5, FaultKind.OLD_DOCUMENT, (MASTER,), 0.2)
    run = run_schedule(strategies[mode], one_put(crash, put_back, at_s=3.0))
    assert run.verdict is Verdict.HELD, run.findings
    assert run.history[0].outcome is Outcome.COMMITTED
    assert "workers know a master of term 2, the document knew 2" in caplog.text


def test_a_disk_is_put_back_as_it_was_before_one_of_the_starts_of_its_worker() -> None:
    disk = Disk(0.01)
    assert not disk.copies()
    for number, starts in enumerate([b"0. 1.a", b"1.a", b"1.a 2.b", b"2.b", b"2.b 3.c"], start=1):
        disk.under_way = Batch(meta={"batches": b"%d" % number, "starts": starts})
        disk.flush()
    disk.put_back(0.9)
    assert (disk.meta["starts"], disk.progress) == (b"2.b", 4)
    disk.put_back(0.9)
    assert (disk.meta["starts"], disk.progress) == (b"1.a", 2)
    assert not disk.copies()


def test_a_change_in_doubt_is_made_later_unless_another_one_was_made_first() -> None:
    disk = ConfigDisk({"n": 1}, 0.01)
    disk.later = (b"two", disk.revision)
    disk.make_later_change()
    assert (disk.body, disk.revision) == (b"two", 2)
    disk.later = (b"three", disk.revision)
    disk.under_way = b"four"
    disk.flush()
    disk.make_later_change()
    assert (disk.body, disk.revision) == (b"four", 3)
