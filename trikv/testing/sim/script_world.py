"""The simulated cluster that a script runs on: one method for each line (`script.py`).

It knows the nodes by the names that the script gives them, and by their names in the world. It also knows what is held
back on which wire, and which request each client has under way. A method does what its line says, or refuses if that is
not possible at this point. Its return value is the line's outcome.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import cbor2
import trio

from trikv.api import Promise
from trikv.core.configuration import Cluster, Configuration
from trikv.core.errors import Outcome
from trikv.testing.judge import linear
from trikv.testing.judge.audit import check_convergence, check_final, check_origins, check_stamps, measure_staleness
from trikv.testing.judge.history import Finding, Kind, Operation
from trikv.testing.sim.clients import Clients
from trikv.testing.sim.clock import TICKS_PER_S, sleep
from trikv.testing.sim.network import Pipe, Wire
from trikv.testing.sim.plan import MASTER, STORE
from trikv.testing.sim.world import World

NOTHING: Final = "nothing"
_FROZEN_S: Final = 1e9
_FORMING_TIMEOUT_S: Final = 20.0
_PATIENCE_S: Final = 60.0


class ScriptError(ValueError):
    """The script cannot be run; the message names the line."""


def numbered(letter: str, count: int) -> list[str]:
    """`m1`, `m2` ..."""
    return [f"{letter}{number + 1}" for number in range(count)]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client asks for."""

    kind: Kind
    key: str
    value: str | None = None
    expect: str | None = None


@dataclass(slots=True)
class _Request:
    """What a client has under way."""

    asked: Asked
    ended: trio.Event = field(default_factory=trio.Event)
    operation: Operation | None = None


