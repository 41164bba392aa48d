"""Checks that a history is linearizable while a mode that promises it is in force.

A run that switches between such modes must be linearizable as a whole. A run that also visits a mode that promises
convergence must be linearizable in parts: up to the moment when an operator asks for that mode, and from the moment
when a switch away from it is over. In between, a read may return anything that was ever written.

*The part that begins late.* What a key holds at its beginning is not known: something that was written before, or
nothing. So each candidate is tried, as a write before everything else, and one that explains the rest is enough. An
earlier write that ended unknown, or had not ended, may still be seen, once. An earlier write that was acknowledged and
is not what the key holds is gone, and must not come back.

*The part that ends early.* A read that had not ended by then says nothing; a write that had not ended is unknown.

Cost: for each key as many checks as there are candidates that an operation saw, two or three. Most keys need one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from trikv.core.errors import Outcome
from trikv.testing.judge import linear
from trikv.testing.judge.audit import check_stamps
from trikv.testing.judge.history import Finding, Judgement, Kind, Operation, by_key

_UNSEEN: Final = "?"  # stands for any value that no operation saw
_LATER: Final = 1 << 40  # how much later all places in the period are than those before it


@dataclass(slots=True)
class StrongPeriod:
    """A time of linearizability, in seconds. `from_s` None: from the beginning. `to_s` None: to the end."""

    from_s: float | None
    to_s: float | None = None


def check_strong_periods(
    history: Sequence[Operation], periods: Iterable[StrongPeriod]
) -> tuple[list[Finding], list[str]]:
    """The findings in the times in which the history must be linearizable, and the undecided keys."""
    findings: list[Finding] = []
    undecided: list[str] = []
    for period in periods:
        if period == StrongPeriod(None):
            verdict = linear.check(history)
            findings += [*verdict.findings, *check_stamps(history)]
            undecided += verdict.undecided
            continue
        findings += check_stamps([op for op in history if _is_inside(op, period)])
        for key, operations in sorted(by_key(history).items()):
            finding, decided = _check_key(operations, period)
            if finding is not None:
                findings.append(finding)
            elif not decided:
                undecided.append(key)
    return findings, undecided


def _check_key(operations: Sequence[Operation], period: StrongPeriod) -> tuple[Finding | None, bool]:
    inside = [_cut_short(op, period) for op in operations if _is_inside(op, period)]
    inside = [op for op in inside if op.outcome is Outcome.COMMITTED or op.writes]
    if not inside:
        return None, True
    before = [op for op in operations if op.writes and not _is_inside(op, period) and not _is_later(op, period)]
    open_ones = [
        replace(op, began=op.began + 2, ended=None, outcome=Outcome.UNKNOWN)
        for op in before
        if op.outcome is not Outcome.REFUSED and (op.ended is None or _returned_later(op, period.from_s))
    ]
    written = {op.value for op in before if op.outcome is not Outcome.REFUSED}
    seen = [op.result if op.kind is Kind.GET else op.expect for op in inside]
    candidates = dict.fromkeys([*(value for value in seen if value in written), None, *([_UNSEEN] if written else [])])
    first: Finding | None = None
    decided = True
    for value in candidates:
        start = [] if value is None else [_as_written(inside[0].key, value)]
        rest = [op for op in open_ones if op.value != value or value is None]
        (verdict,) = linear.check([*start, *rest, *inside]).keys
        if verdict.judgement is Judgement.LINEARIZABLE:
            return None, True
        decided &= verdict.judgement is Judgement.VIOLATION
        first = first or verdict.finding
    return (first, True) if decided else (None, False)


def _as_written(key: str, value: str) -> Operation:
    return Operation("before", Kind.PUT, key, 0, 0.0, value, None, 1, 0.0, Outcome.COMMITTED)


def _is_inside(op: Operation, period: StrongPeriod) -> bool:
    return (period.from_s is None or op.invoked_s > period.from_s) and not _is_later(op, period)


def _is_later(op: Operation, period: StrongPeriod) -> bool:
    return period.to_s is not None and op.invoked_s >= period.to_s


def _returned_later(op: Operation, when_s: float | None) -> bool:
    return when_s is not None and (op.returned_s is None or op.returned_s >= when_s)


def _cut_short(op: Operation, period: StrongPeriod) -> Operation:
    """The part of the operation that lies in the period, moved to a place later than any before the period."""
    op = replace(op, began=op.began + _LATER, ended=None if op.ended is None else op.ended + _LATER)
    if period.to_s is not None and _returned_later(op, period.to_s):
        return replace(op, ended=None, returned_s=None, outcome=Outcome.UNKNOWN, result=None, rows=())
    return op
