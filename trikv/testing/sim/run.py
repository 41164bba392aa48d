"""One simulated run of a seed, from forming to the last read, and its verdict.

    forming    machines are switched on, workers enlist, every partition gets its configuration
    trouble    the schedule's requests and faults, about a minute of virtual time
    mending    faults are over, every node is up; the cluster must become whole by itself, in bounded time
    last reads every client, of eight at most, reads every key, and one writes it once more

Modes that promise consistency must be linearizable, the last reads included, through all switches between them. Modes
that promise convergence must converge: in the end all replicas hold the same on their disks. And no acknowledged write
is missing, except those that one disk alone held when it was lost or put back from a copy, and those that a master
acknowledged when it was deposed. If they say that they can compare and set, no compare-and-set replaced an old value.

For all modes: no refused write is ever seen, every value that is seen was written, no answer comes after its deadline,
and no node fails without a reason. When nothing is broken any more, everything is available, every partition is
settled, and as many replicas are up as there should be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from enum import StrEnum

import trio

from trikv.api import Promise, Record, Strategy
from trikv.core.errors import Outcome
from trikv.healing.antientropy import PERIOD_S
from trikv.testing.judge.audit import (
    Staleness,
    check_compares,
    check_convergence,
    check_final,
    check_origins,
    measure_staleness,
)
from trikv.testing.judge.history import Finding, Kind, Operation
from trikv.testing.judge.strong_periods import check_strong_periods
from trikv.testing.sim.clients import Clients
from trikv.testing.sim.clock import SimClock, run_repeatably, sleep
from trikv.testing.sim.faults import Faults
from trikv.testing.sim.names import Names
from trikv.testing.sim.plan import USUAL, FaultKind, Schedule, ScheduledFault, SourceOfSchedules
from trikv.testing.sim.scaling import Scaled, ScalingWorld
from trikv.testing.sim.trace import Trace, TraceEvent
from trikv.testing.sim.world import World

_FORMING_TIMEOUT_S = 20.0
_MENDING_TIMEOUT_S = 30.0
_TRIES = 3
_READERS_MAX = 8
_TRY_AGAIN_S = 0.5
_HORIZON_S = 600.0  # no run takes that long: one that gets there hangs


class DidNotEndError(Exception):
    """A run that hangs: it did not end within a time that no run takes."""


class Verdict(StrEnum):
    HELD = "held"  # the mode did what it promises
    VIOLATION = "violation"
    UNDECIDED = "not decided"  # the checker ran out of steps; this is not a pass


@dataclass(slots=True)
class Run:
    """What came of one run. `struck`: its faults, with the nodes that they hit. `trace` is empty unless it was asked
    for."""

    mode: str
    schedule: Schedule
    history: list[Operation]
    digest: str
    faults: Counter[FaultKind]
    outcomes: Counter[Outcome]
    virtual_s: float
    findings: list[Finding]
    undecided: list[str] = field(default_factory=list)  # keys
    staleness: Staleness | None = None  # of modes that allow stale reads
    struck: list[ScheduledFault] = field(default_factory=list)
    trace: list[TraceEvent] = field(default_factory=list)
    scaling: Scaled | None = None  # of a cluster that scales by itself
    takeovers: int = 0  # of several masters: how often one began to lead
    deposed: Counter[Outcome] = field(default_factory=Counter)  # of operations that a deposed master was asked for

    @property
    def verdict(self) -> Verdict:
        if self.findings:
            return Verdict.VIOLATION
        return Verdict.UNDECIDED if self.undecided else Verdict.HELD


def simulate(strategy: Strategy, seed: int, plan: SourceOfSchedules | None = None, *, trace: bool = False) -> Run:
    """Run one seed of a plan (`USUAL`) and judge it."""
    return run_schedule(strategy, (plan or USUAL).draw(strategy, seed), trace=trace)


def run_schedule(strategy: Strategy, schedule: Schedule, *, trace: bool = False) -> Run:
    """Run this schedule and judge it. `trace`: keep the events, so that they can be drawn."""
    clock = SimClock()
    recorded = Trace(wanted=trace, names=schedule.names)

    async def main() -> Run:
        with trio.move_on_after(_HORIZON_S + schedule.lasts_s):
            async with trio.open_nursery() as nursery:
                world = World(strategy, schedule, clock, recorded, nursery)
                clients = Clients(world)
                with nullcontext() if schedule.scaling is None else closing(ScalingWorld(world)) as scaling:
                    await _play(world, clients, nursery, scaling)
                    run = _judge(world, clients.recorder.operations)
                    run.takeovers = world.store.takeovers
                    run.deposed.update(operation.outcome for operation in clients.deposed)
                    if scaling is not None:
                        run.scaling = scaling.tell()
                    nursery.cancel_scope.cancel()
            return run
        raise DidNotEndError(
            f"seed {schedule.seed} did not end within {_HORIZON_S + schedule.lasts_s:g} s of virtual time"
        )

    return run_repeatably(main, clock, schedule.seed)


async def _play(world: World, clients: Clients, nursery: trio.Nursery, scaling: ScalingWorld | None) -> None:
    """Play the schedule, from forming to the last writes."""
    faults = Faults(world)
    world.start_all()
    if not await world.wait_until(world.is_formed, _FORMING_TIMEOUT_S):
        world.findings.append(Finding("does not form", "-", f"the cluster has not formed in {_FORMING_TIMEOUT_S:g} s"))
        return
    began_s = trio.current_time()
    faults.begin()
    if scaling is not None:
        scaling.begin()
    if world.schedule.modes:
        nursery.start_soon(world.operators.watch)
    await clients.run()
    if (left_s := began_s + world.schedule.lasts_s - trio.current_time()) > 0:
        await sleep(left_s)
    faults.heal()
    if scaling is not None:
        world.findings += scaling.judge(clients.recorder.operations)
        await scaling.wait_until_back()
    whole = await world.wait_until(world.is_whole, _MENDING_TIMEOUT_S)
    if not whole and world.is_mended():  # a strategy may leave it to anti-entropy that replicas hold the same
        whole = await world.wait_until(world.is_whole, PERIOD_S)
    if not whole:
        why = f"{_MENDING_TIMEOUT_S:g} s after the last fault the cluster is not whole"
        world.findings.append(Finding("does not mend", "-", f"{why}: {_describe_wounds(world)}"))
    final = await _read_all(world, clients)
    # Meanwhile a worker may have become steady, and been given its share; it is empty until it has it.
    await world.wait_until(world.is_whole, _MENDING_TIMEOUT_S)
    if world.converges and world.master is not None:
        for replicas in world.replicas().values():
            values = {
                name: {world.names.decode(key): _text(world.names, record) for key, record in held.items()}
                for name, held in replicas.items()
            }
            world.findings += check_convergence(values)
    promises = {strategy.promise for strategy in world.modes.values()}
    if len(promises) == 1:
        gone = world.what_may_be_gone() if promises == {Promise.AP} else []
        operations = clients.recorder.operations
        if promises == {Promise.AP}:
            operations = _without_promise(operations, clients.by_deposed)
        world.findings += check_final(operations, final, gone)
        if promises == {Promise.AP} and not gone:  # what was lost with a disk may be replaced once more
            world.findings += check_compares(operations)
    for key in world.schedule.keys:
        await _ask_until_committed(world, clients, "c1", Kind.PUT, key)


def _without_promise(operations: Sequence[Operation], some: Sequence[Operation]) -> list[Operation]:
    """The operations, of which some may or may not be kept, whatever their clients were told.

    Under AP modes a deposed master that does not know it goes on acknowledging writes. The successor's versions are
    newer than all of its own, so a write of it is lost where the successor had written the key before.
    """
    numbers = {id(operation) for operation in some}
    return [
        replace(one, outcome=Outcome.UNKNOWN, ended=None)
        if id(one) in numbers and one.writes and one.outcome is Outcome.COMMITTED
        else one
        for one in operations
    ]


def _text(names: Names, record: Record) -> str | None:
    return None if record.value is None else names.decode(record.value)


async def _read_all(world: World, clients: Clients) -> dict[str, str | None]:
    final: dict[str, str | None] = {}

    async def read(client: str) -> None:
        for key in world.schedule.keys:
            operation = await _ask_until_committed(world, clients, client, Kind.GET, key)
            if operation.outcome is Outcome.COMMITTED:
                final[key] = operation.result

    async with trio.open_nursery() as nursery:
        for number in range(min(world.schedule.clients, _READERS_MAX)):
            nursery.start_soon(read, f"c{number + 1}")
    return final


async def _ask_until_committed(world: World, clients: Clients, client: str, kind: Kind, key: str) -> Operation:
    """Ask, up to `_TRIES` times: a link to a machine that went down breaks only when it is next used."""
    operation = await clients.ask(client, kind, key)
    for _ in range(_TRIES - 1):
        if operation.outcome is Outcome.COMMITTED:
            return operation
        await trio.sleep(_TRY_AGAIN_S)
        operation = await clients.ask(client, kind, key)
    if operation.outcome is not Outcome.COMMITTED:
        why = f"[1] was the last of {_TRIES} attempts, though nothing is broken any more"
        world.findings.append(Finding("not available", key, why, (operation,)))
    return operation


def _describe_wounds(world: World) -> str:
    master = world.master
    if master is None:
        return "there is no master"
    nodes = ", ".join(f"{name} is {watched.state.value}" for name, watched in sorted(master.membership.watched.items()))
    states = [state for state in master.coordinator.partitions if state.index in world.wounded()]
    wounds = [f"partition {s.index}: {len(s.pending)} in doubt, {s.blocked_because} {s.partition}" for s in states]
    replicas = world.replicas()
    wounds += [
        f"partition {index} differs: {_describe_difference(world, replicas[index])}" for index in world.differing()
    ]
    return "; ".join([nodes, *wounds])


def _describe_difference(world: World, replicas: Mapping[str, Mapping[bytes, Record]]) -> str:
    """The first key of which replicas hold different versions, and what each holds."""
    keys = sorted({key for held in replicas.values() for key in held})
    for key in keys:
        records = {name: held.get(key) for name, held in replicas.items()}
        if len({record and record.version for record in records.values()}) > 1:
            told = (
                f"{name} has {'nothing' if record is None else _text(world.names, record) or 'a delete'}"
                f"{'' if record is None else f' ({record.version})'}"
                for name, record in sorted(records.items())
            )
            return f"of {world.names.decode(key)} {', '.join(told)}"
    return "in keys that the cluster keeps for itself"


def _judge(world: World, history: list[Operation]) -> Run:
    run = Run(
        mode=world.strategy.name,
        schedule=world.schedule,
        history=history,
        digest=world.trace.digest,
        faults=world.injected,
        outcomes=Counter(operation.outcome for operation in history),
        virtual_s=world.clock.now_s,
        findings=[*world.findings, *check_origins(history)],
        struck=world.struck,
        trace=world.trace.events,
    )
    findings, run.undecided = check_strong_periods(history, world.operators.strong_periods)
    run.findings += findings
    if world.strategy.promise is Promise.AP and not world.schedule.modes:
        run.staleness = measure_staleness(history)
    return run
