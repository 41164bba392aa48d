"""Microseconds for one operation of each layer, without sockets: what each costs when nothing else runs.

    python bench/micro.py                        # all layers
    python bench/micro.py --only frames worker   # some of them
    python bench/micro.py --bare                 # what they are built of: sockets, Trio, CBOR, a pattern
    python bench/micro.py --quick                # a few seconds: to see that it runs

Each case does its work as often as takes `--burst` milliseconds, and takes the processor time of this process for that.
The cases of a layer take turns, `--repeats` times, and the minimum of a case is told: whatever else runs on the machine
only adds. Python's collector runs as seldom as in a node. Wall time is told beside it: a case may wait for a disk.

What a case is made of comes from trikv's public functions alone. What the wire looks like is in one place
(`Wire`), which is all that has to follow when that changes.

The clusters of the last layers are whole ones, a master and five workers in this process, joined by Trio's memory
streams. So their figures are those of all roles together, without system calls; subtract nothing from them, and compare
them with their own former ones. With 32 operations under way at once, operations share frames. Those that come through
the lane share the deadlines of their connection too; where the coordinator is asked alone, each has a scope of its own.

Left out: waiting, and the network. `bench/profile.sh` says where a node's time goes under real load.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, Final, cast

import cbor2
import trio

from bench.common import Bar, add_outputs, draw_bars, write_outputs
from trikv.api import Batch, Storage
from trikv.coordinator.coordinator import Coordinator
from trikv.coordinator.locks import KeyLocks
from trikv.core import calls, frames
from trikv.core.calls import Op
from trikv.core.placement import place
from trikv.core.record import Record, Version, make_epoch, make_seq
from trikv.core.ring import partition_of
from trikv.core.session import Acks, Calls, Greeted, Hello, Session
from trikv.core.tally import Tally
from trikv.daemon import COLLECTOR_THRESHOLDS
from trikv.masterprocess import services_of
from trikv.net.doors import Doors
from trikv.storage.memory import MemoryEngine
from trikv.storage.rocksdb import RocksEngine
from trikv.testing.inprocess import InProcessCluster, MemoryTransport
from trikv.testing.machine import describe_machine
from trikv.web.desk import OwnDesk
from trikv.web.lane import ExpressLane
from trikv.worker.worker import Worker

MODES: Final = ("quorum", "sync", "async", "chain")
VALUE: Final = b"x" * 100
KEYS: Final = 500
BATCH: Final = 64
WORKERS: Final = 5
NAMES: Final = tuple(b"key%09d" % number for number in range(KEYS))
EPOCH: Final = make_epoch(1, 1)
MASTER: Final = Hello("master", "c-1", "1/bench", "c-1")
BUDGET_MS: Final = 60_000

Work = Callable[[int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Case:
    """`work(n)` does it n times, which are n * `per` operations. `prepare(n)` comes before and is not measured."""

    name: str
    work: Work
    per: int = 1
    prepare: Callable[[int], None] | None = None


@dataclass(slots=True)
class Result:
    """Microseconds for an operation, the minimum of the repeats."""

    layer: str
    name: str
    per: int
    count: int = 1  # how often the work is done in a burst
    cpu_us: list[float] = field(default_factory=list)
    wall_us: list[float] = field(default_factory=list)

    @property
    def least_us(self) -> float:
        return min(self.cpu_us)

    def tell(self) -> str:
        return f"  {self.name:58}{self.least_us:10.2f}{min(self.wall_us):12.2f}"

    def to_json(self) -> dict[str, object]:
        least = {"cpu_us": round(self.least_us, 3), "wall_us": round(min(self.wall_us), 3)}
        return {"layer": self.layer, "case": self.name, **least, "operations": self.count * self.per}


Layer = Callable[[], AbstractAsyncContextManager[Sequence[Case]]]


def plain(name: str, function: Callable[[], object], per: int = 1) -> Case:
    """A case of a plain function."""

    async def work(count: int) -> None:
        for _ in repeat(None, count):
            function()

    return Case(name, work, per)


def side_by_side(name: str, operation: Callable[[int], Awaitable[object]], at_once: int) -> Case:
    """A case of `at_once` tasks, each of which carries out one operation after another. It is given their numbers."""

    async def work(count: int) -> None:
        async def one(task: int) -> None:
            for turn in range(count):
                await operation(turn * 31 + task)

        if at_once == 1:
            await one(0)
            return
        async with trio.open_nursery() as nursery:
            for task in range(at_once):
                nursery.start_soon(one, task)

    return Case(name, work, at_once)


# --- the wire ---------------------------------------------------------------------------------------------------------


class Wire:
    """What goes over a link, and the two sides of a session that carries it. Other parts know no shapes."""

    def __init__(self, incarnation: str = "incarnation-1") -> None:
        self.dialer = Session(MASTER, dialer=True)
        self.acceptor = Session(Hello("worker", "w-1", incarnation, "c-1"), dialer=False)
        self._incarnation = incarnation
        self._count = 0
        greeted = list(self.acceptor.receive(self.dialer.greet()))
        assert isinstance(greeted[0], Greeted), greeted
        list(self.dialer.receive(self.acceptor.accept()))

    def stores(self, count: int) -> list[Any]:
        """So many calls to store, each newer than all before."""
        rows: list[Any] = []
        for _ in range(count):
            self._count += 1
            key = NAMES[self._count % KEYS]
            version = Version(EPOCH, make_seq(self._count, 1))
            record = calls.record_to_wire(Record(version, version, VALUE))
            rows.append(
                [self._count, BUDGET_MS, int(Op.STORE), partition_of(key), EPOCH, self._incarnation, key, *record]
            )
        return rows

    def framed_stores(self, count: int) -> bytes:
        """Their bytes, as the dialer sends them."""
        return b"".join(self.dialer.calls(self.stores(count)))

    def framed_acknowledgements(self, count: int) -> bytes:
        return b"".join(self.acceptor.acks(list(range(count))))

    @staticmethod
    def confirmation(worker: Worker) -> list[Any]:
        """The call without which a worker serves nothing."""
        return [0, BUDGET_MS, int(Op.CONFIRM), worker.incarnation, str(worker.starts[-1])]

    @staticmethod
    def parsed(session: Session, framed: bytes) -> None:
        """Receive calls and parse each, as a worker does."""
        for event in session.receive(framed):
            assert isinstance(event, Calls), event
            for _, _, op, *arguments in event.calls:
                calls.parse(op, arguments)

    @staticmethod
    def acknowledged(session: Session, framed: bytes | bytearray) -> int:
        """How many acknowledgements these bytes complete."""
        count = 0
        for event in session.receive(framed):
            assert isinstance(event, Acks), event
            count += len(event.ids)
        return count


@asynccontextmanager
async def frames_layer() -> AsyncIterator[Sequence[Case]]:
    wire, cases = Wire(), []
    for count in (1, 8, 64):
        rows, told = wire.stores(count), f"{count} a frame"
        framed = frames.encode([1, rows])
        buffer = frames.FrameBuffer()

        def decode(framed: bytes = framed, buffer: frames.FrameBuffer = buffer) -> None:
            buffer.feed(framed)
            assert buffer.next_frame() is not frames.NO_FRAME

        cases.append(plain(f"encode a store, {told}", partial(frames.encode, [1, rows]), count))
        cases.append(plain(f"decode a store, {told}", decode, count))
    yield cases


@asynccontextmanager
async def session_layer() -> AsyncIterator[Sequence[Case]]:
    wire, cases = Wire(), []
    for count in (1, 64):
        told = f"{count} a frame"
        rows, framed = wire.stores(count), wire.framed_stores(count)
        ids, answered = list(range(count)), wire.framed_acknowledgements(count)
        cases += [
            plain(f"send a store, {told}", partial(_drain, wire.dialer.calls, rows), count),
            plain(f"receive and parse it, {told}", partial(wire.parsed, wire.acceptor, framed), count),
            plain(f"acknowledge it, {told}", partial(_drain, wire.acceptor.acks, ids), count),
            plain(f"receive that, {told}", partial(wire.acknowledged, wire.dialer, answered), count),
        ]
    yield cases


def _drain(frame: Callable[[list[Any]], Iterable[bytes]], rows: list[Any]) -> None:
    for _ in frame(rows):
        pass


# --- decisions --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def placement_layer() -> AsyncIterator[Sequence[Case]]:
    tables = {count: place([f"w-{number}" for number in range(count)], 3) for count in (5, 15)}
    table = tables[5]

    def find() -> None:
        for key in NAMES:
            table[partition_of(key)]

    yield [
        plain("a key to its partition and members", find, KEYS),
        plain("a table of 1,024 partitions, 5 workers", partial(place, [f"w-{n}" for n in range(5)], 3)),
        plain("a table when a 16th joins", partial(place, [f"w-{n}" for n in range(16)], 3, previous=tables[15])),
    ]


@asynccontextmanager
async def tally_layer() -> AsyncIterator[Sequence[Case]]:
    def count() -> None:
        tally = Tally(2, 3)
        tally.ack()
        tally.ack()
        tally.ack()

    yield [plain("2 of 3 acknowledgements", count)]


@asynccontextmanager
async def locks_layer() -> AsyncIterator[Sequence[Case]]:
    locks = KeyLocks()

    async def hold(number: int) -> None:
        with await locks.shared(NAMES[number % KEYS]):
            pass

    async def pass_on(_: int) -> None:
        with await locks.exclusive(b"k"):
            await trio.lowlevel.checkpoint()

    yield [side_by_side("an uncontended key, shared", hold, 1), side_by_side("one key, alone, 8 at once", pass_on, 8)]


# --- storage and worker -----------------------------------------------------------------------------------------------


@asynccontextmanager
async def storage_layer() -> AsyncIterator[Sequence[Case]]:
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="trikv-bench-"))
        cases: list[Case] = []
        for name, storage in (
            ("memory", await MemoryEngine().open(None)),
            ("rocksdb", await RocksEngine().open(Path(directory) / "records")),
        ):
            stack.push_async_callback(storage.close)
            cases += await _cases_of(name, storage)
        yield cases


async def _cases_of(name: str, storage: Storage) -> list[Case]:
    written = 0

    def fill(count: int) -> Batch:
        nonlocal written
        batch = Batch()
        for _ in range(count):
            written += 1
            key = NAMES[written % KEYS]
            version = Version(EPOCH, written)
            batch.puts[partition_of(key), key] = Record(version, version, VALUE)
        return batch

    def commit(count: int) -> Case:
        batches: list[Batch] = []

        def prepare(times: int) -> None:
            batches[:] = [fill(count) for _ in range(times)]

        async def work(times: int) -> None:
            for batch in batches:
                await storage.commit(batch)

        return Case(f"{name}: commit a put, {count} a batch", work, count, prepare)

    def get() -> None:
        for key in NAMES:
            storage.get(partition_of(key), key)

    await storage.commit(fill(KEYS))
    return [plain(f"{name}: get", get, KEYS), commit(1), commit(64)]


@asynccontextmanager
async def worker_layer() -> AsyncIterator[Sequence[Case]]:
    """A store from the bytes of its frame to those of its acknowledgement, which the other side reads."""
    async with trio.open_nursery() as nursery:
        doors = Doors(transport=MemoryTransport())
        worker = await Worker.open("w-1", await MemoryEngine().open(None), "memory", doors)
        listening = await doors.transport.listen("127.0.0.1:0")
        await nursery.start(partial(worker.run, listening))
        stream = await doors.transport.connect(listening.address)
        wire, session = Wire(worker.incarnation), Session(MASTER, dialer=True)

        async def ask(framed: bytes, count: int) -> None:
            await stream.send_all(framed)
            while count:
                count -= wire.acknowledged(session, await stream.receive_some())

        await stream.send_all(session.greet())
        list(session.receive(await stream.receive_some()))
        await ask(b"".join(session.calls([wire.confirmation(worker)])), 1)

        def store(count: int) -> Case:
            framed: list[bytes] = []

            def prepare(times: int) -> None:
                framed[:] = [wire.framed_stores(count) for _ in range(times)]

            async def work(times: int) -> None:
                for each in framed:
                    await ask(each, count)

            return Case(f"a store, {count} a frame", work, count, prepare)

        yield [store(1), store(8), store(64)]
        nursery.cancel_scope.cancel()


# --- the lane ---------------------------------------------------------------------------------------------------------


class PipeOfRequests(trio.abc.Stream):
    """A connection on which the same requests come again and again, one after the other, and answers are dropped."""

    def __init__(self, requests: Sequence[bytes], times: int) -> None:
        self._requests = requests
        self._left = times

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._left == 0:
            return b""
        self._left -= 1
        return self._requests[self._left % len(self._requests)]

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        pass

    async def wait_send_all_might_not_block(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


class AnswersAtOnce:
    """In a coordinator's place: what is left is the lane and the handler."""

    async def put(self, key: bytes, value: bytes, **_: object) -> Version:
        return Version(EPOCH, make_seq(1, 1))

    async def get(self, key: bytes, **_: object) -> Record:
        version = Version(EPOCH, make_seq(1, 1))
        return Record(version, version, VALUE)


