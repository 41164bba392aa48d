"""What the master mends in the background, without anyone reading a key.

- AP partitions are compared, and those of their replicas that are up brought together: at the start, when another one
  comes up, after a copy that nobody waited for did not arrive, and every `PERIOD_S`. The background copies of an async
  write die with the master that had them in hand; without this sweep such replicas would differ for ever. The newest
  version goes to all, as it is.
- Writes in doubt are finished: a pending record is written again, same version, once its replicas are up, so that
  what is kept in memory for it ends.

`TOGETHER` partitions at a time, `LIST_ROWS` keys at a time: the sweep is never more than one more client.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import trio

from trikv.api import Promise, Write, newest
from trikv.core.configuration import Member
from trikv.core.errors import Refused
from trikv.core.session import PeerError
from trikv.net.replicas import NotEnough, Replicas, Request, Standing, Target
from trikv.node.coordinator import Coordinator, WriteFailed
from trikv.node.scan import list_members
from trikv.node.slot import Slot

TICK_S: Final = 0.5
MISSED_AGAIN_S: Final = 2.0  # while copies go missing: one replica may stay down for long
PERIOD_S: Final = 60.0
LIST_ROWS: Final = 512
TOGETHER: Final = 64  # partitions in one listing
STEP_TIMEOUT_S: Final = 5.0  # for one listing or one mended key
FINISH_TIMEOUT_S: Final = 0.5  # for a write in doubt: its key is locked meanwhile, and clients have 2 s

_log = logging.getLogger(__name__)


class _Swept(NamedTuple):
    """When a partition was last compared, in which epoch, and between whom."""

    epoch: int
    when_s: float
    members: frozenset[Member]


async def sweep_forever(coordinator: Coordinator, on_stale: Callable[[Slot, int], None]) -> None:
    """Until cancelled. A partition that cannot be mended now is tried again."""
    swept: dict[int, _Swept] = {}
    while True:
        due: list[tuple[Slot, list[Target]]] = []
        for slot in coordinator.slots:
            if slot.pending:
                await _finish_pending(coordinator, slot)
            if slot.strategy.promise is Promise.AP and slot.partition.settled and not slot.blocked:
                up = [target for target in slot.targets if target.standing is Standing.UP]
                if len(up) > 1 and _is_due(slot, up, swept.get(slot.index)):
                    due.append((slot, up))
        for first in range(0, len(due), TOGETHER):
            group = due[first : first + TOGETHER]
            for slot, up in group:
                slot.missed = False
                swept[slot.index] = _Swept(slot.epoch, trio.current_time(), frozenset(t.member for t in up))
            try:
                await converge(group, on_stale)
            except (Refused, NotEnough, PeerError) as error:
                for slot, _ in group:
                    slot.missed = True
                _log.info("partitions could not be swept yet: %s", error)
        await trio.sleep(TICK_S)


def _is_due(slot: Slot, up: Sequence[Target], last: _Swept | None) -> bool:
    """Those that are up may differ: never compared in this epoch, or not with one of them, or not for a while."""
    if last is None or last.epoch != slot.epoch or not last.members.issuperset(t.member for t in up):
        return True
    return trio.current_time() - last.when_s > (MISSED_AGAIN_S if slot.missed else PERIOD_S)


async def _finish_pending(coordinator: Coordinator, slot: Slot) -> None:
    for key in list(slot.pending):
        if sum(target.standing is Standing.UP for target in slot.targets) < slot.configuration.copies:
            return
        if slot.locks.held(key):
            continue  # somebody is at it; writes that are just under way are pending too
        deadline_s = trio.current_time() + FINISH_TIMEOUT_S
        with trio.move_on_at(deadline_s) as scope:
            async with slot.locks.exclusive(key):
                if (record := slot.pending.get(key)) is not None:
                    try:
                        await coordinator.own_write(slot, key, record, deadline_s)
                    except WriteFailed as error:
                        _log.info("a write in doubt could not be finished yet: %s", error)
                        return
        if scope.cancelled_caught:
            return


async def converge(group: Sequence[tuple[Slot, Sequence[Target]]], on_stale: Callable[[Slot, int], None]) -> int:
    """Bring the newest record of every key of these partitions to all the targets that stand beside each.

    Answers how many keys differed.

    Raises:
      Refused, NotEnough, PeerError: a target did not answer, or not with sense.
    """
    plan: dict[Target, list[Slot]] = {}
    places = {slot.index: (slot, targets) for slot, targets in group}
    for slot, targets in group:
        for target in targets:
            plan.setdefault(target, []).append(slot)
    after: bytes | None = None
    mended = 0
    while True:
        deadline_s = trio.current_time() + STEP_TIMEOUT_S
        listing = await list_members(
            plan, on_stale, prefix=b"", after=after, limit=LIST_ROWS, with_values=False, deadline_s=deadline_s
        )
        for key, (partition, held) in listing.rows.items():
            slot, targets = places[partition]
            workers = [target.member.worker for target in targets]
            complete = listing.bound is None or key <= listing.bound
            if complete and len({held[w].version if w in held else None for w in workers}) > 1:
                await _mend(slot, targets, key, on_stale)
                mended += 1
        if listing.bound is None:
            return mended
        after = listing.bound


async def _mend(slot: Slot, targets: Sequence[Target], key: bytes, on_stale: Callable[[Slot, int], None]) -> None:
    deadline_s = trio.current_time() + STEP_TIMEOUT_S
    request = Request(
        slot.index,
        slot.epoch,
        slot.configuration.copies,
        targets,
        deadline_s,
        on_stale=lambda promised: on_stale(slot, promised),
    )
    answers = await request.replicas.fetch(key)
    top = newest(answers)
    if top is None:
        return
    behind = {a.replica for a in answers if a.record is None or a.record.version < top.version}
    lacking = [target for target in targets if target.member.worker in behind]
    await Replicas(request, lacking).store(Write(key, top))
