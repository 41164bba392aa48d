"""What an operation costs as a cluster grows: with more workers, more keys, larger values, more connections.

    python bench/scale.py                                  # some twenty minutes
    python bench/scale.py --quick                          # one minute: fewer steps, and a second for each load
    python bench/scale.py --only workers values --seed 2

One thing grows, and the rest stays as it is: quorum, five workers in memory, three replicas, 10,000 keys, values of 100
bytes, 32 connections of wrk (`bench/wrk.py`). Each step is measured with puts and then with gets, in `--rounds` rounds:
in every second one the steps come in the reverse order, so that a machine that slows down is no step's fault.

For each step it prints the rate and its ratio to that of the middle step; the ratio of the *cost*, which is the
processor time of master and workers for one operation; p50 and p99; and the processor time of each role. With keys, it
prints what one of them takes of the workers' memory too, relative to its raw bytes (key and value, in three copies).

How to read it. Compare ratios, never rates of two machines. The load runs on the same cores as the cluster. What was
busy all the time stands behind the line: `master` means that the master's one thread limits the rate, `wrk` that the
load generator does, so that the cluster might do more, and `cores` that no core was idle. `others` are cores that other
programs took meanwhile: if these were the limit, the rates say nothing, and the script says so at its end; the cost is
disturbed less. With values of 1 MiB there are 64 keys and 8 connections, since memory and what a master takes on its
way are bounded.

Left out: networks and disks of different machines; a worker's share of requests, which placement decides.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Final

from bench.common import Bar, add_outputs, draw_bars, memory_bytes_of, write_outputs
from bench.wrk import (
    OTHERS_MOST_CORES,
    KeyServer,
    Measured,
    check_wrk,
    draw_keys,
    pids_of,
    run_wrk,
    spell_key,
    tell_cpu,
)
from trikv.client import Change, Client
from trikv.testing.machine import describe_machine
from trikv.testing.processes.cluster import LocalCluster, wait_until

REPLICAS: Final = 3
STEPS: Final[Mapping[str, Sequence[int]]] = {
    "workers": (3, 5, 9, 15),
    "keys": (10_000, 100_000, 1_000_000),
    "value bytes": (10, 100, 1024, 16 * 1024, 1024 * 1024),
    "connections": (1, 8, 32, 128, 1000),
}
QUICK: Final[Mapping[str, Sequence[int]]] = {
    "workers": (3, 5, 9),
    "keys": (2_000, 10_000, 50_000),
    "value bytes": (10, 1024, 1024 * 1024),
    "connections": (1, 32, 1000),
}
RAW_BYTES_MAX: Final = 64 * 1024 * 1024  # of all keys together: with large values there are fewer of them
ON_THE_WAY_BYTES_MAX: Final = 8 * 1024 * 1024  # likewise connections: a master refuses more than it can carry
BATCH_KEYS: Final = 500
BATCH_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Step:
    """One cluster under one load. `grows` says which of the four is looked at."""

    grows: str
    workers: int = 5
    keys: int = 10_000
    value_bytes: int = 100
    connections: int = 32

    @property
    def at(self) -> int:
        return int(getattr(self, self.grows.replace(" ", "_")))

    @classmethod
    def of(cls, grows: str, at: int) -> Step:
        step = cls(grows, **{grows.replace(" ", "_"): at})
        if grows != "value bytes":
            return step
        keys = min(step.keys, RAW_BYTES_MAX // at)
        return replace(step, keys=keys, connections=min(step.connections, ON_THE_WAY_BYTES_MAX // at))


@dataclass(slots=True)
class Row:
    """A step, and what was measured of it in each round."""

    step: Step
    measured: dict[str, list[Measured]] = field(default_factory=lambda: {"put": [], "get": []})
    key_bytes: list[float] = field(default_factory=list)  # of memory, of all workers together

    def rate(self, what: str) -> float:
        return median(one.rate for one in self.measured[what])

    def cost_us(self, what: str) -> float:
        """Processor time of the whole cluster for one operation."""
        return median(one.cpu_us["master"] + one.cpu_us["workers"] for one in self.measured[what])

    @property
    def others_cores(self) -> float:
        return max(one.others_cores for rounds in self.measured.values() for one in rounds)

    @property
    def memory_ratio(self) -> float | None:
        """Memory of the workers, by the raw bytes of all copies."""
        raw = REPLICAS * (len(spell_key(0)) + self.step.value_bytes)
        return median(self.key_bytes) / raw if self.key_bytes else None

    def tell(self, what: str, middle: Row) -> str:
        rounds = self.measured[what]
        line = (
            f"  {self.step.at:>9,}  {what}{self.rate(what):10,.0f}/s  {self.rate(what) / middle.rate(what):5.2f}   "
            f"cost {self.cost_us(what) / middle.cost_us(what):5.2f}   "
            f"p50 {median(one.p50_ms for one in rounds):7.2f}  p99 {median(one.p99_ms for one in rounds):7.2f} ms   "
            f"CPU us: {tell_cpu(rounds)}"
        )
        if limits := {one.limit for one in rounds} - {""}:
            line += f"   limit: {', '.join(sorted(limits))}"
        if what == "put" and (ratio := self.memory_ratio) is not None:
            line += f"   memory {median(self.key_bytes):,.0f} bytes a key, {ratio:.1f} times the raw bytes"
        failures = sum(one.failures for one in rounds)
        return line + (f"   {failures:,} failed" if failures else "")

    def to_json(self, middle: Row) -> dict[str, object]:
        ratios = {what: round(self.rate(what) / middle.rate(what), 3) for what in self.measured}
        costs = {what: round(self.cost_us(what) / middle.cost_us(what), 3) for what in self.measured}
        return {
            **asdict(self.step),
            "at": self.step.at,
            "rate_ratio": ratios,
            "cost_ratio": costs,
            **{what: [asdict(one) | {"limit": one.limit} for one in rounds] for what, rounds in self.measured.items()},
            "memory_bytes_per_key": round(median(self.key_bytes), 1) if self.key_bytes else None,
            "memory_by_raw_bytes": None if self.memory_ratio is None else round(self.memory_ratio, 2),
        }


class Scale:
    def __init__(self, options: argparse.Namespace, directory: Path) -> None:
        self._options = options
        self._directory = directory

    def measure(self, rows: Sequence[Row]) -> None:
        """One round of these steps. Steps that differ only in the load share a cluster."""
        if rows[0].step.grows == "workers":
            for row in rows:
                with self._cluster(row.step.workers) as (cluster, server):
                    self._fill(cluster, 0, row.step)
                    self._load(server, row)
        elif rows[0].step.grows == "keys":
            # Upwards in any case, since keys only come.
            with self._cluster(5) as (cluster, server):
                before, filled = _workers_bytes(cluster), 0
                for row in sorted(rows, key=lambda row: row.step.keys):
                    self._fill(cluster, filled, row.step)
                    filled = row.step.keys
                    self._await_copies(cluster, filled)
                    row.key_bytes.append((_workers_bytes(cluster) - before) / filled)
                    self._load(server, row)
        else:
            with self._cluster(5) as (cluster, server):
                for row in rows:
                    self._fill(cluster, 0, row.step)
                    self._load(server, row)

    @contextmanager
    def _cluster(self, workers: int) -> Iterator[tuple[LocalCluster, KeyServer]]:
        with LocalCluster(mode=self._options.mode, workers=workers, replicas=REPLICAS) as cluster:
            yield cluster, KeyServer("trikv", cluster.master.http_port, pids_of(cluster))

    def _fill(self, cluster: LocalCluster, first: int, step: Step) -> None:
        """Put the keys from that one on."""
        at_once = max(1, min(BATCH_KEYS, BATCH_BYTES // step.value_bytes))
        value = b"x" * step.value_bytes
        with cluster.client(timeout_s=30.0) as client:
            for begin in range(first, step.keys, at_once):
                end = min(begin + at_once, step.keys)
                _put(client, [spell_key(number).encode() for number in range(begin, end)], value)

    @staticmethod
    def _await_copies(cluster: LocalCluster, keys: int) -> None:
        """The last copy of a write comes behind its answer."""
        with cluster.client() as client:
            wait_until(
                lambda: sum(worker["keys"] or 0 for worker in client.cluster()["workers"]) >= REPLICAS * keys,
                what="all copies are there",
                deadline_s=60,
            )

    def _load(self, server: KeyServer, row: Row) -> None:
        """Puts, then gets; each has had a moment before, so that connections and caches are warm."""
        step = row.step
        file = self._directory / "keys"
        file.write_text("\n".join(draw_keys("uniform", step.keys, self._options.seed)))
        for what, found in row.measured.items():
            with Client(f"http://127.0.0.1:{server.port}", timeout_s=30.0) as client:
                client.cluster()  # answered once what the connections of the last load left behind has been served
            script = server.script(what, file, 0, step.value_bytes)
            if not self._options.quick:
                run_wrk(server, script, step.connections, 1)
            found.append(run_wrk(server, script, step.connections, self._options.seconds))


def _put(client: Client, keys: Sequence[bytes], value: bytes) -> None:
    for key, told in zip(keys, client.batch([Change(key, value) for key in keys]), strict=True):
        if not isinstance(told, str):
            raise SystemExit(f"error: key {key.decode()} could not be put: {told}")


def _workers_bytes(cluster: LocalCluster) -> int:
    return sum(memory_bytes_of(node.pid) for node in cluster.workers)


def middle_of(rows: Sequence[Row]) -> Row:
    return rows[(len(rows) - 1) // 2]


def draw(tables: Sequence[Sequence[Row]], title: str) -> str:
    """Rates relative to the middle step."""
    sections = {}
    for rows in tables:
        middle = middle_of(rows)
        for what in middle.measured:
            bars = []
            for row in rows:
                ratio, cost = row.rate(what) / middle.rate(what), row.cost_us(what) / middle.cost_us(what)
                bars.append(Bar(f"{row.step.at:,}", ratio, f"{ratio:.2f}, cost {cost:.2f}"))
            sections[f"{what}, by {middle.step.grows}"] = bars
    return draw_bars(f"Operations a second, relative to the middle step: {title}", describe_machine(), sections)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=["workers", "keys", "values", "connections"], help="default: all")
    parser.add_argument("--mode", default="quorum", help="default quorum")
    parser.add_argument("--seconds", type=float, default=4, help="for each load (default 4)")
    parser.add_argument("--rounds", type=int, default=2, help="default 2")
    parser.add_argument("--seed", type=int, default=1, help="default 1")
    parser.add_argument("--quick", action="store_true", help="one minute: fewer steps, one round, one second")
    add_outputs(parser)
    options = parser.parse_args()
    check_wrk()
    if options.quick:
        options.rounds, options.seconds = 1, 1.0
    title = f"{options.mode}, memory, seed {options.seed}"
    print(f"{describe_machine()}; {title}, {options.seconds:g} s a load, {options.rounds} rounds", flush=True)
    tables: list[list[Row]] = []
    with tempfile.TemporaryDirectory(prefix="trikv-bench-") as directory:
        scale = Scale(options, Path(directory))
        for grows, steps in (QUICK if options.quick else STEPS).items():
            if options.only is not None and grows.replace("value bytes", "values") not in options.only:
                continue
            rows = [Row(Step.of(grows, at)) for at in steps]
            for turn in range(options.rounds):
                scale.measure(rows[::-1] if turn % 2 else rows)
            tables.append(rows)
            print(grows)
            for what in ("put", "get"):
                for row in rows:
                    print(row.tell(what, middle_of(rows)), flush=True)
    if (taken := max(row.others_cores for rows in tables for row in rows)) > OTHERS_MOST_CORES:
        print(f"other programs took up to {taken:.1f} cores meanwhile: measure again when the machine is quiet")
    documents = [row.to_json(middle_of(rows)) for rows in tables for row in rows]
    write_outputs(options, "scale", documents, draw(tables, title))


if __name__ == "__main__":
    main()
