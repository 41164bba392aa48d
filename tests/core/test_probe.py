"""The checker of the probe: what a register may answer, and no false alarm in a million operations."""

from __future__ import annotations

import heapq
import random

import pytest

from trikv.core.errors import Outcome
from trikv.core.probe import (
    DOUBTFUL_MAX,
    ENOUGH,
    NEVER_WRITTEN,
    REFUSED_BUT_READ,
    STALE,
    VIOLATIONS_KEPT,
    WRITES_KEPT,
    Known,
    ProbedOperation,
    ProbeVerdict,
    Register,
    Tallied,
)

COMMITTED, REFUSED, UNKNOWN = Outcome.COMMITTED, Outcome.REFUSED, Outcome.UNKNOWN


class Driver:
    """A register, driven by hand: times are whole seconds."""

    def __init__(self, *, is_consistent: bool = True) -> None:
        self.tallied = Tallied()
        self.register = Register("k", self.tallied, is_consistent=is_consistent)

    def write(self, began_s: float, ended_s: float, outcome: Outcome = COMMITTED) -> str | None:
        count = self.register.begin_write()
        violation = self.register.end_write(ProbedOperation("put", count, began_s, ended_s, outcome))
        return None if violation is None else violation.rule

    def read(self, began_s: float, ended_s: float, count: int | None, known: Known | None = None) -> str | None:
        """`known`: when it began, if that was before what was done last."""
        known = known or self.register.begin_read()
        violation = self.register.end_read(known, ProbedOperation("get", count, began_s, ended_s, COMMITTED))
        return None if violation is None else violation.rule


def test_the_newest_value_or_one_that_is_being_written_may_be_read() -> None:
    drive = Driver()
    assert drive.read(0, 1, 0) is None
    assert drive.write(1, 2) is None
    assert drive.read(3, 4, 1) is None
    count = drive.register.begin_write()
    assert drive.read(5, 6, 1) is None
    assert drive.read(6.5, 7, 2) is None
    drive.register.end_write(ProbedOperation("put", count, 4.5, 8, COMMITTED))
    assert drive.read(9, 10, 2) is None
    assert (drive.tallied.judged, drive.tallied.violation_count, drive.tallied.stale.reads) == (5, 0, 0)


def test_an_older_value_than_a_committed_one_is_a_stale_read_with_both_operations() -> None:
    drive = Driver()
    drive.write(0, 1)
    drive.write(2, 3)
    assert drive.read(3.5, 4, 1) == STALE
    (violation,) = drive.tallied.violations
    assert [(one.what, one.count) for one in violation.operations] == [("put", 2), ("get", 1)]
    assert violation.told == "a read returned value 1, though value 2 had been committed before the read began"
    assert drive.read(5, 6, 0) == STALE
    assert "no value" in drive.tallied.violations[1].told
    stale = drive.tallied.stale
    assert (stale.reads, stale.worst_versions, stale.worst_s) == (2, 2, 4.0)
    assert drive.tallied.verdict is ProbeVerdict.BROKEN


def test_a_read_may_not_go_back_behind_what_another_read_saw() -> None:
    drive = Driver()
    drive.write(0, 1)
    drive.register.begin_write()  # value 2, which takes its time
    early = drive.register.begin_read()
    assert drive.read(2, 3, 2) is None
    assert drive.read(4, 5, 1) == STALE
    assert [one.what for one in drive.tallied.violations[0].operations] == ["get", "get"]
    assert drive.read(1.5, 6, 1, early) is None  # it began before the other one had ended


def test_operations_of_one_instant_are_judged_by_the_order_in_which_they_began_and_ended() -> None:
    """A clock may stand still, as a virtual one does."""
    drive = Driver()
    drive.write(0, 0)
    early = drive.register.begin_read()
    drive.write(0, 0)
    assert drive.read(0, 0, 1, early) is None
    assert drive.tallied.stale.reads == 0
    assert drive.read(0, 0, 1) == STALE
    assert drive.tallied.stale.reads == 1


def test_a_read_that_began_early_is_judged_by_what_was_known_then() -> None:
    drive = Driver()
    drive.write(0, 1)
    early = drive.register.begin_read()
    writes = 2 * WRITES_KEPT  # more than are kept
    for i in range(writes):
        drive.write(10 + i, 10.5 + i)
        assert drive.read(10.6 + i, 10.7 + i, 2 + i) is None
    for count in range(1, writes + 2):
        assert drive.read(5, 999, count, early) is None
    assert drive.tallied.stale.reads == 0
    assert drive.read(1000, 1001, writes) == STALE


