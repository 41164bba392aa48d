"""Notices misconduct of a strategy: errors, hangs, junk, tasks of its own, clocks and dice, promises that change.

None of that can be seen in a history. A strategy that always raises breaks no promise, since its clients are told the
truth. A strategy that draws its own numbers makes every run of a seed different, so nothing about it can be repeated.
So certification runs a strategy inside a `WatchedStrategy`, which passes everything on and watches.

*Whose code runs?* One flag answers that: `Watch.own`. The strategy's coroutine is driven step by step, and the flag is
up during each step. It is down while one of the strategy's calls to its replicas runs, because that is trikv's code. So
the strategy read a clock exactly if the clock was read while the flag was up, by the strategy or by anything that it
calls. It does not matter which module read it, or under which name it was imported. `install` puts watchful functions
in place of Python's clocks and dice, for the whole process and for good. Only the processes that play for a certificate
do that, before they import the strategy.

It also has the acknowledgements of each write counted (`acknowledged.py`): `too_few` is the first write of a run that
was called committed on fewer replicas than `copies` states. That is no misconduct, but a broken promise.

Left out: what bypasses those functions (an extension module with its own dice, `hash` of a text, the order of a set). A
second run of the same seed in another process finds it.

Cost: two assignments for each step of a strategy, and one more Python call for each number that the simulation draws.
"""

from __future__ import annotations

import datetime
import inspect
import linecache
import os
import random
import sys
import threading
import time
import types
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Any, Final, TypeVar, cast

import trio

from trikv.api import Answer, Needs, Promise, Record, ReplicaSet, Strategy, Write
from trikv.coordinator.replicas import NotEnough
from trikv.core.errors import TrikvError
from trikv.core.record import Version
from trikv.registry import can_keep
from trikv.testing.certify.acknowledged import Acknowledgements, TooFew

T = TypeVar("T")

_SHOWN_MAX: Final = 120  # characters of a value that is junk
_PATIENCE_S: Final = 1.0  # how long, in virtual time, a strategy may wait for anything but its replicas


class Misconduct(StrEnum):
    """The values follow the strategy's name in a sentence."""

    RAISES = "raises"
    HANGS = "hangs"
    JUNK = "returns junk"
    TASKS = "starts tasks of its own"
    CLOCK = "reads a clock"
    DICE = "draws its own random numbers"
    COPIES = "changes what it promises"
    FORGETS = "forgets an await"
    ENDS = "ends the process that it runs in"
    BREAKS = "breaks the simulation"
    UNREPEATABLE = "does not repeat itself"


class Watch:
    """What was noticed. `noticed` keeps the first instance of each kind, in words."""

    def __init__(self) -> None:
        self.own = False  # does the strategy's code run now?
        self.source = ""  # the strategy's file
        self.noticed: dict[Misconduct, str] = {}

    def notice(self, what: Misconduct, detail: str) -> None:
        self.noticed.setdefault(what, " ".join(detail.split()))

    def notice_call(self, what: Misconduct, name: str) -> None:
        """Notice a call by the strategy, or by something that it called, two frames up from here."""
        caller = sys._getframe(2)
        if what is Misconduct.CLOCK and caller.f_globals.get("__name__") == "logging":
            return  # a time in a log decides nothing
        if what not in self.noticed:
            self.notice(what, f"{name} {self.place(caller)}")

    def place(self, frame: FrameType | None) -> str:
        """The place in the strategy's own file on this stack, with the line of source."""
        innermost = frame
        while frame is not None and frame.f_code.co_filename != self.source:
            frame = frame.f_back
        frame = frame or innermost
        if frame is None:
            return "somewhere"
        return _describe_place(frame.f_code.co_filename, frame.f_lineno)

    @contextmanager
    def running(self, *, own: bool) -> Iterator[None]:
        """Is the code that runs inside the strategy's own?"""
        before, self.own = self.own, own
        try:
            yield
        finally:
            self.own = before


def _describe_place(filename: str, line: int) -> str:
    source = linecache.getline(filename, line).strip()
    return f"at {Path(filename).name}:{line}" + (f" ({source})" if source else "")


@types.coroutine
def _steps(coroutine: Coroutine[Any, Any, T], watch: Watch, own: bool) -> Generator[Any, Any, T]:
    """Drive the coroutine to its end. During each of its steps the flag is `own`."""
    resume: Callable[[Any], Any] = coroutine.send
    value: Any = None
    while True:
        before, watch.own = watch.own, own
        try:
            awaited = resume(value)
        except StopIteration as stop:
            return cast("T", stop.value)
        finally:
            watch.own = before
        try:
            value = yield awaited
            resume = coroutine.send
        except BaseException as error:  # noqa: BLE001 any error is meant for the coroutine
            resume, value = coroutine.throw, error


