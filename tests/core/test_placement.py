"""Placement: bounds that hold for all ids, and movement against the least that any table within bounds can do with."""

import random
from collections import Counter
from collections.abc import Sequence
from math import ceil
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trikv.core.placement import Move, Table, count_crowded, moved, moves, place
from trikv.core.ring import PARTITION_COUNT, walks

IDS = st.one_of(
    st.from_regex(r"w-[0-9a-f]{8}", fullmatch=True),
    st.integers(1, 65_535).map("127.0.0.1:{}".format),
    st.text(min_size=1, max_size=20),
)
REPLICAS = st.integers(1, 5)


def memberships(most: int, least: int = 1) -> st.SearchStrategy[list[str]]:
    return st.integers(least, most).flatmap(lambda n: st.lists(IDS, min_size=n, max_size=n, unique=True))


def loads(table: Sequence[Sequence[str]], workers: list[str]) -> tuple[list[int], list[int]]:
    """Copies and first choices of each worker."""
    copies = Counter(worker for holders in table for worker in holders)
    leads = Counter(holders[0] for holders in table)
    return [copies[worker] for worker in workers], [leads[worker] for worker in workers]


def assert_within_bounds(table: Table, workers: list[str], replicas: int, partitions: int = PARTITION_COUNT) -> None:
    n = min(replicas, len(workers))
    assert len(table) == partitions
    assert {worker for holders in table for worker in holders} <= set(workers)
    assert all(len(holders) == len(set(holders)) == n for holders in table)
    for counts, total in zip(loads(table, workers), (partitions * n, partitions), strict=True):
        assert sum(counts) == total
        assert max(counts) <= ceil(105 * total / (100 * len(workers)))
        assert min(counts) >= 95 * total // (100 * len(workers))


def least_moves(old: Table, workers: list[str], replicas: int) -> int:
    """No table within bounds for `workers` can be reached from `old` with fewer copies."""
    n = min(replicas, len(workers))
    total = len(old) * n
    stay = [[worker for worker in holders if worker in workers][:n] for holders in old]
    holes = total - sum(map(len, stay))
    counts, _ = loads([[*holders, ""] for holders in stay], workers)
    high, low = ceil(105 * total / (100 * len(workers))), 95 * total // (100 * len(workers))
    excess = sum(max(0, count - high) for count in counts)
    shortage = sum(max(0, low - count) for count in counts)
    return max(holes, excess, shortage)


@settings(max_examples=40)
@given(memberships(20), REPLICAS, st.randoms(use_true_random=False))
def test_bounds_hold_for_any_membership_in_any_order(workers: list[str], replicas: int, dice: random.Random) -> None:
    table = place(workers, replicas)
    assert_within_bounds(table, workers, replicas)
    dice.shuffle(workers)
    assert place(workers, replicas) == table


@given(memberships(12), st.integers(1, 8), st.integers(1, 40))
def test_bounds_hold_where_there_is_little_room(workers: list[str], replicas: int, partitions: int) -> None:
    """With few partitions walks end among the full, and workers have to exchange copies."""
    table = place(workers, replicas, partitions=partitions)
    assert_within_bounds(table, workers, replicas, partitions)


@pytest.mark.parametrize(("most", "factor", "examples"), [(9, 1.2, 20), (20, 2.0, 10)])
def test_joins_and_leaves_move_little(most: int, factor: float, examples: int) -> None:
    """Up to 9 workers at most 1.2 times the minimum, up to 20 at most 2.0 times, for all that come and go.

    A join moves exactly the minimum, and all that moves goes to the newcomer.
    """

    @settings(max_examples=examples)
    @given(memberships(most, least=2), REPLICAS, st.data())
    def holds(workers: list[str], replicas: int, data: st.DataObject) -> None:
        newcomer, *members = workers
        before = place(members, replicas)
        table = place(workers, replicas, previous=before)
        assert_within_bounds(table, workers, replicas)
        assert moved(before, table) == least_moves(before, workers, replicas)
        assert all(move.joins == (newcomer,) for move in moves(before, table))

        leaver = data.draw(st.sampled_from(workers))
        rest = [worker for worker in workers if worker != leaver]
        after = place(rest, replicas, previous=table)
        assert_within_bounds(after, rest, replicas)
        assert moved(table, after) <= factor * least_moves(table, rest, replicas)

    holds()


