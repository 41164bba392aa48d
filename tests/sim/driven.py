"""Schedules about changing configurations that are driven step by step; each has a mutant that it turns red for.

Random search (`tests/sim/`) finds these seldom or never: somebody must be away at one moment, or a step of the change
must take longer than another. A schedule does what it says, on a whole cluster, and answers what is to be held against
that cluster, in words; nothing, if all went well. So the same schedule shows that today's code holds and that a broken
one does not.

Where a schedule chooses the configurations itself (`Driven.change`), the planner is kept from choosing others by the
lock under which changes are made.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from tests.helpers import lay_down, partition_of
from tests.sim.mutant import replaced
from trikv.coordinator.partition import PartitionState, Stage
from trikv.core.configuration import Configuration
from trikv.core.errors import Outcome, TrikvError
from trikv.core.planning import ConfigurationChange, Reason
from trikv.core.quorums import Availability
from trikv.core.record import Version, make_seq
from trikv.healing import settle
from trikv.healing.settle import Settling
from trikv.master.configstore import MemoryConfigStore
from trikv.testing.inprocess import InProcessCluster, Node

KEY = b"key"
INDEX = partition_of(KEY)
KEYS = [b"k%d" % number for number in range(30)]
GONE = KEYS[:10]
MODES = ["sync", "async"]
Held = str  # what is held against the cluster; empty: nothing
Schedule = Callable[[trio.Nursery], Awaitable[Held]]


class Driven:
    """A cluster of six workers, of which the key's partition has the first three, in one mode after another."""

    def __init__(self, cluster: InProcessCluster, nursery: trio.Nursery) -> None:
        self.cluster = cluster
        self.nursery = nursery
        self.replicas = cluster.replicas_of(KEY)
        self.spares = [node for node in cluster.workers if node not in self.replicas]

    @property
    def state(self) -> PartitionState:
        return self.cluster.coordinator.partitions[INDEX]

    async def change(self, members: Sequence[Node], mode: str) -> None:
        """Steps 1 and 2 of a change to these members, in this order, and that mode."""
        copies = self.cluster.registry.strategy(mode).copies(len(members))
        enlisted = [self.cluster.master.cluster.workers[node.worker.id].member for node in members]
        configuration = Configuration(tuple(enlisted), mode, copies)
        await self.cluster.master.reconciler.carry_out([ConfigurationChange(INDEX, configuration, Reason.MOVE)])

    async def read(self) -> bytes | None:
        record = await self.cluster.coordinator.get(KEY)
        return None if record is None else record.value

    async def write(self, value: bytes) -> Outcome:
        try:
            await self.cluster.coordinator.put(KEY, value)
        except TrikvError as error:
            return error.kind.outcome
        return Outcome.COMMITTED

    async def until_up(self, node: Node) -> None:
        await self.cluster.until(
            lambda: self.cluster.master.membership.watched[node.worker.id].availability is Availability.UP
        )


@asynccontextmanager
async def driven(nursery: trio.Nursery, mode: str) -> AsyncIterator[Driven]:
    """Nobody changes a configuration meanwhile but the schedule."""
    cluster = await InProcessCluster.start(nursery, mode=mode, workers=6)
    async with cluster.master.reconciler.stepping:
        yield Driven(cluster, nursery)


# --- the schedules ----------------------------------------------------------------------------------------------------


async def a_settle_ends_late(nursery: trio.Nursery) -> Held:
    """Who settled a partition comes to say so, and by then it has another configuration, with a new and empty tail."""
    may_conclude = trio.Event()
    conclude = Settling._conclude

    async def conclude_later(self: Settling, *arguments: Any) -> None:
        await may_conclude.wait()
        await conclude(self, *arguments)

    async with driven(nursery, "chain") as drive:
        await drive.write(b"v")
        one, two, _ = drive.replicas
        newcomer, another, _ = drive.spares
        with replaced(Settling, "_conclude", conclude_later):
            await drive.change([one, two, newcomer], "chain")
            await trio.sleep(1)
            await drive.change([one, newcomer, another], "chain")
        may_conclude.set()
        await drive.cluster.until(lambda: drive.state.partition.settled)
        seen = await drive.read()
    return "" if seen == b"v" else f"v was committed, and {seen!r} is read"


