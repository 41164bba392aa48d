"""From a run that fails to the smallest schedule that still does.

A schedule is data, so any part can be taken out of it, and the rest run again. Big pieces are tried first: everything
after the failure, all keys but one, each client, the workers that hold no copy. Then faults and requests one by one, by
delta debugging (Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002, the `ddmin`
algorithm). Of `ddmin` only the complements are tried, since a failure needs most of its pieces together. This is
repeated until no piece can go.

The caller says what failing means, and may test several candidates at once. It answers with the first that fails, in
their order, so the result does not depend on how many are tested together. The number of runs is bounded; the smallest
schedule when they are used up is the result. It is small, but not proven to be smallest: taking out a piece shifts the
dice of what follows a little, so a candidate that passes might fail under other dice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, TypeVar

from trikv.testing.sim.plan import Schedule, ScheduledRequest

T = TypeVar("T")

RUNS_MAX: Final = 400
_SPEED_UPS: Final = (0.1, 0.3)  # pauses are tried at these shares of their length

FirstFailing = Callable[[Sequence[Schedule]], int | None]  # the index of the first candidate that fails, if any does


@dataclass(frozen=True, slots=True)
class Shrunk:
    schedule: Schedule
    runs: int


def shrink(schedule: Schedule, first_failing: FirstFailing, *, failed_s: float, runs_max: int = RUNS_MAX) -> Shrunk:
    """The smallest failing schedule that was found within `runs_max` runs.

    `failed_s`: when the failure was complete, on the schedule's own clock.
    """
    hunt = _Hunt(schedule, first_failing, runs_max)
    hunt.try_each([_until(schedule, failed_s + slack_s) for slack_s in (0.5, 3.0)])
    size = -1
    while size != _size(hunt.best) and not hunt.is_over:
        size = _size(hunt.best)
        hunt.try_each([_with_key(hunt.best, key) for key in hunt.best.keys if len(hunt.best.keys) > 1])
        hunt.try_each(_with_fewer_workers(hunt.best))
        for client in sorted({request.client for request in hunt.best.requests}):
            hunt.try_each([_without_client(hunt.best, client)])
        hunt.minimize(hunt.best.faults, lambda faults: replace(hunt.best, faults=tuple(faults)))
        hunt.minimize(hunt.best.requests, lambda requests: replace(hunt.best, requests=tuple(requests)))
        hunt.try_each(_with_fewer_clients(hunt.best))
    hunt.try_each(list(_closer_together(hunt.best)))
    return Shrunk(hunt.best, hunt.runs)


def _size(schedule: Schedule) -> int:
    return len(schedule.faults) + len(schedule.requests) + len(schedule.keys) + schedule.workers + schedule.clients


class _Hunt:
    """The smallest failing schedule so far, and how many runs the search may still cost."""

    def __init__(self, schedule: Schedule, first_failing: FirstFailing, runs_max: int) -> None:
        self.best = schedule
        self.runs = 0
        self._first_failing = first_failing
        self._runs_max = runs_max

    @property
    def is_over(self) -> bool:
        return self.runs >= self._runs_max

    def try_each(self, candidates: Sequence[Schedule]) -> int | None:
        """Take the first candidate that fails, and return its index; None if none fails."""
        candidates = [one for one in candidates if one != self.best][: self._runs_max - self.runs]
        if not candidates:
            return None
        index = self._first_failing(candidates)
        self.runs += len(candidates) if index is None else index + 1
        if index is not None:
            self.best = candidates[index]
        return index

    def minimize(self, pieces: Sequence[T], with_pieces: Callable[[Sequence[T]], Schedule]) -> None:
        """Take out as many pieces as possible: halves first, then ever smaller parts."""
        if self.try_each([with_pieces(())]) is not None:
            return
        parts = 2
        while len(pieces) >= 2 and not self.is_over:
            bounds = [len(pieces) * number // parts for number in range(parts + 1)]
            kept = [[*pieces[:low], *pieces[high:]] for low, high in pairwise(bounds)]
            index = self.try_each([with_pieces(some) for some in kept])
            if index is not None:
                pieces = kept[index]
                parts = max(parts - 1, 2)
            elif parts >= len(pieces):
                return
            else:
                parts = min(len(pieces), parts * 2)


def _until(schedule: Schedule, end_s: float) -> Schedule:
    return replace(
        schedule,
        requests=tuple(request for request in schedule.requests if request.at_s <= end_s),
        faults=tuple(fault for fault in schedule.faults if fault.at_s <= end_s),
        lasts_s=min(schedule.lasts_s, end_s),
    )


def _with_key(schedule: Schedule, key: str) -> Schedule:
    return replace(schedule, keys=(key,), requests=tuple(one for one in schedule.requests if key.startswith(one.key)))


def _without_client(schedule: Schedule, client: int) -> Schedule:
    return replace(schedule, requests=tuple(request for request in schedule.requests if request.client != client))


def _with_fewer_workers(schedule: Schedule) -> list[Schedule]:
    """The schedules without the workers of the highest numbers, and without their faults."""
    fewer = []
    for workers in range(schedule.replicas, schedule.workers):
        gone = set(schedule.worker_ids[workers:])
        faults = tuple(fault for fault in schedule.faults if gone.isdisjoint(fault.nodes))
        fewer.append(replace(schedule, workers=workers, ids=schedule.ids[:workers], faults=faults))
    return fewer


def _with_fewer_clients(schedule: Schedule) -> list[Schedule]:
    """The clients that still ask for something, numbered anew; at least one."""
    left = sorted({request.client for request in schedule.requests})
    numbers = {client: number for number, client in enumerate(left)}

    def renumber(request: ScheduledRequest) -> ScheduledRequest:
        return replace(request, client=numbers[request.client])

    count = max(len(left), 1)
    if count == schedule.clients:
        return []
    return [replace(schedule, clients=count, requests=tuple(map(renumber, schedule.requests)))]


def _closer_together(schedule: Schedule) -> Iterator[Schedule]:
    """The same schedule with shorter pauses: easier to read, and quicker to run."""
    moments = [*(one.at_s for one in schedule.requests), *(one.at_s for one in schedule.faults)]
    times = sorted({0.0, schedule.lasts_s, *moments})
    for share in _SPEED_UPS:
        moved = {0.0: 0.0}
        for before_s, time_s in pairwise(times):
            gap_s = time_s - before_s
            moved[time_s] = moved[before_s] + (gap_s if gap_s < 1 else 1 + (gap_s - 1) * share)
        yield replace(
            schedule,
            requests=tuple(replace(one, at_s=moved[one.at_s]) for one in schedule.requests),
            faults=tuple(replace(one, at_s=moved[one.at_s]) for one in schedule.faults),
            lasts_s=moved[schedule.lasts_s],
        )
