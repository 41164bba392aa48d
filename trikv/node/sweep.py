"""What the master mends in the background, without anyone reading a key.

- AP partitions are compared and brought together: at the start, after a copy that nobody waited for did not arrive,
  and every `PERIOD_S`. The background copies of an async write die with the master that had them in hand; without this
  sweep such replicas would differ for ever. The newest version goes to all, as it is.
- Writes in doubt are finished: a pending record is written again, same version, once its replicas are up, so that
  what is kept in memory for it ends.

One partition at a time, `LIST_ROWS` keys at a time: the sweep is never more than one more client.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import trio

from trikv.api import Promise, Write, newest
from trikv.core.errors import Refused
from trikv.net.replicas import NotEnough, Replicas, Request, Standing
from trikv.node.coordinator import Coordinator, WriteFailed
from trikv.node.scan import list_members
from trikv.node.slot import Slot

TICK_S: Final = 0.5
PERIOD_S: Final = 60.0
LIST_ROWS: Final = 512
STEP_TIMEOUT_S: Final = 5.0  # for one listing or one mended key

_log = logging.getLogger(__name__)


async def sweep_forever(coordinator: Coordinator, on_stale: Callable[[Slot, int], None]) -> None:
    """Until cancelled. A partition that cannot be mended now is tried again at the next tick."""
    swept_s: dict[int, tuple[int, float]] = {}  # by partition: the epoch under which it was swept, and when
    while True:
        for slot in coordinator.slots:
            if slot.pending:
                await _finish_pending(coordinator, slot)
            if slot.strategy.promise is Promise.AP and slot.partition.settled and not slot.blocked:
                epoch, when_s = swept_s.get(slot.index, (-1, 0.0))
                due = epoch != slot.epoch or slot.missed or trio.current_time() - when_s > PERIOD_S
                if due and all(target.standing is Standing.UP for target in slot.targets):
                    slot.missed = False
                    try:
                        await converge(slot, on_stale)
                        swept_s[slot.index] = (slot.epoch, trio.current_time())
                    except (Refused, NotEnough) as error:
                        slot.missed = True
                        _log.info("partition %d could not be swept yet: %s", slot.index, error)
        await trio.sleep(TICK_S)


async def _finish_pending(coordinator: Coordinator, slot: Slot) -> None:
    for key in list(slot.pending):
        if sum(target.standing is Standing.UP for target in slot.targets) < slot.configuration.copies:
            return
        deadline_s = trio.current_time() + STEP_TIMEOUT_S
        with trio.move_on_at(deadline_s):
            async with slot.locks.exclusive(key):
                if (record := slot.pending.get(key)) is not None:
                    try:
                        await coordinator.own_write(slot, key, record, deadline_s)
                    except (WriteFailed, Refused) as error:
                        _log.info("a write in doubt could not be finished yet: %s", error)
                        return


async def converge(slot: Slot, on_stale: Callable[[Slot, int], None]) -> int:
    """Bring the newest record of every key of the partition to all its members; answers how many keys differed.

    Raises:
      Refused, NotEnough: a member did not answer.
    """
    after: bytes | None = None
    mended = 0
    while True:
        deadline_s = trio.current_time() + STEP_TIMEOUT_S
        listing = await list_members(
            [slot],
            {target: [slot] for target in slot.targets},
            on_stale,
            prefix=b"",
            after=after,
            limit=LIST_ROWS,
            with_values=False,
            deadline_s=deadline_s,
        )
        for key, (_, held) in listing.rows.items():
            complete = listing.bound is None or key <= listing.bound
            if complete and len({held[w].version if w in held else None for w in _workers(slot)}) > 1:
                await _mend(slot, key, on_stale)
                mended += 1
        if listing.bound is None:
            return mended
        after = listing.bound


async def _mend(slot: Slot, key: bytes, on_stale: Callable[[Slot, int], None]) -> None:
    deadline_s = trio.current_time() + STEP_TIMEOUT_S
    request = Request(
        slot.index,
        slot.epoch,
        slot.configuration.copies,
        slot.targets,
        deadline_s,
        on_stale=lambda promised: on_stale(slot, promised),
    )
    answers = await request.replicas.fetch(key)
    top = newest(answers)
    if top is None:
        return
    behind = {a.replica for a in answers if a.record is None or a.record.version < top.version}
    lacking = [target for target in slot.targets if target.member.worker in behind]
    await Replicas(request, lacking).store(Write(key, top))


def _workers(slot: Slot) -> list[str]:
    return [target.member.worker for target in slot.targets]
