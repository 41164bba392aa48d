"""What happens in a run, as data: every client's requests, every fault, and the world's measures.

A `Plan` says what runs are like; `draw` makes the `Schedule` of one seed from it. The world only carries a schedule
out. So a failing run is a value: a shrinker removes faults and requests one by one, and runs what is left.

Quiet runs prove nothing. So requests and faults gather in a few *storms* of some seconds, in which clients ask without
a pause. One or two keys get most of the requests, and their replicas most of the faults. Seeds differ in kind: each
kind of fault has its own weight in each seed, and in about half of the seeds that weight is 0.

Changes of the cluster (`FaultKind`, the last five) are drawn beside the other faults, as many as the plan says. They
strike in storms too, often two in a row, and often the master dies some steps into one.

With several masters, further faults befall the leader or the store. The kind that matters most has two parts: the
leader loses the store or is stopped, and its rivals do not reach one of the hot key's replicas, or reach one late. So
the successor makes another configuration, and the former leader still has those replicas to itself.

Faults end before the last phase, in which everything is healed and read. Disks are lost, or put back from an older
copy, only as far as the mode's promise covers it: W - 1 of them, since then R = n - W + 1 members of every
configuration are left (one under async, which promises less). The world also prevents a loss that would leave fewer at
that moment. A document that is put back has the same configurations as the one that it replaces; it has forgotten only
the last terms. A document with other configurations is beyond the promise.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, Protocol

from trikv.api import Promise, Strategy
from trikv.config import LEASE_S
from trikv.core.placement import place
from trikv.core.ring import partition_of
from trikv.core.scaling import Limits
from trikv.core.suspicion import DOWN_AFTER_S
from trikv.healing.tombstones import MIN_AGE_S
from trikv.testing.judge.history import Kind
from trikv.testing.sim.names import Names

MASTER: Final = "master"  # where several masters share the document, the first of them
LEADER: Final = "leader"  # in a fault: the master that leads when it strikes
RIVALS: Final = "rivals"  # in a fault: all masters but that one
STORE: Final = "store"  # the machine of the store that several masters share
_REPLICA: Final = re.compile(r"replica (\d+) of (.*)", re.DOTALL)


class FaultKind(StrEnum):
    CRASH = "crash"  # a worker's process dies, and starts again with its disk
    POWER_CUT = "power cut"  # the same, but no peer notices at once, and what was not flushed is likely lost
    DISK_LOSS = "disk loss"  # the same, and the disk is empty at the next start: another incarnation
    PAUSE = "pause"  # a node neither receives nor sends anything for a while
    PARTITION = "partition"  # nothing passes between some nodes and all others
    ONE_WAY = "one-way partition"  # nothing passes from one node to another
    SLOW_LINK = "slow link"
    LOSSY_LINK = "lossy link"  # packets are lost: long delays, and now and then a reset
    REPLAY = "replay"  # frames that a worker once got from a node that may be dead arrive again
    SLOW_DISK = "slow disk"
    FULL_DISK = "full disk"  # commits fail, and the worker stops
    CUT_LINK = "cut link"  # nothing passes between two nodes, in either direction
    LATE_LINK = "late link"  # all from one node to another is late by the same time
    HUNG_DISK = "hung disk"  # the disk does not answer, while the process lives
    OLD_DISK = "disk put back"  # a worker dies, and its disk is put back from an older copy
    MASTER_CRASH = "master crash"
    MASTER_STOP = "master stop"  # the master is shut down as an operator would do it
    DOUBTFUL_DOCUMENT = (
        "document in doubt"  # a change of it is reported as failed, and is made, or not made, or made later
    )
    OLD_DOCUMENT = "document put back"  # the master dies, and its document is put back: a term is used twice
    JOIN = "join"  # a further worker is started, and stays
    DRAIN = "drain"  # an operator drains a worker, and undoes that when the fault ends
    MODE_SWITCH = "mode switch"  # an operator asks for another mode
    EVICTION = "eviction"  # a worker is off for so long that the others replace it, and comes back with its disk
    EVICTION_EMPTY = "eviction with disk loss"  # the same, and comes back with an empty disk
    # Where several masters share the document:
    STOP = "stop and go on"  # a master's process is stopped, and goes on later; it hears of the store later still
    PARTED = "parted"  # nothing passes between the first node and each of the others
    STORE_DOWN = "store down"
    LATE_STORE = "late store"  # requests to the store and its answers are late by `delay_s`


_MIX: Final[Mapping[Kind, float]] = {Kind.GET: 44, Kind.PUT: 34, Kind.CAS: 12, Kind.DELETE: 7, Kind.SCAN: 3}
_WEIGHTS: Final[Mapping[FaultKind, float]] = {
    FaultKind.CRASH: 2.0,
    FaultKind.POWER_CUT: 1.5,
    FaultKind.DISK_LOSS: 1.0,
    FaultKind.PAUSE: 1.0,
    FaultKind.PARTITION: 1.0,
    FaultKind.ONE_WAY: 1.5,
    FaultKind.SLOW_LINK: 2.0,
    FaultKind.LOSSY_LINK: 2.0,
    FaultKind.REPLAY: 2.0,
    FaultKind.SLOW_DISK: 2.0,
    FaultKind.FULL_DISK: 0.5,
    FaultKind.HUNG_DISK: 1.0,
    FaultKind.OLD_DISK: 1.0,
    FaultKind.MASTER_CRASH: 2.0,
    FaultKind.MASTER_STOP: 0.5,
    FaultKind.DOUBTFUL_DOCUMENT: 1.0,
    FaultKind.OLD_DOCUMENT: 0.5,
}
_CHANGES: Final[Mapping[FaultKind, float]] = {
    FaultKind.JOIN: 1.0,
    FaultKind.DRAIN: 1.0,
    FaultKind.MODE_SWITCH: 2.0,
    FaultKind.EVICTION: 2.0,
    FaultKind.EVICTION_EMPTY: 1.0,
}
_TAKEOVERS: Final[Mapping[FaultKind, float]] = {
    FaultKind.MASTER_CRASH: 1.0,
    FaultKind.MASTER_STOP: 1.0,
    FaultKind.STOP: 3.0,
    FaultKind.PARTED: 4.0,
    FaultKind.STORE_DOWN: 1.0,
    FaultKind.LATE_STORE: 1.0,
}
_ON_LINKS: Final = (FaultKind.ONE_WAY, FaultKind.SLOW_LINK, FaultKind.LOSSY_LINK)
_ON_MASTER: Final = (FaultKind.MASTER_CRASH, FaultKind.MASTER_STOP, FaultKind.OLD_DOCUMENT)
_LOSE_DISKS: Final = (FaultKind.DISK_LOSS, FaultKind.OLD_DISK)


class Expected(StrEnum):
    """What a compare-and-set expects of its key."""

    LAST_SEEN = "last seen"  # what clients last read or wrote
    ABSENCE = "absence"
    ANOTHER = "another version"  # one that the key never has, so nothing is written


@dataclass(frozen=True, slots=True)
class ScheduledFault:
    """`nodes` are those that it hits; for a fault on a link, its source and target. A node may also be a replica of a
    key (`replica_of`), whichever that is when the fault strikes. A node stays down for `lasts_s`.

    `after_steps`: the node dies only after this many further sends and begun writes, counted from `at_s`. `linger_s`:
    how long its sent bytes are held up on their way. `mode`: the mode that a switch asks for. `delay_s`: by how much a
    late link's messages are late. Of a node that is stopped, `linger_s` says how long after it goes on it still hears
    nothing of the store.
    """

    at_s: float
    kind: FaultKind
    nodes: tuple[str, ...]
    lasts_s: float
    after_steps: int = 0
    linger_s: float = 0.0
    mode: str = ""
    delay_s: float = 0.0

    def __str__(self) -> str:
        if self.mode:
            return f"{self.kind.value} to {self.mode}"
        return f"{self.kind.value} {'>'.join(self.nodes)} for {self.lasts_s:.3f} s"


@dataclass(frozen=True, slots=True)
class ScheduledRequest:
    """One client's request, at `at_s` or when its last request has ended. For a scan, `key` is the prefix.

    `value`: what it writes; None: a fresh value, of `size_bytes` if that is said. `expected`: of a compare-and-set.
    `batch`: if it is not 0, the client sends it together with its other requests of that number.
    """

    at_s: float
    client: int
    kind: Kind
    key: str
    value: str | None = None
    expected: Expected = Expected.LAST_SEEN
    size_bytes: int | None = None
    batch: int = 0


class ScalingStep(StrEnum):
    """How a worker of the fleet comes and goes, step by step."""

    ORDERED = "ordered"  # it is decided, and nothing is done yet
    STARTING = "starting"  # its process runs, and the master does not know yet
    STARTED = "started"
    ENLISTED = "enlisted"  # the document has it
    GIVEN = "given its share"  # the first partitions have it, and are not settled
    SETTLED = "settled"
    DRAINING = "draining"
    EMPTY = "empty"  # no partition has it any more
    STOPPING = "stopping"  # the master is about to stop it
    ENDED = "ended"  # its process is gone, its directory is not
    FORGOTTEN = "forgotten"  # its directory is gone, the document has it
    REMOVED = "removed"  # from the document


class Victim(StrEnum):
    MASTER = MASTER
    IT = "it"  # the worker that is at the step
    OTHER = "another worker"


class Trouble(StrEnum):
    """What becomes of an order to the provisioner."""

    NONE = "none"
    FAILS = "fails"
    HANGS = "hangs"
    DIES = "dies"  # the worker, as soon as it is started


@dataclass(frozen=True, slots=True)
class ScalingCrash:
    """A crash when a step is reached for the `turn`-th time, or so many sends and begun writes later."""

    step: ScalingStep
    turn: int
    victim: Victim
    after_steps: int
    off_s: float


@dataclass(frozen=True, slots=True)
class Scaling:
    """How a cluster that scales by itself does so (`scaling.py`).

    `founding`: workers that the master starts in the beginning, besides those that others start. `troubles`: of the
    orders to the provisioner, in turn.
    """

    limits: Limits
    founding: int
    crashes: tuple[ScalingCrash, ...] = ()
    troubles: tuple[Trouble, ...] = ()


@dataclass(frozen=True, slots=True)
class Schedule:
    """One run, before it happens. Times count from the moment when the cluster has formed.

    `joiners`: further workers, which are off until a fault starts them. `modes`: those that a switch may lead to.
    `ids`: of the workers, if they are not w1, w2 and so on. `lasts_s`: for how long faults may strike, at least; they
    may while requests are made. `think_s`: the most by which a client delays a request. `scaling`: if the cluster
    scales by itself. `zones`: over how many zones the workers are spread; 0: they have none. `masters`: how many share
    the document; `lease_s`: the leader's lease, if there are several.
    """

    seed: int
    workers: int
    replicas: int
    clients: int
    partitions: int
    latency_s: float
    fsync_s: float
    keys: tuple[str, ...]
    requests: tuple[ScheduledRequest, ...]
    faults: tuple[ScheduledFault, ...]
    down_after_s: float = DOWN_AFTER_S
    forget_after_s: float = MIN_AGE_S
    joiners: int = 0
    modes: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    names: Names = field(default_factory=Names)
    lasts_s: float = 0.0
    think_s: float = 0.02
    scaling: Scaling | None = None
    zones: int = 0
    masters: int = 1
    lease_s: float = LEASE_S

    def zone_of(self, worker: str) -> str | None:
        """Where the worker w1, w2 and so on is, if there are zones."""
        return f"z{int(worker[1:]) % self.zones}" if self.zones else None

    @property
    def worker_ids(self) -> tuple[str, ...]:
        """Of the workers that are there from the beginning."""
        return self.ids or tuple(f"w{number}" for number in range(1, self.workers + 1))

    @property
    def master_ids(self) -> tuple[str, ...]:
        return (MASTER, *(f"{MASTER}{number}" for number in range(2, self.masters + 1)))


class SourceOfSchedules(Protocol):
    """What has a schedule for each seed: a plan, or a schedule that was saved (`schedulefile.py`)."""

    def draw(self, strategy: Strategy, seed: int) -> Schedule: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What runs are like. A latency or fsync is drawn between its two bounds, evenly on a logarithmic scale.

    `changes`: how many changes of the cluster there are, without those that directly follow one. `modes`: the installed
    modes that an operator may switch to. `zones`, `masters`, `lease_s`: see `Schedule`. `takeovers`: how often, with
    several masters, something befalls the leader or the store.
    """

    lasts_s: float = 60.0  # until the last faults are over; forming and the last phase come on top
    workers: int = 5
    replicas: int = 3
    clients: int = 4
    partitions: int = 8
    requests: int = 280
    faults: int = 20
    storms: tuple[int, int] = (4, 8)
    storm_s: float = 2.5
    cold_keys: int = 4
    latency_s: tuple[float, float] = (0.0005, 0.03)
    fsync_s: tuple[float, float] = (0.0003, 0.01)
    mix: Mapping[Kind, float] = field(default_factory=lambda: dict(_MIX))
    weights: Mapping[FaultKind, float] = field(default_factory=lambda: dict(_WEIGHTS))
    changes: tuple[int, int] = (0, 0)
    change_weights: Mapping[FaultKind, float] = field(default_factory=lambda: dict(_CHANGES))
    joiners: int = 0
    down_after_s: float = DOWN_AFTER_S
    forget_after_s: float = MIN_AGE_S
    modes: tuple[str, ...] = ()
    zones: int = 0
    masters: int = 1
    lease_s: float = LEASE_S
    takeovers: tuple[int, int] = (0, 0)
    takeover_weights: Mapping[FaultKind, float] = field(default_factory=lambda: dict(_TAKEOVERS))
    now_and_then: tuple[Plan, ...] = ()  # every fourth seed follows one of these instead

    def draw(self, strategy: Strategy, seed: int) -> Schedule:
        """The schedule of this seed."""
        if (turn := 3 - seed % 4) < len(self.now_and_then):
            return self.now_and_then[turn].draw(strategy, seed)
        dice = random.Random(f"plan/{seed}")
        hot = [f"hot{number}" for number in range(dice.randint(1, 2))]
        cold = [f"cold{number}" for number in range(self.cold_keys)]
        last_s = self.lasts_s - self.storm_s - 4
        storms = [0.5 + dice.random() * last_s for _ in range(dice.randint(*self.storms))]
        schedule = Schedule(
            seed=seed,
            workers=self.workers,
            replicas=self.replicas,
            clients=self.clients,
            partitions=self.partitions,
            latency_s=draw_between(dice, *self.latency_s),
            fsync_s=draw_between(dice, *self.fsync_s),
            keys=(*hot, *cold),
            requests=self._draw_requests(strategy, dice, storms, hot, cold),
            faults=tuple(
                sorted(
                    [*self._draw_faults(strategy, dice, storms, hot), *self._draw_changes(strategy, dice, storms)],
                    key=lambda fault: fault.at_s,
                )
            ),
            down_after_s=self.down_after_s,
            forget_after_s=self.forget_after_s,
            joiners=self.joiners,
            modes=self.modes,
            zones=self.zones,
            masters=self.masters,
            lease_s=self.lease_s,
        )
        return schedule if self.masters == 1 else self._with_takeovers(schedule, storms, hot)

    def _with_takeovers(self, schedule: Schedule, storms: Sequence[float], hot: Sequence[str]) -> Schedule:
        """The same with several masters: what would befall the one befalls the leader or another, and there is more."""
        dice = random.Random(f"masters/{schedule.seed}")
        faults = [_on_some_master(fault, schedule.master_ids, dice) for fault in schedule.faults]
        weights = {kind: weight * dice.random() for kind, weight in self.takeover_weights.items()}
        for _ in range(dice.randint(*self.takeovers)):
            at_s = dice.choice(storms) + dice.random() * self.storm_s / 4
            for _ in range(dice.choice((1, 1, 2))):  # the second after the first one's successor leads, or before
                (kind,) = dice.choices(list(weights), list(weights.values()))
                some = _draw_takeover(kind, at_s, schedule, hot, dice)
                faults += some
                at_s += dice.random() * (schedule.lease_s + 2)
        return replace(schedule, faults=tuple(sorted(faults, key=lambda fault: fault.at_s)))

    def _draw_requests(
        self, strategy: Strategy, dice: random.Random, storms: Sequence[float], hot: list[str], cold: list[str]
    ) -> tuple[ScheduledRequest, ...]:
        compares = strategy.compare_and_set or bool(self.modes)
        mix = {kind: share * (kind is not Kind.CAS or compares) for kind, share in self.mix.items()}
        requests = []
        for number in range(self.requests):
            (kind,) = dice.choices(list(mix), list(mix.values()))
            key = dice.choice(hot if dice.random() < 0.85 else cold)
            if kind is Kind.SCAN:
                key = dice.choice(("", key[:3]))
            if dice.random() < 0.85:
                at_s = dice.choice(storms) + dice.random() * self.storm_s
            else:
                at_s = dice.random() * (self.lasts_s - 2)
            requests.append(ScheduledRequest(at_s, number % self.clients, kind, key))
        return tuple(sorted(requests, key=lambda request: request.at_s))

    def _draw_faults(
        self, strategy: Strategy, dice: random.Random, storms: Sequence[float], hot: Sequence[str]
    ) -> list[ScheduledFault]:
        weights = {kind: weight * dice.random() * (dice.random() < 0.5) for kind, weight in self.weights.items()}
        workers = [f"w{number}" for number in range(1, self.workers + 1)]
        table = place(workers, self.replicas, partitions=self.partitions)
        targets = [*workers, *(worker for key in hot for worker in table[partition_of(key.encode(), self.partitions)])]
        disks_to_lose = 1 if strategy.promise is Promise.AP else strategy.copies(self.replicas) - 1
        faults: list[ScheduledFault] = []
        while len(faults) < self.faults and any(weights.values()):
            (kind,) = dice.choices(list(weights), list(weights.values()))
            if kind in _LOSE_DISKS:
                disks_to_lose -= 1
                if disks_to_lose <= 0:
                    weights |= dict.fromkeys(_LOSE_DISKS, 0.0)
                if disks_to_lose < 0:
                    continue
            at_s = dice.choice(storms) + dice.random() * self.storm_s
            faults.append(_draw_fault(kind, at_s, targets, dice))
        return faults

    def _draw_changes(self, strategy: Strategy, dice: random.Random, storms: Sequence[float]) -> list[ScheduledFault]:
        weights = dict.fromkeys(_CHANGES, 0.0) | dict(self.change_weights)
        joiners = [f"w{self.workers + number}" for number in range(self.joiners, 0, -1)]
        mode = strategy.name  # the mode in force, if every switch so far succeeded
        faults: list[ScheduledFault] = []
        for _ in range(dice.randint(*self.changes)):
            at_s = dice.choice(storms) + dice.random() * self.storm_s
            for _ in range(dice.choice((1, 1, 2))):  # the second directly after the first
                weights[FaultKind.JOIN] *= bool(joiners)
                modes = [other for other in self.modes if other != mode]
                weights[FaultKind.MODE_SWITCH] *= bool(modes)
                (kind,) = dice.choices(list(weights), list(weights.values()))
                begins_s = at_s  # when the cluster notices the change
                if kind is FaultKind.JOIN:
                    faults.append(ScheduledFault(at_s, kind, (joiners.pop(),), 0.0))
                elif kind is FaultKind.MODE_SWITCH:
                    mode = dice.choice(modes)
                    faults.append(ScheduledFault(at_s, kind, (MASTER,), 0.0, mode=mode))
                else:
                    worker = f"w{dice.randint(1, self.workers)}"
                    lasts_s = self.down_after_s + 0.5 + dice.random() ** 2 * 8
                    linger_s = dice.choice((0.0, dice.random() * 3))
                    faults.append(
                        ScheduledFault(at_s, kind, (worker,), lasts_s, dice.choice((0, dice.randint(1, 6))), linger_s)
                    )
                    begins_s += 0.0 if kind is FaultKind.DRAIN else self.down_after_s
                if dice.random() < 0.4:
                    off_s, steps = 0.02 + dice.random() ** 3 * 2, dice.randint(1, 40)
                    faults.append(ScheduledFault(begins_s, FaultKind.MASTER_CRASH, (MASTER,), off_s, steps))
                at_s = begins_s + dice.random() ** 4
        return faults


