"""The simulated store that masters share: what arrives late, whose lead it is, and for how long."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest
import trio

from trikv.master.configstore import ConfigConflict, ConfigStoreError, NotChanged
from trikv.master.leadership import Candidate
from trikv.testing.sim.clock import SimClock, run_repeatably
from trikv.testing.sim.disk import ConfigDisk
from trikv.testing.sim.network import Life, Network
from trikv.testing.sim.plan import STORE
from trikv.testing.sim.sharedstore import SimSharedConfigStore, StoreMachine
from trikv.testing.sim.trace import Trace

LEASE_S = 3.0


class Setting:
    """A store, and two masters with a client each."""

    def __init__(self, clock: SimClock, nursery: trio.Nursery) -> None:
        self.clock = clock
        self.network = Network(clock, Trace(wanted=False), 1, 0.01)
        self.machine = StoreMachine(ConfigDisk({"made by": "nobody"}, 0.001), LEASE_S, clock)
        self.network.add_host(STORE, "store:1")
        self.a, self.b = (self._client(name) for name in ("a", "b"))
        self._nursery = nursery

    def _client(self, name: str) -> SimSharedConfigStore:
        life = Life(self.network.add_host(name, f"{name}:1"), 1, random.Random(1))
        return SimSharedConfigStore(self.machine, life, self.network)

    async def run(self) -> None:
        for name, client in (("a", self.a), ("b", self.b)):
            await self._nursery.start(client.run, Candidate(name, f"{name}:1", ""))

    def hold(self, name: str) -> None:
        self.network.wire(name, STORE).hold()

    def release(self, name: str) -> None:
        self.network.wire(name, STORE).release()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 nothing notifies of it
        await trio.sleep(0.1)


def play(story: Callable[[Setting], Awaitable[None]]) -> None:
    clock = SimClock()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            setting = Setting(clock, nursery)
            await setting.run()
            await story(setting)
            nursery.cancel_scope.cancel()

    run_repeatably(main, clock, 1)


def test_a_change_that_waits_on_its_way_is_made_after_its_caller_gave_up() -> None:
    async def story(it: Setting) -> None:
        it.hold("a")
        with pytest.raises(ConfigStoreError):
            await it.a.compare_and_set({"made by": "a"}, 1)
        assert await it.b.read() == ({"made by": "nobody"}, 1)
        it.release("a")
        await trio.sleep(0.1)
        assert await it.b.read() == ({"made by": "a"}, 2)
        with pytest.raises(ConfigConflict):
            await it.b.compare_and_set({"made by": "b"}, 1)

    play(story)


def test_a_lease_that_nobody_renews_ends_after_its_owner_has_stopped_to_believe_in_it() -> None:
    async def story(it: Setting) -> None:
        assert await it.a.take_lead("")
        assert not await it.b.take_lead("")
        it.hold("a")
        believed_until_s = ended_s = 0.0
        while not ended_s:
            await trio.sleep(0.01)
            believed_until_s = trio.current_time() if it.a.holds() else believed_until_s
            ended_s = 0.0 if it.machine.leader else trio.current_time()
        assert believed_until_s < ended_s
        assert it.a.leads  # it has not heard
        assert await it.b.take_lead("")
        assert it.b.holds()
        it.release("a")
        await trio.sleep(1.5)
        assert not it.a.leads

    play(story)


def test_a_lead_that_nobody_took_is_had_again_if_nobody_changed_the_document() -> None:
    async def story(it: Setting) -> None:
        assert await it.a.take_lead("")
        await it.a.compare_and_set({"made by": "a"}, 1)
        for other_changes in (False, True):
            it.hold("a")
            await until(lambda: it.machine.leader is None)
            if other_changes:
                await it.b.compare_and_set({"made by": "b"}, 2)
            it.release("a")
            await trio.sleep(1.5)
            assert it.a.leads is not other_changes
            assert it.a.holds() is not other_changes

    play(story)


def test_giving_up_one_lease_late_does_not_end_the_next_one() -> None:
    async def story(it: Setting) -> None:
        assert await it.a.take_lead("")
        wire = it.network.wire("a", STORE)
        wire.late_s = 1.5 * LEASE_S
        await it.a.give_up_lead()
        wire.late_s = 0.0
        await until(lambda: it.machine.leader is None)
        assert await it.a.take_lead("")
        for _ in range(60):
            await trio.sleep(0.1)
            assert it.machine.leader is not None
        assert it.a.holds()

    play(story)


def test_a_store_that_is_down_answers_nothing_and_ends_no_lease() -> None:
    async def story(it: Setting) -> None:
        assert await it.a.take_lead("")
        it.machine.go_down(refuses=True)
        await trio.sleep(2 * LEASE_S)
        assert not it.a.holds()
        with pytest.raises(NotChanged):
            await it.a.compare_and_set({"made by": "a"}, 1)
        it.machine.come_up()
        assert it.machine.leader == Candidate("a", "a:1", "")
        await trio.sleep(1.5)
        assert it.a.holds()

    play(story)
