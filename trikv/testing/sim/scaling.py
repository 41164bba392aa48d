"""A cluster that scales by itself, simulated: a load that triples and then ends, with crashes at every step.

    run = simulate(Quorum(), seed=5, plan=SCALING)
    assert run.verdict is Verdict.HELD, run.findings

The master's own fleet and autoscaler run unchanged beside the simulated master. Their provisioner is this world's: it
starts further simulated machines, as child processes would be started. They end a moment after their master does,
however that ends, and keep their disks; a master that follows finds their directories.

`ScalingPlan` draws the schedule of a seed. In every fourth seed nothing fails. In the others nodes crash at the steps
of scaling (`ScalingStep`): the master, the worker that comes or goes, or another one; at once, or some sends later. And
the provisioner fails, hangs, or starts a worker that dies at once.

What is judged, beside what every run is judged by: outside of the times after a crash, every request was committed. And
when the load has ended and all is healed, the cluster has as many workers as at the beginning, and no process and no
directory of any other is left.

Left out: a provisioner whose workers outlive their master, and load by keys.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import cbor2
import trio

from trikv.api import Provisioner, Strategy, WorkerOrder
from trikv.core.breaking import BreakKind
from trikv.core.configuration import Cluster
from trikv.core.errors import Outcome
from trikv.core.scaling import Limits
from trikv.master.fleet import START_S, Fleet
from trikv.master.master import Master
from trikv.testing.judge.history import MET, Finding, Kind, Operation
from trikv.testing.sim.clock import sleep
from trikv.testing.sim.network import Life
from trikv.testing.sim.plan import (
    MASTER,
    Plan,
    Scaling,
    ScalingCrash,
    ScalingStep,
    Schedule,
    ScheduledRequest,
    Trouble,
    Victim,
    draw_between,
)
from trikv.testing.sim.world import MASTER_ADDRESS, World

_START_S: Final = (0.05, 1.5)  # for a process to listen
_END_S: Final = 0.5  # at most, for one to notice that its master has ended
_FAIL_S: Final = 0.5
_ASK_AGAIN_S: Final = 2.0
_RECOVER_S: Final = 12.0  # beyond the time for which a node is off: workers are started, enlist, are evicted, settle
_TIDY_S: Final = 20.0
_BACK_S: Final = 300.0  # for the cluster to have as many workers as at the beginning

_CLIENTS: Final = 8


@dataclass(frozen=True, slots=True)
class ScalingPlan:
    """What such runs are like. `rates`: (seconds, requests a second), one after the other."""

    rates: Sequence[tuple[float, float]] = ((6.0, 4.0), (45.0, 12.0), (65.0, 2.5))
    fewest: int = 3
    most: int = 5
    replicas: int = 3
    keys: int = 24
    crashes: tuple[int, int] = (1, 3)
    down_after_s: float = 2.0

    def draw(self, strategy: Strategy, seed: int) -> Schedule:
        """The schedule of this seed."""
        dice = random.Random(f"scaling/{seed}")
        usual = Plan()
        founding = dice.choice((0, self.fewest))  # are all workers the master's own?
        keys = tuple(f"k{number}" for number in range(self.keys))
        requests = tuple(self._draw_requests(strategy, dice, keys))
        lasts_s = sum(seconds for seconds, _ in self.rates)
        return Schedule(
            seed=seed,
            workers=self.fewest - founding,
            replicas=self.replicas,
            clients=_CLIENTS,
            partitions=16,
            latency_s=draw_between(dice, *usual.latency_s),
            fsync_s=draw_between(dice, *usual.fsync_s),
            keys=keys,
            requests=requests,
            faults=(),
            down_after_s=self.down_after_s,
            lasts_s=lasts_s,
            scaling=Scaling(
                Limits(self.fewest, self.most, max_load=self._max_load(strategy)),
                founding=founding,
                crashes=tuple(self._draw_crashes(dice, seed)) if seed % 4 else (),
                troubles=tuple(self._draw_troubles(dice)) if seed % 4 else (),
            ),
        )

    def _max_load(self, strategy: Strategy) -> float:
        """So much that the highest rate asks for all the workers, and the lowest for the fewest."""
        highest = max(rate for _, rate in self.rates)
        calls = {"quorum": 2.5, "chain": 1.0}.get(strategy.name, 2.0)  # of a put and a get, on average
        return highest * calls / (0.68 * self.most)

    def _draw_requests(
        self, strategy: Strategy, dice: random.Random, keys: Sequence[str]
    ) -> Iterator[ScheduledRequest]:
        mix = {Kind.GET: 48, Kind.PUT: 44, Kind.CAS: 4 * strategy.compare_and_set, Kind.DELETE: 4}
        began_s, number = 0.0, 0
        for seconds, rate in self.rates:
            for position in range(round(seconds * rate)):
                (kind,) = dice.choices(list(mix), list(mix.values()))
                yield ScheduledRequest(began_s + position / rate, number % _CLIENTS, kind, dice.choice(keys))
                number += 1
            began_s += seconds

    def _draw_crashes(self, dice: random.Random, seed: int) -> Iterator[ScalingCrash]:
        steps = list(ScalingStep)
        for number in range(dice.randint(*self.crashes)):
            yield ScalingCrash(
                step=dice.choice(steps) if number else steps[seed % len(steps)],
                turn=dice.choice((1, 1, 2)),
                victim=dice.choice((Victim.MASTER, Victim.MASTER, Victim.IT, Victim.IT, Victim.OTHER)),
                after_steps=dice.choice((0, 0, dice.randint(1, 30))),
                off_s=0.05 + dice.random() ** 2 * 5,
            )

    def _draw_troubles(self, dice: random.Random) -> Iterator[Trouble]:
        for _ in range(4):
            yield dice.choice((Trouble.NONE, Trouble.NONE, Trouble.NONE, Trouble.FAILS, Trouble.HANGS, Trouble.DIES))


SCALING: Final = ScalingPlan()


@dataclass(frozen=True, slots=True)
class Scaled:
    """What happened: how many processes were started and stopped for good, which steps were reached, what crashed."""

    started: int
    stopped: int
    reached: Counter[ScalingStep]
    crashed: Counter[tuple[ScalingStep, Victim]]


class ScalingWorld:
    """The machines of the fleet, what crashes among them, and what is to be said against a run."""

    def __init__(self, world: World) -> None:
        assert world.schedule.scaling is not None
        self.scaling = world.schedule.scaling
        self.machines: dict[int, str] = {}  # by the number of their directory
        self.fleet: Fleet | None = None  # the present master's
        self.reached: Counter[ScalingStep] = Counter()
        self.crashed: Counter[tuple[ScalingStep, Victim]] = Counter()
        self.counts: Counter[str] = Counter()
        self._world = world
        self._dice = random.Random(f"{world.schedule.seed}/scaling")
        self._left = list(self.scaling.crashes)
        self._troubles = iter(self.scaling.troubles)
        self._made = world.schedule.workers  # machines, so far
        self._known = Cluster.from_document(cbor2.loads(world.config.body))
        self._troubled: list[tuple[float, float]] = []
        self._armed = False
        self._directory = TemporaryDirectory(prefix="trikv-scaling-")
        world.beside_master = self._run_beside
        world.on_master_down = self._end_orphans
        world.config.on_change = self._note_document

    # --- beside the master --------------------------------------------------------------------------------------------

    async def _run_beside(self, master: Master, life: Life) -> None:
        """What `daemon.py` runs beside a master that scales by itself."""
        fleet = self.fleet = master.start_workers(
            SimProvisioner(self, life),
            founding=self.scaling.founding,
            address=MASTER_ADDRESS,
            directory=Path(self._directory.name),
            storage="simulated",
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(fleet.run)
            nursery.start_soon(master.scale_by_itself(self.scaling.limits, fleet).run)

    def _end_orphans(self) -> None:
        """The master has ended; its workers notice that one by one."""
        self.fleet = None
        for machine in self.machines.values():
            if (life := self.life_of(machine)) is not None:
                self._world.clock.after(self._dice.random() * _END_S, life.scope.cancel)

    def is_used(self, machine: str) -> bool:
        return self._world.network.hosts[machine].lives > 0

    def life_of(self, machine: str) -> Life | None:
        return self._world.network.hosts[machine].life

    # --- what the provisioner does ------------------------------------------------------------------------------------

    def machine_for(self, order: WorkerOrder) -> str:
        """The machine of this directory; a new directory is of a new machine."""
        if order.number not in self.machines:
            self._made += 1
            self.machines[order.number] = machine = f"w{self._made}"
            self._world.add_machine(machine)
        order.directory.mkdir(parents=True, exist_ok=True)
        return self.machines[order.number]

    def start(self, machine: str) -> None:
        self.counts["started"] += 1
        self._world.start(machine)

    async def end(self, machine: str) -> None:
        """Shut the machine's worker down, and wait for that."""
        life = self.life_of(machine)
        if life is not None:
            life.scope.cancel()
            while self.life_of(machine) is life:
                await sleep(0.01)

    def forget(self, number: int) -> None:
        """Its directory is removed."""
        self.counts["stopped"] += 1
        del self.machines[number]
        (Path(self._directory.name) / str(number)).rmdir()

    def draw_trouble(self) -> Trouble:
        return next(self._troubles, Trouble.NONE) if self._armed else Trouble.NONE

    def draw_s(self, low: float, high: float) -> float:
        return low + self._dice.random() * (high - low)

    # --- crashes ------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """From now on nodes crash as the schedule says."""
        self._armed = True

    def reach(self, step: ScalingStep, machine: str) -> None:
        """That machine is at this step. It or others may crash."""
        if not self._armed:
            return
        self.reached[step] += 1
        self._world.trace.note(self._world.clock.now_s, "step", machine, step.value)
        for crash in list(self._left):
            if crash.step is step and crash.turn == self.reached[step]:
                self._left.remove(crash)
                self._crash(crash, machine)

    def crash(self, name: str, off_s: float, *, after_steps: int = 0) -> bool:
        """Crash the node, now or some steps later. It is started again, if the fleet has it by an operator."""
        world = self._world
        life = world.network.hosts[name].life
        if life is None:
            return False

        def crash() -> None:
            if life.dead:
                return
            self.note_trouble(off_s)
            world.crash(life, share_kept=0.7, why="crash at a step of scaling")
            again = self._switch_on if name == MASTER or name in world.workers else self._ask_to_start
            world.clock.after(off_s, lambda: again(name))

        if after_steps:
            life.steps_left, life.crash = after_steps, crash
        else:
            crash()
        return True

    def _crash(self, crash: ScalingCrash, machine: str) -> None:
        others = [name for name in (*self._world.workers, *self.machines.values()) if name != machine]
        if crash.victim is Victim.OTHER and not others:
            return
        name = {Victim.MASTER: MASTER, Victim.IT: machine}.get(crash.victim) or self._dice.choice(others)
        if self.crash(name, crash.off_s, after_steps=crash.after_steps):
            self.crashed[crash.step, crash.victim] += 1

    def _switch_on(self, name: str) -> None:
        if self._world.network.hosts[name].life is None:
            self._world.start(name)

    def _ask_to_start(self, machine: str) -> None:
        """An operator asks for it until it runs, or is none of the fleet any more."""
        fleet = self.fleet
        if machine not in self.machines.values() or self.life_of(machine) is not None:
            return
        if fleet is not None and machine in fleet.own.values():
            self._world.operators.ask(lambda _: fleet.do(BreakKind.START, machine))
        self._world.clock.after(_ASK_AGAIN_S, lambda: self._ask_to_start(machine))

    def note_trouble(self, lasts_s: float) -> None:
        """For so long, and while what follows is mended, the cluster may have too few workers."""
        now_s = self._world.clock.now_s
        self._troubled.append((now_s, now_s + lasts_s + _RECOVER_S))

    def _note_document(self) -> None:
        """A change of the document was made: which steps of which machines does it show?"""
        before, now = self._known, Cluster.from_document(cbor2.loads(self._world.config.body))
        self._known = now
        for machine in self._made_machines():
            for step in _steps_between(before, now, machine):
                self.reach(step, machine)

    # --- the end ------------------------------------------------------------------------------------------------------

    async def wait_until_back(self) -> None:
        """End all crashes, and wait until the cluster is as large as at the beginning."""
        world = self._world
        self._armed = False
        self._left = []
        for host in world.network.hosts.values():
            if host.life is not None:
                host.life.steps_left = 0
        for name in (MASTER, *world.workers):
            self._switch_on(name)
        for _ in range(round(_BACK_S / _TIDY_S)):
            if await world.wait_until(self._is_back, _TIDY_S):
                return
            self._remove_lost()
        world.findings.append(Finding("does not scale back", "-", f"after {_BACK_S:g} s: {self._describe()}"))

    def _remove_lost(self) -> None:
        """An operator removes workers that enlisted and died before their provisioner could say that they run."""
        master, fleet = self._world.master, self.fleet
        if master is not None and fleet is not None and not fleet.waiting:
            for worker in master.cluster.workers.keys() - set(self._world.workers) - set(fleet.own.values()):
                if self.life_of(worker) is None:
                    self._world.operators.ask(lambda master, worker=worker: master.operations.remove(worker))  # type: ignore[misc]

    def _is_back(self) -> bool:
        master, fleet = self._world.master, self.fleet
        return (
            master is not None
            and fleet is not None
            and not fleet.waiting
            and set(master.cluster.workers) == {*self._world.workers, *fleet.own.values()}
            and len(master.cluster.workers) == self.scaling.limits.fewest
            and set(self._running()) == set(fleet.own.values())
            and self.machines.keys() - fleet.own.keys() <= fleet.failed.keys()  # the next master goes on with these
        )

    def _running(self) -> list[str]:
        """The machines of the fleet on which a worker runs, those among them of which the directory is gone."""
        return [machine for machine in self._made_machines() if self.life_of(machine) is not None]

    def _made_machines(self) -> list[str]:
        """All that there ever were."""
        return [f"w{number}" for number in range(self._world.schedule.workers + 1, self._made + 1)]

    def _describe(self) -> str:
        master, fleet = self._world.master, self.fleet
        if master is None or fleet is None:
            return "there is no master"
        return (
            f"the cluster has {sorted(master.cluster.workers)}, the fleet {fleet.own}, directories {self.machines}, "
            f"processes {self._running()}; {master.status.describe()['autoscale']['why']}"
        )

    def close(self) -> None:
        self._directory.cleanup()

    def tell(self) -> Scaled:
        return Scaled(self.counts["started"], self.counts["stopped"], self.reached, self.crashed)

    def judge(self, operations: Iterable[Operation]) -> list[Finding]:
        """Every request so far that is not committed, and that no crash explains."""
        findings = []
        for op in operations:
            returned_s = op.returned_s
            if op.outcome is Outcome.COMMITTED or op.code in MET or returned_s is None:
                continue
            if not any(began_s <= returned_s and op.invoked_s <= ended_s for began_s, ended_s in self._troubled):
                why = "[1] was not committed, and nothing had crashed"
                findings.append(Finding("refused for scaling", op.key, why, (op,)))
        return findings


