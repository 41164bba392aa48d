#!/usr/bin/env python3
"""A cluster that scales by itself: a load that triples and then ends, and no request that fails for it.

    python scripts/autoscale_demo.py [--mode chain] [--rate 60] [--seed 1]

Master and workers are real processes with disks. Three workers are there from the beginning, and the master may add as
many as three. Twelve clients keep to a rate, half puts, half gets, over 300 keys. After ten seconds the rate is
tripled. When the master wants no further worker, the load ends, but for twelve requests a second: they would notice
a worker that goes too early. The end is when all added workers are gone. Then every key is read, and the history of all
requests is judged.

`bench/autoscale.svg` shows requests, the use of the workers' capacity by which the master decides, and the workers that
hold data. Exit code 1: a request failed, a key cannot be read, or the history is not linearizable.

It takes about two minutes. One run is one sample; `tests/sim/test_scaling.py` has crashes at every step.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Final, NamedTuple

from trikv.api import Promise
from trikv.client import Client
from trikv.core.errors import Outcome
from trikv.core.scaling import HIGH, LOW
from trikv.registry import load_registry
from trikv.testing.judge import linear
from trikv.testing.judge.history import MET, Judgement, Operation
from trikv.testing.machine import describe_machine
from trikv.testing.processes.clients import Load, Mix
from trikv.testing.processes.cluster import LocalCluster, wait_until

PICTURE: Final = Path(__file__).resolve().parent.parent / "bench" / "autoscale.svg"
FEWEST, MOST = 3, 6
CLIENTS: Final = 12
KEYS: Final = 300
CALM_S: Final = 10.0
AT_MOST_S: Final = 180.0  # for each phase
TRICKLE: Final = 12.0  # requests a second when the load has ended
LOOK_S: Final = 0.5
BIN_S: Final = 1.0
PEAK_USE: Final = 0.74  # of five workers, at three times the rate
CALLS: Final = {"quorum": 2.5, "chain": 1.0}  # that a put and a get cost the master, on average; 2 in other modes


class Look(NamedTuple):
    """The cluster at one moment. `use`: of its workers' capacity, from 0 to 1. `workers`: those that hold data."""

    at_s: float
    use: float
    workers: int


class Mark(NamedTuple):
    """Something that happened."""

    at_s: float
    text: str


@dataclass
class Seen:
    """What was seen of the cluster while the load ran."""

    looks: list[Look] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", default="quorum")
    parser.add_argument("--rate", type=float, default=60.0, help="requests per second, before they are tripled")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    promise = load_registry().strategy(options.mode).promise
    max_load = round(3 * options.rate * CALLS.get(options.mode, 2.0) / (5 * PEAK_USE))
    machine = f"{describe_machine()}, seed {options.seed}"
    title = (
        f"{options.mode}, --autoscale {FEWEST}..{MOST} --max-load {max_load}: "
        f"{options.rate:g}, {3 * options.rate:g}, {TRICKLE:g} requests/s"
    )
    print(f"{machine}; load of the machine before: {os.getloadavg()[0]:.1f}\n{title}", flush=True)
    master_options = ("--autoscale", f"{FEWEST}..{MOST}", "--max-load", str(max_load))
    cluster = LocalCluster(mode=options.mode, workers=FEWEST, storage="rocksdb", master_options=master_options)
    load = Load(
        cluster.masters,
        seed=options.seed,
        clients=CLIENTS,
        rate=options.rate,
        keys=KEYS,
        mix=Mix(put=0.5, get=0.5, cas=0.0),
        hot=0.0,
        fill=True,
    )
    with cluster, load:
        load.filled()
        wait_until(lambda: scaling_of(cluster)["use"] < HIGH, what="the keys are written", deadline_s=AT_MOST_S)
        began_s = load.now_s()
        seen = play(cluster, load, began_s, options.rate)
        unread = load.read_all()
        load.stop()
    options.picture.write_text(
        draw(
            load.history,
            seen,
            began_s,
            title,
            f"{machine}. Bins of {BIN_S:g} s; moving data to a new worker is use, too.",
        )
    )
    print(f"drawn: {options.picture}")
    return judge(load.history, unread, promise)


def scaling_of(cluster: LocalCluster) -> dict[str, Any]:
    with cluster.client() as client:
        scaling: dict[str, Any] = client.cluster()["autoscale"]
    return scaling


