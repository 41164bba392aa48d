"""Finishing writes in doubt, whether or not their keys are read.

A write whose deadline passed is pending: it may be on some replicas, on its way to others, or nowhere. Its client hears
no more of it, and it costs memory until it is known to be committed. Once so many of its replicas are up as a write
needs, it is written again, same version, under its key's lock; what is kept for it ends with that. A key whose lock
is held or waited for is left alone: an operation is at it.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from trikv.coordinator.coordinator import Coordinator, WriteFailed
from trikv.coordinator.partition import PartitionState
from trikv.core.quorums import Availability

TICK_S: Final = 0.5
FINISH_TIMEOUT_S: Final = 0.5  # its key is locked meanwhile, and clients have 2 s

_log = logging.getLogger(__name__)


async def finish_forever(coordinator: Coordinator) -> None:
    """Until cancelled. A write that cannot be finished now is tried again."""
    while True:
        await coordinator.in_doubt.wait()
        coordinator.in_doubt = trio.Event()
        await trio.sleep(TICK_S)
        for state in coordinator.partitions:
            if state.pending:
                await _finish_pending(coordinator, state)
        if coordinator.pending:
            coordinator.in_doubt.set()


async def _finish_pending(coordinator: Coordinator, state: PartitionState) -> None:
    for key in list(state.pending):
        if sum(target.availability is Availability.UP for target in state.targets) < state.configuration.copies:
            return
        if state.locks.held(key):
            continue  # an operation is at it; writes that are just under way are pending too
        deadline_s = trio.current_time() + FINISH_TIMEOUT_S
        with trio.move_on_at(deadline_s) as scope:
            with await state.locks.exclusive(key):
                if (record := state.pending.get(key)) is not None:
                    try:
                        await coordinator.own_write(state, key, record, deadline_s)
                    except WriteFailed as error:
                        _log.info("a write in doubt could not be finished yet: %s", error)
                        return
        if scope.cancelled_caught:
            return
