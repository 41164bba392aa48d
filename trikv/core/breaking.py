"""Breaking a cluster on purpose: which faults there are, and in which condition of a worker each can be injected.

A worker's *process* can be paused, killed, and started again. The *link* over which the master calls it can be cut or
slowed. A worker has at most one fault of either sort at a time. The two tables say which kind leads out of which state.
`master/breaking.py` carries out what they allow.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

DELAY_MOST_MS: Final = 10_000.0


class BreakKind(StrEnum):
    PAUSE = "pause"
    RESUME = "resume"
    KILL = "kill"
    START = "start"
    CUT = "cut"
    SLOW = "slow"
    MEND = "mend"


class ProcessState(StrEnum):
    """`foreign`: the process is none that this master can break: it did not start it, or not as a process."""

    RUNNING = "running"
    PAUSED = "paused"
    GONE = "gone"
    FOREIGN = "foreign"


class LinkState(StrEnum):
    WHOLE = "whole"
    CUT = "cut"
    SLOW = "slow"


class Condition(NamedTuple):
    """What is known of a worker's process and link. `pid`: where there is a process of this machine."""

    process: ProcessState = ProcessState.FOREIGN
    pid: int | None = None
    link: LinkState = LinkState.WHOLE
    delay_ms: float = 0.0


PROCESS_KINDS: Final = {
    ProcessState.RUNNING: (BreakKind.PAUSE, BreakKind.KILL),
    ProcessState.PAUSED: (BreakKind.RESUME, BreakKind.KILL),
    ProcessState.GONE: (BreakKind.START,),
    ProcessState.FOREIGN: (),
}
LINK_KINDS: Final = {
    LinkState.WHOLE: (BreakKind.CUT, BreakKind.SLOW),
    LinkState.CUT: (BreakKind.SLOW, BreakKind.MEND),
    LinkState.SLOW: (BreakKind.CUT, BreakKind.SLOW, BreakKind.MEND),
}

# What each kind did, as a clause.
TOLD: Final = {
    BreakKind.PAUSE: "its process was paused",
    BreakKind.RESUME: "its process goes on",
    BreakKind.KILL: "its process was killed",
    BreakKind.START: "its process runs again",
    BreakKind.CUT: "its link to the master was cut",
    BreakKind.SLOW: "its link to the master was slowed by {delay_ms:g} ms",
    BreakKind.MEND: "its link to the master is whole again",
}


def kinds_for(condition: Condition) -> list[BreakKind]:
    """What can be done to a worker in that condition."""
    return [*PROCESS_KINDS[condition.process], *LINK_KINDS[condition.link]]


def why_not(kind: BreakKind, worker: str, condition: Condition) -> str:
    """Why that cannot be done to the worker now, as a clause for a person; empty if it can."""
    if kind in kinds_for(condition):
        return ""
    if for_links := [state.value for state, kinds in LINK_KINDS.items() if kind in kinds]:
        return f"the link to worker {worker} is {condition.link}; {kind} is for one that is {' or '.join(for_links)}"
    if condition.process is ProcessState.FOREIGN:
        return (
            f"the process of worker {worker} was not started by this master, which can cut or slow its link alone; "
            "trikv master --start-workers N starts workers whose processes it can break"
        )
    for_processes = [state.value for state, kinds in PROCESS_KINDS.items() if kind in kinds]
    return (
        f"the process of worker {worker} is {condition.process}; {kind} is for one that is {' or '.join(for_processes)}"
    )
