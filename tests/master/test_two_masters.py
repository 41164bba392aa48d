"""Two masters alive on one document: what a deposed one still answers and commits.

A is the master of the cluster. B opens the same document later, and takes the next term. The two reach different
workers, or A is stopped for a while. Each schedule broke the protocol before there was a fence and a lease.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock

from tests.helpers import GatedStorage, partition_of, shut
from trikv.api import Promise, Record, ReplicaSet, Strategy, Write
from trikv.core.configuration import Cluster
from trikv.core.errors import Refused, TrikvError
from trikv.core.quorums import Availability
from trikv.master import membership
from trikv.master.configstore import ConfigConflict, ConfigStore, NotChanged
from trikv.master.master import Master
from trikv.net.doors import Doors, Listening, Transport
from trikv.registry import load_registry
from trikv.testing.inprocess import InProcessCluster, MemoryTransport
from trikv.testing.sharedstore import SharedState

KEY: Final = b"k"
B_ADDRESS: Final = "127.0.0.1:9000"
PATIENCE_S: Final = 60.0


class Partial(Transport):
    """The cluster's network as one machine sees it: some addresses cannot be reached from there."""

    def __init__(self, network: MemoryTransport) -> None:
        self.network = network
        self.blocked: set[str] = set()
        self.connections: list[tuple[str, trio.abc.Stream]] = []

    async def connect(self, address: str) -> trio.abc.Stream:
        if address in self.blocked:
            await trio.sleep_forever()
        stream = await self.network.connect(address)
        self.connections.append((address, stream))
        return stream

    async def listen(self, address: str) -> Listening:
        return await self.network.listen(address)


class Noticing(ConfigStore):
    """The same document; tells when a change is durable, before the master that asked for it knows."""

    def __init__(self, store: ConfigStore, told: Callable[[dict[str, Any]], None]) -> None:
        self.store, self.told = store, told

    async def read(self) -> tuple[dict[str, Any] | None, int]:
        return await self.store.read()

    async def compare_and_set(self, document: dict[str, Any], revision: int) -> int:
        revision = await self.store.compare_and_set(document, revision)
        self.told(document)
        return revision

    async def close(self) -> None: ...


class Unreachable(ConfigStore):
    """The same document, which cannot be reached until it is there again."""

    def __init__(self, store: ConfigStore) -> None:
        self.store, self.is_there = store, False

    async def read(self) -> tuple[dict[str, Any] | None, int]:
        self._check()
        return await self.store.read()

    async def compare_and_set(self, document: dict[str, Any], revision: int) -> int:
        self._check()
        return await self.store.compare_and_set(document, revision)

    def _check(self) -> None:
        if not self.is_there:
            raise NotChanged("nobody listens there")

    async def close(self) -> None: ...


class Lease:
    """Of the master A: it ends when B begins to lead."""

    def __init__(self) -> None:
        self.held = True

    def holds(self) -> bool:
        return self.held


class Half(Strategy):
    """A write is committed by half of the replicas, so two writes need not meet."""

    name = "half"
    promise = Promise.CP

    def copies(self, n: int) -> int:
        return (n + 1) // 2

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.store(write, need=self.copies(len(replicas)))

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        answers = await replicas.fetch(key, need=len(replicas) - self.copies(len(replicas)) + 1)
        return await replicas.agree(key, answers)


async def open_b(cluster: InProcessCluster, store: ConfigStore, transport: Partial) -> Master:
    return await Master.open(
        store, cluster.registry, Doors(transport=transport), timeout_s=2.0, holds_lease=lambda: True
    )


async def run_b(nursery: trio.Nursery, master: Master, network: MemoryTransport) -> None:
    await nursery.start(master.run, await network.listen(B_ADDRESS))


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 nothing notifies of both masters
            await trio.sleep(0.05)


