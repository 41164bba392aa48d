"""The workers as the master sees them: a link to each, a heartbeat over it, and what follows from the silence.

Whatever arrives on a link counts as a sign of life; a link that was silent for `QUIET_S` is asked for the worker's
vitals, which makes one question in two beats where nothing else is said. One task beats for all of them. The
arithmetic (suspect, down, evictable, steady) is `core/suspicion.py`; this file only supplies the time. It looks with
every beat, so what it tells is as old as a beat at most.

When this process was itself stopped for a while, no worker is blamed for its silence. Each `WatchedWorker` notices
that by itself, from the beat that did not come, before it judges anything: whichever of its callbacks runs first.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Container, Mapping
from typing import Any, Final
from weakref import WeakSet

import trio

from trikv.coordinator.replicas import Target
from trikv.core.calls import Full, Op, Vitals, vitals_from_wire
from trikv.core.configuration import Cluster, Configuration, Member, WorkerEntry
from trikv.core.errors import Fault
from trikv.core.histogram import CallTimes
from trikv.core.planning import Health
from trikv.core.quorums import Availability
from trikv.core.session import Hello, MasterId
from trikv.core.suspicion import Suspicion, WorkerState
from trikv.master.events import EventLog
from trikv.net.doors import Doors
from trikv.net.link import Link
from trikv.net.peers import Peer
from trikv.net.signal import Signal

BEAT_S: Final = 0.375
QUIET_S: Final = 0.5
VITALS_INTERVAL_S: Final = 1.0  # a busy link is a sign of life, and what the worker says of itself is asked for besides
_log = logging.getLogger(__name__)

_STOPPED_S: Final = 4 * BEAT_S  # without a beat: not a busy process, a stopped one

_AVAILABILITY_OF: Final = {
    WorkerState.UNKNOWN: Availability.DOUBTFUL,
    WorkerState.UP: Availability.UP,
    WorkerState.SUSPECT: Availability.DOUBTFUL,
    WorkerState.DOWN: Availability.DOWN,
}


class WatchedWorker:
    """One worker: linked while `peer.run` runs, watched by ticks.

    `on_change` hears when its link, `availability`, `evictable` or `steady` may have changed; `on_state` of each change
    of its state, from what to what; `on_disk` when its disk is nearly full, and when it no longer is; `on_look`, before
    the others, whenever something that a `Replica` says of it may be new. `admit` says of a worker that knows this
    master whether it may be sent anything. `grace_s`: the silence after which it is down, and may be evicted.
    `former`: the watch over the same worker at the address where it was until now.
    """

    def __init__(
        self,
        enlisted: WorkerEntry,
        me: Callable[[], Hello],
        doors: Doors,
        on_change: Callable[[], None],
        *,
        on_rival: Callable[[int, bool], None],
        grace_s: float,
        on_state: Callable[[WorkerState, WorkerState], None] = lambda old, new: None,
        on_disk: Callable[[bool], None] = lambda full: None,
        on_look: Callable[[], None] = lambda: None,
        admit: Callable[[WatchedWorker, Vitals], bool] = lambda watched, vitals: True,
        former: WatchedWorker | None = None,
    ) -> None:
        self.enlisted = enlisted
        self.vitals: Vitals | None = None
        self.suspicion = Suspicion(trio.current_time(), down_after_s=grace_s)
        if former is not None:
            self.suspicion.learn_setbacks(former.suspicion)
        self._me = me
        self._on_change = on_change
        self._on_rival = on_rival  # the worker knows another master of this term, or of a higher one
        self._on_state = on_state
        self._on_disk = on_disk
        self._on_look = on_look
        self._admit = admit
        # The worker has said, on this link, that it knows no other master, and is admitted as what it says it is.
        self.acknowledged = False
        self.peer = Peer(enlisted.address, me, doors, judge=self._judge, on_link=self._linked)
        self._asked_s = -VITALS_INTERVAL_S
        self._ticked_s = trio.current_time()
        self._forgiven_s = -BEAT_S
        # As of the last heartbeat or change of the link: operations read the availability often.
        self.availability = Availability.DOUBTFUL
        self.doubtful_since_s = trio.current_time()  # as long as it is
        self.evictable = False  # silent for so long that the configurations may move on without it
        self.steady = False  # up for so long that it may be given data
        self._told = WorkerState.UNKNOWN

    @property
    def state(self) -> WorkerState:
        return self.suspicion.state(self._now())

    @property
    def lives_another_life(self) -> bool:
        """Does it answer without the store with which it is enlisted?"""
        return self.peer.link is not None and self.peer.link.peer.incarnation != self.enlisted.incarnation

    @property
    def is_enlisted_otherwise(self) -> bool:
        """Does it answer as something else than the document says: without its store, or with other labels?"""
        if self.lives_another_life:
            return True
        return self.peer.link is not None and self.vitals is not None and self.vitals.labels != self.enlisted.labels

    @property
    def last_heard_s(self) -> float | None:
        """Seconds since the last sign of life; None if there was none yet."""
        link = self.peer.link
        return None if link is None else trio.current_time() - link.last_heard_s

    @property
    def times(self) -> CallTimes:
        """How long its calls took, heartbeats included."""
        return self.peer.times

    @property
    def lacks_since_s(self) -> float | None:
        """When the oldest copy that is on its way to it was sent; None: there is none."""
        return None if self.peer.link is None else self.peer.link.oldest_s(Op.STORE)

    @property
    def why(self) -> str:
        """Why it is not simply up, for a person: one sentence, empty if it is."""
        now = self._now()
        state, silent_s = self.suspicion.state(now), self.suspicion.silent_s(now)
        if self.peer.link is None:
            return self.peer.why_not
        if state is not WorkerState.UP:
            return f"its connection is open, and it has said nothing for {silent_s:.1f} s: it is stopped, or cut off"
        return "" if self.acknowledged else "it is not confirmed yet"

    def note_evicted(self) -> None:
        """The configurations have moved on without it: it is not to be given data as soon as it is back."""
        self.suspicion.evicted(self._now())
        self._look()

    def ask_now(self) -> None:
        """Something of it has changed: do not wait for the next heartbeat."""
        if self.peer.link is not None:
            self._ask(self.peer.link, trio.current_time())

    def tick(self, now: float) -> None:
        """One heartbeat's time has passed."""
        self._forgive(now)
        self._ticked_s = now
        self.peer.times.tick(now)
        link = self.peer.link
        if link is not None:
            if now - self._forgiven_s >= BEAT_S:  # else answers may have come that were not read yet
                link.sweep(now)
            if now - link.last_heard_s >= QUIET_S or now - self._asked_s >= VITALS_INTERVAL_S:
                self._ask(link, now)
        self._look()

    def _now(self) -> float:
        """The present, as far as it can be held against the worker, with all that was heard of it until now."""
        now = trio.current_time()
        self._forgive(now)
        if self.peer.link is not None:
            self.suspicion.heartbeat(self.peer.link.last_heard_s)
        return now

    def _forgive(self, now: float) -> None:
        """Was this process stopped? Then no worker is blamed for its silence."""
        if now - self._ticked_s > _STOPPED_S:
            self.suspicion.forgive(now - self._ticked_s)  # up to a beat too much, rather than too little
            self._ticked_s = self._forgiven_s = now

    def _judge(self, hello: Hello) -> str | None:
        if hello.role != "worker" or hello.node != self.enlisted.worker:
            return f"{hello.role} {hello.node} answers at {self.enlisted.address}, not worker {self.enlisted.worker}"
        return None

    def _linked(self, link: Link | None) -> None:
        now = trio.current_time()
        self._forgive(now)
        if link is not None:
            self.suspicion.heartbeat(now)
            self.acknowledged = False
            self._ask(link, now)
        elif self.peer.refused:
            self.suspicion.broken(now)
        self._refresh()
        self._on_change()

    def _look(self) -> None:
        if self._refresh():
            self._on_change()

    def _refresh(self) -> bool:
        """Note what is to be thought of it now; whether anything of that is new."""
        before = (self.availability, self.evictable, self.steady)
        now = self._now()
        state = self.suspicion.state(now)
        self.availability = _AVAILABILITY_OF[state]
        if state is WorkerState.UP and (self.peer.link is None or not self.acknowledged):
            self.availability = Availability.DOUBTFUL
        self.evictable = self.suspicion.evictable(now)
        self.steady = self.availability is Availability.UP and self.suspicion.steady(now)
        self._on_look()
        told, self._told = self._told, state
        if told is not state:
            self._on_state(told, state)
        if self.availability is Availability.DOUBTFUL and before[0] is not Availability.DOUBTFUL:
            self.doubtful_since_s = now
        return before != (self.availability, self.evictable, self.steady)

    def _ask(self, link: Link, now: float) -> None:
        self._asked_s = now
        link.call(Op.HEARTBEAT, [], now + 2 * VITALS_INTERVAL_S, self._heard)

    def _heard(self, fault: int, payload: list[Any]) -> None:
        if fault != Fault.OK:
            return
        was_full = Full.NO if self.vitals is None else self.vitals.full
        self.vitals = vitals_from_wire(payload)
        self._on_look()
        if (was_full is Full.DISK) != (self.vitals.full is Full.DISK):
            self._on_disk(self.vitals.full is Full.DISK)
        knows_me = self.vitals.master == self._me().incarnation
        knew, self.acknowledged = self.acknowledged, knows_me and self._admit(self, self.vitals)
        self._on_look()
        if not knows_me:
            term = MasterId.parse(self.vitals.master).term
            if term < MasterId.parse(self._me().incarnation).term:
                self.peer.redial()  # it was greeted before this master took its present term
            else:
                self._on_rival(term, knew)
        if not (knew and self.acknowledged and self.availability is Availability.UP):  # else it is what it was
            self._look()


