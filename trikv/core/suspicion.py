"""Whether a worker is up, suspect or down: arithmetic over the times at which it was heard.

A missed heartbeat proves nothing; the network, or a pause of the worker, can swallow one. So silence first makes a
worker suspect, and requests ask others first, and only a long silence makes it down. A refused connection is better
evidence than any silence: nobody listens at that address any more.

    unknown   from the beginning until it is first heard     -> up when heard; down after `down_after_s`
    up        heard less than `suspect_after_s()` ago        -> suspect by silence; down when broken
    suspect   heard less than `down_after_s` ago             -> up when heard; down by silence or when broken
    down      longer silent, or broken                       -> up when heard

Before a worker was first heard a refused connection says nothing, since it may just be starting; that is the grace in
which a master that starts before its workers answers late rather than wrongly.

*How long a silence is suspicious* is learnt from the last intervals between signs of life, in the manner of the phi
accrual detector (Hayashibara et al., SRDS 2004, section 4): a worker or a link that is slow all the time is not suspect
at each beat. We depart from it. It answers with a level of suspicion on a continuous scale, from the tail of a normal
distribution; we compare with mean and deviation, since there are only two things to do about a suspect. Its threshold
may come as near to the mean as the deviation allows; ours has a floor, since a collector's pause costs more to act on
than to wait for. An interval counts for no more than was suspicious at the time, so that one long pause teaches little
and steady slowness soon much. And *down* does not learn at all: what follows from it moves data, so operators choose
the time, and it means the same for every worker.

*What the planner needs*, beyond the state. `evictable`: silent for `down_after_s`, so that the configuration may move
on. A refused connection makes a worker down at once, for requests, but not evictable: restarted in time, with its disk,
it keeps its place. `steady`: up without interruption for so long that it may be given data; the wait doubles with each
time that it was down or evicted in the last `SETBACK_WINDOW_S`, so that a worker that flaps does not have data moved to
and fro. A master that starts anew knows of no setbacks.

Times are seconds of any monotonic clock, and passed in. All is computed when it is asked for, so there is no timer to
arm or to forget. (hashicorp/memberlist's suspicion.go taught the arithmetic. Its timeout shrinks as further members
confirm a suspicion; here one observer looks on.)
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
SETBACK_WINDOW_S: Final = 3600.0  # much longer than the longest wait, or that would shorten itself
INTERVALS_KEPT: Final = 16  # some twelve seconds of an idle worker
EXPECTED_INTERVAL_S: Final = 0.75  # believed until so many were seen
_BURST_S: Final = 0.2  # what is heard so soon after the last sign of life is part of it
_MEANS: Final = 1.25  # so many mean intervals, and so many deviations, are suspicious
_DEVIATIONS: Final = 4.0


class WorkerState(StrEnum):
    UNKNOWN = "unknown"
    UP = "up"
    SUSPECT = "suspect"
    DOWN = "down"


class Suspicion:
    """What is thought of one worker at one address, from `now_s` on."""

    def __init__(self, now_s: float, *, down_after_s: float = DOWN_AFTER_S) -> None:
        assert down_after_s > 0, down_after_s
        self.down_after_s = down_after_s
        self._began_s = now_s
        self._heard_s: float | None = None
        self._broken_s: float | None = None
        self._up_since_s: float | None = None
        self._counted_s: float | None = None  # when the last interval that was counted ended
        self._intervals_s = deque([EXPECTED_INTERVAL_S] * INTERVALS_KEPT, INTERVALS_KEPT)
        self._learnt_s = self._learn()
        self._setbacks_s: list[float] = []
        self._evicted = False  # and not heard since

    # --- what happens -------------------------------------------------------------------------------------------------

    def heartbeat(self, heard_s: float) -> None:
        """It was heard: by an answer to a heartbeat, or by any other answer. Old news changes nothing."""
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
        """Its link broke, and the attempt to redial was refused. Holds until it is heard at a later time."""
        self._broken_s = now_s

    def evicted(self, now_s: float) -> None:
        """The configuration has moved on without it."""
        self._setbacks_s.append(now_s)
        self._evicted = True

    def forgive(self, stopped_s: float) -> None:
        """The observer was itself stopped for so long: to nobody does it count as silence, or as being up."""
        self._began_s += stopped_s
        if self._heard_s is not None:
            self._heard_s += stopped_s
        if self._broken_s is not None:
            self._broken_s += stopped_s
        if self._up_since_s is not None:
            self._up_since_s += stopped_s
        if self._counted_s is not None:
            self._counted_s += stopped_s

    # --- what is thought of it ----------------------------------------------------------------------------------------

    def state(self, now_s: float) -> WorkerState:
        silent_s = self.silent_s(now_s)
        if self._heard_s is None:
            return WorkerState.UNKNOWN if silent_s < self.down_after_s else WorkerState.DOWN
        if silent_s >= self.down_after_s or (self._broken_s is not None and self._broken_s >= self._heard_s):
            return WorkerState.DOWN
        return WorkerState.SUSPECT if silent_s >= self.suspect_after_s() else WorkerState.UP

    def silent_s(self, now_s: float) -> float:
        """How long ago it was heard; if never, for how long one has listened."""
        return now_s - (self._began_s if self._heard_s is None else self._heard_s)

    def suspect_after_s(self) -> float:
        """The silence that is suspicious in this worker."""
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
        """How long it must be up before it is given data."""
        self._setbacks_s = [at_s for at_s in self._setbacks_s if now_s - at_s < SETBACK_WINDOW_S]
        doubled = min(len(self._setbacks_s), 30)  # far beyond the most, and a float still
        return min(STEADY_AFTER_S * 2.0**doubled, STEADY_AFTER_MOST_S)

    def learn_setbacks(self, former: Suspicion) -> None:
        """This is the worker that was watched at another address until now: what it did there is not forgotten."""
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
