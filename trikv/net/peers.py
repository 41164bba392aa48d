"""Keeps a link to one address up: dials, greets, carries calls, and dials again.

A `Peer` is the dialling side's view of another node. While it runs, there is a link or an attempt at one. `call` uses
the present link and never waits for the next. The first redial after a break is immediate, since a refused dial is the
quickest evidence that a process is gone. Later redials wait longer each time, with jitter, so that a hundred nodes do
not dial a returning node at the same moment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import trio

from trikv.core.errors import Fault
from trikv.core.histogram import CallTimes
from trikv.core.session import Hello, PeerError
from trikv.net.doors import Doors
from trikv.net.link import Done, Link, LinkError, dial

DIAL_TIMEOUT_S: Final = 1.0
REDIAL_FIRST_S: Final = 0.05
REDIAL_MOST_S: Final = 1.0
NOT_DIALLED: Final = "not dialled yet"


class Peer:
    """One address, dialled for as long as `run` runs.

    `judge` says why a node that greeted there is not the right one, or None. `on_link` is called at every change: with
    the link when there is a new one, with None when it broke or a dial failed.
    """

    def __init__(
        self,
        address: str,
        me: Callable[[], Hello],
        doors: Doors,
        *,
        judge: Callable[[Hello], str | None] = lambda hello: None,
        on_link: Callable[[Link | None], None] = lambda link: None,
    ) -> None:
        self.address = address
        self.link: Link | None = None
        self.why_not = NOT_DIALLED  # why there is no link, for a person; empty while there is one
        self.refused = False  # the last dial was refused: no process listens there
        self.times = CallTimes()  # of the calls over all links to it
        self._frames = 0  # of calls, over links that are gone
        self._me = me
        self._doors = doors
        self._judge = judge
        self._on_link = on_link
        self._changed = trio.Event()

    def call(self, op: int, arguments: list[Any], deadline_s: float, done: Done, size_bytes: int = 64) -> None:
        """As `Link.call`. Without a link the call ends at once as `NOT_SENT`."""
        if self.link is None:
            done(Fault.NOT_SENT, [])
        else:
            self.link.call(op, arguments, deadline_s, done, size_bytes)

    async def ask(self, op: int, arguments: list[Any], timeout_s: float) -> tuple[int, list[Any]]:
        """A call as a coroutine, for everything outside the path of a request. Returns (fault, payload)."""
        answered = trio.Event()
        result: tuple[int, list[Any]] = (Fault.LATE, [])

        def done(fault: int, payload: list[Any]) -> None:
            nonlocal result
            result = (fault, payload)
            answered.set()

        with trio.move_on_after(timeout_s):
            self.call(op, arguments, trio.current_time() + timeout_s, done)
            await answered.wait()
        return result

    @property
    def frames(self) -> int:
        """How many frames of calls left, over all links to it."""
        return self._frames if self.link is None else self.link.frames

    @property
    def crowded(self) -> bool:
        """Is there a link that takes no more calls just now?"""
        return self.link is not None and self.link.crowded

    def redial(self) -> None:
        """End the link, so that `run` dials anew."""
        if self.link is not None:
            self.link.end()

    async def wait_changed(self) -> None:
        """Wait for the next link, break or failed dial."""
        await self._changed.wait()

    async def run(self) -> None:
        """Keep a link up until cancelled."""
        pause_s = 0.0
        while True:
            await trio.sleep(pause_s * (0.5 + self._doors.dice.random()))
            try:
                link = await self._dial()
            except (OSError, ValueError, LinkError) as error:  # ValueError: not an address
                self.refused = isinstance(error, ConnectionRefusedError)
                self._set(None, str(error) or type(error).__name__)
                pause_s = _longer(pause_s)
                continue
            self.refused = False
            link.times, link.frames = self.times, self.frames
            linked_s = trio.current_time()
            self._set(link, "")
            try:
                await link.run(self._link_over)
            except PeerError as error:
                self.why_not = str(error)
            # A node may greet and hang up again and again. It is not redialled at once each time.
            pause_s = 0.0 if trio.current_time() - linked_s >= REDIAL_MOST_S else _longer(pause_s)

    async def _dial(self) -> Link:
        with trio.move_on_after(DIAL_TIMEOUT_S):
            stream = await self._doors.transport.connect(self.address)
            link = await dial(stream, self._me())
            if reason := self._judge(link.peer):
                await link.close()
                raise LinkError(reason)
            return link
        raise LinkError(f"no answer from {self.address} within {DIAL_TIMEOUT_S:g} s")

    def _link_over(self) -> None:
        self._set(None, "the connection ended")

    def _set(self, link: Link | None, why_not: str) -> None:
        if self.link is not None:
            self._frames = self.link.frames
        self.link = link
        self.why_not = why_not
        self._on_link(link)
        self._changed.set()
        self._changed = trio.Event()


def _longer(pause_s: float) -> float:
    return min(max(2 * pause_s, REDIAL_FIRST_S), REDIAL_MOST_S)
