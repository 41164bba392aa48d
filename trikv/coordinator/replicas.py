"""The replicas of one key, made callable for one request: what `trikv.api.ReplicaSet` promises, kept.

No task per replica. `store(need=k)` puts one call on each link, registers them on a tally, and sleeps once; the
answer that decides wakes it, as does the failure that makes k impossible. `fetch(need=k)` asks k and one more for
each that fails or is late, and so does a store that goes in order. What a request has sent is noted before the first
byte can leave, since everything that a client is told afterwards hangs on it.

`agree` is where a read's answer becomes safe to give. An answer that is on W replicas cannot be missed by a later
read. If it is on fewer, and of this epoch, the coordinator itself sent it, so it is put on W, as it is. If it is of an
older epoch it may be the remains of a write that a newer, hidden one has overtaken: then the key needs a repair, which
is the coordinator's.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import trio

from trikv.api import Answer, ReplicaSet, Write, newest
from trikv.coordinator.deadlines import limit_of_task
from trikv.coordinator.marks import Marks
from trikv.coordinator.steps import Stepped, parker
from trikv.coordinator.trace import Traces, trace_of
from trikv.core.calls import Full, Op, fetched_from_wire, is_epoch, record_to_wire
from trikv.core.configuration import Member
from trikv.core.errors import Fault
from trikv.core.quorums import Availability
from trikv.core.record import Record, size_of
from trikv.core.tally import Tally, TallyVerdict

LATE_S: Final = 0.1  # a replica that has not answered by then is late: another one is asked too
BACKGROUND_S: Final = 10.0  # how long a store may take that no request waits for
_OVERHEAD_BYTES: Final = 128

# Looking up a member of an enumeration takes five times as long as a name of this module, and operations do it often.
_UP, _DOWN, _DISK, _OK = Availability.UP, Availability.DOWN, Full.DISK, Fault.OK
_STORE, _FETCH, _PENDING = Op.STORE, Op.FETCH, TallyVerdict.PENDING


class Target(Protocol):
    """A member of a configuration, as the coordinator can reach it."""

    member: Member

    @property
    def labels(self) -> Mapping[str, str]:
        """What its worker was started with, `--label zone=a`."""

    @property
    def address(self) -> str: ...

    @property
    def availability(self) -> Availability: ...

    @property
    def crowded(self) -> bool:
        """Does so much wait for it that it would not be sent anything more?"""

    @property
    def evictable(self) -> bool:
        """Is it down for so long, or in such a way, that nothing waits for it any more?"""

    @property
    def full(self) -> Full:
        """What it has no room for."""

    def call(
        self, op: int, arguments: list[Any], deadline_s: float, done: Callable[[int, list[Any]], None], size_bytes: int
    ) -> None: ...


Done = Callable[[int, list[Any]], None]


class NotEnough(Exception):
    """Too few replicas can still do what was asked of them; the message says which failed, and how."""


class Copies:
    """How many copies that were sent in some time are still under way."""

    __slots__ = ("under_way",)

    def __init__(self) -> None:
        self.under_way = 0


def _ignore(target: Target, write: Write, since_s: float) -> None:
    """What this request's replicas miss is not kept."""


