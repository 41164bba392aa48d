"""Does a strategy keep its promise? Many simulated runs give one certificate.

    certificate = certify("quorum", seeds=range(1, 201), jobs=2)
    assert certificate.is_kept, certificate

Every seed is a cluster of its own, with faults of its own, and its history is judged (`trikv.testing.sim`). All runs
together give a grade, of what the strategy *delivers*:

    linearizable   every run was
    convergent     some were not; but replicas came to hold the same, and no value was lost or made up
    neither        not even that
    not decided    the checker ran out of steps in some run, or nothing was ever committed. This is not a pass.

A strategy that promises consistency and breaks the promise is played once more as if it had promised convergence only,
since its author will want to know whether it delivers that. A strategy that always raises breaks no promise. So
certification also asks how it behaves (`misconduct.py`), whether anything was ever committed, and whether a seed gives
the same run a second time, in another process with another hash seed.

Of the runs that failed, the one with the lowest seed is shrunk (`shrink.py`) and drawn as a timeline (`failure.py`).

Cost: about half a second of CPU for each seed, and at most `shrink.RUNS_MAX` shorter runs for a failure.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from trikv.api import Promise
from trikv.core.errors import Outcome
from trikv.testing.certify.failure import draw_failure, with_last_read
from trikv.testing.certify.load import load_strategy
from trikv.testing.certify.misconduct import Misconduct
from trikv.testing.certify.pool import HANG_S, PlayedTask, ProcessPool, Task
from trikv.testing.certify.shrink import RUNS_MAX, shrink
from trikv.testing.judge.history import Finding, Judgement
from trikv.testing.sim import CERTIFYING, FaultKind, Plan, Run, Schedule
from trikv.timeline import Timeline

SEEDS: Final = 200  # about a minute on two cores
REPEATED: Final = 3  # how many seeds are played a second time
WEAKENED_MAX: Final = 20  # how many seeds are played as if less had been promised
STUCK_MAX: Final = 3  # runs without an end, after which playing stops: each costs `HANG_S`

# A finding of one of these rules is about availability; a finding of any other rule is about what clients saw.
_AVAILABILITY: Final = frozenset({"does not form", "does not mend", "not available", "late answer"})


class Grade(StrEnum):
    LINEARIZABLE = "linearizable"
    CONVERGENT = "convergent"
    NEITHER = "neither linearizable nor convergent"
    UNDECIDED = "not decided"


PROMISED: Final = {Promise.CP: Grade.LINEARIZABLE, Promise.AP: Grade.CONVERGENT}


@dataclass(frozen=True, slots=True)
class Broken:
    """A run that did not keep the promise, and the weightiest finding against it."""

    seed: int
    finding: Finding


@dataclass(frozen=True, slots=True)
class Counterexample:
    """The smallest failing schedule that was found for one seed.

    `shrunk_from`: how many faults and requests the seed's own schedule had.
    """

    seed: int
    schedule: Schedule
    finding: Finding
    timeline: Timeline
    digest: str
    runs: int
    shrunk_from: tuple[int, int]


@dataclass(slots=True)
class Certificate:
    """The results of all runs.

    `noticed` says of each kind of misconduct where it was seen first; `seen_in`, in how many runs. Runs without an end
    are only counted (`stuck`).
    """

    target: str
    mode: str
    origin: str
    promise: Promise
    seeds: tuple[int, int]  # the first and the last
    runs: int = 0
    stuck: int = 0
    faults: Counter[FaultKind] = field(default_factory=Counter)
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    virtual_s: float = 0.0
    elapsed_s: float = 0.0
    broken: list[Broken] = field(default_factory=list)
    undecided: list[int] = field(default_factory=list)
    not_linearizable: int = 0  # runs of a mode that does not promise it
    noticed: dict[Misconduct, str] = field(default_factory=dict)
    seen_in: Counter[Misconduct] = field(default_factory=Counter)
    digests: dict[int, str] = field(default_factory=dict)  # the digest of each seed's run
    weakened: tuple[int, int] | None = None  # runs under the weaker promise, and how many of them kept it
    counterexample: Counterexample | None = None

    @property
    def delivers(self) -> Grade:
        unsafe = [one for one in self.broken if one.finding.rule not in _AVAILABILITY]
        if not self.outcomes[Outcome.COMMITTED]:
            return Grade.UNDECIDED
        if self.promise is Promise.AP:
            if unsafe:
                return Grade.NEITHER
            return Grade.CONVERGENT if self.not_linearizable else Grade.LINEARIZABLE
        if unsafe:
            return Grade.CONVERGENT if self.weakened and self.weakened[0] == self.weakened[1] else Grade.NEITHER
        return Grade.UNDECIDED if self.undecided else Grade.LINEARIZABLE

    @property
    def is_kept(self) -> bool:
        """Did a strategy that behaves keep all that it promised, in every run?"""
        committed = self.outcomes[Outcome.COMMITTED] > 0
        return committed and not (self.broken or self.undecided or self.noticed or self.stuck)

    @property
    def replay_command(self) -> str:
        seed = self.counterexample.seed if self.counterexample else self.seeds[0]
        return f"trikv certify {self.target} --replay {seed}"

    def to_json(self) -> dict[str, Any]:
        """The certificate as plain data."""
        return {
            "strategy": self.mode,
            "from": self.origin,
            "promise": self.promise.value,
            "promised": PROMISED[self.promise].value,
            "delivers": self.delivers.value,
            "kept": self.is_kept,
            "seeds": {"first": self.seeds[0], "last": self.seeds[1]},
            "runs": self.runs,
            "virtual_s": round(self.virtual_s, 3),
            "elapsed_s": round(self.elapsed_s, 3),
            "operations": {outcome.value: self.outcomes[outcome] for outcome in Outcome},
            "faults": {kind.value: count for kind, count in self.faults.most_common()},
            "broken": [{"seed": one.seed, "rule": one.finding.rule, "key": one.finding.key} for one in self.broken],
            "undecided": self.undecided,
            "misconduct": {kind.value: detail for kind, detail in self.noticed.items()},
            "counterexample": None if self.counterexample is None else _example_to_json(self.counterexample),
            "replay": self.replay_command if self.counterexample is not None else None,
        }


def _example_to_json(example: Counterexample) -> dict[str, Any]:
    schedule = example.schedule
    return {
        "seed": example.seed,
        "digest": example.digest,
        "finding": str(example.finding),
        "faults": [{"at_s": round(fault.at_s, 4), "fault": str(fault)} for fault in schedule.faults],
        "requests": [
            {"at_s": round(one.at_s, 4), "client": f"c{one.client + 1}", "kind": one.kind.value, "key": one.key}
            for one in schedule.requests
        ],
    }


# --- how far it is ----------------------------------------------------------------------------------------------------


class CertifyStage(StrEnum):
    """The stage of certification."""

    PLAYING = "playing every seed"
    WEAKENED = "as if less had been promised"
    SHRINKING = "making the failure smaller"


CertifyProgress = Callable[[CertifyStage, int, int], None]  # how many runs of how many


def _no_progress(stage: CertifyStage, done: int, total: int) -> None:
    pass


# --- the work ---------------------------------------------------------------------------------------------------------


def certify(
    target: str,
    *,
    seeds: Sequence[int],
    jobs: int = 2,
    plan: Plan | None = None,
    runs_max: int = RUNS_MAX,
    hang_s: float = HANG_S,
    progress: CertifyProgress = _no_progress,
) -> Certificate:
    """Put the strategy that `target` names to the test.

    `plan`: what runs are like. `runs_max`: how many runs the search for a small failing schedule may cost. `hang_s`:
    the time after which a run counts as hanging.

    Raises:
      LoadError: there is no such strategy.
    """
    loaded = load_strategy(target)
    strategy = loaded.strategy
    plan = plan or CERTIFYING
    certificate = Certificate(target, strategy.name, loaded.origin, strategy.promise, seeds=(min(seeds), max(seeds)))
    with ProcessPool(target, jobs, hang_s=hang_s) as pool:
        _play_all(pool, certificate, plan, seeds, progress)
        if certificate.broken and strategy.promise is Promise.CP:
            certificate.weakened = _play_weakened(pool, plan, seeds[:WEAKENED_MAX], progress)
        if certificate.broken:
            certificate.counterexample = _find_smallest(pool, plan, certificate.broken[0], runs_max, progress)
    if certificate.stuck < STUCK_MAX:
        with ProcessPool(target, 1, hash_seed=1, hang_s=hang_s) as other:
            _play_again(other, certificate, plan, seeds[:REPEATED])
    return certificate


def _play_all(
    pool: ProcessPool, certificate: Certificate, plan: Plan, seeds: Sequence[int], progress: CertifyProgress
) -> None:
    """Play every seed and enter its result."""
    began_s = time.monotonic()

    def tasks() -> Iterator[Task]:
        for seed in seeds:
            if certificate.stuck >= STUCK_MAX:
                return
            yield Task(seed, plan)

    for count, played in enumerate(pool.play(tasks()), start=1):
        _enter(certificate, played)
        progress(CertifyStage.PLAYING, count, len(seeds))
    certificate.elapsed_s = time.monotonic() - began_s
    certificate.broken.sort(key=lambda one: one.seed)
    certificate.undecided.sort()


def _enter(certificate: Certificate, played: PlayedTask) -> None:
    for what, detail in played.misconduct.items():
        certificate.noticed.setdefault(what, detail)
        certificate.seen_in[what] += 1
    run = played.run
    if run is None:
        certificate.stuck += 1
        return
    certificate.runs += 1
    certificate.digests[played.task.seed] = run.digest
    certificate.faults += run.faults
    certificate.outcomes += run.outcomes
    certificate.virtual_s += run.virtual_s
    certificate.not_linearizable += played.judgement is not Judgement.LINEARIZABLE
    if run.findings:
        certificate.broken.append(Broken(played.task.seed, _weightiest(run)))
    elif run.undecided:
        certificate.undecided.append(played.task.seed)


def _weightiest(run: Run) -> Finding:
    """The finding to show first: wrong answers before missing ones, operations before bookkeeping."""

    def weight(finding: Finding) -> tuple[bool, bool, bool]:
        return finding.rule in _AVAILABILITY, not finding.operations, "stamp" in finding.rule

    return min(run.findings, key=weight)


def _play_weakened(pool: ProcessPool, plan: Plan, seeds: Sequence[int], progress: CertifyProgress) -> tuple[int, int]:
    """Play the seeds under the weaker promise. Returns how many there were, and how many kept it."""
    kept = 0
    for count, played in enumerate(pool.play(Task(seed, plan, promise=Promise.AP) for seed in seeds), start=1):
        kept += played.run is not None and all(one.rule in _AVAILABILITY for one in played.run.findings)
        progress(CertifyStage.WEAKENED, count, len(seeds))
    return len(seeds), kept


def _play_again(pool: ProcessPool, certificate: Certificate, plan: Plan, seeds: Sequence[int]) -> None:
    """Does a seed give the same run in another process?"""
    for played in pool.play(Task(seed, plan) for seed in seeds if seed in certificate.digests):
        seed = played.task.seed
        if played.run is not None and played.run.digest != certificate.digests[seed]:
            certificate.noticed.setdefault(
                Misconduct.UNREPEATABLE, f"seed {seed} gave another run the second time, in another process"
            )
            certificate.seen_in[Misconduct.UNREPEATABLE] += 1


def _find_smallest(
    pool: ProcessPool, plan: Plan, broken: Broken, runs_max: int, progress: CertifyProgress
) -> Counterexample | None:
    """Play the seed again with its history and trace kept, and shrink it. None: it does not fail a second time."""
    is_unsafe = broken.finding.rule not in _AVAILABILITY
    runs = 0

    def fails(played: PlayedTask) -> bool:
        """Does it fail in the same way, roughly? A wrong answer must not be traded for a missing one."""
        found = played.run.findings if played.run is not None else []
        return any((finding.rule not in _AVAILABILITY) == is_unsafe for finding in found)

    def first_failing(candidates: Sequence[Schedule]) -> int | None:
        nonlocal runs
        for start in range(0, len(candidates), pool.size):
            window = candidates[start : start + pool.size]
            tasks = [Task(broken.seed, plan, number, schedule) for number, schedule in enumerate(window, start=start)]
            failing = sorted(played.task.number for played in pool.play(tasks) if fails(played))
            runs += len(tasks)
            progress(CertifyStage.SHRINKING, min(runs, runs_max), runs_max)
            if failing:
                return failing[0]
        return None

    whole = _play_full(pool, Task(broken.seed, plan, full=True))
    if whole is None or not whole.findings:
        return None
    evidence = with_last_read(_weightiest(whole), whole.history).operations
    failed_s = max((one.returned_s or 0.0 for one in evidence), default=whole.virtual_s)
    shrunk = shrink(whole.schedule, first_failing, failed_s=failed_s, runs_max=runs_max)
    smallest = _play_full(pool, Task(broken.seed, plan, schedule=shrunk.schedule, full=True))
    if smallest is None or not smallest.findings:
        return None
    finding = with_last_read(_weightiest(smallest), smallest.history)
    return Counterexample(
        seed=broken.seed,
        schedule=smallest.schedule,
        finding=finding,
        timeline=draw_failure(smallest, finding),
        digest=smallest.digest,
        runs=shrunk.runs,
        shrunk_from=(len(whole.schedule.faults), len(whole.schedule.requests)),
    )


def _play_full(pool: ProcessPool, task: Task) -> Run | None:
    (played,) = pool.play([task])
    return played.run