class ScriptWorld:
    """The cluster of one script. Each public method is a line."""

    def __init__(self, world: World, nursery: trio.Nursery) -> None:
        self.findings: list[Finding] = []
        self._world = world
        self._clients = Clients(world)
        self._nursery = nursery
        self._requests: dict[str, _Request] = {}
        self._host_of = {MASTER: MASTER}  # by the name in the script
        self._incarnations: dict[str, bytes | None] = {}  # of the replicas, in order, at the beginning
        self._held: list[Wire] = []
        self._aside: dict[tuple[str, str], list[tuple[Pipe, list[bytes]]]] = {}

    async def set_up(self) -> None:
        """Let the cluster form, and give each node its name in the script."""
        world = self._world
        world.start_all()
        formed = await world.wait_until(world.is_formed, _FORMING_TIMEOUT_S)
        assert formed, "nothing is broken yet"
        assert world.master is not None
        members = [member.worker for member in world.master.coordinator.partitions[0].configuration.members]
        spares = [worker for worker in world.workers if worker not in members]
        self._host_of |= dict(zip(numbered("m", len(members)), members, strict=True))
        self._incarnations = {name: self._incarnation(name) for name in numbered("m", len(members))}
        self._host_of |= dict(zip(numbered("s", len(spares)), spares, strict=True))
        if len(masters := world.schedule.master_ids) > 1:
            (first,) = world.serving
            machines = [first, *(name for name in masters if name != first)]
            self._host_of |= {STORE: STORE} | dict(zip(masters, machines, strict=True))

    # --- clients ------------------------------------------------------------------------------------------------------

    async def begin(self, *, client: str, asked: Asked, at: str | None = None) -> None:
        if client in self._requests:
            raise ScriptError(f"client {client} has a request under way already")
        if asked.kind is Kind.CAS and self._clients.last_seen(asked.key) != asked.expect:
            seen = self._clients.last_seen(asked.key) or NOTHING
            raise ScriptError(f"clients last saw {seen} under {asked.key}, not {asked.expect or NOTHING}")
        request = self._requests[client] = _Request(asked)

        async def run() -> None:
            request.operation = await self._clients.ask(
                client, asked.kind, asked.key, asked.value, at=at and self._host_of[at]
            )
            request.ended.set()

        self._nursery.start_soon(run)
        await trio.lowlevel.checkpoint()

    async def is_told(self, *, client: str) -> str:
        request = self._requests.pop(client, None)
        if request is None:
            raise ScriptError(f"client {client} has no request under way")
        await request.ended.wait()
        operation = request.operation
        assert operation is not None
        if operation.outcome is Outcome.REFUSED:
            return f"refused ({operation.code})"
        if operation.kind is Kind.GET and operation.outcome is Outcome.COMMITTED:
            return operation.result or NOTHING
        return operation.outcome.value

    async def ask(self, *, client: str, asked: Asked, at: str | None = None) -> str:
        await self.begin(client=client, asked=asked, at=at)
        return await self.is_told(client=client)

    # --- the network --------------------------------------------------------------------------------------------------

    def _wire(self, ends: tuple[str, str]) -> Wire:
        return self._world.network.wire(self._host_of[ends[0]], self._host_of[ends[1]])

    async def hold(self, *, wire: tuple[str, str]) -> None:
        self._held.append(self._wire(wire))
        self._held[-1].hold()

    async def release(self, *, wire: tuple[str, str]) -> None:
        held = self._wire(wire)
        if held not in self._held:
            raise ScriptError(f"{'>'.join(wire)} is not held")
        self._held.remove(held)
        held.release()

    async def cut(self, *, names: Sequence[str]) -> None:
        for other in self._host_of:
            if other not in names:
                for name in names:
                    await self.hold(wire=(name, other))
                    await self.hold(wire=(other, name))

    async def part(self, *, names: Sequence[str]) -> None:
        for other in names[1:]:
            await self.hold(wire=(names[0], other))
            await self.hold(wire=(other, names[0]))

    async def heal(self) -> None:
        held, self._held = self._held, []
        for wire in held:
            wire.release()

    async def set_aside(self, *, wire: tuple[str, str]) -> None:
        held = self._wire(wire)
        frames = self._world.network.set_aside(held.source, held.target)
        if not frames:
            raise ScriptError(f"no {wire[0]} that is dead has anything under way to {wire[1]}")
        self._aside[wire] = frames
        while held in self._held:
            await self.release(wire=wire)

    async def deliver(self, *, wire: tuple[str, str]) -> None:
        if not self._aside.get(wire):
            raise ScriptError(f"nothing from {wire[0]} to {wire[1]} was set aside")
        for pipe, frames in self._aside.pop(wire):
            self._world.network.replay(pipe, frames)

    # --- machines -----------------------------------------------------------------------------------------------------

    async def crash(self, *, names: Sequence[str], silent: bool, loses_disk: bool = False) -> None:
        for name in names:
            host = self._host_of[name]
            life = self._world.network.hosts[host].life
            if life is None:
                raise ScriptError(f"{name} is off already")
            self._world.crash(life, share_kept=0.0, silent=silent)
            if loses_disk:
                self._world.disks[host].lose()
                self._world.disks_lost += 1

    async def start(self, *, names: Sequence[str]) -> None:
        for name in names:
            host = self._host_of[name]
            if self._world.network.hosts[host].life is not None:
                raise ScriptError(f"{name} is on already")
            if name != MASTER:
                self._world.disks[host].slow_s = 0.0
            self._world.start(host)

    async def freeze(self, *, names: Sequence[str]) -> None:
        for name in names:
            self._world.disks[self._host_of[name]].slow_s = _FROZEN_S

    async def stop(self, *, name: str) -> None:
        await self._at_an_event(lambda: self._world.stop(self._host_of[name]))

    async def resume(self, *, name: str) -> None:
        life = self._world.network.hosts[self._host_of[name]].life
        if life is None or not life.stopped:
            raise ScriptError(f"{name} is not stopped")
        await self._at_an_event(lambda: self._world.go_on(life))

    async def resume_all(self) -> None:
        for life in list(self._world.stopped):
            await self._at_an_event(lambda life=life: self._world.go_on(life))  # type: ignore[misc]

    async def _at_an_event(self, act: Callable[[], object]) -> None:
        """Have it done between two steps of all tasks."""

        def event() -> None:
            act()

        self._world.clock.after(0.0, event)
        await sleep(0.0)

    async def reconfigure(self, *, names: Sequence[str]) -> None:
        disk = self._world.config
        if self._world.network.hosts[MASTER].life is not None:
            raise ScriptError("the document can be changed by hand only while the master is off")
        cluster = Cluster.from_document(cbor2.loads(disk.body))
        (partition,) = cluster.partitions
        members = tuple(cluster.workers[self._host_of[name]].member for name in names)
        added = Configuration(members, cluster.mode, self._world.strategy.copies(len(members)))
        changed = replace(partition, generation=partition.generation + 1, history=(*partition.history, added))
        disk.body = cbor2.dumps(replace(cluster, partitions=(changed,)).to_document())
        disk.revision += 1

    async def switch(self, *, mode: str) -> None:
        self._world.operators.switch(mode)

    async def drain(self, *, name: str) -> None:
        worker = self._host_of[name]
        self._world.operators.ask(lambda master: master.operations.drain(worker))

    async def wait(self, *, seconds: float) -> None:
        await trio.sleep(seconds)

    async def wait_for_leader(self, *, name: str) -> None:
        async def leads() -> bool:
            return await self.leader() == name

        await self._wait_for(leads)

    async def wait_for_renewal(self) -> None:
        renewals = self._world.store.renewals

        async def is_renewed() -> bool:
            return self._world.store.renewals > renewals

        await self._wait_for(is_renewed)

    async def wait_for_change(self) -> None:
        revision = self._world.config.revision

        async def is_changed() -> bool:
            return self._world.config.revision > revision

        await self._wait_for(is_changed)

    async def _wait_for(self, holds: Callable[[], Awaitable[bool]]) -> None:
        """Wait until it holds, looking at every tick."""
        with trio.move_on_after(_PATIENCE_S):
            while not await holds():
                await sleep(1 / TICKS_PER_S)
            return
        raise ScriptError(f"that did not happen within {_PATIENCE_S:g} s")

    # --- what can be seen ---------------------------------------------------------------------------------------------

    async def configuration(self) -> str:
        master = self._world.master
        if master is None:
            raise ScriptError("there is no master to tell the configuration")
        name_of = {host: name for name, host in self._host_of.items()}
        history = master.cluster.partitions[0].history
        return ", then ".join(" ".join([c.mode, *(name_of[m.worker] for m in c.members)]) for c in history)

    async def leader(self) -> str:
        leader = self._world.store.leader
        return NOTHING if leader is None else self._name_of(self._world.machine_of(leader))

    async def deposed(self) -> str:
        serving = self._world.serving.items()
        return " ".join(sorted(self._name_of(name) for name, one in serving if self._world.is_deposed(one))) or NOTHING

    def _name_of(self, host: str) -> str:
        return next(name for name, one in self._host_of.items() if one == host)

    async def disks(self, *, key: str) -> str:
        return " ".join(value or NOTHING for value in self._on_disk(key).values())

    async def judge(self) -> str:
        """Judge by the rules by which `simulate` judges a run."""
        operations = self._clients.recorder.operations
        lies = [*self._world.findings, *check_origins(operations)]
        if self._world.strategy.promise is Promise.CP:
            verdict = linear.check(operations)
            lies += [*verdict.findings, *check_stamps(operations)]
            self.findings += lies
            return f"violation ({lies[0].rule})" if lies else verdict.judgement.value
        keys = sorted({operation.key for operation in operations})
        intact = [name for name in self._incarnations if self._incarnation(name) == self._incarnations[name]]
        states = {name: {key: self._on_disk(key)[name] for key in keys} for name in intact}
        lies += check_convergence(states)
        final = states[intact[0]] if intact else {}
        lost = [] if lies else check_final(operations, final)
        self.findings += lies
        said = f"violation ({lies[0].rule})" if lies else "converged"
        stale = measure_staleness(operations).stale
        return f"{said}, acknowledged writes lost: {len(lost)}, stale reads: {stale}"

    def _on_disk(self, key: str) -> dict[str, str | None]:
        """By replica, in order."""
        held = {}
        for name in self._incarnations:
            record = self._world.disks[self._host_of[name]].records.get((0, key.encode()))
            held[name] = None if record is None or record.value is None else record.value.decode()
        return held

    def _incarnation(self, name: str) -> bytes | None:
        return self._world.disks[self._host_of[name]].meta.get("incarnation")
