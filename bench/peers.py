"""trikv beside what a user would pick instead: a plain Go rendering of the four modes, and etcd. Ratios, in one run.

    python bench/peers.py --go DIRECTORY                    # memory, against the Go baseline, in every mode
    python bench/peers.py --etcd                            # RocksDB with fsync, against three nodes of etcd
    python bench/peers.py --etcd --open-loop                # and the latency of puts at half of etcd's peak rate

Each round starts trikv and the peer one after the other, puts the same load on both, and stops them; which of them
comes first alternates. So a machine that changes its speed changes it for both. `wrk` sends the load (a closed loop:
each connection sends its next request when the last was answered). Keys are drawn from the seed, evenly or by Zipf's
law; every key is stored before reads are measured.

For each load it prints, of trikv and of the peer: requests a second, latency (median, 99 %, 99.9 %), and the processor
time for a request, of the master (for etcd: of all nodes), of the workers and of wrk, with the cores that each took in
brackets, and those that other programs took. The ratio is trikv's rate by the peer's, the median of the rounds.
`--json` writes all of it, `--picture` draws the ratios.

With `--open-loop`, puts come at a fixed rate (`openloop.py`): half of what etcd did in the closed loop, at its best. Of
those latencies, the ratio is trikv's 99 % by etcd's: less is better.

The Go baseline is two binaries, `m` (the master) and `w` (a worker), with `/put?key=&value=` and `/get?key=` at port
8080. It keeps data in a map, without versions, a disk, or any handling of failures.

Left out: networks and disks of different machines.
"""

from __future__ import annotations

import argparse
import base64
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Final

import httpx

from bench.common import Bar, add_outputs, draw_bars, free_port, write_outputs
from bench.openloop import send_at_rate
from bench.wrk import INSTALL_WRK, Measured, PlainServer, Server, draw_keys, pids_of, run_wrk, spell_key, tell_cpu
from trikv.testing.machine import describe_machine
from trikv.testing.processes.cluster import LocalCluster, wait_until
from trikv.testing.processes.connection import make_request

GO_PORT: Final = 8080


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of a server. `what`: put or get."""

    what: str
    connections: int
    skew: str


class Etcd(Server):
    """etcd's JSON gateway."""

    name = "etcd"

    def __init__(self, port: int, pids: Sequence[int]) -> None:
        self.port, self.pids = port, {"nodes": pids}

    def script(self, what: str, file: Path, first: int, value_bytes: int) -> str:
        # The keys of the file are base64 already, since they are letters and digits in groups of four.
        spelt = base64.b64encode(b"x" * value_bytes).decode()
        rest = f',"value":"{spelt}"' if what == "put" else ""
        path = '"/v3/kv/put"' if what == "put" else '"/v3/kv/range"'
        body = '\'{"key":"\' .. targets[n] .. \'"' + rest + "}'"
        return self._spell(file, first, path, method="POST", body=body)

    def put_request(self, key: str, value_bytes: int) -> bytes:
        spelt = base64.b64encode(b"x" * value_bytes).decode()
        return make_request("POST", "/v3/kv/put", f'{{"key":"{key}","value":"{spelt}"}}'.encode())


# --- starting them ----------------------------------------------------------------------------------------------------


@contextmanager
def run_trikv(mode: str, workers: int, storage: str) -> Iterator[Server]:
    with LocalCluster(mode=mode, workers=workers, storage=storage) as cluster:
        yield PlainServer("trikv", cluster.master.http_port, pids_of(cluster))


@contextmanager
def run_go(directory: Path, mode: str, workers: int) -> Iterator[Server]:
    if not _is_free(GO_PORT):
        raise SystemExit(f"error: the Go baseline listens on port {GO_PORT}, and that is taken; stop who listens there")
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(workers)]
    with _processes() as start:
        nodes = [start([str(directory / "w"), address.rpartition(":")[2]]) for address in addresses]
        wait_until(lambda: not any(_is_free(int(a.rpartition(":")[2])) for a in addresses), what="Go's workers listen")
        master = start([str(directory / "m"), "-mode", mode, str(GO_PORT), *addresses])
        wait_until(lambda: not _is_free(GO_PORT), what="Go's master listens")
        yield PlainServer("go", GO_PORT, {"master": [master], "workers": nodes})


@contextmanager
def run_etcd(nodes: int = 3) -> Iterator[Server]:
    ports = [(free_port(), free_port()) for _ in range(nodes)]
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


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


# --- measuring --------------------------------------------------------------------------------------------------------


class Bench:
    def __init__(self, options: argparse.Namespace, directory: Path) -> None:
        self._options = options
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
            script = server.script(load.what, self._drawn[load.skew], 0, self._options.value_bytes)
            results[load] = run_wrk(server, script, load.connections, self._options.seconds)
        return results

    def measure_at_rate(self, server: Server, rate: float) -> AtRate:
        """Puts at that rate, after a second of them that does not count."""
        keys = draw_keys(self._options.skew[0], self._options.keys, self._options.seed)
        requests = [server.put_request(key, self._options.value_bytes) for key in keys]
        send_at_rate(server.port, requests, rate=rate, seconds=1.0)
        latencies_s, failures = send_at_rate(server.port, requests, rate=rate, seconds=2 * self._options.seconds)
        hundredths = quantiles(latencies_s, n=100)
        return AtRate(rate, failures, 1000 * hundredths[49], 1000 * hundredths[98])

    def _fill(self, server: Server) -> None:
        """Puts in order of the keys, until each has been put once."""
        done = 0
        while done < self._options.keys:
            script = server.script("put", self._all, done, self._options.value_bytes)
            measured = run_wrk(server, script, 64, 5)
            done += int(measured.rate * 5) - 64 - measured.failures


