"""One run of the fuzz: blocks of cases against a cluster of real processes, and a check of every process after each.

The blocks: HTTP/1.1; other protocols at the HTTP port; strangers at every RPC port; peers that greet well and then talk
nonsense, at every RPC port; addresses to enlist at which no worker answers; a worker that is enlisted, given a share,
and answers nonsense. A node that ends is recorded with the last cases that it got, and started again, so that the rest
of the run is of use.

What it costs, on two shared cores: about 9 s for each 1,000 HTTP requests, and a minute for the other blocks in full.
`share` plays a part of those, chosen by the seed.
"""

from __future__ import annotations

import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import trio

from trikv.client import Change
from trikv.core.calls import Op
from trikv.core.errors import Fault, TrikvError
from trikv.core.ring import partition_of
from trikv.testing.fuzz import rpc_cases, web_cases
from trikv.testing.fuzz.case import Case, FuzzWrite
from trikv.testing.fuzz.drive import RPC_AT_ONCE_MAX, FakeWorker, Heard, ask, nonsense, play, play_all, play_rpc
from trikv.testing.fuzz.judge import MEMORY_BYTES_MAX, FuzzFinding, judge_found, judge_log, judge_web, memory_of
from trikv.testing.fuzz.rpc_cases import FuzzedNode
from trikv.testing.processes.cluster import LocalCluster, NodeProcess, wait_until

HEALTH_KEY: Final = b"fuzz-health"
WORKERS: Final = 3
READ_KEYS_MAX: Final = 500  # in one part of the cases, and of the keys to read back
FINDINGS_SHOWN: Final = 50
LAST_SHOWN: Final = 4  # of the cases that a node got before its end
FAKE_NODE: Final = "w-f0220000"
UP_DEADLINE_S: Final = 20.0  # for workers that were held up to count as up again


