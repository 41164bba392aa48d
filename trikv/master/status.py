"""The cluster's state as JSON-ready values: what `GET /v1/cluster`, the page and `trikv status` show.

Computed when it is asked for; nothing is kept up to date for it on the path of a request.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import trio

from trikv import __version__
from trikv.api import Strategy
from trikv.coordinator.coordinator import Coordinator, check_key
from trikv.coordinator.partition import PartitionState
from trikv.coordinator.replicas import Target
from trikv.core.calls import Full
from trikv.core.configuration import Configuration, Member, Partition, WorkerEntry
from trikv.core.errors import Refused
from trikv.core.histogram import percentile_s
from trikv.core.placement import count_crowded
from trikv.core.ring import hash_of, partition_of
from trikv.core.tally import TallyVerdict
from trikv.healing.hints import Hints
from trikv.master.breaking import Breaking
from trikv.master.document import Document
from trikv.master.enlist import Enlisting
from trikv.master.events import EventLog
from trikv.master.membership import Membership, WatchedWorker
from trikv.master.operations import Operations
from trikv.master.probe import Probe
from trikv.net.peers import Peer
from trikv.registry import Registry, needs_of

_log = logging.getLogger(__name__)


class Status:
    """What can be said of one master's cluster."""

    def __init__(
        self,
        document: Document,
        membership: Membership,
        coordinator: Coordinator,
        registry: Registry,
        events: EventLog,
        *,
        enlisting: Enlisting,
        operations: Operations,
        hints: Hints,
        breaking: Breaking,
        settle_rate_bytes: float,
    ) -> None:
        self.events = events
        self.fleet: Callable[[], dict[str, Any]] | None = None  # where this master starts workers
        self.autoscale: Callable[[], dict[str, Any]] | None = None  # where the cluster scales by itself
        self.probe: Probe | None = None  # where the promise is measured
        self.masters: Callable[[], dict[str, Any] | None] = lambda: None  # where several share a config store
        self._document = document
        self._membership = membership
        self._coordinator = coordinator
        self._registry = registry
        self._enlisting = enlisting
        self._operations = operations
        self._hints = hints
        self._breaking = breaking
        self._settle_rate_bytes = settle_rate_bytes
        self._started_s = trio.current_time()

    @property
    def mode(self) -> Strategy:
        """The mode in force."""
        return self._registry.strategy(self._document.cluster.mode)

    @property
    def workers(self) -> Mapping[str, WorkerEntry]:
        return self._document.cluster.workers

    @property
    def document(self) -> Document:
        return self._document

    @property
    def peers(self) -> Mapping[str, Peer]:
        """By worker: what keeps the link to it."""
        return {worker: watched.peer for worker, watched in self._membership.watched.items()}

    @property
    def partitions(self) -> Sequence[Partition]:
        return self._document.cluster.partitions

    def describe(self) -> dict[str, Any]:
        """See README.md for the shape; keys stay, new ones may come."""
        cluster, coordinator, strategy = self._document.cluster, self._coordinator, self.mode
        states = coordinator.partitions
        alike: dict[tuple[Configuration, ...], list[PartitionState]] = {}  # what holds for one of them holds for all
        for state in states:
            alike.setdefault(state.partition.history, []).append(state)
        copies: Counter[Member] = Counter()
        primaries: Counter[Member] = Counter()
        held: Counter[Member] = Counter()  # in how many partitions each member may hold what counts
        readable = writable = short = 0
        for history, those in alike.items():
            members, one = history[-1].members, those[0]
            copies.update(dict.fromkeys(members, len(those)))
            primaries[members[0]] += len(those)
            held.update(dict.fromkeys({member for c in history for member in c.members}, len(those)))
            served = sum(not state.is_blocked for state in those)
            readable += served * (one.is_readable and self._coordinator.may_answer(one))
            writable += served * (one.judge_write() is TallyVerdict.WON)
            short += len(those) * (len(members) < cluster.replicas)
        crowded = 0
        if zones := cluster.zones:
            table = [[m.worker for m in state.configuration.members] for state in states]
            crowded = count_crowded(table, {worker for row in table for worker in row}, zones)
        unsettled = sum(len(those) for history, those in alike.items() if len(history) > 1)
        present = {worker.member for worker in cluster.workers.values()}
        former = {member.worker for member in held if member not in present}
        return {
            "cluster": cluster.cluster,
            "version": __version__,
            "term": cluster.term,
            "mode": cluster.mode,
            "promise": strategy.promise.value,
            "replicas": cluster.replicas,
            "copies": strategy.copies(cluster.replicas),
            "timeout_s": coordinator.timeout_s,
            "down_after_s": self._membership.down_after_s,
            "settle_rate_bytes": self._settle_rate_bytes,
            "uptime_s": round(trio.current_time() - self._started_s, 3),
            "modes": [describe_strategy(each, cluster.replicas) for each in self._registry.strategies.values()],
            "forming": self._enlisting.forming(),
            "partitions": {
                "total": cluster.partition_count,
                "settled": len(states) - unsettled,
                "readable": readable,
                "writable": writable,
                "short": short,
                "crowded": crowded,
            },
            "workers": [
                self._describe_worker(
                    enlisted,
                    primaries[enlisted.member],
                    copies[enlisted.member],
                    held[enlisted.member],
                    enlisted.worker in former,
                )
                for enlisted in sorted(cluster.workers.values(), key=lambda w: (w.address, w.worker))
            ],
            "unsettled": unsettled,
            "progress": self._operations.progress(),
            "masters": self.masters(),
            "fleet": None if self.fleet is None else self.fleet(),
            "autoscale": None if self.autoscale is None else self.autoscale(),
            "probe": None if self.probe is None else self.probe.summarise(),
            "last_event": self.events.last_id,
            "operations": {outcome.value: count for outcome, count in coordinator.outcomes.items()},
            "in_flight": coordinator.in_flight,
            "pending": coordinator.pending,
        }

    def locate(self, key: bytes) -> dict[str, Any]:
        """Where a key lives, be there a value or not: its partition and the preference list.

        Raises:
          Refused: it can be no key, or the cluster has not formed.
        """
        check_key(key)
        states = self._coordinator.partitions
        if not states:
            raise Refused("forming", self._coordinator.not_formed)
        partition = partition_of(key, len(states))
        state = states[partition]
        return {
            "key": key.decode(errors="replace"),
            "hash": hash_of(key),
            "partition": partition,
            "replicas": [
                {"id": target.member.worker, "address": target.address, "state": target.availability.value}
                for target in state.targets
            ],
        }

    def _describe_worker(
        self, enlisted: WorkerEntry, primaries: int, copies: int, held: int, came_back_empty: bool
    ) -> dict[str, Any]:
        watched = self._membership.watched[enlisted.worker]
        vitals = watched.vitals
        target = self._membership.target(enlisted.member)
        heard_s = watched.last_heard_s
        condition = self._breaking.condition_of(enlisted.worker)
        place, note = self._find_place(enlisted, copies, held, came_back_empty)
        if place == "lost" and vitals is not None and vitals.past:
            note += f" ({vitals.past})"
        return {
            "id": enlisted.worker,
            "address": enlisted.address,
            "incarnation": enlisted.incarnation,
            "storage": enlisted.storage,
            "labels": dict(enlisted.labels),
            "state": watched.state.value,
            "place": place,
            "note": "; ".join(filter(None, (note, watched.why))),
            "primaries": primaries,
            "copies": copies,
            "held": held,  # partitions of which it may hold what counts, those that it is leaving included
            "keys": None if vitals is None else vitals.keys,
            "bytes": None if vitals is None else vitals.size_bytes,
            "full": vitals is not None and vitals.full is Full.KEYS,
            "disk_full": vitals is not None and vitals.full is Full.DISK,
            "max_keys": enlisted.max_keys,
            "process": condition.process.value,
            "pid": condition.pid,
            "link": condition.link.value,
            "delay_ms": condition.delay_ms,
            "calls": target.calls,
            "latency_ms": _latency_ms(watched),
            "hints": self._hints.held_for(target),
            "lag_s": self._lag_s(watched, target),
            "last_heard_s": None if heard_s is None else round(heard_s, 3),
        }

    def _lag_s(self, watched: WatchedWorker, target: Target) -> float:
        """The age of the oldest copy that the worker lacks as far as this master knows; 0 if it lacks none.

        That is a copy on its way to it, one that is kept for it as a hint, or one that it missed and that is not kept,
        until its partition has been compared. Not counted are keys of a partition that it is only now being given, and
        what a former master sent. In a chain the master calls the head alone, so a copy that is on its way along the
        chain counts for the head.
        """
        since_s = [t for t in (watched.lacks_since_s, self._hints.lacks_since_s(target)) if t is not None]
        return round(max(0.0, trio.current_time() - min(since_s)), 3) if since_s else 0.0

    def _find_place(self, enlisted: WorkerEntry, copies: int, held: int, came_back_empty: bool) -> tuple[str, str]:
        """A worker's place in the cluster, in a word, and what there is to say of it."""
        if enlisted.draining and held:
            return "draining", f"it is being emptied: {held:,} partitions are left"
        if enlisted.draining and self._document.cluster.formed:
            return "drained", "it holds nothing any more, and may be stopped"
        if copies:
            return "member", ""
        if came_back_empty:
            return "lost", (
                "it came back without its data, as a new incarnation, and holds no place until it has been up for a "
                "while"
            )
        if held:
            return "leaving", f"the others are taking over from it: {held:,} partitions are left"
        if self._document.cluster.formed and self._membership.watched[enlisted.worker].evictable:
            return "spare", "others hold what it held; once it is back for a while, it is given a share again"
        if self._document.cluster.formed:
            return "spare", "it holds no place yet, and is given its share when it has been up for a while"
        return "spare", "it waits for the cluster to form"


