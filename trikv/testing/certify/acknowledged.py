"""Counts which replicas have acknowledged a write by the time that its strategy returns.

A strategy states with `copies(n)` on how many replicas a committed write is. Histories show only seldom that it was on
fewer: a disk must be lost at the right moment. So the acknowledgements themselves are counted, for each call of
`write`, with whatever faults there are.

*What counts.* A replica has acknowledged the write if it answered a store of this write, or a fetch of its key, and so
has the write, or something newer, on its disk. The head of a chain answers for all that it passed the write on to. An
answer to `store_later` does not count, since nothing waits for it. An answer counts if it came before `write` returned.

How it works. For the calls of one `write` each target is wrapped (`_Counted`), and the wrapper sees each answer before
the coordinator does. Nothing is sent, delayed or kept because of that, so a run is the same with and without it.

Cost: a few small objects for each call. Only certification pays it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from trikv.api import ReplicaSet, Write
from trikv.coordinator.replicas import Replicas, Target, describe_fault
from trikv.core.calls import Full, Op, fetched_from_wire, record_from_wire
from trikv.core.configuration import Member
from trikv.core.errors import Fault, Outcome
from trikv.core.quorums import Availability
from trikv.core.record import Record
from trikv.core.session import PeerError
from trikv.testing.judge.history import Finding, Operation
from trikv.testing.sim.names import Names

TOO_FEW: Final = "too few acknowledgements"  # the rule of the finding


@dataclass(frozen=True, slots=True)
class TooFew:
    """A write that was called committed though too few replicas had acknowledged it. `why` is the end of a sentence."""

    write: Write
    at_s: float
    why: str

    def find(self, history: Sequence[Operation], names: Names) -> Finding:
        """As a finding, with the client's operation that made the write, if that can be told."""
        record = self.write.record
        key = names.decode(self.write.key)
        operation = self._operation(history, key, names)
        subject = "a write" if operation is None else "[1]"
        if record.version != record.stamp:
            subject = f"a copy of {subject}, made to mend the key,"
        return Finding(TOO_FEW, key, f"{subject} {self.why}", () if operation is None else (operation,), at_s=self.at_s)

    def _operation(self, history: Sequence[Operation], key: str, names: Names) -> Operation | None:
        record = self.write.record
        value = None if record.value is None else names.decode(record.value)
        writes = [op for op in history if op.key == key and op.writes and op.value == value]
        for operation in writes:
            if operation.stamp == record.stamp:
                return operation
        begun = [op for op in writes if op.invoked_s <= self.at_s and op.outcome is not Outcome.COMMITTED]
        return begun[-1] if begun else None


class Acknowledgements:
    """Of one write, during one call of its strategy's `write`."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._acknowledged: set[str] = set()
        self._told: dict[str, str] = {}  # by worker: what is known of it instead

    def of(self, replicas: ReplicaSet, *, later: bool = False) -> ReplicaSet:
        """The same replicas; what they answer is counted. `later`: it is only noted that the write goes to them."""
        if not isinstance(replicas, Replicas):
            return replicas
        request = copy.copy(replicas._request)
        on_missed = request.on_missed
        request.on_missed = lambda target, write, since_s: on_missed(_plain(target), write, since_s)
        return Replicas(request, [_Counted(_plain(target), self, request.epoch, later) for target in replicas._targets])

    def missing(self, replicas: ReplicaSet, copies: int) -> str | None:
        """What is missing, as the end of a sentence, if fewer than `copies` have acknowledged the write."""
        assert isinstance(replicas, Replicas), replicas
        names = [member.worker for member in replicas.members]
        having = [name for name in names if name in self._acknowledged]
        if len(having) >= copies:
            return None
        lacking: dict[str, list[str]] = {}  # by the reason
        for name in names:
            if name not in having:
                lacking.setdefault(self._told.get(name, "got nothing to store"), []).append(name)
        why = _listed([f"{_listed(some)} {reason}" for reason, some in lacking.items()])
        held = f"{_listed(having)} alone had" if having else "no replica had"
        stated = f"copies({len(names)}) is {copies}"
        return f"was called committed when {held} acknowledged it; {stated}, and {why}"

    def note_sent(self, worker: str, *, later: bool) -> None:
        self._told[worker] = "got it by store_later, which waits for nothing" if later else "had not answered yet"

    def note_answer(self, workers: Sequence[str], fault: int) -> None:
        if fault == Fault.OK:
            self._acknowledged.update(workers)
        else:
            for worker in workers:
                self._told[worker] = f"did not take it ({describe_fault(fault)})"

    def note_fetched(self, worker: str, record: Record | None) -> None:
        if record is not None and record.version >= self._write.record.version:
            self._acknowledged.add(worker)

    def is_stored_by(self, arguments: list[Any]) -> bool:
        """Do these arguments of a store carry the write, or something newer of its key?"""
        key, row = arguments[3], arguments[4:9]
        return bool(key == self._write.key and record_from_wire(row).version >= self._write.record.version)

    def is_of_key(self, arguments: list[Any]) -> bool:
        return bool(arguments[3] == self._write.key)


class _Counted:
    """A target whose answers are counted. See `trikv.coordinator.replicas.Target`."""

    def __init__(self, plain: Target, acknowledgements: Acknowledgements, epoch: int, later: bool) -> None:
        self.plain = plain
        self.member: Member = plain.member
        self._acknowledgements = acknowledgements
        self._epoch = epoch
        self._later = later

    @property
    def address(self) -> str:
        return self.plain.address

    @property
    def labels(self) -> Mapping[str, str]:
        return self.plain.labels

    @property
    def availability(self) -> Availability:
        return self.plain.availability

    @property
    def crowded(self) -> bool:
        return self.plain.crowded

    @property
    def evictable(self) -> bool:
        return self.plain.evictable

    @property
    def full(self) -> Full:
        return self.plain.full

    def call(
        self, op: int, arguments: list[Any], deadline_s: float, done: Callable[[int, list[Any]], None], size_bytes: int
    ) -> None:
        noted = done
        if op == Op.STORE and self._acknowledgements.is_stored_by(arguments):
            noted = self._note_store(arguments, done)
        elif op == Op.FETCH and self._acknowledgements.is_of_key(arguments):
            noted = self._note_fetch(done)
        self.plain.call(op, arguments, deadline_s, noted, size_bytes)

    def _note_store(
        self, arguments: list[Any], done: Callable[[int, list[Any]], None]
    ) -> Callable[[int, list[Any]], None]:
        onward = arguments[9] if len(arguments) > 9 else []
        workers = [self.member.worker, *(hop[0] for hop in onward)]
        for worker in workers:
            self._acknowledgements.note_sent(worker, later=self._later)

        def noted(fault: int, payload: list[Any]) -> None:
            if not self._later:
                self._acknowledgements.note_answer(workers, fault)
            done(fault, payload)

        return noted

    def _note_fetch(self, done: Callable[[int, list[Any]], None]) -> Callable[[int, list[Any]], None]:
        def noted(fault: int, payload: list[Any]) -> None:
            if fault == Fault.OK:
                try:
                    record = fetched_from_wire(payload, self._epoch)
                except PeerError:
                    record = None
                self._acknowledgements.note_fetched(self.member.worker, record)
            done(fault, payload)

        return noted


def _plain(target: Target) -> Target:
    return target.plain if isinstance(target, _Counted) else target


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
