"""The master: owns the cluster's document, watches the workers, and coordinates.

It starts by taking a new term, by compare-and-set on the config store, and serves from what the document says. All
that changes the document goes through `_change`: one change at a time, durable before it takes effect.

*Forming.* Until enough workers have enlisted, and all that were named on the command line, there is no configuration
and everything is refused. Then each partition gets its first one. Until the first store, each further enlistment
places anew; the flag that ends this is durable before that store is sent. After it a newcomer is spare.

*Enlisting.* A worker says where it listens, or the command line does; the master dials that address and asks who is
there. A worker that comes back elsewhere has its address changed; one that comes back without its store is another
member (its id with another incarnation), which holds no place.

*Being fenced.* A worker that knows of another master of this term, or of a higher one, makes this master take a term
beyond it (the document was restored from a backup); until a worker has said that it knows of none, it is sent nothing.
A generation that the document does not know blocks that partition, since configurations may have existed that nobody
remembers.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

import trio

from trikv.core.calls import Enlist, Heartbeat, parse
from trikv.core.configuration import Cluster, Configuration, Enlisted, Member, Partition
from trikv.core.errors import Fault, Refused, Unknown
from trikv.core.placement import place
from trikv.core.record import generation_of, term_of
from trikv.core.ring import PARTITION_COUNT
from trikv.core.session import Call, Hello, PeerError, Reign
from trikv.net.doors import Doors, Listening
from trikv.net.link import Link
from trikv.net.replicas import Target
from trikv.net.serve import serve_links
from trikv.node.configstore import ConfigConflict, ConfigStore, ConfigStoreError
from trikv.node.coordinator import Coordinator
from trikv.node.greeting import ask_who_is_there
from trikv.node.heartbeat import Replica, Watched, beat_forever
from trikv.node.slot import Slot
from trikv.node.sweep import sweep_forever
from trikv.registry import Registry

T = TypeVar("T")

DOWN_AFTER_S: Final = 5.0
NAMED_AGAIN_S: Final = 0.5
TERM_JUMP_MAX: Final = 1 << 20  # restarts that a backup may be behind; beyond it somebody is talking nonsense

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
    ) -> None:
        self.cluster = cluster
        self.registry = registry
        self.coordinator = Coordinator(
            timeout_s=timeout_s, before_first_store=self._note_first_store, on_stale=self._note_stale
        )
        self.named = list(named)
        self.not_enlisted = set(named)  # of those named, the ones that nobody has answered for yet
        self.watched: dict[str, Watched] = {}
        self.started_s = trio.current_time()
        self._revision = revision
        self._store = store
        self._doors = doors
        self._name = doors.new_id(16)
        self._changing = trio.Lock()
        self._replicas: dict[Member, Replica] = {}
        self._watch_scopes: dict[str, trio.CancelScope] = {}
        self._enlisting: set[str] = set()
        self._enlisting_links: set[Link] = set()
        self._nursery: trio.Nursery | None = None

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
    ) -> Master:
        """Found the cluster, or take up the one that the document describes, under a new term.

        Raises:
          StartError: the document and the settings disagree, or the cluster's mode is not installed.
          ConfigConflict: somebody else is starting on this document.
        """
        document, revision = await store.read()
        if document is None:
            mode = mode or "quorum"
            registry.strategy(mode)
            cluster = Cluster(f"c-{doors.new_id()}", mode, replicas or 3, PARTITION_COUNT)
        else:
            cluster = Cluster.from_document(document)
            if mode is not None and mode != cluster.mode:
                raise StartError(
                    f"this cluster was founded with mode {cluster.mode}, not {mode}; "
                    f"start it without --mode or with --mode {cluster.mode}"
                )
            if replicas is not None and replicas != cluster.replicas:
                raise StartError(
                    f"this cluster was founded with {cluster.replicas} replicas, not {replicas}; "
                    f"start it without --replicas or with --replicas {cluster.replicas}"
                )
            _check_modes(cluster, registry)
        cluster = cluster.with_term(cluster.term + 1)
        revision = await store.compare_and_set(cluster.to_document(), revision)
        return cls(cluster, revision, store, registry, doors, named=named, timeout_s=timeout_s)

    def hello(self) -> Hello:
        return Hello("master", self.cluster.cluster, str(Reign(self.cluster.term, self._name)), self.cluster.cluster)

    async def run(self, listening: Listening, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled.

        Raises:
          ConfigConflict: another master has taken over.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._install(self.cluster)
            await nursery.start(serve_links, listening.listener, self.hello, self.judge, self._handle)
            for address in self.named:
                nursery.start_soon(self._enlist_named, address)
            nursery.start_soon(beat_forever, self.watched)
            nursery.start_soon(sweep_forever, self.coordinator, self._note_stale)
            task_status.started()

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

    async def _change(self, change: Callable[[Cluster], Cluster]) -> None:
        """Make one change of the document durable, then effective. The caller holds `_changing`."""
        changed = change(self.cluster)
        if changed == self.cluster:
            return
        with trio.CancelScope(shield=True):  # durable and not effective would be a lie of this process's own
            try:
                self._revision = await self._store.compare_and_set(changed.to_document(), self._revision)
            except ConfigConflict as error:
                assert self._nursery is not None
                self._nursery.start_soon(_raise, error)  # ends `run`: this master has been superseded
                raise Refused("stopping", "another master has taken over") from error
            except ConfigStoreError as error:
                raise Refused("unavailable", f"the master cannot write the cluster's document: {error}") from error
        self._install(changed)

    def _install(self, cluster: Cluster) -> None:
        """Make the document effective: watch its workers, and give each partition of a new epoch a new slot."""
        self.cluster = cluster
        for enlisted in cluster.workers.values():
            watched = self.watched.get(enlisted.worker)
            if watched is None or watched.enlisted.address != enlisted.address:
                self._watch(enlisted)
            else:
                watched.enlisted = enlisted
        coordinator = self.coordinator
        coordinator.stored = cluster.stored
        coordinator.not_formed = self.forming_detail()
        if cluster.formed:
            former = coordinator.slots
            old = dict(enumerate(former))
            coordinator.slots = [
                old[index]
                if index in old and old[index].is_current(cluster.term, partition)
                else Slot(index, cluster.term, partition, self.registry.strategy, self._targets, coordinator.doubt)
                for index, partition in enumerate(cluster.partitions)
            ]
            for before, slot in zip(former, coordinator.slots, strict=False):
                if slot is not before:
                    before.retire()
                if before.partition == slot.partition:
                    slot.blocked = before.blocked  # a new term proves nothing about the past
        coordinator.note_change()

    def _targets(self, configuration: Configuration) -> list[Target]:
        return [self._replica(member) for member in configuration.members]

    def _replica(self, member: Member) -> Replica:
        if member not in self._replicas:
            self._replicas[member] = Replica(member, self.watched)
        return self._replicas[member]

    async def _note_first_store(self) -> None:
        async def note() -> None:
            async with self._changing:
                await self._change(lambda cluster: replace(cluster, stored=True))

        await self.run_detached(note)  # a slow config store must not hold a request beyond its deadline

    # --- forming ------------------------------------------------------------------------------------------------------

    def forming(self) -> dict[str, Any] | None:
        """What the cluster still waits for; None once it has formed."""
        if self.cluster.formed:
            return None
        enlisted = len(self.cluster.workers)
        return {
            "needed": self.cluster.replicas,
            "enlisted": enlisted,
            "missing": max(0, self.cluster.replicas - enlisted),
            "named_missing": sorted(self.not_enlisted),
            "detail": self.forming_detail(),
        }

    def forming_detail(self) -> str:
        enlisted = len(self.cluster.workers)
        missing = max(0, self.cluster.replicas - enlisted)
        sentence = f"{enlisted} of {self.cluster.replicas} workers have enlisted"
        if missing:
            sentence += f"; {missing} more needed"
        if self.not_enlisted:
            sentence += f"; waiting for {', '.join(sorted(self.not_enlisted))}, named at the start"
        return sentence

    def _placed(self, cluster: Cluster) -> Cluster:
        """Every partition with a configuration made from the workers there are, if they are enough."""
        if len(cluster.workers) < cluster.replicas or self.not_enlisted:
            return cluster
        strategy = self.registry.strategy(cluster.mode)
        table = place(list(cluster.workers), cluster.replicas, partitions=cluster.partition_count)
        old = cluster.partitions or (Partition(),) * cluster.partition_count
        copies = strategy.copies(cluster.replicas)
        configurations = {
            workers: Configuration(tuple(cluster.workers[w].member for w in workers), cluster.mode, copies)
            for workers in set(table)
        }
        return replace(
            cluster,
            partitions=tuple(
                Partition(partition.generation + 1, (configurations[workers],))
                for partition, workers in zip(old, table, strict=True)
            ),
        )

    # --- enlisting ----------------------------------------------------------------------------------------------------

    async def enlist(self, address: str) -> dict[str, Any]:
        """Take the worker at `address` into the cluster, or note where it is now. Answers what the cluster knows of it.

        Raises:
          Refused: nobody answers there, or it is no worker of this cluster, or it shares another's identity.
        """
        asked_for = address
        hello, vitals = await ask_who_is_there(self._doors, self.hello(), address)
        async with self._changing:
            known = self.cluster.workers.get(hello.node)
            watched = self.watched.get(hello.node)
            if known is not None and watched is not None and watched.peer.link is not None:
                if watched.vitals is None or watched.vitals.process == vitals.process:
                    address = known.address  # one process under two names of its address
                elif address != known.address:
                    raise Refused(
                        "conflict",
                        f"worker {hello.node} already serves at {known.address}; the one at {address} has a copy of "
                        "its data directory: give it one of its own",
                    )
            self.not_enlisted.discard(asked_for)
            enlisted = Enlisted(hello.node, hello.incarnation, address, vitals.storage, vitals.max_keys)

            def change(cluster: Cluster) -> Cluster:
                changed = replace(cluster, workers={**cluster.workers, enlisted.worker: enlisted})
                return changed if cluster.stored or _is_placed(changed) else self._placed(changed)

            await self._change(change)
        _log.info("worker %s enlisted at %s", enlisted.worker, enlisted.address)
        return {"id": enlisted.worker, "address": enlisted.address, "incarnation": enlisted.incarnation}

    async def _enlist_named(self, address: str) -> None:
        """Enlist a worker that the command line names, however late it starts."""
        said = ""
        while True:
            try:
                await self.enlist(address)
                return
            except Refused as error:
                if error.detail != said:
                    said = error.detail
                    _log.info("%s", said)
            await trio.sleep(NAMED_AGAIN_S * (0.5 + self._doors.dice.random()))

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
            if isinstance(request, Enlist) and link in self._enlisting_links:
                link.answer(call.id, Fault.OK, ["it is being enlisted already"])
            elif isinstance(request, Enlist):
                self._enlisting_links.add(link)
                self._nursery.start_soon(self._answer_enlist, link, call.id, request.address)

    async def _answer_enlist(self, link: Link, call_id: int, address: str) -> None:
        try:
            await self.enlist(address)
        except Refused as error:
            link.answer(call_id, Fault.OK, [error.detail])
        else:
            link.answer(call_id, Fault.OK, [])
        finally:
            self._enlisting_links.discard(link)

    # --- the workers --------------------------------------------------------------------------------------------------

    def _watch(self, enlisted: Enlisted) -> None:
        """Watch the worker where it is now; the watch over its former address ends."""
        if scope := self._watch_scopes.pop(enlisted.worker, None):
            scope.cancel()
        watched = self.watched[enlisted.worker] = Watched(
            enlisted,
            self.hello,
            self._doors,
            lambda: self._note_worker_change(enlisted.worker),
            on_rival=self._note_rival,
            grace_s=DOWN_AFTER_S,
        )
        scope = self._watch_scopes[enlisted.worker] = trio.CancelScope()

        async def watch() -> None:
            with scope:
                await watched.peer.run()

        assert self._nursery is not None
        self._nursery.start_soon(watch)

    def _note_worker_change(self, worker: str) -> None:
        watched = self.watched[worker]
        link = watched.peer.link
        is_another = link is not None and link.peer.incarnation != watched.enlisted.incarnation
        if is_another and worker not in self._enlisting and self._nursery is not None:
            # It lost its store, and is another member now; the document should say so.
            self._enlisting.add(worker)
            self._nursery.start_soon(self._enlist_again, worker)
        self.coordinator.note_change()

    async def _enlist_again(self, worker: str) -> None:
        try:
            await self.enlist(self.watched[worker].enlisted.address)
        except Refused as error:
            _log.warning("worker %s came back without its data: %s", worker, error.detail)
        finally:
            self._enlisting.discard(worker)

    # --- being fenced -------------------------------------------------------------------------------------------------

    def _note_stale(self, slot: Slot, promised: int) -> None:
        """A worker refused this slot's epoch, since it has promised a newer one."""
        current = self.coordinator.slots[slot.index]
        if current.blocked:
            return
        if generation_of(promised) > current.partition.generation:
            current.blocked = (
                f"a worker has promised generation {generation_of(promised)} of partition {slot.index}, and the "
                f"cluster's document knows generation {current.partition.generation}: it is older than the cluster"
            )
            _log.error("%s", current.blocked)
        elif term_of(promised) > self.cluster.term:
            self._note_rival(term_of(promised))

    def _note_rival(self, term: int) -> None:
        """A worker knows a master of this term that is not this one: the document was restored from a backup."""
        if term > self.cluster.term + TERM_JUMP_MAX:
            _log.error("a worker names term %d, far beyond %d: it is not believed", term, self.cluster.term)
        elif term >= self.cluster.term and self._nursery is not None:
            self._nursery.start_soon(self._outbid, term)

    async def _outbid(self, term: int) -> None:
        async with self._changing:
            known = self.cluster.term
            if term >= known:
                _log.warning("workers know a master of term %d, the document knew %d: going beyond", term, known)
                # Stored: under that other term there may be records, so a newcomer must stay spare.
                await self._change(lambda cluster: replace(cluster.with_term(term + 1), stored=cluster.formed))
                for watched in self.watched.values():
                    watched.peer.redial()


def _check_modes(cluster: Cluster, registry: Registry) -> None:
    """Are the modes of the document installed, and are they what they were when it was written?"""
    configurations = {c for partition in cluster.partitions for c in partition.history}
    if missing := sorted(({c.mode for c in configurations} | {cluster.mode}) - set(registry.strategies)):
        raise StartError(f"this cluster needs mode {missing[0]}, which is not installed; install its plugin")
    for c in configurations:
        if registry.strategies[c.mode].copies(len(c.members)) != c.copies:
            raise StartError(
                f"mode {c.mode} stores {registry.strategies[c.mode].copies(len(c.members))} copies of {len(c.members)} "
                f"now, and this cluster's records were written with {c.copies}; install the version that wrote them"
            )


def _is_placed(cluster: Cluster) -> bool:
    """Do its workers, all of them and as they are now, hold its partitions?"""
    members = {member for partition in cluster.partitions for member in partition.active.members}
    return members == {worker.member for worker in cluster.workers.values()}


async def _raise(error: Exception) -> None:
    raise error