def play(cluster: LocalCluster, load: Load, began_s: float, rate: float) -> Seen:
    """Make the load, and look on."""
    seen = Seen()

    def mark(text: str) -> None:
        seen.marks.append(Mark(load.now_s() - began_s, text))
        print(f"{seen.marks[-1].at_s:7.1f} s  {text}", flush=True)

    def wait(condition: Callable[[], bool], what: str) -> None:
        wait_until(condition, what=what, deadline_s=AT_MOST_S, every_s=LOOK_S)

    def is_enough() -> bool:
        """Has the load been no reason for another worker for some time?"""
        lately = [look for look in seen.looks if look.at_s > load.now_s() - began_s - CALM_S]
        return lately[0].workers > FEWEST and all(look.use <= HIGH for look in lately)

    with looking_on(cluster, load, began_s, seen, mark):
        wait(lambda: load.now_s() - began_s > CALM_S, "the time before the load")
        mark("load triples")
        load.set_rate(3 * rate)
        wait(is_enough, "the cluster is large enough")
        mark("load ends")
        load.set_rate(TRICKLE)
        wait(lambda: not scaling_of(cluster)["own"], "all workers that were added are gone")
        gone_s = load.now_s()
        wait(lambda: load.now_s() - gone_s > CALM_S / 2, "the time after that")
    seen.marks.append(Mark(load.now_s() - began_s, "end"))
    return seen


@contextmanager
def looking_on(
    cluster: LocalCluster, load: Load, began_s: float, seen: Seen, mark: Callable[[str], None]
) -> Iterator[None]:
    ended = threading.Event()

    def look(client: Client, last_event: str) -> str:
        state = client.cluster()
        held = sum(worker["copies"] > 0 for worker in state["workers"])
        seen.looks.append(Look(load.now_s() - began_s, state["autoscale"]["use"], held))
        for event in client.events(after=last_event, follow=False):
            last_event = event["id"]
            if event["kind"] in ("scaling_up", "scaling_down"):
                print(f"           {event['why']}", flush=True)
                mark("a worker is started" if event["kind"] == "scaling_up" else "a worker is drained")
            elif event["kind"] in ("worker_stopped", "worker_start_failed"):
                mark("a worker is stopped" if event["kind"] == "worker_stopped" else "a worker did not start")
        return last_event

    def run() -> None:
        with cluster.client() as client:
            last_event = client.cluster()["last_event"]
            while not ended.wait(LOOK_S):
                last_event = look(client, last_event)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def judge(history: Sequence[Operation], unread: Sequence[str], promise: Promise) -> int:
    """Print what came of all requests."""
    failed = Counter(
        f"{op.kind.value} {op.outcome.value} ({op.code})"
        for op in history
        if op.outcome is not Outcome.COMMITTED and op.code not in MET
    )
    verdict = linear.check(history)
    print(f"{len(history):,} requests, {sum(failed.values())} failed, {len(unread)} of {KEYS:,} keys cannot be read")
    for what, count in failed.most_common():
        print(f"  {count} {what}")
    if promise is Promise.CP:
        print(f"history: {verdict.judgement}")
    is_kept = promise is Promise.AP or verdict.judgement is Judgement.LINEARIZABLE
    return 0 if is_kept and not failed and not unread else 1


# --- the picture ------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT = 960, 620
LEFT, RIGHT = 64, 940
MARKS_TOP = 44
RATE: Final = (150.0, 290.0)  # top and bottom of each part
USE: Final = (330.0, 440.0)
WORKERS: Final = (480.0, 570.0)
USE_DRAWN: Final = 1.6  # at most

# A ground of its own, in a light and a dark version, since the page around the picture may be either.
STYLE: Final = """
  svg { --ground: #ffffff; --ink: #1f2328; --faint: #d1d9e0; --quiet: #59636e; --done: #0969da; --bad: #cf222e;
        --use: #8250df; --workers: #1a7f37; }
  @media (prefers-color-scheme: dark) {
    svg { --ground: #0d1117; --ink: #f0f6fc; --faint: #3d444d; --quiet: #9198a1; --done: #4493f8; --bad: #f85149;
          --use: #ab7df8; --workers: #3fb950; }
  }
  text { font: 13px system-ui, sans-serif; fill: var(--ink); }
  text { stroke: var(--ground); stroke-width: 4px; stroke-linejoin: round; paint-order: stroke; }
  .quiet { fill: var(--quiet); font-size: 12px; }
  .ground { fill: var(--ground); }
  .grid { stroke: var(--faint); }
  .mark { stroke: var(--quiet); stroke-dasharray: 3 3; }
  .limit { stroke: var(--use); stroke-dasharray: 6 4; }
  .done, .use, .workers { fill: none; stroke: var(--done); stroke-width: 2; }
  .use { stroke: var(--use); } .workers { stroke: var(--workers); }
  .bad { fill: var(--bad); opacity: 0.75; }
  .t-done { fill: var(--done); } .t-bad { fill: var(--bad); } .t-use { fill: var(--use); }
  .t-workers { fill: var(--workers); }
"""


