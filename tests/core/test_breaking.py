"""Which fault can be injected in which condition of a worker, all of them against each other."""

from __future__ import annotations

from itertools import product

import pytest

from trikv.core.breaking import TOLD, BreakKind, Condition, LinkState, ProcessState, kinds_for, why_not

POSSIBLE = {
    ProcessState.RUNNING: {"pause", "kill"},
    ProcessState.PAUSED: {"resume", "kill"},
    ProcessState.GONE: {"start"},
    ProcessState.FOREIGN: set(),
    LinkState.WHOLE: {"cut", "slow"},
    LinkState.CUT: {"slow", "mend"},
    LinkState.SLOW: {"cut", "slow", "mend"},
}


@pytest.mark.parametrize(("process", "link"), list(product(ProcessState, LinkState)))
def test_what_can_be_done_depends_on_process_and_link(process: ProcessState, link: LinkState) -> None:
    condition = Condition(process, None, link)
    assert {kind.value for kind in kinds_for(condition)} == POSSIBLE[process] | POSSIBLE[link]
    for kind in BreakKind:
        assert (why_not(kind, "w-1", condition) == "") is (kind in kinds_for(condition))


@pytest.mark.parametrize(
    ("kind", "condition", "why"),
    [
        (
            BreakKind.PAUSE,
            Condition(ProcessState.PAUSED),
            "process of worker w-1 is paused; pause is for one that is running",
        ),
        (
            BreakKind.KILL,
            Condition(ProcessState.GONE),
            "process of worker w-1 is gone; kill is for one that is running or paused",
        ),
        (
            BreakKind.START,
            Condition(ProcessState.RUNNING),
            "process of worker w-1 is running; start is for one that is gone",
        ),
        (BreakKind.MEND, Condition(), "link to worker w-1 is whole; mend is for one that is cut or slow"),
        (
            BreakKind.CUT,
            Condition(link=LinkState.CUT),
            "link to worker w-1 is cut; cut is for one that is whole or slow",
        ),
    ],
)
def test_why_not_is_said(kind: BreakKind, condition: Condition, why: str) -> None:
    assert why_not(kind, "w-1", condition) == f"the {why}"


def test_a_foreign_process_comes_with_the_remedy() -> None:
    assert "trikv master --start-workers N" in why_not(BreakKind.KILL, "w-1", Condition())


def test_every_kind_can_be_told() -> None:
    assert TOLD.keys() == set(BreakKind)
    assert TOLD[BreakKind.SLOW].format(delay_ms=250.0) == "its link to the master was slowed by 250 ms"
