#!/usr/bin/env python3
"""How fast the simulated world is: histories per CPU second, in each mode, on one core.

    python bench/sim.py [--seeds 20]

A history has a master, five workers, four clients and a minute of virtual time; its operations and faults are printed
too. It measures CPU time, not wall time, so other load disturbs it only through shared caches and cores.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time

from trikv.registry import load_registry
from trikv.testing.machine import describe_machine
from trikv.testing.sim import Plan, simulate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    seeds = parser.parse_args().seeds
    logging.getLogger("trikv").setLevel(logging.CRITICAL)
    print(f"{describe_machine()}, seeds 0 to {seeds - 1}")
    for name, strategy in load_registry().strategies.items():
        simulate(strategy, 0, Plan())  # imports and caches
        spent_s, operations, faults, virtual_s = [], 0, 0, 0.0
        for seed in range(seeds):
            began_s = time.process_time()
            run = simulate(strategy, seed, Plan())
            spent_s.append(time.process_time() - began_s)
            operations += len(run.history)
            faults += sum(run.faults.values())
            virtual_s += run.virtual_s
        total_s = sum(spent_s)
        print(
            f"{name:8} {seeds / total_s:5.1f} histories/s (the median one took {statistics.median(spent_s):.3f} s), "
            f"{virtual_s / total_s:.0f} times real time; each has {operations / seeds:.0f} operations, "
            f"{faults / seeds:.1f} faults, {virtual_s / seeds:.1f} s of virtual time"
        )


if __name__ == "__main__":
    main()
