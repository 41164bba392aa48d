"""What can be broken about changes of configurations: in who joins, in what settles, and in what takes whose place.

Most show when a configuration changes while something else goes on, or twice in a row, and search finds them. Others
take somebody who is away at one particular moment: those are driven by hand, in `scripts/` or in `driven.py`.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from dataclasses import replace
from typing import Any

import trio

from tests.sim.mutant import Mutant, replaced
from trikv.api import Record
from trikv.coordinator import coordinator
from trikv.coordinator.partition import PartitionState
from trikv.coordinator.replicas import Target
from trikv.core.calls import Op
from trikv.core.configuration import Cluster, Member, Partition
from trikv.core.planning import ConfigurationChange
from trikv.core.quorums import Electorate, count_to_find
from trikv.healing import settle
from trikv.healing.settle import Settling
from trikv.master.document import Document
from trikv.master.reconcile import Reconciler
from trikv.testing.sim import CHANGING
from trikv_async import Async
from trikv_quorum import Quorum
from trikv_sync import Sync


def settle_without_the_sweep() -> AbstractContextManager[None]:
    """A partition is called settled though nobody went through its keys."""

    async def settle(self: Settling, group: Sequence[PartitionState]) -> list[PartitionState]:
        await trio.lowlevel.checkpoint()
        return list(group)

    return replaced(Settling, "_settle", settle)


def list_too_few() -> AbstractContextManager[None]:
    """R members of each configuration list their keys, the active one included; a leftover on the others stays."""

    def choose(history: Sequence[Electorate[Target]], hung: object) -> list[Target] | None:
        chosen: dict[Member, Target] = {}
        for electorate in history:
            up, need = electorate.up(), count_to_find(electorate)
            if len(up) < need:
                return None
            chosen.update({target.member: target for target in up[:need]})
        return list(chosen.values())

    return replaced(settle, "choose_to_settle", choose)


@contextmanager
def ask_only_the_last() -> Iterator[None]:
    """What was committed under former configurations is looked for in the active one."""
    find: Any = vars(coordinator)["fetch_history"]
    choose: Any = vars(settle)["choose_to_settle"]

    def without_past(state: PartitionState) -> PartitionState:
        state = copy(state)
        state.history = state.history[-1:]
        return state

    async def fetch(state: PartitionState, *rest: Any, **options: Any) -> Record | None:
        found: Record | None = await find(without_past(state), *rest, **options)
        return found

    def choose_last(history: Sequence[Electorate[Target]], hung: Container[Member]) -> list[Target] | None:
        chosen: list[Target] | None = choose(history[-1:], hung)
        return chosen

    with replaced(coordinator, "fetch_history", fetch), replaced(settle, "choose_to_settle", choose_last):
        yield


def copy_blindly() -> AbstractContextManager[None]:
    """The newest that was listed goes to whoever lacks it, as it is, whoever was silent and whatever others hold."""

    def find(state: PartitionState, held: Mapping[str, Record], asked: Sequence[Target]) -> list[Target] | None:
        version = max(record.version for record in held.values())
        heard = {target.member: target for target in asked}
        members = [member for member in state.configuration.members if member in heard]
        return [heard[m] for m in members if m.worker not in held or held[m.worker].version < version]

    return replaced(settle, "find_lacking", find)


def settle_whatever_is_there() -> AbstractContextManager[None]:
    """Who has settled a partition says so, though its configuration may have changed meanwhile."""

    async def note_settled(self: Document, states: Sequence[PartitionState]) -> None:
        def change(cluster: Cluster) -> Cluster:
            return cluster.with_partitions(
                {state.index: cluster.partitions[state.index].as_settled() for state in states}
            )

        await trio.sleep(1.5)  # it takes its time
        async with self.changing:
            await self.change(change)

    def is_current(self: Settling, state: PartitionState) -> bool:
        return True

    @contextmanager
    def both() -> Iterator[None]:
        with replaced(Document, "note_settled", note_settled), replaced(Settling, "_is_current", is_current):
            yield

    return both()


def discard_nothing() -> AbstractContextManager[None]:
    """Who is no member keeps what it held when it was one: when it comes back, and when it joins again."""

    async def empty(self: Reconciler, target: Target, states: Sequence[PartitionState]) -> set[int]:
        await trio.lowlevel.checkpoint()
        return {state.index for state in states}

    return replaced(Reconciler, "_empty", empty)


def forget_and_not_say() -> AbstractContextManager[None]:
    """The document does not say since when tombstones have been forgotten."""

    def renewed(self: Partition) -> Partition:
        return replace(self, generation=self.generation + 1)

    return replaced(Partition, "renewed", renewed)


@contextmanager
def discard_late() -> Iterator[None]:
    """Joiners are told to discard what they hold once the change is durable, and under its epoch."""
    real = Reconciler.carry_out
    late_s = 0.1

    async def carry_out(self: Reconciler, due: Sequence[ConfigurationChange]) -> None:
        states = self._coordinator.partitions
        known = {
            c.partition: {m for past in states[c.partition].history for m in past.configuration.members} for c in due
        }
        await real(self, due)
        await trio.sleep(late_s)
        for change in due:
            state = self._coordinator.partitions[change.partition]
            for member in change.configuration.members:
                if member not in known[change.partition]:
                    arguments = [state.index, state.epoch, member.incarnation]
                    target = self._membership.target(member)
                    target.call(Op.DISCARD, arguments, trio.current_time() + 2, lambda fault, payload: None, 64)

    with discard_nothing(), replaced(Reconciler, "carry_out", carry_out):
        yield


def write_to_what_is_replaced() -> AbstractContextManager[None]:
    """A configuration under which nothing was committed yet is replaced, and writes that had begun still go to it."""
    return replaced(PartitionState, "_check_open", lambda self: None)


def replace_what_was_used() -> AbstractContextManager[None]:
    """A configuration takes the place of the one before though writes were committed under that."""
    real = PartitionState.anchor

    def anchor(self: PartitionState, key: bytes) -> None:
        stage = self.stage
        real(self, key)
        self.stage = stage

    return replaced(PartitionState, "anchor", anchor)


OF_CHANGES = [
    Mutant("settle without the sweep", Sync(), settle_without_the_sweep, seed=3, plan=CHANGING),
    Mutant("settle: R listed", Quorum(), list_too_few),
    Mutant("settle: only the last configuration asked", Quorum(), ask_only_the_last, seed=14, plan=CHANGING),
    Mutant("settle: ends after the next change", Quorum(), settle_whatever_is_there, seed=96, plan=CHANGING),
    Mutant("settle: copies whatever is newest", Quorum(), copy_blindly),
    Mutant("joiner without discard", Sync(), discard_nothing),
    Mutant("tombstones forgotten and not noted", Async(), forget_and_not_say),
    Mutant("discard after persisting", Sync(), discard_late, seed=3, plan=CHANGING),
    Mutant("used configuration replaced", Sync(), replace_what_was_used),
    Mutant("replaced configuration still written", Sync(), write_to_what_is_replaced),
]
