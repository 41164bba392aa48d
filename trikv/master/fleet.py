"""The workers that this master started: founded with it, added by its autoscaler, adopted from the master before it.

Each has a number and a directory of that name. At its start a master goes on with the workers of which there is a
directory, and starts further ones until there are as many as it is to found. A worker that does not start then is
reported and tried again, after a pause that doubles, `TRIES_MAX` times in all. All of them end with the master and keep
what they hold.

A worker whose process has ended stays one of the fleet, and is not started again by itself: its partitions heal on the
workers that there are, and whoever broke it on purpose wants to see that. It is started again when that is asked for
(`breaking.py`), and with the next master. One that an operator has removed from the cluster is forgotten with its
directory, once its process is gone.

The provisioner is a stranger's code: whatever it raises, and however long it takes, ends nothing here. Its calls for
one worker come one at a time; what is asked meanwhile is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from trikv.api import Provisioner, WorkerOrder
from trikv.core.breaking import BreakKind, ProcessState
from trikv.core.errors import Refused, Unknown
from trikv.master.document import Document
from trikv.master.events import EventLog
from trikv.master.tasks import Tasks

TICK_S: Final = 1.0
START_S: Final = 60.0  # for a provisioner to start a worker, or to say that it cannot
STOP_S: Final = 30.0  # for it to stop, pause or kill one
CLOSE_S: Final = 30.0  # for it to stop all of them
STARTS_AT_ONCE: Final = 4  # each keeps a core busy for half a second
RETRY_S: Final = 1.0  # after the first failure to start one; that of a killed master may still be ending
TRIES_MAX: Final = 6

_log = logging.getLogger(__name__)

T = TypeVar("T")


class WorkerNotStarted(Exception):
    """A provisioner has not started a worker; the message says why."""


class Fleet:
    """
    Args:
      founding: so many workers there are to be at the start.
      master: this master's RPC address, with which workers enlist.
      directory: below which each worker has a directory of its own.
      storage: the engine of workers that are started.
      first_port: where the first one is to listen, the next ones following; 0: anywhere.
    """

    def __init__(
        self,
        document: Document,
        events: EventLog,
        provisioner: Provisioner,
        *,
        founding: int,
        master: str,
        directory: Path,
        storage: str,
        first_port: int,
    ) -> None:
        self.own: dict[int, str] = {}  # worker ids, by number
        self._numbers: dict[str, int] = {}  # the other way round
        self.waiting: set[int] = set()  # numbers of those that the master's start is to bring, and has not yet
        self.failed: dict[int, str] = {}  # why a worker did not start, by number
        self._document = document
        self._events = events
        self._provisioner = provisioner
        self._founding = founding
        self._master = master
        self._directory = directory
        self._storage = storage
        self._first_port = first_port
        self._tasks = Tasks()
        self._busy: dict[int, str] = {}  # what is being done, by number
        self._failures: dict[int, int] = {}  # in a row
        self._enlisted: set[int] = set()  # those that have been seen in the document

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; then all workers of the fleet are stopped, and keep what they hold."""
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._tasks.run)
                self.waiting.update(self._numbers_at_start())
                task_status.started()
                limiter = trio.CapacityLimiter(STARTS_AT_ONCE)
                for number in sorted(self.waiting):
                    nursery.start_soon(self._bring, number, limiter)
                while True:
                    await trio.sleep(TICK_S)
                    await self._forget_removed()
        finally:
            with trio.move_on_after(CLOSE_S, shield=True):
                try:
                    await self._provisioner.close()
                except Exception as error:  # noqa: BLE001 a provisioner is a stranger's code
                    _log.error("provisioner %s failed in close: %r", self._provisioner.name, error)

    def describe(self) -> dict[str, Any]:
        """As a part of the cluster's state."""
        return {
            "provisioner": self._provisioner.name,
            "own": [self.own[number] for number in sorted(self.own)],
            "waiting": len(self.waiting),
            "failed": [{"number": number, "why": why} for number, why in sorted(self.failed.items())],
        }

    # --- starting and stopping ----------------------------------------------------------------------------------------

    async def start_another(self) -> int:
        """Start one worker more; its number.

        Raises:
          WorkerNotStarted: see there.
        """
        number = max([*self.own, *self.waiting, *self._busy, self._founding], default=0) + 1
        while _is_in_the_way(self._directory / str(number)):
            number += 1
        try:
            await self._detached(number, "started", partial(self._start, number))
        except Refused as error:
            raise WorkerNotStarted(error.detail) from error
        return number

    async def stop(self, number: int) -> bool:
        """Stop a worker that holds nothing, for good. False: something else is being done with it, so not yet."""
        worker = self.own[number]
        try:
            await self._detached(number, "stopped", partial(self._stop, number))
        except Refused as error:
            _log.warning("worker %s holds nothing, and is not stopped yet: %s", worker, error.detail)
            return False
        return True

    async def _bring(self, number: int, limiter: trio.CapacityLimiter) -> None:
        """Start a worker that is to be there from the beginning."""
        try:
            for attempt in range(TRIES_MAX):
                if attempt:
                    await trio.sleep(RETRY_S * 2 ** (attempt - 1))
                async with limiter:
                    try:
                        with self._claim(number, "started"):
                            await self._start(number)
                    except WorkerNotStarted:
                        continue
                return
        finally:
            self.waiting.discard(number)

    async def _start(self, number: int) -> None:
        port = self._first_port + number - 1 if self._first_port else 0
        order = WorkerOrder(number, self._master, self._directory / str(number), self._storage, port)
        try:
            with trio.fail_after(START_S):
                worker: object = await self._provisioner.start(order)
            if not isinstance(worker, str) or not worker:
                raise TypeError(f"start answered {worker!r}, which is no id of a worker")
        except Exception as error:
            why = self.failed[number] = _told(error)
            failures = self._failures[number] = self._failures.get(number, 0) + 1
            _log.warning("a worker could not be started (%d in a row): %s", failures, why)
            self._events.note("worker_start_failed", failures=failures, why=why)
            raise WorkerNotStarted(why) from error
        self.failed.pop(number, None)
        self._failures.pop(number, None)
        self._numbers.pop(self.own.get(number, ""), None)
        self.own[number] = worker
        self._numbers[worker] = number
        self._enlisted.discard(number)
        self._events.note("worker_started", worker=worker)

    async def _stop(self, number: int) -> None:
        worker = self.own.pop(number)
        self._numbers.pop(worker, None)
        self._enlisted.discard(number)
        try:
            with trio.fail_after(STOP_S):
                await self._provisioner.stop(number)
        except Exception as error:  # noqa: BLE001 as above
            _log.warning("worker %s holds nothing, and could not be stopped: %s", worker, _told(error))
        self._events.note("worker_stopped", worker=worker)

    async def _forget_removed(self) -> None:
        """Those that were in the cluster, and have been taken out of it."""
        workers = self._document.cluster.workers
        for number, worker in list(self.own.items()):
            if worker in workers:
                self._enlisted.add(number)
            elif number in self._enlisted and self.process_of(worker)[0] is ProcessState.GONE:
                await self.stop(number)

    def _numbers_at_start(self) -> list[int]:
        """Of each worker of which a directory is left, and of so many more as are to be founded."""
        try:
            names = [path.name for path in self._directory.iterdir()]
        except FileNotFoundError:
            names = []
        except OSError as error:
            _log.warning("the workers of the master before this one cannot be found: %s", error)
            names = []
        numbers = {int(name) for name in names if name.isascii() and name.isdecimal() and name == str(int(name))}
        numbers.discard(0)
        number = 1
        while len(numbers) < self._founding:
            numbers.add(number)
            number += 1
        return sorted(numbers)

    # --- breaking -----------------------------------------------------------------------------------------------------

    def process_of(self, worker: str) -> tuple[ProcessState, int | None]:
        """What the worker's process does, and its pid."""
        number = self._numbers.get(worker)
        if number is None or not self._provisioner.can_break:
            return ProcessState.FOREIGN, None
        try:
            process = self._provisioner.process(number)
            if process is None:
                return ProcessState.GONE, None
            return ProcessState.PAUSED if process.paused else ProcessState.RUNNING, int(process.pid)
        except Exception as error:  # noqa: BLE001 a provisioner is a stranger's code
            _log.warning(
                "provisioner %s cannot tell how worker %s is: %s", self._provisioner.name, worker, _told(error)
            )
            return ProcessState.FOREIGN, None

    async def do(self, kind: BreakKind, worker: str) -> str:
        """Pause, resume, kill or start a worker's process. Answers the worker's id, which a new start may change.

        Raises:
          Refused: the provisioner says that it cannot, or something is being done with that worker.
          Unknown: it did not answer, or failed otherwise.
        """
        number = self._numbers[worker]
        if kind is BreakKind.START:
            try:
                await self._detached(number, "started", partial(self._start, number))
            except WorkerNotStarted as error:
                raise Refused("conflict", f"worker {worker} did not start: {error}") from error
            return self.own[number]
        calls = {
            BreakKind.PAUSE: self._provisioner.pause,
            BreakKind.RESUME: self._provisioner.resume,
            BreakKind.KILL: self._provisioner.kill,
        }

        async def call() -> None:
            with trio.fail_after(STOP_S):
                await calls[kind](number)

        try:
            await self._detached(number, _DOING[kind], call)
        except OSError as error:
            raise Refused("conflict", f"worker {worker} was not {_DOING[kind]}: {_told(error)}") from error
        except (Refused, Unknown):
            raise
        except Exception as error:
            raise Unknown(f"whether worker {worker} was {_DOING[kind]}: {_told(error)}") from error
        return worker

    # --- one thing at a time ------------------------------------------------------------------------------------------

    async def _detached(self, number: int, doing: str, operation: Callable[[], Awaitable[T]]) -> T:
        """Do that with the worker, in a task of the fleet's: it has ended before the provisioner is closed."""

        async def run() -> T:
            with self._claim(number, doing):
                return await operation()

        return await self._tasks.run_detached(run)

    @contextmanager
    def _claim(self, number: int, doing: str) -> Iterator[None]:
        if number in self._busy:
            worker = self.own.get(number, f"number {number}")
            raise Refused("operation_under_way", f"worker {worker} is being {self._busy[number]}")
        self._busy[number] = doing
        try:
            yield
        finally:
            del self._busy[number]


_DOING: Final = {BreakKind.PAUSE: "paused", BreakKind.RESUME: "resumed", BreakKind.KILL: "killed"}


def _is_in_the_way(path: Path) -> bool:
    """Is it there, and no directory of a worker?"""
    return path.is_symlink() or (path.exists() and not path.is_dir())


def _told(error: Exception) -> str:
    """Why a provisioner failed, in a line."""
    match error:
        case trio.TooSlowError():
            return "the provisioner did not answer in time"
        case OSError():
            return " ".join(str(error).split())
        case _:
            return " ".join(f"{type(error).__name__}: {error}".split())
