"""Signals: who is woken, for how long one waits, and that nothing is left of those that waited."""

from __future__ import annotations

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trikv.net.signal import Signal, wait_any


async def test_all_that_wait_are_told_and_none_that_comes_later(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    signal = Signal()
    told: list[str] = []

    async def wait(name: str) -> None:
        await signal.wait()
        told.append(name)

    nursery.start_soon(wait, "one")
    nursery.start_soon(wait, "two")
    await wait_all_tasks_blocked()
    signal.notify()
    nursery.start_soon(wait, "late")
    await wait_all_tasks_blocked()
    assert sorted(told) == ["one", "two"]
    signal.notify()
    await wait_all_tasks_blocked()
    assert "late" in told


async def test_a_signal_given_before_one_waits_is_not_kept_but_counted(autojump_clock: MockClock) -> None:
    signal = Signal()
    signal.notify()
    signal.notify()
    assert signal.count == 2
    began_s = trio.current_time()
    await signal.wait(0.5)
    assert trio.current_time() - began_s == 0.5


async def test_one_that_waits_again_at_once_waits_for_the_next(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Those that are told wait again while others are still being told."""
    signal = Signal()
    rounds = 0

    async def wait() -> None:
        nonlocal rounds
        while True:
            await signal.wait()
            rounds += 1

    nursery.start_soon(wait)
    for expected in (1, 2, 3):
        await wait_all_tasks_blocked()
        signal.notify()
        await wait_all_tasks_blocked()
        assert rounds == expected
    nursery.cancel_scope.cancel()


async def test_any_of_several_wakes_and_none_keeps_what_waited(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    first, second = Signal(), Signal()
    for given in (first, second):
        nursery.start_soon(_give_after, given, 1.0)
        began_s = trio.current_time()
        await wait_any((first, second), 5.0)
        assert trio.current_time() - began_s == 1.0
    await wait_any((first, second), 0.5)
    with trio.move_on_after(0.5):
        await wait_any((first, second))
    assert not first._waiting
    assert not second._waiting


async def _give_after(signal: Signal, delay_s: float) -> None:
    await trio.sleep(delay_s)
    signal.notify()
