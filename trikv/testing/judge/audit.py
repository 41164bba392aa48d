"""Checks of a history besides linearizability: for every mode, and for AP modes.

For every mode:
- `check_origins`: every value that was seen had been written, and no refused write is ever seen.
- `check_final`: what clients read when all faults are over. No acknowledged write is lost, no deleted value is back.
- `check_convergence`: all replicas hold the same.

For modes that promise convergence and say that they can compare and set:
- `check_compares`: no compare-and-set replaced a value that had certainly been replaced before. (In linearizable modes
  the checker sees that.)

For linearizable modes there is a cheap first pass, since every answer carries its record's stamp:
- `check_stamps`: one stamp has one value, two writes never share a stamp, and stamps grow in real time. It is evidence
  about the store's own bookkeeping; the verdict of linear.py does not rest on it.

For modes that allow old answers, `measure_staleness` counts how old they are, and how often a client could notice.

What is *certain*. Of concurrent writes it is not known which came first. So everything here counts only what no order
of the operations could explain. An answer is old if its value had been written, or seen by a client, before a newer
write even began, and that newer write was acknowledged before the read began. So the counts are lower bounds. A read of
absence is explained by the delete that makes it look newest.

Cost: n log n for staleness and stamps, linear for the rest.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

from trikv.core.errors import Outcome
from trikv.core.record import Version
from trikv.testing.judge.history import Finding, Kind, Operation, by_key

_BEFORE_ALL: Final = -1
_NEVER: Final = 1 << 62


def check_origins(operations: Iterable[Operation]) -> list[Finding]:
    """Every value that was seen was written by a write that was not refused. One finding for each other value."""
    findings = []
    for key, ops in sorted(by_key(operations).items()):
        writes = {op.value: op for op in ops if op.writes and op.outcome is not Outcome.REFUSED}
        refused = {op.value: op for op in ops if op.writes and op.outcome is Outcome.REFUSED}
        judged: set[str] = set()
        for op in ops:
            value = op.result
            if not _saw(op) or value is None or value in writes or value in judged:
                continue
            judged.add(value)
            if value in refused:
                shown = (refused[value], op)
                findings.append(Finding("refused write seen", key, "[1] was refused, and [2] saw it", shown))
            else:
                findings.append(Finding("value from nowhere", key, f"[1] saw {value}, which nobody wrote", (op,)))
    return findings


def _saw(operation: Operation) -> bool:
    return operation.kind is Kind.GET and operation.outcome is Outcome.COMMITTED


@dataclass(frozen=True, slots=True)
class HeldAlone:
    """What a lost disk alone had held of a key: the writes with stamps beyond `beyond` and up to `up_to`."""

    key: str
    beyond: Version | None  # None: no other disk held the key
    up_to: Version

    def covers(self, write: Operation) -> bool:
        stamp = write.stamp
        return stamp is not None and stamp <= self.up_to and (self.beyond is None or stamp > self.beyond)


def check_final(
    operations: Iterable[Operation], final: Mapping[str, str | None], gone: Iterable[HeldAlone] = ()
) -> list[Finding]:
    """Judge what each key of `final` held after the last operation of the history (None: nothing).

    A write is lost if the key ended with something that was certainly older. If the lost write is a delete, a deleted
    value is back. `gone` says what may be lost, in a mode that acknowledges what one disk alone holds.
    """
    may_go: dict[str, list[HeldAlone]] = {}
    for one in gone:
        may_go.setdefault(one.key, []).append(one)
    findings = []
    keys = by_key(operations)
    for key, value in sorted(final.items()):
        past = _Past(keys.get(key, []))
        known_from = past.absent_from(_NEVER) if value is None else past.value_from(value)
        if known_from is None:
            why = f"the key ended with {value}, of which no write is known that was not refused"
            findings.append(Finding("value from nowhere", key, why))
            continue
        last = past.last_acknowledged(may_go.get(key, ()))
        if last is not None and last.began > known_from:
            held = "nothing" if value is None else f"{value}, which is older"
            rule = "deleted value is back" if last.value is None else "acknowledged write lost"
            findings.append(Finding(rule, key, f"[1] was acknowledged, and the key ended with {held}", (last,)))
    return findings


def check_convergence(replicas: Mapping[str, Mapping[str, str | None]]) -> list[Finding]:
    """All replicas (by name) hold the same under every key. A key that a replica does not name counts as None."""
    findings = []
    for key in sorted(set().union(*replicas.values())):
        held = {name: state.get(key) for name, state in sorted(replicas.items())}
        if len(set(held.values())) > 1:
            shown = ", ".join(f"{name} holds {'nothing' if value is None else value}" for name, value in held.items())
            findings.append(Finding("replicas differ", key, shown))
    return findings


def check_compares(operations: Iterable[Operation]) -> list[Finding]:
    """Judge the compare-and-sets that succeeded. At most one finding for each key.

    Each value is written once. So of two that replaced one value, one was wrong; and so was one that replaced a value
    after another write had been acknowledged, which began when that value had certainly been written.
    """
    findings = []
    for key, ops in sorted(by_key(operations).items()):
        finding = _wrong_compare(key, ops)
        if finding is not None:
            findings.append(finding)
    return findings


def _wrong_compare(key: str, ops: Sequence[Operation]) -> Finding | None:
    past = _Past(ops)
    replaced: dict[str, Operation] = {}
    for op in ops:
        if op.kind is not Kind.CAS or op.outcome is not Outcome.COMMITTED or op.expect is None:
            continue
        first = replaced.setdefault(op.expect, op)
        if first is not op:
            return Finding("compared with an old value", key, f"[1] and [2] both replaced {op.expect}", (first, op))
        known_from = past.value_from(op.expect)
        for newer in past.acknowledged:
            if known_from is not None and known_from < newer.began and _end(newer) < op.began:
                why = f"[2] replaced {op.expect}, which [1] had replaced before"
                return Finding("compared with an old value", key, why, (newer, op))
    return None


def check_stamps(operations: Iterable[Operation]) -> list[Finding]:
    """Judge the stamps of committed answers, for linearizable modes. At most one finding of a rule for each key."""
    findings: list[Finding | None] = []
    for key, ops in sorted(by_key(operations).items()):
        stamped = [op for op in ops if op.outcome is Outcome.COMMITTED and op.stamp is not None]
        findings += [_stamp_of_two_values(key, stamped), _stamp_goes_back(key, stamped)]
    return [finding for finding in findings if finding is not None]


def _stamp_of_two_values(key: str, stamped: Sequence[Operation]) -> Finding | None:
    first_with: dict[Version, Operation] = {}
    writer: dict[Version, Operation] = {}
    for op in stamped:
        assert op.stamp is not None
        why = f"[1] and [2] both have the stamp {op.stamp}"
        first = first_with.setdefault(op.stamp, op)
        if _content(first) != _content(op):
            return Finding("one stamp, two values", key, why, (first, op))
        if op.writes and writer.setdefault(op.stamp, op) is not op:
            return Finding("one stamp, two writes", key, why, (writer[op.stamp], op))
    return None


def _content(operation: Operation) -> str | None:
    return operation.value if operation.writes else operation.result


def _stamp_goes_back(key: str, stamped: Sequence[Operation]) -> Finding | None:
    """An operation that began after another had ended has no lower stamp, and a higher one if it wrote."""
    by_end = sorted((op for op in stamped if op.ended is not None), key=_end)
    newest: Operation | None = None
    ended = iter(by_end)
    upcoming = next(ended, None)
    for op in stamped:  # in order of beginning
        while upcoming is not None and _end(upcoming) < op.began:
            if newest is None or _stamp(upcoming) > _stamp(newest):
                newest = upcoming
            upcoming = next(ended, None)
        if newest is not None and (_stamp(op) < _stamp(newest) or (op.writes and _stamp(op) == _stamp(newest))):
            return Finding("stamp goes back", key, "[2] began after [1] had ended, with no later stamp", (newest, op))
    return None


def _stamp(operation: Operation) -> Version:
    assert operation.stamp is not None
    return operation.stamp


def _end(operation: Operation) -> int:
    return _NEVER if operation.ended is None else operation.ended


def _ended_first(one: Operation, other: Operation) -> Operation:
    return one if _end(one) < _end(other) else other


# --- how old answers are ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Staleness:
    """How old the answers of a history certainly were. Reads of values that were never written are left out."""

    reads: int = 0
    stale: int = 0  # reads that missed at least one acknowledged write
    own_write_missed: int = 0  # reads that missed a write of the client's own
    went_back: int = 0  # reads older than what the same client had read before
    # For each stale read: how many acknowledged writes it missed, and for how long the first was acknowledged.
    versions_behind: list[int] = field(default_factory=list)
    seconds_behind: list[float] = field(default_factory=list)

    @property
    def versions_behind_max(self) -> int:
        return max(self.versions_behind, default=0)

    @property
    def seconds_behind_max(self) -> float:
        return max(self.seconds_behind, default=0.0)


def measure_staleness(operations: Iterable[Operation]) -> Staleness:
    """Count the old answers that an AP mode may give and that a client could notice."""
    staleness = Staleness()
    for _, ops in sorted(by_key(operations).items()):
        _measure_key(ops, staleness)
    return staleness


def _measure_key(ops: Sequence[Operation], staleness: Staleness) -> None:
    past = _Past(ops)
    missed = _MissedWrites(past.acknowledged)
    own_write: dict[str, int] = {}  # by client: the beginning of the last write that it knows to be acknowledged
    seen: dict[str, int] = {}  # by client: the beginning of the last write that it has seen
    events = [(op.began, False, op) for op in ops] + [(_end(op), True, op) for op in ops if op.ended is not None]
    for _, is_end, op in sorted(events, key=lambda event: event[0]):
        known_from = past.known_from(op) if _saw(op) else None
        if is_end and op.writes and op.outcome is Outcome.COMMITTED:
            own_write[op.client] = max(own_write.get(op.client, _BEFORE_ALL), op.began)
            missed.acknowledge(op)
        elif is_end and known_from is not None and op.result is not None:
            seen[op.client] = max(seen.get(op.client, _BEFORE_ALL), past.writes[op.result].began)
        elif not is_end and known_from is not None:
            staleness.reads += 1
            staleness.own_write_missed += own_write.get(op.client, _BEFORE_ALL) > known_from
            staleness.went_back += seen.get(op.client, _BEFORE_ALL) > known_from
            count = missed.count(known_from)
            if count:
                staleness.stale += 1
                staleness.versions_behind.append(count)
                staleness.seconds_behind.append(op.invoked_s - missed.since_s(known_from))


class _MissedWrites:
    """The writes acknowledged so far, counted by their beginnings (a Fenwick tree: log n each)."""

    def __init__(self, acknowledged: Sequence[Operation]) -> None:
        by_begin = sorted(acknowledged, key=lambda op: op.began)
        self._begins = [op.began for op in by_begin]
        self._sums = [0] * (len(by_begin) + 1)
        self._so_far = 0
        # For each write: which one was acknowledged first, of it and of all that began later.
        self._first: list[Operation] = list(accumulate(reversed(by_begin), _ended_first))[::-1]

    def acknowledge(self, write: Operation) -> None:
        index = bisect_left(self._begins, write.began) + 1
        self._so_far += 1
        while index < len(self._sums):
            self._sums[index] += 1
            index += index & -index

    def count(self, place: int) -> int:
        """How many acknowledged writes began after this place."""
        index, before = bisect_right(self._begins, place), 0
        while index:
            before += self._sums[index]
            index -= index & -index
        return self._so_far - before

    def since_s(self, place: int) -> float:
        """When the first write that began after this place was acknowledged. There must be one."""
        returned_s = self._first[bisect_right(self._begins, place)].returned_s
        assert returned_s is not None
        return returned_s


class _Past:
    """What is certain about the writes of one key."""

    def __init__(self, ops: Sequence[Operation]) -> None:
        not_refused = [op for op in ops if op.writes and op.outcome is not Outcome.REFUSED]
        self.writes = {op.value: op for op in not_refused if op.value is not None}
        self.acknowledged = [op for op in not_refused if op.outcome is Outcome.COMMITTED]
        self._known_from = {value: _end(op) for value, op in self.writes.items()}
        for op in ops:
            if _saw(op) and op.result in self._known_from:
                self._known_from[op.result] = min(self._known_from[op.result], _end(op))
        deletes = [op for op in not_refused if op.value is None]
        self._delete_begins = [op.began for op in deletes]
        self._delete_ends = list(accumulate(map(_end, deletes), max))

    def known_from(self, read: Operation) -> int | None:
        """The place from which on the value that the read saw had certainly been written; None if it never was."""
        if read.result is None:
            return self.absent_from(_end(read))
        return self._known_from.get(read.result)

    def absent_from(self, place: int) -> int:
        """The same for absence seen by this place: the place of the delete that makes it look newest."""
        count = bisect_left(self._delete_begins, place)
        return self._delete_ends[count - 1] if count else _BEFORE_ALL

    def value_from(self, value: str) -> int | None:
        return self._known_from.get(value)

    def last_acknowledged(self, gone: Sequence[HeldAlone] = ()) -> Operation | None:
        """The acknowledged write that began last, of those that are not in `gone`."""
        kept = [op for op in self.acknowledged if not any(one.covers(op) for one in gone)]
        return max(kept, key=lambda op: op.began, default=None)
