"""Which keys are asked for most, in bounded memory.

The space-saving algorithm (Metwally, Agrawal, El Abbadi: "Efficient computation of frequent and top-k elements in data
streams", ICDT 2005) keeps `KEYS_MAX` counters. A key without one takes over the smallest, count and all, so a count is
never too low, and too high by that smallest count at most. Counts fade from time to time, so that what was asked for
long ago does not matter.

Costs one dictionary entry for each key that is counted; taking over a counter looks at all of them.
"""

from __future__ import annotations

from typing import Final

KEYS_MAX: Final = 64
FADE: Final = 0.8
FORGOTTEN_BELOW: Final = 0.5


class HotKeys:
    def __init__(self, keys_max: int = KEYS_MAX) -> None:
        assert keys_max >= 1, keys_max
        self._keys_max = keys_max
        self._counts: dict[bytes, float] = {}
        self._errors: dict[bytes, float] = {}  # by how much a count may be too high
        self._total = 0.0

    def note(self, key: bytes) -> None:
        """The key was asked for."""
        self._total += 1
        if key in self._counts:
            self._counts[key] += 1
            return
        taken_over = 0.0
        if len(self._counts) >= self._keys_max:
            smallest = min(self._counts, key=self._counts.__getitem__)
            taken_over = self._counts.pop(smallest)
            del self._errors[smallest]
        self._counts[key] = taken_over + 1
        self._errors[key] = taken_over

    def hottest(self) -> tuple[bytes, float]:
        """The key that is asked for most, and its share of all, from 0 to 1: at least so much. (b"", 0.0): none was."""
        if not self._counts:
            return b"", 0.0
        key = max(self._counts, key=lambda key: self._counts[key] - self._errors[key])
        return key, (self._counts[key] - self._errors[key]) / self._total

    def fade(self) -> None:
        """What was asked for until now counts a fifth less; keys that were hardly asked for are forgotten."""
        self._counts = {key: FADE * count for key, count in self._counts.items() if FADE * count >= FORGOTTEN_BELOW}
        self._errors = {key: FADE * self._errors[key] for key in self._counts}
        self._total *= FADE
