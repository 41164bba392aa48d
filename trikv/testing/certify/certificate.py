"""Does a strategy keep its promise? Many simulated runs give one certificate.

    certificate = certify("quorum", seeds=range(1, 201), jobs=2)
    assert certificate.is_kept, certificate

Every seed is a cluster of its own, with faults of its own, and its history is judged (`trikv.testing.sim`). All runs
together give a grade, of what the strategy *delivers*:

    linearizable   every run was
    convergent     some were not; but replicas came to hold the same, and no value was lost or made up
    neither        not even that
    not decided    the checker ran out of steps in some run, or nothing was ever committed. This is not a pass.

A strategy also states on how many replicas a committed write is (`copies`). That is counted, for each write
(`acknowledged.py`). Too few acknowledgements break the promise, whatever the histories say.

A strategy that promises consistency and breaks the promise is played once more as if it had promised convergence only,
since its author will want to know whether it delivers that. A strategy that always raises breaks no promise. So
certification also asks how it behaves (`misconduct.py`), whether anything was ever committed, and whether a seed gives
the same run a second time, in another process with another hash seed.

Of the runs that failed, the first few are shrunk (`shrink.py`), and the one with the shortest timeline is drawn
(`failure.py`). All of them together cost as many runs as one alone may: each is shrunk a little, and the most promising
one further.
Where a mode that promises convergence kept that, and a saved schedule was played, a run that was not linearizable is
drawn in the same way: it is the price of the mode.

A schedule that a person saved (`sim/schedulefile.py`) can take the place of the plan: then every seed plays the same
requests and faults, with latencies of its own.

Cost: about half a second of CPU for each seed, and at most `shrink.RUNS_MAX` shorter runs for a failure.
"""

from __future__ import annotations

import shlex
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from typing import Any, Final

from trikv.api import Promise
from trikv.core.errors import Outcome
from trikv.testing.certify.acknowledged import TOO_FEW
from trikv.testing.certify.failure import draw_failure, with_last_read
from trikv.testing.certify.load import LoadError, load_strategy
from trikv.testing.certify.misconduct import Misconduct
from trikv.testing.certify.pool import HANG_S, PlayedTask, ProcessPool, Task
from trikv.testing.certify.shrink import RUNS_MAX, shrink
from trikv.testing.judge import linear
from trikv.testing.judge.history import Finding, Judgement
from trikv.testing.sim import CERTIFYING, FaultKind, Run, Schedule
from trikv.testing.sim.plan import SourceOfSchedules
from trikv.testing.sim.schedulefile import SavedSchedule
from trikv.timeline import Timeline

SEEDS: Final = 200  # about a minute on two cores
SEEDS_OF_SAVED: Final = 20  # of a saved schedule, in which less is drawn
REPEATED: Final = 3  # how many seeds are played a second time
WEAKENED_MAX: Final = 20  # how many seeds are played as if less had been promised
SHRUNK_MAX: Final = 3  # how many failing seeds are shrunk
_FIRST_SHARE: Final = 6  # each of them may first use up one in so many of the runs
STUCK_MAX: Final = 3  # runs without an end, after which playing stops: each costs `HANG_S`

_WORKER_S_COSTS_S: Final = (
    0.1  # a second of a saved schedule, for each worker: ten times what the worst was seen to cost
)

# A finding of one of these rules is about availability; a finding of any other rule is about what clients saw.
_AVAILABILITY: Final = frozenset({"does not form", "does not mend", "not available", "late answer"})


class Harm(IntEnum):
    """The kinds of what is found, the first to be shown first: a cause explains more than what comes of it."""

    PROMISED_COPIES = 1  # too few acknowledged
    ANSWERS = 2  # what clients were told is wrong
    AVAILABILITY = 3

    @classmethod
    def of(cls, finding: Finding) -> Harm:
        if finding.rule == TOO_FEW:
            return cls.PROMISED_COPIES
        return cls.AVAILABILITY if finding.rule in _AVAILABILITY else cls.ANSWERS


class Grade(StrEnum):
    LINEARIZABLE = "linearizable"
    CONVERGENT = "convergent"
    NEITHER = "neither linearizable nor convergent"
    UNDECIDED = "not decided"


PROMISED: Final = {Promise.CP: Grade.LINEARIZABLE, Promise.AP: Grade.CONVERGENT}


