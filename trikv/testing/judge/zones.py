"""Is one key's history linearizable? The zone test, O(n log n) if each write has its own value.

After Gibbons and Korach, "Testing Shared Memories" (SIAM J. Comput. 26, 1997), section 4, with three additions of ours:
deletes, of which many write the same thing; compare-and-set from one value to another; writes of which it is not known
whether they happened.

Zones. A write and the reads that saw its value form a cluster, and stand together in any linearization. Let `first_end`
be the first end of any of them, and `last_begin` the last beginning. If first_end < last_begin, the value was certainly
in force between the two: a *forward* zone. Otherwise all of them were under way from last_begin to first_end, and the
whole cluster can happen at any one moment of that time: a *backward* zone. The history is linearizable exactly if
forward zones do not overlap, no backward zone lies within a forward one, and no read ended before its write began.

Compare-and-set. If it took effect, it comes right after the cluster of the value that it replaced, and begins the
cluster of its own value. So clusters that are linked this way are one chain with one zone, provided that no operation
of the chain ended before an earlier one of it began. One pass along the chain tests that.

Absence. Every delete writes it, and it was there at first, so a read of absence does not say which delete it saw. Still
no search is needed. Deletes and reads of absence are single moments outside all forward zones. If one begins within
such a zone, it cannot happen before the zone's end, and if it also ends within the zone, it has no moment.

Consider a delete at the moment p. Absence then lasts until something else must happen, and nothing is lost by letting
it last as long as it can: a cluster that could happen before p happens just before p, any other when absence ends. It
must end when the first cluster ends that begins wholly after p. Hence a read of absence that begins at a can be
explained by a delete at p exactly if p comes after L(a), the latest `last_begin` among the clusters whose `first_end`
came before a. And p must not come after the read's end b.

So it remains to choose one moment within each delete's time, so that every [L(a), b] contains one, or has no such
cluster and sees the beginning. Take the reads by increasing b. For a read that is not served yet choose, among the
deletes that can serve it, the one whose time runs out first, and place it as late as its time and b allow. By exchange
no other choice serves more: a read that is served by another choice has a later b, so its interval reaches as far.

Unknown operations. An unknown write that no operation saw is left out. An unknown write that was seen has no end of its
own, but its readers have. An unknown delete may be used to explain a read, and need not be. A committed delete does no
harm where it is not needed.

What this does not decide. Compare-and-set from or to absence, and a compare-and-set that failed because the key held
something else. These are replaced by their parts (a read of absence and a write, and so on), or left out. A violation
that is found so is a violation. If none is found, the answer is not `exact`, and search.py has to decide. The same
holds where two writes share a value.

Cost: sorting. A million operations take five or six seconds.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from trikv.core.errors import Outcome
from trikv.testing.judge.history import Finding, Kind, Operation

_NEVER: Final = 1 << 62  # the place of an event that has not happened
_BEFORE_ALL: Final = -1


class Ruling(NamedTuple):
    """`finding`: a violation, which is certain. Without one the history is linearizable if the ruling is `exact`."""

    finding: Finding | None
    exact: bool


class _Violation(Exception):
    """Carries a finding out of the test."""

    def __init__(self, rule: str, why: str, *operations: Operation) -> None:
        super().__init__(rule, why, operations)


def judge(key: str, operations: Sequence[Operation]) -> Ruling:
    """Judge the operations of one key, in order of their beginning, as `by_key` gives them."""
    events = _Events(operations)
    if events.repeated:
        return Ruling(None, exact=False)
    try:
        zones = _chains(events)
        line = _Line(zones)
        _place_absence(line, events.deletes, events.absences)
    except _Violation as violation:
        rule, why, shown = violation.args
        return Ruling(Finding(rule, key, why, shown), exact=events.exact)
    return Ruling(None, exact=events.exact)


class _Events:
    """The operations sorted out by what they say about the key."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        self.writes: dict[str, Operation] = {}  # by value; unknown ones too
        self.refused: dict[str, Operation] = {}  # by value
        self.reads: dict[str, list[Operation]] = {}  # by value seen
        self.absences: list[Operation] = []  # operations that saw nothing
        self.deletes: list[Operation] = []
        self.swaps: list[Operation] = []  # each cas that took effect and replaced a value
        self.repeated = False  # two writes with one value: the zone test does not apply
        self.exact = True
        doubtful: dict[str, Operation] = {}
        for operation in operations:
            kind, outcome = operation.kind, operation.outcome
            if kind is Kind.GET:
                if outcome is not Outcome.COMMITTED:
                    continue
                if operation.result is None:
                    self.absences.append(operation)
                else:
                    self.reads.setdefault(operation.result, []).append(operation)
                continue
            value = operation.value
            if outcome is Outcome.REFUSED:
                if value is not None:
                    self.refused[value] = operation
                self.exact = self.exact and not operation.saw_mismatch
                continue
            if value is None:
                self.deletes.append(operation)
            elif value in self.writes:
                self.repeated = True
            else:
                self.writes[value] = operation
            if kind is Kind.CAS:
                if outcome is Outcome.COMMITTED:
                    self._took_effect(operation)
                elif value is not None:
                    doubtful[value] = operation
                else:
                    self.exact = False
        if doubtful:
            self._resolve(doubtful)

    def _took_effect(self, cas: Operation) -> None:
        if cas.expect is None:
            self.absences.append(cas)
        else:
            self.swaps.append(cas)
        if cas.expect is None or cas.value is None:
            self.exact = False

    def _resolve(self, doubtful: dict[str, Operation]) -> None:
        """An unknown cas took effect if an operation saw its value; a cas that took effect counts as one."""
        seen = [*self.reads, *(swap.expect for swap in self.swaps)]
        while seen:
            value = seen.pop()
            cas = doubtful.pop(value, None) if value is not None else None
            if cas is not None:
                self._took_effect(cas)
                seen.append(cas.expect)


