"""The master: owns the cluster's document, watches the workers, and coordinates.

It starts by taking a new term, by compare-and-set on the config store, and serves from what the document says. All
that changes the document goes through `change`: one change at a time, durable before it takes effect.

What is done with the document is elsewhere: `enlist.py` forms the cluster and takes workers in, `reconcile.py` changes
configurations, `settle.py` makes the partitions whole under them, `operations.py` is what operators ask for.

*A change in doubt.* A change of the document that fails may have been made all the same (`configstore.py`). It is
written again until that is known, and nothing else is changed meanwhile; what was closed for it stays closed, and the
rest is served as before, as while any change is being written. If it cannot be known, the master ends, and the next
one reads what the store holds.

*Being fenced.* A worker that knows of another master of this term, or of a higher one, makes this master take a term
beyond it (the document was restored from a backup); until a worker has said that it knows of none, it is sent nothing.
A generation that the document does not know blocks that partition, since configurations may have existed that nobody
remembers.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

import trio

from trikv.api import Strategy
from trikv.coordinator.coordinator import Coordinator
from trikv.coordinator.partition import Slot
from trikv.coordinator.replicas import Standing, Target
from trikv.core.calls import Enlist, Heartbeat, parse
from trikv.core.configuration import Cluster, Configuration, Enlisted, Member, Partition
from trikv.core.errors import Refused, Unknown
from trikv.core.record import MARK_BITS, PROMISED_MAX, generation_of, make_epoch, term_of
from trikv.core.ring import PARTITION_COUNT
from trikv.core.session import SMALL_FRAME_BYTES_MAX, Call, Hello, PeerError, Reign
from trikv.core.suspicion import DOWN_AFTER_S, State
from trikv.healing.antientropy import AntiEntropy
from trikv.healing.finish import finish_forever
from trikv.healing.hints import Hints
from trikv.healing.hung import Hung
from trikv.healing.settle import Settling
from trikv.healing.tombstones import MIN_AGE_S, Forgetting
from trikv.master.configstore import CHANGE, ConfigConflict, ConfigStore, ConfigStoreError, NotChanged
from trikv.master.enlist import Enlisting
from trikv.master.events import EventLog
from trikv.master.lives import Lives
from trikv.master.membership import Replica, Watched, beat_forever
from trikv.master.operations import Changes
from trikv.master.reconcile import Reconciler, holds
from trikv.net.doors import Doors, Listening
from trikv.net.link import Link
from trikv.net.serve import serve_links
from trikv.registry import Registry

T = TypeVar("T")

MIN_COPIES: Final = 2
SETTLE_RATE_BYTES: Final = 16e6
DOUBT_S: Final = 60.0  # for a disk that comes back; what the change has nothing to do with is served meanwhile
DOUBT_AGAIN_S: Final = 0.5

_log = logging.getLogger(__name__)


class StartError(Exception):
    """The master cannot start on this document with these settings; the message names the remedy."""


class Master:
    """One master in one term. Make it with `open`, then `run` it."""

    def __init__(
        self,
        cluster: Cluster,
        revision: int,
        store: ConfigStore,
        registry: Registry,
        doors: Doors,
        *,
        named: Sequence[str],
        timeout_s: float,
        down_after_s: float,
        settle_rate_bytes: float,
        min_copies: int,
        forget_after_s: float,
    ) -> None:
        self.cluster = cluster
        self.registry = registry
        self.coordinator = Coordinator(
            timeout_s=timeout_s,
            before_first_store=self._note_first_store,
            on_stale=self.note_stale,
            on_missed=lambda slot, target, write: self.hints.note(slot, target, write),
        )
        self.hints = Hints(self.coordinator, self.note_stale)
        self.events = EventLog(cluster.term)
        self.watched: dict[str, Watched] = {}
        self.started_s = trio.current_time()
        self.doors = doors
        self.changing = trio.Lock()
        self.down_after_s = down_after_s
        self.enlisting = Enlisting(self, named)
        self.reconciler = Reconciler(self, min_copies=min_copies)
        self.settling = Settling(self, rate_bytes=settle_rate_bytes)
        self.forgetting = Forgetting(self.coordinator, self.reconciler.renew, self.note_stale, min_age_s=forget_after_s)
        self.antientropy = AntiEntropy(self.coordinator, self.note_stale, expects=self.hints.expects)
        self.changes = Changes(self)
        self.lives = Lives(self)
        self.hung = Hung(self.coordinator.note_change)
        self._revision = revision
        self._store = store
        self._name = doors.new_id(16)
        self._mark = int(self._name, 16) & ((1 << MARK_BITS) - 1)
        self.replicas: dict[Member, Replica] = {}
        self._watch_scopes: dict[str, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None
        self._ending = False  # of its own accord: there is no change after that

    @classmethod
    async def open(
        cls,
        store: ConfigStore,
        registry: Registry,
        doors: Doors,
        *,
        mode: str | None = None,
        replicas: int | None = None,
        named: Sequence[str] = (),
        timeout_s: float = 2.0,
        down_after_s: float = DOWN_AFTER_S,
        settle_rate_bytes: float = SETTLE_RATE_BYTES,
        min_copies: int = MIN_COPIES,
        forget_after_s: float = MIN_AGE_S,
        partitions: int = PARTITION_COUNT,
    ) -> Master:
        """Found the cluster, or take up the one that the document describes, under a new term.

        `mode`, `replicas` and `partitions` found a cluster. A later start that names another mode or other replicas
        comes up with the cluster's own, and says so in one warning: a supervisor repeats the founding command line also
        after the mode was switched.

        Raises:
          StartError: the mode cannot work with so many replicas, or the cluster's mode is not installed.
          ConfigConflict: somebody else is starting on this document.
        """
        document, revision = await store.read()
        if document is None:
            mode = mode or "quorum"
            _check_copies(registry.strategy(mode), replicas or 3)
            cluster = Cluster(f"c-{doors.new_id()}", mode, replicas or 3, partitions)
        else:
            cluster = Cluster.from_document(document)
            _warn_of_other_founding(cluster, mode, replicas)
            _check_modes(cluster, registry)
        cluster = cluster.with_term(cluster.term + 1)
        revision = await store.compare_and_set(cluster.to_document(), revision)
        return cls(
            cluster,
            revision,
            store,
            registry,
            doors,
            named=named,
            timeout_s=timeout_s,
            down_after_s=down_after_s,
            settle_rate_bytes=settle_rate_bytes,
            min_copies=min_copies,
            forget_after_s=forget_after_s,
        )

    def hello(self) -> Hello:
        return Hello("master", self.cluster.cluster, str(Reign(self.cluster.term, self._name)), self.cluster.cluster)

    async def run(self, listening: Listening, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled.

        Raises:
          ConfigConflict: another master has taken over.
          ConfigStoreError: it cannot be known whether a change of the document was made.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._install(self.cluster)
            serve = partial(serve_links, frame_bytes_max=SMALL_FRAME_BYTES_MAX)  # workers only ask to be enlisted
            await nursery.start(serve, listening.listener, self.hello, self.judge, self._handle)
            self.enlisting.start(nursery)
            nursery.start_soon(beat_forever, self.watched)
            nursery.start_soon(finish_forever, self.coordinator)
            nursery.start_soon(self.hints.run)
            nursery.start_soon(self.hung.run)
            nursery.start_soon(self.antientropy.run)
            nursery.start_soon(self.forgetting.run)
            nursery.start_soon(self.reconciler.run)
            nursery.start_soon(self.settling.run)
            task_status.started()

    def start_soon(self, run: Callable[[str], Awaitable[None]], about: str) -> None:
        """Have this done beside all else, for as long as this master serves."""
        assert self._nursery is not None
        self._nursery.start_soon(run, about)

    async def run_detached(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Run `operation` to its end in this node's nursery, whatever becomes of the caller meanwhile.

        A client that goes away cancels whoever waits for it; a write that has begun goes on.
        """
        results: list[T] = []
        errors: list[Exception] = []
        finished = trio.Event()

        async def run() -> None:
            try:
                results.append(await operation())
            except Exception as error:  # noqa: BLE001 it is raised where the caller waits
                errors.append(error)
            finally:
                finished.set()

        if self._nursery is None or self._nursery.cancel_scope.cancel_called:
            raise Refused("stopping", "the master is shutting down")
        self._nursery.start_soon(run)
        await finished.wait()
        if errors:
            raise errors[0]
        if not results:
            raise Unknown("the master was stopped while this was under way")
        return results[0]

    # --- the document -------------------------------------------------------------------------------------------------

    async def change(self, change: Callable[[Cluster], Cluster], *, made_here: bool = False) -> None:
        """Make one change of the document durable, then effective. The caller holds `changing`.

        `made_here`: its new configurations are of this coordinator's making, so it knows what was stored under them.

        Raises:
          Refused: it was not made.
          Unknown: nobody knows whether it was made; this master is about to end.
        """
        if self._ending:  # nothing may be built on what is in doubt, or on what another master has changed
            raise Refused("stopping", "the master is about to end")
        changed = change(self.cluster)
        if changed == self.cluster:
            return
        try:
            document = changed.to_document() | {CHANGE: f"{self._name}/{self._revision}"}
        except ValueError as error:
            raise Refused("conflict", f"no master could serve the cluster's document then: {error}") from error
        try:
            self._revision = await self._write(document)
        except ConfigConflict as error:
            self._end(error)
            raise Refused("stopping", "another master has taken over") from error
        except NotChanged as error:
            raise Refused("unavailable", f"the master cannot write the cluster's document: {error}") from error
        except ConfigStoreError as error:
            self._end(error)
            raise Unknown(str(error)) from error
        self._install(changed, made_here=made_here)

    async def _write(self, document: dict[str, Any]) -> int:
        """Make this the document, and know it; the new revision.

        Raises:
          ConfigConflict, NotChanged: it was not made.
          ConfigStoreError: that cannot be known.
        """
        doubt: ConfigStoreError | None = None
        until_s = trio.current_time() + DOUBT_S
        while True:
            with trio.CancelScope(shield=True):  # durable and not effective would be a lie of this process's own
                try:
                    return await self._store.compare_and_set(document, self._revision)
                except ConfigConflict as conflict:
                    if doubt is None:
                        raise
                    try:
                        found, revision = await self._store.read()
                    except ConfigStoreError as error:
                        _log.warning("%s", error)
                    else:
                        if found is None or found.get(CHANGE) != document[CHANGE]:
                            raise doubt from conflict  # it may have been made, and another one after it
                        return revision
                except NotChanged:
                    if doubt is None:
                        raise
                except ConfigStoreError as error:
                    if doubt is None:
                        _log.error("a change of the cluster's document is in doubt: %s", error)
                    doubt = ConfigStoreError(f"{error}; whether the change was made is read at the next start")
            assert doubt is not None
            if trio.current_time() >= until_s:
                raise doubt
            try:
                await trio.sleep(DOUBT_AGAIN_S)
            except trio.Cancelled:
                self._end(doubt)  # also where only the caller was cancelled: who comes next must not build on it
                raise

    def _end(self, error: Exception) -> None:
        """Let `run` end with that error."""
        assert self._nursery is not None
        self._ending = True
        self._nursery.start_soon(_raise, error)

    def _install(self, cluster: Cluster, *, made_here: bool = False) -> None:
        """Make the document effective: watch its workers, and give each partition of a new epoch a new slot."""
        self.cluster = cluster
        self.events.term = cluster.term
        for enlisted in cluster.workers.values():
            watched = self.watched.get(enlisted.worker)
            if watched is None or watched.enlisted.address != enlisted.address:
                self._watch(enlisted)
            elif watched.enlisted != enlisted:
                watched.enlisted = enlisted
                watched.ask_now()
        coordinator = self.coordinator
        coordinator.stored = cluster.stored
        coordinator.not_formed = self.enlisting.forming_detail()
        if cluster.formed:
            former = coordinator.slots
            coordinator.slots = [
                self._slot_for(index, partition, former[index] if former else None, made_here)
                for index, partition in enumerate(cluster.partitions)
            ]
            present = {m for p in cluster.partitions for c in p.history for m in c.members}
            present |= {enlisted.member for enlisted in cluster.workers.values()}
            self.replicas = {member: self.replicas[member] for member in self.replicas if member in present}
        coordinator.note_change()

    def _slot_for(self, index: int, partition: Partition, former: Slot | None, made_here: bool) -> Slot:
        cluster = self.cluster
        if former is not None and former.epoch == make_epoch(cluster.term, partition.generation):
            if former.partition != partition:
                former.settle(partition)  # all else gets a new generation
            return former
        doubt = self.coordinator.doubt
        slot = Slot(
            index,
            cluster.term,
            partition,
            self.registry.strategy,
            self._targets,
            doubt,
            self._mark,
            replaceable=made_here,
            partitions=len(cluster.partitions),
        )
        if former is not None:
            former.retire()
            if former.partition == partition:
                slot.blocked, slot.promised = former.blocked, former.promised  # a new term proves nothing
        return slot

    def _targets(self, configuration: Configuration) -> list[Target]:
        return [self.target(member) for member in configuration.members]

    def target(self, member: Member) -> Replica:
        """That member, made callable."""
        if member not in self.replicas:
            self.replicas[member] = Replica(member, self.watched)
        return self.replicas[member]

    async def _note_first_store(self) -> None:
        async def note() -> None:
            async with self.changing:
                try:
                    await self.change(lambda cluster: replace(cluster, stored=True))
                except Unknown as error:  # the document's state is, and the caller's store was not sent
                    raise Refused("stopping", error.detail) from error

        await self.run_detached(note)  # a slow config store must not hold a request beyond its deadline

    async def note_settled(self, slots: Sequence[Slot]) -> list[Slot]:
        """Note durably that their active configurations hold everything; those of which it is still true."""

        def change(cluster: Cluster) -> Cluster:
            partitions = list(cluster.partitions)
            for slot in slots:
                if slot.is_current(cluster.term, partitions[slot.index]):
                    partitions[slot.index] = partitions[slot.index].as_settled()
            return replace(cluster, partitions=tuple(partitions))

        async with self.changing:
            current = [slot for slot in slots if self.coordinator.slots[slot.index] is slot]
            await self.change(change)
        return current

    async def forget(self, worker: str, *, may_return: bool = True) -> None:
        """Take a worker out of the document, if it holds nothing. `may_return`: if it only seems to be gone, let it
        notice, and ask to be taken in again."""
        async with self.changing:
            enlisted = self.cluster.workers.get(worker)
            if enlisted is None:
                raise Refused("unknown_worker", f"worker {worker} has been removed already")
            if left := holds(self.cluster, enlisted):
                raise Refused("unsafe", f"worker {worker} holds copies of {left:,} partitions by now")
            if self.watched[worker].standing is not Standing.DOWN:
                raise Refused("conflict", f"worker {worker} is back")
            await self.change(
                lambda cluster: replace(
                    cluster, workers={name: each for name, each in cluster.workers.items() if name != worker}
                )
            )
            if scope := self._watch_scopes.pop(worker, None):
                scope.cancel()
            self.watched.pop(worker, None)
            if may_return:
                self.enlisting.hang_up(worker)
            self.events.note("worker_removed", worker=worker)

    def judge(self, hello: Hello) -> str | None:
        """Why that node has no business here, or None."""
        if hello.role != "worker":
            return f"a master talks to workers, not to a {hello.role!r}"
        if hello.cluster not in (None, self.cluster.cluster):
            return (
                f"worker {hello.node} belongs to cluster {hello.cluster}, and this is {self.cluster.cluster}; "
                "start it with another --data-dir to have it join this one"
            )
        return None

    def _handle(self, link: Link, incoming: list[Call]) -> None:
        assert self._nursery is not None
        for call in incoming:
            request = parse(call.op, call.arguments)
            if not isinstance(request, Enlist | Heartbeat):
                raise PeerError("asked a master for records")
            if isinstance(request, Enlist):
                self.enlisting.answer(link, call.id, request.address, self._nursery)

    # --- the workers --------------------------------------------------------------------------------------------------

    def _watch(self, enlisted: Enlisted) -> None:
        """Watch the worker where it is now; the watch over its former address ends."""
        if scope := self._watch_scopes.pop(enlisted.worker, None):
            scope.cancel()
        watched = self.watched[enlisted.worker] = Watched(
            enlisted,
            self.hello,
            self.doors,
            lambda: self._note_worker_change(enlisted.worker),
            on_rival=self._note_rival,
            grace_s=self.down_after_s,
            on_state=lambda old, new: self._note_state(enlisted.worker, new),
            on_disk=lambda full: self._note_disk(enlisted.worker, full),
            admit=self.lives.admit,
            former=self.watched.get(enlisted.worker),
        )
        scope = self._watch_scopes[enlisted.worker] = trio.CancelScope()

        async def watch() -> None:
            with scope:
                await watched.peer.run()

        assert self._nursery is not None
        self._nursery.start_soon(watch)

    def _note_worker_change(self, worker: str) -> None:
        if (watched := self.watched.get(worker)) is None:
            return  # it is being watched for the first time, or was just forgotten
        if watched.lives_another_life and self._nursery is not None:
            self.enlisting.enlist_again(worker, self._nursery)
        self.coordinator.note_change()

    def _note_state(self, worker: str, state: State) -> None:
        if state is State.UP:
            self.reconciler.note_up(worker)
        if state is not State.UNKNOWN:
            self.events.note(f"worker_{state.value}", worker=worker)

    def _note_disk(self, worker: str, full: bool) -> None:
        self.events.note("worker_disk_full" if full else "worker_disk_has_room", worker=worker)
        if full:
            _log.warning("the disk of worker %s is nearly full: it takes deletes alone until there is room", worker)
        self.coordinator.note_change()

    # --- being fenced -------------------------------------------------------------------------------------------------

    def note_stale(self, slot: Slot, promised: int) -> None:
        """A worker refused this slot's epoch, since it has promised a newer one."""
        current = self.coordinator.slots[slot.index]
        if generation_of(promised) > current.partition.generation + PROMISED_MAX:
            _log.error("a worker names generation %d of a partition: it is not believed", generation_of(promised))
            return
        if current.blocked:
            current.promised = max(current.promised, promised, key=generation_of)
            return
        if generation_of(promised) > current.partition.generation:
            current.promised = promised
            current.blocked = (
                f"a worker has promised generation {generation_of(promised)} of partition {slot.index}, and the "
                f"cluster's document knows generation {current.partition.generation}: it is older than the cluster"
            )
            _log.error("%s", current.blocked)
        elif term_of(promised) > self.cluster.term:
            self._note_rival(term_of(promised))

    def _note_rival(self, term: int) -> None:
        """A worker knows a master of this term that is not this one: the document was restored from a backup."""
        if term > self.cluster.term + PROMISED_MAX:
            _log.error("a worker names term %d, far beyond %d: it is not believed", term, self.cluster.term)
        elif term >= self.cluster.term and self._nursery is not None:
            self._nursery.start_soon(self._outbid, term)

    async def _outbid(self, term: int) -> None:
        async with self.changing:
            known = self.cluster.term
            if term >= known:
                _log.warning("workers know a master of term %d, the document knew %d: going beyond", term, known)
                # Stored: under that other term there may be records, so a newcomer must stay spare.
                try:
                    await self.change(lambda cluster: replace(cluster.with_term(term + 1), stored=cluster.formed))
                except Refused as error:
                    _log.warning("that has to wait for the next heartbeat: %s", error.detail)
                    return
                for watched in self.watched.values():
                    watched.peer.redial()