# Many clients read and compare-and-set one key on three workers, while masters die in the middle of their sends: half
# the cost of a usual run, and several times as likely to meet a read that leaves what it saw on one replica.
CROWDED: Final = Plan(
    lasts_s=30.0,
    workers=3,
    clients=8,
    partitions=1,
    requests=400,
    faults=40,
    storms=(2, 3),
    cold_keys=1,
    mix={Kind.GET: 65, Kind.CAS: 30, Kind.PUT: 5},
    weights={
        FaultKind.MASTER_CRASH: 3,
        FaultKind.ONE_WAY: 2,
        FaultKind.SLOW_LINK: 2,
        FaultKind.CRASH: 1,
        FaultKind.PAUSE: 1,
        FaultKind.SLOW_DISK: 1,
    },
)

# Few partitions and many changes of the cluster, each with clients around it.
CHANGING: Final = Plan(
    lasts_s=40.0,
    clients=4,
    partitions=2,
    requests=200,
    faults=8,
    storms=(3, 5),
    cold_keys=3,
    changes=(3, 6),
    joiners=2,
    down_after_s=2.0,
    forget_after_s=2.0,
    modes=("sync", "chain", "quorum"),
)

# The mode is switched, to those that `modes` names, and little else changes. The caller replaces `modes`.
SWITCHING: Final = replace(
    CHANGING,
    lasts_s=30.0,
    workers=4,
    storms=(2, 4),
    cold_keys=2,
    changes=(2, 4),
    change_weights={FaultKind.MODE_SWITCH: 4.0, FaultKind.EVICTION: 1.0, FaultKind.JOIN: 0.5},
    joiners=1,
)

