"""Listings of several members, merged: complete up to each page's end, and refused where one of them is lacking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from tests.helpers import partition_of
from trikv.api import Batch
from trikv.coordinator.listing import Listing, Pages, group_by_target, list_members
from trikv.coordinator.partition import PartitionState
from trikv.coordinator.replicas import Target
from trikv.core.errors import Refused
from trikv.core.record import Record, Version, make_epoch, make_seq
from trikv.testing.inprocess import InProcessCluster

TIMEOUT_S = 2.0
Asked = Mapping[PartitionState, Sequence[Target]]


class Scene:
    """A cluster on whose disks keys lie as a test lays them, behind the coordinator's back."""

    def __init__(self, cluster: InProcessCluster) -> None:
        self.cluster = cluster
        self.held: dict[bytes, set[str]] = {}

    @property
    def all_members(self) -> Asked:
        return {state: state.targets for state in self.cluster.coordinator.partitions}

    async def lay(self, key: bytes, *places: int, value: bytes = b"v") -> None:
        """On these replicas of the key, the first being 0."""
        state = self.cluster.coordinator.partitions[partition_of(key)]
        for place in places:
            node = self.cluster.node_of(state.targets[place].member.worker)
            version = Version(state.epoch, make_seq(1, place))
            await node.storage.commit(Batch(puts={(state.index, key): Record(version, version, value)}))
            self.held.setdefault(key, set()).add(node.worker.id)

    async def pages(self, rows: int) -> list[dict[bytes, set[str]]]:
        """Every page: by key, the workers that listed it."""
        found = []
        async for page in Pages(group_by_target(self.all_members), rows=rows, timeout_s=TIMEOUT_S):
            for key, (partition, held) in page.items():
                assert partition == partition_of(key)
                assert {record.value for record in held.values()} == {b""}, "pages come without values"
            found.append({key: set(held) for key, (_, held) in page.items()})
        return found

    async def list(self, *, after: bytes | None = None, limit: int = 100, with_values: bool = False) -> Listing:
        return await list_members(
            group_by_target(self.all_members),
            prefix=b"",
            after=after,
            limit=limit,
            with_values=with_values,
            deadline_s=trio.current_time() + TIMEOUT_S,
        )


async def start(nursery: trio.Nursery) -> Scene:
    return Scene(await InProcessCluster.start(nursery, workers=4))


async def test_targets_are_asked_for_the_partitions_that_name_them(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    scene = await start(nursery)
    one, two, *_ = scene.cluster.coordinator.partitions
    a, b, c = one.targets
    assert group_by_target({one: [a, b], two: [b, c]}) == {a: [one], b: [one, two], c: [two]}
    assert group_by_target({one: [], two: []}) == {}


@pytest.mark.parametrize("rows", [1, 7, 1000])
async def test_every_key_comes_once_in_its_turn_with_all_that_hold_it(
    rows: int, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Some are on one replica alone, so listings of the members stop at different keys."""
    scene = await start(nursery)
    for number in range(300):
        await scene.lay(b"%03d" % number, *((0, 1, 2), (0,), (2, 1))[number % 3])
    for number in range(300, 600):
        await scene.lay(b"%03d" % number, 0)
    pages = await scene.pages(rows)
    assert {key: held for page in pages for key, held in page.items()} == scene.held
    assert sum(map(len, pages)) == len(scene.held), "none comes twice"
    ends = [(min(page), max(page)) for page in pages if page]
    assert all(last < first for (_, last), (first, _) in pairwise(ends))
    assert (len(pages) == 1) is (rows == 1000)


async def test_without_members_there_is_no_page(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    assert [page async for page in Pages({}, rows=5, timeout_s=TIMEOUT_S)] == []


async def test_a_listing_is_complete_up_to_where_the_first_member_stopped(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    scene = await start(nursery)
    for number in range(400):
        await scene.lay(b"%03d" % number, 0)
    listing = await scene.list(limit=40)
    assert listing.bound is not None
    complete = {key for key in scene.held if key <= listing.bound}
    assert complete <= listing.rows.keys()
    assert 0 < len(complete) < 400
    rest = await scene.list(after=listing.bound, limit=1000)
    assert rest.bound is None
    assert rest.rows.keys() == scene.held.keys() - complete


@pytest.mark.parametrize("with_values", [False, True])
async def test_values_travel_only_when_they_are_asked_for(
    with_values: bool, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    scene = await start(nursery)
    await scene.lay(b"key", 0, value=b"value")
    listing = await scene.list(with_values=with_values)
    [(partition, held)] = listing.rows.values()
    assert partition == partition_of(b"key")
    assert [record.value for record in held.values()] == [b"value" if with_values else b""]


async def test_one_that_does_not_answer_makes_it_incomplete(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    scene = await start(nursery)
    await scene.lay(b"key", 0)
    scene.cluster.network.hold(scene.cluster.workers[2].address)
    began_s = trio.current_time()
    with pytest.raises(Refused, match="1 members: ") as refused:
        await scene.list()
    assert refused.value.kind.code == "unavailable"
    assert trio.current_time() - began_s == pytest.approx(TIMEOUT_S)
    with pytest.raises(Refused):
        await scene.pages(10)


async def test_one_that_has_promised_a_newer_epoch_makes_it_incomplete_and_that_is_told(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """A listing fences as well: a member that has answered refuses an older epoch from then on."""
    scene = await start(nursery)
    state = scene.cluster.coordinator.partitions[3]
    later = state.partition.renewed()
    newer = PartitionState(3, scene.cluster.master.cluster.term, later, state._surroundings)
    plan = {newer: newer.targets[:1]}
    await list_members(
        group_by_target(plan), prefix=b"", after=None, limit=5, with_values=False, deadline_s=trio.current_time() + 1
    )
    with pytest.raises(Refused, match=f"{state.targets[0].member.worker}: .* of partition 3"):
        await scene.list()
    assert scene.cluster.coordinator.partitions[3].is_blocked
    assert state.promised == make_epoch(scene.cluster.master.cluster.term, later.generation)
