"""The tasks of one master that outlive the caller that began them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from trikv.core.errors import Refused, TrikvError, Unknown

T = TypeVar("T")

_log = logging.getLogger(__name__)


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
        self, operation: Callable[[], Awaitable[T]], *, give_up: Callable[[], Awaitable[TrikvError]] | None = None
    ) -> T:
        """Run `operation` to its end, whatever becomes of the caller meanwhile.

        A client that goes away cancels the task that waits for its answer; a write that has begun goes on. So it does
        if the caller waits no longer, which is when `give_up` returns what is raised. What `operation` raises then, it
        raises for nobody, and the log has it.

        Raises:
          Unknown: the master was stopped.
          TrikvError: see `give_up`.
        """
        results: list[T] = []
        errors: list[Exception] = []
        finished = trio.Event()
        gave_up = gone = False

        async def run() -> None:
            try:
                results.append(await operation())
            except Exception as error:  # noqa: BLE001 it is raised where the caller waits
                errors.append(error)
                if gone and not isinstance(error, TrikvError):
                    _log.exception("an operation whose caller waits no longer failed")
                elif gave_up:
                    _log.warning("an operation whose caller waits no longer ended otherwise: %s", error)
            finally:
                finished.set()

        if self._nursery is None or self._nursery.cancel_scope.cancel_called:
            raise Refused("stopping", "the master is shutting down")
        self._nursery.start_soon(run)
        try:
            told = await _first(finished, give_up)
            gave_up = isinstance(told, Unknown)
        finally:
            gone = not finished.is_set()
        if told is not None:
            raise told
        if errors:
            raise errors[0]
        if not results:
            raise Unknown("the master was stopped while this was under way")
        return results[0]


async def _first(finished: trio.Event, give_up: Callable[[], Awaitable[TrikvError]] | None) -> TrikvError | None:
    """What the caller is told that waits no longer, or None once it has finished."""
    if give_up is None:
        await finished.wait()
        return None
    told: list[TrikvError] = []
    async with trio.open_nursery() as nursery:

        async def wait_to_give_up(give_up: Callable[[], Awaitable[TrikvError]] = give_up) -> None:
            told.append(await give_up())
            nursery.cancel_scope.cancel()

        nursery.start_soon(wait_to_give_up)
        await finished.wait()
        nursery.cancel_scope.cancel()
    return None if finished.is_set() else told[0]
