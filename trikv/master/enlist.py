"""Forming the cluster, and taking workers into it.

*Forming.* Until enough workers have enlisted, and all that were named on the command line, there is no configuration
and everything is refused. Then each partition gets its first one. Until the first store, each further enlistment
places anew; the flag that ends this is durable before that store is sent. After it a newcomer is given its share by
changes of configurations (`reconcile.py`).

*Enlisting.* A worker says where it listens, or the command line does; the master dials that address and asks who is
there. A worker that comes back elsewhere has its address changed; one that comes back without its store is another
member (its id with another incarnation), which holds no place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import trio

from trikv.core.configuration import WORKERS_MAX, Cluster, Configuration, Partition, WorkerEntry
from trikv.core.errors import Fault, Refused
from trikv.core.placement import place
from trikv.core.quorums import Availability
from trikv.core.session import Hello
from trikv.master.document import Document
from trikv.master.events import EventLog
from trikv.master.greeting import ask_who_is_there
from trikv.master.membership import Membership
from trikv.master.tasks import Tasks
from trikv.net.doors import Doors
from trikv.net.link import Link
from trikv.registry import Registry

NAMED_AGAIN_S: Final = 0.5

_log = logging.getLogger(__name__)


class Enlisting:
    """One master's way of taking workers in, and of letting them go. `named`: addresses from the command line."""

    def __init__(
        self,
        document: Document,
        membership: Membership,
        registry: Registry,
        doors: Doors,
        events: EventLog,
        tasks: Tasks,
        *,
        me: Callable[[], Hello],
        named: Sequence[str],
    ) -> None:
        self._document = document
        self._membership = membership
        self._registry = registry
        self._doors = doors
        self._events = events
        self._tasks = tasks
        self._me = me
        self._named = list(named)
        self._missing = set(named)  # of those named, those from which no worker has answered yet
        self._again: set[str] = set()
        self._links: set[Link] = set()  # over which a worker asks at this moment
        self._asked_over: dict[str, Link] = {}  # by worker, its own connection to us, over which it was last taken in

    def start(self) -> None:
        for address in self._named:
            self._tasks.start_soon(self._enlist_named, address)

    # --- forming ------------------------------------------------------------------------------------------------------

    def forming(self) -> dict[str, Any] | None:
        """What the cluster still waits for; None once it has formed."""
        cluster = self._document.cluster
        if cluster.formed:
            return None
        enlisted = len(cluster.workers)
        return {
            "needed": cluster.replicas,
            "enlisted": enlisted,
            "missing": max(0, cluster.replicas - enlisted),
            "named_missing": sorted(self._missing),
            "detail": self.forming_detail(),
        }

    def forming_detail(self) -> str:
        cluster = self._document.cluster
        enlisted = len(cluster.workers)
        missing = max(0, cluster.replicas - enlisted)
        sentence = f"{enlisted} of {cluster.replicas} workers have enlisted"
        if missing:
            sentence += f"; {missing} more needed"
        if self._missing:
            sentence += f"; waiting for {', '.join(sorted(self._missing))}, named at the start"
        return sentence

    def _placed(self, cluster: Cluster) -> Cluster:
        """Every partition with a configuration made from the workers there are, if they are enough."""
        if len(cluster.workers) < cluster.replicas or self._missing:
            return cluster
        strategy = self._registry.strategy(cluster.mode)
        table = place(list(cluster.workers), cluster.replicas, partitions=cluster.partition_count, zones=cluster.zones)
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
          Refused: no answer comes from there, or it is no worker of this cluster, or it shares another's identity.
        """
        asked_for = address
        hello, vitals = await ask_who_is_there(self._doors, self._me(), address)
        async with self._document.changing:
            known = self._document.cluster.workers.get(hello.node)
            watched = self._membership.watched.get(hello.node)
            if known is not None and watched is not None and watched.peer.link is not None:
                if watched.vitals is None or watched.vitals.process == vitals.process:
                    address = known.address  # one process under two names of its address
                elif address != known.address:
                    raise Refused(
                        "conflict",
                        f"worker {hello.node} already serves at {known.address}; the one at {address} has a copy of "
                        "its data directory: give it one of its own",
                    )
            if known is None and len(self._document.cluster.workers) >= WORKERS_MAX:
                raise Refused("conflict", f"the cluster has {WORKERS_MAX:,} workers; remove some that are not used")
            self._missing.discard(asked_for)
            draining = known is not None and known.draining
            enlisted = WorkerEntry(
                hello.node, hello.incarnation, address, vitals.storage, vitals.max_keys, draining, dict(vitals.labels)
            )

            def change(cluster: Cluster) -> Cluster:
                changed = replace(cluster, workers={**cluster.workers, enlisted.worker: enlisted})
                if enlisted.member not in cluster.starts:
                    changed = changed.with_start(enlisted.member, vitals.starts[-1])
                return changed if cluster.stored or _is_placed(changed) else self._placed(changed)

            await self._document.change(change)
        if known != enlisted:
            _log.info("worker %s enlisted at %s", enlisted.worker, enlisted.address)
            returned_empty = known is not None and known.incarnation != enlisted.incarnation
            self._events.note(
                "worker_enlisted",
                worker=enlisted.worker,
                address=enlisted.address,
                without_its_data=returned_empty,
                why=vitals.past if returned_empty else "",
            )
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

    def answer(self, link: Link, call_id: int, address: str) -> None:
        """A worker asks to be taken in."""
        if link in self._links:
            link.answer(call_id, Fault.OK, ["it is being enlisted already"])
        else:
            self._links.add(link)
            self._tasks.start_soon(self._answer, link, call_id, address)

    async def _answer(self, link: Link, call_id: int, address: str) -> None:
        try:
            await self.enlist(address)
        except Refused as error:
            link.answer(call_id, Fault.OK, [error.detail])
        else:
            self._asked_over[link.peer.node] = link
            link.answer(call_id, Fault.OK, [])
        finally:
            self._links.discard(link)

    async def forget(self, worker: str, *, may_return: bool = True) -> None:
        """Take a worker out of the document, if it holds nothing. `may_return`: if it only seems to be gone, let it
        notice, and ask to be taken in again."""
        document = self._document
        async with document.changing:
            entry = document.cluster.workers.get(worker)
            if entry is None:
                raise Refused("unknown_worker", f"worker {worker} has been removed already")
            if left := document.cluster.partitions_of(entry.member):
                raise Refused("unsafe", f"worker {worker} holds copies of {left:,} partitions by now")
            if self._membership.watched[worker].availability is not Availability.DOWN:
                raise Refused("conflict", f"worker {worker} is back")
            await document.change(
                lambda cluster: replace(
                    cluster, workers={name: each for name, each in cluster.workers.items() if name != worker}
                )
            )
            self._membership.forget(worker)
            if may_return and (link := self._asked_over.pop(worker, None)):
                link.end()  # if it is running after all, or resumes, it will ask again
            self._events.note("worker_removed", worker=worker)

    def enlist_again(self, worker: str) -> None:
        """It lost its store, and is another member now, or it has other labels; the document should say so."""
        if worker not in self._again:
            self._again.add(worker)
            self._tasks.start_soon(self._enlist_again, worker)

    async def _enlist_again(self, worker: str) -> None:
        try:
            while (watched := self._membership.watched.get(worker)) is not None and watched.is_enlisted_otherwise:
                try:
                    await self.enlist(watched.enlisted.address)
                except Refused as error:
                    _log.warning("worker %s came back as another: %s", worker, error.detail)
                await trio.sleep(NAMED_AGAIN_S)
        finally:
            self._again.discard(worker)


def _is_placed(cluster: Cluster) -> bool:
    """Do its workers, all of them and as they are now, hold its partitions?"""
    members = {member for partition in cluster.partitions for member in partition.active.members}
    return members == {worker.member for worker in cluster.workers.values()}