@pytest.mark.parametrize("leaver", range(9))
def test_a_leave_moves_what_the_worker_held_and_nothing_else(leaver: int) -> None:
    workers = [f"127.0.0.1:{8001 + n}" for n in range(9)]
    before = place(workers, 3)
    gone = workers.pop(leaver)
    assert all(move.leaves == (gone,) for move in moves(before, place(workers, 3, previous=before)))


@settings(max_examples=15)
@given(st.lists(memberships(9), min_size=2, max_size=5), st.lists(REPLICAS, min_size=5, max_size=5))
def test_bounds_hold_through_any_history(members: list[list[str]], replicas: list[int]) -> None:
    """Whoever comes and goes at once, and whatever the number of replicas becomes."""
    table: Table | None = None
    for workers, n in zip(members, replicas, strict=False):
        table = place(workers, n, previous=table)
        assert_within_bounds(table, workers, n)
        assert place(workers, n, previous=table) == table


@settings(max_examples=15)
@given(memberships(9, least=3), REPLICAS)
def test_the_next_in_line_comes_first_when_the_first_leaves(workers: list[str], replicas: int) -> None:
    """But for the few partitions whose first choice the bounds move elsewhere."""
    before = place(workers, replicas)
    leaver, *rest = workers
    after = place(rest, replicas, previous=before)
    kept = sum(
        [worker for worker in old if worker != leaver] == [worker for worker in new if worker in old]
        for old, new in zip(before, after, strict=True)
    )
    assert kept > 0.8 * PARTITION_COUNT


def test_without_pressure_the_walk_decides() -> None:
    """Most partitions get whom the ring names first: the bounds only trim."""
    workers = [f"w-{n}" for n in range(5)]
    table = place(workers, 3)
    as_walked = sum(set(holders) == set(walk[:3]) for holders, walk in zip(table, walks(workers), strict=True))
    assert as_walked > PARTITION_COUNT // 2


def test_fewer_workers_than_replicas_all_hold_everything() -> None:
    table = place(["a", "b"], 5)
    assert {frozenset(holders) for holders in table} == {frozenset({"a", "b"})}
    assert place([], 3, partitions=2) == [(), ()]


def test_moves_name_who_comes_and_who_goes() -> None:
    old = [("a", "b"), ("b", "a"), ("a", "b"), ()]
    new = [("b", "a"), ("b", "c"), ("c", "d"), ("a",)]
    assert list(moves(old, new)) == [
        Move(1, joins=("c",), leaves=("a",)),
        Move(2, joins=("c", "d"), leaves=("a", "b")),
        Move(3, joins=("a",), leaves=()),
    ]
    assert moved(old, new) == 4


# --- zones ------------------------------------------------------------------------------------------------------------


def named(workers: int) -> list[str]:
    return [f"w-{number}" for number in range(1, workers + 1)]


def zoned(**sizes: int) -> dict[str, str]:
    """Workers with their zones: so many in each."""
    return {f"w-{zone}{number}": zone for zone, size in sizes.items() for number in range(size)}


def test_without_zones_every_table_is_what_it_has_always_been() -> None:
    first = place(named(7), 3)
    second = place(named(6), 3, previous=first)
    third = place(named(8), 3, previous=second, zones={})
    assert [crc32(repr(table).encode()) for table in (first, second, third)] == TABLES


TABLES = [3246380372, 1734837950, 1169794414]  # of version 0.1


@settings(max_examples=20)
@given(memberships(12), REPLICAS)
def test_one_zone_for_all_is_as_good_as_none(workers: list[str], replicas: int) -> None:
    assert place(workers, replicas, partitions=64, zones=dict.fromkeys(workers, "a")) == place(
        workers, replicas, partitions=64
    )


