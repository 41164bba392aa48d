"""Which members of a partition must answer: to write, to read, to list, to find, and to settle.

A configuration has n members. A committed write is on at least W of them (`copies`), so any R = n - W + 1 of them hold
every committed write between them (`recovery`). A history has several configurations, the active one last; a committed
write of any of them may be the newest of its key.

| question | under CP | under AP |
|---|---|---|
| write  | those that the strategy states (`Needs`), W at least | the same |
| read   | those that the strategy states; else the larger of R and W | the same; else one |
| find   | R of every configuration | all that are not known to be down, one at least |
| list   | as find, and W of the active configuration | all that are up, one at least |
| settle | as list; all of the active one, if an earlier configuration is AP | all that are up, W of the active one |

*Write* and *read* are what the strategy itself says of its calls: `judge` is asked before a request, so that one which
cannot succeed is refused while nothing has been sent. The other rows follow from W alone, whatever the strategy.

Why the rows differ:

- *find* is for one key, which is repaired afterwards. The copy that repairs it is written to the active configuration,
  so its members need not have answered before.
- *list* serves reads from what was listed, without another call. A CP read must see its record on W members, else it
  would have to repair the record.
- *settle* ends with the promise that the active configuration holds everything. So its members are heard like those of
  the others, and a leftover on the one replica that a mode reads is found.
- Under AP a write may be on one member only, so only all members together are known to hold it. But the mode promises
  an answer, so no number of them may be waited for. A doubtful member is asked where its answer costs one more call
  (find). It is not asked where it would hold up many keys (list, settle).
- From AP to CP, a record that a silent member alone holds must not turn up later. So every member of an AP
  configuration is heard, except evictable ones, and every member of the active one.

Everything here is arithmetic on what the caller knows of the members at that moment. Nothing is remembered.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Generic, NamedTuple, Protocol, TypeVar

from trikv.core.configuration import Configuration, Member
from trikv.core.tally import TallyVerdict


class Promise(StrEnum):
    """What a mode keeps when the network fails: consistency, or availability."""

    CP = "CP"  # linearizable; refuses what it cannot do truthfully
    AP = "AP"  # always tries to answer; replicas converge later


class Availability(Enum):
    UP = "up"
    DOUBTFUL = "doubtful"  # it was not heard yet, or not lately: it may answer
    DOWN = "down"  # it will not answer


@dataclass(frozen=True, slots=True)
class Need:
    """The replicas that a request cannot do without: `count` of them, and among those the ones at `places`.

    A place is an index into the preference list: 0 is the head, -1 the tail.
    """

    count: int
    places: tuple[int, ...] = ()

    def is_met(self, able: Sequence[bool]) -> bool:
        """Are they among the replicas that are able? `able` has one value for each replica, in order."""
        return able.count(True) >= self.count and all(able[place] for place in self.places)

    def describe(self, n: int) -> str:
        """In words, as what a request needs of `n` replicas."""
        if not self.places:
            return f"all {n} replicas" if self.count == n > 1 else f"{self.count} of {n} replicas"
        named = " and ".join(_name_place(place, n) for place in self.places)
        if self.count <= len({place % n for place in self.places}):
            return named
        return f"{self.count} of {n} replicas, {named} among them"


def _name_place(place: int, n: int) -> str:
    place %= n
    if place in (0, n - 1):
        return "the first replica" if place == 0 else "the last replica"
    return f"replica {place + 1}"


class Needs(NamedTuple):
    """What a write and a read need of the replicas of one key."""

    write: Need
    read: Need


def assume_needs(promise: Promise, copies: int, n: int) -> Needs:
    """What is assumed of a strategy that does not state it.

    A write needs any W. A read under CP needs R, to find the newest write, and W, to make the answer safe; under AP one
    replica.
    """
    return Needs(Need(copies), Need(1 if promise is Promise.AP else max(copies, n - copies + 1)))


class Voter(Protocol):
    """A member, with what is known of it now."""

    @property
    def member(self) -> Member: ...

    @property
    def availability(self) -> Availability: ...

    @property
    def evictable(self) -> bool:
        """Has it been down for so long, or in such a way, that nothing waits for it any more?"""


V = TypeVar("V", bound=Voter)


@dataclass(frozen=True, slots=True)
class Electorate(Generic[V]):
    """One configuration of a history: its numbers, its mode's promise, and its members in their order."""

    configuration: Configuration
    promise: Promise
    voters: Sequence[V]

    @property
    def is_ap(self) -> bool:
        return self.promise is Promise.AP

    def able(self, *, doubtful: bool = False) -> list[bool]:
        """Of each voter in order: is it up, or, if `doubtful`, may it be?"""
        states = (voter.availability for voter in self.voters)
        return [state is Availability.UP or (doubtful and state is Availability.DOUBTFUL) for state in states]

    def up(self) -> list[V]:
        return [voter for voter in self.voters if voter.availability is Availability.UP]


