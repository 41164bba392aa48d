"""What clients did and what they were told, as data that a checker can judge.

A simulation, a chaos run and a test all end in a list of `Operation`s. Each says which client asked what, what came
back, and when the operation began and ended. Two clocks are kept. `invoked_s` and `returned_s` are for people. Checkers
order operations by `began` and `ended`, the places of the two events in the order of their recording. No two events
share a place. So if one operation ends and another begins at the same instant, as is common in virtual time, their
order is still known.

Why that is sound: `begin` is called before the request leaves, and `end` after its answer came. If one operation was
recorded as ended before another began, it really was. Histories recorded by several processes have only their times in
common; `merge` orders them by time, and takes events at one instant as concurrent.

An operation whose outcome is unknown has no end: it may take effect at any later time, or never.

The checkers want every write of a history to have a value of its own (`Recorder.fresh_value` makes one), since then
each read names the write that it saw. For the same reason a conditional write names what it expects by *value*; the
driver knows which value belongs to the stamp that it sent.

Cost: one small object per operation, about 1 µs to begin and as much to end. The caller bounds the length of a history.
Keys and values are text; a driver of binary ones chooses their text form.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple, TextIO

from trikv.core.errors import Outcome
from trikv.core.record import Version

HISTORY_FORMAT: Final = 1
PRECONDITION_FAILED: Final = "precondition_failed"  # the one refusal that is also an observation
MET: Final = (PRECONDITION_FAILED, "no_compare_and_set")  # refusals of a key that is available


class Kind(StrEnum):
    """What a client asked."""

    PUT = "put"
    GET = "get"
    DELETE = "delete"
    CAS = "cas"  # write `value` (None: delete) if the key holds `expect` (None: nothing)
    SCAN = "scan"  # a page of the keys that start with `key`


class ScannedRow(NamedTuple):
    """One key that a scan found."""

    key: str
    value: str
    stamp: Version | None = None


@dataclass(slots=True)
class Operation:
    """One request of one client, and what came of it.

    For a scan, `key` is the prefix and `value` the cursor that it started after. `result` is the last key that its page
    covers, or None if the page reaches the end.
    """

    client: str
    kind: Kind
    key: str
    began: int
    invoked_s: float
    value: str | None = None  # what it writes
    expect: str | None = None  # of a cas: the value that it replaces, None for absence
    ended: int | None = None  # None: its end is not known, so it may still take effect
    returned_s: float | None = None  # of an unknown operation: when the client stopped waiting
    outcome: Outcome = Outcome.UNKNOWN
    code: str | None = None  # from trikv.core.errors, if it did not commit
    result: str | None = None  # what a get saw, None for absence
    stamp: Version | None = None  # of what it wrote or saw
    rows: tuple[ScannedRow, ...] = ()  # what a scan found
    why: str | None = None  # why it did not commit, in words that depend on the version of trikv

    @property
    def writes(self) -> bool:
        """Would it change its key if it took effect?"""
        return self.kind is Kind.PUT or self.kind is Kind.DELETE or self.kind is Kind.CAS

    @property
    def saw_mismatch(self) -> bool:
        """Was it a cas that failed because the key held something else?"""
        return self.kind is Kind.CAS and self.outcome is Outcome.REFUSED and self.code == PRECONDITION_FAILED

    def __str__(self) -> str:
        """One line for a person: `c1 put x = v3, 0.120 s to 0.180 s, committed at 1.1-4`."""
        if self.kind is Kind.PUT:
            deed = f"put {self.key} = {self.value}"
        elif self.kind is Kind.CAS:
            deed = f"cas {self.key} from {_shown(self.expect)} to {_shown(self.value)}"
        elif self.kind is Kind.SCAN:
            deed = f"scan {self.key}* found {len(self.rows)} keys"
        elif self.kind is Kind.GET and self.outcome is Outcome.COMMITTED:
            deed = f"get {self.key} -> {_shown(self.result)}"
        else:
            deed = f"{self.kind.value} {self.key}"
        until = "no answer" if self.returned_s is None else f"{self.returned_s:.3f} s"
        stamp = f" at {self.stamp}" if self.stamp is not None else ""
        reason = ": ".join(filter(None, (self.code, self.why)))
        code = f" ({reason})" if reason else ""
        return f"{self.client} {deed}, {self.invoked_s:.3f} s to {until}, {self.outcome.value}{code}{stamp}"


def _shown(value: str | None) -> str:
    return "nothing" if value is None else value


class Judgement(StrEnum):
    """What a checker can say of a history."""

    LINEARIZABLE = "linearizable"
    VIOLATION = "violation"
    UNDECIDED = "not decided"  # the checker ran out of steps; this is not a pass


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that a history breaks, why, and the operations that show it.

    `why` is one sentence; `[1]` in it means the first of `operations`. `at_s`: when the rule was broken, if that is not
    the end of the last of them.
    """

    rule: str
    key: str
    why: str
    operations: tuple[Operation, ...] = ()
    at_s: float | None = None

    def __str__(self) -> str:
        lines = [f"{self.rule}, key {self.key}: {self.why}"]
        lines += [f"  [{number}] {operation}" for number, operation in enumerate(self.operations, start=1)]
        return "\n".join(lines)


