"""Whether a mode keeps its promise, judged while it runs: a checker of reads and writes on keys of its own.

A key is a register that one writer writes, one write after the other, with values that count up from 1. Reads may
overlap writes and each other. The caller carries the operations out, and tells the checker when each begins and ends,
in this order, and what came of it. The checker says whether that can be true. Its judgement rests on the order of the
calls alone; times are only told, and measured.

What may be read of a register follows from linearizability (Herlihy and Wing, "Linearizability: A Correctness Condition
for Concurrent Objects", TOPLAS 12, 1990):

- Only a value whose write had begun, and was not refused.
- Under a CP promise, no value older than the newest write that had been committed when the read began, and none older
  than what a read had returned that had ended by then.
- A write of unknown outcome may take effect at any later time, once. So its value may be read from then on. As soon as
  it was read it has taken effect, and values of earlier writes whose outcome is known are too old. After `DOUBTFUL_MAX`
  unknown writes a register is *muddy*: too much may be read of it, and its user goes on with another key.

Under an AP promise an old value is no violation. How old it was is counted in both cases: in versions, and in seconds
since the first write that it missed was committed.

There are no false alarms: no order of the operations can explain what is reported. There are misses. The value of an
unknown write may be read again after a newer one was read, and a value from before the newest `WRITES_KEPT` refused
writes counts as stale, not as refused.

Memory is bounded: a register keeps its last `WRITES_KEPT` committed and refused writes, so what is staler is called at
least as stale as the oldest of these.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, NamedTuple

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


class Known(NamedTuple):
    """What was known of a register when a read began.

    Attributes:
      least: the operation with the newest value that the read must not miss; None: there is none.
      committed: the newest value that had been committed.
    """

    least: ProbedOperation | None
    committed: int


class Register:
    """One key. `is_consistent`: a CP promise holds for it from its beginning."""

    def __init__(self, key: str, tallied: Tallied, *, is_consistent: bool) -> None:
        self.key = key
        self._tallied = tallied
        self._is_consistent = is_consistent
        self._count = 0  # of the last write that began
        self.is_under_way = False  # is a write begun and not ended?
        self._doubtful: set[int] = set()
        self._committed: deque[ProbedOperation] = deque(maxlen=WRITES_KEPT)
        self._refused: deque[ProbedOperation] = deque(maxlen=WRITES_KEPT)
        self._known = Known(None, 0)

    @property
    def is_muddy(self) -> bool:
        return len(self._doubtful) >= DOUBTFUL_MAX

    def begin_write(self) -> int:
        """The value of the next write."""
        assert not self.is_under_way, self.key
        self.is_under_way = True
        self._count += 1
        return self._count

    def end_write(self, done: ProbedOperation) -> Violation | None:
        """Note how the write under way ended; the violation, if it was read although it is refused."""
        assert self.is_under_way, self.key
        assert done.count == self._count, (done, self._count)
        self.is_under_way = False
        self._tallied.writes += 1
        self._note_outcome(done.outcome)
        if done.outcome is Outcome.COMMITTED:
            self._committed.append(done)
            self._known = Known(done, self._count)
        elif done.outcome is Outcome.UNKNOWN:
            self._doubtful.add(self._count)
        else:
            self._refused.append(done)
            if (least := self._known.least) is not None and least.count == self._count:
                told = f"a read returned value {self._count}, and then its write was refused"
                return self._note(self._violation(REFUSED_BUT_READ, told, done, least))
        return None

    def drop_write(self) -> None:
        """The write under way was given up, and nothing is known of it."""
        self.is_under_way = False
        self._doubtful.add(self._count)

    def begin_read(self) -> Known:
        """What `end_read` is to judge the read by. A read that is given up is just not ended."""
        return self._known

    def end_read(self, known: Known, done: ProbedOperation) -> Violation | None:
        """Judge a read; the violation, if it is one."""
        self._tallied.reads += 1
        self._note_outcome(done.outcome)
        if done.outcome is not Outcome.COMMITTED:
            return None
        self._tallied.judged += 1
        self._note_staleness(known, done)
        if (violation := self._judge(known, done)) is not None:
            return self._note(violation)
        if (done.count or 0) > _count_of(self._known.least):
            self._known = self._known._replace(least=done)
        return None

    def _note(self, violation: Violation) -> Violation:
        self._tallied.violation_count += 1
        if len(self._tallied.violations) < VIOLATIONS_KEPT:
            self._tallied.violations.append(violation)
        return violation

    def _note_outcome(self, outcome: Outcome) -> None:
        self._tallied.refused += outcome is Outcome.REFUSED
        self._tallied.unknown += outcome is Outcome.UNKNOWN

    def _judge(self, known: Known, done: ProbedOperation) -> Violation | None:
        count, least = done.count, known.least
        if count is None or count > self._count:
            return self._violation(NEVER_WRITTEN, "a read returned a value that nobody wrote under this key", done)
        if count in self._doubtful:
            return None
        refused = next((one for one in self._refused if one.count == count), None)
        if refused is not None:
            told = f"a read returned value {count}, whose write was refused"
            return self._violation(REFUSED_BUT_READ, told, refused, done)
        if self._is_consistent and least is not None and count < _count_of(least):
            how = "had been committed" if least.what == "put" else "had been read"
            missed = "no value" if count == 0 else f"value {count}"
            told = f"a read returned {missed}, though value {least.count} {how} before the read began"
            return self._violation(STALE, told, done, least)
        return None

    def _violation(self, rule: str, told: str, *operations: ProbedOperation) -> Violation:
        return Violation(rule, told, self.key, tuple(sorted(operations, key=lambda one: one.began_s)))

    def _note_staleness(self, known: Known, done: ProbedOperation) -> None:
        if done.count is None or done.count >= known.committed or done.count in self._doubtful:
            return
        missed = [one for one in self._committed if done.count < _count_of(one) <= known.committed]
        if missed:  # otherwise there were more writes during the read than are kept
            self._tallied.stale.note(done.began_s - missed[0].ended_s, len(missed))


def _count_of(operation: ProbedOperation | None) -> int:
    return 0 if operation is None or operation.count is None else operation.count
