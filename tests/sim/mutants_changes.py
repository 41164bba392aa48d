"""What can be broken about changes of configurations: in who joins, in what settles, and in what takes whose place.

Most show when a configuration changes while something else goes on, or twice in a row, and search finds them. Others
take somebody who is away at one particular moment: those are driven by hand, in `scripts/` or in
`tests/master/test_changes_driven.py`.
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
from trikv.coordinator.partition import Slot
from trikv.coordinator.replicas import Standing, Target
from trikv.core.calls import Op
from trikv.core.configuration import Cluster, Member, Partition
from trikv.core.planning import Change
from trikv.healing import settle
from trikv.healing.settle import Settling
from trikv.master.master import Master
from trikv.master.reconcile import Reconciler
from trikv.testing.sim import CHANGING
from trikv_async import Async
from trikv_quorum import Quorum
from trikv_sync import Sync


def settle_without_the_sweep() -> AbstractContextManager[None]:
    """A partition is called settled though nobody went through its keys."""

    async def settle(self: Settling, group: Sequence[Slot]) -> list[Slot]:
        await trio.lowlevel.checkpoint()
        return list(group)

    return replaced(Settling, "_settle", settle)


def list_too_few() -> AbstractContextManager[None]:
    """R members of each configuration list their keys, the active one included; a leftover on the others stays."""

    def choose(slot: Slot, hung: object) -> list[Target] | None:
        chosen: dict[Member, Target] = {}
        for past in slot.history:
            up = [target for target in past.targets if target.standing is Standing.UP]
            if len(up) < past.recovery_need():
                return None
            chosen.update({target.member: target for target in up[: past.recovery_need()]})
        return None if slot.blocked or slot.closed else list(chosen.values())

    return replaced(settle, "choose_all", choose)


@contextmanager
def ask_only_the_last() -> Iterator[None]:
    """What was committed under former configurations is looked for in the active one."""
    find: Any = vars(coordinator)["fetch_history"]
    choose = settle.choose_all

    def without_past(slot: Slot) -> Slot:
        slot = copy(slot)
        slot.history = slot.history[-1:]
        return slot

    async def fetch(slot: Slot, *rest: Any, **options: Any) -> Record | None:
        found: Record | None = await find(without_past(slot), *rest, **options)
        return found

    def choose_last(slot: Slot, hung: Container[Member]) -> list[Target] | None:
        return choose(without_past(slot), hung)

    with replaced(coordinator, "fetch_history", fetch), replaced(settle, "choose_all", choose_last):
        yield


def copy_blindly() -> AbstractContextManager[None]:
    """The newest that was listed goes to whoever lacks it, as it is, whoever was silent and whatever others hold."""

    def find(slot: Slot, held: Mapping[str, Record], asked: Sequence[Target]) -> list[Target] | None:
        version = max(record.version for record in held.values())
        heard = {target.member: target for target in asked}
        members = [member for member in slot.configuration.members if member in heard]
        return [heard[m] for m in members if m.worker not in held or held[m.worker].version < version]

    return replaced(settle, "find_lacking", find)


def settle_whatever_is_there() -> AbstractContextManager[None]:
    """Who has settled a partition says so, though its configuration may have changed meanwhile."""

    async def note_settled(self: Master, slots: Sequence[Slot]) -> list[Slot]:
        def change(cluster: Cluster) -> Cluster:
            partitions = list(cluster.partitions)
            for slot in slots:
                partitions[slot.index] = partitions[slot.index].as_settled()
            return replace(cluster, partitions=tuple(partitions))

        await trio.sleep(1.5)  # it takes its time
        async with self.changing:
            await self.change(change)
        return list(slots)

    def is_current(self: Settling, slot: Slot) -> bool:
        return True

    @contextmanager
    def both() -> Iterator[None]:
        with replaced(Master, "note_settled", note_settled), replaced(Settling, "_is_current", is_current):
            yield

    return both()


def discard_nothing() -> AbstractContextManager[None]:
    """Who is no member keeps what it held when it was one: when it comes back, and when it joins again."""

    async def empty(self: Reconciler, target: Target, slots: Sequence[Slot]) -> set[int]:
        await trio.lowlevel.checkpoint()
        return {slot.index for slot in slots}

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

    async def carry_out(self: Reconciler, due: Sequence[Change]) -> None:
        master = self._master
        slots = master.coordinator.slots
        known = {
            c.partition: {m for past in slots[c.partition].history for m in past.configuration.members} for c in due
        }
        await real(self, due)
        await trio.sleep(late_s)
        for change in due:
            slot = master.coordinator.slots[change.partition]
            for member in change.configuration.members:
                if member not in known[change.partition]:
                    arguments = [slot.index, slot.epoch, member.incarnation]
                    target = master.target(member)
                    target.call(Op.DISCARD, arguments, trio.current_time() + 2, lambda fault, payload: None, 64)

    with discard_nothing(), replaced(Reconciler, "carry_out", carry_out):
        yield


def write_to_what_is_replaced() -> AbstractContextManager[None]:
    """A configuration under which nothing was committed yet is replaced, and writes that had begun still go to it."""
    return replaced(Slot, "_check_open", lambda self: None)


def replace_what_was_used() -> AbstractContextManager[None]:
    """A configuration takes the place of the one before though writes were committed under that."""
    real = Slot.anchor

    def anchor(self: Slot, key: bytes) -> None:
        replaceable = self.replaceable
        real(self, key)
        self.replaceable = replaceable

    return replaced(Slot, "anchor", anchor)


OF_CHANGES = [
    Mutant("settle without the sweep", Sync(), settle_without_the_sweep, seed=3, plan=CHANGING),
    Mutant("settle: R listed", Quorum(), list_too_few),
    Mutant("settle: only the last configuration asked", Quorum(), ask_only_the_last, seed=18, plan=CHANGING),
    Mutant("settle: ends after the next change", Quorum(), settle_whatever_is_there, seed=29, plan=CHANGING),
    Mutant("settle: copies whatever is newest", Quorum(), copy_blindly),
    Mutant("joiner without discard", Sync(), discard_nothing),
    Mutant("tombstones forgotten and not noted", Async(), forget_and_not_say),
    Mutant("discard after persisting", Sync(), discard_late, seed=3, plan=CHANGING),
    Mutant("used configuration replaced", Sync(), replace_what_was_used),
    Mutant("replaced configuration still written", Sync(), write_to_what_is_replaced),
]
