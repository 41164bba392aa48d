"""A whole cluster on simulated machines, and the ways in which it can break.

Nodes are the production code's `Master` and `Worker`, unchanged. They get the world's transport, dice, disks and clock
through the doors that they have anyway. A node lives in its own task, under a cancel scope. When it crashes, it is
first cut off from network and disk, at that instant, and only then cancelled. So what its tasks still do while they
unwind has no effect outside.

A node that fails by itself, other than by a disk that failed under it, is a finding: nothing here gives it a reason.

Where a schedule has several masters, the machine of each runs the production loop (`master/node.py`): its master stands
by, leads and stands by again. They share a document in a store behind the network (`sharedstore.py`). `serving` has all
that believe that they lead, and `is_deposed` tells of which that is not so any more. A process that is stopped (`stop`)
does nothing until it goes on; then what it was about to do comes before what it has not heard yet, or after.

The modes that a schedule names are installed beside the strategy that the cluster is founded with.
"""

from __future__ import annotations

import random
import traceback
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from functools import cache, partial

import cbor2
import trio

from trikv.api import Promise, Record, Strategy
from trikv.core.configuration import Cluster, Configuration, Member
from trikv.core.labels import ZONE
from trikv.core.quorums import Availability
from trikv.core.record import Version, generation_of
from trikv.core.ring import partition_of
from trikv.master.configstore import ConfigStoreError
from trikv.master.leadership import Candidate
from trikv.master.master import Master
from trikv.master.node import take_turns
from trikv.master.passing import Passing
from trikv.master.standby import serve_standby_links
from trikv.net.doors import Doors
from trikv.registry import Registry, load_registry
from trikv.testing.judge.audit import HeldAlone
from trikv.testing.judge.history import Finding
from trikv.testing.sim.clock import SimClock, Stopped
from trikv.testing.sim.disk import ConfigDisk, Disk, SimConfigStore, SimProgress, SimStorage
from trikv.testing.sim.network import Life, Network, SimTransport
from trikv.testing.sim.operators import Operators
from trikv.testing.sim.plan import LEADER, MASTER, RIVALS, STORE, FaultKind, Schedule, ScheduledFault, parse_replica
from trikv.testing.sim.sharedstore import SimSharedConfigStore, StoreMachine
from trikv.testing.sim.trace import Trace
from trikv.worker.worker import Worker

MASTER_ADDRESS = "master:8000"
_CLUSTER = "c-simulated"
_SUPERVISOR_S = 1.0  # after a master has ended itself


