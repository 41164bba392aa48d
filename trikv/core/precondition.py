"""What a caller expects of a key before a write may happen: one half of compare-and-set.

An `Expect` asks one question about the key's record: does a live record match? Either every live record matches, or
only those that carry one of some stamps. The caller wants a match, or wants none. That gives the four forms of HTTP's
`If-Match` and `If-None-Match`, and all that a program needs:

    present()       any live record             If-Match: *
    one_of(stamps)  one that I have seen        If-Match: "3.0-17", "3.0-21"
    absent()        no live record              If-None-Match: *
    none_of(stamps) none of those I have seen   If-None-Match: "3.0-17"

It compares stamps, never versions: a repair gives a record a fresh version, and no client should notice. A tombstone is
not a live record, so a deleted key is absent. The coordinator holds the key's lock, so the answer stays true until the
write is on its replicas.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from trikv.core.record import Record, Version


@dataclass(frozen=True, slots=True)
class Expect:
    """`stamps`: those that match; None: every live record matches. `match`: does the caller want a match?"""

    stamps: frozenset[Version] | None
    match: bool

    @classmethod
    def absent(cls) -> Expect:
        return cls(None, match=False)

    @classmethod
    def present(cls) -> Expect:
        return cls(None, match=True)

    @classmethod
    def one_of(cls, stamps: Iterable[Version]) -> Expect:
        return cls(frozenset(stamps), match=True)

    @classmethod
    def none_of(cls, stamps: Iterable[Version]) -> Expect:
        return cls(frozenset(stamps), match=False)

    def holds(self, current: Record | None) -> bool:
        """Does it hold for the key's present record? None: there never was one."""
        if current is None or current.is_tombstone:
            return not self.match
        return (self.stamps is None or current.stamp in self.stamps) is self.match

    def describe_failure(self, current: Record | None) -> str:
        """Why it does not hold, for a person. `current` is the record that `holds` was asked about."""
        if current is None or current.is_tombstone:
            return "the key has no value, and was expected to have one"
        if self.stamps is None:
            return f"the key has a value, with the ETag {current.stamp}, and was expected to have none"
        return (
            f"the key's value has the ETag {current.stamp}, which is {'not ' if self.match else ''}one of those given"
        )
