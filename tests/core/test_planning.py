"""What the planner decides: who is replaced and when, what is left alone, and that it never makes things worse."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trikv.core.configuration import Cluster, Configuration, Member, Partition, WorkerEntry
from trikv.core.placement import place
from trikv.core.planning import ConfigurationChange, Health, Reason, can_settle, choose_workers, draw_table, plan
from trikv.core.quorums import Need, Needs, Promise, assume_needs

UP = Health(up=True, evictable=False, steady=True)
NEW = Health(up=True, evictable=False, steady=False)
AWAY = Health(up=False, evictable=False, steady=False)
GONE = Health(up=False, evictable=True, steady=False)

COPIES: dict[str, Callable[[int], int]] = {
    "sync": lambda n: n,
    "quorum": lambda n: n // 2 + 1,
    "async": lambda n: 1,
}


def a_cluster(
    workers: int, *, mode: str = "quorum", replicas: int = 3, spare: int = 0, partitions: int = 16
) -> Cluster:
    names = [f"w{number}" for number in range(1, workers + spare + 1)]
    enlisted = {name: WorkerEntry(name, f"life-1-of-{name}", f"{name}:1", "memory") for name in names}
    cluster = Cluster("c", mode, replicas, partitions, term=1, stored=True, workers=enlisted)
    table = place(names[:workers], replicas, partitions=partitions)
    n = min(workers, replicas)
    return replace(
        cluster,
        partitions=tuple(
            Partition(1, (Configuration(tuple(enlisted[w].member for w in row), mode, COPIES[mode](n)),))
            for row in table
        ),
    )


def promise_of(mode: str) -> Promise:
    return Promise.AP if mode == "async" else Promise.CP


def needs_in(mode: str) -> Callable[[int], Needs]:
    return lambda n: assume_needs(promise_of(mode), COPIES[mode](n), n)


def decide(cluster: Cluster, health: dict[str, Health], *, min_copies: int = 2) -> list[ConfigurationChange]:
    wanted = draw_table(cluster, choose_workers(cluster, health))
    return plan(cluster, wanted, health, COPIES[cluster.mode], needs_in(cluster.mode), min_copies, promise_of)


def everyone(cluster: Cluster, **others: Health) -> dict[str, Health]:
    return dict.fromkeys(cluster.workers, UP) | others


def carried_out(cluster: Cluster, changes: list[ConfigurationChange], *, settled: bool = True) -> Cluster:
    partitions = list(cluster.partitions)
    for change in changes:
        partitions[change.partition] = partitions[change.partition].changed_to(change.configuration)
        if settled:
            partitions[change.partition] = partitions[change.partition].as_settled()
    return replace(cluster, partitions=tuple(partitions))


def holders(cluster: Cluster) -> set[str]:
    return {m.worker for p in cluster.partitions for m in p.active.members}


def test_where_all_is_well_nothing_changes() -> None:
    cluster = a_cluster(5)
    assert decide(cluster, everyone(cluster)) == []


def test_a_worker_that_is_only_silent_keeps_its_place() -> None:
    cluster = a_cluster(5)
    assert decide(cluster, everyone(cluster, w2=AWAY)) == []


def test_who_is_given_up_is_replaced_in_all_its_partitions_and_in_no_other() -> None:
    cluster = a_cluster(5)
    changes = decide(cluster, everyone(cluster, w2=GONE))
    mine = {i for i, p in enumerate(cluster.partitions) if "w2" in {m.worker for m in p.active.members}}
    assert {change.partition for change in changes if change.reason is Reason.EVICT} == mine
    after = carried_out(cluster, changes)
    assert "w2" not in holders(after)
    assert all(len(p.active.members) == 3 for p in after.partitions)
    assert decide(after, everyone(cluster, w2=GONE)) == []


def test_a_newcomer_gets_its_share_once_it_is_steady() -> None:
    cluster = a_cluster(3, spare=1)
    assert decide(cluster, everyone(cluster, w4=NEW)) == []
    changes = decide(cluster, everyone(cluster))
    assert {change.reason for change in changes} == {Reason.MOVE}
    after = carried_out(cluster, changes)
    assert holders(after) == {"w1", "w2", "w3", "w4"}
    assert decide(after, everyone(cluster)) == []


def decide_with_head(cluster: Cluster, health: dict[str, Health], place: int) -> list[ConfigurationChange]:
    """The changes where a write needs a majority with the replica at that place in it."""
    wanted = draw_table(cluster, choose_workers(cluster, health))

    def needs(n: int) -> Needs:
        return Needs(Need(n // 2 + 1, (place,)), Need(1, (place,)))

    return plan(cluster, wanted, health, COPIES["quorum"], needs, 2, promise_of)


def test_a_member_that_is_gone_does_not_keep_the_place_that_its_mode_needs() -> None:
    cluster = a_cluster(3)
    health = everyone(cluster, w2=GONE)
    led = {i for i, p in enumerate(cluster.partitions) if p.active.members[0].worker == "w2"}
    changes = decide_with_head(cluster, health, 0)
    assert {change.partition for change in changes} == led != set()
    for change in changes:
        assert [m.worker for m in change.configuration.members][-1] == "w2"
        assert len(change.configuration.members) == 3
    assert decide_with_head(carried_out(cluster, changes), health, 0) == []


def test_a_member_that_is_gone_is_dropped_where_it_would_be_in_the_way_in_any_place() -> None:
    cluster = a_cluster(3)
    health = everyone(cluster, w2=GONE)
    last = {i for i, p in enumerate(cluster.partitions) if p.active.members[-1].worker == "w2"}
    changes = decide_with_head(cluster, health, -1)
    assert {change.partition for change in changes} == last != set()
    assert all(len(change.configuration.members) == 2 for change in changes)


@pytest.mark.parametrize(("mode", "moves"), [("async", False), ("quorum", True)])
def test_under_async_nothing_moves_away_from_a_worker_that_is_only_silent(mode: str, moves: bool) -> None:
    """It may hold alone what it acknowledged; once it is given up, nobody waits for that any more."""
    cluster = a_cluster(5, spare=1, mode=mode)
    silent = {i for i, p in enumerate(cluster.partitions) if "w2" in {m.worker for m in p.active.members}}
    changed = {change.partition for change in decide(cluster, everyone(cluster, w2=AWAY))}
    assert bool(changed & silent) is moves
    assert changed - silent
    changed = {change.partition for change in decide(cluster, everyone(cluster, w2=GONE))}
    assert silent <= changed


@pytest.mark.parametrize("workers", [4, 7])
def test_who_is_avoided_keeps_its_places_and_gets_no_more(workers: int) -> None:
    cluster = a_cluster(workers, partitions=64)
    avoided, gone = "w1", "w2"
    chosen = set(cluster.workers) - {gone}
    table = draw_table(cluster, chosen, {avoided}).table
    for partition, row in zip(cluster.partitions, table, strict=True):
        members = [m.worker for m in partition.active.members]
        assert (avoided in row) <= (avoided in members)
        assert gone not in row
        stay = [w for w in members if w != gone]
        assert len(row) == min(3, len(chosen - {avoided} | set(stay)))
        if gone in members:
            assert set(stay) <= set(row), "one is replaced, and nobody else moves"
    assert any(avoided in row for row in table)
    # It gets its share once it is avoided no more.
    assert sum(avoided in row for row in draw_table(cluster, chosen).table) > sum(avoided in row for row in table)


def test_without_anybody_else_the_list_is_shorter() -> None:
    cluster = a_cluster(3, spare=1)
    table = draw_table(cluster, {"w1", "w2", "w4"}, {"w4"}).table
    assert {frozenset(row) for row in table} == {frozenset({"w1", "w2"})}
    assert set(draw_table(cluster, {"w4"}, {"w4"}).table) == {()}


def test_while_somebody_is_avoided_the_cluster_comes_to_rest() -> None:
    cluster = a_cluster(7, partitions=64)
    health = everyone(cluster, w2=GONE)
    rounds: list[list[ConfigurationChange]] = []
    while not rounds or (rounds[-1] and len(rounds) < 4):
        wanted = draw_table(cluster, choose_workers(cluster, health), {"w1"})
        rounds.append(plan(cluster, wanted, health, COPIES["quorum"], needs_in("quorum"), 2, lambda mode: Promise.CP))
        cluster = carried_out(cluster, rounds[-1])
    assert not rounds[-1]
    assert "w2" not in holders(cluster)


def test_a_worker_in_another_life_is_a_newcomer() -> None:
    cluster = a_cluster(4)
    lost = replace(cluster.workers["w1"], incarnation="another life")
    cluster = replace(cluster, workers={**cluster.workers, "w1": lost})
    after = carried_out(cluster, decide(cluster, everyone(cluster, w1=NEW)))
    assert "w1" not in holders(after)
    after = carried_out(after, decide(after, everyone(cluster)))
    assert {m for p in after.partitions for m in p.active.members if m.worker == "w1"} == {lost.member}


def test_another_mode_changes_every_partition() -> None:
    cluster = replace(a_cluster(3, mode="sync"), mode="quorum")
    changes = decide(cluster, everyone(cluster))
    assert len(changes) == 16
    assert {change.reason for change in changes} == {Reason.MODE}
    assert {change.configuration.copies for change in changes} == {2}


def test_a_drained_worker_is_emptied() -> None:
    cluster = a_cluster(4)
    drained = replace(cluster.workers["w3"], draining=True)
    cluster = replace(cluster, workers={**cluster.workers, "w3": drained})
    changes = decide(cluster, everyone(cluster))
    assert {change.reason for change in changes} == {Reason.MOVE}
    assert "w3" not in holders(carried_out(cluster, changes))


@pytest.mark.parametrize(("mode", "members"), [("quorum", 3), ("sync", 2), ("async", 3)])
def test_without_a_replacement_a_member_is_dropped_only_where_it_stops_every_write(mode: str, members: int) -> None:
    cluster = a_cluster(3, mode=mode)
    after = carried_out(cluster, decide(cluster, everyone(cluster, w3=GONE)))
    assert {len(p.active.members) for p in after.partitions} == {members}


def test_it_never_shrinks_below_the_fewest_copies_that_are_allowed() -> None:
    cluster = a_cluster(3, mode="sync")
    assert decide(cluster, everyone(cluster, w2=GONE, w3=GONE)) == []
    changes = decide(cluster, everyone(cluster, w2=GONE, w3=GONE), min_copies=1)
    assert {len(change.configuration.members) for change in changes} == {1}


def test_a_partition_whose_past_cannot_be_asked_is_left_alone() -> None:
    cluster = a_cluster(6)
    health = everyone(cluster, w1=GONE, w2=GONE)
    stuck = {
        index for index, p in enumerate(cluster.partitions) if {"w1", "w2"} <= {m.worker for m in p.active.members}
    }
    assert stuck
    assert not {change.partition for change in decide(cluster, health)} & stuck


@settings(max_examples=300)
@given(
    st.sampled_from(["sync", "quorum", "async"]),
    st.integers(3, 6),
    st.integers(0, 2),
    st.lists(st.lists(st.sampled_from([UP, UP, UP, NEW, AWAY, GONE]), min_size=8, max_size=8), min_size=1, max_size=4),
)
def test_every_change_can_commit_and_can_be_settled(
    mode: str, workers: int, spare: int, course: list[list[Health]]
) -> None:
    """Whatever comes and goes: a new configuration has enough members up to commit, and its past can be asked."""
    cluster = a_cluster(workers, mode=mode, spare=spare, partitions=8)
    for states in course:
        health = dict(zip(cluster.workers, states, strict=False))
        up = {worker for worker, state in health.items() if state.up}
        changes = decide(cluster, health)
        for change in changes:
            before = cluster.partitions[change.partition]
            members = change.configuration.members
            assert len({m.worker for m in members}) == len(members)
            assert min(2, len(before.active.members)) <= len(members) <= 3
            assert sum(m.worker in up for m in members) >= change.configuration.copies
            assert change.configuration.copies == COPIES[mode](len(members))
            assert can_settle(cluster, before, up, promise_of)
        wanted = draw_table(cluster, choose_workers(cluster, health))
        cluster = carried_out(cluster, changes, settled=False)
        again = plan(cluster, wanted, health, COPIES[mode], needs_in(mode), 2, promise_of)
        assert not {change.partition for change in again} & {change.partition for change in changes}


def test_a_member_of_the_past_counts_in_the_life_that_is_meant() -> None:
    cluster = a_cluster(3)
    past = Configuration(tuple(Member(f"w{n}", "a former life") for n in (1, 2, 3)), "quorum", 2)
    partition = replace(cluster.partitions[0], history=(past, cluster.partitions[0].active))
    assert not can_settle(cluster, partition, {"w1", "w2", "w3"}, lambda mode: Promise.CP)
