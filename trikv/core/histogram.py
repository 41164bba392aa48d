"""How long things took, counted in buckets: what it takes to tell percentiles, in bounded memory.

The buckets are fine, each a quarter longer than the one before, so that a percentile read from them is wrong by an
eighth at most. A monitoring system is told fewer: those that end at one of `EXPORTED_BOUNDS_S`, from half a millisecond
to ten seconds.

`CallTimes` can also tell percentiles of the last seconds. `Sizes` counts how many there were of something, in buckets
that end at a power of two.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

EXPORTED_BOUNDS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_FINE_BOUNDS_S: Final = tuple(50e-6 * 1.25**i for i in range(59))  # from 50 microseconds to 20 seconds
_SIZE_BITS_MAX: Final = 12  # in what is told; there is no bound on what is counted
RECENT_S: Final = 5.0  # what is told of the last seconds is of so many at least, and of twice as many at most
BOUNDS_S: Final = tuple(sorted({*EXPORTED_BOUNDS_S, *_FINE_BOUNDS_S}))


class Histogram:
    """`counts[i]`: how many took up to `BOUNDS_S[i]` and longer than the bound before; the last: longer than all."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def note(self, duration_s: float, count: int = 1) -> None:
        """So many took so long."""
        self.counts[bisect_left(BOUNDS_S, duration_s)] += count
        self.sum_s += duration_s * count

    def cumulative(self) -> list[tuple[float, int]]:
        """By upper bound, of those that are exported, how many took no longer; the last bound is infinity."""
        totals = dict(zip((*BOUNDS_S, float("inf")), accumulate(self.counts), strict=True))
        return [(bound_s, totals[bound_s]) for bound_s in (*EXPORTED_BOUNDS_S, float("inf"))]


class CallTimes(Histogram):
    """How long calls took: since the beginning, and in the last seconds. Call `tick` about once a second or oftener."""

    __slots__ = ("_began_s", "_earlier", "_former")

    def __init__(self) -> None:
        super().__init__()
        self._began_s = float("-inf")  # when the present period began, and the counts at that time
        self._earlier = self.counts[:]
        self._former = self.counts[:]  # at the beginning of the period before

    def tick(self, now: float) -> None:
        """It is so late now, by any clock that runs evenly."""
        if now - self._began_s >= 2 * RECENT_S:
            self._began_s, self._former, self._earlier = now, self.counts[:], self.counts[:]
        elif now - self._began_s >= RECENT_S:
            self._began_s, self._former, self._earlier = now, self._earlier, self.counts[:]

    def recent(self) -> list[int]:
        """The counts of the last seconds, as far as `tick` knows."""
        return [count - former for count, former in zip(self.counts, self._former, strict=True)]


class Sizes:
    """How many there were at a time, such as records in a batch. `counts[i]`: up to `1 << i`, and more than half of
    it."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * 64
        self.total = 0

    def note(self, size: int) -> None:
        """There were so many, at least one."""
        self.counts[(size - 1).bit_length()] += 1
        self.total += size

    def cumulative(self) -> list[tuple[float, int]]:
        """By upper bound, how often there were no more; the last bound is infinity."""
        totals = list(accumulate(self.counts))
        return [*((1 << bits, totals[bits]) for bits in range(_SIZE_BITS_MAX + 1)), (float("inf"), totals[-1])]


def percentile_s(counts: Sequence[int], share: float) -> float | None:
    """The duration that `share` (0 to 1) of those counted did not exceed, to within its bucket.

    Args:
      counts: as `Histogram.counts`, or the difference of two of these.

    Returns:
      Seconds, as if durations lay evenly in their bucket; the last bound for what took longer. None if none was
      counted.
    """
    total = sum(counts)
    if total <= 0:
        return None
    wanted = share * total
    below = 0
    for i, count in enumerate(counts[: len(BOUNDS_S)]):
        if count and below + count >= wanted:
            low_s = BOUNDS_S[i - 1] if i else 0.0
            return low_s + (BOUNDS_S[i] - low_s) * (wanted - below) / count
        below += count
    return BOUNDS_S[-1]
