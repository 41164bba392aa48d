"""The same load over HTTP with and without the probe: what `trikv master --probe` costs.

    python bench/probe.py [--mode quorum] [--rounds 10] [--seconds 5] [--seed 1]

Each round has two clusters of its own, one with the probe and one without, one after the other; which of them comes
first alternates. Each is a master and five workers as child processes, three replicas. The load is a closed loop: every
connection sends its next request when the last was answered. Keys and the mix of reads and writes follow from the seed,
and are the same for both clusters of a round.

Two ratios are printed for each round, and their medians and quartiles at the end:

- throughput: operations a second with the probe, by those without it;
- the master's processor time for each operation, with the probe, by that without it. The master is one process with
  one busy thread, so at full load this is the inverse of throughput; and what else runs on the machine disturbs it
  less. Linux only.

A machine that others share changes its speed by more than the probe costs, so one round says nothing; look at the
quartiles. A third figure is steady: how many operations of the probe there were for one of a client. One costs less
than one of a client's, since it comes over no connection and shares a task and frames with seven others.

The load comes from this process, and shares the machine with the cluster. There is no threshold here.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles

import trio

from bench.common import TELLS_CPU, cpu_s_of
from trikv.testing.machine import describe_machine
from trikv.testing.processes.cluster import LocalCluster
from trikv.testing.processes.connection import HttpConnection, make_request


@dataclass(frozen=True, slots=True)
class Measured:
    """One cluster under load."""

    operations: int
    failures: int
    seconds: float
    master_cpu_s: float | None  # None: the system does not tell
    probed: int  # operations of the probe

    @property
    def operations_per_s(self) -> float:
        return self.operations / self.seconds

    @property
    def cpu_us(self) -> float | None:
        """Of the master, for each operation of a client."""
        return None if self.master_cpu_s is None else 1e6 * self.master_cpu_s / self.operations


async def drive(cluster: LocalCluster, options: argparse.Namespace, seed: str) -> Measured:
    """Fill the cluster, wait until it is warm, then count what is answered in `options.seconds`."""
    port = cluster.master.http_port
    value = random.Random(seed).randbytes(options.value_bytes)
    paths = [f"/v1/kv/bench-{i:08d}" for i in range(options.keys)]
    operations = failures = 0

    async def fill(share: list[str]) -> None:
        async with HttpConnection(lambda: port) as connection:
            await connection.dial()
            for path in share:
                await connection.ask(make_request("PUT", path, value))

    async def load(dice: random.Random, *, counts_from_s: float, until_s: float) -> None:
        nonlocal operations, failures
        async with HttpConnection(lambda: port) as connection:
            await connection.dial()
            while (now_s := time.perf_counter()) < until_s:
                path = dice.choice(paths)
                reads = dice.random() < options.read_share
                answer = await connection.ask(make_request("GET", path) if reads else make_request("PUT", path, value))
                if now_s < counts_from_s:
                    continue
                if answer.status < 300:
                    operations += 1
                else:
                    failures += 1

    async with trio.open_nursery() as nursery:
        for i in range(options.connections):
            nursery.start_soon(fill, paths[i :: options.connections])
    looked: list[tuple[float | None, int]] = []

    async def look(at_s: float) -> None:
        await trio.sleep(at_s - time.perf_counter())
        async with HttpConnection(lambda: port) as connection:
            await connection.dial()
            answer = await connection.ask(make_request("GET", "/v1/probe"))
        looked.append(
            (cpu_s_of(cluster.master.pid) if TELLS_CPU else None, json.loads(answer.body).get("operations", 0))
        )

    counts_from_s = time.perf_counter() + options.warm_up
    until_s = counts_from_s + options.seconds
    async with trio.open_nursery() as nursery:
        for i in range(options.connections):
            dice = random.Random(f"{seed}/{i}")
            nursery.start_soon(partial(load, dice, counts_from_s=counts_from_s, until_s=until_s))
        nursery.start_soon(look, counts_from_s)
        nursery.start_soon(look, until_s)
    (before_s, probed_before), (after_s, probed_after) = looked
    cpu_s = None if before_s is None or after_s is None else after_s - before_s
    return Measured(operations, failures, options.seconds, cpu_s, probed_after - probed_before)


def measure(options: argparse.Namespace, seed: str, *, probes: bool) -> Measured:
    cluster = LocalCluster(mode=options.mode, storage=options.storage, master_options=["--probe"] if probes else [])
    with cluster:
        cluster.await_whole()
        return trio.run(drive, cluster, options, seed)


def report(what: str, ratios: list[float]) -> None:
    if not ratios:
        return
    low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    print(f"{what}: {median(ratios):.3f} (median), {low:.3f} to {high:.3f} (quartiles)")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mode", default="quorum", help="default quorum")
    parser.add_argument("--rounds", type=int, default=10, help="default 10")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each cluster in each round (default 5)")
    parser.add_argument("--warm-up", type=float, default=4.0, help="seconds of load before that (default 4)")
    parser.add_argument("--connections", type=int, default=32, help="default 32")
    parser.add_argument("--value-bytes", type=int, default=100, help="default 100")
    parser.add_argument("--read-share", type=float, default=0.5, help="from 0 to 1 (default 0.5)")
    parser.add_argument("--keys", type=int, default=2_000, help="default 2,000")
    parser.add_argument("--storage", default="rocksdb", help="the workers' engine (default rocksdb)")
    parser.add_argument("--seed", type=int, default=1, help="default 1")
    options = parser.parse_args()

    print(describe_machine())
    print(", ".join(f"{name.replace('_', '-')} {value}" for name, value in vars(options).items()), flush=True)
    throughput: list[float] = []
    cost: list[float] = []
    share: list[float] = []
    for turn in range(options.rounds):
        seed = f"{options.seed}/{turn}"
        told = {probes: measure(options, seed, probes=probes) for probes in (bool(turn % 2), not turn % 2)}
        throughput.append(told[True].operations_per_s / told[False].operations_per_s)
        line = (
            f"round {turn + 1}: {told[True].operations_per_s:,.0f} op/s with the probe, "
            f"{told[False].operations_per_s:,.0f} without; ratio {throughput[-1]:.3f}"
        )
        if (with_us := told[True].cpu_us) is not None and (without_us := told[False].cpu_us) is not None:
            cost.append(with_us / without_us)
            line += f"; master {with_us:.0f} and {without_us:.0f} us per operation, ratio {cost[-1]:.3f}"
        share.append(told[True].probed / told[True].operations)
        failures = sum(each.failures for each in told.values())
        print(f"{line}; {told[True].probed / options.seconds:.0f} probes/s; {failures} failures", flush=True)
    report("throughput with the probe, by that without", throughput)
    report("the master's processor time for each operation, with by without", cost)
    report("operations of the probe for one of a client", share)


if __name__ == "__main__":
    main()
