"""`trikv demo`: a whole cluster in one terminal, and a guided tour that ends in a verdict.

Both run real processes on loopback with disks of their own, and end with Ctrl-C or SIGTERM. They leave no process and
no file behind (with --data-dir: their files), even if they are killed themselves; `testing/processes/cluster.py` says
how.

The demo is one master that starts the workers itself. So they can be broken from its page, and it adds up to
`FURTHER_WORKERS` under load. It shows a live line for each worker with its pid, so that a visitor can kill one and
watch: nothing starts it again, and no other worker is started in its place, so that what the mode does is seen.

With `--masters N` there are N masters on an etcd of one member, which the demo starts too; it says so where none is
installed. Then the demo starts the workers, as no master does, and nothing scales. Each master has its live line.

The tour kills a worker and starts it again itself, so its master starts none. It puts some keys, kills the first holder
of one of them, and writes and reads every key again. Then it starts the worker again and reads every key once more. It
judges what it saw by what the mode itself declares:

- Which replicas a write and a read need (`Strategy.needs`). A key whose write does not need the dead worker must be
  written as if nothing had happened; a write that needs it must be refused promptly, and not be unknown. The same holds
  for reads.
- Its promise, CP or AP: whether a read may be older than the last committed write.
- In every mode, a refused write must never be read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from trikv.cli.show import WORKER_COLUMNS, readable_key, summary_rows, table, worker_rows
from trikv.client import Client
from trikv.core.errors import Outcome, TrikvError
from trikv.core.present import mode_of
from trikv.core.quorums import Need
from trikv.testing.judge.expectations import Expectations, Reads
from trikv.testing.processes.cluster import LocalCluster, NodeFailed, NodeProcess, wait_until
from trikv.testing.processes.etcd import EtcdFailed, etcd_missing
from trikv.testing.processes.process import START_DEADLINE_S

MASTER_PORT: Final = 8000
FIRST_WORKER_PORT: Final = 8001
FURTHER_WORKERS: Final = 3
# Calls a second for each worker. Another worker comes at 80 % of that: five workers in mode quorum have it at some 480
# requests a second, half of them puts (of three calls each). One person with curl makes less than a hundred.
MAX_LOAD: Final = 300
TOUR_KEYS: Final = 60  # enough that some need the worker that dies, and some do not

_BREAKABLE: Final = ("--break-it", "--probe")
_LIVE_INTERVAL_S: Final = 1.0
_PLAIN_INTERVAL_S: Final = 10.0


def run_demo(
    *, mode: str | None, workers: int, storage: str, data_dir: Path | None, http_port: int, masters: int = 1
) -> int:
    """Run until Ctrl-C or SIGTERM; return the exit code. `mode` None: quorum, or the mode in force in kept data."""
    if masters > 1 and (missing := etcd_missing()) is not None:
        print(f"error: {masters} masters share an etcd, and {missing}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both signals end it in the same way

    def make(ports: Sequence[int]) -> LocalCluster:
        cluster = LocalCluster(
            mode=mode,
            workers=workers if masters > 1 else 0,
            storage=storage,
            replicas=min(3, workers),
            directory=data_dir,
            master_port=ports[0],
            http_port=ports[1],
            masters=masters,
            etcd_members=1 if masters > 1 else 0,
            master_options=_BREAKABLE if masters > 1 else demo_options(workers, storage),
        )
        for number, master in enumerate(cluster.masters[1:], 1):
            master.http_port = _port_or_any(ports[1] + number) if ports[1] else 0
        what = "a master" if masters == 1 else f"an etcd, {masters} masters"
        print(f"starting {what} and {workers} workers in {cluster.directory} ...", flush=True)
        return cluster

    try:
        ports = [_port_or_any(port) for port in (MASTER_PORT, http_port)]
        cluster = make(ports)
        try:
            cluster.start()
        except BaseException as error:  # also Ctrl-C: stop the processes that did start
            cluster.stop()
            if not isinstance(error, NodeFailed) or os.strerror(errno.EADDRINUSE) not in str(error):
                raise
            print(f"{error}; free ports are taken instead", flush=True)  # another demo started at the same time
            cluster = make([0] * len(ports))
        with cluster, cluster.client(patience_s=3.0) as client:
            if masters == 1:
                _await_workers(client)
            first, *_ = cluster.url.split(",")
            print(f"the page is {first}, the master {cluster.master.address} (pid {cluster.master.pid})")
            for node, url in zip(cluster.masters[1:], cluster.url.split(",")[1:], strict=True):
                print(f"another master is {url} (pid {node.pid}); the pages of all lead to the one that leads")
            print(f"try it: curl '{first}/put?key=k&value=v'; Ctrl-C stops everything", flush=True)
            if masters > 1:
                print("kill the master that leads (kill -9 PID), and ask another one", flush=True)
            if mode not in (None, now := client.mode()["mode"]):
                print(f"the mode is {now}, not {mode}, since the data is of a cluster in that mode", flush=True)
            _watch(cluster, client)
    except (EtcdFailed, NodeFailed, TimeoutError, TrikvError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; nothing is left running", flush=True)
    return 0


def demo_options(workers: int, storage: str) -> list[str]:
    """What makes the demo's master one that starts workers, scales, and lets itself be broken."""
    options = {
        "--start-workers": workers, "--worker-port": FIRST_WORKER_PORT, "--worker-storage": storage,
        "--autoscale": f"{workers}..{workers + FURTHER_WORKERS}", "--max-load": MAX_LOAD,
    }  # fmt: skip
    return [*(str(word) for option in options.items() for word in option), *_BREAKABLE]


