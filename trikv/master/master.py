"""The master: owns the cluster's document, watches the workers, and coordinates. Here its parts are put together.

It starts by taking a new term, by compare-and-set on the config store, and serves from what the document says
(`document.py`). A document takes effect in three steps: the workers in it are watched (`membership.py`), each partition
of a new epoch gets a new state (`coordinator/partition.py`), and whatever waits for a change is told.

What is done with the document is elsewhere: `enlist.py` forms the cluster, takes workers in and lets them go,
`reconcile.py` changes configurations, `operations.py` is what operators ask for, `fencing.py` what follows when a
worker knows more than the document. `healing/` makes the partitions whole.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import trio

from trikv.api import Provisioner, Strategy
from trikv.coordinator.coordinator import Coordinator
from trikv.coordinator.partition import PartitionState, Surroundings
from trikv.core.calls import Enlist, Heartbeat, PassOn, PassPart, PassRest, parse
from trikv.core.configuration import Cluster, Partition
from trikv.core.errors import Refused, Unknown
from trikv.core.record import MARK_BITS, make_epoch, term_of
from trikv.core.ring import PARTITION_COUNT
from trikv.core.scaling import Limits
from trikv.core.session import Call, Hello, MasterId, PeerError
from trikv.core.suspicion import DOWN_AFTER_S
from trikv.healing.antientropy import AntiEntropy
from trikv.healing.finish import finish_forever
from trikv.healing.hints import Hints
from trikv.healing.hung import Hung
from trikv.healing.retiring import Retiring
from trikv.healing.settle import Settling
from trikv.healing.tombstones import MIN_AGE_S, Forgetting
from trikv.master.autoscale import Autoscaler
from trikv.master.breaking import Breaking
from trikv.master.configstore import ConfigConflict, ConfigStore, ConfigStoreError
from trikv.master.document import DOUBT_S, Document, Wish, wish_of_task
from trikv.master.enlist import Enlisting
from trikv.master.events import EventLog
from trikv.master.fencing import Fencing
from trikv.master.fleet import Fleet
from trikv.master.lives import Lives
from trikv.master.membership import Membership
from trikv.master.operations import Operations
from trikv.master.passing import PassedOn
from trikv.master.probe import Probe
from trikv.master.reconcile import Reconciler
from trikv.master.sampling import Sampling
from trikv.master.standby import frame_bytes_max_of, judge
from trikv.master.status import Status
from trikv.master.tasks import Tasks
from trikv.net.doors import Doors, Listening
from trikv.net.link import Link
from trikv.net.serve import serve_links
from trikv.registry import Registry, can_keep

MIN_COPIES: Final = 2
SETTLE_RATE_BYTES: Final = 16e6

T = TypeVar("T")

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
        holds_lease: Callable[[], bool] | None,
    ) -> None:
        name = doors.new_id(16)
        self._name = name
        self._doors = doors
        self.registry = registry
        self.events = EventLog(cluster.term)
        self.tasks = Tasks()
        doubt_s = DOUBT_S if holds_lease is None else math.inf
        self.document = document = Document(
            cluster, revision, store, name, self._install, doubt_s=doubt_s, may_change=holds_lease or (lambda: True)
        )
        self.coordinator = coordinator = Coordinator(timeout_s=timeout_s, before_first_store=self._note_first_store)
        coordinator.holds_lease = holds_lease
        self.membership = membership = Membership(
            self.hello,
            doors,
            self.events,
            down_after_s=down_after_s,
            on_rival=lambda term, taken: self.fencing.note_rival(term, taken=taken),
            on_change=coordinator.changed.notify,
        )
        self.fencing = Fencing(document, coordinator, membership, self.events, self.tasks)
        self.lives = Lives(document, membership, self.tasks)
        self.enlisting = Enlisting(
            document, membership, registry, doors, self.events, self.tasks, me=self.hello, named=named
        )
        self.hung = Hung(coordinator.changed.notify)
        self.reconciler = Reconciler(
            document,
            membership,
            coordinator,
            registry,
            self.hung,
            self.events,
            forget=partial(self.enlisting.forget, may_return=False),
            min_copies=min_copies,
        )
        self.settling = Settling(
            coordinator,
            self.hung,
            note_settled=document.note_settled,
            note=self.events.note,
            note_unheard=self.reconciler.note_up,
            rate_bytes=settle_rate_bytes,
        )
        self.retiring = Retiring(coordinator)
        self.hints = Hints(coordinator)
        self.antientropy = AntiEntropy(coordinator, expects=self.hints.expects)
        self.tombstones = Forgetting(coordinator, self.reconciler.renew, min_age_s=forget_after_s)
        self.operations = Operations(
            document,
            membership,
            coordinator,
            registry,
            self.events,
            enlisting=self.enlisting,
            reconciler=self.reconciler,
            settling=self.settling,
            hints=self.hints,
            antientropy=self.antientropy,
            tombstones=self.tombstones,
        )
        self.passed_on = PassedOn()
        self.breaking = Breaking(document, self.events)
        self.status = Status(
            document,
            membership,
            coordinator,
            registry,
            self.events,
            enlisting=self.enlisting,
            operations=self.operations,
            hints=self.hints,
            breaking=self.breaking,
            settle_rate_bytes=settle_rate_bytes,
        )
        self.sampling = Sampling(membership, coordinator, lambda: self.status.autoscale and self.status.autoscale())
        membership.admit = self.lives.admit
        membership.on_up = self.reconciler.note_up
        membership.on_otherwise = self.enlisting.enlist_again
        self._surroundings = Surroundings(
            registry.strategy,
            membership.targets_of,
            on_stale=self.fencing.note_stale,
            on_missed=self.hints.note,
            doubt=coordinator.doubt,
            traces=coordinator.traces,
            mark=int(name, 16) & ((1 << MARK_BITS) - 1),
            partitions=cluster.partition_count,
        )

    @property
    def cluster(self) -> Cluster:
        return self.document.cluster

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
        holds_lease: Callable[[], bool] | None = None,
        known: str | None = None,
    ) -> Master:
        """Found the cluster, or take up the one that the document describes, under a new term.

        `mode`, `replicas` and `partitions` found a cluster. A later start that names another mode or other replicas
        comes up with the cluster's own, and says so in one warning: a supervisor repeats the founding command line also
        after the mode was switched. `holds_lease`: where several masters share the store, see `leadership.py`.

        Raises:
          StartError: the mode cannot work with so many replicas, or the cluster's mode is not installed.
          ConfigConflict: another master is starting on this document, or the lead was lost before the term was taken.
        """
        document, revision = await store.read()
        if known is not None:
            _check_known(known, None if document is None else Cluster.from_document(document).cluster)
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
        if holds_lease is not None and not holds_lease():
            # The one before may have had the lead again meanwhile, and its lease may hold now.
            raise ConfigConflict("this master's lease ended while it took a term, so another master may lead")
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
            holds_lease=holds_lease,
        )

    def start_workers(
        self,
        provisioner: Provisioner,
        *,
        founding: int = 0,
        address: str,
        directory: Path,
        storage: str,
        first_port: int = 0,
    ) -> Fleet:
        """What starts workers for this master, to be run beside it. See `Fleet`."""
        fleet = Fleet(
            self.document,
            self.events,
            provisioner,
            founding=founding,
            master=address,
            directory=directory,
            storage=storage,
            first_port=first_port,
        )
        self.breaking.fleet = fleet
        self.status.fleet = fleet.describe
        return fleet

    def scale_by_itself(self, limits: Limits, fleet: Fleet) -> Autoscaler:
        """What adds workers to the fleet and takes them away by load, to be run beside both. See `Autoscaler`."""
        autoscaler = Autoscaler(
            self.document, self.membership, self.coordinator, self.operations, self.events, fleet, limits
        )
        self.status.autoscale = autoscaler.describe
        return autoscaler

    def probe(self) -> Probe:
        """What checks that the mode keeps its promise, to be run beside this master. See `Probe`."""
        probe = Probe(
            self.document,
            self.membership,
            self.coordinator,
            self.operations,
            self.registry,
            self.events,
            self._doors,
        )
        self.status.probe = probe
        return probe

    def hello(self) -> Hello:
        cluster = self.cluster
        return Hello("master", cluster.cluster, str(MasterId(cluster.term, self._name)), cluster.cluster)

    async def run(self, listening: Listening, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled.

        Raises:
          ConfigConflict: another master has taken over.
          ConfigStoreError: it cannot be known whether a change of the document was made.
        """
        told = False

        async def end_with_document() -> None:
            nonlocal told
            try:
                await self.document.run()
            except (ConfigConflict, ConfigStoreError):
                told = True
                raise

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(end_with_document)
                await nursery.start(self.tasks.run)
                await nursery.start(self.membership.run)
                self.document.install(self.cluster)
                await nursery.start(self.passed_on.run)
                serve = partial(serve_links, frame_bytes_max=frame_bytes_max_of)
                await nursery.start(serve, listening.listener, self.hello, self._judge, self._handle)
                self.enlisting.start()
                nursery.start_soon(self.retiring.run)
                nursery.start_soon(finish_forever, self.coordinator)
                nursery.start_soon(self.hints.run)
                nursery.start_soon(self.hung.run)
                nursery.start_soon(self.antientropy.run)
                nursery.start_soon(self.tombstones.run)
                nursery.start_soon(self.reconciler.run)
                nursery.start_soon(self.settling.run)
                task_status.started()
        finally:
            if not told:
                self.document.check()  # a stop in the middle of a change in doubt ends with that

    def _install(self, cluster: Cluster, made_here: bool) -> None:
        """Make the document effective: watch its workers, and give each partition of a new epoch a new state."""
        self.events.term = cluster.term
        self.membership.install(cluster)
        coordinator = self.coordinator
        coordinator.stored, coordinator.mode = cluster.stored, cluster.mode
        coordinator.not_formed = self.enlisting.forming_detail()
        if cluster.formed:
            former = coordinator.partitions
            coordinator.partitions = [
                self._state_of(index, partition, former[index] if former else None, made_here)
                for index, partition in enumerate(cluster.partitions)
            ]
        coordinator.changed.notify()

    def _state_of(
        self, index: int, partition: Partition, former: PartitionState | None, made_here: bool
    ) -> PartitionState:
        term = self.cluster.term
        if former is not None and former.epoch == make_epoch(term, partition.generation):
            if former.partition != partition:
                former.settle(partition)  # all else gets a new generation
            return former
        rivalled = self._is_rivalled(partition, former)
        state = PartitionState(index, term, partition, self._surroundings, made_here=made_here, rivalled=rivalled)
        if former is not None:
            if former.blocked_because and former.partition == partition:
                state.block(former.promised, former.blocked_because)  # a new term proves nothing
            former.replace()
        return state

    def _is_rivalled(self, partition: Partition, former: PartitionState | None) -> bool:
        """May another master still write under its active configuration, in an earlier term?"""
        if self.coordinator.holds_lease is None:
            return False  # there is no other
        if former is None or term_of(former.epoch) != self.cluster.term:
            return True
        return not former.is_fenced and former.configuration == partition.active

    async def carry_out(self, call: Callable[[], Awaitable[T]]) -> T:
        """Do what an operator asks for, to its end, and answer for it also where the document cannot be written.

        Raises:
          Refused: a change of the document is in doubt or takes too long; nothing was begun for this wish.
          Unknown: its own change takes too long; it goes on.
        """
        if (why := self.document.why_stuck()) is not None:
            raise Refused("operation_under_way", f"{why}, and nothing else is changed meanwhile")
        wish = Wish()

        async def fulfil() -> T:
            wish_of_task.set(wish)
            return await call()

        return await self.tasks.run_detached(fulfil, give_up=partial(self.document.give_up, wish))

    async def _note_first_store(self) -> None:
        async def note() -> None:
            async with self.document.changing:
                try:
                    await self.document.change(lambda cluster: replace(cluster, stored=True))
                except Unknown as error:  # the document's state is, and the caller's store was not sent
                    raise Refused("stopping", error.detail) from error

        await self.tasks.run_detached(note)  # a slow config store must not hold a request beyond its deadline

    def _judge(self, hello: Hello) -> str | None:
        """Why that node has no business here, or None."""
        return judge(hello, self.cluster.cluster)

    def _handle(self, link: Link, incoming: list[Call]) -> None:
        for call_id, budget_ms, op, *arguments in incoming:
            request = parse(op, arguments)
            if isinstance(request, PassOn | PassPart | PassRest) and link.peer.role == "standby":
                self.passed_on.handle(link, call_id, budget_ms, request)
            elif not isinstance(request, Enlist | Heartbeat):
                raise PeerError("asked a master for records")
            elif isinstance(request, Enlist):
                self.enlisting.answer(link, call_id, request.address)