# Three masters share the document, and something befalls the leader or the store all the time. Every fourth seed also
# switches modes.
_MASTERS: Final = replace(
    CHANGING,
    clients=6,
    requests=300,
    faults=6,
    storms=(3, 4),
    storm_s=8.0,
    cold_keys=2,
    weights={
        kind: weight
        for kind, weight in _WEIGHTS.items()
        if kind not in (FaultKind.DOUBTFUL_DOCUMENT, FaultKind.OLD_DOCUMENT)
    },
    changes=(1, 3),
    change_weights={**_CHANGES, FaultKind.MODE_SWITCH: 0.0},
    modes=(),
    masters=3,
    lease_s=1.5,
    takeovers=(3, 6),
)
MASTERS: Final = replace(
    _MASTERS, now_and_then=(replace(_MASTERS, change_weights=dict(_CHANGES), modes=("sync", "chain", "quorum")),)
)

# The default plan.
USUAL: Final = Plan(now_and_then=(CROWDED,))


def replica_of(key: str, place: int) -> str:
    """In place of a node: the replica in this place of the key's preference list, from 1 on."""
    return f"replica {place} of {key}"


def parse_replica(node: str) -> tuple[str, int] | None:
    """The key and the place, if the node is one of those."""
    match = _REPLICA.fullmatch(node)
    return None if match is None else (match[2], int(match[1]))


