#!/usr/bin/env python3
"""How long nothing can be written when a master among several fails: by each way of failing, many times.

    python bench/failover.py [--times 20] [--mode quorum] [--rate 200] [--json FILE]

Three masters share an etcd of three members; five workers keep their records in memory. Clients ask all three masters
at a constant rate, half puts, half gets. Each round does one thing after the other, and waits until the cluster is
whole in between:

- the master that leads is killed (SIGKILL), and started again once another one leads;
- it is stopped (SIGTERM);
- it is paused for 10 s (SIGSTOP), and wakes up deposed;
- a member of etcd is killed, and started again;
- all of etcd is stopped for 20 s.

For each it prints the longest time without any committed write: least, median, p95 and most. `bench/failover.svg` shows
every sample. The history of each run is judged: it must be linearizable (not under async), with nothing lost.

The clients share the machine with eleven processes, so a busy machine shows as longer times. `--lease` is the default.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Final

from bench.common import make_svg
from trikv.testing.judge.measure import longest_gap_s, percentile
from trikv.testing.judge.switched import judge
from trikv.testing.machine import describe_machine
from trikv.testing.processes.clients import Load, Mix
from trikv.testing.processes.cluster import LocalCluster
from trikv.testing.processes.nemesis import WEAK_MODES, Nemesis

PICTURE: Final = Path(__file__).with_suffix(".svg")
PAUSE_S: Final = 10.0
ETCD_AWAY_S: Final = 20.0
CALM_S: Final = 1.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--mode", default="quorum")
    parser.add_argument("--rate", type=float, default=200.0, help="operations per second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the samples there")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    machine = describe_machine()
    title = f"time without writes, mode {options.mode}: 3 masters, etcd of 3 members, 5 workers, {options.rate:g} op/s"
    print(f"{machine}; load of the machine before: {os.getloadavg()[0]:.1f}; seed {options.seed}\n{title}", flush=True)
    cluster = LocalCluster(mode=options.mode, workers=5, masters=3, etcd_members=3)
    load = Load(
        cluster.masters,
        seed=options.seed,
        clients=12,
        rate=options.rate,
        keys=500,
        mix=Mix(put=0.5, get=0.5, cas=0.0),
        value_bytes=100,
        hot=0.0,
        insists=2,
        fill=True,
    )
    with cluster, load:
        load.filled()
        gaps = play(Nemesis(cluster, load, random.Random(options.seed)), options.times)
        load.stop()
    verdict = judge(load.history, options.mode not in WEAK_MODES, [])
    for what, seconds in gaps.items():
        print(
            f"{what:34} least {min(seconds):5.2f} s, median {percentile(seconds, 0.5):5.2f} s, "
            f"p95 {percentile(seconds, 0.95):5.2f} s, most {max(seconds):5.2f} s, of {len(seconds)}"
        )
    findings = len(verdict.findings)
    print(f"{len(load.history):,} operations judged: {findings} violations, {len(verdict.undecided)} keys undecided")
    options.picture.write_text(draw(gaps, title, f"{machine}, seed {options.seed}"))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "seed": options.seed, "gaps_s": gaps}, indent=1))
    print(f"drawn: {options.picture}")
    return 1 if findings else 0


def play(nemesis: Nemesis, times: int) -> Mapping[str, list[float]]:
    """By what was done: the longest time without a write, of each time."""
    steps: list[tuple[str, Callable[[], object]]] = [
        ("leader killed", nemesis.kill_master),
        ("leader stopped", nemesis.hand_over),
        (f"leader paused for {PAUSE_S:g} s", lambda: nemesis.pause_master(PAUSE_S)),
        ("member of etcd killed", nemesis.kill_etcd_member),
        (f"all of etcd stopped for {ETCD_AWAY_S:g} s", lambda: nemesis.stop_etcd(ETCD_AWAY_S)),
    ]
    gaps: dict[str, list[float]] = defaultdict(list)
    for number in range(times):
        for what, step in steps:
            began_s = nemesis.load.now_s()
            step()
            time.sleep(CALM_S)
            gap_s = longest_gap_s(nemesis.load.history, began_s, nemesis.load.now_s())
            gaps[what].append(gap_s)
            print(f"{number + 1:3}  {what:34} {gap_s:5.2f} s", flush=True)
    return gaps


# --- the picture ------------------------------------------------------------------------------------------------------

WIDTH, ROW, TOP, LEFT, RIGHT = 960, 52, 56, 250, 930

STYLE: Final = """
  text { stroke: var(--ground); stroke-width: 4px; stroke-linejoin: round; paint-order: stroke; }
  .grid { stroke: var(--faint); }
  .sample { fill: var(--done); opacity: 0.55; }
  .median { stroke: var(--slow); stroke-width: 2; }
"""


def draw(gaps: Mapping[str, Sequence[float]], title: str, note: str) -> str:
    """The SVG: a row for each way of failing, a dot for each time, and a stroke at the median."""
    most_s = max(1.0, *(max(seconds) for seconds in gaps.values())) * 1.05
    bottom = TOP + ROW * len(gaps)

    def x(seconds: float) -> float:
        return LEFT + (RIGHT - LEFT) * seconds / most_s

    def text(at_x: float, at_y: float, words: str, kind: str = "", anchor: str = "start") -> str:
        return f'<text x="{at_x:.1f}" y="{at_y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'

    drawn = [text(16, 26, title)]
    step = next(step for step in (0.5, 1, 2, 5, 10) if most_s / step <= 12)
    for number in range(int(most_s / step) + 1):
        at_x = x(number * step)
        drawn.append(f'<line x1="{at_x:.1f}" y1="{TOP}" x2="{at_x:.1f}" y2="{bottom}" class="grid"/>')
        drawn.append(text(at_x, bottom + 18, f"{number * step:g} s", "quiet", "middle"))
    for row, (what, seconds) in enumerate(gaps.items()):
        at_y = TOP + ROW * (row + 0.5)
        drawn.append(text(LEFT - 12, at_y + 4, what, "", "end"))
        for number, second in enumerate(seconds):
            spread = at_y + (number % 5 - 2) * 6
            drawn.append(f'<circle class="sample" cx="{x(second):.1f}" cy="{spread:.1f}" r="4"/>')
        median = x(percentile(seconds, 0.5))
        drawn.append(f'<line class="median" x1="{median:.1f}" y1="{at_y - 18}" x2="{median:.1f}" y2="{at_y + 18}"/>')
    drawn.append(text(16, bottom + 44, f"{note}. The stroke is the median.", "quiet"))
    return make_svg(WIDTH, bottom + 56, title, STYLE, "\n".join(drawn))


if __name__ == "__main__":
    sys.exit(main())
