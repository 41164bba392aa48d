#!/usr/bin/env python3
"""What clients notice while a cluster heals: throughput and latency through a kill, a replacement, a join, a switch.

    python bench/heal.py [--mode chain] [--to quorum] [--rate 300] [--seed 1]

The cluster has a master, five workers on real disks, and 10,000 keys. Twelve clients ask at a constant rate, half gets,
half puts. A worker is killed and stays away until the others have replaced it. It comes back and is given its share
again. A sixth worker joins. The mode is switched. `bench/heal.svg` shows all of it in bins of half a second. The
figures printed are: when the keys of the dead worker could be written again, how many copies were moved and how many
had to be, and the longest wait of a request because of the switch.

At a constant rate, a client that was held up catches up, so a pause shows as a gap and then a peak. The load shares the
machine with the cluster. One run is one sample; `scripts/chaos.py` collects many.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.common import make_svg
from trikv.client import Client
from trikv.core.errors import Outcome
from trikv.testing.judge.history import Operation
from trikv.testing.judge.measure import describe_returns, longest_gap_s, percentile, returns_s
from trikv.testing.machine import describe_machine
from trikv.testing.processes.clients import Load, Mix
from trikv.testing.processes.cluster import LocalCluster, wait_until
from trikv.testing.processes.nemesis import Nemesis

PICTURE: Final = Path(__file__).with_suffix(".svg")
BIN_S: Final = 0.5
CALM_S: Final = 4.0  # between two events, so that each can be told from the next
DOWN_AFTER_S: Final = 5.0


class Mark(NamedTuple):
    """An event in the picture."""

    at_s: float
    text: str


class Bin(NamedTuple):
    """What clients saw in half a second."""

    at_s: float
    done: float  # operations committed per second
    failed: float  # operations per second that did not commit
    p99_ms: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", default="chain")
    parser.add_argument("--to", default="quorum", help="the mode that it is switched to")
    parser.add_argument("--rate", type=float, default=300.0, help="operations per second")
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    machine = describe_machine()
    load_before = os.getloadavg()[0]
    title = (
        f"{options.mode} to {options.to}: {options.clients} clients, {options.rate:g} operations/s, "
        f"{options.keys:,} keys, 5 workers, 3 replicas"
    )
    print(f"{machine}; load of the machine before: {load_before:.1f}; seed {options.seed}\n{title}", flush=True)
    cluster = LocalCluster(mode=options.mode, workers=5, storage="rocksdb", down_after_s=DOWN_AFTER_S)
    load = Load(
        cluster.masters,
        seed=options.seed,
        clients=options.clients,
        rate=options.rate,
        keys=options.keys,
        mix=Mix(put=0.5, get=0.5, cas=0.0),
        value_bytes=100,
        hot=0.0,
        insists=3,
        fill=True,
    )
    with cluster, load, cluster.client() as client:
        load.filled()
        began_s = load.now_s()
        marks = play(cluster, load, client, options)
        load.stop()
    bins = fill_bins(load.history, began_s, marks)
    options.picture.write_text(draw(bins, marks, title, f"{machine}, seed {options.seed}"))
    print(f"drawn: {options.picture}")


def play(cluster: LocalCluster, load: Load, client: Client, options: argparse.Namespace) -> list[Mark]:
    """Make everything happen, and print its figures. The marks have times since the beginning."""
    began_s = load.now_s()
    marks: list[Mark] = []
    nemesis = Nemesis(cluster, load, random.Random(options.seed))

    def mark(text: str) -> float:
        now_s = load.now_s()
        marks.append(Mark(now_s - began_s, text))
        print(f"{now_s - began_s:7.1f} s  {text}", flush=True)
        return now_s

    def tell_moves(before: dict[str, Any], least: int) -> None:
        """Print how much was moved since that state, and the fewest copies of partitions that had to be."""
        after = client.cluster()
        copied = after["progress"]["keys_moved"] - before["progress"]["keys_moved"]
        repaired = after["progress"]["keys_repaired"] - before["progress"]["keys_repaired"]
        happened = client.events(after=before["last_event"], follow=False)
        given = sum(sum(event["joins"].values()) for event in happened if event["kind"] == "configuration_changed")
        print(
            f"           {given:,} copies of partitions, {given / least:.2f} times the least ({least:,}); "
            f"{copied:,} keys copied, {repaired:,} repaired, the rest by clients meanwhile"
        )

    def share(worker: str) -> int:
        return next(int(w["copies"]) for w in client.cluster()["workers"] if w["id"] == worker)

    copies = client.cluster()["partitions"]["total"] * client.cluster()["replicas"]
    time.sleep(CALM_S)

    victim = cluster.workers[1]
    held, before = share(victim.id), client.cluster()
    killed_s = mark("worker killed")
    victim.kill()
    wait_until(lambda: share(victim.id) == 0, what="the dead worker is replaced", deadline_s=60, every_s=0.25)
    mark("replaced")
    nemesis.await_whole()
    settled_s = mark("copies restored")
    tell_moves(before, held)
    time.sleep(CALM_S)

    before = client.cluster()
    victim.start()
    mark("worker back")
    nemesis.await_whole()
    mark("has its share")
    tell_moves(before, copies // 5)
    time.sleep(CALM_S)

    before = client.cluster()
    cluster.add_worker()
    mark("sixth joins")
    nemesis.await_whole()
    mark("has its share")
    tell_moves(before, copies // 6)
    time.sleep(CALM_S)

    mark(f"switch to {options.to}")
    certificate = client.set_mode(options.to)
    mark("switched")
    print(
        f"           {certificate['keys_compared']:,} keys compared, {certificate['keys_repaired']:,} repaired in "
        f"{certificate['duration_s']} s; longest pause {certificate['longest_pause_s']} s"
    )
    time.sleep(CALM_S)
    mark("end")
    print(describe_returns(returns_s(load.history, killed_s, settled_s), DOWN_AFTER_S))
    print(f"longest time without any committed write {longest_gap_s(load.history, killed_s, settled_s):.2f} s")
    return marks


def fill_bins(history: Iterable[Operation], began_s: float, marks: Sequence[Mark]) -> list[Bin]:
    """The operations by the time of their end, from the beginning to the last mark."""
    count = int(marks[-1].at_s / BIN_S)
    took: list[list[float]] = [[] for _ in range(count)]
    failed = [0] * count
    for op in history:
        number = int(((op.returned_s or op.invoked_s) - began_s) / BIN_S)
        if op.returned_s is None or op.returned_s < began_s or number >= count:
            continue
        if op.outcome is Outcome.COMMITTED:
            took[number].append(op.returned_s - op.invoked_s)
        else:
            failed[number] += 1
    return [
        Bin((i + 0.5) * BIN_S, len(took[i]) / BIN_S, failed[i] / BIN_S, 1000 * percentile(took[i], 0.99))
        for i in range(count)
    ]


# --- the picture ------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT = 960, 520
LEFT, RIGHT = 64, 940
MARKS_TOP, MARKS_BOTTOM = 44, 128
RATE_TOP, RATE_BOTTOM = 150, 300
P99_TOP, P99_BOTTOM = 340, 470
P99_LEAST_MS, P99_MOST_MS = 1.0, 10_000.0

STYLE: Final = """
  text { stroke: var(--ground); stroke-width: 4px; stroke-linejoin: round; paint-order: stroke; }
  .grid { stroke: var(--faint); }
  .mark { stroke: var(--quiet); stroke-dasharray: 3 3; }
  .done, .slow { fill: none; stroke: var(--done); stroke-width: 2; }
  .slow { stroke: var(--slow); }
  .bad { fill: var(--bad); opacity: 0.75; }
  .t-done { fill: var(--done); } .t-bad { fill: var(--bad); } .t-slow { fill: var(--slow); }
