"""Clients of a real cluster: each sends one request after the other over HTTP and records the answers as a history.

    with Load(cluster.masters, seed=1) as load:
        cluster.workers[0].kill()
        ...
    verdict = linear.check(load.history)

The caller controls processes, so it blocks; the clients run meanwhile in a Trio loop in a thread of its own (anyio's
blocking portal). An error of a client is raised by `stop`, so by the end of the `with` block. They use `connection.py`,
and no request is retried unseen. A client concludes what a careful program would. No connection was made: refused. The
connection broke after a write had been sent, or no answer came within `PATIENCE_S`: unknown.

The requests follow from the seed: mostly puts and gets, some deletes and compare-and-sets. Half of them are for a few
hot keys (`hot`), so that operations meet. Every value is written once. A compare-and-set expects the value that the
clients saw last. Every second client insists: after a write that was not committed it writes the same key again until a
write commits, which shows when the key is writable again. All clients together keep to a rate. A client that was held
up catches up, by at most `BACKLOG_S`.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import trio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from trikv.core.errors import Outcome
from trikv.core.record import Version
from trikv.testing.judge.history import MET, Kind, Operation, Recorder
from trikv.testing.processes.connection import HttpAnswer, HttpConnection, make_request
from trikv.testing.processes.process import NodeProcess

PATIENCE_S: Final = 6.0  # the cluster itself answers within its own deadline
BACKLOG_S: Final = 5.0
HOT_KEYS: Final = 10
FILL_DEADLINE_S: Final = 120.0
AGAIN_S: Final = 0.1  # between a request that failed at once and the next


@dataclass(frozen=True, slots=True)
class Mix:
    """The shares of each kind of request; what is missing to one are deletes."""

    put: float = 0.45
    get: float = 0.37
    cas: float = 0.12


class Load:
    """
    Args:
      masters: the nodes that serve HTTP. Each connection is to one that is drawn, at the port that it has then.
      clients, rate: the number of clients, and the requests per second of all of them together.
      keys: the number of keys.
      value_bytes: shorter values are padded to this length.
      hot: the share of requests for the first `HOT_KEYS` keys.
      insists: one client in so many insists.
      fill: write every key once before anything else; `filled` waits for that.
    """

    def __init__(
        self,
        masters: Sequence[NodeProcess],
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
        self.commits = 0  # committed writes so far
        self._masters = masters
        self._dice = random.Random(f"{seed}/masters")
        self._seed = seed
        self._clients = clients
        self._interval_s = clients / rate
        self._mix = mix or Mix()
        self._value_bytes = value_bytes
        self._seen: dict[str, tuple[str, str] | None] = {}  # by key: value and stamp, None for absence
        self._portal: BlockingPortal
        self._running: Future[None]
        self._thread = ExitStack()
        self._hot = hot
        self._insists = insists
        self._fill = fill
        self._filled = trio.Event()
        self._stopping = False

    @property
    def history(self) -> list[Operation]:
        return self.recorder.operations

    @staticmethod
    def now_s() -> float:
        """The clock of the history."""
        return time.monotonic()

    def __enter__(self) -> Self:
        self._portal = self._thread.enter_context(start_blocking_portal("trio"))
        self._running = self._portal.start_task_soon(self._run_all)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.stop()
        finally:
            self._running.cancel()
            self._thread.__exit__(kind, error, trace)

    def stop(self) -> None:
        """Send no more requests; return when every client has its last answer."""
        self._stopping = True
        self._running.result()

    def set_rate(self, rate: float) -> None:
        """Requests per second of all clients together, from each one's next request on."""
        self._interval_s = self._clients / rate

    def filled(self) -> None:
        """Return when every key has been written once."""
        self._portal.call(self._filled.wait)

    def read_all(self, deadline_s: float = 60.0) -> list[str]:
        """Read every key, each until it is answered; return the keys without an answer by the deadline."""
        return self._portal.call(self._ask_for_all, Kind.GET, deadline_s)

    # --- in the loop --------------------------------------------------------------------------------------------------

    async def _run_all(self) -> None:
        try:
            if self._fill:
                await self._ask_for_all(Kind.PUT, FILL_DEADLINE_S)
        finally:
            self._filled.set()
        async with trio.open_nursery() as nursery:
            for number in range(self._clients):
                nursery.start_soon(self._run_one, f"c{number + 1}", number % self._insists == 0)

    async def _run_one(self, client: str, insists: bool) -> None:
        dice = random.Random(f"{self._seed}/{client}")
        due_s = self.now_s() + dice.random() * self._interval_s
        again: str | None = None
        async with self._connection() as connection:
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

    def _connection(self) -> HttpConnection:
        return HttpConnection(lambda: self._dice.choice(self._masters).http_port)

    def _draw(self, dice: random.Random) -> tuple[Kind, str]:
        keys = self.keys[:HOT_KEYS] if dice.random() < self._hot else self.keys
        where = dice.random()
        for kind, share in ((Kind.PUT, self._mix.put), (Kind.GET, self._mix.get), (Kind.CAS, self._mix.cas)):
            where -= share
            if where < 0:
                return kind, dice.choice(keys)
        return Kind.DELETE, dice.choice(keys)

    async def ask(self, connection: HttpConnection, client: str, kind: Kind, key: str) -> Operation:
        """One request, and its record in the history."""
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
                answer = await connection.ask(make_request(method, f"/v1/kv/{key}", (value or "").encode(), *headers))
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
        etag = answer.header("etag").strip('"')
        held = operation.value if operation.writes else answer.body.decode() if answer.status < 300 else None
        self._seen[operation.key] = None if held is None else (held, etag)
        stamp = Version.parse(etag) if etag and answer.status < 300 else None
        end(operation, now_s, Outcome.COMMITTED, result=None if operation.writes else held, stamp=stamp)

    async def _ask_for_all(self, kind: Kind, deadline_s: float) -> list[str]:
        """Send a request for every key until it commits; return the keys for which none did by the deadline."""
        left = list(self.keys)
        failed: list[str] = []
        until_s = self.now_s() + deadline_s

        async def ask(client: str) -> None:
            async with self._connection() as connection:
                while left:
                    key = left.pop()
                    while (await self.ask(connection, client, kind, key)).outcome is not Outcome.COMMITTED:
                        if self.now_s() > until_s:
                            failed.append(key)
                            break
                        await trio.sleep(AGAIN_S)

        async with trio.open_nursery() as nursery:
            for number in range(self._clients):
                nursery.start_soon(ask, f"r{number + 1}")
        return failed
