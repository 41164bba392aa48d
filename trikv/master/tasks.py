"""The tasks of one master that outlive the caller that began them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from trikv.core.errors import Refused, Unknown

T = TypeVar("T")


class Tasks:
    """They end with the nursery that `run` opens."""

    def __init__(self) -> None:
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None  # what comes later is not begun

    def start_soon(self, run: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Have this done beside all else, for as long as this master serves; not at all before it does."""
        if self._nursery is not None:
            self._nursery.start_soon(run, *arguments)

    async def run_detached(
        self, operation: Callable[[], Awaitable[T]], *, give_up: Callable[[], Awaitable[str]] | None = None
    ) -> T:
        """Run `operation` to its end, whatever becomes of the caller meanwhile.

        A client that goes away cancels the task that waits for its answer; a write that has begun goes on. So it does
        if the caller waits no longer, which is when `give_up` returns why.

        Raises:
          Unknown: the caller waits no longer, or the master was stopped.
        """
        results: list[T] = []
        errors: list[Exception] = []
        finished = trio.Event()

        async def run() -> None:
            try:
                results.append(await operation())
            except Exception as error:  # noqa: BLE001 it is raised where the caller waits
                errors.append(error)
            finally:
                finished.set()

        if self._nursery is None or self._nursery.cancel_scope.cancel_called:
            raise Refused("stopping", "the master is shutting down")
        self._nursery.start_soon(run)
        if give_up is None:
            await finished.wait()
        else:
            why = await _first(finished, give_up)
            if why is not None:
                raise Unknown(f"{why}; what was asked for goes on")
        if errors:
            raise errors[0]
        if not results:
            raise Unknown("the master was stopped while this was under way")
        return results[0]


async def _first(finished: trio.Event, give_up: Callable[[], Awaitable[str]]) -> str | None:
    """Why the caller waits no longer, or None once it has finished."""
    reasons: list[str] = []
    async with trio.open_nursery() as nursery:

        async def wait_for_reason() -> None:
            reasons.append(await give_up())
            nursery.cancel_scope.cancel()

        nursery.start_soon(wait_for_reason)
        await finished.wait()
        nursery.cancel_scope.cancel()
    return None if finished.is_set() else reasons[0]
