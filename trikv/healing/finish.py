"""Finishing writes in doubt, without anyone asking for their keys.

A write whose deadline passed is pending: it may be on some replicas, on its way to others, or nowhere. Nobody is told
more of it, and it costs memory until it is known to be committed. Once so many of its replicas are up as a write
needs, it is written again, same version, under its key's lock; what is kept for it ends with that. What is found to be
held or waited for is left to whoever is at it.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from trikv.coordinator.coordinator import Coordinator, WriteFailed
from trikv.coordinator.partition import Slot
from trikv.coordinator.replicas import Standing

TICK_S: Final = 0.5
FINISH_TIMEOUT_S: Final = 0.5  # its key is locked meanwhile, and clients have 2 s

_log = logging.getLogger(__name__)


async def finish_forever(coordinator: Coordinator) -> None:
    """Until cancelled. A write that cannot be finished now is tried again."""
    while True:
        await coordinator.in_doubt.wait()
        coordinator.in_doubt = trio.Event()
        await trio.sleep(TICK_S)
        for slot in coordinator.slots:
            if slot.pending:
                await _finish_pending(coordinator, slot)
        if coordinator.pending:
            coordinator.in_doubt.set()


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
