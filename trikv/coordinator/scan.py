"""A page of keys in order, over all partitions and workers, each key answered as a read would answer it.

For each partition enough members are asked to list their keys that no committed one can be missing: R of every
configuration, and so many of the active one that a read of each key is answered from the listings themselves, without
another call. Where a strategy names one replica whose listing equals its reads, a settled partition asks that one
alone. A worker merges all its partitions, so a page costs one call to each worker, and at most one more read for each
key that the listings leave in doubt.

A row under a partition that is not its key's is left out: no read looks there, and it would be merged with what others
hold of the key.

Listings stop at a limit; the page ends where the first of them did, since beyond that a key might be missing. A
partition that cannot answer refuses the page: a scan leaves nothing out silently.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import trio

from trikv.api import Promise
from trikv.coordinator.ask import Question, ask_all
from trikv.coordinator.partition import Slot
from trikv.coordinator.replicas import Replicas, Request, Standing, Target, describe_fault
from trikv.core.calls import LIST_BYTES_MAX, LIST_LIMIT_MAX, Op, check_listed, listed_from_wire
from trikv.core.configuration import Member
from trikv.core.errors import Fault, Refused
from trikv.core.record import Record
from trikv.core.session import PeerError

PAGE_MAX: Final = 1000
SCAN_BYTES_MAX: Final = 2 * LIST_BYTES_MAX  # a page ends after the value that exceeds this


@dataclass(frozen=True, slots=True)
class ScanPage:
    """Live keys in byte order, with their records; `after` is where the next page starts, None after the last one."""

    items: list[tuple[bytes, Record]]
    after: bytes | None


@dataclass(slots=True)
class Listing:
    """What members hold between two keys: for each key its partition and each listing member's record."""

    rows: dict[bytes, tuple[int, dict[str, Record]]]
    bound: bytes | None  # complete up to and with this key; None: to the end


Read = Callable[[Slot, bytes, dict[str, Record | None] | None], Any]


async def scan_page(
    slots: list[Slot],
    read: Read,
    on_stale: Callable[[Slot, int], None],
    wait_change: Callable[[], Any],
    prefix: bytes,
    after: bytes | None,
    limit: int,
    deadline_s: float,
) -> ScanPage:
    """The first `limit` live keys that start with `prefix` and come after `after`.

    Raises:
      Refused: a partition cannot answer.
    """
    items: list[tuple[bytes, Record]] = []
    size_bytes = 0
    enough_s = (trio.current_time() + deadline_s) / 2
    while True:
        plan = await _plan(slots, wait_change)
        settled = {slot.index for slot in slots if slot.partition.settled}
        listing = await list_members(
            plan, on_stale, prefix=prefix, after=after, limit=limit + 1, with_values=True, deadline_s=deadline_s
        )
        sources = _sources(plan)
        for key in sorted(listing.rows):
            if listing.bound is not None and key > listing.bound:
                break
            if len(items) >= limit or size_bytes > SCAN_BYTES_MAX:
                return ScanPage(items, items[-1][0])
            partition, held = listing.rows[key]
            # What replicas listed answers a read only if they held everything then, and not just by now.
            listed = {worker: held.get(worker) for worker in sources[partition]} if partition in settled else None
            record = await read(slots[partition], key, listed)
            if record is not None and record.value is not None:
                items.append((key, record))
                size_bytes += len(key) + len(record.value)
        if listing.bound is None:
            return ScanPage(items, None)
        after = listing.bound
        if trio.current_time() > enough_s:
            # A long run of tombstones: a short page that goes on from here, rather than none at the deadline.
            return ScanPage(items, after)


async def _plan(slots: list[Slot], wait_change: Callable[[], Any]) -> dict[Target, list[Slot]]:
    """Whom to ask for which partitions; waits for members that may yet be heard of."""
    while True:
        plan: dict[Member, tuple[Target, list[Slot]]] = {}
        short: Slot | None = None
        for slot in slots:
            chosen = choose_members(slot)
            if chosen is None:
                short = slot
                break
            for target in chosen:
                plan.setdefault(target.member, (target, []))[1].append(slot)
        if short is None:
            return dict(plan.values())
        if short.blocked:
            raise Refused("recover", short.blocked)
        everyone = [target for past in short.history for target in past.targets]
        if not any(target.standing is Standing.DOUBTFUL for target in everyone):
            down = ", ".join(sorted({t.member.worker for t in everyone if t.standing is Standing.DOWN}))
            raise Refused("unavailable", f"partition {short.index} cannot be listed: {down} cannot be reached")
        await wait_change()


