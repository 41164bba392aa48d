"""What a worker has promised: by it, older coordinators and late messages become harmless.

A worker never goes behind the newest epoch that it met for a partition, nor behind the newest term that it met for any
partition. *Every* request fences: an older epoch is stale, and a newer epoch must first be promised, durably, and is
then served. There is no separate round that fences. The holder of a `Fence` makes its promises durable.

A promise cannot be taken back, so an absurd epoch must never be promised: one message of nonsense would shut the worker
to its master for ever. An epoch counts only within `JUMP_MAX` of what is known: of the highest term, whether it was
promised or came with a greeting (`note_term`), and of the partition's generation.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

from trikv.core.record import JUMP_MAX, TERM_MAX, generation_of, make_epoch, term_of


class EpochJudgement(Enum):
    KNOWN = "known"  # it is the epoch that was promised: serve
    NEWER = "newer"  # promise it on disk, then serve
    STALE = "stale"  # refuse
    ABSURD = "absurd"  # refuse, and promise nothing


_KNOWN: Final = EpochJudgement.KNOWN  # every call looks it up


class Fence:
    """The promises of one worker: an epoch for each partition that was ever asked for, and the highest term of all."""

    def __init__(self, promised: Mapping[int, int] | None = None) -> None:
        self._promised = dict(promised or {})
        self.term = max(map(term_of, self._promised.values()), default=0)
        self._term_known = self.term

    def __len__(self) -> int:
        """Of how many partitions an epoch is promised."""
        return len(self._promised)

    def believes(self, term: int) -> bool:
        """May a master have this term? A worker that has met no term believes any that leaves room for later ones."""
        return term <= (self._term_known + JUMP_MAX if self._term_known else TERM_MAX - JUMP_MAX)

    def note_term(self, term: int) -> None:
        """A master of this term has greeted and is believed, for its term or because the worker knows it already."""
        self._term_known = max(self._term_known, term)

    def promised(self, partition: int) -> int:
        """The oldest epoch that is still served. Neither part of it goes back. A later term with an earlier generation
        comes from a master whose document is older than the cluster, and that master must hear of the generation."""
        return make_epoch(self.term, generation_of(self._promised.get(partition, 0)))

    def judge(self, partition: int, epoch: int) -> EpochJudgement:
        if self._promised.get(partition) == epoch and term_of(epoch) == self.term:
            return _KNOWN
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
