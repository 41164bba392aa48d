"""What a replica missed while it was away is kept for it, and is what it gets: nothing has to be listed for that."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.helpers import partition_of
from trikv.api import Write
from trikv.coordinator.partition import PartitionState
from trikv.coordinator.replicas import BACKGROUND_S, Target
from trikv.core.calls import Full, Op
from trikv.core.errors import Fault
from trikv.core.quorums import Availability
from trikv.core.record import Record
from trikv.core.session import Call
from trikv.healing import hints
from trikv.healing.hints import Hints
from trikv.net.link import Done, Link
from trikv.testing.inprocess import InProcessCluster, Node
from trikv.worker.worker import Worker

KEYS = [b"k%d" % number for number in range(40)]
BRIEFLY_S = 20.0  # far less than the age of a hint, more than anti-entropy takes to compare all that it can
PARTITION = partition_of(KEYS[0])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[Op]:
    """How often the workers were asked for what, all together."""
    asked: Counter[Op] = Counter()
    handle = Worker.handle

    def note(self: Worker, link: Link, incoming: list[Call]) -> None:
        asked.update(Op(call[2]) for call in incoming)
        handle(self, link, incoming)

    monkeypatch.setattr(Worker, "handle", note)
    return asked


async def start(nursery: trio.Nursery, mode: str, *, workers: int = 3) -> InProcessCluster:
    """A cluster in which every key has its first value on every replica."""
    cluster = await InProcessCluster.start(nursery, mode=mode, workers=workers)
    for key in KEYS:
        await cluster.coordinator.put(key, b"first")
    await trio.sleep(5)
    assert whole(cluster)
    return cluster


def hints_of(cluster: InProcessCluster) -> Hints:
    return cluster.master.hints


def held(cluster: InProcessCluster, key: bytes) -> list[Record | None]:
    return [node.storage.get(partition_of(key), key) for node in cluster.replicas_of(key)]


def whole(cluster: InProcessCluster) -> bool:
    return all(len(set(held(cluster, key))) == 1 and held(cluster, key)[0] is not None for key in KEYS)


async def write_while_away(cluster: InProcessCluster, away: Node) -> dict[bytes, Record | None]:
    """Stop it, write 20 keys, some of them often, and delete 5 of them; the newest record of each."""
    await cluster.kill(away)
    for key in KEYS[:4]:
        await cluster.coordinator.put(key, b"before anybody knows that it is down")
    await cluster.until_down(away)
    for number in range(3):
        for key in KEYS[:20]:
            await cluster.coordinator.put(key, b"later %d" % number)
    for key in KEYS[10:15]:
        await cluster.coordinator.delete(key)
    await trio.sleep(BRIEFLY_S)
    return {key: newest(cluster, key) for key in KEYS}


def newest(cluster: InProcessCluster, key: bytes) -> Record:
    return max((record for record in held(cluster, key) if record is not None), key=lambda record: record.version)


@pytest.mark.parametrize("mode", ["quorum", "async"])
@pytest.mark.parametrize("number", [0, 1, 2])
async def test_a_replica_that_was_away_gets_exactly_what_it_missed_and_nobody_lists(
    mode: str, number: int, nursery: trio.Nursery, autojump_clock: MockClock, asked: Counter[Op]
) -> None:
    cluster = await start(nursery, mode)
    away = cluster.replicas_of(KEYS[0])[number]
    expected = await write_while_away(cluster, away)
    assert hints_of(cluster).progress()["held"] == 20
    asked.clear()
    await cluster.restart(away)
    await cluster.until_all_up()
    await trio.sleep(BRIEFLY_S)
    assert {key: held(cluster, key) for key in KEYS} == {key: [record] * 3 for key, record in expected.items()}
    assert all(newest(cluster, key).is_tombstone for key in KEYS[10:15])
    assert (asked[Op.STORE], asked[Op.LIST]) == (20, 0)
    assert hints_of(cluster).progress() == {"held": 0, "bytes": 0, "delivered": 20, "dropped": 0}
    assert cluster.master.operations.progress()["hints"] == hints_of(cluster).progress()


async def test_many_are_delivered_before_anybody_compares(
    nursery: trio.Nursery, autojump_clock: MockClock, asked: Counter[Op], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As slow as they may be: what is about to arrive is not looked for."""
    monkeypatch.setattr(hints, "TOGETHER", 1)
    cluster = await start(nursery, "quorum")
    away = cluster.workers[0]
    await write_while_away(cluster, away)
    await trio.sleep(100)  # so that the others were compared without it, and it will have to be
    commit = away.storage.commit

    async def commit_slowly(*batch: object) -> None:
        await trio.sleep(1)
        await commit(*batch)  # type: ignore[arg-type]

    monkeypatch.setattr(away.storage, "commit", commit_slowly)
    asked.clear()
    await cluster.restart(away)
    await cluster.until_all_up()
    await trio.sleep(10)
    assert not whole(cluster)
    await cluster.until(lambda: whole(cluster))
    asked[Op.DIGEST] = 0
    await trio.sleep(5)  # and then at once: who was away may lack what nobody knew of
    assert asked[Op.DIGEST] >= 3
    assert asked[Op.LIST] == 0