def requests_of(what: str) -> list[bytes]:
    """What a client sends, with the headers of curl."""
    headers = b"Host: 127.0.0.1:8080\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n"
    if what == "batch":
        batches = [{"op": "put", "key": key.decode(), "value": VALUE.decode()} for key in NAMES]
        bodies = [json.dumps({"items": batches[at : at + BATCH]}).encode() for at in range(0, KEYS - BATCH, BATCH)]
        more = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        return [b"POST /v1/batch HTTP/1.1\r\n%b%b" % (headers, more % (len(body), body)) for body in bodies]
    if what == "get":
        return [b"GET /v1/kv/%b HTTP/1.1\r\n%b\r\n" % (key, headers) for key in NAMES]
    more = b"Content-Length: %d\r\n\r\n%b" % (len(VALUE), VALUE)
    return [b"PUT /v1/kv/%b HTTP/1.1\r\n%b%b" % (key, headers, more) for key in NAMES]


def through(lane: ExpressLane, name: str, what: str, connections: int, per: int = 1) -> Case:
    """Requests from bytes to bytes, on so many connections of the lane. `per`: operations in a request."""
    requests = requests_of(what)

    async def one(count: int) -> None:
        stream = cast("trio.SocketStream", PipeOfRequests(requests, count))
        assert await lane.serve(stream) is None, "the lane knows these requests"

    async def work(count: int) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(connections):
                nursery.start_soon(one, count)

    return Case(name, work, connections * per)


