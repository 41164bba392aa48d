"""A whole cluster inside one `trio.run`, on a network in memory, for tests.

Master and workers are the real ones; only the sockets are not. `MemoryTransport` connects them through Trio's memory
streams, so time can be virtual (`MockClock`, pytest-trio's `autojump_clock`). A test about a deadline of two seconds
then takes no time, and gives the same result on any machine. A worker is stopped at once, as a process would be. Its
storage stands for its disk: it may be started again with it, or with an empty one.

    async with trio.open_nursery() as nursery:
        cluster = await InProcessCluster.start(nursery, mode="quorum")
        await cluster.coordinator.put(b"k", b"v")
        await cluster.kill(cluster.workers[0])

The network can be disturbed, by the address that was dialled. `hold` keeps every byte of its connections back, as a
paused process would, until `release`. `cut` ends its connections and refuses new ones until `mend`.

Left out: latency, loss and reordering, which are in `trikv.testing.sim`; and threads, past which virtual time jumps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from types import MappingProxyType
from typing import Any, Final

import trio
import trio.testing

from trikv.api import Storage, Strategy
from trikv.coordinator.coordinator import Coordinator
from trikv.core.labels import Labels
from trikv.core.quorums import Availability
from trikv.core.ring import partition_of
from trikv.master.configstore import ConfigConflict, ConfigStore, MemoryConfigStore
from trikv.master.master import Master
from trikv.net.doors import Doors, Listening, Transport, join_address, split_address
from trikv.registry import Registry, load_registry
from trikv.storage.memory import MemoryStorage
from trikv.worker.worker import Worker

PARTITIONS: Final = 64  # few, since each costs some work in every change of the document
PATIENCE_S = 30.0  # how long `until` waits for what a test expects


_Stream = trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]


class _Connection:
    """Two memory streams, joined in both directions."""

    def __init__(self) -> None:
        self.near, self.far = trio.testing.memory_stream_pair()
        self.held = False

    def hold(self) -> None:
        self.held = True
        for source in (self.near, self.far):
            source.send_stream.send_all_hook = None
            source.send_stream.close_hook = None

    def release(self) -> None:
        self.held = False
        self._join(self.near, self.far)
        self._join(self.far, self.near)

    @staticmethod
    def _join(source: _Stream, sink: _Stream) -> None:
        def pump() -> None:
            trio.testing.memory_stream_pump(source.send_stream, sink.receive_stream)

        async def pump_after_send() -> None:
            pump()

        source.send_stream.send_all_hook = pump_after_send
        source.send_stream.close_hook = pump
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # one end was closed meanwhile
            pump()

    def break_off(self) -> None:
        for stream in (self.near, self.far):
            stream.send_stream.close()
            stream.receive_stream.close()


class _Listener(trio.abc.Listener[trio.abc.Stream]):
    def __init__(self, on_close: Callable[[], None]) -> None:
        self.arrivals, self._waiting = trio.open_memory_channel[trio.abc.Stream](1000)
        self._on_close = on_close
        self._closed = False

    async def accept(self) -> trio.abc.Stream:
        try:
            return await self._waiting.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError from None

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._on_close()
            self._waiting.close()
        await trio.lowlevel.checkpoint()


class MemoryTransport(Transport):
    """A network of its own. Nothing is lost and nothing takes time, unless it is told otherwise."""

    def __init__(self) -> None:
        self._listeners: dict[str, _Listener] = {}
        self._connections: dict[str, list[_Connection]] = defaultdict(list)
        self._held: set[str] = set()
        self._cut: set[str] = set()
        self._ports = 40_000

    async def connect(self, address: str) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        split_address(address)
        listener = self._listeners.get(address)
        if listener is None or address in self._cut:
            raise ConnectionRefusedError(f"nobody listens at {address}")
        connection = _Connection()
        self._connections[address].append(connection)
        if address in self._held:
            connection.hold()
        listener.arrivals.send_nowait(connection.far)
        return connection.near

    async def listen(self, address: str) -> Listening:
        await trio.lowlevel.checkpoint()
        host, port = split_address(address)
        if port == 0:
            self._ports += 1
            address = join_address(host, self._ports)
        if address in self._listeners:
            raise OSError(f"cannot listen on {address}: address already in use")
        listener = self._listeners[address] = _Listener(lambda: self._forget(address))
        return Listening(listener, address)

    def _forget(self, address: str) -> None:
        del self._listeners[address]

    def hold(self, address: str) -> None:
        """From now on nothing arrives on connections to `address`, in either direction."""
        self._held.add(address)
        for connection in self._connections[address]:
            connection.hold()

    def release(self, address: str) -> None:
        """What was held arrives now."""
        self._held.discard(address)
        for connection in self._connections[address]:
            if connection.held:
                connection.release()

    def cut(self, address: str) -> None:
        """Connections to `address` end, and new ones are refused."""
        self._cut.add(address)
        for connection in self._connections.pop(address, []):
            connection.break_off()

    def mend(self, address: str) -> None:
        self._cut.discard(address)


@dataclass(eq=False)
class Node:
    """A worker and what outlives it: its address, and its disk."""

    worker: Worker
    storage: Storage
    address: str
    max_keys: int | None = None
    labels: Labels = field(default_factory=dict)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    stopped: trio.Event = field(default_factory=trio.Event)


class InProcessCluster:
    """Make it with `start`. `master` and `workers` run now, or ran last."""

    def __init__(
        self, nursery: trio.Nursery, registry: Registry, store: ConfigStore, doors: Doors, settings: dict[str, Any]
    ) -> None:
        self.doors = doors
        self.store = store
        self.registry = registry
        self.workers: list[Node] = []
        self.master: Master
        self.master_address = "127.0.0.1:8000"
        self._nursery = nursery
        self._settings = settings
        self._master_scope = trio.CancelScope()
        self._master_stopped = trio.Event()

    @classmethod
    async def start(
        cls,
        nursery: trio.Nursery,
        *,
        mode: str = "quorum",
        workers: int = 3,
        replicas: int = 3,
        strategies: Sequence[Strategy] = (),
        timeout_s: float = 2.0,
        max_keys: int | None = None,
        doors: Doors | None = None,
        partitions: int = PARTITIONS,
        **settings: Any,
    ) -> InProcessCluster:
        """A cluster that has formed, with every worker up.

        `strategies` are added to the installed ones. `settings` are further settings of `Master.open`, for every
        master.
        """
        registry = _installed()
        registry = replace(registry, strategies={**registry.strategies, **{s.name: s for s in strategies}})
        doors = doors or Doors(transport=MemoryTransport())
        self = cls(
            nursery,
            registry,
            MemoryConfigStore(),
            doors,
            {**settings, "timeout_s": timeout_s, "partitions": partitions},
        )
        await self.start_master(mode=mode, replicas=replicas)
        for _ in range(workers):
            await self.add_worker(max_keys=max_keys)
        if workers >= replicas:
            await self.until(lambda: self.master.cluster.formed and len(self.master.cluster.workers) == workers)
            await self.until_all_up()
        return self

    @property
    def coordinator(self) -> Coordinator:
        return self.master.coordinator

    @property
    def network(self) -> MemoryTransport:
        """The network, for disturbing it. Only a cluster on `MemoryTransport` has it."""
        assert isinstance(self.doors.transport, MemoryTransport)
        return self.doors.transport

    async def until(self, condition: Callable[[], object], *, patience_s: float = PATIENCE_S) -> None:
        """Wait until the condition holds; fail the test if that takes too long.

        The condition is checked whenever the coordinator has changed, and ten times a second.
        """
        with trio.fail_after(patience_s):
            while not condition():
                with trio.move_on_after(0.1):
                    await self.coordinator.changed.wait()

    async def until_all_up(self) -> None:
        await self.until(
            lambda: all(w.availability is Availability.UP for w in self.master.membership.watched.values())
        )

    async def until_settled(self) -> None:
        """Wait until every partition is settled, in the mode that is wanted."""
        mode = self.master.cluster.mode
        await self.until(lambda: all(p.settled and p.active.mode == mode for p in self.master.cluster.partitions))

    async def until_down(self, *nodes: Node) -> None:
        down = {node.worker.id for node in nodes}
        await self.until(
            lambda: all(self.master.membership.watched[worker].availability is Availability.DOWN for worker in down)
        )

    # --- the master ---------------------------------------------------------------------------------------------------

    async def start_master(
        self, *, mode: str | None = None, replicas: int | None = None, named: Sequence[str] = ()
    ) -> None:
        self.master = master = await Master.open(
            self.store, self.registry, self.doors, mode=mode, replicas=replicas, named=named, **self._settings
        )
        listening = await self.doors.transport.listen(self.master_address)
        self.master_address = listening.address
        scope, stopped = self._master_scope, self._master_stopped = trio.CancelScope(), trio.Event()

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            try:
                async with _ended(scope, stopped, listening):
                    await master.run(listening, task_status=task_status)
            except* ConfigConflict:
                pass  # another master has taken over: `_master_stopped` tells

        await self._nursery.start(run)

    async def stop_master(self) -> None:
        self._master_scope.cancel()
        await self._master_stopped.wait()

    async def restart_master(self) -> None:
        await self.stop_master()
        await self.start_master()

    # --- workers ------------------------------------------------------------------------------------------------------

    async def add_worker(
        self,
        *,
        storage: Storage | None = None,
        address: str = "127.0.0.1:0",
        worker_id: str | None = None,
        max_keys: int | None = None,
        labels: Labels = MappingProxyType({}),
        enlist: bool = True,
    ) -> Node:
        storage = MemoryStorage() if storage is None else storage
        listening = await self.doors.transport.listen(address)
        name = worker_id or f"w-{len(self.workers) + 1}"
        worker = await Worker.open(name, storage, "memory", self.doors, max_keys=max_keys, labels=labels)
        node = Node(worker, storage, listening.address, max_keys, labels)
        await self._run(node, listening, enlist=enlist)
        self.workers.append(node)
        return node

    async def kill(self, node: Node) -> None:
        node.scope.cancel()
        await node.stopped.wait()

    async def restart(self, node: Node, *, wiped: bool = False) -> None:
        """Start it again at its address, with its disk or with an empty one."""
        await self.kill(node)
        listening = await self.doors.transport.listen(node.address)
        if wiped:
            node.storage = MemoryStorage()
        node.worker = await Worker.open(
            node.worker.id, node.storage, "memory", self.doors, max_keys=node.max_keys, labels=node.labels
        )
        node.scope, node.stopped = trio.CancelScope(), trio.Event()
        await self._run(node, listening, enlist=True)

    def node_of(self, worker_id: str) -> Node:
        return next(node for node in self.workers if node.worker.id == worker_id)

    def partition_of(self, key: bytes) -> int:
        return partition_of(key, self.master.cluster.partition_count)

    def replicas_of(self, key: bytes) -> list[Node]:
        """The key's preference list."""
        return [
            self.node_of(target.member.worker) for target in self.coordinator.partitions[self.partition_of(key)].targets
        ]

    async def _run(self, node: Node, listening: Listening, *, enlist: bool) -> None:
        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            async with _ended(node.scope, node.stopped, listening):
                await node.worker.run(
                    listening, masters=(self.master_address,) if enlist else (), task_status=task_status
                )

        await self._nursery.start(run)


@cache
def _installed() -> Registry:
    """The installed plugins. They are found once, since a suite starts many clusters and finding plugins is slow."""
    return load_registry()


@asynccontextmanager
async def _ended(scope: trio.CancelScope, stopped: trio.Event, listening: Listening) -> AsyncIterator[None]:
    """Run a node inside `scope`. When it ends, its listener closes, and `stopped` is set."""
    try:
        with scope:
            yield
    finally:
        await trio.aclose_forcefully(listening.listener)
        stopped.set()
