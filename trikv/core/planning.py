"""Which configuration each partition should have next, by the document and each worker's health.

The document says what is wanted (the mode, how many replicas, which workers are to be emptied) and what is (each
partition's history). This file compares the two. It remembers nothing: a new master comes to the same conclusions from
the same document, so what its predecessor had begun goes on.

Which workers may hold data. Workers that hold some already and are not `evictable`, and newcomers that have been up for
a while (`steady`). A worker that an operator drains may not, as long as enough others are left. Placement
(`core/placement.py`) then starts from the present lists and moves as few copies as its bounds allow. A worker whose
disk does not answer (`healing/hung.py`) does not become a holder, and a holder whose disk does not answer gets no
further data.

Too few workers for the wanted number of replicas. A member that is down stays in its configuration while the others can
read and write without it (quorum), if need be in a later place (where the mode needs the first replica, and that one is
down). Otherwise it is dropped (sync and chain, where one silent member stops every write), but never so that fewer than
`min_copies` members are left: then the partition waits.

A configuration is left alone as long as a change would not help. That is so in two cases. If too few members of some
configuration of the history are up, what was committed under it cannot be found, and the new configuration could never
be settled. And the new configuration may not be able to commit a write either.

From an AP mode to a CP mode. A record that a silent member alone holds cannot be asked for, and must not turn up later.
So such a partition waits for that member. Once the member is evictable, the partition goes on without it, and the
member joins again, empty, when it is back. This holds for a member that the partition moves away from, too: it may only
be restarting. For the same reason no partition of an AP mode moves, to balance or to drain, while a member of it is
silent and not yet evictable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from enum import IntEnum
from typing import NamedTuple

from trikv.core.configuration import Cluster, Configuration, Member, Partition
from trikv.core.placement import Bounds, Table, count_crowded, place
from trikv.core.quorums import Needs, Promise, can_find


class Health(NamedTuple):
    """What is known of an enlisted worker, in its present life."""

    up: bool  # it answers
    evictable: bool  # it has been silent for so long that the cluster may go on without it
    steady: bool  # it has been up for so long that it may be given data


class Reason(IntEnum):
    """Why a partition changes, the most pressing first."""

    EVICT = 1  # a member is gone
    MODE = 2
    MOVE = 3  # a worker joins, or is drained


class ConfigurationChange(NamedTuple):
    partition: int
    configuration: Configuration
    reason: Reason


class Wanted(NamedTuple):
    """The workers that should hold data, and the preference lists that follow."""

    workers: frozenset[str]
    table: Table


ABSENT = Health(up=False, evictable=True, steady=False)


def choose_workers(cluster: Cluster, health: Mapping[str, Health]) -> frozenset[str]:
    """The workers that should hold data now."""
    holders = {m.worker for p in cluster.partitions for m in p.active.members if is_present(cluster, m)}

    def may_hold(worker: str) -> bool:
        state = health.get(worker, ABSENT)
        return not state.evictable if worker in holders else state.up and state.steady

    able = [w.worker for w in cluster.workers.values() if may_hold(w.worker)]
    chosen = frozenset(worker for worker in able if not cluster.workers[worker].draining)
    if len(chosen) < cluster.replicas:
        chosen |= {worker for worker in able if worker in holders}
    return chosen


def is_present(cluster: Cluster, member: Member) -> bool:
    """Is the member's worker still in that life?"""
    enlisted = cluster.workers.get(member.worker)
    return enlisted is not None and enlisted.incarnation == member.incarnation


def draw_table(cluster: Cluster, workers: Iterable[str], avoided: Set[str] = frozenset()) -> Wanted:
    """The preference lists when these workers hold the data. The present lists, if every worker has a fair share
    already, and each partition is spread over the zones.

    `avoided`: workers that keep their places and get no further ones. Another worker gets such a place; without
    another, the list is shorter.
    """
    chosen = frozenset(workers)
    current = [
        tuple(m.worker for m in p.active.members if m.worker in chosen and is_present(cluster, m))
        for p in cluster.partitions
    ]
    size = min(cluster.replicas, len(chosen))
    if chosen and all(len(row) == size for row in current):
        bounds = Bounds.around_mean(size * len(current), len(chosen))
        copies = Counter(worker for row in current for worker in row)
        fair = all(bounds.low <= copies[worker] <= bounds.high for worker in chosen)
        if fair and not count_crowded(current, chosen, cluster.zones):
            return Wanted(chosen, current)
    table = place(sorted(chosen), cluster.replicas, partitions=len(current), previous=current, zones=cluster.zones)
    return Wanted(chosen, _spare(cluster, table, current, chosen & avoided, chosen - avoided))