@pytest.mark.parametrize(
    ("zones", "replicas"),
    [
        (zoned(a=1, b=1, c=1), 3),
        (zoned(a=2, b=2, c=2), 3),
        (zoned(a=3, b=3, c=3), 3),
        (zoned(a=2, b=2), 3),
        (zoned(a=2, b=2, c=2), 2),
        (zoned(a=2, b=2, c=2, d=2), 5),
    ],
)
def test_where_zones_are_of_a_size_every_partition_is_spread(zones: dict[str, str], replicas: int) -> None:
    """An even spread over three zones survives the loss of any of them with two of three copies."""
    table = place(list(zones), replicas, zones=zones)
    assert count_crowded(table, zones, zones) == 0
    assert_within_bounds(table, list(zones), replicas)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(any), REPLICAS, st.randoms(use_true_random=False))
def test_bounds_come_before_zones_and_what_is_spread_stays(
    sizes: list[int], replicas: int, dice: random.Random
) -> None:
    """Also where one zone has too few workers for its part, and a worker has no zone."""
    zones = zoned(**{f"z{number}": size for number, size in enumerate(sizes)})
    workers = [*zones, "w-without"]
    table = place(workers, replicas, partitions=128, zones=zones)
    assert_within_bounds(table, workers, replicas, 128)
    dice.shuffle(workers)
    assert place(workers, replicas, partitions=128, zones=zones) == table
    again = place(workers, replicas, partitions=128, previous=table, zones=zones)
    assert moved(table, again) == 0
    plain = place(workers, replicas, partitions=128)
    assert count_crowded(table, workers, zones) <= count_crowded(plain, workers, zones)


@pytest.mark.parametrize(
    ("zones", "factor"),
    [
        (zoned(a=2, b=2, c=2), 1.1),
        (zoned(a=3, b=3, c=3), 1.1),
        (zoned(a=2, b=2, c=1), 1.1),
        (zoned(a=5, b=4), 1.2),  # the newcomer is the first of its zone
        (zoned(a=7, b=7, c=6), 1.3),
    ],
)
def test_with_zones_a_join_and_a_leave_move_little(zones: dict[str, str], factor: float) -> None:
    """Against what no table within the bounds can do without; and one that was away moves as little when it is back."""
    workers = list(zones)
    table = place(workers, 3, zones=zones)
    left = place(workers[1:], 3, previous=table, zones=zones)
    assert moved(table, left) <= factor * least_moves(table, workers[1:], 3)
    back = place(workers, 3, previous=left, zones=zones)
    assert moved(left, back) <= factor * least_moves(left, workers, 3)
    more = {**zones, "w-new": "c"}
    joined = place(list(more), 3, previous=table, zones=more)
    assert moved(table, joined) <= factor * least_moves(table, list(more), 3)


def test_workers_that_are_given_zones_move_what_must_be_spread_and_no_more() -> None:
    zones = zoned(a=2, b=2, c=2)
    before = place(list(zones), 3)
    crowded = count_crowded(before, zones, zones)
    after = place(list(zones), 3, previous=before, zones=zones)
    assert count_crowded(after, zones, zones) == 0
    assert moved(before, after) <= 1.1 * crowded


@pytest.mark.parametrize(
    ("holders", "crowded"),
    [
        (("w-a0", "w-b0", "w-c0"), 0),
        (("w-a0", "w-a1", "w-c0"), 1),
        (("w-a0", "w-a1", "w-b0", "w-b1", "w-c0"), 0),
        (("w-a0", "w-a1", "w-a2", "w-b0", "w-c0"), 1),
        (("w-a0", "w-a1", "w-b0", "w-b1", "w-a2"), 1),
        ((), 0),
    ],
)
def test_a_partition_is_crowded_if_a_zone_has_two_more_than_one_with_room(holders: Sequence[str], crowded: int) -> None:
    zones = zoned(a=3, b=2, c=1)
    assert count_crowded([holders], zones, zones) == crowded
