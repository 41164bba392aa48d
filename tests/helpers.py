"""What tests share: a worker that runs alone with a master's link to it, what a cluster holds, filled clusters."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from trikv.api import HEAD, Batch, Need, Needs, Promise, ReplicaSet, Storage, Strategy, Write, newest
from trikv.coordinator.partition import Doubt, PartitionState, Surroundings
from trikv.coordinator.replicas import Target
from trikv.core import ring
from trikv.core.calls import (
    Full,
    Op,
    digests_from_wire,
    fetched_from_wire,
    record_to_wire,
    vitals_from_wire,
)
from trikv.core.configuration import Configuration, Member, Partition
from trikv.core.digest import Summary
from trikv.core.errors import Fault, Refused
from trikv.core.quorums import Availability
from trikv.core.record import Record, Version, make_epoch, make_seq
from trikv.core.session import Hello
from trikv.net.doors import Doors
from trikv.net.link import Link, dial
from trikv.registry import load_registry
from trikv.storage.memory import MemoryStorage
from trikv.testing.inprocess import PARTITIONS, InProcessCluster, MemoryTransport, Node
from trikv.testing.processes.cluster import LocalCluster, wait_until
from trikv.worker.progress import ProgressMarker
from trikv.worker.worker import Worker

PATIENCE_S = 20.0
P = 7  # a partition
OLD, NOW, NEXT = make_epoch(3, 0), make_epoch(3, 1), make_epoch(3, 2)
KEYS = [b"key-%d" % number for number in range(100)]
VALUES = {key: b"value of " + key for key in KEYS}
MANY = 1024  # partitions: so many that they move in several steps
MASTER = Hello("master", "c-1", "term-3", "c-1")

COMMAND_DEADLINE_S = 120.0

Reply = tuple[int, list[Any]]


def run_trikv(*arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The command line as a process of its own, with that environment (default: ours), until it has ended."""
    return subprocess.run(
        [sys.executable, "-m", "trikv", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=COMMAND_DEADLINE_S,
        check=False,
    )


def partition_of(key: bytes) -> int:
    """Where the key lies in a cluster of `InProcessCluster`."""
    return ring.partition_of(key, PARTITIONS)


@dataclass(eq=False)
class Replica:
    """What is known of a member that nobody calls."""

    member: Member
    availability: Availability = Availability.UP
    evictable: bool = False
    address: str = "nowhere:1"
    crowded: bool = False
    full: Full = Full.NO
    labels: Mapping[str, str] = field(default_factory=dict)

    def call(self, *call: Any) -> None:
        raise AssertionError("nothing is sent here")


def configuration_of(names: str, mode: str = "quorum") -> Configuration:
    """Of members that are named by letters."""
    members = tuple(Member(name, "1") for name in names)
    return Configuration(members, mode, load_registry().strategy(mode).copies(len(members)))


class Around:
    """What lies around the states of one coordinator: members that nobody calls, and what was reported."""

    def __init__(self) -> None:
        self.doubt = Doubt()
        self.stale: list[tuple[int, int]] = []  # partition, promised epoch
        self.missed: list[tuple[int, Target, Write, float]] = []
        self.replicas: dict[Member, Replica] = {}

    def replica(self, name: str) -> Replica:
        """A member is the same one in every configuration."""
        member = Member(name, "1")
        return self.replicas.setdefault(member, Replica(member))

    def state(
        self,
        partition: Partition,
        *,
        index: int = 5,
        term: int = 3,
        mark: int = 0,
        made_here: bool = False,
        rivalled: bool = False,
    ) -> PartitionState:
        surroundings = Surroundings(
            load_registry().strategy,
            lambda configuration: [self.replica(member.worker) for member in configuration.members],
            lambda state, promised: self.stale.append((state.index, promised)),
            lambda state, *missed: self.missed.append((state.index, *missed)),
            self.doubt,
            mark,
            PARTITIONS,
        )
        return PartitionState(index, term, partition, surroundings, made_here=made_here, rivalled=rivalled)


class GatedStorage(MemoryStorage):
    """Its disk is as slow as a test wants: a commit is written at once, and its flush waits at the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = trio.Event()
        self.gate.set()

    async def commit(self, batch: Batch) -> None:
        await super().commit(batch)
        await self.gate.wait()


class BrokenStorage(MemoryStorage):
    broken = False

    async def commit(self, batch: Batch) -> None:
        if self.broken:
            raise OSError("no space left on device")
        await super().commit(batch)


class WorkerHarness:
    """A worker that runs, and a master's link to it."""

    def __init__(self, nursery: trio.Nursery, storage: Storage, doors: Doors | None = None) -> None:
        self.nursery = nursery
        self.storage = storage
        self.doors = doors or Doors(transport=MemoryTransport())
        self.worker: Worker
        self.address = ""
        self._link: Link
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    async def start(
        self,
        *,
        name: str = "w-1",
        max_keys: int | None = None,
        greet_as: Hello = MASTER,
        confirm: bool = True,
        progress: ProgressMarker | None = None,
    ) -> WorkerHarness:
        self.worker = await Worker.open(name, self.storage, "test", self.doors, max_keys=max_keys, progress=progress)
        listening = await self.doors.transport.listen("127.0.0.1:0")
        self.address = listening.address
        self._scope, self._ended = trio.CancelScope(), trio.Event()

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            try:
                with self._scope:
                    await self.worker.run(listening, task_status=task_status)
            finally:
                self._ended.set()

        await self.nursery.start(run)
        self._link = await dial(await self.doors.transport.connect(self.address), greet_as)
        self.nursery.start_soon(self._link.run)
        if confirm:
            start = str(self.worker.starts[-1])
            assert await self.ask(Op.CONFIRM, [self.worker.incarnation, start]) == (Fault.OK, [])
        return self

    async def stop(self) -> None:
        self._scope.cancel()
        await self._ended.wait()

    async def restart(self, **more: Any) -> WorkerHarness:
        await self.stop()
        return await self.start(**more)

    def post(self, op: Op, arguments: list[Any], *, timeout_s: float = PATIENCE_S, size_bytes: int = 64) -> list[Reply]:
        """Ask without waiting; the reply will be in the list."""
        replies: list[Reply] = []
        deadline_s = trio.current_time() + timeout_s
        self._link.call(op, arguments, deadline_s, lambda fault, payload: replies.append((fault, payload)), size_bytes)
        return replies

    async def ask(self, op: Op, arguments: list[Any]) -> Reply:
        answered = trio.Event()
        reply: Reply = (Fault.LATE, [])

        def done(fault: int, payload: list[Any]) -> None:
            nonlocal reply
            reply = (fault, payload)
            answered.set()

        self._link.call(op, arguments, trio.current_time() + PATIENCE_S, done)
        with trio.fail_after(PATIENCE_S):
            await answered.wait()
        return reply

    def store(
        self,
        seq: int,
        value: bytes | None = b"v",
        *,
        key: bytes = b"k",
        epoch: int = NOW,
        partition: int = P,
        onward: list[WorkerHarness] | None = None,
    ) -> list[Any]:
        """A STORE's arguments; the record's version is (epoch, seq)."""
        version = Version(epoch, seq)
        hops = [[harness.worker.id, harness.worker.incarnation, harness.address] for harness in onward or []]
        row = record_to_wire(Record(version, version, value))
        return [partition, epoch, self.worker.incarnation, key, *row, *([hops] if hops else [])]

    def fetch(self, *, key: bytes = b"k", epoch: int = NOW, partition: int = P) -> list[Any]:
        return [partition, epoch, self.worker.incarnation, key]

    def discard(self, *, epoch: int = NOW, partition: int = P) -> list[Any]:
        return [partition, epoch, self.worker.incarnation]

    def digest(self, *pairs: tuple[int, int]) -> list[Any]:
        return [self.worker.incarnation, [list(pair) for pair in pairs]]

    def list(self, *pairs: tuple[int, int], after: bytes | None = None, limit: int = 100, values: bool = True) -> Any:
        return [self.worker.incarnation, [list(pair) for pair in pairs], b"", after, limit, values]

    def forget(self, seq: int, *, key: bytes = b"k", epoch: int = NOW, partition: int = P) -> Any:
        """A FORGET's arguments, for a tombstone of version (NOW, seq)."""
        return [partition, epoch, self.worker.incarnation, key, NOW, seq]

    async def summary(self, epoch: int = NOW, partition: int = P) -> Summary:
        _, payload = await self.ask(Op.DIGEST, self.digest((partition, epoch)))
        return digests_from_wire(payload)[1][partition]

    async def put(self, seq: int, value: bytes | None = b"v", **more: Any) -> int:
        fault, _ = await self.ask(Op.STORE, self.store(seq, value, **more))
        return fault

    async def seq_of(self, **more: Any) -> int | None:
        fault, payload = await self.ask(Op.FETCH, self.fetch(**more))
        assert fault == Fault.OK
        record = fetched_from_wire(payload)
        return None if record is None else record.version.seq

    async def keys(self) -> int:
        _, payload = await self.ask(Op.HEARTBEAT, [])
        return vitals_from_wire(payload).keys

    async def is_full(self) -> bool:
        _, payload = await self.ask(Op.HEARTBEAT, [])
        return vitals_from_wire(payload).full is Full.KEYS


@contextmanager
def filled_cluster(workers: int, keys: int) -> Iterator[LocalCluster]:
    """A quorum in memory, of real processes, that holds `operate/N` for every N below `keys`."""
    with LocalCluster(workers=workers, timeout_s=20.0) as cluster:
        with cluster.client() as client:
            for n in range(keys):
                client.put(b"operate/%d" % n, b"%d" % n)
        yield cluster


def put_right(cluster: LocalCluster) -> None:
    """Undo what operators did: every worker keeps its place, the mode is quorum, all is settled."""
    with cluster.client(patience_s=60.0) as client:
        for node in cluster.workers:
            client.undrain(node.id)
        wait_until(lambda: client.mode()["progress"]["operation"] is None, what="nothing is under way")
        client.set_mode("quorum")
        wait_until(lambda: not client.cluster()["unsettled"], what="all is settled")


def shut(harness: WorkerHarness | Node) -> trio.Event:
    """Let no commit of that worker through until the event is set."""
    assert isinstance(harness.storage, GatedStorage)
    harness.storage.gate = trio.Event()
    return harness.storage.gate


async def lay_down(
    cluster: InProcessCluster,
    nursery: trio.Nursery,
    node: Node,
    key: bytes,
    version: Version,
    value: bytes | None,
    *,
    partition: int | None = None,
) -> Record:
    """Leave a record at one worker alone, as a coordinator that died half-way did; under `partition`, as none did."""
    link = await dial(await cluster.network.connect(node.address), cluster.master.hello())
    nursery.start_soon(link.run)
    stored = trio.Event()
    state = cluster.coordinator.partitions[partition_of(key) if partition is None else partition]
    record = Record(version, version, value)

    def done(fault: int, payload: list[Any]) -> None:
        assert fault == Fault.OK
        stored.set()

    arguments = [state.index, state.epoch, node.worker.incarnation, key, *record_to_wire(record)]
    link.call(Op.STORE, arguments, trio.current_time() + 5, done, 64)
    await stored.wait()
    return record


# --- a cluster, and what it holds -------------------------------------------------------------------------------------


class HeadLast(Strategy):
    """A majority without the head first, then the head: without it, a write would end unknown."""

    name = "head-last"
    promise = Promise.CP
    gives_up = use_when = protocol = "A sentence."

    def copies(self, n: int) -> int:
        return n // 2 + 1

    def needs(self, n: int) -> Needs:
        return Needs(write=Need(n // 2 + 1, places=(0,)), read=HEAD)

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.rest.store(write, need=len(replicas) // 2)
        await replicas.head.store(write)

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        return newest(await replicas.head.fetch(key))


async def fill(cluster: InProcessCluster, value: bytes = b"v") -> None:
    """Every key with the same value."""
    for key in KEYS:
        await cluster.coordinator.put(key, value)
    await trio.sleep(1)  # copies that nobody waits for arrive


async def fill_apart(cluster: InProcessCluster) -> None:
    """Every key with a value of its own."""
    for key, value in VALUES.items():
        await cluster.coordinator.put(key, value)


async def read_all(cluster: InProcessCluster) -> dict[bytes, bytes | None]:
    return {key: await value_of(cluster, key) for key in KEYS}


async def value_of(cluster: InProcessCluster, key: bytes) -> bytes | None:
    record = await cluster.coordinator.get(key)
    return None if record is None else record.value


async def values(cluster: InProcessCluster) -> set[bytes | None]:
    return {await value_of(cluster, key) for key in KEYS}


def under(cluster: InProcessCluster, *nodes: Node) -> list[int]:
    """The partitions whose active configuration has all of them."""
    workers = {node.worker.id for node in nodes}
    return [
        state.index for state in cluster.coordinator.partitions if workers <= {t.member.worker for t in state.targets}
    ]


def later(cluster: InProcessCluster, key: bytes) -> Version:
    """A version later than any that the present configuration has given so far."""
    return Version(cluster.coordinator.partitions[partition_of(key)].epoch, make_seq(1 << 20, 0))


class SlowDisk(MemoryStorage):
    """Its commits take as long as a test wants."""

    slow_s = 0.0

    async def commit(self, batch: Batch) -> None:
        await trio.sleep(self.slow_s)
        await super().commit(batch)


def slow_down(node: Node, slow_s: float) -> None:
    assert isinstance(node.storage, SlowDisk)
    node.storage.slow_s = slow_s


async def start_on_slow_disks(nursery: trio.Nursery) -> InProcessCluster:
    """Four workers under async whose disks can be slowed down."""
    cluster = await InProcessCluster.start(nursery, mode="async", workers=0)
    for _ in range(4):
        await cluster.add_worker(storage=SlowDisk())
    await cluster.until(lambda: cluster.master.cluster.formed and len(cluster.master.cluster.workers) == 4)
    await cluster.until_all_up()
    return cluster


async def start_with_a_drained_one(nursery: trio.Nursery, mode: str, **settings: Any) -> tuple[InProcessCluster, Node]:
    """Four workers that hold everything, and a fifth that was emptied; its disk can be made to hang (`shut`)."""
    cluster = await InProcessCluster.start(nursery, mode=mode, workers=0, **settings)
    for _ in range(5):
        await cluster.add_worker(storage=GatedStorage())
    await cluster.until(lambda: cluster.master.cluster.formed and len(cluster.master.cluster.workers) == 5)
    await cluster.until_all_up()
    await fill(cluster)
    drained = cluster.workers[0]
    await cluster.master.operations.drain(drained.worker.id)
    await cluster.until(lambda: cluster.master.operations.operation() is None)
    await cluster.until_settled()
    return cluster, drained


async def back_up(cluster: InProcessCluster) -> dict[str, Any]:
    """The document as it is now."""
    document, _ = await cluster.store.read()
    assert document is not None
    return document


async def restore(cluster: InProcessCluster, document: dict[str, Any]) -> None:
    """Put an earlier document back, while no master runs."""
    _, revision = await cluster.store.read()
    await cluster.store.compare_and_set(document, revision)


def seen(cluster: InProcessCluster, node: Node) -> dict[str, Any]:
    """What the cluster's description says of that worker."""
    workers = cluster.master.status.describe()["workers"]
    return next(worker for worker in workers if worker["id"] == node.worker.id)


async def code_of(cluster: InProcessCluster, key: bytes = b"key") -> str:
    """How a read of the key ends."""
    try:
        await cluster.coordinator.get(key)
    except Refused as error:
        return error.kind.code
    return "committed"


def members_of(cluster: InProcessCluster) -> set[str]:
    """The workers that hold a place in some partition."""
    return {m.worker for p in cluster.master.cluster.partitions for m in p.active.members}


def copies_of(cluster: InProcessCluster, key: bytes) -> int:
    """On how many of the replicas that it is placed on the key is."""
    return sum(node.storage.get(partition_of(key), key) is not None for node in cluster.replicas_of(key))
