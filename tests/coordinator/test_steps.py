"""Stepping gives what tasks give: the same waits, errors and cancellations; and where it can, without a task for each.

`Script` is a small random program. Many of them run side by side, once as tasks of a nursery and once as `carry_out`
steps them, on virtual time. Both runs must give the same log.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trikv.coordinator import steps
from trikv.coordinator.replicas import NotEnough, Round
from trikv.coordinator.steps import carry_out

Log = list[tuple[float, int, str]]
Runner = Callable[[Sequence[Callable[[], Any]]], Awaitable[None]]

mark: ContextVar[int] = ContextVar("mark", default=-1)


class Oops(Exception):
    """What a script raises on purpose."""


async def as_tasks(works: Sequence[Callable[[], Any]]) -> None:
    async with trio.open_nursery() as nursery:
        for work in works:
            nursery.start_soon(work)


async def as_steps(works: Sequence[Callable[[], Any]]) -> None:
    await carry_out(works, at_once=1000)


class Script:
    """One coroutine that draws what it does next. All times differ, so that no two scripts act at one instant."""

    def __init__(self, number: int, seed: int, log: Log, world: trio.Nursery, *, may_raise: bool) -> None:
        self.number = number
        self.log = log
        self.dice = random.Random(seed * 1000 + number)
        self.world = world
        self.delays = 0
        self.may_raise = may_raise

    def note(self, what: str) -> None:
        self.log.append((round(trio.current_time(), 8), self.number, what))

    def delay_s(self) -> float:
        self.delays += 1
        return self.dice.randrange(1, 2000) / 1000 + self.number / 1e5 + self.delays / 1e7

    async def run(self) -> None:
        mark.set(self.number)
        try:
            await self.round(at_once=False)
            for _ in range(self.dice.randrange(6)):
                await self.act(self.dice.choice(self.acts()))
        except trio.Cancelled:
            self.note("cancelled")
            with trio.CancelScope(shield=True):
                await self.round()  # the end of a strategy that cleans up
            raise
        finally:
            assert mark.get() == self.number
            self.note("end")

    def acts(self) -> list[str]:
        return ["round"] * 6 + ["patient", "lost", "sleep", "scope", "late", "nursery", "checkpoint"] + (
            ["raise"] if self.may_raise else []
        )  # fmt: skip

    async def act(self, what: str) -> None:
        self.note(what)
        match what:
            case "round":
                await self.round()
            case "patient":
                self.note(f"won {await self.start_round().wait(self.delay_s())}")
            case "lost":
                with pytest.raises(NotEnough):
                    await self.start_round(fails=True).wait()
            case "sleep":
                await trio.sleep(self.delay_s())
            case "scope":
                with trio.CancelScope():
                    await self.round()
            case "late":
                with trio.move_on_after(self.delay_s()) as scope:
                    await self.round()
                self.note(f"late {scope.cancelled_caught}")
            case "nursery":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.round)
                    nursery.start_soon(self.round)
                    await self.round()
            case "checkpoint":
                await trio.lowlevel.checkpoint()
            case "raise":
                raise Oops(str(self.number))

    async def round(self, *, at_once: bool = True) -> None:
        won = await self.start_round(at_once=at_once).wait()
        self.note(f"won {won}")

    def start_round(self, *, at_once: bool = True, fails: bool = False) -> Round:
        """A round that the world decides after a while; now and then it is decided at once."""
        round_ = Round(1, 1, lambda promised: None)
        decide = round_.note_failure if fails else round_.note_ack
        if at_once and not self.dice.randrange(4):
            decide()
        else:
            self.world.start_soon(decide_in, self.delay_s(), decide)
        return round_


async def decide_in(delay_s: float, decide: Callable[[], None]) -> None:
    await trio.sleep(delay_s)
    decide()


async def logged(run: Runner, seed: int, *, cancelled_at_s: float | None, may_raise: bool) -> tuple[Log, list[str]]:
    """What 20 scripts did and when, and what was raised."""
    log: Log = []
    raised: list[str] = []
    began_s = trio.current_time()
    with trio.fail_after(1000):
        async with trio.open_nursery() as world:
            scripts = [Script(number, seed, log, world, may_raise=may_raise) for number in range(20)]
            with trio.CancelScope() as scope:
                if cancelled_at_s is not None:
                    scope.deadline = began_s + cancelled_at_s
                try:
                    await run([script.run for script in scripts])
                except* Oops as group:
                    raised = [str(error) for error in group.exceptions]
            log.append((round(trio.current_time(), 8), -1, f"over {scope.cancelled_caught}"))
    return sorted((round(at_s - began_s, 8), number, what) for at_s, number, what in log), raised


@pytest.mark.parametrize("seed", range(60))
async def test_tasks_and_steps_do_the_same(autojump_clock: MockClock, seed: int) -> None:
    dice = random.Random(seed)
    cancelled_at_s = dice.choice((None, dice.randrange(1, 5000) / 1000 + 5e-6))
    may_raise = seed % 3 == 0
    by_tasks = await logged(as_tasks, seed, cancelled_at_s=cancelled_at_s, may_raise=may_raise)
    by_steps = await logged(as_steps, seed, cancelled_at_s=cancelled_at_s, may_raise=may_raise)
    assert by_steps == by_tasks


@pytest.mark.parametrize("seed", range(5))
async def test_a_trio_without_a_note_of_scopes_gives_each_a_task(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    by_tasks = await logged(as_tasks, seed, cancelled_at_s=None, may_raise=False)
    monkeypatch.setattr(steps, "_scopes_of", lambda task: None)
    assert await logged(as_steps, seed, cancelled_at_s=None, may_raise=False) == by_tasks


class Spawned(trio.abc.Instrument):
    """How many tasks were started."""

    count = 0

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


@pytest.mark.parametrize("patience_s", [None, 1.0])
async def test_rounds_cost_one_task_for_all(autojump_clock: MockClock, patience_s: float | None) -> None:
    rounds = [Round(1, 1, lambda promised: None) for _ in range(64)]
    won: list[bool] = []

    async def work(round_: Round) -> None:
        won.append(await round_.wait(patience_s))

    async with trio.open_nursery() as nursery:
        spawned = Spawned()
        trio.lowlevel.add_instrument(spawned)
        nursery.start_soon(partial(carry_out, [partial(work, round_) for round_ in rounds], at_once=64))
        await trio.sleep(0.5)
        for round_ in rounds:
            round_.note_ack()
    trio.lowlevel.remove_instrument(spawned)
    assert won == [True] * 64
    assert spawned.count == 2  # that of `carry_out`, and the host


@pytest.mark.parametrize("at_once", [1, 7, 30])
async def test_no_more_than_wanted_are_under_way(autojump_clock: MockClock, at_once: int) -> None:
    under_way = most = done = 0

    async def work(number: int) -> None:
        nonlocal under_way, most, done
        under_way += 1
        most = max(most, under_way)
        round_ = Round(1, 1, lambda promised: None)
        nursery.start_soon(decide_in, 0.1, round_.note_ack)
        await round_.wait()
        if number % 3 == 0:
            await trio.sleep(1)
        under_way -= 1
        done += 1

    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            await carry_out([partial(work, number) for number in range(30)], at_once=at_once)
    assert (under_way, most, done) == (0, at_once, 30)


async def test_nothing_to_do_is_done_at_once() -> None:
    await carry_out([], at_once=1)