async def old_members_disagree_and_one_is_away(nursery: trio.Nursery) -> Held:
    """Two writes of two dead coordinators were left at one member each: a put of `older`, then a compare-and-set to
    `newer`, which had met neither. Who holds `newer` is away while the partition settles.

    Either may be read from then on; but not first `older` and then `newer`, since that came in place of `v`.
    """
    async with driven(nursery, "quorum") as drive:
        cluster = drive.cluster
        await drive.write(b"v")
        await trio.sleep(1)  # the third copy
        one, two, three = drive.replicas
        newcomer = drive.spares[0]
        for member, number, value in [(one, 1, b"older"), (three, 2, b"newer")]:
            await lay_down(cluster, nursery, member, KEY, Version(drive.state.epoch, make_seq(1000 + number, 0)), value)
        await cluster.kill(three)
        await cluster.until_down(three)
        await drive.change([two, three, newcomer], "quorum")
        await cluster.until(lambda: drive.state.partition.settled)
        first = await drive.read()
        await cluster.restart(three)
        await drive.until_up(three)
        await cluster.kill(newcomer)
        await cluster.until_down(newcomer)
        second = await drive.read()
    return "" if first == second else f"first {first!r} is read, then {second!r}"


async def a_write_meets_its_configuration_being_replaced(nursery: trio.Nursery) -> Held:
    """Nothing was stored yet under a new configuration when it is replaced by the former members. A write began under
    it, and comes to its first store while the document is being written."""
    async with driven(nursery, "sync") as drive:
        await drive.write(b"v")
        may_change = trio.Event()
        compare_and_set = MemoryConfigStore.compare_and_set
        outcome: list[Outcome] = []

        async def compare_and_set_later(self: MemoryConfigStore, document: dict[str, Any], revision: int) -> int:
            await may_change.wait()
            return await compare_and_set(self, document, revision)

        async def write() -> None:
            outcome.append(await drive.write(b"w"))

        with replaced(settle, "choose_to_settle", lambda history, hung: None):  # settling has not come to it
            await drive.change(drive.spares, "sync")
            unused = drive.state
            with replaced(MemoryConfigStore, "compare_and_set", compare_and_set_later):
                with await unused.locks.exclusive(KEY):  # somebody else is at that key
                    nursery.start_soon(write)
                    await trio.sleep(0.1)
                    nursery.start_soon(drive.change, drive.replicas, "sync")
                    await drive.cluster.until(lambda: unused.stage is Stage.CLOSED)
                await drive.cluster.until(lambda: outcome)
                may_change.set()
                await drive.cluster.until(lambda: drive.state is not unused)
        seen = await drive.read()
    expected = {Outcome.COMMITTED: [b"w"], Outcome.REFUSED: [b"v"], Outcome.UNKNOWN: [b"v", b"w"]}[outcome[0]]
    return "" if seen in expected else f"w is {outcome[0]}, and {seen!r} is read"


async def an_evicted_worker_returns(mode: str, nursery: trio.Nursery) -> Held:
    """It holds values that were deleted meanwhile, and nobody remembers that they were."""
    cluster = await InProcessCluster.start(nursery, mode=mode, workers=4, forget_after_s=2.0)
    for key in KEYS:
        await cluster.coordinator.put(key, b"v")
    await trio.sleep(1)
    evicted = cluster.workers[1]

    def is_member() -> bool:
        partitions = cluster.master.cluster.partitions
        return any(m.worker == evicted.worker.id for p in partitions for c in p.history for m in c.members)

    await cluster.kill(evicted)
    await cluster.until(lambda: not is_member())
    for key in GONE:
        await cluster.coordinator.delete(key)
    await cluster.until(lambda: cluster.master.tombstones.forgotten == len(GONE))
    await cluster.restart(evicted)
    await cluster.until(is_member)
    await cluster.until_settled()
    await trio.sleep(3)
    back = [key.decode() for key in GONE if await cluster.coordinator.get(key) is not None]
    kept = [await cluster.coordinator.get(key) for key in KEYS[len(GONE) :]]
    assert None not in kept
    return f"deleted, and back: {', '.join(back)}" if back else ""


# --- what breaks them -------------------------------------------------------------------------------------------------

SCHEDULES: dict[str, Schedule] = {
    "a settle ends late": a_settle_ends_late,
    "old members disagree": old_members_disagree_and_one_is_away,
    "a write meets its configuration being replaced": a_write_meets_its_configuration_being_replaced,
    **{f"an evicted worker returns, {mode}": partial(an_evicted_worker_returns, mode) for mode in MODES},
}
BROKEN_BY = [
    ("a settle ends late", "settle: ends after the next change"),
    ("old members disagree", "settle: copies whatever is newest"),
    ("a write meets its configuration being replaced", "replaced configuration still written"),
    *[(f"an evicted worker returns, {mode}", "joiner without discard") for mode in MODES],
    ("an evicted worker returns, async", "tombstones forgotten and not noted"),
]