class Stubborn:
    """A replica that seems to be up, and answers when the test says so, and what."""

    def __init__(self, target: Target) -> None:
        self.member = target.member
        self.address = target.address
        self.availability = Availability.UP
        self.evictable = self.crowded = False
        self.full = Full.NO
        self.labels = target.labels
        self.calls: list[tuple[list[Any], Done]] = []

    def call(self, op: int, arguments: list[Any], deadline_s: float, done: Done, size_bytes: int) -> None:
        self.calls.append((arguments, done))


def write_in(state: PartitionState, value: bytes) -> Write:
    version = state.next_version()
    return Write(KEYS[0], Record(version, version, value))


async def test_what_is_refused_is_kept_and_holds_up_no_comparison(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery)
    await trio.sleep(5)
    state = cluster.coordinator.partitions[PARTITION]
    replica = Stubborn(state.targets[0])
    assert state.remember_sent()
    hints_of(cluster).note(state, replica, write_in(state, b"second"), trio.current_time())
    await cluster.until(lambda: len(replica.calls) == 1)
    assert hints_of(cluster).expects(state)
    replica.calls[0][1](Fault.BUSY, [])
    await cluster.until(lambda: len(replica.calls) == 2)
    assert state.was_sent(KEYS[0])  # so that no tombstone of it is forgotten
    assert hints_of(cluster).has(state)
    assert not hints_of(cluster).expects(state)
    before = cluster.coordinator.changed.count
    replica.calls[1][1](Fault.OK, [])
    await cluster.until(lambda: not hints_of(cluster).has(state))
    assert cluster.coordinator.changed.count > before  # whoever held a comparison back looks again
    assert hints_of(cluster).progress() == {"held": 0, "bytes": 0, "delivered": 1, "dropped": 0}


