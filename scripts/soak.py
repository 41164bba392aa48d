#!/usr/bin/env python3
"""Simulate many seeds of a mode on all cores, and print which of them broke the mode's promise.

    python scripts/soak.py --mode quorum --seeds 0..5000
    python scripts/soak.py --mode all --seeds 17..18 --story     one seed, with all that happened in it
    python scripts/soak.py --plan changing --seeds 0..1000       configurations change all the time
    python scripts/soak.py --plan zoned --seeds 0..1000          the same, and the workers are in three zones
    python scripts/soak.py --plan masters --seeds 0..1000        three masters share the document
    python scripts/soak.py --plan scaling --seeds 0..1000        the cluster scales by itself, with crashes
    python scripts/soak.py --switch sync,quorum                  from the first mode to the second, and back, ...

Exit code 1 if a seed was a violation, 3 if none was and one was not decided.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import permutations

from trikv.registry import load_registry
from trikv.testing.sim import CHANGING, MASTERS, SCALING, SWITCHING, USUAL, Run, Verdict, simulate
from trikv.testing.sim.plan import SourceOfSchedules

PLANS: dict[str, SourceOfSchedules] = {
    "usual": USUAL,
    "changing": CHANGING,
    "switching": SWITCHING,
    "scaling": SCALING,
    "masters": MASTERS,
    "zoned": replace(CHANGING, zones=3),
}
_FINDINGS_SHOWN = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", default="all", help="an installed mode, or all")
    parser.add_argument("--seeds", default="0..100", help="A..B: from A up to, not including, B")
    parser.add_argument("--plan", choices=PLANS, default="usual")
    parser.add_argument("--switch", metavar="A,B", help="found in mode A, and switch between the two; all: every pair")
    parser.add_argument("-j", "--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--story", action="store_true", help="print every event of every run")
    arguments = parser.parse_args()
    first, _, end = arguments.seeds.partition("..")
    seeds = range(int(first), int(end))
    installed = list(load_registry().strategies)
    modes = installed if arguments.mode == "all" else [arguments.mode]
    jobs: list[tuple[str, SourceOfSchedules]]
    if arguments.switch:
        pairs = list(permutations(installed, 2)) if arguments.switch == "all" else [arguments.switch.split(",")]
        jobs = [(first, replace(SWITCHING, modes=(first, second))) for first, second in pairs]
    else:
        jobs = [(mode, PLANS[arguments.plan]) for mode in modes]
    worst = 0
    for mode, plan in jobs:
        verdicts = soak(mode, plan, seeds, arguments.processes, story=arguments.story)
        worst = 1 if verdicts[Verdict.VIOLATION] or worst == 1 else 3 if verdicts[Verdict.UNDECIDED] else worst
    return worst


def soak(mode: str, plan: SourceOfSchedules, seeds: range, processes: int, *, story: bool) -> Counter[Verdict]:
    """Run these seeds; print each that did not hold, and a line about all of them."""
    began_s = time.perf_counter()
    verdicts: Counter[Verdict] = Counter()
    outcomes: Counter[str] = Counter()
    modes = {mode: None}
    faults: Counter[str] = Counter()
    deposed: Counter[str] = Counter()
    takeovers = 0
    virtual_s = cpu_s = 0.0
    for seed, run, spent_s in _runs(mode, plan, seeds, processes, story):
        verdicts[run.verdict] += 1
        outcomes.update(run.outcomes)
        faults.update(run.faults)
        deposed.update(run.deposed)
        takeovers += run.takeovers
        modes |= dict.fromkeys(run.schedule.modes)
        virtual_s += run.virtual_s
        cpu_s += spent_s
        for event in run.trace:
            print(f"{event.time_s:10.6f} {event.what:7} {event.source:>8} > {event.target:8} {event.text}")
        if run.verdict is not Verdict.HELD:
            print(f"{mode}, seed {seed}: {run.verdict.value} {', '.join(run.undecided)}", flush=True)
            for finding in run.findings[:_FINDINGS_SHOWN]:
                print(f"  {finding}", flush=True)
    wall_s = time.perf_counter() - began_s
    print(
        f"{' and '.join(modes)}: {len(seeds):,} histories, {_counted(verdicts)}; {sum(outcomes.values()):,} operations "
        f"({_counted(outcomes)}); {_of_masters(takeovers, deposed)}"
        f"{sum(faults.values()):,} faults ({_counted(faults)}); "
        f"{virtual_s / 3600:.1f} simulated hours in {wall_s:.0f} s, {len(seeds) / cpu_s:.1f} histories per CPU second",
        flush=True,
    )
    return verdicts


def _runs(
    mode: str, plan: SourceOfSchedules, seeds: range, processes: int, story: bool
) -> Iterator[tuple[int, Run, float]]:
    one = partial(_run_one, mode, plan, story)
    if processes == 1 or len(seeds) == 1:
        yield from map(one, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(processes, _quieten) as pool:
        yield from pool.imap(one, seeds, chunksize=4)


def _run_one(mode: str, plan: SourceOfSchedules, story: bool, seed: int) -> tuple[int, Run, float]:
    began_s = time.process_time()
    run = simulate(load_registry().strategy(mode), seed, plan, trace=story)
    run.history.clear()  # it is judged already, and costly to send
    return seed, run, time.process_time() - began_s


def _of_masters(takeovers: int, deposed: Counter[str]) -> str:
    if not takeovers:
        return ""
    asked = f"{sum(deposed.values()):,} of them asked of a deposed one ({_counted(deposed)})"
    return f"{takeovers:,} times a master began to lead, {asked}; "


def _counted(counts: Counter[str] | Counter[Verdict]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.most_common())


def _quieten() -> None:
    """Nodes that are killed by design log much about it."""
    logging.getLogger("trikv").setLevel(logging.CRITICAL)


if __name__ == "__main__":
    _quieten()
    sys.exit(main())