def test_values_from_nowhere() -> None:
    drive = Driver()
    assert drive.read(0, 1, 1) == NEVER_WRITTEN
    assert drive.read(0, 1, None) == NEVER_WRITTEN
    drive.write(2, 3)
    assert drive.read(4, 5, 2) == NEVER_WRITTEN


def test_a_refused_write_must_never_be_read() -> None:
    drive = Driver()
    drive.write(0, 1)
    drive.write(2, 3, REFUSED)
    assert drive.read(4, 5, 2) == REFUSED_BUT_READ
    assert [(one.what, one.count) for one in drive.tallied.violations[0].operations] == [("put", 2), ("get", 2)]
    drive.write(5, 6)
    assert drive.read(7, 8, 2) == REFUSED_BUT_READ
    drive.register.begin_write()
    assert drive.read(10, 11, 4) is None
    violation = drive.register.end_write(ProbedOperation("put", 4, 9, 12, REFUSED))
    assert violation is not None
    assert violation.rule == REFUSED_BUT_READ
    assert [(one.what, one.count) for one in violation.operations] == [("put", 4), ("get", 4)]


def test_a_write_of_unknown_outcome_may_take_effect_at_any_time_or_never() -> None:
    drive = Driver()
    drive.write(0, 1)
    drive.write(2, 3, UNKNOWN)
    assert drive.read(4, 5, 1) is None
    assert drive.read(6, 7, 2) is None
    drive.write(8, 9)
    assert drive.read(10, 11, 2) is None  # as far as outcomes tell, it took effect after the newer one
    assert drive.read(12, 13, 1) == STALE
    drive.register.begin_write()
    drive.register.drop_write()
    assert drive.read(14, 15, 3) is None
    assert drive.read(16, 17, 4) is None


def test_a_write_of_unknown_outcome_that_was_read_has_taken_effect() -> None:
    drive = Driver()
    drive.write(0, 1)
    drive.write(2, 3, UNKNOWN)
    drive.write(4, 5, UNKNOWN)
    early = drive.register.begin_read()
    assert drive.read(6, 7, 3) is None
    assert drive.read(8, 9, 2) is None  # it may have taken effect since
    assert drive.read(5.5, 10, 1, early) is None
    assert drive.read(11, 12, 1) == STALE
    assert [one.count for one in drive.tallied.violations[0].operations] == [3, 1]


def test_a_write_that_was_read_while_it_was_under_way_and_is_unknown_in_the_end_has_taken_effect() -> None:
    drive = Driver()
    drive.write(0, 1)
    count = drive.register.begin_write()
    assert drive.read(3, 4, count) is None
    drive.register.end_write(ProbedOperation("put", count, 2, 5, UNKNOWN))
    assert drive.read(6, 7, count) is None
    assert drive.read(8, 9, 1) == STALE


def test_a_register_of_which_too_much_is_in_doubt_says_so() -> None:
    drive = Driver()
    for i in range(DOUBTFUL_MAX):
        assert not drive.register.is_muddy
        drive.write(i, i + 0.5, UNKNOWN)
    assert drive.register.is_muddy


def test_under_ap_an_old_value_is_counted_and_no_violation() -> None:
    drive = Driver(is_consistent=False)
    drive.write(0, 1)
    drive.write(2, 3)
    drive.write(4, 5)
    assert drive.read(7, 8, 1) is None
    assert (drive.tallied.stale.reads, drive.tallied.stale.worst_versions, drive.tallied.stale.worst_s) == (1, 2, 4.0)
    assert drive.read(9, 10, 4) == NEVER_WRITTEN
    drive.write(11, 12, REFUSED)
    assert drive.read(13, 14, 4) == REFUSED_BUT_READ


def test_little_is_kept_of_much() -> None:
    drive = Driver()
    for i in range(10 * WRITES_KEPT):
        drive.write(i, i + 0.2)
        drive.read(i + 0.3, i + 0.4, i)  # the value before
    assert len(drive.tallied.violations) == VIOLATIONS_KEPT
    assert drive.tallied.violation_count == 10 * WRITES_KEPT
    for i in range(10 * WRITES_KEPT):
        drive.write(i, i + 0.2, REFUSED)
    kept = drive.register._committed, drive.register._refused
    assert [len(each) for each in kept] == [WRITES_KEPT, WRITES_KEPT]