History = Sequence[Electorate[V]]


def judge(active: Electorate[V], need: Need) -> TallyVerdict:
    """WON: those that a request needs are up. PENDING: they may be up, once it is clear which answer. LOST: they cannot
    be."""
    if need.is_met(active.able()):
        return TallyVerdict.WON
    return TallyVerdict.PENDING if need.is_met(active.able(doubtful=True)) else TallyVerdict.LOST


def count_to_find(electorate: Electorate[V]) -> int:
    """How many members must answer, so that the newest committed record of a key is among their answers."""
    if electorate.is_ap:
        return max(1, sum(voter.availability is not Availability.DOWN for voter in electorate.voters))
    return electorate.configuration.recovery


def can_find(configuration: Configuration, promise: Promise, up: int) -> bool:
    """Are `up` members of it enough to find every committed write?

    This is asked before a partition is changed. Under AP one member is enough: the planner (`core/planning.py`) waits
    for what the others alone hold, until they are evictable.
    """
    return up >= (1 if promise is Promise.AP else configuration.recovery)


def choose_to_list(history: History[V], named: Collection[Member] | None) -> list[V] | None:
    """Members whose listings leave out no committed key; None if too few are up just now.

    `named`: the members whose listing equals a read. They count if the strategy names them and the partition is
    settled.
    """
    active = history[-1]
    if named is not None and len(history) == 1:
        wanted = [voter for voter in active.voters if voter.member in named]
        if all(voter.availability is Availability.UP for voter in wanted):
            return wanted
        if not active.is_ap:
            return None
    chosen: dict[Member, V] = {}
    for electorate in history:
        up = electorate.up()
        need = max(1, len(up)) if electorate.is_ap else electorate.configuration.recovery
        if electorate is active and not active.is_ap:
            need = max(need, active.configuration.copies)
        if len(up) < need:
            return None
        chosen.update({voter.member: voter for voter in up[:need]})
    return list(chosen.values())


def choose_to_settle(history: History[V], hung: Container[Member] = ()) -> list[V] | None:
    """All members that are up; None while they are too few to find everything that was committed.

    `hung`: members whose disk does not answer. They count as down.
    """
    active = history[-1]
    becomes_cp = not active.is_ap and any(electorate.is_ap for electorate in history)
    chosen: dict[Member, V] = {}
    for electorate in history:
        up = [voter for voter in electorate.up() if voter.member not in hung]
        need = count_to_find(electorate)
        if electorate is active:
            need = len(active.voters) if becomes_cp else max(need, active.configuration.copies)
        elif becomes_cp and electorate.is_ap:
            need = max(need, sum(not voter.evictable for voter in electorate.voters))
        if len(up) < need:
            return None
        chosen.update({voter.member: voter for voter in up})
    return list(chosen.values())


def are_enough_to_copy(history: History[V], heard: Collection[Member]) -> bool:
    """May a record on which all heard members agree be copied to newcomers as it is, under its own version?

    It may if the history has two configurations, all members of the active one were heard, and of the former one no
    more members were silent than can be spared. (Where W = n, one can be spared: any other member holds the write as
    well.)
    """
    if len(history) != 2:
        return False
    former, active = history
    configuration = former.configuration
    silent = sum(member not in heard for member in configuration.members)
    spare = (
        1 if configuration.copies == len(configuration.members) else len(configuration.members) - configuration.copies
    )
    return silent <= spare and all(member in heard for member in active.configuration.members)


def count_to_stop(active: Electorate[V]) -> int:
    """How many other members must be up before one member of a settled partition may be stopped on purpose.

    Under CP: as many as find every committed write, and two if there are two others. With one alone, the next failure
    would stop the partition.
    """
    if active.is_ap:
        return 1
    return max(active.configuration.recovery, min(2, len(active.voters) - 1))
