"""What a worker has promised: the arithmetic that makes every older coordinator, and every late message, harmless.

A worker never goes behind the newest epoch that it met for a partition, nor behind the newest term that it met for
any. *Any* request fences: an older epoch is stale, a newer one must first be promised (durably, by whoever holds this
value) and is then served. There is no separate fencing round.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from trikv.core.record import generation_of, make_epoch, term_of


class Judgement(Enum):
    KNOWN = "known"  # the epoch that is promised: serve
    NEWER = "newer"  # promise it on disk, then serve
    STALE = "stale"  # refuse


class Fence:
    """The promises of one worker: an epoch for each partition that was ever asked for, and the highest term of all."""

    def __init__(self, promised: Mapping[int, int] | None = None) -> None:
        self._promised = dict(promised or {})
        self.term = max(map(term_of, self._promised.values()), default=0)

    def promised(self, partition: int) -> int:
        """The oldest epoch that is still served. Neither part of it goes back: a later term that comes with an earlier
        generation is a master's whose document is older than the cluster, and it must hear of that generation."""
        return make_epoch(self.term, generation_of(self._promised.get(partition, 0)))

    def judge(self, partition: int, epoch: int) -> Judgement:
        if self._promised.get(partition) == epoch and term_of(epoch) == self.term:
            return Judgement.KNOWN
        behind = term_of(epoch) < self.term or generation_of(epoch) < generation_of(self.promised(partition))
        return Judgement.STALE if behind else Judgement.NEWER

    def promise(self, partition: int, epoch: int) -> None:
        assert self.judge(partition, epoch) is not Judgement.STALE, (partition, epoch)
        self._promised[partition] = epoch
        self.term = max(self.term, term_of(epoch))