class ServedRequest:
    """What the views of one request share."""

    __slots__ = (
        "copies", "count_copies", "deadline_s", "epoch", "heard", "listed", "marks", "on_missed", "on_send", "on_stale",
        "partition", "repair", "sent_to", "targets", "traces",
    )  # fmt: skip

    def __init__(
        self,
        partition: int,
        epoch: int,
        copies: int,
        targets: Sequence[Target],
        deadline_s: float,
        *,
        count_copies: Callable[[], Copies] | None = None,
        on_send: Callable[[Write], None] = lambda write: None,
        on_missed: Callable[[Target, Write, float], None] | None = None,
        on_stale: Callable[[int], None] = lambda promised: None,
        repair: Callable[[bytes], Awaitable[Record | None]] | None = None,
        listed: dict[str, Record | None] | None = None,
        traces: Traces | None = None,
        marks: Marks | None = None,
    ) -> None:
        self.partition = partition
        self.epoch = epoch
        self.copies = copies
        self.targets = targets
        self.deadline_s = deadline_s
        self.count_copies = count_copies or Copies  # where a copy counts while it is under way, waited for or not
        self.on_send = on_send  # before a write first leaves for any replica
        self.on_missed = on_missed or _ignore  # this copy, sent then, did not arrive, or could not be sent
        self.on_stale = on_stale  # a replica has promised this newer epoch
        self.repair = repair  # mends the key and answers its record; None where a strategy may not ask for it
        self.listed = listed  # what replicas listed a moment ago, within this request: a fetch of it costs nothing
        self.traces = traces  # where the trace of a write is, of which a copy is sent later
        self.marks = marks
        self.heard: set[str] | None = None  # if it matters: the replicas on whose answers the request's result rests
        self.sent_to: list[Member] = []

    @property
    def replicas(self) -> Replicas:
        return Replicas(self, self.targets)


