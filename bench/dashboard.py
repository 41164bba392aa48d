"""What open pages cost: the same load with ten of them and with none, in turn.

    python bench/dashboard.py --seconds 5 --rounds 6 --pages 10
    python bench/dashboard.py --chromium 2          # real pages, which take their share of the processor too

One cluster serves throughout: a master that measures its promise as the demo's does, and five workers in memory, with
three copies. Clients in closed loops put and get as fast as they are answered (`--connections`), so the master is busy
all the time. Each round has a period without pages and a period with, and every second round has them the other way
round, so that a machine that slows down is no page's fault.

A page is what a browser asks for: the page itself and all that it loads when it is opened, then the live stream, and
the probe's figures every `PROBE_S`. The streams are read and not drawn, since a page is drawn on its reader's machine;
`--chromium` opens real ones in headless Chromium on this machine.

Printed are operations a second in each period, with the median of the rounds' ratios, and how busy the master's process
is. The same turns are taken without load first: what pages alone take of the master's processor is what they cost a
master that is busy all the time, and other load of the machine hardly disturbs that figure. The target is a loss of at
most 5 %; there is no threshold.

Left out: the load comes from this process and shares the machine with the cluster and the readers of the streams.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import statistics
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Final, NamedTuple

import trio

from bench.common import cpu_s_of
from trikv.testing.machine import describe_machine
from trikv.testing.processes.cluster import LocalCluster
from trikv.testing.processes.connection import HttpConnection, make_request

PROBE_S: Final = 3.0
QUIET_ROUNDS: Final = 2
SETTLE_S: Final = 1.0  # after pages were opened or closed, before a period begins
KEYS: Final = 2_000
READ_BYTES: Final = 1 << 16
ASKED_AT_OPENING: Final = ("/", "/v1/history", "/v1/faults", "/timeline.css")


class Period(NamedTuple):
    """`master_share`: CPU time of the master by time that passed."""

    operations_per_s: float
    master_share: float

    @property
    def told(self) -> str:
        return f"{self.operations_per_s:,.0f} op/s, the master's processor {self.master_share:.1%} busy"


# --- the load ---------------------------------------------------------------------------------------------------------


class LoadLoops:
    """Clients in closed loops. `done`: operations that were committed; `failed`: the others."""

    def __init__(self, port: int, options: argparse.Namespace) -> None:
        self.done = 0
        self.failed = 0
        self._port = port
        self._options = options
        self._value = random.Random(options.seed).randbytes(options.value_bytes)

    async def run(self, number: int) -> None:
        dice = random.Random(f"{self._options.seed}/{number}")
        async with HttpConnection(lambda: self._port) as connection:
            await connection.dial()
            while True:
                path = f"/v1/kv/bench-{dice.randrange(KEYS)}"
                reads = dice.random() < self._options.read_share
                answer = await connection.ask(
                    make_request("GET", path) if reads else make_request("PUT", path, self._value)
                )
                if answer.status < 300 or answer.status == 404:
                    self.done += 1
                else:
                    self.failed += 1


async def measure(loops: LoadLoops, master_pid: int, seconds: float) -> Period:
    began_s, done, spent_s = trio.current_time(), loops.done, cpu_s_of(master_pid)
    await trio.sleep(seconds)
    took_s, done = trio.current_time() - began_s, loops.done - done
    return Period(done / took_s, (cpu_s_of(master_pid) - spent_s) / took_s)


# --- the pages --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_pages(count: int, port: int) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            await nursery.start(keep_page_open, port)
        yield
        nursery.cancel_scope.cancel()


async def keep_page_open(port: int, *, task_status: trio.TaskStatus[None]) -> None:
    async with HttpConnection(lambda: port) as connection, trio.open_nursery() as nursery:
        loaded = set[str]()
        waiting = list(ASKED_AT_OPENING)
        while waiting:
            path = waiting.pop()
            loaded.add(path)
            await connection.dial()
            answer = await connection.ask(make_request("GET", path))
            assert answer.status == 200, (path, answer)
            waiting += [each for each in links_of(path, answer.body) if each not in loaded and each not in waiting]
        await nursery.start(read_stream, port)
        task_status.started()
        while True:
            await trio.sleep(PROBE_S)
            await connection.dial()
            await connection.ask(make_request("GET", "/v1/probe"))


def links_of(path: str, body: bytes) -> list[str]:
    """What a document, or a script, makes a browser load."""
    if not path.endswith(("/", ".js")):
        return []
    folder = path.rpartition("/")[0]
    own = [each.decode() for each in re.findall(rb'(?:src|href)="(/static/[\w./]+)"', body)]
    return own + [f"{folder}/{each.decode()}" for each in re.findall(rb'from "\./([\w./]+)"', body)]


async def read_stream(port: int, *, task_status: trio.TaskStatus[None]) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(make_request("GET", "/v1/live", b"", "accept: text/event-stream"))
        await stream.receive_some(READ_BYTES)
        task_status.started()
        while await stream.receive_some(READ_BYTES):
            pass
        raise AssertionError("the live stream ended")


@contextmanager
def real_pages(count: int, url: str) -> Iterator[None]:
    """In a thread of their own: Playwright's plain interface wants one."""
    opened, close = threading.Event(), threading.Event()
    failed: list[Exception] = []

    def keep_open() -> None:
        from playwright.sync_api import sync_playwright

        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
                pages = [browser.new_page() for _ in range(count)]
                for page in pages:
                    page.goto(url)
                opened.set()
                while not close.is_set():
                    pages[0].wait_for_timeout(100)
                browser.close()
        except Exception as error:  # noqa: BLE001  # it is raised where the pages are wanted
            failed.append(error)
        finally:
            opened.set()

    thread = threading.Thread(target=keep_open)
    thread.start()
    try:
        opened.wait()
        if failed:
            raise failed[0]
        yield
    finally:
        close.set()
        thread.join()


