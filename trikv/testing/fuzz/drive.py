"""Playing cases over sockets, and a worker that answers nonsense. `judge.py` judges the answers."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import cbor2
import trio

from trikv.core.calls import Op
from trikv.core.session import PROTOCOL
from trikv.testing.fuzz import rpc_cases
from trikv.testing.fuzz.case import Case, Ending
from trikv.testing.fuzz.rpc_cases import LAST_CALL, FuzzedNode

AT_ONCE_MAX: Final = 16  # connections: enough to overlap, and few enough to find the case that broke a rule
DEADLINE_S: Final = 15.0  # beyond the deadline of a request (2 s) and a connection's idle time, on a busy machine
LINGER_S: Final = 0.3
PATIENCE_S: Final = 1.0
RPC_AT_ONCE_MAX: Final = 4
SLOW_S: Final = 0.003
HEARD_BYTES_MAX: Final = 32 * 1024 * 1024
_READ_BYTES: Final = 64 * 1024


@dataclass(slots=True)
class Heard:
    """What came back. `ended`: the other side closed the connection. `late`: it had not by `DEADLINE_S`."""

    data: bytearray = field(default_factory=bytearray)
    ended: bool = False
    late: bool = False


async def play(port: int, case: Case) -> Heard | None:
    """Send the case, and listen as its ending says. None: no process listens at that port."""
    heard = Heard()
    try:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
    except OSError:
        return None
    try:
        with trio.move_on_after(DEADLINE_S) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_send, stream, case)
                if case.ending is Ending.ABORT:
                    continue_reading = trio.CancelScope(deadline=trio.current_time() + 0.001)
                elif case.ending is Ending.LINGER:
                    continue_reading = trio.CancelScope(deadline=trio.current_time() + LINGER_S)
                else:
                    continue_reading = trio.CancelScope()
                with continue_reading:
                    await _listen(stream, heard)
                nursery.cancel_scope.cancel()
        heard.late = scope.cancelled_caught
    finally:
        if case.ending is Ending.ABORT:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await trio.aclose_forcefully(stream)
    return heard


async def _send(stream: trio.SocketStream, case: Case) -> None:
    try:
        for number, piece in enumerate(case.pieces):
            if number and case.slow:
                await trio.sleep(SLOW_S)
            await stream.send_all(piece)
        if case.ending is Ending.HALF_CLOSE:
            await stream.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the other side may hang up; what it sent before is still read


async def _listen(stream: trio.SocketStream, heard: Heard) -> None:
    while len(heard.data) < HEARD_BYTES_MAX:
        try:
            data = await stream.receive_some(_READ_BYTES)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        if not data:
            heard.ended = True
            return
        heard.data += data


async def play_all(
    port: int, cases: Iterable[Case], on_heard: Callable[[Case, Heard | None], None], *, at_once: int = AT_ONCE_MAX
) -> None:
    """Play all cases, `at_once` at a time."""
    left = iter(cases)

    async def go_on() -> None:
        for case in left:
            on_heard(case, await play(port, case))

    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(go_on)


async def play_rpc(port: int, case: Case) -> Heard | None:
    """Send the case, then a heartbeat, and listen until the heartbeat is answered or the link has ended.

    Half a frame would wait for its rest for ever, so this side closes its half after `PATIENCE_S`.
    """
    heard = Heard()
    try:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
    except OSError:
        return None
    asked = Case(case.kind, (*case.pieces, rpc_cases.heartbeat()), Ending.LINGER, case.slow)
    frames = _Frames()

    async def lose_patience() -> None:
        await trio.sleep(PATIENCE_S)
        with suppress(trio.BrokenResourceError, trio.BusyResourceError):
            await stream.send_eof()

    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(_send, stream, asked)
        nursery.start_soon(lose_patience)
        with trio.move_on_after(DEADLINE_S) as scope:
            while not heard.ended:
                try:
                    data = await stream.receive_some(_READ_BYTES)
                except trio.BrokenResourceError:
                    data = b""
                heard.ended = not data
                heard.data += data
                if any(_answers(item, LAST_CALL) for item in frames.feed(data)):
                    break
        heard.late = scope.cancelled_caught
        nursery.cancel_scope.cancel()
    return heard


async def ask(port: int, to: FuzzedNode, op: int, arguments: list[Any]) -> list[Any] | None:
    """Greet well and make one call. Returns its answer `[id, fault, *payload]`, or None if the link ends first."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    frames = _Frames()
    async with stream:
        await stream.send_all(rpc_cases.frame(rpc_cases.greeting_fields(to)) + rpc_cases.calls((op, arguments)))
        with trio.move_on_after(DEADLINE_S):
            while data := await stream.receive_some(_READ_BYTES):
                for item in frames.feed(data):
                    if _answers(item, 1):
                        answer: list[Any] = item[1][0]
                        return answer
    return None