def _spare(cluster: Cluster, table: Table, current: Table, avoided: Set[str], others: Set[str]) -> Table:
    """The table in which further places of avoided workers go to others, first to those that hold the partition now."""
    joins = [any(w in avoided and w not in now for w in row) for row, now in zip(table, current, strict=True)]
    if not any(joins):
        return table
    left = [tuple(w for w in now if w in others) for now in current]
    second = left
    if others:
        second = place(sorted(others), cluster.replicas, partitions=len(current), previous=left, zones=cluster.zones)
    rows = []
    for row, now, instead, joined in zip(table, current, second, joins, strict=True):
        kept = tuple(w for w in row if w not in avoided or w in now)
        more = tuple(w for w in dict.fromkeys((*now, *instead)) if w not in kept)
        rows.append((kept + more)[: len(row)] if joined else row)
    return rows


def plan(
    cluster: Cluster,
    wanted: Wanted,
    health: Mapping[str, Health],
    copies: Callable[[int], int],
    needs: Callable[[int], Needs],
    min_copies: int,
    promise: Callable[[str], Promise],
    unused: Container[int] = (),
) -> list[ConfigurationChange]:
    """The partitions that should change, in their order.

    `copies` gives W of the cluster's mode for a number of replicas, and `needs` what it needs of them. `promise` gives
    a mode's promise. `unused`: partitions under whose active configuration nothing was ever committed, so that its
    members need not be asked.
    """
    up = {m.worker for m in _members(cluster) if is_present(cluster, m) and health.get(m.worker, ABSENT).up}
    up |= {worker for worker in wanted.workers if health.get(worker, ABSENT).up}
    changes = []
    for index, (partition, row) in enumerate(zip(cluster.partitions, wanted.table, strict=True)):
        past = replace(partition, history=partition.history[:-1]) if index in unused else partition
        if not can_settle(cluster, past, up, promise):
            continue
        ap = [c for c in partition.history if promise(c.mode) is Promise.AP]
        becomes_cp = bool(ap) and promise(cluster.mode) is Promise.CP
        awaited = {m.worker for c in ap for m in c.members if is_present(cluster, m)}
        awaited = {worker for worker in awaited if not health.get(worker, ABSENT).evictable}
        if becomes_cp and not up.issuperset(awaited | set(row)):
            continue  # it waits until each worker is up, or evictable
        fewest = min(min_copies, cluster.replicas)
        configuration = _choose(cluster, partition, row, up, copies, needs, fewest, may_keep=not becomes_cp)
        if configuration is not None and configuration != partition.active:
            reason = Reason.MODE if becomes_cp else _reason(cluster, partition, configuration, health)
            if reason is Reason.MOVE and not up.issuperset(awaited):
                continue  # it waits: moving away from a worker that restarts would leave behind what it alone holds
            changes.append(ConfigurationChange(index, configuration, reason))
    return changes


def can_settle(cluster: Cluster, partition: Partition, up: Container[str], promise: Callable[[str], Promise]) -> bool:
    """Are enough members of every configuration up, so that all that was committed can be found?"""
    return all(
        can_find(c, promise(c.mode), sum(m.worker in up and is_present(cluster, m) for m in c.members))
        for c in partition.history
    )


def _members(cluster: Cluster) -> Iterable[Member]:
    return {m for p in cluster.partitions for c in p.history for m in c.members}


def _choose(
    cluster: Cluster,
    partition: Partition,
    row: Sequence[str],
    up: set[str],
    copies: Callable[[int], int],
    needs: Callable[[int], Needs],
    min_copies: int,
    *,
    may_keep: bool,
) -> Configuration | None:
    """The configuration that the partition should have; None if no better one is possible.

    `may_keep`: may members that are down stay in it?
    """
    active = partition.active
    wanted = tuple(cluster.workers[worker].member for worker in row)
    live = {member for member in wanted if member.worker in up}  # those that are kept besides are not
    lacking = cluster.replicas - len(wanted) if may_keep else 0
    kept = [m for m in active.members if m.worker not in row][: max(lacking, 0)]
    while True:
        members = (*wanted, *kept)
        stays = lacking > 0 and set(members) == set(active.members)
        for order in [active.members, members] if stays else [members]:
            if order and all(need.is_met([m in live for m in order]) for need in needs(len(order))):
                is_enough = len(order) >= min(min_copies, len(active.members))
                return Configuration(order, cluster.mode, copies(len(order))) if is_enough else None
        if not kept:
            return None
        kept.pop()


def _reason(
    cluster: Cluster, partition: Partition, configuration: Configuration, health: Mapping[str, Health]
) -> Reason:
    stays = {m.worker for m in configuration.members}
    for member in partition.active.members:
        is_evictable = member.worker not in stays and health.get(member.worker, ABSENT).evictable
        if is_evictable or not is_present(cluster, member):
            return Reason.EVICT
    return Reason.MODE if partition.active.mode != configuration.mode else Reason.MOVE