class _NoticedError(Exception):
    """Ends a call of the strategy's for a reason that was noticed."""


class WatchedStrategy(Strategy):
    """A strategy that does what `inner` does, and is watched. `promise` makes it promise less."""

    def __init__(self, inner: Strategy, watch: Watch, promise: Promise | None = None) -> None:
        promise = promise or inner.promise
        vars(self).update(
            name=inner.name,
            promise=promise,
            compare_and_set=inner.compare_and_set and promise is inner.promise,
            gives_up=inner.gives_up,
            use_when=inner.use_when,
            protocol=inner.protocol,
            paper=inner.paper,
        )
        self._inner = inner
        self._watch = watch
        self._task_watch = _TaskWatch(watch)
        self._copies: dict[int, int] = {}  # by number of replicas: the first answer
        self.too_few: TooFew | None = None
        watch.source = inspect.getsourcefile(type(inner)) or ""

    def copies(self, n: int) -> int:
        """The first answer for so many replicas, whatever the later ones are: the data lie by that one."""
        with self._watch.running(own=True):
            copies: object = self._inner.copies(n)
        if not can_keep(copies, n):
            self._watch.notice(Misconduct.COPIES, f"copies({n}) is {copies!r}, which is no integer from 1 to {n}")
            copies = self._copies.get(n, n)
        assert isinstance(copies, int), copies
        first = self._copies.setdefault(n, copies)
        if copies != first:
            self._watch.notice(Misconduct.COPIES, f"copies({n}) was {first}, and later {copies}")
        return first

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        acknowledgements = Acknowledgements(write)
        answer: object = await self._run("write", write, replicas, acknowledgements)
        if self.too_few is None:
            missing = acknowledgements.missing(replicas, self.copies(len(replicas)))
            if missing is not None:
                self.too_few = TooFew(write, trio.current_time(), missing)
        if answer is not None:
            self._watch.notice(
                Misconduct.JUNK,
                f"write returned {_shown(answer)}; that it returns at all says that the write is committed",
            )

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        answer: object = await self._run("read", key, replicas)
        if answer is not None and not isinstance(answer, Record):
            self._watch.notice(Misconduct.JUNK, f"read returned {_shown(answer)}, which is no record")
        elif answer is not None and not _is_whole(answer):
            self._watch.notice(Misconduct.JUNK, f"read returned {_shown(answer)}, which no replica holds")
            raise _NoticedError("read returned junk")
        return cast("Record | None", answer)

    def needs(self, n: int) -> Needs | None:
        return self._inner.needs(n)

    def listing(self, replicas: ReplicaSet) -> ReplicaSet | None:
        try:
            answer: object = self._inner.listing(_WatchedReplicas(replicas, self._watch, _Idling()))
        except Exception as error:  # noqa: BLE001 a strategy's code may raise anything
            self._notice_error("listing", error)
            return None
        if answer is None:
            return None
        if not isinstance(answer, _WatchedReplicas):
            self._watch.notice(Misconduct.JUNK, f"listing returned {_shown(answer)}, which is no part of its replicas")
            return None
        return answer.plain

    async def _run(
        self, method: str, subject: object, replicas: ReplicaSet, acknowledgements: Acknowledgements | None = None
    ) -> object:
        watch = self._watch
        trio.lowlevel.add_instrument(self._task_watch)
        idling = _Idling()

        async def call() -> object:
            run: Callable[[object, ReplicaSet], object] = getattr(self._inner, method)
            answer = run(subject, _WatchedReplicas(replicas, watch, idling, acknowledgements))
            if not isinstance(answer, Awaitable):
                watch.notice(Misconduct.JUNK, f"{method} is no async function: calling it returned {_shown(answer)}")
                raise _NoticedError(f"{method} is no async function")
            return await answer

        try:
            answer = await _steps(call(), watch, True)
        except (NotEnough, TrikvError, _NoticedError):
            raise
        except trio.Cancelled:
            if idling.since_s is not None and trio.current_time() - idling.since_s >= _PATIENCE_S:
                watch.notice(
                    Misconduct.HANGS, f"{method} waited for something other than its replicas until its time was up"
                )
            raise
        except Exception as error:
            self._notice_error(method, error)
            raise
        except (SystemExit, KeyboardInterrupt) as error:
            self._notice_error(method, error)
            raise RuntimeError(f"{type(error).__name__} in {method}") from error  # the run goes on without it
        else:
            for name, place in idling.forgotten():
                watch.notice(Misconduct.FORGETS, f"{method} returned before its call of {name} was awaited, {place}")
            return answer
        finally:
            idling.close()

    def _notice_error(self, method: str, error: BaseException) -> None:
        place = _place_of(error, self._watch.source)
        what = Misconduct.ENDS if isinstance(error, SystemExit) else Misconduct.RAISES
        said = f"sys.exit({error.code!r})" if isinstance(error, SystemExit) else type(error).__name__
        told = "" if isinstance(error, SystemExit) or not str(error) else f": {error}"
        self._watch.notice(what, f"{said} in {method} {place}{told}")


