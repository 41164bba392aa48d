"""A config store that several masters share, in memory: for tests of what masters do with one, without an etcd.

`SharedState` is what the store holds: the document, the leader key, the masters, each key with the end of its lease.
Each master has a `MemorySharedConfigStore` of its own onto it, its client, which keeps the promises of
`SharedConfigStore`. A client can be disturbed, and the others go on:

    state = SharedState(lease_s=3.0)
    first, second = state.client(), state.client()
    first.cut_off()          its requests fail, and it hears nothing, until `mend`
    second.late_s = 0.5      its requests, its answers and its news take so long, each way

A request that had reached the state when its client was cut off was carried out, and its answer is lost: a change of
the document then ends in doubt. A request that had not reached it was not carried out.

The clock is given, Trio's if none is. It is one clock for all, so nothing here finds a mistake with clocks that differ.
Left out: members of the store that fail one by one, and stale reads.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import cbor2
import trio

from trikv.config import LEASE_S
from trikv.master.configstore import ConfigConflict, ConfigStoreError, NotChanged
from trikv.master.leadership import LEASE_MARGIN, Candidate, Leader, SharedConfigStore
from trikv.net.signal import Signal

_RENEWALS_PER_LEASE: Final = 3
_GIVE_UP_S: Final = 1.0

_log = logging.getLogger(__name__)


class SharedState:
    """What the store holds. A key is gone once its lease has ended."""

    def __init__(self, *, lease_s: float = LEASE_S, now: Callable[[], float] = trio.current_time) -> None:
        self.lease_s = lease_s
        self.now = now
        self.body: bytes | None = None
        self.revision = 0
        self.changed = Signal()
        self._leader: tuple[Leader, float] | None = None
        self._masters: dict[str, tuple[Candidate, float]] = {}

    def client(self) -> MemorySharedConfigStore:
        return MemorySharedConfigStore(self)

    @property
    def leader(self) -> Leader | None:
        self._forget_ended()
        return None if self._leader is None else self._leader[0]

    @property
    def masters(self) -> Sequence[Candidate]:
        self._forget_ended()
        return tuple(sorted(master for master, _ in self._masters.values()))

    @property
    def next_end_s(self) -> float:
        """When the next lease ends that nobody renews; infinity: there is none."""
        ends = [until_s for _, until_s in self._masters.values()]
        return min(ends + ([self._leader[1]] if self._leader else []), default=math.inf)

    def note_master(self, master: Candidate) -> None:
        """Show this master, or go on showing it."""
        is_new = master not in self.masters
        self._masters[master.name] = (master, self.now() + self.lease_s)
        if is_new:
            self.changed.notify()

    def lead(self, leader: Leader) -> bool:
        """Create the leader key or, if it is this leader's already, renew its lease; False: it is another's."""
        present = self.leader
        if present is not None and present.master.name != leader.master.name:
            return False
        self._leader = (present or leader, self.now() + self.lease_s)
        if present is None:
            self.changed.notify()
        return True

    def give_up(self, name: str) -> None:
        """Delete the leader key, if it is this master's."""
        if self._leader is not None and self._leader[0].master.name == name:
            self._leader = None
            self.changed.notify()

    def _forget_ended(self) -> None:
        now = self.now()
        ended = [name for name, (_, until_s) in self._masters.items() if until_s <= now]
        for name in ended:
            del self._masters[name]
        is_over = self._leader is not None and self._leader[1] <= now
        if is_over:
            self._leader = None
        if ended or is_over:
            self.changed.notify()


