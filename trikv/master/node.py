"""One master of several: it stands by until it can lead, leads until it is deposed, and then stands by again.

    await take_turns(store, me, stand_by=serve_as_standby, lead=serve_as_leader, wall_clock=now)

Who leads is the config store's to say (`leadership.py`); this loop follows it. A deposed master ends all that it serves
and stands by in the same process. A master that is stopped gives up the lead first, so that the next one can begin at
once. What a master serves in each role is the caller's: sockets in a daemon, simulated ones in the simulator.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from trikv.core.errors import TrikvError
from trikv.master.configstore import ConfigConflict, ConfigStoreError
from trikv.master.leadership import Candidate, SharedConfigStore

AGAIN_S: Final = 0.25  # between two attempts to lead
AGAIN_MOST_S: Final = 5.0  # where one lead after another has ended at once

_log = logging.getLogger(__name__)


async def take_turns(
    store: SharedConfigStore,
    me: Candidate,
    *,
    stand_by: Callable[[], Awaitable[None]],
    lead: Callable[[], Awaitable[None]],
    wall_clock: Callable[[], str],
) -> None:
    """Be one of the masters that share the store, until cancelled.

    Args:
      stand_by: serves what a standby serves, until cancelled.
      lead: opens a master on the store and serves it, until cancelled. It may raise `ConfigConflict`, and
        `ConfigStoreError` where the document cannot be read: then this master stands by again.
      wall_clock: an ISO time, for people.

    Raises:
      ConfigStoreError: the store cannot be reached at the start, or refuses this client.
      Exception: what else `stand_by` or `lead` raise.
    """
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run, me)
        again_s = 0.0
        while True:
            async with trio.open_nursery() as standing:
                standing.start_soon(stand_by)
                await trio.sleep(again_s)
                await _win(store, wall_clock)
                standing.cancel_scope.cancel()
            _log.info("this master leads now")
            began_s = trio.current_time()
            try:
                await _lead_until_deposed(store, lead)
            finally:
                with trio.CancelScope(shield=True):
                    await store.give_up_lead()
            _log.warning("this master leads no more")
            was_short = trio.current_time() - began_s < AGAIN_MOST_S
            again_s = max(AGAIN_S, min(2 * again_s, AGAIN_MOST_S)) if was_short else AGAIN_S


async def _win(store: SharedConfigStore, wall_clock: Callable[[], str]) -> None:
    """Return once this master has the lead."""
    while True:
        if store.leader is not None:
            await store.changed.wait()
        elif await store.take_lead(wall_clock()):
            return
        else:
            await store.changed.wait(AGAIN_S)


async def _lead_until_deposed(store: SharedConfigStore, lead: Callable[[], Awaitable[None]]) -> None:
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            while store.leads:
                await store.changed.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        ended = False
        try:
            await lead()
        except* (ConfigConflict, ConfigStoreError) as group:
            ended = True
            for error in _flat(group):
                _log.warning("%s", error)
        except* TrikvError:
            if not ended:  # else what waited for the change that failed has failed with it
                raise
        nursery.cancel_scope.cancel()


def _flat(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    return [
        one
        for error in group.exceptions
        for one in (_flat(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]
