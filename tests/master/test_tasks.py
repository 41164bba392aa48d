"""The tasks that outlive their caller: what becomes of them, and what the caller is told."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from trikv.core.errors import Refused, Unknown
from trikv.master.tasks import Tasks


async def answer() -> str:
    await trio.sleep(1)
    return "done"


async def test_the_caller_gets_what_the_operation_answers_or_raises(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    tasks = Tasks()
    await nursery.start(tasks.run)
    assert await tasks.run_detached(answer) == "done"

    async def fail() -> None:
        await trio.sleep(1)
        raise Refused("conflict", "no")

    with pytest.raises(Refused, match="no"):
        await tasks.run_detached(fail)
    assert await tasks.run_detached(answer) == "done", "one that failed has ended nothing else"
    nursery.cancel_scope.cancel()


async def test_an_operation_goes_on_when_its_caller_is_gone(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    tasks = Tasks()
    await nursery.start(tasks.run)
    ended = trio.Event()

    async def operation() -> None:
        await trio.sleep(1)
        ended.set()

    with trio.move_on_after(0.5) as caller:
        await tasks.run_detached(operation)
    assert caller.cancelled_caught
    assert not ended.is_set()
    with trio.fail_after(1):
        await ended.wait()
    nursery.cancel_scope.cancel()


async def test_a_caller_that_gives_up_is_told_and_the_operation_goes_on(
    nursery: trio.Nursery, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = Tasks()
    await nursery.start(tasks.run)
    ended = trio.Event()

    async def operation() -> None:
        await trio.sleep(2)
        ended.set()
        raise Refused("conflict", "it came to nothing")

    async def lose_patience() -> Unknown:
        await trio.sleep(1)
        return Unknown("the disk is slow")

    async def have_patience() -> Unknown:
        await trio.sleep_forever()

    with pytest.raises(Unknown, match="the disk is slow"):
        await tasks.run_detached(operation, give_up=lose_patience)
    assert not ended.is_set()
    with trio.fail_after(2):
        await ended.wait()
    assert await tasks.run_detached(answer, give_up=have_patience) == "done"
    assert "it came to nothing" in caplog.text, "nobody else hears of it"
    nursery.cancel_scope.cancel()


async def test_an_error_that_nobody_waits_for_is_logged(
    nursery: trio.Nursery, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = Tasks()
    await nursery.start(tasks.run)

    async def operation() -> None:
        await trio.sleep(1)
        raise KeyError("nothing has this key")

    with trio.move_on_after(0.5):
        await tasks.run_detached(operation)
    await trio.sleep(1)
    assert "nothing has this key" in caplog.text
    nursery.cancel_scope.cancel()


async def test_what_is_under_way_when_the_master_stops_is_unknown_and_nothing_begins_any_more(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    tasks = Tasks()
    scope = trio.CancelScope()

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        with scope:
            await tasks.run(task_status=task_status)

    await nursery.start(run)
    nursery.start_soon(_cancel_after, scope, 0.5)
    with pytest.raises(Unknown, match="stopped while this was under way"):
        await tasks.run_detached(answer)
    with pytest.raises(Refused, match="shutting down"):
        await tasks.run_detached(answer)


async def _cancel_after(scope: trio.CancelScope, delay_s: float) -> None:
    await trio.sleep(delay_s)
    scope.cancel()


async def test_before_the_master_serves_nothing_is_begun(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    tasks = Tasks()
    begun: list[str] = []

    async def begin(name: str) -> None:
        begun.append(name)

    tasks.start_soon(begin, "too early")
    with pytest.raises(Refused):
        await tasks.run_detached(answer)
    await nursery.start(tasks.run)
    tasks.start_soon(begin, "in time")
    await trio.testing.wait_all_tasks_blocked()
    assert begun == ["in time"]
    nursery.cancel_scope.cancel()
