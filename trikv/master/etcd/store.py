"""The config store in etcd as one object: the document, the lead, and who else there is.

    PREFIX/document          the document
    PREFIX/leader            who leads; bound to the leader's lease
    PREFIX/masters/NAME      each master that runs; bound to a lease of its own

*News.* A watch tells of leaders and masters as they come and go. Three times per lease they are also listed, plainly,
so a watch that has died unheard costs a third of a lease; nothing is decided by what is read so.

*Outages* are waited out: every task tries again, a third of a lease later at most, and the log has one line when the
first call is not answered and one when a call is again.

What it costs: each master two calls per third of a lease, and one watch, which idles; the leader two more calls, 0.7 %
of a core in all with leases of 3 s. What it leaves out: compaction, which is the operator's, since others may use the
same etcd.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import trio

from trikv.config import LEASE_S
from trikv.master.configstore import ConfigStoreError
from trikv.master.etcd.calls import EtcdCalls, Keys, put
from trikv.master.etcd.document import EtcdDocument
from trikv.master.etcd.gateway import EtcdGateway, EtcdRefusal
from trikv.master.etcd.lead import GIVE_UP_S, RENEWALS_PER_LEASE, EtcdLead
from trikv.master.etcd.roster import KeyState, Roster, write_master
from trikv.master.leadership import Candidate, Leader, SharedConfigStore
from trikv.net.doors import Doors, boottime
from trikv.net.etcdurl import EtcdSettings
from trikv.net.signal import Signal

_ATTEMPTS_PER_LEASE: Final = 4  # an endpoint that hangs costs a renewal no more than a fourth of the lease
RECHECK_S: Final = 5.0  # an endpoint that failed is asked again
_WATCH_AGAIN_S: Final = 0.1  # at first

_log = logging.getLogger(__name__)


class EtcdConfigStore(SharedConfigStore):
    """Make it with `open`."""

    def __init__(self, settings: EtcdSettings, lease_s: float, doors: Doors, clock: Callable[[], float]) -> None:
        self.leader: Leader | None = None
        self.masters: Sequence[Candidate] = ()
        self.leads = False
        self.changed = Signal()
        whole_lease_s = math.ceil(lease_s)  # etcd counts whole seconds
        keys = Keys(settings.prefix)
        self._keys = keys
        self._every_s = lease_s / RENEWALS_PER_LEASE
        self._lease_s = whole_lease_s
        self._gateway = EtcdGateway(settings, self._note)
        self._calls = EtcdCalls(self._gateway, keys, doors, clock, lease_s / _ATTEMPTS_PER_LEASE)
        self._roster = Roster(keys.leader)
        self._document = EtcdDocument(self._calls, keys.document)
        self._lead = EtcdLead(self._calls, keys, self._document, self._roster, whole_lease_s, clock, self._learnt)
        self._shown: int | None = None  # the lease of this master's own key
        self._watching: trio.CancelScope | None = None
        self._is_open = False  # from then on outages are for the log
        self._error: str | None = None
        self._error_since_s = 0.0
        self._complaints: dict[str, str | None] = {}

    @classmethod
    async def open(
        cls,
        settings: EtcdSettings,
        *,
        lease_s: float = LEASE_S,
        doors: Doors | None = None,
        clock: Callable[[], float] = boottime,
    ) -> EtcdConfigStore:
        """Reach etcd once.

        Args:
          lease_s: rounded up to whole seconds. etcd grants no less than one and a half of its election timeouts, 2 s
            if it is not told otherwise: nobody takes over sooner from a leader that is silent.
          clock: seconds; it must not stand still while the machine is suspended.

        Raises:
          ConfigStoreError: no endpoint answers, or etcd refuses this client; one line with the remedy.
        """
        store = cls(settings, lease_s, doors or Doors(), clock)
        try:
            await store._document.read(leads=False)
        except BaseException:  # whatever it was, the connections must not stay
            await store.close()
            raise
        store._is_open = True
        return store

    async def read(self) -> tuple[dict[str, Any] | None, int]:
        return await self._document.read(leads=self.leads)

    async def compare_and_set(self, document: dict[str, Any], revision: int) -> int:
        return await self._document.compare_and_set(document, revision)

    async def list_running(self) -> Sequence[Candidate]:
        """Which masters run now, read through the consensus; a leader whose own key is missing counts too."""
        states, _ = await self._calls.commit_roster()
        roster = Roster(self._keys.leader)
        roster.take_list(states, 1)
        leader = () if roster.leader is None else (roster.leader.master,)
        return tuple(sorted({*roster.masters, *leader}))

    async def close(self) -> None:
        with trio.CancelScope(shield=True), trio.move_on_after(GIVE_UP_S):
            await self._gateway.close()

    def holds(self) -> bool:
        return self._lead.holds()

    async def take_lead(self, since: str) -> bool:
        return await self._lead.take(since)

    async def give_up_lead(self) -> None:
        await self._lead.give_up()

    async def run(self, me: Candidate, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self._lead.me = me
        try:
            await self._show(me)
            await self._list()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_shown, me)
                nursery.start_soon(self._watch)
                nursery.start_soon(self._recheck_forever)
                nursery.start_soon(self._lead.keep, self._every_s, partial(self._complain, "the leader's lease"))
                task_status.started()
        finally:
            with trio.CancelScope(shield=True):
                await self._end()

    async def _end(self) -> None:
        """Tell etcd that this master goes; what etcd does not hear within `GIVE_UP_S` ends with its lease."""
        with trio.move_on_after(GIVE_UP_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._lead.give_up)
                if self._shown is not None:
                    nursery.start_soon(self._calls.revoke, self._shown)

    async def _show(self, me: Candidate) -> None:
        """Show this master among the others, under a new lease."""
        self._shown = lease = (await self._calls.grant(self._lease_s)).id
        await self._calls.commit([], [put(self._keys.masters + me.name, write_master(me), lease)])

    async def _keep_shown(self, me: Candidate) -> None:
        """Keep this master among those that run, and list them all."""
        while True:
            await trio.sleep(self._every_s)
            try:
                ttl_s = 0 if self._shown is None else await self._calls.keep_alive(self._shown)
                if ttl_s == 0 or me not in self.masters:
                    await self._show(me)
                if await self._list() and self._watching is not None:
                    self._watching.cancel()  # it should have told
                self._complain("the list of masters", None)
            except ConfigStoreError as error:
                self._complain("the list of masters", error)

    async def _recheck_forever(self) -> None:
        while True:
            await trio.sleep(RECHECK_S)
            await self._gateway.recheck(self._every_s)

    async def _list(self) -> bool:
        """List who leads and which masters there are; was that news?"""
        states, revision = await self._calls.list_roster()
        if revision < self._roster.revision:
            # A member is behind, or the store was put back from a backup: the consensus knows.
            states, revision = await self._calls.commit_roster()
            if revision < self._roster.revision:
                _log.warning("%s is at an earlier revision than before: it was put back", self._gateway.name)
                self._roster.forget()
                self._gateway.raft_term = 0
        is_news = self._roster.take_list(states, revision)
        self._learnt()
        return is_news

    async def _watch(self) -> None:
        again_s = _WATCH_AGAIN_S
        while True:
            began_s = trio.current_time()
            with trio.CancelScope() as self._watching:
                try:
                    await self._calls.watch_roster(self._roster.revision, self._told)
                except EtcdRefusal as error:
                    self._complain("the watch", error)
                except ConfigStoreError:
                    pass  # that it ended is no news: an outage is told by the calls
            self._watching = None
            is_new = trio.current_time() - began_s < self._every_s
            again_s = min(2 * again_s, self._every_s) if is_new else _WATCH_AGAIN_S
            await trio.sleep(again_s)

    def _told(self, states: Sequence[KeyState]) -> None:
        for state in states:
            if self._keys.of_roster(state.key):
                self._roster.take(state)
        self._learnt()

    def _learnt(self) -> None:
        """Take over what the parts know."""
        self._lead.look()
        known = self._lead.leads, self._roster.leader, self._roster.masters
        if known != (self.leads, self.leader, self.masters):
            self.leads, self.leader, self.masters = known
            self.changed.notify()

    # --- outages ------------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        return {"kind": "etcd", "endpoints": self._gateway.describe(), "error": self._error}

    def _note(self, error: str | None) -> None:
        """A call was answered (None), or was not."""
        before, self._error = self._error, error
        now_s = trio.current_time()
        if before is None and error is not None:
            self._error_since_s = now_s
        if self._is_open and before is None and error is not None:
            _log.warning("%s; trying again", error)
        elif self._is_open and before is not None and error is None:
            _log.warning("%s answers again, after %.1f s", self._gateway.name, now_s - self._error_since_s)

    def _complain(self, what: str, error: ConfigStoreError | None) -> None:
        """Log what is no outage, once, until it is over (None) or another."""
        told = None if error is None else str(error)
        if told not in (None, self._error, self._complaints.get(what)):
            _log.warning("%s: %s", what, told)
        self._complaints[what] = told