def _await_workers(client: Client) -> None:
    """Return when every worker is up or has failed to start, and say which have failed."""

    def all_there() -> bool:
        state = client.cluster()
        up = {worker["id"] for worker in state["workers"] if worker["state"] == "up"}
        return not state["fleet"]["waiting"] and up.issuperset(state["fleet"]["own"])

    wait_until(all_there, what="the workers are up", deadline_s=2 * START_DEADLINE_S)
    for failed in client.cluster()["fleet"]["failed"]:
        print(f"worker {failed['number']} did not start: {failed['why']}", flush=True)


def _port_or_any(port: int) -> int:
    """The port if it is free, else 0, which asks the system for a free one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            print(f"port {port} cannot be had ({error.strerror}); a free one is taken instead", flush=True)
            return 0
    return port


def _watch(cluster: LocalCluster, client: Client) -> None:
    """Show the workers until an interrupt: a live table on a terminal, else lines every ten seconds."""
    columns = ("pid", *WORKER_COLUMNS)
    if not sys.stdout.isatty():
        while True:
            for row in _live_rows(cluster, client):
                print("\t".join(row))
            sys.stdout.flush()
            time.sleep(_PLAIN_INTERVAL_S)
    from rich.live import Live

    with Live(auto_refresh=False) as live:
        while True:
            live.update(table(columns, _live_rows(cluster, client)), refresh=True)
            time.sleep(_LIVE_INTERVAL_S)


def _live_rows(cluster: LocalCluster, client: Client) -> list[tuple[str, ...]]:
    """A row per worker as the master sees it, or one that says that the master does not answer."""
    try:
        state = client.cluster()
    except TrikvError as error:
        return _master_rows(cluster, error.kind.title.lower())
    own = {node.id: node.pid if node.running else "gone" for node in cluster.workers}
    pids = [str(own.get(worker["id"]) or worker["pid"] or worker["process"]) for worker in state["workers"]]
    masters = [] if state["masters"] is None else _master_rows(cluster, "stands by", state["masters"]["leader"])
    return [*masters, *((pid, *row) for pid, row in zip(pids, worker_rows(state), strict=True))]


def _master_rows(cluster: LocalCluster, what: str, leader: Mapping[str, Any] | None = None) -> list[tuple[str, ...]]:
    return [
        (
            str(master.pid) if master.running else "gone",
            "master",
            master.address,
            "leads" if leader is not None and leader["address"] == master.address else what if master.running else "",
        )
        for master in cluster.masters
    ]


# --- the guided tour --------------------------------------------------------------------------------------------------


def run_tour(*, mode: str, workers: int, storage: str, data_dir: Path | None) -> int:
    """Run the guided tour; return 0 only if the mode kept its promise."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cluster = LocalCluster(mode=mode, workers=workers, replicas=min(3, workers), storage=storage, directory=data_dir)
    print(f"starting a master and {workers} workers in {cluster.directory}", flush=True)
    try:
        with cluster, cluster.client() as client:
            mode = client.mode()["mode"]  # kept data has a mode of its own
            broken = _tour(cluster, client)
    except (NodeFailed, TimeoutError, TrikvError) as error:
        print(f"error: the tour could not be finished: {error}", file=sys.stderr)
        return 1
    for line in broken:
        print(f"  BROKEN: {line}")
    print(f"verdict: mode {mode} {'BROKE its promise' if broken else 'kept its promise'}", flush=True)
    return 1 if broken else 0