def choose_members(slot: Slot) -> list[Target] | None:
    """Those whose listings leave out no committed key of the partition; None if they cannot be had just now."""
    if slot.blocked:
        return None
    if slot.partition.settled:
        request = Request(slot.index, slot.epoch, slot.configuration.copies, slot.targets, 0.0)
        alone = slot.strategy.listing(request.replicas)
        if isinstance(alone, Replicas):
            wanted = [target for target in slot.targets if target.member in alone.members]
            if all(target.standing is Standing.UP for target in wanted):
                return wanted
            if slot.strategy.promise is Promise.CP:
                return None
    chosen: dict[Member, Target] = {}
    for past in slot.history:
        up = [target for target in past.targets if target.standing is Standing.UP]
        # A lenient mode answers from whoever is up, and promises no more.
        need = max(1, len(up)) if past.lenient else past.recovery_need()
        if past is slot.history[-1] and not past.lenient:
            need = max(need, past.configuration.copies)
        if len(up) < need:
            return None
        chosen.update({target.member: target for target in up[:need]})
    return list(chosen.values())


def _sources(plan: dict[Target, list[Slot]]) -> dict[int, list[str]]:
    """By partition: the workers that were asked to list it, as far as they are in its active configuration."""
    sources: dict[int, list[str]] = defaultdict(list)
    for target, slots in plan.items():
        for slot in slots:
            if target.member in slot.configuration.members:
                sources[slot.index].append(target.member.worker)
    return sources


async def list_members(
    plan: dict[Target, list[Slot]],
    on_stale: Callable[[Slot, int], None],
    *,
    prefix: bytes,
    after: bytes | None,
    limit: int,
    with_values: bool,
    deadline_s: float,
) -> Listing:
    """One LIST call to each member of the plan, merged.

    Raises:
      Refused: one of them did not answer in time, or has promised a newer epoch.
    """
    slots = {slot.index: slot for asked in plan.values() for slot in asked}
    answers: list[tuple[Question, int, list[Any]]] = []

    def heard(number: int, fault: int, payload: list[Any]) -> None:
        answers.append((questions[number], fault, payload))

    def ask(target: Target, asked: Sequence[Slot]) -> Question:
        # Keys are spread evenly, so a member that lists a third of the partitions has about a third of the page.
        share = min(limit * len(asked) * 6 // (len(slots) * 5) + 16, LIST_LIMIT_MAX)
        pairs = [[slot.index, slot.epoch] for slot in asked]
        arguments = [target.member.incarnation, pairs, prefix, after, share, with_values]
        return Question(target, arguments, 64 + 16 * len(asked))

    questions = [ask(target, asked) for target, asked in plan.items()]
    await ask_all(Op.LIST, questions, deadline_s, heard)
    return _merge(plan, slots, answers, on_stale)


def _merge(
    plan: dict[Target, list[Slot]],
    slots: dict[int, Slot],
    answers: list[tuple[Question, int, list[Any]]],
    on_stale: Callable[[Slot, int], None],
) -> Listing:
    listing = Listing({}, None)
    failures = [
        f"{question.target.member.worker}: {describe_fault(fault)}"
        for question, fault, _ in answers
        if fault != Fault.OK
    ]
    if len(answers) < len(plan):
        failures.append(f"{len(plan) - len(answers)} members: {describe_fault(Fault.LATE)}")
    for question, fault, payload in answers:
        worker = question.target.member.worker
        if fault != Fault.OK:
            continue
        try:
            stale, rows, more = listed_from_wire(payload)
            _, pairs, prefix, after, limit, _ = question.arguments
            check_listed(rows, {partition for partition, _ in pairs}, prefix, after, limit)
        except PeerError as error:
            failures.append(f"{worker}: {error}")
            continue
        for partition, promised in stale:
            failures.append(f"{worker}: {describe_fault(Fault.STALE)} of partition {partition}")
            if partition in slots:
                on_stale(slots[partition], promised)
        for partition, key, record in rows:
            if slots[partition].is_of(key):
                listing.rows.setdefault(key, (partition, {}))[1][worker] = record
        if more and rows:
            last = rows[-1][1]
            listing.bound = last if listing.bound is None else min(listing.bound, last)
    if failures:
        raise Refused("unavailable", f"the listing is not complete: {'; '.join(sorted(failures)[:3])}")
    return listing
