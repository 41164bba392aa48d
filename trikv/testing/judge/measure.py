"""What a history says about waiting: when writes came back, the longest gap, the slowest answer.

Times are those of the history. Every measure is linear in the operations, apart from sorting.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from trikv.core.errors import Outcome
from trikv.testing.judge.history import MET, Operation


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that this share of the values do not exceed; 0 if there are no values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def returns_s(history: Iterable[Operation], from_s: float, to_s: float) -> list[float]:
    """When, after `from_s`, writes that had failed within the span were committed: one time for each that was repeated.

    Only a client that asks for the same key again at once can tell, so no other clients count.
    """
    failing: dict[str, str] = {}  # by client: the key that it cannot write
    back: list[float] = []
    for op in history:
        if op.invoked_s < from_s or not op.writes:
            continue
        insisted = failing.pop(op.client, None) == op.key
        if op.outcome is Outcome.COMMITTED and insisted:
            back.append((op.returned_s or op.invoked_s) - from_s)
        elif op.outcome is not Outcome.COMMITTED and op.code not in MET and (insisted or op.invoked_s < to_s):
            failing[op.client] = op.key
    return back


def describe_returns(returns: Sequence[float], down_after_s: float) -> str:
    """The times of `returns_s` as a sentence, without the silence after which a dead worker is replaced."""
    if not returns:
        return "no client had to wait until it could write again"
    median_s, p99_s, most_s = (percentile(returns, share) - down_after_s for share in (0.5, 0.99, 1.0))
    return (
        f"{len(returns)} times a client could not write, and could again, beyond --down-after {down_after_s:g} s, "
        f"after {median_s:.2f} s (median), {p99_s:.2f} s (p99), {most_s:.2f} s (most)"
    )


def longest_gap_s(history: Iterable[Operation], from_s: float, to_s: float) -> float:
    """The longest time within the span in which no write was committed."""
    commits = (op.returned_s for op in history if op.writes and op.outcome is Outcome.COMMITTED)
    times = [from_s, *sorted(time_s for time_s in commits if time_s is not None and from_s <= time_s <= to_s), to_s]
    return max(later - earlier for earlier, later in pairwise(times))


def slowest_s(history: Iterable[Operation], from_s: float, to_s: float) -> float:
    """The longest of the operations that were committed, and under way at some time of the span."""
    took = (
        op.returned_s - op.invoked_s
        for op in history
        if op.outcome is Outcome.COMMITTED and op.returned_s is not None
        if op.returned_s >= from_s and op.invoked_s <= to_s
    )
    return max(took, default=0.0)