@dataclass(frozen=True, slots=True)
class AtRate:
    """Puts at a fixed rate."""

    rate: float
    failures: int
    p50_ms: float
    p99_ms: float

    def tell(self, name: str) -> str:
        failed = f"   {self.failures:,} failed" if self.failures else ""
        return f"    {name:6} {self.rate:9,.0f}/s   p50 {self.p50_ms:7.2f}  p99 {self.p99_ms:7.2f} ms{failed}"


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

    failures = sum(one.failures for one in rounds)
    return (
        f"    {name:6} {middle('rate'):9,.0f}/s   p50 {middle('p50_ms'):7.2f}  p99 {middle('p99_ms'):7.2f}  "
        f"p99.9 {middle('p999_ms'):7.2f} ms   CPU us: {tell_cpu(rounds)}"
        + (f"   {failures:,} failed" if failures else "")
    )


def draw(rows: Sequence[Row]) -> str:
    """The ratios as bars; the line is where both are level."""
    bars: dict[str, list[Bar]] = {}
    for row in rows:
        load = row.load
        name = f"{row.mode} {load.what}, {load.connections} connections, {load.skew}"
        bars.setdefault(f"of {row.peer}", []).append(Bar(name, row.ratio, f"{row.ratio:.2f}"))
    return draw_bars("trikv, relative to its peer", describe_machine(), bars, level=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--go", type=Path, metavar="DIRECTORY", help="where the Go baseline's m and w are")
    parser.add_argument("--etcd", action="store_true", help="measure against etcd, three nodes, on disks")
    parser.add_argument("--open-loop", action="store_true", help="with --etcd: also at half of its peak rate")
    parser.add_argument("--modes", nargs="+", default=["quorum", "async", "sync", "chain"], help="default: all four")
    parser.add_argument("--what", nargs="+", choices=("put", "get"), default=["put", "get"], help="default: both")
    parser.add_argument("--connections", type=int, nargs="+", default=[32], help="default 32")
    parser.add_argument("--skew", nargs="+", default=["uniform"], help="uniform, or zipf1.2 (default uniform)")
    parser.add_argument("--keys", type=int, default=100_000, help="default 100,000")
    parser.add_argument("--value-bytes", type=int, default=100, help="default 100")
    parser.add_argument("--seconds", type=float, default=5, help="for each load (default 5)")
    parser.add_argument("--rounds", type=int, default=2, help="default 2")
    parser.add_argument("--seed", type=int, default=1, help="default 1")
    add_outputs(parser)
    options = parser.parse_args()
    _check(options)
    print(describe_machine())
    print(f"{options.keys:,} keys, values of {options.value_bytes} bytes, seed {options.seed}", flush=True)
    loads = [Load(w, c, s) for w in options.what for c in options.connections for s in options.skew]
    rows: list[Row] = []
    open_loop: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="trikv-bench-") as directory:
        bench = Bench(options, Path(directory))
        if options.go is not None:
            for mode in options.modes:
                rows += _compare(bench, options, mode, "go", loads)
        if options.etcd:
            rows += _compare(bench, options, "quorum", "etcd", loads)
            if options.open_loop:
                open_loop = _compare_at_rate(bench, options, rows)
    write_outputs(options, "peers", [*(row.to_json() for row in rows), *open_loop], draw(rows))


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


def _compare_at_rate(bench: Bench, options: argparse.Namespace, rows: Sequence[Row]) -> list[dict[str, object]]:
    """Puts at half of etcd's peak rate, on both in turn; what goes into the JSON."""
    peaks = [one.rate for row in rows if (row.peer, row.load.what) == ("etcd", "put") for one in row.theirs]
    if not peaks:
        raise SystemExit("error: an open loop needs the rate of etcd's puts; leave put among --what")
    told: list[dict[str, object]] = []
    ratios: list[float] = []
    for _ in range(options.rounds):
        with run_trikv("quorum", 3, "rocksdb") as server:
            ours = bench.measure_at_rate(server, max(peaks) / 2)
        with run_etcd() as server:
            theirs = bench.measure_at_rate(server, max(peaks) / 2)
        print(f"{ours.tell('trikv')}\n{theirs.tell('etcd')}", flush=True)
        ratios.append(ours.p99_ms / theirs.p99_ms)
        told.append({"open_loop": {"trikv": asdict(ours), "etcd": asdict(theirs)}})
    print(f"quorum put at a fixed rate: p99 {median(ratios):.2f} of etcd's")
    return told


def _check(options: argparse.Namespace) -> None:
    """Is everything there that this run needs? Says how to install what is missing."""
    missing = []
    if shutil.which("wrk") is None:
        missing.append(INSTALL_WRK)
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