def draw_between(dice: random.Random, low: float, high: float) -> float:
    """Drawn evenly on a logarithmic scale."""
    return float(low * (high / low) ** dice.random())


def _on_some_master(fault: ScheduledFault, masters: Sequence[str], dice: random.Random) -> ScheduledFault:
    """A fault of the one master, as one of the leader or of any."""
    if MASTER not in fault.nodes:
        return fault
    master = LEADER if dice.random() < 0.6 else dice.choice(masters)
    return replace(fault, nodes=tuple(master if node == MASTER else node for node in fault.nodes))


def _draw_takeover(
    kind: FaultKind, at_s: float, schedule: Schedule, hot: Sequence[str], dice: random.Random
) -> list[ScheduledFault]:
    """What befalls the leader or the store.

    A leader that goes on without the store is tested where it reaches replicas that its successor does not reach, or
    reaches late: then the successor changes the configuration, and those replicas do not know.
    """
    brief_s = 0.5 + dice.random() * 4
    lasts_s = schedule.lease_s + schedule.down_after_s + 0.5 + dice.random() * 5
    if kind is FaultKind.MASTER_CRASH:
        return [ScheduledFault(at_s, kind, (LEADER,), brief_s, dice.choice((0, dice.randint(1, 40))))]
    if kind is FaultKind.MASTER_STOP:
        return [ScheduledFault(at_s, kind, (LEADER,), dice.random() * 2)]
    if kind is FaultKind.STORE_DOWN:
        return [ScheduledFault(at_s, kind, (STORE,), brief_s)]
    if kind is FaultKind.LATE_STORE:
        return [ScheduledFault(at_s, kind, (STORE,), lasts_s, delay_s=dice.random() ** 2 * schedule.lease_s)]
    key, places = dice.choice(hot), list(range(1, schedule.replicas + 1))
    dice.shuffle(places)
    unreached, late, *_ = (replica_of(key, place) for place in places)
    faults = []
    if kind is FaultKind.STOP:
        linger_s = dice.choice((0.0, dice.random() * 5))
        faults.append(ScheduledFault(at_s, kind, (LEADER,), lasts_s - dice.random() * 4, linger_s=linger_s))
    else:
        assert kind is FaultKind.PARTED, kind
        cut = [name for name in schedule.worker_ids if dice.random() < 0.2]
        faults.append(ScheduledFault(at_s, kind, (LEADER, STORE, *cut), lasts_s))
    if dice.random() < 0.7:
        faults.append(ScheduledFault(at_s, FaultKind.PARTED, (unreached, RIVALS), lasts_s + dice.random() * 2))
    if dice.random() < 0.5:
        delay_s = dice.random() * 2
        faults.append(ScheduledFault(at_s, FaultKind.LATE_LINK, (RIVALS, late), lasts_s, delay_s=delay_s))
    return faults


