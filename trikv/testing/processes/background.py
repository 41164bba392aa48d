"""Trio beside code that is not: an event loop in a thread of its own, for as long as a `with` block lasts.

Whoever controls processes blocks: it waits for a child to die, sleeps, asks again. Meanwhile clients must go on asking,
and proxies must go on passing bytes. So those run here, and whoever controls calls over.

    with Background() as background:
        background.spawn(serve)               # a task of this loop
        background.call(proxy.cut)            # a plain function, carried out in the loop; its result

An error of a task ends the loop, and is raised at the end of the block, or by the next call. Ctrl-C goes to the main
thread, so the block ends as any other would. Costs a thread; the two share one interpreter, so what is spawned here
should be light.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import trio

T = TypeVar("T")


class Background:
    """See above. `call` and `spawn` may come from any thread but that of the loop."""

    def __init__(self) -> None:
        self._thread = threading.Thread(target=self._run, name="trikv-background", daemon=True)
        self._ready = threading.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._nursery: trio.Nursery | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if error is None:
            self._raise_if_failed()

    def open(self) -> None:
        """Begin; for those who cannot use a `with` block."""
        self._thread.start()
        self._ready.wait()

    def close(self) -> None:
        """End all tasks, and the thread. Never raises."""
        with contextlib.suppress(trio.RunFinishedError):  # it ended by itself; `__exit__` says why
            self.call(self._cancel)
        self._thread.join()

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Carry out a plain function in the loop.

        Raises:
          trio.RunFinishedError: the loop has ended.
        """
        assert self._token is not None, "it is used as a context manager"
        return trio.from_thread.run_sync(function, *arguments, trio_token=self._token)

    def run(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Carry out an async function in the loop, and wait for its end."""
        assert self._token is not None, "it is used as a context manager"
        return trio.from_thread.run(function, *arguments, trio_token=self._token)

    def spawn(self, function: Callable[..., Awaitable[object]], *arguments: Any) -> None:
        """Start a task, which lasts until it ends or the block does."""
        assert self._nursery is not None, "it is used as a context manager"
        self.call(self._nursery.start_soon, function, *arguments)

    def start(self, function: Callable[..., Awaitable[object]], *arguments: Any) -> Any:
        """Start a task, and return what it says once it has started (`task_status.started`)."""
        assert self._nursery is not None, "it is used as a context manager"
        return self.run(self._nursery.start, function, *arguments)

    def _cancel(self) -> None:
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:  # noqa: BLE001 it is raised where the block ends
            self._error = error
        finally:
            self._ready.set()

    async def _main(self) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery, self._token = nursery, trio.lowlevel.current_trio_token()
            self._ready.set()
            await trio.sleep_forever()

    def _raise_if_failed(self) -> None:
        if self._error is not None:
            raise self._error
