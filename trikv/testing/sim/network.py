"""The simulated network: streams that delay, hold back, cut and repeat, behind Trio's interfaces.

A *host* is a machine with an address. A *life* is a node on it, from a start to a crash. A connection is two *pipes*,
one for each direction, which keep their bytes in order, as TCP does. All pipes from one host to another share a *wire*.
Faults act on the wire: it has a latency, may be slow or lossy, and may be held. What arrives on a held wire waits
there, and is delivered when the last hold ends. So a partition ends with a burst of late messages, and no timer polls
for its end.

After a crash. Bytes that were under way when a node died still arrive, perhaps much later (`linger_s`), perhaps cut
short. Then the connection may end. Or it does not end, and the other side learns of the crash when its own bytes reach
a machine that does not know the connection. A machine that is off (`silent`) answers nothing at all. `replay` makes
frames that once arrived arrive again, on another connection with the old greeting.

Cost: one heap entry and one call for each chunk of bytes; no task. Bytes under way are not bounded here; the links
above bound them.

Left out: back pressure. A `send_all` never waits.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import trio

from trikv.net.doors import Listening, Transport
from trikv.testing.sim.clock import SimClock
from trikv.testing.sim.trace import Trace

_END: Final = b""  # in a pipe: the writer has closed it
_RETRANSMIT_S: Final = 0.2  # what a lost packet costs, doubled for each further loss
_CUT_SHARE: Final = 0.25  # the share of losses on a lossy wire that end the connection
_KEPT_FRAMES: Final = 24  # for each pipe, for replays
_SMALL_FRAME_BYTES: Final = 64  # heartbeats, whose replay proves nothing


class Life:
    """One node, from a start to its crash. `dead` is true from the crash on, while its tasks still unwind."""

    def __init__(self, host: Host, number: int, dice: random.Random) -> None:
        self.host = host
        self.number = number
        self.dice = dice
        self.dead = False
        self.stopped = False  # its tasks do not run (`clock.Stopped`)
        self.woken_s = -math.inf  # when it went on for the last time
        self.disk_failed = False  # the node was told so, and may end for that reason
        self.has_successor = False  # when this life has ended by itself, the next one begins
        self.scope = trio.CancelScope()
        self.steps_left = 0  # until `crash` is called; 0: steps are not counted
        self.crash: Callable[[], None] = lambda: None

    def step(self) -> None:
        """Note that the node is about to do something that others can see. Its crash may come at this step."""
        if self.steps_left:
            self.steps_left -= 1
            if not self.steps_left:
                self.crash()


class Host:
    """A machine, with at most one node alive on it."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self.life: Life | None = None
        self.lives = 0
        self.silent = False  # off, or cut off: it does not even refuse connections
        self.listener: SimListener | None = None


class Wire:
    """The way of all bytes from one host to another."""

    def __init__(self, source: str, target: str, latency_s: float, seed: object) -> None:
        self.source = source
        self.target = target
        self.route = f" {source}>{target} ".encode()
        self.holds = 0
        self.slow_s = 0.0
        self.late_s = 0.0
        self.loss = 0.0
        self.pipes: list[Pipe] = []
        self.waiting: list[Callable[[], None]] = []  # attempts to connect, which belong to no pipe
        self.dice = random.Random(f"{seed}/{source}>{target}")
        self._latency_s = latency_s

    def draw_latency_s(self) -> float:
        latency_s = self._latency_s * (0.5 + self.dice.random()) + self.late_s
        if self.slow_s:
            latency_s += self.slow_s * self.dice.random()
        if self.loss:
            lost = _RETRANSMIT_S
            while self.dice.random() < self.loss and lost < 3:
                latency_s += lost
                lost *= 2
        return latency_s

    def hold(self) -> None:
        self.holds += 1

    def release(self) -> None:
        self.holds -= 1
        if not self.holds:
            for pipe in self.pipes:
                pipe.deliver_kept()
            waiting, self.waiting = self.waiting, []
            for arrive in waiting:
                arrive()


