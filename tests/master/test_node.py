"""Masters that take turns on one shared store, in one process: who leads when, and what the others do meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock

from tests.helpers import KEYS
from trikv.core.errors import TrikvError
from trikv.master.configstore import ConfigConflict, ConfigStoreError
from trikv.master.leadership import Candidate
from trikv.master.master import Master
from trikv.master.node import AGAIN_MOST_S, take_turns
from trikv.net.doors import Doors
from trikv.registry import load_registry
from trikv.storage.memory import MemoryStorage
from trikv.testing.inprocess import MemoryTransport
from trikv.testing.sharedstore import MemorySharedConfigStore, SharedState
from trikv.worker.worker import Worker

PATIENCE_S = 60.0


@dataclass
class One:
    """One master of several: its client of the store, and what it serves now."""

    name: str
    address: str
    store: MemorySharedConfigStore
    doors: Doors
    master: Master | None = None
    standing_by: bool = False
    led: int = 0  # times
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    async def stand_by(self) -> None:
        self.standing_by = True
        try:
            await trio.sleep_forever()
        finally:
            self.standing_by = False

    async def lead(self) -> None:
        master = await Master.open(self.store, load_registry(), self.doors, holds_lease=self.store.holds)
        listening = await self.doors.transport.listen(self.address)
        self.master, self.led = master, self.led + 1
        try:
            await master.run(listening)
        finally:
            self.master = None

    async def run(self, lead: Callable[[], Awaitable[None]] | None = None) -> None:
        me = Candidate(self.name, self.address, "127.0.0.1:1")
        with self.scope:
            await take_turns(
                self.store, me, stand_by=self.stand_by, lead=lead or self.lead, wall_clock=lambda: "2026-01-01"
            )


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 nothing notifies of several masters
            await trio.sleep(0.01)


class Several:
    """Masters of one cluster with three workers."""

    def __init__(self, nursery: trio.Nursery, count: int) -> None:
        self.state = SharedState()
        self.doors = Doors(transport=MemoryTransport())
        self.masters = [
            One(f"m{number}", f"127.0.0.1:{8000 + number}", self.state.client(), self.doors) for number in range(count)
        ]
        self._nursery = nursery

    async def start(self) -> None:
        for one in self.masters:
            self._nursery.start_soon(one.run)
        await until(lambda: self.leader is not None)
        for number in range(3):
            listening = await self.doors.transport.listen(f"127.0.0.1:{9000 + number}")
            worker = await Worker.open(f"w{number}", MemoryStorage(), "memory", self.doors)
            await self._nursery.start(worker.run, listening)
            assert self.leader is not None
            assert self.leader.master is not None
            await self.leader.master.enlisting.enlist(listening.address)

    @property
    def leader(self) -> One | None:
        return next((one for one in self.masters if one.master is not None), None)

    async def put(self, key: bytes, value: bytes) -> None:
        """Put at the present leader, as soon as one can."""
        with trio.fail_after(PATIENCE_S):
            while True:
                leader = self.leader
                if leader is not None and leader.master is not None:
                    try:
                        await leader.master.coordinator.put(key, value)
                        return
                    except TrikvError:
                        pass
                await trio.sleep(0.05)

    async def value_of(self, key: bytes) -> bytes | None:
        assert self.leader is not None
        assert self.leader.master is not None
        record = await self.leader.master.coordinator.get(key)
        return None if record is None else record.value


async def test_one_leads_the_others_stand_by_and_one_of_them_follows(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    several = Several(nursery, 3)
    await several.start()
    first = several.leader
    assert first is not None
    assert sum(one.standing_by for one in several.masters) == 2
    await several.put(KEYS[0], b"v")
    assert first.master is not None
    term = first.master.cluster.term

    began_s = trio.current_time()
    first.scope.cancel()  # a clean stop
    await until(lambda: several.leader not in (None, first))
    assert trio.current_time() - began_s < 1.0
    second = several.leader
    assert second is not None
    assert second is not first
    assert second.master is not None
    assert second.master.cluster.term == term + 1
    await several.put(KEYS[1], b"w")
    assert await several.value_of(KEYS[0]) == b"v"


async def test_a_leader_that_the_store_cannot_hear_is_followed_and_then_stands_by(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    several = Several(nursery, 2)
    await several.start()
    await several.put(KEYS[0], b"v")
    first = several.leader
    assert first is not None
    first.store.cut_off()
    second = next(one for one in several.masters if one is not first)
    await until(lambda: second.master is not None)
    assert not first.store.holds()
    with trio.fail_after(PATIENCE_S):
        while True:  # its links are new
            assert second.master is not None
            try:
                await second.master.coordinator.put(KEYS[0], b"w")
                break
            except TrikvError:
                await trio.sleep(0.05)
    first.store.mend()
    await until(lambda: first.standing_by)
    assert first.master is None
    assert second.led == 1


async def test_a_leader_goes_on_without_the_store_while_no_other_master_can_lead(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    several = Several(nursery, 2)
    await several.start()
    await several.put(KEYS[0], b"v")
    first = several.leader
    assert first is not None
    for one in several.masters:
        one.store.cut_off()
    await trio.sleep(20)
    assert first.master is not None
    await first.master.coordinator.put(KEYS[0], b"w")
    assert await several.value_of(KEYS[0]) == b"w"
    for one in several.masters:
        one.store.mend()
    await until(first.store.holds)
    await trio.sleep(10)
    assert [one.led for one in several.masters if one is not first] == [0]
    assert first.led == 1


@pytest.mark.parametrize("error", [ConfigConflict("taken over"), ConfigStoreError("unreadable")], ids=type)
async def test_a_master_that_cannot_take_the_document_stands_by_again(
    error: Exception, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Whatever becomes of it, the lead is free for others."""
    several = Several(nursery, 2)
    first, second = several.masters
    tried = 0

    async def lead() -> None:
        nonlocal tried
        tried += 1
        raise error

    nursery.start_soon(first.run, lead)
    await until(lambda: tried >= 2)
    nursery.start_soon(second.run)
    await until(lambda: second.master is not None)
    first.scope.cancel()


async def test_a_master_that_fails_whenever_it_leads_tries_ever_more_seldom_and_stands_by_meanwhile(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    [one] = Several(nursery, 1).masters
    tried_s = []

    async def lead() -> None:
        tried_s.append(trio.current_time())
        raise ConfigStoreError("another program's document")

    nursery.start_soon(one.run, lead)
    await until(lambda: len(tried_s) == 8)
    assert tried_s[1] - tried_s[0] < 1
    assert tried_s[7] - tried_s[6] >= AGAIN_MOST_S
    await trio.sleep(1)
    assert one.standing_by
    one.scope.cancel()


async def test_an_error_that_is_nobodys_turn_ends_the_process_and_frees_the_lead(autojump_clock: MockClock) -> None:
    state = SharedState()
    one = One("m", "127.0.0.1:8000", state.client(), Doors(transport=MemoryTransport()))

    async def lead() -> None:
        raise RuntimeError("a surprise")

    with pytest.RaisesGroup(RuntimeError, flatten_subgroups=True):
        await one.run(lead)
    assert state.leader is None