@dataclass(frozen=True, slots=True)
class Broken:
    """A run that did not keep the promise, the weightiest finding against it, and what kinds of findings there are."""

    seed: int
    finding: Finding
    harms: frozenset[Harm]


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
    stopped_at_first: bool = False  # the seeds after a broken promise were left out
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
    schedule: SavedSchedule | None = None  # what was played, if it was saved
    weakened: tuple[int, int] | None = None  # runs under the weaker promise, and how many of them kept it
    counterexample: Counterexample | None = None
    seeds_with_price: list[int] = field(default_factory=list)  # of an AP mode: not linearizable for certain
    price: Counterexample | None = None  # the smallest of these, if the promise was kept

    @property
    def delivers(self) -> Grade:
        unsafe = self.is_unsafe
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
    def is_unsafe(self) -> bool:
        """Were clients told what is wrong?"""
        return any(Harm.ANSWERS in one.harms for one in self.broken)

    @property
    def breaks_its_promise(self) -> bool:
        """Was it seen to do what it promises not to do? An answer that was missing is another matter."""
        return any(harm is not Harm.AVAILABILITY for one in self.broken for harm in one.harms)

    @property
    def is_kept(self) -> bool:
        """Did a strategy that behaves keep all that it promised, in every run?"""
        committed = self.outcomes[Outcome.COMMITTED] > 0
        return committed and not (self.broken or self.undecided or self.noticed or self.stuck)

    @property
    def replay_command(self) -> str:
        example = self.counterexample or self.price
        seed = self.seeds[0] if example is None else example.seed
        saved = "" if self.schedule is None else f" --schedule {shlex.quote(self.schedule.source)}"
        return f"trikv certify {self.target}{saved} --replay {seed}"

    def to_json(self) -> dict[str, Any]:
        """The certificate as plain data."""
        return {
            "strategy": self.mode,
            "from": self.origin,
            "promise": self.promise.value,
            "promised": PROMISED[self.promise].value,
            "delivers": self.delivers.value,
            "kept": self.is_kept,
            "schedule": None if self.schedule is None else self.schedule.source,
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
            "price": None if self.price is None else _example_to_json(self.price),
            "replay": self.replay_command if self.counterexample or self.price else None,
        }