class _Zone:
    """A chain of clusters (mostly one), and the two operations that bound it."""

    __slots__ = ("begun_last", "ended_first", "first_end", "last_begin", "value")

    def __init__(self, write: Operation) -> None:
        assert write.value is not None
        self.value = write.value
        self.ended_first = self.begun_last = write
        self.first_end = _end(write)
        self.last_begin = write.began

    def include(self, operation: Operation) -> None:
        end = _end(operation)
        if end < self.first_end:
            self.first_end, self.ended_first = end, operation
        if operation.began > self.last_begin:
            self.last_begin, self.begun_last = operation.began, operation


def _end(operation: Operation) -> int:
    return _NEVER if operation.ended is None else operation.ended


def _chains(events: _Events) -> list[_Zone]:
    """The zone of every chain that certainly happened. Each chain is possible in itself."""
    replaced_by: dict[str, Operation] = {}
    for swap in events.swaps:
        assert swap.expect is not None
        other = replaced_by.setdefault(swap.expect, swap)
        if other is not swap:
            raise _Violation("lost update", f"[1] and [2] both replaced {swap.expect}", other, swap)
    _refuse_strange_values(events, replaced_by)
    made_by_swap = {swap.value for swap in events.swaps}
    zones = []
    for value, write in events.writes.items():
        if value not in made_by_swap:
            zone = _follow(write, events.reads, replaced_by)
            if zone.first_end != _NEVER:
                zones.append(zone)
    if replaced_by:  # what no chain's head leads to is a circle
        swap = next(iter(replaced_by.values()))
        raise _Violation("value from nowhere", f"[1] replaced {swap.expect}, which comes of {swap.value} itself", swap)
    return zones


def _refuse_strange_values(events: _Events, replaced_by: dict[str, Operation]) -> None:
    seen = [(value, reads[0]) for value, reads in events.reads.items()] + list(replaced_by.items())
    for value, witness in seen:
        if value in events.writes:
            continue
        if value in events.refused:
            raise _Violation("refused write seen", "[1] was refused, and [2] saw it", events.refused[value], witness)
        raise _Violation("value from nowhere", f"[1] saw {value}, which nobody wrote", witness)


def _follow(write: Operation, reads: dict[str, list[Operation]], replaced_by: dict[str, Operation]) -> _Zone:
    """The zone of the chain that `write` begins. Its links are removed from `replaced_by`."""
    zone = _Zone(write)
    value: str | None = write.value
    while value is not None:
        latest = zone.begun_last  # a later operation of the chain must not have ended before this one began
        for read in reads.get(value, ()):
            _refuse_turned(latest, read)
            zone.include(read)
        swap = replaced_by.pop(value, None)
        if swap is None:
            break
        _refuse_turned(zone.begun_last, swap)
        zone.include(swap)
        value = swap.value
    return zone


def _refuse_turned(first: Operation, second: Operation) -> None:
    if _end(second) < first.began:
        why = f"[2] ended before [1] began, but comes after it by its value ({_value_of(second)})"
        raise _Violation("read from the future", why, first, second)


