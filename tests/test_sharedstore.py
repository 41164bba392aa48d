"""The config store in memory that several masters share: leader, lease, document, and a master that is cut off."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from trikv.master.configstore import ConfigConflict, ConfigStoreError, NotChanged
from trikv.master.leadership import Candidate
from trikv.testing.sharedstore import MemorySharedConfigStore, SharedState

A = Candidate("a", "127.0.0.1:8000", "127.0.0.1:8080")
B = Candidate("b", "127.0.0.1:8001", "127.0.0.1:8081")


async def start_two(nursery: trio.Nursery) -> tuple[MemorySharedConfigStore, MemorySharedConfigStore]:
    state = SharedState(lease_s=3.0)
    first, second = state.client(), state.client()
    await nursery.start(first.run, A)
    await nursery.start(second.run, B)
    return first, second


def leader_of(store: MemorySharedConfigStore) -> Candidate | None:
    return store.leader and store.leader.master


async def test_one_leads_and_the_other_sees_it(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    first, second = await start_two(nursery)
    assert await first.take_lead("now")
    assert not await second.take_lead("now")
    await trio.sleep(100)
    assert first.leads
    assert first.holds()
    assert not second.leads
    assert not second.holds()
    assert leader_of(second) == A
    assert list(second.masters) == list(first.masters) == [A, B]


async def test_a_lead_that_is_given_up_can_be_taken_at_once(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    first, second = await start_two(nursery)
    await first.take_lead("now")
    began_s = trio.current_time()
    await first.give_up_lead()
    assert not first.holds()
    while second.leader is not None:
        await second.changed.wait()
    assert await second.take_lead("later")
    assert trio.current_time() == began_s


async def test_a_leader_that_is_cut_off_no_longer_holds_before_another_can_lead(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    first, second = await start_two(nursery)
    await first.take_lead("now")
    await trio.sleep(10.1)
    first.cut_off()
    held = True
    while not await second.take_lead("later"):
        held = first.holds()
        await trio.sleep(0.1)
    assert not held
    assert leader_of(first) == A  # it has heard of nothing
    first.mend()
    await first.changed.wait()
    assert leader_of(first) == B
    assert not first.leads


async def test_a_lease_that_ended_is_taken_anew_unless_the_document_changed(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    first, second = await start_two(nursery)
    await first.take_lead("now")
    revision = await first.compare_and_set({"n": 1}, 0)
    for is_changed in (False, True):
        first.cut_off()
        await trio.sleep(5)
        assert not first.holds()
        if is_changed:
            await second.compare_and_set({"n": 2}, revision)
        first.mend()
        await trio.sleep(2)
        assert first.leads == first.holds() == (not is_changed)


async def test_a_master_that_ended_is_forgotten(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    first, _ = await start_two(nursery)
    async with trio.open_nursery() as of_third:
        third = first._state.client()
        await of_third.start(third.run, Candidate("c", "127.0.0.1:8002", "127.0.0.1:8082"))
        await first.changed.wait()
        assert len(first.masters) == 3
        of_third.cancel_scope.cancel()
    await trio.sleep(4)
    assert list(first.masters) == [A, B]


async def test_a_change_whose_answer_is_lost_is_in_doubt_and_one_that_was_not_sent_is_not(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    first, second = await start_two(nursery)
    first.late_s = 1.0
    nursery.start_soon(cut_after, first, 1.5)
    with pytest.raises(ConfigStoreError) as lost:
        await first.compare_and_set({"n": 1}, 0)
    assert not isinstance(lost.value, NotChanged)
    with pytest.raises(NotChanged):
        await first.compare_and_set({"n": 2}, 0)
    assert await second.read() == ({"n": 1}, 1)
    with pytest.raises(ConfigConflict):
        await second.compare_and_set({"n": 3}, 0)
    first.mend()
    assert await first.read() == ({"n": 1}, 1)


async def cut_after(store: MemorySharedConfigStore, wait_s: float) -> None:
    await trio.sleep(wait_s)
    store.cut_off()