class Pipe:
    """One direction of a connection: bytes in order, from one life to another."""

    def __init__(self, network: Network, wire: Wire, writer: Life, reader: Life, connection: int) -> None:
        self.writer = writer
        self.reader = reader
        self.back: Pipe = self  # the other direction, set when the connection is made
        self.buffer = bytearray()  # arrived, not yet read
        self.ended = False  # nothing follows
        self.broken = False  # reset
        self.closed = False  # the reader has closed its end
        self.greeting = b""
        self.recent: deque[bytes] = deque(maxlen=_KEPT_FRAMES)
        self.waiter: trio.lowlevel.Task | None = None
        self._network = network
        self._wire = wire
        self._connection = connection
        self._flight: deque[tuple[int, bytes | None]] = deque()  # None: a reset
        self._due = 0  # how many of those should have arrived already
        self._lingers = False
        self._last_s = 0.0
        wire.pipes.append(self)

    def send(self, data: bytes | None) -> None:
        network, wire = self._network, self._wire
        if data and wire.loss and wire.dice.random() < wire.loss * _CUT_SHARE:
            data = None
        self._last_s = max(network.clock.now_s + wire.draw_latency_s(), self._last_s)
        number = network.next_number()
        self._flight.append((number, data))
        if data and not self.greeting:
            self.greeting = data
        if data and network.trace.wanted:
            self._tell("send", number, data)
        network.clock.at(self._last_s, self._arrive)

    def die(self, dice: random.Random, *, linger_s: float, silent: bool) -> None:
        """Decide what becomes of the bytes under way when the writer dies."""
        if self._flight and not silent:
            fate = dice.random()
            if fate < 0.2:
                self._flight.clear()
                self._due = 0
            elif fate < 0.4 and (last := self._flight[-1][1]):
                self._flight[-1] = (self._flight[-1][0], last[: dice.randrange(1, len(last) + 1)])
        if linger_s:
            self._lingers = True
            self._network.clock.after(linger_s, self._stop_lingering)
        if not silent:
            self.send(_END if dice.random() < 0.5 else None)

    def deliver_kept(self) -> None:
        while self._due and not self._held:
            self._due -= 1
            self._deliver(*self._flight.popleft())

    def set_aside(self) -> list[bytes]:
        """Take back all that is still under way."""
        frames = [data for _, data in self._flight if data]
        self._flight.clear()
        self._due = 0
        return frames

    def wake(self) -> None:
        if self.waiter is not None:
            task, self.waiter = self.waiter, None
            trio.lowlevel.reschedule(task)

    def stop_waiting(self, raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
        self.waiter = None
        return trio.lowlevel.Abort.SUCCEEDED

    @property
    def _held(self) -> bool:
        return self._wire.holds > 0 or self._lingers

    def _stop_lingering(self) -> None:
        self._lingers = False
        self.deliver_kept()

    def _arrive(self) -> None:
        if self._due == len(self._flight):
            return  # it was lost in a crash
        if self._wire.holds or self._lingers:
            self._due += 1
        else:
            self._deliver(*self._flight.popleft())

    def _deliver(self, number: int, data: bytes | None) -> None:
        network = self._network
        if self.broken:
            return
        if self.reader.dead or self.closed:
            if data and not self.reader.host.silent and not self.back.broken:
                self.back.send(None)
            return
        network.trace.note_arrival(network.clock.now_s, self._wire.route, data or b"")
        if data is None:
            self.broken = True
            self.back.broken = True
            self.back.wake()
        elif data:
            if network.trace.wanted:
                self._tell("arrive", number, data)
            if len(data) > _SMALL_FRAME_BYTES:
                self.recent.append(data)
            self.buffer += data
        else:
            self.ended = True
        self.wake()

    def _tell(self, what: str, number: int, data: bytes) -> None:
        network, wire = self._network, self._wire
        network.trace.note_message(network.clock.now_s, what, wire.source, wire.target, number, self._connection, data)


class SimStream(trio.abc.Stream):
    """One end of a connection."""

    def __init__(self, life: Life, incoming: Pipe, outgoing: Pipe) -> None:
        self._life = life
        self._incoming = incoming
        self._outgoing = outgoing

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._incoming.closed:
            raise trio.ClosedResourceError("this end is closed")
        if self._incoming.broken:
            raise trio.BrokenResourceError("the connection was reset")
        self._life.step()
        if not self._life.dead:
            self._outgoing.send(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint_if_cancelled()
        pipe = self._incoming
        while not (pipe.buffer or pipe.ended or pipe.broken or pipe.closed):
            if pipe.waiter is not None:
                raise trio.BusyResourceError("another task reads here")
            pipe.waiter = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(pipe.stop_waiting)
        if pipe.closed:
            raise trio.ClosedResourceError("this end is closed")
        if pipe.broken:
            raise trio.BrokenResourceError("the connection was reset")
        data = bytes(pipe.buffer[:max_bytes])
        del pipe.buffer[: len(data)]
        return data

    async def aclose(self) -> None:
        if not self._incoming.closed:
            self._incoming.closed = True
            self._incoming.wake()
            if not self._life.dead and not self._incoming.broken:
                self._outgoing.send(_END)
        # No checkpoint: nothing is waited for here, and nearly all callers have cancelled themselves before they close.


class SimListener(trio.abc.Listener[SimStream]):
    def __init__(self, host: Host) -> None:
        self._host = host
        self._arrived: deque[SimStream] = deque()
        self._waiter: trio.lowlevel.Task | None = None

    def offer(self, stream: SimStream) -> None:
        self._arrived.append(stream)
        if self._waiter is not None:
            task, self._waiter = self._waiter, None
            trio.lowlevel.reschedule(task)

    async def accept(self) -> SimStream:
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._arrived:
            self._waiter = trio.lowlevel.current_task()

            def abort(raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
                self._waiter = None
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
        return self._arrived.popleft()

    async def aclose(self) -> None:
        if self._host.listener is self:
            self._host.listener = None
        await trio.lowlevel.checkpoint()


class _Attempt:
    """A connection that is being opened. `stream` is the caller's end; `refused` says that there will be none."""

    def __init__(self) -> None:
        self.stream: SimStream | None = None
        self.refused = False
        self.abandoned = False
        self.answered = trio.Event()


class SimTransport(Transport):
    """The door of one life."""

    def __init__(self, network: Network, life: Life) -> None:
        self._network = network
        self._life = life

    async def connect(self, address: str) -> trio.abc.Stream:
        attempt = _Attempt()
        self._network.open(self._life, address, attempt)
        try:
            await attempt.answered.wait()
        except trio.Cancelled:
            attempt.abandoned = True
            raise
        if attempt.stream is None:
            raise ConnectionRefusedError(f"connection to {address} refused")
        return attempt.stream

    async def listen(self, address: str) -> Listening:
        await trio.lowlevel.checkpoint()
        host = self._life.host
        if address != host.address:
            raise OSError(f"cannot listen on {address}: it is not an address of {host.name}")
        host.listener = SimListener(host)
        return Listening(host.listener, address)


class Network:
    def __init__(self, clock: SimClock, trace: Trace, seed: object, latency_s: float) -> None:
        self.clock = clock
        self.trace = trace
        self.hosts: dict[str, Host] = {}
        self._seed = seed
        self._latency_s = latency_s
        self._wires: dict[tuple[str, str], Wire] = {}
        self._pipes: list[Pipe] = []
        self._number = 0

    def add_host(self, name: str, address: str) -> Host:
        host = self.hosts[name] = Host(name, address)
        return host

    def wire(self, source: str, target: str) -> Wire:
        wire = self._wires.get((source, target))
        if wire is None:
            wire = self._wires[source, target] = Wire(source, target, self._latency_s, self._seed)
        return wire

    def next_number(self) -> int:
        self._number += 1
        return self._number

    def post(
        self, source: str, target: str, arrive: Callable[[], None], *, lost: Callable[[], None] = lambda: None
    ) -> None:
        """Send a message that belongs to no connection. It may be lost where the wire is lossy, and overtake others."""
        wire = self.wire(source, target)
        if wire.loss and wire.dice.random() < wire.loss * _CUT_SHARE:
            lost()
            return

        def knock() -> None:
            if wire.holds:
                wire.waiting.append(knock)
            else:
                self.trace.note_arrival(self.clock.now_s, wire.route, b"")
                arrive()

        self.clock.after(wire.draw_latency_s(), knock)

    # --- opening ------------------------------------------------------------------------------------------------------

    def open(self, caller: Life, address: str, attempt: _Attempt) -> None:
        """Connect to `address`. It takes the way there and the way back."""
        callee = next(host for host in self.hosts.values() if host.address == address)
        there, back = self.wire(caller.host.name, callee.name), self.wire(callee.name, caller.host.name)

        def knock() -> None:
            if there.holds:
                there.waiting.append(knock)
            elif callee.life is not None and callee.listener is not None:
                ours, theirs = self._connection(caller, callee.life)
                callee.listener.offer(theirs)
                self.clock.after(back.draw_latency_s(), lambda: answer(ours))
            elif not callee.silent:
                self.clock.after(back.draw_latency_s(), lambda: answer(None))

        def answer(stream: SimStream | None) -> None:
            if back.holds:
                back.waiting.append(lambda: answer(stream))
            elif attempt.abandoned or caller.dead:
                if stream is not None:
                    stream._incoming.closed = True
                    stream._outgoing.send(_END)
            else:
                attempt.stream = stream
                attempt.answered.set()

        self.clock.after(there.draw_latency_s(), knock)

    def _connection(self, caller: Life, callee: Life) -> tuple[SimStream, SimStream]:
        number = self.next_number()
        there = Pipe(self, self.wire(caller.host.name, callee.host.name), caller, callee, number)
        back = Pipe(self, self.wire(callee.host.name, caller.host.name), callee, caller, number)
        there.back, back.back = back, there
        self._pipes += (there, back)
        return SimStream(caller, back, there), SimStream(callee, there, back)

    # --- weather ------------------------------------------------------------------------------------------------------

    def bury(self, life: Life, *, linger_s: float = 0.0, silent: bool = False) -> None:
        """Decide what becomes of the connections of a node that died."""
        life.host.listener = None
        for pipe in list(self._pipes):
            if pipe.writer is life and not pipe.back.closed:
                pipe.die(life.dice, linger_s=linger_s, silent=silent)

    def capture(self, target: str, dice: random.Random) -> tuple[Pipe, list[bytes]] | None:
        """Some frames that reached `target` on one connection, from a node dead or alive."""
        pipes = [pipe for pipe in self._pipes if pipe.reader.host.name == target and pipe.recent]
        if not pipes:
            return None
        pipe = dice.choice(pipes)
        return pipe, sorted(dice.sample(pipe.recent, min(len(pipe.recent), 3)), key=pipe.recent.index)

    def set_aside(self, source: str, target: str) -> list[tuple[Pipe, list[bytes]]]:
        """Take off the wire what a dead node still had under way, so that it can be replayed later."""
        pipes = [pipe for pipe in self.wire(source, target).pipes if pipe.writer.dead]
        return [(pipe, frames) for pipe in pipes if (frames := pipe.set_aside())]

    def replay(self, pipe: Pipe, frames: Sequence[bytes]) -> None:
        """Make these frames arrive at the node that lives there now. Its answers are dropped."""
        host = pipe.reader.host
        if host.life is None or host.listener is None:
            return
        ghost = Life(pipe.writer.host, 0, pipe.writer.dice)
        ours, theirs = self._connection(ghost, host.life)
        host.listener.offer(theirs)
        outgoing = ours._outgoing
        outgoing.send(pipe.greeting)
        for frame in frames:
            self.clock.after(0.1, lambda frame=frame: outgoing.send(frame))  # type: ignore[misc]
        self.clock.after(1.0, lambda: outgoing.send(_END))
