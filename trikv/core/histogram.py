"""How long things took, counted in buckets: what a monitoring system needs to tell percentiles, in bounded memory.

The bounds are those of `BOUNDS_S`, from half a millisecond to ten seconds, each about twice the one before.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

BOUNDS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Histogram:
    """`counts[i]`: how many took up to `BOUNDS_S[i]` and longer than the bound before; the last: longer than all."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def note(self, duration_s: float) -> None:
        self.counts[bisect_left(BOUNDS_S, duration_s)] += 1
        self.sum_s += duration_s

    def cumulative(self) -> list[tuple[float, int]]:
        """By upper bound, how many took no longer; the last bound is infinity."""
        total = 0
        rows = []
        for bound_s, count in zip((*BOUNDS_S, float("inf")), self.counts, strict=True):
            total += count
            rows.append((bound_s, total))
        return rows
