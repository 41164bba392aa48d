"""The workers as the master sees them: a link to each, a heartbeat over it, and what follows from the silence.

Every `HEARTBEAT_INTERVAL_S` each linked worker is asked for its vitals; whatever arrives on the link counts as a sign
of life. The arithmetic (suspect, down, and a refused dial as evidence) is `core/suspicion.py`; this file only supplies
the time. When the master itself was stopped for a while, nobody is blamed for not having been heard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import trio

from trikv.core.calls import Op, Vitals, vitals_from_wire
from trikv.core.configuration import Enlisted, Member
from trikv.core.errors import Fault
from trikv.core.session import Hello
from trikv.core.suspicion import State, Suspicion
from trikv.net.doors import Doors
from trikv.net.link import Link
from trikv.net.peers import Peer
from trikv.net.replicas import Standing

HEARTBEAT_INTERVAL_S: Final = 0.5

_STANDINGS: Final = {
    State.UNKNOWN: Standing.DOUBTFUL,
    State.UP: Standing.UP,
    State.SUSPECT: Standing.DOUBTFUL,
    State.DOWN: Standing.DOWN,
}


class Watched:
    """One worker, linked and watched while `run` runs. `on_change` is told whenever its state may have changed."""

    def __init__(
        self,
        enlisted: Enlisted,
        me: Callable[[], Hello],
        doors: Doors,
        on_change: Callable[[], None],
        *,
        grace_s: float,
    ) -> None:
        self.enlisted = enlisted
        self.vitals: Vitals | None = None
        self.suspicion = Suspicion(trio.current_time(), down_after_s=grace_s)
        self._on_change = on_change
        self.peer = Peer(enlisted.address, me, doors, judge=self._judge, on_link=self._linked)
        self.standing = Standing.DOUBTFUL  # as of the last heartbeat or change of the link: operations read it often

    @property
    def state(self) -> State:
        return self.suspicion.state(trio.current_time())

    @property
    def last_heard_s(self) -> float | None:
        """Seconds since the last sign of life; None if there was none yet."""
        link = self.peer.link
        return None if link is None else trio.current_time() - link.last_heard_s

    async def run(self) -> None:
        """Watch until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.peer.run)
            ticked_s = trio.current_time()
            while True:
                await trio.sleep(HEARTBEAT_INTERVAL_S)
                now = trio.current_time()
                link = self.peer.link
                if link is not None:
                    stopped = now - ticked_s > 3 * HEARTBEAT_INTERVAL_S
                    self.suspicion.heartbeat(now if stopped else link.last_heard_s)
                    link.sweep(now)
                    link.call(Op.HEARTBEAT, [], now + 2 * HEARTBEAT_INTERVAL_S, self._heard)
                ticked_s = now
                before = self.standing
                self._refresh()
                if self.standing is not before:
                    self._on_change()

    def _judge(self, hello: Hello) -> str | None:
        if hello.role != "worker" or hello.node != self.enlisted.worker:
            return f"{hello.role} {hello.node} answers at {self.enlisted.address}, not worker {self.enlisted.worker}"
        return None

    def _linked(self, link: Link | None) -> None:
        now = trio.current_time()
        if link is not None:
            self.suspicion.heartbeat(now)
            link.call(Op.HEARTBEAT, [], now + 2 * HEARTBEAT_INTERVAL_S, self._heard)
        elif self.peer.refused:
            self.suspicion.broken(now)
        self._refresh()
        self._on_change()

    def _refresh(self) -> None:
        standing = _STANDINGS[self.state]
        linked = self.peer.link is not None
        self.standing = Standing.DOUBTFUL if standing is Standing.UP and not linked else standing

    def _heard(self, fault: int, payload: list[Any]) -> None:
        if fault == Fault.OK:
            self.vitals = vitals_from_wire(payload)


class Replica:
    """A member of a configuration as a target: the worker that is watched, while it lives the life that is meant."""

    def __init__(self, member: Member, workers: Mapping[str, Watched]) -> None:
        self.member = member
        self._workers = workers  # looked up at each use: a worker that moved is watched anew

    @property
    def _watched(self) -> Watched:
        return self._workers[self.member.worker]

    @property
    def address(self) -> str:
        return self._watched.enlisted.address

    @property
    def standing(self) -> Standing:
        watched = self._watched
        if watched.enlisted.incarnation != self.member.incarnation:
            return Standing.DOWN
        link = watched.peer.link
        if link is not None and link.peer.incarnation != self.member.incarnation:
            return Standing.DOWN
        return watched.standing

    @property
    def full(self) -> bool:
        return self._watched.vitals is not None and self._watched.vitals.full

    def call(
        self, op: int, arguments: list[Any], deadline_s: float, done: Callable[[int, list[Any]], None], size_bytes: int
    ) -> None:
        self._watched.peer.call(op, arguments, deadline_s, done, size_bytes)
