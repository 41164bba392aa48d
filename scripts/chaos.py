#!/usr/bin/env python3
"""Break a cluster of real processes for half an hour while clients use it, and judge the answers that they got.

    python scripts/chaos.py --minutes 30 --seed 1
    python scripts/chaos.py --minutes 2 --modes sync,async --history /tmp/history.jsonl
    python scripts/chaos.py --masters 3 --minutes 30

The cluster has a master and five workers on real disks, every worker behind a proxy. Eight clients put, get, delete
and compare-and-set some hundred keys. The faults follow from the seed; their times depend on the machine. Workers are
killed, paused, cut off, lose their disks, join and are drained. The master is killed and paused. Of several masters it
is the one that leads, which is also stopped cleanly; and members of their etcd are killed, or all of it is stopped for
a while. The mode goes through every switch between the named modes, some of them with another fault in the middle.
After each fault the cluster has to become whole by itself, and at the end all replicas have to hold the same.

Then the history is judged. Under sync, chain and quorum, and through the switches between them, it must be
linearizable: no acknowledged write was lost, no refused write was seen. Under async the lost writes are counted, and
each must have been acknowledged around a fault that can explain it. Prints what was done, how long clients waited, and
every violation with its operations. Exit code 1 if there was a violation, 3 if some key was not decided, 130 after
Ctrl-C without a violation.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from pathlib import Path
from typing import Final

from trikv.core.errors import Outcome
from trikv.testing.judge.history import Finding, Operation, dump
from trikv.testing.judge.measure import describe_returns, longest_gap_s, returns_s, slowest_s
from trikv.testing.judge.switched import judge
from trikv.testing.processes.clients import Load
from trikv.testing.processes.cluster import LocalCluster
from trikv.testing.processes.nemesis import WEAK_MODES, Done, Nemesis, NotHealed

WORKERS_LEAST: Final = 5
WORKERS_MOST: Final = 7
LOST_NEAR_S: Final = 10.0  # a write that async lost was acknowledged at most this long before or after a fault
FINDINGS_SHOWN: Final = 5
AIM_S: Final = 5.0  # beyond --down-after, until what a dead worker held can be written again


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    parser.add_argument("--modes", default="sync,chain,quorum,async", help="to switch between; the first founds it")
    parser.add_argument("--rate", type=float, default=160.0, help="operations per second, of all clients")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--keys", type=int, default=300)
    parser.add_argument("--masters", type=int, default=1, help="more than one share an etcd of three members")
    parser.add_argument("--down-after", type=float, default=5.0)
    parser.add_argument("--directory", type=Path, help="keep data and logs there")
    parser.add_argument("--history", type=Path, help="write the history there, as JSON lines")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1_000_000)
    return Chaos(options).run()


class Chaos:
    """One run."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._dice = random.Random(options.seed)
        self._modes: list[str] = options.modes.split(",")
        self._findings: list[Finding] = []
        self._began_s = time.monotonic()
        self._interrupted = False

    def run(self) -> int:
        options = self._options
        print(f"seed {options.seed}, modes {options.modes}, {options.clients} clients, {options.minutes:g} minutes")
        cluster = LocalCluster(
            mode=self._modes[0],
            workers=WORKERS_LEAST,
            storage="rocksdb",
            down_after_s=options.down_after,
            proxied=True,
            masters=options.masters,
            etcd_members=3 if options.masters > 1 else 0,
            directory=options.directory,
        )
        load = Load(
            cluster.masters,
            seed=options.seed,
            clients=options.clients,
            rate=options.rate,
            keys=options.keys,
        )
        nemesis = Nemesis(cluster, load, self._dice, say=self._say)
        try:
            with cluster, load:
                self._break(nemesis)
        except KeyboardInterrupt:
            self._interrupted = True
            self._say("interrupted; what was seen so far is judged")
        except NotHealed as error:
            self._findings.append(Finding("does not heal", "-", str(error)))
        return self._report(nemesis, load)

    def _break(self, nemesis: Nemesis) -> None:
        until_s = self._began_s + 60 * self._options.minutes
        for blow in self._blows(nemesis):
            if time.monotonic() > until_s:
                break
            blow()
        if nemesis.mode in WEAK_MODES and len(self._modes) > 1:
            nemesis.switch(next(mode for mode in self._modes if mode not in WEAK_MODES))
        nemesis.await_whole()
        nemesis.load.stop()
        for key in nemesis.load.read_all():
            self._findings.append(Finding("not available", key, "it cannot be read though nothing is broken any more"))
        nemesis.await_alike()

    def _blows(self, nemesis: Nemesis) -> Iterator[Callable[[], object]]:
        """What to do next, without end. Every third time a switch, if there is more than one mode."""
        dice, grace_s = self._dice, self._options.down_after
        switches = walk_all_switches(self._modes, dice)

        def kill_briefly() -> None:
            nemesis.kill(for_s=0.8 * grace_s * dice.random())

        def join_or_drain(meanwhile: Callable[[], None] | None = None) -> None:
            most, least = len(nemesis.cluster.workers) >= WORKERS_MOST, len(nemesis.cluster.workers) <= WORKERS_LEAST
            if least or (not most and dice.random() < 0.5):
                nemesis.join(meanwhile)
            else:
                nemesis.drain(meanwhile)

        kinds: list[Callable[[], object]] = [
            kill_briefly,
            nemesis.kill,
            nemesis.kill,
            lambda: nemesis.kill(for_s=dice.random(), wiped=True),
            lambda: nemesis.kill(wiped=True),
            nemesis.kill_several,
            nemesis.pause,
            nemesis.pause,
            nemesis.cut,
            nemesis.cut,
            join_or_drain,
            join_or_drain,
            lambda: join_or_drain(nemesis.kill_master),
            nemesis.kill_master,
            nemesis.pause_master,
        ]
        if nemesis.cluster.etcd is not None:
            kinds += [
                nemesis.kill_master,
                nemesis.pause_master,
                nemesis.pause_master,
                nemesis.hand_over,
                nemesis.kill_etcd_member,
                nemesis.stop_etcd,
            ]
        # In the middle of a switch partitions are not settled, so no disk is lost then.
        amid: list[Callable[[], None] | None] = [
            None, None, nemesis.kill_master, kill_briefly, nemesis.kill, nemesis.pause, nemesis.cut
        ]  # fmt: skip
        while True:
            dice.shuffle(kinds)
            for number, blow in enumerate(kinds):
                if number % 2 == 0 and len(self._modes) > 1:
                    mode, meanwhile = next(switches), dice.choice(amid)
                    yield lambda mode=mode, meanwhile=meanwhile: nemesis.switch(mode, meanwhile)  # type: ignore[misc]
                yield blow

    def _say(self, line: str) -> None:
        print(f"{time.monotonic() - self._began_s:8.1f} s  {line}", flush=True)

    # --- the end ------------------------------------------------------------------------------------------------------

    def _report(self, nemesis: Nemesis, load: Load) -> int:
        history, switches = load.history, nemesis.switches
        if self._options.history is not None:
            with self._options.history.open("w") as file:
                dump(history, file)
        verdict = judge(history, self._modes[0] not in WEAK_MODES, [switched.switch for switched in switches])
        findings = self._findings + verdict.findings + unexplained(verdict.lost, nemesis.faults)
        lasted_s = max((op.returned_s or 0.0 for op in history), default=0.0) - min(op.invoked_s for op in history)
        outcomes = Counter(op.outcome.value for op in history)
        print(
            f"{len(history):,} operations in {lasted_s:.0f} s, {len(history) / lasted_s:.0f} a second: {told(outcomes)}"
        )
        why = Counter(op.code for op in history if op.outcome is Outcome.REFUSED and op.code is not None)
        print(f"refused: {told(why)}")
        print(f"faults: {told(Counter(fault.what for fault in nemesis.faults))}; {len(switches)} switches")
        print_returns(history, nemesis.kills, self._options.down_after)
        for switched in switches:
            pause = "master died" if switched.certificate is None else f"{switched.certificate['longest_pause_s']} s"
            slowest = slowest_s(history, switched.switch.began_s, switched.switch.ended_s)
            print(f"switch to {switched.mode:7} longest pause {pause}, slowest committed operation {slowest:.2f} s")
        stale = verdict.staleness
        print(f"async: {stale.stale:,} of {stale.reads:,} reads were old; {len(verdict.lost)} acknowledged writes lost")
        print(f"linearizable: {verdict.operations:,} operations judged in {len(verdict.periods)} periods", end="")
        print(f"; NOT DECIDED: {', '.join(verdict.undecided)}" if verdict.undecided else "")
        for finding in findings[:FINDINGS_SHOWN]:
            print(f"VIOLATION {finding}")
        print(f"{len(findings)} violations")
        return 1 if findings else 130 if self._interrupted else 3 if verdict.undecided else 0


