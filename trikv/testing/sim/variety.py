"""Worlds that differ: the number of replicas, sizes of keys and values, batches.

A strategy that is right for three replicas, short keys and small values may be wrong for others, and its author does
not see that with the usual ones. So `Varied` gives each seed of a plan

    replicas   from 2 to 5, as far as the strategy's `copies` allows it
    keys       some of one byte, some long, some as long as a key may be
    values     some of other sizes, one of them empty, and now and then a large one, of a megabyte at most
    batches    some requests that one client sends together

All that is drawn by a generator of its own. So what a plan draws for a seed stays as it is: who asks what and when, and
which fault strikes when.

Cost: large values are real bytes, and each copy and each read of one takes milliseconds. So there is at most one of
them, in one of `_LARGE_EVERY` seeds.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from trikv.api import Strategy
from trikv.core.record import KEY_BYTES_MAX, VALUE_BYTES_MAX
from trikv.registry import can_keep
from trikv.testing.judge.history import Kind
from trikv.testing.sim.names import sized
from trikv.testing.sim.plan import Plan, Schedule, ScheduledRequest, draw_between

_REPLICAS: Final = {2: 20, 3: 55, 4: 15, 5: 10}  # by their number: how often, in a hundred seeds
_OTHER_KEYS: Final = 0.4  # the share of keys that get another length
_OTHER_VALUES: Final = 8  # so many values of a run are of another size
_LONG_KEY_BYTES: Final = 32
_MEDIUM_BYTES: Final = (32, 40_000)
_LARGE_BYTES: Final = 64 * 1024
_LARGE_EVERY: Final = 10
_BATCHES: Final = (2, 5)
_BATCH_OF: Final = (2, 8)
_BATCH_S: Final = 1.0  # requests that are further apart are not sent together
_IN_BATCH: Final = (Kind.GET, Kind.PUT, Kind.DELETE, Kind.CAS)


@dataclass(frozen=True, slots=True)
class Varied:
    """A plan whose worlds differ."""

    plan: Plan

    def draw(self, strategy: Strategy, seed: int) -> Schedule:
        """The schedule of this seed."""
        dice = random.Random(f"variety/{seed}")
        replicas = draw_replicas(strategy, dice, self.plan.replicas)
        plan = replace(self.plan, replicas=replicas, workers=max(self.plan.workers, replicas))
        schedule = _rename_keys(plan.draw(strategy, seed), dice)
        requests = _batch(_resize_values(schedule.requests, seed, dice), dice)
        return replace(schedule, requests=tuple(requests))


def draw_replicas(strategy: Strategy, dice: random.Random, usual: int) -> int:
    """A number of replicas that the strategy can serve."""
    able = {n: weight for n, weight in _REPLICAS.items() if _serves(strategy, n)}
    return dice.choices(list(able), list(able.values()))[0] if able else usual


def _serves(strategy: Strategy, replicas: int) -> bool:
    try:
        return can_keep(strategy.copies(replicas), replicas)
    except Exception:  # noqa: BLE001 it may refuse so few replicas by any error
        return False


def draw_key(name: str, dice: random.Random) -> str:
    """A key in place of `name`: of one byte, long, or as long as may be."""
    shape = dice.random()
    if shape < 0.3:
        return name[0]
    if shape < 0.5:
        return sized(name, KEY_BYTES_MAX)
    return sized(name, round(draw_between(dice, _LONG_KEY_BYTES, KEY_BYTES_MAX)))


def draw_size(dice: random.Random) -> int:
    """The size of a value that is not large, in bytes."""
    return round(draw_between(dice, *_MEDIUM_BYTES))


def _rename_keys(schedule: Schedule, dice: random.Random) -> Schedule:
    renamed = {key: draw_key(key, dice) for key in schedule.keys if dice.random() < _OTHER_KEYS}
    apart = {new: old for old, new in renamed.items()}  # two may have become the same byte: then only one does
    renamed = {old: new for new, old in apart.items()}
    return replace(
        schedule,
        keys=tuple(renamed.get(key, key) for key in schedule.keys),
        requests=tuple(replace(one, key=renamed.get(one.key, one.key)) for one in schedule.requests),
    )


def _resize_values(requests: Sequence[ScheduledRequest], seed: int, dice: random.Random) -> list[ScheduledRequest]:
    resized = list(requests)
    writes = [index for index, one in enumerate(requests) if one.kind in (Kind.PUT, Kind.CAS)]
    for number, index in enumerate(dice.sample(writes, min(len(writes), _OTHER_VALUES))):
        size_bytes = draw_size(dice)
        if number == 0:
            size_bytes = 0
        elif number == 1 and not seed // 4 % _LARGE_EVERY:
            least = dice.choice((_LARGE_BYTES, VALUE_BYTES_MAX))
            size_bytes = round(draw_between(dice, least, VALUE_BYTES_MAX))
        resized[index] = replace(requests[index], size_bytes=size_bytes)
    return resized


def _batch(requests: Sequence[ScheduledRequest], dice: random.Random) -> list[ScheduledRequest]:
    batched = list(requests)
    for number in range(1, 1 + dice.randint(*_BATCHES)):
        start = dice.randrange(len(batched)) if batched else 0
        for index in range(start, min(start + dice.randint(*_BATCH_OF), len(batched))):
            first, one = batched[start], batched[index]
            if one.kind in _IN_BATCH and not one.batch and one.at_s - first.at_s < _BATCH_S:
                batched[index] = replace(one, client=first.client, at_s=first.at_s, batch=number)
    return sorted(batched, key=lambda one: one.at_s)
