"""The cluster's state as JSON-ready values: what `GET /v1/cluster`, the page and `trikv status` show.

Computed when somebody asks; nothing is kept up to date for it on the path of a request.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import trio

from trikv import __version__
from trikv.api import Strategy
from trikv.coordinator.coordinator import can_read, check_key
from trikv.coordinator.partition import Slot
from trikv.coordinator.replicas import Standing
from trikv.core.calls import Full
from trikv.core.configuration import Enlisted, Member
from trikv.core.errors import Refused
from trikv.core.ring import partition_of
from trikv.master.master import Master


def describe_cluster(master: Master) -> dict[str, Any]:
    """See README.md for the shape; keys stay, new ones may come."""
    cluster = master.cluster
    coordinator = master.coordinator
    strategy = master.registry.strategy(cluster.mode)
    slots = coordinator.slots
    copies: Counter[Member] = Counter()
    primaries: Counter[Member] = Counter()
    for slot in slots:
        copies.update(slot.configuration.members)
        primaries[slot.configuration.members[0]] += 1
    held: Counter[Member] = Counter()  # in how many partitions each member may hold what counts
    for slot in slots:
        held.update({member for c in slot.partition.history for member in c.members})
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
        "down_after_s": master.down_after_s,
        "settle_rate_bytes": master.settling.rate_bytes,
        "uptime_s": round(trio.current_time() - master.started_s, 3),
        "modes": [describe_strategy(each) for each in master.registry.strategies.values()],
        "forming": master.enlisting.forming(),
        "partitions": {
            "total": cluster.partition_count,
            "settled": sum(slot.partition.settled for slot in slots),
            "readable": sum(not slot.blocked and can_read(slot, slot.strategy) for slot in slots),
            "writable": sum(not slot.blocked and _can_write(slot) for slot in slots),
            "short": sum(len(slot.targets) < cluster.replicas for slot in slots),
        },
        "workers": [
            _describe_worker(
                master,
                enlisted,
                primaries[enlisted.member],
                copies[enlisted.member],
                held[enlisted.member],
                enlisted.worker in former,
            )
            for enlisted in sorted(cluster.workers.values(), key=lambda w: (w.address, w.worker))
        ],
        "unsettled": sum(not slot.partition.settled for slot in slots),
        "progress": master.changes.progress(),
        "last_event": master.events.last_id,
        "operations": {outcome.value: count for outcome, count in coordinator.outcomes.items()},
        "in_flight": coordinator.in_flight,
        "pending": coordinator.pending,
    }


def describe_strategy(strategy: Strategy) -> dict[str, Any]:
    """A strategy in its own words."""
    return {
        "name": strategy.name,
        "promise": strategy.promise.value,
        "compare_and_set": strategy.compare_and_set,
        "gives_up": strategy.gives_up,
        "use_when": strategy.use_when,
        "protocol": strategy.protocol,
        "paper": strategy.paper,
    }


def locate(master: Master, key: bytes) -> dict[str, Any]:
    """Where a key lives, be there a value or not: its partition and the preference list.

    Raises:
      Refused: it can be no key, or the cluster has not formed.
    """
    check_key(key)
    slots = master.coordinator.slots
    if not slots:
        raise Refused("forming", master.coordinator.not_formed)
    partition = partition_of(key, len(slots))
    slot = slots[partition]
    return {
        "key": key.decode(errors="replace"),
        "partition": partition,
        "replicas": [
            {"id": target.member.worker, "address": target.address, "state": target.standing.value}
            for target in slot.targets
        ],
    }


def _can_write(slot: Slot) -> bool:
    up = sum(target.standing is Standing.UP for target in slot.targets)
    return up >= slot.configuration.copies


def _describe_worker(
    master: Master, enlisted: Enlisted, primaries: int, copies: int, held: int, came_back_empty: bool
) -> dict[str, Any]:
    watched = master.watched[enlisted.worker]
    vitals = watched.vitals
    heard_s = watched.last_heard_s
    place, note = _find_place(master, enlisted, copies, held, came_back_empty)
    if place == "lost" and vitals is not None and vitals.past:
        note += f" ({vitals.past})"
    return {
        "id": enlisted.worker,
        "address": enlisted.address,
        "incarnation": enlisted.incarnation,
        "storage": enlisted.storage,
        "state": watched.state.value,
        "place": place,
        "note": "; ".join(filter(None, (note, watched.why))),
        "primaries": primaries,
        "copies": copies,
        "held": held,  # partitions of which it may hold what counts, those that it is leaving included
        "keys": None if vitals is None else vitals.keys,
        "full": vitals is not None and vitals.full is Full.KEYS,
        "disk_full": vitals is not None and vitals.full is Full.DISK,
        "max_keys": enlisted.max_keys,
        "last_heard_s": None if heard_s is None else round(heard_s, 3),
    }


def _find_place(master: Master, enlisted: Enlisted, copies: int, held: int, came_back_empty: bool) -> tuple[str, str]:
    """A worker's place in the cluster, in a word, and what there is to say of it."""
    if enlisted.draining and held:
        return "draining", f"it is being emptied: {held:,} partitions are left"
    if enlisted.draining and master.cluster.formed:
        return "drained", "it holds nothing any more, and may be stopped"
    if copies:
        return "member", ""
    if came_back_empty:
        return "lost", (
            "it came back without its data, as a new incarnation, and holds no place until it has been up for a while"
        )
    if held:
        return "leaving", f"the others are taking over from it: {held:,} partitions are left"
    if master.cluster.formed and master.watched[enlisted.worker].evictable:
        return "spare", "others hold what it held; once it is back for a while, it is given a share again"
    if master.cluster.formed:
        return "spare", "it holds no place yet, and is given its share when it has been up for a while"
    return "spare", "it waits for the cluster to form"