def walk_all_switches(modes: Sequence[str], dice: random.Random) -> Iterator[str]:
    """The modes to switch to, in order, beginning in the first mode. Each round has every switch between two modes."""
    while True:
        trail = [modes[0]]
        left = {mode: [other for other in modes if other != mode] for mode in modes}
        for others in left.values():
            dice.shuffle(others)
        round_trip: list[str] = []
        while trail:  # Hierholzer: each mode has as many switches to it as from it, so the walk closes
            if left[trail[-1]]:
                trail.append(left[trail[-1]].pop())
            else:
                round_trip.append(trail.pop())
        assert len(round_trip) == len(list(permutations(modes, 2))) + 1
        yield from round_trip[::-1][1:]


def unexplained(lost: Sequence[Finding], faults: Sequence[Done]) -> list[Finding]:
    """The losses under async that no fault explains: there was none around the acknowledgement."""

    def is_near(time_s: float) -> bool:
        return any(fault.began_s - LOST_NEAR_S <= time_s <= fault.ended_s + LOST_NEAR_S for fault in faults)

    return [loss for loss in lost if not is_near(loss.operations[0].returned_s or 0.0)]


def print_returns(history: Sequence[Operation], kills: Sequence[Done], grace_s: float) -> None:
    """When could be written again what was held by workers that did not come back?"""
    returns: list[float] = []
    for kill in kills:
        returns += returns_s(history, kill.began_s, kill.ended_s)
    if not kills:
        return
    gap_s = max(longest_gap_s(history, kill.began_s, kill.ended_s) for kill in kills)
    print(f"{len(kills)} workers replaced; longest time without any committed write meanwhile {gap_s:.2f} s")
    print(f"{describe_returns(returns, grace_s)}; the aim of the p99 is {AIM_S:g} s")


def told(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.most_common()) or "none"


if __name__ == "__main__":
    sys.exit(main())
