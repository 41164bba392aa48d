"""Processes that play runs: they use both cores, and a strategy cannot harm their caller.

A member of the pool is a process of its own, begun afresh (not forked). It first puts watchful clocks and dice in
place, then imports the strategy, then plays what it is sent. Three things can go wrong with it. If the strategy cannot
be loaded there, that is a `LoadError` of the pool's, and no finding about the strategy. If a run hangs without letting
go, an alarm in the member says where, and the member ends. If the process is gone (`os._exit`, a crash), that is
reported as its answer. A member that is gone is replaced by a new one.

Members get a `PYTHONHASHSEED` that is chosen here. So a run that is played by two pools with different hash seeds shows
whether it depends on the order of a set or the hash of a text.

Messages between these processes are pickles: both ends are ours. A member ends when its pipe does, so no member
outlives the process that started it.

Left out: a strategy that hangs inside an extension module, where no signal reaches Python. Ctrl-C still ends it.
"""

from __future__ import annotations

import copy
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, NoReturn, Self

from trikv.api import Promise, Strategy
from trikv.testing.certify.load import LoadError, load_strategy
from trikv.testing.certify.misconduct import Misconduct, Watch, WatchedStrategy, install
from trikv.testing.judge import linear
from trikv.testing.judge.history import Judgement
from trikv.testing.sim import Run, Schedule, run_schedule
from trikv.testing.sim.plan import SourceOfSchedules
from trikv.testing.sim.run import DidNotEndError

_WAITING_SHARE: Final = 0.01  # of its limit: a run that uses less of the processor waits for something
_JOIN_S: Final = 5.0  # for a process whose pipe has ended
HANG_S: Final = 20.0  # a run takes well below a second, so one this long hangs, even on a busy machine


@dataclass(frozen=True, slots=True)
class Task:
    """What a member plays: a seed of a plan or of a saved schedule, or exactly this schedule.

    `number` is the caller's own. `promise`: what the strategy promises in this run, instead of its own promise. `full`:
    send history and trace as well.
    """

    seed: int
    plan: SourceOfSchedules
    number: int = 0
    schedule: Schedule | None = None
    promise: Promise | None = None
    full: bool = False


@dataclass(slots=True)
class PlayedTask:
    """The result of a task. `run` is None if the run had no end; then `misconduct` says why."""

    task: Task
    run: Run | None = None
    misconduct: dict[Misconduct, str] = field(default_factory=dict)
    judgement: Judgement = Judgement.UNDECIDED  # for an AP mode: was the history linearizable all the same?


