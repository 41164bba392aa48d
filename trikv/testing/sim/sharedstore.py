"""The config store that simulated masters share: one machine behind the simulated network, and each master's client.

`StoreMachine` has the document, the leader's key with its lease, and the masters with theirs. It forgets nothing.
Requests reach it as messages of their own, which take their time, wait on a wire that is held, or are lost. A request
is carried out when it arrives, however late, also where its master has given up waiting, has stopped, or is dead. So a
change of the document whose answer did not come in time may have been made, may be made later, or never.

Leases end by the store's clock. Each master measures its own by a clock of its own, which runs at another rate.

A client's tasks belong to its node: while the node is stopped, what arrives waits, and is noticed when it goes on.

Left out: members of the store that fail one by one, and stale reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Generic, NamedTuple, TypeVar

import cbor2
import trio

from trikv.master.configstore import ConfigConflict, ConfigStoreError, NotChanged
from trikv.master.leadership import LEASE_MARGIN, Candidate, Leader, SharedConfigStore
from trikv.net.signal import Signal
from trikv.testing.sim.clock import SimClock
from trikv.testing.sim.disk import ConfigDisk
from trikv.testing.sim.network import Life, Network
from trikv.testing.sim.plan import STORE

_DOCUMENT_S: Final = 2.0  # for an answer about the document
_ATTEMPTS_A_LEASE: Final = 4  # an answer about the lease is waited for no longer than such a part of it
_RENEWALS_A_LEASE: Final = 3
_GIVE_UP_S: Final = 1.0

T = TypeVar("T")


class StoreNews(NamedTuple):
    """What the store tells of the masters. A higher number is newer."""

    number: int
    leader: Leader | None
    masters: Sequence[Candidate]


class LeadAnswer(NamedTuple):
    """The answer to a request about the leader's key. `lease`: the one that it is bound to, if it is the caller's."""

    lease: int | None
    revision: int  # of the document
    told: StoreNews


class StoreMachine:
    """The machine of the store. Its methods are called when a request arrives."""

    def __init__(self, disk: ConfigDisk, lease_s: float, clock: SimClock) -> None:
        self.disk = disk
        self.lease_s = lease_s
        self.is_down = False
        self.refuses = False  # while it is down: connections are refused; otherwise nothing is heard of it
        self.sent: dict[int, bytes] = {}  # documents on their way to it
        self.takeovers = 0
        self.renewals = 0  # of the leader's lease
        self._clock = clock
        self._number = 0
        self._leases = 0
        self._leader: tuple[Leader, int, float] | None = None  # the lease's number, and when it ends
        self._masters: dict[str, tuple[Candidate, float]] = {}
        self._watchers: dict[str, Callable[[StoreNews], None]] = {}

    @property
    def leader(self) -> Candidate | None:
        self._expire()
        return None if self._leader is None else self._leader[0].master

    # --- the document -------------------------------------------------------------------------------------------------

    def read(self) -> tuple[bytes, int]:
        return self.disk.body, self.disk.revision

    def change(self, body: bytes, revision: int) -> int | None:
        """The new revision; None: the document is not at that revision."""
        if revision != self.disk.revision:
            return None
        self.disk.under_way = body
        self.disk.flush()
        return self.disk.revision

    # --- the masters --------------------------------------------------------------------------------------------------

    def tell(self) -> StoreNews:
        self._expire()
        return StoreNews(
            self._number, self._leader and self._leader[0], tuple(master for master, _ in self._masters.values())
        )

    def lead(self, leader: Leader) -> LeadAnswer:
        """Create the leader's key, if there is none."""
        self._expire()
        lease = None
        if self._leader is None:
            lease = self._bind(leader)
            self.takeovers += 1
            self._changed()
        return LeadAnswer(lease, self.disk.revision, self.tell())

    def renew(self, me: Candidate, lead: Leader | None, lease: int, revision: int, doubted: bytes | None) -> LeadAnswer:
        """Renew what this master has; `lead`: as the leader, who wrote the document of that revision last."""
        self._expire()
        is_new = me.name not in self._masters
        self._masters[me.name] = (me, self._ends())
        if is_new:
            self._changed()
        present, disk = self._leader, self.disk
        kept: int | None = None
        if lead is not None and present is None:
            if disk.revision == revision or (disk.revision == revision + 1 and disk.body == doubted):
                kept = self._bind(lead)
                self._changed()
        elif lead is not None and present is not None and present[0].master == me:
            kept = present[1]
            if kept == lease:
                self._leader = (present[0], lease, self._ends())
                self.renewals += 1
            else:
                kept = self._bind(lead)  # it was bound by a request whose answer was lost
        return LeadAnswer(kept, disk.revision, self.tell())

    def give_up(self, lease: int) -> StoreNews:
        """End the lease, and with it the leader's key if that is bound to it."""
        if self._leader is not None and self._leader[1] == lease:
            self._leader = None
            self._changed()
        return self.tell()

    def watch(self, host: str, push: Callable[[StoreNews], None]) -> StoreNews:
        """Tell that machine of all changes from now on."""
        self._watchers[host] = push
        return self.tell()

    def drop_watch(self, host: str) -> None:
        self._watchers.pop(host, None)

    # --- outages ------------------------------------------------------------------------------------------------------

    def go_down(self, *, refuses: bool) -> None:
        self.is_down, self.refuses = True, refuses
        self._watchers = {}

    def come_up(self) -> None:
        """No lease has ended meanwhile, and each is as long again as it was."""
        self.is_down = False
        if self._leader is not None:
            self._leader = (*self._leader[:2], self._ends())
        self._masters = {name: (master, self._ends()) for name, (master, _) in self._masters.items()}

    def _bind(self, leader: Leader) -> int:
        self._leases += 1
        self._leader = (leader, self._leases, self._ends())
        return self._leases

    def _ends(self) -> float:
        ends_s = self._clock.now_s + self.lease_s
        self._clock.at(ends_s, self._expire)
        return ends_s

    def _expire(self) -> None:
        if self.is_down:
            return
        now_s = self._clock.now_s
        ended = [name for name, (_, ends_s) in self._masters.items() if ends_s <= now_s]
        for name in ended:
            del self._masters[name]
        is_over = self._leader is not None and self._leader[2] <= now_s
        if is_over:
            self._leader = None
        if ended or is_over:
            self._changed()

    def _changed(self) -> None:
        self._number += 1
        for push in list(self._watchers.values()):
            push(self.tell())


