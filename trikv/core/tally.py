"""k of n, counted in three values: won, lost, still pending.

A count of acknowledgements alone cannot tell "not yet" from "never", and only a timeout ends the wait. Here a failure
counts too: the count is lost as soon as too few replicas are left that have not failed, and its waiter is told at once.
(The three values are those of etcd-io/raft's quorum package. There a vote is looked up by voter; here a count is kept
as the answers come.)

A verdict stays once it is reached: enough acknowledgements leave too few replicas that could fail, and the reverse.
Later answers are still counted, so that the caller can see how the laggards fared. Each answer costs one addition and
one comparison.

Left out: which replica answered. The caller must see to it that each of the n answers or fails once.
"""

from __future__ import annotations

from enum import Enum


class TallyVerdict(Enum):
    PENDING = "pending"
    WON = "won"
    LOST = "lost"


# Looking up a member of an enumeration takes five times as long as a name of this module, and operations do it often.
_PENDING, _WON, _LOST = TallyVerdict.PENDING, TallyVerdict.WON, TallyVerdict.LOST


class Tally:
    """`need` acknowledgements of `total`. A need of 0 is won at once; a need beyond `total` is lost at once."""

    __slots__ = ("acks", "failures", "need", "total", "verdict")

    def __init__(self, need: int, total: int) -> None:
        assert min(need, total) >= 0, (need, total)
        self.need = need
        self.total = total
        self.acks = 0
        self.failures = 0
        self.verdict = _WON if need == 0 else _LOST if need > total else _PENDING

    def ack(self) -> TallyVerdict:
        """One more replica has acknowledged. Returns the verdict."""
        assert self.acks + self.failures < self.total, self
        self.acks += 1
        if self.acks == self.need:
            self.verdict = _WON
        return self.verdict

    def fail(self) -> TallyVerdict:
        """One more replica will never answer, or not in time. Returns the verdict."""
        assert self.acks + self.failures < self.total, self
        self.failures += 1
        if self.total - self.failures < self.need:
            self.verdict = _LOST
        return self.verdict

    def __repr__(self) -> str:
        return f"<Tally {self.verdict.value}: {self.acks} of {self.need}, {self.failures} failed, {self.total} asked>"