async def test_what_comes_during_a_delivery_is_delivered_too(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await start(nursery, "quorum")
    state = cluster.coordinator.partitions[PARTITION]
    replica = Stubborn(state.targets[0])
    hints_of(cluster).note(state, replica, write_in(state, b"second"), trio.current_time())
    await cluster.until(lambda: replica.calls)
    hints_of(cluster).note(state, replica, write_in(state, b"third"), trio.current_time())
    replica.calls[0][1](Fault.OK, [])
    await cluster.until(lambda: len(replica.calls) == 2)
    assert [arguments[8] for arguments, _ in replica.calls] == [b"second", b"third"]


async def test_a_copy_that_was_sent_and_lost_is_delivered_to_who_was_never_down(
    nursery: trio.Nursery, autojump_clock: MockClock, asked: Counter[Op]
) -> None:
    cluster = await start(nursery, "quorum")
    node = cluster.workers[2]
    cluster.network.hold(node.address)
    await cluster.coordinator.put(KEYS[0], b"second")
    cluster.network.cut(node.address)
    cluster.network.release(node.address)
    cluster.network.mend(node.address)
    await cluster.until(lambda: hints_of(cluster).delivered == 1)
    assert whole(cluster)
    assert asked[Op.LIST] == 0


async def test_a_newer_hint_takes_the_place_of_an_older_and_never_the_reverse(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, "quorum")
    node = cluster.workers[1]
    cluster.network.hold(node.address)
    await cluster.coordinator.put(KEYS[0], b"second")
    await cluster.until_down(node)
    await cluster.coordinator.put(KEYS[0], b"third")
    await trio.sleep(BACKGROUND_S)  # only now it is known that the second has not arrived
    assert hints_of(cluster).progress()["held"] == 1
    assert held(cluster, KEYS[0]).count(newest(cluster, KEYS[0])) == 2
    cluster.network.release(node.address)
    await cluster.until(lambda: hints_of(cluster).delivered == 1)
    assert [record and record.value for record in held(cluster, KEYS[0])] == [b"third"] * 3


async def test_what_was_overtaken_meanwhile_changes_nothing(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """The replica that is back gets the next write before its hint: the hint is older."""
    cluster = await start(nursery, "quorum")
    away = cluster.workers[1]
    await write_while_away(cluster, away)
    await cluster.restart(away)
    await cluster.until_all_up()
    for key in KEYS:
        await cluster.coordinator.put(key, b"last")
    await cluster.until(lambda: hints_of(cluster).progress()["held"] == 0)
    assert whole(cluster)
    assert {newest(cluster, key).value for key in KEYS} == {b"last"}


@pytest.mark.parametrize("bound", ["bytes", "count", "age"])
async def test_beyond_the_bounds_anti_entropy_mends(
    bound: str, nursery: trio.Nursery, autojump_clock: MockClock, asked: Counter[Op], monkeypatch: pytest.MonkeyPatch
) -> None:
    if bound == "age":
        monkeypatch.setattr(hints, "AGE_MAX_S", BRIEFLY_S / 2)
    else:
        monkeypatch.setattr(hints, f"{bound.upper()}_MAX", 100 if bound == "bytes" else 10)
    cluster = await start(nursery, "quorum")
    away = cluster.workers[1]
    expected = await write_while_away(cluster, away)
    progress = hints_of(cluster).progress()
    assert progress["bytes"] <= 100 or bound != "bytes"
    assert progress["held"] <= 10
    assert progress["dropped"] > 0
    assert sum(state.missed > 0 for state in cluster.coordinator.partitions) > 0
    await cluster.restart(away)
    await cluster.until_all_up()
    await trio.sleep(8)  # far less than the period
    assert {key: held(cluster, key) for key in KEYS} == {key: [record] * 3 for key, record in expected.items()}
    assert asked[Op.LIST] > 0
    assert {state.missed for state in cluster.coordinator.partitions} == {0}
    await cluster.kill(away)
    await cluster.until_down(away)
    await cluster.coordinator.put(KEYS[0], b"now")
    assert hints_of(cluster).progress()["held"] == 1  # what was compared may have hints again


async def test_they_are_dropped_at_the_next_generation(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """A fourth takes the place of the one that is away; what is kept for it is kept for nobody."""
    cluster = await start(nursery, "quorum", workers=4)
    away = cluster.replicas_of(KEYS[0])[2]
    await cluster.kill(away)
    await cluster.until_down(away)
    await cluster.coordinator.put(KEYS[0], b"second")
    assert hints_of(cluster).has(cluster.coordinator.partitions[PARTITION])
    await cluster.until(lambda: away not in cluster.replicas_of(KEYS[0]))
    await cluster.until_settled()
    await trio.sleep(2)
    assert hints_of(cluster).progress() == {"held": 0, "bytes": 0, "delivered": 0, "dropped": 1}
    await cluster.restart(away)
    await cluster.until(lambda: cluster.master.membership.watched[away.worker.id].steady)
    await cluster.until_settled()
    await trio.sleep(5)
    assert hints_of(cluster).delivered == 0
    assert whole(cluster)


async def test_another_incarnation_gets_none(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await start(nursery, "quorum")
    away = cluster.workers[0]
    await write_while_away(cluster, away)
    await cluster.restart(away, wiped=True)
    await cluster.until_all_up()
    await cluster.until_settled()
    await trio.sleep(BRIEFLY_S)
    assert hints_of(cluster).progress() == {"held": 0, "bytes": 0, "delivered": 0, "dropped": 20}
    assert whole(cluster)


@pytest.mark.parametrize("mode", ["sync", "chain"])
async def test_modes_that_store_on_all_have_none(mode: str, nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await start(nursery, mode)
    node = cluster.replicas_of(KEYS[0])[1]
    cluster.network.hold(node.address)
    with trio.move_on_after(0.5):
        await cluster.coordinator.put(KEYS[0], b"second")
    cluster.network.cut(node.address)
    cluster.network.release(node.address)
    cluster.network.mend(node.address)
    await cluster.until(lambda: cluster.coordinator.pending == 0)
    await trio.sleep(10)
    assert hints_of(cluster).progress() == {"held": 0, "bytes": 0, "delivered": 0, "dropped": 0}
    assert whole(cluster)


async def test_a_worker_is_unsafe_to_stop_while_another_lacks_what_it_holds(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await start(nursery, "async")
    other, away, _ = cluster.replicas_of(KEYS[0])
    cluster.network.hold(away.address)
    await cluster.until_down(away)
    await cluster.coordinator.put(KEYS[0], b"second")
    assert not cluster.master.operations.safe_to_stop(other.worker.id)[0]
    cluster.network.release(away.address)
    await cluster.until(lambda: hints_of(cluster).delivered == 1)
    await cluster.until(lambda: cluster.master.operations.safe_to_stop(other.worker.id)[0])
    assert whole(cluster)


async def test_who_does_not_take_them_is_asked_again(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await start(nursery, "quorum")
    away = cluster.workers[1]
    await write_while_away(cluster, away)
    await cluster.restart(away)
    await cluster.until(lambda: hints_of(cluster).delivered > 0)
    cluster.network.cut(away.address)
    await cluster.until_down(away)
    cluster.network.mend(away.address)
    await cluster.until(lambda: whole(cluster))
    assert hints_of(cluster).progress()["dropped"] == 0
