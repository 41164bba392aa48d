"""Which workers hold which partition: a table of preference lists, made anew when members change.

Consistent hashing walks the ring from a partition's beginning and takes the first workers that it meets. The fullest
worker then holds 1.1 to 1.3 times the mean. So loads are bounded (Mirrokni, Thorup, Zadimoghaddam, "Consistent Hashing
with Bounded Loads", 2016): a walk passes a full worker by. We depart from the paper in three ways.

- There is a lower bound beside the upper one. With N workers, each holds between floor(0.95 x mean) and ceil(1.05 x
  mean) of all copies. Bounds of the same kind hold for the partitions that it leads (is the first choice of).
  Without the lower bound a newcomer among twenty workers would get nothing, because no worker is above 1.05 times a
  mean that fell by 5 %.
- Several copies of a partition need distinct workers, so a walk can end without a worker that has room left. Then one
  worker gets too much, and hands on a copy of another partition. There is always one to hand on: a worker that holds
  more than another holds some partition that the other does not. So single, direct moves even out any table.
- The table may start from the previous one. A table that is made from the membership alone moves, at every change,
  whatever the bounds happen to push along, sometimes twice the minimum. A table that starts from its predecessor keeps
  every copy that may stay. The price is that the table depends on its predecessor, which is kept anyway: it is the
  configuration.

The minimum, and how near we come. `moved(old, new)` counts the copies that move: each time a partition is given to a
worker that did not hold it. No table within the bounds needs fewer than the largest of

    holes     copies that are missing once the workers that left are struck out of the lists
    excess    copies by which workers are above the upper bound
    shortage  copies by which workers are below the lower bound, newcomers above all

A join moves exactly that many. Its newcomer gets 0.95 to 1.05 times its even share, and all that moves goes to it. A
leave moves what the worker held. It moves more only if the holes cannot be filled without leaving a worker outside the
bounds. That was never seen with 1,024 partitions and up to 20 workers; of tables with forty partitions or fewer, one in
fifty needs it. There is no proof that it cannot happen; the tests hold it below 1.2 times the minimum.

Order. A worker that stays in a list keeps its place before or after the others, so that the second choice becomes the
first when the first leaves. Only as far as the bounds on first choices demand it, a later choice is drawn to the front;
no copy moves for that. It is always possible: if every worker led each of its partitions for one part in `replicas`,
the bounds would hold, and where a fractional assignment exists, a whole one exists too, along a path of such draws.

Zones. A worker may have a zone, such as a rack or a data centre (`--label zone=a`). Then the copies of a partition are
spread over as many zones as can be, and as evenly, so that the loss of a zone takes few of them. The bounds come first:
if one zone has fewer workers than the others, it holds its share and no more, and some partitions have two copies in
another zone. Workers without a zone count as one zone together, and where no worker has one, nothing is different.
A table is first filled and evened out with an eye on zones, and then mended: a copy is handed to a zone that the
partition lacks, directly if the bounds allow it, else in exchange for a copy of another partition that loses nothing by
it. So a table that is spread as far as this can spread it stays as it is. Two labelled tables in a row differ by more
copies than the minimum above, since an exchange moves two: by less than a tenth with nine workers in three zones, and
by less than a third with twenty.

Cost, for 3 replicas: 20 to 40 ms for a new table of 5 to 20 workers. A join takes 45 ms with 20 workers, and 200 ms
with 5: then each has much to give, and every copy that is handed over is chosen among all that the giver has. The event
loop stalls for that long, once per change. With zones all of it takes four to ten times as long.

Left out: weights.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from trikv.core.ring import PARTITION_COUNT, walks

Table = list[tuple[str, ...]]


class Bounds(NamedTuple):
    """How many of `total` things each of `workers` may have: within 5 % of the mean, rounded outwards."""

    low: int
    high: int

    @classmethod
    def around_mean(cls, total: int, workers: int) -> Bounds:
        return cls(total * 95 // (workers * 100), -(-total * 105 // (workers * 100)))


class Move(NamedTuple):
    """A partition whose holders change: the workers that begin to hold it and those that cease to, in list order."""

    partition: int
    joins: tuple[str, ...]
    leaves: tuple[str, ...]


def place(
    workers: Sequence[str],
    replicas: int,
    *,
    partitions: int = PARTITION_COUNT,
    previous: Sequence[Sequence[str]] | None = None,
    zones: Mapping[str, str] | None = None,
) -> Table:
    """The preference list of each partition: min(replicas, workers) distinct workers, first choice first.

    The result is the same for the same arguments, whatever the order of `workers`. `previous` is the table that was in
    force; with it, every copy that may stay where it is stays. `zones`: the zone of each worker that has one.
    """
    members = sorted(set(workers))
    if not members:
        return [()] * partitions
    assert previous is None or len(previous) == partitions, (len(previous or ()), partitions)
    draft = _Draft(members, min(replicas, len(members)), partitions, previous, zones or {})
    draft.fill()
    draft.even_out()
    if draft.has_zones:
        draft.spread()
    return _lead([list(holders) for holders in draft.lists], members)


def moves(old: Sequence[Sequence[str]], new: Sequence[Sequence[str]]) -> Iterator[Move]:
    """The partitions that other workers hold in `new` than in `old`. Another order of the same workers is no move."""
    for partition, (before, after) in enumerate(zip(old, new, strict=True)):
        joins = tuple(worker for worker in after if worker not in before)
        leaves = tuple(worker for worker in before if worker not in after)
        if joins or leaves:
            yield Move(partition, joins, leaves)


def moved(old: Sequence[Sequence[str]], new: Sequence[Sequence[str]]) -> int:
    """How many copies must be made to come from `old` to `new`."""
    return sum(len(move.joins) for move in moves(old, new))


def count_crowded(table: Sequence[Sequence[str]], workers: Iterable[str], zones: Mapping[str, str]) -> int:
    """How many partitions have more copies in one zone than they must, if these workers hold the data."""
    sizes = Counter(zones.get(worker, "") for worker in workers)
    return sum(_is_crowded([zones.get(worker, "") for worker in holders], sizes) for holders in table)


def _is_crowded(places: Sequence[str], sizes: Mapping[str, int]) -> bool:
    """Has a zone two copies more than another one that has room? `places` are those of the copies."""
    free = [places.count(zone) for zone, size in sizes.items() if places.count(zone) < size]
    return bool(free) and max(map(places.count, set(places)), default=0) - min(free) > 1


class _Draft:
    """A table in the making: which worker holds what, and the walks that say which workers a partition prefers."""

    def __init__(
        self,
        members: list[str],
        replicas: int,
        partitions: int,
        previous: Sequence[Sequence[str]] | None,
        zones: Mapping[str, str],
    ) -> None:
        self.zone = {worker: zones.get(worker, "") for worker in members}
        self.has_zones = len(set(self.zone.values())) > 1
        # By giver and taker, what `_find_exchange` found since the table last changed.
        self._exchanges: dict[tuple[str, str], int | None] = {}
        self.replicas = replicas
        self.bounds = Bounds.around_mean(partitions * replicas, len(members))
        self.walks = walks(members, partitions)
        self.holds: dict[str, set[int]] = {worker: set() for worker in members}
        self.fresh: set[tuple[int, str]] = set()  # copies that must be made in any case
        self.lists: list[list[str]] = []
        for partition in range(partitions):
            stay = [worker for worker in previous[partition] if worker in self.holds] if previous else []
            self.lists.append(stay[:replicas])
            for worker in self.lists[-1]:
                self.holds[worker].add(partition)

    def fill(self) -> None:
        """Give every partition its number of workers: along its walk, a worker below the lower bound, else one with
        room.

        If every worker with room is in the list already, another gets too much, which `even_out` hands on.
        """
        for partition, holders in enumerate(self.lists):
            while len(holders) < self.replicas:
                others = [worker for worker in self.walks[partition] if worker not in holders]
                if self.has_zones:
                    others.sort(key=lambda worker: self._beside(partition, worker))
                owed = (worker for worker in others if len(self.holds[worker]) < self.bounds.low)
                roomy = (worker for worker in others if len(self.holds[worker]) < self.bounds.high)
                choice = next(owed, None) or next(roomy, others[0])
                if self.has_zones:
                    choice = next((worker for worker in others if len(self.holds[worker]) < self.bounds.high), choice)
                holders.append(choice)
                self.holds[choice].add(partition)
                self.fresh.add((partition, choice))

    def even_out(self) -> None:
        """Hand copies from the fullest to the emptiest worker until all are within bounds.

        Each step reduces the excess by one if there is any, and the shortage by one if there is any. It adds to
        neither, since the bounds lie on either side of the mean. So no other way has fewer steps.
        """
        while True:
            fullest, emptiest = self._fullest(), self._emptiest()
            if len(self.holds[fullest]) <= self.bounds.high and len(self.holds[emptiest]) >= self.bounds.low:
                return
            self._hand_over(fullest, emptiest)

    def _hand_over(self, giver: str, taker: str) -> None:
        """Hand one copy to the taker, which holds fewer.

        A copy that is not made yet is preferred; among equals, the partition whose walk meets the taker first.
        """
        spare = self.holds[giver] - self.holds[taker]
        partition = min(
            spare,
            key=lambda p: (
                self.has_zones and self._gain(p, giver, taker) < 0,
                (p, giver) not in self.fresh,
                self.walks[p].index(taker),
                p,
            ),
        )
        self._replace(partition, giver, taker)

    def _replace(self, partition: int, giver: str, taker: str) -> None:
        self._exchanges.clear()
        self.fresh.add((partition, taker))
        self.holds[giver].remove(partition)
        self.holds[taker].add(partition)
        holders = self.lists[partition]
        holders[holders.index(giver)] = taker

    # --- zones --------------------------------------------------------------------------------------------------------

    def spread(self) -> None:
        """Hand copies to zones that their partitions lack, as long as that can be done within the bounds.

        Every step makes one partition's zones more even, and none less even, so it comes to an end. Then no further
        step is possible, so that a table which is made from this one is the same.
        """
        sizes = Counter(self.zone.values())
        mends = True
        while mends:
            mends = False
            for partition, holders in enumerate(self.lists):
                while _is_crowded([self.zone[worker] for worker in holders], sizes) and self._mend(partition):
                    mends = True

    def _mend(self, partition: int) -> bool:
        """Make the partition's zones more even by one copy, if that can be done."""
        moves = [
            (giver, taker)
            for giver in self.lists[partition]
            for taker in self.walks[partition]
            if taker not in self.lists[partition] and self._gain(partition, giver, taker) > 0
        ]
        moves.sort(key=lambda move: (partition, move[0]) not in self.fresh)
        for giver, taker in moves:
            if len(self.holds[giver]) > self.bounds.low and len(self.holds[taker]) < self.bounds.high:
                self._replace(partition, giver, taker)
                return True
        for giver, taker in moves:
            if (other := self._find_exchange(giver, taker)) is not None:
                self._replace(partition, giver, taker)
                self._replace(other, taker, giver)
                return True
        return False

    def _find_exchange(self, giver: str, taker: str) -> int | None:
        """A partition of the taker's that the giver can hold instead, and that loses nothing by it."""
        pair = giver, taker
        if pair not in self._exchanges:
            able = [p for p in self.holds[taker] - self.holds[giver] if self._gain(p, taker, giver) >= 0]
            self._exchanges[pair] = min(
                able, key=lambda p: ((p, taker) not in self.fresh, self.walks[p].index(giver), p), default=None
            )
        return self._exchanges[pair]

    def _beside(self, partition: int, worker: str) -> int:
        """How many copies of the partition are in the worker's zone."""
        zone = self.zone[worker]
        return sum(self.zone[holder] == zone for holder in self.lists[partition])

    def _gain(self, partition: int, giver: str, taker: str) -> int:
        """How much more even the partition's zones become if a holder hands its copy to another worker."""
        if self.zone[giver] == self.zone[taker]:
            return 0
        return self._beside(partition, giver) - 1 - self._beside(partition, taker)

    def _fullest(self) -> str:
        return max(self.holds, key=lambda worker: len(self.holds[worker]))

    def _emptiest(self) -> str:
        return min(self.holds, key=lambda worker: len(self.holds[worker]))