def _latency_ms(watched: WatchedWorker) -> dict[str, float] | None:
    """How long its calls of the last 5 to 10 seconds took, heartbeats included; None if no call has ended in them."""
    recent = watched.times.recent()
    p50_s, p99_s = percentile_s(recent, 0.5), percentile_s(recent, 0.99)
    return None if p50_s is None or p99_s is None else {"p50": round(1000 * p50_s, 3), "p99": round(1000 * p99_s, 3)}


def describe_strategy(strategy: Strategy, replicas: int) -> dict[str, Any]:
    """A strategy in its own words, with what it needs of so many replicas."""
    try:
        stated = needs_of(strategy, replicas, strategy.copies(replicas))._asdict()
    except Exception as error:  # noqa: BLE001 a strategy is a stranger's code, and may not know so many replicas
        _log.debug("mode %s cannot have %d replicas: %r", strategy.name, replicas, error)
        stated = {}
    return {
        "name": strategy.name,
        "promise": strategy.promise.value,
        "compare_and_set": strategy.compare_and_set,
        "gives_up": strategy.gives_up,
        "use_when": strategy.use_when,
        "protocol": strategy.protocol,
        "paper": strategy.paper,
        "needs": {
            what: {"count": need.count, "places": list(need.places), "detail": need.describe(replicas)}
            for what, need in stated.items()
        },
    }