class MemorySharedConfigStore(SharedConfigStore):
    """One master's client. `late_s` may be changed at any time."""

    def __init__(self, state: SharedState) -> None:
        self.leader: Leader | None = None
        self.masters: Sequence[Candidate] = ()
        self.changed = Signal()
        self.leads = False
        self.late_s = 0.0
        self._state = state
        self._me: Candidate | None = None
        self._since = ""
        self._held_until_s = -math.inf
        self._revision = 0  # of the document that this master read or wrote last
        self._in_doubt: bytes | None = None  # what it may have written after that
        self._seen = 0  # how often the state had changed when it was looked at last
        self._turn = trio.Lock()  # one request about leases at a time, else an older answer could overtake a newer one
        self._is_cut = False
        self._mended = Signal()
        self._error: str | None = None

    def cut_off(self) -> None:
        self._is_cut = True

    def mend(self) -> None:
        self._is_cut = False
        self._mended.notify()

    # --- the document -------------------------------------------------------------------------------------------------

    async def read(self) -> tuple[dict[str, Any] | None, int]:
        await self._go()
        body, revision = self._state.body, self._state.revision
        await self._return()
        self._revision, self._in_doubt = revision, None
        return None if body is None else cbor2.loads(body), revision

    async def compare_and_set(self, document: dict[str, Any], revision: int) -> int:
        body = cbor2.dumps(document)
        try:
            await self._go()
        except ConfigStoreError as error:
            raise NotChanged(str(error)) from error
        state = self._state
        is_changed = revision == state.revision
        if is_changed:
            state.body = body
            state.revision += 1
            self._in_doubt = body  # until the answer is here
        await self._return()
        if not is_changed:
            raise ConfigConflict(f"the document is not at revision {revision} any more")
        self._revision, self._in_doubt = revision + 1, None
        return revision + 1

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()

    # --- the lead -----------------------------------------------------------------------------------------------------

    async def run(self, me: Candidate, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        state = self._state
        self._me = me
        await self._renew()
        task_status.started()
        is_told = False
        while True:
            again_s = state.now() + state.lease_s / _RENEWALS_PER_LEASE
            if state.changed.count == self._seen and not self._is_cut:
                await state.changed.wait(max(0.0, min(again_s, state.next_end_s) - state.now()))
            try:
                async with self._turn:
                    await self._renew()
                is_told = False
            except ConfigStoreError as error:
                if not is_told:
                    _log.warning("%s", error)
                is_told = True
                await self._mended.wait(state.lease_s / _RENEWALS_PER_LEASE)

    async def take_lead(self, since: str) -> bool:
        assert self._me is not None, "run it first"
        state = self._state
        async with self._turn:
            sent_s = state.now()
            try:
                await self._go()
                is_mine = state.lead(Leader(self._me, since))
                revision, leader = state.revision, state.leader
                await self._return()
            except ConfigStoreError:
                return False
            if is_mine:
                self._since = since
                self._revision, self._in_doubt = revision, None
                self._hold_from(sent_s)
            self._note(is_mine, leader, self.masters)
            return is_mine

    async def give_up_lead(self) -> None:
        self._held_until_s = -math.inf
        self._note(False, self.leader, self.masters)
        with trio.move_on_after(_GIVE_UP_S):
            async with self._turn:
                try:
                    await self._go()
                    if self._me is not None:
                        self._state.give_up(self._me.name)
                    leader = self._state.leader
                    await self._return()
                except ConfigStoreError:
                    return
                self._note(False, leader, self.masters)

    def holds(self) -> bool:
        return self.leads and self._state.now() < self._held_until_s

    def describe(self) -> dict[str, Any]:
        endpoint = {"endpoint": "memory", "reachable": not self._is_cut, "error": self._error}
        return {"kind": "memory", "endpoints": [endpoint], "error": self._error}

    async def _renew(self) -> None:
        """Renew both leases, and note what the store tells."""
        assert self._me is not None
        state = self._state
        sent_s = state.now()
        await self._go()
        state.note_master(self._me)
        is_mine = self.leads and (state.leader is not None or self._is_own_document())
        is_mine = is_mine and state.lead(Leader(self._me, self._since))
        leader, masters, self._seen = state.leader, state.masters, state.changed.count
        await self._return()
        is_mine = is_mine and self.leads  # it may have been given up meanwhile
        if is_mine:
            self._hold_from(sent_s)
        self._note(is_mine, leader, masters)

    def _is_own_document(self) -> bool:
        state = self._state
        is_doubtful_one = self._in_doubt is not None and state.revision == self._revision + 1
        return state.revision == self._revision or (is_doubtful_one and state.body == self._in_doubt)

    def _hold_from(self, sent_s: float) -> None:
        self._held_until_s = sent_s + self._state.lease_s * (1 - LEASE_MARGIN)

    def _note(self, leads: bool, leader: Leader | None, masters: Sequence[Candidate]) -> None:
        if (leads, leader, masters) != (self.leads, self.leader, self.masters):
            self.leads, self.leader, self.masters = leads, leader, masters
            self.changed.notify()

    async def _go(self) -> None:
        """The way of a request to the state.

        Raises:
          ConfigStoreError: it did not reach it.
        """
        await trio.sleep(self.late_s)
        if self._is_cut:
            self._error = "the config store cannot be reached"
            raise ConfigStoreError(self._error)

    async def _return(self) -> None:
        """The way of an answer back.

        Raises:
          ConfigStoreError: it did not arrive.
        """
        await trio.sleep(self.late_s)
        if self._is_cut:
            self._error = "the config store gave no answer"
            raise ConfigStoreError(self._error)
        self._error = None