def _tour(cluster: LocalCluster, client: Client) -> list[str]:
    """Take the tour, and return every way in which the promise was broken."""
    state = client.cluster()
    words = mode_of(state)
    for name, text in summary_rows(state):
        _say(f"{name}: {text}")
    _say(f"how it works: {words['protocol']}")
    needs = {what: Need(need["count"], tuple(need["places"])) for what, need in words["needs"].items()}
    for what, need in words["needs"].items():
        _say(f"a {what} needs {need['detail']}")
    expected = Expectations(stale_reads=words["promise"] == "AP")
    broken: list[str] = []

    with _step(f"put {TOUR_KEYS} keys and get them back"):
        errors = [error for i in range(TOUR_KEYS) if (error := expected.put(client, b"tour-%02d" % i, b"first"))]
        broken += [f"with all workers up a write was {error.kind.outcome.value}: {error}" for error in errors]
        broken += _judge_reads(expected.read_back(client), "with all workers up", may_refuse=frozenset())
        example = expected.keys[0]
        holders = [cluster.worker(worker_id) for worker_id in client.locate(example)]
        _say(f"{readable_key(example)} is held by {', '.join(node.name for node in holders)}, in this order")

    rows = {key: client.locate(key) for key in expected.keys}
    victim = holders[0]
    waiting = {
        what: frozenset(key for key, row in rows.items() if not need.is_met([worker != victim.id for worker in row]))
        for what, need in needs.items()
    }
    with _step(f"kill -9 one worker of {len(cluster.workers)}: {_describe(victim, state)}"):
        victim.kill()
        wait_until(lambda: _state_of(client, victim) == "down", what="the master notices that the worker is gone")

    with _step("write every key again, and read every key"):
        failed = {key: error for key in expected.keys if (error := expected.put(client, key, b"second"))}
        errors = list(failed.values())
        refused = [error for error in errors if error.kind.outcome is Outcome.REFUSED]
        unknown = len(errors) - len(refused)
        _say(f"writes: {TOUR_KEYS - len(errors)} committed, {len(refused)} refused, {unknown} unknown")
        if refused:
            _say(f"a refusal, for example: {refused[0]}")
        for key, error in failed.items():
            if key not in waiting["write"]:
                broken.append(f"a write that does not need the dead worker was {error.kind.outcome.value}: {error}")
            elif error not in refused:
                broken.append(f"a write should have been refused, and is unknown: {error}")
        if waiting["write"] and not refused:
            broken.append(f"no write was refused, though {len(waiting['write'])} need the dead worker")
        broken += _judge_reads(expected.read_back(client), "with one worker dead", may_refuse=waiting["read"])
        _say(_reading(client, example))

    with _step(f"start {victim.name} again, and read every key once more"):
        victim.start()
        cluster.await_up([victim])
        place = next(w["place"] for w in client.cluster()["workers"] if w["id"] == victim.id)
        kept = "with" if place != "lost" else "without"
        _say(f"it came back {kept} its data{'' if place != 'lost' else ', and is given its copies anew'}")
        may_refuse = waiting["read"] if place == "lost" else frozenset()
        broken += _judge_reads(expected.read_back(client), "after its return", may_refuse=may_refuse)
        _say(_reading(client, example))
    return broken


def _judge_reads(reads: Reads, when: str, *, may_refuse: frozenset[bytes]) -> list[str]:
    """`may_refuse`: keys that cannot be read without the dead worker."""
    older = f" ({reads.stale} with an older value, as AP allows)" if reads.stale else ""
    _say(f"reads {when}: {reads.answered} answered{older}, {len(reads.refused)} refused, {len(reads.lies)} untrue")
    broken = [f"{when}: {lie}" for lie in reads.lies]
    unneeded = [error for key, error in reads.refused.items() if key not in may_refuse]
    return broken + [f"{when} a read was refused: {error}" for error in unneeded]


def _reading(client: Client, key: bytes) -> str:
    """The answer of a read of the key, as a sentence."""
    try:
        found = client.get(key)
    except TrikvError as error:
        return f"a read of {readable_key(key)} is {error.kind.outcome.value}: {error}"
    return f"{readable_key(key)} reads {found.value.decode()!r}" if found else f"{readable_key(key)} is absent"


def _state_of(client: Client, node: NodeProcess) -> str:
    return str(next(w["state"] for w in client.cluster()["workers"] if w["id"] == node.id))


def _describe(node: NodeProcess, state: dict[str, Any]) -> str:
    worker = next(w for w in state["workers"] if w["id"] == node.id)
    total = state["partitions"]["total"]
    return f"{node.name} ({node.id}, pid {node.pid}), which holds {worker['copies']} of {total} partitions"


@contextlib.contextmanager
def _step(title: str) -> Iterator[None]:
    print(f"\n{title}", flush=True)
    yield


def _say(text: str) -> None:
    print(f"  {text}", flush=True)
