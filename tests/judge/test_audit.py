"""The checks beside linearizability: origins, final reads, convergence, stamps, and how old answers are."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from trikv.core.errors import Outcome
from trikv.testing.judge.audit import (
    HeldAlone,
    check_compares,
    check_convergence,
    check_final,
    check_origins,
    check_stamps,
    measure_staleness,
)
from trikv.testing.judge.history import Finding, Kind, Operation, Recorder

Told = Callable[..., list[Operation]]


def rules(findings: list[Finding]) -> list[str]:
    return [finding.rule for finding in findings]


def test_origins(told: Told) -> None:
    history = told("0-1 c1 put x=a !", "0-1 c2 put x=b ?", "2-3 c3 get x=a", "4-5 c3 get x=b", "4-5 c3 get x=z")
    assert rules(check_origins(history)) == ["refused write seen", "value from nowhere"]
    assert check_origins(told("0-1 c1 put x=a", "0-1 c2 put x=b ?", "4-5 c3 get x=b", "6-7 c3 get x=-")) == []


@pytest.mark.parametrize(
    ("lines", "final", "expected"),
    [
        (("0-1 c1 put x=a", "2-3 c1 put x=b"), "b", []),
        (("0-1 c1 put x=a", "2-3 c1 put x=b"), "a", ["acknowledged write lost"]),
        (("0-1 c1 put x=a",), None, ["acknowledged write lost"]),
        (("0-9 c1 put x=a", "2-3 c2 put x=b"), "a", []),  # nobody knows which came first
        (("0-5 c1 put x=a", "3-9 c2 put x=b"), "a", []),
        (("0-9 c1 put x=a", "1-2 c3 get x=a", "3-4 c2 put x=b"), "a", ["acknowledged write lost"]),  # a was seen first
        (("0-1 c1 put x=a ?", "2-3 c2 put x=b"), "a", []),  # it may have come late
        (("0-1 c1 put x=a", "2-3 c2 put x=b ?"), "a", []),
        (("0-1 c1 put x=a", "2-3 c1 delete x"), "a", ["deleted value is back"]),
        (("0-1 c1 put x=a", "2-3 c1 delete x"), None, []),
        (("0-1 c1 delete x ?", "2-3 c1 put x=a"), None, []),
        (("0-1 c1 delete x", "2-3 c1 put x=a"), None, ["acknowledged write lost"]),
        (("0-1 c1 put x=a !",), "a", ["value from nowhere"]),
        ((), None, []),
    ],
)
def test_final_reads(told: Told, lines: tuple[str, ...], final: str | None, expected: list[str]) -> None:
    assert rules(check_final(told(*lines), {"x": final})) == expected


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (("0-1 c1 put x=a", "2-3 c1 cas x=a>b", "4-5 c2 cas x=b>c"), None),
        (("0-1 c1 put x=a", "2-5 c1 cas x=a>b", "3-6 c2 cas x=a>c"), "[1] and [2] both replaced a"),
        (("0-1 c1 put x=a", "2-5 c1 cas x=a>b", "3-6 c2 cas x=a>c ?"), None),  # it may have failed
        (("0-1 c1 put x=a", "2-5 c1 cas x=a>b", "3-6 c2 cas x=a>c #"), None),
        (("0-1 c1 put x=a", "2-3 c1 put x=b", "4-5 c2 cas x=a>c"), "[2] replaced a, which [1] had replaced before"),
        (("0-1 c1 put x=a", "2-3 c1 delete x", "4-5 c2 cas x=a>c"), "[2] replaced a, which [1] had replaced before"),
        (("0-1 c1 put x=a", "2-5 c1 put x=b", "4-6 c2 cas x=a>c"), None),  # the put may have come later
        (("0-3 c1 put x=a", "2-4 c1 put x=b", "5-6 c2 cas x=a>c"), None),  # the put may have come first
        (("0-1 c1 cas x=->a", "2-3 c1 cas x=->b"), None),  # what was deleted may be made again
    ],
)
def test_compare_and_sets(told: Told, lines: tuple[str, ...], why: str | None) -> None:
    assert [finding.why for finding in check_compares(told(*lines))] == ([] if why is None else [why])


@pytest.mark.parametrize(
    ("beyond", "up_to", "expected"),
    [
        (None, 3, []),
        (1, 3, []),
        (2, 3, ["acknowledged write lost"]),  # another disk held the second write
        (1, 2, ["acknowledged write lost"]),  # the third one was elsewhere
    ],
)
def test_what_a_lost_disk_held_alone_may_be_missing(
    told: Told, beyond: int | None, up_to: int, expected: list[str]
) -> None:
    history = told("0-1 c1 put x=a @1", "2-3 c1 put x=b @2", "4-5 c1 put x=c @3")
    stamps = [operation.stamp for operation in history]
    last = stamps[up_to - 1]
    assert last is not None
    gone = HeldAlone("x", None if beyond is None else stamps[beyond - 1], last)
    assert rules(check_final(history, {"x": "a"}, [gone])) == expected


def test_convergence() -> None:
    assert check_convergence({"w1": {"x": "a", "y": None}, "w2": {"x": "a"}}) == []
    (finding,) = check_convergence({"w2": {"x": "b"}, "w1": {"x": "a"}, "w3": {}})
    assert str(finding) == "replicas differ, key x: w1 holds a, w2 holds b, w3 holds nothing"
    assert check_convergence({}) == []


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (("0-1 c1 put x=a @1", "2-3 c2 get x=a @1", "4-5 c1 put x=b @2", "6-7 c2 get x=b @2", "8-9 c2 get x=-"), []),
        (("0-9 c1 put x=a @2", "1-8 c2 put x=b @1"), []),
        (("0-1 c1 put x=a @1", "0-1 c2 get x=b @1"), ["one stamp, two values"]),
        (("0-1 c1 delete x @1", "0-1 c2 delete x @1"), ["one stamp, two writes"]),
        (("0-1 c1 put x=a @2", "2-3 c1 put x=b @1"), ["stamp goes back"]),
        (("0-1 c1 put x=a @2", "0-1 c2 put x=b @1", "2-3 c3 get x=b @1"), ["stamp goes back"]),
        (("0-1 c1 get x=a @1", "2-3 c2 put x=a @1"), ["stamp goes back"]),
        (("0-1 c1 put x=a @1 ?", "2-3 c1 cas x=a>b @1 #"), []),
    ],
)
def test_stamps(told: Told, lines: tuple[str, ...], expected: list[str]) -> None:
    assert rules(check_stamps(told(*lines))) == expected


def test_staleness_in_versions_and_in_time(told: Told) -> None:
    staleness = measure_staleness(
        told(
            "0-1 c1 put x=a",
            "2-3 c1 put x=b",
            "4-5 c1 put x=c",
            "10-11 c2 get x=a",
            "12-13 c2 get x=c",
            "13-20 c3 get x=-",
        )
    )
    assert (staleness.reads, staleness.stale) == (3, 2)
    assert staleness.versions_behind == [2, 3]
    assert staleness.seconds_behind == [10.0 - 3.0, 13.0 - 1.0]
    assert (staleness.versions_behind_max, staleness.seconds_behind_max) == (3, 12.0)
    assert (staleness.own_write_missed, staleness.went_back) == (0, 0)


@pytest.mark.parametrize(
    ("lines", "own_write_missed", "went_back"),
    [
        (("0-1 c1 put x=a", "2-3 c1 put x=b", "4-5 c1 get x=a"), 1, 0),
        (("0-1 c1 put x=a", "2-3 c1 put x=b", "4-5 c2 get x=b", "6-7 c2 get x=a"), 0, 1),
        (("0-1 c1 put x=a", "2-3 c1 put x=b", "4-5 c2 get x=b", "6-7 c3 get x=a"), 0, 0),  # another client
        (("0-9 c1 put x=a", "1-8 c2 put x=b", "10-11 c1 get x=b", "12-13 c1 get x=a"), 0, 0),  # concurrent
        (("0-1 c1 put x=a", "2-3 c1 delete x", "4-5 c1 get x=a"), 1, 0),
        (("0-1 c1 put x=a", "2-3 c1 get x=-"), 1, 0),
        (("0-1 c2 delete x ?", "2-3 c1 put x=a", "4-5 c1 get x=-"), 0, 0),  # the delete may have come late
        (("0-1 c1 put x=a ?", "2-3 c1 get x=-"), 0, 0),
        (("0-1 c1 put x=a", "2-3 c1 get x=z"), 0, 0),  # judged by its origin
        (("0-1 c1 put x=a", "2-5 c1 put x=b", "3-4 c1 get x=a"), 0, 0),  # not acknowledged yet
    ],
)
def test_what_a_client_could_notice(told: Told, lines: tuple[str, ...], own_write_missed: int, went_back: int) -> None:
    staleness = measure_staleness(told(*lines))
    assert (staleness.own_write_missed, staleness.went_back) == (own_write_missed, went_back)


def test_missed_writes_are_counted_as_one_by_one() -> None:
    for seed in range(100):
        operations = _of_any_answers(seed)
        writes = [op for op in operations if op.kind is Kind.PUT]
        expected = []
        for read in operations:
            if read.kind is not Kind.GET:
                continue
            known = [op.ended for op in operations if op.ended is not None and read.result in (op.value, op.result)]
            missed = [w for w in writes if w.began > min(known) and w.ended is not None and w.ended < read.began]
            if missed:
                first_s = min(w.returned_s for w in missed if w.returned_s is not None)
                expected.append((len(missed), read.invoked_s - first_s))
        staleness = measure_staleness(operations)
        assert list(zip(staleness.versions_behind, staleness.seconds_behind, strict=True)) == expected, seed


def _of_any_answers(seed: int) -> list[Operation]:
    """Puts, and gets that saw any of the values begun so far."""
    dice = random.Random(seed)
    recorder = Recorder()
    under_way = [recorder.begin("c", Kind.PUT, "x", 0.0, value=recorder.fresh_value())]
    for now in range(1, 60):
        if under_way and dice.random() < 0.5:
            op = under_way.pop(dice.randrange(len(under_way)))
            written = [other.value for other in recorder.operations if other.value is not None]
            result = dice.choice(written) if op.kind is Kind.GET else None
            recorder.end(op, now, Outcome.COMMITTED, result=result)
        elif dice.random() < 0.5:
            under_way.append(recorder.begin("c", Kind.PUT, "x", now, value=recorder.fresh_value()))
        else:
            under_way.append(recorder.begin("c", Kind.GET, "x", now))
    return [op for op in recorder.operations if op.ended is not None or op.kind is Kind.PUT]