def _value_of(operation: Operation) -> str | None:
    return operation.result if operation.kind is Kind.GET else operation.expect


class _Line:
    """The line of time and its forward zones: no two overlap, and none surrounds a cluster that needs one moment."""

    def __init__(self, zones: list[_Zone]) -> None:
        zones.sort(key=lambda zone: zone.first_end)
        self.forward = [zone for zone in zones if zone.first_end < zone.last_begin]
        self._starts = [zone.first_end for zone in self.forward]
        for one, other in zip(self.forward, self.forward[1:], strict=False):
            if other.first_end < one.last_begin:
                raise _overlap(one, other)
        for zone in zones:
            if zone.last_begin < zone.first_end:
                around = self._around(zone.last_begin)
                if around is not None and around.last_begin > zone.first_end:
                    raise _within(around, zone.ended_first, zone.begun_last)
        self._zones = zones
        self._ends = [zone.first_end for zone in zones]
        self._latest: list[_Zone] = list(accumulate(zones, _later))

    def _around(self, place: int) -> _Zone | None:
        """The forward zone that this place lies within."""
        index = bisect_right(self._starts, place) - 1
        if index >= 0 and place < self.forward[index].last_begin:
            return self.forward[index]
        return None

    def first_moment(self, operation: Operation) -> int:
        """The first moment outside all forward zones at which the operation can have happened."""
        around = self._around(operation.began)
        if around is None:
            return operation.began
        if _end(operation) < around.last_begin:
            raise _within(around, operation)
        return around.last_begin

    def latest_before(self, place: int) -> _Zone | None:
        """Of the zones whose first operation ended before this place, the one with the latest `last_begin`."""
        count = bisect_left(self._ends, place)
        return self._latest[count - 1] if count else None


def _later(one: _Zone, other: _Zone) -> _Zone:
    return one if one.last_begin > other.last_begin else other


def _overlap(one: _Zone, other: _Zone) -> _Violation:
    why = (
        f"{one.value} was in force from the end of [1] to the beginning of [2], "
        f"{other.value} from the end of [3] to the beginning of [4]: these times overlap"
    )
    return _Violation("two values at once", why, one.ended_first, one.begun_last, other.ended_first, other.begun_last)


def _within(around: _Zone, *operations: Operation) -> _Violation:
    """A moment was needed where there is none. `operations`: one, or the two that bound a backward zone."""
    why = f"{around.value} was in force from the end of [1] to the beginning of [2], [3] can only have happened between"
    shown = operations[:1] if operations[0] is operations[-1] else operations
    if len(shown) == 2:
        why = why.replace("[3]", "[3] and [4]")
    if operations[0].kind is Kind.GET and operations[0].result is None:
        rule = "value lost"
    elif operations[0].writes and operations[0].value is None:
        rule = "deleted value is back"
    else:
        rule = "stale read"
    return _Violation(rule, why, around.ended_first, around.begun_last, *shown)


def _place_absence(line: _Line, deletes: list[Operation], absences: list[Operation]) -> None:
    """Find a moment for each delete such that every operation that saw nothing is explained."""
    to_come = sorted(((line.first_moment(d), d) for d in deletes), key=lambda item: item[0], reverse=True)
    waiting: list[tuple[int, int, Operation]] = []  # deletes that can have begun, the first to end on top
    placed = _BEFORE_ALL
    for absence in sorted(absences, key=_end):
        first, last = line.first_moment(absence), _end(absence)
        past = line.latest_before(first)
        if past is None or past.last_begin <= placed:
            continue
        while to_come and to_come[-1][0] <= last:
            delete = to_come.pop()[1]
            heapq.heappush(waiting, (_end(delete), delete.began, delete))
        while waiting and waiting[0][0] < past.last_begin:
            heapq.heappop(waiting)
        if not waiting:
            raise _unexplained(past, absence, deletes)
        placed = min(heapq.heappop(waiting)[0], last)


def _unexplained(past: _Zone, absence: Operation, deletes: list[Operation]) -> _Violation:
    shown = [past.ended_first] if past.ended_first is past.begun_last else [past.ended_first, past.begun_last]
    why = f"{past.value} was there, as [1] shows, and [{len(shown) + 1}] saw nothing later"
    near = [d for d in deletes if _end(d) > past.last_begin and d.began < _end(absence)]
    if near:
        why += "; each delete that could explain it is needed for an earlier read"
    else:
        why += ", though nothing had deleted it"
    return _Violation("value lost", why, *shown, absence, *near[:3])