@asynccontextmanager
async def lane_layer() -> AsyncIterator[Sequence[Case]]:
    async with trio.open_nursery() as nursery:
        cluster = await InProcessCluster.start(nursery, workers=0)
        services = replace(services_of(cluster.master), coordinator=cast("Coordinator", AnswersAtOnce()))
        lane = ExpressLane(OwnDesk(services), loopback_only=True)
        nursery.start_soon(lane.run)
        yield [
            through(lane, "a put, without a coordinator", "put", 1),
            through(lane, "a get, without a coordinator", "get", 1),
        ]
        nursery.cancel_scope.cancel()


# --- whole clusters ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def cluster_layer(mode: str) -> AsyncIterator[Sequence[Case]]:
    async with trio.open_nursery() as nursery:
        cluster = await InProcessCluster.start(nursery, mode=mode, workers=WORKERS)
        coordinator = cluster.coordinator
        lane = ExpressLane(OwnDesk(services_of(cluster.master)), loopback_only=True)
        nursery.start_soon(lane.run)
        for key in NAMES:
            await coordinator.put(key, VALUE)

        async def put(number: int) -> None:
            await coordinator.put(NAMES[number % KEYS], VALUE)

        async def get(number: int) -> None:
            await coordinator.get(NAMES[number % KEYS])

        cases = []
        for at_once in (1, 32):
            cases += [
                side_by_side(f"{mode} put, {at_once} at once", put, at_once),
                side_by_side(f"{mode} get, {at_once} at once", get, at_once),
                through(lane, f"{mode} put, lane and all, {at_once} at once", "put", at_once),
                through(lane, f"{mode} get, lane and all, {at_once} at once", "get", at_once),
            ]
        cases.append(through(lane, f"{mode} put, lane and all, in batches of {BATCH}", "batch", 1, BATCH))
        yield cases
        nursery.cancel_scope.cancel()


