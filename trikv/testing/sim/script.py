"""Scenarios as text, with the outcome of every line, readable without knowing the code.

    cluster quorum, 3 workers

    client a put k v1        -> committed
    power off m2 m3
    client a put k v2        -> unknown
    judge                    -> linearizable

A script runs on a simulated cluster of one partition, where nothing happens by chance. A line whose action has an
outcome ends in `-> OUTCOME`. Running the script gives the same text with the real outcomes. So a test compares two
texts, and a new script is written with any outcome (`-> ?`) and rewritten once.

`m1`, `m2` ... are the partition's replicas in the order of its preference list, `s1`, `s2` ... the other workers, and
`master` is the master. If there are several, `master` is the one that leads first, `master2`, `master3` ... are the
others, and `store` is the machine of the store that they share. All lines:

    cluster MODE, N workers[, N replicas][, N masters[, lease N s]][, forget after N s]
                                             always first; 3 replicas, 1 master and a lease of 3 s unless it says so;
                                             tombstones are kept for an hour
    client NAME put KEY VALUE ->             committed, refused (CODE) or unknown; also for the next three
    client NAME delete KEY ->
    client NAME cas KEY OLD NEW ->           NEW in place of OLD ("nothing": absence), which clients saw last
    client NAME get KEY ->                   the value, or nothing
    client NAME begins put KEY VALUE         and the same for the others: the request is left under way
    client NAME is told ->                   the outcome of that request; waits for it
    client NAME at MASTER ...                the same for all of these, asked of that machine, if there are several
    hold A>B                                 what A sends to B waits on its way
    cut A B                                  nothing passes between these and all others; messages wait on their way
    part A B C                               nothing passes between A and each of the others; the same
    release A>B; heal                        one hold ends; every hold and cut ends. What waited arrives
    crash A B                                they die, and others notice at once. What was flushed to disk is kept
    power off A B                            the same, but others do not notice
    lose disk A B                            the same, and they come back with an empty disk
    freeze A                                 nothing more is written to its disk, until it is switched off and on
    start A B                                they are switched on, and linked a moment later
    stop A; resume A                         as a process that gets SIGSTOP, and SIGCONT
    set aside A>B                            what the dead A still had under way to B is kept; the wire is free again
    deliver A>B                              it arrives now, on a connection of its own
    reconfigure M1 M2 M3                     these become the replicas, while the master is off; see below
    operator asks mode MODE                  a switch is begun, and goes on by itself
    operator asks drain A                    the emptying of a worker is begun
    configuration ->                         mode and replicas; of the whole history, the oldest first, while unsettled
    leader ->                                the master that leads, by what the store says, or nothing
    deposed ->                               the masters that serve and do not know of a later term, or nothing
    wait SECONDS
    wait for leader A                        until that master leads, by what the store says
    wait for renewal; wait for change        until the store has renewed the leader's lease; has changed the document
    disks KEY ->                             what each replica, in order, has on its disk
    judge ->                                 is the promise kept, by all that clients saw?

`reconfigure` writes into the cluster's document what a change of a configuration leaves there: the next generation,
and the new configuration at the end of the history.

A client has one request at a time. Names and values are one word each. Any other line is an error that names the
line, and then nothing is run.

This file reads scripts and plays them. What each line does is a method of `ScriptWorld` (`script_world.py`).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from trikv.api import Strategy
from trikv.config import LEASE_S
from trikv.healing.tombstones import MIN_AGE_S
from trikv.registry import load_registry
from trikv.testing.judge.history import Finding, Kind
from trikv.testing.sim.clock import SimClock, run_repeatably
from trikv.testing.sim.plan import MASTER, STORE, Schedule
from trikv.testing.sim.run import DidNotEndError
from trikv.testing.sim.script_world import NOTHING, Asked, ScriptError, ScriptWorld, numbered
from trikv.testing.sim.trace import Trace
from trikv.testing.sim.world import World

_ARROW: Final = "->"
_SEED: Final = 1  # of latencies; a script holds back what must not happen yet
_LATENCY_S: Final = 0.001
_FSYNC_S: Final = 0.001
_REPLICAS: Final = 3
_HORIZON_S: Final = 600.0  # as in run.py: a script that gets there hangs

Action = Callable[[ScriptWorld], Awaitable[str | None]]


@dataclass(frozen=True, slots=True)
class Line:
    """`text` is the line as it stands; if it has an outcome, up to the arrow."""

    number: int
    text: str
    action: Action | None = None  # None: a comment, an empty line, or the first line
    has_outcome: bool = False


@dataclass(frozen=True, slots=True)
class Script:
    name: str
    mode: str
    workers: int
    replicas: int
    masters: int
    lease_s: float
    forget_after_s: float
    lines: tuple[Line, ...]


@dataclass(slots=True)
class PlayedScript:
    """A script's text with its real outcomes, and the findings of its judges."""

    text: str
    findings: list[Finding]