async def beat_forever(workers: Mapping[str, WatchedWorker]) -> None:
    """Tick for every worker, those that enlist later included, until cancelled."""
    while True:
        await trio.sleep(BEAT_S)
        now = trio.current_time()
        for watched in list(workers.values()):
            watched.tick(now)


class Replica:
    """A member of a configuration as a target: the worker that is watched, while it lives the life that is meant.

    What operations ask of it are plain attributes, since each operation asks several times. `look` renews them.
    """

    __slots__ = ("__weakref__", "_link", "address", "availability", "calls", "evictable", "full", "labels", "member")

    def __init__(self, member: Member) -> None:
        self.member = member
        self.calls = 0  # that were put to it
        self.look(None)

    @property
    def crowded(self) -> bool:
        return self._link is not None and self._link.crowded

    def look(self, watched: WatchedWorker | None) -> None:
        """Take over what is known of the worker. None: it is not watched."""
        self.address = "" if watched is None else watched.enlisted.address
        self.labels: Mapping[str, str] = {} if watched is None else watched.enlisted.labels
        self.full = Full.NO if watched is None or watched.vitals is None else watched.vitals.full
        self._link = None if watched is None or not watched.acknowledged else watched.peer.link
        if watched is None or watched.enlisted.incarnation != self.member.incarnation or watched.lives_another_life:
            self.availability, self.evictable = Availability.DOWN, True
        else:
            self.availability, self.evictable = watched.availability, watched.evictable

    def call(
        self, op: int, arguments: list[Any], deadline_s: float, done: Callable[[int, list[Any]], None], size_bytes: int
    ) -> None:
        self.calls += 1
        if self._link is None:
            done(Fault.NOT_SENT, [])
        else:
            self._link.call(op, arguments, deadline_s, done, size_bytes)