def stop(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the master do what a stopped process does: nothing of its own accord. Clients may ask it again."""
    tick = membership.WatchedWorker.tick

    def tick_unless_stopped(self: membership.WatchedWorker, now: float) -> None:
        if self._me().incarnation != master.hello().incarnation:
            tick(self, now)

    monkeypatch.setattr(membership.WatchedWorker, "tick", tick_unless_stopped)
    monkeypatch.setattr(master.reconciler, "_plan", list)
    monkeypatch.setattr(master.antientropy, "_due", list)


@pytest.mark.parametrize(("mode", "reader"), [("sync", 0), ("chain", -1)])
async def test_a_deposed_master_answers_nothing_from_one_replica(
    nursery: trio.Nursery, autojump_clock: MockClock, mode: str, reader: int
) -> None:
    """The network is parted: A and the one replica that reads ask on one side; B and all other workers on the other."""
    network, lease = MemoryTransport(), Lease()
    seen_by_a = Partial(network)
    cluster = await InProcessCluster.start(
        nursery, mode=mode, workers=0, doors=Doors(transport=seen_by_a), holds_lease=lease.holds
    )
    cluster.doors = Doors(transport=network)  # workers talk over the whole network
    for _ in range(4):
        await cluster.add_worker()
    await cluster.until(lambda: cluster.master.cluster.formed and len(cluster.master.cluster.workers) == 4)
    await cluster.until_all_up()
    a = cluster.master
    await a.coordinator.put(KEY, b"v0")
    record = await a.coordinator.get(KEY)
    assert record is not None
    assert record.value == b"v0"
    slot = a.coordinator.partitions[partition_of(KEY)]
    asked = slot.targets[reader].member.worker

    others = {node.address for node in cluster.workers if node.worker.id != asked}
    seen_by_a.blocked |= others
    for address, stream in seen_by_a.connections:
        if address in others:
            await trio.aclose_forcefully(stream)
    seen_by_b = Partial(network)
    seen_by_b.blocked.add(cluster.node_of(asked).address)

    lease.held = False
    b = await open_b(cluster, cluster.store, seen_by_b)
    await run_b(nursery, b, network)
    await until(lambda: asked not in {m.worker for m in b.coordinator.partitions[slot.index].configuration.members})
    await b.coordinator.put(KEY, b"v1")
    for _ in range(100):
        await trio.sleep(1)
        with pytest.raises(Refused):
            await a.coordinator.get(KEY)


async def test_a_master_that_was_stopped_for_a_while_answers_nothing_old_under_quorum(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A is stopped for some seconds. B gives up m1 meanwhile, which it cannot reach. m2's disk is slow: it has B's
    messages, and has not come to them. Then A goes on, before its next heartbeat, and reads m1 and m2."""
    network = MemoryTransport()
    cluster = await InProcessCluster.start(nursery, mode="quorum", workers=0, doors=Doors(transport=network))
    for _ in range(4):
        await cluster.add_worker(storage=GatedStorage())
    await cluster.until(lambda: cluster.master.cluster.formed and len(cluster.master.cluster.workers) == 4)
    await cluster.until_all_up()
    a = cluster.master
    await a.coordinator.put(KEY, b"v0")
    slot = a.coordinator.partitions[partition_of(KEY)]
    m1, m2, _ = (target.member.worker for target in slot.targets)
    await trio.sleep(1)  # all three have v0
    gate = shut(cluster.node_of(m2))
    for number in range(30):
        await a.coordinator.put(b"other%d" % number, b"x")  # some of them wait for m2's disk
    stop(a, monkeypatch)

    seen_by_b = Partial(network)
    seen_by_b.blocked.add(cluster.node_of(m1).address)
    b = await open_b(cluster, cluster.store, seen_by_b)
    await run_b(nursery, b, network)
    await until(lambda: m1 not in {m.worker for m in b.coordinator.partitions[slot.index].configuration.members})
    assert m2 in {m.worker for m in b.coordinator.partitions[slot.index].configuration.members}
    with pytest.raises(Refused):
        await b.coordinator.put(KEY, b"v1")  # m1 and m2 could still answer A
    record = await a.coordinator.get(KEY)
    assert record is not None
    assert record.value == b"v0"

    gate.set()
    await b.coordinator.put(KEY, b"v1")
    with pytest.raises(TrikvError):
        await a.coordinator.get(KEY)


async def test_what_a_deposed_master_acknowledges_is_kept_under_quorum(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A is stopped. B cannot reach m1 at all, and m2 only from shortly before m1 is given up for a fresh s1; then B's
    link to m2 is slow again. B is asked to write v1 on m3 and s1. A goes on and commits v2 on m1 and m2."""
    network = MemoryTransport()
    cluster = await InProcessCluster.start(nursery, mode="quorum", workers=3, doors=Doors(transport=network))
    a = cluster.master
    await a.coordinator.put(KEY, b"v0")
    slot = a.coordinator.partitions[partition_of(KEY)]
    m1, m2, _ = (target.member.worker for target in slot.targets)
    await trio.sleep(1)
    stop(a, monkeypatch)

    seen_by_b = Partial(network)
    seen_by_b.blocked |= {cluster.node_of(m1).address, cluster.node_of(m2).address}
    held = []

    def told(document: dict[str, Any]) -> None:
        active = Cluster.from_document(document).partitions[slot.index].active
        if m1 not in {m.worker for m in active.members}:
            for address, stream in seen_by_b.connections:
                if address == cluster.node_of(m2).address:
                    for connection in network._connections[address]:
                        if connection.near is stream:
                            connection.hold()
                            held.append(connection)

    b = await open_b(cluster, Noticing(cluster.store, told), seen_by_b)
    await run_b(nursery, b, network)
    s1 = await cluster.add_worker(enlist=False)
    await b.enlisting.enlist(s1.address)
    await trio.sleep(5.25)
    seen_by_b.blocked.remove(cluster.node_of(m2).address)
    b.membership.redial()
    await until(lambda: m1 not in {m.worker for m in b.coordinator.partitions[slot.index].configuration.members})
    assert m2 in {m.worker for m in b.coordinator.partitions[slot.index].configuration.members}
    assert held
    with pytest.raises(Refused):
        await b.coordinator.put(KEY, b"v1")  # m1 and m2 could still commit what A writes
    await a.coordinator.put(KEY, b"v2")
    for connection in held:
        connection.release()
    await until(lambda: b.coordinator.partitions[slot.index].is_fenced)
    record = await b.coordinator.get(KEY)
    assert record is not None
    assert record.value == b"v2"


async def test_a_master_whose_lease_ended_while_it_took_its_term_does_not_serve() -> None:
    """The former leader may have had the lead again before the term was taken, so its lease may hold."""
    state = SharedState()
    store = state.client()
    with pytest.raises(ConfigConflict, match="lease ended while it took a term"):
        await Master.open(store, load_registry(), Doors(), mode="sync", holds_lease=store.holds)
    assert state.revision == 1


async def test_a_deposed_master_that_cannot_reach_the_store_does_not_take_the_document_for_an_old_one(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """B has given every partition a later generation. Clients of A must not be told to look for a newer document."""
    lease = Lease()
    cluster = await InProcessCluster.start(nursery, mode="quorum", workers=3, holds_lease=lease.holds)
    a = cluster.master
    await a.coordinator.put(KEY, b"v0")
    store = Unreachable(cluster.store)
    a.document._store = store
    lease.held = False
    b = await open_b(cluster, cluster.store, Partial(cluster.network))
    await run_b(nursery, b, cluster.network)
    await until(lambda: all(watched.availability is Availability.UP for watched in b.membership.watched.values()))
    await b.operations.switch_mode("sync")
    await until(lambda: all(p.settled and p.active.mode == "sync" for p in b.cluster.partitions))
    for number in range(50):
        for operation in (a.coordinator.get(b"k%d" % number), a.coordinator.put(b"k%d" % number, b"v")):
            with pytest.raises(TrikvError) as refused:
                await operation
            assert refused.value.kind.code != "recover"
    assert not any(state.is_blocked for state in a.coordinator.partitions)
    store.is_there = True
    await until(cluster._master_stopped.is_set)


async def test_a_change_by_a_deposed_master_ends_it(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """Workers tell A of the later term; it tries to go beyond that one, and cannot change the document any more."""
    cluster = await InProcessCluster.start(nursery, mode="quorum", workers=3)
    a = cluster.master
    await a.coordinator.put(KEY, b"v0")
    b = await open_b(cluster, cluster.store, Partial(cluster.network))
    assert b.cluster.term == a.cluster.term + 1
    await run_b(nursery, b, cluster.network)
    await until(cluster._master_stopped.is_set)
    with pytest.raises(ConfigConflict):
        a.document.check()
    await b.coordinator.put(KEY, b"v1")


async def test_what_a_deposed_master_acknowledges_is_kept_where_two_writes_need_not_meet(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """A write is committed by 2 of 4 replicas. The network is parted: A reaches m3 and m4, B reaches m1 and m2. B is
    asked to write v1, and after that A to write v2."""
    network, lease = MemoryTransport(), Lease()
    seen_by_a, seen_by_b = Partial(network), Partial(network)
    cluster = await InProcessCluster.start(
        nursery,
        mode="half",
        strategies=[Half()],
        workers=0,
        replicas=4,
        doors=Doors(transport=seen_by_a),
        holds_lease=lease.holds,
    )
    cluster.doors = Doors(transport=network)
    for _ in range(4):
        await cluster.add_worker()
    await cluster.until(lambda: cluster.master.cluster.formed and len(cluster.master.cluster.workers) == 4)
    await cluster.until_all_up()
    a = cluster.master
    await a.coordinator.put(KEY, b"v0")
    slot = a.coordinator.partitions[partition_of(KEY)]
    m1, m2, m3, m4 = (cluster.node_of(target.member.worker).address for target in slot.targets)
    await trio.sleep(1)  # all four have v0

    seen_by_a.blocked |= {m1, m2}
    for address, stream in seen_by_a.connections:
        if address in seen_by_a.blocked:
            await trio.aclose_forcefully(stream)
    seen_by_b.blocked |= {m3, m4}
    lease.held = False
    b = await open_b(cluster, cluster.store, seen_by_b)
    await run_b(nursery, b, network)
    with pytest.raises(Refused):
        await b.coordinator.put(KEY, b"v1")  # m3 and m4 could still commit what A writes
    await a.coordinator.put(KEY, b"v2")

    seen_by_b.blocked.clear()
    b.membership.redial()
    of_b = b.coordinator.partitions[slot.index]
    await until(lambda: all(target.availability is Availability.UP for target in of_b.targets))
    for _ in range(2):
        record = await b.coordinator.get(KEY)
        assert record is not None
        assert record.value == b"v2"
    await b.coordinator.put(KEY, b"v3")
    with pytest.raises(TrikvError):
        await a.coordinator.put(KEY, b"v4")
