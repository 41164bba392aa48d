"""The verdict on linearizability: agreement with a checker too simple to be wrong, anomalies by name, and bounds.

The simple one tries every order. The zones and the search are each held against it, on histories made at random (few
of which are right by chance, more by construction) and on histories of an atomic register (all of which are right).
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trikv.core.errors import Outcome
from trikv.testing.judge import search, zones
from trikv.testing.judge.history import PRECONDITION_FAILED, Judgement, Kind, Operation, Recorder, ScannedRow
from trikv.testing.judge.linear import check

Told = Callable[..., list[Operation]]

# --- every order, one by one --------------------------------------------------------------------------------------


def linearizable(operations: list[Operation]) -> bool:
    """Is there an order of the operations that explains every answer? Tries them all."""
    return _explains([op for op in operations if _counts(op)], None)


def _counts(op: Operation) -> bool:
    if op.outcome is Outcome.COMMITTED or op.saw_mismatch:
        return True
    return op.outcome is Outcome.UNKNOWN and op.kind is not Kind.GET


def _explains(left: list[Operation], held: str | None) -> bool:
    if all(op.outcome is Outcome.UNKNOWN for op in left):
        return True
    for op in left:
        rest = [other for other in left if other is not op]
        if any(other.ended is not None and other.ended < op.began for other in rest):
            continue
        if op.kind is Kind.GET:
            possible, after = op.result == held, held
        elif op.saw_mismatch:
            possible, after = op.expect != held, held
        else:
            possible, after = op.kind is not Kind.CAS or op.expect == held, op.value
        if possible and _explains(rest, after):
            return True
    return False


# --- histories at random ------------------------------------------------------------------------------------------

KINDS_WITHOUT_CAS = (Kind.GET, Kind.GET, Kind.PUT, Kind.DELETE)
KINDS_WITH_CAS = (*KINDS_WITHOUT_CAS, Kind.CAS)


@st.composite
def histories(draw: st.DrawFn, kinds: tuple[Kind, ...], most: int = 7) -> list[Operation]:
    """Any operations at any times, that saw any of the values there are: mostly, but far from always, a violation."""
    size = draw(st.integers(1, most))
    spans = [
        (begin, begin + draw(st.integers(1, 8)))
        for begin in draw(st.lists(st.integers(0, 9), min_size=size, max_size=size))
    ]
    events = sorted(
        [(begin, 0, n) for n, (begin, _) in enumerate(spans)] + [(end, 1, n) for n, (_, end) in enumerate(spans)]
    )
    places = {event[1:]: place for place, event in enumerate(events)}
    values = [f"v{n}" for n in range(size)]
    seen = st.none() | st.sampled_from(values[: max(1, size // 2)])
    operations = []
    for n, (begin, end) in enumerate(spans):
        kind = draw(st.sampled_from(kinds))
        op = Operation(
            "c", kind, "x", places[0, n], begin, ended=places[1, n], returned_s=end, outcome=Outcome.COMMITTED
        )
        if kind is Kind.GET:
            op.result = draw(seen)
        elif kind is Kind.PUT:
            op.value = values[n]
        elif kind is Kind.CAS:
            op.value, op.expect = draw(st.sampled_from((values[n], values[n], None))), draw(seen)
        outcome = draw(st.integers(0, 5))
        if outcome == 0:
            op.outcome, op.ended = Outcome.UNKNOWN, None
        elif outcome == 1 and kind is not Kind.GET:
            op.outcome = Outcome.REFUSED
            op.code = PRECONDITION_FAILED if kind is Kind.CAS and op.expect != op.value else "unavailable"
        operations.append(op)
    return sorted(operations, key=lambda op: op.began)


def of_a_register(seed: int, size: int, clients: int, kinds: tuple[Kind, ...]) -> list[Operation]:
    """What clients see of an atomic register; each operation takes effect at some moment between its begin and end.

    Some answers are lost: then the client does not learn whether the write took effect, which it did or not.
    """
    dice = random.Random(seed)
    recorder = Recorder()
    held: str | None = None
    idle = [f"c{n}" for n in range(clients)]
    sent: list[Operation] = []
    answers: list[tuple[Operation, dict[str, Any]]] = []
    while sent or answers or len(recorder.operations) < size:
        now = len(recorder.operations) / 10
        step = dice.randrange(3)
        if step == 0 and idle and len(recorder.operations) < size:
            kind = dice.choice(kinds)
            value = recorder.fresh_value() if kind in (Kind.PUT, Kind.CAS) else None
            expect = held if dice.random() < 0.7 else None
            client = idle.pop(dice.randrange(len(idle)))
            sent.append(
                recorder.begin(client, kind, "x", now, value=value, expect=expect if kind is Kind.CAS else None)
            )
        elif step == 1 and sent:
            op = sent.pop(dice.randrange(len(sent)))
            if op.kind is Kind.GET:
                answers.append((op, {"outcome": Outcome.COMMITTED, "result": held}))
            elif op.kind is Kind.CAS and op.expect != held:
                answers.append((op, {"outcome": Outcome.REFUSED, "code": PRECONDITION_FAILED}))
            else:
                lost = dice.random() < 0.1
                if not lost or dice.random() < 0.5:
                    held = op.value
                answers.append((op, {"outcome": Outcome.UNKNOWN if lost else Outcome.COMMITTED}))
        elif step == 2 and answers:
            op, answer = answers.pop(dice.randrange(len(answers)))
            recorder.end(op, now, **answer)
            idle.append(op.client)
    return recorder.operations


@settings(derandomize=True, deadline=None, max_examples=500)
@given(histories(KINDS_WITHOUT_CAS))
def test_zones_decide_puts_gets_and_deletes_as_every_order_does(operations: list[Operation]) -> None:
    ruling = zones.judge("x", operations)
    assert ruling.exact
    assert (ruling.finding is None) == linearizable(operations)


@settings(derandomize=True, deadline=None, max_examples=500)
@given(histories(KINDS_WITH_CAS))
def test_zones_never_err_where_there_is_cas_and_are_right_where_they_are_sure(operations: list[Operation]) -> None:
    ruling = zones.judge("x", operations)
    truth = linearizable(operations)
    if ruling.finding is not None:
        assert not truth
    elif ruling.exact:
        assert truth


@settings(derandomize=True, deadline=None, max_examples=500)
@given(histories(KINDS_WITH_CAS))
def test_search_decides_all_as_every_order_does_and_what_it_shows_is_a_violation(operations: list[Operation]) -> None:
    result = search.search("x", operations, 100_000)
    assert (result.judgement is Judgement.LINEARIZABLE) == linearizable(operations)
    if result.finding is not None:
        assert not linearizable(list(result.finding.operations))


@pytest.mark.parametrize("kinds", [KINDS_WITHOUT_CAS, KINDS_WITH_CAS], ids=["without cas", "with cas"])
def test_what_an_atomic_register_does_is_linearizable_and_a_changed_answer_is_judged_as_every_order_does(
    kinds: tuple[Kind, ...],
) -> None:
    violations = 0
    for seed in range(3000):
        operations = of_a_register(seed, size=7, clients=3, kinds=kinds)
        assert linearizable(operations), seed
        assert check(operations).judgement is Judgement.LINEARIZABLE, seed
        gets = [op for op in operations if op.kind is Kind.GET]
        if gets:
            dice = random.Random(-seed)
            dice.choice(gets).result = dice.choice([None, *(op.value for op in operations if op.value is not None)])
            judgement = check(operations).judgement
            assert (judgement is Judgement.LINEARIZABLE) == linearizable(operations), seed
            violations += judgement is Judgement.VIOLATION
    assert violations > 600


@pytest.mark.parametrize("kinds", [KINDS_WITHOUT_CAS, KINDS_WITH_CAS], ids=["without cas", "with cas"])
def test_a_long_history_of_a_register_is_linearizable(kinds: tuple[Kind, ...]) -> None:
    for seed in range(10):
        operations = of_a_register(seed, size=600, clients=4, kinds=kinds)
        assert check(operations).judgement is Judgement.LINEARIZABLE, seed
        assert search.search("x", operations, 1_000_000).judgement is Judgement.LINEARIZABLE, seed


# --- anomalies, by name -------------------------------------------------------------------------------------------

ANOMALIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "stale read": (
        "stale read",
        ("0-1 c1 put x=a", "2-3 c1 put x=b", "4-5 c2 get x=a"),
    ),
    "new-old inversion": (
        "stale read",
        ("0-1 c1 put x=a", "2-9 c1 put x=b", "3-4 c2 get x=b", "5-6 c3 get x=a"),
    ),
    "own write not read": (
        "value lost",
        ("0-1 c1 put x=a", "2-3 c1 get x=-"),
    ),
    "lost update": (
        "lost update",
        ("0-1 c1 put x=a", "2-5 c1 cas x=a>b", "3-4 c2 cas x=a>c"),
    ),
    "compare-and-set of what was replaced": (
        "read from the future",
        ("0-1 c1 put x=a", "2-3 c1 cas x=a>b", "4-5 c2 get x=b", "6-7 c3 get x=a"),
    ),
    "lost write": (
        "value lost",
        ("0-1 c1 put x=a", "2-3 c2 get x=a", "4-5 c2 get x=-"),
    ),
    "resurrected delete": (
        "deleted value is back",
        ("0-1 c1 put x=a", "2-3 c1 delete x", "4-5 c2 get x=a"),
    ),
    "delete seen once, then not": (
        "value lost",
        ("0-1 c1 put x=a", "2-9 c1 delete x", "3-4 c2 get x=-", "5-6 c2 get x=a"),
    ),
    "one delete explains two absences with a write between": (
        "value lost",
        ("0-1 c1 put x=a", "2-9 c1 delete x", "2-3 c2 get x=-", "4-5 c3 put x=b", "6-7 c2 get x=b", "8-9 c2 get x=-"),
    ),
    "refused write seen": (
        "refused write seen",
        ("0-1 c1 put x=a !", "2-3 c2 get x=a"),
    ),
    "value of a failed compare-and-set seen": (
        "refused write seen",
        ("0-1 c1 cas x=-> #", "0-1 c1 put x=a", "2-3 c2 cas x=b>c #", "4-5 c2 get x=c"),
    ),
    "unknown write seen, then gone": (
        "stale read",
        ("0-1 c1 put x=a", "2-3 c1 put x=b ?", "4-5 c2 get x=b", "6-7 c2 get x=a"),
    ),
    "unknown write seen, then gone without a trace": (
        "value lost",
        ("0-1 c1 put x=a ?", "2-3 c2 get x=a", "4-5 c2 get x=-"),
    ),
    "unknown delete seen, then undone": (
        "value lost",
        ("0-1 c1 put x=a", "2-3 c1 delete x ?", "4-5 c2 get x=-", "6-7 c2 get x=a"),
    ),
    "value from nowhere": (
        "value from nowhere",
        ("0-1 c1 put x=a", "2-3 c2 get x=z"),
    ),
    "read before its write": (
        "read from the future",
        ("0-1 c2 get x=a", "2-3 c1 put x=a"),
    ),
    "two values by turns": (
        "two values at once",
        ("0-9 w put x=a", "0-9 w put x=b", "1-2 c get x=a", "3-4 c get x=b", "5-6 c get x=a", "7-8 c get x=b"),
    ),
    "unknown compare-and-sets that build on what was gone": (
        "stale read",
        ("0-1 c1 put x=a", "2-3 c1 put x=d", "4-5 c2 cas x=a>b ?", "6-7 c3 cas x=b>c ?", "8-9 c4 get x=c"),
    ),
    "two values that come of each other": (
        "value from nowhere",
        ("0-9 c1 cas x=a>b", "0-9 c2 cas x=b>a"),
    ),
    "created twice": (
        "value lost",
        ("0-1 c1 cas x=->a", "2-3 c2 cas x=->b"),
    ),
    "one unknown write explains two failures of compare-and-set": (
        "not linearizable",
        ("0-1 w put x=a", "2-3 u put x=b ?", "4-5 c cas x=a>z #", "6-7 w put x=d", "8-9 c cas x=d>y #"),
    ),
    "compare-and-set fails although the value is there": (
        "not linearizable",
        ("0-1 c1 put x=a", "2-3 c2 cas x=a>b #", "4-5 c2 get x=a"),
    ),
}


@pytest.mark.parametrize(("rule", "lines"), ANOMALIES.values(), ids=ANOMALIES.keys())
def test_an_anomaly_is_a_violation_under_its_name(told: Told, rule: str, lines: tuple[str, ...]) -> None:
    verdict = check(told(*lines))
    assert verdict.judgement is Judgement.VIOLATION
    assert [finding.rule for finding in verdict.findings] == [rule]
    assert rule in str(verdict)


ALLOWED: dict[str, tuple[str, ...]] = {
    "concurrent reads of old and new": ("0-1 c1 put x=a", "2-9 c1 put x=b", "3-8 c2 get x=b", "3-8 c3 get x=a"),
    "unknown write that comes late": ("0-1 c1 put x=a ?", "2-3 c2 get x=-", "4-5 c2 get x=a"),
    "unknown write that never comes": ("0-1 c1 put x=a ?", "2-3 c2 put x=b", "4-5 c2 get x=b"),
    "unknown write that comes after a later one": (
        "0-1 c1 put x=a ?",
        "2-3 c2 put x=b",
        "4-5 c2 get x=b",
        "6-7 c2 get x=a",
    ),
    "deletes of what is not there": ("0-1 c1 delete x", "2-3 c2 delete x", "4-5 c3 get x=-"),
    "unknown delete that comes late": ("0-1 c1 delete x ?", "2-3 c2 put x=a", "4-5 c2 get x=a", "6-7 c2 get x=-"),
    "a delete between two values": (
        "0-1 c1 put x=a",
        "2-9 c2 delete x",
        "3-4 c3 get x=-",
        "5-6 c1 put x=b",
        "7-8 c3 get x=b",
    ),
    "refused write never seen": ("0-1 c1 put x=a !", "2-3 c2 get x=-"),
    "unknown compare-and-set that took effect": ("0-1 c1 put x=a", "2-3 c2 cas x=a>b ?", "4-5 c3 get x=b"),
    "compare-and-set that met another value": (
        "0-1 c1 put x=a",
        "2-3 c1 put x=b",
        "4-5 c2 cas x=a>c #",
        "6-7 c2 get x=b",
    ),
    "compare-and-set that met an unknown write nobody saw": (
        "0-1 c1 put x=a",
        "2-3 c1 put x=b ?",
        "4-5 c2 cas x=a>c #",
    ),
    "an unknown write is what a compare-and-set met, so that the unknown delete can come late": (
        "0-1 w put x=a",
        "2-3 u put x=b ?",
        "2-3 v delete x ?",
        "4-5 c cas x=a>z #",
        "6-7 w put x=d",
        "8-9 r get x=d",
        "10-11 r get x=-",
    ),
    "a compare-and-set chain, all at once": (
        "0-9 c1 put x=a",
        "0-9 c2 cas x=a>b",
        "0-9 c3 cas x=b>c",
        "1-2 c4 get x=c",
    ),
    "one value put twice": ("0-1 c1 put x=a", "2-3 c1 put x=b", "4-5 c1 put x=a", "6-7 c2 get x=a"),
}


@pytest.mark.parametrize("lines", ALLOWED.values(), ids=ALLOWED.keys())
def test_what_looks_odd_and_is_allowed(told: Told, lines: tuple[str, ...]) -> None:
    assert check(told(*lines)).judgement is Judgement.LINEARIZABLE


# --- the front door -----------------------------------------------------------------------------------------------


def test_keys_are_judged_apart_and_one_violation_is_enough(told: Told) -> None:
    verdict = check(told("0-1 c1 put x=a", "0-1 c2 put y=b", "2-3 c1 get y=-", "2-3 c2 get x=a"))
    assert {key.key: key.judgement for key in verdict.keys} == {"x": Judgement.LINEARIZABLE, "y": Judgement.VIOLATION}
    assert verdict.judgement is Judgement.VIOLATION


def test_a_scan_that_misses_a_key_is_a_violation() -> None:
    recorder = Recorder()
    for key in ("a", "b"):
        recorder.end(recorder.begin("c1", Kind.PUT, key, 0.0, value=key), 1.0, Outcome.COMMITTED)
    scan = recorder.begin("c2", Kind.SCAN, "", 2.0)
    recorder.end(scan, 3.0, Outcome.COMMITTED, rows=(ScannedRow("a", "a"),))
    assert [finding.key for finding in check(recorder.operations).findings] == ["b"]


def test_wrong_stamps_change_no_verdict(told: Told) -> None:
    assert (
        check(told("0-1 c1 put x=a @9", "2-3 c1 put x=b @3", "4-5 c2 get x=b @7")).judgement is Judgement.LINEARIZABLE
    )


def test_out_of_steps_is_not_decided_and_no_pass(told: Told) -> None:
    lines = [f"{n}-99 c{n} cas x=->v{n} ?" for n in range(8)] + ["98-99 r get x=v7", "97-98 r cas x=v1>z #"]
    verdict = check(told(*lines), steps_max=5)
    assert verdict.judgement is Judgement.UNDECIDED
    assert verdict.undecided == ["x"]
    assert "not decided" in str(verdict)
    assert check(told(*lines)).judgement is Judgement.LINEARIZABLE


def test_a_violation_outweighs_what_is_not_decided(told: Told) -> None:
    verdict = check(told("0-9 c1 cas x=->a", "0-9 c2 cas x=a>- ", "0-1 c3 get y=z"), steps_max=0)
    assert {key.key: key.judgement for key in verdict.keys} == {"x": Judgement.UNDECIDED, "y": Judgement.VIOLATION}
    assert verdict.judgement is Judgement.VIOLATION


def test_evidence_of_the_search_is_small(told: Told) -> None:
    operations = of_a_register(3, size=150, clients=4, kinds=KINDS_WITH_CAS)
    late = [f"{1000 + n}-{1000 + n + 0.5} late {deed}" for n, deed in enumerate(["put x=p", "cas x=p>q #", "get x=p"])]
    (finding,) = check([*operations, *_shifted(told(*late))]).findings
    assert finding.rule == "not linearizable"
    assert [op.client for op in finding.operations] == ["late", "late", "late"]


def _shifted(operations: list[Operation]) -> Iterator[Operation]:
    for op in operations:
        op.began += 10_000
        op.ended = None if op.ended is None else op.ended + 10_000
        yield op


# --- cost ---------------------------------------------------------------------------------------------------------


def _lines_run(of_module: str, work: Callable[[], object]) -> int:
    """How many lines of the module run: a measure of work that no clock and no neighbour disturbs."""
    count = 0

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename != of_module:
            return None
        count += event == "line"
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(previous)
    return count


def test_zones_take_work_in_proportion_to_the_operations() -> None:
    small, large = (of_a_register(1, size=size, clients=50, kinds=KINDS_WITHOUT_CAS) for size in (1000, 8000))
    work = [_lines_run(zones.__file__, lambda ops=ops: zones.judge("x", ops)) for ops in (small, large)]  # type: ignore[misc]
    assert work[0] > 1000
    assert work[1] < 10 * work[0]


def test_search_takes_steps_in_proportion_to_the_operations_of_a_few_clients() -> None:
    small, large = (of_a_register(1, size=size, clients=4, kinds=KINDS_WITH_CAS) for size in (500, 2000))
    steps = [search.search("x", operations, 1_000_000).steps for operations in (small, large)]
    assert steps[1] < 12 * steps[0]