class Replicas:
    """A view of some targets of one request. See `trikv.api.ReplicaSet`."""

    __slots__ = ("_request", "_targets")

    def __init__(self, request: ServedRequest, targets: Sequence[Target]) -> None:
        self._request = request
        self._targets = targets

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, place: int | slice) -> Replicas:
        if isinstance(place, slice):
            return Replicas(self._request, self._targets[place])
        if not -len(self._targets) <= place < len(self._targets):
            raise IndexError(f"replicas[{place}]: there are {len(self._targets)} replicas")
        return Replicas(self._request, [self._targets[place]])

    def __iter__(self) -> Iterator[Replicas]:
        return (Replicas(self._request, [target]) for target in self._targets)

    @property
    def majority(self) -> int:
        return len(self._targets) // 2 + 1

    @property
    def head(self) -> Replicas:
        return Replicas(self._request, self._targets[:1])

    @property
    def tail(self) -> Replicas:
        return Replicas(self._request, self._targets[-1:])

    @property
    def rest(self) -> Replicas:
        return Replicas(self._request, self._targets[1:])

    def where(self, **labels: str) -> Replicas:
        return Replicas(self._request, [target for target in self._targets if _has(target, labels)])

    def prefer(self, **labels: str) -> Replicas:
        return Replicas(self._request, sorted(self._targets, key=lambda target: not _has(target, labels)))

    def rotate(self) -> Replicas:
        targets, marks = self._targets, self._request.marks
        if marks is None or not targets:
            return self
        first = marks.take_turn() % len(targets)
        return Replicas(self._request, [*targets[first:], *targets[:first]])

    def is_committed(self, key: bytes, answer: Answer) -> bool:
        marks = self._request.marks
        return marks is not None and marks.is_committed(key, answer.record)

    def values(self, label: str) -> list[str]:
        return list(dict.fromkeys(t.labels[label] for t in self._targets if label in t.labels))

    @property
    def members(self) -> tuple[Member, ...]:
        return tuple(target.member for target in self._targets)

    async def store(
        self, write: Write, *, need: int | None = None, onward: ReplicaSet | None = None, in_order: bool = False
    ) -> None:
        request, targets = self._request, self._targets
        if need is None:
            need = len(targets)
        elif not 0 < need <= len(targets):
            raise _misused("store", need, targets)
        hops: list[list[str]] = []
        if onward is not None:
            if not isinstance(onward, Replicas):
                raise TypeError(f"store(onward={onward!r}): it is a part of the request's replicas, or None")
            _require(onward._targets, len(onward), write)
            hops = [[*target.member, target.address] for target in onward._targets]
        able = _require(targets, need, write)
        if not need:
            return
        now = trio.current_time()
        deadline_s = request.deadline_s
        if need < len(targets):
            deadline_s = max(deadline_s, now + BACKGROUND_S)
        round_ = Round(need, len(able), request.on_stale)
        copies = _Copies(request, write, hops, now, deadline_s, round_)
        if in_order:
            await _ask_in_turn(round_, able, need, copies.send)
            return
        for target in able:
            copies.send(target)
        if len(able) < len(targets):
            for target in targets:
                if target not in able:
                    request.on_missed(target, write, now)
        while not await round_.wait():
            pass  # one failed, and enough are left

    def store_later(self, write: Write) -> None:
        now = trio.current_time()
        copies = _Copies(self._request, write, [], now, now + BACKGROUND_S, None)
        for target in self._targets:
            if target.member not in self._request.sent_to:
                copies.send(target)

    async def fetch(self, key: bytes, *, need: int | None = None, hedge_after_s: float | None = None) -> list[Answer]:
        if need is None:
            need = len(self._targets)
        elif not 0 < need <= len(self._targets):
            raise _misused("fetch", need, self._targets)
        late_s = LATE_S
        if hedge_after_s is not None:
            if not 0 <= hedge_after_s < math.inf:
                raise ValueError(f"fetch(hedge_after_s={hedge_after_s}): it is a number of seconds, 0 or more")
            late_s = hedge_after_s
        request = self._request
        if request.listed is not None:
            listed = [
                Answer(target.member.worker, request.listed[target.member.worker])
                for target in self._targets
                if target.member.worker in request.listed
            ]
            if len(listed) >= need:
                if request.heard is not None:
                    request.heard.update(answer.replica for answer in listed)
                return listed
        able = _require(self._targets, need)
        round_ = Round(need, len(able), request.on_stale)
        trace = trace_of()

        def ask(target: Target) -> None:
            arguments = [request.partition, request.epoch, target.member.incarnation, key]
            done: Done = round_.expect(target)
            if trace is not None:
                done = trace.noted(target.member.worker, "fetch", done)
            target.call(_FETCH, arguments, request.deadline_s, done, _OVERHEAD_BYTES + len(key))

        await _ask_in_turn(round_, able, need, ask, late_s)
        if request.heard is not None:
            request.heard.update(target.member.worker for target, _ in round_.answers)
        return [
            Answer(target.member.worker, fetched_from_wire(payload, request.epoch))
            for target, payload in round_.answers
        ]

    async def agree(self, key: bytes, answers: Sequence[Answer]) -> Record | None:
        top = newest(answers)
        if top is None:
            return None
        request = self._request
        holders = {a.replica for a in answers if a.record is not None and a.record.version == top.version}
        if len(holders) >= request.copies:
            return top
        if top.version.epoch == request.epoch:
            others = [target for target in self._targets if target.member.worker not in holders]
            lacking = request.copies - len(holders)
            if lacking > len(others):
                raise ValueError(
                    f"agree: the newest answer must be on {lacking} more replicas, and this set has {len(others)}; "
                    "call it on the whole preference list"
                )
            await Replicas(request, others).store(Write(key, top), need=lacking)
            if request.heard is not None:  # so many have acknowledged, whichever they are
                request.heard.update(target.member.worker for target in others[:lacking])
            return top
        if request.repair is None:
            raise NotEnough("the key needs a repair, and a write cannot ask for one")
        return await request.repair(key)


class _Copies:
    """The copies of one write that one `store` sends, with what they share. `round_`: who waits for them, if anybody
    does."""

    __slots__ = ("deadline_s", "hops", "request", "round_", "row", "since_s", "size_bytes", "trace", "write")

    def __init__(
        self,
        request: ServedRequest,
        write: Write,
        hops: list[list[str]],
        since_s: float,
        deadline_s: float,
        round_: Round | None,
    ) -> None:
        self.request = request
        self.write = write
        self.row = record_to_wire(write.record)
        self.hops = hops
        self.since_s = since_s
        self.deadline_s = deadline_s
        self.size_bytes = _OVERHEAD_BYTES + size_of(write.key, write.record)
        self.round_ = round_
        self.trace = trace_of(request.traces, write)

    def send(self, target: Target) -> None:
        request, write, member = self.request, self.write, target.member
        if not request.sent_to:
            request.on_send(write)  # also before a copy is missed: it may be kept, and arrive after all
        copy = _Copy(self, target)
        if target.availability is _DOWN:
            copy.end(Fault.NOT_SENT, [])
            return
        if _has_no_room(target, write):
            copy.end(Fault.FULL, [])
            return
        request.sent_to.append(member)
        copy.counted = counted = request.count_copies()
        counted.under_way += 1
        done: Done = copy.end if self.trace is None else self.trace.noted(member.worker, "store", copy.end)
        arguments: list[Any] = [request.partition, request.epoch, member.incarnation, write.key, *self.row]
        if self.hops:
            arguments.append(self.hops)
        target.call(_STORE, arguments, self.deadline_s, done, self.size_bytes)


