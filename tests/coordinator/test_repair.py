"""Finding what a history holds, and copying it as it is: whose answers are enough, and how soon too few are noticed."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock

from tests.helpers import lay_down
from tests.sim.driven import INDEX, KEY, Driven, driven
from trikv.api import Write
from trikv.coordinator.repair import copy_record, fetch_history, store_record
from trikv.coordinator.replicas import NotEnough, Target
from trikv.core.calls import Op
from trikv.core.record import Record, Version, make_epoch, make_seq
from trikv.healing import settle
from trikv.net.link import dial
from trikv.testing.inprocess import Node

TIMEOUT_S = 2.0


@pytest.fixture
async def drive(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, mode: str) -> AsyncIterator[Driven]:
    """A key's partition on r1, r2, r3; six workers; nothing is settled."""
    monkeypatch.setattr(settle, "choose_to_settle", lambda history, hung: None)
    async with driven(nursery, mode) as drive:
        await drive.write(b"v")
        await trio.sleep(1)
        yield drive


def target_of(drive: Driven, node: Node) -> Target:
    return next(t for each in drive.state.history for t in each.voters if t.member.worker == node.worker.id)


async def leave(drive: Driven, value: bytes, number: int, *nodes: Node) -> Record:
    """A record of the present epoch on these alone, as a coordinator that died half-way leaves it."""
    version = Version(drive.state.epoch, make_seq(1000 + number, 0))
    records = [await lay_down(drive.cluster, drive.nursery, node, KEY, version, value) for node in nodes]
    return records[0]


async def find(drive: Driven, *, besides: Node | None = None) -> bytes | None:
    wanted = None if besides is None else target_of(drive, besides)
    with trio.fail_after(2 * TIMEOUT_S):
        found = await fetch_history(drive.state, KEY, trio.current_time() + TIMEOUT_S, besides=wanted)
    return found and found.value


def held(node: Node) -> Record | None:
    return node.storage.get(INDEX, KEY)


# --- whose answers are enough -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["quorum"])
async def test_the_newest_is_found_wherever_in_the_history_it_is(drive: Driven, autojump_clock: MockClock) -> None:
    await leave(drive, b"newer", 1, drive.replicas[2])
    newcomers = drive.spares
    await drive.change(newcomers, "quorum")
    assert await find(drive) == b"newer"
    await leave(drive, b"newest", 2, newcomers[0])
    assert await find(drive) == b"newest"
    assert await fetch_history(drive.state, b"another", trio.current_time() + TIMEOUT_S) is None


@pytest.mark.parametrize("mode", ["quorum"])
async def test_r_of_every_configuration_are_enough_and_one_answer_counts_for_all_that_its_member_is_in(
    drive: Driven, autojump_clock: MockClock
) -> None:
    one, two, three = drive.replicas
    await drive.change([one, two, drive.spares[0]], "quorum")
    for node in (three, drive.spares[0]):
        await drive.cluster.kill(node)
    await drive.cluster.until_down(three, drive.spares[0])
    assert await find(drive) == b"v"


@pytest.mark.parametrize("mode", ["quorum"])
async def test_too_few_of_a_former_configuration_are_noticed_at_once(drive: Driven, autojump_clock: MockClock) -> None:
    _, two, three = drive.replicas
    await drive.change(drive.spares, "quorum")
    for node in (two, three):
        await drive.cluster.kill(node)
    await drive.cluster.until_down(two, three)
    began_s = trio.current_time()
    with pytest.raises(NotEnough, match=two.worker.id):
        await find(drive)
    assert trio.current_time() == began_s


@pytest.mark.parametrize("mode", ["quorum"])
async def test_a_silent_one_is_not_waited_for_where_others_are_enough(drive: Driven, autojump_clock: MockClock) -> None:
    silent = drive.replicas[0]
    await drive.change(drive.spares, "quorum")
    drive.cluster.network.hold(silent.address)
    began_s = trio.current_time()
    assert await find(drive) == b"v"
    assert trio.current_time() == began_s


