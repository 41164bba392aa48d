"""The calls to a set of replicas, with real workers behind them, on a network that can be held, and virtual time."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.helpers import Replica as Silent
from tests.helpers import partition_of
from trikv.api import Answer, Write
from trikv.coordinator.partition import PartitionState
from trikv.coordinator.replicas import BACKGROUND_S, LATE_S, Copies, NotEnough, Replicas, ServedRequest, Target
from trikv.core.calls import Full
from trikv.core.configuration import Member
from trikv.core.errors import Fault
from trikv.core.quorums import Availability
from trikv.core.record import Record, Version
from trikv.master.membership import Replica
from trikv.net.link import Done
from trikv.testing.inprocess import InProcessCluster, Node

KEY = b"key"
TIMEOUT_S = 2.0


class Scene:
    """Three replicas of one key, r1 to r3, and what a request of theirs notes."""

    def __init__(self, cluster: InProcessCluster) -> None:
        self.cluster = cluster
        self.replicas = cluster.replicas_of(KEY)
        self.sends: list[Write] = []
        self.misses: list[tuple[int, Write]] = []  # the number of the replica, and what it missed
        self.stale: list[int] = []

    @property
    def state(self) -> PartitionState:
        return self.cluster.coordinator.partitions[partition_of(KEY)]

    def request(self, **more: Any) -> ServedRequest:
        return ServedRequest(
            self.state.index,
            more.pop("epoch", self.state.epoch),
            more.pop("copies", 2),
            self.state.targets,
            trio.current_time() + TIMEOUT_S,
            on_send=self.sends.append,
            on_missed=self._note_missed,
            on_stale=self.stale.append,
            **more,
        )

    def write(self, seq: int, *, epoch: int | None = None) -> Write:
        version = Version(self.state.epoch if epoch is None else epoch, seq)
        return Write(KEY, Record(version, version, b"v%d" % seq))

    async def place(self, seq: int, *where: int, epoch: int | None = None) -> Record:
        """Have only these replicas hold it."""
        write = self.write(seq, epoch=epoch)
        for number in where:
            request = self.request()
            one = request.replicas.head if number == 1 else request.replicas.rest
            await (one.tail if number == 3 else one.head).store(write)
        self.sends.clear()
        return write.record

    def holders(self, seq: int) -> list[int]:
        """Which replicas hold that one."""
        records = [node.storage.get(self.state.index, KEY) for node in self.replicas]
        return [n for n, record in enumerate(records, 1) if record is not None and record.version.seq == seq]

    def availability(self, number: int) -> Availability:
        return self.state.targets[number - 1].availability

    def hold(self, *numbers: int) -> None:
        for number in numbers:
            self.cluster.network.hold(self.replicas[number - 1].address)

    def release(self, *numbers: int) -> None:
        for number in numbers:
            self.cluster.network.release(self.replicas[number - 1].address)

    async def kill(self, *numbers: int) -> None:
        for number in numbers:
            await self.cluster.kill(self.replicas[number - 1])
        await self.cluster.until(lambda: all(self.availability(number) is Availability.DOWN for number in numbers))

    def node(self, number: int) -> Node:
        return self.replicas[number - 1]

    def numbers(self, answers: list[Answer]) -> list[int]:
        """Which replicas answered, in the order of their answers."""
        workers = [each.member.worker for each in self.state.targets]
        return [workers.index(answer.replica) + 1 for answer in answers]

    def _note_missed(self, target: Target, write: Write, since_s: float) -> None:
        members = [each.member for each in self.state.targets]
        self.misses.append((members.index(target.member) + 1, write))

    @property
    def missed(self) -> list[int]:
        """The replicas that missed a copy, as often as they did."""
        return [number for number, _ in self.misses]


@pytest.fixture
async def scene(nursery: trio.Nursery, autojump_clock: MockClock) -> Scene:
    return Scene(await InProcessCluster.start(nursery, mode="quorum"))


# --- store --------------------------------------------------------------------------------------------------------


async def test_a_store_reaches_all_and_notes_its_first_send_once(scene: Scene, autojump_clock: MockClock) -> None:
    write = scene.write(1)
    request = scene.request()
    await request.replicas.store(write)
    assert scene.holders(1) == [1, 2, 3]
    await request.replicas.store(write)
    assert scene.sends == [write]


async def test_the_first_send_is_noted_before_a_byte_leaves(scene: Scene, autojump_clock: MockClock) -> None:
    seen: list[list[int]] = []
    request = scene.request()
    request.on_send = lambda write: seen.append(scene.holders(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(request.replicas.store, scene.write(1))
        await trio.testing.wait_all_tasks_blocked()
    assert seen == [[]]


async def test_a_store_is_won_at_its_need_and_laggards_finish_behind(scene: Scene, autojump_clock: MockClock) -> None:
    scene.hold(3)
    began_s = trio.current_time()
    await scene.request().replicas.store(scene.write(1), need=2)
    assert trio.current_time() == began_s
    assert scene.holders(1) == [1, 2]
    scene.release(3)
    await scene.cluster.until(lambda: scene.holders(1) == [1, 2, 3])


async def test_hopelessness_is_noticed_at_once(scene: Scene, autojump_clock: MockClock) -> None:
    scene.hold(2, 3)
    began_s = trio.current_time()
    async with trio.open_nursery() as nursery:

        async def store() -> None:
            with pytest.raises(NotEnough, match="the link to it broke"):
                await scene.request().replicas.store(scene.write(1), need=2)

        nursery.start_soon(store)
        await trio.testing.wait_all_tasks_blocked()
        for number in (2, 3):
            scene.cluster.network.cut(scene.node(number).address)
    assert trio.current_time() == began_s
    assert scene.holders(1) == [1]


async def test_nothing_is_sent_when_the_need_cannot_be_met(scene: Scene, autojump_clock: MockClock) -> None:
    await scene.kill(2, 3)
    for attempt in (
        scene.request().replicas.store(scene.write(1), need=2),
        scene.request().replicas.store(scene.write(1), need=2, in_order=True),
        scene.request().replicas.rest.store(scene.write(1), need=1),
    ):
        with pytest.raises(NotEnough):
            await attempt
    request = scene.request()
    with pytest.raises(NotEnough, match="cannot be reached"):
        await request.replicas.head.store(scene.write(1), onward=request.replicas.rest)
    assert (scene.sends, scene.holders(1)) == ([], [])


async def test_no_need_is_met_without_a_send(scene: Scene, autojump_clock: MockClock) -> None:
    await scene.request().replicas.head.rest.store(scene.write(1))
    assert scene.sends == []


async def test_one_replica_down_is_missed_and_no_more(scene: Scene, autojump_clock: MockClock) -> None:
    await scene.kill(3)
    await scene.request().replicas.store(scene.write(1), need=2)
    assert (scene.holders(1), scene.misses) == ([1, 2], [(3, scene.write(1))])


async def test_in_order_asks_the_first_alone(scene: Scene, autojump_clock: MockClock) -> None:
    began_s = trio.current_time()
    await scene.request().replicas.store(scene.write(1), need=1, in_order=True)
    assert (scene.holders(1), trio.current_time()) == ([1], began_s)


async def test_in_order_goes_on_to_the_next_when_the_first_is_late(scene: Scene, autojump_clock: MockClock) -> None:
    scene.hold(1)
    began_s = trio.current_time()
    await scene.request().replicas.store(scene.write(1), need=1, in_order=True)
    assert (scene.holders(1), trio.current_time()) == ([2], began_s + LATE_S)
    scene.hold(2)
    await scene.request().replicas.store(scene.write(2), need=1, in_order=True)
    assert (scene.holders(2), trio.current_time()) == ([3], began_s + 3 * LATE_S)


class Unlinked:
    """A replica to which nothing leaves: its link has broken just now, or is full."""

    def __init__(self, target: Target) -> None:
        self.member = target.member
        self.address = target.address
        self.availability = Availability.UP
        self.evictable = self.crowded = False
        self.full = Full.NO
        self.labels = target.labels

    def call(self, op: int, arguments: list[Any], deadline_s: float, done: Done, size_bytes: int) -> None:
        done(Fault.NOT_SENT, [])


async def test_in_order_goes_on_at_once_when_the_first_fails_and_asks_no_third(
    scene: Scene, autojump_clock: MockClock
) -> None:
    began_s = trio.current_time()
    request = scene.request()
    first, *others = request.targets
    request.targets = [Unlinked(first), *others]
    await request.replicas.store(scene.write(1), need=1, in_order=True)
    assert (scene.holders(1), trio.current_time()) == ([2], began_s)
    await trio.sleep(1)
    assert scene.holders(1) == [2]


async def test_a_chain_has_it_everywhere_when_it_is_acknowledged(scene: Scene, autojump_clock: MockClock) -> None:
    request = scene.request()
    await request.replicas.head.store(scene.write(1), onward=request.replicas.rest)
    assert scene.holders(1) == [1, 2, 3]
    assert len(scene.sends) == 1


async def test_a_chain_whose_tail_is_silent_is_not_acknowledged(scene: Scene, autojump_clock: MockClock) -> None:
    scene.hold(3)
    request = scene.request()
    with pytest.raises(NotEnough, match=r"the chain behind it broke|no answer in time"):
        await request.replicas.head.store(scene.write(1), onward=request.replicas.rest)
    assert scene.holders(1) == [1, 2]


async def test_a_store_for_later_goes_to_those_not_sent_to(scene: Scene, autojump_clock: MockClock) -> None:
    request = scene.request()
    await request.replicas.store(scene.write(1), need=1, in_order=True)
    sent = set(request.sent_to)
    request.replicas.store_later(scene.write(1))
    assert [target.member in sent for target in request.targets] == [True, False, False]
    await scene.cluster.until(lambda: scene.holders(1) == [1, 2, 3])
    assert (len(scene.sends), scene.missed) == (1, [])


async def test_a_store_for_later_that_cannot_be_is_noted(scene: Scene, autojump_clock: MockClock) -> None:
    await scene.kill(3)
    scene.request().replicas.store_later(scene.write(1))
    await scene.cluster.until(lambda: scene.holders(1) == [1, 2])
    assert scene.misses == [(3, scene.write(1))]


async def test_a_laggard_that_fails_behind_is_noted(scene: Scene, autojump_clock: MockClock) -> None:
    scene.hold(3)
    await scene.request().replicas.store(scene.write(1), need=2)
    assert scene.misses == []
    scene.cluster.network.cut(scene.node(3).address)
    await scene.cluster.until(lambda: scene.missed == [3])


async def test_a_copy_that_may_be_kept_for_later_is_a_send(scene: Scene, autojump_clock: MockClock) -> None:
    """Whoever keeps it may deliver it: the write cannot be refused any more."""
    await scene.kill(3)
    scene.request().replicas.tail.store_later(scene.write(1))
    assert (scene.sends, scene.missed) == ([scene.write(1)], [3])


async def test_a_promised_epoch_is_passed_on(scene: Scene, autojump_clock: MockClock) -> None:
    await scene.request().replicas.fetch(KEY)
    old = scene.state.epoch - 1
    with pytest.raises(NotEnough, match="newer epoch"):
        await scene.request(epoch=old).replicas.store(scene.write(1, epoch=old))
    assert set(scene.stale) == {scene.state.epoch}
    assert scene.holders(1) == []


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_befalls_a_store_each_copy_ends_once_and_none_is_lost_from_sight(
    scene: Scene, nursery: trio.Nursery, autojump_clock: MockClock, seed: int
) -> None:
    """Replicas that are silent, cut off or dead, and requests that are cancelled: each replica of a store that was sent
    holds it, or is reported to have missed it, once. In the end no copy is under way."""
    dice = random.Random(seed)
    copies = Copies()
    keys = (key for number in count() if partition_of(key := b"%d" % number) == scene.state.index)
    written: list[tuple[Write, bool]] = []  # and whether it went to all replicas at once

    async def store(seq: int) -> None:
        write = Write(next(keys), scene.write(seq).record)
        request = scene.request(count_copies=lambda: copies)
        replicas = request.replicas
        goes_to_all = True
        with suppress(NotEnough), trio.move_on_after(dice.choice((0.0, 0.05, 0.2, 5.0))):
            match dice.randrange(4):
                case 0:
                    await replicas.store(write, need=dice.randint(1, 3))
                case 1:
                    goes_to_all = False
                    await replicas.store(write, need=dice.randint(1, 2), in_order=True)
                case 2:
                    goes_to_all = False
                    await replicas.head.store(write, onward=replicas.rest)
                case 3:
                    goes_to_all = False
                    await replicas.head.store(write)
                    goes_to_all = True
                    replicas.store_later(write)
        if write in scene.sends:
            written.append((write, goes_to_all))

    for seq in range(1, 120):
        node = dice.choice(scene.replicas)
        match dice.randrange(12):
            case 0:
                scene.cluster.network.hold(node.address)
            case 1:
                scene.cluster.network.cut(node.address)
            case 2:
                await scene.cluster.restart(node)
            case _:
                scene.cluster.network.release(node.address)
                scene.cluster.network.mend(node.address)
        nursery.start_soon(store, seq)
        await trio.sleep(dice.choice((0.0, 0.01, 0.3)))
    for node in scene.replicas:
        scene.cluster.network.mend(node.address)
        scene.cluster.network.release(node.address)
    await trio.sleep(2 * BACKGROUND_S)
    assert copies.under_way == 0, f"seed {seed}"
    missed = Counter((number, write.key) for number, write in scene.misses)
    assert set(missed.values()) == {1}, f"seed {seed}"
    assert len(written) > 30, f"seed {seed}"
    for write, goes_to_all in written:
        for number, node in enumerate(scene.replicas, 1) if goes_to_all else ():
            held = node.storage.get(scene.state.index, write.key) is not None
            assert held or missed[number, write.key], f"seed {seed}: replica {number}, {write}"


# --- fetch --------------------------------------------------------------------------------------------------------


def names(answers: list[Answer], scene: Scene) -> list[int]:
    order = [node.worker.id for node in scene.replicas]
    return sorted(order.index(answer.replica) + 1 for answer in answers)


async def test_a_fetch_asks_as_many_as_it_needs_in_order(scene: Scene, autojump_clock: MockClock) -> None:
    record = await scene.place(1, 2)
    answers = await scene.request().replicas.fetch(KEY, need=2)
    assert names(answers, scene) == [1, 2]
    assert {answer.record for answer in answers} == {None, record}
    assert names(await scene.request().replicas.fetch(KEY), scene) == [1, 2, 3]


async def test_a_fetch_asks_one_more_when_one_is_late(scene: Scene, autojump_clock: MockClock) -> None:
    scene.hold(1)
    began_s = trio.current_time()
    assert names(await scene.request().replicas.fetch(KEY, need=2), scene) == [2, 3]
    assert trio.current_time() == began_s + LATE_S


async def test_a_fetch_takes_another_for_one_that_fails(scene: Scene, autojump_clock: MockClock) -> None:
    await scene.kill(2)
    began_s = trio.current_time()
    assert names(await scene.request().replicas.fetch(KEY, need=2), scene) == [1, 3]
    assert trio.current_time() == began_s
    await scene.kill(1)
    with pytest.raises(NotEnough):
        await scene.request().replicas.fetch(KEY, need=2)


async def test_those_in_doubt_are_asked_last(scene: Scene, autojump_clock: MockClock) -> None:
    scene.hold(1)
    await scene.cluster.until(lambda: scene.availability(1) is Availability.DOUBTFUL)
    began_s = trio.current_time()
    assert names(await scene.request().replicas.fetch(KEY, need=2), scene) == [2, 3]
    assert trio.current_time() == began_s


async def test_what_was_listed_is_not_fetched(scene: Scene, autojump_clock: MockClock) -> None:
    record = scene.write(9).record
    first, second, _ = (node.worker.id for node in scene.replicas)
    request = scene.request(listed={first: record, second: None})
    assert await request.replicas.fetch(KEY, need=2) == [Answer(first, record), Answer(second, None)]
    assert {a.record for a in await request.replicas.fetch(KEY, need=3)} == {None}  # too few were listed: all are asked


def calls_of(request: ServedRequest) -> list[int]:
    return [target.calls for target in request.targets if isinstance(target, Replica)]


async def test_a_fetch_asks_one_more_as_soon_as_its_hedge_says(scene: Scene, autojump_clock: MockClock) -> None:
    scene.hold(1)
    began_s = trio.current_time()
    answers = await scene.request().replicas.fetch(KEY, need=1, hedge_after_s=0.02)
    assert (scene.numbers(answers), round(trio.current_time() - began_s, 3)) == ([2], 0.02)


async def test_a_fetch_with_a_hedge_of_nothing_asks_all_at_once(scene: Scene, autojump_clock: MockClock) -> None:
    scene.hold(1, 2)
    began_s = trio.current_time()
    answers = await scene.request().replicas.fetch(KEY, need=1, hedge_after_s=0)
    assert (scene.numbers(answers), trio.current_time()) == ([3], began_s)


async def test_a_hedge_of_nothing_waits_for_no_pass_of_the_scheduler_between_two_replicas(
    scene: Scene, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await trio.sleep(10)  # the replicas of a new cluster are compared first
    scene.hold(1, 2, 3)
    request = scene.request()
    before = calls_of(request)
    nursery.start_soon(partial(request.replicas.fetch, KEY, need=1, hedge_after_s=0))
    await trio.lowlevel.checkpoint()
    await trio.lowlevel.checkpoint()
    assert [more - less for less, more in zip(before, calls_of(request), strict=True)] == [1, 1, 1]


async def test_a_hedge_sends_nothing_more_where_the_first_are_in_time(scene: Scene, autojump_clock: MockClock) -> None:
    await trio.sleep(10)  # the replicas of a new cluster are compared first
    request = scene.request()
    before = calls_of(request)
    assert scene.numbers(await request.replicas.fetch(KEY, need=1, hedge_after_s=0.02)) == [1]
    await trio.sleep(0.05)
    assert [more - less for less, more in zip(before, calls_of(request), strict=True)] == [1, 0, 0]


@pytest.mark.parametrize("hedge_after_s", [-0.1, math.inf, math.nan])
async def test_a_hedge_that_is_no_time_is_named(scene: Scene, autojump_clock: MockClock, hedge_after_s: float) -> None:
    with pytest.raises(ValueError, match=rf"fetch\(hedge_after_s={hedge_after_s}\)"):
        await scene.request().replicas.fetch(KEY, hedge_after_s=hedge_after_s)


# --- parts --------------------------------------------------------------------------------------------------------


def test_a_part_is_taken_as_of_a_list() -> None:
    replicas = set_of("abcd")
    assert [named(replicas[1]), named(replicas[-1])] == ["b", "d"]
    assert [named(replicas[:2]), named(replicas[2:]), named(replicas[5:])] == ["ab", "cd", ""]
    assert [named(one) for one in replicas] == ["a", "b", "c", "d"]
    assert named(replicas[1:][0]) == "b"
    for place in (4, -5):
        with pytest.raises(IndexError, match=rf"replicas\[{place}\]: there are 4 replicas"):
            replicas[place]


def test_a_part_is_taken_by_label() -> None:
    replicas = set_of("abcd", a={"zone": "x", "disk": "fast"}, b={"zone": "y"}, c={"zone": "x"})
    assert [named(replicas.where(zone="x")), named(replicas.where(zone="x", disk="fast"))] == ["ac", "a"]
    assert [named(replicas.where(zone="z")), named(replicas.where())] == ["", "abcd"]
    assert [named(replicas.prefer(zone="y")), named(replicas.prefer(zone="z"))] == ["bacd", "abcd"]
    assert [replicas.values("zone"), replicas.values("disk"), replicas.values("rack")] == [["x", "y"], ["fast"], []]


async def test_a_write_by_zones_and_a_read_of_the_nearest(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery, workers=0)
    for zone in "aabbc":
        await cluster.add_worker(labels={"zone": zone})
        await cluster.until(lambda: len(cluster.master.cluster.workers) == len(cluster.workers))
    await cluster.until_all_up()
    scene = Scene(cluster)
    by_zone = {node.labels["zone"]: number for number, node in enumerate(scene.replicas, 1)}
    replicas = scene.request().replicas
    assert sorted(replicas.values("zone")) == sorted(by_zone) == ["a", "b", "c"]
    for zone in "ac":
        await replicas.where(zone=zone).store(scene.write(1))
    assert scene.holders(1) == sorted([by_zone["a"], by_zone["c"]])
    for zone in "abc":
        answers = await replicas.prefer(zone=zone).fetch(KEY, need=1)
        assert scene.numbers(answers) == [by_zone[zone]]
    scene.hold(by_zone["b"])
    (answer,) = await replicas.prefer(zone="b").fetch(KEY, need=1)
    assert answer.record == scene.write(1).record, "another zone answers where the nearest is late"


@pytest.mark.parametrize("need", [-1, 0, 3])
async def test_a_need_that_makes_no_sense_names_the_call(need: int) -> None:
    replicas = set_of("ab")
    with pytest.raises(ValueError, match=rf"store\(need={need}\): of 2 replicas, need is from 1 to 2"):
        await replicas.store(WRITE, need=need)
    with pytest.raises(ValueError, match=rf"fetch\(need={need}\): of 2 replicas, need is from 1 to 2"):
        await replicas.fetch(KEY, need=need)


async def test_of_an_empty_set_nothing_is_needed_and_nothing_is_sent() -> None:
    rest = set_of("a").rest
    await rest.store(WRITE)
    await rest.store(WRITE, onward=rest)
    rest.store_later(WRITE)
    assert (await rest.fetch(KEY), len(rest), named(rest.head), named(rest.tail)) == ([], 0, "", "")
    for need in (0, rest.majority):
        with pytest.raises(ValueError, match=rf"store\(need={need}\): of 0 replicas, need is not given"):
            await rest.store(WRITE, need=need)


async def test_a_chain_of_something_else_is_named() -> None:
    with pytest.raises(TypeError, match="onward=7"):
        await set_of("ab").store(WRITE, onward=7)  # type: ignore[arg-type]


async def test_agreeing_within_a_set_that_is_too_small_names_the_call() -> None:
    answers = [Answer("a", WRITE.record)]
    with pytest.raises(ValueError, match="agree: the newest answer must be on 1 more replicas, and this set has 0"):
        await set_of("abc").head.agree(KEY, answers)


WRITE = Write(KEY, Record(Version(1, 1), Version(1, 1), b"v"))


def set_of(names: str, **labels: Mapping[str, str]) -> Replicas:
    """Replicas that nobody may call, with W of a majority."""
    targets = [Silent(Member(name, "1"), labels=labels.get(name, {})) for name in names]
    return ServedRequest(0, 1, len(names) // 2 + 1, targets, 0.0).replicas


def named(replicas: Replicas) -> str:
    return "".join(member.worker for member in replicas.members)


# --- agree --------------------------------------------------------------------------------------------------------


async def agreed(scene: Scene, need: int = 2, **more: Any) -> Record | None:
    request = scene.request(**more)
    return await request.replicas.agree(KEY, await request.replicas.fetch(KEY, need=need))


async def test_nothing_anywhere_is_agreed_upon(scene: Scene, autojump_clock: MockClock) -> None:
    assert await agreed(scene) is None


async def test_what_is_on_enough_is_agreed_upon_without_a_send(scene: Scene, autojump_clock: MockClock) -> None:
    record = await scene.place(1, 1, 2)
    assert await agreed(scene) == record
    assert scene.sends == []


async def test_what_is_on_too_few_is_written_back_as_it_is(scene: Scene, autojump_clock: MockClock) -> None:
    await scene.place(1, 1, 2, 3)
    record = await scene.place(2, 1)
    assert await agreed(scene) == record
    assert len(scene.holders(2)) >= 2


async def test_no_answer_is_given_that_could_not_be_written_back(scene: Scene, autojump_clock: MockClock) -> None:
    await scene.place(1, 1)
    request = scene.request()
    answers = await request.replicas.fetch(KEY, need=2)
    await scene.kill(2, 3)
    with pytest.raises(NotEnough):
        await request.replicas.agree(KEY, answers)


async def test_the_remains_of_an_older_epoch_need_a_repair(scene: Scene, autojump_clock: MockClock) -> None:
    await scene.place(7, 1, epoch=scene.state.epoch - 1)
    mended = scene.write(1).record
    asked: list[bytes] = []

    async def repair(key: bytes) -> Record | None:
        asked.append(key)
        return mended

    assert await agreed(scene, repair=repair) == mended
    assert asked == [KEY]
    assert scene.holders(7) == [1]  # it was not spread: a newer, hidden one may have overtaken it
    with pytest.raises(NotEnough, match="needs a repair"):
        await agreed(scene)


async def test_an_older_epochs_record_on_enough_needs_none(scene: Scene, autojump_clock: MockClock) -> None:
    record = await scene.place(7, 1, 2, epoch=scene.state.epoch - 1)
    assert await agreed(scene) == record