def _lead(lists: list[list[str]], members: list[str]) -> Table:
    """Draw later choices to the front until first choices are within bounds too."""
    bounds = Bounds.around_mean(len(lists), len(members))
    leads: dict[str, set[int]] = {worker: set() for worker in members}
    for partition, holders in enumerate(lists):
        leads[holders[0]].add(partition)
    while True:
        ascending = sorted(members, key=lambda worker: len(leads[worker]))
        if len(leads[ascending[-1]]) > bounds.high:
            pairs = [(ascending[-1], worker) for worker in ascending if len(leads[worker]) < bounds.high]
        elif len(leads[ascending[0]]) < bounds.low:
            pairs = [(worker, ascending[0]) for worker in reversed(ascending) if len(leads[worker]) > bounds.low]
        else:
            return [tuple(holders) for holders in lists]
        path = next(path for giver, taker in pairs if (path := _path(giver, taker, lists, leads)))
        for partition, worker in path:
            holders = lists[partition]
            leads[holders[0]].remove(partition)
            leads[worker].add(partition)
            holders.remove(worker)
            holders.insert(0, worker)


def _path(giver: str, taker: str, lists: list[list[str]], leads: dict[str, set[int]]) -> list[tuple[int, str]]:
    """The fewest draws (partition, worker to its front) by which `giver` leads one less and `taker` one more."""
    reached: dict[str, list[tuple[int, str]]] = {giver: []}
    frontier = deque([giver])
    while frontier and taker not in reached:
        worker = frontier.popleft()
        for partition in sorted(leads[worker]):
            for other in lists[partition][1:]:
                if other not in reached:
                    reached[other] = [*reached[worker], (partition, other)]
                    frontier.append(other)
    return reached.get(taker, [])
