"""Enlisting: a worker asks the master that leads to take it in, and asks again whenever it has lost that master.

A worker may know several masters, of which one leads. It tries one after another. A master that stands by answers with
the address of the leader, which is tried next, whether or not the worker was told of it. A leader that a standby named
and that does not lead either is not followed further, so masters that name each other cost one attempt each. After a
round without success the worker waits for `AGAIN_S`, with jitter.

The link over which a worker was enlisted stays open. Its end is the sign that the leader is gone, or leads no more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

import trio

from trikv.core.calls import Op
from trikv.core.errors import Fault
from trikv.core.session import Hello
from trikv.net.doors import Doors, split_address
from trikv.net.peers import NOT_DIALLED, Peer

TIMEOUT_S: Final = 5.0
AGAIN_S: Final = 1.0

_log = logging.getLogger(__name__)


class Enlistment:
    """
    Args:
      masters: their RPC addresses, at least one.
      address: where masters reach this worker.
      judge: why a node that greeted is not a master that this worker may belong to, or None.
    """

    def __init__(
        self,
        masters: Sequence[str],
        address: str,
        hello: Callable[[], Hello],
        judge: Callable[[Hello], str | None],
        doors: Doors,
    ) -> None:
        self._masters = masters
        self._address = address
        self._hello = hello
        self._judge = judge
        self._doors = doors
        self._said: dict[str, str] = {}  # by master, what was logged of it last

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            for master in self._masters:
                if named := await self._try(master, alone=len(self._masters) == 1):
                    await self._try(named)
            await trio.sleep(AGAIN_S * (0.5 + self._doors.dice.random()))

    async def _try(self, master: str, *, alone: bool = False) -> str | None:
        """Be enlisted by that master for as long as it can be reached. Returns the leader that it named instead.

        `alone`: no other master is known, so only a leader that it names is a reason to try another.
        """
        async with trio.open_nursery() as nursery:
            peer = Peer(master, self._hello, self._doors, judge=self._judge)
            nursery.start_soon(peer.run)
            try:
                while True:
                    while peer.link is None:
                        if peer.why_not != NOT_DIALLED:
                            self._say(
                                logging.INFO, master, f"no link to the master at {master} (--master): {peer.why_not}"
                            )
                            if not alone:
                                return None
                        await peer.wait_changed()
                    fault, payload = await peer.ask(Op.ENLIST, [self._address], TIMEOUT_S)
                    if fault == Fault.OK and not payload:
                        self._said.clear()
                        _log.info("enlisted with the master at %s, cluster %s", master, self._hello().cluster)
                        while peer.link is not None:
                            await peer.wait_changed()
                    elif fault == Fault.NOT_LEADING:
                        leader = _address_in(payload)
                        named = f"{leader} does" if leader else "it knows none that does"
                        self._say(logging.INFO, master, f"the master at {master} does not lead; {named}")
                        if leader or not alone:
                            return leader
                    elif payload:
                        why = f"the master at {master} does not take this worker: {payload[0]}"
                        self._say(logging.WARNING, master, why)
                    await trio.sleep(AGAIN_S)
            finally:
                nursery.cancel_scope.cancel()

    def _say(self, level: int, master: str, line: str) -> None:
        if self._said.get(master) != line:
            self._said[master] = line
            _log.log(level, "%s", line)


def _address_in(payload: list[Any]) -> str | None:
    match payload:
        case [str(address)]:
            try:
                split_address(address)
            except ValueError:
                return None
            return address
    return None
