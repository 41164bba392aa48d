"""A network door whose links can be broken on purpose: cut, slowed, and mended, by the address that is dialled.

A *cut* link is silent, like a pulled cable: no connection ends, no dial is refused, nothing arrives. So the dialling
node learns of it as it would from a network: by silence. What waited arrives when the link is mended, if its connection
still exists. A *slow* link lets each message wait before it leaves. What is written meanwhile leaves with the next one,
so a busy link waits for up to two delays, and no message overtakes another.

It acts on the connections that this node dials, and on no others: a peer can still reach other nodes, and this one. A
master dials its workers for everything that it asks of them, and a worker that asks to be enlisted is dialled back; so
to the master a worker behind a cut link is gone, while its replicas still pass relays to it.

Cost: one more call for each read and write. It is used only where faults are allowed.
"""

from __future__ import annotations

from typing import Final
from weakref import WeakValueDictionary

import trio

from trikv.core.breaking import LinkState
from trikv.net.doors import Listening, Transport

_LOCALHOST: Final = "localhost:"


class BreakableTransport(Transport):
    """`inner`, with links that can be broken. Addresses are those that are dialled."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self._wires: WeakValueDictionary[str, _Wire] = WeakValueDictionary()  # of the connections that there are
        self._broken: dict[str, _Wire] = {}

    async def connect(self, address: str) -> trio.abc.Stream:
        wire = self._wire(address)
        await wire.passable()
        return _BreakableStream(await self._inner.connect(address), wire)

    async def listen(self, address: str) -> Listening:
        return await self._inner.listen(address)

    def cut(self, address: str) -> None:
        """From now on the link is silent."""
        self._break(address, LinkState.CUT, 0.0)

    def slow(self, address: str, delay_s: float) -> None:
        """From now on each message waits for so long before it leaves."""
        self._break(address, LinkState.SLOW, delay_s)

    def mend(self, address: str) -> None:
        if wire := self._broken.pop(_key(address), None):
            wire.change(LinkState.WHOLE, 0.0)

    def look(self, address: str) -> tuple[LinkState, float]:
        """The link's state, and its delay in seconds."""
        wire = self._broken.get(_key(address))
        return (LinkState.WHOLE, 0.0) if wire is None else (wire.state, wire.delay_s)

    def _break(self, address: str, state: LinkState, delay_s: float) -> None:
        wire = self._broken[_key(address)] = self._wire(address)
        wire.change(state, delay_s)

    def _wire(self, address: str) -> _Wire:
        key = _key(address)
        wire = self._wires.get(key)
        if wire is None:
            wire = self._wires[key] = _Wire()
        return wire


class _Wire:
    """What all connections to one address have in common."""

    def __init__(self) -> None:
        self.state = LinkState.WHOLE
        self.delay_s = 0.0
        self._changed = trio.Event()

    def change(self, state: LinkState, delay_s: float) -> None:
        self.state, self.delay_s = state, delay_s
        self._changed.set()
        self._changed = trio.Event()

    async def passable(self) -> None:
        """Return when the link is not cut."""
        while self.state is LinkState.CUT:
            await self._changed.wait()

    async def delayed(self) -> None:
        """Return when a message may leave; one that waits leaves at once when the link is mended."""
        began_s = trio.current_time()
        while self.state is not LinkState.WHOLE:
            left_s = began_s + self.delay_s - trio.current_time()
            if self.state is LinkState.SLOW and left_s <= 0:
                return
            with trio.move_on_after(left_s if self.state is LinkState.SLOW else float("inf")):
                await self._changed.wait()


class _BreakableStream(trio.abc.Stream):
    def __init__(self, inner: trio.abc.Stream, wire: _Wire) -> None:
        self._inner = inner
        self._wire = wire

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._wire.state is not LinkState.WHOLE:
            await self._wire.delayed()
        await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._inner.receive_some(max_bytes)
        if self._wire.state is LinkState.CUT:
            await self._wire.passable()
        return data

    async def aclose(self) -> None:
        await self._inner.aclose()


def _key(address: str) -> str:
    """One name for both spellings of this machine."""
    return f"127.0.0.1:{address.removeprefix(_LOCALHOST)}" if address.startswith(_LOCALHOST) else address