def _draw_fault(kind: FaultKind, at_s: float, workers: Sequence[str], dice: random.Random) -> ScheduledFault:
    """`workers`: those that it may hit; a worker that is named twice is hit more often."""
    lasts_s = 0.1 + dice.random() ** 2 * 3
    after_steps = dice.choice((0, 0, dice.randint(1, 6)))
    linger_s = dice.choice((0.0, dice.random() * 3))
    if kind is FaultKind.PAUSE:
        node = dice.choice([MASTER, *workers, *workers])
        return ScheduledFault(at_s, kind, (node,), 1 + dice.random() * 5)
    if kind is FaultKind.PARTITION:
        cut_off = {dice.choice([MASTER, *workers]) for _ in range(dice.randint(1, 3))}
        return ScheduledFault(at_s, kind, tuple(sorted(cut_off)), lasts_s)
    if kind in _ON_LINKS:
        # Only chains use links between workers, so most faults should hit the master's links.
        one, other = dice.choice(workers), dice.choice(workers)
        ends = [MASTER if one == other or dice.random() < 0.6 else one, other]
        dice.shuffle(ends)
        return ScheduledFault(at_s, kind, tuple(ends), lasts_s)
    if kind in _ON_MASTER:
        return ScheduledFault(at_s, kind, (MASTER,), 0.02 + dice.random() ** 3 * 2, after_steps, linger_s)
    if kind is FaultKind.DOUBTFUL_DOCUMENT:
        return ScheduledFault(at_s, kind, (MASTER,), 3 * lasts_s)
    worker = dice.choice(workers)
    if kind is FaultKind.HUNG_DISK:
        return ScheduledFault(at_s, kind, (worker,), 3 * lasts_s)
    if kind in (FaultKind.REPLAY, FaultKind.SLOW_DISK):
        return ScheduledFault(at_s, kind, (worker,), 2 * lasts_s)
    return ScheduledFault(at_s, kind, (worker,), lasts_s, after_steps, linger_s)
