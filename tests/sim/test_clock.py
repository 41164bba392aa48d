"""The simulated world's clock: its own sleep, and what still gets in from outside."""

from __future__ import annotations

import signal

import pytest
import trio

from trikv.testing.sim.clock import TICKS_PER_S, SimClock, Stopped, run_repeatably, sleep


def test_a_sleeper_wakes_at_the_first_tick_that_is_not_too_early() -> None:
    async def main() -> list[float]:
        woke_s = []
        for delay_s in (0.0, 0.3, 10.0):
            began_s = trio.current_time()
            await sleep(delay_s)
            woke_s.append(trio.current_time() - began_s - delay_s)
        return woke_s

    for late_s in run_repeatably(main, SimClock(), 1):
        assert 0 <= late_s <= 1 / TICKS_PER_S


def test_a_sleeper_that_was_cancelled_is_not_woken_later() -> None:
    async def main() -> float:
        with trio.move_on_after(1):
            await sleep(2)
        assert trio.current_time() < 2
        await sleep(5)  # would end at 2, were the first one's alarm still set
        return trio.current_time()

    assert run_repeatably(main, SimClock(), 1) >= 6


def test_the_keyboard_interrupts_a_run_though_it_seldom_asks_for_news() -> None:
    clock = SimClock()

    async def others() -> None:
        while clock.now_s < 10_000:
            await sleep(1)

    async def main() -> None:
        clock.after(1, lambda: signal.raise_signal(signal.SIGINT))  # in Trio's own code, which puts it off
        trio.lowlevel.spawn_system_task(others)
        with trio.move_on_after(20_000):
            await trio.sleep_forever()

    # A shell that starts this in the background has it ignore the keyboard.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_repeatably(main, clock, 1)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert clock.now_s < 1_000


def test_tasks_that_are_stopped_go_on_where_they_were_with_late_timers() -> None:
    clock = SimClock()
    happened: list[tuple[str, float]] = []

    async def tick(name: str, scope: trio.CancelScope) -> None:
        with scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                for _ in range(3):
                    await trio.sleep(1)
                    happened.append((name, trio.current_time()))
                nursery.cancel_scope.cancel()

    async def main() -> None:
        stopped_scope = trio.CancelScope()
        held: list[Stopped] = []
        clock.at(1.5, lambda: held.append(Stopped(stopped_scope)))
        clock.at(10.0, lambda: held[0].resume())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick, "stopped", stopped_scope)
            nursery.start_soon(tick, "other", trio.CancelScope())

    run_repeatably(main, clock, 1)
    assert [round(at_s) for name, at_s in happened if name == "other"] == [1, 2, 3]
    assert [round(at_s) for name, at_s in happened if name == "stopped"] == [1, 10, 11]
