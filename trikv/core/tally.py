"""k of n, counted in three values: won, lost, still pending.

Counting only acknowledgements leaves two cases that look alike, "not yet" and "never again", and the second is then
found out by a timeout. Here a failure counts too: as soon as those that have not failed are fewer than the need, the
count is lost, and whoever waits for it is told at once. (The three values are those of etcd-io/raft's quorum package;
there a vote is looked up by voter, here a count is kept as the answers come.)

A verdict once reached stays, since enough acknowledgements leave too few that could fail, and the reverse; answers that
come later are still counted, for whoever is curious how the laggards fared. Each costs one addition, one comparison.

Left out: who answered. Whoever asks must see to it that each of the n answers or fails once.
"""

from __future__ import annotations

from enum import Enum


class TallyVerdict(Enum):
    PENDING = "pending"
    WON = "won"
    LOST = "lost"


class Tally:
    """`need` acknowledgements of `total`. A need of none is won, a need of more than there are is lost, at once."""

    __slots__ = ("acks", "failures", "need", "total", "verdict")

    def __init__(self, need: int, total: int) -> None:
        assert min(need, total) >= 0, (need, total)
        self.need = need
        self.total = total
        self.acks = 0
        self.failures = 0
        self.verdict = TallyVerdict.WON if need == 0 else TallyVerdict.LOST if need > total else TallyVerdict.PENDING

    def ack(self) -> TallyVerdict:
        """One more has it. Returns the verdict."""
        assert self.acks + self.failures < self.total, self
        self.acks += 1
        if self.acks == self.need:
            self.verdict = TallyVerdict.WON
        return self.verdict

    def fail(self) -> TallyVerdict:
        """One more will never answer, or not in time. Returns the verdict."""
        assert self.acks + self.failures < self.total, self
        self.failures += 1
        if self.total - self.failures < self.need:
            self.verdict = TallyVerdict.LOST
        return self.verdict

    def __repr__(self) -> str:
        return f"<Tally {self.verdict.value}: {self.acks} of {self.need}, {self.failures} failed, {self.total} asked>"