def _steps_between(before: Cluster, now: Cluster, machine: str) -> Iterator[ScalingStep]:
    was, entry = before.workers.get(machine), now.workers.get(machine)
    if entry is None:
        if was is not None:
            yield ScalingStep.REMOVED
        return
    held = 0 if was is None else before.partitions_of(was.member)
    holds = now.partitions_of(entry.member)
    if was is None:
        yield ScalingStep.ENLISTED
    if holds and not held:
        yield ScalingStep.GIVEN
    if holds and _unsettled(before) and not _unsettled(now):
        yield ScalingStep.SETTLED
    if entry.draining and not (was is not None and was.draining):
        yield ScalingStep.DRAINING
    if entry.draining and held and not holds:
        yield ScalingStep.EMPTY


def _unsettled(cluster: Cluster) -> int:
    return sum(not partition.settled for partition in cluster.partitions)


class SimProvisioner(Provisioner):
    """The provisioner of one life of the master: after its crash it can do nothing any more."""

    name = "simulated"

    def __init__(self, scaling: ScalingWorld, life: Life) -> None:
        self._scaling = scaling
        self._life = life

    async def start(self, order: WorkerOrder) -> str:
        scaling = self._scaling
        self._check_alive()
        trouble = scaling.draw_trouble()
        machine = scaling.machine_for(order)
        if trouble is not Trouble.NONE and scaling.is_used(machine):
            scaling.note_trouble(START_S if trouble is Trouble.HANGS else _FAIL_S)
        self._reach(ScalingStep.ORDERED, machine)
        if trouble is Trouble.FAILS:
            await sleep(_FAIL_S)
            raise OSError("there is no room")
        if trouble is Trouble.HANGS:
            await trio.sleep_forever()
        if scaling.life_of(machine) is not None:
            raise OSError("it runs already")
        scaling.start(machine)
        began = scaling.life_of(machine)
        try:
            self._reach(ScalingStep.STARTING, machine)
            await sleep(scaling.draw_s(*_START_S))
            self._check_alive()
            self._reach(ScalingStep.STARTED, machine)
        except BaseException:
            if began is not None and not self._life.dead:
                began.scope.cancel()
            raise
        if scaling.life_of(machine) is not began:
            raise OSError("it has ended by itself")
        if trouble is Trouble.DIES:
            scaling.crash(machine, 0.0)
        return machine

    async def stop(self, number: int) -> None:
        scaling = self._scaling
        self._check_alive()
        machine = scaling.machines.get(number)
        if machine is None:
            return
        self._reach(ScalingStep.STOPPING, machine)
        await scaling.end(machine)
        self._check_alive()
        self._reach(ScalingStep.ENDED, machine)
        scaling.forget(number)
        self._reach(ScalingStep.FORGOTTEN, machine)

    async def close(self) -> None:
        if not self._life.dead:
            for machine in list(self._scaling.machines.values()):
                await self._scaling.end(machine)

    def _reach(self, step: ScalingStep, machine: str) -> None:
        self._scaling.reach(step, machine)
        self._check_alive()

    def _check_alive(self) -> None:
        if self._life.dead:
            raise OSError("the master's machine is off")