class _Member:
    """One process, and this side's end of the pipe to it."""

    def __init__(self, target: str, hash_seed: int, hang_s: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(target, theirs, hang_s), daemon=True)
        before = os.environ.get("PYTHONHASHSEED")
        os.environ["PYTHONHASHSEED"] = str(hash_seed)
        try:
            self.process.start()
        finally:
            del os.environ["PYTHONHASHSEED"]
            if before is not None:
                os.environ["PYTHONHASHSEED"] = before
        theirs.close()
        self.task: Task | None = None

    def end(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()


class ProcessPool:
    """`size` processes, for as long as the `with` block lasts."""

    def __init__(self, target: str, size: int, *, hash_seed: int = 0, hang_s: float = HANG_S) -> None:
        self.size = size
        self._make = partial(_Member, target, hash_seed, hang_s)
        self._members = [self._make() for _ in range(size)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for member in self._members:
            member.end()

    def play(self, tasks: Iterable[Task]) -> Iterator[PlayedTask]:
        """Play all tasks, and yield their results in the order in which they end. Go through the iterator to its end.

        A task is taken from `tasks` when a member is free for it.

        Raises:
          LoadError: a member cannot load the strategy.
        """
        waiting = iter(tasks)
        while True:
            for member in self._members:
                if member.task is None and (task := next(waiting, None)) is not None:
                    member.task = task
                    with suppress(BrokenPipeError):  # it is gone; its pipe tells so in a moment
                        member.pipe.send(task)
            busy = {member.pipe: number for number, member in enumerate(self._members) if member.task is not None}
            if not busy:
                return
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                yield self._hear(busy[pipe])

    def _hear(self, number: int) -> PlayedTask:
        """The result that a member has sent. If the member has ended, another takes its place."""
        member = self._members[number]
        task, member.task = member.task, None
        assert task is not None
        try:
            played = member.pipe.recv()
        except (EOFError, ConnectionResetError):
            member.process.join(_JOIN_S)
            ends = f"the process that played seed {task.seed} ended by itself, with exit code {member.process.exitcode}"
            played = PlayedTask(task, misconduct={Misconduct.ENDS: ends})
        if isinstance(played, LoadError):
            raise played
        assert isinstance(played, PlayedTask), played
        if played.run is None:
            member.end()
            self._members[number] = self._make()
        return replace(played, task=task)


# --- in the member ----------------------------------------------------------------------------------------------------


def _serve(target: str, pipe: Connection, hang_s: float) -> None:
    """The work of a member: load the strategy once, then play each task until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent process; this one ends with the pipe
    sys.stdout = sys.stderr  # what a strategy prints is not part of the certificate
    logging.disable(logging.CRITICAL)  # the coordinator would log each failure; here they are counted
    watch = Watch()
    exit_now, processor_s = os._exit, time.process_time  # those that nobody watches
    install(watch)
    try:
        strategy = load_strategy(target).strategy
    except LoadError as error:
        pipe.send(error)
        return
    task: Task | None = None

    used_s = [0.0, 0.0]  # of the processor: when the task began, and at the last alarm

    def report_hang(_signal: int, frame: FrameType | None) -> None:
        """Report, and end at once: no `finally` of the strategy's may delay it.

        A busy machine, or one that was suspended, gives a process little time. It hangs if it has used up the whole
        limit, or if it waits, and uses next to nothing from one alarm to the next.
        """
        assert task is not None
        now_s = processor_s()
        if now_s - used_s[0] < hang_s and now_s - used_s[1] > _WAITING_SHARE * hang_s:
            used_s[1] = now_s
            return
        hangs = f"seed {task.seed} did not let go for {hang_s:g} s {watch.place(frame)}"
        pipe.send(PlayedTask(task, misconduct={**watch.noticed, Misconduct.HANGS: hangs}))
        exit_now(1)

    def report_exit(status: int) -> NoReturn:
        if task is not None:
            ends = f"os._exit({status}) {watch.place(sys._getframe(1))}"
            pipe.send(PlayedTask(task, misconduct={**watch.noticed, Misconduct.ENDS: ends}))
        exit_now(status)

    os._exit = report_exit
    signal.signal(signal.SIGALRM, report_hang)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # nobody waits for it any more
        while True:
            task = pipe.recv()
            assert task is not None
            used_s[:] = [processor_s()] * 2
            signal.setitimer(signal.ITIMER_REAL, hang_s, hang_s)
            played = play_task(strategy, watch, task)
            signal.setitimer(signal.ITIMER_REAL, 0)
            try:
                pipe.send(played)
            except (pickle.PicklingError, TypeError, AttributeError) as error:
                breaks = f"seed {task.seed}: its history cannot be sent on: {error}"
                pipe.send(PlayedTask(task, misconduct={**watch.noticed, Misconduct.BREAKS: breaks}))


def play_task(strategy: Strategy, watch: Watch, task: Task) -> PlayedTask:
    """Play the task in this process. Clocks and dice are watched only if `install` was called."""
    watch.noticed = {}
    with suppress(Exception):  # what cannot be copied is used as it is
        strategy = copy.deepcopy(strategy)  # what it keeps between runs would make a seed play otherwise
    watched = WatchedStrategy(strategy, watch, task.promise)
    try:
        schedule = task.schedule or task.plan.draw(watched, task.seed)
        run = run_schedule(watched, schedule, trace=task.full)
    except DidNotEndError as error:
        return PlayedTask(task, misconduct={**watch.noticed, Misconduct.HANGS: str(error)})
    except BaseException as error:  # noqa: BLE001 a strategy's code can break anything in a simulation
        breaks = f"seed {task.seed}: {_describe(error, watch.source)}"
        return PlayedTask(task, misconduct={**watch.noticed, Misconduct.BREAKS: breaks})
    if watched.too_few is not None and task.promise is None:
        run.findings.append(watched.too_few.find(run.history, schedule.names))
    judgement = linear.check(run.history).judgement if watched.promise is Promise.AP else Judgement.UNDECIDED
    if not task.full:
        run.history = []
    return PlayedTask(task, run, watch.noticed, judgement)


def _describe(error: BaseException, source: str) -> str:
    """The first error of a group, and its place: the strategy's own line, if it came through one."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((frame for frame in reversed(frames) if frame.filename == source), frames[-1])
    line = f" ({frame.line})" if frame.line else ""
    return f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}{line}: {error}"
