"""Judges a history with switches of the mode: linearizable where it must be, losses under async.

A switch between linearizable modes changes nothing for a client, so the history is not split there. A *period* begins
when a switch from async has settled (or with the history), and ends when a switch to async begins (or with the
history). Each period is judged by itself:

- Operations within it count as they are.
- No operation of the period tells what a key holds when it begins. So a value is carried over, as a write before all
  others: the first value seen that had been acknowledged before. If no such value is seen, the key held nothing, or a
  value that was overwritten unseen; both are allowed.
- A write that was under way when the period began, or is in doubt from before it, may take effect later, or never. So
  may a write that was under way at its end. Reads that straddle an end promise nothing.

What async lost is counted where the next period begins: the last acknowledged write of a key was certainly newer than
what was then read. That is a lower bound, like everything in `audit.py`. The loss of an acknowledged write of an
earlier period has no excuse, and is a violation.

Times decide what lies where, so history and switches must have one clock. The cost is that of the checkers, and a copy
of the operations in the periods.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Final, NamedTuple

from trikv.core.errors import Outcome
from trikv.testing.judge import linear
from trikv.testing.judge.audit import Staleness, check_final, check_origins, check_stamps, measure_staleness
from trikv.testing.judge.history import Finding, Judgement, Kind, Operation, by_key
from trikv.testing.judge.linear import KeyVerdict

_ROOM: Final = 2  # places before all others, for the write that is carried over
_UNSEEN: Final = "(a value that nobody saw)"


class Switch(NamedTuple):
    """A switch: when it may have begun to be in force, and when it certainly was, everywhere."""

    strong: bool  # is the mode that it leads to linearizable?
    began_s: float
    ended_s: float


class Period(NamedTuple):
    """A time in which the cluster had to be linearizable (or in which it had not)."""

    from_s: float
    to_s: float


@dataclass(slots=True)
class SwitchedVerdict:
    """The findings against the cluster, and what is merely counted."""

    findings: list[Finding] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)
    lost: list[Finding] = field(default_factory=list)  # writes acknowledged under async, and gone
    staleness: Staleness = field(default_factory=Staleness)
    periods: list[Period] = field(default_factory=list)
    operations: int = 0  # judged within periods


def find_periods(strong: bool, switches: Iterable[Switch]) -> tuple[list[Period], list[Period]]:
    """The periods, and the times between them. `strong`: did the history begin in a linearizable mode?"""
    periods: list[Period] = []
    between: list[Period] = []
    since_s = -inf
    for switch in switches:
        if strong and not switch.strong:
            periods.append(Period(since_s, switch.began_s))
            since_s = switch.began_s
        elif switch.strong and not strong:
            between.append(Period(since_s, switch.ended_s))
            since_s = switch.ended_s
        strong = switch.strong
    (periods if strong else between).append(Period(since_s, inf))
    return periods, between


def judge(history: Sequence[Operation], strong: bool, switches: Iterable[Switch]) -> SwitchedVerdict:
    """Judge a whole history."""
    periods, between = find_periods(strong, switches)
    verdict = SwitchedVerdict(findings=check_origins(history), periods=periods)
    keys = by_key(history)
    for period in periods:
        for key, operations in sorted(keys.items()):
            judged = judge_key(key, operations, period)
            verdict.operations += judged.operations
            if judged.finding is not None:
                verdict.findings.append(judged.finding)
            if judged.judgement is Judgement.UNDECIDED:
                verdict.undecided.append(key)
        verdict.findings += check_stamps(op for op in history if _is_within(op, period))
    for gap in between:
        verdict.lost += find_losses(keys, gap)
        staleness = measure_staleness(op for op in history if _is_within(op, gap))
        for name in ("reads", "stale", "own_write_missed", "went_back"):
            setattr(verdict.staleness, name, getattr(verdict.staleness, name) + getattr(staleness, name))
    for loss in list(verdict.lost):
        if any(_is_within(loss.operations[0], period) for period in periods):
            verdict.lost.remove(loss)
            verdict.findings.append(loss)
    return verdict


def judge_key(key: str, operations: Sequence[Operation], period: Period) -> KeyVerdict:
    """Judge the operations of one key, in order of their beginning, in one period."""
    inside = [_moved(op) for op in operations if _is_within(op, period)]
    doubtful = [_open(_moved(op)) for op in operations if _may_reach(op, period)]
    past = {op.value: op for op in operations if op.writes and _is_before(op, period)}
    found: list[KeyVerdict] = []
    for value in _beginnings(inside, past):
        first = [] if value is None else [_carried_over(key, value, period)]
        there = sorted((*first, *doubtful, *inside), key=lambda op: op.began)
        [judged] = linear.check(there).keys or (KeyVerdict(key, Judgement.LINEARIZABLE, 0),)
        if judged.judgement is Judgement.LINEARIZABLE:
            return judged
        found.append(judged)
    return next((each for each in found if each.judgement is Judgement.UNDECIDED), found[0])


def find_losses(keys: Mapping[str, Sequence[Operation]], gap: Period) -> list[Finding]:
    """Writes acknowledged before the end of an async time that certainly are not what was read afterwards."""
    losses: list[Finding] = []
    for key, operations in sorted(keys.items()):
        later = [op for op in operations if op.invoked_s >= gap.to_s]
        first = next((op for op in later if op.kind is Kind.GET and op.outcome is Outcome.COMMITTED), None)
        if first is None or any(op.writes and op.began < _end(first) for op in later):
            continue  # no read came before the next write
        before = [op if _ended_by(op, first.invoked_s) else _open(op) for op in operations if op.began < first.began]
        losses += [loss for loss in check_final(before, {key: first.result}) if loss.operations]
    return losses


def _beginnings(inside: Iterable[Operation], past: Mapping[str | None, Operation]) -> list[str | None]:
    """What the key may have held when the period began, the likeliest first."""
    for op in inside:
        if op.outcome is not Outcome.COMMITTED:
            continue
        seen = op.result if op.kind is Kind.GET else op.expect if op.kind is Kind.CAS else None
        if seen is not None and seen in past:
            return [seen]
    return [None, _UNSEEN] if past.keys() - {None} else [None]


def _carried_over(key: str, value: str, period: Period) -> Operation:
    return Operation("earlier", Kind.PUT, key, 0, period.from_s, value, None, 1, period.from_s, Outcome.COMMITTED)


def _moved(operation: Operation) -> Operation:
    ended = None if operation.ended is None else operation.ended + _ROOM
    return replace(operation, began=operation.began + _ROOM, ended=ended)


def _open(operation: Operation) -> Operation:
    """The operation with its end unknown.

    What a compare-and-set met is left out too, since that may lie before the period.
    """
    if operation.outcome is Outcome.REFUSED:
        return operation
    kind = Kind.DELETE if operation.writes and operation.value is None else operation.kind
    if kind is Kind.CAS:
        kind = Kind.PUT
    return replace(operation, kind=kind, ended=None, outcome=Outcome.UNKNOWN, result=None, expect=None, stamp=None)


def _is_before(operation: Operation, period: Period) -> bool:
    """Had it ended, and taken effect, when the period began?"""
    return operation.outcome is Outcome.COMMITTED and _ended_by(operation, period.from_s)


def _is_within(operation: Operation, period: Period) -> bool:
    if not period.from_s <= operation.invoked_s < period.to_s:
        return False
    return operation.ended is None or _ended_by(operation, period.to_s)


def _ended_by(operation: Operation, time_s: float) -> bool:
    return operation.ended is not None and operation.returned_s is not None and operation.returned_s <= time_s


def _may_reach(operation: Operation, period: Period) -> bool:
    """Is it a write that is not within the period, and may take effect in it?"""
    if not operation.writes or operation.outcome is Outcome.REFUSED or _is_within(operation, period):
        return False
    return operation.invoked_s < period.to_s and not _is_before(operation, period)


def _end(operation: Operation) -> int:
    assert operation.ended is not None
    return operation.ended
