"""Whether a worker is up, suspect or down: arithmetic over the times of its signs of life.

A missed heartbeat proves nothing: the network, or a pause of the worker, can swallow it. So silence first makes a
worker suspect, and requests prefer other replicas. Only a long silence makes it down. A refused connection is better
evidence than silence: no process listens at that address any more.

    unknown   from the beginning until it is first heard     -> up when heard; down after `down_after_s`
    up        heard less than `suspect_after_s()` ago        -> suspect by silence; down when broken
    suspect   heard less than `down_after_s` ago             -> up when heard; down by silence or when broken
    down      longer silent, or broken                       -> up when heard

Before a worker was first heard, a refused connection says nothing, since the worker may just be starting. So a master
that starts before its workers answers late rather than wrongly.

*How long a silence is suspicious* is learnt from the last intervals between signs of life, in the manner of the phi
accrual detector (Hayashibara et al., SRDS 2004, section 4). A worker or a link that is always slow is then not suspect
at each beat. We depart from the paper in four ways.

- The paper gives a level of suspicion on a continuous scale, from the tail of a normal distribution. We compare with
  mean and deviation, since there are only two things to do about a suspect.
- The paper's threshold may come as near to the mean as the deviation allows. Ours has a floor, since acting on a pause
  of the garbage collector costs more than waiting for its end.
- An interval counts for no more than was suspicious at the time. So one long pause teaches little, and steady slowness
  is learnt soon.
- *Down* does not learn at all. It leads to data being moved, so operators choose the time, and it is the same for every
  worker.

*What the planner needs*, beyond the state. `evictable`: silent for `down_after_s`, so that the configuration may move
on. A refused connection makes a worker down for requests at once, but not evictable: if it restarts in time, with its
disk, it keeps its place. `steady`: up without interruption for so long that it may be given data. That wait doubles
with each time that the worker was down or evicted in the last `SETBACK_WINDOW_S`, so that data is not moved to and fro
for a worker that flaps. A new master knows of no setbacks.

Times are seconds of any monotonic clock, and the caller passes them in. Everything is computed when it is asked for, so
there is no timer. (The arithmetic is from hashicorp/memberlist's suspicion.go. Its timeout shrinks as further members
confirm a suspicion; here there is one observer.)
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum
from math import sqrt
from typing import Final

SUSPECT_FLOOR_S: Final = 1.1
DOWN_AFTER_S: Final = 5.0
STEADY_AFTER_S: Final = 1.0
STEADY_AFTER_MOST_S: Final = 300.0
SETBACK_WINDOW_S: Final = 3600.0  # much longer than the longest wait, else the wait would shorten itself
INTERVALS_KEPT: Final = 16  # some twelve seconds, for an idle worker
EXPECTED_INTERVAL_S: Final = 0.75  # assumed until INTERVALS_KEPT were seen
_BURST_S: Final = 0.2  # an answer this soon after the last sign of life is part of it
_MEANS: Final = 1.25  # this many mean intervals plus `_DEVIATIONS` deviations are suspicious
_DEVIATIONS: Final = 4.0


class WorkerState(StrEnum):
    UNKNOWN = "unknown"
    UP = "up"
    SUSPECT = "suspect"
    DOWN = "down"


class Suspicion:
    """What one observer knows of one worker at one address, from `now_s` on."""

    def __init__(self, now_s: float, *, down_after_s: float = DOWN_AFTER_S) -> None:
        assert down_after_s > 0, down_after_s
        self.down_after_s = down_after_s
        self._began_s = now_s
        self._heard_s: float | None = None
        self._broken_s: float | None = None
        self._up_since_s: float | None = None
        self._counted_s: float | None = None  # the end of the last interval that was counted
        self._intervals_s = deque([EXPECTED_INTERVAL_S] * INTERVALS_KEPT, INTERVALS_KEPT)
        self._learnt_s = self._learn()
        self._setbacks_s: list[float] = []
        self._evicted = False  # and it was not heard since

    # --- what happens -------------------------------------------------------------------------------------------------

    def heartbeat(self, heard_s: float) -> None:
        """The worker was heard, by its answer to a heartbeat or by any other answer. Old news changes nothing."""
        if self._heard_s is not None and heard_s <= self._heard_s:
            return
        before = self.state(heard_s)
        self._count_interval(heard_s)
        was_heard = self._heard_s is not None
        self._heard_s = heard_s
        if (
            before is WorkerState.UP or self.state(heard_s) is not WorkerState.UP
        ):  # news from before its link broke mends nothing
            return
        self._up_since_s = heard_s
        if before is WorkerState.DOWN and was_heard and not self._evicted:
            self._setbacks_s.append(heard_s)
        self._evicted = False

    def broken(self, now_s: float) -> None:
        """Its link broke, and the attempt to redial was refused. That holds until the worker is heard again."""
        self._broken_s = now_s

    def evicted(self, now_s: float) -> None:
        """The configuration has moved on without it."""
        self._setbacks_s.append(now_s)
        self._evicted = True

    def forgive(self, stopped_s: float) -> None:
        """The observer itself was stopped for that long. For no worker does it count as silence, or as time up."""
        self._began_s += stopped_s
        if self._heard_s is not None:
            self._heard_s += stopped_s
        if self._broken_s is not None:
            self._broken_s += stopped_s
        if self._up_since_s is not None:
            self._up_since_s += stopped_s
        if self._counted_s is not None:
            self._counted_s += stopped_s

    # --- what is known of it ------------------------------------------------------------------------------------------

    def state(self, now_s: float) -> WorkerState:
        silent_s = self.silent_s(now_s)
        if self._heard_s is None:
            return WorkerState.UNKNOWN if silent_s < self.down_after_s else WorkerState.DOWN
        if silent_s >= self.down_after_s or (self._broken_s is not None and self._broken_s >= self._heard_s):
            return WorkerState.DOWN
        return WorkerState.SUSPECT if silent_s >= self.suspect_after_s() else WorkerState.UP

    def silent_s(self, now_s: float) -> float:
        """How long ago the worker was heard; if never, how long the observer has listened."""
        return now_s - (self._began_s if self._heard_s is None else self._heard_s)

    def suspect_after_s(self) -> float:
        """The length of silence that is suspicious for this worker."""
        return min(max(SUSPECT_FLOOR_S, self._learnt_s), self.down_after_s)

    def evictable(self, now_s: float) -> bool:
        """Has it been silent for so long that the configuration may move on without it?"""
        return self.silent_s(now_s) >= self.down_after_s

    def steady(self, now_s: float) -> bool:
        """Has it been up for so long that it may be given data?"""
        if self._up_since_s is None or self.state(now_s) is not WorkerState.UP:
            return False
        return now_s - self._up_since_s >= self.steady_after_s(now_s)

    def steady_after_s(self, now_s: float) -> float:
        """How long the worker must be up before it may be given data."""
        self._setbacks_s = [at_s for at_s in self._setbacks_s if now_s - at_s < SETBACK_WINDOW_S]
        doubled = min(len(self._setbacks_s), 30)  # far beyond the maximum, and still a float
        return min(STEADY_AFTER_S * 2.0**doubled, STEADY_AFTER_MOST_S)

    def learn_setbacks(self, former: Suspicion) -> None:
        """Take over the setbacks of the same worker, which was watched at another address until now."""
        self._setbacks_s = [*former._setbacks_s]
        self._evicted = former._evicted

    def _count_interval(self, heard_s: float) -> None:
        if self._counted_s is None:
            self._counted_s = heard_s
        elif heard_s - self._counted_s >= _BURST_S:
            self._intervals_s.append(min(heard_s - self._counted_s, self.suspect_after_s()))
            self._counted_s = heard_s
            self._learnt_s = self._learn()

    def _learn(self) -> float:
        kept = self._intervals_s
        mean_s = sum(kept) / INTERVALS_KEPT
        deviation_s = sqrt(sum([(interval_s - mean_s) ** 2 for interval_s in kept]) / INTERVALS_KEPT)
        return _MEANS * mean_s + _DEVIATIONS * deviation_s