def test_nothing_is_called_kept_before_there_is_enough() -> None:
    drive = Driver()
    drive.write(0, 1)
    for i in range(ENOUGH):
        assert drive.tallied.verdict is ProbeVerdict.MEASURING
        drive.read(2 + i, 2.5 + i, 1)
    assert drive.tallied.verdict is ProbeVerdict.KEPT


class Atomic:
    """A register that is linearizable by its making: each operation takes effect at one moment between its ends.

    `stale_every`: each so many reads return the value before.
    """

    def __init__(self, seed: int, *, stale_every: int = 0) -> None:
        self.dice = random.Random(seed)
        self.tallied = Tallied()
        self.register = Register("k", self.tallied, is_consistent=True)
        self.values = [0]
        self.stale_every = stale_every
        self.stale_reads = 0
        self._reads = 0

    def run(self, operations: int, readers: int = 6) -> None:
        """Play clients that overlap: one writer and some readers. Events: (time, order, what, who, state)."""
        dice, events = self.dice, [(0.0, 0, "begin", 0)]
        began: dict[int, float] = {}
        known: dict[int, Known] = {}
        seen: dict[int, int] = {}
        outcome: dict[int, Outcome] = {}
        for reader in range(1, readers + 1):
            heapq.heappush(events, (dice.random(), reader, "begin", reader))
        late: list[tuple[float, int]] = []  # unknown writes that take effect later
        for order in range(readers + 1, operations * 3):
            time_s, _, what, who = heapq.heappop(events)
            while late and late[0][0] <= time_s:
                self.values.append(heapq.heappop(late)[1])
            if what == "begin":
                began[who] = time_s
                if who:
                    known[who] = self.register.begin_read()
                else:
                    if self.register.is_muddy:
                        self.register = Register("k", self.tallied, is_consistent=True)
                        self.values = [0]
                        late.clear()
                        for reader in began:  # those under way began on the former register
                            if reader:
                                known[reader] = self.register.begin_read()
                                seen[reader] = 0
                                began[reader] = time_s
                    seen[0] = self.register.begin_write()
                    draw = dice.random()
                    outcome[0] = COMMITTED if draw < 0.9 else REFUSED if draw < 0.95 else UNKNOWN
                nxt = "effect"
            elif what == "effect":
                if who:
                    self._reads += 1
                    back = bool(self.stale_every) and self._reads % self.stale_every == 0 and len(self.values) > 1
                    self.stale_reads += back
                    seen[who] = self.values[-2] if back else self.values[-1]
                elif outcome[0] is COMMITTED:
                    self.values.append(seen[0])
                elif outcome[0] is UNKNOWN and dice.random() < 0.7:
                    heapq.heappush(late, (time_s + dice.expovariate(0.2), seen[0]))
                nxt = "end"
            else:
                if who:
                    self.register.end_read(known[who], ProbedOperation("get", seen[who], began[who], time_s, COMMITTED))
                else:
                    self.register.end_write(ProbedOperation("put", seen[0], began[0], time_s, outcome[0]))
                nxt = "begin"
            pause = dice.expovariate(1.0) if nxt != "begin" else dice.expovariate(3.0 if who else 1.0)
            heapq.heappush(events, (time_s + pause, order, nxt, who))


@pytest.mark.parametrize("seed", range(4))
def test_a_register_that_is_atomic_raises_no_alarm_in_250_000_operations(seed: int) -> None:
    atomic = Atomic(seed)
    atomic.run(250_000)
    assert [str(violation) for violation in atomic.tallied.violations] == []
    assert atomic.tallied.reads + atomic.tallied.writes > 240_000
    assert atomic.tallied.unknown > 1000
    assert atomic.tallied.refused > 1000


def test_a_register_that_is_stale_once_in_a_thousand_reads_is_found_out() -> None:
    atomic = Atomic(5, stale_every=1_000)
    atomic.run(60_000)
    assert atomic.stale_reads > 30
    assert 0 < atomic.tallied.violation_count <= atomic.stale_reads * 3  # a stale value that is read sets nothing back