def draw(history: Iterable[Operation], seen: Seen, began_s: float, title: str, note: str) -> str:
    """The SVG: requests above, the use of the capacity and the workers below, and what happened."""
    length_s = seen.marks[-1].at_s
    done, failed = _count(history, began_s, int(length_s / BIN_S))
    most = max(*done, *failed, 1.0) * 1.1

    def x(at_s: float) -> float:
        return LEFT + (RIGHT - LEFT) * at_s / length_s

    def y(part: tuple[float, float], share: float) -> float:
        return part[1] - (part[1] - part[0]) * share

    def text(at_x: float, at_y: float, words: str, kind: str = "", anchor: str = "start") -> str:
        return f'<text x="{at_x:.1f}" y="{at_y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'

    def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
        return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'

    def level(at_y: float, words: str, kind: str = "grid") -> list[str]:
        return [line(LEFT, at_y, RIGHT, at_y, kind), text(LEFT - 8, at_y + 4, words, "quiet", "end")]

    def path(points: Iterable[tuple[float, float]], kind: str) -> str:
        return f'<polyline class="{kind}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}"/>'

    step = next(step for step in (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if most / step <= 6)
    drawn = [text(LEFT, 24, title)]
    for rate in range(0, int(most) + 1, step):
        drawn += level(y(RATE, rate / most), f"{rate:,}")
    drawn += level(USE[1], "0 %") + level(y(USE, HIGH / USE_DRAWN), f"{HIGH:.0%}".replace("%", " %"), "limit")
    drawn += level(USE[0], f"{USE_DRAWN:.0%}".replace("%", " %"))
    for count in range(FEWEST - 1, MOST + 1):
        drawn += level(y(WORKERS, (count - FEWEST + 1) / (MOST - FEWEST + 1)), str(count))
    for second in range(0, int(length_s) + 1, 10):
        drawn.append(text(x(second), WORKERS[1] + 18, f"{second} s", "quiet", "middle"))
    for number, mark in enumerate(seen.marks[:-1]):
        at_y = MARKS_TOP + 16 * (number % 6)
        on_left = x(mark.at_s) > RIGHT - 140
        drawn.append(line(x(mark.at_s), at_y + 4, x(mark.at_s), WORKERS[1], "mark"))
        drawn.append(text(x(mark.at_s) + (-4 if on_left else 4), at_y + 8, mark.text, "", "end" if on_left else ""))
    width = (RIGHT - LEFT) * BIN_S / length_s - 1
    for number, rate_failed in enumerate(failed):
        if rate_failed:
            top = y(RATE, rate_failed / most)
            drawn.append(
                f'<rect class="bad" x="{x(number * BIN_S):.1f}" y="{top:.1f}" width="{width:.1f}" '
                f'height="{RATE[1] - top:.1f}"/>'
            )
    committed = ((x((number + 0.5) * BIN_S), y(RATE, each / most)) for number, each in enumerate(done))
    used = ((x(look.at_s), y(USE, min(1.0, look.use / USE_DRAWN))) for look in seen.looks)
    held = _steps(seen.looks, x, lambda count: y(WORKERS, (count - FEWEST + 1) / (MOST - FEWEST + 1)))
    drawn += [path(committed, "done"), path(used, "use"), path(held, "workers")]
    drawn.append(text(LEFT, RATE[0] - 8, "requests per second, committed", "t-done"))
    drawn.append(text(LEFT + 220, RATE[0] - 8, f"and failed: {round(sum(failed) * BIN_S)}", "t-bad"))
    rule = f"above {HIGH:.0%} one is added; one goes if the others would have less than {LOW:.0%}"
    drawn.append(text(LEFT, USE[0] - 8, f"use of the workers' capacity: {rule}", "t-use"))
    drawn.append(text(LEFT, WORKERS[0] - 8, "workers that hold data", "t-workers"))
    drawn.append(text(LEFT, HEIGHT - 10, note, "quiet"))
    body = "\n".join(drawn)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="{escape(title)}">\n<style>{STYLE}</style>\n'
        f'<rect class="ground" width="{WIDTH}" height="{HEIGHT}"/>\n{body}\n</svg>\n'
    )


def _count(history: Iterable[Operation], began_s: float, bins: int) -> tuple[list[float], list[float]]:
    """Requests a second that ended in each bin: committed, and failed."""
    done, failed = [0.0] * bins, [0.0] * bins
    for op in history:
        number = int(((op.returned_s or op.invoked_s) - began_s) / BIN_S)
        if 0 <= number < bins and op.invoked_s >= began_s:
            committed = op.outcome is Outcome.COMMITTED or op.code in MET
            (done if committed else failed)[number] += 1 / BIN_S
    return done, failed


def _steps(
    looks: Sequence[Look], x: Callable[[float], float], y: Callable[[int], float]
) -> Iterable[tuple[float, float]]:
    before: Look | None = None
    for look in looks:
        if before is not None and look.workers != before.workers:
            yield x(look.at_s), y(before.workers)
        yield x(look.at_s), y(look.workers)
        before = look


if __name__ == "__main__":
    sys.exit(main())