def _warn_of_other_founding(cluster: Cluster, mode: str | None, replicas: int | None) -> None:
    others = []
    if mode not in (None, cluster.mode):
        others.append(f"mode {cluster.mode}, not {mode} (trikv mode {mode} switches it)")
    if replicas not in (None, cluster.replicas):
        others.append(f"{cluster.replicas} replicas, not {replicas}")
    if others:
        _log.warning("this cluster goes on with its own settings: %s", "; ".join(others))


def _check_known(known: str, found: str | None) -> None:
    if found == known:
        return
    others = "" if found is None else f", which has that of cluster {found}"
    raise ConfigStoreError(
        f"the document of cluster {known} is gone from the config store{others}; put the store back from a backup, or, "
        "to begin without the cluster's records, stop all masters and start them again"
    )


def _check_copies(strategy: Strategy, replicas: int) -> None:
    copies = strategy.copies(replicas)
    if not can_keep(copies, replicas):
        raise StartError(f"mode {strategy.name} wants {copies} copies of {replicas} replicas; choose other --replicas")


def _check_modes(cluster: Cluster, registry: Registry) -> None:
    """Are the modes of the document installed, and are they what they were when it was written?"""
    configurations = {c for partition in cluster.partitions for c in partition.history}
    if missing := sorted(({c.mode for c in configurations} | {cluster.mode}) - set(registry.strategies)):
        why = registry.why_missing(missing[0]) or "; install its plugin"
        raise StartError(f"this cluster needs mode {missing[0]}, which is not installed{why}")
    for c in {partition.active for partition in cluster.partitions if partition.history}:
        if registry.strategies[c.mode].copies(len(c.members)) != c.copies:
            raise StartError(
                f"mode {c.mode} stores {registry.strategies[c.mode].copies(len(c.members))} copies of {len(c.members)} "
                f"now, and this cluster's records were written with {c.copies}; install the version that wrote them"
            )
