"""When a history must be linearizable, and when not: the judge of runs that visit a mode which promises convergence."""

from __future__ import annotations

import pytest

from trikv.core.errors import Outcome
from trikv.testing.judge.history import Finding, Kind, Operation, Recorder
from trikv.testing.judge.strong_periods import StrongPeriod, check_strong_periods

HISTORIES = {
    "what is read first in a period must have been written before it": """
        1 put a committed
        2 put b committed
        20 get a
        21 get a
        period 10   held
    """,
    "of two values from before, only one can have been there": """
        1 put a committed
        2 put b committed
        20 get a
        21 get b
        period 10   violation
    """,
    "absence can have been there, as far as one knows": """
        1 put a committed
        20 get -
        period 10   held
    """,
    "but it does not come back": """
        1 put a committed
        20 get -
        21 get a
        period 10   violation
    """,
    "a write that was unknown may still come, once": """
        1 put a committed
        2 put b unknown
        20 get a
        21 get b
        22 get b
        period 10   held
    """,
    "and not be gone again": """
        1 put a committed
        2 put b unknown
        20 get a
        21 get b
        22 get a
        period 10   violation
    """,
    "in a period nothing is lost": """
        1 put a committed
        20 put b committed
        21 get a
        period 10   violation
    """,
    "before it, anything goes": """
        1 put a committed
        2 put b committed
        3 get a
        4 get b
        5 get a
        20 get b
        period 10   held
    """,
    "after it too": """
        1 put a committed
        2 put b committed
        3 get b
        20 get a
        21 get b
        period - 10   held
    """,
    "until its end it holds": """
        1 put a committed
        2 put b committed
        3 get a
        20 get b
        period - 10   violation
    """,
    "a compare-and-set is a witness as well": """
        1 put a committed
        2 put b committed
        20 cas a c committed
        21 get b
        period 10   violation
    """,
    "two periods are judged apart": """
        1 put a committed
        2 get a
        12 put b committed
        30 get a
        31 get a
        period - 10
        period 20   held
    """,
    "without a visit elsewhere the whole is judged": """
        1 put a committed
        2 put b committed
        3 get a
        period -   violation
    """,
}


def play(story: str) -> tuple[list[Operation], list[StrongPeriod], str]:
    """Each operation takes half a second, from the time at which it stands."""
    recorder, periods, expected = Recorder(), [], ""
    for line in filter(None, map(str.strip, story.splitlines())):
        match line.split():
            case ["period", from_s, *rest]:
                if rest and rest[-1] in ("held", "violation"):
                    expected = rest.pop()
                periods.append(StrongPeriod(None if from_s == "-" else float(from_s), float(rest[0]) if rest else None))
            case [time, "get", value]:
                operation = recorder.begin("c", Kind.GET, "k", float(time))
                result = None if value == "-" else value
                recorder.end(operation, float(time) + 0.5, Outcome.COMMITTED, result=result)
            case [time, "cas", expect, value, outcome]:
                operation = recorder.begin("c", Kind.CAS, "k", float(time), value=value, expect=expect)
                recorder.end(operation, float(time) + 0.5, Outcome(outcome))
            case [time, "put", value, outcome]:
                operation = recorder.begin("c", Kind.PUT, "k", float(time), value=value)
                recorder.end(operation, float(time) + 0.5, Outcome(outcome))
    return recorder.operations, periods, expected


@pytest.mark.parametrize("story", HISTORIES.values(), ids=HISTORIES)
def test_story(story: str) -> None:
    history, periods, expected = play(story)
    findings, undecided = check_strong_periods(history, periods)
    assert undecided == []
    assert ("violation" if findings else "held") == expected, findings


def test_what_had_not_ended_when_a_reign_began_or_ended_binds_nobody() -> None:
    recorder = Recorder()
    early = recorder.begin("c", Kind.PUT, "k", 9.0, value="early")
    recorder.end(early, 12.0, Outcome.COMMITTED)  # acknowledged by a mode that promises less

    def read(at_s: float, value: str | None) -> None:
        recorder.end(recorder.begin("d", Kind.GET, "k", at_s), at_s + 0.1, Outcome.COMMITTED, result=value)

    read(13.0, None)
    read(14.0, "early")
    late = recorder.begin("c", Kind.PUT, "k", 19.5, value="late")
    recorder.end(late, 21.0, Outcome.COMMITTED)
    read(19.9, "early")
    found: tuple[list[Finding], list[str]] = check_strong_periods(recorder.operations, [StrongPeriod(10.0, 20.0)])
    assert found == ([], [])
