"""Aimed schedules: scenes round a half-done write, and faults that name a replica by its place."""

from __future__ import annotations

import pytest

from trikv.api import Strategy
from trikv.testing.judge.history import Kind
from trikv.testing.sim import CERTIFYING, FaultKind, Schedule, run_schedule
from trikv.testing.sim.aimed import Aimed
from trikv.testing.sim.plan import MASTER, ScheduledFault, ScheduledRequest, parse_replica, replica_of
from trikv_async import Async
from trikv_quorum import Quorum


def test_a_seed_draws_the_same_scenes_each_time() -> None:
    assert Aimed().draw(Quorum(), 5) == Aimed().draw(Quorum(), 5)
    assert Aimed().draw(Quorum(), 5) != Aimed().draw(Quorum(), 9)


def test_clients_look_while_a_write_is_half_done_and_again_after_a_turn() -> None:
    for seed in range(20):
        schedule = Aimed().draw(Quorum(), seed)
        kinds = [request.kind for request in schedule.requests]
        assert kinds.count(Kind.GET) + kinds.count(Kind.SCAN) > 2 * (kinds.count(Kind.PUT) + kinds.count(Kind.DELETE))
        assert all(parse_replica(node) or node == MASTER for fault in schedule.faults for node in fault.nodes)
        assert all(fault.lasts_s > 0 for fault in schedule.faults)
        assert {request.key for request in schedule.requests if request.kind is not Kind.SCAN} <= set(schedule.keys)


def test_disks_are_lost_only_as_far_as_the_promise_covers_that() -> None:
    for strategy, most in ((Quorum(), None), (Async(), 1)):
        for seed in range(40):
            schedule = Aimed().draw(strategy, seed)
            lost = sum(fault.kind is FaultKind.EVICTION_EMPTY for fault in schedule.faults)
            assert lost <= (strategy.copies(schedule.replicas) - 1 if most is None else most)


def test_a_strategy_that_cannot_compare_is_not_asked_to() -> None:
    kinds = [{one.kind for one in Aimed().draw(strategy, 1).requests} for strategy in (Quorum(), Async())]
    assert [Kind.CAS in some for some in kinds] == [True, False]


@pytest.mark.parametrize("key", ["k", "a key of two\nlines"])
def test_a_replica_is_named_by_its_place(key: str) -> None:
    assert parse_replica(replica_of(key, 2)) == (key, 2)
    assert parse_replica("w1") is None


def test_a_fault_hits_the_worker_that_is_in_that_place_when_it_strikes(strategies: dict[str, Strategy]) -> None:
    """The head is replaced, and the next fault on the head hits another worker. There is no ninth replica to hit."""
    head = replica_of("k", 1)
    schedule = Schedule(
        seed=1,
        workers=4,
        replicas=3,
        clients=1,
        partitions=1,
        latency_s=0.001,
        fsync_s=0.001,
        keys=("k",),
        requests=(ScheduledRequest(0.5, 0, Kind.PUT, "k"), ScheduledRequest(9.0, 0, Kind.GET, "k")),
        faults=(
            ScheduledFault(1.0, FaultKind.EVICTION, (head,), 6.0),
            ScheduledFault(5.0, FaultKind.CUT_LINK, (MASTER, head), 0.2),
            ScheduledFault(5.5, FaultKind.CRASH, (replica_of("k", 9),), 0.2),
        ),
        down_after_s=2.0,
    )
    run = run_schedule(strategies["quorum"], schedule)
    assert run.findings == []
    evicted, cut = run.struck
    assert (evicted.kind, cut.kind) == (FaultKind.EVICTION, FaultKind.CUT_LINK)
    assert cut.nodes[0] == MASTER
    assert evicted.nodes[0] in {"w1", "w2", "w3", "w4"}
    assert cut.nodes[1] in {"w1", "w2", "w3", "w4"} - set(evicted.nodes)


def test_what_an_evicted_worker_alone_holds_may_be_gone_once_a_tombstone_of_the_partition_was_forgotten() -> None:
    """The others are off while a write is acknowledged by one alone. That is evicted, and what it holds is not taken
    when it returns, since it may have been deleted meanwhile."""
    strategy = Async()
    assert run_schedule(strategy, CERTIFYING.draw(strategy, 765)).findings == []