# --- what the layers are built of -------------------------------------------------------------------------------------

_ECHOED: Final = b"e" * 150


@asynccontextmanager
async def sockets_layer() -> AsyncIterator[Sequence[Case]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    with near, far:

        def there() -> None:
            near.send(_ECHOED)
            far.recv(4096)

        yield [plain("a send and a recv on loopback, 150 bytes", there)]


@asynccontextmanager
async def trio_layer() -> AsyncIterator[Sequence[Case]]:
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:

        async def echo(stream: trio.SocketStream) -> None:
            while data := await stream.receive_some(4096):
                await stream.send_all(data)

        listeners = await nursery.start(partial(trio.serve_tcp, echo, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        streams = [await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", port)) for _ in range(32)]

        def echoes(at_once: int) -> Case:
            async def one(stream: trio.SocketStream, count: int) -> None:
                for _ in range(count):
                    await stream.send_all(_ECHOED)
                    await stream.receive_some(4096)

            async def work(count: int) -> None:
                async with trio.open_nursery() as clients:
                    for stream in streams[:at_once]:
                        clients.start_soon(one, stream, count)

            # Client and server do the same, in this process, so half of it is one side's.
            return Case(f"one side of an echo over loopback, {at_once} at once", work, 2 * at_once)

        async def checkpoints(count: int) -> None:
            for _ in range(count):
                await trio.lowlevel.checkpoint()

        async def scopes(count: int) -> None:
            for _ in range(count):
                with trio.CancelScope(deadline=60 + trio.current_time()):  # noqa: ASYNC100  nothing else is measured
                    pass

        async def tasks(count: int) -> None:
            for _ in range(count):
                async with trio.open_nursery() as inner:
                    inner.start_soon(trio.lowlevel.checkpoint)

        async def wakes(count: int) -> None:
            asleep: list[trio.lowlevel.Task] = []

            async def wake_and_sleep() -> None:
                for _ in range(count):
                    if asleep:
                        trio.lowlevel.reschedule(asleep.pop())
                    asleep.append(trio.lowlevel.current_task())
                    await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.SUCCEEDED)
                if asleep:
                    trio.lowlevel.reschedule(asleep.pop())

            async with trio.open_nursery() as inner:
                inner.start_soon(wake_and_sleep)
                inner.start_soon(wake_and_sleep)

        yield [
            echoes(1),
            echoes(32),
            Case("a checkpoint", checkpoints),
            Case("a cancel scope with a deadline", scopes),
            Case("a nursery with one task", tasks),
            Case("a task sleeps and is woken by another", wakes, 2),
        ]
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def python_layer() -> AsyncIterator[Sequence[Case]]:
    request = requests_of("put")[0]
    head = re.compile(rb"(GET|PUT|DELETE) (/[!-~]+) HTTP/1\.1\r\n((?:[A-Za-z-]{1,32}:[\t -~]*+\r\n){1,16})\r\n")
    cases = [plain("a regular expression over the head of a put", partial(head.match, request))]
    for count in (1, 64):
        # Seven integers and three strings, as in a store of this kind.
        rows = [[number, BUDGET_MS, 1, EPOCH, EPOCH, 1, 7, "i" * 16, NAMES[0], VALUE] for number in range(count)]
        framed = cbor2.dumps(rows)
        cases.append(plain(f"cbor2.dumps of a list of ten, {count} in one", partial(cbor2.dumps, rows), count))
        cases.append(plain(f"cbor2.loads of a list of ten, {count} in one", partial(cbor2.loads, framed), count))
    yield cases


LAYERS: Final[Mapping[str, Layer]] = {
    "frames": frames_layer,
    "session": session_layer,
    "placement": placement_layer,
    "tally": tally_layer,
    "locks": locks_layer,
    "storage": storage_layer,
    "worker": worker_layer,
    "lane": lane_layer,
    **{mode: partial(cluster_layer, mode) for mode in MODES},
}
BARE: Final[Mapping[str, Layer]] = {"sockets": sockets_layer, "trio": trio_layer, "python": python_layer}


# --- measuring --------------------------------------------------------------------------------------------------------


async def measure(name: str, layer: Layer, *, repeats: int, burst_s: float) -> list[Result]:
    """All cases of a layer, in turns."""
    async with layer() as cases:
        results = [Result(name, case.name, case.per) for case in cases]
        for case, result in zip(cases, results, strict=True):
            while (await _time(case, result.count))[1] < burst_s:
                result.count *= 2
        for _ in range(repeats):
            for case, result in zip(cases, results, strict=True):
                cpu_s, wall_s = await _time(case, result.count)
                operations = result.count * result.per
                result.cpu_us.append(cpu_s / operations * 1e6)
                result.wall_us.append(wall_s / operations * 1e6)
    return results


async def _time(case: Case, count: int) -> tuple[float, float]:
    """Processor time and wall time of so many."""
    if case.prepare is not None:
        case.prepare(count)
    began_s, cpu_s = time.perf_counter(), time.process_time()
    await case.work(count)
    return time.process_time() - cpu_s, time.perf_counter() - began_s


def measure_all(
    layers: Mapping[str, Layer], *, repeats: int, burst_s: float, says: Callable[[str], None] = print
) -> list[Result]:
    """Every layer, each in a run of its own. `says` is given a line for each case, layer by layer."""
    results: list[Result] = []
    for name, layer in layers.items():
        gc.collect()
        found = trio.run(partial(measure, name, layer, repeats=repeats, burst_s=burst_s))
        says(name)
        for result in found:
            says(result.tell())
        results += found
    return results


def collect_seldom() -> None:
    """As a node does."""
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)


def draw(results: Sequence[Result]) -> str:
    sections: dict[str, list[Bar]] = {}
    for result in results:
        sections.setdefault(result.layer, []).append(Bar(result.name, result.least_us, f"{result.least_us:,.2f} us"))
    note = f"The minimum of the repeats, processor time; {describe_machine()}"
    return draw_bars("Microseconds for one operation of each layer", note, sections, by_powers=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="LAYER", choices=[*LAYERS, *BARE], help="default: all of ours")
    parser.add_argument("--bare", action="store_true", help="what the layers are built of, in place of them")
    parser.add_argument("--repeats", type=int, default=7, help="default 7")
    parser.add_argument("--burst", type=float, default=40, metavar="MS", help="of a case, at least (default 40)")
    parser.add_argument("--quick", action="store_true", help="2 repeats, of 2 ms")
    add_outputs(parser)
    options = parser.parse_args()
    if options.quick:
        options.repeats, options.burst = 2, 2.0
    layers: Mapping[str, Layer] = BARE if options.bare else LAYERS
    if options.only is not None:
        layers = {name: layer for name, layer in {**LAYERS, **BARE}.items() if name in options.only}
    collect_seldom()
    print(f"{describe_machine()}; microseconds an operation, the least of {options.repeats}")
    print(f"  {'':58}{'processor':>10}{'wall':>12}")
    results = measure_all(layers, repeats=options.repeats, burst_s=options.burst / 1000)
    write_outputs(options, "micro", [result.to_json() for result in results], draw(results))


if __name__ == "__main__":
    main()
