"""Carries out the faults of a schedule, each by its kind.

Beginning and end of a fault are events of the clock: between two of them the nodes run undisturbed. Faults may overlap.
Holds of a wire are counted and delays added up; other properties have the value that the latest fault gave them. A
machine that is off cannot be switched off, so such a fault is skipped and not counted. A disk is lost only if the
promise covers the loss at that moment; otherwise its machine merely crashes.

A fault that hits a replica of a key hits the worker that is in that place of the key's list when the fault strikes. The
list is that of the durable document, since there may be no master then.

An operator's request goes, once, to the master that serves at that moment. Without a master, nothing happens.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Final

from trikv.testing.sim.network import Wire
from trikv.testing.sim.plan import LEADER, MASTER, RIVALS, STORE, FaultKind, ScheduledFault
from trikv.testing.sim.world import World

_CRASHES: Final = (
    FaultKind.CRASH,
    FaultKind.POWER_CUT,
    FaultKind.DISK_LOSS,
    FaultKind.EVICTION,
    FaultKind.EVICTION_EMPTY,
    FaultKind.OLD_DISK,
    FaultKind.MASTER_CRASH,
    FaultKind.OLD_DOCUMENT,
)
_LOSE_DISKS: Final = (FaultKind.DISK_LOSS, FaultKind.EVICTION_EMPTY)
_EVICT: Final = (FaultKind.EVICTION, FaultKind.EVICTION_EMPTY)

_SLOW_LINK_S = 0.6
_LOSS = 0.3
_SLOW_DISK_S = 0.8


class Faults:
    """The faults of one run. `heal` ends all that are still in force."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._healers: dict[ScheduledFault, Callable[[], None]] = {}
        self._over = False

    def begin(self) -> None:
        """Enter every fault of the schedule into the clock."""
        clock = self._world.clock
        for fault in self._world.schedule.faults:
            clock.after(fault.at_s, partial(self._strike, fault))

    def heal(self) -> None:
        """End all faults and begin no further one. Machines that are off are switched on."""
        self._over = True
        for fault in list(self._healers):
            self._mend(fault)
        self._world.start_all()

    def _strike(self, scheduled: ScheduledFault) -> None:
        world = self._world
        nodes = [name for node in scheduled.nodes for name in self._nodes_of(node)]
        if self._over or None in nodes:
            return
        fault = replace(scheduled, nodes=tuple(filter(None, nodes)))
        mend = self._carry_out(fault)
        if mend is None:
            return
        world.struck.append(fault)
        world.injected[fault.kind] += 1
        world.trace.note(world.clock.now_s, "fault", fault.nodes[0], str(fault))
        self._healers[fault] = mend
        world.clock.after(fault.lasts_s, partial(self._mend, fault))

    def _nodes_of(self, node: str) -> list[str | None]:
        world = self._world
        leader = world.node_of(LEADER) if node == RIVALS else None
        if leader is None:
            return [world.node_of(node)]
        return [name for name in world.schedule.master_ids if name != leader]

    def _mend(self, fault: ScheduledFault) -> None:
        if mend := self._healers.pop(fault, None):
            self._world.trace.note(self._world.clock.now_s, "heal", fault.nodes[0], str(fault))
            mend()

    def _carry_out(self, fault: ScheduledFault) -> Callable[[], None] | None:
        """Begin the fault. Returns what ends it; None if it is not possible in the world as it is."""
        world, kind, first = self._world, fault.kind, fault.nodes[0]
        if kind in _CRASHES:
            return self._crash(fault)
        if kind is FaultKind.JOIN:
            world.join(first)
            return _stay
        if kind is FaultKind.DRAIN:
            world.operators.ask(lambda master: master.operations.drain(first))
            return partial(world.operators.ask, lambda master: master.operations.undrain(first))
        if kind is FaultKind.MODE_SWITCH:
            world.operators.switch(fault.mode)
            return _stay
        if kind is FaultKind.MASTER_STOP:
            return self._stop(fault)
        if kind is FaultKind.STOP:
            return self._stop_and_go_on(fault)
        if kind is FaultKind.PARTED:
            pairs = [(first, other) for other in fault.nodes[1:] if other != first]
            return _hold([world.network.wire(*ends) for one, other in pairs for ends in ((one, other), (other, one))])
        if kind is FaultKind.STORE_DOWN:
            return self._take_store_down(fault)
        if kind is FaultKind.LATE_STORE:
            return _all_of(_delay(wire, fault.delay_s) for wire in self._wires_across((STORE,)))
        if kind in (FaultKind.PAUSE, FaultKind.PARTITION):
            return _hold(self._wires_across(fault.nodes))
        if kind is FaultKind.ONE_WAY:
            return _hold([world.network.wire(*fault.nodes)])
        if kind is FaultKind.SLOW_LINK:
            return _set(world.network.wire(*fault.nodes), "slow_s", _SLOW_LINK_S)
        if kind is FaultKind.CUT_LINK:
            return _hold([world.network.wire(*fault.nodes), world.network.wire(*reversed(fault.nodes))])
        if kind is FaultKind.LATE_LINK:
            *sources, target = fault.nodes
            return _all_of(_delay(world.network.wire(source, target), fault.delay_s) for source in sources)
        if kind is FaultKind.LOSSY_LINK:
            return _set(world.network.wire(*fault.nodes), "loss", _LOSS)
        if kind is FaultKind.REPLAY:
            dice = random.Random(f"{world.schedule.seed}/replay/{fault.at_s}")
            captured = world.network.capture(first, dice)
            return None if captured is None else partial(world.network.replay, *captured)
        if kind is FaultKind.SLOW_DISK:
            return _set(world.disks[first], "slow_s", _SLOW_DISK_S)
        if kind is FaultKind.HUNG_DISK:
            world.disks[first].hang()
            return world.disks[first].mend
        if kind is FaultKind.DOUBTFUL_DOCUMENT:
            return self._doubt_document()
        assert kind is FaultKind.FULL_DISK, kind
        return self._fill_disk(first)

    def _crash(self, fault: ScheduledFault) -> Callable[[], None] | None:
        world, name = self._world, fault.nodes[0]
        life = world.network.hosts[name].life
        if life is None:
            return None
        power_cut = fault.kind is FaultKind.POWER_CUT
        silent = power_cut or (fault.kind in _EVICT and not fault.linger_s)

        def crash() -> None:
            world.crash(
                life, share_kept=0.2 if power_cut else 0.7, silent=silent, linger_s=fault.linger_s, why=str(fault)
            )
            if fault.kind in _LOSE_DISKS and world.can_lose(name):
                world.lose_disk(name)
            elif fault.kind in _EVICT:
                world.note_evicted(name)
            dice = random.Random(f"{world.schedule.seed}/copy/{fault.at_s}")
            if fault.kind is FaultKind.OLD_DISK and world.can_lose(name):
                world.put_disk_back(name, 1 - dice.random() ** 2)
            if fault.kind is FaultKind.OLD_DOCUMENT:
                world.put_document_back(dice.choice((1, 1, 2)))

        def restart() -> None:
            life.steps_left = 0
            world.start(name)

        if fault.after_steps:
            life.steps_left, life.crash = fault.after_steps, crash
        else:
            crash()
        return restart

    def _stop(self, fault: ScheduledFault) -> Callable[[], None] | None:
        """The node's tasks are cancelled while network and disk still work, so clients hear its last answers."""
        world, name = self._world, fault.nodes[0]
        life = world.network.hosts[name].life
        if life is None:
            return None
        life.has_successor = False  # its successor starts when the fault ends
        life.scope.cancel()
        return partial(world.start, name)

    def _stop_and_go_on(self, fault: ScheduledFault) -> Callable[[], None] | None:
        world, name = self._world, fault.nodes[0]
        if not world.stop(name):
            return None
        life = world.network.hosts[name].life
        assert life is not None
        release = _hold([world.network.wire(STORE, name)]) if fault.linger_s else _stay

        deaf = replace(fault, at_s=fault.at_s + fault.lasts_s)  # it goes on, and hears nothing of the store

        def go_on() -> None:
            world.go_on(life)
            self._healers[deaf] = release
            if self._over:
                self._mend(deaf)
            else:
                world.clock.after(fault.linger_s, partial(self._mend, deaf))

        return go_on

    def _take_store_down(self, fault: ScheduledFault) -> Callable[[], None] | None:
        store = self._world.store
        if store.is_down:
            return None
        store.go_down(refuses=random.Random(f"{self._world.schedule.seed}/store/{fault.at_s}").random() < 0.5)
        return store.come_up

    def _doubt_document(self) -> Callable[[], None]:
        config = self._world.config
        config.doubtful = True

        def trust() -> None:
            config.doubtful = False
            self._world.start(MASTER)  # the master may have ended itself over the doubt

        return trust

    def _fill_disk(self, name: str) -> Callable[[], None]:
        disk = self._world.disks[name]
        disk.full = True

        def make_room() -> None:
            disk.full = False
            self._world.start(name)

        return make_room

    def _wires_across(self, nodes: Iterable[str]) -> list[Wire]:
        """All wires between these nodes and all others."""
        world, inside = self._world, tuple(nodes)
        store = () if world.schedule.masters == 1 else (STORE,)
        outside = [name for name in (*world.schedule.master_ids, *store, *world.workers) if name not in inside]
        return [
            world.network.wire(*ends) for one in inside for other in outside for ends in ((one, other), (other, one))
        ]


def _stay() -> None:
    """The end of a fault that is not undone."""


def _hold(wires: list[Wire]) -> Callable[[], None]:
    for wire in wires:
        wire.hold()

    def release() -> None:
        for wire in wires:
            wire.release()

    return release


def _all_of(ends: Iterable[Callable[[], None]]) -> Callable[[], None]:
    some = list(ends)

    def end() -> None:
        for one in some:
            one()

    return end


def _delay(wire: Wire, delay_s: float) -> Callable[[], None]:
    wire.late_s += delay_s

    def hurry() -> None:
        wire.late_s -= delay_s

    return hurry


def _set(thing: object, attribute: str, value: float) -> Callable[[], None]:
    setattr(thing, attribute, value)
    return lambda: setattr(thing, attribute, 0.0)