def _example_to_json(example: Counterexample) -> dict[str, Any]:
    schedule = example.schedule
    return {
        "seed": example.seed,
        "digest": example.digest,
        "finding": str(example.finding),
        "faults": [{"at_s": round(fault.at_s, 4), "fault": str(fault)} for fault in schedule.faults],
        "requests": [
            {
                "at_s": round(one.at_s, 4),
                "client": f"c{one.client + 1}",
                "kind": one.kind.value,
                "key": one.key,
                "value": one.value,
            }
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
    seeds: Sequence[int] | None = None,
    jobs: int = 2,
    plan: SourceOfSchedules | None = None,
    schedule: SavedSchedule | None = None,
    runs_max: int = RUNS_MAX,
    stop_at_first: bool = False,
    hang_s: float | None = None,
    progress: CertifyProgress = _no_progress,
) -> Certificate:
    """Put the strategy that `target` names to the test.

    `seeds`: 1 to `SEEDS`, or to `SEEDS_OF_SAVED` with a schedule, if there are none. `plan`: what runs are like.
    `schedule`: play this in each run instead, from its beginning under the mode that `target` names. `runs_max`: how
    many runs the search for a small failing schedule may cost; with 0 the schedule is shown as it is. `stop_at_first`:
    play no further seeds after one that broke the promise. `hang_s`: the time after which a run counts as hanging.

    Raises:
      LoadError: there is no such strategy, or none of a name that the schedule switches to.
    """
    loaded = load_strategy(target)
    strategy = loaded.strategy
    source: SourceOfSchedules = plan or CERTIFYING
    if schedule is not None:
        assert plan is None, "either a plan or a schedule"
        _check_modes(schedule)
        source = schedule
    if seeds is None:
        seeds = range(1, 1 + (SEEDS if schedule is None else SEEDS_OF_SAVED))
    if hang_s is None:
        hang_s = HANG_S if schedule is None else HANG_S + _WORKER_S_COSTS_S * schedule.workers * schedule.played_s
    certificate = Certificate(
        target,
        strategy.name,
        loaded.origin,
        strategy.promise,
        seeds=(min(seeds), max(seeds)),
        schedule=schedule,
    )
    with ProcessPool(target, jobs, hang_s=hang_s) as pool:
        seeds = _play_all(pool, certificate, source, seeds, stop_at_first, progress)
        if certificate.is_unsafe and strategy.promise is Promise.CP:
            certificate.weakened = _play_weakened(pool, source, seeds[:WEAKENED_MAX], progress)
        if certificate.broken:
            count = 1 if stop_at_first or not runs_max else SHRUNK_MAX
            certificate.counterexample = _find_shortest(pool, source, certificate.broken, count, runs_max, progress)
        elif certificate.seeds_with_price and schedule is not None:
            certificate.price = _find_price(pool, source, min(certificate.seeds_with_price), runs_max, progress)
    if certificate.stuck < STUCK_MAX:
        with ProcessPool(target, 1, hash_seed=1, hang_s=hang_s) as other:
            _play_again(other, certificate, source, seeds[:REPEATED])
    return certificate


def _check_modes(schedule: SavedSchedule) -> None:
    for mode in schedule.modes:
        try:
            load_strategy(mode)
        except LoadError as error:
            raise LoadError(f"{schedule.source} switches to a mode that is not installed: {error}") from error


def _play_all(
    pool: ProcessPool,
    certificate: Certificate,
    source: SourceOfSchedules,
    seeds: Sequence[int],
    stop_at_first: bool,
    progress: CertifyProgress,
) -> Sequence[int]:
    """Play every seed and enter its result. Returns the seeds that were played: those up to the end, if it came early.

    All seeds before the first failing one are among them, so that is the same one in every run.
    """
    began_s = time.monotonic()
    played_seeds: list[int] = []

    def tasks() -> Iterator[Task]:
        for seed in seeds:
            if certificate.stuck >= STUCK_MAX or (stop_at_first and certificate.broken):
                return
            played_seeds.append(seed)
            yield Task(seed, source)

    for count, played in enumerate(pool.play(tasks()), start=1):
        _enter(certificate, played)
        progress(CertifyStage.PLAYING, count, len(seeds))
    certificate.elapsed_s = time.monotonic() - began_s
    certificate.broken.sort(key=lambda one: one.seed)
    certificate.undecided.sort()
    certificate.seeds = (min(played_seeds), max(played_seeds))
    certificate.stopped_at_first = len(played_seeds) < len(seeds) and bool(certificate.broken) and stop_at_first
    return played_seeds


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
    if played.judgement is Judgement.VIOLATION:
        certificate.seeds_with_price.append(played.task.seed)
    if run.findings:
        certificate.broken.append(
            Broken(played.task.seed, _weightiest(run.findings), frozenset(map(Harm.of, run.findings)))
        )
    elif run.undecided:
        certificate.undecided.append(played.task.seed)


def _weightiest(findings: Sequence[Finding]) -> Finding:
    """The finding to show first: causes before what comes of them, operations before bookkeeping."""

    def weight(finding: Finding) -> tuple[Harm, bool, bool]:
        return Harm.of(finding), not finding.operations, "stamp" in finding.rule

    return min(findings, key=weight)


def _play_weakened(
    pool: ProcessPool, source: SourceOfSchedules, seeds: Sequence[int], progress: CertifyProgress
) -> tuple[int, int]:
    """Play the seeds under the weaker promise. Returns how many there were, and how many kept it."""
    kept = 0
    for count, played in enumerate(pool.play(Task(seed, source, promise=Promise.AP) for seed in seeds), start=1):
        kept += played.run is not None and all(Harm.of(one) is Harm.AVAILABILITY for one in played.run.findings)
        progress(CertifyStage.WEAKENED, count, len(seeds))
    return len(seeds), kept


def _play_again(pool: ProcessPool, certificate: Certificate, source: SourceOfSchedules, seeds: Sequence[int]) -> None:
    """Does a seed give the same run in another process?"""
    for played in pool.play(Task(seed, source) for seed in seeds if seed in certificate.digests):
        seed = played.task.seed
        if played.run is not None and played.run.digest != certificate.digests[seed]:
            certificate.noticed.setdefault(
                Misconduct.UNREPEATABLE, f"seed {seed} gave another run the second time, in another process"
            )
            certificate.seen_in[Misconduct.UNREPEATABLE] += 1


def _find_shortest(
    pool: ProcessPool,
    source: SourceOfSchedules,
    broken: Sequence[Broken],
    count: int,
    runs_max: int,
    progress: CertifyProgress,
) -> Counterexample | None:
    """Of the first `count` seeds that failed most gravely, the one with the shortest timeline.

    None: none of them fails a second time.
    """
    gravest = min(Harm.of(one.finding) for one in broken)
    chosen = [one for one in broken if Harm.of(one.finding) is gravest][:count]
    searches = [_FailureSearch(pool, source, one, progress) for one in chosen]
    searches = [search for search in searches if search.begins()]
    if not searches:
        return None
    if len(searches) > 1:
        for search in searches:
            search.shrink(runs_max // _FIRST_SHARE)
    best = min(searches, key=lambda search: search.size)
    best.shrink(runs_max - sum(search.runs for search in searches))
    return min(filter(None, (search.tell() for search in searches)), key=_length_of, default=None)


def _length_of(example: Counterexample) -> int:
    """How much there is to read."""
    schedule, timeline = example.schedule, example.timeline
    events = len(timeline.messages) + 2 * len(timeline.calls) + 2 * len(timeline.bands)
    return len(schedule.faults) + len(schedule.requests) + events


def _find_price(
    pool: ProcessPool, source: SourceOfSchedules, seed: int, runs_max: int, progress: CertifyProgress
) -> Counterexample | None:
    """The smallest schedule of this seed whose history is not linearizable, though the promise is kept."""
    search = _PriceSearch(pool, source, seed, progress)
    if not search.begins():
        return None
    search.shrink(runs_max)
    example = search.tell()
    return example and replace(example, timeline=replace(example.timeline, broken="from here on not linearizable"))


class _Search(ABC):
    """Plays a seed again with its history and trace kept, and shrinks its schedule, in one go or in several."""

    def __init__(self, pool: ProcessPool, source: SourceOfSchedules, seed: int, progress: CertifyProgress) -> None:
        self.runs = 0
        self._pool = pool
        self._source = source
        self._seed = seed
        self._progress = progress
        self._whole: Run | None = None
        self._best: Schedule | None = None
        self._failed_s = 0.0
        self._tried = self._total = 0  # for the progress

    @abstractmethod
    def fails(self, played: PlayedTask) -> bool:
        """Does this candidate still show what is looked for?"""

    @abstractmethod
    def show(self, run: Run) -> Finding | None:
        """The finding to draw."""

    @property
    def size(self) -> int:
        assert self._best is not None
        return len(self._best.faults) + len(self._best.requests)

    def begins(self) -> bool:
        """Play the seed as it is. Does it fail a second time?"""
        whole = self._play_full()
        finding = None if whole is None else self.show(whole)
        if whole is None or finding is None:
            return False
        self._whole, self._best = whole, whole.schedule
        self._failed_s = max((one.returned_s or 0.0 for one in finding.operations), default=whole.virtual_s)
        return True

    def shrink(self, runs_max: int) -> None:
        """Look for a smaller schedule that fails, for at most so many runs."""
        assert self._best is not None
        if runs_max <= 0:
            return
        self._tried, self._total = 0, runs_max
        shrunk = shrink(self._best, self._first_failing, failed_s=self._failed_s, runs_max=runs_max)
        self._best = shrunk.schedule
        self.runs += shrunk.runs

    def tell(self) -> Counterexample | None:
        """The smallest that was found. None: it fails no second time."""
        assert self._whole is not None
        smallest = self._play_full(self._best)
        finding = None if smallest is None else self.show(smallest)
        if smallest is None or finding is None:
            return None
        return Counterexample(
            seed=self._seed,
            schedule=smallest.schedule,
            finding=finding,
            timeline=draw_failure(smallest, finding),
            digest=smallest.digest,
            runs=self.runs,
            shrunk_from=(len(self._whole.schedule.faults), len(self._whole.schedule.requests)),
        )

    def _first_failing(self, candidates: Sequence[Schedule]) -> int | None:
        pool = self._pool
        for start in range(0, len(candidates), pool.size):
            window = candidates[start : start + pool.size]
            tasks = [
                Task(self._seed, self._source, number, schedule) for number, schedule in enumerate(window, start=start)
            ]
            failing = sorted(played.task.number for played in pool.play(tasks) if self.fails(played))
            self._tried += len(tasks)
            self._progress(CertifyStage.SHRINKING, min(self._tried, self._total), self._total)
            if failing:
                return failing[0]
        return None

    def _play_full(self, schedule: Schedule | None = None) -> Run | None:
        (played,) = self._pool.play([Task(self._seed, self._source, schedule=schedule, full=True)])
        return played.run


class _FailureSearch(_Search):
    """Looks for a broken promise, by the rule that was broken at first: the story is to be that of the summary."""

    def __init__(self, pool: ProcessPool, source: SourceOfSchedules, broken: Broken, progress: CertifyProgress) -> None:
        super().__init__(pool, source, broken.seed, progress)
        self._rule = broken.finding.rule

    def fails(self, played: PlayedTask) -> bool:
        return played.run is not None and any(one.rule == self._rule for one in played.run.findings)

    def show(self, run: Run) -> Finding | None:
        found = [one for one in run.findings if one.rule == self._rule]
        return with_last_read(_weightiest(found), run.history) if found else None


class _PriceSearch(_Search):
    """Looks for a history that is not linearizable, while the promise is kept."""

    def fails(self, played: PlayedTask) -> bool:
        return played.judgement is Judgement.VIOLATION and played.run is not None and not played.run.findings

    def show(self, run: Run) -> Finding | None:
        return next(iter(linear.check(run.history).findings), None)
