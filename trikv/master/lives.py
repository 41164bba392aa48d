"""Whether a worker is still the member that it says it is: the master's side of `core/lineage.py`.

Every heartbeat tells the starts that the worker's directory knows, and how many batches it has written. A worker counts
once the document names its present start and the worker has noted that. Until then it is sent nothing else, and is
doubtful. An older copy is told to be another member: it keeps what it holds, which counts for nothing, is enlisted
anew, and is given its share like one that lost its disk.

What is asked here is asked again with the next heartbeat, as long as it is needed. So it does not matter where a master
or a worker stops in between: the document and the worker's list say what is left to be done.

The batches are remembered in memory, by member. A copy of the present start that was put back is noticed if it has
fewer than the last heartbeat told, and if the master is the same as then.
"""

from __future__ import annotations

import logging
from typing import Final

from trikv.core.calls import Op, Vitals
from trikv.core.configuration import Member
from trikv.core.errors import Fault, TrikvError
from trikv.core.lineage import Claim, judge
from trikv.master.document import Document
from trikv.master.membership import Membership, WatchedWorker
from trikv.master.tasks import Tasks

ASK_TIMEOUT_S: Final = 2.0

_log = logging.getLogger(__name__)


class Lives:
    """What one master knows of the lives of its workers."""

    def __init__(self, document: Document, membership: Membership, tasks: Tasks) -> None:
        self._document = document
        self._membership = membership
        self._tasks = tasks
        self._heard: dict[Member, int] = {}  # of how many batches, at most
        self._seen_to: set[str] = set()  # workers that are being confirmed or renewed at this moment

    def admit(self, watched: WatchedWorker, vitals: Vitals) -> bool:
        """May the worker be sent what is for the member as which it is enlisted? If not, that is seen to."""
        if watched.lives_another_life:
            return False
        if self._judge(watched, vitals) is Claim.CONFIRMED:
            member = watched.enlisted.member
            if member not in self._heard:
                self._heard = {m: heard for m, heard in self._heard.items() if m in self._document.cluster.starts}
            self._heard[member] = vitals.batches
            return True
        worker = watched.enlisted.worker
        if worker not in self._seen_to:
            self._seen_to.add(worker)
            self._tasks.start_soon(self._see_to, worker)
        return False

    def _judge(self, watched: WatchedWorker, vitals: Vitals) -> Claim:
        member = watched.enlisted.member
        named = self._document.cluster.starts.get(member)
        return judge(vitals.starts, named, vitals.batches, self._heard.get(member, 0))

    async def _see_to(self, worker: str) -> None:
        try:
            await self._confirm_or_renew(worker)
        except TrikvError as error:
            _log.warning("worker %s cannot be confirmed now: %s", worker, error.detail)
        finally:
            self._seen_to.discard(worker)

    async def _confirm_or_renew(self, worker: str) -> None:
        document = self._document
        async with document.changing:
            watched = self._membership.watched.get(worker)
            if watched is None or watched.vitals is None or watched.lives_another_life:
                return
            member, vitals = watched.enlisted.member, watched.vitals
            claim, start = self._judge(watched, vitals), vitals.starts[-1]
            if claim is Claim.LATER:
                await document.change(lambda cluster: cluster.with_start(member, start))
        if claim is Claim.OLDER:
            heard = self._heard.get(member, 0)
            lacks = f"batch {heard}" if vitals.batches < heard else f"start {document.cluster.starts.get(member)}"
            reason = f"its data directory is an older copy, which lacks {lacks}"
            _log.warning("worker %s is another member from now on: %s", worker, reason)
            fault, _ = await watched.peer.ask(Op.RENEW, [member.incarnation, str(start), reason], ASK_TIMEOUT_S)
            if fault in (Fault.OK, Fault.OTHER_MEMBER):  # the latter: it was told before, and that answer was lost
                watched.peer.redial()  # it greets under its new incarnation
        elif claim is not Claim.CONFIRMED:
            fault, _ = await watched.peer.ask(Op.CONFIRM, [member.incarnation, str(start)], ASK_TIMEOUT_S)
            if fault == Fault.OK:
                watched.ask_now()
            elif fault == Fault.OTHER_MEMBER:
                watched.peer.redial()