class World:
    """One cluster. It is made inside the run, with a nursery for its nodes."""

    def __init__(
        self, strategy: Strategy, schedule: Schedule, clock: SimClock, trace: Trace, nursery: trio.Nursery
    ) -> None:
        self.strategy = strategy
        self.schedule = schedule
        self.clock = clock
        self.trace = trace
        self.network = Network(clock, trace, schedule.seed, schedule.latency_s)
        self.names = schedule.names
        self.workers = list(schedule.worker_ids)  # all that were ever started
        joiners = range(schedule.workers + 1, schedule.workers + schedule.joiners + 1)
        machines = [*self.workers, *(f"w{number}" for number in joiners)]
        self.disks: dict[str, Disk] = {}
        self.serving: dict[str, Master] = {}  # by machine: the living masters that believe that they lead
        self.findings: list[Finding] = []
        self.injected: Counter[FaultKind] = Counter()
        self.struck: list[ScheduledFault] = []  # each with the nodes that it hit
        self.disks_lost = 0
        self.gone: list[HeldAlone] = []  # what was lost with those disks
        self._evicted: list[tuple[int, Record, HeldAlone]] = []  # what evicted workers alone held then
        self._put_back: set[tuple[str, bytes]] = (
            set()
        )  # (worker, incarnation) whose disk was put back from an older copy
        self.beside_master: Callable[[Master, Life], Awaitable[None]] | None = None  # runs as long as it does
        self.on_master_down: Callable[[], None] = lambda: None
        self._nursery = nursery
        self.modes = {name: _installed().strategy(name) for name in schedule.modes} | {strategy.name: strategy}
        self.operators = Operators(self, nursery)
        founded = Cluster(_CLUSTER, strategy.name, schedule.replicas, schedule.partitions)
        self.config = ConfigDisk(founded.to_document(), schedule.fsync_s)
        self.stopped: dict[Life, Stopped] = {}
        self.store = StoreMachine(self.config, schedule.lease_s, clock)  # where several masters share the document
        self.stores: dict[str, SimSharedConfigStore] = {}  # by machine: its master's client
        self._document = (0, founded)  # the document, parsed, and its revision
        self.network.add_host(MASTER, MASTER_ADDRESS)
        for number, name in enumerate(schedule.master_ids[1:], start=2):
            self.network.add_host(name, f"{name}:{8100 + number}")
        if schedule.masters > 1:
            self.network.add_host(STORE, f"{STORE}:2379")
        for name in machines:
            self.add_machine(name)

    def add_machine(self, name: str) -> None:
        """Have a further machine for a worker. It is off, and its disk is empty."""
        self.disks[name] = Disk(self.schedule.fsync_s)
        number = len(self.disks)
        self.network.add_host(name, f"w{number}:{8000 + number}")

    # --- lives --------------------------------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """Switch the machine on, if it is off.

        If its node still runs, or is about to end, another life follows as soon as this one has ended by itself.
        """
        host = self.network.hosts[name]
        if host.life is not None:
            host.life.has_successor = True
            return
        if self._nursery.cancel_scope.cancel_called:  # the run is over
            return
        host.silent = False
        host.lives += 1
        dice = random.Random(f"{self.schedule.seed}/{name}/{host.lives}")
        life = host.life = Life(host, host.lives, dice)
        self.trace.note(self.clock.now_s, "start", name, f"life {host.lives}")
        run = self._run_worker
        if name in self.schedule.master_ids:
            run = self._run_master if self.schedule.masters == 1 else self._run_candidate
        self._nursery.start_soon(self._live, life, run)

    def start_all(self) -> None:
        for name in (*self.schedule.master_ids, *self.workers):
            self.start(name)

    def stop(self, name: str) -> bool:
        """Stop the node's process, as SIGSTOP does; False: it is off, or stopped already."""
        life = self.network.hosts[name].life
        if life is None or life in self.stopped:
            return False
        life.stopped = True
        self.stopped[life] = Stopped(life.scope)
        self.trace.note(self.clock.now_s, "down", name, "stopped")
        self.store.drop_watch(name)  # nobody reads there
        return True

    def go_on(self, life: Life) -> None:
        """Let a process that is stopped go on. It may have died meanwhile."""
        if stopped := self.stopped.pop(life, None):
            life.stopped = False
            life.woken_s = self.clock.now_s
            stopped.resume()
            self.trace.note(self.clock.now_s, "start", life.host.name, "goes on")

    def join(self, name: str) -> None:
        """Start a further worker for the first time."""
        self.workers.append(name)
        self.start(name)

    def crash(
        self, life: Life, *, share_kept: float = 0.5, silent: bool = False, linger_s: float = 0.0, why: str = "crash"
    ) -> None:
        """End the node, at this instant. Unflushed batches survive with probability `share_kept`."""
        if life.dead:
            return
        self.go_on(life)
        host = life.host
        life.dead = True
        host.life = None
        host.silent = silent
        self.trace.note(self.clock.now_s, "down", host.name, why)
        if host.name in self.schedule.master_ids:
            self.serving.pop(host.name, None)
            if self.schedule.masters == 1:
                self.config.crash(life.dice)
            self.on_master_down()
        else:
            self.disks[host.name].crash(life.dice, share_kept)
        self.network.bury(life, linger_s=linger_s, silent=silent)
        life.scope.cancel()

    def node_of(self, node: str) -> str | None:
        """The node that a fault names; None if it names a replica of a key in a place that is empty now, or the leader
        while there is none."""
        if node in (LEADER, RIVALS):
            leader = self.store.leader
            return None if leader is None else self.machine_of(leader)
        replica = parse_replica(node)
        if replica is None:
            return node
        key, place = replica
        partitions = Cluster.from_document(cbor2.loads(self.config.body)).partitions
        if not partitions:
            return None
        members = partitions[partition_of(self.names.encode(key), len(partitions))].active.members
        return members[place - 1].worker if place <= len(members) else None

    def lose_disk(self, name: str) -> None:
        """Give this machine, which is off, a new disk in place of its old one."""
        self._note_gone(name)
        self.disks[name].lose()

    def put_disk_back(self, name: str, share: float) -> None:
        """Make the disk of this machine, which is off, as it was before one of its starts (`Disk.put_back`).

        The worker that starts with it is another member, because it has forgotten what it promised.
        """
        disk = self.disks[name]
        if disk.copies():
            former = disk.meta["incarnation"]
            self._note_gone(name)
            disk.put_back(share)
            self._put_back |= {(name, former), (name, disk.meta["incarnation"])}

    def _note_gone(self, name: str) -> None:
        """Note what is about to be lost with this disk: all that no other disk holds."""
        self.disks_lost += 1
        self.gone += [alone for _, _, alone in self._held_alone(name)]

    def note_evicted(self, name: str) -> None:
        """Note what the others lack while they replace this worker, which keeps its disk."""
        self._evicted += self._held_alone(name)

    def _held_alone(self, name: str) -> list[tuple[int, Record, HeldAlone]]:
        """What no other disk holds: each record with its partition."""
        others = [disk.records for host, disk in self.disks.items() if host != name]
        found = []
        for where, record in self.disks[name].records.items():
            held = max((records[where] for records in others if where in records), default=None, key=_version)
            if held is None or held.version < record.version:
                stamp = None if held is None else held.stamp
                found.append((where[0], record, HeldAlone(self.names.decode(where[1]), stamp, record.stamp)))
        return found

    def what_may_be_gone(self) -> list[HeldAlone]:
        """What an AP mode may have lost: what lost disks alone held, and what evicted workers alone held from before a
        tombstone of the partition was forgotten. That is not taken when they return, as it may have been deleted."""
        partitions = Cluster.from_document(cbor2.loads(self.config.body)).partitions
        return self.gone + [
            alone
            for partition, record, alone in self._evicted
            if generation_of(record.version.epoch) < partitions[partition].forgot
        ]

    def put_document_back(self, starts: int) -> None:
        """Make the document as it was this many starts of a master ago, or fewer, while the master is off.

        Nothing happens if the configurations, the members or the mode were others then: that is beyond the promise.
        """
        config = self.config
        present = Cluster.from_document(cbor2.loads(config.body))
        chosen: bytes | None = None
        for body in reversed(config.past):
            former = Cluster.from_document(cbor2.loads(body))
            if former.term + starts < present.term or _what_stays(former) != _what_stays(present):
                break
            if former.term < present.term:
                chosen = body
        if chosen is not None:
            config.under_way = chosen
            config.flush()

    def can_lose(self, name: str) -> bool:
        """Does the promise cover the loss of this disk now? Then R members of every configuration keep theirs."""
        if any(strategy.promise is Promise.AP for strategy in self.modes.values()):
            return not self.disks_lost
        doubted = (store.doubted for store in self.stores.values())
        may_be = (self.config.body, self.config.under_way, *self.store.sent.values(), *doubted)
        bodies = [body for body in may_be if body is not None]
        histories = [p.history for body in bodies for p in Cluster.from_document(cbor2.loads(body)).partitions]
        return all(
            sum(member.worker != name and self._keeps_disk(member) for member in configuration.members)
            >= configuration.recovery
            for history in histories
            for configuration in history
            if any(member.worker == name and self._keeps_disk(member) for member in configuration.members)
        )

    def _keeps_disk(self, member: Member) -> bool:
        incarnation = member.incarnation.encode()
        kept = self.disks[member.worker].meta.get("incarnation") == incarnation
        return kept and (member.worker, incarnation) not in self._put_back

    async def _live(self, life: Life, run: Callable[[Life], Awaitable[None]]) -> None:
        host = life.host
        try:
            with life.scope:
                await run(life)
        except Exception as error:  # noqa: BLE001 any error ends one node, and is judged here
            if not life.dead and not _has_reason(life, error):
                where = traceback.format_exception(error)[-12:]
                self.findings.append(Finding("node failed", "-", f"{host.name} ended by itself: {''.join(where)}"))
        if not life.dead:
            self.crash(life, why="ended")
            if life.has_successor:
                self.start(host.name)

    async def _run_master(self, life: Life) -> None:
        doors = Doors(SimTransport(self.network, life), life.dice)
        master = await Master.open(
            SimConfigStore(self.config, life, self.clock),
            Registry(self.modes),
            doors,
            down_after_s=self.schedule.down_after_s,
            forget_after_s=self.schedule.forget_after_s,
        )
        listening = await doors.transport.listen(life.host.address)
        async with trio.open_nursery() as nursery:
            await nursery.start(master.run, listening)
            if not life.dead:
                self.serving[MASTER] = master
            if self.beside_master is not None:
                nursery.start_soon(self.beside_master, master, life)

    async def _run_candidate(self, life: Life) -> None:
        """One of several masters: it stands by, and leads, and stands by again."""
        doors = Doors(SimTransport(self.network, life), life.dice)
        name, address = life.host.name, life.host.address
        rate = random.Random(f"{self.schedule.seed}/{name}/clock").uniform(0.96, 1.04)
        store = self.stores[name] = SimSharedConfigStore(self.store, life, self.network, rate)

        async def lead() -> None:
            master = await Master.open(
                store,
                Registry(self.modes),
                doors,
                down_after_s=self.schedule.down_after_s,
                forget_after_s=self.schedule.forget_after_s,
                holds_lease=store.holds,
            )
            listening = await doors.transport.listen(address)
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(master.run, listening)
                    if not life.dead:
                        self.serving[name] = master
            finally:
                if self.serving.get(name) is master:
                    del self.serving[name]

        me = Candidate(doors.new_id(16), address, address)
        while True:
            try:
                await take_turns(
                    store,
                    me,
                    stand_by=partial(self.stand_by, life, store, me),
                    lead=lead,
                    wall_clock=lambda: f"{self.clock.now_s:.3f}",
                )
            except* ConfigStoreError:  # the store could not be reached at the start; a supervisor starts it again
                pass
            await trio.sleep(_SUPERVISOR_S)

    async def stand_by(self, life: Life, store: SimSharedConfigStore, me: Candidate) -> None:
        """Tell workers which master leads. What clients ask of this one is passed on elsewhere (`clients.py`)."""
        doors = Doors(SimTransport(self.network, life), life.dice)
        passing = Passing(store, me, lambda: _CLUSTER, doors)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(passing.run)
            await serve_standby_links(passing, await doors.transport.listen(life.host.address))

    async def _run_worker(self, life: Life) -> None:
        name = life.host.name
        doors = Doors(SimTransport(self.network, life), life.dice)
        storage = await SimStorage.open(self.disks[name], life)
        zone = self.schedule.zone_of(name)
        worker = await Worker.open(
            name,
            storage,
            "simulated",
            doors,
            labels={} if zone is None else {ZONE: zone},
            progress=SimProgress(self.disks[name]),
        )
        masters = [self.network.hosts[each].address for each in self.schedule.master_ids]
        await worker.run(await doors.transport.listen(life.host.address), masters=masters)

    # --- what can be seen from outside --------------------------------------------------------------------------------

    @property
    def master(self) -> Master | None:
        """The living master, once it serves; of several, the one of the highest term."""
        return max(self.serving.values(), key=lambda master: master.cluster.term, default=None)

    def life_of(self, master: Master) -> Life | None:
        """Of the machine where it serves."""
        return next((self.network.hosts[name].life for name, one in self.serving.items() if one is master), None)

    def machine_of(self, master: Candidate) -> str:
        return next(host.name for host in self.network.hosts.values() if host.address == master.address)

    def is_deposed(self, master: Master) -> bool:
        """Has another master taken a later term?"""
        if self._document[0] != self.config.revision:
            self._document = (self.config.revision, Cluster.from_document(cbor2.loads(self.config.body)))
        return master.cluster.term < self._document[1].term

    async def wait_until(self, holds: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until `holds` is true, looking ten times a second."""
        with trio.move_on_after(timeout_s):
            while not holds():  # noqa: ASYNC110 the production code does not notify tests
                await trio.sleep(0.1)
            return True
        return False

    def is_formed(self) -> bool:
        """Has every worker enlisted, and does every partition have its configuration?"""
        master = self.master
        founding = 0 if self.schedule.scaling is None else self.schedule.scaling.founding
        return (
            master is not None
            and master.cluster.formed
            and len(master.cluster.workers) == len(self.workers) + founding
            and self._all_up(master)
        )

    def is_whole(self) -> bool:
        """Is everything mended, and do the replicas hold the same?"""
        return self.is_mended() and not self.differing()

    def is_mended(self) -> bool:
        """Is nothing in doubt, and is every partition settled with its number of replicas?"""
        master = self.master
        if (
            len(self.serving) > 1
            or master is None
            or self.operators.waiting
            or not self._all_up(master)
            or not master.reconciler.at_rest
        ):
            return False
        return not self.wounded()

    def wounded(self) -> list[int]:
        """Partitions that are not whole."""
        master = self.master
        assert master is not None
        return [
            state.index
            for state in master.coordinator.partitions
            if state.pending
            or state.is_blocked
            or not state.partition.settled
            or not self._is_complete(state.configuration)
        ]

    def _is_complete(self, configuration: Configuration) -> bool:
        assert self.master is not None
        cluster, members = self.master.cluster, configuration.members
        return (
            len(members) == cluster.replicas
            and configuration.mode == cluster.mode
            and all(self.master.membership.target(member).availability is Availability.UP for member in members)
        )

    @property
    def converges(self) -> bool:
        """Does the mode in force promise convergence?"""
        mode = self.strategy.name if self.master is None else self.master.cluster.mode
        return self.modes[mode].promise is Promise.AP

    def _all_up(self, master: Master) -> bool:
        return all(
            watched.peer.link is not None
            and watched.peer.link.peer.incarnation == watched.enlisted.incarnation
            and watched.state.value == "up"
            for watched in master.membership.watched.values()
        )

    def replicas(self) -> dict[int, dict[str, dict[bytes, Record]]]:
        """By partition and worker: what the disks of its members hold."""
        assert self.master is not None
        held: dict[tuple[str, int], dict[bytes, Record]] = defaultdict(dict)
        for name in self.disks:
            for (partition, key), record in self.disks[name].records.items():
                held[name, partition][key] = record
        return {
            state.index: {member.worker: held[member.worker, state.index] for member in state.configuration.members}
            for state in self.master.coordinator.partitions
        }

    def differing(self) -> list[int]:
        """Partitions whose replicas do not hold the same, version by version."""
        return [
            index
            for index, states in self.replicas().items()
            if any(state != next(iter(states.values())) for state in states.values())
        ]


def _version(record: Record) -> Version:
    return record.version


def _what_stays(cluster: Cluster) -> object:
    """What a document that is put back must not have forgotten.

    The starts of workers are part of it, since otherwise a directory that is put back as well would be believed.
    """
    members = [enlisted.member for enlisted in cluster.workers.values()]
    return cluster.mode, members, cluster.starts, [(p.generation, p.history) for p in cluster.partitions]


def _has_reason(life: Life, error: Exception) -> bool:
    """Did its disk fail?"""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return life.disk_failed and isinstance(error, OSError)


@cache
def _installed() -> Registry:
    return load_registry()
