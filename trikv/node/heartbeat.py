"""The workers as the master sees them: a link to each, a heartbeat over it, and what follows from the silence.

Whatever arrives on a link counts as a sign of life; a link that was silent since the middle of the last
`HEARTBEAT_INTERVAL_S` is asked for the worker's vitals. One task beats for all of them. The arithmetic (suspect, down,
and a refused dial as evidence) is `core/suspicion.py`; this file only supplies the time. When the master itself was
stopped for a while, nobody is blamed for not having been heard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import trio

from trikv.core.calls import Op, Vitals, vitals_from_wire
from trikv.core.configuration import Enlisted, Member
from trikv.core.errors import Fault
from trikv.core.session import Hello, Reign
from trikv.core.suspicion import State, Suspicion
from trikv.net.doors import Doors
from trikv.net.link import Link
from trikv.net.peers import Peer
from trikv.net.replicas import Standing

HEARTBEAT_INTERVAL_S: Final = 0.5
VITALS_INTERVAL_S: Final = (
    1.0  # a busy link is a sign of life; what the worker says of itself is asked for all the same
)

_STANDINGS: Final = {
    State.UNKNOWN: Standing.DOUBTFUL,
    State.UP: Standing.UP,
    State.SUSPECT: Standing.DOUBTFUL,
    State.DOWN: Standing.DOWN,
}


class Watched:
    """One worker: linked while `peer.run` runs, watched by ticks. `on_change` hears when its state may have changed."""

    def __init__(
        self,
        enlisted: Enlisted,
        me: Callable[[], Hello],
        doors: Doors,
        on_change: Callable[[], None],
        *,
        on_rival: Callable[[int], None],
        grace_s: float,
    ) -> None:
        self.enlisted = enlisted
        self.vitals: Vitals | None = None
        self.suspicion = Suspicion(trio.current_time(), down_after_s=grace_s)
        self._me = me
        self._on_change = on_change
        self._on_rival = on_rival  # the worker knows another master of this term, or of a higher one
        self.acknowledged = False  # the worker has said, on this link, that it knows no other
        self.peer = Peer(enlisted.address, me, doors, judge=self._judge, on_link=self._linked)
        self._asked_s = -VITALS_INTERVAL_S
        self.standing = Standing.DOUBTFUL  # as of the last heartbeat or change of the link: operations read it often

    @property
    def state(self) -> State:
        if self.peer.link is not None:
            self.suspicion.heartbeat(self.peer.link.last_heard_s)
        return self.suspicion.state(trio.current_time())

    @property
    def last_heard_s(self) -> float | None:
        """Seconds since the last sign of life; None if there was none yet."""
        link = self.peer.link
        return None if link is None else trio.current_time() - link.last_heard_s

    def tick(self, now: float, *, forgive: bool) -> None:
        """One heartbeat's time has passed. `forgive`: much more has, since this process was stopped."""
        link = self.peer.link
        if link is not None:
            if forgive:
                self.suspicion.heartbeat(now)
            link.sweep(now)
            if now - link.last_heard_s >= HEARTBEAT_INTERVAL_S / 2 or now - self._asked_s >= VITALS_INTERVAL_S:
                self._ask(link, now)
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
            self.acknowledged = False
            self._ask(link, now)
        elif self.peer.refused:
            self.suspicion.broken(now)
        self._refresh()
        self._on_change()

    def _refresh(self) -> None:
        standing = _STANDINGS[self.state]
        usable = self.peer.link is not None and self.acknowledged
        self.standing = Standing.DOUBTFUL if standing is Standing.UP and not usable else standing

    def _ask(self, link: Link, now: float) -> None:
        self._asked_s = now
        link.call(Op.HEARTBEAT, [], now + 2 * VITALS_INTERVAL_S, self._heard)

    def _heard(self, fault: int, payload: list[Any]) -> None:
        if fault != Fault.OK:
            return
        self.vitals = vitals_from_wire(payload)
        self.acknowledged = self.vitals.master == self._me().incarnation
        if not self.acknowledged:
            self._on_rival(Reign.parse(self.vitals.master).term)
        before = self.standing
        self._refresh()
        if self.standing is not before:
            self._on_change()


async def beat_forever(workers: Mapping[str, Watched]) -> None:
    """Tick for every worker, those that enlist later included, until cancelled."""
    ticked_s = trio.current_time()
    while True:
        await trio.sleep(HEARTBEAT_INTERVAL_S)
        now = trio.current_time()
        for watched in list(workers.values()):
            watched.tick(now, forgive=now - ticked_s > 3 * HEARTBEAT_INTERVAL_S)
        ticked_s = now


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
        watched = self._watched
        if watched.acknowledged:
            watched.peer.call(op, arguments, deadline_s, done, size_bytes)
        else:
            done(Fault.NOT_SENT, [])
