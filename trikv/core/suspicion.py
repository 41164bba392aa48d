"""Whether a worker is up, suspect or down: arithmetic over the time since it was last heard.

A missed heartbeat proves nothing; the network, or a pause of the worker, can swallow one. So silence first makes a
worker suspect, and requests ask others first, and only a long silence makes it down, and the configuration moves on.
A refused connection is better evidence than any silence: nobody listens at that address any more.

    unknown   from the beginning until it is first heard    -> up when heard; down after `down_after_s`
    up        heard less than `suspect_after_s` ago         -> suspect by silence; down when broken
    suspect   heard less than `down_after_s` ago            -> up when heard; down by silence or when broken
    down      longer silent, or broken                      -> up when heard

Before a worker was first heard a refused connection says nothing, since it may just be starting; that is the grace in
which a master that starts before its workers answers late rather than wrongly.

Times are seconds of any monotonic clock, and passed in. The state is computed when it is asked for, so there is no
timer to arm or to forget. (hashicorp/memberlist's suspicion.go taught the arithmetic. Its timeout shrinks as further
members confirm a suspicion; here one observer looks on, and both thresholds are fixed. Thresholds that follow the
intervals observed would replace the two comparisons in `state`.)
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

SUSPECT_AFTER_S: Final = 1.5
DOWN_AFTER_S: Final = 5.0


class State(StrEnum):
    UNKNOWN = "unknown"
    UP = "up"
    SUSPECT = "suspect"
    DOWN = "down"


class Suspicion:
    """What is thought of one worker, in one of its lives, from `now_s` on."""

    def __init__(
        self, now_s: float, *, suspect_after_s: float = SUSPECT_AFTER_S, down_after_s: float = DOWN_AFTER_S
    ) -> None:
        assert 0 < suspect_after_s <= down_after_s, (suspect_after_s, down_after_s)
        self.suspect_after_s = suspect_after_s
        self.down_after_s = down_after_s
        self._began_s = now_s
        self._heard_s: float | None = None
        self._broken_s: float | None = None

    def heartbeat(self, now_s: float) -> None:
        """It was heard: by an answer to a heartbeat, or by any other answer."""
        self._heard_s = now_s if self._heard_s is None else max(now_s, self._heard_s)

    def broken(self, now_s: float) -> None:
        """Its link broke, and the attempt to redial was refused. Holds until it is heard at a later time."""
        self._broken_s = now_s

    def state(self, now_s: float) -> State:
        if self._heard_s is None:
            return State.UNKNOWN if now_s - self._began_s < self.down_after_s else State.DOWN
        silent_s = now_s - self._heard_s
        if silent_s >= self.down_after_s or (self._broken_s is not None and self._broken_s >= self._heard_s):
            return State.DOWN
        return State.SUSPECT if silent_s >= self.suspect_after_s else State.UP
