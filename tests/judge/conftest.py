"""Histories written as one reads them: `told("0-2 c1 put x=a", "3-4 c2 get x=a")`.

A line is `BEGIN-END CLIENT KIND KEY=VALUE [MARK] [@SEQ]`. A cas says `x=a>b`, absence is `-`, deletes name the key
alone. Marks: `?` unknown, `!` refused, `#` a cas that met something else. `@7` gives the stamp with the number 7.
Events at the same time are concurrent.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from trikv.core.errors import Outcome
from trikv.core.record import Version, make_epoch
from trikv.testing.judge.history import PRECONDITION_FAILED, Kind, Operation, merge

Told = Callable[..., list[Operation]]


def _value(text: str) -> str | None:
    return None if text == "-" else text


def _operation(line: str) -> Operation:
    span, client, kind, deed, *marks = line.split()
    begin, end = map(float, span.split("-"))
    key, _, what = deed.partition("=")
    operation = Operation(client, Kind(kind), key, -1, begin, returned_s=end, ended=-1, outcome=Outcome.COMMITTED)
    if operation.kind is Kind.GET:
        operation.result = _value(what)
    elif operation.kind is Kind.CAS:
        expect, _, value = what.partition(">")
        operation.expect, operation.value = _value(expect), _value(value)
    elif operation.kind is Kind.PUT:
        operation.value = what
    for mark in marks:
        if mark == "?":
            operation.outcome, operation.ended = Outcome.UNKNOWN, None
        elif mark == "!":
            operation.outcome, operation.code = Outcome.REFUSED, "unavailable"
        elif mark == "#":
            operation.outcome, operation.code = Outcome.REFUSED, PRECONDITION_FAILED
        else:
            operation.stamp = Version(make_epoch(1, 1), int(mark.removeprefix("@")))
    return operation


@pytest.fixture(scope="session")
def told() -> Told:
    return lambda *lines: merge([[_operation(line) for line in lines]])
