"""Shrinking, against failures whose causes are known: what is left is the cause and nothing else."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from trikv.testing.certify.shrink import shrink
from trikv.testing.judge.history import Kind
from trikv.testing.sim.plan import FaultKind, Plan, Schedule, ScheduledFault, ScheduledRequest
from trikv_quorum import Quorum

Fails = Callable[[Schedule], bool]


class Player:
    """Stands for the runs: a schedule fails or does not, by a rule of the test's."""

    def __init__(self, fails: Fails) -> None:
        self._fails = fails
        self.runs = 0

    def first_failing(self, candidates: Sequence[Schedule]) -> int | None:
        for index, candidate in enumerate(candidates):
            self.runs += 1
            if self._fails(candidate):
                return index
        return None


def whole() -> Schedule:
    return Plan().draw(Quorum(), 3)


def holds(schedule: Schedule, *pieces: ScheduledFault | ScheduledRequest) -> bool:
    """Are these still in it? Times may have moved."""
    kept: list[ScheduledFault | ScheduledRequest] = [replace(fault, at_s=0.0) for fault in schedule.faults]
    kept += [replace(request, at_s=0.0) for request in schedule.requests]
    return all(replace(piece, at_s=0.0) in kept for piece in pieces)


def some_fault(schedule: Schedule) -> ScheduledFault:
    return next(fault for fault in schedule.faults if fault.kind is not FaultKind.PARTITION)


def test_what_does_not_matter_goes() -> None:
    schedule = whole()
    fault = some_fault(schedule)
    read = next(one for one in schedule.requests if one.kind is Kind.GET and one.key == schedule.keys[0])

    def fails(candidate: Schedule) -> bool:
        return holds(candidate, fault) and any(one.kind is Kind.GET for one in candidate.requests)

    shrunk = shrink(schedule, Player(fails).first_failing, failed_s=100.0)
    assert fails(shrunk.schedule)
    assert len(shrunk.schedule.faults) == 1
    assert [one.kind for one in shrunk.schedule.requests] == [read.kind]
    assert len(shrunk.schedule.keys) == 1
    assert shrunk.schedule.clients == 1


def test_pieces_that_only_fail_together_stay_together() -> None:
    schedule = whole()
    needed = (schedule.requests[5], schedule.requests[-40], schedule.requests[-9])

    def fails(candidate: Schedule) -> bool:
        kinds = [one.kind for one in candidate.requests]
        return all(kinds.count(one.kind) >= [n.kind for n in needed].count(one.kind) for one in needed)

    shrunk = shrink(schedule, Player(fails).first_failing, failed_s=100.0)
    assert sorted(one.kind for one in shrunk.schedule.requests) == sorted(one.kind for one in needed)
    assert shrunk.schedule.faults == ()


def test_what_came_after_the_failure_goes_first() -> None:
    seen: list[Schedule] = []

    def fails(candidate: Schedule) -> bool:
        seen.append(candidate)
        return False

    shrink(whole(), Player(fails).first_failing, failed_s=10.0)
    assert max(one.at_s for one in seen[0].requests) <= 10.5


@pytest.mark.parametrize("runs_max", [0, 1, 7, 60])
def test_the_number_of_runs_is_bounded(runs_max: int) -> None:
    player = Player(lambda candidate: len(candidate.requests) % 2 == 0)
    shrunk = shrink(whole(), player.first_failing, failed_s=100.0, runs_max=runs_max)
    assert shrunk.runs == player.runs <= runs_max


def test_what_never_fails_again_stays_as_it_is() -> None:
    schedule = whole()
    assert shrink(schedule, Player(lambda candidate: False).first_failing, failed_s=100.0).schedule == schedule


def test_pauses_shrink_and_order_stays() -> None:
    schedule = replace(
        whole(),
        faults=(ScheduledFault(50.0, FaultKind.CRASH, ("w1",), 1.0),),
        requests=(ScheduledRequest(20.0, 0, Kind.PUT, "hot0"), ScheduledRequest(20.1, 1, Kind.GET, "hot0")),
    )

    def fails(candidate: Schedule) -> bool:
        return len(candidate.requests) == 2 and len(candidate.faults) == 1

    shrunk = shrink(schedule, Player(fails).first_failing, failed_s=100.0).schedule
    put, get = (one.at_s for one in shrunk.requests)
    assert put < get < shrunk.faults[0].at_s < 10
    assert get - put == pytest.approx(0.1)


def test_workers_that_hold_nothing_go_with_what_befell_them() -> None:
    fault = ScheduledFault(1.0, FaultKind.CRASH, ("w5",), 1.0)
    schedule = replace(whole(), faults=(fault,))
    shrunk = shrink(schedule, Player(lambda candidate: True).first_failing, failed_s=100.0).schedule
    assert (shrunk.workers, shrunk.faults) == (shrunk.replicas, ())