def _answers(item: Any, call_id: int) -> bool:
    return isinstance(item, list) and item[:1] == [rpc_cases.ANSWERS] and any(row[0] == call_id for row in item[1])


class _Frames:
    """Splits what arrives into whole frames. The sender is trusted to be well-behaved."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes | bytearray) -> list[Any]:
        self._bytes += data
        items = []
        while len(self._bytes) >= 4 and len(self._bytes) >= (end := 4 + int.from_bytes(self._bytes[:4], "big")):
            items.append(cbor2.loads(bytes(self._bytes[4:end])))
            del self._bytes[:end]
        return items


FakeAnswer = Callable[[int, list[Any], str], list[Any] | bytes | None]


class FakeWorker:
    """Listens like a worker, greets with `greeting`, which is a worker's at first, and answers calls as `answer` says.

    `answer(op, arguments, master)` gives `[fault, payload]`, or bytes to send instead of a frame, or None for silence;
    `master` is the incarnation with which the caller greeted.
    """

    def __init__(self, cluster: str, node: str, answer: FakeAnswer) -> None:
        self.greeting = rpc_cases.frame([rpc_cases.MAGIC, PROTOCOL, "worker", node, "fuzz-life", cluster])
        self.port = 0
        self.asked = 0
        self.answer = answer

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._serve, listeners)

    async def _serve(self, stream: trio.SocketStream) -> None:
        frames = _Frames()
        try:
            async with stream:
                greetings: list[Any] = []
                while not greetings:
                    if not (data := await stream.receive_some(_READ_BYTES)):
                        return
                    greetings = frames.feed(data)
                master = str(greetings[0][4])
                await stream.send_all(self.greeting)
                while data := await stream.receive_some(_READ_BYTES):
                    for _, rows in frames.feed(data):
                        for call_id, _budget_ms, op, *arguments in rows:
                            self.asked += 1
                            said = self.answer(op, arguments, master)
                            if said is not None:
                                data = said if isinstance(said, bytes) else _answer_frame(call_id, said)
                                await stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass


def _answer_frame(call_id: int, said: list[Any]) -> bytes:
    fault, payload = said
    return rpc_cases.frame([rpc_cases.ANSWERS, [[call_id, fault, *payload]]])


def nonsense(dice: random.Random, epoch: int) -> FakeAnswer:
    """Answer most heartbeats well, so that the worker counts as up, and every other call with nonsense or silence."""
    process = f"fuzz-{dice.randrange(2**32)}"
    vitals = list(rpc_cases.odd_vitals(process))

    def answer(op: int, arguments: list[Any], master: str) -> list[Any] | bytes | None:
        if op == Op.HEARTBEAT:
            odd = dice.random() < 0.05
            return [0, dice.choice(vitals) if odd else rpc_cases.good_vitals(process, master)]
        if op in (Op.DISCARD, Op.CONFIRM) and dice.random() < 0.5:
            return [0, []]
        where = dice.random()
        if where < 0.03:
            return None
        if where < 0.06:
            return rpc_cases.raw_frame(dice.choice(list(rpc_cases.FOREIGN.values())))
        return rpc_cases.odd_answer(dice, op, epoch)

    return answer
