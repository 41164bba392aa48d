"""Key locks: who waits for whom, against a plain model, with cancellations in between."""

from __future__ import annotations

import random
from collections import deque

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trikv.coordinator.locks import KeyLocks

KEY = b"k"


class Crowd:
    """Tasks that want a key and hold it until they are told to go; `holding` says who has it."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.locks = KeyLocks()
        self.holding: set[int] = set()
        self._nursery = nursery
        self._go: dict[int, trio.Event] = {}
        self._scopes: dict[int, trio.CancelScope] = {}

    async def come(self, who: int, *, exclusive: bool, key: bytes = KEY) -> None:
        self._go[who], self._scopes[who] = trio.Event(), trio.CancelScope()
        self._nursery.start_soon(self._want, who, exclusive, key)
        await wait_all_tasks_blocked()

    async def _want(self, who: int, exclusive: bool, key: bytes) -> None:
        with self._scopes[who]:
            with await self.locks.hold(key, exclusive=exclusive):
                self.holding.add(who)
                try:
                    await self._go[who].wait()
                finally:
                    self.holding.discard(who)

    async def leave(self, who: int) -> None:
        self._go[who].set()
        await wait_all_tasks_blocked()

    async def give_up(self, who: int) -> None:
        """Cancel it, whether it holds or waits."""
        self._scopes[who].cancel()
        await wait_all_tasks_blocked()


@pytest.fixture
def crowd(nursery: trio.Nursery) -> Crowd:
    return Crowd(nursery)


async def test_sharers_share_and_the_exclusive_one_is_alone(crowd: Crowd) -> None:
    await crowd.come(1, exclusive=False)
    await crowd.come(2, exclusive=False)
    await crowd.come(3, exclusive=True)
    assert crowd.holding == {1, 2}
    await crowd.leave(1)
    assert crowd.holding == {2}
    await crowd.leave(2)
    assert crowd.holding == {3}
    await crowd.come(4, exclusive=True)
    await crowd.leave(3)
    assert crowd.holding == {4}
    await crowd.leave(4)
    assert len(crowd.locks) == 0


async def test_a_stream_of_sharers_does_not_starve_the_exclusive_one(crowd: Crowd) -> None:
    await crowd.come(1, exclusive=False)
    await crowd.come(2, exclusive=True)
    await crowd.come(3, exclusive=False)
    assert crowd.holding == {1}
    await crowd.leave(1)
    assert crowd.holding == {2}
    await crowd.leave(2)
    assert crowd.holding == {3}
    await crowd.leave(3)


async def test_who_gives_up_in_the_queue_lets_those_behind_it_go(crowd: Crowd) -> None:
    await crowd.come(1, exclusive=False)
    await crowd.come(2, exclusive=True)
    await crowd.come(3, exclusive=False)
    await crowd.come(4, exclusive=False)
    await crowd.give_up(2)
    assert crowd.holding == {1, 3, 4}
    for who in (1, 3, 4):
        await crowd.leave(who)
    assert len(crowd.locks) == 0


async def test_a_cancelled_holder_releases(crowd: Crowd) -> None:
    await crowd.come(1, exclusive=True)
    await crowd.come(2, exclusive=True)
    await crowd.give_up(1)
    assert crowd.holding == {2}
    await crowd.leave(2)
    assert len(crowd.locks) == 0


async def test_cancelled_in_the_instant_in_which_it_got_the_lock_it_does_not_keep_it(crowd: Crowd) -> None:
    await crowd.come(1, exclusive=True)
    await crowd.come(2, exclusive=True)
    crowd._go[1].set()
    crowd._scopes[2].cancel()
    await wait_all_tasks_blocked()
    await crowd.come(3, exclusive=True)
    assert crowd.holding == {3}
    await crowd.leave(3)
    assert len(crowd.locks) == 0


async def test_keys_do_not_wait_for_each_other(crowd: Crowd) -> None:
    await crowd.come(1, exclusive=True, key=b"a")
    await crowd.come(2, exclusive=True, key=b"b")
    assert crowd.holding == {1, 2}
    assert len(crowd.locks) == 2
    for who in (1, 2):
        await crowd.leave(who)


class Model:
    """First come, first served, on a list."""

    def __init__(self) -> None:
        self.holders: dict[int, bool] = {}
        self.queue: deque[tuple[int, bool]] = deque()

    def come(self, who: int, exclusive: bool) -> None:
        self.queue.append((who, exclusive))
        self._admit()

    def go(self, who: int) -> None:
        self.holders.pop(who, None)
        self.queue = deque(entry for entry in self.queue if entry[0] != who)
        self._admit()

    def _admit(self) -> None:
        while self.queue:
            who, exclusive = self.queue[0]
            if self.holders and (exclusive or any(self.holders.values())):
                return
            self.queue.popleft()
            self.holders[who] = exclusive


@pytest.mark.parametrize("seed", range(20))
async def test_any_coming_and_going_is_as_in_the_model(crowd: Crowd, seed: int) -> None:
    dice = random.Random(seed)
    model = Model()
    present: list[int] = []
    for who in range(60):
        exclusive = dice.random() < 0.4
        await crowd.come(who, exclusive=exclusive)
        model.come(who, exclusive)
        present.append(who)
        while present and dice.random() < 0.5:
            goer = present.pop(dice.randrange(len(present)))
            await (crowd.leave(goer) if goer in crowd.holding and dice.random() < 0.5 else crowd.give_up(goer))
            model.go(goer)
            assert crowd.holding == set(model.holders), f"seed {seed}"
        assert crowd.holding == set(model.holders), f"seed {seed}"
    for who in present:
        await crowd.give_up(who)
        model.go(who)
        assert crowd.holding == set(model.holders), f"seed {seed}"
    assert len(crowd.locks) == 0
