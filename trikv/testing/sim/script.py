"""Scenarios as text: who does what when, and what comes of it, readable by someone who has never seen the code.

    cluster quorum, 3 workers

    client a put k v1        -> committed
    power off m2 m3
    client a put k v2        -> unknown
    judge                    -> linearizable

A script is run on a simulated cluster of one partition, where nothing happens by chance. A line whose deed has an
outcome ends in `-> OUTCOME`. Running the script gives the same text with the outcomes that there really were; so a
test compares two texts, and a new script is written with any outcome (`-> ?`) and rewritten once.

`m1`, `m2` ... are the partition's replicas in the order of its preference list, `s1`, `s2` ... the other workers, and
`master` is the master. The lines that there are:

    cluster MODE, N workers[, N replicas]    always first; the replicas are 3 unless it says so
    client NAME put KEY VALUE ->             committed, refused (CODE) or unknown; so for the next three
    client NAME delete KEY ->
    client NAME cas KEY OLD NEW ->           NEW in place of OLD ("nothing": absence), which clients saw last
    client NAME get KEY ->                   the value, or nothing
    client NAME begins put KEY VALUE         and the same for the others: it is left under way
    client NAME is told ->                   how that ended; waits for it
    hold A>B                                 what A sends to B waits on its way
    cut A B                                  nothing passes between these and all others; it waits on its way
    release A>B; heal                        one hold ends; every hold and cut ends. What waited arrives
    crash A B                                they die; others notice at once. What was flushed to disk is kept
    power off A B                            the same, and nobody is told
    lose disk A B                            the same, and they will come back with an empty disk
    freeze A                                 nothing more is written to its disk, until it is switched off and on
    start A B                                they are switched on, and linked a moment later
    set aside A>B                            what the dead A still had under way to B is kept; the wire is free again
    deliver A>B                              it arrives now, on a connection of its own
    reconfigure M1 M2 M3                     these become the replicas, while the master is off; see below
    operator asks mode MODE                  a switch is begun, and goes on by itself
    operator asks drain A                    so is the emptying of a worker
    configuration ->                         mode and replicas, or all in the history, the oldest first, while unsettled
    wait SECONDS
    disks KEY ->                             what each replica, in order, has on its disk
    judge ->                                 of all that clients saw: is the promise kept?

`reconfigure` writes into the cluster's document what a change of a configuration is to leave there: the next
generation, and the new configuration at the end of the history. It is how schedules about such changes are driven.

A client has one request at a time. Names and values are one word each. Whatever is not one of these lines is an error
that names the line; nothing has run then.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import cbor2
import trio

from trikv.api import Promise, Strategy
from trikv.core.configuration import Cluster, Configuration
from trikv.core.errors import Outcome
from trikv.registry import load_registry
from trikv.testing import linear
from trikv.testing.audit import check_convergence, check_final, check_origins, check_stamps, measure_staleness
from trikv.testing.history import Finding, Kind, Operation
from trikv.testing.sim.clients import Clients
from trikv.testing.sim.clock import SimClock, run_repeatably
from trikv.testing.sim.network import Pipe, Wire
from trikv.testing.sim.plan import MASTER, Schedule
from trikv.testing.sim.run import DidNotEndError
from trikv.testing.sim.trace import Trace
from trikv.testing.sim.world import World

NOTHING: Final = "nothing"
_ARROW: Final = "->"
_SEED: Final = 1  # of latencies; a script holds back whatever must not happen yet
_LATENCY_S: Final = 0.001
_FSYNC_S: Final = 0.001
_REPLICAS: Final = 3
_FROZEN_S: Final = 1e9
_FORMING_TIMEOUT_S: Final = 20.0
_HORIZON_S: Final = 600.0  # as in run.py: a script that gets there hangs


class ScriptError(ValueError):
    """The script cannot be run; the message names the line."""


Deed = Callable[["Stage"], Awaitable[str | None]]


@dataclass(frozen=True, slots=True)
class Line:
    """`text` is the line as it stands, up to the arrow if what it does has an outcome."""

    number: int
    text: str
    deed: Deed | None = None  # None: a comment, an empty line, or the first
    has_outcome: bool = False


@dataclass(frozen=True, slots=True)
class Script:
    name: str
    mode: str
    workers: int
    replicas: int
    lines: tuple[Line, ...]


@dataclass(slots=True)
class Played:
    """What came of a script: its text with the outcomes that there were, and what its judges found."""

    text: str
    findings: list[Finding]


# --- reading ----------------------------------------------------------------------------------------------------------

_HEAD: Final = re.compile(r"cluster ([a-z][a-z0-9_-]*), ([1-9]) workers(?:, ([1-9]) replicas)?")


def read(name: str, text: str) -> Script:
    """The script in `text`; `name` is for messages.

    Raises:
      ScriptError: it is none.
    """
    head: re.Match[str] | None = None
    nodes: set[str] = set()
    lines: list[Line] = []
    for number, whole in enumerate(text.splitlines(), start=1):
        before, arrow, outcome = whole.partition(_ARROW)
        words = before.split()
        try:
            if not words or words[0].startswith("#"):
                lines.append(Line(number, whole))
            elif head is None:
                head = _HEAD.fullmatch(whole.strip())
                nodes = _nodes_of(head)
                lines.append(Line(number, whole))
            else:
                deed, has_outcome = _understand(words, nodes)
                if has_outcome != bool(arrow and outcome.strip()):
                    needs = f"say `{_ARROW} OUTCOME` after it" if has_outcome else f"nothing can stand after `{_ARROW}`"
                    raise ScriptError(f"`{' '.join(words)}`: {needs}")
                lines.append(Line(number, before if has_outcome else whole, deed, has_outcome))
        except ScriptError as error:
            raise ScriptError(f"{name}, line {number}: {error}") from None
    if head is None:
        raise ScriptError(f"{name}: there is nothing in it")
    return Script(name, head[1], int(head[2]), int(head[3] or _REPLICAS), tuple(lines))


def _nodes_of(head: re.Match[str] | None) -> set[str]:
    if head is None:
        raise ScriptError("the first line is `cluster MODE, N workers`, with or without `, N replicas` after it")
    workers, replicas = int(head[2]), int(head[3] or _REPLICAS)
    if replicas > workers:
        raise ScriptError(f"{replicas} replicas cannot be had of {workers} workers")
    return {MASTER, *_numbered("m", replicas), *_numbered("s", workers - replicas)}


def _numbered(letter: str, count: int) -> list[str]:
    return [f"{letter}{number + 1}" for number in range(count)]


def _understand(words: list[str], nodes: set[str]) -> tuple[Deed, bool]:
    """What a line does, and whether that has an outcome."""

    def known(names: Sequence[str]) -> Sequence[str]:
        for name in names:
            if name not in nodes:
                raise ScriptError(f"there is no {name!r} in this cluster, only {', '.join(sorted(nodes))}")
        if not names or len(set(names)) < len(names):
            raise ScriptError(f"`{' '.join(words)}`: {'one of them twice' if names else 'whom?'}")
        return names

    def workers(names: Sequence[str]) -> Sequence[str]:
        if MASTER in known(names):
            raise ScriptError(f"`{' '.join(words)}`: that can befall workers only")
        return names

    def ends(wire: str) -> tuple[str, str]:
        source, arrow, target = wire.partition(">")
        if not arrow or source == target:
            raise ScriptError(f"{wire!r} is not of the form FROM>TO")
        known([source, target])
        return source, target

    match words:
        case ["client", name, "is", "told"]:
            return partial(Stage.is_told, client=name), True
        case ["client", name, "begins", *asked]:
            return partial(Stage.begin, client=name, asked=_understand_asked(asked)), False
        case ["client", name, *asked]:
            return partial(Stage.ask, client=name, asked=_understand_asked(asked)), True
        case ["hold", wire]:
            return partial(Stage.hold, wire=ends(wire)), False
        case ["release", wire]:
            return partial(Stage.release, wire=ends(wire)), False
        case ["cut", *names]:
            return partial(Stage.cut, names=known(names)), False
        case ["heal"]:
            return Stage.heal, False
        case ["crash", *names]:
            return partial(Stage.crash, names=known(names), silent=False), False
        case ["power", "off", *names]:
            return partial(Stage.crash, names=known(names), silent=True), False
        case ["lose", "disk", *names]:
            return partial(Stage.crash, names=workers(names), silent=True, loses_disk=True), False
        case ["freeze", *names]:
            return partial(Stage.freeze, names=workers(names)), False
        case ["start", *names]:
            return partial(Stage.start, names=known(names)), False
        case ["set", "aside", wire]:
            return partial(Stage.set_aside, wire=ends(wire)), False
        case ["deliver", wire]:
            return partial(Stage.deliver, wire=ends(wire)), False
        case ["reconfigure", *names]:
            return partial(Stage.reconfigure, names=workers(names)), False
        case ["operator", "asks", "mode", mode] if mode in load_registry().strategies:
            return partial(Stage.switch, mode=mode), False
        case ["operator", "asks", "drain", name]:
            return partial(Stage.drain, name=workers([name])[0]), False
        case ["configuration"]:
            return Stage.configuration, True
        case ["wait", seconds]:
            return partial(Stage.wait, seconds=_understand_seconds(seconds)), False
        case ["disks", key]:
            return partial(Stage.disks, key=key), True
        case ["judge"]:
            return Stage.judge, True
    raise ScriptError(f"`{' '.join(words)}` is none of the lines that there are")


@dataclass(frozen=True, slots=True)
class _Asked:
    kind: Kind
    key: str
    value: str | None = None
    expect: str | None = None


def _understand_asked(words: list[str]) -> _Asked:
    match words:
        case ["put", key, value] if value != NOTHING:
            return _Asked(Kind.PUT, key, value)
        case ["get", key]:
            return _Asked(Kind.GET, key)
        case ["delete", key]:
            return _Asked(Kind.DELETE, key)
        case ["cas", key, old, new] if new != NOTHING:
            return _Asked(Kind.CAS, key, new, None if old == NOTHING else old)
    raise ScriptError(
        f"a client can `put KEY VALUE`, `get KEY`, `delete KEY` or `cas KEY OLD NEW`, not `{' '.join(words)}`"
    )


def _understand_seconds(text: str) -> float:
    if not re.fullmatch(r"\d{1,3}(\.\d{1,3})?", text):
        raise ScriptError(f"{text!r} is not a number of seconds")
    return float(text)


# --- playing ----------------------------------------------------------------------------------------------------------


def play(script: Script, strategy: Strategy) -> Played:
    """Run a script, with `strategy` in the part of its mode.

    Raises:
      ScriptError: a line asks for what cannot be done at that point.
      DidNotEndError: it hangs.
    """
    clock = SimClock()
    schedule = Schedule(
        seed=_SEED,
        workers=script.workers,
        replicas=script.replicas,
        clients=0,
        partitions=1,
        latency_s=_LATENCY_S,
        fsync_s=_FSYNC_S,
        keys=(),
        requests=(),
        faults=(),
        modes=tuple(load_registry().strategies),
    )
    written: list[str] = []
    findings: list[Finding] = []

    async def main() -> None:
        with trio.move_on_after(_HORIZON_S) as scope:
            async with trio.open_nursery() as nursery:
                stage = Stage(World(strategy, schedule, clock, Trace(wanted=False), nursery), nursery)
                await stage.set_up()
                for line in script.lines:
                    outcome = None
                    if line.deed is not None:
                        try:
                            outcome = await line.deed(stage)
                        except ScriptError as error:
                            raise ScriptError(f"{script.name}, line {line.number}: {error}") from None
                    written.append(f"{line.text}{_ARROW} {outcome}" if line.has_outcome else line.text)
                findings.extend(stage.findings)
                nursery.cancel_scope.cancel()
        if scope.cancelled_caught:
            raise DidNotEndError(f"{script.name} did not end within {_HORIZON_S:g} s of virtual time")

    try:
        run_repeatably(main, clock, _SEED)
    except* ScriptError as group:
        raise group.exceptions[0] from None
    return Played("\n".join(written) + "\n", findings)


@dataclass(slots=True)
class _Request:
    """What a client has under way."""

    asked: _Asked
    ended: trio.Event = field(default_factory=trio.Event)
    operation: Operation | None = None


class Stage:
    """The cluster of one script. Each method is a line."""

    def __init__(self, world: World, nursery: trio.Nursery) -> None:
        self.findings: list[Finding] = []
        self._world = world
        self._clients = Clients(world)
        self._nursery = nursery
        self._requests: dict[str, _Request] = {}
        self._host_of = {MASTER: MASTER}  # by the name in the script
        self._incarnations: dict[str, bytes | None] = {}  # of the replicas, in order, as they were at first
        self._held: list[Wire] = []
        self._aside: dict[tuple[str, str], list[tuple[Pipe, list[bytes]]]] = {}

    async def set_up(self) -> None:
        """Have the cluster form, and see who became what."""
        world = self._world
        world.start_all()
        formed = await world.wait_until(world.is_formed, _FORMING_TIMEOUT_S)
        assert formed, "nothing is broken yet"
        assert world.master is not None
        members = [member.worker for member in world.master.coordinator.slots[0].configuration.members]
        spares = [worker for worker in world.workers if worker not in members]
        self._host_of |= dict(zip(_numbered("m", len(members)), members, strict=True))
        self._incarnations = {name: self._incarnation(name) for name in _numbered("m", len(members))}
        self._host_of |= dict(zip(_numbered("s", len(spares)), spares, strict=True))

    # --- clients ------------------------------------------------------------------------------------------------------

    async def begin(self, *, client: str, asked: _Asked) -> None:
        if client in self._requests:
            raise ScriptError(f"client {client} has a request under way already")
        if asked.kind is Kind.CAS and self._clients.last_seen(asked.key) != asked.expect:
            seen = self._clients.last_seen(asked.key) or NOTHING
            raise ScriptError(f"clients last saw {seen} under {asked.key}, not {asked.expect or NOTHING}")
        request = self._requests[client] = _Request(asked)

        async def run() -> None:
            request.operation = await self._clients.ask(client, asked.kind, asked.key, asked.value)
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

    async def ask(self, *, client: str, asked: _Asked) -> str:
        await self.begin(client=client, asked=asked)
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
        self._world.operators.ask(lambda master: master.changes.drain(worker))

    async def wait(self, *, seconds: float) -> None:
        await trio.sleep(seconds)

    # --- what can be seen ---------------------------------------------------------------------------------------------

    async def configuration(self) -> str:
        master = self._world.master
        if master is None:
            raise ScriptError("there is no master to tell the configuration")
        name_of = {host: name for name, host in self._host_of.items()}
        history = master.cluster.partitions[0].history
        return ", then ".join(" ".join([c.mode, *(name_of[m.worker] for m in c.members)]) for c in history)

    async def disks(self, *, key: str) -> str:
        return " ".join(value or NOTHING for value in self._on_disk(key).values())

    async def judge(self) -> str:
        """What the run is judged by that `simulate` makes."""
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
