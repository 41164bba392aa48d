"""A page of keys in order, over all partitions and workers, each key answered as a read would answer it.

For each partition enough members are asked to list their keys that no committed one can be missing: R of every
configuration, and so many of the active one that a read of each key is answered from the listings themselves, without
another call. Where a strategy names one replica whose listing equals its reads, a settled partition asks that one
alone. A worker merges all its partitions, so a page costs one call to each worker, and at most one more read for each
key that the listings leave in doubt.

The page ends where the first listing stopped at its limit, since beyond that a key might be missing. A partition that
cannot answer refuses the page: a scan leaves nothing out silently.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import trio

from trikv.coordinator.listing import group_by_target, list_members
from trikv.coordinator.partition import PartitionState
from trikv.coordinator.replicas import Target
from trikv.core.calls import LIST_BYTES_MAX
from trikv.core.errors import Refused
from trikv.core.quorums import Availability
from trikv.core.record import Record, size_of

PAGE_MAX: Final = 1000
SCAN_BYTES_MAX: Final = 2 * LIST_BYTES_MAX  # a page ends after the value that exceeds this


@dataclass(frozen=True, slots=True)
class ScanPage:
    """Live keys in byte order, with their records; `after` is where the next page starts, None after the last one."""

    items: list[tuple[bytes, Record]]
    after: bytes | None


Read = Callable[[PartitionState, bytes, dict[str, Record | None] | None], Any]


async def scan_page(
    states: list[PartitionState],
    read: Read,
    wait_change: Callable[[], Any],
    check: Callable[[PartitionState, int], None],
    prefix: bytes,
    after: bytes | None,
    limit: int,
    deadline_s: float,
    *,
    hidden: bytes | None = None,
) -> ScanPage:
    """The first `limit` live keys that start with `prefix` and come after `after`, without those that start with
    `hidden`. `check` may refuse what so many members of a partition have listed.

    Raises:
      Refused: a partition cannot answer.
    """
    items: list[tuple[bytes, Record]] = []
    size_bytes = 0
    enough_s = (trio.current_time() + deadline_s) / 2
    while True:
        plan = await _plan(states, wait_change)
        settled = {state.index for state in states if state.partition.settled}
        listing = await list_members(
            plan, prefix=prefix, after=after, limit=limit + 1, with_values=True, deadline_s=deadline_s
        )
        sources = _sources(plan)
        for state in states:
            check(state, len(sources[state.index]))
        for key in sorted(listing.rows):
            if listing.bound is not None and key > listing.bound:
                break
            if hidden is not None and key.startswith(hidden):
                continue
            if len(items) >= limit or size_bytes > SCAN_BYTES_MAX:
                return ScanPage(items, items[-1][0])
            partition, held = listing.rows[key]
            # What replicas listed answers a read only if they held everything then, and not just by now.
            listed = {worker: held.get(worker) for worker in sources[partition]} if partition in settled else None
            record = await read(states[partition], key, listed)
            if record is not None and record.value is not None:
                items.append((key, record))
                size_bytes += size_of(key, record)
        if listing.bound is None:
            return ScanPage(items, None)
        after = listing.bound
        if trio.current_time() > enough_s:
            # A long run of tombstones: a short page that goes on from here, rather than none at the deadline.
            return ScanPage(items, after)


async def _plan(states: list[PartitionState], wait_change: Callable[[], Any]) -> dict[Target, list[PartitionState]]:
    """Whom to ask for which partitions; waits for members that may yet be heard of."""
    while True:
        asked: dict[PartitionState, list[Target]] = {}
        short: PartitionState | None = None
        for state in states:
            chosen = state.choose_to_list()
            if chosen is None:
                short = state
                break
            asked[state] = chosen
        if short is None:
            return group_by_target(asked)
        if short.is_blocked:
            raise Refused("recover", short.blocked_because)
        everyone = [target for electorate in short.history for target in electorate.voters]
        if not any(target.availability is Availability.DOUBTFUL for target in everyone):
            down = ", ".join(sorted({t.member.worker for t in everyone if t.availability is Availability.DOWN}))
            raise Refused("unavailable", f"partition {short.index} cannot be listed: {down} cannot be reached")
        await wait_change()


def _sources(plan: dict[Target, list[PartitionState]]) -> dict[int, list[str]]:
    """By partition: the workers that were asked to list it, as far as they are in its active configuration."""
    sources: dict[int, list[str]] = defaultdict(list)
    for target, states in plan.items():
        for state in states:
            if target.member in state.configuration.members:
                sources[state.index].append(target.member.worker)
    return sources