class _Answer(Generic[T]):
    """What has come back of a request."""

    def __init__(self) -> None:
        self.arrived = trio.Event()
        self.values: list[T] = []
        self.refused = False


class SimSharedConfigStore(SharedConfigStore):
    """One master's client. `rate`: how fast its clock runs."""

    def __init__(self, machine: StoreMachine, life: Life, network: Network, rate: float = 1.0) -> None:
        self.leader: Leader | None = None
        self.masters: Sequence[Candidate] = ()
        self.changed = Signal()
        self.leads = False
        self._machine = machine
        self._life = life
        self._network = network
        self._rate = rate
        self._me: Candidate | None = None
        self._since = ""
        self._number = -1  # of what was told last
        self._lease = 0
        self._held_until_s = -math.inf  # by this master's clock
        self._revision = 0  # of the document that this master wrote or, before it led, read
        self.doubted: bytes | None = None  # the document that it may have written after that, and writes again
        self._turn = trio.Lock()  # one request about leases at a time
        self._news: list[StoreNews] = []
        self._has_news = trio.Event()
        self._requests = 0
        self._error: str | None = None

    # --- the document -------------------------------------------------------------------------------------------------

    async def read(self) -> tuple[dict[str, Any] | None, int]:
        body, revision = await self._ask(self._machine.read, _DOCUMENT_S)
        if body == self.doubted or not self.leads:  # a leader goes by what it wrote
            self._revision, self.doubted = revision, None
        return cbor2.loads(body), revision

    async def compare_and_set(self, document: dict[str, Any], revision: int) -> int:
        body = cbor2.dumps(document)
        doubted, self.doubted = self.doubted, body
        try:
            changed = await self._ask(lambda: self._machine.change(body, revision), _DOCUMENT_S, body=body)
        except NotChanged:
            self.doubted = doubted
            raise
        if changed is None:
            self.doubted = doubted
            raise ConfigConflict(f"the document is not at revision {revision} any more")
        self._revision, self.doubted = changed, None
        return changed

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()

    # --- the lead -----------------------------------------------------------------------------------------------------

    async def run(self, me: Candidate, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self._me = me
        await self._renew()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_watching)
            nursery.start_soon(self._listen)
            task_status.started()
            every_s = self._machine.lease_s / _RENEWALS_A_LEASE
            again_s = every_s
            while True:
                await trio.sleep(again_s)
                try:
                    await self._renew()
                    again_s = every_s
                except ConfigStoreError:
                    again_s = every_s / 3

    async def take_lead(self, since: str) -> bool:
        assert self._me is not None, "run comes first"
        me = self._me
        async with self._turn:
            sent_s = self._now()
            try:
                led = await self._ask(lambda: self._machine.lead(Leader(me, since)), self._attempt_s)
            except ConfigStoreError:
                return False
            if led.lease is not None:
                self.leads = True
                self._since, self._lease = since, led.lease
                self._revision, self.doubted = led.revision, None
                self._hold_from(sent_s)
                self.changed.notify()
            self._hear(led.told)
            return self.leads

    async def give_up_lead(self) -> None:
        self._held_until_s = -math.inf
        if self.leads:
            self.leads = False
            self.changed.notify()
        lease = self._lease
        with trio.move_on_after(_GIVE_UP_S):
            with suppress(ConfigStoreError):
                self._hear(await self._ask(lambda: self._machine.give_up(lease), _GIVE_UP_S))

    def holds(self) -> bool:
        return self.leads and self._now() < self._held_until_s

    def describe(self) -> dict[str, Any]:
        endpoint = {"endpoint": STORE, "reachable": self._error is None, "error": self._error}
        return {"kind": "simulated", "endpoints": [endpoint], "error": self._error}

    async def _renew(self) -> None:
        """Renew what this master has, and note what the store tells."""
        assert self._me is not None
        async with self._turn:
            me, leads, lease = self._me, self.leads, self._lease
            lead = Leader(me, self._since) if leads else None
            revision, doubted = self._revision, self.doubted
            sent_s = self._now()
            led = await self._ask(lambda: self._machine.renew(me, lead, lease, revision, doubted), self._attempt_s)
            if leads and self.leads:  # it may have been given up meanwhile
                if led.lease is None:
                    self._lose()
                else:
                    self._lease = led.lease
                    self._hold_from(sent_s)
            self._hear(led.told)

    async def _keep_watching(self) -> None:
        """Ask for news, and now and then ask anew."""
        host = self._life.host.name

        def push(told: StoreNews) -> None:
            self._network.post(STORE, host, lambda: self._take_in(told))

        while True:
            try:
                self._hear(await self._ask(lambda: self._machine.watch(host, push), self._attempt_s))
            except ConfigStoreError:
                await trio.sleep(self._attempt_s)
            else:
                await trio.sleep(self._machine.lease_s)

    def _take_in(self, told: StoreNews) -> None:
        """News has arrived at this machine."""
        self._news.append(told)
        self._has_news.set()

    async def _listen(self) -> None:
        while True:
            await self._has_news.wait()
            self._has_news = trio.Event()
            news, self._news = self._news, []
            for told in news:
                self._hear(told)

    def _hear(self, told: StoreNews) -> None:
        if told.number < self._number:
            return
        if self.leads and told.leader is not None and told.leader.master != self._me and told.number > self._number:
            self._lose()
        self._number = told.number
        if (told.leader, told.masters) != (self.leader, self.masters):
            self.leader, self.masters = told.leader, told.masters
            self.changed.notify()

    def _lose(self) -> None:
        self.leads = False
        self._held_until_s = -math.inf
        self.changed.notify()

    def _hold_from(self, sent_s: float) -> None:
        self._held_until_s = sent_s + self._machine.lease_s * (1 - LEASE_MARGIN)

    def _now(self) -> float:
        return self._network.clock.now_s * self._rate

    @property
    def _attempt_s(self) -> float:
        return self._machine.lease_s / _ATTEMPTS_A_LEASE

    # --- requests -----------------------------------------------------------------------------------------------------

    async def _ask(self, carry_out: Callable[[], T], timeout_s: float, *, body: bytes | None = None) -> T:
        """Have the store carry this out, and wait for the answer.

        Raises:
          NotChanged: the store refused the connection.
          ConfigStoreError: there was no answer in time, and it may be carried out.
        """
        machine, network, life = self._machine, self._network, self._life
        host = life.host.name
        answer: _Answer[T] = _Answer()
        number = network.next_number()
        if body is not None:
            machine.sent[number] = body

        def vanish() -> None:
            machine.sent.pop(number, None)

        def arrive() -> None:
            vanish()
            if not machine.is_down:
                value = carry_out()
                delay_s = machine.disk.fsync_s if body is not None else 0.0
                network.clock.after(delay_s, lambda: network.post(STORE, host, lambda: come_back(value)))
            elif machine.refuses:
                network.post(STORE, host, refuse)

        def come_back(value: T) -> None:
            answer.values.append(value)
            answer.arrived.set()

        def refuse() -> None:
            answer.refused = True
            answer.arrived.set()

        life.step()
        await trio.lowlevel.checkpoint_if_cancelled()
        if not life.dead:
            network.post(host, STORE, arrive, lost=vanish)
            with trio.move_on_after(timeout_s):
                await answer.arrived.wait()
        if life.dead:
            raise ConfigStoreError("the machine is off")
        if answer.refused:
            self._error = "the config store refused the connection"
            raise NotChanged(self._error)
        if not answer.values:
            self._error = "the config store gave no answer"
            raise ConfigStoreError(self._error)
        self._error = None
        return answer.values[0]