def _warn_of_other_founding(cluster: Cluster, mode: str | None, replicas: int | None) -> None:
    others = []
    if mode not in (None, cluster.mode):
        others.append(f"mode {cluster.mode}, not {mode} (trikv mode {mode} switches it)")
    if replicas not in (None, cluster.replicas):
        others.append(f"{cluster.replicas} replicas, not {replicas}")
    if others:
        _log.warning("this cluster goes on with its own settings: %s", "; ".join(others))


def _check_copies(strategy: Strategy, replicas: int) -> None:
    copies = strategy.copies(replicas)
    if not 1 <= copies <= replicas:
        raise StartError(f"mode {strategy.name} wants {copies} copies of {replicas} replicas; choose other --replicas")


def _check_modes(cluster: Cluster, registry: Registry) -> None:
    """Are the modes of the document installed, and are they what they were when it was written?"""
    configurations = {c for partition in cluster.partitions for c in partition.history}
    if missing := sorted(({c.mode for c in configurations} | {cluster.mode}) - set(registry.strategies)):
        raise StartError(f"this cluster needs mode {missing[0]}, which is not installed; install its plugin")
    for c in {partition.active for partition in cluster.partitions if partition.history}:
        if registry.strategies[c.mode].copies(len(c.members)) != c.copies:
            raise StartError(
                f"mode {c.mode} stores {registry.strategies[c.mode].copies(len(c.members))} copies of {len(c.members)} "
                f"now, and this cluster's records were written with {c.copies}; install the version that wrote them"
            )


async def _raise(error: Exception) -> None:
    raise error
