"""What the cluster did, second by second, for the last quarter of an hour: the data of the page's charts.

Every `STEP_S` one sample is taken from counters that exist anyway: how many operations ended and how, how long they
took, what each worker was asked. Nothing is counted for it on the path of a request. A sample is about thirty numbers,
and `KEPT_MAX` are kept, so the whole costs less than a megabyte.

A rate belongs to the time between two samples as it was measured, not as it was meant: where the event loop was late,
the step is longer, and the rate is right all the same. Percentiles are read from buckets (`core/histogram.py`).

Left out: anything older, which is a monitoring system's to keep (`GET /metrics`).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any, Final

import trio

from trikv.coordinator.coordinator import Coordinator
from trikv.core.errors import Outcome
from trikv.core.histogram import percentile_s
from trikv.core.suspicion import WorkerState
from trikv.master.membership import Membership

STEP_S: Final = 1.0
KEPT_MAX: Final = 900
PERCENTILES: Final = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99}

Sample = Mapping[str, Any]  # names of columns to numbers; None: nothing is known


class Sampling:
    """
    Args:
      scaling: what `Autoscaler.describe` says, or None where the cluster does not scale by itself.
    """

    def __init__(
        self,
        membership: Membership,
        coordinator: Coordinator,
        scaling: Callable[[], Mapping[str, Any] | None] = lambda: None,
        *,
        kept_max: int = KEPT_MAX,
    ) -> None:
        self.loads: Mapping[str, float] = {}  # by worker, the requests that were put to it, a second
        self._membership = membership
        self._coordinator = coordinator
        self._scaling = scaling
        self._began_s = self._taken_s = trio.current_time()
        self._samples: deque[Sample] = deque(maxlen=kept_max)
        self._outcomes = coordinator.outcomes
        self._counts = {what: list(each.counts) for what, each in coordinator.durations.items()}
        self._calls: Counter[str] = Counter()

    async def run(self) -> None:
        """Take samples until cancelled."""
        while True:
            await trio.sleep(STEP_S)
            self._samples.append(self._take(trio.current_time()))

    @property
    def latest(self) -> Sample | None:
        return self._samples[-1] if self._samples else None

    def columns(self) -> dict[str, list[Any]]:
        """All samples that are kept, oldest first: a list of values for each name."""
        names = self._samples[-1] if self._samples else ()
        return {name: [sample[name] for sample in self._samples] for name in names}

    def _take(self, now_s: float) -> Sample:
        elapsed_s = max(now_s - self._taken_s, 1e-3)
        self._taken_s = now_s
        workers = self._membership.watched.values()
        scaling = self._scaling()
        return {
            "time_s": round(now_s - self._began_s, 3),
            **self._take_outcomes(elapsed_s),
            **self._take_durations(elapsed_s),
            "in_flight": self._coordinator.in_flight,
            "keys": sum(each.vitals.keys for each in workers if each.vitals is not None),
            "workers": len(workers),
            "workers_up": sum(each.state is WorkerState.UP for each in workers),
            "busiest": round(max(self._take_loads(elapsed_s).values(), default=0.0), 1),
            "use": None if scaling is None else scaling["use"],
            "hottest": None if scaling is None else scaling["hottest"],
        }

    def _take_outcomes(self, elapsed_s: float) -> dict[str, float]:
        before, self._outcomes = self._outcomes, self._coordinator.outcomes
        return {each.value: round((self._outcomes[each] - before[each]) / elapsed_s, 1) for each in Outcome}

    def _take_durations(self, elapsed_s: float) -> dict[str, float | None]:
        """Operations that ended since the last sample: reads and writes a second, and percentiles of all of them."""
        ended: dict[str, list[int]] = {}
        for what, histogram in self._coordinator.durations.items():
            before, self._counts[what] = self._counts[what], list(histogram.counts)
            ended[what] = [now - then for now, then in zip(self._counts[what], before, strict=True)]
        on_keys = [sum(counts) for counts in zip(*(ended[what] for what in ("get", "put", "delete")), strict=True)]
        told: dict[str, float | None] = {
            "reads": round(sum(ended["get"]) / elapsed_s, 1),
            "writes": round(sum(ended["put"] + ended["delete"]) / elapsed_s, 1),
        }
        for name, share in PERCENTILES.items():
            found_s = percentile_s(on_keys, share)
            told[name] = None if found_s is None else round(1000 * found_s, 3)
        return told

    def _take_loads(self, elapsed_s: float) -> Mapping[str, float]:
        calls = self._membership.calls()
        # A worker that comes back as another member begins to count anew.
        self.loads = {worker: max(0, count - self._calls[worker]) / elapsed_s for worker, count in calls.items()}
        self._calls = calls
        return self.loads
