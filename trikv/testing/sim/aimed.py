"""Schedules that are aimed at the moment in which a promise is thin: while a write is half done.

Faults that strike at random seldom meet a write between its first copy and its last, and seldom find a client that
reads just then, before and after. So a run of this kind is a row of *scenes*, each of which is made for that:

    behind     some replicas of a key get the next write late or never, or their acknowledgements are late
    write      a client puts, deletes or compares and sets; the write gets as far as it can
    look       others read the key or list it, one shortly after another
    turn       the replicas that have the write are cut off, crash, or are replaced by others; or the master crashes
               and forgets what it knew; or nothing more happens
    look       again, and for a third time when the cluster has had time to change
    write, look

Four stories (`_STORIES`) say which of that go together; the rest is drawn. A scene may be harmless. Many are not, for a
strategy that relies on what it merely saw. The replicas are named by their place in the key's preference list, so that
the head is the head also after changes. One worker more than there are replicas is there to replace one. A worker that
was replaced comes back with its disk, or without it as far as the promise covers that.

Cost: half of a usual run.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from trikv.api import Promise, Strategy
from trikv.testing.judge.history import Kind
from trikv.testing.sim.plan import (
    MASTER,
    FaultKind,
    Schedule,
    ScheduledFault,
    ScheduledRequest,
    draw_between,
    replica_of,
)
from trikv.testing.sim.variety import draw_key, draw_replicas

_CLIENTS: Final = 5
_PARTITIONS: Final = 2
_DOWN_AFTER_S: Final = 2.0
_OTHER_KEYS: Final = 0.2  # the share of keys that get another length
_NEW_KEYS: Final = 0.4  # the share of scenes with a key that was never written
_WRITES: Final[Mapping[Kind, int]] = {Kind.PUT: 45, Kind.CAS: 20, Kind.DELETE: 35}

# How replicas fall behind. As often as it is named here:
_LATE: Final = (FaultKind.HUNG_DISK, FaultKind.HUNG_DISK, FaultKind.SLOW_DISK)  # they can be read meanwhile
_LOST: Final = (FaultKind.POWER_CUT, FaultKind.POWER_CUT, FaultKind.CRASH)  # what is sent there is lost
_ANY: Final = (FaultKind.HUNG_DISK, FaultKind.SLOW_DISK, FaultKind.POWER_CUT, FaultKind.ONE_WAY, FaultKind.LATE_LINK)


class _Turn(Enum):
    NOTHING = "nothing"
    CUT = "those that have the write cannot be reached"
    CRASH = "they crash"
    FORGET = "the master crashes"
    REPLACE = "they are replaced"


class _Behind(Enum):
    """Which replicas are behind."""

    FIRST = "the head, and those after it"
    LAST = "the tail, and those before it"
    SOME = "any"


class _Story(NamedTuple):
    """How some fall behind, and what happens then. Alternatives are as likely as they are often named.

    `often`: of a hundred scenes. `commits`: the share in which those that are not behind are enough to commit the
    write. `lists`: the share of the looks that are scans. `held`: how often a new key is written before.
    """

    often: int
    faults: tuple[FaultKind, ...]
    behind: tuple[_Behind, ...]
    turns: tuple[_Turn, ...]
    commits: float
    lists: float = 0.15
    held: float = 0.6


_FIRST, _LAST, _SOME = _Behind.FIRST, _Behind.LAST, _Behind.SOME
_STORIES: Final = (
    _Story(45, _LATE, (_LAST, _LAST, _FIRST, _SOME), (_Turn.CUT, _Turn.CUT, _Turn.CUT, _Turn.NOTHING), commits=0.0),
    _Story(20, _LOST, (_LAST, _LAST, _FIRST, _SOME), (_Turn.REPLACE,), commits=0.2),
    _Story(20, _LOST, (_LAST, _FIRST, _SOME), (_Turn.FORGET, _Turn.NOTHING), commits=1.0, lists=0.6, held=0.2),
    _Story(15, _ANY, (_LAST, _FIRST, _SOME), tuple(_Turn), commits=0.3),
)


@dataclass(frozen=True, slots=True)
class Aimed:
    """A row of so many scenes, each seed in a world of its own."""

    scenes: tuple[int, int] = (9, 12)
    replicas: int = 3
    latency_s: tuple[float, float] = (0.0005, 0.005)
    fsync_s: tuple[float, float] = (0.0003, 0.002)

    def draw(self, strategy: Strategy, seed: int) -> Schedule:
        """The schedule of this seed."""
        dice = random.Random(f"aimed/{seed}")
        replicas = draw_replicas(strategy, dice, self.replicas)
        scenes = _Scenes(strategy, replicas, dice)
        keys: list[str] = []
        for number in range(dice.randint(*self.scenes)):
            if not keys or dice.random() < _NEW_KEYS:
                name = f"aim{number}"
                keys.append(draw_key(name, dice) if dice.random() < _OTHER_KEYS else name)
            scenes.add(dice.choice((keys[-1], dice.choice(keys))))
        return Schedule(
            seed=seed,
            workers=replicas + 1,
            replicas=replicas,
            clients=_CLIENTS,
            partitions=_PARTITIONS,
            latency_s=draw_between(dice, *self.latency_s),
            fsync_s=draw_between(dice, *self.fsync_s),
            keys=tuple(dict.fromkeys(keys)),
            requests=tuple(sorted(scenes.requests, key=lambda request: request.at_s)),
            faults=tuple(sorted(scenes.faults, key=lambda fault: fault.at_s)),
            down_after_s=_DOWN_AFTER_S,
            forget_after_s=_DOWN_AFTER_S,
            think_s=0.001,
        )


class _Scenes:
    """The faults and requests of one scene after another. `now_s`: when the next begins."""

    def __init__(self, strategy: Strategy, replicas: int, dice: random.Random) -> None:
        self.faults: list[ScheduledFault] = []
        self.requests: list[ScheduledRequest] = []
        self.now_s = 0.5
        self._replicas = replicas
        self._copies = strategy.copies(replicas)
        self._disks_to_lose = 1 if strategy.promise is Promise.AP else self._copies - 1
        self._writes = dict(_WRITES) if strategy.compare_and_set else {**_WRITES, Kind.CAS: 0}
        self._written: set[str] = set()
        self._dice = dice

    def add(self, key: str) -> None:
        """A scene with this key."""
        dice = self._dice
        (story,) = dice.choices(_STORIES, [story.often for story in _STORIES])
        turn = dice.choice(story.turns)
        members = [replica_of(key, place) for place in range(1, self._replicas + 1)]
        behind = self._draw_behind(story, members)
        ahead = [member for member in members if member not in behind]
        if key not in self._written and dice.random() < story.held:
            self._write(self.now_s, key)
        write_s = self.now_s + 0.3
        turn_s = write_s + dice.uniform(0.15, 0.5)
        again_s = turn_s + dice.uniform(0.02, 0.3)
        until_s = again_s + dice.choice((0.4, 0.4, dice.uniform(0.5, 2)))
        if story.faults is _LOST or (story.faults is _ANY and dice.random() < 0.3):
            until_s = turn_s + 0.1  # they are back when those go that have the write
        self._hold_back(story, behind, members, write_s - 0.03, until_s)
        self._write(write_s, key)
        self._look(story, write_s + dice.uniform(0.005, 0.08), key)
        self._turn(turn, turn_s, members, ahead)
        self._look(story, again_s, key)
        end_s = max(until_s, again_s + 0.4)
        if turn is _Turn.REPLACE:
            end_s = max(end_s, turn_s + _DOWN_AFTER_S + dice.uniform(0.8, 1.5))
        if turn in (_Turn.REPLACE, _Turn.FORGET):
            self._look(story, end_s, key)
        if dice.random() < 0.5:
            self._write(end_s + 0.1, key)
            self._look(story, end_s + 0.1 + dice.uniform(0.005, 0.1), key)
        self.now_s = end_s + dice.uniform(0.4, 1.2) + (2.0 if turn is _Turn.REPLACE else 0.0)

    def _draw_behind(self, story: _Story, members: Sequence[str]) -> list[str]:
        """Those that the write reaches late: some of them, but not all unless there is only one."""
        dice = self._dice
        if dice.random() < story.commits:
            ahead = dice.randint(min(self._copies, len(members) - 1), len(members) - 1)
        else:
            ahead = dice.randint(1, max(1, self._copies - 1))
        which = dice.choice(story.behind)
        if which is _LAST:
            return list(members[ahead:])
        if which is _FIRST:
            return list(members[:-ahead])
        return dice.sample(members, len(members) - ahead)

    def _hold_back(
        self, story: _Story, behind: Sequence[str], members: Sequence[str], at_s: float, until_s: float
    ) -> None:
        dice = self._dice
        alike = dice.choice(story.faults) if dice.random() < 0.6 else None
        for member in behind:
            kind = alike or dice.choice(story.faults)
            nodes: tuple[str, ...] = (member,)
            if kind in (FaultKind.ONE_WAY, FaultKind.LATE_LINK):
                place = list(members).index(member)
                source = members[place - 1] if place and dice.random() < 0.4 else MASTER  # as along a chain
                nodes = (source, member) if dice.random() < 0.7 else (member, source)
            self._strike(kind, at_s, nodes, until_s - at_s, delay_s=dice.uniform(0.1, 0.8))

    def _turn(self, turn: _Turn, at_s: float, members: Sequence[str], ahead: Sequence[str]) -> None:
        """Take away what has the write, or another replica."""
        dice = self._dice
        gone = list(ahead) if dice.random() < 0.85 else [dice.choice(members)]
        if turn is _Turn.FORGET or (turn is _Turn.REPLACE and dice.random() < 0.75):
            self._strike(FaultKind.MASTER_CRASH, at_s + dice.uniform(0.0, 0.05), (MASTER,), dice.uniform(0.02, 0.4))
        for member in gone:
            if turn is _Turn.CUT:
                self._strike(FaultKind.CUT_LINK, at_s, (MASTER, member), dice.uniform(0.4, 1.5))
            elif turn is _Turn.CRASH:
                kind = dice.choice((FaultKind.CRASH, FaultKind.POWER_CUT))
                self._strike(kind, at_s, (member,), dice.uniform(0.2, 1.5))
            elif turn is _Turn.REPLACE:
                self._replace(member, at_s)
        if turn is _Turn.REPLACE and dice.random() < 0.25:  # and an old member cannot be reached meanwhile
            self._strike(FaultKind.CUT_LINK, at_s, (MASTER, dice.choice(members)), dice.uniform(1.0, 4.0))

    def _replace(self, member: str, at_s: float) -> None:
        dice = self._dice
        kind = FaultKind.EVICTION
        if self._disks_to_lose > 0 and dice.random() < 0.3:
            self._disks_to_lose -= 1
            kind = FaultKind.EVICTION_EMPTY
        self._strike(kind, at_s, (member,), _DOWN_AFTER_S + dice.uniform(0.8, 3.0))

    def _strike(
        self, kind: FaultKind, at_s: float, nodes: tuple[str, ...], lasts_s: float, *, delay_s: float = 0.0
    ) -> None:
        self.faults.append(
            ScheduledFault(at_s, kind, nodes, lasts_s, delay_s=delay_s if kind is FaultKind.LATE_LINK else 0.0)
        )

    def _write(self, at_s: float, key: str) -> None:
        kinds = self._writes
        if key not in self._written:  # there is nothing to delete
            self._written.add(key)
            kinds = {**kinds, Kind.DELETE: 0}
        self._ask(at_s, self._dice.choices(list(kinds), list(kinds.values()))[0], key)

    def _look(self, story: _Story, at_s: float, key: str) -> None:
        """Several looks, some while the one before is under way and some after it."""
        dice = self._dice
        for _ in range(dice.randint(2, 4)):
            if dice.random() < story.lists:
                self._ask(at_s, Kind.SCAN, key[:1])
            else:
                self._ask(at_s, Kind.GET, key)
            at_s += dice.uniform(0.0, 0.12)

    def _ask(self, at_s: float, kind: Kind, key: str) -> None:
        self.requests.append(ScheduledRequest(at_s, len(self.requests) % _CLIENTS, kind, key))
