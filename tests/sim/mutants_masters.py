"""What can be broken about several masters: in what holds off a deposed one, and in how the next one begins.

A deposed leader goes on with all that it does until it hears of its successor. Settling, recovery and the forgetting of
tombstones each begin with a change of the document, so a document that is not compared lets them go on. What hints,
anti-entropy and recovery copy are stores: workers refuse them by their epoch, and the leader sends none to a worker
that has told it of another master. Only the loss of both shows: a value is back that the successor has deleted and
forgotten. Tombstones are forgotten by their version, which harms nobody.

The fence shows only where the successor's first message to a worker comes after its change of a configuration, and the
lease only where the two leaders reach different workers. The first is driven by hand, and so are the copies that
anti-entropy and recovery had on their way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any

import trio

from tests.sim.mutant import Mutant, replaced
from trikv.api import Version, Write
from trikv.coordinator.coordinator import Coordinator
from trikv.coordinator.partition import PartitionState
from trikv.coordinator.replicas import Replicas, Target
from trikv.core.calls import Store, vitals_from_wire
from trikv.core.configuration import Cluster, Partition
from trikv.core.errors import Fault
from trikv.core.session import Hello, MasterId
from trikv.healing.antientropy import AntiEntropy
from trikv.healing.hints import Hints
from trikv.healing.settle import Settling
from trikv.master.configstore import ConfigStore, ConfigStoreError, NotChanged
from trikv.master.leadership import Candidate
from trikv.master.master import Master
from trikv.master.membership import WatchedWorker
from trikv.net.doors import Doors
from trikv.registry import Registry
from trikv.testing.judge.history import Kind
from trikv.testing.sim import MASTERS
from trikv.testing.sim.clients import Asked, Clients
from trikv.testing.sim.network import Life, SimTransport
from trikv.testing.sim.sharedstore import SimSharedConfigStore, StoreMachine
from trikv.testing.sim.world import World
from trikv.worker.worker import Worker, _Item
from trikv_chain import Chain
from trikv_flex import FlexW1
from trikv_quorum import Quorum
from trikv_sync import Sync


def serve_without_the_fence() -> AbstractContextManager[None]:
    """A changed configuration is served at once, whatever can still be committed under the earlier one."""

    def to_fence(self: PartitionState) -> list[Target]:
        return []

    return replaced(PartitionState, "to_fence", to_fence)


def write_in_a_new_term_without_the_fence() -> AbstractContextManager[None]:
    """An unchanged configuration is written in a new term at once, though two of its writes need not meet."""

    def is_rivalled(self: Master, partition: Partition, former: PartitionState | None) -> bool:
        return False

    return replaced(Master, "_is_rivalled", is_rivalled)


def believe_without_the_lease() -> AbstractContextManager[None]:
    """An answer of one replica is believed whether or not another master may lead."""

    def check_answer(self: Coordinator, state: PartitionState, heard: int) -> None:
        pass

    return replaced(Coordinator, "check_answer", check_answer)


def hold_from_the_answer() -> AbstractContextManager[None]:
    """The lease counts from when the answer came, though the store may have begun to count long before."""
    real = SimSharedConfigStore._hold_from

    def hold_from(self: SimSharedConfigStore, sent_s: float) -> None:
        real(self, self._now())

    return replaced(SimSharedConfigStore, "_hold_from", hold_from)


def change_without_comparing() -> AbstractContextManager[None]:
    """Whoever changes the document is granted it."""

    def change(self: StoreMachine, body: bytes, revision: int) -> int | None:
        self.disk.under_way = body
        self.disk.flush()
        return self.disk.revision

    return replaced(StoreMachine, "change", change)


class _ReadOnly(ConfigStore):
    """The document for a master that stands by: it takes no term, and changes nothing."""

    def __init__(self, store: ConfigStore) -> None:
        self._store = store
        self._is_open = False

    async def read(self) -> tuple[dict[str, Any] | None, int]:
        document, revision = await self._store.read()
        assert document is not None
        cluster = Cluster.from_document(document)
        return replace(cluster, term=cluster.term - 1).to_document(), revision  # whoever opens it takes the next

    async def compare_and_set(self, document: dict[str, Any], revision: int) -> int:
        await trio.lowlevel.checkpoint()
        if self._is_open:
            raise NotChanged("a standby changes nothing")
        self._is_open = True
        return revision

    async def close(self) -> None: ...


@contextmanager
def answer_while_standing_by() -> Iterator[None]:
    """A master that stands by answers from slots of its own, which it made from the document, in the leader's name."""
    standing: dict[str, Master] = {}
    names: dict[Master, Hello] = {}
    ask_machine = Clients._ask_machine
    hello = Master.hello

    async def stand_by(self: World, life: Life, store: SimSharedConfigStore, me: Candidate) -> None:
        name = life.host.name
        while True:
            await self.wait_until(lambda: self.is_formed() and not self.is_deposed(_the(self.master)), math.inf)
            await trio.sleep(1)
            leader = _the(self.master)
            doors = Doors(SimTransport(self.network, life), life.dice)
            with suppress(ConfigStoreError):
                standby = await Master.open(_ReadOnly(store), Registry(self.modes), doors)
                names[standby] = leader.hello()
                async with trio.open_nursery() as nursery:
                    await nursery.start(standby.run, await doors.transport.listen(life.host.address))
                    standing[name] = standby
                    try:
                        await self.wait_until(partial(self.is_deposed, standby), math.inf)
                    finally:
                        del standing[name]
                    nursery.cancel_scope.cancel()

    async def ask(self: Clients, name: str, asked: Sequence[Asked]) -> None:
        if name in standing and name not in self._world.serving:
            await self._ask_master(standing[name], asked)
        else:
            await ask_machine(self, name, asked)

    def hello_of_the_leader(self: Master) -> Hello:
        return names.get(self) or hello(self)

    with (
        replaced(World, "stand_by", stand_by),
        replaced(Clients, "_ask_machine", ask),
        replaced(Master, "hello", hello_of_the_leader),
    ):
        yield


