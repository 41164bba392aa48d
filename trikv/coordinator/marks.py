"""What is known to be committed of what the replicas of a partition hold: `trikv.api.ReplicaSet.is_committed`.

A strategy such as CRAQ returns what one replica holds if that is committed, and asks others only if it may not be. The
coordinator sends every write, so it knows without asking anybody. How it knows depends on the record's epoch:

- A record of this epoch was sent here. Its key is in doubt from before the first byte left until that write, or a newer
  one, is committed (`PartitionState.pending`).
- A record of an earlier epoch may be what is left of a write that never was: the master that sent it may have died. If
  the members are `alike`, it is on all of them. They were compared in this epoch, or all heard when the partition was
  settled, and nothing of an earlier epoch arrives any more.

A request takes the marks of its beginning. What it fetches is of after that, so that the members were alike by then.
What replicas listed may be of before, and is not judged here.

Cost: one lookup for each question, and one object for a partition and epoch. Nothing is kept for each key.
"""

from __future__ import annotations

from collections.abc import Mapping

from trikv.core.record import Record


class Marks:
    """The marks of one partition in one epoch. `pending`: the keys in doubt, as they are at any time."""

    __slots__ = ("_epoch", "_pending", "_turns", "alike")

    def __init__(self, epoch: int, pending: Mapping[bytes, Record], *, alike: bool) -> None:
        self.alike = alike
        self._epoch = epoch
        self._pending = pending
        self._turns = 0

    def is_committed(self, key: bytes, record: Record | None) -> bool:
        """Is it known that the record, or something newer, is on W members?"""
        if record is None:
            return True
        return key not in self._pending if record.version.epoch == self._epoch else self.alike

    def take_turn(self) -> int:
        """The number of this turn; they follow each other."""
        self._turns += 1
        return self._turns