# --- reading ----------------------------------------------------------------------------------------------------------

_HEAD: Final = re.compile(
    r"cluster ([a-z][a-z0-9_-]*), ([1-9]) workers(?:, ([1-9]) replicas)?"
    r"(?:, ([1-9]) masters(?:, lease ([1-9][0-9]?) s)?)?(?:, forget after ([1-9][0-9]?) s)?"
)


def read(name: str, text: str) -> Script:
    """The script in `text`; `name` is for messages.

    Raises:
      ScriptError: the text is not a script.
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
                action, has_outcome = _understand(words, nodes)
                if has_outcome != bool(arrow and outcome.strip()):
                    needs = f"say `{_ARROW} OUTCOME` after it" if has_outcome else f"nothing can stand after `{_ARROW}`"
                    raise ScriptError(f"`{' '.join(words)}`: {needs}")
                lines.append(Line(number, before if has_outcome else whole, action, has_outcome))
        except ScriptError as error:
            raise ScriptError(f"{name}, line {number}: {error}") from None
    if head is None:
        raise ScriptError(f"{name}: there is nothing in it")
    return Script(
        name,
        head[1],
        int(head[2]),
        int(head[3] or _REPLICAS),
        int(head[4] or 1),
        float(head[5] or LEASE_S),
        float(head[6] or MIN_AGE_S),
        tuple(lines),
    )


def _nodes_of(head: re.Match[str] | None) -> set[str]:
    if head is None:
        raise ScriptError("the first line is `cluster MODE, N workers`, with or without `, N replicas` after it")
    several = {STORE, *numbered(MASTER, int(head[4]))[1:]} if head[4] else set()
    workers, replicas = int(head[2]), int(head[3] or _REPLICAS)
    if replicas > workers:
        raise ScriptError(f"{replicas} replicas cannot be had of {workers} workers")
    return {MASTER, *several, *numbered("m", replicas), *numbered("s", workers - replicas)}


def _understand(words: list[str], nodes: set[str]) -> tuple[Action, bool]:
    """What a line does, and whether that has an outcome."""

    def known(names: Sequence[str]) -> Sequence[str]:
        for name in names:
            if name not in nodes:
                raise ScriptError(f"there is no {name!r} in this cluster, only {', '.join(sorted(nodes))}")
        if not names or len(set(names)) < len(names):
            raise ScriptError(f"`{' '.join(words)}`: {'one of them twice' if names else 'whom?'}")
        return names

    def workers(names: Sequence[str]) -> Sequence[str]:
        if any(name == STORE or name.startswith(MASTER) for name in known(names)):
            raise ScriptError(f"`{' '.join(words)}`: that can befall workers only")
        return names

    def ends(wire: str) -> tuple[str, str]:
        source, arrow, target = wire.partition(">")
        if not arrow or source == target:
            raise ScriptError(f"{wire!r} is not of the form FROM>TO")
        known([source, target])
        return source, target

    def masters(names: Sequence[str]) -> Sequence[str]:
        if not all(name.startswith(MASTER) for name in known(names)):
            raise ScriptError(f"`{' '.join(words)}`: that can befall masters only")
        return names

    at: str | None = None
    match words:
        case ["client", name, "at", master, *rest]:
            [at] = masters([master])
            words = ["client", name, *rest]
    match words:
        case ["client", name, "is", "told"]:
            return partial(ScriptWorld.is_told, client=name), True
        case ["client", name, "begins", *asked]:
            return partial(ScriptWorld.begin, client=name, asked=_understand_asked(asked), at=at), False
        case ["client", name, *asked]:
            return partial(ScriptWorld.ask, client=name, asked=_understand_asked(asked), at=at), True
        case ["hold", wire]:
            return partial(ScriptWorld.hold, wire=ends(wire)), False
        case ["release", wire]:
            return partial(ScriptWorld.release, wire=ends(wire)), False
        case ["cut", *names]:
            return partial(ScriptWorld.cut, names=known(names)), False
        case ["part", *names]:
            return partial(ScriptWorld.part, names=known(names)), False
        case ["stop", name]:
            return partial(ScriptWorld.stop, name=masters([name])[0]), False
        case ["resume", name]:
            return partial(ScriptWorld.resume, name=masters([name])[0]), False
        case ["leader"]:
            return ScriptWorld.leader, True
        case ["deposed"]:
            return ScriptWorld.deposed, True
        case ["heal"]:
            return ScriptWorld.heal, False
        case ["crash", *names]:
            return partial(ScriptWorld.crash, names=known(names), silent=False), False
        case ["power", "off", *names]:
            return partial(ScriptWorld.crash, names=known(names), silent=True), False
        case ["lose", "disk", *names]:
            return partial(ScriptWorld.crash, names=workers(names), silent=True, loses_disk=True), False
        case ["freeze", *names]:
            return partial(ScriptWorld.freeze, names=workers(names)), False
        case ["start", *names]:
            return partial(ScriptWorld.start, names=known(names)), False
        case ["set", "aside", wire]:
            return partial(ScriptWorld.set_aside, wire=ends(wire)), False
        case ["deliver", wire]:
            return partial(ScriptWorld.deliver, wire=ends(wire)), False
        case ["reconfigure", *names]:
            return partial(ScriptWorld.reconfigure, names=workers(names)), False
        case ["operator", "asks", "mode", mode] if mode in load_registry().strategies:
            return partial(ScriptWorld.switch, mode=mode), False
        case ["operator", "asks", "drain", name]:
            return partial(ScriptWorld.drain, name=workers([name])[0]), False
        case ["configuration"]:
            return ScriptWorld.configuration, True
        case ["wait", "for", "leader", name]:
            return partial(ScriptWorld.wait_for_leader, name=masters([name])[0]), False
        case ["wait", "for", "renewal"]:
            return ScriptWorld.wait_for_renewal, False
        case ["wait", "for", "change"]:
            return ScriptWorld.wait_for_change, False
        case ["wait", seconds]:
            return partial(ScriptWorld.wait, seconds=_understand_seconds(seconds)), False
        case ["disks", key]:
            return partial(ScriptWorld.disks, key=key), True
        case ["judge"]:
            return ScriptWorld.judge, True
    raise ScriptError(f"`{' '.join(words)}` is none of the lines that there are")


def _understand_asked(words: list[str]) -> Asked:
    match words:
        case ["put", key, value] if value != NOTHING:
            return Asked(Kind.PUT, key, value)
        case ["get", key]:
            return Asked(Kind.GET, key)
        case ["delete", key]:
            return Asked(Kind.DELETE, key)
        case ["cas", key, old, new] if new != NOTHING:
            return Asked(Kind.CAS, key, new, None if old == NOTHING else old)
    raise ScriptError(
        f"a client can `put KEY VALUE`, `get KEY`, `delete KEY` or `cas KEY OLD NEW`, not `{' '.join(words)}`"
    )


def _understand_seconds(text: str) -> float:
    if not re.fullmatch(r"\d{1,3}(\.\d{1,3})?", text):
        raise ScriptError(f"{text!r} is not a number of seconds")
    return float(text)


# --- playing ----------------------------------------------------------------------------------------------------------


def play(script: Script, strategy: Strategy) -> PlayedScript:
    """Run a script, with `strategy` in place of its mode.

    Raises:
      ScriptError: a line asks for something that is not possible at that point.
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
        masters=script.masters,
        lease_s=script.lease_s,
        forget_after_s=script.forget_after_s,
    )
    written: list[str] = []
    findings: list[Finding] = []

    async def main() -> None:
        with trio.move_on_after(_HORIZON_S) as scope:
            async with trio.open_nursery() as nursery:
                script_world = ScriptWorld(World(strategy, schedule, clock, Trace(wanted=False), nursery), nursery)
                await script_world.set_up()
                for line in script.lines:
                    outcome = None
                    if line.action is not None:
                        try:
                            outcome = await line.action(script_world)
                        except ScriptError as error:
                            raise ScriptError(f"{script.name}, line {line.number}: {error}") from None
                    written.append(f"{line.text}{_ARROW} {outcome}" if line.has_outcome else line.text)
                await script_world.resume_all()
                findings.extend(script_world.findings)
                nursery.cancel_scope.cancel()
        if scope.cancelled_caught:
            raise DidNotEndError(f"{script.name} did not end within {_HORIZON_S:g} s of virtual time")

    try:
        run_repeatably(main, clock, _SEED)
    except* ScriptError as group:
        raise group.exceptions[0] from None
    return PlayedScript("\n".join(written) + "\n", findings)
