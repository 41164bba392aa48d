"""What a worker has promised: the arithmetic that makes every older coordinator, and every late message, harmless.

A worker never goes behind the newest epoch that it met for a partition, nor behind the newest term that it met for
any. *Any* request fences: an older epoch is stale, a newer one must first be promised (durably, by whoever holds this
value) and is then served. There is no separate fencing round.

What was promised cannot be taken back, so an absurd epoch must never be: one message of nonsense would shut the worker
to its master for ever. An epoch counts only within `JUMP_MAX` of what is known: of the highest term, be it promised or
greeted (`note_term`), and of the partition's generation.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from trikv.core.record import JUMP_MAX, TERM_MAX, generation_of, make_epoch, term_of


class EpochJudgement(Enum):
    KNOWN = "known"  # the epoch that is promised: serve
    NEWER = "newer"  # promise it on disk, then serve
    STALE = "stale"  # refuse
    ABSURD = "absurd"  # refuse, and do not remember


class Fence:
    """The promises of one worker: an epoch for each partition that was ever asked for, and the highest term of all."""

    def __init__(self, promised: Mapping[int, int] | None = None) -> None:
        self._promised = dict(promised or {})
        self.term = max(map(term_of, self._promised.values()), default=0)
        self._term_known = self.term

    def believes(self, term: int) -> bool:
        """May a master have this term? To a worker that has met none, any that leaves room for others."""
        return term <= (self._term_known + JUMP_MAX if self._term_known else TERM_MAX - JUMP_MAX)

    def note_term(self, term: int) -> None:
        """A master of this term has greeted, and is believed: for its term, or since it is known already."""
        self._term_known = max(self._term_known, term)

    def promised(self, partition: int) -> int:
        """The oldest epoch that is still served. Neither part of it goes back: a later term that comes with an earlier
        generation is a master's whose document is older than the cluster, and it must hear of that generation."""
        return make_epoch(self.term, generation_of(self._promised.get(partition, 0)))

    def judge(self, partition: int, epoch: int) -> EpochJudgement:
        if self._promised.get(partition) == epoch and term_of(epoch) == self.term:
            return EpochJudgement.KNOWN
        term, generation = term_of(epoch), generation_of(epoch)
        known = generation_of(self._promised.get(partition, 0))
        if term < self.term or generation < known:
            return EpochJudgement.STALE
        return EpochJudgement.NEWER if self.believes(term) and generation <= known + JUMP_MAX else EpochJudgement.ABSURD

    def promise(self, partition: int, epoch: int) -> None:
        assert self.judge(partition, epoch) in (EpochJudgement.KNOWN, EpochJudgement.NEWER), (partition, epoch)
        self._promised[partition] = epoch
        self.term = max(self.term, term_of(epoch))
        self._term_known = max(self._term_known, self.term)
