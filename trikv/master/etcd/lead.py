"""The leader's key and its lease: taking the lead, keeping it, and knowing until when no other master can have it.

The key is written only by a transaction that compares its revision, so of two masters one wins, and a request that
arrives late fails. What this master knows of its own key is that revision, which stands for the lease too.

*When a renewal counts.* etcd's members answer a keep-alive without asking each other. A leading member that was deposed
and does not know it yet (its disk hangs, or it was stopped and wakes) answers it as well, while the lease ends at its
successor. It may also end leases that look expired to it, which its successor has renewed (etcd-io/etcd#15247: etcd
3.4.23 has no remedy, later ones a partial one). So a renewal counts only if the term of etcd's consensus was the same
before the lease was granted and in a transaction through the consensus, sent after the answer of the keep-alive, which
finds the leader's key as this master wrote it. Then no later leading member had been elected when the lease was
renewed, and members that were deposed before that term do not know the lease; so the keep-alive was answered by the
leading member of that term, and its successors give each lease its whole time again. Otherwise the key is bound to a
new lease, whose time counts from before it was asked for.

*A lease that has ended*, of a leader that nobody replaced: the key is made anew in one transaction that also finds the
document as this master wrote it. If another master had led in the meantime, its first act was to change the document.

What it costs: a keep-alive and a transaction for each third of a lease; the transaction is an fsync of etcd's, and
makes no history. A new lease and one revision of the key at each change of etcd's leading member.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from trikv.master.configstore import ConfigStoreError
from trikv.master.etcd.answers import spell
from trikv.master.etcd.calls import EtcdCalls, EtcdLease, Keys, get, is_at, put
from trikv.master.etcd.document import EtcdDocument
from trikv.master.etcd.roster import KeyState, Roster, read_leader, write_leader
from trikv.master.leadership import LEASE_MARGIN, Candidate, Leader
from trikv.net.signal import Signal

GIVE_UP_S: Final = 1.0  # for telling etcd of a clean end
RENEWALS_PER_LEASE: Final = 3
_TRIES: Final = 4  # of binding the key, each after news; the next renewal goes on

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Held:
    """The lead, as far as this master knows."""

    lease: EtcdLease
    revision: int  # of the leader's key, as this master wrote it, bound to that lease
    until_s: float
    since: str
    is_gone: bool = False  # the key was seen gone, so that lease counts no more


class EtcdLead:
    """`me`: this master, set before it can lead.

    Args:
      learnt: called when the roster has been told something, and when `leads` has become different.
      clock: seconds; it must not stand still while the machine is suspended.
    """

    def __init__(
        self,
        calls: EtcdCalls,
        keys: Keys,
        document: EtcdDocument,
        roster: Roster,
        lease_s: int,
        clock: Callable[[], float],
        learnt: Callable[[], None],
    ) -> None:
        self._calls = calls
        self._key = keys.leader
        self._document = document
        self._roster = roster
        self._lease_s = lease_s
        self._clock = clock
        self._learnt = learnt
        self.me: Candidate | None = None
        self._held: _Held | None = None
        self._turn = trio.Lock()  # of those that write the key
        self._renewing: trio.CancelScope | None = None
        self._woken = Signal()
        self._leases: set[int] = set()  # asked for, and not known to have ended

    @property
    def leads(self) -> bool:
        return self._held is not None

    def holds(self) -> bool:
        return self._held is not None and self._clock() < self._held.until_s

    async def take(self, since: str) -> bool:
        """Try once."""
        async with self._turn:
            if self._held is not None:
                return True
            value = write_leader(Leader(self._master, since))
            try:
                lease = await self._calls.grant(self._lease_s, self._leases)
                answer = await self._calls.commit(
                    [is_at(self._key, 0)], [put(self._key, value, lease.id)], [get(self._key)]
                )
            except ConfigStoreError:
                return False  # where the key was made all the same, it ends with its lease
            finally:
                self._woken.notify()  # there is a lease to renew, or to end
            if not answer.succeeded:
                self._take_in(answer.found[0])
                return False
            self._held = _Held(lease, answer.revision, self._until_s(lease), since)
            self._take_in([KeyState(self._key, value, answer.revision)])
            return True

    async def give_up(self) -> None:
        """Lead no more; returns within `GIVE_UP_S`."""
        was_held, self._held = self._held is not None, None
        if self._renewing is not None:
            self._renewing.cancel()
        if was_held:
            self._learnt()
        with trio.move_on_after(GIVE_UP_S):
            async with self._turn:
                await self._end_leases()

    async def keep(self, every_s: float, complain: Callable[[ConfigStoreError | None], None]) -> None:
        """Renew the lease while this master leads, and end those that are of no use, until cancelled."""
        while True:
            again_s = every_s
            with trio.CancelScope() as self._renewing:
                try:
                    async with self._turn:
                        await self._renew(every_s)
                    complain(None)
                except ConfigStoreError as error:
                    complain(error)
                    again_s = every_s / 3
            self._renewing = None
            await self._woken.wait(again_s if self._held is not None or self._leases else math.inf)

    def look(self) -> None:
        """Judge what the roster says of the leader's key."""
        held, state = self._held, self._roster.leader_state
        if held is None or max(self._roster.revision, 0 if state is None else state.revision) <= held.revision:
            return
        if state is None or state.value is None:
            if not held.is_gone:
                held.is_gone = True
                held.until_s = -math.inf
                self._woken.notify()
        elif not self._is_mine(state):
            self._lose(f"the leader's key is another's: {spell(state.value.decode(errors='replace'))}")

    # --- one renewal --------------------------------------------------------------------------------------------------

    async def _renew(self, every_s: float) -> None:
        """The caller has `_turn`."""
        held = self._held
        is_due = held is not None and (held.is_gone or self._clock() >= held.lease.sent_s + every_s / 2)
        is_known = held is None or not is_due or await self._extend(held) or await self._bind(held)
        if is_known:  # else one of the leases may be the key's
            await self._end_leases()

    async def _extend(self, held: _Held) -> bool:
        """Renew the key's lease; is it certain that it was renewed?"""
        if held.is_gone:
            return False
        raft_term = held.lease.raft_term
        sent_s = self._clock()
        ttl_s = await self._calls.keep_alive(held.lease.id)
        if ttl_s == 0:
            return False
        proof = await self._calls.commit([is_at(self._key, held.revision)], [])
        if not proof.succeeded or proof.raft_term != raft_term or held.is_gone:
            return False
        held.lease.sent_s, held.lease.ttl_s = sent_s, ttl_s
        held.until_s = self._until_s(held.lease)
        return True

    async def _bind(self, held: _Held) -> bool:
        """Bind the key to a new lease, and make it anew if it is gone; is it known what became of it?"""
        if self._held is not held:  # it was lost meanwhile
            return True
        value = write_leader(Leader(self._master, held.since))
        lease = await self._calls.grant(self._lease_s, self._leases)
        revision = 0 if held.is_gone else held.revision
        for _ in range(_TRIES):
            compares = [is_at(self._key, revision)] + [self._document.is_unchanged()] * (revision == 0)
            answer = await self._calls.commit(
                compares, [put(self._key, value, lease.id)], [get(self._key), self._document.get()]
            )
            if self._held is not held:
                return True
            if answer.succeeded:
                held.lease, held.revision, held.is_gone = lease, answer.revision, False
                held.until_s = self._until_s(lease)
                self._take_in([KeyState(self._key, value, answer.revision)])
                return True
            key, document = (states[0] if states else None for states in answer.found)
            if key is not None and self._is_mine(key):  # by a transaction that got no answer
                revision = key.revision
            elif key is not None:
                self._take_in([key])
                self._lose("another master leads")
                return True
            elif revision != 0:
                revision = 0
            elif not self._document.recognize(document):
                self._lose("its lease ended, and the document was changed since")
                return True
        return False

    async def _end_leases(self) -> None:
        """End those that the key is not bound to. The caller has `_turn`."""
        of_use = None if self._held is None else self._held.lease.id
        for lease in self._leases - {of_use}:
            if await self._calls.revoke(lease):
                self._leases.discard(lease)

    def _until_s(self, lease: EtcdLease) -> float:
        """When another master may lead, at the earliest. What etcd claims beyond what was asked for is not believed."""
        return lease.sent_s + min(lease.ttl_s, self._lease_s) * (1 - LEASE_MARGIN)

    def _is_mine(self, state: KeyState) -> bool:
        leader = read_leader(state.value)
        return leader is not None and leader.master.name == self._master.name

    @property
    def _master(self) -> Candidate:
        assert self.me is not None, "the store runs first"
        return self.me

    def _take_in(self, states: Sequence[KeyState]) -> None:
        for state in states:
            self._roster.take(state)
        self._learnt()

    def _lose(self, why: str) -> None:
        if self._held is not None:
            self._held = None
            _log.warning("this master leads no more: %s", why)
            self._learnt()