def _is_whole(record: Record) -> bool:
    """Are its fields what a record's fields are?"""
    fields = (record.version, record.stamp)
    return all(isinstance(one, Version) for one in fields) and isinstance(record.value, bytes | None)


def _shown(value: object) -> str:
    """A value of the strategy's, in a few words."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 as above
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN_MAX else text[:_SHOWN_MAX] + "..."


def _place_of(error: BaseException, source: str) -> str:
    """The last line of the strategy's own file that the error came through."""
    place = "somewhere"
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == source:
            place = _describe_place(source, traceback.tb_lineno)
        traceback = traceback.tb_next
    return place


class _Idling:
    """Since when a request's strategy has had no call to its replicas under way; None while it has one.

    It also has the calls that were made and not awaited so far: an `await` is easily forgotten, and then nothing is
    sent.
    """

    def __init__(self) -> None:
        self.since_s: float | None = trio.current_time()
        self._under_way = 0
        self._made: dict[object, tuple[Coroutine[Any, Any, Any], str, FrameType, int]] = {}

    def make(self, token: object, coroutine: Coroutine[Any, Any, Any], name: str, caller: FrameType) -> None:
        """The call `name` was made by `caller`, where it is now."""
        self._made[token] = coroutine, name, caller, caller.f_lineno

    def await_(self, token: object) -> None:
        self._made.pop(token, None)

    def forgotten(self) -> list[tuple[str, str]]:
        """The calls that were not awaited, each with its place."""
        return [(name, _describe_place(frame.f_code.co_filename, line)) for _, name, frame, line in self._made.values()]

    def close(self) -> None:
        """Python would warn of each coroutine that is dropped like that."""
        for coroutine, *_ in self._made.values():
            coroutine.close()
        self._made.clear()

    def begin(self) -> None:
        self._under_way += 1
        self.since_s = None

    def end(self) -> None:
        self._under_way -= 1
        if not self._under_way:
            self.since_s = trio.current_time()