@pytest.mark.parametrize("mode", ["quorum"])
async def test_one_that_has_listed_the_key_must_have_answered(drive: Driven, autojump_clock: MockClock) -> None:
    """It may hold alone what it listed, so that R others would find nothing."""
    silent = drive.replicas[0]
    await leave(drive, b"listed", 1, silent)
    await drive.change(drive.spares, "quorum")
    drive.cluster.network.hold(silent.address)
    with pytest.raises(NotEnough, match=silent.worker.id):
        await find(drive, besides=silent)
    drive.cluster.network.release(silent.address)
    assert await find(drive, besides=silent) == b"listed"


@pytest.mark.parametrize("mode", ["async"])
async def test_under_ap_all_answer_but_those_that_are_down(drive: Driven, autojump_clock: MockClock) -> None:
    one, two, three = drive.replicas
    await leave(drive, b"alone", 1, three)
    await drive.change([one, two, drive.spares[0]], "async")
    drive.cluster.network.hold(three.address)
    with pytest.raises(NotEnough, match=three.worker.id):
        await find(drive)
    await drive.cluster.until_down(three)
    assert await find(drive) == b"v"


@pytest.mark.parametrize("mode", ["quorum"])
async def test_a_newer_promise_is_told(drive: Driven, autojump_clock: MockClock) -> None:
    """The epoch is out of date then: the answers do not count, and the master hears of it."""
    state = drive.state
    for node in drive.replicas:
        link = await dial(await drive.cluster.network.connect(node.address), drive.cluster.master.hello())
        drive.nursery.start_soon(link.run)
        later = make_epoch(drive.cluster.master.cluster.term, state.partition.generation + 1)
        arguments = [INDEX, later, node.worker.incarnation, KEY]
        link.call(Op.FETCH, arguments, trio.current_time() + 1, lambda fault, payload: None)
    await trio.sleep(1)
    with pytest.raises(NotEnough):
        await find(drive)
    assert drive.state.is_blocked
    assert drive.state.promised == make_epoch(drive.cluster.master.cluster.term, state.partition.generation + 1)


# --- copies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["quorum"])
async def test_a_record_is_copied_as_it_is(drive: Driven, autojump_clock: MockClock) -> None:
    one, two, _ = drive.replicas
    newcomer = drive.spares[0]
    await drive.change([one, two, newcomer], "quorum")
    record = held(one)
    assert record is not None
    lacking = [target_of(drive, newcomer)]
    deadline_s = trio.current_time() + TIMEOUT_S
    copied = await copy_record(drive.state, KEY, record.version, target_of(drive, one), lacking, deadline_s)
    assert copied == held(newcomer) == record


@pytest.mark.parametrize("mode", ["quorum"])
async def test_where_the_source_holds_another_version_by_now_nothing_is_copied(
    drive: Driven, autojump_clock: MockClock
) -> None:
    one, two, _ = drive.replicas
    newcomer = drive.spares[0]
    record = held(one)
    assert record is not None
    await leave(drive, b"newer", 1, one)
    await drive.change([one, two, newcomer], "quorum")
    lacking = [target_of(drive, newcomer)]
    deadline_s = trio.current_time() + TIMEOUT_S
    with pytest.raises(NotEnough, match=f"{one.worker.id} does not hold version"):
        await copy_record(drive.state, KEY, record.version, target_of(drive, one), lacking, deadline_s)
    assert held(newcomer) is None


@pytest.mark.parametrize("mode", ["quorum"])
async def test_all_must_have_stored_it(drive: Driven, autojump_clock: MockClock) -> None:
    one, silent, three = drive.replicas
    drive.cluster.network.hold(silent.address)
    version = Version(drive.state.epoch, make_seq(1000, 0))
    write = Write(KEY, Record(version, version, b"w"))
    targets = [target_of(drive, node) for node in (one, silent, three)]
    with pytest.raises(NotEnough, match=silent.worker.id):
        await store_record(drive.state, write, targets, trio.current_time() + TIMEOUT_S)
    await store_record(drive.state, write, targets[::2], trio.current_time() + TIMEOUT_S)
    assert held(one) == held(three) == write.record
