"""trikv beside what a user would pick instead: a plain Go rendering of the four modes, and etcd. Ratios, in one run.

    python bench/peers.py --go DIRECTORY                    # memory, against the Go baseline, in every mode
    python bench/peers.py --etcd                            # RocksDB with fsync, against three nodes of etcd

Each round starts trikv and the peer one after the other, puts the same load on both, and stops them; which of them
comes first alternates. So a machine that changes its speed changes it for both. `wrk` sends the load (a closed loop:
each connection sends its next request when the last was answered). Keys are drawn from the seed, evenly or by Zipf's
law; every key is stored before reads are measured.

For each load it prints, of trikv and of the peer: requests a second, latency (median, 99 %, 99.9 %), and the processor
time for a request, of the master (for etcd: of all nodes) and of the workers. The ratio is trikv's rate by the peer's,
the median of the rounds. `--json` writes all of it, `--picture` draws the ratios.

The Go baseline is two binaries, `m` (the master) and `w` (a worker), with `/put?key=&value=` and `/get?key=` at port
8080. It keeps data in a map, without versions, a disk, or any handling of failures.

Left out: networks and disks of different machines.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import re
import shutil
import socket
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Final

import httpx

from trikv.testing.machine import describe_machine
from trikv.testing.processes.cluster import LocalCluster, wait_until

GO_PORT: Final = 8080
DRAWN: Final = 50_000  # keys in a file, which wrk's script goes round
TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")

# wrk's script: it reads the targets of its requests from a file, one a line, and ends with one line of figures.
SCRIPT: Final = """
local targets, n = {}, %(first)d
for line in io.lines("%(file)s") do targets[#targets + 1] = line end
request = function()
  n = n %% #targets + 1
  return wrk.format("%(method)s", %(path)s, nil, %(body)s)
end
done = function(summary, latency, requests)
  local errors = summary.errors
  print(string.format("FIGURES %%d %%d %%d %%.1f %%.1f %%.1f", summary.requests, summary.duration,
    errors.status + errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
"""
_FIGURES: Final = re.compile(r"FIGURES (\d+) (\d+) (\d+) ([\d.]+) ([\d.]+) ([\d.]+)")


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of a server. `what`: put or get."""

    what: str
    connections: int
    skew: str


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one server under one load. Processor time is for one request, in microseconds, by role."""

    rate: float
    failures: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    cpu_us: Mapping[str, float]


class Server(ABC):
    """A cluster that runs. `pids`: its processes, by role."""

    name: str
    port: int
    pids: Mapping[str, Sequence[int]]

    @abstractmethod
    def script(self, what: str, file: Path, first: int, value: bytes) -> str:
        """wrk's script for puts or gets of the keys in a file."""


class PlainServer(Server):
    """One with `/put` and `/get`: trikv, and the Go baseline."""

    def __init__(self, name: str, port: int, pids: Mapping[str, Sequence[int]]) -> None:
        self.name, self.port, self.pids = name, port, pids

    def script(self, what: str, file: Path, first: int, value: bytes) -> str:
        rest = f' .. "&value={value.decode()}"' if what == "put" else ""
        path = f'"/{what}?key=" .. targets[n]{rest}'
        return SCRIPT % {"file": file, "first": first, "method": "GET", "path": path, "body": "nil"}


class Etcd(Server):
    """etcd's JSON gateway."""

    name = "etcd"

    def __init__(self, port: int, pids: Sequence[int]) -> None:
        self.port, self.pids = port, {"nodes": pids}

    def script(self, what: str, file: Path, first: int, value: bytes) -> str:
        # The keys of the file are base64 already, since they are letters and digits in groups of four.
        spelt = base64.b64encode(value).decode()
        rest = f',"value":"{spelt}"' if what == "put" else ""
        path = '"/v3/kv/put"' if what == "put" else '"/v3/kv/range"'
        body = '\'{"key":"\' .. targets[n] .. \'"' + rest + "}'"
        return SCRIPT % {"file": file, "first": first, "method": "POST", "path": path, "body": body}


# --- starting them ----------------------------------------------------------------------------------------------------


@contextmanager
def run_trikv(mode: str, workers: int, storage: str) -> Iterator[Server]:
    with LocalCluster(mode=mode, workers=workers, storage=storage) as cluster:
        pids = {"master": [cluster.master.pid], "workers": [node.pid for node in cluster.workers]}
        yield PlainServer("trikv", cluster.master.http_port, pids)


@contextmanager
def run_go(directory: Path, mode: str, workers: int) -> Iterator[Server]:
    if not _is_free(GO_PORT):
        raise SystemExit(f"error: the Go baseline listens on port {GO_PORT}, and that is taken; stop who listens there")
    addresses = [f"127.0.0.1:{_free_port()}" for _ in range(workers)]
    with _processes() as start:
        nodes = [start([str(directory / "w"), address.rpartition(":")[2]]) for address in addresses]
        wait_until(lambda: not any(_is_free(int(a.rpartition(":")[2])) for a in addresses), what="Go's workers listen")
        master = start([str(directory / "m"), "-mode", mode, str(GO_PORT), *addresses])
        wait_until(lambda: not _is_free(GO_PORT), what="Go's master listens")
        yield PlainServer("go", GO_PORT, {"master": [master], "workers": nodes})


@contextmanager
def run_etcd(nodes: int = 3) -> Iterator[Server]:
    ports = [(_free_port(), _free_port()) for _ in range(nodes)]
    members = ",".join(f"n{i}=http://127.0.0.1:{peer}" for i, (_, peer) in enumerate(ports))
    with tempfile.TemporaryDirectory(prefix="trikv-etcd-") as directory, _processes() as start:
        pids = []
        for i, (client, peer) in enumerate(ports):
            options = {
                "--name": f"n{i}", "--data-dir": f"{directory}/n{i}", "--initial-cluster": members,
                "--listen-client-urls": f"http://127.0.0.1:{client}",
                "--advertise-client-urls": f"http://127.0.0.1:{client}",
                "--listen-peer-urls": f"http://127.0.0.1:{peer}",
                "--initial-advertise-peer-urls": f"http://127.0.0.1:{peer}",
            }  # fmt: skip
            pids.append(start(["etcd", *(word for option in options.items() for word in option)]))
        wait_until(lambda: all(_is_healthy(client) for client, _ in ports), what="etcd has a leader")
        yield Etcd(ports[0][0], pids)


@contextmanager
def _processes() -> Iterator[_Start]:
    started: list[subprocess.Popen[bytes]] = []
    try:
        yield _Start(started)
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()


class _Start:
    def __init__(self, started: list[subprocess.Popen[bytes]]) -> None:
        self._started = started

    def __call__(self, command: Sequence[str]) -> int:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._started.append(process)
        return process.pid


def _is_healthy(port: int) -> bool:
    try:
        return bool(httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).json().get("health") == "true")
    except httpx.HTTPError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


# --- measuring --------------------------------------------------------------------------------------------------------


def draw_keys(skew: str, keys: int, seed: int) -> list[str]:
    """Keys in the order in which they are asked for. All have as many letters as base64 wants."""
    dice = random.Random(seed)
    if skew == "uniform":
        drawn = [dice.randrange(keys) for _ in range(DRAWN)]
    else:
        weights = list(accumulate(1 / (rank + 1) ** float(skew.removeprefix("zipf")) for rank in range(keys)))
        drawn = dice.choices(range(keys), cum_weights=weights, k=DRAWN)
    return [spell_key(number) for number in drawn]


def spell_key(number: int) -> str:
    return f"key{number:09d}"


def run_wrk(server: Server, script: str, connections: int, seconds: float) -> Measured:
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        before = _cpu_s(server)
        ended = subprocess.run(
            ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "-s", file.name, f"http://127.0.0.1:{server.port}"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        after = _cpu_s(server)
    found = _FIGURES.search(ended.stdout)
    if found is None:
        raise SystemExit(f"error: wrk told no figures: {ended.stdout}{ended.stderr}")
    requests, took_us, failures = (int(found[i]) for i in (1, 2, 3))
    p50_us, p99_us, p999_us = (float(found[i]) for i in (4, 5, 6))
    if not requests:
        raise SystemExit(
            f"error: {server.name} answered nothing in {seconds:g} s; its processes are {dict(server.pids)}"
        )
    cpu_us = {role: round(1e6 * (after[role] - before[role]) / requests, 1) for role in server.pids}
    return Measured(requests / took_us * 1e6, failures, p50_us / 1e3, p99_us / 1e3, p999_us / 1e3, cpu_us)


def _cpu_s(server: Server) -> dict[str, float]:
    return {role: sum(_cpu_of(pid) for pid in pids) for role, pids in server.pids.items()}


def _cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


class Bench:
    def __init__(self, options: argparse.Namespace, directory: Path) -> None:
        self._options = options
        self._value = b"x" * options.value_bytes
        self._all = directory / "all"
        self._all.write_text("\n".join(spell_key(number) for number in range(options.keys)))
        self._drawn: dict[str, Path] = {}
        for skew in options.skew:
            self._drawn[skew] = directory / skew
            self._drawn[skew].write_text("\n".join(draw_keys(skew, options.keys, options.seed)))

    def measure(self, server: Server, loads: Sequence[Load]) -> dict[Load, Measured]:
        """Put each load on the server; before the first reads, store every key."""
        filled = False
        results = {}
        for load in sorted(loads, key=lambda one: one.what, reverse=True):
            if load.what == "get" and not filled:
                self._fill(server)
                filled = True
            script = server.script(load.what, self._drawn[load.skew], 0, self._value)
            results[load] = run_wrk(server, script, load.connections, self._options.seconds)
        return results

    def _fill(self, server: Server) -> None:
        """Puts in order of the keys, until each has been put once."""
        done = 0
        while done < self._options.keys:
            script = server.script("put", self._all, done, self._value)
            measured = run_wrk(server, script, 64, 5)
            done += int(measured.rate * 5) - 64 - measured.failures


# --- the report -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One load in one mode: trikv and the peer, round by round."""

    mode: str
    peer: str
    load: Load
    ours: Sequence[Measured]
    theirs: Sequence[Measured]

    @property
    def ratio(self) -> float:
        return median(a.rate / b.rate for a, b in zip(self.ours, self.theirs, strict=True))

    def tell(self) -> str:
        load = self.load
        title = f"{self.mode:8} {load.what}  {load.connections:>4} connections  {load.skew:8}"
        return (
            f"{title}  {self.ratio:5.2f} of {self.peer}\n{_tell('trikv', self.ours)}\n{_tell(self.peer, self.theirs)}"
        )

    def to_json(self) -> dict[str, object]:
        both = {"trikv": [asdict(one) for one in self.ours], self.peer: [asdict(one) for one in self.theirs]}
        return {"mode": self.mode, **asdict(self.load), "ratio": round(self.ratio, 3), **both}


def _tell(name: str, rounds: Sequence[Measured]) -> str:
    def middle(attribute: str) -> float:
        return float(median(getattr(one, attribute) for one in rounds))

    cpu = ", ".join(f"{role} {median(one.cpu_us[role] for one in rounds):.0f}" for role in rounds[0].cpu_us)
    failures = sum(one.failures for one in rounds)
    return (
        f"    {name:6} {middle('rate'):9,.0f}/s   p50 {middle('p50_ms'):7.2f}  p99 {middle('p99_ms'):7.2f}  "
        f"p99.9 {middle('p999_ms'):7.2f} ms   CPU us: {cpu}" + (f"   {failures:,} failed" if failures else "")
    )


def draw(rows: Sequence[Row], machine: str) -> str:
    """The ratios as bars; the line is where both are level."""
    height, left, unit = 24, 330, 420 / max(1.2, *(row.ratio for row in rows))
    parts = [
        f'<text x="10" y="22" font-weight="600">trikv, relative to its peer</text><text x="10" y="40">{machine}</text>'
    ]
    for index, row in enumerate(rows):
        y = 56 + index * height
        load = row.load
        name = f"{row.mode} {load.what}, {load.connections} connections, {load.skew}: of {row.peer}"
        parts.append(f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{name}</text>')
        parts.append(f'<rect x="{left}" y="{y + 3}" width="{row.ratio * unit:.0f}" height="16" fill="#0f766e"/>')
        parts.append(f'<text x="{left + row.ratio * unit + 6:.0f}" y="{y + 15}">{row.ratio:.2f}</text>')
    bottom = 56 + len(rows) * height
    parts.append(f'<path d="M{left + unit:.0f} 50V{bottom}" stroke="#b42318" stroke-dasharray="4 3"/>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 820 {bottom + 10}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--go", type=Path, metavar="DIRECTORY", help="where the Go baseline's m and w are")
    parser.add_argument("--etcd", action="store_true", help="measure against etcd, three nodes, on disks")
    parser.add_argument("--modes", nargs="+", default=["quorum", "async", "sync", "chain"], help="default: all four")
    parser.add_argument("--what", nargs="+", choices=("put", "get"), default=["put", "get"], help="default: both")
    parser.add_argument("--connections", type=int, nargs="+", default=[32], help="default 32")
    parser.add_argument("--skew", nargs="+", default=["uniform"], help="uniform, or zipf1.2 (default uniform)")
    parser.add_argument("--keys", type=int, default=100_000, help="default 100,000")
    parser.add_argument("--value-bytes", type=int, default=100, help="default 100")
    parser.add_argument("--seconds", type=float, default=5, help="for each load (default 5)")
    parser.add_argument("--rounds", type=int, default=2, help="default 2")
    parser.add_argument("--seed", type=int, default=1, help="default 1")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--picture", type=Path, help="draw the ratios there, as SVG")
    options = parser.parse_args()
    _check(options)
    print(describe_machine())
    print(f"{options.keys:,} keys, values of {options.value_bytes} bytes, seed {options.seed}", flush=True)
    loads = [Load(w, c, s) for w in options.what for c in options.connections for s in options.skew]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="trikv-bench-") as directory:
        bench = Bench(options, Path(directory))
        if options.go is not None:
            for mode in options.modes:
                rows += _compare(bench, options, mode, "go", loads)
        if options.etcd:
            rows += _compare(bench, options, "quorum", "etcd", loads)
    if options.json is not None:
        document = {"machine": describe_machine(), "seed": options.seed, "rows": [row.to_json() for row in rows]}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if options.picture is not None:
        options.picture.write_text(draw(rows, describe_machine()))


def _compare(bench: Bench, options: argparse.Namespace, mode: str, peer: str, loads: Sequence[Load]) -> list[Row]:
    ours: list[dict[Load, Measured]] = []
    theirs: list[dict[Load, Measured]] = []
    for turn in range(options.rounds):
        for is_ours in (True, False) if turn % 2 == 0 else (False, True):
            if is_ours:
                workers, storage = (3, "rocksdb") if peer == "etcd" else (5, "memory")
                with run_trikv(mode, workers, storage) as server:
                    ours.append(bench.measure(server, loads))
            else:
                with run_etcd() if peer == "etcd" else run_go(options.go, mode, 5) as server:
                    theirs.append(bench.measure(server, loads))
    rows = [Row(mode, peer, load, [one[load] for one in ours], [one[load] for one in theirs]) for load in loads]
    for row in rows:
        print(row.tell(), flush=True)
    return rows


def _check(options: argparse.Namespace) -> None:
    """Is everything there that this run needs? Says how to install what is missing."""
    missing = []
    if shutil.which("wrk") is None:
        missing.append("wrk, which sends the load: apt-get install wrk")
    if options.etcd and shutil.which("etcd") is None:
        missing.append("etcd: apt-get install etcd-server")
    if options.go is not None and not all((options.go / name).is_file() for name in ("m", "w")):
        missing.append(f"the Go baseline's m and w in {options.go}: go build -o w ./worker && go build -o m ./master")
    if options.go is None and not options.etcd:
        missing.append("a peer: give --go DIRECTORY or --etcd")
    if missing:
        raise SystemExit("\n".join(f"error: this run needs {one}" for one in missing))


if __name__ == "__main__":
    main()