class _WatchedReplicas:
    """See `trikv.api.ReplicaSet`. What these methods do counts as trikv's code. `acknowledgements`: of a write."""

    def __init__(
        self, plain: ReplicaSet, watch: Watch, idling: _Idling, acknowledgements: Acknowledgements | None = None
    ) -> None:
        self.plain = plain
        self._watch = watch
        self._idling = idling
        self._acknowledgements = acknowledgements

    def __len__(self) -> int:
        return len(self.plain)

    def __getitem__(self, place: int | slice) -> _WatchedReplicas:
        return self._part(self.plain[place])

    def __iter__(self) -> Iterator[_WatchedReplicas]:
        return map(self._part, self.plain)

    @property
    def majority(self) -> int:
        return self.plain.majority

    @property
    def head(self) -> _WatchedReplicas:
        return self._part(self.plain.head)

    @property
    def tail(self) -> _WatchedReplicas:
        return self._part(self.plain.tail)

    @property
    def rest(self) -> _WatchedReplicas:
        return self._part(self.plain.rest)

    def _part(self, plain: ReplicaSet) -> _WatchedReplicas:
        return _WatchedReplicas(plain, self._watch, self._idling, self._acknowledgements)

    @property
    def _counted(self) -> ReplicaSet:
        return self.plain if self._acknowledgements is None else self._acknowledgements.of(self.plain)

    def where(self, **labels: str) -> _WatchedReplicas:
        return self._part(self.plain.where(**labels))

    def prefer(self, **labels: str) -> _WatchedReplicas:
        return self._part(self.plain.prefer(**labels))

    def rotate(self) -> _WatchedReplicas:
        return self._part(self.plain.rotate())

    def is_committed(self, key: bytes, answer: Answer) -> bool:
        return self.plain.is_committed(key, answer)

    def values(self, label: str) -> list[str]:
        return self.plain.values(label)

    def store(
        self, write: Write, *, need: int | None = None, onward: ReplicaSet | None = None, in_order: bool = False
    ) -> Coroutine[Any, Any, None]:
        plain = onward.plain if isinstance(onward, _WatchedReplicas) else onward
        return self._made("store", lambda: self._counted.store(write, need=need, onward=plain, in_order=in_order))

    def store_later(self, write: Write) -> None:
        plain = self.plain
        if self._acknowledgements is not None:
            plain = self._acknowledgements.of(plain, later=True)
        with self._watch.running(own=False):
            plain.store_later(write)

    def fetch(
        self, key: bytes, *, need: int | None = None, hedge_after_s: float | None = None
    ) -> Coroutine[Any, Any, list[Answer]]:
        return self._made("fetch", lambda: self._counted.fetch(key, need=need, hedge_after_s=hedge_after_s))

    def agree(self, key: bytes, answers: Sequence[Answer]) -> Coroutine[Any, Any, Record | None]:
        return self._made("agree", lambda: self._counted.agree(key, answers))

    def _made(self, name: str, make: Callable[[], Coroutine[Any, Any, T]]) -> Coroutine[Any, Any, T]:
        token = object()
        coroutine = self._call(token, make)
        self._idling.make(token, coroutine, name, sys._getframe(2))
        return coroutine

    async def _call(self, token: object, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        self._idling.await_(token)
        self._idling.begin()
        try:
            return await _steps(make(), self._watch, False)
        finally:
            self._idling.end()


class _TaskWatch(trio.abc.Instrument):
    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        if self._watch.own:
            self._watch.notice_call(Misconduct.TASKS, f"{task.name.rpartition('.')[2]}, started")


# --- clocks and dice --------------------------------------------------------------------------------------------------

_CLOCKS: Final = ("time", "monotonic", "perf_counter", "process_time", "thread_time", "clock_gettime")


def install(watch: Watch) -> None:
    """From now on `watch` notices reads of clocks, draws of dice and starts of threads, until this process ends."""

    def guard(owner: Any, name: str, what: Misconduct, called: str) -> None:
        original = getattr(owner, name)

        def guarded(*arguments: Any, **named: Any) -> Any:
            if watch.own:
                watch.notice_call(what, called)
            return original(*arguments, **named)

        setattr(owner, name, guarded)

    for name in (*_CLOCKS, *(f"{name}_ns" for name in _CLOCKS), "sleep"):
        guard(time, name, Misconduct.CLOCK, f"time.{name}")
    for name in ("random", "getrandbits"):
        guard(random, name, Misconduct.DICE, f"random.{name}")  # bound methods of a hidden Random
        guard(random.Random, name, Misconduct.DICE, f"random.Random.{name}")  # what all its other methods call
    guard(os, "urandom", Misconduct.DICE, "os.urandom")  # uuid4 calls it there
    guard(random, "_urandom", Misconduct.DICE, "os.urandom")  # SystemRandom, and with it secrets
    if hasattr(os, "getrandom"):
        guard(os, "getrandom", Misconduct.DICE, "os.getrandom")
    guard(uuid, "uuid1", Misconduct.CLOCK, "uuid.uuid1")
    guard(threading.Thread, "start", Misconduct.TASKS, "a thread, started")
    datetime.datetime = _guarded_datetime(watch)  # type: ignore[misc]


def _guarded_datetime(watch: Watch) -> type[datetime.datetime]:
    """A subclass is needed: attributes of the built-in type cannot be set."""
    plain: Any = datetime.datetime

    class _Kind(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, plain)

        def __subclasscheck__(cls, subclass: type) -> bool:
            return issubclass(subclass, plain)

    class Guarded(plain, metaclass=_Kind):  # type: ignore[misc]
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            if watch.own:
                watch.notice_call(Misconduct.CLOCK, "datetime.now")
            return plain.now(tz)

        @classmethod
        def utcnow(cls) -> Any:
            if watch.own:
                watch.notice_call(Misconduct.CLOCK, "datetime.utcnow")
            return plain.now(datetime.UTC).replace(tzinfo=None)

    return Guarded