class Membership:
    """The workers of one master's document: a watch over each, and each member made callable.

    Args:
      me: what this master greets with.
      down_after_s: the silence after which a worker is down, and may be evicted.
      on_rival: hears the term of another master of which a worker knows, and whether it had followed this one before.
      on_change: hears that the availability of some member may have changed.
      events: is told of each change of a worker's state.
    """

    def __init__(
        self,
        me: Callable[[], Hello],
        doors: Doors,
        events: EventLog,
        *,
        down_after_s: float,
        on_rival: Callable[[int, bool], None],
        on_change: Callable[[], None],
    ) -> None:
        self.watched: dict[str, WatchedWorker] = {}
        self.down_after_s = down_after_s
        self.changed = Signal()
        self.admit: Callable[[WatchedWorker, Vitals], bool] = lambda watched, vitals: True
        self.on_up: Callable[[str], None] = lambda worker: None  # hears of a worker that was not up, and is now
        # Hears of one that lost its store, or has other labels.
        self.on_otherwise: Callable[[str], None] = lambda worker: None
        self._me = me
        self._doors = doors
        self._events = events
        self._on_rival = on_rival
        self._on_change = on_change
        self._targets: dict[Member, Replica] = {}
        self._replicas: dict[str, WeakSet[Replica]] = {}  # by worker, those that somebody still uses
        self._scopes: dict[str, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the links up, and beat for every worker, those that enlist later included, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await beat_forever(self.watched)
            finally:
                self._nursery = None  # no worker is watched any more, also if a change is installed after this

    def install(self, cluster: Cluster) -> None:
        """Watch the workers of this document, each where it is now."""
        for entry in cluster.workers.values():
            watched = self.watched.get(entry.worker)
            if watched is None or watched.enlisted.address != entry.address:
                self._watch(entry)
            elif watched.enlisted != entry:
                watched.enlisted = entry
                self._look(entry.worker)
                watched.ask_now()
        if cluster.formed:
            present = {m for p in cluster.partitions for c in p.history for m in c.members}
            present |= {entry.member for entry in cluster.workers.values()}
            self._targets = {member: target for member, target in self._targets.items() if member in present}

    def target(self, member: Member) -> Replica:
        """That member, made callable."""
        target = self._targets.get(member)
        if target is None:
            target = self._targets[member] = Replica(member)
            self._replicas.setdefault(member.worker, WeakSet()).add(target)
            target.look(self.watched.get(member.worker))
        return target

    def targets_of(self, configuration: Configuration) -> list[Target]:
        return [self.target(member) for member in configuration.members]

    def health(self, cluster: Cluster, hung: Container[Member] = ()) -> dict[str, Health]:
        """By worker, for those that live the life in which they are enlisted."""
        health: dict[str, Health] = {}
        for worker, entry in cluster.workers.items():
            watched = self.watched[worker]
            up = self.target(entry.member).availability is Availability.UP
            health[worker] = Health(up, watched.evictable, up and watched.steady and entry.member not in hung)
        return health

    def calls(self) -> Counter[str]:
        """By worker, the calls that were put to its present member; the count of a new member begins at 0."""
        entries = (watched.enlisted for watched in self.watched.values())
        return Counter({entry.worker: self.target(entry.member).calls for entry in entries})

    def discount(self, worker: str) -> None:
        """One of the calls that were put to the worker is no load, and does not count."""
        if (watched := self.watched.get(worker)) is not None:
            self.target(watched.enlisted.member).calls -= 1

    def up(self, cluster: Cluster) -> set[str]:
        """The workers that are up, in the life in which they are enlisted."""
        return {worker for worker, health in self.health(cluster).items() if health.up}

    def forget(self, worker: str) -> None:
        """It is no longer in the document."""
        if scope := self._scopes.pop(worker, None):
            scope.cancel()
        self.watched.pop(worker, None)
        self._look(worker)

    def redial(self) -> None:
        """Greet every worker anew."""
        for watched in self.watched.values():
            watched.peer.redial()

    def _watch(self, entry: WorkerEntry) -> None:
        """Watch the worker where it is now; the watch over its former address ends."""
        worker = entry.worker
        if scope := self._scopes.pop(worker, None):
            scope.cancel()
        watched = self.watched[worker] = WatchedWorker(
            entry,
            self._me,
            self._doors,
            lambda: self._note_change(worker),
            on_rival=self._on_rival,
            grace_s=self.down_after_s,
            on_state=lambda old, new: self._note_state(worker, new),
            on_disk=lambda full: self._note_disk(worker, full),
            on_look=lambda: self._look(worker),
            admit=lambda watched, vitals: self.admit(watched, vitals),
            former=self.watched.get(worker),
        )
        self._look(worker)
        scope = self._scopes[worker] = trio.CancelScope()

        async def watch() -> None:
            with scope:
                await watched.peer.run()

        if self._nursery is not None:
            self._nursery.start_soon(watch)

    def _look(self, worker: str) -> None:
        """Have the replicas of the worker say what is known of it now."""
        watched = self.watched.get(worker)
        for target in self._replicas.get(worker, ()):
            target.look(watched)

    def _note_change(self, worker: str) -> None:
        if (watched := self.watched.get(worker)) is None:
            return  # it is being watched for the first time, or was just forgotten
        if watched.is_enlisted_otherwise:
            self.on_otherwise(worker)
        self._tell_change()

    def _note_state(self, worker: str, state: WorkerState) -> None:
        if state is WorkerState.UP:
            self.on_up(worker)
        if state is not WorkerState.UNKNOWN:
            self._events.note(f"worker_{state.value}", worker=worker)

    def _note_disk(self, worker: str, full: bool) -> None:
        self._events.note("worker_disk_full" if full else "worker_disk_has_room", worker=worker)
        if full:
            _log.warning("the disk of worker %s is nearly full: it takes deletes alone until there is room", worker)
        self._tell_change()

    def _tell_change(self) -> None:
        self.changed.notify()
        self._on_change()
