"""Whether a mode keeps its promise, judged while it runs: a checker of reads and writes on keys of its own.

A key is a register that one writer writes, one write after the other, with values that count up from 1. Reads may
overlap writes and each other. Whoever carries the operations out tells the checker when each began and ended, and what
came of it; the checker says whether that can be true.

What may be read of a register follows from linearizability (Herlihy and Wing, 1990):

- Only a value whose write had begun, and was not refused.
- Under a CP promise, no value older than the newest write that had been committed when the read began, and none older
  than what a read had returned that had ended by then.
- A write of unknown outcome may take effect at any later time, so its value may be read from then on, and says nothing
  about what is newest. Such values are remembered; after `DOUBTFUL_MAX` of them a register is `muddy`, and its user
  goes on with a new one.

Under an AP promise an old value is no violation. How old it was is counted in both cases: in versions, and in seconds
since the first write that it missed was committed.

There are no false alarms: what is reported cannot be explained by any order of the operations. There are misses. An old
value of a write that was unknown is let pass, for one.

Memory is bounded: a register keeps its last `WRITES_KEPT` committed writes, so what is staler is called at least as
stale as the oldest of these.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from trikv.core.errors import Outcome

DOUBTFUL_MAX: Final = 4
WRITES_KEPT: Final = 64
VIOLATIONS_KEPT: Final = 16
ENOUGH: Final = 100  # reads that are judged before a promise is called kept

NEVER_WRITTEN: Final = "a value from nowhere"
REFUSED_BUT_READ: Final = "a refused write was read"
STALE: Final = "a stale read"


class ProbeVerdict(Enum):
    MEASURING = "measuring"
    KEPT = "kept"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class ProbedOperation:
    """One operation. `count`: the value that was written or read; 0 for no value, None for one that is no count.

    Attributes:
      evidence: whatever its user wants to see again if the operation is part of a violation.
    """

    what: str
    count: int | None
    began_s: float
    ended_s: float
    outcome: Outcome
    evidence: Any = None


@dataclass(frozen=True, slots=True)
class Violation:
    """`operations`: those that contradict each other, in the order of their beginnings."""

    rule: str
    told: str
    key: str
    operations: tuple[ProbedOperation, ...]


@dataclass(slots=True)
class StaleReads:
    """Of reads that missed a write which had been committed when they began."""

    reads: int = 0
    worst_s: float = 0.0
    sum_s: float = 0.0
    worst_versions: int = 0

    def note(self, late_s: float, versions: int) -> None:
        self.reads += 1
        self.sum_s += late_s
        self.worst_s = max(self.worst_s, late_s)
        self.worst_versions = max(self.worst_versions, versions)


@dataclass(slots=True)
class Tallied:
    """What was checked, and what came of it."""

    reads: int = 0
    writes: int = 0
    judged: int = 0  # reads that were answered
    refused: int = 0
    unknown: int = 0
    stale: StaleReads = field(default_factory=StaleReads)
    violations: list[Violation] = field(default_factory=list)
    violation_count: int = 0

    @property
    def verdict(self) -> ProbeVerdict:
        if self.violation_count:
            return ProbeVerdict.BROKEN
        return ProbeVerdict.KEPT if self.judged >= ENOUGH else ProbeVerdict.MEASURING


class Register:
    """One key. `is_consistent`: a CP promise holds for it from its beginning."""

    def __init__(self, key: str, tallied: Tallied, *, is_consistent: bool) -> None:
        self.key = key
        self._tallied = tallied
        self._is_consistent = is_consistent
        self._count = 0  # of the last write that began
        self._under_way = False
        self._doubtful: set[int] = set()
        self._committed: deque[ProbedOperation] = deque(maxlen=WRITES_KEPT)
        self._reads_under_way = 0
        # What a read must see at least, by when it is known: rising counts with rising times. The last entry that had
        # ended before a read began counts for it. Older ones matter only to reads that are under way.
        self._floors: list[tuple[float, int, ProbedOperation]] = []

    @property
    def is_muddy(self) -> bool:
        return len(self._doubtful) >= DOUBTFUL_MAX

    def begin_write(self) -> int:
        """The value of the next write."""
        assert not self._under_way, self.key
        self._under_way = True
        self._count += 1
        return self._count

    def end_write(self, done: ProbedOperation) -> Violation | None:
        """Note how the write under way ended; the violation, if it was read although it is refused."""
        assert self._under_way, self.key
        assert done.count == self._count, (done, self._count)
        self._under_way = False
        self._tallied.writes += 1
        self._note_outcome(done.outcome)
        if done.outcome is Outcome.COMMITTED:
            self._committed.append(done)
            self._raise_floor(done)
        elif done.outcome is Outcome.UNKNOWN:
            self._doubtful.add(self._count)
        elif self._floors and self._floors[-1][1] == self._count:
            told = f"a read returned value {self._count}, and then its write was refused"
            return self._note(self._violation(REFUSED_BUT_READ, told, done, self._floors[-1][2]))
        return None

    def drop_write(self) -> None:
        """The write under way was given up, and nothing is known of it."""
        self._under_way = False
        self._doubtful.add(self._count)

    def begin_read(self) -> None:
        self._reads_under_way += 1

    def end_read(self, done: ProbedOperation) -> Violation | None:
        """Judge a read; the violation, if it is one."""
        self._reads_under_way -= 1
        self._tallied.reads += 1
        self._note_outcome(done.outcome)
        if done.outcome is not Outcome.COMMITTED:
            return None
        self._tallied.judged += 1
        self._note_staleness(done)
        if (violation := self._judge(done)) is not None:
            return self._note(violation)
        if done.count and done.count not in self._doubtful:
            self._raise_floor(done)
        return None

    def drop_read(self) -> None:
        self._reads_under_way -= 1

    def _note(self, violation: Violation) -> Violation:
        self._tallied.violation_count += 1
        if len(self._tallied.violations) < VIOLATIONS_KEPT:
            self._tallied.violations.append(violation)
        return violation

    def _note_outcome(self, outcome: Outcome) -> None:
        self._tallied.refused += outcome is Outcome.REFUSED
        self._tallied.unknown += outcome is Outcome.UNKNOWN

    def _judge(self, done: ProbedOperation) -> Violation | None:
        count = done.count
        if count is None or count > self._count:
            return self._violation(NEVER_WRITTEN, "a read returned a value that nobody wrote under this key", done)
        if count in self._doubtful:
            return None
        floor = self._floor_at(done.began_s)
        least = 0 if floor is None else floor.count or 0
        if not self._may_have_been_written(count, least):
            return self._violation(REFUSED_BUT_READ, f"a read returned value {count}, whose write was refused", done)
        if self._is_consistent and floor is not None and count < least:
            how = "had been committed" if floor.what == "put" else "had been read"
            missed = "no value" if count == 0 else f"value {count}"
            told = f"a read returned {missed}, though value {floor.count} {how} before the read began"
            return self._violation(STALE, told, done, floor)
        return None

    def _may_have_been_written(self, count: int, floor: int) -> bool:
        """An older value than the floor is judged as stale, whether or not its write was refused."""
        if count <= floor or (count == self._count and self._under_way):
            return True
        return any(one.count == count for one in self._committed)

    def _violation(self, rule: str, told: str, *operations: ProbedOperation) -> Violation:
        return Violation(rule, told, self.key, tuple(sorted(operations, key=lambda one: one.began_s)))

    def _floor_at(self, began_s: float) -> ProbedOperation | None:
        """The operation with the newest value of those that had ended before that time."""
        index = bisect_right(self._floors, began_s, key=lambda entry: entry[0])
        return self._floors[index - 1][2] if index else None

    def _raise_floor(self, done: ProbedOperation) -> None:
        count = done.count or 0
        if self._floors and self._floors[-1][1] >= count:
            return
        if not self._reads_under_way:
            self._floors.clear()  # a read that begins from now on looks at the last one alone
        self._floors.append((done.ended_s, count, done))

    def _note_staleness(self, done: ProbedOperation) -> None:
        if done.count is None or done.count in self._doubtful:
            return
        missed = [one for one in self._committed if (one.count or 0) > done.count and one.ended_s <= done.began_s]
        if missed:
            self._tallied.stale.note(done.began_s - missed[0].ended_s, len(missed))
