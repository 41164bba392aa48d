"""Being fenced: what this master does about workers that know more than its document.

A worker that knows of another master of this term, or of a higher one, makes this master take a term beyond it, by
compare-and-set. If that succeeds, the document was restored from a backup; if it fails, the other master has taken
over, and this one ends. Until a worker has said that it knows of none, it is sent nothing. A generation that the
document of the highest term does not know blocks that partition, since there may have been configurations that the
document does not know. Where several masters share the document, the next master has most likely made such a
generation. So the partition is blocked only if this master has gone beyond that master's term.

Workers that have followed this master and then know one of a later term, again and again, were taken away by a rival
that goes beyond as well: another master leads this cluster from another config store, as after a copy of the document.
Neither can win, so the operator is told to stop one of the two.

A worker is believed up to `PROMISED_MAX` beyond what is known, so that one broken packet cannot become a term or
generation that no later one can exceed.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Final

import trio

from trikv.coordinator.coordinator import Coordinator
from trikv.coordinator.partition import PartitionState
from trikv.core.errors import Refused
from trikv.core.record import PROMISED_MAX, generation_of, term_of
from trikv.master.document import Document
from trikv.master.events import EventLog
from trikv.master.membership import Membership
from trikv.master.tasks import Tasks

RIVAL_AT: Final = 3  # terms that have taken workers away
RIVAL_S: Final = 60.0  # within which they did
TOLD_AGAIN_S: Final = 600.0

_log = logging.getLogger(__name__)


class Fencing:
    """Of one master."""

    def __init__(
        self, document: Document, coordinator: Coordinator, membership: Membership, events: EventLog, tasks: Tasks
    ) -> None:
        self._document = document
        self._coordinator = coordinator
        self._membership = membership
        self._events = events
        self._tasks = tasks
        self._taken: dict[int, float] = {}  # by term: when it first took a worker away
        self._told_s = -math.inf
        self._suspected: dict[int, int] = {}  # by partition: an epoch of the next master's, or of before a backup

    def note_stale(self, state: PartitionState, promised: int) -> None:
        """A worker refused this state's epoch, since it has promised a newer one."""
        current = self._coordinator.partitions[state.index]
        known = current.partition.generation
        if generation_of(promised) > known + PROMISED_MAX:
            _log.error("a worker names generation %d of a partition: it is not believed", generation_of(promised))
        elif generation_of(promised) > known and not current.is_blocked and self._is_of_the_next_master(promised):
            self._suspected[state.index] = max(promised, self._suspected.get(state.index, 0), key=generation_of)
        elif current.is_blocked or generation_of(promised) > known:
            self._block(current, promised)
        if term_of(promised) > self._document.cluster.term:
            self.note_rival(term_of(promised))

    def _is_of_the_next_master(self, promised: int) -> bool:
        """May there be a next master, and may it have made this epoch?"""
        return self._coordinator.holds_lease is not None and term_of(promised) > self._document.cluster.term

    @staticmethod
    def _block(state: PartitionState, promised: int) -> None:
        was_blocked = state.is_blocked
        state.block(
            promised,
            f"a worker has promised generation {generation_of(promised)} of partition {state.index}, and the cluster's "
            f"document knows generation {state.partition.generation}: it is older than the cluster",
        )
        if state.is_blocked and not was_blocked:
            _log.error("%s", state.blocked_because)

    def note_rival(self, term: int, *, taken: bool = False) -> None:
        """A worker knows another master, of this term or a later one. `taken`: it had followed this one."""
        known = self._document.cluster.term
        if term > known + PROMISED_MAX:
            _log.error("a worker names term %d, far beyond %d: it is not believed", term, known)
        elif term >= known:
            if taken:
                self._note_taken(term)
            self._tasks.start_soon(self._outbid, term)

    def _note_taken(self, term: int) -> None:
        now = trio.current_time()
        self._taken = {each: when_s for each, when_s in self._taken.items() if now - when_s < RIVAL_S}
        self._taken.setdefault(term, now)
        if len(self._taken) >= RIVAL_AT and now - self._told_s >= TOLD_AGAIN_S:
            self._told_s = now
            self._events.note("master_rival", term=term)
            _log.error(
                "another master leads this cluster from another config store, and workers follow both in turn: "
                "stop one of the two"
            )

    async def _outbid(self, term: int) -> None:
        async with self._document.changing:
            known = self._document.cluster.term
            if term >= known:
                _log.warning("workers know a master of term %d, the document knew %d: going beyond", term, known)
                # Stored: under that other term there may be records, so a newcomer must stay spare.
                try:
                    await self._document.change(
                        lambda cluster: replace(cluster.with_term(term + 1), stored=cluster.formed), in_any_case=True
                    )
                except Refused as error:
                    _log.warning("that has to wait for the next heartbeat: %s", error.detail)
                    return
                for index, promised in self._suspected.items():  # nothing was served yet in the new term
                    state = self._coordinator.partitions[index]
                    if generation_of(promised) > state.partition.generation:
                        self._block(state, promised)
                self._suspected.clear()
                self._membership.redial()