@contextmanager
def store_though_deposed(part: type, method: str) -> Iterator[None]:
    """Workers take what this part of a deposed leader stores, which is not told that it is deposed.

    `method` stores for the part; each call has a task of its own.
    """
    storing: ContextVar[bool] = ContextVar("storing", default=False)
    marked: set[tuple[bytes, Version]] = set()
    carry_out, store, decide = vars(part)[method], Replicas.store, Worker._decide

    async def carry_out_marked(self: object, *arguments: Any) -> None:
        storing.set(True)
        await carry_out(self, *arguments)

    async def store_marked(self: Replicas, write: Write, **options: Any) -> None:
        if storing.get():
            marked.add((write.key, write.record.version))
        await store(self, write, **options)

    def decide_unfenced(self: Worker, item: _Item, now: float) -> bool:
        request = item.request
        if isinstance(request, Store) and (request.key, request.record.version) in marked:
            self.registers.put(request.partition, request.key, request.record)
            return True
        return decide(self, item, now)

    with (
        replaced(part, method, carry_out_marked),
        replaced(Replicas, "store", store_marked),
        replaced(Worker, "_decide", decide_unfenced),
        replaced(WatchedWorker, "_heard", _hear_of_no_rival),
    ):
        yield


def _hear_of_no_rival(self: WatchedWorker, fault: int, payload: list[Any]) -> None:
    if fault == Fault.OK:
        self.vitals = vitals_from_wire(payload)
        term, mine = (MasterId.parse(who).term for who in (self.vitals.master, self._me().incarnation))
        if term < mine:
            self.peer.redial()
        self.acknowledged = term > mine or (term == mine and self._admit(self, self.vitals))
        self._look()


def _the(master: Master | None) -> Master:
    assert master is not None
    return master


DELETING = replace(
    MASTERS,
    mix={Kind.GET: 50, Kind.PUT: 20, Kind.DELETE: 30},
    forget_after_s=0.5,
    now_and_then=(),
    changes=(0, 0),
)

OF_MASTERS = [
    Mutant("masters: no fence", Quorum(), serve_without_the_fence),
    Mutant("masters: no fence in a new term", FlexW1(), write_in_a_new_term_without_the_fence, seed=4, plan=MASTERS),
    Mutant("masters: no lease rule", Chain(), believe_without_the_lease, seed=16, plan=MASTERS),
    Mutant("masters: lease from the answer", Sync(), hold_from_the_answer),
    Mutant("masters: standby answers", Quorum(), answer_while_standing_by, seed=1, plan=MASTERS),
    Mutant("masters: document not compared", Quorum(), change_without_comparing, seed=5, plan=MASTERS),
    Mutant("masters: hints go on", Quorum(), partial(store_though_deposed, Hints, "_deliver"), seed=11, plan=DELETING),
    Mutant("masters: anti-entropy goes on", Quorum(), partial(store_though_deposed, AntiEntropy, "_mend")),
    Mutant("masters: recovery goes on", Quorum(), partial(store_though_deposed, Settling, "_mend")),
]
