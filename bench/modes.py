"""The same load over HTTP in each mode: what the four promises cost on this machine.

    python bench/modes.py --seconds 5 --connections 32 --read-share 0.5

Each mode gets a cluster of its own for each round: a master and five workers as child processes, three replicas. The
modes take turns, so a machine that slows down slows all of them. Keys and the mix of reads and writes follow from one
seed. Every connection sends its next request when the last was answered (a closed loop), so throughput follows from
latency, and no request waits in a queue unseen.

The load comes from this process, over `HttpConnection`, and shares the machine with the cluster. The figures compare
modes with each other; they promise nothing, and there is no threshold.

Left out: networks and disks of different machines, contention for one key, values that grow.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from dataclasses import dataclass, field

import trio

from trikv.testing.judge.measure import percentile
from trikv.testing.machine import describe_machine
from trikv.testing.processes.cluster import LocalCluster
from trikv.testing.processes.connection import HttpConnection, make_request

MODES = ("sync", "async", "chain", "quorum")


@dataclass
class Tally:
    """What was measured of one mode, over all rounds."""

    seconds: float = 0.0
    put_s: list[float] = field(default_factory=list)
    get_s: list[float] = field(default_factory=list)
    failures: Counter[int] = field(default_factory=Counter)  # by HTTP status

    @property
    def operations_per_s(self) -> float:
        return (len(self.put_s) + len(self.get_s)) / self.seconds if self.seconds else 0.0


async def drive(port: int, options: argparse.Namespace, seed: str, tally: Tally) -> None:
    """Fill the cluster, then send requests for `options.seconds`."""
    dice = random.Random(seed)
    value = dice.randbytes(options.value_bytes)
    paths = [f"/v1/kv/bench-{i:08d}" for i in range(options.keys)]

    async def fill(share: list[str]) -> None:
        async with HttpConnection(lambda: port) as connection:
            await connection.dial()
            for path in share:
                await connection.ask(make_request("PUT", path, value))

    async def load(own_dice: random.Random, until_s: float) -> None:
        async with HttpConnection(lambda: port) as connection:
            await connection.dial()
            while (began_s := time.perf_counter()) < until_s:
                path = own_dice.choice(paths)
                reads = own_dice.random() < options.read_share
                answer = await connection.ask(make_request("GET", path) if reads else make_request("PUT", path, value))
                if answer.status < 300:
                    (tally.get_s if reads else tally.put_s).append(time.perf_counter() - began_s)
                else:
                    tally.failures[answer.status] += 1

    async with trio.open_nursery() as nursery:
        for i in range(options.connections):
            nursery.start_soon(fill, paths[i :: options.connections])
    began_s = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for i in range(options.connections):
            nursery.start_soon(load, random.Random(f"{seed}/{i}"), began_s + options.seconds)
    tally.seconds += time.perf_counter() - began_s


def percentile_ms(latencies_s: list[float], share: float) -> str:
    return f"{percentile(latencies_s, share) * 1000:.2f}" if latencies_s else "-"


def report(tallies: dict[str, Tally]) -> None:
    columns = ("mode", "op/s", "put p50", "put p99", "put p99.9", "get p50", "get p99", "get p99.9", "failures")
    print("\n(latencies in ms)")
    print("".join(f"{name:>11}" for name in columns))
    for mode, tally in tallies.items():
        row = [mode, f"{tally.operations_per_s:,.0f}"]
        row += [percentile_ms(latencies, p) for latencies in (tally.put_s, tally.get_s) for p in (0.5, 0.99, 0.999)]
        row += [", ".join(f"{count} x {status}" for status, count in sorted(tally.failures.items())) or "0"]
        print("".join(f"{cell:>11}" for cell in row))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="for each mode in each round (default 5)")
    parser.add_argument("--rounds", type=int, default=2, help="default 2")
    parser.add_argument("--connections", type=int, default=32, help="default 32")
    parser.add_argument("--value-bytes", type=int, default=100, help="default 100")
    parser.add_argument("--read-share", type=float, default=0.5, help="from 0 to 1 (default 0.5)")
    parser.add_argument("--keys", type=int, default=2_000, help="default 2,000")
    parser.add_argument("--storage", default="rocksdb", help="the workers' engine (default rocksdb)")
    parser.add_argument("--seed", type=int, default=1, help="default 1")
    parser.add_argument("--modes", nargs="+", default=list(MODES), metavar="MODE", help="default: all four")
    options = parser.parse_args()

    print(describe_machine())
    shown = (f"{name.replace('_', '-')} {value}" for name, value in vars(options).items() if name != "modes")
    print(", ".join(shown), flush=True)
    tallies = {mode: Tally() for mode in options.modes}
    for turn in range(options.rounds):
        for mode, tally in tallies.items():
            before = len(tally.put_s) + len(tally.get_s), tally.seconds
            with LocalCluster(mode=mode, storage=options.storage) as cluster:
                trio.run(drive, cluster.master.http_port, options, f"{options.seed}/{turn}", tally)
            done = len(tally.put_s) + len(tally.get_s) - before[0]
            print(f"round {turn + 1} {mode}: {done / (tally.seconds - before[1]):,.0f} op/s", flush=True)
    report(tallies)


if __name__ == "__main__":
    main()
