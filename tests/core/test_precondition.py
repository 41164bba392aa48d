"""The four forms of an expectation, against a value, another value, a tombstone and nothing."""

import pytest

from trikv.core.precondition import Expect
from trikv.core.record import Record, Version

SEEN, OTHER, REPAIR = Version(1, 1), Version(1, 2), Version(2, 9)

VALUE = Record(SEEN, SEEN, b"v")
REPAIRED = Record(REPAIR, SEEN, b"v")  # a fresh version of the same write
CHANGED = Record(OTHER, OTHER, b"w")
TOMBSTONE = Record(SEEN, SEEN, None)

HOLDS = {
    Expect.present(): (True, True, True, False, False),
    Expect.absent(): (False, False, False, True, True),
    Expect.one_of([SEEN]): (True, True, False, False, False),
    Expect.none_of([SEEN]): (False, False, True, True, True),
    Expect.one_of([SEEN, OTHER]): (True, True, True, False, False),
    Expect.one_of([]): (False, False, False, False, False),
    Expect.none_of([]): (True, True, True, True, True),
}


@pytest.mark.parametrize("expect", HOLDS, ids=str)
def test_truth_table(expect: Expect) -> None:
    assert tuple(map(expect.holds, (VALUE, REPAIRED, CHANGED, TOMBSTONE, None))) == HOLDS[expect]


@pytest.mark.parametrize(
    ("expect", "current", "said"),
    [
        (Expect.present(), None, "has no value"),
        (Expect.one_of([SEEN]), TOMBSTONE, "has no value"),
        (Expect.absent(), VALUE, "the ETag 0.1-1, and was expected to have none"),
        (Expect.one_of([SEEN]), CHANGED, "0.1-2, which is not one of those given"),
        (Expect.none_of([SEEN]), VALUE, "0.1-1, which is one of those given"),
    ],
)
def test_a_failure_is_described(expect: Expect, current: Record | None, said: str) -> None:
    assert not expect.holds(current)
    assert said in expect.describe_failure(current)