# --- in turn ----------------------------------------------------------------------------------------------------------


class Bench:
    def __init__(self, cluster: LocalCluster, options: argparse.Namespace) -> None:
        self.loops = LoadLoops(cluster.master.http_port, options)
        self._cluster = cluster
        self._options = options

    async def run(self) -> None:
        print("without load:", flush=True)
        quiet = await self._take_turns(QUIET_ROUNDS)
        print("under full load:", flush=True)
        async with trio.open_nursery() as nursery:
            for number in range(self._options.connections):
                nursery.start_soon(self.loops.run, number)
            await self._without()  # warm
            loaded = await self._take_turns(self._options.rounds)
            nursery.cancel_scope.cancel()
        more = statistics.median(opened.master_share - alone.master_share for alone, opened in quiet)
        ratio = statistics.median(opened.operations_per_s / alone.operations_per_s for alone, opened in loaded)
        print(f"{self.loops.failed:,} operations failed")
        print(f"throughput with pages, by throughput without: {ratio:.3f}, the median of {len(loaded)} rounds")
        print(f"what the pages alone take of the master's processor: {more:.1%}")

    async def _take_turns(self, rounds: int) -> list[tuple[Period, Period]]:
        """By round: the period without pages, and the one with."""
        taken = []
        for turn in range(rounds):
            if turn % 2:
                opened = await self._with_pages()
                alone = await self._without()
            else:
                alone = await self._without()
                opened = await self._with_pages()
            taken.append((alone, opened))
            print(f"  round {turn + 1}: without pages {alone.told}; with pages {opened.told}", flush=True)
        return taken

    async def _without(self) -> Period:
        await trio.sleep(SETTLE_S)
        return await measure(self.loops, self._cluster.master.pid, self._options.seconds)

    async def _with_pages(self) -> Period:
        if self._options.chromium:
            stack = ExitStack()
            await trio.to_thread.run_sync(stack.enter_context, real_pages(self._options.chromium, self._cluster.url))
            try:
                return await self._without()
            finally:
                await trio.to_thread.run_sync(stack.close)
        async with open_pages(self._options.pages, self._cluster.master.http_port):
            return await self._without()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="for each period (default 5)")
    parser.add_argument("--rounds", type=int, default=6, help="default 6")
    parser.add_argument("--pages", type=int, default=10, help="open at the same time (default 10)")
    parser.add_argument("--chromium", type=int, default=0, metavar="N", help="N real pages in Chromium instead")
    parser.add_argument("--connections", type=int, default=32, help="of the load (default 32)")
    parser.add_argument("--value-bytes", type=int, default=100, help="default 100")
    parser.add_argument("--read-share", type=float, default=0.5, help="from 0 to 1 (default 0.5)")
    parser.add_argument("--workers", type=int, default=5, help="default 5")
    parser.add_argument("--mode", default="quorum", help="default quorum")
    parser.add_argument("--seed", type=int, default=1, help="default 1")
    options = parser.parse_args()

    print(describe_machine())
    print(", ".join(f"{name.replace('_', '-')} {value}" for name, value in vars(options).items()), flush=True)
    with LocalCluster(mode=options.mode, workers=options.workers, master_options=["--probe"]) as cluster:
        trio.run(Bench(cluster, options).run)


if __name__ == "__main__":
    main()
