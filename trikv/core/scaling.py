"""When a cluster should have another worker, and when one fewer: a decision, made from samples of its load.

A worker has a capacity: `max_load` requests a second and `max_keys` keys. The cluster is *short* while the mean load of
its workers is above `HIGH` of that, and *idle* while the load that one worker fewer would have is below `LOW` of it.
The two lie apart, so that a change does not at once call for the opposite one. Being short or idle counts once it has
lasted, `SHORT_S` or `IDLE_S`: a burst is no reason to move data. After a change nothing is decided until all partitions
are settled and `COOL_DOWN_S` have passed: what a change is worth is seen only then.

Another worker does not always help. Where one key has so much of the load that its replicas alone are short, more
workers would have the rest of the load and that key's replicas the same as before; the decision says so and waits.

`decide` is a pure function of the samples and the time. It always says why, also why nothing is to be done. Where the
workers come from is `master/autoscale.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

HIGH: Final = 0.8
LOW: Final = 0.5
SHORT_S: Final = 3.0
IDLE_S: Final = 15.0
COOL_DOWN_S: Final = 10.0
HOT_SHARE: Final = 0.5  # of all requests, for one key


@dataclass(frozen=True, slots=True)
class Limits:
    """`fewest` and `most` workers; `max_load` requests a second and `max_keys` keys for each; None: not looked at."""

    fewest: int
    most: int
    max_load: float | None = None
    max_keys: int | None = None

    def __post_init__(self) -> None:
        assert 1 <= self.fewest <= self.most, self


class WorkerLoad(NamedTuple):
    """What one worker had to do: requests a second, and the keys that it holds."""

    requests: float
    keys: int


class Sample(NamedTuple):
    """The cluster at one moment. `workers`: those that hold data or may be given some.

    `busy`: why nothing can be changed now (something is being settled, or an operator's wish is under way), or "".
    `hottest`: the most frequent key's share of all requests, from 0 to 1. `removable`: workers that the autoscaler
    started itself, in the order in which they are to go. `away`: further workers that are down, and may come back.
    """

    time_s: float
    workers: Mapping[str, WorkerLoad]
    busy: str = ""
    hottest: float = 0.0
    removable: Sequence[str] = ()
    away: int = 0


class Action(Enum):
    ADD = "add"
    REMOVE = "remove"
    WAIT = "wait"


class Decision(NamedTuple):
    """What to do, and why, in a sentence for people. `worker`: the one that is to go."""

    action: Action
    why: str
    worker: str = ""


class Use(NamedTuple):
    """How much of the workers' capacity is used: of requests or of keys, whichever is more."""

    share: float
    what: str


def use_of(sample: Sample, limits: Limits, workers: int) -> Use:
    """The share of the capacity of `workers` workers that the load of the sample takes."""
    requests = sum(load.requests for load in sample.workers.values())
    keys = sum(load.keys for load in sample.workers.values())
    uses = []
    if limits.max_load is not None:
        share = requests / (workers * limits.max_load)
        uses.append(Use(share, f"{requests:,.0f} requests a second are {share:.0%} of what {_count(workers)} can take"))
    if limits.max_keys is not None:
        share = keys / (workers * limits.max_keys)
        uses.append(Use(share, f"{keys:,} copies of keys are {share:.0%} of what {_count(workers)} can hold"))
    return max(uses, key=lambda use: use.share, default=Use(0.0, "no limit is set"))


def decide(samples: Sequence[Sample], limits: Limits, now_s: float, changed_s: float | None = None) -> Decision:
    """
    Args:
      samples: the latest ones, in order; those of the last `IDLE_S` seconds are looked at.
      now_s: the time, on the clock of the samples.
      changed_s: when the autoscaler last changed something, or None.
    """
    if not samples or not samples[-1].workers:
        return Decision(Action.WAIT, "there is nothing to go by yet")
    last = samples[-1]
    count = len(last.workers)
    if last.busy:
        return Decision(Action.WAIT, last.busy)
    if changed_s is not None and now_s - changed_s < COOL_DOWN_S:
        left_s = COOL_DOWN_S - (now_s - changed_s)
        return Decision(Action.WAIT, f"the last change is too recent: {left_s:.0f} s are left")
    if count + last.away < limits.fewest:
        return Decision(Action.ADD, f"there are {_count(count)}, and at least {limits.fewest} are wanted")
    if count > limits.most:
        return _remove(last, f"there are {_count(count)}, and at most {limits.most} are wanted")
    use = use_of(last, limits, count)
    if use.share > HIGH:
        return _judge_short(samples, limits, now_s, use)
    if count > limits.fewest:
        fewer = use_of(last, limits, count - 1)
        if fewer.share < LOW:
            since_s = _since(samples, now_s, lambda s: use_of(s, limits, max(1, len(s.workers) - 1)).share < LOW)
            if now_s - since_s < IDLE_S:
                return Decision(Action.WAIT, f"{fewer.what}, and that counts once it has lasted {IDLE_S:g} s")
            return _remove(last, fewer.what)
    if count < limits.fewest:
        return Decision(Action.WAIT, f"{use.what}, and {_count(last.away)} of the fleet may come back")
    return Decision(Action.WAIT, use.what)


def _judge_short(samples: Sequence[Sample], limits: Limits, now_s: float, use: Use) -> Decision:
    last = samples[-1]
    since_s = _since(samples, now_s, lambda s: use_of(s, limits, len(s.workers)).share > HIGH)
    if now_s - since_s < SHORT_S:
        return Decision(Action.WAIT, f"{use.what}, and that counts once it has lasted {SHORT_S:g} s")
    if len(last.workers) >= limits.most:
        return Decision(Action.WAIT, f"{use.what}, and there are {limits.most} workers, the most that are wanted")
    if last.hottest > HOT_SHARE:
        return Decision(Action.WAIT, f"one key is {last.hottest:.0%} of the load: another worker will not help")
    return Decision(Action.ADD, use.what)


def _remove(sample: Sample, why: str) -> Decision:
    if not sample.removable:
        return Decision(Action.WAIT, f"{why}, and none of the workers was started by the autoscaler")
    return Decision(Action.REMOVE, why, sample.removable[0])


def _since(samples: Sequence[Sample], now_s: float, holds: Callable[[Sample], bool]) -> float:
    """Since when it has held, without a break; `now_s` if it does not."""
    since_s = now_s
    for sample in reversed(samples):
        if not sample.workers or not holds(sample):
            break
        since_s = sample.time_s
    return since_s


def _count(workers: int) -> str:
    return "1 worker" if workers == 1 else f"{workers:,} workers"