class Recorder:
    """Records a history as it happens. `operations` is the history so far, in order of beginning.

    If several recorders take part in one history, each needs its own `name`, with which its fresh values begin.
    """

    def __init__(self, name: str = "v") -> None:
        self.operations: list[Operation] = []
        self._name = name
        self._events = 0
        self._values = 0

    def fresh_value(self) -> str:
        """A value that this recorder has not given out before."""
        self._values += 1
        return f"{self._name}{self._values}"

    def begin(
        self, client: str, kind: Kind, key: str, now: float, *, value: str | None = None, expect: str | None = None
    ) -> Operation:
        """Call it before the request leaves. Until it ends, the operation's outcome is unknown."""
        operation = Operation(client, kind, key, self._events, now, value, expect)
        self._events += 1
        self.operations.append(operation)
        return operation

    def end(
        self,
        operation: Operation,
        now: float,
        outcome: Outcome,
        *,
        result: str | None = None,
        stamp: Version | None = None,
        code: str | None = None,
        rows: tuple[ScannedRow, ...] = (),
    ) -> None:
        """Call it after the answer came, or when the client stopped waiting for it (unknown)."""
        assert operation.returned_s is None, operation
        operation.returned_s = now
        operation.outcome = outcome
        operation.code = code
        operation.result = result
        operation.stamp = stamp
        operation.rows = rows
        if outcome is not Outcome.UNKNOWN:
            operation.ended = self._events
            self._events += 1


def merge(histories: Iterable[Sequence[Operation]]) -> list[Operation]:
    """One history of several that were recorded apart, by clocks that agree. Places are given anew, in the operations.

    Of events at one instant the beginnings come first: operations that may have been concurrent count as concurrent.
    """
    operations = [operation for history in histories for operation in history]
    events = [(operation.invoked_s, False, operation) for operation in operations]
    events += [(op.returned_s, True, op) for op in operations if op.returned_s is not None and op.ended is not None]
    events.sort(key=lambda event: event[:2])
    for place, (_, is_end, operation) in enumerate(events):
        if is_end:
            operation.ended = place
        else:
            operation.began = place
    operations.sort(key=lambda operation: operation.began)
    return operations


def by_key(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    """Each key's operations, in order of beginning. A scan counts as a get of every key that it covers.

    Cost: a committed scan becomes as many gets as the history knows keys in its range.
    """
    keys: dict[str, list[Operation]] = {}
    scans: list[Operation] = []
    for operation in operations:
        if operation.kind is not Kind.SCAN:
            keys.setdefault(operation.key, []).append(operation)
        elif operation.outcome is Outcome.COMMITTED:
            scans.append(operation)
            for row in operation.rows:
                keys.setdefault(row.key, [])
    for scan in scans:
        found = {row.key: row for row in scan.rows}
        for key, ops in keys.items():
            if key in found or _covers(scan, key):
                ops.append(_get_of(scan, key, found.get(key)))
    for ops in keys.values():
        ops.sort(key=lambda operation: operation.began)
    return keys


def _covers(scan: Operation, key: str) -> bool:
    """Would the scan's page hold this key if the key existed? (Text sorts by code point as UTF-8 does by byte.)"""
    after, last = scan.value, scan.result
    return key.startswith(scan.key) and (after is None or key > after) and (last is None or key <= last)


def _get_of(scan: Operation, key: str, row: ScannedRow | None) -> Operation:
    get = Operation(scan.client, Kind.GET, key, scan.began, scan.invoked_s)
    get.ended, get.returned_s, get.outcome = scan.ended, scan.returned_s, scan.outcome
    if row is not None:
        get.result, get.stamp = row.value, row.stamp
    return get


# --- as JSON lines ------------------------------------------------------------------------------------------------


def dump(operations: Iterable[Operation], file: TextIO) -> None:
    """Write a history: a line that names the format, then a line for each operation, without its empty fields."""
    file.write(json.dumps({"history": HISTORY_FORMAT}) + "\n")
    for operation in operations:
        file.write(json.dumps(_to_json(operation), separators=(",", ":")) + "\n")


def load(file: TextIO) -> list[Operation]:
    """The history that `dump` wrote.

    Raises:
      ValueError: the file is not one, is of another format, or is damaged; the message names the line.
    """
    operations: list[Operation] = []
    number = 0
    try:
        for number, line in enumerate(file, start=1):
            item = json.loads(line)
            if number > 1:
                operations.append(_from_json(item))
            elif item["history"] != HISTORY_FORMAT:
                raise ValueError(f"a history of format {item['history']}; this trikv reads format {HISTORY_FORMAT}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"line {number}: not a line of a history: {error!r}") from error
    if number == 0:
        raise ValueError("line 1: not a history: the file is empty")
    return operations


def _to_json(operation: Operation) -> dict[str, Any]:
    item: dict[str, Any] = {
        "client": operation.client,
        "kind": operation.kind.value,
        "key": operation.key,
        "began": operation.began,
        "invoked_s": operation.invoked_s,
        "outcome": operation.outcome.value,
    }
    for name in ("value", "expect", "ended", "returned_s", "code", "result", "why"):
        if getattr(operation, name) is not None:
            item[name] = getattr(operation, name)
    if operation.stamp is not None:
        item["stamp"] = str(operation.stamp)
    if operation.rows:
        item["rows"] = [[key, value, None if stamp is None else str(stamp)] for key, value, stamp in operation.rows]
    return item


def _from_json(item: dict[str, Any]) -> Operation:
    return Operation(
        client=item["client"],
        kind=Kind(item["kind"]),
        key=item["key"],
        began=item["began"],
        invoked_s=item["invoked_s"],
        value=item.get("value"),
        expect=item.get("expect"),
        ended=item.get("ended"),
        returned_s=item.get("returned_s"),
        outcome=Outcome(item["outcome"]),
        code=item.get("code"),
        result=item.get("result"),
        stamp=_parse_stamp(item.get("stamp")),
        rows=tuple(ScannedRow(key, value, _parse_stamp(stamp)) for key, value, stamp in item.get("rows", ())),
        why=item.get("why"),
    )


def _parse_stamp(text: str | None) -> Version | None:
    return None if text is None else Version.parse(text)