class Fuzz:
    """
    Args:
      requests: connections of HTTP/1.1.
      seconds: begin no further HTTP/1.1 connections after so long.
      share: the share of the other blocks' cases that is played.
      only: play the blocks whose names begin so; if it is empty, all.
    """

    def __init__(
        self,
        *,
        seed: int,
        requests: int,
        seconds: float | None = None,
        share: float = 1.0,
        only: Sequence[str] = (),
        say: Callable[[str], None] = print,
    ) -> None:
        self.statuses: Counter[int] = Counter()
        self.kinds: Counter[str] = Counter()
        self.findings: list[FuzzFinding] = []
        self.memory: dict[str, tuple[int, int, int]] = {}  # bytes at the start, at the peak, at the end
        self._seed = seed
        self._requests = requests
        self._seconds = seconds
        self._share = share
        self._only = tuple(only)
        self._say = say
        self._refused: list[FuzzWrite] = []
        self._committed: list[FuzzWrite] = []
        self._last: dict[str, deque[Case]] = {}
        self._logged: set[str] = set()  # nodes whose logs have broken a rule already
        self._cluster = LocalCluster(mode="quorum", workers=WORKERS, down_after_s=3.0)

    def run(self) -> None:
        """Play every block. Broken rules are in `findings`."""
        blocks: list[tuple[str, Callable[[random.Random], None]]] = [
            ("http", self._http),
            ("other protocols", self._other_protocols),
            ("rpc strangers", partial(self._rpc, rpc_cases.strangers)),
            ("rpc greeted", partial(self._rpc, rpc_cases.after_greeting)),
            ("enlisting", self._enlisting),
            ("fake worker", self._fake_worker),
        ]
        with self._cluster, self._cluster.client(timeout_s=8.0) as client:
            self._client = client
            self._look("the start")
            for name, play_block in blocks:
                if not self._only or name.startswith(self._only):
                    began_s = time.monotonic()
                    before = self.kinds.total()
                    play_block(random.Random(f"{self._seed}/{name}"))
                    self._look(name)
                    played = self.kinds.total() - before
                    self._say(f"{name}: {played:,} cases in {time.monotonic() - began_s:.1f} s")

    @property
    def _nodes(self) -> list[NodeProcess]:
        return [self._cluster.master, *self._cluster.workers]

    # --- blocks -------------------------------------------------------------------------------------------------------

    def _http(self, dice: random.Random) -> None:
        until_s = time.monotonic() + (self._seconds or 10**9)

        def cases() -> Iterable[Case]:
            for number in range(self._requests):
                if time.monotonic() > until_s:
                    return
                yield web_cases.request_case(dice, number, f"fuzz-{self._seed}")

        self._play_web(cases())
        self._read_back()

    def _other_protocols(self, dice: random.Random) -> None:
        self._play_web(self._some(dice, web_cases.other_protocols()))

    def _play_web(self, cases: Iterable[Case]) -> None:
        """Play the cases in parts, and look at the nodes after each part."""
        part: list[Case] = []
        for case in cases:
            part.append(case)
            if len(part) == READ_KEYS_MAX:
                self._play_web_part(part)
                part = []
        self._play_web_part(part)

    def _play_web_part(self, part: list[Case]) -> None:
        trio.run(play_all, self._cluster.master.http_port, part, self._heard_web)
        self._revive("HTTP")

    def _heard_web(self, case: Case, heard: Heard | None) -> None:
        self.kinds[case.kind] += 1
        if heard is None:
            return
        self._remember(self._cluster.master, case)
        verdict = judge_web(case, heard)
        self.statuses.update(verdict.statuses)
        self.findings += verdict.findings
        self._refused += verdict.refused
        self._committed += verdict.committed

    def _read_back(self) -> None:
        """Read every key whose write was refused or committed."""
        keys = [write.key for write in (*self._refused, *self._committed)]
        found: dict[str, str | None] = {}
        for begin in range(0, len(keys), READ_KEYS_MAX):
            part = keys[begin : begin + READ_KEYS_MAX]
            found |= self._read(part)
        self.findings += judge_found(found, self._refused, self._committed)
        self._say(f"read back: {len(self._committed):,} committed, {len(self._refused):,} refused, {len(found):,} read")

    def _read(self, keys: list[str]) -> dict[str, str | None]:
        found: dict[str, str | None] = {}
        for key in keys:
            entry = self._client.get(key.encode())
            found[key] = None if entry is None else entry.value.decode(errors="replace")
        return found

    def _rpc(self, make: Callable[[random.Random, FuzzedNode], Iterable[Case]], dice: random.Random) -> None:
        """Play the same cases to every node at once, since one poisoned replica of three would not be noticed."""
        state = self._client.cluster()
        members = {worker["id"]: worker["incarnation"] for worker in state["workers"]}
        partition = partition_of(HEALTH_KEY)
        seed = dice.random()
        peers = []
        for node in self._nodes:
            role = "master" if node is self._cluster.master else "worker"
            peer = FuzzedNode(role, state["cluster"], node.id, members.get(node.id, "fuzz-life"), partition, 0)
            if role == "worker":
                answer = trio.run(ask, node.port, peer, int(Op.FETCH), [partition, 0, peer.incarnation, HEALTH_KEY])
                promised = answer[2] if answer and answer[1] == Fault.STALE else 0
                peer = peer._replace(epoch=promised)
            peers.append((node, peer))

        async def play_both() -> None:
            async with trio.open_nursery() as nursery:
                for node, peer in peers:
                    same = random.Random(seed)
                    cases = list(self._some(random.Random(seed), make(same, peer)))
                    nursery.start_soon(self._play_rpc, node, cases)

        trio.run(play_both)

    async def _play_rpc(self, node: NodeProcess, cases: list[Case]) -> None:
        left = iter(cases)

        async def go_on() -> None:
            for case in left:
                self._remember(node, case)
                self.kinds[case.kind] += 1
                if case.kind.startswith("RPC") and "greeted" not in case.kind:
                    heard = await play(node.port, case)
                else:
                    heard = await play_rpc(node.port, case)
                if heard is not None and heard.late:
                    what = f"{node.name} neither answered nor closed the link"
                    self.findings.append(FuzzFinding("a link answers or ends", what, case.kind, case.sent))
                if heard is None or not node.running:
                    self._revive(case.kind)

        async with trio.open_nursery() as nursery:
            for _ in range(RPC_AT_ONCE_MAX):
                nursery.start_soon(go_on)

    def _some(self, dice: random.Random, cases: Iterable[Case]) -> Iterable[Case]:
        return [case for case in cases if dice.random() < self._share]

    def _enlisting(self, dice: random.Random) -> None:
        """Enlist addresses at which no worker answers, or a worker with odd vitals."""
        cluster = self._client.cluster()["cluster"]
        greetings = list(rpc_cases.odd_greetings(cluster, FAKE_NODE))
        vitals = list(rpc_cases.odd_vitals("fuzz-process"))

        async def play_it() -> None:
            async with trio.open_nursery() as nursery:
                said: list[Any] = [0, []]
                fake = FakeWorker(cluster, FAKE_NODE, lambda op, arguments, master: said)
                good = fake.greeting
                await nursery.start(fake.run)
                for number, (greeting, payload) in enumerate(
                    [*((odd, []) for odd in greetings), *((good, odd) for odd in vitals)]
                ):
                    if dice.random() < self._share:
                        fake.greeting, said[1] = greeting, payload
                        kind = "enlisting, an odd greeting" if number < len(greetings) else "enlisting, odd vitals"
                        await self._ask_to_enlist(
                            fake.port, kind, greeting if greeting != good else repr(payload).encode()
                        )
                nursery.cancel_scope.cancel()

        trio.run(play_it)
        self._forget_fakes()

    async def _ask_to_enlist(self, port: int, kind: str, what: bytes) -> None:
        address = f"127.0.0.1:{port}"
        body = b'{"address": "%s"}' % address.encode()
        request = web_cases.FuzzRequest(b"POST", b"/v1/workers", web_cases.JSON, body)
        case = Case(kind, (web_cases.spell(request),), plain=True)
        heard = await play(self._cluster.master.http_port, case)
        if heard is None:
            self._revive(kind)
            return
        self._remember(self._cluster.master, Case(kind, (what,)))
        self.kinds[kind] += 1
        verdict = judge_web(case, heard)
        self.statuses.update(verdict.statuses)
        self.findings += [finding._replace(sent=what) for finding in verdict.findings]

    def _fake_worker(self, dice: random.Random) -> None:
        """Have a worker that answers with nonsense enlisted and given a share, while clients write."""
        cluster = self._client.cluster()["cluster"]
        epoch = self._client.cluster()["term"] << 32
        seconds = 1.0 + 9.0 * self._share

        async def play_it() -> None:
            async with trio.open_nursery() as nursery:
                fake = FakeWorker(cluster, FAKE_NODE, nonsense(dice, epoch))
                await nursery.start(fake.run)
                await self._ask_to_enlist(fake.port, "a fake worker", b"")
                until_s = trio.current_time() + seconds
                number = 0
                while trio.current_time() < until_s:
                    number += 1
                    case = web_cases.request_case(dice, number, f"fuzz-{self._seed}-fake")
                    if case.plain:
                        self._heard_web(case, await play(self._cluster.master.http_port, case))
                    await trio.sleep(0.01)
                self.kinds["a fake worker, calls"] += fake.asked
                nursery.cancel_scope.cancel()

        trio.run(play_it)
        self._revive("a fake worker")
        self._forget_fakes()

    def _forget_fakes(self) -> None:
        """Remove the fake workers from the cluster."""
        real = {node.id for node in self._cluster.workers}

        def gone() -> bool:
            fakes = [worker["id"] for worker in self._client.cluster()["workers"] if worker["id"] not in real]
            for worker in fakes:
                with suppress(TrikvError):  # it holds a share until others have it
                    self._client.remove(worker)
            return not fakes

        try:
            wait_until(gone, what="fake workers are forgotten", deadline_s=UP_DEADLINE_S, every_s=0.3)
        except TimeoutError as error:
            self.findings.append(FuzzFinding("a worker that is gone can be removed", str(error), "a fake worker", b""))

    # --- rules for nodes ----------------------------------------------------------------------------------------------

    def _remember(self, node: NodeProcess, case: Case) -> None:
        self._last.setdefault(node.name, deque(maxlen=LAST_SHOWN)).append(case)

    def _revive(self, kind: str) -> None:
        """Record every node that has ended as a finding, and start it again."""
        for node in self._nodes:
            if not node.running:
                for case in self._last.get(node.name, ()):
                    detail = f"{node.name} ended, exit code {node.wait(0)}; this was one of the last cases"
                    self.findings.append(FuzzFinding("no process ends", detail, case.kind, case.sent))
                if node.name not in self._last:
                    self.findings.append(FuzzFinding("no process ends", f"{node.name} ended", kind, b""))
                self._last.pop(node.name, None)
                node.start()

    def _look(self, block: str) -> None:
        """Check that every process lives and counts as up, that puts and gets work, and that memory and logs are
        small."""
        self._revive(block)

        def broke(rule: str, detail: str) -> None:
            last = [case for node in self._nodes for case in self._last.get(node.name, ())][-1:]
            self.findings.append(
                FuzzFinding(rule, f"{detail}, after {block}", *(last[0].kind, b"") if last else ("", b""))
            )

        try:
            self._cluster.await_up(self._cluster.workers)
        except TimeoutError as error:
            broke("workers stay up", f"{error}: {self._client.cluster()['workers']}")
        try:
            for number in range(5):
                value = f"{block} {number}".encode()
                self._client.put(HEALTH_KEY, value)
                found = self._client.get(HEALTH_KEY)
                if found is None or found.value != value:
                    broke("a put is read", f"{found} instead of {value!r}")
            answers = self._client.batch([Change(f"fuzz-health-{number}".encode(), b"x") for number in range(200)])
            if failed := [str(answer) for answer in answers if isinstance(answer, TrikvError)]:
                broke("puts work", f"{len(failed)} of 200 failed: {failed[0]}")
        except TrikvError as error:
            broke("a put and a get work", f"{error.kind.code}: {error}")
        for node in self._nodes:
            if (memory := memory_of(node.pid)) is not None:
                now, peak = memory
                start, most, _ = self.memory.get(node.name, (now, 0, 0))
                self.memory[node.name] = (start, max(most, peak), now)
                if most <= MEMORY_BYTES_MAX < peak:
                    broke("memory is bounded", f"{node.name} took {peak / 2**20:.0f} MiB")
            if node.name not in self._logged and (findings := judge_log(node.name, node.log)):
                self._logged.add(node.name)
                self.findings += [finding._replace(kind=f"{finding.kind}, after {block}") for finding in findings]


def report(fuzz: Fuzz) -> Iterable[str]:
    """The lines of the report."""
    yield f"{fuzz.kinds.total():,} cases of {len(fuzz.kinds):,} kinds"
    yield "answers: " + ", ".join(f"{count:,} of {status}" for status, count in sorted(fuzz.statuses.items()))
    for name, sizes in fuzz.memory.items():
        start, peak, end = (f"{size / 2**20:.0f}" for size in sizes)
        yield f"memory of {name}: {start} MiB at the start, {peak} at the peak, {end} at the end"
    for finding in fuzz.findings[:FINDINGS_SHOWN]:
        yield f"BROKEN {finding}"
    yield f"{len(fuzz.findings)} rules broken"