class _Copy:
    """One copy, from its send to its end. `counted`: where it counts while it is under way."""

    __slots__ = ("copies", "counted", "target")

    def __init__(self, copies: _Copies, target: Target) -> None:
        self.copies = copies
        self.target = target
        self.counted: Copies | None = None

    def end(self, fault: int, payload: list[Any]) -> None:
        copies = self.copies
        if self.counted is not None:
            self.counted.under_way -= 1
        if fault == _OK:
            if copies.round_ is not None:
                copies.round_.note_ack()
            return
        if copies.round_ is not None:
            copies.round_.note_fault(self.target, fault, payload)
        copies.request.on_missed(self.target, copies.write, copies.since_s)
        if copies.round_ is not None:
            copies.round_.note_failure()


class Round:
    """One k-of-n wait: some calls, their tally, and the one task, or coroutine of `steps.py`, that sleeps until they
    decide."""

    __slots__ = ("_faults", "_has_news", "_on_stale", "_sleeper", "answers", "tally")

    def __init__(self, need: int, total: int, on_stale: Callable[[int], None]) -> None:
        self.tally = Tally(need, total)
        self.answers: list[tuple[Target, list[Any]]] = []
        self._on_stale = on_stale
        self._faults: list[str] = []
        self._has_news = False  # that the waiter has not heard yet
        self._sleeper: trio.lowlevel.Task | Stepped | None = None

    def expect(self, target: Target) -> Done:
        """The `done` for one more call. It wakes the waiter when it decides, or when no call is left to wait for."""

        def done(fault: int, payload: list[Any]) -> None:
            if fault == _OK:
                self.answers.append((target, payload))
                self.note_ack()
            else:
                self.note_fault(target, fault, payload)
                self.note_failure()

        return done

    def note_ack(self) -> None:
        """One of those asked has done what was asked of it."""
        if self.tally.ack() is not _PENDING:
            self._wake()

    def note_fault(self, target: Target, fault: int, payload: list[Any]) -> None:
        """One of those asked has failed like this; `note_failure` follows."""
        if fault == Fault.STALE and is_epoch(payload):
            self._on_stale(payload[0])
        self._faults.append(f"{target.member.worker}: {describe_fault(fault)}")

    def note_failure(self) -> None:
        self.tally.fail()
        self._wake()

    async def wait(self, patience_s: float | None = None) -> bool:
        """True: won. False: one of those asked failed, or patience ran out first.

        Raises:
          NotEnough: it cannot be won any more.
        """
        if self.tally.verdict is _PENDING and not self._has_news:
            task = trio.lowlevel.current_task()
            if (stepped := parker(task)) is not None:
                self._sleeper = stepped
                try:
                    await stepped.park(None if patience_s is None else trio.current_time() + patience_s)
                finally:
                    self._sleeper = None
            elif patience_s is None:
                await self._sleep(task)
            else:
                await self._sleep_at_most(task, patience_s)
        self._has_news = False
        if self.tally.verdict is TallyVerdict.LOST:
            raise NotEnough("; ".join(self._faults))
        return self.tally.verdict is TallyVerdict.WON

    async def _sleep_at_most(self, task: trio.lowlevel.Task, patience_s: float) -> None:
        limit = limit_of_task.get()
        if limit is None or not limit.set_alarm(trio.current_time() + patience_s, self._rouse):
            with trio.move_on_after(patience_s):
                await self._sleep(task)
            return
        try:
            await self._sleep(task)
        finally:
            limit.clear_alarm(self._rouse)

    async def _sleep(self, task: trio.lowlevel.Task) -> None:
        """Wait as on an Event, for a third of its price: every operation waits here."""
        self._sleeper = task
        await trio.lowlevel.wait_task_rescheduled(self._stop_sleeping)

    def _stop_sleeping(self, raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
        self._sleeper = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _wake(self) -> None:
        self._has_news = True
        self._rouse()

    def _rouse(self) -> None:
        if self._sleeper is not None:
            sleeper, self._sleeper = self._sleeper, None
            if isinstance(sleeper, Stepped):
                sleeper.wake()
            else:
                trio.lowlevel.reschedule(sleeper)


async def _ask_in_turn(
    round_: Round, able: Sequence[Target], need: int, ask: Callable[[Target], None], late_s: float = LATE_S
) -> None:
    """Ask the first `need`, then one more for each that fails or is late, until the round is won."""
    tally = round_.tally
    asked = 0
    late = 0 if late_s else len(able)
    while True:
        failures = tally.failures
        while asked < len(able) and asked - tally.failures < need + late:
            asked += 1
            ask(able[asked - 1])
        if await round_.wait(late_s if asked < len(able) else None):
            return
        if tally.failures == failures:
            late += 1


def _misused(call: str, need: int, targets: Sequence[Target]) -> ValueError:
    """The error of a call with a `need` that makes no sense."""
    most = len(targets)
    bounds = f"from 1 to {most}" if most else "not given"
    return ValueError(f"{call}(need={need}): of {most} replicas, need is {bounds}")


def _has(target: Target, labels: Mapping[str, str]) -> bool:
    return all(target.labels.get(label) == value for label, value in labels.items())


def _has_no_room(target: Target, write: Write | None) -> bool:
    """Is its disk too full for this? A delete always finds room."""
    return target.full is _DISK and write is not None and write.record.value is not None


def _require(targets: Sequence[Target], need: int, write: Write | None = None) -> list[Target]:
    """Those that may answer, the surest first, each group in its order; with a `write`, those that may take it.

    Raises:
      NotEnough: they are fewer than `need`; nothing has been sent.
    """
    able: list[Target] = []
    doubtful: list[Target] = []
    for target in targets:
        availability = target.availability
        if availability is _DOWN or target.crowded or _has_no_room(target, write):
            continue
        (able if availability is _UP else doubtful).append(target)
    if doubtful:
        able += doubtful
    if len(able) < need:
        unable = [target for target in targets if target not in able]
        why = [f"{target.member.worker} {_why_unable(target)}" for target in unable]
        raise NotEnough(f"{need} of {len(targets)} replicas are needed, and {' and '.join(why)}")
    return able


def _why_unable(target: Target) -> str:
    if target.availability is _DOWN:
        return "cannot be reached"
    return "has too much waiting for it already" if target.crowded else "has no room on its disk"


_FAULTS: Final = {
    Fault.STALE: "it has promised a newer epoch",
    Fault.OTHER_MEMBER: "it came back without its data",
    Fault.BUSY: "its queue is full",
    Fault.RELAY_BROKE: "the chain behind it broke",
    Fault.STORAGE: "its disk failed",
    Fault.BAD_CALL: "it did not understand",
    Fault.FULL: "its disk is full",
    Fault.NOT_SENT: "there is no link to it",
    Fault.CROWDED: "too much waits for it already",
    Fault.LOST: "the link to it broke",
    Fault.LATE: "no answer in time",
}


def describe_fault(fault: int) -> str:
    return _FAULTS.get(Fault(fault), f"fault {fault}") if fault in Fault._value2member_map_ else f"fault {fault}"
