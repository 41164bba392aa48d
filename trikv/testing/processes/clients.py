"""Clients of a real cluster: each asks for one thing after the other over HTTP, and writes down what it was told.

    with Load(lambda: cluster.master.http_port, seed=1) as load:
        cluster.workers[0].kill()
        load.until(50, since_s=load.now_s())         # so many further writes were committed
    verdict = linear.check(load.history)

They run in a thread of their own (`background.py`), over bare sockets, since a client library costs more than the
cluster does. Nothing is retried behind anybody's back. What a client learns is what a careful program would conclude:
no connection was made: refused; it broke, or nobody answered in `PATIENCE_S`, after a write had been sent: unknown.

What they ask for follows from the seed: mostly puts and gets, some deletes and compare-and-sets, half of it for a few
hot keys (`hot`), so that operations meet; every value is written once. A compare-and-set expects what the clients saw
last. Every second client insists: after a write that was not committed it writes the same key until one is, so that it
shows when that is possible again. They keep to a rate together; who was held up catches up, as far as `BACKLOG_S` goes.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, NamedTuple, Self

import trio

from trikv.core.errors import Outcome
from trikv.core.record import Version
from trikv.testing.judge.history import PRECONDITION_FAILED, Kind, Operation, Recorder
from trikv.testing.processes.background import Background

PATIENCE_S: Final = 6.0  # the cluster itself answers within its own deadline
BACKLOG_S: Final = 5.0
HOT_KEYS: Final = 10
FILL_DEADLINE_S: Final = 120.0
AGAIN_S: Final = 0.1  # before a request that failed at once is followed by another
MET: Final = (PRECONDITION_FAILED, "no_compare_and_set")  # answers as good as any other
RECEIVE_BYTES: Final = 64 * 1024


class HttpAnswer(NamedTuple):
    status: int
    etag: str
    body: bytes


class HttpConnection:
    """Just enough HTTP/1.1: one request at a time, answers with a content-length. It dials when it is needed."""

    def __init__(self, port: Callable[[], int]) -> None:
        self._port = port
        self._stream: trio.SocketStream | None = None
        self._buffer = bytearray()

    async def dial(self) -> None:
        """
        Raises:
          OSError: nobody is there, so nothing was sent.
        """
        if self._stream is None:
            self._buffer.clear()
            self._stream = await trio.open_tcp_stream("127.0.0.1", self._port())

    async def ask(self, method: str, path: str, body: bytes = b"", *headers: str) -> HttpAnswer:
        """
        Raises:
          trio.BrokenResourceError: the connection ended first.
        """
        assert self._stream is not None, "dial first"
        lines = [f"{method} {path} HTTP/1.1", "host: localhost", *headers]
        if body or method == "PUT":
            lines += ["content-type: application/octet-stream", f"content-length: {len(body)}"]
        await self._stream.send_all("\r\n".join((*lines, "", "")).encode() + body)
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            await self._receive()
        status, *rest = self._buffer[:end].decode("latin-1").split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in rest)
        whole = end + 4 + int(fields.get("content-length", 0))
        while len(self._buffer) < whole:
            await self._receive()
        answer = HttpAnswer(
            int(status.split()[1]), fields.get("etag", "").strip('"'), bytes(self._buffer[end + 4 : whole])
        )
        del self._buffer[:whole]
        if fields.get("connection") == "close":
            await self.hang_up()
        return answer

    async def _receive(self) -> None:
        assert self._stream is not None
        data = await self._stream.receive_some(RECEIVE_BYTES)
        if not data:
            raise trio.BrokenResourceError("the master closed the connection")
        self._buffer += data

    async def hang_up(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            await trio.aclose_forcefully(stream)


@dataclass(frozen=True, slots=True)
class Mix:
    """What is asked for: shares, which sum up to one; the rest are deletes."""

    put: float = 0.45
    get: float = 0.37
    cas: float = 0.12


class Load:
    """
    Args:
      port: where the master serves HTTP on loopback, asked at each connection.
      clients, rate: how many, and how many requests they make in a second together.
      keys: how many keys they use.
      value_bytes: values are filled up to so many.
      hot: how much of it is for the `HOT_KEYS` first keys.
      insists: of so many clients one insists.
      fill: write every key once before anything else, which `filled` waits for.
    """

    def __init__(
        self,
        port: Callable[[], int],
        *,
        seed: int | str,
        clients: int = 8,
        rate: float = 100.0,
        keys: int = 300,
        mix: Mix | None = None,
        value_bytes: int = 0,
        hot: float = 0.5,
        insists: int = 2,
        fill: bool = False,
    ) -> None:
        self.keys = [f"key-{number:05d}" for number in range(keys)]
        self.recorder = Recorder()
        self.commits = 0  # writes that were committed so far
        self._port = port
        self._seed = seed
        self._clients = clients
        self._interval_s = clients / rate
        self._mix = mix or Mix()
        self._value_bytes = value_bytes
        self._seen: dict[str, tuple[str, str] | None] = {}  # by key: value and stamp, None for absence
        self._background = Background()
        self._hot = hot
        self._insists = insists
        self._fill = fill
        self._filled = trio.Event()
        self._stopping = False
        self._ended = trio.Event()

    @property
    def history(self) -> list[Operation]:
        return self.recorder.operations

    @staticmethod
    def now_s() -> float:
        """The clock of the history."""
        return time.monotonic()

    def __enter__(self) -> Self:
        self._background.open()
        self._background.spawn(self._run_all)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.stop()
        finally:
            self._background.__exit__(kind, error, trace)

    def stop(self) -> None:
        """Ask for no more; returns when every client has its last answer."""
        self._stopping = True
        self._background.run(self._ended.wait)

    def filled(self) -> None:
        """Return when every key has been written once."""
        self._background.run(self._filled.wait)

    def read_all(self, deadline_s: float = 60.0) -> list[str]:
        """Read every key, each until it is answered; the keys that were not in time."""
        unread: list[str] = self._background.run(self._ask_for_all, Kind.GET, deadline_s)
        return unread

    # --- in the loop --------------------------------------------------------------------------------------------------

    async def _run_all(self) -> None:
        if self._fill:
            await self._ask_for_all(Kind.PUT, FILL_DEADLINE_S)
        self._filled.set()
        async with trio.open_nursery() as nursery:
            for number in range(self._clients):
                nursery.start_soon(self._run_one, f"c{number + 1}", number % self._insists == 0)
        self._ended.set()

    async def _run_one(self, client: str, insists: bool) -> None:
        dice = random.Random(f"{self._seed}/{client}")
        due_s = self.now_s() + dice.random() * self._interval_s
        again: str | None = None
        connection = HttpConnection(self._port)
        try:
            while not self._stopping:
                await trio.sleep(max(0.0, due_s - self.now_s()))
                due_s = max(due_s + self._interval_s, self.now_s() - BACKLOG_S)
                kind, key = self._draw(dice) if again is None else (Kind.PUT, again)
                operation = await self.ask(connection, client, kind, key)
                failed = operation.outcome is not Outcome.COMMITTED and operation.code not in MET
                if operation.writes and operation.outcome is Outcome.COMMITTED:
                    self.commits += 1
                again = key if insists and failed and operation.writes else None
                if again is not None:
                    await trio.sleep(AGAIN_S)
        finally:
            await connection.hang_up()

    def _draw(self, dice: random.Random) -> tuple[Kind, str]:
        keys = self.keys[:HOT_KEYS] if dice.random() < self._hot else self.keys
        where = dice.random()
        for kind, share in ((Kind.PUT, self._mix.put), (Kind.GET, self._mix.get), (Kind.CAS, self._mix.cas)):
            where -= share
            if where < 0:
                return kind, dice.choice(keys)
        return Kind.DELETE, dice.choice(keys)

    async def ask(self, connection: HttpConnection, client: str, kind: Kind, key: str) -> Operation:
        """One request, from its beginning to its end."""
        value = self.recorder.fresh_value().ljust(self._value_bytes, ".") if kind in (Kind.PUT, Kind.CAS) else None
        headers: list[str] = []
        expect = None
        if kind is Kind.CAS:
            seen = self._seen.get(key)
            headers = ["if-none-match: *"] if seen is None else [f'if-match: "{seen[1]}"']
            expect = None if seen is None else seen[0]
        method = {Kind.GET: "GET", Kind.DELETE: "DELETE"}.get(kind, "PUT")
        operation = self.recorder.begin(client, kind, key, self.now_s(), value=value, expect=expect)
        answer: HttpAnswer | None = None
        sent = False
        try:
            with trio.move_on_after(PATIENCE_S):
                await connection.dial()
                sent = True
                answer = await connection.ask(method, f"/v1/kv/{key}", (value or "").encode(), *headers)
        except (OSError, trio.BrokenResourceError):
            pass
        if answer is None:
            await connection.hang_up()
        self._end(operation, answer, sent)
        return operation

    def _end(self, operation: Operation, answer: HttpAnswer | None, sent: bool) -> None:
        end = self.recorder.end
        now_s = self.now_s()
        if answer is None:
            if sent and operation.writes:
                end(operation, now_s, Outcome.UNKNOWN)
            else:
                end(operation, now_s, Outcome.REFUSED, code="unanswered" if sent else "unreachable")
            return
        if answer.status >= 300 and not (answer.status == 404 and operation.kind is Kind.GET):
            problem = json.loads(answer.body)
            end(operation, now_s, Outcome(problem["outcome"]), code=problem["code"])
            return
        held = operation.value if operation.writes else answer.body.decode() if answer.status < 300 else None
        self._seen[operation.key] = None if held is None else (held, answer.etag)
        stamp = Version.parse(answer.etag) if answer.etag and answer.status < 300 else None
        end(operation, now_s, Outcome.COMMITTED, result=None if operation.writes else held, stamp=stamp)

    async def _ask_for_all(self, kind: Kind, deadline_s: float) -> list[str]:
        """Ask for every key until it is committed; those of which that was not in time."""
        left = list(self.keys)
        failed: list[str] = []
        until_s = self.now_s() + deadline_s

        async def ask(client: str) -> None:
            connection = HttpConnection(self._port)
            try:
                while left:
                    key = left.pop()
                    while (await self.ask(connection, client, kind, key)).outcome is not Outcome.COMMITTED:
                        if self.now_s() > until_s:
                            failed.append(key)
                            break
                        await trio.sleep(AGAIN_S)
            finally:
                await connection.hang_up()

        async with trio.open_nursery() as nursery:
            for number in range(self._clients):
                nursery.start_soon(ask, f"r{number + 1}")
        return failed