"""


def draw(bins: Sequence[Bin], marks: Sequence[Mark], title: str, note: str) -> str:
    """The SVG: throughput and failures above, the p99 on a logarithmic scale below, and the events."""
    from math import log10

    length_s = marks[-1].at_s
    most = max([bin_.done for bin_ in bins] + [bin_.failed for bin_ in bins] + [1.0]) * 1.05

    def x(at_s: float) -> float:
        return LEFT + (RIGHT - LEFT) * at_s / length_s

    def y_rate(rate: float) -> float:
        return RATE_BOTTOM - (RATE_BOTTOM - RATE_TOP) * rate / most

    def y_p99(ms: float) -> float:
        share = log10(min(max(ms, P99_LEAST_MS), P99_MOST_MS) / P99_LEAST_MS) / log10(P99_MOST_MS / P99_LEAST_MS)
        return P99_BOTTOM - (P99_BOTTOM - P99_TOP) * share

    def text(at_x: float, at_y: float, words: str, kind: str = "", anchor: str = "start") -> str:
        return f'<text x="{at_x:.1f}" y="{at_y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'

    def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
        return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'

    def path(points: Iterable[tuple[float, float]], kind: str) -> str:
        return f'<polyline class="{kind}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}"/>'

    step = next(step for step in (10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if most / step <= 6)
    drawn = [text(LEFT, 24, title)]
    for rate in range(0, int(most) + 1, step):
        drawn += [line(LEFT, y_rate(rate), RIGHT, y_rate(rate), "grid")]
        drawn += [text(LEFT - 8, y_rate(rate) + 4, f"{rate:,}", "quiet", "end")]
    for ms in (1, 10, 100, 1000, 10_000):
        drawn += [line(LEFT, y_p99(ms), RIGHT, y_p99(ms), "grid")]
        drawn += [text(LEFT - 8, y_p99(ms) + 4, f"{ms} ms" if ms < 1000 else f"{ms // 1000} s", "quiet", "end")]
    for second in range(0, int(length_s) + 1, 5):
        drawn.append(text(x(second), P99_BOTTOM + 18, f"{second} s", "quiet", "middle"))
    for number, mark in enumerate(marks[:-1]):
        at_y = MARKS_TOP + 16 * (number % 6)
        on_left = x(mark.at_s) > RIGHT - 120
        drawn.append(line(x(mark.at_s), at_y + 4, x(mark.at_s), P99_BOTTOM, "mark"))
        drawn.append(
            text(x(mark.at_s) + (-4 if on_left else 4), at_y + 8, mark.text, "", "end" if on_left else "start")
        )
    for each in bins:
        if each.failed:
            width = (RIGHT - LEFT) * BIN_S / length_s - 1
            top = y_rate(each.failed)
            drawn.append(
                f'<rect class="bad" x="{x(each.at_s) - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" '
                f'height="{RATE_BOTTOM - top:.1f}"/>'
            )
    drawn.append(path(((x(b.at_s), y_rate(b.done)) for b in bins), "done"))
    drawn.append(path(((x(b.at_s), y_p99(b.p99_ms)) for b in bins if b.done), "slow"))
    drawn.append(text(LEFT, RATE_TOP - 8, "operations per second, committed", "t-done"))
    drawn.append(text(LEFT + 240, RATE_TOP - 8, "and not committed", "t-bad"))
    drawn.append(text(LEFT, P99_TOP - 8, "p99 of the committed ones, from request to answer", "t-slow"))
    drawn.append(text(LEFT, HEIGHT - 12, f"{note}. Bins of {BIN_S:g} s; given up after {DOWN_AFTER_S:g} s.", "quiet"))
    return make_svg(WIDTH, HEIGHT, title, STYLE, "\n".join(drawn))


if __name__ == "__main__":
    main()
